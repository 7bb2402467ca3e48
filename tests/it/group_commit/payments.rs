//! Payments: one goes alone, and those that come meanwhile go together, when they are recorded and when they are
//! settled.

use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;

use super::{GATHER, Held, commits};
use crate::support::gateway::{Reply, paid};
use crate::support::sql::number;
use crate::support::vault::{Answer, Caller, TestVault, by_reference, fresh_pan};
use crate::support::wire::Wire;
use crate::support::{Database, Engine, eventually, sql};

/// Pays with all requests at once; the answers in their order.
fn pay_all(caller: &Caller, requests: Vec<String>) -> JoinSet<(usize, Answer)> {
    let mut calls = JoinSet::new();
    for (place, request) in requests.into_iter().enumerate() {
        let caller = caller.clone();
        calls.spawn(async move { (place, caller.post("/v1/payments", &request).await) });
    }
    calls
}

async fn answers(calls: JoinSet<(usize, Answer)>) -> Vec<Answer> {
    let mut all = calls.join_all().await;
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, answer)| answer).collect()
}

fn requests(card: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| by_reference(&format!("PAY_{n}"), &(100 + n).to_string(), card)).collect()
}

/// Each payment has its rows and its event, no other has, and the trail is whole.
async fn assert_told(vault: &TestVault, db: &Database, paid: i64) {
    for sql in [
        "SELECT COUNT(*) FROM payments WHERE status = 'AUTHORIZED' AND outgoing IS NULL AND answer IS NOT NULL",
        "SELECT COUNT(*) FROM audit WHERE action = 'payment.create' AND actor = 'client:checkout' \
         AND request_id IS NOT NULL",
        "SELECT COUNT(DISTINCT object) FROM audit WHERE action = 'payment.create'",
        "SELECT COUNT(*) FROM audit WHERE action = 'payment.change' AND detail = 'AUTHORIZED by pay'",
        "SELECT COUNT(DISTINCT object) FROM audit WHERE action = 'payment.change'",
        "SELECT COUNT(*) FROM events WHERE kind = 'payment.authorized'",
        "SELECT COUNT(DISTINCT object_id) FROM events WHERE kind = 'payment.authorized'",
    ] {
        assert_eq!(number(db, sql).await, paid, "{sql}");
    }
    let done = vault.run(&["audit", "verify"]).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

/// Lets what waits for a table go, and tells in how many commits of that table's it went, once `sql` counts as many
/// as are expected.
async fn let_go(db: &Database, held: Held, table: &str, sql: &str, expected: i64) -> i64 {
    let before = commits(db, table).await;
    held.release().await;
    eventually("what waited", async || (number(db, sql).await == expected).then_some(())).await;
    let after = commits(db, table).await;
    match db.engine {
        Engine::Sqlite => after - before,
        // All rows have been written since.
        Engine::Postgres => after,
    }
}

both_engines! {
    /// They wait twice: to be recorded, and for their answers to be.
    async fn what_waits_goes_together(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let caller = vault.client("checkout");
        let pan = fresh_pan();
        let card = caller.card(&pan).await;
        gateway.on(|call| Reply::Held(Box::new(paid(call))));
        let held = Held::hold(&db, "payments").await;
        let calls = pay_all(&caller, requests(&card, 24));
        tokio::time::sleep(2 * GATHER).await;
        let recorded = "SELECT COUNT(*) FROM audit WHERE action = 'payment.create'";
        let creates = let_go(&db, held, "payments", recorded, 24).await;
        assert!((1..=8).contains(&creates), "24 payments that waited took {creates} commits");
        gateway.wait_for_pays(24).await;
        let held = Held::hold(&db, "payments").await;
        gateway.release();
        tokio::time::sleep(GATHER).await;
        let settled = "SELECT COUNT(*) FROM audit WHERE action = 'payment.change'";
        let changes = let_go(&db, held, "payments", settled, 24).await;
        assert!((1..=8).contains(&changes), "24 answers that waited took {changes} commits");
        for (n, answer) in answers(calls).await.into_iter().enumerate() {
            let answer = answer.expect(200);
            assert_eq!(answer.text_at("/paymentRequestId"), format!("PAY_{n}"));
            assert_eq!(answer.text_at("/paymentAmount/value"), (100 + n).to_string());
            assert_eq!(answer.text_at("/status"), "AUTHORIZED");
        }
        assert_eq!(gateway.pays().len(), 24);
        assert_told(&vault, &db, 24).await;
        vault.finish(&[&pan]).await;
    }

    /// One of them is refused by the database itself, and the card of two is gone meanwhile: only their callers are
    /// told, and nothing of theirs is sent.
    async fn one_callers_failure_is_that_callers_alone(db: Database) {
        let vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let (pan, gone) = (fresh_pan(), fresh_pan());
        let (card, gone_card) = (caller.card(&pan).await, caller.card(&gone).await);
        let mut all = requests(&card, 16);
        for place in [4, 12] {
            all[place] = by_reference(&format!("PAY_{place}"), "100", &gone_card);
        }
        all[9] = by_reference("PAY_9", "66600", &card);
        sql::execute(&db, match db.engine {
            Engine::Sqlite => "CREATE TRIGGER poison BEFORE INSERT ON payments WHEN NEW.amount = '66600' \
                 BEGIN SELECT RAISE(ABORT, 'poison'); END",
            Engine::Postgres => "ALTER TABLE payments ADD CONSTRAINT poison CHECK (amount <> '66600')",
        }).await;
        let mut held = Held::hold(&db, "payments").await;
        let calls = pay_all(&caller, all);
        tokio::time::sleep(GATHER).await;
        held.run(&format!("UPDATE cards SET erased_at = 1 WHERE card_id = '{gone_card}'")).await;
        held.release().await;
        for (place, answer) in answers(calls).await.into_iter().enumerate() {
            let id = format!("PAY_{place}");
            match place {
                4 | 12 => drop(answer.expect_problem(404, "not_found")),
                9 => drop(answer.expect(500)),
                _ => assert_eq!(answer.expect(200).text_at("/status"), "AUTHORIZED"),
            }
            assert_eq!(vault.charges(&id), usize::from(!matches!(place, 4 | 9 | 12)), "{id}");
        }
        assert_eq!(number(&db, "SELECT COUNT(*) FROM payments").await, 13);
        assert_told(&vault, &db, 13).await;
        vault.finish(&[&pan, &gone]).await;
    }

    /// One id many times, in one group and across groups, beside others: one charge, which all are told of.
    async fn one_id_is_one_charge(db: Database) {
        let vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let pan = fresh_pan();
        let card = caller.card(&pan).await;
        let all: Vec<String> = (0..24)
            .map(|n| by_reference(&if n % 3 == 0 { "SAME".to_owned() } else { format!("PAY_{n}") }, "100", &card))
            .collect();
        let held = Held::hold(&db, "payments").await;
        let calls = pay_all(&caller, all);
        tokio::time::sleep(GATHER).await;
        held.release().await;
        for answer in answers(calls).await {
            // Who comes second is told how far it got.
            assert!(matches!(answer.status, 200 | 202), "{}", answer.text);
        }
        eventually("all to be settled", async || {
            (number(&db, "SELECT COUNT(*) FROM payments WHERE status = 'AUTHORIZED'").await == 17).then_some(())
        }).await;
        assert_eq!(vault.charges("SAME"), 1);
        assert_told(&vault, &db, 17).await;
        vault.finish(&[&pan]).await;
    }

    /// Callers that hang up while their payments wait: theirs go on, each to its one charge, and so do the others'.
    async fn a_hang_up_harms_nobody(db: Database) {
        let vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let pan = fresh_pan();
        let card = caller.card(&pan).await;
        let mut wires = Vec::new();
        for _ in 0..8 {
            wires.push(Wire::client(&vault, "checkout").await);
        }
        let held = Held::hold(&db, "payments").await;
        for (n, wire) in wires.iter_mut().enumerate() {
            let body = by_reference(&format!("GONE_{n}"), "100", &card);
            let head = format!(
                "POST /v1/payments HTTP/1.1\r\nhost: vault\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            wire.send(format!("{head}{body}").as_bytes()).await.expect("sent");
        }
        let calls = pay_all(&caller, requests(&card, 8));
        tokio::time::sleep(GATHER).await;
        drop(wires);
        tokio::time::sleep(GATHER / 4).await;
        held.release().await;
        for answer in answers(calls).await {
            assert_eq!(answer.expect(200).text_at("/status"), "AUTHORIZED");
        }
        eventually("every payment", async || {
            (number(&db, "SELECT COUNT(*) FROM payments WHERE status = 'AUTHORIZED'").await == 16).then_some(())
        }).await;
        for n in 0..8 {
            assert_eq!(vault.charges(&format!("GONE_{n}")), 1);
        }
        assert_told(&vault, &db, 16).await;
        vault.finish(&[&pan]).await;
    }
}

/// Another process stands still in the midst of a transaction: who waits for its rows keeps nobody else waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_another_holds_are_their_callers_trouble() {
    let name = "group_commit::payments::rows_that_another_holds_are_their_callers_trouble";
    let Some(db) = Database::postgres(name).await else { return };
    let (vault, gateway) = TestVault::start_scripted(&db).await;
    let caller = vault.client("checkout");
    let pan = fresh_pan();
    let card = caller.card(&pan).await;
    gateway.on(|call| Reply::Held(Box::new(paid(call))));
    let calls = pay_all(&caller, requests(&card, 16));
    gateway.wait_for_pays(16).await;
    let mut other = PgConnection::connect(&db.url).await.expect("connect");
    let rows = "SELECT 1 FROM payments WHERE payment_request_id IN ('PAY_3', 'PAY_7') FOR UPDATE";
    for statement in ["BEGIN", rows] {
        sqlx::query(statement).execute(&mut other).await.expect("a statement");
    }
    gateway.release();
    let settled = "SELECT COUNT(*) FROM payments WHERE status = 'AUTHORIZED'";
    eventually("the others to be settled", async || (number(&db, settled).await == 14).then_some(())).await;
    sqlx::query("COMMIT").execute(&mut other).await.expect("a statement");
    eventually("all to be settled", async || (number(&db, settled).await == 16).then_some(())).await;
    for (place, answer) in answers(calls).await.into_iter().enumerate() {
        if !matches!(place, 3 | 7) {
            assert_eq!(answer.expect(200).text_at("/status"), "AUTHORIZED");
        }
    }
    assert_eq!(gateway.pays().len(), 16);
    vault.finish(&[&pan]).await;
}
