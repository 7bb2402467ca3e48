//! Cleans what the gateway sends before it is stored, logged or relayed. A gateway should never send
//! card data back; this makes sure that it does no harm when it does.

use data_encoding::BASE64_NOPAD;
use percent_encoding::percent_decode_str;

use crate::base::card::{Pan, find_pans};
use crate::base::cvv::Cvv;
use crate::base::ids::CardId;
use crate::base::json::{self, Object, ObjectWriter, push_string};
use crate::base::secret::SecretText;

/// Stands in place of what was taken out.
const REMOVED: &str = "[removed]";

/// Members that hold sensitive authentication data, by their names without
/// punctuation and in lower case.
const SECRET_NAMES: &[&str] = &[
    "cvv",
    "cvv2",
    "cvc",
    "cvc2",
    "cvn",
    "cvn2",
    "cid",
    "csc",
    "securitycode",
    "cardsecuritycode",
    "cardverificationvalue",
    "cavv",
    "caav",
    "cardpassworddigest",
];

/// The member that holds Antom's own token.
const TOKEN_NAME: &str = "cardtoken";

/// Members that hold a card number, which may stay only where it is masked.
const NUMBER_NAMES: &[&str] = &["cardno", "cardnumber", "pan", "maskedcardno"];

/// Ids that look like card numbers once in a while. They are searched for this payment's PAN, but not
/// for any number that has a brand's range and a right check digit.
const ID_NAMES: &[&str] = &[
    "paymentid",
    "paymentrequestid",
    "networktransactionid",
    "acquirerreferenceno",
    "captureid",
    "capturerequestid",
    "refundid",
    "refundrequestid",
    "transactionid",
    "transactionrequestid",
    "dstransactionid",
    "rrn",
    "arn",
];

/// The card data that the answered call carried, as far as it is known.
#[derive(Default, Clone, Copy)]
pub struct Own<'a> {
    /// The PAN that was sent.
    pub pan: Option<&'a Pan>,
    /// The CVV that was sent.
    pub cvv: Option<&'a Cvv>,
    /// Antom's token of the card, where it was sent or is told.
    pub token: Option<&'a SecretText>,
    /// The reference that stands in the token's place.
    pub token_card: Option<&'a CardId>,
}

impl Own<'_> {
    /// What stands in a token's place.
    fn instead_of_token(&self) -> &str {
        self.token_card.map_or(REMOVED, CardId::as_str)
    }
}

/// Antom's token of the card in an answer, as it came: in `paymentResultInfo`, or where older pages have it,
/// in `cardInfo` (reference, section 16).
pub fn card_token(text: &str) -> Option<SecretText> {
    let answer = Object::parse(text)?;
    ["paymentResultInfo", "cardInfo"].into_iter().find_map(|place| {
        let token = json::string(Object::parse(answer.get(place)?)?.get("cardToken")?)?;
        (!token.is_empty() && token.len() <= 2048).then(|| SecretText::from(token.as_ref()))
    })
}

/// The answer without card data, as JSON. `None` where the text is not one strict JSON value.
pub fn scrub(text: &str, own: Own<'_>) -> Option<String> {
    json::check(text, &|_| false).ok()?;
    let mut out = String::with_capacity(text.len());
    value(&mut out, text.trim(), "", false, own);
    Some(out)
}

/// Appends one value; `name` is the plain name of the member that it belongs to, and `in_amount` tells
/// that it is a member of a sum of money.
fn value(out: &mut String, raw: &str, name: &str, in_amount: bool, own: Own<'_>) {
    if name == TOKEN_NAME {
        push_string(out, own.instead_of_token());
    } else if SECRET_NAMES.contains(&name) {
        push_string(out, REMOVED);
    } else if let Some(members) = Object::parse(raw) {
        out.push_str(&object(&members, own));
    } else if let Some(items) = json::items(raw) {
        out.push('[');
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            value(out, item, name, false, own);
        }
        out.push(']');
    } else if let Some(text) = json::string(raw) {
        // Some members carry JSON as text: names count there too.
        let text = embedded(&text, own).map_or(text, Into::into);
        push_string(out, &clean_text(&text, name, in_amount, own));
    } else if raw.bytes().any(|b| b.is_ascii_digit()) && clean_text(raw, name, in_amount, own) != raw {
        push_string(out, REMOVED);
    } else {
        out.push_str(raw);
    }
}

