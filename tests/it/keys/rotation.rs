//! KEK and card keys.

use std::collections::{HashMap, HashSet};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use cardvault::app;
use cardvault::base::clock::{SharedClock, SystemClock};
use cardvault::crypto::keyring::Purpose;
use cardvault::ops::keys::DataKeys;
use cardvault::ops::{Policy, Vault};
use cardvault::store::backend::Work;
use serde_json::json;
use sqlx::{Connection, SqliteConnection};

use super::doorman::{Doorman, PACE, command_through};
use super::traffic::{Traffic, assert_whole};
use super::{age_kek, assert_clean, data_keys, id, ids, keys, number, refused, rows, status};
use crate::support::notices::Posted;
use crate::support::vault::{TestVault, by_reference, fresh_pan, opening};
use crate::support::{Database, Engine, sql};

/// The raw id of a key as the database shows it in hexadecimal, upper case.
fn raw(id: &str) -> String {
    let name = id.split_once('_').expect("a prefix").1;
    data_encoding::HEXUPPER.encode(&cardvault::base::ids::from_base32(name).expect("base32"))
}

async fn records_under(db: &Database, key: &str) -> i64 {
    let hex = |column: &str| match db.engine {
        Engine::Sqlite => format!("hex(substr({column}, 3, 20))"),
        Engine::Postgres => format!("upper(encode(substr({column}, 3, 20), 'hex'))"),
    };
    let mut all = 0;
    for (table, column) in
        [("cards", "pan"), ("cards", "details"), ("payments", "outgoing"), ("payments", "answer")]
    {
        let query = format!("SELECT count(*) FROM {table} WHERE {} = '{}'", hex(column), raw(key));
        all += number(db, &query).await;
    }
    all
}

