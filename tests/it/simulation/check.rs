//! What must be true when the storm is over.

use std::collections::BTreeMap;

use cardvault::base::ids::Merchant;
use cardvault::model::event::Cursor;
use cardvault::store::backend::{Arg, Row};
use cardvault::store::events::list_events;

use super::gateway::{Charge, OperationState, State};
use super::schedule::Simulation;
use crate::support::feed_fits;

struct Payment {
    id: String,
    status: String,
    sent_copy: bool,
    open: i64,
    captured: i64,
    capture_reserved: i64,
    refund_reserved: i64,
    cancel: Option<String>,
    manual: bool,
    created: i64,
}

/// Everything that is wrong.
pub fn check(simulation: &mut Simulation<'_>) -> Vec<String> {
    let mut wrong = std::mem::take(&mut simulation.wrong);
    wrong.append(&mut simulation.model.ledger().wrong);
    for slot in simulation.slots.iter().flatten() {
        slot.vault.slots.sweep();
        if !slot.vault.slots.is_empty() {
            wrong.push("a CVV is held".to_owned());
        }
    }
    if !simulation.waiting().is_empty() {
        wrong.push(format!("something still waits: {:?}", simulation.waiting()));
    }
    let rows = payments(simulation);
    for id in simulation.model.ledger().charges.keys() {
        if !rows.iter().any(|row| row.id == *id) {
            wrong.push(format!("{id}: charged and not known"));
        }
    }
    for row in &rows {
        let charge = simulation.model.ledger().charges.get(&row.id).cloned();
        check_payment(row, charge.as_ref(), &mut wrong);
        simulation.model.check_times(&row.id, row.created + 1_500, &mut wrong);
        if let Some(asked) = simulation.asked.get(&row.id) {
            for told in &asked.told {
                let fits = match told.as_str() {
                    "UNKNOWN" | "PROCESSING" => true,
                    "AUTHORIZED" => matches!(row.status.as_str(), "AUTHORIZED" | "CANCELLED"),
                    other => other == row.status,
                };
                if !fits {
                    wrong.push(format!("{}: told {told}, and is {}", row.id, row.status));
                }
            }
        }
    }
    check_operations(simulation, &mut wrong);
    check_events(simulation, &rows, &mut wrong);
    wrong.iter().map(|line| line.replace(&simulation.prefix, "")).collect()
}

fn payments(simulation: &Simulation<'_>) -> Vec<Payment> {
    const SQL: &str = "SELECT payment_request_id, status, CAST(CASE WHEN outgoing IS NULL THEN 0 ELSE 1 END AS BIGINT) AS copy, \
         CAST(open_operations AS BIGINT) AS open, CAST(captured AS BIGINT) AS captured, \
         CAST(capture_reserved AS BIGINT) AS capture_reserved, \
         CAST(refund_reserved AS BIGINT) AS refund_reserved, cancel_state, \
         CAST(manual_capture AS BIGINT) AS manual, created_at \
         FROM payments WHERE merchant = $1 ORDER BY payment_request_id";
    let merchant = simulation.merchant.as_str().to_owned();
    simulation.ground.look(async |db| {
        let rows = db.list(SQL, &[Arg::Text(&merchant)]).await.expect("payments");
        rows.iter()
            .map(|row| {
                let int = |name: &str| row.int(name).expect("a number");
                Payment {
                    id: row.text("payment_request_id").expect("an id"),
                    status: row.text("status").expect("a status"),
                    sent_copy: row.int("copy").expect("a flag") == 1,
                    open: int("open"),
                    captured: int("captured"),
                    capture_reserved: int("capture_reserved"),
                    refund_reserved: int("refund_reserved"),
                    cancel: row.text_or_null("cancel_state").expect("a state"),
                    manual: int("manual") == 1,
                    created: int("created_at"),
                }
            })
            .collect()
    })
}

fn check_payment(row: &Payment, charge: Option<&Charge>, wrong: &mut Vec<String>) {
    let expected = match charge.map(|charge| charge.state) {
        None | Some(State::Declined) => "FAILED",
        Some(State::Paid) => "AUTHORIZED",
        Some(State::Cancelled) => "CANCELLED",
        Some(State::Open(_)) => "settled",
    };
    let mut is = |good: bool, what: &str| {
        if !good {
            wrong.push(format!("{}: {what}", row.id));
        }
    };
    // Nobody tells of a cancel in the dashboard: where nothing is asked, it is not known.
    let untold = row.status == "AUTHORIZED" && charge.is_some_and(|charge| charge.cancelled_elsewhere);
    is(row.status == expected || untold, &format!("is {}, and at the gateway {expected}", row.status));
    is(charge.is_none_or(|charge| charge.charges <= 1), "charged more than once");
    is(!row.sent_copy, "its request is still kept");
    is(row.open == 0, "has open operations");
    is(row.cancel.as_deref() != Some("OPEN"), &format!("its cancel is open; it is {}", row.status));
    if let Some(charge) = charge.filter(|_| row.manual) {
        let done = Charge::sum(&charge.captures, OperationState::Done);
        is(row.captured == done, &format!("captured {}, and at the gateway {done}", row.captured));
        is(row.capture_reserved == done, "reserves more than is captured");
        is(done <= charge.amount, "captured more than there is");
    }
    if let Some(charge) = charge {
        let done = Charge::sum(&charge.refunds, OperationState::Done);
        let ceiling = if row.manual { row.captured } else { charge.amount };
        is(
            row.refund_reserved == done,
            &format!("refunded {}, and at the gateway {done}", row.refund_reserved),
        );
        is(done <= ceiling, "gives back more than was taken");
    }
}

