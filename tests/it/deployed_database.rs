//! PostgreSQL as `deploy/postgresql` has it: TLS that the vault verifies, a certificate and a password that
//! PostgreSQL verifies, a role without rights over the schema, and nothing in PostgreSQL's log that was bound.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cardvault::base::clock::{Clock, SystemClock};
use cardvault::pki::{Authority, CertifiedPem, LeafOptions, Usage, write_private, write_public};
use cardvault::store::facts::REMOVED_FROM;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;

use super::support::postgres::{Binaries, Cluster, Durability};
use super::support::vault::{TestVault, by_reference, fresh_pan, init};
use super::support::{Database, Engine, eventually, left_out};

const GRANTS: &str = include_str!("../../deploy/postgresql/grants.sql");
const ROLES: [&str; 3] = ["cardvault", "cardvault_owner", "cardvault_auditor"];

fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/postgresql").join(name)
}

/// A cluster that was set up by the files, and what its callers need.
struct Deployed {
    cluster: Cluster,
    files: TempDir,
}

impl Deployed {
    async fn start(binaries: &Binaries) -> Self {
        let cluster = Cluster::start(binaries, Durability::Fast).await;
        let files = tempfile::Builder::new().prefix("cardvault-test-").tempdir().expect("a folder");
        let authority = Authority::make("database", SystemClock.now()).expect("an authority");
        write_public(&files.path().join("ca.pem"), authority.certificate_pem().as_bytes()).expect("a file");
        for role in ROLES {
            let mut options = LeafOptions::valid_for(SystemClock.now(), 1);
            role.clone_into(&mut options.common_name);
            options.usages = vec![Usage::Client];
            let leaf = authority.leaf(&options).expect("a certificate");
            write_public(&files.path().join(format!("{role}.pem")), leaf.certificate_pem.as_bytes())
                .expect("a file");
            let key = leaf.private_key_pem.expose().as_bytes();
            write_private(&files.path().join(format!("{role}.key")), key).expect("a file");
        }
        let CertifiedPem { certificate_pem, private_key_pem } =
            authority.server(&["127.0.0.1"], SystemClock.now(), 1).expect("a certificate");
        cluster.psql(&cluster.superuser_url(), &deployed("roles.sql"));
        for role in ROLES {
            cluster.as_superuser(&format!("ALTER ROLE {role} PASSWORD 'of-{role}'")).await;
        }
        // What is bound in another database stands in the log: the server was started so.
        let mut other = PgConnection::connect(&cluster.fresh_database().await).await.expect("connect");
        sqlx::query("SELECT $1::text").bind("bound-elsewhere").execute(&mut other).await.expect("a query");
        other.close().await.expect("close");
        assert!(cluster.log().contains("bound-elsewhere"), "the server logs what is bound");

        cluster.write("server.crt", &certificate_pem);
        cluster.write("server.key", private_key_pem.expose());
        cluster.write("clients.crt", authority.certificate_pem());
        cluster
            .write("cardvault.conf", &std::fs::read_to_string(deployed("cardvault.conf")).expect("a file"));
        let conf = cluster.folder.join("data/postgresql.conf");
        let conf = std::fs::read_to_string(conf).expect("a file") + "\ninclude 'cardvault.conf'\n";
        cluster.write("postgresql.conf", &conf);
        let hba = std::fs::read_to_string(deployed("pg_hba.conf")).expect("a file");
        assert_eq!(hba.matches("10.10.3.2/32").count(), ROLES.len());
        cluster.write("pg_hba.conf", &hba.replace("10.10.3.2/32", "127.0.0.1/32"));
        cluster.as_superuser("SELECT pg_reload_conf()").await;
        let deployed = Self { cluster, files };
        let url = deployed.url("cardvault");
        eventually("TLS", || async { PgConnection::connect(&url).await.ok() })
            .await
            .close()
            .await
            .expect("close");
        deployed
    }

    /// As the role would log in.
    fn url(&self, role: &str) -> String {
        self.url_with(role, role, "127.0.0.1", "verify-full")
    }

    fn url_with(&self, role: &str, certificate: &str, host: &str, mode: &str) -> String {
        let at = |name: &str| self.files.path().join(name).display().to_string();
        let port = self.cluster.port();
        let (key, pem) = (at(&format!("{certificate}.key")), at(&format!("{certificate}.pem")));
        format!(
            "postgres://{role}:of-{role}@{host}:{port}/cardvault?sslmode={mode}&sslrootcert={}&sslcert={pem}&sslkey={key}",
            at("ca.pem")
        )
    }

