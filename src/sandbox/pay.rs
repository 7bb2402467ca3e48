//! `pay`: one charge for one `paymentRequestId`, whatever happens to the answer.
//!
//! Everything is decided under the ledger's lock and is on disk before an answer leaves, so that twenty
//! requests with one id are one charge. A trigger then spoils the answer, never the books.

use std::io;

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::answer::Answer;
use super::api::Core;
use super::check::{self, Method, PayRequest};
use super::ledger::{Books, LedgerEntry, Name, Status};
use super::payment;
use super::spoil::{Names, spoil};
use super::triggers::{self, Acts, Says, Trigger};
use crate::base::clock::Millis;

/// A payment that lands after its client has given up.
pub(super) struct Later(PayRequest);

/// `networkTransactionId` is a member of the card's map.
const NOT_OF_THIS_CARD: &str = "INVALID_PAYMENT_METHOD_META_DATA";

/// What became of a request, with the books as the only witness.
enum Decision {
    /// A trigger struck and did nothing.
    Struck(Says),
    /// The id stands for another payment than the one asked for.
    Inconsistent,
    /// The id was cancelled.
    Closed,
    /// A merchant-initiated payment that continues nothing.
    Unfounded,
    /// The payment as it now stands, to be told in this way.
    Stands(Says, Box<LedgerEntry>),
}

/// Answers a pay request.
pub(super) fn answer(core: &Core, body: &Value) -> io::Result<Answer> {
    let request = match check::pay(body) {
        Ok(request) => request,
        Err(refusal) => return Ok(refusal.into()),
    };
    let trigger = triggers::find(&request.amount.value);
    match core.ledger.with(|books| decide(books, &request, trigger, core.now()))? {
        Decision::Inconsistent => Ok(Answer::failure("REPEAT_REQ_INCONSISTENT")),
        Decision::Closed => Ok(Answer::failure("ORDER_IS_CLOSED")),
        Decision::Unfounded => Ok(Answer::result(
            "F",
            NOT_OF_THIS_CARD,
            "networkTransactionId is not of a paid payment of this card.",
        )),
        Decision::Stands(says, entry) => {
            Ok(told(says, payment::pay_answer(&entry, &core.base_url), Some(&entry), &request))
        }
        Decision::Struck(says) => {
            let mut answer = told(says, Value::Null, None, &request);
            if trigger.is_some_and(|trigger| trigger.acts == Acts::Late) {
                answer.later = Some(super::answer::Later::Payment(Box::new(Later(request))));
            }
            Ok(answer)
        }
    }
}

/// Lets a late payment land, unless its id was used in the meantime.
pub(super) fn land(core: &Core, later: &Later) -> io::Result<()> {
    core.ledger.with(|books| match books.find(&later.0.payment_request_id) {
        Some(_) => Ok(()),
        None => {
            let entry = payment::begin(books, &later.0, later.0.three_ds, core.now())?;
            books.put(entry, core.now())
        }
    })
}

fn decide(
    books: &mut Books,
    request: &PayRequest,
    trigger: Option<&Trigger>,
    now: Millis,
) -> io::Result<Decision> {
    if let Some(entry) = books.find(&request.payment_request_id).cloned() {
        return repeat(books, entry, request, now);
    }
    if !founded(books, request) {
        return Ok(Decision::Unfounded);
    }
    let (mut acts, mut says) =
        trigger.map_or((Acts::Pays, Says::Truth), |trigger| (trigger.acts, trigger.says));
    if matches!(acts, Acts::Nothing | Acts::Late) {
        if books.strike(&request.payment_request_id)? {
            return Ok(Decision::Struck(says));
        }
        (acts, says) = (Acts::Pays, Says::Truth);
    }
    let entry = act(books, request, acts, now)?;
    books.put(entry.clone(), now)?;
    match entry.status {
        Status::Cancelled => Ok(Decision::Closed),
        _ => Ok(Decision::Stands(says, Box::new(entry))),
    }
}

