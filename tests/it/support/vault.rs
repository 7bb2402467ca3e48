//! A whole vault in this process: made by the real `init`, on a fresh database, in front of a gateway
//! sandbox, with callers that have real certificates. Everything that it logs is searched for card data
//! when a story ends.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cardvault::app::App;
use cardvault::config::Config;
use cardvault::ops::Policy;
use cardvault::sandbox::{NotifyOptions, Options, Sandbox};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Database;
use super::gateway::Scripted;
use super::leak::LeakGuard;

/// The request of Antom's card payment page, byte for byte.
pub const SAMPLE: &str = include_str!("../../samples/pay-server-to-server.json");
/// The hosted page's request.
pub const HOSTED: &str = include_str!("../../samples/pay-hosted-page.json");
/// The sample's card number.
pub const SAMPLE_PAN: &str = "4117347806156383";

/// Variables that speak to the tests; the program takes them for keys of its configuration that are not there.
const FOR_TESTS: [&str; 2] = ["CARDVAULT_KILL_ROUNDS", "CARDVAULT_CUTS"];

/// How long a call to the gateway may take here; a silent sandbox is silent for longer.
const GATEWAY_TIMEOUT_MS: u64 = 2_000;
/// How long a slow answer of the sandbox takes; silence takes four times as long.
const SLOW: Duration = Duration::from_millis(1_000);

/// A running vault, its gateway, and the folder with its certificates.
pub struct TestVault {
    /// What `init` wrote.
    pub dir: TempDir,
    /// The configuration that is served; change it before [`TestVault::restart`].
    pub config: Config,
    /// What the configuration has no word for; change it before [`TestVault::restart`].
    pub policy: Policy,
    /// The gateway.
    pub sandbox: Sandbox,
    /// Where the API listens.
    pub address: SocketAddr,
    /// Where the health checks listen.
    pub health: Option<SocketAddr>,
    /// Variables for the programs that are started here.
    pub environment: Vec<(String, String)>,
    /// Where notifications are taken, if they are.
    pub notify_address: Option<SocketAddr>,
    /// The gaps between the sandbox's sendings of one notification; none is sent without.
    notice_gaps: Option<Vec<Duration>>,
    guard: LeakGuard,
    files: PathBuf,
    since: SystemTime,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl TestVault {
    /// Starts a vault on a database.
    pub async fn start(db: &Database) -> Self {
        Self::start_with(db, |_| {}).await
    }

    /// Starts a vault whose configuration was changed.
    pub async fn start_with(db: &Database, change: impl FnOnce(&mut Config)) -> Self {
        // A story that has notifications sent asks for them.
        let quiet = |config: &mut Config| {
            config.notify = None;
            change(config);
        };
        Self::start_whole(db, None, quiet).await
    }

    /// Starts a vault that takes notifications, and a sandbox that sends them, again after each of `gaps`
    /// until they are acknowledged.
    pub async fn start_notified(db: &Database, gaps: &[Duration]) -> Self {
        // A port that stays the same over a restart: the sandbox keeps the address that it was given.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|it| it.local_addr());
        let address = port.expect("a port");
        let fixed = |config: &mut Config| config.notify.as_mut().expect("a section").listen = address;
        Self::start_whole(db, Some(gaps.to_vec()), fixed).await
    }

    async fn start_whole(
        db: &Database,
        notice_gaps: Option<Vec<Duration>>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let guard = LeakGuard::install();
        let dir = tempfile::Builder::new().prefix("cardvault-test-").tempdir().expect("a folder");
        init(dir.path(), &db.url);
        let mut config =
            Config::load(&dir.path().join("cardvault.toml"), std::iter::empty()).expect("a configuration");
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let sandbox = Sandbox::start(options(dir.path(), listen, notice_gaps.clone())).await;
        let sandbox = sandbox.expect("a sandbox");
        let gateway = config.gateway.first_mut().expect("a gateway");
        gateway.base_url = sandbox.base_url();
        gateway.timeout_ms = GATEWAY_TIMEOUT_MS;
        gateway.connect_timeout_ms = 1_000;
        // Nobody balances load here.
        config.ops.drain_ms = 0;
        change(&mut config);
        let mut vault = Self {
            dir,
            config,
            policy: Policy::default(),
            sandbox,
            address: listen,
            health: None,
            environment: Vec::new(),
            notify_address: None,
            notice_gaps,
            guard,
            files: db.files.clone(),
            since: db.since,
            running: None,
        };
        vault.serve().await;
        vault
    }

    /// Starts a vault that does not ask after unclear payments by itself, so that they stand still.
    pub async fn start_still(db: &Database) -> Self {
        let mut vault = Self::start(db).await;
        vault.policy.inquiry_pauses = vec![Duration::from_secs(3600)];
        vault.restart().await;
        vault
    }

    /// Starts a vault in front of a gateway of the story's own. It asks after unclear payments often.
    pub async fn start_scripted(db: &Database) -> (Self, Scripted) {
        let mut vault = Self::start(db).await;
        let gateway = Scripted::start(vault.dir.path()).await;
        vault.gateway_at(&gateway.base_url());
        vault.policy.inquiry_pauses = vec![Duration::from_millis(100)];
        vault.restart().await;
        (vault, gateway)
    }

    /// Points the configuration to another gateway, from the next restart on.
    pub fn gateway_at(&mut self, base_url: &str) {
        for gateway in &mut self.config.gateway {
            base_url.clone_into(&mut gateway.base_url);
        }
    }

    /// How often the sandbox's API ending in `path` was called for an id.
    pub fn calls(&self, path: &str, payment_request_id: &str) -> usize {
        let named = format!("\"paymentRequestId\":\"{payment_request_id}\"");
        let is =
            |call: &&cardvault::sandbox::Call| call.path.ends_with(path) && call.request.contains(&named);
        self.sandbox.recent_calls().iter().filter(is).count()
    }

    async fn serve(&mut self) {
        let policy = self.policy.clone();
        let app = App::start_with(&self.config, policy).await.unwrap_or_else(|error| panic!("{error:#}"));
        self.address = app.api_address();
        self.health = app.ops_address();
        self.notify_address = app.notify_address();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(app.serve(async {
            let _ = stopped.await;
        }));
        self.running = Some((stop, task));
    }

    /// Stops the vault gracefully.
    pub async fn stop(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            let _ = stop.send(());
            task.await.expect("a graceful stop");
        }
    }

