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
    let words = Words::of(name);
    if words.end_with(TOKEN) {
        Kind::Token
    } else if words.end_with(VERIFICATION) || words.end_with(SECRET) {
        Kind::Secret
    } else if words.end_with(NUMBER) {
        Kind::Number
    } else if words.end_with(ID)
        || words.have(TELEPHONE)
        || (["id", "ids", "url"].contains(&words.last()) && !words.have(&["card"]))
    {
        Kind::Quiet
    } else {
        Kind::Plain
    }
}

/// Whether a name is that of a CVV, whose value is three or four digits.
pub fn is_verification(name: &str) -> bool {
    Words::of(name).end_with(VERIFICATION)
}

/// The words of a name in lower case: parted by punctuation, and by capitals.
struct Words {
    /// All of them in one piece.
    letters: String,
    /// Where each begins.
    starts: Vec<usize>,
}

impl Words {
    fn of(name: &str) -> Self {
        let mut words =
            Self { letters: String::with_capacity(name.len()), starts: Vec::with_capacity(WORDS) };
        let mut characters = name.chars().map(narrow).peekable();
        let mut before = None;
        let mut parted = true;
        while let Some(c) = characters.next() {
            let lower_next = characters.peek().is_some_and(char::is_ascii_lowercase);
            parted |= c.is_ascii_uppercase()
                && before.is_some_and(|before: char| !before.is_ascii_uppercase() || lower_next);
            if c.is_ascii_alphanumeric() {
                if parted {
                    words.starts.push(words.letters.len());
                }
                words.letters.push(c.to_ascii_lowercase());
            }
            parted = !c.is_ascii_alphanumeric();
            before = Some(c);
        }
        words
    }

    /// Whether the last word, or the last few in one piece, are in a list.
    fn end_with(&self, list: &[&str]) -> bool {
        let mut endings = self.starts.iter().rev().take(WORDS).filter_map(|start| self.letters.get(*start..));
        endings.any(|ending| list.contains(&ending))
    }

    /// Whether any word is in a list.
    fn have(&self, list: &[&str]) -> bool {
        let ends = self.starts.iter().skip(1).copied().chain([self.letters.len()]);
        let mut words = self.starts.iter().zip(ends).filter_map(|(start, end)| self.letters.get(*start..end));
        words.any(|word| list.contains(&word))
    }

    fn last(&self) -> &str {
        self.starts.last().and_then(|start| self.letters.get(*start..)).unwrap_or_default()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_parted_by_marks_and_capitals() {
        for (name, words) in [
            ("", &[][..]),
            ("cardNo", &["card", "no"]),
            ("CARD-NO", &["card", "no"]),
            ("__payment.card_no__", &["payment", "card", "no"]),
            ("threeDSResult", &["three", "ds", "result"]),
            ("ＣＶＶ２", &["cvv2"]),
            ("größe", &["gr", "e"]),
        ] {
            let found = Words::of(name);
            let ends = found.starts.iter().skip(1).copied().chain([found.letters.len()]);
            let found: Vec<_> =
                found.starts.iter().zip(ends).map(|(start, end)| &found.letters[*start..end]).collect();
            assert_eq!(found, words, "{name}");
        }
    }

    #[test]
    fn a_name_tells_by_its_last_words_in_one_piece() {
        for (name, expected) in [
            ("acquirerCardToken", Kind::Token),
            ("card_security_code", Kind::Secret),
            ("securityCodeCheck", Kind::Plain),
            ("a.b.c.d.e.f.primary-account-number", Kind::Number),
            ("telephoneOfBuyer", Kind::Quiet),
            ("referenceBuyerId", Kind::Quiet),
            ("cardId", Kind::Plain),
            ("resultCode", Kind::Plain),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
        assert!(is_verification("CVC-2") && !is_verification("cavv"));
    }
}
