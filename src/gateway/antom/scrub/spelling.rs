//! The spellings in which card data may stand inside a text.

use std::borrow::Cow;

use data_encoding::{BASE64_NOPAD, BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};
use percent_encoding::percent_decode_str;

use crate::base::card::Pan;
use crate::base::names::{self, Kind};

use super::{REMOVED, mask};

/// Fewest characters of base64 that are looked into: those of a CVV.
const BASE64_CHARACTERS: usize = 4;
/// Fewest characters of hexadecimal that are looked into. Fewer are as often plain numbers.
const HEX_CHARACTERS: usize = 12;
/// Fewest characters of a cryptogram or a token that stands behind its name.
const TOKEN_CHARACTERS: usize = 8;
/// Most characters between a name and its value.
const BETWEEN: usize = 8;

/// One number as it is looked for: in one piece or with anything between its digits, URL-encoded, in
/// base64 at any of its three alignments, in hexadecimal, and as the decimal codes of its characters.
pub(super) struct Spellings {
    digits: String,
    hex: String,
    codes: String,
    base64: [String; 3],
    /// How long the shortest of them is, in bytes.
    shortest: usize,
}

impl Spellings {
    pub(super) fn of(pan: &Pan) -> Self {
        let digits = pan.expose().to_owned();
        let base64 = base64_cores(&digits);
        let shortest = base64.iter().map(String::len).fold(digits.len(), usize::min);
        Self {
            shortest,
            base64,
            hex: data_encoding::HEXLOWER.encode(digits.as_bytes()),
            codes: digits.bytes().map(|byte| byte.to_string()).collect(),
            digits,
        }
    }

    /// Whether the number stands in a text. All marks are passed over: sixteen digits in this order are
    /// no accident.
    pub(super) fn stand_in(&self, text: &str) -> bool {
        if text.len() < self.shortest {
            return false;
        }
        let hex = || -> bool {
            let is_hex = |c: &char| matches!(c, '0'..='9' | 'a'..='f');
            let found = || text.chars().map(|c| c.to_ascii_lowercase()).filter(is_hex);
            text.len() >= self.hex.len() && found().collect::<String>().contains(&self.hex)
        };
        let holds_base64 = || {
            let together: String = text.chars().filter(|c| !c.is_whitespace()).collect();
            self.base64.iter().any(|core| together.contains(core))
        };
        let percent = || {
            text.contains('%')
                && digits_of(&percent_decode_str(text).decode_utf8_lossy()).contains(&self.digits)
        };
        let plain = || {
            let many = text.chars().map(names::narrow).filter(char::is_ascii_digit).count();
            let digits = if many < self.digits.len() { String::new() } else { digits_of(text) };
            digits.contains(&self.digits) || digits.contains(&self.codes)
        };
        plain() || percent() || hex() || holds_base64()
    }
}

fn digits_of(text: &str) -> String {
    text.chars().map(names::narrow).filter(char::is_ascii_digit).collect()
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

/// What a text may stand for, if it is an encoding of another text.
pub(super) fn decodings(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !text.is_ascii() {
        let narrow: String = text.chars().map(names::narrow).collect();
        found.extend(Some(narrow).filter(|narrow| narrow != text));
    }
    if text.contains('%') {
        let decoded = percent_decode_str(text).decode_utf8_lossy();
        if decoded != text {
            found.push(decoded.into_owned());
        }
    }
    if text.contains("\\u") || text.contains("\\x") {
        found.extend(Some(unescaped(text)).filter(|plain| plain != text));
    }
    // A signed token has three parts with points between.
    for part in text.trim().split('.') {
        let part: Cow<'_, str> = match part.contains(char::is_whitespace) {
            true => part.chars().filter(|c| !c.is_whitespace()).collect(),
            false => part.into(),
        };
        let bare = part.trim_end_matches('=').as_bytes();
        let readable = |bytes: Option<Vec<u8>>| {
            let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok())?;
            (!text.chars().any(|c| c.is_control() && !c.is_whitespace())).then_some(text)
        };
        if bare.len() >= BASE64_CHARACTERS {
            found.extend(readable(BASE64_NOPAD.decode(bare).or_else(|_| BASE64URL_NOPAD.decode(bare)).ok()));
        }
        if bare.len() >= HEX_CHARACTERS {
            found.extend(readable(HEXLOWER_PERMISSIVE.decode(bare).ok()));
        }
    }
    found
}