    /// Stops the vault and starts another process's worth of it on the same database.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.serve().await;
    }

    /// Stops the vault in this process and starts the real program in its place, so that it can be killed.
    /// [`TestVault::restart`] serves in this process again. The program takes the sandbox or the gateway
    /// from the configuration here.
    pub async fn start_program(&mut self) -> Child {
        self.stop().await;
        let file = self.dir.path().join("cardvault.toml");
        let mut text: toml::Table = std::fs::read_to_string(&file).expect("text").parse().expect("TOML");
        for gateway in text["gateway"].as_array_mut().expect("gateways") {
            gateway["base_url"] = toml::Value::from(self.config.gateway[0].base_url.clone());
            let table = gateway.as_table_mut().expect("a table");
            table.insert("timeout_ms".to_owned(), toml::Value::from(60_000));
        }
        let changed = self.dir.path().join("program.toml");
        std::fs::write(&changed, text.to_string()).expect("a file");
        // Of all programs that were started here, so that nothing is lost that one of them has said.
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.program_log());
        let log = log.expect("a file");
        let mut child = Command::new(env!("CARGO_BIN_EXE_cardvault"));
        for name in FOR_TESTS {
            child.env_remove(name);
        }
        let mut child = child
            .args(["serve", "--config"])
            .arg(changed)
            .env("CARDVAULT_LOG", "trace")
            .envs(self.environment.clone())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the binary runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let ready = lines.find_map(|line| line.ok().filter(|line| line.starts_with("ready ")));
        let ready = ready.unwrap_or_else(|| {
            panic!("not ready: {}", std::fs::read_to_string(self.program_log()).unwrap_or_default())
        });
        let address = ready.split("api=https://").nth(1).and_then(|rest| rest.split(' ').next());
        self.address = address.and_then(|text| text.parse().ok()).expect("an address");
        self.health = ready.split("ops=http://").nth(1).and_then(|text| text.parse().ok());
        child
    }

    /// Starts one more server on the same database and configuration, in this process.
    pub async fn another(&self) -> Another {
        let policy = self.policy.clone();
        let app = App::start_with(&self.config, policy).await.unwrap_or_else(|error| panic!("{error:#}"));
        let address = app.api_address();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(app.serve(async {
            let _ = stopped.await;
        }));
        Another { address, stop, task }
    }

    /// What the health check says: status line and body.
    pub async fn readiness(&self) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream =
            tokio::net::TcpStream::connect(self.health.expect("a health listener")).await.expect("connect");
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        let first = answer.lines().next().unwrap_or_default();
        format!("{first} {}", answer.rsplit("\r\n").next().unwrap_or_default())
    }

    /// What the operators' plane answers: status and body.
    pub async fn operators(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream =
            tokio::net::TcpStream::connect(self.health.expect("a health listener")).await.expect("connect");
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        (status, body)
    }

    /// Runs a command of the real program with this vault's configuration file.
    pub async fn run(&self, arguments: &[&str]) -> std::process::Output {
        self.command(arguments).output().await.expect("it runs")
    }

    /// As [`Self::run`]: its exit code, and all that it printed.
    pub async fn told(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let done = self.run(arguments).await;
        (done.status.code(), printed(&done))
    }

    /// A command of the real program with this vault's configuration file, not started yet.
    pub fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_cardvault"));
        for name in FOR_TESTS {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .env("CARDVAULT_CONFIG", self.dir.path().join("cardvault.toml"))
            .envs(self.environment.clone())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Where the program's log goes.
    pub fn program_log(&self) -> PathBuf {
        self.dir.path().join("program.log")
    }

    /// Stops the sandbox and starts it again on the same ledger and address.
    pub async fn restart_sandbox(&mut self) {
        self.restart_sandbox_with(|_| {}).await;
    }

    /// As [`Self::restart_sandbox`], with other keys, say.
    pub async fn restart_sandbox_with(&mut self, change: impl FnOnce(&mut Options)) {
        let address = self.sandbox.address();
        let mut fresh = options(self.dir.path(), address, self.notice_gaps.clone());
        change(&mut fresh);
        // The ledger is locked while a sandbox has it: the old one goes first.
        let placeholder = options_elsewhere(self.dir.path());
        let old = std::mem::replace(&mut self.sandbox, Sandbox::start(placeholder).await.expect("a sandbox"));
        old.stop().await;
        let spare = std::mem::replace(&mut self.sandbox, Sandbox::start(fresh).await.expect("a sandbox"));
        spare.stop().await;
    }

    /// A caller with the certificate of one of the clients that `init` makes.
    pub fn client(&self, name: &str) -> Caller {
        let folder = self.dir.path().join("pki/clients");
        let pem = std::fs::read(folder.join(format!("{name}.pem"))).expect("a certificate");
        let key = std::fs::read(folder.join(format!("{name}.key"))).expect("a key");
        Caller::new(self, Some((&pem, &key)))
    }

    /// The charges that the gateway has for an id.
    pub fn charges(&self, payment_request_id: &str) -> usize {
        let mine = |id: &str| id == payment_request_id;
        self.sandbox.ledger().iter().filter(|entry| mine(&entry.payment_request_id) && entry.charged).count()
    }

    /// What was logged since this vault was made, by all of this process.
    pub fn logged(&self) -> String {
        String::from_utf8_lossy(&self.guard.captured()).into_owned()
    }

    /// What was logged as an error since this vault was made, for a story that has failed.
    pub fn logged_errors(&self) -> String {
        let text = self.logged();
        text.lines().filter(|line| line.contains("\"ERROR\"")).collect::<Vec<_>>().join("\n")
    }

    /// Stops everything and fails if one of the secrets is in the log or in the database's files.
    pub async fn finish(mut self, secrets: &[&str]) {
        self.stop().await;
        self.guard.assert_clean(secrets);
        super::leak::scan_dir_since(&self.files, self.since, secrets);
        self.sandbox.stop().await;
    }
}

