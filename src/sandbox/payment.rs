//! One payment's life: how it begins, how it ends, and how it is told.
//!
//! Pure but for random ids. The same words serve pay, a repeat and an inquiry, so that they cannot
//! disagree by accident; where they shall disagree, a trigger says so in `pay`.

use std::io;
use std::time::Duration;

use data_encoding::{BASE32_NOPAD, BASE64};
use serde_json::{Map, Value, json};

use super::answer::{message, result};
use super::cards::{self, Decline};
use super::check::{Method, PayRequest};
use super::ledger::{Books, Kind, LedgerEntry, Status, ThreeDs};
use super::operations;
use super::triggers::{self, Code, Extra};
use crate::base::clock::Millis;
use crate::base::entropy;
use crate::gateway::antom::wire::CallResult;

/// How long a capture may wait (reference 10.5).
const AUTH_VALID: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a payment ends with when it ends well.
pub(super) const PAID: Code = Code { status: "S", code: "SUCCESS" };

/// A payment that is about to go the way that its card and its request ask for: paid, declined, or
/// waiting for the buyer on a page.
pub(super) fn begin(
    books: &Books,
    request: &PayRequest,
    three_ds: bool,
    now: Millis,
) -> io::Result<LedgerEntry> {
    let mut entry = blank(books, request, three_ds, now)?;
    if entry.page.is_none() {
        settle(&mut entry, now)?
    }
    Ok(entry)
}

/// A payment that ends with `code`, whatever its card.
pub(super) fn begin_as(
    books: &Books,
    request: &PayRequest,
    code: Code,
    decline: Option<Decline>,
    now: Millis,
) -> io::Result<LedgerEntry> {
    let mut entry = blank(books, request, false, now)?;
    entry.page = None;
    judge(&mut entry, code, decline);
    Ok(entry)
}

/// Ends a payment as its verdict says.
pub(super) fn settle(entry: &mut LedgerEntry, now: Millis) -> io::Result<()> {
    if entry.verdict.result_status != "S" {
        entry.status = Status::Fail;
        return Ok(());
    }
    let extra = triggers::find(&entry.amount.value).map_or(Extra::None, |trigger| trigger.extra);
    entry.status = Status::Success;
    entry.charged = true;
    entry.paid = Some(now.rfc3339());
    entry.auth_expiry = match extra {
        Extra::Expired if entry.manual_capture => entry.paid.clone(),
        _ => Some(now.plus(AUTH_VALID).rfc3339()),
    };
    entry.network_transaction_id = Some(random_word(20)?);
    if entry.tokenize {
        entry.card_token = Some(format!("SBXTOKEN{}", random_word(32)?));
    }
    if entry.card.is_none() {
        entry.card = Some(cards::facts(cards::HOSTED_PAGE_CARD));
    }
    if entry.challenge {
        entry.three_ds = Some(three_ds(entry, true)?);
    } else if extra == Extra::ThreeDs && entry.three_ds.is_none() {
        entry.three_ds = Some(three_ds(entry, false)?);
    }
    if extra == Extra::TransactionLink && is_mastercard(entry) {
        entry.transaction_link_id = Some(random_word(22)?);
    }
    if !entry.manual_capture {
        operations::capture_all(entry, now)?;
    }
    Ok(())
}

/// Ends a payment because the buyer said no.
pub(super) fn turn_down(entry: &mut LedgerEntry) {
    let code = if entry.challenge { "USER_PAYMENT_VERIFICATION_FAILED" } else { "DO_NOT_HONOR" };
    judge(entry, Code { status: "F", code }, None);
    entry.status = Status::Fail;
}

/// Ends a payment by cancel; money that was taken goes back.
pub(super) fn cancel(entry: &mut LedgerEntry, now: Millis) {
    entry.status = Status::Cancelled;
    entry.cancelled = Some(now.rfc3339());
}

/// The answer to pay: the truth, before any trigger spoils it.
pub(super) fn pay_answer(entry: &LedgerEntry, base_url: &str) -> Value {
    let mut answer = told(entry, base_url);
    let result = match entry.status {
        Status::Processing => result("U", "PAYMENT_IN_PROCESS", message("PAYMENT_IN_PROCESS")),
        Status::Cancelled => result("F", "ORDER_IS_CLOSED", message("ORDER_IS_CLOSED")),
        Status::Success | Status::Fail => verdict(entry),
    };
    answer.insert("result".to_owned(), result);
    Value::Object(answer)
}

