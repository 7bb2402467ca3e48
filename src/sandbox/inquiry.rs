//! `inquiryPayment` and `cancel`: what became of a payment, and ending it.

use std::io;

use serde_json::{Value, json};

use super::answer::{Answer, Manner, message, result};
use super::api::Core;
use super::check::{self, Named};
use super::ledger::{Books, LedgerEntry, Name, Status};
use super::spoil::{Names, spoil};
use super::triggers::{self, Cancel, Inquiry, Says};
use super::{operations, payment};

/// A payment in process without a page ends at this inquiry.
const ENDS_AT: u32 = 2;

/// Answers an inquiry.
pub(super) fn inquire(core: &Core, body: &Value) -> io::Result<Answer> {
    let named = match check::payment_named(body) {
        Ok(named) => named,
        Err(refusal) => return Ok(refusal.into()),
    };
    core.ledger.with(|books| {
        let Some(mut entry) = find(books, &named) else {
            return Ok(Answer::failure("ORDER_NOT_EXIST"));
        };
        let manner = triggers::find(&entry.amount.value).map_or(Inquiry::Told, |trigger| trigger.inquiry);
        if manner == Inquiry::Unclear && entry.status != Status::Cancelled {
            return Ok(Answer::result("U", "UNKNOWN_EXCEPTION", message("UNKNOWN_EXCEPTION")));
        }
        let silent = manner == Inquiry::FirstSilent;
        let waits = entry.status == Status::Processing && entry.page.is_none();
        let now = core.now();
        let moved = operations::inquired(&mut entry, now);
        if silent || waits {
            entry.inquiries = entry.inquiries.saturating_add(1);
            if waits && entry.inquiries >= ENDS_AT {
                payment::settle(&mut entry, now)?;
            }
        }
        if silent || waits || moved {
            books.put(entry.clone(), now)?;
        }
        if silent && entry.inquiries == 1 {
            return Ok(Answer::nothing(Manner::Silence));
        }
        Ok(Answer::json(&payment::inquiry_answer(&entry, &core.base_url), Manner::Plain))
    })
}

/// Answers a cancel: voids what was paid or is in process, and gives back what was captured; a second
/// cancel says the same. A capture in process, or a refund, stands in its way.
pub(super) fn cancel(core: &Core, body: &Value) -> io::Result<Answer> {
    let named = match check::payment_named(body) {
        Ok(named) => named,
        Err(refusal) => return Ok(refusal.into()),
    };
    core.ledger.with(|books| {
        let Some(mut entry) = find(books, &named) else {
            return Ok(Answer::failure("ORDER_NOT_EXIST"));
        };
        let manner = triggers::find(&entry.amount.value).map_or(Cancel::Told, |trigger| trigger.cancel);
        let mut says = Says::Truth;
        match (entry.status, manner) {
            (Status::Fail, _) => return Ok(Answer::failure("ORDER_STATUS_INVALID")),
            (Status::Cancelled, _) => {}
            (Status::Success | Status::Processing, _) if !cancellable(&entry) => {
                return Ok(Answer::failure("ORDER_STATUS_INVALID"));
            }
            (_, Cancel::Refused(code)) => {
                return Ok(Answer::result(code.status, code.code, message(code.code)));
            }
            (_, Cancel::NotDone(says)) if books.strike(&format!("cancel\n{}", entry.payment_id))? => {
                return Ok(spoil(says, Value::Null, &NAMES));
            }
            (_, manner) => {
                payment::cancel(&mut entry, core.now());
                books.put(entry.clone(), core.now())?;
                if let Cancel::Done(spoilt) = manner {
                    says = spoilt;
                }
            }
        }
        let answer = json!({
            "paymentId": entry.payment_id,
            "paymentRequestId": entry.payment_request_id,
            "cancelTime": entry.cancelled,
            "result": result("S", "SUCCESS", message("SUCCESS")),
        });
        Ok(spoil(says, answer, &NAMES))
    })
}

/// A cancel's answer has no amount.
const NAMES: Names = Names { id: "paymentId", amount: "paymentAmount" };

fn cancellable(entry: &LedgerEntry) -> bool {
    let captures = entry.captures.iter().all(|capture| capture.status != Status::Processing);
    captures && entry.refunds.iter().all(|refund| refund.status == Status::Fail)
}

fn find(books: &Books, named: &Named) -> Option<LedgerEntry> {
    match named {
        Named::PaymentId(id) => books.find_named(&Name::Payment(id.clone())),
        Named::PaymentRequestId(id) => books.find(id),
    }
    .cloned()
}