/// A second server on the same database.
pub struct Another {
    /// Where its API listens.
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Another {
    /// Stops it gracefully.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        self.task.await.expect("a graceful stop");
    }
}

/// Runs the real `cardvault init`.
pub fn init(dir: &Path, database_url: &str) {
    let made = Command::new(env!("CARGO_BIN_EXE_cardvault"))
        .args(["init", "--api-listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"])
        .args(["--notify-listen", "127.0.0.1:0"])
        .args(["--database-url", database_url])
        .arg(dir)
        .output()
        .expect("the binary runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

fn options(dir: &Path, listen: SocketAddr, notice_gaps: Option<Vec<Duration>>) -> Options {
    let read = |name: &str| std::fs::read(dir.join(name)).expect(name);
    Options {
        listen,
        tls_certificate_pem: read("pki/sandbox.pem"),
        tls_private_key_pem: read("pki/sandbox.key"),
        ledger: dir.join("sandbox-ledger.jsonl"),
        client_id: "SANDBOX_5YCARDVAULT00001".to_owned(),
        merchant_public_key_pem: read("gateway/merchant_public.pem"),
        gateway_private_key_pem: read("gateway/sandbox_private.pem"),
        gateway_key_version: 1,
        slow: SLOW,
        notify: notice_gaps.map(|gaps| NotifyOptions { ca_pem: Some(read("pki/ca.pem")), gaps }),
    }
}

fn options_elsewhere(dir: &Path) -> Options {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    Options { ledger: dir.join("spare-ledger.jsonl"), ..options(dir, listen, None) }
}

/// A merchant service.
#[derive(Clone)]
pub struct Caller {
    http: reqwest::Client,
    base: String,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Header names and values.
    pub headers: reqwest::header::HeaderMap,
    /// The body.
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {} {}", self.status, self.text))
    }

    /// A text member at a pointer, or nothing.
    pub fn text_at(&self, pointer: &str) -> String {
        self.json().pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// Fails unless the status is as expected.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// Fails unless this is a problem of this status and code.
    #[track_caller]
    pub fn expect_problem(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.text_at("/code").as_str()), (status, code), "{}", self.text);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert!(self.text_at("/requestId").starts_with("req_"));
        self
    }
}

