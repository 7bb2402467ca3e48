//! What somebody who can write to the database can do to a card: make it unusable, and nothing more. A
//! ciphertext that stands in another row, field or merchant, or was altered, opens nowhere; and a vault
//! whose keys are not its own does not start.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use cardvault::app::App;

use super::support::vault::{Caller, TestVault, by_reference, fresh_pan};
use super::support::{Database, leak, sql};

/// Fails unless reading and paying this card end in `internal`, with nothing sent and nothing shown.
async fn is_closed(vault: &TestVault, caller: &Caller, card_id: &str, secrets: &[&str], what: &str) {
    let before = vault.sandbox.recent_calls().len();
    // A name that no other attempt has: a refused payment is not kept, so its id is free again.
    let paid = caller.post("/v1/payments", &by_reference("CLOSED_1", "100", card_id)).await;
    assert_eq!((paid.status, paid.text_at("/code").as_str()), (500, "internal"), "{what}: {}", paid.text);
    assert_eq!(paid.json()["errors"].as_array().map(Vec::len), Some(0), "{what}");
    assert!(leak::find(secrets, paid.text.as_bytes()).is_empty(), "{what}");
    assert_eq!(vault.sandbox.recent_calls().len(), before, "{what}: something was sent");
    caller.get("/v1/payments/CLOSED_1").await.expect_problem(404, "not_found");
}

async fn reads(caller: &Caller, card_id: &str) -> u16 {
    caller.get(&format!("/v1/cards/{card_id}")).await.status
}

async fn set(db: &Database, card_id: &str, column: &str, to: &[u8]) {
    let statement =
        format!("UPDATE cards SET {column} = {} WHERE card_id = '{card_id}'", sql::literal(db, to));
    assert_eq!(sql::execute(db, &statement).await, 1);
}

async fn get(db: &Database, card_id: &str, column: &str) -> Vec<u8> {
    sql::bytes(db, "cards", column, &format!("card_id = '{card_id}'")).await
}

