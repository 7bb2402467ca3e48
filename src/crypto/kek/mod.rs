//! Key-encryption keys. A KEK wraps data keys and does nothing else; it is never in the database, and
//! what it wraps is nowhere else (PCI DSS 3.6.1.2, 3.6.1.3: stored separately, at least as strong).

#[cfg(test)]
mod conformance;
pub mod file;
#[cfg(feature = "pkcs11")]
pub mod hsm;
mod keks;
pub mod shares;
mod soft;

pub use keks::Keks;
pub use soft::SoftKek;

use crate::base::clock::Millis;
use crate::base::entropy::NoEntropy;
use crate::base::ids::{DekId, KekId};

use super::keyring::{DataKey, Purpose};

/// Wraps data keys under key-encryption keys that it has.
pub trait WrapsKeys: Send + Sync {
    /// Wraps a data key under a KEK.
    fn wrap_under(&self, kek: &KekId, key: &DataKey) -> Result<Vec<u8>, WrapError>;

    /// Unwraps a data key that `kek` wrapped. `id`, `purpose` and `kek` are what the row says of it; a
    /// wrapped key that belongs to another row does not unwrap.
    fn unwrap(&self, id: &DekId, purpose: Purpose, kek: &KekId, wrapped: &[u8])
    -> Result<DataKey, WrapError>;
}

/// Holds key-encryption keys, of which one is in use for wrapping.
pub trait KekProvider: WrapsKeys {
    /// The KEK that wraps.
    fn kek_id(&self) -> KekId;

    /// Wraps a data key under [`Self::kek_id`], and names that KEK.
    fn wrap(&self, key: &DataKey) -> Result<Wrapped, WrapError> {
        let kek = self.kek_id();
        let bytes = self.wrap_under(&kek, key)?;
        Ok(Wrapped { kek, bytes })
    }

    /// When the KEK that wraps was made, where that is known.
    fn kek_created(&self) -> Option<Millis> {
        None
    }

    /// Looks again at what it was made from: a KEK may have been added or removed since. Where that cannot
    /// be read, what was known stays.
    fn reload(&self) -> Result<(), WrapError> {
        Ok(())
    }
}

/// Makes and destroys its own KEKs; their keys never leave it.
pub trait TokenKeks: WrapsKeys {
    /// Makes a KEK of this id.
    fn make(&self, id: &KekId) -> Result<(), WrapError>;

    /// Destroys a KEK; one that is not there is destroyed.
    fn destroy(&self, id: &KekId) -> Result<(), WrapError>;
}

/// A wrapped data key, and the KEK that opens it.
pub struct Wrapped {
    /// Which KEK.
    pub kek: KekId,
    /// The wrapped key (`docs/envelope.md`).
    pub bytes: Vec<u8>,
}

/// Why a data key was not wrapped or unwrapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// No random bytes, so no salt and no nonce.
    #[error("the operating system gave no random bytes")]
    NoEntropy,
    /// The provider does not have this KEK.
    #[error("the key-encryption key {0} is not there; put the keyring that holds it back in place")]
    UnknownKek(KekId),
    /// The KEK is split among custodians, who have not brought enough of its shares.
    #[error(
        "the key-encryption key {0} is split; its custodians bring their shares with `cardvault keys unseal`"
    )]
    Sealed(KekId),
    /// The KEK is in a token, and none is configured, or this program was built without PKCS#11.
    #[error("the key-encryption key {0} is in a token; name it in [keys.hsm]")]
    NoToken(KekId),
    /// The key never leaves its token.
    #[error("the key-encryption key {0} is in a token, which does not give it out")]
    NotInFile(KekId),
    /// The token does not answer, or not as it should.
    #[error("the token failed: {0}")]
    Token(String),
    /// What the KEKs were read from cannot be read again; the text says why.
    #[error("{0}")]
    NotRead(String),
    /// The wrapped key was altered, belongs to another row, or is of another format.
    #[error("the wrapped key could not be opened")]
    CouldNotOpen,
    /// What was wrapped did not unwrap again; nothing was returned that could have been stored.
    #[error("what was wrapped did not open again; check this machine's memory")]
    NotReadBack,
}

impl From<NoEntropy> for WrapError {
    fn from(NoEntropy: NoEntropy) -> Self {
        Self::NoEntropy
    }
}
