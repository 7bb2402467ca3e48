//! The audit trail's proof: a MAC that chains each row to the one before it, and the signature of
//! checkpoints. `docs/envelope.md` specifies both to the byte.

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;

use super::keyring::{DataKey, Purpose, WrongPurpose};
use super::mac::hmac_of_parts;

/// What a chain's first row comes after.
pub const BEGINNING: [u8; 32] = [0; 32];

/// HMAC-SHA-256 of LP("audit/v1", `before`, `row`): `before` is the MAC of the row before it, or
/// [`BEGINNING`]; `row` is the LP of the row's members.
///
/// It is a use of the key; [`verify_row`] is none.
pub fn audit_mac(key: &DataKey, before: &[u8; 32], row: &[u8]) -> Result<[u8; 32], WrongPurpose> {
    let mac = mac_of(key, before, row)?;
    key.count_use();
    Ok(mac)
}

fn mac_of(key: &DataKey, before: &[u8; 32], row: &[u8]) -> Result<[u8; 32], WrongPurpose> {
    Ok(hmac_of_parts(key.key_for(Purpose::Audit)?, &[b"audit/v1", before, row]))
}

/// Whether `mac` is the MAC of a row, compared in constant time.
pub fn verify_row(key: &DataKey, before: &[u8; 32], row: &[u8], mac: &[u8]) -> Result<bool, WrongPurpose> {
    Ok(mac_of(key, before, row)?.ct_eq(mac).into())
}

/// A signature could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a checkpoint cannot be signed with this key")]
pub struct CannotSign;

/// The public half of a checkpoint key (RFC 8032, section 5.1.5), 32 bytes.
pub fn public_key(key: &DataKey) -> Result<[u8; 32], CannotSign> {
    pair(key)?.public_key().as_ref().try_into().map_err(|_| CannotSign)
}

/// An Ed25519 signature (RFC 8032, section 5.1.6) of `message`, 64 bytes. It is a use of the key.
pub fn sign(key: &DataKey, message: &[u8]) -> Result<[u8; 64], CannotSign> {
    let signature = pair(key)?.sign(message).as_ref().try_into().map_err(|_| CannotSign)?;
    key.count_use();
    Ok(signature)
}

/// Whether a signature is right for a public key.
pub fn verify_signature(public: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public).verify(message, signature).is_ok()
}

fn pair(key: &DataKey) -> Result<Ed25519KeyPair, CannotSign> {
    let seed = key.key_for(Purpose::Checkpoint).map_err(|_| CannotSign)?;
    Ed25519KeyPair::from_seed_unchecked(seed.expose_secret()).map_err(|_| CannotSign)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::DekId;
    use crate::base::secret::key256;
    use crate::crypto::keyring::make_data_key;

    #[test]
    fn a_mac_fits_its_key_its_row_and_what_came_before() {
        let key = make_data_key(Purpose::Audit).expect("entropy");
        let other = make_data_key(Purpose::Audit).expect("entropy");
        let mac = audit_mac(&key, &BEGINNING, b"row").expect("its purpose");
        assert_eq!(verify_row(&key, &BEGINNING, b"row", &mac), Ok(true));
        assert_eq!(verify_row(&key, &BEGINNING, b"roW", &mac), Ok(false));
        assert_eq!(verify_row(&key, &[1; 32], b"row", &mac), Ok(false));
        assert_eq!(verify_row(&other, &BEGINNING, b"row", &mac), Ok(false));
        assert_eq!(verify_row(&key, &BEGINNING, b"row", &mac[..31]), Ok(false));
        assert_eq!((key.uses(), other.uses()), (1, 0), "what is verified is not counted");
        let card = make_data_key(Purpose::Card).expect("entropy");
        assert_eq!(audit_mac(&card, &BEGINNING, b"row"), Err(WrongPurpose));
    }

    /// RFC 8032, section 7.1, test 1 and its public key.
    #[test]
    fn signatures_are_those_of_rfc_8032() {
        let hex = |text: &str| data_encoding::HEXLOWER.decode(text.as_bytes()).expect("hexadecimal");
        let seed = hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let key = DataKey::new(
            DekId::make().expect("entropy"),
            Purpose::Checkpoint,
            key256(|bytes| bytes.copy_from_slice(&seed)),
        );
        let public = hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        assert_eq!(public_key(&key).map(|key| key.to_vec()), Ok(public.clone()));
        let signature = sign(&key, b"").expect("a signature");
        assert_eq!(
            signature.to_vec(),
            hex(
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
            )
        );
        assert!(verify_signature(&public, b"", &signature));
        assert!(
            !verify_signature(&public, b"x", &signature) && !verify_signature(&public[1..], b"", &signature)
        );
        let audit = make_data_key(Purpose::Audit).expect("entropy");
        assert_eq!(sign(&audit, b""), Err(CannotSign));
        assert_eq!((key.uses(), audit.uses()), (1, 0));
    }
}
