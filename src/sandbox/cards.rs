//! The test cards and what the sandbox tells of any card: brand, country, region, how it ends.
//!
//! Antom's published sandbox numbers have their own rows; any other number with a good check digit is an
//! ordinary credit card that pays. Only the first six and the last four digits leave this module.

use serde::{Deserialize, Serialize};

/// What may be shown of a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CardFacts {
    /// First six digits.
    pub bin: String,
    /// Last four digits.
    pub last_four: String,
    /// Antom's word for the brand.
    pub brand: String,
    /// ISO 3166-1 alpha-2.
    pub issuing_country: String,
    /// `GLOBAL` or a country with card rails of its own.
    pub region: String,
}

/// The issuer's own words for a decline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decline {
    /// `refusalCodeRaw`.
    pub refusal_code: &'static str,
    /// `merchantAdviceCode`.
    pub merchant_advice: Option<&'static str>,
}

/// What the buyer is taken to type on the hosted page.
pub(super) const HOSTED_PAGE_CARD: &str = "4054695723100768";
/// Passes 3DS without a page.
pub(super) const FRICTIONLESS_CARD: &str = "4035501000000008";

const LOCAL: &[(&str, &str, &str)] = &[
    ("9490220011669217", "HYUNDAI", "KR"),
    ("4294097400915107", "VISA", "BR"),
    ("4006055482525268", "VISA", "MX"),
    ("4600729331819383", "VISA", "CL"),
    ("4310377720003234", "VISA", "PE"),
];

const DECLINED: &[(&str, Decline)] = &[
    ("4054692760174822", Decline { refusal_code: "05", merchant_advice: Some("02") }),
    ("5162770472561357", Decline { refusal_code: "05", merchant_advice: Some("03") }),
];

/// What may be told of a card number.
pub(super) fn facts(digits: &str) -> CardFacts {
    let local = LOCAL.iter().find(|(number, _, _)| *number == digits);
    let (brand, country, region) = match local {
        Some((_, brand, country)) => (*brand, *country, *country),
        None => (brand(digits), "US", "GLOBAL"),
    };
    CardFacts {
        bin: digits.chars().take(6).collect(),
        last_four: last_four(digits).to_owned(),
        brand: brand.to_owned(),
        issuing_country: country.to_owned(),
        region: region.to_owned(),
    }
}

/// Why the issuer declines this card, if it is one of the cards that fail.
pub(super) fn decline(digits: &str) -> Option<Decline> {
    DECLINED.iter().find(|(number, _)| *number == digits).map(|(_, decline)| *decline)
}

/// The last four characters, or all of a shorter text.
pub(super) fn last_four(text: &str) -> &str {
    text.char_indices().nth_back(3).and_then(|(at, _)| text.get(at..)).unwrap_or(text)
}

/// Whether a text is a card number: 12 to 19 digits with a good check digit (ISO/IEC 7812-1 annex B).
pub(super) fn is_card_number(text: &str) -> bool {
    let digits = (12..=19).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let sum: u32 = text
        .bytes()
        .rev()
        .enumerate()
        .map(|(place, byte)| match (u32::from(byte.wrapping_sub(b'0')), place % 2) {
            (digit, 0) => digit,
            (digit, _) if digit > 4 => digit * 2 - 9,
            (digit, _) => digit * 2,
        })
        .sum();
    digits && sum.is_multiple_of(10)
}

fn brand(digits: &str) -> &'static str {
    let head = |count: usize| digits.get(..count).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    match (head(2), head(4)) {
        (40..=49, _) => "VISA",
        (51..=55, _) | (_, 2221..=2720) => "MASTERCARD",
        (34 | 37, _) => "AMEX",
        (35, _) => "JCB",
        (30 | 36 | 38 | 39, _) => "DINERS",
        (62, _) => "CUP",
        (60 | 64 | 65, _) => "DISCOVER",
        (50 | 56..=59 | 61 | 63 | 66..=69, _) => "MAESTRO",
        _ => "VISA",
    }
}
