//! What may never be stored, not even encrypted, but must wait a moment in memory: a CVV until its
//! payment is answered (PCI DSS 3.3.1, 3.3.2). It waits sealed under a key that was made when the process
//! started, is nowhere else, and is gone with the process.

use zeroize::Zeroizing;

use crate::base::bytes::length_prefixed;
use crate::base::entropy::{self, NoEntropy};
use crate::base::secret::{Key256, SecretBuf, key256};

use super::committed::{Binding, Fresh, pad, unpad};
use super::envelope::{OpenError, PLAINTEXT_BYTES, SealError};

/// A key that never leaves its process. No `Debug`, `Clone` or `Serialize`; wiped on drop.
pub struct ProcessKey {
    key: Key256,
}

/// Something sealed under a [`ProcessKey`]. Wiped on drop; there is no way to store or show it.
pub struct EphemeralSealed(Zeroizing<Vec<u8>>);

impl ProcessKey {
    /// A fresh random key.
    pub fn make() -> Result<Self, NoEntropy> {
        let mut filled = Ok(());
        let key = key256(|bytes| filled = entropy::fill(bytes));
        filled?;
        Ok(Self { key })
    }

    /// Seals `plaintext` for the slot that `label` names; it opens under the same label only. Its length
    /// is hidden in steps of 64 bytes.
    pub fn seal(&self, label: &[u8], plaintext: &SecretBuf) -> Result<EphemeralSealed, SealError> {
        if plaintext.len() > PLAINTEXT_BYTES {
            return Err(SealError::TooLong);
        }
        let block = pad(plaintext.expose()).ok_or(SealError::TooLong)?;
        let (info, aad) = bound_to(label);
        let binding = Binding { key: &self.key, info: &info, aad: &aad };
        Ok(EphemeralSealed(Zeroizing::new(binding.seal(b"", &block, &Fresh::make()?)?)))
    }

    /// Opens what [`Self::seal`] made under the same label.
    pub fn open(&self, label: &[u8], sealed: &EphemeralSealed) -> Result<SecretBuf, OpenError> {
        let (info, aad) = bound_to(label);
        let block = Binding { key: &self.key, info: &info, aad: &aad }.open(&sealed.0).ok_or(OpenError)?;
        let plaintext = unpad(&block).ok_or(OpenError)?;
        let mut buffer = SecretBuf::with_capacity(plaintext.len());
        buffer.push(plaintext).map_err(|_| OpenError)?;
        Ok(buffer)
    }
}

fn bound_to(label: &[u8]) -> (Vec<u8>, Vec<u8>) {
    (length_prefixed(&[b"cardvault/process/v1", label]), length_prefixed(&[b"process/1", label]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_opens_under_its_label_and_in_its_process_only() {
        let (here, elsewhere) = (ProcessKey::make().expect("entropy"), ProcessKey::make().expect("entropy"));
        let sealed = here.seal(b"card_1", &SecretBuf::from_vec(b"850".to_vec())).expect("sealed");
        assert!(here.open(b"card_1", &sealed).is_ok_and(|cvv| cvv.expose() == b"850"));
        assert_eq!(here.open(b"card_2", &sealed).err(), Some(OpenError));
        assert_eq!(elsewhere.open(b"card_1", &sealed).err(), Some(OpenError));
    }

    #[test]
    fn no_bit_may_change_and_no_length_shows() {
        let key = ProcessKey::make().expect("entropy");
        let three = key.seal(b"a", &SecretBuf::from_vec(b"850".to_vec())).expect("sealed");
        let four = key.seal(b"a", &SecretBuf::from_vec(b"8501".to_vec())).expect("sealed");
        assert_eq!(three.0.len(), four.0.len());
        assert!(!three.0.windows(3).any(|window| window == b"850"));
        for bit in 0..three.0.len() * 8 {
            let mut bent = three.0.to_vec();
            bent[bit / 8] ^= 1 << (bit % 8);
            assert!(key.open(b"a", &EphemeralSealed(Zeroizing::new(bent))).is_err());
        }
        for length in 0..three.0.len() {
            let cut = EphemeralSealed(Zeroizing::new(three.0[..length].to_vec()));
            assert!(key.open(b"a", &cut).is_err());
        }
    }
}
