//! Signs what leaves for Antom: RSASSA-PKCS1-v1_5 with SHA-256 over the exact bytes that are sent
//! (reference, section 3). `ring` signs: the `rsa` crate's private-key operations have an unmended
//! timing flaw (RUSTSEC-2023-0071).

use data_encoding::{BASE64, HEXLOWER};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use zeroize::Zeroizing;

use crate::base::secret::SecretText;

/// Why a merchant key cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SigningKeyError {
    /// Neither PEM nor bare base64.
    #[error("the key is neither PEM nor base64")]
    Encoding,
    /// Not an RSA private key of at least 2048 bits in PKCS#8 or PKCS#1.
    #[error("the key is not an RSA private key of 2048 to 4096 bits in PKCS#8 or PKCS#1")]
    Format,
}

/// The operating system or the key failed while signing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the request could not be signed")]
pub struct SigningError;

/// A merchant's private key at Antom, with the version under which Antom knows its public half.
pub struct SigningKey {
    pair: RsaKeyPair,
    version: u32,
}

impl SigningKey {
    /// Reads PEM or the dashboard's one-line base64, PKCS#8 or PKCS#1 (reference, section 3.3).
    pub fn read(text: &SecretText, version: u32) -> Result<Self, SigningKeyError> {
        let der = Zeroizing::new(der_of(text.expose()).ok_or(SigningKeyError::Encoding)?);
        let pair = RsaKeyPair::from_pkcs8(&der)
            .or_else(|_| RsaKeyPair::from_der(&der))
            .map_err(|_| SigningKeyError::Format)?;
        Ok(Self { pair, version })
    }

    /// SHA-256, in hex, of the public half (PKCS#1 DER), by which two listings of a key can be compared.
    pub fn public_sha256(&self) -> String {
        fingerprint_of(self.pair.public().as_ref())
    }

    /// The value of the `Signature` header for one request.
    pub fn sign(&self, path: &str, client_id: &str, time: &str, body: &[u8]) -> Result<String, SigningError> {
        let text = Zeroizing::new(string_to_sign(path, client_id, time, body));
        let mut signature = vec![0; self.pair.public().modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &text, &mut signature)
            .map_err(|_| SigningError)?;
        let encoded = BASE64.encode(&signature);
        let value = utf8_percent_encode(&encoded, FORM);
        Ok(format!("algorithm=RSA256,keyVersion={},signature={value}", self.version))
    }
}

/// Form encoding of base64: only `+`, `/` and `=` are not letters or digits there.
const FORM: &AsciiSet = NON_ALPHANUMERIC;

/// SHA-256 of a public key's PKCS#1 DER, in hex.
pub(super) fn fingerprint_of(pkcs1_der: &[u8]) -> String {
    HEXLOWER.encode(ring::digest::digest(&ring::digest::SHA256, pkcs1_der).as_ref())
}

/// `POST <path>\n<client-id>.<time>.<body>`: what is signed, and what an answer is verified over.
pub(super) fn string_to_sign(path: &str, client_id: &str, time: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path}\n{client_id}.{time}.");
    let mut text = Vec::with_capacity(head.len() + body.len());
    text.extend_from_slice(head.as_bytes());
    text.extend_from_slice(body);
    text
}

/// The DER inside PEM markers of any label, or inside bare base64.
pub(super) fn der_of(text: &str) -> Option<Vec<u8>> {
    let base64: Zeroizing<String> = Zeroizing::new(
        text.lines()
            .map(str::trim)
            .filter(|line| !line.starts_with("-----"))
            .flat_map(str::chars)
            .filter(|c| !c.is_whitespace())
            .collect(),
    );
    BASE64.decode(base64.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTORS: &str = include_str!("../../../tests/vectors/antom/request_signing.json");

    fn key(name: &str) -> SecretText {
        let path = format!("{}/tests/vectors/antom/{name}", env!("CARGO_MANIFEST_DIR"));
        SecretText::new(std::fs::read_to_string(path).expect("a key"))
    }

    /// Byte for byte what the official SDK signs, its own client's requests included.
    #[test]
    fn signatures_equal_the_sdks() {
        let vectors: serde_json::Value = serde_json::from_str(VECTORS).expect("vectors");
        let cases = vectors["cases"].as_array().expect("cases");
        assert_eq!(cases.len(), 13);
        for case in cases {
            let text = |name: &str| case[name].as_str().unwrap_or_else(|| panic!("{name} in {case}"));
            let version = text("key_version").parse().expect("a version");
            let signed_text = string_to_sign(
                text("path"),
                text("client_id"),
                text("request_time"),
                text("body").as_bytes(),
            );
            assert_eq!(signed_text, text("string_to_sign").as_bytes(), "{}", text("name"));
            for name in [text("private_key"), "keys/merchant_private_pkcs1.pem"] {
                let key = SigningKey::read(&key(name), version).expect("a key");
                let header = key
                    .sign(text("path"), text("client_id"), text("request_time"), text("body").as_bytes())
                    .expect("a signature");
                assert_eq!(header, text("signature_header"), "{}", text("name"));
            }
        }
    }

    #[test]
    fn bare_base64_is_a_key_too_and_garbage_is_not() {
        let pem = key("keys/merchant_private_pkcs8.pem");
        let bare: String = pem.expose().lines().filter(|line| !line.starts_with("-----")).collect();
        assert!(SigningKey::read(&SecretText::new(bare), 1).is_ok());
        assert_eq!(SigningKey::read(&"***".into(), 1).err(), Some(SigningKeyError::Encoding));
        assert_eq!(SigningKey::read(&"AAAA".into(), 1).err(), Some(SigningKeyError::Format));
        let public = key("keys/merchant_public_spki.pem");
        assert_eq!(SigningKey::read(&public, 1).err(), Some(SigningKeyError::Format));
    }
}
