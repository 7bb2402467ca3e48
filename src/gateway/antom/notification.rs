//! Reads verified notifications: what they are about, and what they say of it.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::base::clock::Millis;
use crate::base::json::{self, Object};

use super::verify::Verified;

/// The body of the one answer that ends a notification's delivery (reference, section 5). It need not be
/// signed.
pub const ACKNOWLEDGEMENT: &str =
    r#"{"result":{"resultCode":"SUCCESS","resultStatus":"S","resultMessage":"success"}}"#;
/// Asks for another delivery.
pub const TRY_AGAIN: &str =
    r#"{"result":{"resultCode":"UNKNOWN_EXCEPTION","resultStatus":"U","resultMessage":"try again"}}"#;

/// What a notification is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// `PAYMENT_RESULT` or `PAYMENT_PENDING`.
    Payment {
        /// The idempotency key.
        payment_request_id: String,
        /// What it says.
        says: PaymentWord,
    },
    /// `CAPTURE_RESULT`.
    Capture {
        /// The idempotency key; absent where Antom captured by itself.
        capture_request_id: Option<String>,
        /// Antom's id of the payment.
        payment_id: String,
    },
    /// `REFUND_RESULT`.
    Refund {
        /// The idempotency key; absent where it was not asked for through the API.
        refund_request_id: Option<String>,
        /// Antom's id of the payment.
        payment_id: Option<String>,
    },
    /// A dispute began, went on, or ended.
    Dispute {
        /// The payment.
        payment_request_id: String,
        /// Antom's id of the dispute.
        dispute_id: String,
        /// `DISPUTE_CREATED` and the like.
        kind: String,
    },
    /// Something else: kept aside, and acknowledged.
    Other,
}

/// What a notification says of a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaymentWord {
    /// Paid: `S`, with everything that it is about.
    Paid,
    /// Failed for good.
    Failed,
    /// The buyer has done his part; it is still open.
    Pending,
    /// Nothing that can be relied on.
    Unclear,
}

/// Dispute types (reference, section 10.8).
const DISPUTES: &[&str] = &[
    "DISPUTE_CREATED",
    "DISPUTE_JUDGED",
    "DISPUTE_CANCELLED",
    "DISPUTE_ACCEPTED",
    "DEFENSE_SUPPLIED",
    "DEFENSE_DUE_ALERT",
    "RDR_RESOLVED",
];

/// Reads a notification; `None` where it is not one strict JSON object.
pub fn read(notification: &Verified<'_>) -> Option<Notice> {
    json::check(notification.text(), &|_| false).ok()?;
    let object = Object::parse(notification.text())?;
    let text = |name: &str| object.get(name).and_then(json::string).map(|text| text.into_owned());
    let kind = text("notifyType").or_else(|| text("disputeNotificationType")).unwrap_or_default();
    let id = text("paymentRequestId");
    Some(match (kind.as_str(), id) {
        ("PAYMENT_RESULT" | "PAYMENT_PENDING", Some(payment_request_id)) => {
            Notice::Payment { payment_request_id, says: payment_word(&object, &kind) }
        }
        ("CAPTURE_RESULT", _) => match text("paymentId") {
            Some(payment_id) => Notice::Capture { capture_request_id: text("captureRequestId"), payment_id },
            None => Notice::Other,
        },
        ("REFUND_RESULT", _) => match (text("refundRequestId"), text("paymentId")) {
            (None, None) => Notice::Other,
            (refund_request_id, payment_id) => Notice::Refund { refund_request_id, payment_id },
        },
        (kind, Some(payment_request_id)) if DISPUTES.contains(&kind) => match text("disputeId") {
            Some(dispute_id) => Notice::Dispute { payment_request_id, dispute_id, kind: kind.to_owned() },
            None => Notice::Other,
        },
        _ => Notice::Other,
    })
}

/// `S` alone is not enough: with `PAYMENT_PENDING` the payment is still open.
fn payment_word(object: &Object<'_>, kind: &str) -> PaymentWord {
    let result = object.get("result").and_then(Object::parse);
    let status = result.as_ref().and_then(|result| result.get("resultStatus")).and_then(json::string);
    let has = |name: &str| object.get(name).is_some();
    match (kind, status.as_deref()) {
        ("PAYMENT_RESULT", Some("S")) if has("paymentId") && has("paymentAmount") => PaymentWord::Paid,
        ("PAYMENT_RESULT", Some("F")) => PaymentWord::Failed,
        ("PAYMENT_PENDING", Some("S" | "U")) => PaymentWord::Pending,
        _ => PaymentWord::Unclear,
    }
}

/// `Request-Time` in either of its forms: epoch milliseconds, or ISO 8601.
pub fn request_time(text: &str) -> Option<Millis> {
    if text.len() == 13 && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().map(Millis);
    }
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok().map(Millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::antom::verify::tests_only;

    fn notice(text: &str) -> Option<Notice> {
        read(&tests_only(text))
    }

    fn payment(says: PaymentWord) -> Option<Notice> {
        Some(Notice::Payment { payment_request_id: "2020010123456789XXXX".into(), says })
    }

    #[test]
    fn the_documents_samples_are_read() {
        let general = include_str!("../../../tests/samples/notification-general.json");
        let korean = include_str!("../../../tests/samples/notification-korean.json");
        for text in [general, korean] {
            assert_eq!(notice(text), payment(PaymentWord::Paid));
        }
        assert_eq!(notice(&general.replace("\"S\"", "\"F\"")), payment(PaymentWord::Failed));
        assert_eq!(notice(&general.replace("\"S\"", "\"U\"")), payment(PaymentWord::Unclear));
        let pending = general.replace("PAYMENT_RESULT", "PAYMENT_PENDING");
        assert_eq!(notice(&pending), payment(PaymentWord::Pending));
        assert_eq!(notice(&general.replace("\"paymentId\"", "\"x\"")), payment(PaymentWord::Unclear));
        assert_eq!(notice(&general.replace("PAYMENT_RESULT", "NEW_THING")), Some(Notice::Other));
        assert_eq!(notice(&general.replace("\"paymentRequestId\"", "\"x\"")), Some(Notice::Other));
        assert_eq!(notice("{\"a\":1,\"a\":2}"), None);
        assert_eq!(notice("[]"), None);
    }

    #[test]
    fn the_vectors_are_read() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/antom/notification_verification.json"))
                .expect("vectors");
        for case in vectors["cases"].as_array().expect("cases") {
            let read = notice(case["body"].as_str().expect("a body")).expect("a notice");
            let name = case["name"].as_str().unwrap_or_default();
            match name {
                "capture_success" => assert!(matches!(read, Notice::Capture { .. }), "{name}"),
                "refund_success" => assert!(matches!(read, Notice::Refund { .. }), "{name}"),
                "payment_failure" => {
                    assert!(matches!(read, Notice::Payment { says: PaymentWord::Failed, .. }), "{name}");
                }
                _ => assert!(matches!(read, Notice::Payment { .. }), "{name}: {read:?}"),
            }
        }
    }

    #[test]
    fn a_request_time_has_two_forms() {
        assert_eq!(request_time("1772366400123"), Some(Millis(1_772_366_400_123)));
        assert_eq!(request_time("2026-03-01T12:00:00+00:00"), Some(Millis(1_772_366_400_000)));
        for bad in ["", "177236640012", "17723664001234", "yesterday", "+772366400123"] {
            assert_eq!(request_time(bad), None, "{bad}");
        }
    }
}