    fn database(&self, role: &str) -> Database {
        Database::at(self.url(role), Engine::Postgres, self.cluster.folder.clone())
    }

    /// Runs `cardvault migrate` as README has it, as a role, with the configuration of a folder.
    async fn migrate(&self, dir: &Path, role: &str) -> std::process::Output {
        self.run(dir, role, &["migrate"]).await
    }

    /// Runs a command so.
    async fn run(&self, dir: &Path, role: &str, arguments: &[&str]) -> std::process::Output {
        let password = dir.join(format!("{role}-password"));
        if !password.exists() {
            write_private(&password, format!("of-{role}").as_bytes()).expect("a file");
        }
        tokio::process::Command::new(env!("CARGO_BIN_EXE_cardvault"))
            .args(arguments)
            .arg("--config")
            .arg(dir.join("cardvault.toml"))
            .env("CARDVAULT_DATABASE_URL", self.url(role).replace(&format!(":of-{role}@"), "@"))
            .env("CARDVAULT_DATABASE_PASSWORD_FILE", &password)
            .output()
            .await
            .expect("it runs")
    }
}

async fn refusal(connection: &mut PgConnection, statement: &str) -> Option<String> {
    let refused = sqlx::query(AssertSqlSafe(statement.to_owned())).execute(connection).await.err()?;
    refused.as_database_error()?.code().map(std::borrow::Cow::into_owned)
}

