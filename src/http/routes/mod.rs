//! One file for each endpoint: read the request, call one operation, write the answer.

pub mod cancel_payment;
pub mod create_capture;
pub mod create_card;
pub mod create_payment;
pub mod create_refund;
pub mod erase_card;
pub mod list_agreements;
pub mod list_captures;
pub mod list_cards;
pub mod list_events;
pub mod list_payments;
pub mod list_refunds;
pub mod openapi;
pub mod patch_card;
pub mod put_cvv;
pub mod read_agreement;
pub mod read_cancel;
pub mod read_capture;
pub mod read_card;
pub mod read_payment;
pub mod read_refund;
pub mod whoami;
pub mod withdraw_agreement;

use crate::base::card::find_pans;
use crate::base::fault::FieldFault;
use crate::base::ids::{CardId, PaymentRequestId};
use crate::base::json::Object;

use super::problem::{self, Problem};

/// A card's reference in a path: what is not one is not found.
fn card_id(text: &str) -> Result<CardId, Problem> {
    CardId::parse(text).ok_or_else(|| problem::NOT_FOUND.into())
}

/// A payment's id in a path. A card number is never looked up, so that no log of the database keeps it.
fn payment_request_id(text: &str) -> Result<PaymentRequestId, Problem> {
    PaymentRequestId::parse(text)
        .filter(|_| find_pans(text).is_empty())
        .ok_or_else(|| problem::NOT_FOUND.into())
}

/// A body that must be an object.
fn object(text: &str) -> Result<Object<'_>, Problem> {
    Object::parse(text).ok_or_else(|| vec![FieldFault::at("", "invalid_type")].into())
}

/// A page: its items, and the cursor for the next one.
fn page(items: Vec<String>, next: Option<&str>) -> String {
    crate::base::json::ObjectWriter::default()
        .raw("data", &format!("[{}]", items.join(",")))
        .string_or_null("next", next)
        .finish()
}
