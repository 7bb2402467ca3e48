//! What the end of a key refuses, and the command that mends it, for every key of the vault.

use serde_json::json;

use super::custodians::share_files;
use super::{age_kek, id, ids, keys, refused, status, trail};
use crate::features::scenario;
use crate::support::vault::{Caller, TestVault, by_reference, fresh_pan};
use crate::support::{Database, eventually, sql};

/// Every purpose of a data key, and how it is rotated.
const ALL: [(&str, &str); 6] = [
    ("card", "rotate dek"),
    ("fingerprint", "rotate fingerprint"),
    ("request_mac", "rotate dek --purpose request-mac"),
    ("gateway_token", "rotate dek --purpose gateway-token"),
    ("audit", "rotate dek --purpose audit"),
    ("checkpoint", "rotate dek --purpose checkpoint"),
];

/// Puts the end of the keys in use that fit behind us.
async fn end(db: &Database, fit: &str) {
    let past = format!("UPDATE data_keys SET expires_at = created_at + 1 WHERE state = 'active' AND {fit}");
    assert!(sql::execute(db, &past).await > 0);
}

async fn run(vault: &TestVault, command: &str) -> String {
    keys(vault, &command.split(' ').collect::<Vec<_>>()).await
}

/// Whether what needs a key of this purpose is done; else it is refused as not available.
async fn works(vault: &TestVault, caller: &Caller, purpose: &str, card: &str) -> bool {
    let fresh = cardvault::base::ids::InstanceId::make().expect("entropy");
    let answer = match purpose {
        "request_mac" => {
            caller.post("/v1/payments", &by_reference(&format!("END_{fresh}"), "100", card)).await
        }
        "gateway_token" => {
            let mut body = scenario("cit_antom_token", &format!("END_{fresh}"));
            body["paymentMethod"]["paymentMethodId"] = json!(format!("ALIPAY{fresh}=="));
            caller.post("/v1/payments", &body.to_string()).await
        }
        "checkpoint" => {
            let out = vault.dir.path().join(format!("{fresh}.jsonl"));
            let out = out.to_str().expect("UTF-8");
            let (code, said) = vault.told(&["cards", "report", "--out", out]).await;
            assert!(code == Some(0) || said.contains("keys rotate dek --purpose checkpoint"), "{said}");
            return code == Some(0);
        }
        _ => {
            let body = format!(r#"{{"cardNo":"{}","expiryMonth":"12","expiryYear":"29"}}"#, fresh_pan());
            caller.post("/v1/cards", &body).await
        }
    };
    assert!(matches!(answer.status, 200 | 201 | 503), "{purpose}: {}", answer.text);
    answer.status != 503
}

both_engines! {
    /// Past its end a key of any purpose makes nothing more, and all that it made is still read; `keys status`
    /// names the command, after which a server that runs goes on.
    async fn each_key_past_its_end_is_named_and_mended(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let pan = fresh_pan();
        let card = vault.client("checkout").card(&pan).await;
        for (purpose, command) in ALL {
            let caller = vault.client("checkout");
            assert!(works(&vault, &caller, purpose, &card).await, "{purpose} before its end");
            let old = id(&status(&vault).await, purpose, "active");
            end(&db, &format!("purpose = '{purpose}'")).await;
            vault.restart().await;
            let caller = vault.client("checkout");
            caller.get(&format!("/v1/cards/{card}")).await.expect(200);
            assert!(!works(&vault, &caller, purpose, &card).await, "{purpose} past its end");
            let said = keys(&vault, &["status"]).await;
            let warned = said.lines().find(|line| line.starts_with(&format!("WARNING {old}"))).expect("a warning");
            assert!(warned.ends_with(&format!("run `cardvault keys {command}`")), "{warned}");
            run(&vault, command).await;
            let now = status(&vault).await;
            assert_eq!(ids(&now, purpose, "decrypt_only"), [old], "{purpose}");
            assert_eq!(ids(&now, purpose, "active").len(), 1, "{purpose}");
            let mended = async || works(&vault, &caller, purpose, &card).await.then_some(());
            eventually("the new key to be used", mended).await;
            assert_eq!(caller.card(&pan).await, card, "{purpose}");
        }
        vault.stop().await;
        let (code, said) = vault.told(&["audit", "verify"]).await;
        assert_eq!(code, Some(0), "{said}");
        vault.finish(&[&pan]).await;
    }

    /// Every row of the trail is a use of the audit key, every checkpoint and report one of the checkpoint key:
    /// both are shown, and the last use is the last.
    async fn the_uses_of_the_trails_keys_are_counted_and_end(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let pan = fresh_pan();
        let card = vault.client("checkout").card(&pan).await;
        assert!(works(&vault, &vault.client("checkout"), "checkpoint", &card).await);
        vault.stop().await;
        let shown = status(&vault).await;
        let uses = |purpose: &str| {
            let all = shown["keys"].as_array().expect("keys");
            all.iter().find(|key| key["purpose"] == purpose).and_then(|key| key["uses"].as_u64()).expect("a count")
        };
        let written = sql::rows(&db, "SELECT CAST(COUNT(*) AS TEXT) FROM audit").await;
        let written: u64 = written[0][0].as_deref().and_then(|text| text.parse().ok()).expect("a number");
        // A row that was taken back and a checkpoint's digest are uses too.
        assert!(uses("audit") >= written, "{written}: {shown}");
        assert!(uses("checkpoint") >= 2, "{shown}");

        // What seals is spent by then; a trail goes on.
        let seals = i64::from(u32::MAX / 2 + 1);
        sql::execute(&db, &format!("UPDATE data_keys SET uses = {seals} WHERE purpose = 'audit'")).await;
        vault.restart().await;
        assert!(works(&vault, &vault.client("checkout"), "audit", &card).await);
        let spent = 1_i64 << 48;
        sql::execute(&db, &format!("UPDATE data_keys SET uses = {spent} - 25 WHERE purpose = 'audit'")).await;
        vault.restart().await;
        let caller = vault.client("checkout");
        let mut stored = 0;
        while works(&vault, &caller, "audit", &card).await {
            stored += 1;
            assert!(stored <= 25, "its uses are spent, and it makes more rows");
        }
        let said = keys(&vault, &["status"]).await;
        assert!(said.contains("run `cardvault keys rotate dek --purpose audit`"), "{said}");
        keys(&vault, &["rotate", "dek", "--purpose", "audit"]).await;
        let mended = async || works(&vault, &caller, "audit", &card).await.then_some(());
        eventually("the new key to be used", mended).await;
        vault.finish(&[&pan]).await;
    }

    /// A vault that was switched off until every key was past its end: each command says which one comes
    /// before it, and together they bring the vault back, with every step in the trail.
    async fn a_vault_that_was_off_beyond_every_end_comes_back_by_commands(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let pan = fresh_pan();
        let card = vault.client("checkout").card(&pan).await;
        vault.stop().await;
        end(&db, "1 = 1").await;
        age_kek(&vault);
        // Nothing can be recorded, so nothing is done, and the mend is named.
        for command in ["rotate kek", "rotate dek", "rotate fingerprint", "reencrypt"] {
            let said = refused(&vault, &command.split(' ').collect::<Vec<_>>()).await;
            assert!(said.contains("run `cardvault keys rotate dek --purpose audit`"), "{command}: {said}");
        }
        run(&vault, "rotate dek --purpose audit").await;
        for command in ["rotate dek", "rotate dek --purpose audit", "rotate fingerprint"] {
            let said = refused(&vault, &command.split(' ').collect::<Vec<_>>()).await;
            assert!(said.contains("run `cardvault keys rotate kek` first"), "{command}: {said}");
        }
        run(&vault, "rotate kek").await;
        for (_, command) in ALL.into_iter().filter(|(purpose, _)| *purpose != "audit") {
            run(&vault, command).await;
        }
        let said = keys(&vault, &["status"]).await;
        assert!(!said.contains("WARNING"), "{said}");
        let now = status(&vault).await;
        let rows = trail(&vault).await;
        for (purpose, _) in ALL {
            let new = id(&now, purpose, "active");
            let row = rows.iter().find(|row| row["action"] == "keys.rotate" && row["object"] == new.as_str());
            let row = row.unwrap_or_else(|| panic!("{purpose}: {rows:#?}"));
            assert_eq!(row["keyId"], id(&now, "audit", "active").as_str(), "{row}");
        }
        let (code, said) = vault.told(&["audit", "verify"]).await;
        assert_eq!(code, Some(0), "{said}");
        vault.restart().await;
        let caller = vault.client("checkout");
        assert_eq!(caller.card(&pan).await, card);
        for (purpose, _) in ALL {
            assert!(works(&vault, &caller, purpose, &card).await, "{purpose}");
        }
        vault.finish(&[&pan]).await;
    }

    /// With a split KEK, the shares that bring a new audit key are recorded under that key, since the old one
    /// records nothing.
    async fn custodians_bring_a_new_audit_key(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let folder = vault.dir.path().join("shares");
        std::fs::create_dir(&folder).expect("a folder");
        let out = folder.to_str().expect("UTF-8").to_owned();
        let kek = id(&status(&vault).await, "kek", "active");
        keys(&vault, &["split", "--shares", "2", "--threshold", "2", "--out", &out]).await;
        vault.stop().await;
        end(&db, "1 = 1").await;
        let files = share_files(&folder, &kek);
        let [one, two] = [0, 1].map(|n| files[n].to_str().expect("UTF-8").to_owned());
        let shares = ["--share-file", &one, "--share-file", &two];
        let with = |command: &'static str| command.split(' ').chain(shares).collect::<Vec<_>>();
        let said = refused(&vault, &with("rotate dek")).await;
        assert!(said.contains("run `cardvault keys rotate dek --purpose audit`"), "{said}");
        keys(&vault, &with("rotate dek --purpose audit")).await;
        let new = id(&status(&vault).await, "audit", "active");
        let all = trail(&vault).await;
        let brought: Vec<_> = all.iter().filter(|row| row["action"] == "keys.share").collect();
        assert_eq!(brought.len(), 2, "{all:#?}");
        assert!(brought.iter().all(|row| row["keyId"] == new.as_str() && row["outcome"] == "done"), "{brought:#?}");
        keys(&vault, &with("combine")).await;
        vault.finish(&[]).await;
    }
}
