//! Reads verified answers: what they say of the payment, and whether they speak of the right one.

use crate::base::ids::PaymentRequestId;
use crate::base::json::{self, Object};
use crate::base::money::Amount;
use crate::model::operation::{OperationKind, OperationVerdict};
use crate::model::payment::Verdict;

use super::verify::Verified;

/// Which payment an answer must be about.
pub struct Expected<'a> {
    /// Its idempotency key.
    pub payment_request_id: &'a PaymentRequestId,
    /// What is charged.
    pub amount: &'a Amount,
}

/// What an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// It is about this payment.
    Says(Verdict),
    /// It is signed, but about another payment or amount, or it is not an answer: no answer.
    Disagrees,
}

/// Codes of an `F` that say nothing of the first request under the id (reference, section 11).
const UNSETTLED_FAILURES: &[&str] =
    &["REPEAT_REQ_INCONSISTENT", "ORDER_IS_CLOSED", "ORDER_IS_CANCELED", "ORDER_IS_CANCELLED"];

/// Whether the gateway says that it is called too often.
pub fn asks_for_fewer(answer: &Verified<'_>) -> bool {
    Answer::read(answer).is_some_and(|read| read.code == "REQUEST_TRAFFIC_EXCEED_LIMIT")
}

/// Reads the answer to a pay call.
pub fn read_pay(answer: &Verified<'_>, expected: &Expected<'_>) -> Reading {
    let Some(read) = Answer::read(answer) else { return Reading::Disagrees };
    if !read.agrees(expected) {
        return Reading::Disagrees;
    }
    Reading::Says(match (read.status.as_str(), read.code.as_str()) {
        ("S", _) if read.text("paymentId").is_some_and(|id| !id.is_empty()) => Verdict::Paid,
        ("F", code) if !UNSETTLED_FAILURES.contains(&code) => Verdict::Failed,
        ("U", "PAYMENT_IN_PROCESS") => Verdict::InProcess,
        _ => Verdict::Unclear,
    })
}

/// Reads the answer to an inquiry. Its `result` speaks of the inquiry; only `paymentStatus` speaks of
/// the payment.
pub fn read_inquiry(answer: &Verified<'_>, expected: &Expected<'_>) -> Reading {
    let Some(read) = Answer::read(answer) else { return Reading::Disagrees };
    if !read.agrees(expected) {
        return Reading::Disagrees;
    }
    let named = read.names_payment();
    let verdict = match (read.status.as_str(), read.code.as_str(), read.text("paymentStatus").as_deref()) {
        ("S", _, Some("SUCCESS")) if named => Verdict::Paid,
        // A success that does not say of what is none.
        ("S", _, Some("SUCCESS")) => return Reading::Disagrees,
        ("S", _, Some("FAIL")) => Verdict::Failed,
        ("S", _, Some("CANCELLED")) => Verdict::Cancelled,
        ("S", _, Some("PROCESSING" | "PENDING")) => Verdict::InProcess,
        ("F", "ORDER_NOT_EXIST", _) => Verdict::NotExist,
        _ => Verdict::Unclear,
    };
    Reading::Says(verdict)
}

/// What an answer to a cancel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReading {
    /// The payment is cancelled.
    Done,
    /// The gateway does not know the payment.
    NotExist,
    /// The gateway refuses: the window is over, or the payment's state does not allow it.
    Refused,
    /// It settles nothing, or speaks of another payment.
    Unclear,
}