both_engines! {
    /// PAN and details moved to another row, another buyer, another merchant, or into each other's
    /// column: closed, and the row they came from is unharmed.
    async fn a_ciphertext_opens_where_it_was_sealed_and_nowhere_else(db: Database) {
        let vault = TestVault::start(&db).await;
        let (checkout, rival) = (vault.client("checkout"), vault.client("rival"));
        let (pan, other) = (fresh_pan(), fresh_pan());
        let secrets = [pan.as_str(), other.as_str()];
        let source = checkout.card(&pan).await;
        let target = checkout.card(&other).await;
        let foreign = rival.card(&other).await;
        let body = serde_json::json!({ "cardNo": pan, "expiryMonth": "12", "expiryYear": "29", "referenceBuyerId": "b" });
        let buyers = checkout.post("/v1/cards", &body.to_string()).await.expect(201).text_at("/cardId");
        let (sealed_pan, sealed_details) = (get(&db, &source, "pan").await, get(&db, &source, "details").await);
        for (caller, id, what) in [
            (&checkout, &target, "another row"),
            (&checkout, &buyers, "the same number of another buyer"),
            (&rival, &foreign, "another merchant"),
        ] {
            let (own_pan, own_details) = (get(&db, id, "pan").await, get(&db, id, "details").await);
            set(&db, id, "pan", &sealed_pan).await;
            is_closed(&vault, caller, id, &secrets, what).await;
            // A masked read never opens the number.
            assert_eq!(reads(caller, id).await, 200, "{what}");
            set(&db, id, "pan", &own_pan).await;
            set(&db, id, "details", &sealed_details).await;
            assert_eq!(reads(caller, id).await, 500, "{what}");
            is_closed(&vault, caller, id, &secrets, what).await;
            set(&db, id, "details", &own_details).await;
            assert_eq!(reads(caller, id).await, 200, "{what}");
        }
        set(&db, &target, "pan", &get(&db, &target, "details").await).await;
        is_closed(&vault, &checkout, &target, &secrets, "details as a number").await;
        let own_details = get(&db, &source, "details").await;
        set(&db, &source, "details", &sealed_pan).await;
        assert_eq!(reads(&checkout, &source).await, 500);
        is_closed(&vault, &checkout, &source, &secrets, "a number as details").await;
        set(&db, &source, "details", &own_details).await;
        // The row itself moved to another merchant, or under another id.
        let moved = format!("UPDATE cards SET merchant = 'globex' WHERE card_id = '{source}'");
        assert_eq!(sql::execute(&db, &moved).await, 1);
        assert_eq!(reads(&rival, &source).await, 500);
        is_closed(&vault, &rival, &source, &secrets, "a row of another merchant").await;
        let back = format!("UPDATE cards SET merchant = 'acme' WHERE card_id = '{source}'");
        assert_eq!(sql::execute(&db, &back).await, 1);
        let name = "card_0123456789ABCDEFGHJKMNPQRSTVWXYZ";
        let renamed = format!("UPDATE cards SET card_id = '{name}' WHERE card_id = '{source}'");
        assert_eq!(sql::execute(&db, &renamed).await, 1);
        assert_eq!(reads(&checkout, name).await, 500);
        is_closed(&vault, &checkout, name, &secrets, "a row under another id").await;
        let back = format!("UPDATE cards SET card_id = '{source}' WHERE card_id = '{name}'");
        assert_eq!(sql::execute(&db, &back).await, 1);
        // Put back, it pays: nothing that failed has broken it.
        let paid = checkout.post("/v1/payments", &by_reference("CLOSED_2", "100", &source)).await.expect(200);
        assert_eq!(paid.text_at("/status"), "AUTHORIZED");
        vault.finish(&secrets).await;
    }

    /// A flipped bit anywhere, a cut, a byte more, nothing at all: closed, always with the same answer;
    /// the card beside it goes on.
    async fn an_altered_record_is_closed(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let (pan, other) = (fresh_pan(), fresh_pan());
        let secrets = [pan.as_str(), other.as_str()];
        let (damaged, whole) = (checkout.card(&pan).await, checkout.card(&other).await);
        for column in ["pan", "details"] {
            let good = get(&db, &damaged, column).await;
            let mut bad: Vec<Vec<u8>> = vec![Vec::new(), vec![0], good[..good.len() - 1].to_vec(), [&good[..], b"\0"].concat()];
            for place in (0..good.len()).step_by(5).chain([good.len() - 1]) {
                let mut flipped = good.clone();
                flipped[place] ^= 1 << (place % 8);
                bad.push(flipped);
            }
            for (n, record) in bad.iter().enumerate() {
                set(&db, &damaged, column, record).await;
                is_closed(&vault, &checkout, &damaged, &secrets, &format!("{column} {n}")).await;
                if column == "details" {
                    assert_eq!(reads(&checkout, &damaged).await, 500, "{n}");
                }
            }
            assert_eq!(reads(&checkout, &whole).await, 200);
            set(&db, &damaged, column, &good).await;
        }
        assert_eq!(reads(&checkout, &damaged).await, 200);
        for (n, id) in [&damaged, &whole].into_iter().enumerate() {
            let paid = checkout.post("/v1/payments", &by_reference(&format!("WHOLE_{n}"), "100", id)).await;
            assert_eq!(paid.expect(200).text_at("/status"), "AUTHORIZED");
        }
        vault.finish(&secrets).await;
    }

    /// Wrapped keys that were exchanged, a foreign keyring: the vault does not start, and says why.
    async fn a_vault_does_not_start_with_keys_that_are_not_its_own(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let pan = fresh_pan();
        let card_id = vault.client("checkout").card(&pan).await;
        vault.stop().await;
        let key = async |purpose: &str| {
            sql::bytes(&db, "data_keys", "wrapped", &format!("purpose = '{purpose}' AND state = 'active'")).await
        };
        let purposes = sql::rows(&db, "SELECT purpose FROM data_keys WHERE state = 'active' ORDER BY purpose").await;
        let purposes: Vec<String> = purposes.into_iter().map(|row| row[0].clone().unwrap()).collect();
        assert!(purposes.len() >= 3 && purposes.contains(&"card".to_owned()), "{purposes:?}");
        for purpose in &purposes {
            let own = key(purpose).await;
            let other = purposes.iter().find(|other| *other != purpose).unwrap();
            let mut flipped = own.clone();
            *flipped.last_mut().unwrap() ^= 1;
            for wrong in [key(other).await, flipped, Vec::new()] {
                let put = |bytes: &[u8]| {
                    let bytes = sql::literal(&db, bytes);
                    format!("UPDATE data_keys SET wrapped = {bytes} WHERE purpose = '{purpose}' AND state = 'active'")
                };
                assert_eq!(sql::execute(&db, &put(&wrong)).await, 1);
                let error = refused(&vault).await;
                assert!(error.contains("does not unwrap under the configured keyring"), "{error}");
                assert_eq!(sql::execute(&db, &put(&own)).await, 1);
            }
        }
        // The keyring of another vault.
        let keyring = vault.config.keys.keyring.clone();
        let elsewhere = vault.dir.path().join("keys/other.toml");
        let made = std::process::Command::new(env!("CARGO_BIN_EXE_cardvault"))
            .args(["keys", "init", "--keyring"])
            .arg(&elsewhere)
            .output()
            .unwrap();
        assert!(made.status.success());
        vault.config.keys.keyring = elsewhere;
        let error = refused(&vault).await;
        assert!(error.contains("does not unwrap under the configured keyring"), "{error}");
        vault.config.keys.keyring = keyring;
        // With its own, everything is as it was.
        vault.restart().await;
        let checkout = vault.client("checkout");
        let paid = checkout.post("/v1/payments", &by_reference("KEYS_1", "100", &card_id)).await;
        assert_eq!(paid.expect(200).text_at("/status"), "AUTHORIZED");
        vault.finish(&[&pan]).await;
    }
}

