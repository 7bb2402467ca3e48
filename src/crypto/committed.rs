//! The one way in which anything is encrypted here: derive a key and its commitment with a fresh salt,
//! encrypt under it once, and check what was made by opening it. Records, wrapped keys and the process's
//! own slots differ only in their header, their derivation info and their additional data.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::base::entropy::{self, NoEntropy};
use crate::base::secret::Key256;

use super::aead::{NONCE, TAG, open_in_place, seal_in_place};
use super::kdf::{COMMITMENT, SALT, derive};
use super::scrub::scrubbed;

/// Bytes that sealing adds: salt, commitment, nonce, tag.
pub(super) const OVERHEAD: usize = SALT + COMMITMENT + NONCE + TAG;

/// What must never be the same twice. Only the operating system makes one.
pub(super) struct Fresh {
    pub(super) salt: [u8; SALT],
    pub(super) nonce: [u8; NONCE],
}

impl Fresh {
    /// Salt and nonce from the operating system.
    pub(super) fn make() -> Result<Self, NoEntropy> {
        let mut fresh = Self { salt: [0; SALT], nonce: [0; NONCE] };
        // One call of the system for both.
        let both: [u8; SALT + NONCE] = entropy::array()?;
        let (salt, nonce) = both.split_at(SALT);
        fresh.salt.copy_from_slice(salt);
        fresh.nonce.copy_from_slice(nonce);
        Ok(fresh)
    }
}

/// Why nothing was sealed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotSealed {
    /// The cipher or the derivation refused its input.
    Refused,
    /// What was made does not open to what went in: a fault of the machine or of a library.
    NotReadBack,
}

/// What a ciphertext is bound to.
pub(super) struct Binding<'a> {
    pub(super) key: &'a Key256,
    pub(super) info: &'a [u8],
    pub(super) aad: &'a [u8],
}

impl Binding<'_> {
    /// Gives `header ‖ salt ‖ commitment ‖ nonce ‖ ciphertext ‖ tag`, after opening it once more.
    pub(super) fn seal(&self, header: &[u8], block: &[u8], fresh: &Fresh) -> Result<Vec<u8>, NotSealed> {
        scrubbed(|| {
            let mut out = self.encrypt(header, block, fresh).ok_or(NotSealed::Refused)?;
            let body = out.get(header.len()..).unwrap_or_default();
            agrees(self.decrypt(body), block)?;
            Ok(std::mem::take(&mut *out))
        })
    }

    /// Opens what follows the header. `None`, for whatever reason, is all that there is to know.
    pub(super) fn open(&self, body: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        scrubbed(|| self.decrypt(body))
    }

    fn encrypt(&self, header: &[u8], block: &[u8], fresh: &Fresh) -> Option<Zeroizing<Vec<u8>>> {
        let derived = derive(self.key, &fresh.salt, self.info).ok()?;
        // The exact size at once: a vector that regrows would leave the plaintext behind.
        let mut out = Zeroizing::new(Vec::with_capacity(header.len() + OVERHEAD + block.len()));
        out.extend_from_slice(header);
        out.extend_from_slice(&fresh.salt);
        out.extend_from_slice(&derived.commitment);
        out.extend_from_slice(&fresh.nonce);
        let start = out.len();
        out.extend_from_slice(block);
        let tag = seal_in_place(&derived.key, &fresh.nonce, self.aad, out.get_mut(start..)?).ok()?;
        out.extend_from_slice(&tag);
        Some(out)
    }

    fn decrypt(&self, body: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (salt, rest) = body.split_first_chunk::<SALT>()?;
        let (commitment, rest) = rest.split_first_chunk::<COMMITMENT>()?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE>()?;
        let (ciphertext, tag) = rest.split_last_chunk::<TAG>()?;
        let derived = derive(self.key, salt, self.info).ok()?;
        // First: a ciphertext made to open under two keys is refused before the cipher sees it.
        if !bool::from(derived.commitment.ct_eq(commitment)) {
            return None;
        }
        let mut block = Zeroizing::new(ciphertext.to_vec());
        open_in_place(&derived.key, nonce, self.aad, &mut block, tag).ok()?;
        Some(block)
    }
}

/// What was sealed opened to what went in.
fn agrees(again: Option<Zeroizing<Vec<u8>>>, block: &[u8]) -> Result<(), NotSealed> {
    let same = again.is_some_and(|again| again.ct_eq(block).into());
    if same { Ok(()) } else { Err(NotSealed::NotReadBack) }
}