/// Whether a merchant-initiated payment names a paid payment of the same card (reference 8.5); any other
/// payment needs no such ground.
fn founded(books: &Books, request: &PayRequest) -> bool {
    let Some(network_id) = &request.series else { return true };
    let card = payment::card_digest(books, &request.method);
    let first = books.find_named(&Name::Network(network_id.clone()));
    card.is_some() && first.is_some_and(|entry| entry.charged && entry.card_digest == card)
}

fn act(books: &Books, request: &PayRequest, acts: Acts, now: Millis) -> io::Result<LedgerEntry> {
    match acts {
        Acts::Waits(code) => payment::begin_as(books, request, code, None, now),
        Acts::Fails(code, decline) => {
            let mut entry = payment::begin_as(books, request, code, decline, now)?;
            payment::settle(&mut entry, now)?;
            Ok(entry)
        }
        Acts::Closes => {
            let mut entry = payment::begin_as(books, request, payment::PAID, None, now)?;
            payment::cancel(&mut entry, now);
            Ok(entry)
        }
        Acts::AsksForThreeDs if request.three_ds_upgrade || request.three_ds => {
            payment::begin(books, request, true, now)
        }
        Acts::AsksForThreeDs => act(books, request, triggers::AUTHENTICATION_REQUIRED.acts, now),
        Acts::Pays | Acts::Nothing | Acts::Late => payment::begin(books, request, request.three_ds, now),
    }
}

/// A repeat ends a payment that only waits for time to pass; one that waits for its buyer waits on.
fn repeat(
    books: &mut Books,
    mut entry: LedgerEntry,
    request: &PayRequest,
    now: Millis,
) -> io::Result<Decision> {
    if entry.digest != books.digest(&request.parts()) {
        return Ok(Decision::Inconsistent);
    }
    if entry.status == Status::Cancelled {
        return Ok(Decision::Closed);
    }
    if entry.status == Status::Processing && entry.page.is_none() {
        payment::settle(&mut entry, now)?;
        books.put(entry.clone(), now)?;
    }
    Ok(Decision::Stands(Says::Truth, Box::new(entry)))
}

/// The answer that a trigger makes of the truth.
fn told(says: Says, mut truth: Value, entry: Option<&LedgerEntry>, request: &PayRequest) -> Answer {
    if says == Says::Echo {
        echo(&mut truth, request);
        let shown = Some("(paid; card data given back in the clear and disguised)");
        return Answer { shown, ..spoil(says, truth, &NAMES) };
    }
    let about = entry.map(|entry| entry.payment_request_id.clone());
    Answer { about, ..spoil(says, truth, &NAMES) }
}

const NAMES: Names = Names { id: "paymentRequestId", amount: "paymentAmount" };

/// Gives card data back as no gateway should: by name, and inside other texts in four disguises.
fn echo(truth: &mut Value, request: &PayRequest) {
    let (digits, cvv) = match &request.method {
        Method::Card { digits, cvv } => (digits.as_str(), cvv.as_deref().unwrap_or("737")),
        Method::Token(_) | Method::HostedPage => return,
    };
    let spaced = digits
        .as_bytes()
        .chunks(4)
        .map(|group| String::from_utf8_lossy(group).into_owned())
        .collect::<Vec<_>>()
        .join(" ");
    let encoded: String = digits.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let base64 = BASE64.encode(digits.as_bytes());
    let info = &mut truth["paymentResultInfo"];
    info["cardNo"] = json!(digits);
    info["cvv"] = json!(cvv);
    info["cardToken"] = json!("SBXTOKENECHOED");
    info["threeDSResult"] =
        json!({ "eci": "05", "cavv": "ZWNob2VkIGNhdnYgdmFsdWU=", "caav": "ZWNob2VkIGNhYXYgdmFsdWU=" });
    truth["result"]["resultMessage"] = json!(format!(
        "card {digits} is {spaced} is {} is {encoded} is {base64}",
        spaced.replace(' ', "%20")
    ));
}
