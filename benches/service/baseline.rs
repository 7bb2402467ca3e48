//! What the vault is measured against, on the same machine in the same minutes: the database's own one-row
//! INSERT, a TLS server that does nothing, and the gateway asked directly.

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cardvault::base::secret::SecretText;
use cardvault::gateway::antom::{sign::SigningKey, wire};
use cardvault::http::tls::{ServerTls, server_config};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::cpu::Watched;
use super::load::{Figures, request};

/// Bytes of a sealed number and of sealed details, as the vault stores them.
#[derive(Debug, Clone, Copy)]
pub struct Widths {
    pub pan: usize,
    pub details: usize,
}

/// The one-row INSERT as `pgbench` does it, prepared, each its own transaction: a row as wide as the vault's,
/// in a table with the same indexes.
pub fn pgbench(
    program: &Path,
    url: &str,
    widths: Widths,
    connections: usize,
    time: Duration,
    cluster: Watched,
) -> Figures {
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("insert.sql");
    let filled = |bytes: usize| "5a".repeat(bytes);
    let text = format!(
        "\\set a random(1, 9000000000000000000)\n\\set b random(1, 9000000000000000000)\n\
         INSERT INTO one_row (card_id, merchant, buyer, fingerprint, brand, bin, last4, pan, details, typed_at, \
         version, created_at, updated_at) VALUES ('card_' || lpad(to_hex(:a::bigint), 16, '0') || lpad(to_hex(:b::bigint), 16, '0'), \
         'acme', '', int8send(:a::bigint) || int8send(:b::bigint) || int8send(:a::bigint) || int8send(:b::bigint), 'VISA', '411111', '1111', \
         '\\x{}', '\\x{}', 1772366400000, 1, 1772366400000, 1772366400000);\n",
        filled(widths.pan),
        filled(widths.details),
    );
    std::fs::write(&script, text).expect("a file");
    let before = cluster.used();
    let done = Command::new(program)
        .args(["-n", "-M", "prepared", "-c", &connections.to_string(), "-j", "2"])
        .args(["-T", &time.as_secs().max(1).to_string(), "-f"])
        .arg(&script)
        .arg(url)
        .output()
        .expect("pgbench runs");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said} {}", String::from_utf8_lossy(&done.stderr));
    let after = |begin: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(begin));
        line.and_then(|rest| rest.trim().split(' ').next()?.parse::<f64>().ok())
            .unwrap_or_else(|| panic!("pgbench did too little; take more seconds: {said}"))
    };
    let transactions =
        said.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    let transactions: f64 =
        transactions.and_then(|text| text.split('/').next()?.parse().ok()).expect("a number");
    let cpu = (cluster.used() - before).as_secs_f64() * 1e3 / transactions;
    Figures { rate: after("tps = "), p50: after("latency average = "), cpu: vec![cpu], ..Figures::default() }
}

/// One INSERT a transaction on SQLite, with the settings of the vault's own database. More connections than
/// one would only wait for one another.
pub async fn sqlite_inserts(path: &Path, vault_url: &str, widths: Widths, time: Duration) -> f64 {
    const INSERT: &str = "INSERT INTO cards (card_id, merchant, buyer, fingerprint, brand, bin, last4, pan, \
         details, typed_at, version, created_at, updated_at) \
         VALUES ('card_' || hex(randomblob(16)), 'acme', '', randomblob(32), 'VISA', '411111', '1111', $1, $2, \
         1772366400000, 1, 1772366400000, 1772366400000)";
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("secure_delete", "on");
    let mut connection = SqliteConnection::connect_with(&options).await.expect("a connection");
    let have = "SELECT COUNT(*) FROM sqlite_schema WHERE name = 'cards'";
    if sqlx::query_scalar::<_, i64>(have).fetch_one(&mut connection).await.expect("a count") == 0 {
        // The vault's own table and its indexes, in the order in which they were made.
        const SCHEMA: &str =
            "SELECT sql FROM sqlite_schema WHERE tbl_name = 'cards' AND sql IS NOT NULL ORDER BY rowid";
        let mut vault = SqliteConnection::connect(vault_url).await.expect("a connection");
        let schema = sqlx::query_scalar::<_, String>(SCHEMA).fetch_all(&mut vault).await.expect("a schema");
        vault.close().await.expect("close");
        for statement in schema {
            sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await.expect("a statement");
        }
    }
    let (pan, details) = (vec![0x5a_u8; widths.pan], vec![0x5a_u8; widths.details]);
    let begin = Instant::now();
    let mut done = 0_u32;
    while begin.elapsed() < time {
        sqlx::query(INSERT).bind(&pan).bind(&details).execute(&mut connection).await.expect("an insert");
        done += 1;
    }
    let rate = f64::from(done) / begin.elapsed().as_secs_f64();
    connection.close().await.expect("close");
    rate
}