both_engines! {
    /// Every key is listed with what needs it, nothing secret is.
    async fn status_tells_state_age_uses_and_rows(db: Database) {
        let vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let pan = fresh_pan();
        let card = caller.card(&pan).await;
        caller.post("/v1/payments", &crate::support::vault::by_reference("STATUS_1", "100", &card)).await.expect(200);
        let key = id(&status(&vault).await, "card", "active");
        let used = async || {
            let now = status(&vault).await;
            let key = now["keys"].as_array().unwrap().iter().find(|found| found["key"] == *key).cloned().unwrap();
            (key["uses"].as_u64().unwrap() >= 4).then_some(now)
        };
        let now = crate::support::eventually("uses to be reported", used).await;
        // PAN and details of the card, and the answer; the outgoing copy went with the final state.
        assert_eq!(rows(&now, &key), 3, "{now}");
        assert_eq!(rows(&now, &id(&now, "fingerprint", "active")), 1);
        assert_eq!(rows(&now, &id(&now, "request_mac", "active")), 1);
        assert_eq!(rows(&now, &id(&now, "kek", "active")), data_keys());
        assert_eq!(now["servers"].as_array().map(Vec::len), Some(1));
        assert_eq!(now["gatewayKeys"].as_array().map(Vec::len), Some(2));
        let text = keys(&vault, &["status"]).await;
        let keyring = std::fs::read_to_string(&vault.config.keys.keyring).unwrap();
        let secret = keyring.lines().find_map(|line| line.strip_prefix("key = \"")).unwrap().trim_end_matches('"');
        assert_clean(&format!("{text}{now}"), &[&pan, secret]);
        assert!(text.contains(&key) && !text.contains("WARNING"), "{text}");
        vault.finish(&[&pan, secret]).await;
    }

    /// All keys, one after another, beside merchants who notice nothing; in the end nothing of the old ones
    /// is needed, and they are destroyed.
    async fn everything_rotates_beside_a_server_that_serves(db: Database) {
        let vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let traffic = Traffic::start(std::slice::from_ref(&caller), 3);
        traffic.more(30).await;
        let before = status(&vault).await;
        let (kek, dek) = (id(&before, "kek", "active"), id(&before, "card", "active"));
        // Nothing that is in use, or needed, can be destroyed.
        assert!(refused(&vault, &["destroy", &kek]).await.contains("in use"));
        assert!(refused(&vault, &["destroy", &dek]).await.contains("only a key that was rotated away"));
        let wrapped = format!("wrap {} data keys anew", data_keys());
        for (what, told) in [("kek", wrapped.as_str()), ("dek", "rows depend"), ("fingerprint", "rows depend")] {
            let said = keys(&vault, &["rotate", what, "--dry-run"]).await;
            assert!(said.contains(told) && said.contains("1 running servers"), "{said}");
        }
        let told = keys(&vault, &["rotate", "kek"]).await;
        assert!(told.contains("1 running servers had opened its canary"), "{told}");
        traffic.more(15).await;
        keys(&vault, &["rotate", "dek"]).await;
        traffic.more(30).await;
        assert!(refused(&vault, &["destroy", &dek]).await.contains("keys reencrypt"));
        let told = keys(&vault, &["reencrypt", "--batch", "7", "--pause-ms", "1", "--json"]).await;
        let last: serde_json::Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
        assert!(last["event"] == "done" && last["moved"].as_u64() >= Some(6), "{told}");
        assert_eq!(records_under(&db, &dek).await, 0);
        // Running it again finds nothing to do.
        assert!(keys(&vault, &["reencrypt"]).await.starts_with("moved 0 rows"));
        traffic.more(15).await;
        assert!(keys(&vault, &["destroy", &dek, "--dry-run"]).await.contains("would be destroyed"));
        keys(&vault, &["destroy", &dek]).await;
        assert!(keys(&vault, &["destroy", &dek]).await.contains("destroyed before"));
        keys(&vault, &["destroy", &kek]).await;
        traffic.more(30).await;
        let cards = traffic.stop().await;
        let after = status(&vault).await;
        assert_eq!(ids(&after, "kek", "active").len() + ids(&after, "kek", "decrypt_only").len(), 1);
        assert_eq!(id(&after, "card", "destroyed"), dek);
        assert_eq!(number(&db, "SELECT count(*) FROM data_keys WHERE state = 'destroyed' AND wrapped IS NULL").await, 1);
        let references: HashSet<&String> = cards.iter().map(|(_, card)| card).collect();
        assert_eq!(number(&db, "SELECT count(*) FROM cards").await, i64::try_from(references.len()).unwrap());
        assert_whole(&caller, &cards).await;
        let mut vault = vault;
        vault.restart().await;
        assert_whole(&vault.client("checkout"), &cards).await;
        let secrets: Vec<&str> = cards.iter().map(|(pan, _)| pan.as_str()).collect();
        vault.finish(&secrets).await;
    }

    /// The real program is killed again and again while it re-encrypts, two of it at once, beside a server
    /// that stores and pays; the last run finishes, and every card is what it was.
    async fn reencryption_survives_being_killed_at_any_instant(db: Database) {
        let vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let mut cards = Vec::new();
        for _ in 0..60 {
            let pan = fresh_pan();
            cards.push((pan.clone(), caller.card(&pan).await));
        }
        let traffic = Traffic::start(std::slice::from_ref(&caller), 2);
        let old = id(&status(&vault).await, "card", "active");
        keys(&vault, &["rotate", "dek"]).await;
        let mut seen = HashSet::new();
        for round in 0..25_u64 {
            let arguments = ["keys", "reencrypt", "--batch", "2", "--pause-ms", "40"];
            let start = || vault.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let (mut one, mut two) = (start(), start());
            let random: [u8; 2] = cardvault::base::entropy::array().unwrap();
            // Long enough to get to work, at a different place each time.
            tokio::time::sleep(Duration::from_millis(40 + round * 4 + u64::from(random[0]))).await;
            one.kill().await.unwrap();
            tokio::time::sleep(Duration::from_millis(u64::from(random[1]) / 8)).await;
            two.kill().await.unwrap();
            seen.insert(records_under(&db, &old).await);
        }
        traffic.more(10).await;
        // Two that are not killed, at once.
        let run = || keys(&vault, &["reencrypt", "--batch", "5", "--pause-ms", "0"]);
        tokio::join!(run(), run());
        assert_eq!(records_under(&db, &old).await, 0);
        assert!(seen.len() > 2, "it was never killed half-way: {seen:?}");
        cards.extend(traffic.stop().await);
        keys(&vault, &["destroy", &old]).await;
        assert_whole(&caller, &cards).await;
        assert_eq!(number(&db, "SELECT count(*) FROM cards").await, i64::try_from(cards.len()).unwrap());
        let secrets: Vec<&str> = cards.iter().map(|(pan, _)| pan.as_str()).collect();
        vault.finish(&secrets).await;
    }

    /// A KEK's rotation that was cut off after each of its steps is finished by the next run, with the same
    /// new KEK.
    async fn a_rotation_of_the_kek_that_was_cut_off_is_finished(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let pan = fresh_pan();
        let card = caller.card(&pan).await;
        let first = id(&status(&vault).await, "kek", "active");
        // A server that cannot open the new KEK's canary (here: one that is not there) is waited for, in vain.
        let now = cardvault::base::clock::Clock::now(&cardvault::base::clock::SystemClock).0;
        let ghost = cardvault::base::ids::InstanceId::make().unwrap();
        let row = format!("INSERT INTO replicas (instance, host, started_at, seen_at, epoch) VALUES ('{ghost}', 'elsewhere', {now}, {now} + 600000, 1)");
        sql::execute(&db, &row).await;
        let said = refused(&vault, &["rotate", "kek", "--wait-s", "2"]).await;
        assert!(said.contains(ghost.as_str()) && said.contains("elsewhere") && said.contains("run this again"), "{said}");
        let half = status(&vault).await;
        let entered = id(&half, "kek", "entered");
        assert_eq!(id(&half, "kek", "active"), first);
        sql::execute(&db, &format!("DELETE FROM replicas WHERE instance = '{ghost}'")).await;
        let said = keys(&vault, &["rotate", "kek"]).await;
        assert!(said.contains("finished the rotation") && said.contains(&entered), "{said}");
        // Cut off between the keyring and the database: data keys are still wrapped under the KEK before.
        let keyring = std::fs::read_to_string(&vault.config.keys.keyring).unwrap();
        assert!(keyring.contains(&format!("active = \"{entered}\"")));
        let again = keys(&vault, &["rotate", "kek"]).await;
        assert!(!again.contains("finished"), "{again}");
        let third = id(&status(&vault).await, "kek", "active");
        let back = keyring_with_active(&vault, &entered);
        std::fs::write(&vault.config.keys.keyring, back).unwrap();
        let said = keys(&vault, &["rotate", "kek"]).await;
        assert!(said.contains("finished") && said.contains(&third), "{said}");
        assert_eq!(number(&db, &format!("SELECT count(*) FROM data_keys WHERE kek_id = '{third}'")).await, i64::try_from(data_keys()).unwrap());
        for old in [&first, &entered] {
            keys(&vault, &["destroy", old]).await;
        }
        vault.restart().await;
        assert_eq!(vault.client("checkout").card(&pan).await, card);
        vault.finish(&[&pan]).await;
    }

    /// A server that is stopped like a virtual machine, taken for dead, and wakes up after its keys were
    /// rotated away and destroyed: what it stores first opens, and it never stores a card twice.
    async fn a_server_that_slept_through_a_rotation_loses_nothing(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let program = vault.start_program().await;
        let caller = vault.client("checkout");
        let pan = fresh_pan();
        let card = caller.card(&pan).await;
        let before = status(&vault).await;
        let (dek, fingerprint) = (id(&before, "card", "active"), id(&before, "fingerprint", "active"));
        let pid = rustix::process::Pid::from_child(&program);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        // As if 30 seconds had passed.
        sql::execute(&db, "DELETE FROM replicas").await;
        keys(&vault, &["rotate", "dek"]).await;
        keys(&vault, &["reencrypt"]).await;
        keys(&vault, &["destroy", &dek]).await;
        keys(&vault, &["rotate", "fingerprint"]).await;
        keys(&vault, &["destroy", &fingerprint]).await;
        // Three requests wait for it, on connections that it will take: a new card, the known one, a change.
        let caller = vault.client("checkout");
        let asleep = caller.clone();
        let other = fresh_pan();
        let body = serde_json::json!({ "expiryMonth": "11", "expiryYear": "29" }).to_string();
        let (known_pan, other_pan, path) = (pan.clone(), other.clone(), format!("/v1/cards/{card}"));
        let waiting = tokio::spawn(async move {
            tokio::join!(asleep.card(&other_pan), asleep.card(&known_pan), asleep.send("PATCH", &path, &body))
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        let (new, known, patched) = waiting.await.unwrap();
        assert_eq!((known.as_str(), patched.status), (card.as_str(), 200), "{}", patched.text);
        assert_eq!(records_under(&db, &dek).await, 0, "something was stored under a key that is gone");
        assert_eq!(number(&db, "SELECT count(*) FROM cards").await, 2);
        assert_eq!((caller.card(&other).await, caller.card(&pan).await), (new.clone(), card.clone()));
        for (n, card) in [&new, &card].into_iter().enumerate() {
            let body = crate::support::vault::by_reference(&format!("SLEPT_{n}"), "100", card);
            assert_eq!(caller.post("/v1/payments", &body).await.expect(200).text_at("/status"), "AUTHORIZED");
        }
        let mut program = program;
        program.kill().unwrap();
        program.wait().unwrap();
        vault.finish(&[&pan, &other]).await;
    }

    /// The real program is killed again and again while it rotates the KEK; whatever it left, the next run
    /// goes on from there, and no data key is ever lost.
    async fn a_rotation_of_the_kek_survives_being_killed_at_any_instant(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let pan = fresh_pan();
        let card = caller.card(&pan).await;
        for round in 0..20_u64 {
            let mut run = vault.command(&["keys", "rotate", "kek"]).stdout(Stdio::null()).spawn().unwrap();
            let random: [u8; 2] = cardvault::base::entropy::array().unwrap();
            let millis = 20 + round * 15 + u64::from(random[0]);
            tokio::time::sleep(Duration::from_millis(millis)).await;
            run.kill().await.unwrap();
            assert_eq!(caller.card(&pan).await, card);
        }
        keys(&vault, &["rotate", "kek"]).await;
        let now = status(&vault).await;
        let active = id(&now, "kek", "active");
        assert_eq!((rows(&now, &active), ids(&now, "kek", "entered").len()), (data_keys(), 0), "{now}");
        for old in ids(&now, "kek", "decrypt_only") {
            keys(&vault, &["destroy", &old]).await;
        }
        vault.restart().await;
        assert_eq!(vault.client("checkout").card(&pan).await, card);
        vault.finish(&[&pan]).await;
    }

    /// A KEK past its end opens what it wrapped and wraps no new key.
    async fn a_kek_past_its_end_wraps_nothing_new(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let pan = fresh_pan();
        let card = vault.client("checkout").card(&pan).await;
        age_kek(&vault);
        vault.restart().await;
        assert_eq!(vault.client("checkout").card(&pan).await, card);
        let said = keys(&vault, &["status"]).await;
        assert!(said.contains("WARNING kek_") && said.contains("rotate kek"), "{said}");
        let said = refused(&vault, &["rotate", "dek"]).await;
        assert!(said.contains("cryptoperiod of the key-encryption key") && said.contains("rotate kek"), "{said}");
        keys(&vault, &["rotate", "kek"]).await;
        keys(&vault, &["rotate", "dek"]).await;
        vault.finish(&[&pan]).await;
    }

    /// What was copied before: a record under a destroyed key is noise, and so is a whole database once the
    /// KEK that wrapped its keys is destroyed too.
    async fn after_destruction_a_backup_is_noise(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let pan = fresh_pan();
        let card = caller.card(&pan).await;
        let condition = format!("card_id = '{card}'");
        let mut copies = Vec::new();
        for column in ["pan", "details"] {
            copies.push((column, sql::bytes(&db, "cards", column, &condition).await));
        }
        let before = status(&vault).await;
        let (kek, dek) = (id(&before, "kek", "active"), id(&before, "card", "active"));
        let wrapped = sql::bytes(&db, "data_keys", "wrapped", &format!("id = '{dek}'")).await;
        keys(&vault, &["rotate", "dek"]).await;
        keys(&vault, &["reencrypt"]).await;
        keys(&vault, &["destroy", &dek]).await;
        // The old record back in its place, as from a backup.
        for (column, copy) in &copies {
            let put = format!("UPDATE cards SET {column} = {} WHERE {condition}", sql::literal(&db, copy));
            sql::execute(&db, &put).await;
        }
        caller.get(&format!("/v1/cards/{card}")).await.expect_problem(500, "internal");
        vault.restart().await;
        vault.client("checkout").get(&format!("/v1/cards/{card}")).await.expect_problem(500, "internal");
        // With the wrapped key of the backup it opens, while the KEK is there: this is what a backup holds.
        let put = format!(
            "UPDATE data_keys SET state = 'decrypt_only', wrapped = {} WHERE id = '{dek}'",
            sql::literal(&db, &wrapped)
        );
        sql::execute(&db, &put).await;
        vault.restart().await;
        vault.client("checkout").get(&format!("/v1/cards/{card}")).await.expect(200);
        let caller = vault.client("checkout");
        sql::execute(&db, &format!("UPDATE data_keys SET state = 'destroyed', wrapped = NULL WHERE id = '{dek}'")).await;
        keys(&vault, &["rotate", "kek"]).await;
        keys(&vault, &["destroy", &kek]).await;
        sql::execute(&db, &put).await;
        // By now the whole backup is noise: no server starts on it.
        vault.stop().await;
        let error = match cardvault::app::App::start(&vault.config).await {
            Ok(_) => panic!("it started"),
            Err(error) => format!("{error:#}"),
        };
        assert!(error.contains("is not there") && error.contains(&kek), "{error}");
        drop(caller);
        vault.finish(&[&pan]).await;
    }

    /// A key whose time or uses are over seals nothing more, opens what it sealed, and says what to do.
    async fn a_key_past_its_end_seals_nothing_and_opens(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let pan = fresh_pan();
        let card = caller.card(&pan).await;
        sql::execute(&db, "UPDATE data_keys SET expires_at = created_at + 1 WHERE purpose = 'card'").await;
        vault.restart().await;
        let caller = caller.at(vault.address);
        caller.get(&format!("/v1/cards/{card}")).await.expect(200);
        let body = format!(r#"{{"cardNo":"{}","expiryMonth":"12","expiryYear":"29"}}"#, fresh_pan());
        caller.post("/v1/cards", &body).await.expect_problem(503, "unavailable");
        let said = keys(&vault, &["status"]).await;
        assert!(said.contains("WARNING") && said.contains("its cryptoperiod is over") && said.contains("keys rotate dek"), "{said}");
        keys(&vault, &["rotate", "dek"]).await;
        let stored = async || (caller.post("/v1/cards", &body).await.status == 201).then_some(());
        crate::support::eventually("the new key to be used", stored).await;
        // Uses: 80 % warn, the end refuses.
        vault.config.keys.seals_per_key = 1_000_000;
        sql::execute(&db, "UPDATE data_keys SET uses = 999999 WHERE purpose = 'card' AND state = 'active'").await;
        vault.restart().await;
        let caller = caller.at(vault.address);
        let body = format!(r#"{{"cardNo":"{}","expiryMonth":"12","expiryYear":"29"}}"#, fresh_pan());
        // The last seal is for this card's number; its details would be one too many.
        caller.post("/v1/cards", &body).await.expect_problem(503, "unavailable");
        keys(&vault, &["rotate", "dek"]).await;
        let stored = async || (caller.post("/v1/cards", &body).await.status == 201).then_some(());
        crate::support::eventually("the new key to be used", stored).await;
        vault.finish(&[&pan]).await;
    }
}

/// The keyring's text with another KEK in use.
fn keyring_with_active(vault: &TestVault, id: &str) -> String {
    let text = std::fs::read_to_string(&vault.config.keys.keyring).unwrap();
    let lines = text.lines().map(|line| match line.strip_prefix("active = ") {
        Some(_) => format!("active = \"{id}\"\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

/// Every binary column of the schema is one that re-encryption moves, or one that is not a sealed record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_sealed_column_is_forgotten() {
    let known = [
        "_sqlx_migrations.checksum",
        "audit.mac",
        "cards.fingerprint",
        "cards.fingerprint_b",
        "cards.token_digest",
        "data_keys.wrapped",
        "kek_canaries.wrapped",
        "operations.meaning",
        "payments.meaning",
    ];
    let db = Database::sqlite();
    let vault = TestVault::start(&db).await;
    let options = cardvault::store::backend::Options { url: db.url.clone(), password_file: None };
    let store = cardvault::store::backend::Db::open(&options).await.unwrap();
    let sealed: Vec<String> = cardvault::store::reseal::SOURCES
        .iter()
        .flat_map(|source| source.columns.iter().map(|column| format!("{}.{column}", source.table)))
        .collect();
    let mut missing = cardvault::store::reseal::binary_columns(&store).await.unwrap();
    missing.retain(|name| !known.contains(&name.as_str()) && !sealed.contains(name));
    assert!(missing.is_empty(), "not in store::reseal::SOURCES, and not known to be no record: {missing:?}");
    store.close().await;
    vault.finish(&[]).await;
}

/// A program that reads an older state of SQLite's database keeps the end of a key from clearing the log. It is
/// told, and mended by running the command again.
#[tokio::test(flavor = "multi_thread")]
async fn a_destroyed_key_does_not_stay_in_sqlites_log() {
    let db = Database::sqlite();
    let vault = TestVault::start(&db).await;
    vault.client("checkout").card(&fresh_pan()).await;
    let dek = id(&status(&vault).await, "card", "active");
    let kek = id(&status(&vault).await, "kek", "active");
    let under_old_kek = sql::bytes(&db, "data_keys", "wrapped", &format!("id = '{dek}'")).await;
    keys(&vault, &["rotate", "kek"]).await;
    keys(&vault, &["rotate", "dek"]).await;
    keys(&vault, &["reencrypt"]).await;
    let wrapped = sql::bytes(&db, "data_keys", "wrapped", &format!("id = '{dek}'")).await;
    let is_there = |wrapped: &[u8]| {
        ["cardvault.db", "cardvault.db-wal"].iter().any(|name| {
            let file = std::fs::read(db.files.join(name)).expect("a file of SQLite");
            file.windows(wrapped.len()).any(|part| part == wrapped)
        })
    };
    let mut reader = SqliteConnection::connect(&db.url).await.expect("connect");
    let mut run = async |text: &'static str| {
        sqlx::query(text).execute(&mut reader).await.expect(text);
    };
    run("BEGIN").await;
    run("SELECT * FROM data_keys").await;
    for key in [&kek, &dek] {
        let said = refused(&vault, &["destroy", key]).await;
        assert!(said.contains("old rows are still in SQLite's log"), "{key}: {said}");
    }
    assert!(is_there(&under_old_kek) && is_there(&wrapped));
    run("COMMIT").await;
    assert!(keys(&vault, &["destroy", &kek]).await.contains("destroyed before"));
    assert!(!is_there(&under_old_kek));
    assert!(keys(&vault, &["destroy", &dek]).await.contains("destroyed before"));
    assert!(!is_there(&wrapped));
    vault.finish(&[]).await;
}

/// Where the vault's role owns the tables, the end of a key leaves none of its wrapped bytes in them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destroyed_key_does_not_stay_in_postgresqls_table() {
    let name = "keys::rotation::a_destroyed_key_does_not_stay_in_postgresqls_table";
    let Some(db) = Database::postgres(name).await else { return };
    let vault = TestVault::start(&db).await;
    vault.client("checkout").card(&fresh_pan()).await;
    let dek = id(&status(&vault).await, "card", "active");
    let wrapped = sql::bytes(&db, "data_keys", "wrapped", &format!("id = '{dek}'")).await;
    let file = async || {
        crate::support::postgres::shared_checkpoint().await;
        let found = sql::rows(&db, "SELECT pg_relation_filepath('data_keys')").await;
        db.files.join("data").join(found[0][0].as_deref().expect("a path"))
    };
    let is_in = |file: &std::path::Path| {
        let bytes = std::fs::read(file).unwrap_or_default();
        bytes.windows(wrapped.len()).any(|part| part == wrapped)
    };
    let before = file().await;
    assert!(is_in(&before));
    keys(&vault, &["rotate", "dek"]).await;
    keys(&vault, &["reencrypt"]).await;
    let said = keys(&vault, &["destroy", &dek]).await;
    assert!(said.contains("written the table anew"), "{said}");
    let after = file().await;
    assert!(after != before && !is_in(&after) && !is_in(&before));
    vault.finish(&[]).await;
}

both_engines! {
    /// A card was read, and before its key was at hand all records had another one, and that key was destroyed: the
    /// card is read again.
    async fn what_was_read_outlasts_its_key(db: Database) {
        let vault = TestVault::start(&db).await;
        let (caller, pan) = (vault.client("checkout"), fresh_pan());
        let card = caller.card(&pan).await;
        caller.post("/v1/payments", &opening(&by_reference("OUTLASTS_1", "100", &card))).await.expect(200);
        // A process that knows no key but the first.
        let doorman = Arc::new(Doorman::default());
        let clock: SharedClock = Arc::new(SystemClock);
        let rows = app::open_database(&vault.config).await.expect("a database");
        let keks = Arc::new(app::keks(&vault.config).expect("a keyring"));
        let door = rows.clone().through(doorman.clone());
        let known = DataKeys::start(door, keks, &clock, vault.config.keys.policy()).await.expect("keys");
        let late = Vault::new(rows, known, HashMap::new(), clock, Policy::default()).expect("a vault");
        let renewed = async || {
            keys(&vault, &["rotate", "dek"]).await;
            keys(&vault, &["reencrypt"]).await;
        };
        renewed().await;
        let second = id(&status(&vault).await, "card", "active");
        doorman.hold(Work::Read, 1);
        let looked = tokio::spawn(async move { late.tell_expiring_cards("").await.map(|_| ()) });
        doorman.arrived().await;
        renewed().await;
        keys(&vault, &["destroy", &second]).await;
        doorman.let_go();
        looked.await.expect("a task").expect("what was read is opened");
        vault.finish(&[&pan]).await;
    }

    /// A dispute that was told is known again by a key that no payment has: it stays as long as that is kept, also of
    /// those that an older version kept.
    async fn the_key_of_a_kept_notification_stays(db: Database) {
        let vault = TestVault::start_notified(&db, &[]).await;
        let (caller, pan) = (vault.client("checkout"), fresh_pan());
        let card = caller.card(&pan).await;
        caller.post("/v1/payments", &by_reference("KEPT_1", "30000", &card)).await.expect(200);
        let rotate = ["rotate", "dek", "--purpose", "request-mac"];
        keys(&vault, &rotate).await;
        let second = id(&status(&vault).await, "request_mac", "active");
        let result = json!({ "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "" });
        let told = json!({
            "notifyType": "DISPUTE_CREATED", "paymentRequestId": "KEPT_1", "disputeId": "D_1", "result": result,
        });
        let dispute = Posted::new(told.to_string());
        dispute.send(&vault).await.expect(200);
        keys(&vault, &rotate).await;
        let third = id(&status(&vault).await, "request_mac", "active");
        dispute.send(&vault).await.expect(200);
        assert_eq!(number(&db, "SELECT count(*) FROM notices").await, 1);
        assert_eq!(rows(&status(&vault).await, &second), 1);
        assert!(refused(&vault, &["destroy", &second]).await.contains("kept notifications"));
        assert_eq!(sql::rows(&db, "SELECT digest_key FROM notices").await, [[Some(second.clone())]]);
        // As an older version kept it.
        sql::execute(&db, "UPDATE notices SET digest_key = NULL").await;
        assert!(refused(&vault, &["destroy", &second]).await.contains("kept notifications"));
        sql::execute(&db, "DELETE FROM notices").await;
        keys(&vault, &["destroy", &second]).await;
        assert_eq!(id(&status(&vault).await, "request_mac", "active"), third);
        vault.finish(&[&pan]).await;
    }

    /// A data key was wrapped, and before it was stored another KEK came into use and the one that wraps it was
    /// destroyed: it is not stored, and another is wrapped under the KEK that is there.
    async fn no_data_key_is_left_under_a_kek_that_is_gone(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let (caller, pan) = (vault.client("checkout"), fresh_pan());
        let card = caller.card(&pan).await;
        for command in ["card", "fingerprint"] {
            let kek = id(&status(&vault).await, "kek", "active");
            let door = Arc::new(Doorman::default());
            let late = command_through(&vault, &door).await;
            // The rotation of the fingerprint key has waited for writers first.
            door.hold(Work::Transaction, if command == "card" { 1 } else { 2 });
            let late = tokio::spawn(async move {
                match command {
                    "card" => late.rotate_data_key(Purpose::Card).await,
                    _ => late.rotate_fingerprint(PACE, &mut |_| ()).await,
                }
            });
            door.arrived().await;
            keys(&vault, &["rotate", "kek"]).await;
            keys(&vault, &["destroy", &kek]).await;
            door.let_go();
            late.await.expect("a task").expect("rotated");
            let under = format!("SELECT count(*) FROM data_keys WHERE kek_id = '{kek}' AND wrapped IS NOT NULL");
            assert_eq!(number(&db, &under).await, 0, "{command}");
        }
        vault.restart().await;
        assert_eq!(vault.client("checkout").card(&pan).await, card);
        vault.finish(&[&pan]).await;
    }

    /// Servers take a new KEK for the one in use, so that nothing warns of the old one's end any more.
    async fn servers_take_up_which_kek_is_in_use(db: Database) {
        let mut vault = TestVault::start(&db).await;
        age_kek(&vault);
        vault.restart().await;
        let seals = async || {
            let (_, metrics) = vault.operators("/metrics").await;
            let line = |number: u8| format!("cardvault_key_seals{{purpose=\"kek\"}} {number}\n");
            match (metrics.contains(&line(1)), metrics.contains(&line(0))) {
                (true, false) => true,
                (false, true) => false,
                _ => panic!("{metrics}"),
            }
        };
        assert!(!seals().await);
        keys(&vault, &["rotate", "kek"]).await;
        crate::support::eventually("the new KEK to be known", async || seals().await.then_some(())).await;
        vault.finish(&[]).await;
    }

    /// The end of a KEK was cut off when it was out of the keyring, and the servers had not been told: run again, the
    /// command tells them.
    async fn servers_forget_a_kek_whose_end_was_cut_off(db: Database) {
        let vault = TestVault::start(&db).await;
        let old = id(&status(&vault).await, "kek", "active");
        keys(&vault, &["rotate", "kek"]).await;
        let before = status(&vault).await["epoch"].as_i64().expect("an epoch");
        // As it stands in the keyring then.
        let text = std::fs::read_to_string(&vault.config.keys.keyring).unwrap();
        let entries: Vec<&str> = text.split_inclusive("[[kek]]\n").collect();
        let without: String = entries.iter().filter(|entry| !entry.contains(&format!("id = \"{old}\""))).copied().collect();
        std::fs::write(&vault.config.keys.keyring, without).unwrap();
        assert_eq!(ids(&status(&vault).await, "kek", "decrypt_only").len(), 0);
        assert!(keys(&vault, &["destroy", &old]).await.contains("destroyed before"));
        assert!(status(&vault).await["epoch"].as_i64().expect("an epoch") > before);
        vault.finish(&[]).await;
    }

    /// What would be done depends on where the new KEK shall be: one that was begun for elsewhere is not gone on to.
    async fn a_dry_run_tells_of_the_kek_that_is_asked_for(db: Database) {
        let vault = TestVault::start(&db).await;
        let now = cardvault::base::clock::Clock::now(&SystemClock).0;
        let ghost = cardvault::base::ids::InstanceId::make().unwrap();
        let row = format!("INSERT INTO replicas (instance, host, started_at, seen_at, epoch) VALUES ('{ghost}', 'elsewhere', {now}, {now} + 600000, 1)");
        sql::execute(&db, &row).await;
        refused(&vault, &["rotate", "kek", "--wait-s", "1"]).await;
        let half = status(&vault).await;
        let (first, entered) = (id(&half, "kek", "active"), id(&half, "kek", "entered"));
        let would = async |more: &[&str]| keys(&vault, &[&["rotate", "kek", "--dry-run"][..], more].concat()).await;
        for finishes in [&[][..], &["--to", "file"]] {
            let said = would(finishes).await;
            assert!(said.contains(&format!("would finish the rotation to {entered}")), "{said}");
        }
        let said = would(&["--to", "split", "--shares", "3", "--threshold", "2"]).await;
        assert!(said.contains(&format!("would make a new one in 3 shares of which 2 rebuild it, after {first}")), "{said}");
        let said = refused(&vault, &["rotate", "kek", "--dry-run", "--to", "split"]).await;
        assert!(said.contains("needs --shares and --threshold"), "{said}");
        assert_eq!(id(&status(&vault).await, "kek", "entered"), entered);
        vault.finish(&[]).await;
    }
}