impl Caller {
    /// A caller with a certificate (PEM) and key, or with none.
    pub fn new(vault: &TestVault, identity: Option<(&[u8], &[u8])>) -> Self {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(vault.dir.path().join("pki/ca.pem")).expect("an authority");
        roots.add(ca).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots);
        let tls = match identity {
            None => builder.with_no_client_auth(),
            Some((pem, key)) => {
                let chain = CertificateDer::pem_slice_iter(pem).map(|c| c.expect("a certificate")).collect();
                let key = PrivateKeyDer::from_pem_slice(key).expect("a key");
                builder.with_client_auth_cert(chain, key).expect("an identity")
            }
        };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("a client");
        Self { http, base: format!("https://{}", vault.address) }
    }

    /// The same caller at another server.
    pub fn at(&self, address: SocketAddr) -> Self {
        Self { http: self.http.clone(), base: format!("https://{address}") }
    }

    /// Makes a call, or tells that no answer came.
    pub async fn try_call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<Answer, reqwest::Error> {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Ok(Answer { status, headers, text: answer.text().await? })
    }

    /// Makes a call with a JSON body.
    pub async fn send(&self, method: &str, path: &str, body: &str) -> Answer {
        let headers = [("content-type", "application/json")];
        let sent = self.try_call(method, path, &headers, Some(body.as_bytes().to_vec())).await;
        sent.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"))
    }

    /// `POST`
    pub async fn post(&self, path: &str, body: &str) -> Answer {
        self.send("POST", path, body).await
    }

    /// `GET`
    pub async fn get(&self, path: &str) -> Answer {
        self.try_call("GET", path, &[], None).await.unwrap_or_else(|error| panic!("GET {path}: {error:?}"))
    }

    /// `DELETE`
    pub async fn delete(&self, path: &str) -> Answer {
        self.try_call("DELETE", path, &[], None)
            .await
            .unwrap_or_else(|error| panic!("DELETE {path}: {error:?}"))
    }

    /// Calls any address as a buyer's browser would, following nothing.
    pub async fn visit(&self, url: &str) {
        self.http.get(url).send().await.unwrap_or_else(|error| panic!("{url}: {error:?}"));
    }

    /// Tokenises a card and gives its reference.
    pub async fn card(&self, pan: &str) -> String {
        let body = format!(
            r#"{{"cardNo":"{pan}","expiryMonth":"12","expiryYear":"29","cardholderName":{{"firstName":"Tom","lastName":"Jay"}}}}"#
        );
        let answer = self.post("/v1/cards", &body).await;
        assert!(matches!(answer.status, 200 | 201), "{}", answer.text);
        answer.text_at("/cardId")
    }
}