/// Reads the answer to a cancel of a payment whose gateway id is known or not.
pub fn read_cancel(
    answer: &Verified<'_>,
    payment_request_id: &PaymentRequestId,
    payment_id: Option<&str>,
) -> CancelReading {
    let Some(read) = Answer::read(answer) else { return CancelReading::Unclear };
    let agrees = |name: &str, wanted: Option<&str>| {
        wanted.is_none() || read.object.get(name).is_none() || read.text(name).as_deref() == wanted
    };
    if !agrees("paymentRequestId", Some(payment_request_id.as_str())) || !agrees("paymentId", payment_id) {
        return CancelReading::Unclear;
    }
    match (read.status.as_str(), read.code.as_str()) {
        ("S", _) => CancelReading::Done,
        ("F", "ORDER_NOT_EXIST") => CancelReading::NotExist,
        // What the client did wrong, or the gateway, says nothing of the payment.
        ("F", code) if CANCEL_REFUSALS.contains(&code) => CancelReading::Refused,
        _ => CancelReading::Unclear,
    }
}

/// Codes by which a cancel is refused for what the payment is.
const CANCEL_REFUSALS: &[&str] = &[
    "CANCEL_WINDOW_EXCEED",
    "ORDER_STATUS_INVALID",
    "ORDER_IS_CLOSED",
    "PROCESS_FAIL",
    "CANCEL_NOT_SUPPORTED",
    "REFUND_WINDOW_EXCEED",
];

/// Which capture or refund an answer must be about.
pub struct ExpectedOperation<'a> {
    /// Which of the two.
    pub kind: OperationKind,
    /// Its idempotency key.
    pub request_id: &'a str,
    /// Antom's id of its payment, where the answer may name it.
    pub payment_id: Option<&'a str>,
    /// How much.
    pub amount: &'a Amount,
    /// Whether its payment is known to be cancelled: that it is refused for that is then the last word.
    pub cancelled: bool,
}

/// What an answer says of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationReading {
    /// It is about this operation.
    Says(OperationVerdict),
    /// It is signed, but about another one, or it is not an answer: no answer.
    Disagrees,
}

/// Reads the answer to a capture or refund call: its `result` speaks of it.
pub fn read_operation(answer: &Verified<'_>, expected: &ExpectedOperation<'_>) -> OperationReading {
    let Some(read) = Answer::read(answer) else { return OperationReading::Disagrees };
    if !read.agrees_with_operation(expected) {
        return OperationReading::Disagrees;
    }
    // Refunds have a status beside their result; the two must not contradict one another.
    let status = read.text("refundStatus");
    OperationReading::Says(match (read.status.as_str(), read.code.as_str(), status.as_deref()) {
        ("S", _, None | Some("SUCCESS")) if read.text(expected.kind.gateway_id_member()).is_some() => {
            OperationVerdict::Done
        }
        ("F", code, None | Some("FAIL")) if !UNSETTLED_FAILURES.contains(&code) => OperationVerdict::Failed,
        ("F", "ORDER_IS_CANCELED" | "ORDER_IS_CANCELLED", None | Some("FAIL")) if expected.cancelled => {
            OperationVerdict::Failed
        }
        ("U", "PAYMENT_IN_PROCESS", None | Some("PROCESSING" | "PENDING")) => OperationVerdict::InProcess,
        _ => OperationVerdict::Unclear,
    })
}

/// Reads a notification of a capture or refund. A success must say of which payment and how much.
pub fn read_operation_notice(
    notification: &Verified<'_>,
    expected: &ExpectedOperation<'_>,
) -> OperationReading {
    let names = || {
        let object = Object::parse(notification.text())?;
        let there = |name: &str| object.get(name).filter(|raw| *raw != "null");
        there("paymentId").and(there(expected.kind.amount_member()))
    };
    match read_operation(notification, expected) {
        OperationReading::Says(OperationVerdict::Done) if names().is_none() => OperationReading::Disagrees,
        reading => reading,
    }
}

