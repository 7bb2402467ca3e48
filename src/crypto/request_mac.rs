//! A keyed hash of a request, kept beside its idempotency key: a repeat is the same request or it is
//! not, and the database learns nothing of what was in it (a bare hash of a request with a PAN in it
//! could be guessed; PCI DSS 3.5.1.1).

use subtle::ConstantTimeEq;

use crate::base::ids::Merchant;
use crate::base::secret::SecretText;

use super::keyring::{DataKey, Purpose, WrongPurpose};
use super::mac::hmac_of_parts;

/// HMAC-SHA-256 of LP("request/v1", `canonical`). `canonical` is the request in a form in which equal
/// requests are equal bytes; the caller makes it.
pub fn request_mac(key: &DataKey, canonical: &[u8]) -> Result<[u8; 32], WrongPurpose> {
    let mac = hmac_of_parts(key.key_for(Purpose::RequestMac)?, &[b"request/v1", canonical]);
    key.count_use();
    Ok(mac)
}

/// Whether `mac` is the MAC of `canonical`, compared in constant time. A MAC of another length is not.
pub fn verify(key: &DataKey, canonical: &[u8], mac: &[u8]) -> Result<bool, WrongPurpose> {
    Ok(request_mac(key, canonical)?.ct_eq(mac).into())
}

/// Whether two MACs are the same, compared in constant time.
pub fn same(one: &[u8; 32], other: &[u8]) -> bool {
    one.ct_eq(other).into()
}

/// Finds a card again by Antom's token of it: HMAC-SHA-256 of LP("gateway-token/v1", merchant, token).
pub fn token_digest(
    key: &DataKey,
    merchant: &Merchant,
    token: &SecretText,
) -> Result<[u8; 32], WrongPurpose> {
    let parts: [&[u8]; 3] = [b"gateway-token/v1", merchant.as_str().as_bytes(), token.expose().as_bytes()];
    Ok(hmac_of_parts(key.key_for(Purpose::RequestMac)?, &parts))
}

/// Tells one notification from another: HMAC-SHA-256 of LP("notice/v1", `what`).
pub fn notice_digest(key: &DataKey, what: &[u8]) -> Result<[u8; 32], WrongPurpose> {
    Ok(hmac_of_parts(key.key_for(Purpose::RequestMac)?, &[b"notice/v1", what]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::keyring::make_data_key;

    #[test]
    fn a_mac_fits_its_request_and_key_only() {
        let key = make_data_key(Purpose::RequestMac).expect("entropy");
        let other = make_data_key(Purpose::RequestMac).expect("entropy");
        let mac = request_mac(&key, b"{}").expect("its purpose");
        assert_eq!(verify(&key, b"{}", &mac), Ok(true));
        assert_eq!(verify(&key, b"{} ", &mac), Ok(false));
        assert_eq!(verify(&other, b"{}", &mac), Ok(false));
        for bit in 0..256 {
            let mut bent = mac;
            bent[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(verify(&key, b"{}", &bent), Ok(false));
        }
        assert_eq!(verify(&key, b"{}", &mac[..31]), Ok(false));
        assert_eq!(verify(&key, b"{}", b""), Ok(false));
    }

    #[test]
    fn only_a_request_key_makes_one() {
        let key = make_data_key(Purpose::Card).expect("entropy");
        assert_eq!(request_mac(&key, b""), Err(WrongPurpose));
        assert_eq!(verify(&key, b"", &[0; 32]), Err(WrongPurpose));
    }
}