/// The cleaned form of a text that is itself a JSON object or array. Each level doubles the escapes of
/// the one inside it, so the depth is bounded by the text's length.
fn embedded(text: &str, own: Own<'_>) -> Option<String> {
    text.trim_start().starts_with(['{', '[']).then(|| scrub(text, own)).flatten()
}

fn object(members: &Object<'_>, own: Own<'_>) -> String {
    let is_amount = members.get("currency").is_some() && members.get("value").is_some();
    let mut out = ObjectWriter::default();
    for (name, raw) in members.iter() {
        if clean_text(name, "", false, own) != name {
            continue;
        }
        let mut cleaned = String::new();
        value(&mut cleaned, raw, &plain(name), is_amount, own);
        out.raw(name, &cleaned);
    }
    out.finish()
}

/// A name without punctuation and in lower case: `card_no`, `cardNo` and `CARD-NO` are one.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

fn clean_text(text: &str, name: &str, in_amount: bool, own: Own<'_>) -> String {
    if NUMBER_NAMES.contains(&name) {
        return masked_number(text);
    }
    // Three digits alone say nothing; only a whole string is taken for the CVV, and a sum is not.
    if !in_amount && own.cvv.is_some_and(|cvv| cvv.expose() == text) {
        return REMOVED.to_owned();
    }
    if own.pan.is_some_and(|pan| holds_encoded(text, pan)) {
        return REMOVED.to_owned();
    }
    if let Some(token) = own.token.filter(|token| text.contains(token.expose())) {
        return text.replace(token.expose(), own.instead_of_token());
    }
    if ID_NAMES.contains(&name) && !own.pan.is_some_and(|pan| without_gaps(text).contains(pan.expose())) {
        return text.to_owned();
    }
    if own.pan.is_some_and(|pan| without_gaps(text).contains(pan.expose()) && !finds(text, pan)) {
        return REMOVED.to_owned();
    }
    mask_found(text)
}

/// A number that shows at most BIN and last four, as it is; any other one masked or taken out.
fn masked_number(text: &str) -> String {
    let shown = text.bytes().filter(u8::is_ascii_digit).count();
    let masks = text.bytes().any(|b| matches!(b, b'*' | b'x' | b'X' | b'.'));
    if text.is_empty() || (masks && shown <= 10) {
        return text.to_owned();
    }
    Pan::parse(text).map_or_else(|_| REMOVED.to_owned(), |pan| mask(pan.expose()))
}

fn mask(digits: &str) -> String {
    let (hidden, last4) = digits.split_at(digits.len().saturating_sub(4));
    format!("{}{last4}", "*".repeat(hidden.len()))
}

fn mask_found(text: &str) -> String {
    let mut out = String::new();
    let mut at = 0;
    for range in find_pans(text) {
        let number = without_gaps(text.get(range.clone()).unwrap_or_default());
        out.push_str(text.get(at..range.start).unwrap_or_default());
        out.push_str(&mask(&number));
        at = range.end;
    }
    out.push_str(text.get(at..).unwrap_or_default());
    out
}

/// Whether masking what looks like a card number takes this one out.
fn finds(text: &str, pan: &Pan) -> bool {
    !without_gaps(&mask_found(text)).contains(pan.expose())
}

fn without_gaps(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, ' ' | '-' | '.' | '_' | '\u{a0}')).collect()
}

