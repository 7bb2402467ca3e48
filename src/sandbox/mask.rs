//! What may be shown of a body: card numbers as their last four digits, CVVs and tokens not at all.
//!
//! Works by member name and, in any other text, by looking for a run of digits that is a card number. It
//! is for `recent_calls`; bodies are never logged, masked or not.

use serde_json::Value;

use super::cards::{is_card_number, last_four};

/// Members whose value is never shown.
const HIDDEN: &[&str] = &[
    "cvv",
    "cvc",
    "cvn",
    "securityCode",
    "cavv",
    "caav",
    "cardPasswordDigest",
    "cardToken",
    "paymentMethodId",
];

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
                (text(&name), shown)
            })
            .collect(),
        Value::Array(items) => items.into_iter().map(|item| member(name, item)).collect(),
        _ if HIDDEN.contains(&name) => Value::from("***"),
        Value::String(value) if name == "cardNo" => Value::from(card_number(&value)),
        Value::String(value) => Value::from(text(&value)),
        Value::Number(number) if is_card_number(&number.to_string()) => Value::from("************"),
        other => other,
    }
}

/// Masks every card number in a text, also one whose digits stand in groups.
pub(super) fn text(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(start);
        let (run, after) = from.split_at(run_length(from));
        shown.push_str(before);
        shown.push_str(&masked(run));
        rest = after;
    }
    shown.push_str(rest);
    shown
}

/// A run of digits and single separators: one card number, or numbers that stand beside each other.
fn masked(run: &str) -> String {
    let digits: String = run.chars().filter(char::is_ascii_digit).collect();
    if is_card_number(&digits) {
        return card_number(&digits);
    }
    run.split_inclusive([' ', '-'])
        .map(|part| match part.trim_end_matches([' ', '-']) {
            digits if is_card_number(digits) => part.replace(digits, &card_number(digits)),
            _ => part.to_owned(),
        })
        .collect()
}

/// How far a text that begins with a digit goes on with digits and single spaces or hyphens.
fn run_length(text: &str) -> usize {
    let mut length = 0;
    let mut separated = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'0'..=b'9' => (length, separated) = (at + 1, false),
            b' ' | b'-' if !separated => separated = true,
            _ => break,
        }
    }
    length
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
        assert_eq!(text("a 4054-6957-2310-0768, b"), "a ************0768, b");
        assert_eq!(text("12 4054695723100768 7"), "12 ************0768 7");
        assert_eq!(text("1 2  3-é"), "1 2  3-é");
        assert_eq!(body(b"4054695723100768x"), "(not JSON, 17 bytes)");
    }
}
