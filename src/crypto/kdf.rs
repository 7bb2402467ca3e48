//! HKDF-SHA-512 (RFC 5869; approved as a two-step derivation by NIST SP 800-56C r2): from a long-lived
//! key and a fresh salt, the key that seals one thing and a commitment to that key.

use hkdf::Hkdf;
use secrecy::ExposeSecret;
use sha2::Sha512;
use zeroize::{Zeroize, Zeroizing};

use crate::base::secret::{Key256, key256};

/// Bytes of a salt. As long as the key, and never the same twice.
pub(super) const SALT: usize = 32;
/// Bytes of a commitment.
pub(super) const COMMITMENT: usize = 32;

/// HKDF was asked for more bytes than it can give (255 hashes). Not reachable with the lengths used here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the key derivation was asked for too many bytes")]
pub(super) struct TooManyBytes;

/// What one derivation gives.
pub(super) struct Derived {
    /// Seals exactly one message.
    pub(super) key: Key256,
    /// Public. No two keys share one, so a ciphertext opens under one key only.
    pub(super) commitment: [u8; COMMITMENT],
}

/// Derives 64 bytes: the first half is the key, the second the commitment.
pub(super) fn derive(key: &Key256, salt: &[u8; SALT], info: &[u8]) -> Result<Derived, TooManyBytes> {
    let mut material = Zeroizing::new([0; 64]);
    hkdf_sha512(key.expose_secret(), salt, info, material.as_mut())?;
    let (sealing, public) = material.split_at(32);
    let mut commitment = [0; COMMITMENT];
    commitment.copy_from_slice(public);
    Ok(Derived { key: key256(|bytes| bytes.copy_from_slice(sealing)), commitment })
}

fn hkdf_sha512(key: &[u8], salt: &[u8], info: &[u8], out: &mut [u8]) -> Result<(), TooManyBytes> {
    let (mut prk, hkdf) = Hkdf::<Sha512>::extract(Some(salt), key);
    prk.as_mut_slice().zeroize();
    hkdf.expand(info, out).map_err(|_| TooManyBytes)
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    /// The inputs of RFC 5869, appendix A.1 to A.3, with SHA-512 in place of SHA-256. The RFC prints no
    /// SHA-512 answers; these were computed with OpenSSL.
    #[test]
    fn hkdf_gives_the_known_answers() {
        let range = |from: u8, to: u8| (from..to).collect::<Vec<u8>>();
        let cases = [
            (vec![0x0b; 22], range(0, 13), range(0xf0, 0xfa), A1),
            (range(0, 0x50), range(0x60, 0xb0), (0xb0..=0xff).collect(), A2),
            (vec![0x0b; 22], vec![], vec![], A3),
        ];
        for (key, salt, info, expected) in cases {
            let mut out = vec![0; expected.len() / 2];
            hkdf_sha512(&key, &salt, &info, &mut out).expect("short");
            assert_eq!(HEXLOWER.encode(&out), expected);
        }
    }

    #[test]
    fn hkdf_gives_the_answers_of_wycheproof() {
        let json = include_str!("../../tests/vectors/primitives/wycheproof_hkdf_sha512.json");
        for [key, salt, info, expected] in crate::crypto::known_answers(json) {
            let mut out = vec![0; expected.len()];
            hkdf_sha512(&key, &salt, &info, &mut out).expect("short");
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn more_than_255_hashes_are_refused() {
        assert_eq!(hkdf_sha512(b"k", b"s", b"", &mut vec![0; 255 * 64 + 1]), Err(TooManyBytes));
    }

    #[test]
    fn key_and_commitment_are_the_two_halves() {
        let key = key256(|bytes| bytes.fill(7));
        let derived = derive(&key, &[9; SALT], b"info").expect("short");
        let mut whole = [0; 64];
        hkdf_sha512(&[7; 32], &[9; SALT], b"info", &mut whole).expect("short");
        assert_eq!(derived.key.expose_secret(), &whole[..32]);
        assert_eq!(derived.commitment, whole[32..]);
    }

    const A1: &str = "832390086cda71fb47625bb5ceb168e4c8e26a1a16ed34d9fc7fe92c1481579338da362cb8d9f925d7cb";
    const A2: &str = "ce6c97192805b346e6161e821ed165673b84f400a2b514b2fe23d84cd189ddf1b695b48cbd1c8388441137b3ce28f16aa64ba33ba466b24df6cfcb021ecff235f6a2056ce3af1de44d572097a8505d9e7a93";
    const A3: &str = "f5fa02b18298a72a8c23898a8703472c6eb179dc204c03425c970e3b164bf90fff22d04836d0e2343bac";
}
