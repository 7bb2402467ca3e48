//! `cardvault doctor`: what is right passes, one thing that is broken is told by exactly its lines with a mend, and
//! nothing is changed by looking.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::SystemTime;

use serde_json::Value;

use super::support::postgres::{Binaries, Cluster, Durability};
use super::support::vault::TestVault;
use super::support::{Database, Engine, sql};

/// What a doctor's run said: its exit code, and its lines.
struct Said {
    code: Option<i32>,
    lines: Vec<Value>,
    text: String,
}

impl Said {
    /// The areas of lines with this verdict.
    fn areas(&self, verdict: &str) -> BTreeSet<String> {
        let of = |line: &&Value| line["verdict"] == verdict;
        let area = |line: &Value| line["area"].as_str().expect("an area").to_owned();
        self.lines.iter().filter(of).map(area).collect()
    }
}

async fn doctor(vault: &TestVault) -> Said {
    let output = vault.run(&["doctor", "--json"]).await;
    let text = String::from_utf8(output.stdout).expect("text");
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    let lines = report["lines"].as_array().expect("lines").clone();
    for line in &lines {
        assert_eq!(line["mend"].is_string(), line["verdict"] != "pass", "{line}");
    }
    for verdict in ["pass", "warn", "fail"] {
        let count = lines.iter().filter(|line| line["verdict"] == verdict).count();
        assert_eq!(report[verdict], count, "{verdict}");
    }
    Said { code: output.status.code(), lines, text }
}

/// Every file below a folder: its content, mode and time.
fn snapshot(folder: &Path) -> BTreeMap<String, (Vec<u8>, u32, Option<SystemTime>)> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        let facts = entry.metadata().expect("facts");
        let name = entry.path().display().to_string();
        if facts.is_dir() {
            all.extend(snapshot(&entry.path()));
            all.insert(name, (Vec::new(), facts.permissions().mode(), facts.modified().ok()));
        } else {
            let content = std::fs::read(entry.path()).unwrap_or_default();
            all.insert(name, (content, facts.permissions().mode(), facts.modified().ok()));
        }
    }
    all
}

/// The database in whose place the story's own is put: the tests' common PostgreSQL waits for no disk, which the
/// doctor does not let pass.
async fn as_in_production(db: Database) -> (Database, Option<Cluster>) {
    match (db.engine, Binaries::find()) {
        (Engine::Postgres, Some(binaries)) => {
            let cluster = Cluster::start(&binaries, Durability::Full).await;
            (Database::in_cluster(&cluster).await, Some(cluster))
        }
        _ => (db, None),
    }
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
}

/// A stopped vault whose configuration's file names the running sandbox.
async fn stopped(db: &Database) -> (TestVault, String) {
    let mut vault = TestVault::start(db).await;
    vault.client("checkout").card(&super::support::vault::fresh_pan()).await;
    let file = vault.dir.path().join("cardvault.toml");
    let text = std::fs::read_to_string(&file).expect("a configuration");
    assert!(text.contains("https://127.0.0.1:8444"));
    let text = text.replace("https://127.0.0.1:8444", &vault.sandbox.base_url());
    std::fs::write(&file, &text).expect("written");
    vault.stop().await;
    (vault, text)
}

/// It opens the data keys, so that it leaves as little behind as the server does: no core dump, whatever the shell
/// allows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_its_memory_to_itself() {
    let db = Database::sqlite();
    let (vault, text) = stopped(&db).await;
    // It waits for a gateway that says nothing, and can be looked at meanwhile.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = format!("https://{}", silent.local_addr().expect("an address"));
    let text = text.replace(&vault.sandbox.base_url(), &address);
    assert!(text.contains(&address));
    std::fs::write(vault.dir.path().join("cardvault.toml"), text).expect("written");
    let program = vault.command(&["doctor"]);
    let program = program.as_std();
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "ulimit -c unlimited 2>/dev/null; exec \"$0\" \"$@\""]);
    shell.arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let mut doctor = shell.stdout(std::process::Stdio::null()).spawn().expect("it runs");
    let limits = format!("/proc/{}/limits", doctor.id());
    let closed = async || {
        let limits = std::fs::read_to_string(&limits).unwrap_or_default();
        let core = limits.lines().find(|line| line.starts_with("Max core file size"))?;
        (core.split_whitespace().filter(|word| *word == "0").count() == 2).then_some(())
    };
    super::support::eventually("its core dumps to be off", closed).await;
    doctor.kill().expect("killed");
    doctor.wait().expect("ended");
    vault.finish(&[]).await;
}

