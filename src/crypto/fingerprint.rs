//! Fingerprints of PANs: a keyed hash that finds the same card again without opening any. A bare hash of
//! a PAN is guessed in seconds; PCI DSS 3.5.1.1 asks for a keyed one whose key is not in the database.

use crate::base::card::Pan;
use crate::base::ids::{Merchant, base32, from_base32};

use super::keyring::{DataKey, Purpose, WrongPurpose};
use super::mac::hmac_of_parts;

/// What a fingerprint begins with where it is shown.
const PREFIX: &str = "fp_";

/// HMAC-SHA-256 of LP("fp/v1", merchant, PAN). Two merchants have different fingerprints of one card, so
/// they cannot find out that they share it.
pub fn fingerprint(key: &DataKey, merchant: &Merchant, pan: &Pan) -> Result<[u8; 32], WrongPurpose> {
    let parts = [&b"fp/v1"[..], merchant.as_str().as_bytes(), pan.expose().as_bytes()];
    let digest = hmac_of_parts(key.key_for(Purpose::Fingerprint)?, &parts);
    key.count_use();
    Ok(digest)
}

/// A fingerprint as text: `fp_` and 52 characters of Crockford base32.
pub fn show(fingerprint: &[u8; 32]) -> String {
    format!("{PREFIX}{}", base32(fingerprint))
}

/// Reads exactly the spelling that [`show`] gives.
pub fn parse(text: &str) -> Option<[u8; 32]> {
    from_base32(text.strip_prefix(PREFIX)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::keyring::make_data_key;

    #[test]
    fn a_card_has_one_fingerprint_for_each_merchant_and_key() {
        let (key, other) = (make_data_key(Purpose::Fingerprint), make_data_key(Purpose::Fingerprint));
        let (key, other) = (key.expect("entropy"), other.expect("entropy"));
        let (acme, globex) =
            (Merchant::parse("acme").expect("name"), Merchant::parse("globex").expect("name"));
        let pan = Pan::parse("4111 1111 1111 1111").expect("a PAN");
        let same = Pan::parse("4111111111111111").expect("a PAN");
        let another = Pan::parse("4012888888881881").expect("a PAN");
        let one = fingerprint(&key, &acme, &pan);
        assert_eq!(one, fingerprint(&key, &acme, &same));
        assert_ne!(one, fingerprint(&key, &acme, &another));
        assert_ne!(one, fingerprint(&key, &globex, &pan));
        assert_ne!(one, fingerprint(&other, &acme, &pan));
    }

    #[test]
    fn only_a_fingerprint_key_makes_one() {
        let (acme, pan) =
            (Merchant::parse("acme").expect("name"), Pan::parse("4111111111111111").expect("a PAN"));
        for purpose in [Purpose::Card, Purpose::RequestMac] {
            let key = make_data_key(purpose).expect("entropy");
            assert_eq!(fingerprint(&key, &acme, &pan), Err(WrongPurpose));
        }
    }

    #[test]
    fn a_fingerprint_has_one_spelling() {
        let text = show(&[0xa7; 32]);
        assert_eq!(text.len(), 55);
        assert_eq!(parse(&text), Some([0xa7; 32]));
        // 32 bytes leave four bits of the last character unused; they must be zero.
        let unused = format!("{}Z", &text[..54]);
        for bad in ["", "fp_", &text[3..], &text.to_lowercase(), &text[..54], &format!("{text}0"), &unused] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
