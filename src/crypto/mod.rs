//! Everything that turns secrets into bytes that may be stored, and back. `docs/envelope.md` specifies
//! each byte; `tests/golden/` holds examples that must open for ever.
//!
//! It fetches nothing and stores nothing: keys and ciphertexts are handed in and handed out. A key is
//! always used for the one purpose that it was made for, nonces and salts always come from the operating
//! system, and whatever cannot be opened says only that (PCI DSS 3.5.1, 3.6.1, 3.7).

pub mod aad;
mod aead;
pub mod audit_mac;
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

/// The rows of a file of published answers, decoded from hex; never none.
#[cfg(test)]
fn known_answers<const COLUMNS: usize>(json: &str) -> Vec<[Vec<u8>; COLUMNS]> {
    let rows: Vec<Vec<String>> = serde_json::from_str(json).expect("a list of lists of texts");
    assert!(!rows.is_empty());
    let hex = |text: String| data_encoding::HEXLOWER.decode(text.as_bytes()).expect("hex");
    let rows = rows.into_iter().map(|row| row.into_iter().map(hex).collect::<Vec<_>>());
    rows.map(|row| row.try_into().expect("all columns")).collect()
}
