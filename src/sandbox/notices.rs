//! Which notifications a change of a payment calls for, and what stands in them.
//!
//! Pure but for random ids: the ledger asks, and keeps the outcome beside the change; `deliver` sends it.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::answer::{message, result};
use super::ledger::{Kind, LedgerEntry, Operation, Status};
use super::triggers::{self, Notices};
use super::{operations, payment};
use crate::base::clock::Millis;

/// An ordinary notification waits this long, so that the answer to the call goes first.
const HOLD: Duration = Duration::from_millis(100);
/// A delayed one waits this many times as long as a slow answer takes.
const DELAY: u32 = 4;
/// How long a merchant is said to have for the defence of a dispute.
const DEFENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A notification that waits to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Notice {
    /// Counts up through the ledger.
    pub number: u64,
    /// Of which payment.
    pub payment_request_id: String,
    /// Where it goes.
    pub url: String,
    /// The exact text.
    pub body: String,
    /// Milliseconds since 1970.
    pub due: i64,
    /// How often it was sent.
    pub sent: u32,
    /// Whether its signature is to be that of another text.
    pub wrongly_signed: bool,
}

/// The notifications of the change from `before` to `after`. `slow` is the time of a slow answer.
pub(super) fn of(
    before: Option<&LedgerEntry>,
    after: &LedgerEntry,
    slow: Duration,
    now: Millis,
) -> io::Result<Vec<Notice>> {
    let manner = triggers::find(&after.amount.value).map_or(Notices::Once, |trigger| trigger.notices);
    let mut queue = Queue { entry: after, slow, now, notices: Vec::new() };
    let ended = |entry: &LedgerEntry| matches!(entry.status, Status::Success | Status::Fail);
    if ended(after) && !before.is_some_and(ended) {
        queue.payment(manner)?;
    }
    for kind in [Kind::Capture, Kind::Refund] {
        for operation in after.operations(kind) {
            let known = before.and_then(|entry| {
                entry.operations(kind).iter().find(|known| known.request_id == operation.request_id)
            });
            let open = known.is_none_or(|known| known.status == Status::Processing);
            if operation.status != Status::Processing && open {
                queue.operation(kind, operation, manner)?;
            }
        }
    }
    Ok(queue.notices)
}

struct Queue<'a> {
    entry: &'a LedgerEntry,
    slow: Duration,
    now: Millis,
    notices: Vec<Notice>,
}

