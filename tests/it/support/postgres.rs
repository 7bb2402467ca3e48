//! A private PostgreSQL cluster: made from the installed binaries in a temporary folder, on a free port
//! of 127.0.0.1 with a random password, and gone when the tests are, however they end.
//!
//! `CARDVAULT_REQUIRE_POSTGRES=1` makes a missing PostgreSQL an error (as in CI);
//! `CARDVAULT_TEST_NO_POSTGRES=1` acts as if none were installed.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use cardvault::base::entropy;
use data_encoding::HEXLOWER;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::OnceCell;

/// Begins the name of every folder made here, so that a left-over one can be told.
const PREFIX: &str = "cardvault-test-pg-";
/// The role that tests log in as. Not a superuser, as the product's is not.
const ROLE: &str = "cardvault_test";
/// How long a cluster may take to answer.
const START: Duration = Duration::from_secs(60);

static SHARED: OnceCell<Option<Cluster>> = OnceCell::const_new();

/// The URL of a new, empty database in this process's shared cluster. `None` if no PostgreSQL is
/// installed, which is said once.
pub async fn fresh_database() -> Option<String> {
    Some(shared().await?.fresh_database().await)
}

/// As [`fresh_database`], for work that is too much for the server's log.
pub async fn fresh_quiet_database() -> Option<String> {
    let cluster = shared().await?;
    let url = cluster.fresh_database().await;
    let name = url.rsplit('/').next().unwrap_or_default();
    for setting in ["log_statement = 'none'", "log_min_messages = 'warning'", "synchronous_commit = 'off'"] {
        cluster.as_superuser(&format!("ALTER DATABASE {name} SET {setting}")).await;
    }
    Some(url)
}

/// The shared cluster's folder: data, write-ahead log, server log.
pub async fn shared_files() -> Option<PathBuf> {
    Some(shared().await?.folder.clone())
}

/// Makes everything that the shared cluster holds in memory be in its files too.
pub async fn shared_checkpoint() {
    if let Some(cluster) = shared().await {
        cluster.as_superuser("CHECKPOINT").await;
    }
}

async fn shared() -> Option<&'static Cluster> {
    SHARED
        .get_or_init(|| async {
            let Some(binaries) = Binaries::find() else {
                super::say("no PostgreSQL found: its tests are left out (install it, or put initdb in PATH)");
                return None;
            };
            Some(Cluster::start(&binaries, Durability::Fast).await)
        })
        .await
        .as_ref()
}

/// Whether a cluster survives the loss of power. Ordinary tests do not need it, and are quicker without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// No fsync: what was acknowledged survives `kill -9`, and not the loss of power.
    Fast,
    /// As in production.
    Full,
}

/// The folder with `initdb` and `postgres`.
pub struct Binaries(PathBuf);

impl Binaries {
    /// The newest installed PostgreSQL that runs. Panics where there is none and one is required.
    pub fn find() -> Option<Self> {
        let found = Self::newest();
        let required = std::env::var_os("CARDVAULT_REQUIRE_POSTGRES").is_some_and(|it| it != "0");
        assert!(
            found.is_some() || !required,
            "CARDVAULT_REQUIRE_POSTGRES is set, and no PostgreSQL was found"
        );
        found
    }

    /// Where one of its programs is.
    pub fn program(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn newest() -> Option<Self> {
        if std::env::var_os("CARDVAULT_TEST_NO_POSTGRES").is_some_and(|it| it != "0") {
            return None;
        }
        let mut folders = Vec::new();
        for (parent, prefix, below) in [
            ("/usr/lib/postgresql", "", "bin"),
            ("/usr", "pgsql-", "bin"),
            ("/opt/homebrew/opt", "postgresql", "bin"),
            ("/usr/local/opt", "postgresql", "bin"),
        ] {
            let mut found: Vec<(u32, PathBuf)> = fs::read_dir(parent)
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|entry| {
                    let name = entry.file_name().into_string().ok()?;
                    let rest = name.strip_prefix(prefix)?;
                    let version = rest.trim_matches(|it: char| !it.is_ascii_digit());
                    Some((version.parse().unwrap_or(0), entry.path().join(below)))
                })
                .collect();
            found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
            folders.extend(found.into_iter().map(|(_, folder)| folder));
        }
        // In PATH there may be a link, or a wrapper: the folder behind it counts, if it is a real one.
        for folder in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
            let real = folder.join("initdb").canonicalize().ok();
            folders.extend(real.and_then(|it| it.parent().map(Path::to_owned)));
        }
        folders
            .into_iter()
            .find(|folder| runs(&folder.join("initdb")) && runs(&folder.join("postgres")))
            .map(Self)
    }
}

fn runs(program: &Path) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|it| it.status.success() && String::from_utf8_lossy(&it.stdout).contains("(PostgreSQL)"))
}

