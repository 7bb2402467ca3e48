//! A payment as callers see it.

use crate::base::clock::Millis;
use crate::base::json::{self, Object, ObjectWriter};

use super::operation::OperationKind;
use super::operation_view::OperationView;
use super::payment::{Source, Status};

/// A payment's row and its newest answer, both without card data.
pub struct PaymentView {
    /// The idempotency key.
    pub payment_request_id: String,
    /// Where it stands.
    pub status: Status,
    /// The card's reference.
    pub card_id: Option<String>,
    /// The agreement that it opened or used.
    pub agreement_id: Option<String>,
    /// Antom's id.
    pub payment_id: Option<String>,
    /// ISO 4217.
    pub currency: String,
    /// In the smallest unit.
    pub amount: String,
    /// What settled it.
    pub settled_by: Option<String>,
    /// The newest answer, as [`KeptAnswer::json`] wrote it.
    pub answer: Option<String>,
    /// Its captures and refunds.
    pub operations: Vec<OperationView>,
    /// Its cancel.
    pub cancel: Option<CancelView>,
    /// When it was asked for.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
}

/// A payment's cancel, as callers see it.
pub struct CancelView {
    /// `OPEN` (its outcome is not known yet), `REFUSED` or `DONE`.
    pub status: &'static str,
    /// Whether the caller asked for it, or the vault ended what could not be cleared up.
    pub by_caller: bool,
    /// The gateway's code, where it refused.
    pub code: Option<String>,
    /// When it was opened, or last sent since.
    pub at: Millis,
}

impl CancelView {
    fn json(&self) -> String {
        ObjectWriter::default()
            .string("status", self.status)
            .string("requestedBy", if self.by_caller { "CALLER" } else { "VAULT" })
            .string_or_null("resultCode", self.code.as_deref())
            .string("requestedAt", &self.at.rfc3339())
            .finish()
    }
}

/// A scrubbed answer and which call it was to.
pub struct KeptAnswer;

impl KeptAnswer {
    /// As it is sealed.
    pub fn json(source: Source, scrubbed: &str) -> String {
        ObjectWriter::default().string("source", source.name()).raw("answer", scrubbed).finish()
    }

    /// The scrubbed answer in what [`Self::json`] wrote.
    pub fn answer(kept: &str) -> Option<&str> {
        Object::parse(kept)?.get("answer")
    }
}

/// Members of an answer that send the buyer somewhere.
pub const REDIRECTS: &[&str] =
    &["normalUrl", "schemeUrl", "applinkUrl", "redirectActionForm", "challengeActionForm"];

impl PaymentView {
    /// The payment as the API shows it.
    pub fn json(&self) -> String {
        self.text(true)
    }

    /// The payment as an event carries it: without the gateway's own words, and without the redirect, by
    /// which whoever reads it could act in the buyer's place. Who needs them reads the payment.
    pub fn event_json(&self) -> String {
        self.text(false)
    }

    fn text(&self, whole: bool) -> String {
        let kept = self.answer.as_deref().and_then(Object::parse);
        let raw = kept.as_ref().and_then(|kept| kept.get("answer"));
        let from_inquiry = kept
            .as_ref()
            .and_then(|kept| kept.get("source"))
            .and_then(json::string)
            .is_some_and(|source| source == Source::Inquiry.name());
        let answer = raw.and_then(Object::parse);
        let answer = answer.as_ref();
        let or_null = |raw: Option<&str>| raw.unwrap_or("null").to_owned();
        let result =
            answer.and_then(|answer| if from_inquiry { inquiry_result(answer) } else { call_result(answer) });
        let mut out = ObjectWriter::default();
        out.string("paymentRequestId", &self.payment_request_id)
            .string("status", self.status.name())
            .string_or_null("cardId", self.card_id.as_deref())
            .string_or_null("agreementId", self.agreement_id.as_deref())
            .string_or_null("paymentId", self.payment_id.as_deref())
            .raw("paymentAmount", &self.amount_json())
            .raw("result", &or_null(result.as_deref()));
        if whole {
            out.raw("redirect", &or_null(self.redirect(answer).as_deref())).raw(
                "paymentResultInfo",
                &or_null(answer.and_then(|answer| answer.get("paymentResultInfo"))),
            );
        }
        if whole {
            out.raw("captures", &self.operations_json(OperationKind::Capture))
                .raw("refunds", &self.operations_json(OperationKind::Refund))
                .raw("cancel", &or_null(self.cancel.as_ref().map(CancelView::json).as_deref()))
                .raw("gatewayResponse", &or_null(raw));
        }
        out.string_or_null("settledBy", self.settled_by.as_deref())
            .string("createdAt", &self.created_at.rfc3339())
            .string("updatedAt", &self.updated_at.rfc3339());
        out.finish()
    }

    fn operations_json(&self, kind: OperationKind) -> String {
        let of_kind = self.operations.iter().filter(|operation| operation.kind == kind);
        format!("[{}]", of_kind.map(OperationView::brief_json).collect::<Vec<_>>().join(","))
    }