/// The number URL-encoded, in base64 at any of its three alignments, in hexadecimal, or reversed in
/// another alphabet's digits.
fn holds_encoded(text: &str, pan: &Pan) -> bool {
    let digits = pan.expose();
    let holds = |text: &str| without_gaps(text).contains(digits);
    let percent = text.contains('%') && percent_decode_str(text).decode_utf8().is_ok_and(|t| holds(&t));
    let plus = text.contains('+') && holds(&text.replace('+', " "));
    let hex = data_encoding::HEXLOWER.encode(digits.as_bytes());
    percent
        || plus
        || text.to_ascii_lowercase().contains(&hex)
        || base64_cores(digits).iter().any(|core| text.contains(core))
}

/// The part of the base64 of a text that does not depend on what stands before or after it, for each
/// of the three places at which it can begin.
fn base64_cores(text: &str) -> [String; 3] {
    [0, 1, 2].map(|shift| {
        let mut bytes = vec![0; shift];
        bytes.extend_from_slice(text.as_bytes());
        let whole = bytes.len() / 3 * 3;
        let encoded = BASE64_NOPAD.encode(bytes.get(..whole).unwrap_or_default());
        encoded.get(if shift == 0 { 0 } else { 4 }..).unwrap_or_default().to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAN: &str = "4117347806156383";

    fn cleaned(text: &str) -> String {
        let (pan, cvv) = (Pan::parse(PAN).expect("a PAN"), Cvv::parse("850").expect("a CVV"));
        scrub(text, Own { pan: Some(&pan), cvv: Some(&cvv), ..Own::default() }).expect("JSON")
    }

    #[test]
    fn secret_members_go_by_name_however_spelled() {
        for name in [
            "cvv",
            "CVC",
            "cvn",
            "securityCode",
            "security_code",
            "cavv",
            "caav",
            "cardPasswordDigest",
            "cardToken",
        ] {
            for value in ["\"123\"", "123", "{\"x\":\"123\"}", "[\"123\"]", "null"] {
                let text = cleaned(&format!("{{\"a\":[{{\"{name}\":{value}}}]}}"));
                assert_eq!(text, format!("{{\"a\":[{{\"{name}\":\"[removed]\"}}]}}"));
            }
        }
    }

    #[test]
    fn a_token_becomes_a_reference() {
        let text = r#"{"paymentResultInfo":{"cardToken":"ALIPAYtoken1"},"x":"see ALIPAYtoken1"}"#;
        let token = card_token(text).expect("a token");
        assert_eq!(token.expose(), "ALIPAYtoken1");
        let card = CardId::make().expect("entropy");
        let own = Own { token: Some(&token), token_card: Some(&card), ..Own::default() };
        let once = scrub(text, own).expect("JSON");
        assert_eq!(once, text.replace("ALIPAYtoken1", card.as_str()));
        // What was taken out in a first pass gets its reference in a second.
        let removed = scrub(text, Own { token: Some(&token), ..Own::default() }).expect("JSON");
        assert!(!removed.contains("ALIPAYtoken1") && removed.contains(REMOVED));
        assert!(scrub(&removed, own).is_some_and(|text| text.contains(&format!("\"cardToken\":\"{card}\""))));
        assert_eq!(
            card_token(r#"{"cardInfo":{"cardToken":"t"}}"#).map(|t| t.expose().to_owned()).as_deref(),
            Some("t")
        );
        assert!(card_token(r#"{"cardToken":"t"}"#).is_none() && card_token("x").is_none());
    }

    #[test]
    fn names_count_in_json_that_is_carried_as_text() {
        let inner = r#" {"cvv":"123","a":[{"cardNo":"4117347806156383","b":"[{\"cavv\":1}]"}]}"#;
        let mut text = String::new();
        push_string(&mut text, inner);
        let once = cleaned(&format!("[{text}]"));
        let items: Vec<String> = serde_json::from_str(&once).expect("a list of texts");
        let expected =
            r#"{"cvv":"[removed]","a":[{"cardNo":"************6383","b":"[{\"cavv\":\"[removed]\"}]"}]}"#;
        assert_eq!(items, [expected]);
        for text in [r#"["{not JSON"]"#, r#"["[removed]"]"#, r#"["{\"a\":1}"]"#] {
            assert_eq!(cleaned(text), text);
        }
    }

    #[test]
    fn a_card_number_stays_only_masked() {
        for (value, expected) in [
            ("************6383", "************6383"),
            ("411734******6383", "411734******6383"),
            ("", ""),
            (PAN, "************6383"),
            ("4117 3478 0615 6383", "************6383"),
            ("9490220011669217", "************9217"),
            ("41173478061563**", "[removed]"),
            ("4117347806156384", "[removed]"),
        ] {
            for name in ["cardNo", "card_no"] {
                let text = cleaned(&format!("{{\"{name}\":\"{value}\"}}"));
                assert_eq!(text, format!("{{\"{name}\":\"{expected}\"}}"));
            }
        }
        assert_eq!(cleaned("{\"cardNo\":4117347806156383}"), "{\"cardNo\":\"[removed]\"}");
    }

    #[test]
    fn this_payments_number_goes_in_every_spelling() {
        let base64 = data_encoding::BASE64.encode(format!("{{\"n\":\"{PAN}\"}}").as_bytes());
        let percent: String = PAN.bytes().map(|b| format!("%{b:02x}")).collect();
        let hex = data_encoding::HEXUPPER.encode(PAN.as_bytes());
        for spelled in [
            PAN.to_owned(),
            format!("card {PAN} declined"),
            "4117-3478-0615-6383".to_owned(),
            "4117 3478 0615 6383".to_owned(),
            "41 17 34 78 06 15 63 83".to_owned(),
            "4117.3478.0615.6383".to_owned(),
            "4117+3478+0615+6383".to_owned(),
            "4117%203478%200615%206383".to_owned(),
            format!("9{PAN}9"),
            percent,
            base64,
            hex,
        ] {
            for name in ["resultMessage", "networkTransactionId", "paymentId"] {
                let text = cleaned(&format!("{{\"{name}\":\"{spelled}\"}}"));
                let digits: String = text.chars().filter(char::is_ascii_digit).collect();
                assert!(!digits.contains(PAN), "{name} {spelled}: {text}");
                assert!(text.contains('*') || text.contains(REMOVED), "{name} {spelled}: {text}");
            }
        }
        assert_eq!(cleaned(&format!("{{\"{PAN}\":1,\"a\":{PAN}}}")), "{\"a\":\"[removed]\"}");
    }

    #[test]
    fn any_number_of_a_brand_goes_but_ids_stay() {
        let other = scrub(
            r#"{"resultMessage":"4111 1111 1111 1111 x","paymentId":"20211112194010800100188570271832381","networkTransactionId":"378282246310005","rrn":"4111111111111111"}"#,
            Own::default(),
        );
        assert_eq!(
            other.as_deref(),
            Some(
                r#"{"resultMessage":"************1111 x","paymentId":"20211112194010800100188570271832381","networkTransactionId":"378282246310005","rrn":"4111111111111111"}"#
            )
        );
    }

    #[test]
    fn the_cvv_goes_only_as_a_whole_string() {
        let text = r#"{"paymentAmount":{"value":"85000","currency":"EUR"},"x":"850","y":"8500","z":850000,"cvvResultRaw":"Y"}"#;
        assert_eq!(cleaned(text), text.replace("\"850\"", "\"[removed]\""));
        let sum = r#"{"paymentAmount":{"currency":"EUR","value":"850"}}"#;
        assert_eq!(cleaned(sum), sum);
    }

    #[test]
    fn the_rest_stays_byte_for_byte() {
        let text = r#"{"a":[1.50,true,null,{"threeDSResult":{"eci":"02","dsTransactionId":"x"}}],"b":"é\n"}"#;
        assert_eq!(cleaned(text), text);
        assert_eq!(scrub("{", Own::default()), None);
        assert_eq!(scrub(r#"{"a":1,"a":2}"#, Own::default()), None);
    }
}
