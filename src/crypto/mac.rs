//! HMAC-SHA-256 (FIPS 198-1, RFC 2104) over LP, fed part by part so that no copy of a secret part is
//! made on the way.

use hmac::{Hmac, KeyInit, Mac};
use secrecy::ExposeSecret;
use sha2::Sha256;

use crate::base::secret::Key256;

use super::scrub::scrubbed;

/// HMAC-SHA-256 of LP(`parts`).
pub(super) fn hmac_of_parts(key: &Key256, parts: &[&[u8]]) -> [u8; 32] {
    scrubbed(|| {
        let mut mac = hmac_sha256(key.expose_secret());
        for part in parts {
            // As `base::bytes::length_prefixed` does it; the tests hold the two together.
            mac.update(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    })
}

/// HMAC-SHA-256 of `message`.
pub(super) fn hmac_of(key: &Key256, message: &[u8]) -> [u8; 32] {
    scrubbed(|| hmac_sha256(key.expose_secret()).chain_update(message).finalize().into_bytes().into())
}

fn hmac_sha256(key: &[u8; 32]) -> Hmac<Sha256> {
    // A key of 32 bytes is padded to HMAC's block of 64 with zeros (RFC 2104, section 2). Given whole
    // blocks, the constructor has no failure to handle.
    let mut block = zeroize::Zeroizing::new([0; 64]);
    block[..32].copy_from_slice(key);
    Hmac::new((&*block).into())
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;
    use crate::base::bytes::length_prefixed;
    use crate::base::secret::key256;

    fn key(bytes: &[u8]) -> Key256 {
        key256(|key| key[..bytes.len()].copy_from_slice(bytes))
    }

    /// RFC 4231, test cases 1 to 4. Their keys are shorter than 32 bytes; HMAC pads keys with zeros, so
    /// the padded key gives the same answer.
    #[test]
    fn hmac_gives_the_known_answers() {
        let counting: Vec<u8> = (1..=25).collect();
        let cases: [(&[u8], &[u8], &str); 4] = [
            (&[0x0b; 20], b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (&[0xaa; 20], &[0xdd; 50], "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
            (&counting, &[0xcd; 50], "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
        ];
        for (bytes, message, expected) in cases {
            assert_eq!(HEXLOWER.encode(&hmac_of(&key(bytes), message)), expected);
        }
    }

    #[test]
    fn hmac_gives_the_answers_of_wycheproof() {
        let json = include_str!("../../tests/vectors/primitives/wycheproof_hmac_sha256.json");
        for [bytes, message, tag] in crate::crypto::known_answers(json) {
            assert_eq!(hmac_of(&key(&bytes), &message)[..tag.len()], tag);
        }
    }

    #[test]
    fn parts_are_fed_as_length_prefixed_encodes_them() {
        let key = key(&[5; 32]);
        for parts in [&[&b"a"[..], b"", b"bc"][..], &[b"abc"], &[]] {
            assert_eq!(hmac_of_parts(&key, parts), hmac_of(&key, &length_prefixed(parts)));
        }
    }
}
