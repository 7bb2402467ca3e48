//! What the vault does, as flows whose points are walked through one by one.

use std::sync::Arc;
use std::time::Duration;

use cardvault::base::clock::Millis;
use cardvault::base::ids::{EventId, RunId};
use cardvault::jobs::sequence::Sequencer;
use cardvault::model::event::EventKind;
use cardvault::model::import::read_line;
use cardvault::model::retention::Limits;
use cardvault::ops::Vault;
use cardvault::ops::audit::verify::verify;
use cardvault::ops::import::{Importer, Numbered};
use cardvault::store::backend::Arg;
use cardvault::store::events::{NewEvent, insert_event};
use cardvault::store::leases;
use cardvault::store::retention::Place;

use super::gateway::State;
use super::named::{comes_to, know_the_card, next_is};
use super::points::count;
use super::schedule::{Ask, Kind, Simulation, text_at};
use super::world::{Go, What};

/// Something that changes state.
pub struct Flow {
    /// As the list in docs/durability.md has it.
    pub name: &'static str,
    /// What must be there first, in calm; what the flow is about.
    pub prepare: fn(&mut Simulation<'_>) -> String,
    pub start: fn(&mut Simulation<'_>, &str),
    /// It is asked for again in calm, as a caller would do; what is wrong then.
    pub again: fn(&mut Simulation<'_>, &str) -> Vec<String>,
}

const NEW: &str = r#"{"cardNo":"4242424242424242","expiryMonth":"11","expiryYear":"30"}"#;
const RETYPED: &str = r#"{"cardNo":"4242424242424242","expiryMonth":"12","expiryYear":"31"}"#;
const WITH_CVV: &str = r#"{"cardNo":"4242424242424242","expiryMonth":"11","expiryYear":"30","cvv":"851"}"#;
const UNKNOWN: &str = r#"{"notifyType":"PAYMENT_RESULT","result":{"resultCode":"SUCCESS","resultStatus":"S","resultMessage":"success"},"paymentRequestId":"NOBODYS","paymentId":"20269999","paymentAmount":{"currency":"EUR","value":"100"}}"#;
const DISPUTE: &str = r#"{"notifyType":"DISPUTE_CREATED","paymentRequestId":"@ID@","paymentId":"@GATEWAY@","disputeId":"DISPUTE_@ID@","disputeTime":"2026-01-01T12:01:01+08:30","disputeAmount":{"currency":"EUR","value":"500"},"disputeType":"CHARGEBACK"}"#;
/// What no card outlives that nobody has agreed to keep.
const LONG_AFTER: i64 = 31 * 24 * 3_600_000;
/// Lines of an import: a card, and one with an agreement.
const LINES: [&str; 2] = [
    r#"{"cardNo":"4242424242424242","expiryMonth":"11","expiryYear":"30","externalId":"a"}"#,
    r#"{"cardNo":"5555555555554444","expiryMonth":"11","expiryYear":"30","externalId":"b","agreements":[{"type":"UNSCHEDULED","consent":{"acceptedAt":"2025-01-01T00:00:00Z","textVersion":"v1"},"networkTransactionId":"NTI000000000009"}]}"#,
];
const NO_CARD: &str = "/v1/cards/card_01ARZ3NDEKTSV4RRFFQ69G5FAV";
const PATCH: &str = r#"{"expiryMonth":"12","expiryYear":"31"}"#;

/// Every flow.
pub const FLOWS: &[Flow] = &[
    Flow { name: "tokenise a new card", prepare: nothing, start: |s, _| store(s, NEW), again: stored_once },
    Flow {
        name: "tokenise a known card",
        prepare: |s| made(s, NEW),
        start: |s, _| store(s, RETYPED),
        again: |s, card| {
            let same = made(s, RETYPED) == card && shown_year(s, card) == "31";
            let mut wrong = stored_once(s, card);
            wrong.extend((!same).then(|| "a known card is another, or is not changed".to_owned()));
            wrong
        },
    },
    Flow {
        name: "tokenise with a CVV",
        prepare: nothing,
        start: |s, _| store(s, WITH_CVV),
        again: |s, _| {
            made(s, WITH_CVV);
            stored_once(s, "")
        },
    },
    Flow {
        name: "tokenise several new cards at once",
        prepare: nothing,
        start: |s, _| {
            ["4242424242424242", "4012888888881881", "5105105105105100"]
                .map(numbered)
                .iter()
                .for_each(|body| store(s, body))
        },
        again: |s, _| {
            let cards = ["4242424242424242", "4012888888881881", "5105105105105100"]
                .map(|pan| made(s, &numbered(pan)));
            let told = s.told_texts("/cardId");
            let other = told.iter().filter(|told| !cards.contains(told) && **told != s.card);
            let mut wrong: Vec<String> =
                other.map(|other| format!("{other} was told, and is none of them")).collect();
            let many = count(s, "SELECT count(*) AS many FROM cards WHERE merchant = $1");
            wrong.extend((many != 4).then(|| format!("{many} cards")));
            wrong
        },
    },
    Flow {
        name: "import cards",
        prepare: nothing,
        start: |s, _| import(s),
        again: |s, _| {
            import(s);
            let cards = count(s, "SELECT count(*) AS many FROM cards WHERE merchant = $1");
            let agreements = count(s, "SELECT count(*) AS many FROM agreements WHERE merchant = $1");
            if (cards, agreements) == (3, 1) {
                Vec::new()
            } else {
                vec![format!("{cards} cards, {agreements} agreements")]
            }
        },
    },
    Flow {
        name: "erase old cards",
        prepare: |s| {
            let card = made(s, NEW);
            s.pass(LONG_AFTER, false);
            card
        },
        start: |s, _| purge(s),
        again: |s, card| {
            purge(s);
            let mut wrong = expect(s, "GET", &format!("/v1/cards/{card}"), "", &[404]);
            let told = "SELECT CAST(COALESCE(SUM(cards), 0) AS BIGINT) AS many FROM retention_reports WHERE merchant = $1";
            let (told, gone) = (
                count(s, told),
                count(s, "SELECT count(*) AS many FROM cards WHERE merchant = $1 AND erased_at IS NOT NULL"),
            );
            wrong.extend((told != gone).then(|| format!("reports tell of {told} cards, {gone} are gone")));
            wrong
        },
    },
    Flow {
        name: "record masked reads",
        prepare: |s| {
            let card = made(s, NEW);
            change(s, "GET", &card, "");
            card
        },
        start: |s, _| {
            let vault = s.process(0).vault.clone();
            s.begin(0, "records what was read", async move {
                let (_, stopping) = tokio::sync::watch::channel(true);
                vault.audit.write_reads(&vault.db, &vault.keys, stopping).await;
            });
        },
        // What was read in its last moments may be lost with a process; one that records no more answers no more.
        again: |s, card| {
            s.crash(0);
            s.start(0);
            expect(s, "GET", &format!("/v1/cards/{card}"), "", &[200])
        },
    },
    Flow {
        name: "update a card",
        prepare: |s| made(s, NEW),
        start: |s, card| change(s, "PATCH", card, PATCH),
        again: |s, card| {
            let mut wrong = expect(s, "PATCH", &format!("/v1/cards/{card}"), PATCH, &[200]);
            wrong.extend((shown_year(s, card) != "31").then(|| "is not changed".to_owned()));
            wrong
        },
    },
    Flow {
        name: "erase a card",
        prepare: |s| {
            s.open_agreement();
            s.agreement.clone().expect("an agreement").1
        },
        start: |s, card| change(s, "DELETE", card, ""),
        again: |s, card| {
            let mut wrong = expect(s, "DELETE", &format!("/v1/cards/{card}"), "", &[204, 404]);
            wrong.extend(expect(s, "GET", &format!("/v1/cards/{card}"), "", &[404]));
            let left = count(
                s,
                "SELECT count(*) AS many FROM cards WHERE merchant = $1 AND erased_at IS NOT NULL AND pan IS NULL",
            );
            wrong.extend((left != 1).then(|| "something of the card is left".to_owned()));
            wrong.extend(ended(s));
            wrong
        },
    },
    Flow {
        name: "hold a CVV",
        prepare: nothing,
        start: |s, _| s.hold_cvv(0),
        again: |s, _| {
            s.hold_cvv(0);
            next_is(s, State::Paid);
            let id = s.pay(0, Kind::Reference, 500, false);
            told_last(s, &id, &["AUTHORIZED"])
        },
    },
    Flow {
        name: "pay by reference",
        prepare: paid_next,
        start: |s, _| pay(s, Kind::Reference),
        again: paid_again,
    },
    Flow {
        name: "pay several times at once",
        prepare: |s| {
            let ids = [1, 2, 3, 4].map(|n| format!("{}PAY{}", s.prefix, s.next_name + n));
            ids.iter().for_each(|id| comes_to(s, id, State::Paid));
            ids.join(" ")
        },
        start: |s, ids| ids.split(' ').for_each(|_| pay(s, Kind::Reference)),
        again: |s, ids| ids.split(' ').flat_map(|id| paid_again(s, id)).collect(),
    },
    Flow {
        name: "pay by reference with a held CVV",
        prepare: |s| {
            s.hold_cvv(0);
            paid_next(s)
        },
        start: |s, _| pay(s, Kind::Reference),
        again: paid_again,
    },
    Flow {
        name: "pay with a new card and its CVV",
        prepare: paid_next,
        start: |s, _| pay(s, Kind::Typed),
        again: paid_again,
    },
    Flow {
        name: "pay with a known card and its CVV",
        prepare: |s| {
            know_the_card(s);
            let known = name(s, s.next_name);
            let card = card_of(s, &known).0;
            change(s, "PATCH", &card, PATCH);
            paid_next(s)
        },
        start: |s, _| pay(s, Kind::Typed),
        again: |s, id| {
            let mut wrong = paid_again(s, id);
            let (card, status) = card_of(s, id);
            let (year, expected) = (shown_year(s, &card), if status == "AUTHORIZED" { "29" } else { "31" });
            wrong.extend((year != expected).then(|| format!("{status}, and the card's year is {year}")));
            wrong
        },
    },
    Flow {
        name: "pay with a token of Antom's",
        prepare: paid_next,
        start: |s, _| drop(s.pay_with_token("ALIPAYtokenOfNobodyElse0123456789==", 500)),
        again: |s, id| {
            let mut wrong = paid_again(s, id);
            let many = count(s, "SELECT count(*) AS many FROM cards WHERE merchant = $1");
            wrong.extend((many != 2).then(|| format!("{many} cards")));
            wrong
        },
    },
    Flow {
        name: "pay, and be declined",
        prepare: |s| next(s, State::Declined),
        start: |s, _| pay(s, Kind::Reference),
        again: paid_again,
    },
    Flow {
        name: "pay, and open an agreement",
        prepare: |s| made(s, NEW),
        start: |s, card| drop(s.pay_opening(card)),
        again: |s, _| {
            let id = format!("{}OPEN", s.prefix);
            let mut wrong = paid_again(s, &id);
            let shown = s.ask(0, "GET", &format!("/v1/payments/{id}"), "", Ask::Other);
            let (agreement, status) =
                (text_at(&s.told(shown), "/agreementId"), text_at(&s.told(shown), "/status"));
            let shown = s.ask(0, "GET", &format!("/v1/agreements/{agreement}"), "", Ask::Other);
            let state = text_at(&s.told(shown), "/state");
            let fits = state == if status == "AUTHORIZED" { "ACTIVE" } else { "ENDED" };
            wrong.extend((!fits).then(|| format!("the agreement is {state}, its payment {status}")));
            wrong
        },
    },
    Flow {
        name: "pay by the merchant",
        prepare: |s| {
            s.open_agreement();
            paid_next(s)
        },
        start: |s, _| pay(s, Kind::Merchant),
        again: paid_again,
    },
    Flow {
        name: "withdraw an agreement",
        prepare: |s| {
            s.open_agreement();
            s.agreement.clone().expect("an agreement").0
        },
        start: |s, id| {
            s.ask(0, "DELETE", &format!("/v1/agreements/{id}"), "", Ask::Other);
        },
        again: |s, id| {
            let mut wrong = expect(s, "DELETE", &format!("/v1/agreements/{id}"), "", &[200, 204]);
            wrong.extend(ended(s));
            wrong
        },
    },
    Flow {
        name: "capture",
        prepare: |s| paid(s, true),
        start: |s, id| drop(s.operate(0, id, true, 200)),
        again: operated_again,
    },
    Flow {
        name: "refund",
        prepare: |s| paid(s, false),
        start: |s, id| drop(s.operate(0, id, false, 200)),
        again: operated_again,
    },
    Flow {
        name: "cancel",
        prepare: |s| paid(s, false),
        start: |s, id| s.cancel(0, id),
        again: |s, id| {
            s.cancel(0, id);
            Vec::new()
        },
    },
    Flow {
        name: "cancel what the vault cancels",
        prepare: |s| {
            let id = later(s, Kind::Typed, is_call, 70_000);
            s.reconcile(0);
            assert!(s.go_on(0, is_cancel));
            s.release_first(Go::Lost, is_cancel);
            s.crash(0);
            s.start(0);
            id
        },
        start: |s, id| s.cancel(0, id),
        again: |s, id| {
            s.cancel(0, id);
            Vec::new()
        },
    },
    Flow {
        name: "be notified",
        prepare: |s| unclear(s, Kind::Reference, is_answer),
        start: |s, _| s.deliver(0, 0, false, false),
        again: |s, id| {
            s.deliver(0, 0, false, false);
            paid_again(s, id)
        },
    },
    Flow {
        name: "be notified of a dispute",
        prepare: |s| {
            let id = paid(s, false);
            let number = s.ask(0, "GET", &format!("/v1/payments/{id}"), "", Ask::Other);
            DISPUTE.replace("@ID@", &id).replace("@GATEWAY@", &text_at(&s.told(number), "/paymentId"))
        },
        start: |s, body| s.deliver_text(0, body, false, false),
        again: |s, body| {
            s.deliver_text(0, body, false, false);
            let told = "SELECT count(*) AS many FROM events WHERE merchant = $1 AND kind LIKE 'dispute%'";
            let many = count(s, told);
            if many == 1 { Vec::new() } else { vec![format!("{many} events of one dispute")] }
        },
    },
    Flow {
        name: "be notified of an unknown payment",
        prepare: |_| UNKNOWN.to_owned(),
        start: |s, body| s.deliver_text(0, body, false, false),
        again: |s, body| {
            s.deliver_text(0, body, false, false);
            Vec::new()
        },
    },
    Flow {
        name: "ask after a payment",
        prepare: |s| unclear(s, Kind::Reference, is_answer),
        start: |s, id| {
            s.ask(0, "GET", &format!("/v1/payments/{id}?refresh=true"), "", Ask::Other);
        },
        again: paid_again,
    },
    Flow {
        name: "pay, and be given a token",
        prepare: paid_next,
        start: |s, _| drop(s.pay_for_token(500)),
        again: one_token_kept,
    },
    Flow {
        name: "be notified of a payment on the gateway's page",
        prepare: |s| {
            next(s, State::Open(true));
            let id = s.pay_on_page(500);
            s.model.paid_by_buyer(&id);
            id
        },
        start: |s, _| s.deliver(0, 0, false, false),
        again: |s, id| {
            s.deliver(0, 0, false, false);
            one_token_kept(s, id)
        },
    },
    Flow {
        name: "record a refusal",
        prepare: nothing,
        start: |s, _| {
            s.ask(0, "GET", NO_CARD, "", Ask::Other);
        },
        again: |s, _| expect(s, "GET", NO_CARD, "", &[404]),
    },
    Flow {
        name: "end an agreement whose time is over",
        prepare: |s| {
            s.open_agreement();
            let merchant = s.merchant.as_str().to_owned();
            let over = "UPDATE agreements SET expires_at = 1 WHERE merchant = $1";
            let done = s.ground.look(async |db| db.execute(over, &[Arg::Text(&merchant)]).await);
            assert_eq!(done.expect("an agreement"), 1);
            String::new()
        },
        start: |s, _| {
            sweep(s, "ends agreements", |vault| async move { drop(vault.end_expired_agreements().await) })
        },
        again: |s, _| {
            sweep(s, "ends agreements", |vault| async move { drop(vault.end_expired_agreements().await) });
            ended(s)
        },
    },
    Flow {
        name: "tell of a card that expires",
        prepare: |s| {
            s.open_agreement();
            let card = s.agreement.clone().expect("an agreement").1;
            change(s, "PATCH", &card, r#"{"expiryMonth":"03","expiryYear":"26"}"#);
            s.pass(24 * 3_600_000, false);
            card
        },
        start: |s, _| sweep(s, "looks for cards that expire", look_at_all_cards),
        again: |s, _| {
            sweep(s, "looks for cards that expire", look_at_all_cards);
            let told = "SELECT count(*) AS many FROM events WHERE merchant = $1 AND kind = 'card.expiring'";
            let many = count(s, told);
            if many == 1 { Vec::new() } else { vec![format!("it is told {many} times")] }
        },
    },
    Flow {
        name: "drop old notifications",
        prepare: |s| {
            s.deliver_text(0, UNKNOWN, false, false);
            s.pass(LONG_AFTER, false);
            String::new()
        },
        start: |s, _| {
            sweep(s, "drops old notices", |vault| async move { drop(vault.drop_old_notices().await) })
        },
        again: |s, _| {
            sweep(s, "drops old notices", |vault| async move { drop(vault.drop_old_notices().await) });
            let left = count(s, "SELECT count(*) AS many FROM notices WHERE merchant = $1");
            if left == 0 { Vec::new() } else { vec![format!("{left} are left")] }
        },
    },
    Flow {
        name: "take a lease, and give it back",
        prepare: |s| {
            no_leases(s);
            String::new()
        },
        start: |s, _| sweep(s, "has a lease", hold_a_lease),
        again: |s, _| {
            // That of a process that died is over by now.
            let free = "SELECT count(*) AS many FROM leases WHERE owner <> $1 AND until > 0";
            sweep(s, "has a lease", hold_a_lease);
            let left = count(s, free);
            if left == 0 { Vec::new() } else { vec![format!("{left} leases are left")] }
        },
    },
    Flow {
        name: "close the audit trail",
        prepare: |s| made(s, NEW),
        start: |s, _| sweep(s, "closes its chains", close_the_trail),
        again: |s, _| {
            sweep(s, "closes its chains", close_the_trail);
            let vault = s.process(0).vault.clone();
            let report =
                s.process(0).now(async move { verify(&vault.db, &vault.keys, std::iter::empty()).await });
            report.expect("a trail").findings
        },
    },
    Flow {
        name: "number the events",
        prepare: |s| {
            no_leases(s);
            // As a payment's outcome is written: PostgreSQL's is numbered later.
            let (merchant, event_id) = (s.merchant.clone(), EventId::make().expect("entropy"));
            s.ground.look(async |db| {
                let event = NewEvent {
                    event_id: &event_id,
                    merchant: &merchant,
                    kind: EventKind::PaymentAuthorized,
                    object_type: "payment",
                    object_id: "of nobody",
                    body: "{}",
                    created_at: Millis(0),
                };
                let mut tx = db.begin_write().await.expect("a transaction");
                insert_event(&mut tx, &event).await.expect("an event");
                tx.commit().await.expect("a commit");
            });
            made(s, NEW)
        },
        start: |s, _| {
            let vault = s.process(0).vault.clone();
            s.begin(0, "numbers the events", async move {
                let mut sequencer =
                    Sequencer::new(vault.db.clone(), vault.instance.clone(), vault.clock.clone());
                // What fails is numbered in a later turn.
                let _ = sequencer.run_once().await;
            });
        },
        again: |s, _| {
            s.sequence();
            let left =
                count(s, "SELECT count(*) AS many FROM events WHERE merchant = $1 AND position IS NULL");
            let twice = count(
                s,
                "SELECT count(*) - count(DISTINCT position) AS many FROM events WHERE merchant = $1",
            );
            if (left, twice) == (0, 0) {
                Vec::new()
            } else {
                vec![format!("{left} have no number, {twice} the same")]
            }
        },
    },
    Flow {
        name: "follow up what had no answer",
        prepare: nothing,
        start: |s, _| followed(s, is_answer),
        again: |s, _| paid_again(s, &name(s, 1)),
    },
    Flow {
        name: "follow up what never arrived",
        prepare: nothing,
        start: |s, _| followed(s, is_call),
        again: |s, _| paid_again(s, &name(s, 1)),
    },
    Flow {
        name: "look at a payment that had no answer",
        prepare: |s| later(s, Kind::Reference, is_answer, 70_000),
        start: |s, _| s.reconcile(0),
        again: paid_again,
    },
    Flow {
        name: "look at a payment that never arrived",
        prepare: |s| later(s, Kind::Reference, is_call, 70_000),
        start: |s, _| s.reconcile(0),
        again: paid_again,
    },
    Flow {
        name: "look at a payment with a CVV that never arrived",
        prepare: |s| later(s, Kind::Typed, is_call, 70_000),
        start: |s, _| s.reconcile(0),
        again: paid_again,
    },
    Flow {
        name: "look at a payment that does not exist",
        prepare: |s| later(s, Kind::Typed, is_call, 17 * 60_000),
        start: |s, _| s.reconcile(0),
        again: paid_again,
    },
    Flow {
        name: "look at a capture that had no answer",
        prepare: |s| operation_later(s, true, is_answer),
        start: |s, _| s.reconcile(0),
        again: operated_again,
    },
    Flow {
        name: "look at a capture that never arrived",
        prepare: |s| operation_later(s, true, is_call),
        start: |s, _| s.reconcile(0),
        again: operated_again,
    },
    Flow {
        name: "look at a refund that had no answer",
        prepare: |s| operation_later(s, false, is_answer),
        start: |s, _| s.reconcile(0),
        again: operated_again,
    },
    Flow {
        name: "look at a refund that never arrived",
        prepare: |s| operation_later(s, false, is_call),
        start: |s, _| s.reconcile(0),
        again: operated_again,
    },
];

fn nothing(_: &mut Simulation<'_>) -> String {
    String::new()
}

fn store(s: &mut Simulation<'_>, body: &str) {
    s.ask(0, "POST", "/v1/cards", body, Ask::Other);
}

fn change(s: &mut Simulation<'_>, method: &str, card: &str, body: &str) {
    s.ask(0, method, &format!("/v1/cards/{card}"), body, Ask::Other);
}

/// Stores a card in calm; its reference.
fn made(s: &mut Simulation<'_>, body: &str) -> String {
    let number = s.ask(0, "POST", "/v1/cards", body, Ask::Other);
    text_at(&s.told(number), "/cardId")
}

/// The card is there once, beside the simulation's own, and whoever was told a reference was told this one.
fn stored_once(s: &mut Simulation<'_>, _: &str) -> Vec<String> {
    let card = made(s, RETYPED);
    let told = s.told_texts("/cardId");
    let other = told.iter().find(|told| **told != card && **told != s.card);
    let many = count(s, "SELECT count(*) AS many FROM cards WHERE merchant = $1");
    let mut wrong: Vec<String> =
        other.map(|other| format!("{other} was told, and is {card}")).into_iter().collect();
    wrong.extend((many != 2).then(|| format!("{many} cards")));
    wrong
}

fn shown_year(s: &mut Simulation<'_>, card: &str) -> String {
    let number = s.ask(0, "GET", &format!("/v1/cards/{card}"), "", Ask::Other);
    text_at(&s.told(number), "/expiryYear")
}

fn expect(s: &mut Simulation<'_>, method: &str, path: &str, body: &str, good: &[u16]) -> Vec<String> {
    let number = s.ask(0, method, path, body, Ask::Other);
    let status = s.told(number).map(|told| told.status);
    if status.is_some_and(|status| good.contains(&status)) {
        return Vec::new();
    }
    vec![format!("{method} again: {status:?}")]
}

/// The simulation's agreement has ended.
fn ended(s: &mut Simulation<'_>) -> Vec<String> {
    let id = s.agreement.clone().expect("an agreement").0;
    let number = s.ask(0, "GET", &format!("/v1/agreements/{id}"), "", Ask::Other);
    let state = text_at(&s.told(number), "/state");
    if state == "ENDED" { Vec::new() } else { vec![format!("the agreement is {state}")] }
}

fn pay(s: &mut Simulation<'_>, kind: Kind) {
    s.pay(0, kind, 500, false);
}

fn numbered(pan: &str) -> String {
    NEW.replace("4242424242424242", pan)
}

/// The card of a payment, and where the payment stands.
fn card_of(s: &mut Simulation<'_>, id: &str) -> (String, String) {
    let number = s.ask(0, "GET", &format!("/v1/payments/{id}"), "", Ask::Other);
    let told = s.told(number);
    (text_at(&told, "/cardId"), text_at(&told, "/status"))
}

fn import(s: &mut Simulation<'_>) {
    let (vault, account) = (s.process(0).vault.clone(), s.process(0).account.clone());
    let importer = Importer { merchant: s.merchant.clone(), account };
    let now = Millis(s.world.wall());
    s.begin(0, "imports", async move {
        let lines = (1..).zip(LINES).map(|(number, line)| Numbered { number, read: read_line(line, now) });
        // What fails is imported in a later run.
        let _ = vault.import_batch(&importer, &lines.collect::<Vec<_>>()).await;
    });
}

fn purge(s: &mut Simulation<'_>) {
    let (vault, merchant) = (s.process(0).vault.clone(), s.merchant.clone());
    s.begin(0, "erases what is old", async move {
        let limits = Limits { unattached: Some(Duration::from_secs(720 * 3600)), inactive: None };
        // What fails is erased in a later sweep.
        let Ok(page) = vault.look_at_cards(limits, Some(&merchant), &Place::beginning(), 100).await else {
            return;
        };
        for (merchant, cards) in page.due {
            let run = RunId::make().expect("entropy");
            let _ = vault.erase_old_cards(&run, limits, &merchant, &cards).await;
        }
    });
}

/// Does what a job of the first process does in a turn; what fails comes again.
fn sweep<F: Future<Output = ()> + Send + 'static>(
    s: &mut Simulation<'_>,
    what: &str,
    turn: impl FnOnce(Arc<Vault>) -> F,
) {
    let turn = turn(s.process(0).vault.clone());
    s.begin(0, what, turn);
}

async fn look_at_all_cards(vault: Arc<Vault>) {
    let mut after = String::new();
    while let Ok(Some(last)) = vault.tell_expiring_cards(&after).await {
        after = last;
    }
}

async fn close_the_trail(vault: Arc<Vault>) {
    vault.audit.close(&vault.db, &vault.keys).await;
}

async fn hold_a_lease(vault: Arc<Vault>) {
    let (db, name, owner, now) = (&vault.db, "a job", &vault.instance, vault.clock.now());
    let until = now.plus(Duration::from_secs(60));
    if leases::acquire(db, name, owner, now, until).await.is_ok_and(|has| has)
        && leases::renew(db, name, owner, until).await.is_ok_and(|has| has)
    {
        let _ = leases::release(db, name, owner).await;
    }
}

/// Time begins anew in each run, and the lease of a process that died in the run before would last.
fn no_leases(s: &mut Simulation<'_>) {
    let ended = s.ground.look(async |db| db.execute("DELETE FROM leases", &[]).await);
    ended.expect("leases");
}

/// The payment is paid, and the card that the gateway has a token of is kept once.
fn one_token_kept(s: &mut Simulation<'_>, id: &str) -> Vec<String> {
    let mut wrong = paid_again(s, id);
    let shown = s.ask(0, "GET", &format!("/v1/payments/{id}"), "", Ask::Other);
    let told = s.told(shown);
    let tokens = count(s, "SELECT count(*) AS many FROM cards WHERE merchant = $1 AND token IS NOT NULL");
    if text_at(&told, "/status") == "AUTHORIZED" && tokens != 1 {
        wrong.push(format!("{tokens} cards have a token"));
    }
    wrong
}

/// The id of the payment with a number.
fn name(s: &Simulation<'_>, number: u64) -> String {
    format!("{}PAY{number}", s.prefix)
}

/// Sets what the next payment comes to; its id.
fn next(s: &mut Simulation<'_>, state: State) -> String {
    next_is(s, state);
    name(s, s.next_name + 1)
}

fn paid_next(s: &mut Simulation<'_>) -> String {
    next(s, State::Paid)
}

/// A payment that is paid.
fn paid(s: &mut Simulation<'_>, manual: bool) -> String {
    next_is(s, State::Paid);
    s.pay(0, Kind::Reference, 500, manual)
}

/// The last state that a caller was told.
fn told_last(s: &Simulation<'_>, id: &str, good: &[&str]) -> Vec<String> {
    let told = s.asked.get(id).and_then(|asked| asked.told.last().cloned());
    if told.as_deref().is_some_and(|told| good.contains(&told)) {
        return Vec::new();
    }
    vec![format!("{id} is told {told:?} in the end")]
}

/// Its caller asks again, and is told the end.
fn paid_again(s: &mut Simulation<'_>, id: &str) -> Vec<String> {
    s.repeat(0, id);
    told_last(s, id, &["AUTHORIZED", "FAILED", "CANCELLED"])
}

/// The last operation of a payment is asked for again, and is settled.
fn operated_again(s: &mut Simulation<'_>, id: &str) -> Vec<String> {
    let (path, _, body) = s.asked[id].operations.last().cloned().expect("an operation");
    let number = s.ask(0, "POST", &path, &body, Ask::Other);
    let status = text_at(&s.told(number), "/status");
    let settled = matches!(status.as_str(), "SUCCEEDED" | "FAILED");
    if settled { Vec::new() } else { vec![format!("the operation is {status} in the end")] }
}

fn is_call(what: &What) -> bool {
    matches!(what, What::Call(_))
}

fn is_cancel(what: &What) -> bool {
    matches!(what, What::Call(name) if name.starts_with("Cancel"))
}

fn is_answer(what: &What) -> bool {
    matches!(what, What::Answer(_))
}

/// A payment whose call or answer is lost.
fn lost(s: &mut Simulation<'_>, kind: Kind, where_lost: fn(&What) -> bool) -> String {
    next_is(s, State::Paid);
    s.storm(1000, 0);
    let id = s.pay(0, kind, 500, false);
    assert!(s.go_on(0, where_lost));
    s.release_first(Go::Lost, where_lost);
    s.go_on(0, |_| false);
    id
}

/// Its sender has died.
fn unclear(s: &mut Simulation<'_>, kind: Kind, where_lost: fn(&What) -> bool) -> String {
    let id = lost(s, kind, where_lost);
    s.crash(0);
    s.start(0);
    id
}

/// Its sender has died, and its time is over.
fn later(s: &mut Simulation<'_>, kind: Kind, where_lost: fn(&What) -> bool, after: i64) -> String {
    let id = unclear(s, kind, where_lost);
    s.pass(after, false);
    id
}

/// Its sender lives, and asks after it a second later.
fn followed(s: &mut Simulation<'_>, where_lost: fn(&What) -> bool) {
    lost(s, Kind::Reference, where_lost);
    s.pass(1_000, false);
}

/// An operation whose call or answer is lost, and whose sender has died.
fn operation_later(s: &mut Simulation<'_>, capture: bool, where_lost: fn(&What) -> bool) -> String {
    let id = paid(s, capture);
    s.storm(1000, 0);
    s.operate(0, &id, capture, 200);
    assert!(s.go_on(0, where_lost));
    s.release_first(Go::Lost, where_lost);
    s.crash(0);
    s.start(0);
    s.pass(130_000, false);
    id
}
