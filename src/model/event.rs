//! What the event feed tells. An event names what changed and carries the object as it was then, without
//! card data and without anything that lets its reader act in the buyer's place.

use crate::base::clock::Millis;
use crate::base::ids::EventId;
use crate::base::json::ObjectWriter;

use super::operation::{OperationKind, OperationStatus};
use super::payment::Status;

/// A kind of event. It is read back as text, so that a process can show the kinds of a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A payment waits for the buyer, or for an issuer.
    PaymentProcessing,
    /// A payment was authorised.
    PaymentAuthorized,
    /// A payment failed for good.
    PaymentFailed,
    /// A payment was cancelled.
    PaymentCancelled,
    /// An agreement is in force.
    AgreementActive,
    /// An agreement is over.
    AgreementEnded,
    /// A card is kept: typed here, or told by the gateway under its token.
    CardStored,
    /// The expiry, name or address of a card that an agreement uses was changed.
    CardUpdated,
    /// A card that an agreement uses expires within 30 days.
    CardExpiring,
    /// The gateway works on a capture.
    CaptureProcessing,
    /// Money was captured.
    CaptureSucceeded,
    /// A capture failed for good.
    CaptureFailed,
    /// The gateway works on a refund.
    RefundProcessing,
    /// Money was given back.
    RefundSucceeded,
    /// A refund failed for good.
    RefundFailed,
    /// A dispute began.
    DisputeCreated,
    /// A dispute was decided.
    DisputeJudged,
    /// A dispute was taken back.
    DisputeCancelled,
    /// A dispute was accepted.
    DisputeAccepted,
    /// The merchant's defence was handed in.
    DisputeDefended,
    /// The merchant's time for a defence is running out.
    DisputeDefenseDue,
    /// A dispute was resolved by refund before it became one (Visa's rapid dispute resolution).
    DisputeResolved,
}

impl EventKind {
    /// The kind as the API and the database spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::PaymentProcessing => "payment.processing",
            Self::PaymentAuthorized => "payment.authorized",
            Self::PaymentFailed => "payment.failed",
            Self::PaymentCancelled => "payment.cancelled",
            Self::AgreementActive => "agreement.active",
            Self::AgreementEnded => "agreement.ended",
            Self::CardStored => "card.stored",
            Self::CardUpdated => "card.updated",
            Self::CardExpiring => "card.expiring",
            Self::CaptureProcessing => "capture.processing",
            Self::CaptureSucceeded => "capture.succeeded",
            Self::CaptureFailed => "capture.failed",
            Self::RefundProcessing => "refund.processing",
            Self::RefundSucceeded => "refund.succeeded",
            Self::RefundFailed => "refund.failed",
            Self::DisputeCreated => "dispute.created",
            Self::DisputeJudged => "dispute.judged",
            Self::DisputeCancelled => "dispute.cancelled",
            Self::DisputeAccepted => "dispute.accepted",
            Self::DisputeDefended => "dispute.defense_supplied",
            Self::DisputeDefenseDue => "dispute.defense_due",
            Self::DisputeResolved => "dispute.resolved",
        }
    }

    /// What an operation's new status is announced as; an unknown outcome is no news.
    pub fn of_operation(kind: OperationKind, status: OperationStatus) -> Option<Self> {
        match (kind, status) {
            (_, OperationStatus::Unknown) => None,
            (OperationKind::Capture, OperationStatus::Processing) => Some(Self::CaptureProcessing),
            (OperationKind::Capture, OperationStatus::Succeeded) => Some(Self::CaptureSucceeded),
            (OperationKind::Capture, OperationStatus::Failed) => Some(Self::CaptureFailed),
            (OperationKind::Refund, OperationStatus::Processing) => Some(Self::RefundProcessing),
            (OperationKind::Refund, OperationStatus::Succeeded) => Some(Self::RefundSucceeded),
            (OperationKind::Refund, OperationStatus::Failed) => Some(Self::RefundFailed),
        }
    }

    /// What a dispute notification is announced as.
    pub fn of_dispute(notify_type: &str) -> Option<Self> {
        Some(match notify_type {
            "DISPUTE_CREATED" => Self::DisputeCreated,
            "DISPUTE_JUDGED" => Self::DisputeJudged,
            "DISPUTE_CANCELLED" => Self::DisputeCancelled,
            "DISPUTE_ACCEPTED" => Self::DisputeAccepted,
            "DEFENSE_SUPPLIED" => Self::DisputeDefended,
            "DEFENSE_DUE_ALERT" => Self::DisputeDefenseDue,
            "RDR_RESOLVED" => Self::DisputeResolved,
            _ => return None,
        })
    }

    /// What a payment's new status is announced as; an unknown outcome is no news.
    pub fn of_payment(status: Status) -> Option<Self> {
        match status {
            Status::Unknown => None,
            Status::Processing => Some(Self::PaymentProcessing),
            Status::Authorized => Some(Self::PaymentAuthorized),
            Status::Failed => Some(Self::PaymentFailed),
            Status::Cancelled => Some(Self::PaymentCancelled),
        }
    }
}

