//! AES-256-GCM (NIST SP 800-38D) in place: plaintext never gets a second buffer here. Every key that
//! comes in seals one message, so the bound of 2^32 messages under one key does not arise.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag};
use secrecy::ExposeSecret;

use crate::base::secret::Key256;

/// Bytes of a nonce (SP 800-38D, section 8.2: 96 bits).
pub(super) const NONCE: usize = 12;
/// Bytes of a tag: full length, never cut.
pub(super) const TAG: usize = 16;

/// The tag did not fit, or the message is longer than GCM allows. Says no more than that.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed;

/// Encrypts `buffer` in place and gives its tag.
pub(super) fn seal_in_place(
    key: &Key256,
    nonce: &[u8; NONCE],
    aad: &[u8],
    buffer: &mut [u8],
) -> Result<[u8; TAG], Failed> {
    cipher(key)
        .encrypt_inout_detached(&Nonce::from(*nonce), aad, buffer.into())
        .map(Into::into)
        .map_err(|_| Failed)
}

/// Decrypts `buffer` in place where the tag fits; else leaves the ciphertext as it was.
pub(super) fn open_in_place(
    key: &Key256,
    nonce: &[u8; NONCE],
    aad: &[u8],
    buffer: &mut [u8],
    tag: &[u8; TAG],
) -> Result<(), Failed> {
    cipher(key)
        .decrypt_inout_detached(&Nonce::from(*nonce), aad, buffer.into(), &Tag::from(*tag))
        .map_err(|_| Failed)
}

fn cipher(key: &Key256) -> Aes256Gcm {
    Aes256Gcm::new(key.expose_secret().into())
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;
    use crate::base::secret::key256;

    fn hex(text: &str) -> Vec<u8> {
        HEXLOWER.decode(text.as_bytes()).expect("hex")
    }

    /// Test cases 13 to 16 (AES-256, 96-bit nonce) of McGrew and Viega, "The Galois/Counter Mode of
    /// Operation", appendix B: key, nonce, additional data, plaintext, ciphertext, tag.
    const KNOWN: [[&str; 6]; 4] = [
        [ZERO_KEY, "000000000000000000000000", "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"],
        [
            ZERO_KEY,
            "000000000000000000000000",
            "",
            "00000000000000000000000000000000",
            "cea7403d4d606b6e074ec5d3baf39d18",
            "d0d1c8a799996bf0265b98b5d48ab919",
        ],
        [
            KEY,
            "cafebabefacedbaddecaf888",
            "",
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad",
            "b094dac5d93471bdec1a502270e3cc6c",
        ],
        [
            KEY,
            "cafebabefacedbaddecaf888",
            "feedfacedeadbeeffeedfacedeadbeefabaddad2",
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
            "76fc6ece0f4e1768cddf8853bb2d551b",
        ],
    ];
    const ZERO_KEY: &str = "0000000000000000000000000000000000000000000000000000000000000000";
    const KEY: &str = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308";

    #[test]
    fn gcm_gives_the_known_answers_and_takes_nothing_else() {
        for [key, nonce, aad, plaintext, ciphertext, tag] in KNOWN.map(|case| case.map(hex)) {
            let key = key256(|bytes| bytes.copy_from_slice(&key));
            let nonce = nonce.try_into().expect("12 bytes");
            let mut buffer = plaintext.clone();
            let made = seal_in_place(&key, &nonce, &aad, &mut buffer).expect("short");
            assert_eq!((&buffer, &made[..]), (&ciphertext, &tag[..]));
            for bit in 0..128 {
                let mut bent = made;
                bent[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(open_in_place(&key, &nonce, &aad, &mut buffer, &bent), Err(Failed));
                assert_eq!(buffer, ciphertext, "a failed opening leaves no plaintext");
            }
            assert_eq!(open_in_place(&key, &nonce, &aad, &mut buffer, &made), Ok(()));
            assert_eq!(buffer, plaintext);
        }
    }

    #[test]
    fn gcm_gives_the_answers_of_nist() {
        let json = include_str!("../../tests/vectors/primitives/nist_aes256_gcm.json");
        for [key, nonce, aad, plaintext, ciphertext, tag] in crate::crypto::known_answers(json) {
            let key = key256(|bytes| bytes.copy_from_slice(&key));
            let nonce = nonce.try_into().expect("12 bytes");
            let mut buffer = plaintext.clone();
            let made = seal_in_place(&key, &nonce, &aad, &mut buffer).expect("short");
            assert_eq!((&buffer, &made[..]), (&ciphertext, &tag[..]));
            assert_eq!(open_in_place(&key, &nonce, &aad, &mut buffer, &made), Ok(()));
            assert_eq!(buffer, plaintext);
        }
    }
}
