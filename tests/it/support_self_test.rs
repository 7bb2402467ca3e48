//! Proves that the alarm works: planted card data is found in every encoding and every place, and a
//! clean run passes. Each test plants numbers of its own, because the log and the PostgreSQL cluster
//! are shared with the other tests of the process.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cardvault::base::entropy;
use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER, HEXUPPER};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

use crate::support::leak::{self, LeakGuard, find, find_in_dir};
use crate::support::postgres::{self, Binaries, Cluster, Durability};
use crate::support::{Database, Engine, fresh_sqlite, left_out};

const PAN: &str = "4111111111111111";
const AMEX: &str = "378282246310005";

/// 16 random digits, so that only this test can have written them.
fn own_number() -> String {
    let bytes: [u8; 15] = entropy::array().unwrap();
    let digits: String = bytes.iter().map(|byte| char::from(b'0' + byte % 10)).collect();
    format!("4{digits}")
}

fn assert_found(secret: &str, haystack: impl AsRef<[u8]>, how: &str) {
    assert!(!find(&[secret], haystack.as_ref()).is_empty(), "not found: {how}");
}

#[test]
fn a_number_is_found_in_every_encoding() {
    for pan in [PAN, AMEX, "5555555555554444", "6212345678901232", "4222222222222"] {
        let bytes = pan.as_bytes();
        assert_found(pan, format!("before {pan} after"), "text");
        assert_found(pan, pan, "nothing around it");
        for separator in [" ", "-", "+", "%20"] {
            let parts: Vec<_> = bytes.chunks(4).map(|it| std::str::from_utf8(it).unwrap()).collect();
            assert_found(pan, parts.join(separator), separator);
        }
        let le: Vec<u8> = pan.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let be: Vec<u8> = pan.encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_found(pan, le, "UTF-16LE");
        assert_found(pan, be, "UTF-16BE");
        assert_found(pan, HEXLOWER.encode(bytes), "hexadecimal");
        assert_found(pan, HEXUPPER.encode(bytes), "hexadecimal");
        for around in ["", "a", "ab", "abc", "abcd"] {
            let json = format!("{around}{pan}{around}");
            assert_found(pan, BASE64.encode(json.as_bytes()), "base64");
        }
        assert_found(pan, bytes.iter().map(|it| format!("%{it:02X}")).collect::<String>(), "URL-encoded");
        assert_found(pan, format!("{bytes:?}"), "debug of bytes");
        assert_found(pan, serde_json::to_string(bytes).unwrap(), "JSON of bytes");
        let escaped: String = pan.chars().map(|it| format!("\\u{:04x}", u32::from(it))).collect();
        assert_found(pan, escaped, "escaped");
        for padded in [pan.to_owned(), format!("0{pan}"), format!("{pan}f"), format!("0{pan}f")] {
            if padded.len() % 2 == 0 {
                let packed = HEXLOWER.decode(padded.as_bytes()).unwrap();
                assert_found(pan, [&b"\xff"[..], &packed, b"\xff"].concat(), "BCD");
            }
        }
    }
    assert_found(AMEX, "3782 822463 10005", "American Express's grouping");
}

