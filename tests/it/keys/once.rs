//! What may be there once is there once, also while the key changes by which it is known again.

use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::{id, number, status};
use crate::features::scenario;
use crate::support::notices::Posted;
use crate::support::vault::{TestVault, by_reference, fresh_pan};
use crate::support::{Database, eventually, sql};

/// PostgreSQL, which holds whoever has inserted such a row at his commit: that is when a deferred constraint is
/// looked at, and this one waits for a lock.
struct HeldCommit(PgConnection);

impl HeldCommit {
    async fn of(db: &Database, table: &str, condition: &str) -> Self {
        let function = "CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$";
        sql::execute(db, function).await;
        let trigger = format!(
            "CREATE CONSTRAINT TRIGGER wait_here AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION wait_here()"
        );
        sql::execute(db, &trigger).await;
        let mut connection = PgConnection::connect(&db.url).await.expect("connect");
        sqlx::query("SELECT pg_advisory_lock(1)").execute(&mut connection).await.expect("a lock");
        Self(connection)
    }

    async fn let_go(self) {
        self.0.close().await.expect("close");
    }
}

/// Whether somebody of this database waits for a lock.
async fn waits(db: &Database, condition: &str) -> bool {
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity \
         WHERE datname = current_database() AND wait_event_type = 'Lock' AND {condition}"
    );
    number(db, &waiting).await > 0
}

/// Tells something three times: what the first has stored is held at its commit, while the request-MAC key is
/// rotated and the second comes; the third comes after all of that.
async fn tell_around_a_rotation(
    db: &Database,
    vault: &TestVault,
    (table, column): (&str, &str),
    tell: impl AsyncFn(usize),
) {
    let key = id(&status(vault).await, "request_mac", "active");
    let held = HeldCommit::of(db, table, &format!("NEW.{column} = '{key}'")).await;
    let meanwhile = async {
        let at_commit = async || waits(db, "wait_event = 'advisory'").await.then_some(());
        eventually("the first to be held at its commit", at_commit).await;
        let rotate = ["keys", "rotate", "dek", "--purpose", "request-mac"];
        let mut rotation = vault.command(&rotate).stdout(Stdio::null()).spawn().expect("it runs");
        // Until it waits for the first, or has not done so.
        while rotation.try_wait().expect("a program").is_none()
            && !waits(db, "query LIKE 'UPDATE key_epoch%'").await
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The server would have followed by then.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let let_go = async {
            tokio::time::sleep(Duration::from_millis(1_000)).await;
            held.let_go().await;
        };
        tokio::join!(tell(2), let_go);
        assert!(rotation.wait().await.expect("a program").success());
    };
    tokio::join!(tell(1), meanwhile);
    assert_ne!(id(&status(vault).await, "request_mac", "active"), key);
    tell(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispute_that_comes_beside_a_rotation_is_told_once() {
    let name = "keys::once::a_dispute_that_comes_beside_a_rotation_is_told_once";
    let Some(db) = Database::postgres(name).await else { return };
    let vault = TestVault::start_notified(&db, &[]).await;
    let (caller, pan) = (vault.client("checkout"), fresh_pan());
    let card = caller.card(&pan).await;
    caller.post("/v1/payments", &by_reference("ONCE_1", "30000", &card)).await.expect(200);
    let result = json!({ "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "" });
    let told = json!({
        "notifyType": "DISPUTE_CREATED", "paymentRequestId": "ONCE_1", "disputeId": "D_1", "result": result,
    });
    let dispute = Posted::new(told.to_string());
    tell_around_a_rotation(&db, &vault, ("notices", "digest_key"), async |_| {
        dispute.send(&vault).await.expect(200);
    })
    .await;
    assert_eq!(number(&db, "SELECT count(*) FROM notices").await, 1);
    assert_eq!(number(&db, "SELECT count(*) FROM events WHERE kind LIKE 'dispute.%'").await, 1);
    vault.finish(&[&pan]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_comes_beside_a_rotation_is_one_card() {
    let name = "keys::once::a_token_that_comes_beside_a_rotation_is_one_card";
    let Some(db) = Database::postgres(name).await else { return };
    let vault = TestVault::start(&db).await;
    let caller = vault.client("checkout");
    tell_around_a_rotation(&db, &vault, ("cards", "token_digest_key"), async |n| {
        let mut body = scenario("cit_antom_token", &format!("ONCE_{n}"));
        body["paymentMethod"]["paymentMethodId"] = json!("ALIPAYonce0123456789==");
        caller.post("/v1/payments", &body.to_string()).await.expect(200);
    })
    .await;
    assert_eq!(number(&db, "SELECT count(*) FROM cards WHERE source = 'GATEWAY_TOKEN'").await, 1);
    vault.finish(&[]).await;
}
