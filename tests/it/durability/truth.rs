//! When everything is over: is what was acknowledged true, is nothing there twice, and does the gateway's
//! ledger say the same?

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cardvault::sandbox::{LedgerEntry, Status};
use serde_json::Value;
use tokio::task::JoinSet;

use super::load::{Asked, Book};
use crate::support::sql::number;
use crate::support::vault::{TestVault, by_reference};
use crate::support::{Database, eventually, feed_fits, sql};

/// Serves in this process, with a reconciler for which a quarter of an hour has passed, until nothing is
/// unclear.
pub async fn settle(vault: &mut TestVault, db: &Database) {
    vault.policy.inquiry_pauses = vec![Duration::from_secs(3600)];
    // What a look left undone, on a machine that is too busy, is soon taken again.
    vault.policy.look_lease = Duration::from_secs(10);
    vault.stop().await;
    // Its sender's time is over, and what left so long ago can be taken for absent; no dead process has a lease.
    let later = "sent_at = sent_at - 1000000, lease_owner = NULL, lease_until = NULL";
    sql::execute(db, &format!("UPDATE payments SET created_at = created_at - 100000, {later}")).await;
    sql::execute(db, &format!("UPDATE operations SET {later}")).await;
    vault.restart().await;
    let give_up = tokio::time::Instant::now() + Duration::from_secs(180);
    loop {
        for open in ["payments SET next_look = 0 WHERE status IN ('UNKNOWN', 'PROCESSING')", OPERATIONS] {
            sql::execute(db, &format!("UPDATE {open}")).await;
        }
        let unclear = count(db, UNCLEAR).await;
        if unclear == 0 {
            return;
        }
        if tokio::time::Instant::now() > give_up {
            let left = sql::rows(db, LEFT).await;
            panic!("{unclear} stay unclear: {left:?}");
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

const OPERATIONS: &str = "operations SET next_look = 0 WHERE status IN ('UNKNOWN', 'PROCESSING')";
const UNCLEAR: &str = "SELECT (SELECT count(*) FROM payments WHERE status IN ('UNKNOWN', 'PROCESSING')) \
     + (SELECT count(*) FROM operations WHERE status IN ('UNKNOWN', 'PROCESSING'))";

const LEFT: &str = "SELECT payment_request_id, status, cancel_state, CAST(looks AS TEXT), CAST(lease_until AS TEXT) \
     FROM payments WHERE status IN ('UNKNOWN', 'PROCESSING') UNION ALL \
     SELECT request_id, status, kind, CAST(looks AS TEXT), CAST(lease_until AS TEXT) \
     FROM operations WHERE status IN ('UNKNOWN', 'PROCESSING')";

/// How many a query counts.
pub async fn count(db: &Database, query: &str) -> usize {
    usize::try_from(number(db, query).await).expect("a count")
}

/// Compares everything with everything; what was compared, in words.
pub async fn compare(vault: &mut TestVault, db: &Database, book: &Arc<Book>) -> String {
    // The gateway's books as they are on its disk.
    vault.restart_sandbox().await;
    let mut wrong = Vec::new();
    repeat_all(vault, book).await;
    let (payments, charges) = payments(vault, db, book, &mut wrong).await;
    let operations = operations(vault, db, book, &mut wrong).await;
    let (plain, lost) = cards(vault, book).await;
    wrong.extend(lost);
    let told = feed(vault, db, &mut wrong).await;
    wrong.append(&mut book.notes().wrong);
    // Everything that was asked for was asked for again, so that all of it is there, once.
    let stored = count(db, "SELECT count(*) FROM cards").await;
    let distinct =
        count(db, "SELECT count(DISTINCT fingerprint) FROM cards WHERE fingerprint IS NOT NULL").await;
    let typed: BTreeSet<String> = book.notes().typed.iter().cloned().collect();
    let by_hand = count(db, "SELECT count(*) FROM cards WHERE buyer = ''").await;
    if stored != distinct || by_hand != plain || stored > plain + typed.len() {
        wrong.push(format!("{stored} cards, {distinct} numbers, {by_hand} of {} that were stored", plain));
    }
    for (action, table) in [("card.store", "cards"), ("payment.create", "payments")] {
        let rows = count(db, &format!("SELECT count(*) FROM audit WHERE action = '{action}'")).await;
        let there = count(db, &format!("SELECT count(*) FROM {table}")).await;
        if rows != there {
            wrong.push(format!("{there} {table}, and the audit trail has {rows} {action}"));
        }
    }
    vault.stop().await;
    let verified = vault.run(&["audit", "verify"]).await;
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    if !verified.status.success() {
        wrong.push(format!("{said}{}", String::from_utf8_lossy(&verified.stderr)));
    }
    assert!(wrong.is_empty(), "{} wrong, of which: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
    let chains = said.lines().filter(|line| line.starts_with("open")).count();
    format!(
        "{} acknowledged calls; {} cards that were stored and {} that were typed, {payments} payments ({charges} charged), {operations} captures and refunds, {told} events, {chains} audit chains cut off: 0 lost, 0 twice",
        book.answers(),
        plain,
        typed.len(),
    )
}

fn texts<const N: usize>(row: Vec<Option<String>>) -> [String; N] {
    let texts: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
    texts.try_into().expect("as many columns")
}

fn of(status: Status) -> &'static str {
    match status {
        Status::Success => "AUTHORIZED",
        Status::Fail => "FAILED",
        Status::Processing => "still open at the gateway",
        Status::Cancelled => "CANCELLED",
    }
}

/// The states, in an order in which each may still become the next.
fn may_become(told: &str, now: &str) -> bool {
    matches!(told, "UNKNOWN" | "PROCESSING") || told == now
}

fn check_told(name: &str, asked: &Asked, now: Option<&str>, wrong: &mut Vec<String>) {
    for told in &asked.told {
        if !now.is_some_and(|now| may_become(told, now)) {
            wrong.push(format!("{name}: told {told}, and is {now:?}"));
        }
    }
}

async fn payments(vault: &TestVault, db: &Database, book: &Book, wrong: &mut Vec<String>) -> (usize, usize) {
    let mut ledger: BTreeMap<String, LedgerEntry> = BTreeMap::new();
    for entry in vault.sandbox.ledger() {
        if let Some(twice) = ledger.insert(entry.payment_request_id.clone(), entry) {
            wrong.push(format!("{}: two payments at the gateway", twice.payment_request_id));
        }
    }
    let query = "SELECT payment_request_id, status, CAST(refund_reserved AS TEXT), CAST(captured AS TEXT), \
         CAST(manual_capture AS TEXT) FROM payments";
    let mut known = BTreeMap::new();
    for row in sql::rows(db, query).await {
        let [id, status, refunded, captured, manual] = texts(row);
        let at_gateway = ledger.get(&id);
        let expected = at_gateway.map_or("FAILED", |entry| of(entry.status));
        if status != expected {
            wrong.push(format!("{id}: is {status}, and at the gateway {expected}"));
        }
        if let Some(entry) = at_gateway {
            let sums = (entry.refunded().to_string(), entry.captured().to_string());
            if refunded != sums.0 || (manual == "1" && captured != sums.1) {
                wrong
                    .push(format!("{id}: refunded {refunded}, captured {captured}; at the gateway {sums:?}"));
            }
        }
        known.insert(id, status);
    }
    let notes = book.notes();
    for id in ledger.keys().filter(|id| !known.contains_key(*id)) {
        wrong.push(format!("{id}: at the gateway, and not known here"));
    }
    for id in known.keys().filter(|id| !notes.payments.contains_key(*id)) {
        wrong.push(format!("{id}: nobody asked for it"));
    }
    for (id, asked) in &notes.payments {
        check_told(id, asked, known.get(id).map(String::as_str), wrong);
    }
    (known.len(), ledger.values().filter(|entry| entry.charged).count())
}

async fn operations(vault: &TestVault, db: &Database, book: &Book, wrong: &mut Vec<String>) -> usize {
    let mut ledger = BTreeMap::new();
    for entry in vault.sandbox.ledger() {
        for (word, list) in [("captures", &entry.captures), ("refunds", &entry.refunds)] {
            for one in list.iter().filter(|one| !one.automatic) {
                let path = format!("/v1/payments/{}/{word}/{}", entry.payment_request_id, one.request_id);
                if ledger.insert(path.clone(), one.charged).is_some() {
                    wrong.push(format!("{path}: twice at the gateway"));
                }
            }
        }
    }
    let query =
        "SELECT payment_request_id, kind, request_id, status FROM operations WHERE meaning IS NOT NULL";
    let mut known = BTreeMap::new();
    for row in sql::rows(db, query).await {
        let [payment, kind, id, status] = texts(row);
        let path = format!("/v1/payments/{payment}/{kind}s/{id}");
        let charged = ledger.get(&path).copied();
        if (status == "SUCCEEDED") != (charged == Some(true)) {
            wrong.push(format!("{path}: is {status}, and charged at the gateway: {charged:?}"));
        }
        known.insert(path, status);
    }
    for path in ledger.keys().filter(|path| !known.contains_key(*path)) {
        wrong.push(format!("{path}: at the gateway, and not known here"));
    }
    for (path, asked) in &book.notes().operations {
        check_told(path, asked, known.get(path).map(String::as_str), wrong);
    }
    known.len()
}

/// The feed from its beginning to its end, as who follows it has it: no gap, nothing twice, and of each card,
/// payment, capture and refund what became of it. How many events there are.
async fn feed(vault: &TestVault, db: &Database, wrong: &mut Vec<String>) -> usize {
    eventually("every event to have its place", || async {
        (count(db, "SELECT count(*) FROM events WHERE position IS NULL").await == 0).then_some(())
    })
    .await;
    let places =
        sql::rows(db, "SELECT event_id, CAST(position AS TEXT) FROM events ORDER BY events.position").await;
    let written: Vec<String> = places.iter().filter_map(|row| row[0].clone()).collect();
    let counted = (1..=places.len()).map(|place| Some(place.to_string()));
    if !places.iter().map(|row| row[1].clone()).eq(counted) {
        wrong.push("the feed has gaps".to_owned());
    }
    let (reader, mut after, mut read) = (vault.client("checkout"), "0".to_owned(), Vec::new());
    let mut told: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    loop {
        let page = reader.get(&format!("/v1/events?after={after}")).await.expect(200).json();
        let events = page["data"].as_array().expect("events");
        if events.is_empty() {
            break;
        }
        for event in events {
            let text = |at: &str| event.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
            read.push(text("/eventId"));
            told.entry((text("/object/type"), text("/object/id"))).or_default().push(text("/type"));
        }
        after = page["next"].as_str().expect("a place").to_owned();
    }
    if read != written {
        wrong.push(format!("the feed shows {} of {} events, or others", read.len(), written.len()));
    }
    for row in sql::rows(db, OBJECTS).await {
        let [object, id, status] = texts(row);
        let kinds = told.remove(&(object.clone(), id.clone())).unwrap_or_default();
        let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
        if !feed_fits(&object, &status, &kinds) {
            wrong.push(format!("{id}: its events are {kinds:?}, and it is {status}"));
        }
    }
    wrong.extend(told.into_iter().map(|(of, kinds)| format!("{of:?}: is told {kinds:?}, and is not there")));
    read.len()
}

/// What the feed tells of.
const OBJECTS: &str = "SELECT 'card', card_id, 'STORED' FROM cards \
     UNION ALL SELECT 'payment', payment_request_id, status FROM payments \
     UNION ALL SELECT kind, request_id, status FROM operations";

/// Every caller that was not told an outcome asks again.
async fn repeat_all(vault: &TestVault, book: &Book) {
    let caller = vault.client("checkout");
    let payments = book.notes().payments.clone();
    for (id, asked) in payments.into_iter().filter(|(_, asked)| asked.told.is_empty()) {
        book.pay(&caller, &id, asked.body).await;
    }
    let operations = book.notes().operations.clone();
    for (path, asked) in operations.into_iter().filter(|(_, asked)| asked.told.is_empty()) {
        book.operate_again(&caller, &path, &asked.body).await;
    }
}

/// Asks until there is an acknowledgement, as every caller does: a loaded machine is told to come again.
async fn insist<F: Future<Output = Option<String>>>(ask: impl Fn() -> F) -> String {
    for _ in 0..50 {
        if let Some(told) = ask().await {
            return told;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    "never acknowledged".to_owned()
}

/// Every number that was ever to be stored gives the reference that was told, and it pays.
async fn cards(vault: &TestVault, book: &Arc<Book>) -> (usize, Vec<String>) {
    let cards: Vec<(String, Option<String>)> = book.notes().cards.clone().into_iter().collect();
    let (many, caller) = (cards.len(), vault.client("checkout"));
    let mut all = JoinSet::new();
    for part in cards.chunks(many.div_ceil(16).max(1)) {
        let (part, caller, book) = (part.to_vec(), caller.clone(), Arc::clone(book));
        all.spawn(async move {
            let mut wrong = Vec::new();
            for (pan, told) in part {
                if let Some(card) = &told {
                    let read = caller.get(&format!("/v1/cards/{card}")).await;
                    if read.status != 200 {
                        wrong.push(format!("{card}: acknowledged, and lost: {} {}", read.status, read.text));
                    }
                }
                let card = insist(|| book.store(&caller, &pan)).await;
                if told.is_some_and(|told| told != card) {
                    wrong.push(format!("{card}: another reference than before"));
                }
                let id = book.name("AFTER");
                let status = insist(|| book.pay(&caller, &id, by_reference(&id, "100", &card))).await;
                if status != "AUTHORIZED" {
                    wrong.push(format!("{card}: does not pay: {status}"));
                }
            }
            wrong
        });
    }
    let wrong = all.join_all().await.into_iter().flatten().collect();
    (many, wrong)
}