/// What a start that must fail says.
async fn refused(vault: &TestVault) -> String {
    match App::start(&vault.config).await {
        Ok(_) => panic!("it started"),
        Err(error) => format!("{error:#}"),
    }
}

/// A keyring that others can use, that is published, missing, damaged or no keyring: the file and the
/// mend are named, and nothing of what is in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyring_that_is_not_safe_stops_the_start() {
    let db = Database::sqlite();
    let mut vault = TestVault::start(&db).await;
    vault.stop().await;
    let keyring = vault.config.keys.keyring.clone();
    let good = std::fs::read_to_string(&keyring).unwrap();
    let mode = |path: &PathBuf, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for wrong in [0o644, 0o640, 0o604, 0o660, 0o602, 0o777] {
        mode(&keyring, wrong);
        let error = refused(&vault).await;
        assert!(error.contains("chmod 0600") && error.contains("keyring.toml"), "{wrong:o}: {error}");
    }
    mode(&keyring, 0o600);
    let key = good.lines().find(|line| line.trim_start().starts_with("key")).unwrap();
    let key = key.split('"').nth(1).unwrap();
    for (text, told) in [
        (include_str!("../../keys.example").to_owned(), "published key of keys.example"),
        (String::new(), "is not as in keys.example"),
        ("[[kek]]\n".to_owned(), "is not as in keys.example"),
        (good.replace("active", "actve"), "is not as in keys.example"),
        (good.replacen(&key[..4], if key.starts_with("AAAA") { "BBBB" } else { "AAAA" }, 1), ""),
        (good.replace(key, ""), ""),
        (good.replace(key, &key[..20]), ""),
        (format!("{good}{}", "#".repeat(70_000)), "larger than 64 KiB"),
    ] {
        std::fs::write(&keyring, &text).unwrap();
        let error = refused(&vault).await;
        assert!(error.contains(told) && error.contains("keyring.toml"), "{error}");
        assert!(!error.contains(&key[..12]), "the error repeats the key");
    }
    std::fs::remove_file(&keyring).unwrap();
    assert!(refused(&vault).await.contains("there is no such file"));
    std::fs::create_dir(&keyring).unwrap();
    assert!(refused(&vault).await.contains("not a regular file"));
    std::fs::remove_dir(&keyring).unwrap();
    std::fs::write(&keyring, &good).unwrap();
    mode(&keyring, 0o400);
    vault.restart().await;
    vault.client("checkout").get("/v1/cards").await.expect(200);
    vault.finish(&[key]).await;
}
