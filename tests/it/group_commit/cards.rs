//! Cards.

use serde_json::Value;
use tokio::task::JoinSet;

use super::{GATHER, Held, commits};
use crate::support::sql::number;
use crate::support::vault::{Answer, Caller, TestVault, by_reference, fresh_pan};
use crate::support::wire::Wire;
use crate::support::{Database, Engine, eventually, sql};

fn body(pan: &str) -> String {
    format!(
        r#"{{"cardNo":"{pan}","expiryMonth":"12","expiryYear":"39","cardholderName":{{"firstName":"Tom","lastName":"Jay"}}}}"#
    )
}

/// Stores all at once; the answers in the order of the numbers.
fn store_all(caller: &Caller, pans: &[String]) -> JoinSet<(usize, Answer)> {
    let mut calls = JoinSet::new();
    for (place, pan) in pans.iter().cloned().enumerate() {
        let caller = caller.clone();
        calls.spawn(async move { (place, caller.post("/v1/cards", &body(&pan)).await) });
    }
    calls
}

async fn answers(calls: JoinSet<(usize, Answer)>) -> Vec<Answer> {
    let mut all = calls.join_all().await;
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, answer)| answer).collect()
}

/// Each card has its audit row and its event, and the trail is whole.
async fn assert_told(vault: &TestVault, db: &Database) {
    let cards = number(db, "SELECT COUNT(*) FROM cards").await;
    let rows = "SELECT COUNT(*) FROM audit WHERE action = 'card.store' AND outcome = 'done' \
         AND object IN (SELECT card_id FROM cards) AND actor = 'client:checkout' AND request_id IS NOT NULL";
    assert_eq!(number(db, rows).await, cards);
    let all = "SELECT COUNT(*) FROM audit WHERE action = 'card.store'";
    assert_eq!(number(db, all).await, cards, "a row tells of a card that is not there");
    let events = "SELECT COUNT(DISTINCT object_id) FROM events WHERE kind = 'card.stored'";
    assert_eq!(number(db, events).await, cards);
    let done = vault.run(&["audit", "verify"]).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

both_engines! {
    /// One of them is refused by the database itself: only its caller is told.
    async fn one_callers_failure_is_that_callers_alone(db: Database) {
        let vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let mut pans = vec![fresh_pan()];
        while pans.len() < 20 {
            let pan = fresh_pan();
            if pan[12..] != pans[0][12..] {
                pans.push(pan);
            }
        }
        pans.swap(0, 11);
        let poison = &pans[11][12..];
        sql::execute(&db, &match db.engine {
            Engine::Sqlite => format!(
                "CREATE TRIGGER poison BEFORE INSERT ON cards WHEN NEW.last4 = '{poison}' \
                 BEGIN SELECT RAISE(ABORT, 'poison'); END"
            ),
            Engine::Postgres => format!("ALTER TABLE cards ADD CONSTRAINT poison CHECK (last4 <> '{poison}')"),
        }).await;
        let held = Held::hold(&db, "cards").await;
        let calls = store_all(&caller, &pans);
        tokio::time::sleep(GATHER).await;
        held.release().await;
        for (place, answer) in answers(calls).await.into_iter().enumerate() {
            answer.expect(if place == 11 { 500 } else { 201 });
        }
        assert_eq!(number(&db, "SELECT COUNT(*) FROM cards").await, 19);
        assert_told(&vault, &db).await;
        vault.finish(&pans.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }

    /// Callers that hang up while their cards wait: theirs are stored all the same, and so are the others'.
    async fn a_hang_up_harms_nobody(db: Database) {
        let vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let (gone, staying): (Vec<String>, Vec<String>) = (0..8).map(|_| (fresh_pan(), fresh_pan())).unzip();
        let mut wires = Vec::new();
        for _ in &gone {
            wires.push(Wire::client(&vault, "checkout").await);
        }
        let held = Held::hold(&db, "cards").await;
        for (wire, pan) in wires.iter_mut().zip(&gone) {
            let body = body(pan);
            let head = format!(
                "POST /v1/cards HTTP/1.1\r\nhost: vault\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            wire.send(format!("{head}{body}").as_bytes()).await.expect("sent");
        }
        let calls = store_all(&caller, &staying);
        tokio::time::sleep(GATHER).await;
        drop(wires);
        tokio::time::sleep(GATHER / 4).await;
        held.release().await;
        for answer in answers(calls).await {
            answer.expect(201);
        }
        eventually("every card", async || {
            (number(&db, "SELECT COUNT(*) FROM cards").await == 16).then_some(())
        }).await;
        for answer in answers(store_all(&caller, &gone)).await {
            answer.expect(200);
        }
        assert_eq!(number(&db, "SELECT COUNT(*) FROM cards").await, 16);
        assert_told(&vault, &db).await;
        vault.finish(&[&gone[0], &staying[7]]).await;
    }

    /// The same number many times in one group, beside others: one card, which all get.
    async fn one_number_in_one_group_is_one_card(db: Database) {
        let vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let same = fresh_pan();
        let pans: Vec<String> = (0..24).map(|n| if n % 3 == 0 { fresh_pan() } else { same.clone() }).collect();
        let held = Held::hold(&db, "cards").await;
        let calls = store_all(&caller, &pans);
        tokio::time::sleep(GATHER).await;
        held.release().await;
        let answers = answers(calls).await;
        let of_same: Vec<&Answer> = answers.iter().zip(&pans).filter(|(_, pan)| **pan == same).map(|(it, _)| it).collect();
        assert_eq!(of_same.iter().filter(|answer| answer.status == 201).count(), 1);
        for answer in &of_same {
            assert!(matches!(answer.status, 200 | 201), "{}", answer.text);
            assert_eq!(answer.text_at("/cardId"), of_same[0].text_at("/cardId"));
            assert_eq!(answer.text_at("/fingerprint"), of_same[0].text_at("/fingerprint"));
        }
        assert_eq!(number(&db, "SELECT COUNT(*) FROM cards").await, 9);
        // A known card's details are written in groups too: here its owner's name changes in some of them.
        let mut calls = JoinSet::new();
        for n in 0..12 {
            let (caller, pan) = (caller.clone(), pans[3 * (n % 6)].clone());
            calls.spawn(async move {
                let text = body(&pan).replace("Tom", &format!("Tom {n}"));
                caller.post("/v1/cards", &text).await.expect(200)
            });
        }
        for answer in calls.join_all().await {
            assert!(answer.text_at("/cardholderName/firstName").starts_with("Tom "), "{}", answer.text);
        }
        assert_eq!(number(&db, "SELECT COUNT(*) FROM cards WHERE version >= 3").await, 7);
        assert_told(&vault, &db).await;
        vault.finish(&[&same]).await;
    }

    /// The keys change while a group waits: what was sealed before is not stored, and sealed again.
    async fn nothing_is_stored_under_keys_that_changed_meanwhile(db: Database) {
        let vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let rotated = vault.run(&["keys", "rotate", "dek"]).await;
        assert!(rotated.status.success(), "{}", String::from_utf8_lossy(&rotated.stderr));
        let first = fresh_pan();
        caller.card(&first).await;
        let pans: Vec<String> = (0..16).map(|_| fresh_pan()).collect();
        let mut held = Held::hold(&db, "cards").await;
        let calls = store_all(&caller, &pans);
        tokio::time::sleep(GATHER).await;
        // The key that seals retires, and the one before it seals again.
        let active = "purpose = 'card' AND state = 'active'";
        held.run("UPDATE data_keys SET state = 'was_old' WHERE purpose = 'card' AND state = 'decrypt_only'").await;
        held.run(&format!("UPDATE data_keys SET state = 'decrypt_only' WHERE {active}")).await;
        held.run("UPDATE data_keys SET state = 'active' WHERE state = 'was_old'").await;
        held.run("UPDATE key_epoch SET epoch = epoch + 1").await;
        held.release().await;
        for answer in answers(calls).await {
            answer.expect(201);
        }
        let status = vault.run(&["keys", "status", "--json"]).await;
        let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
        let rows = |state: &str| {
            let keys = status["keys"].as_array().expect("keys").iter();
            let mut keys = keys.filter(|key| key["purpose"] == "card" && key["state"] == state);
            keys.next().and_then(|key| key["rows"].as_u64()).expect("a key")
        };
        // The number and the details of a card are a record each.
        let one = rows("decrypt_only");
        assert_eq!(rows("active"), one * 16, "a card was stored under a key that had retired: {status}");
        assert_eq!(number(&db, "SELECT COUNT(*) FROM cards").await, 17);
        assert_told(&vault, &db).await;
        vault.finish(&[&first, &pans[0]]).await;
    }

    /// A CVV that comes with a new card is held from the moment at which the card is there.
    async fn a_cvv_is_stored_with_its_card(db: Database) {
        let vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let pans: Vec<String> = (0..6).map(|_| fresh_pan()).collect();
        let held = Held::hold(&db, "cards").await;
        let mut calls = JoinSet::new();
        for pan in pans.iter().chain(&pans) {
            let caller = caller.clone();
            let text = body(pan).replace("{\"cardNo\"", "{\"cvv\":\"123\",\"cardNo\"");
            calls.spawn(async move { caller.post("/v1/cards", &text).await });
        }
        tokio::time::sleep(GATHER).await;
        held.release().await;
        let answers = calls.join_all().await;
        assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 6);
        for answer in &answers {
            assert!(answer.text_at("/cvvHeldUntil").ends_with('Z'), "{}", answer.text);
        }
        // All are held where their rows say so: each pays with its CVV.
        let held = "SELECT COUNT(*) FROM audit WHERE action = 'cvv.hold'";
        assert_eq!(number(&db, held).await, 12);
        for (n, pan) in pans.iter().enumerate() {
            let card = caller.card(pan).await;
            let request = by_reference(&format!("HELD_{n}"), "100", &card);
            assert_eq!(caller.post("/v1/payments", &request).await.expect(200).text_at("/status"), "AUTHORIZED");
        }
        assert_eq!(number(&db, "SELECT COUNT(*) FROM payments WHERE had_sensitive = 1").await, 6);
        assert_told(&vault, &db).await;
        vault.finish(&[&pans[0]]).await;
    }
}

both_engines! {
    /// What waits goes together: PostgreSQL tells which rows one transaction stored, SQLite's log where one ends.
    async fn what_waits_is_stored_together(db: Database) {
        let vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let pans: Vec<String> = (0..32).map(|_| fresh_pan()).collect();
        let held = Held::hold(&db, "cards").await;
        let calls = store_all(&caller, &pans);
        tokio::time::sleep(2 * GATHER).await;
        let before = commits(&db, "cards").await;
        held.release().await;
        for answer in answers(calls).await {
            answer.expect(201);
        }
        let commits = commits(&db, "cards").await - before;
        assert!((1..=12).contains(&commits), "32 cards that waited took {commits} commits");
        assert_told(&vault, &db).await;
        vault.finish(&[&pans[0]]).await;
    }
}