both_engines! {
    /// A good deployment fails nothing; nothing is changed by looking, beside a server or without.
    async fn a_good_deployment_passes(db: Database) {
        let (db, _cluster) = as_in_production(db).await;
        let (mut vault, _) = stopped(&db).await;
        let before = snapshot(vault.dir.path());
        let files = (db.engine == Engine::Sqlite).then(|| snapshot(&db.files));
        let said = doctor(&vault).await;
        assert_eq!(snapshot(vault.dir.path()), before);
        assert_eq!(files, (db.engine == Engine::Sqlite).then(|| snapshot(&db.files)));
        assert_eq!((said.code, said.areas("fail").len()), (Some(0), 0), "{}", said.text);
        let looked = said.areas("pass").into_iter().chain(said.areas("warn")).collect::<BTreeSet<_>>();
        let all = ["config", "files", "certificates", "database", "keys", "clock", "host", "network"];
        assert_eq!(looked, all.map(str::to_owned).into());
        for told in ["the keyring opens every data key", "the schema is up to date", "that of the gateway", "api.certificate expires in"] {
            assert!(said.text.contains(told), "{told}: {}", said.text);
        }
        match db.engine {
            Engine::Sqlite => {
                for told in ["write-ahead log", "synchronous FULL, secure_delete on, foreign_keys on"] {
                    assert!(said.text.contains(told), "{told}: {}", said.text);
                }
            }
            // The tests' PostgreSQL has no TLS, and their role migrates.
            Engine::Postgres => {
                for told in ["fsync is on", "full_page_writes is on", "not encrypted", "owns the tables", "can alter the audit trail", "that of the database"] {
                    assert!(said.text.contains(told), "{told}: {}", said.text);
                }
            }
        }
        let keyring = std::fs::read_to_string(vault.dir.path().join("keys/keyring.toml")).expect("a keyring");
        let keyring: toml::Table = keyring.parse().expect("TOML");
        let key = keyring["kek"].as_array().expect("keys")[0]["key"].as_str().expect("a key").to_owned();
        vault.restart().await;
        let beside = doctor(&vault).await;
        assert_eq!(beside.code, Some(0), "{}", beside.text);
        let plain = vault.run(&["doctor"]).await;
        let plain = String::from_utf8(plain.stdout).expect("text");
        assert!(plain.contains(" pass, ") && plain.ends_with(" 0 fail\n"), "{plain}");
        for text in [&said.text, &beside.text, &plain] {
            assert!(!text.contains(&key));
        }
        vault.finish(&[]).await;
    }

    /// What systemd hands over may be readable for a group, as far as the mode tells; the server takes it, and so
    /// does a look at it. The same mode elsewhere fails.
    async fn what_systemd_hands_over_passes(db: Database) {
        let (db, _cluster) = as_in_production(db).await;
        let (mut vault, _) = stopped(&db).await;
        let handed = tempfile::tempdir().expect("a folder");
        let key = handed.path().join("server.key");
        std::fs::copy(vault.dir.path().join("pki/server.key"), &key).expect("copied");
        chmod(&key, 0o440);
        let look = async |vault: &TestVault, credentials: &Path| {
            let mut command = vault.command(&["doctor"]);
            command.env("CARDVAULT_API_PRIVATE_KEY", &key).env("CREDENTIALS_DIRECTORY", credentials);
            let done = command.output().await.expect("it runs");
            (done.status.code(), String::from_utf8(done.stdout).expect("text"))
        };
        let (code, said) = look(&vault, handed.path()).await;
        assert_eq!(code, Some(0), "{said}");
        let (code, said) = look(&vault, vault.dir.path()).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("has mode 0440: others can read it"), "{said}");
        vault.restart().await;
        vault.finish(&[]).await;
    }

    /// One thing is broken at a time: its lines fail, and no others.
    async fn what_is_broken_is_told(common: Database) {
        let (db, _cluster) = as_in_production(common).await;
        let (vault, good) = stopped(&db).await;
        let dir = vault.dir.path().to_owned();
        let config = dir.join("cardvault.toml");
        let expect = |what: &'static str, areas: &'static [&'static str], told: &'static str| {
            let vault = &vault;
            async move {
                let said = doctor(vault).await;
                let areas: BTreeSet<String> = areas.iter().map(|area| (*area).to_owned()).collect();
                assert_eq!((said.code, said.areas("fail")), (Some(1), areas), "{what}: {}", said.text);
                let is = |line: &&Value| line["verdict"] == "fail" && line.to_string().contains(told);
                assert!(said.lines.iter().any(|line| is(&line)), "{what}: {told}: {}", said.text);
            }
        };
        for (file, mode, areas, told) in [
            ("keys/keyring.toml", 0o640, &["files", "keys"][..], "chmod"),
            ("pki/server.key", 0o644, &["files", "certificates"], "chmod 600"),
            ("gateway/merchant_private.pem", 0o604, &["files", "keys"], "chmod 600"),
            ("pki/ca.pem", 0o666, &["files"], "others can replace it"),
            ("cardvault.toml", 0o622, &["files"], "others can replace it"),
            // A socket of somebody else's there would be brought the custodians' shares.
            ("keys", 0o733, &["files"], "unseal_socket"),
        ] {
            let path = dir.join(file);
            let before = std::fs::metadata(&path).expect("facts").permissions().mode();
            chmod(&path, mode);
            expect(file, areas, told).await;
            chmod(&path, before & 0o7777);
        }
        for (file, content, areas, told) in [
            ("pki/server.pem", std::fs::read(dir.join("pki/sandbox.pem")).expect("a file"), &["certificates"][..], "do not belong together"),
            ("pki/ca.pem", b"nothing".to_vec(), &["certificates"], "no certificate can be read"),
            ("gateway/merchant_private.pem", b"nothing".to_vec(), &["keys"], "gateway"),
        ] {
            let path = dir.join(file);
            let before = std::fs::read(&path).expect("a file");
            std::fs::write(&path, content).expect("written");
            expect(file, areas, told).await;
            std::fs::write(&path, before).expect("written");
        }
        let keyring = dir.join("keys/keyring.toml");
        let moved = dir.join("keys/moved.toml");
        std::fs::rename(&keyring, &moved).expect("moved");
        expect("no keyring", &["files", "keys"], "keyring.toml").await;
        let made = vault.run(&["keys", "init", "--keyring", keyring.to_str().expect("text")]).await;
        assert!(made.status.success());
        expect("another keyring", &["keys"], "does not unwrap").await;
        std::fs::rename(&moved, &keyring).expect("moved");

        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        std::fs::write(&config, format!("{good}\n[doctor]\nforbidden = [\"{address}\"]\n")).expect("written");
        expect("an open way", &["network"], "can be reached").await;
        drop(listener);
        let said = doctor(&vault).await;
        assert!(said.code == Some(0) && said.areas("pass").contains("network"), "{}", said.text);

        std::fs::write(&config, format!("{good}\n[colour]\n")).expect("written");
        expect("an unknown section", &["config"], "colour").await;
        let nowhere = match db.engine {
            Engine::Sqlite => format!("sqlite:{}", dir.join("absent.db").display()),
            Engine::Postgres => "postgres://nobody@127.0.0.1:1/nothing".to_owned(),
        };
        let line = |line: &str| match line.starts_with("url = ") {
            true => format!("url = \"{nowhere}\"\n"),
            false => format!("{line}\n"),
        };
        let elsewhere: String = good.lines().map(line).collect();
        assert!(elsewhere.contains(&nowhere));
        std::fs::write(&config, elsewhere).expect("written");
        expect("no database", &["database"], "database").await;
        assert!(!dir.join("absent.db").exists(), "looking makes nothing");
        std::fs::write(&config, &good).expect("written");

        sql::execute(&db, "DELETE FROM _sqlx_migrations WHERE version = 45").await;
        expect("an old schema", &["database"], "migrations are missing: [45]").await;
        vault.finish(&[]).await;
    }
}
