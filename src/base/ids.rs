//! Names of things: random ids that are never derived from a PAN and never mistakable for one.

use std::fmt;
use std::sync::LazyLock;

use data_encoding::{Encoding, Specification};

use super::clock::Millis;
use super::entropy::{self, NoEntropy};

/// Crockford's base32 alphabet, upper case, without padding.
static CROCKFORD: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("0123456789ABCDEFGHJKMNPQRSTVWXYZ");
    // The alphabet is fixed above and valid; a failure here would be a change of the library.
    specification.encoding().unwrap_or(data_encoding::BASE32_NOPAD)
});

/// `bytes` in Crockford's base32.
pub fn base32(bytes: &[u8]) -> String {
    CROCKFORD.encode(bytes)
}

/// Reads Crockford's base32 in its one spelling (upper case, no padding, no look-alikes).
pub fn from_base32(text: &str) -> Option<Vec<u8>> {
    CROCKFORD.decode(text.as_bytes()).ok()
}

/// These bytes and random ones, 160 bits in all, in Crockford's base32 (32 characters) without a run of digits
/// that could be taken for a card number by anything that looks for one (12 digits or more).
fn random_name<const N: usize>(begin: [u8; N]) -> Result<String, NoEntropy> {
    const { assert!(N <= 6, "fewer than 12 characters come from what is given") };
    loop {
        let mut bytes = entropy::array::<20>()?;
        bytes.iter_mut().zip(begin).for_each(|(byte, given)| *byte = given);
        let name = base32(&bytes);
        if longest_digit_run(&name) < 12 {
            return Ok(name);
        }
    }
}

