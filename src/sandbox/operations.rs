//! `capture`, `refund` and `inquiryRefund`: money that moves after a payment.
//!
//! As in `pay`, everything is decided under the ledger's lock and is on disk before an answer leaves. One
//! `captureRequestId` or `refundRequestId` is one operation; a refusal leaves no trace.

use std::io;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::answer::{self, Answer, message, result};
use super::api::Core;
use super::check::{self, OperationRequest, RefundNamed, Refusal};
use super::ledger::{Books, Kind, LedgerEntry, Name, Operation, Status, units};
use super::payment;
use super::spoil::{Names, spoil};
use super::triggers::{self, Code, Operates, OperationTrigger, Says};
use crate::base::clock::Millis;
use crate::gateway::antom::wire::Amount;

/// A capture or a refund in process ends at this inquiry.
const ENDS_AT: u32 = 2;

/// A capture or a refund that ends by itself when some time has passed.
pub(super) struct Later {
    kind: Kind,
    request_id: String,
}

/// What became of a request.
enum Decision {
    Refused(Answer),
    /// A trigger struck and did nothing.
    Struck(Says),
    /// The operation as it now stands, and its payment.
    Stands(Says, Box<LedgerEntry>, Box<Operation>),
}

/// Answers a capture.
pub(super) fn capture(core: &Core, body: &Value) -> io::Result<Answer> {
    operate(core, Kind::Capture, check::capture(body))
}

/// Answers a refund.
pub(super) fn refund(core: &Core, body: &Value) -> io::Result<Answer> {
    operate(core, Kind::Refund, check::refund(body))
}

/// Answers inquiryRefund. Antom's pages say that the members are null when nothing is found; a clear
/// `ORDER_NOT_EXIST` is what its other inquiry says, and says more.
pub(super) fn inquire_refund(core: &Core, body: &Value) -> io::Result<Answer> {
    let named = match check::refund_named(body) {
        Ok(named) => named,
        Err(refusal) => return Ok(refusal.into()),
    };
    let is = |refund: &Operation| match &named {
        RefundNamed::Id(id) => refund.id == *id,
        RefundNamed::RequestId(id) => refund.request_id == *id,
    };
    core.ledger.with(|books| {
        let found = books.find_where(|entry| entry.refunds.iter().any(is)).cloned();
        let Some(mut entry) = found else {
            return Ok(Answer::failure("ORDER_NOT_EXIST"));
        };
        let now = core.now();
        if count(&mut entry, Kind::Refund, is, now) {
            books.put(entry.clone(), now)?;
        }
        let Some(refund) = entry.refunds.iter().find(|refund| is(refund)) else {
            return Ok(Answer::failure("ORDER_NOT_EXIST"));
        };
        let mut answer = json!({
            "refundId": refund.id,
            "refundRequestId": refund.request_id,
            "refundAmount": refund.amount,
            "refundStatus": refund.status,
            "result": result("S", "SUCCESS", message("SUCCESS")),
        });
        if let Some(time) = &refund.time {
            answer["refundTime"] = json!(time);
            answer["arn"] = json!(refund.acquirer_reference);
        }
        Ok(Answer::json(&answer, answer::Manner::Plain))
    })
}

/// Ends an operation that has waited long enough, unless it has ended in the meantime.
pub(super) fn land(core: &Core, later: &Later) -> io::Result<()> {
    core.ledger.with(|books| {
        let name = Name::Operation(later.kind, later.request_id.clone());
        let found = books.find_named(&name).cloned();
        let Some(mut entry) = found else { return Ok(()) };
        let now = core.now();
        let ended = end(&mut entry, later.kind, |operation| operation.request_id == later.request_id, now);
        if ended { books.put(entry, now) } else { Ok(()) }
    })
}

/// Counts an inquiry into a payment for its operations in process. True if the entry has changed.
pub(super) fn inquired(entry: &mut LedgerEntry, now: Millis) -> bool {
    let captures = count(entry, Kind::Capture, |_| true, now);
    let refunds = count(entry, Kind::Refund, |_| true, now);
    captures || refunds
}

/// What the gateway does by itself under AUTOMATIC capture.
pub(super) fn capture_all(entry: &mut LedgerEntry, now: Millis) -> io::Result<()> {
    // Which captureRequestId Antom gives to its own captures is not documented.
    let request_id = format!("AUTO{}", payment::random_word(24)?);
    let mut capture = blank(Kind::Capture, request_id, &entry.amount, payment::PAID, now)?;
    capture.automatic = true;
    capture.last = true;
    settle(&mut capture, now);
    entry.captures.push(capture);
    Ok(())
}