/// The whole life of cards, payments and keys, as the role of the files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deployed_role_is_enough_and_no_more() {
    let Some(binaries) = Binaries::find() else {
        return left_out("deployed_database::the_deployed_role_is_enough_and_no_more");
    };
    let deployed = Deployed::start(&binaries).await;
    let folder = tempfile::Builder::new().prefix("cardvault-test-").tempdir().expect("a folder");
    let dir = folder.path().join("first");
    init(&dir, &deployed.url("cardvault"));

    // A server finds the schema behind: it cannot mend that, and names who can.
    let refused = deployed.migrate(&dir, "cardvault").await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("run `cardvault migrate` as its owner"), "{said}");
    let migrated = deployed.migrate(&dir, "cardvault_owner").await;
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    // Without its grants the server does not come up; with them it does.
    for _ in 0..2 {
        deployed.cluster.psql(&deployed.url("cardvault_owner"), &self::deployed("grants.sql"));
    }

    let before = deployed.cluster.log().len();
    let mut vault = TestVault::start(&deployed.database("cardvault")).await;
    let checkout = vault.client("checkout");
    let (pan, other) = (fresh_pan(), fresh_pan());
    let (card, gone) = (checkout.card(&pan).await, checkout.card(&other).await);
    checkout
        .send("PATCH", &format!("/v1/cards/{card}"), r#"{"expiryMonth":"12","expiryYear":"31"}"#)
        .await
        .expect(200);
    checkout.send("PUT", &format!("/v1/cards/{card}/cvv"), r#"{"cvv":"743"}"#).await.expect(200);
    let mut pay: serde_json::Value =
        serde_json::from_str(&by_reference("ROLE_1", "900", &card)).expect("JSON");
    pay["paymentFactor"] = json!({ "isAuthorization": true, "captureMode": "MANUAL" });
    let paid = checkout.post("/v1/payments", &pay.to_string()).await.expect(200);
    assert_eq!(paid.text_at("/status"), "AUTHORIZED", "{}", paid.text);
    let amount = json!({ "currency": "EUR", "value": "400" });
    let capture = json!({ "captureRequestId": "ROLE_C", "captureAmount": amount, "isLastCapture": false });
    let refund = json!({ "refundRequestId": "ROLE_R", "refundAmount": amount });
    for (kind, body) in [("captures", capture), ("refunds", refund)] {
        let path = format!("/v1/payments/ROLE_1/{kind}");
        let done = checkout.post(&path, &body.to_string()).await.expect(200);
        assert_eq!(done.text_at("/status"), "SUCCEEDED", "{}", done.text);
    }
    checkout.post("/v1/payments", &by_reference("ROLE_2", "100", &card)).await.expect(200);
    checkout.post("/v1/payments/ROLE_2/cancel", "{}").await.expect(200);
    checkout.delete(&format!("/v1/cards/{gone}")).await.expect(204);
    eventually("the feed", || async {
        let events = checkout.get("/v1/events?after=0&limit=100").await.expect(200).json();
        (events["data"].as_array().is_some_and(|data| data.len() >= 6)).then_some(())
    })
    .await;
    let dek = |text: &str| {
        let status: serde_json::Value = serde_json::from_str(text).expect("JSON");
        let keys = status["keys"].as_array().expect("keys").clone();
        let old = keys.iter().find(|key| key["purpose"] == "card" && key["state"] == "decrypt_only").cloned();
        old.map(|key| key["key"].as_str().expect("an id").to_owned())
    };
    let mut old = None;
    for arguments in [
        &["keys", "rotate", "dek"][..],
        &["keys", "reencrypt"],
        &["keys", "rotate", "fingerprint"],
        &["keys", "rotate", "kek"],
        &["keys", "status", "--json"],
        &["audit", "verify"],
        &["audit", "export"],
    ] {
        let done = vault.run(arguments).await;
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{arguments:?}: {out} {err}");
        if arguments.contains(&"--json") {
            old = dek(&out);
        }
    }
    let old = old.expect("a key that only opens");
    let done = vault.run(&["keys", "destroy", &old]).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(said.contains("the owner of the tables runs `VACUUM (FULL) data_keys`"), "{said}");
    assert!(said.lines().count() == 1 && !said.contains("gone from the database"), "{said}");
    // Beside the server.
    let mut owner = PgConnection::connect(&deployed.url("cardvault_owner")).await.expect("connect");
    assert_eq!(refusal(&mut owner, "VACUUM (FULL) data_keys").await, None);
    owner.close().await.expect("close");
    checkout.post("/v1/payments", &by_reference("ROLE_3", "100", &card)).await.expect(200);

    // A restart migrates nothing, and may.
    vault.restart().await;
    vault.client("checkout").get(&format!("/v1/cards/{card}")).await.expect(200);

    // All of that was allowed, also what nobody waits for.
    let log = deployed.cluster.log();
    assert!(!log[before..].contains("permission denied"), "{}", &log[before..]);

    // A look around finds the role as it should be, and what it should not be.
    let rights = async || {
        let output = vault.run(&["doctor", "--json"]).await;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let lines = report["lines"].as_array().expect("lines").clone();
        let text = |line: &serde_json::Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
        lines
            .iter()
            .map(|line| (text(line, "verdict"), text(line, "told"), text(line, "mend")))
            .filter(|(_, told, _)| told.starts_with("the role "))
            .collect::<Vec<_>>()
    };
    let told = rights().await;
    assert!(told.len() == 4 && told.iter().all(|(verdict, ..)| verdict == "pass"), "{told:?}");
    let mut owner = PgConnection::connect(&deployed.url("cardvault_owner")).await.expect("connect");
    for (statement, verdict, what) in [
        ("REVOKE DELETE ON leases FROM cardvault", "fail", "lacks rights on leases"),
        ("REVOKE INSERT ON audit FROM cardvault", "fail", "lacks rights on audit, leases"),
        ("GRANT DELETE ON cards TO cardvault", "warn", "can remove rows of cards"),
        ("GRANT UPDATE ON audit TO cardvault", "warn", "can alter the audit trail"),
    ] {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut owner).await.expect(statement);
        let told = rights().await;
        let is = |line: &&(String, String, String)| line.0 == verdict && line.1.contains(what);
        let line = told.iter().find(is).unwrap_or_else(|| panic!("{statement}: {told:?}"));
        assert!(line.2.contains("grants.sql"), "{line:?}");
    }
    owner.close().await.expect("close");
    deployed.cluster.psql(&deployed.url("cardvault_owner"), &self::deployed("grants.sql"));
    let told = rights().await;
    assert!(told.iter().all(|(verdict, ..)| verdict == "pass"), "{told:?}");

    // An auditor reads the trail, and is told what that leaves no trace of; the server's role leaves one.
    let read = deployed.run(vault.dir.path(), "cardvault_auditor", &["audit", "export"]).await;
    let (out, err) = (String::from_utf8_lossy(&read.stdout), String::from_utf8_lossy(&read.stderr));
    assert!(read.status.success() && out.contains("payment.create"), "{out} {err}");
    assert!(err.contains("is not recorded in it") && err.contains("pgaudit"), "{err}");
    assert_eq!(out.lines().filter(|line| line.contains(r#""action":"audit.export""#)).count(), 1, "{out}");

    // No more than that.
    let mut server = PgConnection::connect(&deployed.url("cardvault")).await.expect("connect");
    for statement in [
        "CREATE TABLE mine (a INT)",
        "CREATE TEMPORARY TABLE mine (a INT)",
        "CREATE SCHEMA mine",
        "ALTER TABLE cards ADD COLUMN a INT",
        "DROP TABLE cards",
        "TRUNCATE cards",
        "UPDATE audit SET outcome = 'done'",
        "DELETE FROM audit",
        "DELETE FROM cards",
        "DELETE FROM payments",
        "DELETE FROM data_keys",
        "UPDATE _sqlx_migrations SET version = 0",
        "COPY cards TO PROGRAM 'cat'",
        "ALTER DATABASE cardvault SET log_statement = 'all'",
        "SET log_parameter_max_length = -1",
    ] {
        let refused = refusal(&mut server, statement).await;
        assert_eq!(refused.as_deref(), Some("42501"), "{statement}");
    }
    sqlx::query("SELECT $1::text").bind("bound-here").execute(&mut server).await.expect("a query");
    let mut auditor = PgConnection::connect(&deployed.url("cardvault_auditor")).await.expect("connect");
    assert_eq!(refusal(&mut auditor, "SELECT count(*) FROM audit").await, None);
    for table in ["cards", "payments", "data_keys"] {
        let refused = refusal(&mut auditor, &format!("SELECT count(*) FROM {table}")).await;
        assert_eq!(refused.as_deref(), Some("42501"), "{table}");
    }
    server.close().await.expect("close");
    auditor.close().await.expect("close");

    // Nobody comes in otherwise.
    for (what, url) in [
        ("without TLS", deployed.url_with("cardvault", "cardvault", "127.0.0.1", "disable")),
        (
            "another role's certificate",
            deployed.url_with("cardvault", "cardvault_auditor", "127.0.0.1", "verify-full"),
        ),
        (
            "a name that the certificate does not have",
            deployed.url_with("cardvault", "cardvault", "localhost", "verify-full"),
        ),
        ("a wrong password", deployed.url("cardvault").replace(":of-cardvault@", ":of-nobody@")),
        ("no certificate", deployed.url("cardvault").split("&sslcert=").next().expect("a part").to_owned()),
        ("the superuser", format!("{}?sslmode=require", deployed.cluster.superuser_url())),
    ] {
        assert!(PgConnection::connect(&url).await.is_err(), "{what}");
    }

    vault.finish(&[&pan, &other]).await;
    let log = deployed.cluster.log();
    assert!(
        log.contains("user=cardvault database=cardvault application_name=cardvault SSL enabled"),
        "connections are logged"
    );
    assert!(!log.contains("bound-here"), "what is bound is in the log");
    let after = log.split("SSL enabled").skip(1).collect::<String>();
    assert!(!after.contains("DETAIL:  parameters"), "what is bound is in the log");
}

/// What the store removes or changes is what the grants allow.
#[test]
fn every_statement_of_the_store_is_granted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut removed, mut changed) = (Vec::new(), Vec::new());
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|it| it == "rs") {
                let text = std::fs::read_to_string(entry.path()).expect("text");
                for (verb, tables) in [("DELETE FROM ", &mut removed), ("UPDATE ", &mut changed)] {
                    let found = text.split(verb).skip(1).filter_map(|rest| {
                        rest.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().map(str::to_owned)
                    });
                    tables.extend(found.filter(|table| !table.is_empty()));
                }
            }
        }
    }
    let granted = GRANTS.split("GRANT DELETE ON ").nth(1).and_then(|rest| rest.split(" TO ").next());
    let granted: Vec<&str> = granted.expect("a grant").split(", ").collect();
    assert!(removed.len() > 3, "{removed:?}");
    for table in &removed {
        assert!(granted.contains(&table.as_str()), "DELETE FROM {table} is not granted");
    }
    // `cardvault doctor` asks for the same.
    let asked: BTreeSet<&str> = REMOVED_FROM.into();
    assert_eq!(granted.iter().copied().collect::<BTreeSet<_>>(), asked);
    for right in [
        "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO cardvault;",
        "REVOKE UPDATE ON audit FROM cardvault;",
    ] {
        assert!(GRANTS.contains(right), "{right}");
    }
    for table in granted {
        assert!(removed.iter().any(|removed| removed == table), "nothing is deleted from {table}");
    }
    assert!(changed.iter().any(|table| table == "payments"));
    assert!(!changed.iter().any(|table| table == "audit"), "the audit trail only grows");
}
