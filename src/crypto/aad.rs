//! Where a ciphertext lives. The place is bound into the key derivation and into the additional
//! authenticated data, so a ciphertext that is moved to another merchant, record or field does not open.

use crate::base::bytes::length_prefixed;
use crate::base::ids::{DekId, Merchant};

use super::keyring::Purpose;

/// What a ciphertext is. The text is part of every ciphertext for ever; a variant is never renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// A card's PAN, and nothing else (`pan`). Padded to one size; sealed by `seal_pan` only.
    Pan,
    /// A card's expiry, cardholder name and billing address (`details`).
    Details,
    /// What was, or is about to be, sent to the gateway (`outgoing`).
    Outgoing,
    /// What the gateway answered or notified (`gateway_answer`).
    GatewayAnswer,
    /// Antom's token of a card that only Antom holds (`token`).
    Token,
}

impl Field {
    /// Every field, for tables and tests.
    pub const ALL: [Self; 5] = [Self::Pan, Self::Details, Self::Outgoing, Self::GatewayAnswer, Self::Token];

    /// The field's name in key derivation and additional data.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pan => "pan",
            Self::Details => "details",
            Self::Outgoing => "outgoing",
            Self::GatewayAnswer => "gateway_answer",
            Self::Token => "token",
        }
    }

    /// Reads what [`Self::as_str`] gives.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.as_str() == text)
    }

    /// The one purpose whose keys seal this field.
    pub const fn purpose(self) -> Purpose {
        match self {
            Self::Pan | Self::Details | Self::Outgoing | Self::GatewayAnswer => Purpose::Card,
            Self::Token => Purpose::GatewayToken,
        }
    }
}

/// Where a ciphertext lives: the merchant whose it is, the row, and the field of that row.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Whose record it is.
    pub merchant: &'a Merchant,
    /// The record's id as text (`card_…`, a payment request id): unique within the merchant and the field.
    pub record: &'a str,
    /// Which field of the record.
    pub field: Field,
}

impl Place<'_> {
    /// The `info` of the record key's derivation (RFC 5869, section 3.2).
    pub(super) fn info(&self, purpose: Purpose) -> Vec<u8> {
        length_prefixed(&[
            b"cardvault/record/v1",
            purpose.as_str().as_bytes(),
            self.merchant.as_str().as_bytes(),
            self.record.as_bytes(),
            self.field.as_str().as_bytes(),
        ])
    }

    /// The additional authenticated data of the record (SP 800-38D, section 5.2.1.1).
    pub(super) fn aad(&self, dek: &DekId) -> Vec<u8> {
        length_prefixed(&[
            b"record/1",
            self.merchant.as_str().as_bytes(),
            self.record.as_bytes(),
            self.field.as_str().as_bytes(),
            dek.as_str().as_bytes(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_a_name_of_its_own() {
        for field in Field::ALL {
            assert_eq!(Field::parse(field.as_str()), Some(field));
        }
        assert_eq!(Field::parse("PAN"), None);
    }

    #[test]
    fn no_part_of_a_place_runs_into_the_next() {
        let (a, ab) = (Merchant::parse("a").expect("name"), Merchant::parse("ab").expect("name"));
        let dek = DekId::make().expect("entropy");
        let one = Place { merchant: &a, record: "bc", field: Field::Pan };
        let two = Place { merchant: &ab, record: "c", field: Field::Pan };
        assert_ne!(one.aad(&dek), two.aad(&dek));
        assert_ne!(one.info(Purpose::Card), two.info(Purpose::Card));
    }
}