/// An operation in `transactions[]` of an inquiry.
pub(super) fn transaction(kind: Kind, operation: &Operation) -> Value {
    let name = match kind {
        Kind::Capture => "CAPTURE",
        Kind::Refund => "REFUND",
    };
    let mut told = json!({
        "transactionType": name,
        "transactionStatus": operation.status,
        "transactionId": operation.id,
        "transactionRequestId": operation.request_id,
        "transactionAmount": operation.amount,
        "transactionResult": verdict(operation),
    });
    if let Some(time) = &operation.time {
        told["transactionTime"] = json!(time);
    }
    told
}

/// How an operation stands, as a result.
pub(super) fn verdict(operation: &Operation) -> Value {
    match operation.status {
        Status::Processing => result("U", "PAYMENT_IN_PROCESS", message("PAYMENT_IN_PROCESS")),
        _ => {
            let verdict = &operation.verdict;
            result(&verdict.result_status, &verdict.result_code, &verdict.result_message)
        }
    }
}

/// The members that an answer and a notification of an operation have in common.
pub(super) fn told(kind: Kind, operation: &Operation) -> Value {
    let time = json!(operation.time);
    let mut told = match kind {
        Kind::Capture => json!({
            "captureRequestId": operation.request_id,
            "captureId": operation.id,
            "captureAmount": operation.amount,
            "captureTime": time,
        }),
        Kind::Refund => json!({
            "refundRequestId": operation.request_id,
            "refundId": operation.id,
            "refundAmount": operation.amount,
            "refundTime": time,
        }),
    };
    told["acquirerReferenceNo"] = json!(operation.acquirer_reference);
    if let (None, Some(members)) = (&operation.time, told.as_object_mut()) {
        members.retain(|name, _| !name.ends_with("Time") && name != "acquirerReferenceNo");
    }
    told
}

fn operate(core: &Core, kind: Kind, request: Result<OperationRequest, Refusal>) -> io::Result<Answer> {
    let request = match request {
        Ok(request) => request,
        Err(refusal) => return Ok(refusal.into()),
    };
    let trigger = triggers::find_operation(kind, &request.amount.value);
    let names = match kind {
        Kind::Capture => Names { id: "captureRequestId", amount: "captureAmount" },
        Kind::Refund => Names { id: "refundRequestId", amount: "refundAmount" },
    };
    match core.ledger.with(|books| decide(books, kind, &request, trigger, core.now()))? {
        Decision::Refused(answer) => Ok(answer),
        Decision::Struck(says) => Ok(spoil(says, Value::Null, &names)),
        Decision::Stands(says, entry, operation) => {
            let mut truth = told(kind, &operation);
            truth["paymentId"] = json!(entry.payment_id);
            truth["result"] = verdict(&operation);
            let mut answer = spoil(says, truth, &names);
            answer.about = Some(entry.payment_request_id);
            let waits = operation.status == Status::Processing;
            if waits && trigger.is_some_and(|trigger| trigger.acts == Operates::Later) {
                let later = Later { kind, request_id: operation.request_id };
                answer.later = Some(answer::Later::Operation(later));
            }
            Ok(answer)
        }
    }
}

fn decide(
    books: &mut Books,
    kind: Kind,
    request: &OperationRequest,
    trigger: Option<&OperationTrigger>,
    now: Millis,
) -> io::Result<Decision> {
    let known = books.find_named(&Name::Operation(kind, request.request_id.clone()));
    if let Some(entry) = known.cloned() {
        return repeat(books, entry, kind, request, now);
    }
    let payment = books.find_named(&Name::Payment(request.payment_id.clone()));
    let Some(mut entry) = payment.cloned() else {
        return Ok(Decision::Refused(Answer::failure("ORDER_NOT_EXIST")));
    };
    if let Err(refusal) = allowed(&entry, kind, request, now) {
        return Ok(Decision::Refused(refusal));
    }
    let (mut acts, mut says) =
        trigger.map_or((Operates::Does, Says::Truth), |trigger| (trigger.acts, trigger.says));
    if acts == Operates::Nothing {
        if books.strike(&format!("{kind:?}\n{}", request.request_id))? {
            return Ok(Decision::Struck(says));
        }
        (acts, says) = (Operates::Does, Says::Truth);
    }
    let code = match acts {
        Operates::Fails(code) | Operates::Waits(code) => code,
        Operates::Does | Operates::Later | Operates::Nothing => payment::PAID,
    };
    let mut operation = blank(kind, request.request_id.clone(), &request.amount, code, now)?;
    operation.last = request.last;
    operation.notify_url.clone_from(&request.notify_url);
    if !matches!(acts, Operates::Waits(_) | Operates::Later) {
        settle(&mut operation, now);
    }
    entry.operations_mut(kind).push(operation.clone());
    books.put(entry.clone(), now)?;
    Ok(Decision::Stands(says, Box::new(entry), Box::new(operation)))
}

