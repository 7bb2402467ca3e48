//! The answer that a trigger makes of the truth. What is on disk stays true.

use serde_json::{Value, json};

use super::answer::{Answer, Manner, message, result};
use super::triggers::Says;

/// The members of an answer that a trigger may falsify.
pub(super) struct Names {
    /// Names what the merchant asked for.
    pub id: &'static str,
    /// What it is about.
    pub amount: &'static str,
}

/// More than a client should read.
const OVERSIZE: usize = 1024 * 1024 + 64 * 1024;

/// Gives `truth` as `says` wants it.
pub(super) fn spoil(says: Says, mut truth: Value, names: &Names) -> Answer {
    match says {
        // Card data is echoed by the caller, who has it.
        Says::Truth | Says::Echo => Answer::json(&truth, Manner::Plain),
        Says::TruthLate => Answer::json(&truth, Manner::Late),
        Says::TruthAfterNotice => Answer::json(&truth, Manner::AfterNotice),
        Says::TruthWithoutNetworkId => {
            if let Some(info) = truth.get_mut("paymentResultInfo").and_then(Value::as_object_mut) {
                info.remove("networkTransactionId");
            }
            Answer::json(&truth, Manner::Plain)
        }
        Says::ResultOnly => Answer::json(&json!({ "result": truth["result"] }), Manner::Plain),
        Says::Instead(code) => Answer::result(code.status, code.code, message(code.code)),
        Says::Silence => Answer::nothing(Manner::Silence),
        Says::Closed => Answer::nothing(Manner::Closed),
        Says::ServerError => Answer::nothing(Manner::ServerError),
        Says::Redirect => Answer::nothing(Manner::Redirect),
        Says::Unsigned => Answer::json(&truth, Manner::Unsigned),
        Says::WronglySigned => Answer::json(&truth, Manner::WronglySigned),
        Says::UnsignedFailure => {
            let failure = result("F", "PROCESS_FAIL", message("PROCESS_FAIL"));
            Answer::json(&json!({ "result": failure }), Manner::Unsigned)
        }
        Says::OtherId => {
            truth[names.id] = json!("ID_OF_SOMEBODY_ELSE");
            Answer::json(&truth, Manner::Plain)
        }
        Says::OtherAmount => {
            truth[names.amount]["value"] = json!("1");
            if truth.get("actualPaymentAmount").is_some() {
                truth["actualPaymentAmount"] = truth[names.amount].clone();
            }
            Answer::json(&truth, Manner::Plain)
        }
        Says::Garbage => Answer::bytes(b"<html>Bad Gateway</html>".to_vec(), Manner::Plain),
        Says::Truncated => Answer::json(&truth, Manner::Truncated),
        Says::Empty => Answer::nothing(Manner::Plain),
        Says::Oversized => {
            truth["padding"] = json!("x".repeat(OVERSIZE));
            let shown = Some("(the truth and more than a mebibyte of padding)");
            Answer { shown, ..Answer::json(&truth, Manner::Plain) }
        }
    }
}
