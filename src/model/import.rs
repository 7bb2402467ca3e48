//! A line of a file of cards that come from another vault. Cards and agreements are read by the same readers as
//! the API's, so that the same things are refused with the same codes.

use std::borrow::Cow;

use crate::base::card::find_pans;
use crate::base::clock::Millis;
use crate::base::fault::FieldFault;
use crate::base::json::{self, JsonFaultKind, Object};

use super::agreement::{Brought, read_brought};
use super::card::{CardReader, Details, NEW_CARD, TypedCard};
use super::vocabulary;

/// Most agreements of one card.
const AGREEMENTS: usize = 100;
/// Longest name of a card elsewhere, in characters.
const EXTERNAL_ID: usize = 128;

/// A card that comes from another vault.
pub struct ImportLine {
    /// What it was called there.
    pub external_id: Option<String>,
    /// The card.
    pub card: TypedCard,
    /// What its buyer agreed to.
    pub agreements: Vec<Brought>,
}

/// A line that is longer than a request may be.
pub const TOO_LARGE: FieldFault = FieldFault::at("", "body_too_large");
/// A line that is not one JSON value in UTF-8.
pub const MALFORMED: FieldFault = FieldFault::at("", JsonFaultKind::Syntax.code());

/// Reads a line; what is refused says where and why, and nothing of the line.
pub fn read_line(text: &str, now: Millis) -> Result<ImportLine, Vec<FieldFault>> {
    json::check(text, &vocabulary::is_known)
        .map_err(|fault| vec![FieldFault { pointer: fault.pointer.into(), code: fault.kind.code() }])?;
    let object = Object::parse(text).ok_or_else(|| vec![FieldFault::at("", "invalid_type")])?;
    let mut reader = CardReader::new(&object, "");
    reader.refuse_unknown(&[NEW_CARD, &["externalId", "agreements"]].concat());
    if object.get("cvv").is_some() {
        // It may be kept nowhere, so no vault can have one to give.
        reader.fault("cvv", "cvv_present");
    }
    let (pan, expiry) = (reader.pan(), reader.expiry(now));
    let (name, address) = (reader.name(), reader.address(true));
    let buyer = reader.buyer();
    let external_id = reader.string("externalId").map(|text| {
        let text = text.expose();
        let is_this_card = pan.as_ref().is_some_and(|pan| text.contains(pan.expose()));
        if !find_pans(text).is_empty() || is_this_card {
            reader.fault("externalId", "card_data_outside_card");
        } else if !(1..=EXTERNAL_ID).contains(&text.chars().count()) || text.chars().any(char::is_control) {
            reader.fault("externalId", "invalid_value");
        }
        text.to_owned()
    });
    let mut agreements: Vec<Brought> = Vec::new();
    let items = object.get("agreements").map(json::items);
    match items {
        None => {}
        Some(None) => reader.fault("agreements", "invalid_type"),
        Some(Some(items)) if items.len() > AGREEMENTS => reader.fault("agreements", "too_long"),
        Some(Some(items)) => {
            for (at, raw) in items.into_iter().enumerate() {
                let at = format!("/agreements/{at}");
                match read_brought(raw, &at, pan.as_ref(), now) {
                    Ok(new) if agreements.iter().any(|other| is_same(other, &new)) => {
                        reader.faults.push(FieldFault { pointer: Cow::Owned(at), code: "conflict" });
                    }
                    Ok(new) => agreements.push(new),
                    Err(faults) => reader.faults.extend(faults),
                }
            }
        }
    }
    match (pan, expiry, reader.faults) {
        (Some(pan), Some(expiry), faults) if faults.is_empty() => {
            let card = TypedCard { pan, details: Details { expiry, name, address }, buyer };
            Ok(ImportLine { external_id, card, agreements })
        }
        (_, _, faults) => Err(faults),
    }
}