/// Bytes to which a padded block's length is rounded up.
pub(super) const PAD_TO: usize = 64;
/// Bytes of the length in front of a padded plaintext.
const LENGTH: usize = 4;

/// `plaintext` behind its length (big-endian `u32`), then zeros up to a multiple of 64 bytes. `None`
/// where its length is more than a `u32`.
pub(super) fn pad(plaintext: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let length = u32::try_from(plaintext.len()).ok()?;
    let size = (LENGTH + plaintext.len()).next_multiple_of(PAD_TO);
    let mut block = Zeroizing::new(Vec::with_capacity(size));
    block.extend_from_slice(&length.to_be_bytes());
    block.extend_from_slice(plaintext);
    block.resize(size, 0);
    Some(block)
}

/// The plaintext within a padded block; `None` unless the block is exactly what [`pad`] makes.
pub(super) fn unpad(block: &[u8]) -> Option<&[u8]> {
    let (length, rest) = block.split_first_chunk::<LENGTH>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (plaintext, padding) = rest.split_at_checked(length)?;
    let exact = block.len() == (LENGTH + length).next_multiple_of(PAD_TO);
    (exact && padding.iter().all(|byte| *byte == 0)).then_some(plaintext)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::secret::key256;

    proptest! {
        #[test]
        fn padding_comes_off_again_and_hides_the_length(plaintext in proptest::collection::vec(any::<u8>(), 0..300)) {
            let block = pad(&plaintext).expect("short");
            prop_assert_eq!(block.len() % PAD_TO, 0);
            prop_assert_eq!(unpad(&block), Some(&plaintext[..]));
        }

        #[test]
        fn only_the_one_padding_is_taken(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(plaintext) = unpad(&block) {
                prop_assert_eq!(&*pad(plaintext).expect("short"), &block);
            }
        }
    }

    #[test]
    fn padding_has_one_form() {
        assert_eq!(pad(b"").expect("short").len(), 64);
        assert_eq!(pad(&[1; 60]).expect("short").len(), 64);
        assert_eq!(pad(&[1; 61]).expect("short").len(), 128);
        let mut block = pad(b"abc").expect("short").to_vec();
        block[63] = 1;
        assert_eq!(unpad(&block), None, "padding that is not zero");
        block[63] = 0;
        block.extend([0; 64]);
        assert_eq!(unpad(&block), None, "one block too many");
        assert_eq!(unpad(&[0xff; 64]), None, "a length past the end");
        assert_eq!(unpad(&[0, 0]), None);
    }

    #[test]
    fn what_does_not_open_to_what_went_in_is_not_given_out() {
        let opened = |bytes: &[u8]| Some(Zeroizing::new(bytes.to_vec()));
        assert_eq!(agrees(opened(b"block"), b"block"), Ok(()));
        for wrong in [None, opened(b"blocl"), opened(b"bloc"), opened(b"")] {
            assert_eq!(agrees(wrong, b"block"), Err(NotSealed::NotReadBack));
        }
    }

    /// AES-GCM alone lets one ciphertext open under two keys. The commitment decides before the tag
    /// does: with the commitment of another key, not even the right key opens.
    #[test]
    fn the_commitment_decides() {
        let key = key256(|bytes| bytes.fill(1));
        let other = key256(|bytes| bytes.fill(2));
        let binding = Binding { key: &key, info: b"info", aad: b"aad" };
        let fresh = Fresh { salt: [3; SALT], nonce: [4; NONCE] };
        let mut sealed = binding.seal(b"", b"block", &fresh).expect("sealed");
        assert_eq!(&**binding.open(&sealed).expect("opens"), b"block");
        let foreign = derive(&other, &fresh.salt, b"info").expect("short").commitment;
        sealed[SALT..SALT + COMMITMENT].copy_from_slice(&foreign);
        assert!(binding.open(&sealed).is_none());
        assert!(Binding { key: &other, ..binding }.open(&sealed).is_none(), "the tag still holds");
    }

    /// Info and additional data each hold on their own: either alone is enough to keep it shut.
    #[test]
    fn info_and_additional_data_are_both_bound() {
        let key = key256(|bytes| bytes.fill(1));
        let binding = Binding { key: &key, info: b"info", aad: b"aad" };
        let sealed = binding.seal(b"", b"block", &Fresh::make().expect("entropy")).expect("sealed");
        assert!(Binding { aad: b"aae", ..binding }.open(&sealed).is_none());
        let binding = Binding { key: &key, info: b"info", aad: b"aad" };
        assert!(Binding { info: b"infp", ..binding }.open(&sealed).is_none());
    }
}