impl Queue<'_> {
    fn payment(&mut self, manner: Notices) -> io::Result<()> {
        let entry = self.entry;
        let Some(url) = entry.notify_url.as_deref() else { return Ok(()) };
        let mut truth = payment_result(entry);
        if manner == Notices::PendingFirst {
            let mut pending = truth.clone();
            pending["notifyType"] = json!("PAYMENT_PENDING");
            pending["result"] = result("S", "SUCCESS", message("SUCCESS"));
            self.queue(url, &pending, Notices::Once);
        }
        if manner == Notices::Caav {
            respell(&mut truth);
        }
        self.told(url, truth, "paymentAmount", manner);
        if manner == Notices::Disputed && entry.status == Status::Success {
            let id = payment::gateway_id("194010811000188", self.now)?;
            self.queue(url, &self.dispute(&id, "DISPUTE_CREATED"), Notices::Once);
            self.queue(url, &self.dispute(&id, "DISPUTE_JUDGED"), Notices::Once);
        }
        Ok(())
    }

    fn operation(&mut self, kind: Kind, operation: &Operation, payments: Notices) -> io::Result<()> {
        let (url, name, amount) = match kind {
            Kind::Capture => (self.entry.notify_url.as_deref(), "CAPTURE_RESULT", "captureAmount"),
            Kind::Refund => (operation.notify_url.as_deref(), "REFUND_RESULT", "refundAmount"),
        };
        let Some(url) = url else { return Ok(()) };
        // The gateway's own capture has no amount of its own: it keeps silent with its payment.
        let manner = match (operation.automatic, payments) {
            (true, Notices::Never) => Notices::Never,
            (true, _) => Notices::Once,
            (false, _) => triggers::find_operation(kind, &operation.amount.value)
                .map_or(Notices::Once, |trigger| trigger.notices),
        };
        let mut truth = operations::told(kind, operation);
        truth["notifyType"] = json!(name);
        truth["result"] = operations::verdict(operation);
        truth["paymentId"] = json!(self.entry.payment_id);
        if kind == Kind::Refund {
            truth["refundStatus"] = json!(operation.status);
            if operation.time.is_some() {
                truth["arn"] = json!(operation.acquirer_reference);
            }
        }
        self.told(url, truth, amount, manner);
        Ok(())
    }

    /// The true notification and what a trigger makes of it.
    fn told(&mut self, url: &str, mut truth: Value, amount: &str, manner: Notices) {
        let success = truth["result"]["resultStatus"] == "S";
        if manner == Notices::UnknownType {
            let mut unknown = truth.clone();
            unknown["notifyType"] = json!("SOMETHING_NEW");
            self.queue(url, &unknown, Notices::Once);
        }
        if manner == Notices::OtherAmount && success {
            truth[amount]["value"] = json!("1");
            if truth.get("actualPaymentAmount").is_some() {
                truth["actualPaymentAmount"] = truth[amount].clone();
            }
        }
        if manner != Notices::Never {
            self.queue(url, &truth, manner);
        }
        if manner == Notices::Twice {
            self.queue(url, &truth, manner);
        }
        if manner == Notices::FailsAfter && success {
            truth["result"] = result("F", "PROCESS_FAIL", message("PROCESS_FAIL"));
            if truth.get("refundStatus").is_some() {
                truth["refundStatus"] = json!(Status::Fail);
            }
            self.queue(url, &truth, manner);
        }
    }

    fn queue(&mut self, url: &str, body: &Value, manner: Notices) {
        let wait = match manner {
            Notices::Early => Duration::ZERO,
            Notices::Delayed => self.slow * DELAY,
            _ => HOLD,
        };
        self.notices.push(Notice {
            number: 0,
            payment_request_id: self.entry.payment_request_id.clone(),
            url: url.to_owned(),
            body: body.to_string(),
            due: self.now.plus(wait).0,
            sent: 0,
            wrongly_signed: manner == Notices::WronglySigned,
        });
    }

    /// Reference 10.8. Antom's pages name the type in either of two members.
    fn dispute(&self, id: &str, kind: &str) -> Value {
        let entry = self.entry;
        let mut dispute = json!({
            "notifyType": kind,
            "disputeNotificationType": kind,
            "paymentRequestId": entry.payment_request_id,
            "paymentId": entry.payment_id,
            "disputeId": id,
            "disputeTime": self.now.rfc3339(),
            "disputeAmount": entry.amount,
            "disputeType": "CHARGEBACK",
            "disputeReasonCode": "10.4",
            "disputeReasonMsg": "Other fraud: card-absent environment",
        });
        if kind == "DISPUTE_JUDGED" {
            dispute["disputeJudgedTime"] = json!(self.now.rfc3339());
            dispute["disputeJudgedResult"] = json!("ACCEPT_BY_MERCHANT");
            dispute["disputeJudgedAmount"] = json!(entry.amount);
        } else {
            dispute["defendable"] = json!(true);
            dispute["defenseDueTime"] = json!(self.now.plus(DEFENCE).rfc3339());
        }
        dispute
    }
}

/// Reference 10.3; with the two members that Antom's sample has for Korean cards.
fn payment_result(entry: &LedgerEntry) -> Value {
    let mut told = json!({
        "notifyType": "PAYMENT_RESULT",
        "result": payment::verdict(entry),
        "paymentRequestId": entry.payment_request_id,
        "paymentId": entry.payment_id,
        "paymentAmount": entry.amount,
        "paymentCreateTime": entry.created,
        "paymentMethodType": "CARD",
    });
    if let Some(paid) = &entry.paid {
        told["actualPaymentAmount"] = json!(entry.amount);
        told["paymentTime"] = json!(paid);
        told["authExpiryTime"] = json!(entry.auth_expiry);
    }
    let mut info = payment::result_info(entry);
    let korean = entry.card.as_ref().is_some_and(|card| card.region == "KR");
    let mut card_info = Map::new();
    if korean {
        info.entry("threeDSResult").or_insert_with(|| json!({ "cavv": "", "eci": "" }));
        for name in ["avsResultRaw", "cvvResultRaw", "paymentMethodRegion", "threeDSResult"] {
            card_info.extend(info.get(name).map(|value| (name.to_owned(), value.clone())));
        }
    }
    if let Some(token) = &entry.card_token {
        // Older pages read the token here.
        card_info.insert("cardToken".to_owned(), json!(token));
    }
    if !card_info.is_empty() {
        told["cardInfo"] = Value::Object(card_info);
    }
    told["paymentResultInfo"] = Value::Object(info);
    told
}

/// The spelling of Antom's own sample.
fn respell(told: &mut Value) {
    if let Some(result) = told["paymentResultInfo"]["threeDSResult"].as_object_mut()
        && let Some(cavv) = result.remove("cavv")
    {
        result.insert("caav".to_owned(), cavv);
    }
}