/// Whether two agreements are one: the same type, the same chain.
fn is_same(one: &Brought, other: &Brought) -> bool {
    one.terms.kind == other.terms.kind && one.network_transaction_id == other.network_transaction_id
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_772_366_400_000);
    const GOOD: &str = r#"{"externalId":"cus-1","cardNo":"4111 1111 1111 1111","expiryMonth":"12","expiryYear":"29","cardholderName":{"firstName":"Tom"},"referenceBuyerId":"b-1","agreements":[{"type":"SCHEDULED","consent":{"acceptedAt":"2024-03-01T11:00:00Z","textVersion":"v1"},"maxAmount":{"currency":"EUR","value":"5000"},"interval":"P1M","networkTransactionId":"412345678901234","transactionLinkId":"abcDEF0123456789_-abcd"},{"type":"CARD_ON_FILE","consent":{"acceptedAt":"2024-03-01T11:00:00Z","textVersion":"v1"}}]}"#;

    fn codes(text: &str) -> Vec<(String, &'static str)> {
        let faults = read_line(text, NOW).err().unwrap_or_default();
        faults.into_iter().map(|fault| (fault.pointer.into_owned(), fault.code)).collect()
    }

    #[test]
    fn a_line_is_read_whole() {
        let Ok(line) = read_line(GOOD, NOW) else { panic!("{:?}", codes(GOOD)) };
        assert_eq!(
            (line.external_id.as_deref(), line.card.pan.expose()),
            (Some("cus-1"), "4111111111111111")
        );
        let [first, second] = line.agreements.as_slice() else { panic!("two") };
        assert_eq!(first.network_transaction_id.as_deref(), Some("412345678901234"));
        assert_eq!(first.transaction_link_id.as_deref(), Some("abcDEF0123456789_-abcd"));
        assert!(second.network_transaction_id.is_none() && second.terms.max_amount.is_none());
    }

    #[test]
    fn what_is_wrong_is_named_and_not_repeated() {
        for (from, to, pointer, code) in [
            ("4111 1111 1111 1111", "4111111111111112", "/cardNo", "invalid_check_digit"),
            ("\"29\"", "\"20\"", "/expiryYear", "expired"),
            ("\"expiryMonth\":\"12\",", "", "/expiryMonth", "required"),
            ("\"externalId\":\"cus-1\"", "\"cvv\":\"123\"", "/cvv", "cvv_present"),
            ("cus-1", "x 4111-1111-1111-1111", "/externalId", "card_data_outside_card"),
            ("\"cus-1\"", "7", "/externalId", "invalid_type"),
            ("\"cus-1\"", "\"\"", "/externalId", "invalid_value"),
            ("externalId", "colour", "", "unknown_field"),
            ("\"expiryYear\":", "\"expiryMonth\":", "/expiryMonth", "duplicate_member"),
            ("SCHEDULED", "WEEKLY", "/agreements/0/type", "invalid_value"),
            (
                "\"networkTransactionId\":\"412345678901234\",",
                "",
                "/agreements/0/networkTransactionId",
                "required",
            ),
            ("412345678901234", "", "/agreements/0/networkTransactionId", "invalid_value"),
            (
                "412345678901234",
                "N4111111111111111",
                "/agreements/0/networkTransactionId",
                "card_data_outside_card",
            ),
            ("abcDEF0123456789_-abcd", "short", "/agreements/0/transactionLinkId", "invalid_value"),
            (
                "\"P1M\"",
                "\"P1M\",\"expiresAt\":\"2020-01-01T00:00:00Z\"",
                "/agreements/0/expiresAt",
                "invalid_value",
            ),
            ("\"interval\"", "\"colour\"", "/agreements/0", "unknown_field"),
            (
                "\"textVersion\":\"v1\"}}]",
                "\"textVersion\":\"\"}}]",
                "/agreements/1/consent/textVersion",
                "invalid_value",
            ),
            ("[{\"type\":\"SCHEDULED\"", "[7,{\"type\":\"SCHEDULED\"", "/agreements/0", "invalid_type"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            assert_eq!(codes(&GOOD.replacen(from, to, 1)), [(pointer.to_owned(), code)], "{from} -> {to}");
        }
        let whole = GOOD.replacen("\"agreements\":[", "\"agreements\":7,\"x\":[", 1);
        assert_eq!(
            codes(&whole),
            [(String::new(), "unknown_field"), ("/agreements".to_owned(), "invalid_type")]
        );
        let on_file =
            r#"{"type":"CARD_ON_FILE","consent":{"acceptedAt":"2024-03-01T11:00:00Z","textVersion":"v1"}}"#;
        let twice = GOOD.replacen(on_file, &format!("{on_file},{on_file}"), 1);
        assert_eq!(codes(&twice), [("/agreements/2".to_owned(), "conflict")]);
        for bad in ["", "{", "[]x", "\u{feff}{}"] {
            assert_eq!(codes(bad), [(String::new(), "malformed_json")], "{bad}");
        }
        assert_eq!(codes("[]"), [(String::new(), "invalid_type")]);
    }
}
