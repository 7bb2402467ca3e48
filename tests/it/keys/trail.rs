//! Key changes and their audit rows: one transaction for both, and a row for each refusal.

use serde_json::Value;

use super::{data_keys, id, ids, keys, refused, rows, status, trail};
use crate::support::vault::{TestVault, fresh_pan};
use crate::support::{Database, Engine, sql};

/// Has the database refuse audit rows whose detail is like this.
pub(super) async fn refuse_rows(db: &Database, like: &str) {
    let rule = match db.engine {
        Engine::Sqlite => format!(
            "CREATE TRIGGER no_row BEFORE INSERT ON audit WHEN NEW.detail LIKE '{like}' \
             BEGIN SELECT RAISE(ABORT, 'on purpose'); END"
        ),
        Engine::Postgres => {
            format!("ALTER TABLE audit ADD CONSTRAINT no_row CHECK (detail NOT LIKE '{like}') NOT VALID")
        }
    };
    sql::execute(db, &rule).await;
}

pub(super) async fn take_rows(db: &Database) {
    let rule = match db.engine {
        Engine::Sqlite => "DROP TRIGGER no_row",
        Engine::Postgres => "ALTER TABLE audit DROP CONSTRAINT no_row",
    };
    sql::execute(db, rule).await;
}

/// The rows of an action on an object: outcome and detail.
fn told(all: &[Value], action: &str, object: &str) -> Vec<(String, String)> {
    let of = all.iter().filter(|row| row["action"] == action && row["object"] == object);
    of.map(|row| {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        assert!(text("actor") == "vault" || text("actor").starts_with("cli:uid-"), "{row}");
        (text("outcome"), text("detail"))
    })
    .collect()
}

both_engines! {
    /// What was done to a key has one row with its id; what was refused has one that says so.
    async fn every_change_of_a_key_and_every_refusal_has_its_row(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let pan = fresh_pan();
        let card = vault.client("checkout").card(&pan).await;
        let first = status(&vault).await;
        let all = trail(&vault).await;
        for purpose in cardvault::crypto::keyring::Purpose::ALL {
            let key = id(&first, purpose.as_str(), "active");
            let detail = format!("the first {} key", purpose.as_str());
            assert_eq!(told(&all, "keys.make", &key), [("done".to_owned(), detail)]);
        }
        let (old, kek) = (id(&first, "card", "active"), id(&first, "kek", "active"));
        refused(&vault, &["destroy", &old]).await;
        keys(&vault, &["rotate", "dek"]).await;
        refused(&vault, &["destroy", &old]).await;
        keys(&vault, &["reencrypt"]).await;
        keys(&vault, &["destroy", &old]).await;
        refused(&vault, &["destroy", &kek]).await;
        keys(&vault, &["rotate", "kek"]).await;
        keys(&vault, &["destroy", &kek]).await;
        keys(&vault, &["rotate", "fingerprint"]).await;
        refused(&vault, &["rotate", "fingerprint"]).await;
        let now = status(&vault).await;
        let all = trail(&vault).await;
        let is = |rows: &[(String, String)], expected: &[(&str, &str)]| {
            let fits = |(row, (outcome, detail)): (&(String, String), &(&str, &str))| row.0 == *outcome && row.1.contains(detail);
            assert!(rows.len() == expected.len() && rows.iter().zip(expected).all(fits), "{expected:?}: {rows:?}");
        };
        is(&told(&all, "keys.destroy", &old), &[
            ("refused", "only a key that was rotated away"), ("refused", "records are sealed under it"), ("done", "a card key"),
        ]);
        is(&told(&all, "keys.rotate", &id(&now, "card", "active")), &[("done", &format!("the card key; before it {old}"))]);
        is(&told(&all, "keys.destroy", &kek), &[("refused", "is in use"), ("done", "begun"), ("done", "a kek")]);
        let new = id(&now, "kek", "active");
        is(&told(&all, "keys.rotate", &new), &[("done", &format!("6 data keys are wrapped under it anew; before it {kek}"))]);
        is(&told(&all, "keys.rotate", &id(&now, "fingerprint", "active")), &[("done", "announced"), ("done", "the fingerprint key; before it")]);
        is(&told(&all, "keys.rotate", "fingerprint"), &[("refused", "is still kept")]);
        vault.restart().await;
        assert_eq!(vault.client("checkout").card(&pan).await, card);
        vault.stop().await;
        let (code, said) = vault.told(&["audit", "verify"]).await;
        assert!(code == Some(0) && !said.contains("open "), "{said}");
        vault.finish(&[&pan]).await;
    }

    /// Where its row cannot be written, no key changes; where it can again, the same command does it.
    async fn without_its_row_no_key_changes(db: Database) {
        let vault = TestVault::start(&db).await;
        let pan = fresh_pan();
        let caller = vault.client("checkout");
        let card = caller.card(&pan).await;
        let before = status(&vault).await;
        let (kek, dek) = (id(&before, "kek", "active"), id(&before, "card", "active"));
        let fingerprint = id(&before, "fingerprint", "active");

        refuse_rows(&db, "the card key%").await;
        refused(&vault, &["rotate", "dek"]).await;
        assert_eq!(id(&status(&vault).await, "card", "active"), dek);
        take_rows(&db).await;
        keys(&vault, &["rotate", "dek"]).await;
        keys(&vault, &["reencrypt"]).await;

        refuse_rows(&db, "a card key").await;
        refused(&vault, &["destroy", &dek]).await;
        assert_eq!(id(&status(&vault).await, "card", "decrypt_only"), dek);
        take_rows(&db).await;
        keys(&vault, &["destroy", &dek]).await;

        refuse_rows(&db, "begun; before it kek_%").await;
        refused(&vault, &["rotate", "kek"]).await;
        assert_eq!(ids(&status(&vault).await, "kek", "entered").len(), 0);
        take_rows(&db).await;
        refuse_rows(&db, "%are wrapped under it anew%").await;
        refused(&vault, &["rotate", "kek"]).await;
        let half = status(&vault).await;
        assert_eq!(rows(&half, &kek), data_keys(), "{half}");
        take_rows(&db).await;
        let said = keys(&vault, &["rotate", "kek"]).await;
        assert!(said.contains("finished the rotation"), "{said}");
        assert_eq!(rows(&status(&vault).await, &kek), 0);

        refuse_rows(&db, "announced as%").await;
        refused(&vault, &["rotate", "fingerprint"]).await;
        assert_eq!(ids(&status(&vault).await, "fingerprint", "next").len(), 0);
        take_rows(&db).await;
        refuse_rows(&db, "the fingerprint key; before%").await;
        refused(&vault, &["rotate", "fingerprint"]).await;
        let half = status(&vault).await;
        assert_eq!((id(&half, "fingerprint", "active"), ids(&half, "fingerprint", "next").len()), (fingerprint, 1));
        take_rows(&db).await;
        keys(&vault, &["rotate", "fingerprint"]).await;

        assert_eq!(caller.card(&pan).await, card);
        vault.finish(&[&pan]).await;
    }
}