/// The answer to inquiryPayment.
pub(super) fn inquiry_answer(entry: &LedgerEntry, base_url: &str) -> Value {
    let mut answer = told(entry, base_url);
    let (code, words) = match entry.status {
        Status::Processing => ("PAYMENT_IN_PROCESS", message("PAYMENT_IN_PROCESS")),
        Status::Cancelled => ("ORDER_IS_CLOSED", message("ORDER_IS_CLOSED")),
        Status::Success | Status::Fail => {
            (entry.verdict.result_code.as_str(), entry.verdict.result_message.as_str())
        }
    };
    answer.insert("paymentStatus".to_owned(), json!(entry.status));
    answer.insert("paymentResultCode".to_owned(), json!(code));
    answer.insert("paymentResultMessage".to_owned(), json!(words));
    if let Some(token) = &entry.card_token {
        // Older pages read the token here.
        answer.insert("cardInfo".to_owned(), json!({ "cardToken": token }));
    }
    let mut transactions: Vec<Value> = [Kind::Capture, Kind::Refund]
        .into_iter()
        .flat_map(|kind| entry.operations(kind).iter().map(move |done| operations::transaction(kind, done)))
        .collect();
    transactions.extend(entry.cancelled.as_deref().map(|time| cancellation(entry, time)));
    if !transactions.is_empty() {
        answer.insert("transactions".to_owned(), Value::Array(transactions));
    }
    answer.insert("result".to_owned(), result("S", "SUCCESS", message("SUCCESS")));
    Value::Object(answer)
}

/// The digest of the card that a payment is made with: of its number, or of the card behind a token that
/// this sandbox has issued.
pub(super) fn card_digest(books: &Books, method: &Method) -> Option<String> {
    match method {
        Method::Card { digits, .. } => Some(books.card_digest(digits)),
        Method::Token(token) => issued(books, token)?.card_digest.clone(),
        Method::HostedPage => Some(books.card_digest(cards::HOSTED_PAGE_CARD)),
    }
}

fn issued<'a>(books: &'a Books, token: &str) -> Option<&'a LedgerEntry> {
    books.find_where(|entry| entry.card_token.as_deref() == Some(token))
}

/// `characters` random capital letters and digits: a word that no scanner takes for a card number.
pub(super) fn random_word(characters: usize) -> io::Result<String> {
    let mut word = BASE32_NOPAD.encode(&random::<20>()?);
    word.truncate(characters);
    Ok(word)
}

fn blank(books: &Books, request: &PayRequest, three_ds_wanted: bool, now: Millis) -> io::Result<LedgerEntry> {
    let card = match &request.method {
        Method::Card { digits, .. } => Some(cards::facts(digits)),
        Method::Token(token) => issued(books, token)
            .and_then(|entry| entry.card.clone())
            // A token that another gateway made: any card will do.
            .or_else(|| Some(cards::facts(cards::HOSTED_PAGE_CARD))),
        Method::HostedPage => None,
    };
    let (digits, with_cvv) = match &request.method {
        Method::Card { digits, cvv } => (digits.as_str(), cvv.is_some()),
        _ => ("", false),
    };
    let hosted = card.is_none();
    let frictionless = digits == cards::FRICTIONLESS_CARD;
    let challenge = three_ds_wanted && !frictionless && !hosted;
    let mut entry = LedgerEntry {
        payment_request_id: request.payment_request_id.clone(),
        payment_id: gateway_id(PAYMENT_ID, now)?,
        amount: request.amount.clone(),
        status: Status::Processing,
        charged: false,
        verdict: call_result(PAID),
        refusal_code_raw: None,
        merchant_advice_code: None,
        card,
        digest: books.digest(&request.parts()),
        created: now.rfc3339(),
        paid: None,
        auth_expiry: None,
        cancelled: None,
        network_transaction_id: None,
        avs: avs(digits, request.billing_address).to_owned(),
        cvv_result: if with_cvv { "Y" } else { "" }.to_owned(),
        tokenize: request.tokenize || hosted,
        card_token: None,
        challenge,
        three_ds: None,
        page: if hosted || challenge { Some(random_word(32)?) } else { None },
        redirect_url: request.redirect_url.clone(),
        inquiries: 0,
        card_digest: card_digest(books, &request.method),
        transaction_link_id: None,
        manual_capture: request.manual_capture,
        captures: Vec::new(),
        refunds: Vec::new(),
        notify_url: request.notify_url.clone(),
    };
    if three_ds_wanted && frictionless {
        entry.three_ds = Some(three_ds(&entry, false)?);
    }
    match cards::decline(digits) {
        Some(decline) => {
            judge(&mut entry, Code { status: "F", code: "DO_NOT_HONOR" }, Some(decline));
        }
        None => judge(&mut entry, PAID, None),
    }
    Ok(entry)
}

/// Address match for odd cards, address and postcode match for even ones, so that a client sees both.
fn avs(digits: &str, billing_address: bool) -> &'static str {
    match (billing_address, digits.bytes().last().is_some_and(|digit| digit % 2 == 1)) {
        (false, _) => "",
        (true, true) => "A",
        (true, false) => "Y",
    }
}

