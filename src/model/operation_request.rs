//! The bodies of captures, refunds and cancels: Antom's own, with the payment's id and the notification
//! address, which the vault writes, taken out.

use crate::base::card::find_pans;
use crate::base::fault::FieldFault;
use crate::base::ids::PaymentRequestId;
use crate::base::json::{self, Object, ObjectWriter};
use crate::base::money::Amount;
use crate::base::secret::SecretText;

use super::misplaced::{Spot, find_misplaced};
use super::operation::OperationKind;
use super::pay_request::{Member, read_sum};

/// A capture or a refund as it was asked for.
pub struct OperationRequest {
    /// The idempotency key.
    pub request_id: PaymentRequestId,
    /// How much.
    pub amount: Amount,
    /// `paymentId`, where the caller says it: it must be the payment's.
    pub payment_id: Option<String>,
    /// Every other member, as it was written.
    rest: Vec<Member>,
}

/// Members that the vault writes.
fn is_owned(kind: OperationKind, name: &str) -> bool {
    name == "paymentId" || (kind == OperationKind::Refund && name == "refundNotifyUrl")
}

impl OperationRequest {
    /// Reads a body that [`json::check`] has passed.
    pub fn read(kind: OperationKind, text: &str) -> Result<Self, Vec<FieldFault>> {
        let object = Object::parse(text).ok_or_else(|| vec![FieldFault::at("", "invalid_type")])?;
        let mut faults = Vec::new();
        let request_id = read_request_id(kind, &object).map_err(|fault| faults.push(fault)).ok();
        let pointers = match kind {
            OperationKind::Capture => ["/captureAmount", "/captureAmount/currency", "/captureAmount/value"],
            OperationKind::Refund => ["/refundAmount", "/refundAmount/currency", "/refundAmount/value"],
        };
        let amount = read_sum(&object, kind.amount_member(), pointers, &mut faults);
        let payment_id = match object.get("paymentId").map(json::string) {
            None => None,
            Some(Some(text)) => Some(text.into_owned()),
            Some(None) => {
                faults.push(FieldFault::at("/paymentId", "invalid_type"));
                None
            }
        };
        if object.get("refundNotifyUrl").is_some_and(|raw| json::string(raw).is_none()) {
            faults.push(FieldFault::at("/refundNotifyUrl", "invalid_type"));
        }
        if kind == OperationKind::Capture
            && object.get("isLastCapture").is_some_and(|raw| json::boolean(raw).is_none())
        {
            faults.push(FieldFault::at("/isLastCapture", "invalid_type"));
        }
        find_misplaced(text, Spot::Elsewhere, &mut faults);
        // Nothing of these bodies is a card's: a number in any member is in the wrong place.
        if faults.is_empty() && holds_pan(text) {
            faults.push(FieldFault::at("", "card_data_outside_card"));
        }
        match (request_id, amount) {
            (Some(request_id), Some(amount)) if faults.is_empty() => {
                let rest = object
                    .iter()
                    .filter(|(name, _)| !is_owned(kind, name))
                    .map(|(name, raw)| (name.to_owned(), SecretText::from(raw)))
                    .collect();
                Ok(Self { request_id, amount, payment_id, rest })
            }
            _ => Err(faults),
        }
    }

    /// The body as it is sent.
    pub fn body(&self, payment_id: &str, refund_notify_url: Option<&str>) -> String {
        let mut out = ObjectWriter::default();
        for (name, raw) in &self.rest {
            out.raw(name, raw.expose());
        }
        out.string("paymentId", payment_id);
        out.string_if("refundNotifyUrl", refund_notify_url);
        out.finish()
    }

    /// What the request means, in one text: equal requests are equal texts.
    pub fn canonical(kind: OperationKind, text: &str) -> SecretText {
        let mut out = String::with_capacity(text.len());
        let skip = |path: &[String]| path.len() == 1 && path.iter().any(|name| is_owned(kind, name));
        json::push_canonical(&mut out, text, &mut Vec::new(), &skip);
        SecretText::new(out)
    }
}

/// The idempotency key of a body: it is looked up before anything else.
pub fn read_request_id(kind: OperationKind, object: &Object<'_>) -> Result<PaymentRequestId, FieldFault> {
    let at = |code| match kind {
        OperationKind::Capture => FieldFault::at("/captureRequestId", code),
        OperationKind::Refund => FieldFault::at("/refundRequestId", code),
    };
    let raw = object.get(kind.id_member()).ok_or_else(|| at("required"))?;
    let text = json::string(raw).ok_or_else(|| at("invalid_type"))?;
    if text.chars().count() > crate::base::limits::ID_CHARS {
        return Err(at("too_long"));
    }
    if !find_pans(&text).is_empty() {
        return Err(at("card_data_outside_card"));
    }
    PaymentRequestId::parse(&text).ok_or_else(|| at("invalid_value"))
}

/// The body of a cancel says nothing of its own: it is absent or empty.
pub fn check_cancel(text: &str) -> Result<(), Vec<FieldFault>> {
    let object = Object::parse(text).ok_or_else(|| vec![FieldFault::at("", "invalid_type")])?;
    if object.iter().next().is_some() {
        return Err(vec![FieldFault::at("", "unknown_field")]);
    }
    Ok(())
}