/// Reads the answer to an inquiry after a refund. Its `result` speaks of the inquiry; only
/// `refundStatus` speaks of the refund. Members that are null are absent: the record was not found.
pub fn read_refund_inquiry(answer: &Verified<'_>, expected: &ExpectedOperation<'_>) -> OperationReading {
    let Some(read) = Answer::read(answer) else { return OperationReading::Disagrees };
    if !read.agrees_with_operation(expected) {
        return OperationReading::Disagrees;
    }
    let named = read.text("refundRequestId").is_some() && read.text("refundId").is_some();
    let status = read.text("refundStatus");
    OperationReading::Says(match (read.status.as_str(), read.code.as_str(), status.as_deref()) {
        ("S", _, Some("SUCCESS")) if named => OperationVerdict::Done,
        ("S", _, Some("SUCCESS")) => return OperationReading::Disagrees,
        ("S", _, Some("FAIL" | "CANCELLED")) => OperationVerdict::Failed,
        ("S", _, Some("PROCESSING" | "PENDING")) => OperationVerdict::InProcess,
        ("S", _, None) => OperationVerdict::NotExist,
        ("F", "ORDER_NOT_EXIST" | "REFUND_NOT_EXIST", _) => OperationVerdict::NotExist,
        _ => OperationVerdict::Unclear,
    })
}

/// A capture or refund that an inquiry into its payment tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Which of the two.
    pub kind: OperationKind,
    /// The idempotency key; Antom's id of it where there is none.
    pub request_id: PaymentRequestId,
    /// Antom's id of it.
    pub gateway_id: Option<String>,
    /// How much.
    pub amount: Amount,
    /// What became of it.
    pub verdict: OperationVerdict,
}

/// The captures and refunds in `transactions[]` of an inquiry's answer. What cannot be read is left out:
/// it tells nothing that could be relied on.
pub fn transactions(answer: &Verified<'_>) -> Vec<Transaction> {
    let list =
        Object::parse(answer.text()).and_then(|object| object.get("transactions").and_then(json::items));
    list.into_iter().flatten().filter_map(transaction).collect()
}

fn transaction(raw: &str) -> Option<Transaction> {
    let object = Object::parse(raw)?;
    let text = |name: &str| object.get(name).and_then(json::string).filter(|text| !text.is_empty());
    let kind = match text("transactionType")?.as_ref() {
        "CAPTURE" => OperationKind::Capture,
        "REFUND" => OperationKind::Refund,
        _ => return None,
    };
    let gateway_id = text("transactionId").map(|text| text.into_owned()).filter(|text| text.len() <= 64);
    let request_id = text("transactionRequestId").or_else(|| text("transactionId"))?;
    let amount = Object::parse(object.get("transactionAmount")?)?;
    let member = |name: &str| amount.get(name).map(|raw| json::string(raw).unwrap_or(raw.into()));
    let verdict = match text("transactionStatus")?.as_ref() {
        "SUCCESS" => OperationVerdict::Done,
        "FAIL" | "CANCELLED" => OperationVerdict::Failed,
        "PROCESSING" | "PENDING" => OperationVerdict::InProcess,
        _ => OperationVerdict::Unclear,
    };
    Some(Transaction {
        kind,
        request_id: PaymentRequestId::parse(&request_id)?,
        gateway_id,
        amount: Amount::from_wire(&member("currency")?, &member("value")?).ok()?,
        verdict,
    })
}

/// Reads what a verified notification says of a payment, if it speaks of the expected one. A success must
/// name everything that it is about; an `F` may lack the sum.
pub fn read_notice(notification: &Verified<'_>, expected: &Expected<'_>) -> Reading {
    let Some(read) = Answer::read(notification) else { return Reading::Disagrees };
    if !read.agrees(expected) {
        return Reading::Disagrees;
    }
    let kind = read.text("notifyType");
    Reading::Says(match (kind.as_deref(), read.status.as_str(), read.code.as_str()) {
        (Some("PAYMENT_RESULT"), "S", _) if read.names_payment() => Verdict::Paid,
        (Some("PAYMENT_RESULT"), "S", _) => return Reading::Disagrees,
        (Some("PAYMENT_RESULT"), "F", code) if !UNSETTLED_FAILURES.contains(&code) => Verdict::Failed,
        (Some("PAYMENT_PENDING"), "S" | "U", _) => Verdict::InProcess,
        _ => Verdict::Unclear,
    })
}