/// The sample under another id, with another amount.
pub fn sample_with(id: &str, value: &str) -> String {
    SAMPLE
        .replace("PAY_20221114141714891", id)
        .replace("\"value\": \"30000\"", &format!("\"value\": \"{value}\""))
}

/// A payment that opens an agreement, by a request that names or types a card.
pub fn opening(request: &str) -> String {
    let terms = json!({ "type": "SCHEDULED", "consent": { "acceptedAt": "2026-01-01T00:00:00Z", "textVersion": "v1" } });
    let mut request: Value = serde_json::from_str(request).expect("JSON");
    request["storedCredential"] = json!({ "initiator": "CUSTOMER", "agreement": terms });
    request.to_string()
}

/// The sample as a payment by reference.
pub fn by_reference(id: &str, value: &str, card_id: &str) -> String {
    let mut request: Value = serde_json::from_str(&sample_with(id, value)).expect("JSON");
    let method = &mut request["paymentMethod"];
    method["paymentMethodId"] = Value::from(card_id);
    let metadata = method["paymentMethodMetaData"].as_object_mut().expect("an object");
    for name in ["cardNo", "cvv", "expiryMonth", "expiryYear", "cardholderName"] {
        metadata.remove(name);
    }
    request["order"].as_object_mut().expect("an object").remove("buyer");
    request.to_string()
}

/// The sample with another card number, CVV, id and amount.
pub fn typed(id: &str, value: &str, pan: &str, cvv: &str) -> String {
    sample_with(id, value).replace(SAMPLE_PAN, pan).replace("\"850\"", &format!("\"{cvv}\""))
}

/// A text with one member's value changed; the member must be there.
pub fn with(text: &str, pointer: &str, value: Value) -> String {
    let mut request: Value = serde_json::from_str(text).expect("JSON");
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    let parent = request.pointer_mut(parent).expect("a parent");
    parent.as_object_mut().expect("an object").insert(name.to_owned(), value);
    request.to_string()
}

/// A text without one member, which must be there.
pub fn without(text: &str, pointer: &str) -> String {
    let mut request: Value = serde_json::from_str(text).expect("JSON");
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    let parent = request.pointer_mut(parent).expect("a parent");
    parent.as_object_mut().expect("an object").remove(name).expect("the member");
    request.to_string()
}

/// The card's map of a pay request.
pub const METADATA: &str = "/paymentMethod/paymentMethodMetaData";

/// A fresh Luhn-valid number in Visa's range that only this test knows.
pub fn fresh_pan() -> String {
    let mut digits: Vec<u8> = vec![4];
    let random: [u8; 14] = cardvault::base::entropy::array().expect("entropy");
    digits.extend(random.iter().map(|byte| byte % 10));
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, digit)| match (place % 2, u32::from(*digit)) {
            (0, digit) if digit > 4 => digit * 2 - 9,
            (0, digit) => digit * 2,
            (_, digit) => digit,
        })
        .sum();
    digits.push(u8::try_from((10 - sum % 10) % 10).expect("a digit"));
    digits.iter().map(|digit| char::from(b'0' + digit)).collect()
}

/// All that a command printed.
pub fn printed(done: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
}

/// The last line of JSON that a command printed.
pub fn last_json(said: &str) -> serde_json::Value {
    let line = said.lines().rfind(|line| line.starts_with('{'));
    serde_json::from_str(line.unwrap_or_else(|| panic!("{said}"))).expect("JSON")
}
