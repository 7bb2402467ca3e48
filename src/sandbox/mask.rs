//! What may be shown of a body: card numbers as their last four digits, CVVs and tokens not at all.
//!
//! Works by member name and, in any other text, by looking for a run of digits that is a card number. It
//! is for `recent_calls`; bodies are never logged, masked or not.

use serde_json::Value;

use super::cards::{is_card_number, last_four};

/// Members whose value is never shown.
const HIDDEN: &[&str] =
    &["cvv", "cvc", "cvn", "securityCode", "cavv", "caav", "cardPasswordDigest", "cardToken"];

/// A body as it may be shown; `(not JSON, N bytes)` if it is something else.
pub(super) fn body(bytes: &[u8]) -> String {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(value) => member("", value).to_string(),
        Err(_) => format!("(not JSON, {} bytes)", bytes.len()),
    }
}

/// A card number as it may be shown.
pub(super) fn card_number(digits: &str) -> String {
    format!("************{}", last_four(digits))
}

fn member(name: &str, value: Value) -> Value {
    match value {
        Value::Object(members) => members
            .into_iter()
            .map(|(name, value)| {
                let shown = member(&name, value);
                (runs(&name), shown)
            })
            .collect(),
        Value::Array(items) => items.into_iter().map(|item| member(name, item)).collect(),
        _ if HIDDEN.contains(&name) => Value::from("***"),
        Value::String(text) if name == "cardNo" => Value::from(card_number(&text)),
        Value::String(text) => Value::from(runs(&text)),
        Value::Number(number) if is_card_number(&number.to_string()) => Value::from("************"),
        other => other,
    }
}

/// Masks every run of digits that is a card number.
fn runs(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(start);
        let end = from.find(|c: char| !c.is_ascii_digit()).unwrap_or(from.len());
        let (run, after) = from.split_at(end);
        shown.push_str(before);
        if is_card_number(run) {
            shown.push_str(&card_number(run))
        } else {
            shown.push_str(run)
        }
        rest = after;
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn card_data_is_masked_by_name_and_by_value() {
        let shown = body(
            br#"{"a":[{"cardNo":"4054695723100768","cvv":850}],"note":"pan=4054695723100768;","n":4054695723100768}"#,
        );
        assert_eq!(
            shown,
            r#"{"a":[{"cardNo":"************0768","cvv":"***"}],"n":"************","note":"pan=************0768;"}"#
        );
        assert_eq!(body(b"4054695723100768x"), "(not JSON, 17 bytes)");
    }
}
