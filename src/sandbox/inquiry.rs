//! `inquiryPayment` and `cancel`: what became of a payment, and ending it.

use std::io;

use serde_json::{Value, json};

use super::answer::{Answer, Manner, message, result};
use super::api::Core;
use super::check::{self, Named};
use super::ledger::{Books, LedgerEntry, Status};
use super::payment;
use super::triggers::{self, Inquiry};

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
        if silent || waits {
            entry.inquiries = entry.inquiries.saturating_add(1);
            if waits && entry.inquiries >= ENDS_AT {
                payment::settle(&mut entry, core.now())?;
            }
            books.put(entry.clone())?;
        }
        if silent && entry.inquiries == 1 {
            return Ok(Answer::nothing(Manner::Silence));
        }
        Ok(Answer::json(&payment::inquiry_answer(&entry, &core.base_url), Manner::Plain))
    })
}

/// Answers a cancel: voids what was paid or is in process; a second cancel says the same.
pub(super) fn cancel(core: &Core, body: &Value) -> io::Result<Answer> {
    let named = match check::payment_named(body) {
        Ok(named) => named,
        Err(refusal) => return Ok(refusal.into()),
    };
    core.ledger.with(|books| {
        let Some(mut entry) = find(books, &named) else {
            return Ok(Answer::failure("ORDER_NOT_EXIST"));
        };
        match entry.status {
            Status::Fail => return Ok(Answer::failure("ORDER_STATUS_INVALID")),
            Status::Cancelled => {}
            Status::Success | Status::Processing => {
                payment::cancel(&mut entry, core.now());
                books.put(entry.clone())?;
                if triggers::find(&entry.amount.value).is_some_and(|trigger| trigger.silent_cancel) {
                    return Ok(Answer::nothing(Manner::Silence));
                }
            }
        }
        let answer = json!({
            "paymentId": entry.payment_id,
            "paymentRequestId": entry.payment_request_id,
            "cancelTime": entry.cancelled,
            "result": result("S", "SUCCESS", message("SUCCESS")),
        });
        Ok(Answer::json(&answer, Manner::Plain))
    })
}

fn find(books: &Books, named: &Named) -> Option<LedgerEntry> {
    match named {
        Named::PaymentId(id) => books.find_where(|entry| entry.payment_id == *id),
        Named::PaymentRequestId(id) => books.find(id),
    }
    .cloned()
}