    fn amount_json(&self) -> String {
        ObjectWriter::default().string("currency", &self.currency).string("value", &self.amount).finish()
    }

    /// Where the buyer must be sent, while the payment waits for him.
    fn redirect(&self, answer: Option<&Object<'_>>) -> Option<String> {
        let answer = answer.filter(|_| self.status == Status::Processing)?;
        let mut out = ObjectWriter::default();
        let mut any = false;
        for name in REDIRECTS {
            if let Some(raw) = answer.get(name) {
                out.raw(name, raw);
                any = true;
            }
        }
        any.then(|| out.finish())
    }
}

/// `result` of a pay answer.
fn call_result(answer: &Object<'_>) -> Option<String> {
    let result = Object::parse(answer.get("result")?)?;
    let mut out = ObjectWriter::default();
    for name in ["resultCode", "resultStatus", "resultMessage"] {
        out.raw(name, result.get(name).unwrap_or("null"));
    }
    Some(out.finish())
}

/// What an inquiry says of the payment, in the words of a pay answer.
fn inquiry_result(answer: &Object<'_>) -> Option<String> {
    let text = |name: &str| answer.get(name).and_then(json::string);
    let status = text("paymentStatus")?;
    let (letter, default_code) = match status.as_ref() {
        "SUCCESS" => ("S", "SUCCESS"),
        "FAIL" => ("F", "PROCESS_FAIL"),
        "CANCELLED" => ("F", "ORDER_IS_CANCELED"),
        _ => ("U", "PAYMENT_IN_PROCESS"),
    };
    let mut out = ObjectWriter::default();
    out.string("resultCode", text("paymentResultCode").as_deref().unwrap_or(default_code))
        .string("resultStatus", letter)
        .string_or_null("resultMessage", text("paymentResultMessage").as_deref());
    Some(out.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(status: Status, answer: Option<String>) -> serde_json::Value {
        let view = PaymentView {
            payment_request_id: "PAY_1".into(),
            status,
            card_id: None,
            agreement_id: None,
            payment_id: None,
            currency: "EUR".into(),
            amount: "100".into(),
            settled_by: None,
            answer,
            operations: Vec::new(),
            cancel: None,
            created_at: Millis(0),
            updated_at: Millis(0),
        };
        serde_json::from_str(&view.json()).expect("JSON")
    }

    #[test]
    fn a_payment_without_an_answer_is_shown() {
        let shown = view(Status::Unknown, None);
        assert_eq!(shown["status"], "UNKNOWN");
        assert!(shown["result"].is_null() && shown["gatewayResponse"].is_null() && shown["cardId"].is_null());
    }

    #[test]
    fn a_redirect_is_shown_while_the_buyer_is_waited_for() {
        let answer =
            r#"{"result":{"resultCode":"PAYMENT_IN_PROCESS","resultStatus":"U"},"normalUrl":"https://x"}"#;
        let kept = || Some(KeptAnswer::json(Source::Pay, answer));
        assert_eq!(view(Status::Processing, kept())["redirect"]["normalUrl"], "https://x");
        assert!(view(Status::Failed, kept())["redirect"].is_null());
        assert_eq!(view(Status::Failed, kept())["result"]["resultStatus"], "U");
    }

    #[test]
    fn an_event_carries_neither_the_gateways_words_nor_the_way_to_the_buyers_page() {
        let answer = r#"{"result":{"resultCode":"PAYMENT_IN_PROCESS","resultStatus":"U"},"normalUrl":"https://x","paymentResultInfo":{"a":1}}"#;
        let view = PaymentView {
            agreement_id: None,
            payment_request_id: "PAY_1".into(),
            status: Status::Processing,
            card_id: None,
            payment_id: None,
            currency: "EUR".into(),
            amount: "100".into(),
            settled_by: None,
            answer: Some(KeptAnswer::json(Source::Pay, answer)),
            operations: Vec::new(),
            cancel: None,
            created_at: Millis(0),
            updated_at: Millis(0),
        };
        let shown: serde_json::Value = serde_json::from_str(&view.event_json()).expect("JSON");
        assert_eq!(shown["result"]["resultStatus"], "U");
        for name in ["redirect", "paymentResultInfo", "gatewayResponse"] {
            assert!(shown.get(name).is_none(), "{name}");
        }
    }

    #[test]
    fn an_inquirys_own_result_is_not_the_payments() {
        let answer = r#"{"result":{"resultCode":"SUCCESS","resultStatus":"S"},"paymentStatus":"FAIL","paymentResultCode":"RISK_REJECT"}"#;
        let shown = view(Status::Failed, Some(KeptAnswer::json(Source::Inquiry, answer)));
        assert_eq!(shown["result"]["resultCode"], "RISK_REJECT");
        assert_eq!(shown["result"]["resultStatus"], "F");
    }
}
