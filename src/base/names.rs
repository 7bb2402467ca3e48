//! What a member's name says of its value, however it is spelled: `card_no`, `CARD-NO`, `cardNo` and
//! `payment.cardNo` are one.

/// Members that hold sensitive authentication data, besides those of [`VERIFICATION`].
const SECRET: &[&str] = &[
    "cid",
    "cavv",
    "caav",
    "aav",
    "tavv",
    "ucaf",
    "cardpassworddigest",
    "cardpassword",
    "pinblock",
    "trackdata",
];

/// Members that hold Antom's own token.
const TOKEN: &[&str] = &["cardtoken"];

/// Members that hold a CVV: three or four digits.
const VERIFICATION: &[&str] = &[
    "cvv",
    "cvv2",
    "cvc",
    "cvc2",
    "cvn",
    "cvn2",
    "csc",
    "securitycode",
    "verificationcode",
    "verificationvalue",
    "cvvcode",
    "cvccode",
];

/// Members that hold a card number, which may stay only where it is masked.
const NUMBER: &[&str] =
    &["cardno", "cardnum", "cardnumber", "pan", "primaryaccountnumber", "creditcardno", "creditcardnumber"];

/// Ids without `id` in their names. Like all ids they look like card numbers once in a while.
const ID: &[&str] = &[
    "acquirerreferenceno",
    "authorizationcode",
    "arn",
    "fingerprint",
    "referenceno",
    "rrn",
    "stan",
    "traceno",
];

/// Words by which a telephone number is known.
const TELEPHONE: &[&str] = &["fax", "mobile", "msisdn", "phone", "tel", "telephone"];

/// How many words at a name's end are looked at.
const WORDS: usize = 6;

/// What a value is by its member's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Never shown.
    Secret,
    /// Antom's own token: a reference stands in its place.
    Token,
    /// A card number.
    Number,
    /// An id, an address or a telephone number: searched for this payment's own card data only.
    Quiet,
    /// A sum of money, of which the same is true, and which may be equal to a CVV.
    Sum,
    /// Anything else.
    Plain,
}

/// The kind that a name gives to its value.
pub fn kind(name: &str) -> Kind {
    let words = words(name);
    let ends_with = |list: &[&str]| endings(&words).any(|ending| list.contains(&ending.as_str()));
    let last = words.last().map_or("", String::as_str);
    let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
    if ends_with(TOKEN) {
        Kind::Token
    } else if ends_with(VERIFICATION) || ends_with(SECRET) {
        Kind::Secret
    } else if ends_with(NUMBER) {
        Kind::Number
    } else if ends_with(ID) || has(TELEPHONE) || (["id", "ids", "url"].contains(&last) && !has(&["card"])) {
        Kind::Quiet
    } else {
        Kind::Plain
    }
}

/// Whether a name is that of a CVV, whose value is three or four digits.
pub fn is_verification(name: &str) -> bool {
    let words = words(name);
    endings(&words).any(|ending| VERIFICATION.contains(&ending.as_str()))
}

/// The words of a name in lower case: parted by punctuation, and by capitals.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let characters: Vec<char> = name.chars().map(narrow).collect();
    for (at, c) in characters.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|at| characters.get(at));
        let lower_next = characters.get(at + 1).is_some_and(char::is_ascii_lowercase);
        let parted = !c.is_ascii_alphanumeric()
            || (c.is_ascii_uppercase()
                && before.is_some_and(|before| !before.is_ascii_uppercase() || lower_next));
        if parted {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c.is_ascii_alphanumeric()) {
            word.push(c.to_ascii_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The name's last words, from more to fewer, each time in one piece.
fn endings(words: &[String]) -> impl Iterator<Item = String> {
    (words.len().saturating_sub(WORDS)..words.len())
        .map(|from| words.get(from..).unwrap_or_default().concat())
}

/// A full-width letter or a digit of another alphabet as the ASCII one, anything else as it is.
pub fn narrow(c: char) -> char {
    let code = u32::from(c);
    match code {
        0xff01..=0xff5e => char::from_u32(code - 0xfee0),
        0x0660..=0x0669 => char::from_u32(code - 0x0660 + 0x30),
        0x06f0..=0x06f9 => char::from_u32(code - 0x06f0 + 0x30),
        0x0966..=0x096f => char::from_u32(code - 0x0966 + 0x30),
        _ => None,
    }
    .unwrap_or(c)
}