/// A place in a merchant's feed: the position of the last event that was read; 0 is before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor(i64);

impl Cursor {
    /// The place of an event.
    pub fn at(position: i64) -> Self {
        Self(position)
    }

    /// Accepts the one spelling of a position: decimal digits without a leading zero.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let canonical = text == "0" || !text.starts_with('0');
        (digits && canonical).then(|| text.parse().ok().map(Self)).flatten()
    }

    /// The position.
    pub fn position(self) -> i64 {
        self.0
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An event of the feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its id: the same however often it is read.
    pub event_id: EventId,
    /// Its place in the merchant's feed.
    pub cursor: Cursor,
    /// An [`EventKind`]'s name, perhaps a newer process's.
    pub kind: String,
    /// What kind of object changed.
    pub object_type: String,
    /// Which one.
    pub object_id: String,
    /// The object, as JSON.
    pub body: String,
    /// When it changed.
    pub created_at: Millis,
}

impl Event {
    /// The event as the API shows it.
    pub fn json(&self) -> String {
        let object =
            ObjectWriter::default().string("type", &self.object_type).string("id", &self.object_id).finish();
        ObjectWriter::default()
            .string("eventId", self.event_id.as_str())
            .string("type", &self.kind)
            .string("cursor", &self.cursor.to_string())
            .string("createdAt", &self.created_at.rfc3339())
            .raw("object", &object)
            .raw("data", &self.body)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_has_one_spelling() {
        for position in [0, 1, 10, i64::MAX] {
            assert_eq!(Cursor::parse(&position.to_string()), Some(Cursor(position)));
        }
        for bad in ["", "00", "01", "-1", "+1", " 1", "1 ", "1.0", "1e1", "0x1", "٣", "9223372036854775808"]
        {
            assert_eq!(Cursor::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn every_known_outcome_is_news() {
        for status in Status::ALL {
            let kind = EventKind::of_payment(status).map(EventKind::name);
            let expected = format!("payment.{}", status.name().to_lowercase());
            assert_eq!(kind.unwrap_or("payment.unknown"), expected);
        }
    }

    #[test]
    fn an_event_is_shown_with_its_object() {
        let event = Event {
            event_id: EventId::make().expect("entropy"),
            cursor: Cursor::at(7),
            kind: "payment.authorized".into(),
            object_type: "payment".into(),
            object_id: "PAY_1".into(),
            body: r#"{"status":"AUTHORIZED"}"#.into(),
            created_at: Millis(0),
        };
        let shown: serde_json::Value = serde_json::from_str(&event.json()).expect("JSON");
        assert_eq!(shown["cursor"], "7");
        assert_eq!(shown["object"], serde_json::json!({"type": "payment", "id": "PAY_1"}));
        assert_eq!(shown["data"]["status"], "AUTHORIZED");
    }
}