fn check_operations(simulation: &Simulation<'_>, wrong: &mut Vec<String>) {
    const SQL: &str = "SELECT request_id, kind, status, payment_request_id, \
         CAST(CASE WHEN meaning IS NULL THEN 0 ELSE 1 END AS BIGINT) AS asked, \
         CAST(CASE WHEN outgoing IS NULL THEN 0 ELSE 1 END AS BIGINT) AS copy FROM operations WHERE merchant = $1";
    let merchant = simulation.merchant.as_str().to_owned();
    let rows =
        simulation.ground.look(async |db| db.list(SQL, &[Arg::Text(&merchant)]).await.expect("operations"));
    for row in &rows {
        let text = |name: &str| row.text(name).expect("a text");
        let (name, payment) = (text("request_id"), text("payment_request_id"));
        if row.int("asked").expect("a flag") == 0 {
            continue;
        }
        let ledger = simulation.model.ledger();
        let charge = ledger.charges.get(&payment);
        let list =
            charge.map(|charge| if text("kind") == "capture" { &charge.captures } else { &charge.refunds });
        let state = list.and_then(|list| list.get(&name)).map(|one| one.state);
        let expected = match state {
            Some(OperationState::Done) => "SUCCEEDED",
            Some(OperationState::Failed) => "FAILED",
            None if charge.is_some_and(|charge| charge.state == State::Cancelled) => "FAILED",
            _ => "at the gateway",
        };
        if text("status") != expected {
            wrong.push(format!("{name}: is {}, and should be {expected}", text("status")));
        }
        if row.int("copy").expect("a flag") == 1 {
            wrong.push(format!("{name}: its request is still kept"));
        }
    }
}

/// The feed has no gap, and tells of everything what became of it, once: each payment, capture and refund ends
/// with its state, each card is stored, each agreement begins and ends.
fn check_events(simulation: &mut Simulation<'_>, rows: &[Payment], wrong: &mut Vec<String>) {
    simulation.sequence();
    let merchant: Merchant = simulation.merchant.clone();
    let events = simulation.ground.look(async |db| {
        let (mut all, mut after) = (Vec::new(), Cursor::default());
        loop {
            let page = list_events(db, &merchant, after, 100).await.expect("events");
            let Some(last) = page.last() else { return all };
            after = last.cursor;
            all.extend(page);
        }
    });
    if !events.iter().map(|event| event.cursor.position()).eq((1..).take(events.len())) {
        wrong.push("the feed has gaps".to_owned());
    }
    let mut told: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for event in &events {
        told.entry(format!("{}/{}", event.object_type, event.object_id)).or_default().push(&event.kind);
    }
    let mut told = |object: &str, id: &str| told.remove(&format!("{object}/{id}")).unwrap_or_default();
    for row in rows {
        let kinds = told("payment", &row.id);
        if !feed_fits("payment", &row.status, &kinds) {
            wrong.push(format!("{}: its events are {kinds:?}, and it is {}", row.id, row.status));
        }
    }
    const OPERATIONS: &str = "SELECT kind, request_id, status FROM operations WHERE merchant = $1";
    for [kind, name, status] in texts(simulation, OPERATIONS, ["kind", "request_id", "status"]) {
        let kinds = told(&kind, &name);
        if !feed_fits(&kind, &status, &kinds) {
            wrong.push(format!("{name}: its events are {kinds:?}, and it is {status}"));
        }
    }
    const CARDS: &str = "SELECT card_id FROM cards WHERE merchant = $1";
    for [card] in texts(simulation, CARDS, ["card_id"]) {
        let kinds = told("card", &card);
        if kinds.iter().filter(|kind| **kind == "card.stored").count() != 1 {
            wrong.push(format!("a card's events are {kinds:?}"));
        }
    }
    const AGREEMENTS: &str = "SELECT agreement_id, state, \
         CASE WHEN activated_at IS NOT NULL THEN 'was active' END AS active FROM agreements WHERE merchant = $1";
    for [agreement, state, active] in texts(simulation, AGREEMENTS, ["agreement_id", "state", "active"]) {
        let kinds = told("agreement", &agreement);
        let begins = (!active.is_empty()).then_some("agreement.active");
        let ends = (state == "ENDED").then_some("agreement.ended");
        if !begins.into_iter().chain(ends).eq(kinds.iter().copied()) {
            wrong.push(format!("an agreement's events are {kinds:?}, and it is {state}, {active}"));
        }
    }
}

/// Columns of what is the merchant's, as texts; `$1` is he. What is NULL is empty.
fn texts<const N: usize>(
    simulation: &Simulation<'_>,
    query: &'static str,
    columns: [&str; N],
) -> Vec<[String; N]> {
    let merchant = simulation.merchant.as_str().to_owned();
    let rows =
        simulation.ground.look(async |db| db.list(query, &[Arg::Text(&merchant)]).await.expect("rows"));
    let read = |row: &Row| columns.map(|name| row.text_or_null(name).expect("a text").unwrap_or_default());
    rows.iter().map(read).collect()
}
