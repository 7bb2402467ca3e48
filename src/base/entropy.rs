//! The operating system's random source. It is not injectable: sealing with a chosen nonce or salt
//! is a way to lose keys, so no test can do it either.

use ring::rand::{SecureRandom, SystemRandom};

/// The operating system gave no random bytes. Nothing may be sealed or named without them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the operating system gave no random bytes")]
pub struct NoEntropy;

/// Fills `bytes` from the operating system (PCI DSS 3.7.1: strong key generation).
pub fn fill(bytes: &mut [u8]) -> Result<(), NoEntropy> {
    SystemRandom::new().fill(bytes).map_err(|_| NoEntropy)
}

/// `N` random bytes.
pub fn array<const N: usize>() -> Result<[u8; N], NoEntropy> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}