/// The same result for the same request; one in process is pushed on.
fn repeat(
    books: &mut Books,
    mut entry: LedgerEntry,
    kind: Kind,
    request: &OperationRequest,
    now: Millis,
) -> io::Result<Decision> {
    let same = |operation: &Operation| {
        operation.request_id == request.request_id && operation.amount == request.amount
    };
    if entry.payment_id != request.payment_id || !entry.operations(kind).iter().any(same) {
        return Ok(Decision::Refused(Answer::failure("REPEAT_REQ_INCONSISTENT")));
    }
    if end(&mut entry, kind, same, now) {
        books.put(entry.clone(), now)?;
    }
    match entry.operations(kind).iter().find(|operation| same(operation)).cloned() {
        Some(operation) => Ok(Decision::Stands(Says::Truth, Box::new(entry), Box::new(operation))),
        None => Ok(Decision::Refused(Answer::failure("REPEAT_REQ_INCONSISTENT"))),
    }
}

/// Whether the payment allows the operation.
fn allowed(entry: &LedgerEntry, kind: Kind, request: &OperationRequest, now: Millis) -> Result<(), Answer> {
    let invalid = || Err(Answer::failure("ORDER_STATUS_INVALID"));
    if entry.status != Status::Success {
        return invalid();
    }
    let closed = entry.captures.iter().any(|capture| capture.last && capture.status != Status::Fail);
    if kind == Kind::Capture && (!entry.manual_capture || closed || expired(entry, now)) {
        return invalid();
    }
    if request.amount.currency != entry.amount.currency {
        let path = if kind == Kind::Capture { "captureAmount.currency" } else { "refundAmount.currency" };
        return Err(check::misfit(path).into());
    }
    if let Some(id) = &request.capture_id
        && !entry.captures.iter().any(|capture| capture.charged && capture.id == *id)
    {
        return Err(check::misfit("captureId").into());
    }
    let (ceiling, code) = match kind {
        Kind::Capture => (units(&entry.amount), "CAPTURE_AMOUNT_EXCEED"),
        Kind::Refund => (entry.captured(), "REFUND_AMOUNT_EXCEED"),
    };
    match entry.reserved(kind).saturating_add(units(&request.amount)) > ceiling {
        true => Err(Answer::failure(code)),
        false => Ok(()),
    }
}

/// A time that cannot be read has not passed.
fn expired(entry: &LedgerEntry, now: Millis) -> bool {
    let expiry = entry.auth_expiry.as_deref().and_then(|time| OffsetDateTime::parse(time, &Rfc3339).ok());
    expiry.is_some_and(|expiry| expiry.unix_timestamp_nanos() <= i128::from(now.0) * 1_000_000)
}

fn blank(kind: Kind, request_id: String, amount: &Amount, code: Code, now: Millis) -> io::Result<Operation> {
    let names = match kind {
        Kind::Capture => "194010807000188",
        Kind::Refund => "194010809000188",
    };
    Ok(Operation {
        request_id,
        id: payment::gateway_id(names, now)?,
        amount: amount.clone(),
        status: Status::Processing,
        charged: false,
        verdict: payment::call_result(code),
        time: None,
        acquirer_reference: payment::random_word(23)?,
        last: false,
        notify_url: None,
        automatic: false,
        inquiries: 0,
    })
}

/// Ends an operation as its verdict says.
fn settle(operation: &mut Operation, now: Millis) {
    if operation.verdict.result_status == "S" {
        operation.status = Status::Success;
        operation.charged = true;
        operation.time = Some(now.rfc3339());
    } else {
        operation.status = Status::Fail;
    }
}

/// Ends those operations that are in process. True if there were any.
fn end(entry: &mut LedgerEntry, kind: Kind, is: impl Fn(&Operation) -> bool, now: Millis) -> bool {
    let mut ended = false;
    for operation in entry.operations_mut(kind).iter_mut() {
        if operation.status == Status::Processing && is(operation) {
            settle(operation, now);
            ended = true;
        }
    }
    ended
}

fn count(entry: &mut LedgerEntry, kind: Kind, is: impl Fn(&Operation) -> bool, now: Millis) -> bool {
    let mut counted = false;
    for operation in entry.operations_mut(kind).iter_mut() {
        if operation.status == Status::Processing && is(operation) {
            operation.inquiries = operation.inquiries.saturating_add(1);
            if operation.inquiries >= ENDS_AT {
                settle(operation, now);
            }
            counted = true;
        }
    }
    counted
}