/// A running cluster. Dropping it stops the server and removes its folder; so does the end of this
/// process, by whatever means, because the server's keeper then reads the end of a pipe.
pub struct Cluster {
    /// Data, write-ahead log and server log.
    pub folder: PathBuf,
    binaries: PathBuf,
    durability: Durability,
    owner: Option<(u32, u32)>,
    port: u16,
    superuser_password: String,
    role_password: String,
    keeper: Option<(Child, ChildStdin)>,
}

impl Cluster {
    /// Makes a cluster and starts it. Panics if that fails: an installed PostgreSQL that does not work
    /// is not a missing one.
    pub async fn start(binaries: &Binaries, durability: Durability) -> Self {
        remove_leftovers();
        let owner = rustix::process::geteuid().is_root().then(unprivileged);
        let folder = std::env::temp_dir().join(format!("{PREFIX}{}", random_hex::<8>()));
        fs::DirBuilder::new().mode(0o700).create(&folder).expect("a temporary folder");
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(&folder, Some(uid), Some(gid)).expect("chown");
        }
        let mut cluster = Self {
            folder,
            binaries: binaries.0.clone(),
            durability,
            owner,
            port: 0,
            superuser_password: random_hex::<16>(),
            role_password: random_hex::<16>(),
            keeper: None,
        };
        cluster.initialise();
        cluster.launch().await;
        cluster
            .as_superuser(&format!("CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{}'", cluster.role_password))
            .await;
        cluster
    }

    /// The URL of a new, empty database that belongs to an ordinary role.
    pub async fn fresh_database(&self) -> String {
        let name = format!("it_{}", random_hex::<8>());
        let mut connection =
            PgConnection::connect(&self.url(ROLE, &self.role_password, "postgres")).await.expect("connect");
        // template0 can be copied by many at once.
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE template0")))
            .execute(&mut connection)
            .await
            .expect("create a database");
        connection.close().await.expect("close");
        self.url(ROLE, &self.role_password, &name)
    }

    /// The port on 127.0.0.1, for a test that puts a breakable network in front.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The superuser's URL.
    pub fn superuser_url(&self) -> String {
        self.url("postgres", &self.superuser_password, "postgres")
    }

    /// Runs a file of SQL with PostgreSQL's own client.
    pub fn psql(&self, url: &str, file: &Path) {
        let output = Command::new(self.binaries.join("psql"))
            .args(["-X", "-q", "-f"])
            .arg(file)
            .arg(url)
            .stdin(Stdio::null())
            .output()
            .expect("psql runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Writes a file into the server's folder, for nobody but the server.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.folder.join("data").join(name);
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).expect("chown");
        }
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("server.log")).expect("a log")
    }

    /// Runs one statement as the superuser.
    pub async fn as_superuser(&self, statement: &str) {
        let url = self.url("postgres", &self.superuser_password, "postgres");
        let mut connection = PgConnection::connect(&url).await.expect("connect as superuser");
        sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.expect("statement");
        connection.close().await.expect("close");
    }

    /// Kills the server as `kill -9` does; the folder stays. [`Cluster::launch`] starts it again.
    pub fn crash(&mut self) {
        let pid = postmaster(&self.folder).expect("a running server");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
        if let Some((mut child, stdin)) = self.keeper.take() {
            let _ = child.wait();
            drop(stdin);
        }
    }

    /// Kills every process of the server at once, so that none has time to write what only memory holds.
    pub fn crash_whole(&mut self) {
        use rustix::process::{Signal, kill_process};
        let pid = postmaster(&self.folder).expect("a running server");
        // Stopped, it starts no others while they are listed.
        kill_process(pid, Signal::STOP).expect("stop");
        for child in children(pid) {
            // One that has ended by itself is as good.
            let _ = kill_process(child, Signal::KILL);
        }
        self.crash();
    }

    /// Starts the server, on the same port as before if it had one, and waits until it answers.
    pub async fn launch(&mut self) {
        let fixed = self.port != 0;
        let give_up = Instant::now() + START;
        loop {
            if !fixed {
                self.port = free_port();
            }
            if self.try_launch(give_up).await {
                return;
            }
            assert!(Instant::now() < give_up, "PostgreSQL did not start: {}", self.last_words());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// `false` if the server ended at once: another process took the port, or, after a crash, a backend
    /// of the old server still holds the memory.
    async fn try_launch(&mut self, give_up: Instant) -> bool {
        let log =
            File::options().create(true).append(true).open(self.folder.join("server.log")).expect("log");
        // The keeper: waits for the server; at the end of its own input (this process is gone, or has
        // dropped the cluster) it stops the server at once and removes the folder.
        let keeper = r#"
            folder=$1; shift
            exec 3<&0
            "$@" </dev/null 3<&- & server=$!
            ( cat <&3 >/dev/null; : >"$folder/stop"; kill -QUIT $server 2>/dev/null ) & watch=$!
            exec 3<&-
            wait $server
            if [ -e "$folder/stop" ]; then rm -rf "$folder"; else kill $watch 2>/dev/null; fi
        "#;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", keeper, "keeper"])
            .arg(&self.folder)
            .arg(self.binaries.join("postgres"))
            .arg("-D")
            .arg(self.folder.join("data"))
            .args(["-p", &self.port.to_string()])
            .arg("-k")
            .arg(&self.folder)
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=300"])
            // What a careless administrator may turn on: the log is searched for card data too.
            .args(["-c", "log_statement=all", "-c", "log_min_messages=debug1"]);
        if self.durability == Durability::Fast {
            command.args(["-c", "fsync=off", "-c", "full_page_writes=off"]);
        }
        command
            .current_dir(&self.folder)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            // Not in the terminal's group: the keeper, not Ctrl-C, ends the server.
            .process_group(0);
        self.unprivileged(&mut command);
        let mut child = command.spawn().expect("start PostgreSQL's keeper");
        let stdin = child.stdin.take().expect("piped");
        let url = self.url("postgres", &self.superuser_password, "postgres");
        loop {
            if child.try_wait().expect("wait").is_some() {
                return false;
            }
            // The password is this cluster's own, so no other server on the port can be mistaken for it.
            if let Ok(connection) = PgConnection::connect(&url).await {
                let _ = connection.close().await;
                self.keeper = Some((child, stdin));
                return true;
            }
            assert!(Instant::now() < give_up, "PostgreSQL does not answer: {}", self.last_words());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn initialise(&self) {
        let password = self.folder.join("password");
        fs::write(&password, &self.superuser_password).expect("password file");
        let mut command = Command::new(self.binaries.join("initdb"));
        command
            .args([
                "--auth=scram-sha-256",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ])
            .arg("--pwfile")
            .arg(&password)
            .arg("-D")
            .arg(self.folder.join("data"))
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        self.unprivileged(&mut command);
        let output = command.output().expect("run initdb");
        assert!(output.status.success(), "initdb failed: {}", String::from_utf8_lossy(&output.stderr));
        fs::remove_file(&password).expect("remove the password file");
    }

    /// PostgreSQL refuses to run as root.
    fn unprivileged(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
    }

    fn url(&self, role: &str, password: &str, database: &str) -> String {
        format!("postgres://{role}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.folder.join("server.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(10).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some((mut child, stdin)) = self.keeper.take() {
            drop(stdin);
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The process id that the running server wrote into its folder.
fn postmaster(folder: &Path) -> Option<rustix::process::Pid> {
    let text = fs::read_to_string(folder.join("data/postmaster.pid")).ok()?;
    // While `initdb` runs, its single-user server writes its id as a negative number.
    let id: i32 = text.lines().next()?.trim().parse().ok()?;
    rustix::process::Pid::from_raw(id.checked_abs()?)
}

/// The processes whose parent this is. Each of PostgreSQL's has a process group of its own.
fn children(parent: rustix::process::Pid) -> Vec<rustix::process::Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name may hold anything, and ends with the last parenthesis; state and parent follow.
        let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let its_parent = after.split_whitespace().nth(1).and_then(|text| text.parse::<i32>().ok());
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if its_parent == Some(parent.as_raw_nonzero().get()) {
            found.extend(id.and_then(rustix::process::Pid::from_raw));
        }
    }
    found
}

/// Removes the folders of clusters whose keeper was killed too. A young one may be being made.
fn remove_leftovers() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let old = entry
            .metadata()
            .and_then(|it| it.modified())
            .is_ok_and(|it| it.elapsed().is_ok_and(|age| age > Duration::from_secs(600)));
        let alive =
            postmaster(&entry.path()).is_some_and(|pid| match rustix::process::test_kill_process(pid) {
                Ok(()) => true,
                Err(error) => error != rustix::io::Errno::SRCH,
            });
        if ours && old && !alive {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// User and group of `postgres`, or else of `nobody`.
fn unprivileged() -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then_some(())?;
            Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
        })
    };
    find("postgres").or_else(|| find("nobody")).unwrap_or((65534, 65534))
}

fn free_port() -> u16 {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap_or_else(|error| match error.kind() {
        ErrorKind::AddrInUse => panic!("no free port on 127.0.0.1"),
        _ => panic!("127.0.0.1: {error}"),
    });
    socket.local_addr().expect("a bound address").port()
}

fn random_hex<const N: usize>() -> String {
    HEXLOWER.encode(&entropy::array::<N>().expect("randomness"))
}
