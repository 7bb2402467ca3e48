//! A capture or a refund as callers see it.

use crate::base::clock::Millis;
use crate::base::json::{self, Object, ObjectWriter};

use super::operation::{OperationKind, OperationStatus};

/// A capture or a refund.
pub struct OperationView {
    /// Which of the two.
    pub kind: OperationKind,
    /// The idempotency key.
    pub request_id: String,
    /// Of which payment.
    pub payment_request_id: String,
    /// Antom's id of the payment.
    pub payment_id: Option<String>,
    /// Where it stands.
    pub status: OperationStatus,
    /// Antom's id of it.
    pub gateway_id: Option<String>,
    /// ISO 4217.
    pub currency: String,
    /// In the smallest unit.
    pub amount: i64,
    /// `result.resultCode` of the newest answer that told one.
    pub result_code: Option<String>,
    /// `result.resultStatus` of it.
    pub result_status: Option<String>,
    /// What settled it: `call`, `inquiry` or `notification`.
    pub settled_by: Option<String>,
    /// Whether it was asked for here; otherwise the gateway told of it (its own capture, its dashboard).
    pub asked_here: bool,
    /// The newest answer, scrubbed.
    pub answer: Option<String>,
    /// When it was asked for, or learned of.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
}

impl OperationView {
    /// As the API shows it by itself.
    pub fn json(&self) -> String {
        self.text(true)
    }

    /// As it stands in a payment, a list or an event: without the gateway's own words.
    pub fn brief_json(&self) -> String {
        self.text(false)
    }

    fn text(&self, whole: bool) -> String {
        let amount = ObjectWriter::default()
            .string("currency", &self.currency)
            .string("value", &self.amount.to_string())
            .finish();
        let mut out = ObjectWriter::default();
        out.string(self.kind.id_member(), &self.request_id)
            .string("paymentRequestId", &self.payment_request_id)
            .string_or_null("paymentId", self.payment_id.as_deref())
            .string("status", self.status.name())
            .string_or_null(self.kind.gateway_id_member(), self.gateway_id.as_deref())
            .raw(self.kind.amount_member(), &amount)
            .raw("result", &self.result());
        if whole {
            out.raw("gatewayResponse", self.answer.as_deref().unwrap_or("null"));
        }
        out.string_or_null("settledBy", self.settled_by.as_deref())
            .raw("askedHere", if self.asked_here { "true" } else { "false" })
            .string("createdAt", &self.created_at.rfc3339())
            .string("updatedAt", &self.updated_at.rfc3339());
        out.finish()
    }

    fn result(&self) -> String {
        let (Some(code), Some(status)) = (&self.result_code, &self.result_status) else {
            return "null".to_owned();
        };
        let answer = self.answer.as_deref().and_then(Object::parse);
        let result = answer.as_ref().and_then(|answer| answer.get("result")).and_then(Object::parse);
        let message = result.as_ref().and_then(|result| result.get("resultMessage")).and_then(json::string);
        ObjectWriter::default()
            .string("resultCode", code)
            .string("resultStatus", status)
            .string_or_null("resultMessage", message.as_deref())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_speaks_antoms_words() {
        let mut view = OperationView {
            kind: OperationKind::Capture,
            request_id: "C1".into(),
            payment_request_id: "P1".into(),
            payment_id: Some("2021".into()),
            status: OperationStatus::Succeeded,
            gateway_id: Some("G1".into()),
            currency: "EUR".into(),
            amount: 100,
            result_code: Some("SUCCESS".into()),
            result_status: Some("S".into()),
            settled_by: Some("call".into()),
            asked_here: true,
            answer: Some(r#"{"result":{"resultMessage":"ok"}}"#.into()),
            created_at: Millis(0),
            updated_at: Millis(0),
        };
        let shown: serde_json::Value = serde_json::from_str(&view.json()).expect("JSON");
        assert_eq!(shown["captureId"], "G1");
        assert_eq!(shown["captureAmount"], serde_json::json!({"currency": "EUR", "value": "100"}));
        assert_eq!(shown["result"]["resultMessage"], "ok");
        view.kind = OperationKind::Refund;
        let shown: serde_json::Value = serde_json::from_str(&view.brief_json()).expect("JSON");
        assert_eq!((&shown["refundRequestId"], &shown["refundId"]), (&"C1".into(), &"G1".into()));
        assert!(shown.get("gatewayResponse").is_none());
    }
}