struct Answer<'a> {
    object: Object<'a>,
    status: String,
    code: String,
}

impl<'a> Answer<'a> {
    /// One strict JSON object with a `result`.
    fn read(answer: &Verified<'a>) -> Option<Self> {
        json::check(answer.text(), &|_| false).ok()?;
        let object = Object::parse(answer.text())?;
        let result = Object::parse(object.get("result")?)?;
        let text = |name: &str| result.get(name).and_then(json::string).map(|text| text.into_owned());
        let (status, code) = (text("resultStatus")?, text("resultCode")?);
        Some(Self { object, status, code })
    }

    fn text(&self, name: &str) -> Option<String> {
        self.object.get(name).and_then(json::string).map(|text| text.into_owned())
    }

    /// Members that are present must be what was sent; `actualPaymentAmount` is another sum.
    fn agrees(&self, expected: &Expected<'_>) -> bool {
        let id = self.object.get("paymentRequestId").is_none_or(|raw| {
            json::string(raw).is_some_and(|text| text == expected.payment_request_id.as_str())
        });
        let amount = self.object.get("paymentAmount").is_none_or(|raw| same_amount(raw, expected.amount));
        id && amount
    }

    fn agrees_with_operation(&self, expected: &ExpectedOperation<'_>) -> bool {
        let is = |name: &str, wanted: &str| {
            self.object
                .get(name)
                .is_none_or(|raw| raw == "null" || json::string(raw).is_some_and(|text| text == wanted))
        };
        let kind = expected.kind;
        let amount = self.object.get(kind.amount_member());
        is(kind.id_member(), expected.request_id)
            && expected.payment_id.is_none_or(|id| is("paymentId", id))
            && amount.is_none_or(|raw| raw == "null" || same_amount(raw, expected.amount))
    }

    fn names_payment(&self) -> bool {
        ["paymentRequestId", "paymentAmount"].iter().all(|name| self.object.get(name).is_some())
            && self.text("paymentId").is_some_and(|id| !id.is_empty())
    }
}

