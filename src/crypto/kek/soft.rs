//! A KEK whose bytes are in this process's memory: read from the keyring file, or rebuilt from shares.

use secrecy::ExposeSecret;

use crate::base::bytes::length_prefixed;
use crate::base::entropy::{self, NoEntropy};
use crate::base::ids::{DekId, KekId};
use crate::base::secret::{Key256, key256};
use crate::crypto::committed::{Binding, Fresh, NotSealed};
use crate::crypto::keyring::{DataKey, Purpose, RAW_ID, raw_dek_id, raw_kek_id};
use crate::crypto::mac::hmac_of;

use super::WrapError;

const FORMAT_VERSION: u8 = 1;
const ALGORITHM: u8 = 1;
/// Version, algorithm, KEK id.
const HEADER: usize = 2 + RAW_ID;

/// A KEK in the clear. No `Debug`, `Clone` or `Serialize`; wiped on drop.
pub struct SoftKek {
    pub(super) id: KekId,
    pub(super) key: Key256,
}

impl SoftKek {
    /// A fresh random KEK with a fresh id (PCI DSS 3.7.1).
    pub fn make() -> Result<Self, NoEntropy> {
        let mut filled = Ok(());
        let key = key256(|bytes| filled = entropy::fill(bytes));
        filled?;
        Ok(Self { id: KekId::make()?, key })
    }

    pub(super) fn copy(&self) -> Self {
        let key = key256(|bytes| bytes.copy_from_slice(self.key.expose_secret()));
        Self { id: self.id.clone(), key }
    }

    /// The KEK's id.
    pub fn id(&self) -> &KekId {
        &self.id
    }

    /// The check value that belongs to this key.
    pub fn check(&self) -> [u8; 8] {
        check_value(&self.key)
    }

    pub(in crate::crypto) fn wrap(&self, key: &DataKey, fresh: &Fresh) -> Result<Vec<u8>, WrapError> {
        let mut header = [FORMAT_VERSION; HEADER];
        header[1] = ALGORITHM;
        header[2..].copy_from_slice(&raw_kek_id(&self.id).ok_or(WrapError::CouldNotOpen)?);
        let (info, aad) = self.bound_to(key.id(), key.purpose());
        let binding = Binding { key: &self.key, info: &info, aad: &aad };
        binding.seal(&header, key.key().expose_secret(), fresh).map_err(|reason| match reason {
            NotSealed::Refused => WrapError::CouldNotOpen,
            NotSealed::NotReadBack => WrapError::NotReadBack,
        })
    }

    pub(super) fn unwrap(&self, id: &DekId, purpose: Purpose, wrapped: &[u8]) -> Option<DataKey> {
        let (header, body) = wrapped.split_first_chunk::<HEADER>()?;
        let [FORMAT_VERSION, ALGORITHM, kek @ ..] = header else { return None };
        // The header's id is the KEK's, and the data key's id is one that a header could hold.
        if *kek != raw_kek_id(&self.id)? || raw_dek_id(id).is_none() {
            return None;
        }
        let (info, aad) = self.bound_to(id, purpose);
        let block = Binding { key: &self.key, info: &info, aad: &aad }.open(body)?;
        let bytes: &[u8; 32] = block.as_slice().try_into().ok()?;
        Some(DataKey::new(id.clone(), purpose, key256(|key| key.copy_from_slice(bytes))))
    }

    fn bound_to(&self, id: &DekId, purpose: Purpose) -> (Vec<u8>, Vec<u8>) {
        let lp = |format: &str| {
            let parts = [format, self.id.as_str(), id.as_str(), purpose.as_str()];
            length_prefixed(&parts.map(str::as_bytes))
        };
        (lp("cardvault/wrap/v1"), lp("wrap/1"))
    }
}

/// The first 8 bytes of HMAC-SHA-256(key, "cardvault/kek-check/v1"). Tells a damaged key from a good one
/// and reveals nothing of it.
pub(super) fn check_value(key: &Key256) -> [u8; 8] {
    let mac = hmac_of(key, b"cardvault/kek-check/v1");
    mac.first_chunk::<8>().copied().unwrap_or_default()
}
