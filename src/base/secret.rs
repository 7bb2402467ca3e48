//! Holders for bytes that must not be seen: no `Debug` of the content, no `Clone`, wiped on drop.

use std::fmt;

use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use super::locked::Slot;

/// A 256-bit symmetric key, in memory that is not swapped and not dumped. `expose_secret` is the one loud
/// way to its bytes.
pub struct Key256(Slot);

impl ExposeSecret<[u8; 32]> for Key256 {
    fn expose_secret(&self) -> &[u8; 32] {
        self.0.bytes()
    }
}

impl fmt::Debug for Key256 {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Key256(…)")
    }
}

/// Makes a [`Key256`] in place, so that no copy of it stays on the way.
pub fn key256(fill: impl FnOnce(&mut [u8; 32])) -> Key256 {
    let mut slot = Slot::zeroed();
    fill(slot.bytes_mut());
    Key256(slot)
}

/// A buffer of sensitive bytes with a fixed capacity: it never regrows, so it leaves no copy behind,
/// and it is wiped on drop.
pub struct SecretBuf(Zeroizing<Vec<u8>>);

/// The buffer was asked to hold more than it was made for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a secret buffer is full")]
pub struct BufferFull;

impl SecretBuf {
    /// An empty buffer for at most `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(capacity)))
    }

    /// Takes over a vector; its capacity stays what it is.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Appends, or refuses where that would regrow the buffer.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), BufferFull> {
        if self.0.capacity() - self.0.len() < bytes.len() {
            return Err(BufferFull);
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    /// The bytes. Named so that each use can be found.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Number of bytes held.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Sensitive text: names, addresses, raw JSON of a caller. Wiped on drop, never shown.
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes over a string.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text. Named so that each use can be found.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl SecretText {
    /// The text as bytes, for a library that takes its own copy.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.as_bytes().to_vec()
    }
}

impl From<&str> for SecretText {
    fn from(text: &str) -> Self {
        Self::new(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_buffer_refuses_to_regrow() {
        let mut buffer = SecretBuf::with_capacity(4);
        assert!(buffer.push(b"1234").is_ok());
        assert_eq!(buffer.push(b"5"), Err(BufferFull));
        assert_eq!(buffer.expose(), b"1234");
    }

    #[test]
    fn a_key_does_not_show_itself() {
        let key = key256(|bytes| bytes.fill(0x41));
        assert!(!format!("{key:?}").contains("65") && !format!("{key:?}").contains("AAAA"));
    }
}