/// The text with what `\u0034` and `\x34` stand for in their places.
fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut parts = text.split('\\');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let length = match part.chars().next() {
            Some('u') => 5,
            Some('x') => 3,
            _ => 0,
        };
        let code = part.get(1..length).and_then(|code| u32::from_str_radix(code, 16).ok());
        match code.and_then(char::from_u32) {
            Some(c) => {
                out.push(c);
                out.push_str(part.get(length..).unwrap_or_default());
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

/// The text without values that stand behind a name of theirs: `cvv=850`, `<cavv>AAAB…</cavv>`,
/// `"cardNo":"…` in what is nearly JSON. `None` where there is none.
pub(super) fn without_named(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut done = 0;
    let mut rest = 0;
    while let Some(name) = next_word(text, rest) {
        rest = name.end;
        if let Some((value, instead)) = named_value(text, &name) {
            out.push_str(text.get(done..value.start).unwrap_or_default());
            out.push_str(&instead);
            (done, rest) = (value.end, value.end);
        }
    }
    (done > 0).then(|| {
        out.push_str(text.get(done..).unwrap_or_default());
        out
    })
}

type Place = std::ops::Range<usize>;

/// The next run of letters, digits and underscores.
fn next_word(text: &str, from: usize) -> Option<Place> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let start = from + text.get(from..)?.find(is_part)?;
    Some(start..end_of(text, start, is_part))
}

fn end_of(text: &str, from: usize, is_part: impl Fn(char) -> bool) -> usize {
    let rest = text.get(from..).unwrap_or_default();
    from + rest.find(|c| !is_part(c)).unwrap_or(rest.len())
}

/// The value that stands behind a name, if it is one to take out, and what comes in its place.
fn named_value(text: &str, name: &Place) -> Option<(Place, String)> {
    let word = text.get(name.clone())?;
    let removed = |place| Some((place, REMOVED.to_owned()));
    // `cvv850`
    let bare = word.trim_end_matches(|c: char| c.is_ascii_digit());
    if (3..=5).contains(&(word.len() - bare.len())) && names::is_verification(bare) {
        return removed(name.start + bare.len()..name.end);
    }
    let start = end_of(text, name.end, |c| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '/' | '*'));
    let between = text.get(name.end..start)?;
    // What follows at once is no value of a name's, nor is what does not follow.
    if between.is_empty() || start == text.len() || between.chars().count() > BETWEEN {
        return None;
    }
    // `security code: 850`
    let two = || format!("{} {word}", last_word(text, name.start));
    let given = between.contains(['=', ':', '>']);
    let is_code = names::is_verification(word) || names::is_verification(&two());
    let value = start..end_of(text, start, |c| c.is_ascii_alphanumeric());
    if is_code {
        let digits = text.get(value.clone())?;
        let good = matches!(digits.len(), 3 | 4) && digits.bytes().all(|byte| byte.is_ascii_digit());
        return if good { removed(value) } else { None };
    }
    match names::kind(word) {
        // In an address, `cid` is a session of somebody's more often than a CVV.
        Kind::Secret | Kind::Token if given && !word.eq_ignore_ascii_case("cid") => {
            let is_part = |c: char| c.is_ascii_alphanumeric() || "+/=_-.".contains(c);
            let value = start..end_of(text, start, is_part);
            let shown = text.get(value.clone())?;
            let is_token = shown.len() >= TOKEN_CHARACTERS && !shown.chars().all(|c| c.is_ascii_alphabetic());
            if is_token { removed(value) } else { None }
        }
        Kind::Number if given => {
            let end = end_of(text, start, |c| c.is_ascii_digit() || c == ' ' || c == '-');
            let shown = text.get(start..end)?.trim_end_matches([' ', '-']);
            let digits = digits_of(shown);
            (12..=19).contains(&digits.len()).then(|| (start..start + shown.len(), mask(&digits)))
        }
        _ => None,
    }
}

/// The word that ends right before a place, but for one character between.
fn last_word(text: &str, before: usize) -> &str {
    let head = text.get(..before).unwrap_or_default();
    let head = head.strip_suffix([' ', '-']).unwrap_or("");
    head.rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or("")
}