fn holds_pan(raw: &str) -> bool {
    if let Some(object) = Object::parse(raw) {
        // Antom's own ids look like card numbers once in a while.
        object.iter().any(|(name, raw)| {
            !find_pans(name).is_empty() || (!matches!(name, "paymentId" | "captureId") && holds_pan(raw))
        })
    } else if let Some(items) = json::items(raw) {
        items.into_iter().any(holds_pan)
    } else {
        !json::string(raw).map_or_else(|| find_pans(raw), |text| find_pans(&text)).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTURE: &str = r#"{"captureRequestId":"C1","captureAmount":{"currency":"EUR","value":"100"},"isLastCapture":false,"paymentId":"2021","x":[1.0]}"#;

    fn faults(kind: OperationKind, text: &str) -> Vec<(String, &'static str)> {
        let faults = OperationRequest::read(kind, text).err().unwrap_or_default();
        faults.into_iter().map(|fault| (fault.pointer.into_owned(), fault.code)).collect()
    }

    #[test]
    fn a_body_is_kept_but_for_what_the_vault_writes() {
        let request =
            OperationRequest::read(OperationKind::Capture, CAPTURE).unwrap_or_else(|f| panic!("{f:?}"));
        assert_eq!((request.request_id.as_str(), request.amount.value()), ("C1", "100"));
        assert_eq!(request.payment_id.as_deref(), Some("2021"));
        assert_eq!(
            request.body("2022", None),
            r#"{"captureRequestId":"C1","captureAmount":{"currency":"EUR","value":"100"},"isLastCapture":false,"x":[1.0],"paymentId":"2022"}"#
        );
        let refund = r#"{"refundRequestId":"R1","refundNotifyUrl":"https://a","refundAmount":{"value":"1","currency":"EUR"}}"#;
        let request =
            OperationRequest::read(OperationKind::Refund, refund).unwrap_or_else(|f| panic!("{f:?}"));
        assert_eq!(
            request.body("2022", Some("https://b")),
            r#"{"refundRequestId":"R1","refundAmount":{"value":"1","currency":"EUR"},"paymentId":"2022","refundNotifyUrl":"https://b"}"#
        );
    }

    #[test]
    fn the_meaning_is_the_body_without_what_the_vault_writes() {
        let of = |text: &str| OperationRequest::canonical(OperationKind::Capture, text).expose().to_owned();
        assert_eq!(of(CAPTURE), of(&CAPTURE.replace("\"paymentId\":\"2021\",", "")));
        assert_ne!(of(CAPTURE), of(&CAPTURE.replace("\"100\"", "\"101\"")));
        assert_ne!(of(CAPTURE), of(&CAPTURE.replace("false", "true")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = "a".repeat(65);
        for (from, to, pointer, code) in [
            ("\"C1\"", "1", "/captureRequestId", "invalid_type"),
            ("\"C1\"", "\"\"", "/captureRequestId", "invalid_value"),
            ("\"C1\"", "\"a b\"", "/captureRequestId", "invalid_value"),
            ("\"C1\"", "\"4111111111111111\"", "/captureRequestId", "card_data_outside_card"),
            ("C1", long.as_str(), "/captureRequestId", "too_long"),
            ("\"captureRequestId\"", "\"y\"", "/captureRequestId", "required"),
            ("\"captureAmount\"", "\"y\"", "/captureAmount", "required"),
            ("\"100\"", "100", "/captureAmount/value", "invalid_type"),
            ("\"100\"", "\"-100\"", "/captureAmount/value", "invalid_value"),
            ("\"100\"", "\"0100\"", "/captureAmount/value", "invalid_value"),
            ("\"100\"", "\"1.00\"", "/captureAmount/value", "invalid_value"),
            ("\"100\"", "\"0\"", "/captureAmount/value", "invalid_value"),
            ("\"EUR\"", "\"EUX\"", "/captureAmount/currency", "invalid_value"),
            ("\"EUR\"", "\"eur\"", "/captureAmount/currency", "invalid_value"),
            ("\"2021\"", "2021", "/paymentId", "invalid_type"),
            ("false", "\"no\"", "/isLastCapture", "invalid_type"),
            ("[1.0]", "[\"4111 1111 1111 1111\"]", "", "card_data_outside_card"),
            ("\"x\"", "\"metadata\":\"4111111111111111\",\"x\"", "/metadata", "card_data_outside_card"),
        ] {
            assert!(CAPTURE.contains(from), "{from}");
            let expected = [(pointer.to_owned(), code)];
            assert_eq!(
                faults(OperationKind::Capture, &CAPTURE.replacen(from, to, 1)),
                expected,
                "{from} {to}"
            );
        }
        assert_eq!(faults(OperationKind::Refund, "{}").len(), 2);
        assert_eq!(faults(OperationKind::Refund, "[]"), [(String::new(), "invalid_type")]);
        assert!(
            check_cancel("{}").is_ok() && check_cancel("[]").is_err() && check_cancel("{\"a\":1}").is_err()
        );
    }
}