/// A text in every general encoding, made otherwise than the search makes it.
fn encoded(text: &str) -> Vec<(&'static str, Vec<u8>)> {
    let bytes = text.as_bytes();
    let each = |form: &dyn Fn(&u8) -> String| bytes.iter().map(form).collect::<String>().into_bytes();
    let mut all = vec![
        ("UTF-16LE", text.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("UTF-16BE", text.encode_utf16().flat_map(u16::to_be_bytes).collect()),
        ("hexadecimal", HEXLOWER.encode(bytes).into_bytes()),
        ("hexadecimal", HEXUPPER.encode(bytes).into_bytes()),
        ("URL-encoded", each(&|it| format!("%{it:02X}"))),
        ("URL-encoded", each(&|it| format!("%{it:02x}"))),
        ("escaped", each(&|it| format!("\\x{it:02x}"))),
        ("escaped", each(&|it| format!("\\u{it:04x}"))),
        ("list of bytes", format!("{bytes:?}").into_bytes()),
        ("list of bytes", serde_json::to_vec(bytes).unwrap()),
        ("list of bytes", format!("{bytes:?}").replace(',', "").into_bytes()),
        ("list of bytes, hexadecimal", format!("{bytes:x?}").into_bytes()),
        ("list of bytes, 0x", each(&|it| format!("{it:#04x}, "))),
        ("list of bytes, one a line", format!("{bytes:#?}").into_bytes()),
        ("list of bytes, one a line", format!("{:#?}", Some([Some(bytes)])).into_bytes()),
        ("list of bytes, one a line", serde_json::to_vec(&format!("{bytes:#?}")).unwrap()),
    ];
    for around in ["", "a", "ab", "abc", "abcd", "\u{ff}?\u{3ff}"] {
        let text = format!("{around}{text}{around}");
        all.push(("base64", BASE64.encode(text.as_bytes()).into_bytes()));
        all.push(("base64", BASE64URL_NOPAD.encode(text.as_bytes()).into_bytes()));
    }
    all
}

/// A number's own encodings.
fn written(pan: &str) -> Vec<(&'static str, Vec<u8>)> {
    let groups = |between: &str| {
        let parts: Vec<_> = pan.as_bytes().chunks(4).map(|it| std::str::from_utf8(it).unwrap()).collect();
        parts.join(between).into_bytes()
    };
    let packed =
        HEXLOWER.decode(format!("{pan}{}", if pan.len().is_multiple_of(2) { "" } else { "f" }).as_bytes());
    vec![
        ("text", format!("x{pan}x").into_bytes()),
        ("spaced", groups(" ")),
        ("hyphenated", groups("-")),
        ("spaced, form-encoded", groups("+")),
        ("spaced, URL-encoded", groups("%20")),
        ("BCD", packed.unwrap()),
        ("one digit a byte", pan.bytes().map(|it| it - b'0').collect()),
    ]
}

/// What the search claims and what is planted is one list, so that no encoding is only claimed.
#[test]
fn every_encoding_that_is_claimed_is_planted_and_found() {
    let assert_all = |secret: &str, planted: Vec<(&'static str, Vec<u8>)>| {
        for (encoding, bytes) in &planted {
            let haystack = [&b"\"before: "[..], bytes, b"; after\""].concat();
            let found = find(&[secret], &haystack);
            assert!(
                found.iter().any(|it| it.contains(&format!("secret 0 as {encoding} at"))),
                "{secret} as {encoding}, planted as {:?}: {found:?}",
                String::from_utf8_lossy(bytes)
            );
        }
        let names: BTreeSet<_> = planted.iter().map(|(encoding, _)| *encoding).collect();
        assert_eq!(names, leak::encodings(secret), "{secret}");
    };
    for pan in [PAN, AMEX, "5555555555554444", "6212345678901232", "4222222222222"] {
        assert_all(pan, [written(pan), encoded(pan)].concat());
    }
    for cvv in ["850", "8507"] {
        for form in [format!("\"cvv\":\"{cvv}\""), format!("\"cvv\": \"{cvv}\""), format!("cvv={cvv}")] {
            let text = vec![("text", form.clone().into_bytes())];
            assert_all(cvv, [text, encoded(&form)].concat());
        }
    }
    for other in ["kJ8#/+secret", "SBXTOKENECHOED", "ZWNob2VkIGNhdnYgdmFsdWU="] {
        let text = vec![("text", format!("x{other}x").into_bytes())];
        assert_all(other, [text, encoded(other)].concat());
    }
}

#[test]
fn a_cvv_is_found_where_it_is_one() {
    for text in [
        r#"{"cvv":"850"}"#,
        r#"{"cvv": "850"}"#,
        r#"{\"cvv\":\"850\"}"#,
        r#""anything":"850","#,
        "cvv=850&a=b",
        "CVV: 850",
        r#"Card { cvv: Some("850") }"#,
        "cvv: Cvv(850)",
        "securityCode=850",
        "cvv2 850",
        "cvv850",
    ] {
        assert_found("850", text, text);
        assert_found("8507", text.replace("850", "8507"), text);
    }
    let json = r#"{"cvv":"850"}"#;
    assert_found("850", HEXLOWER.encode(json.as_bytes()), "hexadecimal");
    assert_found("850", BASE64.encode(json.as_bytes()), "base64");
    assert_found("850", json.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(), "UTF-16");
}

#[test]
fn what_is_no_card_data_is_not_found() {
    for clean in [
        "",
        "4",
        "411111111111111 41111111111111x1 4111-1111-1111-111",
        r#"{"bin":"411111","last4":"1111","amount":{"value":"12850"},"line_number":850,"took":850}"#,
        r#"{"pointer":"/cvv","code":"required"} 850 ms; PUT /cvv HTTP/1.1" 8501"#,
        "cvv=18507 cvv: 8508 the cvv was given; that took about 850 ms",
    ] {
        assert_eq!(find(&[PAN, AMEX, "850"], clean.as_bytes()), [""; 0], "{clean}");
    }
    // Some card ends in the digits of some CVV.
    for clean in [r#"{"last4":"8507","#, r#"{\"last4\":\"8507\","#, r#"{"last4": "8507"}"#] {
        assert_eq!(find(&["8507"], clean.as_bytes()), [""; 0], "{clean}");
    }
    assert_found("8507", r#"{"last4":null,"at":"8507"}"#, "another member");
    assert_found("8507", r#"{"notlast4":"8507"}"#, "another name");
    // Bytes that look like the middle of a BCD number, with other half-bytes around.
    assert_eq!(find(&[PAN], &[0x11; 64]), [""; 0]);
}

#[test]
fn other_secrets_are_found_as_they_are() {
    let key = "kJ8#/+secret";
    assert_found(key, format!("x{key}"), "text");
    assert_found(key, BASE64.encode(format!("ab{key}").as_bytes()), "base64");
    assert_found(key, HEXUPPER.encode(key.as_bytes()), "hexadecimal");
}

#[test]
fn the_message_does_not_repeat_the_secret() {
    let number = own_number();
    let failure = std::panic::catch_unwind(|| leak::assert_clean(&[&number], number.as_bytes(), "a test"));
    let message = *failure.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("secret 0 as text") && !message.contains(&number), "{message}");
}

#[test]
fn logs_spans_the_log_crate_and_panics_are_captured() {
    let guard = LeakGuard::install();
    let (event, field, span, foreign, panic) =
        (own_number(), own_number(), own_number(), own_number(), own_number());
    tracing::trace!("{event}");
    tracing::trace!(card = %field, "an event");
    drop(tracing::trace_span!("a span without an event", card = span));
    // rustls speaks to the `log` crate, and says the server's name at a fine level.
    begin_tls_with(&format!("n{foreign}.example"));
    let _ = std::panic::catch_unwind(|| panic!("{panic}"));
    let planted = [("event", event), ("field", field), ("span", span), ("log", foreign), ("panic", panic)];
    for (how, number) in planted {
        assert_found(&number, guard.captured(), how);
    }
    let unused = own_number();
    guard.assert_clean(&[&unused]);
    let later = LeakGuard::install();
    later.assert_clean(&[&unused, PAN]);
}

fn begin_tls_with(name: &str) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap();
}

#[tokio::test]
async fn a_number_in_sqlites_write_ahead_log_and_file_is_found() {
    let (folder, url) = fresh_sqlite();
    let number = own_number();
    let mut connection = SqliteConnection::connect(&format!("{url}?mode=rwc")).await.unwrap();
    run_sqlite(&mut connection, "PRAGMA journal_mode = WAL").await;
    run_sqlite(&mut connection, "CREATE TABLE t (a TEXT)").await;
    leak::scan_dir(folder.path(), &[&number]);
    run_sqlite(&mut connection, &format!("INSERT INTO t VALUES ('{number}')")).await;
    let found = find_in_dir(&[&number], folder.path(), UNIX_EPOCH);
    assert!(found.iter().any(|place| place.contains("cardvault.db-wal")), "{found:?}");
    run_sqlite(&mut connection, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    let found = find_in_dir(&[&number], folder.path(), UNIX_EPOCH);
    assert!(found.iter().any(|place| place.contains("cardvault.db:")), "{found:?}");
}

/// What was there before a test's first card, and has not changed, cannot hold it.
#[test]
fn files_are_searched_from_their_last_change_on() {
    let (folder, number, begin) = (tempfile::tempdir().unwrap(), own_number(), SystemTime::now());
    let path = folder.path().join("old");
    std::fs::write(&path, &number).unwrap();
    let set_back = std::fs::File::options().append(true).open(&path).unwrap();
    set_back.set_modified(begin - Duration::from_secs(10)).unwrap();
    let found = |since| find_in_dir(&[&number], folder.path(), since).len();
    assert_eq!((found(UNIX_EPOCH), found(begin)), (1, 0));
    // A byte more, and it is searched whole.
    std::io::Write::write_all(&mut &set_back, b".").unwrap();
    assert_eq!(found(begin), 1);
}

async fn run_sqlite(connection: &mut SqliteConnection, statement: &str) {
    sqlx::query(AssertSqlSafe(statement.to_owned())).execute(connection).await.unwrap();
}

#[tokio::test]
async fn a_number_in_postgresqls_data_log_and_write_ahead_log_is_found() {
    let Some(db) = Database::postgres("a planted leak").await else { return };
    let number = own_number();
    let mut connection = PgConnection::connect(&db.url).await.unwrap();
    sqlx::query("CREATE TABLE t (a TEXT)").execute(&mut connection).await.unwrap();
    db.assert_clean(&[&number]);
    sqlx::query("INSERT INTO t VALUES ($1)").bind(&number).execute(&mut connection).await.unwrap();
    postgres::shared_checkpoint().await;
    let found = find_in_dir(&[&number], &db.files, db.since);
    for place in ["/data/base/", "/data/pg_wal/", "/server.log"] {
        assert!(found.iter().any(|it| it.contains(place)), "{place}: {found:?}");
    }
}

both_engines! {
    async fn each_test_has_a_database_of_its_own(db: Database) {
        let other = match db.engine {
            Engine::Sqlite => Database::sqlite(),
            Engine::Postgres => Database::postgres("another").await.unwrap(),
        };
        for db in [&db, &other] {
            create_and_count(db).await;
        }
        assert_ne!(db.url, other.url);
    }
}

/// Fails if the table is there already.
async fn create_and_count(db: &Database) {
    match db.engine {
        Engine::Sqlite => {
            let mut connection = SqliteConnection::connect(&format!("{}?mode=rwc", db.url)).await.unwrap();
            run_sqlite(&mut connection, "CREATE TABLE once (a TEXT)").await;
        }
        Engine::Postgres => {
            let mut connection = PgConnection::connect(&db.url).await.unwrap();
            sqlx::query("CREATE TABLE once (a TEXT)").execute(&mut connection).await.unwrap();
            let superuser: (bool,) =
                sqlx::query_as("SELECT usesuper FROM pg_user WHERE usename = current_user")
                    .fetch_one(&mut connection)
                    .await
                    .unwrap();
            assert!(!superuser.0, "tests must not run as the superuser");
        }
    }
}

#[tokio::test]
async fn a_cluster_can_be_killed_and_started_again_and_leaves_nothing_behind() {
    let Some(binaries) = Binaries::find() else { return left_out("a killed cluster") };
    let mut cluster = Cluster::start(&binaries, Durability::Full).await;
    let url = cluster.fresh_database().await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::query("CREATE TABLE kept (a TEXT)").execute(&mut connection).await.unwrap();
    cluster.crash();
    assert!(PgConnection::connect(&url).await.is_err());
    cluster.launch().await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::query("SELECT a FROM kept").execute(&mut connection).await.unwrap();
    let folder = cluster.folder.clone();
    drop(cluster);
    assert!(!folder.exists());
    assert!(PgConnection::connect(&url).await.is_err());
}

/// The shared cluster is gone after this process is, even by `kill -9`. The test runs itself: the child
/// starts a cluster, says where, and is killed.
#[tokio::test]
async fn a_killed_test_process_leaves_no_server_and_no_files() {
    const ROLE: &str = "CARDVAULT_TEST_CHILD";
    if std::env::var_os(ROLE).is_some() {
        if let Some(files) = postgres::shared_files().await {
            std::fs::write(std::env::var(ROLE).unwrap(), files.display().to_string()).unwrap();
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        return;
    }
    if Binaries::find().is_none() {
        return left_out("a killed test process");
    }
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "support_self_test::a_killed_test_process_leaves_no_server_and_no_files"])
        .env(ROLE, &told)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let cluster = wait_for(|| std::fs::read_to_string(&told).ok().filter(|it| !it.is_empty())).await;
    assert!(Path::new(&cluster).exists());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for(|| (!Path::new(&cluster).exists()).then_some(())).await;
}

async fn wait_for<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(value) = ready() {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it did not happen within 30 seconds");
}

/// Without PostgreSQL the suite passes, and says in one line what it left out.
#[test]
fn without_postgresql_its_tests_are_left_out_aloud_unless_it_is_required() {
    let run = |required: &str| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "support_self_test::each_test_has_a_database_of_its_own::postgres"])
            .env("CARDVAULT_TEST_NO_POSTGRES", "1")
            .env("CARDVAULT_REQUIRE_POSTGRES", required)
            .output()
            .unwrap()
    };
    let left_out = run("0");
    let said = String::from_utf8_lossy(&left_out.stderr);
    assert!(left_out.status.success());
    assert_eq!(said.matches("no PostgreSQL found: its tests are left out").count(), 1, "{said}");
    assert_eq!(said.matches("::postgres: left out: no PostgreSQL found").count(), 1, "{said}");
    assert!(!run("1").status.success());
}
