//! Reads verified answers: what they say of the payment, and whether they speak of the right one.

use crate::base::ids::PaymentRequestId;
use crate::base::json::{self, Object};
use crate::base::money::Amount;
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