fn same_amount(raw: &str, expected: &Amount) -> bool {
    let Some(amount) = Object::parse(raw) else { return false };
    let is = |name: &str, wanted: &str| {
        // The documents promise strings; a whole number is read too.
        amount.get(name).is_some_and(|raw| json::string(raw).map_or(raw == wanted, |text| text == wanted))
    };
    is("currency", expected.currency()) && is("value", expected.value())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::antom::verify;

    fn readings(text: &str) -> (Reading, Reading) {
        let id = PaymentRequestId::parse("PAY_1").expect("an id");
        let amount = Amount::from_wire("EUR", "100").expect("an amount");
        let expected = Expected { payment_request_id: &id, amount: &amount };
        let answer = verify::tests_only(text);
        (read_pay(&answer, &expected), read_inquiry(&answer, &expected))
    }

    const RIGHT: &str =
        r#""paymentRequestId":"PAY_1","paymentId":"2","paymentAmount":{"value":"100","currency":"EUR"}"#;

    fn pay(status: &str, code: &str, members: &str) -> Reading {
        let comma = if members.is_empty() { "" } else { "," };
        readings(&format!(
            r#"{{"result":{{"resultStatus":"{status}","resultCode":"{code}"}}{comma}{members}}}"#
        ))
        .0
    }

    fn inquiry(members: &str) -> Reading {
        readings(&format!(r#"{{"result":{{"resultStatus":"S","resultCode":"SUCCESS"}},{members}}}"#)).1
    }

    #[test]
    fn a_pay_answer_is_read_by_the_table() {
        use Reading::{Disagrees, Says};
        let wrong_id = RIGHT.replace("PAY_1", "PAY_2");
        let wrong_amount = RIGHT.replace("100", "101");
        let wrong_currency = RIGHT.replace("EUR", "USD");
        let actual = format!(r#"{RIGHT},"actualPaymentAmount":{{"value":"7","currency":"USD"}}"#);
        for (status, code, members, expected) in [
            ("S", "SUCCESS", RIGHT, Says(Verdict::Paid)),
            ("S", "SUCCESS", &actual, Says(Verdict::Paid)),
            ("S", "SUCCESS", r#""paymentId":"2""#, Says(Verdict::Paid)),
            ("S", "SUCCESS", "", Says(Verdict::Unclear)),
            ("S", "SUCCESS", r#""paymentId":"""#, Says(Verdict::Unclear)),
            ("S", "SUCCESS", &wrong_id, Disagrees),
            ("S", "SUCCESS", &wrong_amount, Disagrees),
            ("S", "SUCCESS", &wrong_currency, Disagrees),
            ("S", "SUCCESS", r#""paymentRequestId":7"#, Disagrees),
            ("F", "DO_NOT_HONOR", "", Says(Verdict::Failed)),
            ("F", "A_NEW_CODE", RIGHT, Says(Verdict::Failed)),
            ("F", "DO_NOT_HONOR", &wrong_id, Disagrees),
            ("F", "REPEAT_REQ_INCONSISTENT", "", Says(Verdict::Unclear)),
            ("F", "ORDER_IS_CLOSED", "", Says(Verdict::Unclear)),
            ("F", "ORDER_IS_CANCELED", "", Says(Verdict::Unclear)),
            ("F", "ORDER_IS_CANCELLED", "", Says(Verdict::Unclear)),
            ("U", "PAYMENT_IN_PROCESS", RIGHT, Says(Verdict::InProcess)),
            ("U", "UNKNOWN_EXCEPTION", "", Says(Verdict::Unclear)),
            ("U", "REQUEST_TRAFFIC_EXCEED_LIMIT", "", Says(Verdict::Unclear)),
            ("s", "SUCCESS", RIGHT, Says(Verdict::Unclear)),
            ("X", "SUCCESS", RIGHT, Says(Verdict::Unclear)),
        ] {
            assert_eq!(pay(status, code, members), expected, "{status} {code} {members}");
        }
    }

    #[test]
    fn an_inquiry_speaks_of_the_payment_only_by_its_status() {
        use Reading::{Disagrees, Says};
        let with = |status: &str| format!(r#"{RIGHT},"paymentStatus":"{status}""#);
        for (status, expected) in [
            ("SUCCESS", Says(Verdict::Paid)),
            ("FAIL", Says(Verdict::Failed)),
            ("PROCESSING", Says(Verdict::InProcess)),
            ("PENDING", Says(Verdict::InProcess)),
            ("CANCELLED", Says(Verdict::Cancelled)),
            ("success", Says(Verdict::Unclear)),
        ] {
            assert_eq!(inquiry(&with(status)), expected, "{status}");
        }
        assert_eq!(inquiry(r#""paymentStatus":"SUCCESS""#), Disagrees);
        assert_eq!(
            inquiry(r#""paymentStatus":"SUCCESS","paymentRequestId":"PAY_1","paymentId":"2""#),
            Disagrees
        );
        assert_eq!(inquiry(&with("SUCCESS").replace("PAY_1", "PAY_2")), Disagrees);
        assert_eq!(inquiry(r#""paymentStatus":"FAIL""#), Says(Verdict::Failed));
        assert_eq!(inquiry(RIGHT), Says(Verdict::Unclear));
        let absent = r#"{"result":{"resultStatus":"F","resultCode":"ORDER_NOT_EXIST"}}"#;
        assert_eq!(readings(absent), (Says(Verdict::Failed), Says(Verdict::NotExist)));
    }

    fn operation(text: &str, kind: OperationKind) -> (OperationReading, OperationReading) {
        let amount = Amount::from_wire("EUR", "100").expect("an amount");
        let expected = ExpectedOperation {
            kind,
            request_id: "X_1",
            payment_id: Some("2"),
            amount: &amount,
            cancelled: false,
        };
        let answer = verify::tests_only(text);
        (read_operation(&answer, &expected), read_refund_inquiry(&answer, &expected))
    }

    /// That an order was cancelled says nothing of a capture that may have come before, unless the vault knows
    /// that it was cancelled, and has looked.
    #[test]
    fn an_operation_of_a_cancelled_payment_is_refused_for_good() {
        let amount = Amount::from_wire("EUR", "100").expect("an amount");
        for code in ["ORDER_IS_CANCELED", "ORDER_IS_CANCELLED", "REPEAT_REQ_INCONSISTENT"] {
            for cancelled in [false, true] {
                let kind = OperationKind::Capture;
                let expected = ExpectedOperation {
                    kind,
                    request_id: "X_1",
                    payment_id: None,
                    amount: &amount,
                    cancelled,
                };
                let text = format!(r#"{{"result":{{"resultStatus":"F","resultCode":"{code}"}}}}"#);
                let told = match cancelled && code != "REPEAT_REQ_INCONSISTENT" {
                    true => OperationVerdict::Failed,
                    false => OperationVerdict::Unclear,
                };
                let answer = verify::tests_only(&text);
                assert_eq!(
                    read_operation(&answer, &expected),
                    OperationReading::Says(told),
                    "{code} {cancelled}"
                );
            }
        }
    }

    #[test]
    fn an_operations_answer_is_read_by_the_table() {
        use OperationReading::{Disagrees, Says};
        use OperationVerdict::{Done, Failed, InProcess, Unclear};
        let right = r#""refundRequestId":"X_1","refundId":"9","paymentId":"2","refundAmount":{"currency":"EUR","value":"100"}"#;
        let with = |more: &str| format!("{right},{more}");
        for (status, code, members, expected) in [
            ("S", "SUCCESS", right.to_owned(), Says(Done)),
            ("S", "SUCCESS", with("\"refundStatus\":\"SUCCESS\""), Says(Done)),
            ("S", "SUCCESS", with("\"refundStatus\":\"FAIL\""), Says(Unclear)),
            ("S", "SUCCESS", "\"refundRequestId\":\"X_1\"".to_owned(), Says(Unclear)),
            ("S", "SUCCESS", right.replace("X_1", "X_2"), Disagrees),
            ("S", "SUCCESS", right.replace("\"2\"", "\"3\""), Disagrees),
            ("S", "SUCCESS", right.replace("100", "101"), Disagrees),
            ("S", "SUCCESS", right.replace("EUR", "USD"), Disagrees),
            ("F", "REFUND_AMOUNT_EXCEED", "\"a\":1".to_owned(), Says(Failed)),
            ("F", "PROCESS_FAIL", with("\"refundStatus\":\"SUCCESS\""), Says(Unclear)),
            ("F", "REPEAT_REQ_INCONSISTENT", right.to_owned(), Says(Unclear)),
            ("U", "PAYMENT_IN_PROCESS", right.to_owned(), Says(InProcess)),
            ("U", "UNKNOWN_EXCEPTION", right.to_owned(), Says(Unclear)),
        ] {
            let text =
                format!(r#"{{"result":{{"resultStatus":"{status}","resultCode":"{code}"}},{members}}}"#);
            assert_eq!(operation(&text, OperationKind::Refund).0, expected, "{text}");
        }
        let inquiry = |members: &str| {
            let text = format!(r#"{{"result":{{"resultStatus":"S","resultCode":"SUCCESS"}},{members}}}"#);
            operation(&text, OperationKind::Refund).1
        };
        for (status, expected) in [
            ("SUCCESS", Done),
            ("FAIL", Failed),
            ("CANCELLED", Failed),
            ("PROCESSING", InProcess),
            ("PENDING", InProcess),
            ("success", Unclear),
        ] {
            assert_eq!(inquiry(&with(&format!("\"refundStatus\":\"{status}\""))), Says(expected));
        }
        assert_eq!(inquiry("\"refundStatus\":\"SUCCESS\""), Disagrees);
        assert_eq!(inquiry("\"refundStatus\":null,\"refundAmount\":null"), Says(OperationVerdict::NotExist));
        let absent = r#"{"result":{"resultStatus":"F","resultCode":"ORDER_NOT_EXIST"}}"#;
        assert_eq!(operation(absent, OperationKind::Refund).1, Says(OperationVerdict::NotExist));
    }

    #[test]
    fn a_cancels_answer_is_read_by_the_table() {
        let id = PaymentRequestId::parse("PAY_1").expect("an id");
        let read = |status: &str, code: &str, members: &str| {
            let text =
                format!(r#"{{"result":{{"resultStatus":"{status}","resultCode":"{code}"}}{members}}}"#);
            read_cancel(&verify::tests_only(&text), &id, Some("2"))
        };
        let right = r#","paymentRequestId":"PAY_1","paymentId":"2""#;
        for (status, code, members, expected) in [
            ("S", "SUCCESS", right, CancelReading::Done),
            ("S", "SUCCESS", "", CancelReading::Done),
            ("S", "SUCCESS", r#","paymentId":"3""#, CancelReading::Unclear),
            ("S", "SUCCESS", r#","paymentRequestId":"PAY_2""#, CancelReading::Unclear),
            ("F", "ORDER_NOT_EXIST", "", CancelReading::NotExist),
            ("F", "CANCEL_WINDOW_EXCEED", "", CancelReading::Refused),
            ("F", "ORDER_STATUS_INVALID", "", CancelReading::Refused),
            ("F", "INVALID_SIGNATURE", "", CancelReading::Unclear),
            ("F", "SYSTEM_ERROR", "", CancelReading::Unclear),
            ("U", "UNKNOWN_EXCEPTION", "", CancelReading::Unclear),
        ] {
            assert_eq!(read(status, code, members), expected, "{status} {code} {members}");
        }
    }

    #[test]
    fn transactions_are_read_where_they_can_be() {
        let text = r#"{"transactions":[
            {"transactionType":"CAPTURE","transactionStatus":"SUCCESS","transactionId":"9","transactionRequestId":"C_1","transactionAmount":{"currency":"EUR","value":"100"}},
            {"transactionType":"REFUND","transactionStatus":"PROCESSING","transactionId":"R9","transactionAmount":{"currency":"EUR","value":100}},
            {"transactionType":"VOID","transactionStatus":"SUCCESS"},
            {"transactionType":"REFUND","transactionStatus":"SUCCESS","transactionId":"R8","transactionAmount":{"currency":"EUR","value":"-1"}},
            7]}"#;
        let read = transactions(&verify::tests_only(text));
        let summary: Vec<_> =
            read.iter().map(|t| (t.kind, t.request_id.as_str(), t.amount.value(), t.verdict)).collect();
        assert_eq!(
            summary,
            [
                (OperationKind::Capture, "C_1", "100", OperationVerdict::Done),
                (OperationKind::Refund, "R9", "100", OperationVerdict::InProcess)
            ]
        );
        assert!(transactions(&verify::tests_only("{}")).is_empty());
    }

    #[test]
    fn what_is_not_an_answer_is_none() {
        for text in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"result":{}}"#,
            r#"{"result":{"resultStatus":"S"}}"#,
            r#"{"result":{"resultStatus":"S","resultCode":"SUCCESS"},"result":{}}"#,
            r#"{"result":{"resultStatus":"S","resultCode":"SUCCESS"}"#,
        ] {
            assert_eq!(readings(text), (Reading::Disagrees, Reading::Disagrees), "{text}");
        }
    }
}