fn longest_digit_run(text: &str) -> usize {
    text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0)
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// What every id of this kind begins with.
            pub const PREFIX: &'static str = $prefix;

            /// A fresh random id.
            pub fn make() -> Result<Self, NoEntropy> {
                Self::beginning([])
            }

            /// A fresh id that begins with these bytes; the others are random.
            fn beginning<const N: usize>(begin: [u8; N]) -> Result<Self, NoEntropy> {
                Ok(Self(format!(concat!($prefix, "{}"), random_name(begin)?)))
            }

            /// Accepts exactly the spelling that [`Self::make`] produces.
            pub fn parse(text: &str) -> Option<Self> {
                let name = text.strip_prefix($prefix)?;
                (name.len() == 32 && from_base32(name).is_some()).then(|| Self(text.to_owned()))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

random_id!(
    /// A card's reference: `card_` and 32 characters of Crockford base32.
    CardId,
    "card_"
);

impl CardId {
    /// A fresh id that an index over cards has beside those of the same second, not on a page of its own:
    /// 32 bits of milliseconds, which come round every 50 days, and 128 random ones.
    pub fn at(at: Millis) -> Result<Self, NoEntropy> {
        let [_, _, _, _, time @ ..] = at.0.to_be_bytes();
        Self::beginning(time)
    }
}
random_id!(
    /// A stored-credential agreement: `agr_` and 32 characters of Crockford base32.
    AgreementId,
    "agr_"
);
random_id!(
    /// A data key: `dek_` and 32 characters of Crockford base32.
    DekId,
    "dek_"
);
random_id!(
    /// A key-encryption key: `kek_` and 32 characters of Crockford base32.
    KekId,
    "kek_"
);
random_id!(
    /// Something that changed: `evt_` and 32 characters of Crockford base32.
    EventId,
    "evt_"
);

impl EventId {
    /// A fresh id that sorts by time, so that an index of events grows at its end: 48 bits of milliseconds, as
    /// in a UUID of version 7 (RFC 9562, section 5.7), and 112 random ones.
    pub fn at(at: Millis) -> Result<Self, NoEntropy> {
        let [_, _, time @ ..] = at.0.to_be_bytes();
        Self::beginning(time)
    }
}
random_id!(
    /// A signed report of what was erased because its time was over: `rpt_` and 32 characters.
    ReportId,
    "rpt_"
);
random_id!(
    /// One sweep, or one command that works through many cards: `run_` and 32 characters.
    RunId,
    "run_"
);
random_id!(
    /// One running process, from its start to its end: `boot_` and 32 characters.
    InstanceId,
    "boot_"
);
random_id!(
    /// One request to the API: `req_` and 32 characters.
    RequestId,
    "req_"
);

macro_rules! named {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// 1 to 64 ASCII letters, digits, `_`, `-` or `.`.
            pub fn parse(text: &str) -> Option<Self> {
                let good = !text.is_empty()
                    && text.len() <= super::limits::ID_CHARS
                    && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
                good.then(|| Self(text.to_owned()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

named!(
    /// A merchant of this deployment, as the configuration names it.
    Merchant
);
named!(
    /// A client certificate's name in the configuration.
    ClientName
);
named!(
    /// Antom's client id: the account within which request ids are unique.
    GatewayAccount
);

/// The merchant's id for a buyer: 1 to 64 printable characters, no card number in it (the caller checks).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BuyerId(String);

impl BuyerId {
    /// 1 to 64 characters, none of them a control character.
    pub fn parse(text: &str) -> Option<Self> {
        let count = text.chars().count();
        ((1..=super::limits::ID_CHARS).contains(&count) && !text.chars().any(char::is_control))
            .then(|| Self(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The idempotency key of a payment, unique within a gateway account: 1 to 64 ASCII letters, digits,
/// `_` or `-` (reference, section 7.1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PaymentRequestId(String);

impl PaymentRequestId {
    /// Checks length and alphabet.
    pub fn parse(text: &str) -> Option<Self> {
        let good = (1..=super::limits::ID_CHARS).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        good.then(|| Self(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PaymentRequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_long_random_and_hold_no_run_of_twelve_digits() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..10_000 {
            let id = CardId::make().expect("entropy");
            assert!(longest_digit_run(id.as_str()) < 12);
            assert_eq!(CardId::parse(id.as_str()), Some(id.clone()));
            assert!(seen.insert(id));
        }
    }

    #[test]
    fn a_cards_id_stands_beside_those_of_its_time() {
        let at = |ms: i64| CardId::at(Millis(ms)).expect("entropy");
        // 30 bits of the 32 are six whole characters.
        let time = |id: &CardId| id.as_str().get(..CardId::PREFIX.len() + 6).map(str::to_owned);
        let (one, other) = (at(1_795_000_000_000), at(1_795_000_000_001));
        assert_eq!(time(&one), time(&other));
        assert!(time(&one) < time(&at(1_795_000_001_000)));
        assert_eq!(time(&one), time(&at(1_795_000_000_000 + (1 << 32))), "the time comes round");
        let mut seen = std::collections::HashSet::new();
        for ms in 0..10_000 {
            let id = at(ms / 100);
            assert!(longest_digit_run(id.as_str()) < 12);
            assert_eq!(CardId::parse(id.as_str()), Some(id.clone()));
            assert!(seen.insert(id));
        }
    }

    #[test]
    fn an_events_id_sorts_by_time() {
        let at = |ms: i64| EventId::at(Millis(ms)).expect("entropy");
        for (before, after) in [(0, 1), (1_795_000_000_000, 1_795_000_000_001), ((1 << 40) - 1, 1 << 40)] {
            let (one, other) = (at(before), at(after));
            assert!(one < other, "{one} {other}");
            assert_ne!(one, at(before));
            assert_eq!(EventId::parse(one.as_str()), Some(one));
        }
    }

    #[test]
    fn an_id_has_one_spelling() {
        let id = CardId::make().expect("entropy").to_string();
        assert!(CardId::parse(&id.to_lowercase()).is_none());
        assert!(CardId::parse(&format!("{id}0")).is_none());
        assert!(CardId::parse(&id.replace("card_", "agr_")).is_none());
        assert!(CardId::parse(&format!("card_{}", "I".repeat(32))).is_none());
        assert!(CardId::parse("card_").is_none());
    }

    #[test]
    fn request_ids_are_short_and_plain() {
        assert!(PaymentRequestId::parse("PAY_20221114141714891").is_some());
        for bad in ["", "a b", "é", "a/b", "a\0", &"x".repeat(65)] {
            assert!(PaymentRequestId::parse(bad).is_none(), "{bad:?}");
        }
    }
}