/// A code as it stands in an answer.
pub(super) fn call_result(code: Code) -> CallResult {
    CallResult {
        result_code: code.code.to_owned(),
        result_status: code.status.to_owned(),
        result_message: message(code.code).to_owned(),
    }
}

fn judge(entry: &mut LedgerEntry, code: Code, decline: Option<Decline>) {
    entry.verdict = call_result(code);
    entry.refusal_code_raw = decline.map(|decline| decline.refusal_code.to_owned());
    entry.merchant_advice_code = decline.and_then(|decline| decline.merchant_advice).map(str::to_owned);
}

/// What pay and inquiryPayment tell alike.
fn told(entry: &LedgerEntry, base_url: &str) -> Map<String, Value> {
    let mut told = Map::new();
    let mut tell = |name: &str, value: Value| drop(told.insert(name.to_owned(), value));
    tell("paymentRequestId", json!(entry.payment_request_id));
    tell("paymentId", json!(entry.payment_id));
    tell("paymentAmount", json!(entry.amount));
    tell("paymentCreateTime", json!(entry.created));
    if let (Status::Success, Some(paid)) = (entry.status, &entry.paid) {
        tell("actualPaymentAmount", json!(entry.amount));
        tell("paymentTime", json!(paid));
        tell("authExpiryTime", json!(entry.auth_expiry));
    }
    match (entry.status, &entry.page) {
        (Status::Processing, Some(page)) => {
            let url = format!("{base_url}/pages/{page}");
            tell("normalUrl", json!(url));
            tell(
                "redirectActionForm",
                json!({ "actionFormType": "RedirectActionForm", "method": "GET", "redirectUrl": url }),
            );
        }
        (Status::Processing, None) => {}
        _ => tell("paymentResultInfo", Value::Object(result_info(entry))),
    }
    told
}

pub(super) fn result_info(entry: &LedgerEntry) -> Map<String, Value> {
    let mut info = Map::new();
    let mut tell = |name: &str, value: Value| drop(info.insert(name.to_owned(), value));
    tell("avsResultRaw", json!(entry.avs));
    tell("cvvResultRaw", json!(entry.cvv_result));
    if let Some(card) = &entry.card {
        tell("cardNo", json!(super::mask::card_number(&card.last_four)));
        tell("cardBrand", json!(card.brand));
        tell("cardBin", json!(card.bin));
        tell("lastFour", json!(card.last_four));
        tell("funding", json!("CREDIT"));
        tell("issuingCountry", json!(card.issuing_country));
        tell("paymentMethodRegion", json!(card.region));
    }
    let optional = [
        ("networkTransactionId", &entry.network_transaction_id),
        ("cardToken", &entry.card_token),
        ("transactionLinkId", &entry.transaction_link_id),
        ("refusalCodeRaw", &entry.refusal_code_raw),
        ("merchantAdviceCode", &entry.merchant_advice_code),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            tell(name, json!(value));
        }
    }
    if let Some(three_ds) = &entry.three_ds {
        tell("threeDSResult", json!(three_ds));
    }
    info
}

pub(super) fn verdict(entry: &LedgerEntry) -> Value {
    result(&entry.verdict.result_status, &entry.verdict.result_code, &entry.verdict.result_message)
}

fn cancellation(entry: &LedgerEntry, time: &str) -> Value {
    json!({
        "transactionType": "CANCEL",
        "transactionStatus": "SUCCESS",
        "transactionAmount": entry.amount,
        "transactionTime": time,
        "transactionResult": result("S", "SUCCESS", message("SUCCESS")),
    })
}

fn three_ds(entry: &LedgerEntry, challenged: bool) -> io::Result<ThreeDs> {
    Ok(ThreeDs {
        eci: if is_mastercard(entry) { "02" } else { "05" }.to_owned(),
        cavv: BASE64.encode(&random::<20>()?),
        ds_transaction_id: random_word(32)?,
        version: "2.2.0".to_owned(),
        challenged,
    })
}

fn is_mastercard(entry: &LedgerEntry) -> bool {
    entry.card.as_ref().is_some_and(|card| card.brand == "MASTERCARD")
}

const PAYMENT_ID: &str = "194010800100188";

/// As Antom's look: the day, what it names, then digits; 35 of them, too many for a card number.
pub(super) fn gateway_id(names: &str, now: Millis) -> io::Result<String> {
    let day: String = now.rfc3339().chars().filter(char::is_ascii_digit).take(8).collect();
    let random = u64::from_be_bytes(random()?) % 1_000_000_000_000;
    Ok(format!("{day}{names}{random:012}"))
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    entropy::array().map_err(io::Error::other)
}