/// Serves the echo until its standard input ends: the same TLS, and an answer of so many bytes to whatever
/// was sent. It runs as a process of its own, as the vault does.
pub async fn serve_echo(dir: &Path, bytes: usize) {
    let read = |name: &str| std::fs::read(dir.join(name)).expect("a file of init");
    let tls = server_config(&ServerTls {
        certificate_pem: read("pki/server.pem"),
        private_key_pem: read("pki/server.key"),
        client_ca_pem: Some(read("pki/ca.pem")),
    });
    let acceptor = tokio_rustls::TlsAcceptor::from(tls.expect("a configuration").config);
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    println!("ready echo=https://{}", socket.local_addr().expect("an address"));
    let head = |body: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {body:04}\r\n\r\n");
    let body = bytes.saturating_sub(head(0).len());
    let answer: Arc<[u8]> = [head(body).into_bytes(), vec![b'x'; body]].concat().into();
    let serve = async {
        loop {
            let Ok((tcp, _)) = socket.accept().await else { continue };
            let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
            tokio::spawn(async move {
                let _ = tcp.set_nodelay(true);
                let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                let mut read = Vec::with_capacity(4096);
                while stream.read_buf(&mut read).await.is_ok_and(|count| count > 0) {
                    if read.ends_with(b"\r\n\r\n") {
                        read.clear();
                        if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    };
    let end = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    tokio::select! {
        () = serve => {}
        _ = end => {}
    }
}

/// The echo's process.
pub struct Echo {
    child: std::process::Child,
    pub address: SocketAddr,
}

impl Echo {
    pub fn start(dir: &Path, bytes: usize) -> Self {
        let this = std::env::current_exe().expect("this program");
        let mut command = Command::new(this);
        command.args(["--echo", &bytes.to_string(), "--echo-dir"]).arg(dir).stdin(Stdio::piped());
        let (child, address) = super::vault::start(&mut command, &dir.join("echo.log"), "echo=https://");
        Self { child, address }
    }

    pub fn cpu(&self) -> Watched {
        Watched::process(self.child.id())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Pay requests as the vault sends them, signed before the clock runs: what is measured is the gateway's own
/// time.
pub fn signed(dir: &Path, bodies: impl Iterator<Item = String>) -> Vec<Vec<u8>> {
    const CLIENT: &str = "SANDBOX_5YCARDVAULT00001";
    let key = std::fs::read_to_string(dir.join("gateway/merchant_private.pem")).expect("a key");
    let key = SigningKey::read(&SecretText::new(key), 1).expect("a key");
    let path = wire::path_for(CLIENT, wire::PAY);
    let time =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_millis();
    let time = time.to_string();
    bodies
        .map(|body| {
            let signature = key.sign(&path, CLIENT, &time, body.as_bytes()).expect("a signature");
            let headers =
                format!("client-id: {CLIENT}\r\nrequest-time: {time}\r\nsignature: {signature}\r\n");
            request("POST", &path, &headers, &body)
        })
        .collect()
}
