//! Everything that turns secrets into bytes that may be stored, and back. `docs/envelope.md` specifies
//! each byte; `tests/golden/` holds examples that must open for ever.
//!
//! It fetches nothing and stores nothing: keys and ciphertexts are handed in and handed out. A key is
//! always used for the one purpose that it was made for, nonces and salts always come from the operating
//! system, and whatever cannot be opened says only that (PCI DSS 3.5.1, 3.6.1, 3.7).

pub mod aad;
mod aead;
mod committed;
pub mod envelope;
pub mod ephemeral;
pub mod fingerprint;
#[cfg(test)]
mod golden;
mod kdf;
pub mod kek;
pub mod keyring;
mod mac;
pub mod request_mac;
mod scrub;
