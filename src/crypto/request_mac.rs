//! A keyed hash of a request, kept beside its idempotency key: a repeat is the same request or it is
//! not, and the database learns nothing of what was in it (a bare hash of a request with a PAN in it
//! could be guessed; PCI DSS 3.5.1.1).

use subtle::ConstantTimeEq;

use super::keyring::{DataKey, Purpose, WrongPurpose};
use super::mac::hmac_of_parts;

/// HMAC-SHA-256 of LP("request/v1", `canonical`). `canonical` is the request in a form in which equal
/// requests are equal bytes; the caller makes it.
pub fn request_mac(key: &DataKey, canonical: &[u8]) -> Result<[u8; 32], WrongPurpose> {
    Ok(hmac_of_parts(key.key_for(Purpose::RequestMac)?, &[b"request/v1", canonical]))
}

/// Whether `mac` is the MAC of `canonical`, compared in constant time. A MAC of another length is not.
pub fn verify(key: &DataKey, canonical: &[u8], mac: &[u8]) -> Result<bool, WrongPurpose> {
    Ok(request_mac(key, canonical)?.ct_eq(mac).into())
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
