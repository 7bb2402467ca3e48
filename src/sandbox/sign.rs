//! The gateway's side of Antom's signatures, written apart from the client's so that one mistake cannot
//! hide in both.
//!
//! Text: `<METHOD> <path>\n<client id>.<time>.<body>`; RSASSA-PKCS1-v1_5 with SHA-256; base64, then
//! URL-encoded as a form value.

use data_encoding::BASE64;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::Error;

/// The members of a call that are signed.
#[derive(Clone, Copy)]
pub(super) struct Signed<'a> {
    /// Upper case.
    pub method: &'a str,
    /// Path with its query, as called.
    pub path: &'a str,
    /// Value of the header `client-id`.
    pub client_id: &'a str,
    /// Value of `request-time` or `response-time`, as it stands.
    pub time: &'a str,
    /// The exact bytes.
    pub body: &'a [u8],
}

impl Signed<'_> {
    fn text(&self) -> Vec<u8> {
        let mut text =
            format!("{} {}\n{}.{}.", self.method, self.path, self.client_id, self.time).into_bytes();
        text.extend_from_slice(self.body);
        text
    }
}

/// Checks what the merchant signed.
pub(super) struct MerchantKey(UnparsedPublicKey<Vec<u8>>);

impl MerchantKey {
    /// Reads a SubjectPublicKeyInfo, as PEM or as bare base64.
    pub fn read(text: &[u8]) -> Result<Self, Error> {
        let spki = match bare(text) {
            Some(der) => der,
            None => SubjectPublicKeyInfoDer::from_pem_slice(text)
                .map_err(|_| Error::MerchantPublicKey)?
                .as_ref()
                .to_vec(),
        };
        match SubjectPublicKeyInfo::from_der(&spki) {
            Ok(([], info)) => {
                let key = info.subject_public_key.data.to_vec();
                Ok(Self(UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key)))
            }
            _ => Err(Error::MerchantPublicKey),
        }
    }

    /// Whether the header `signature` holds the merchant's signature of `signed`.
    pub fn accepts(&self, header: &str, signed: Signed<'_>) -> bool {
        signature_of(header).is_some_and(|signature| self.0.verify(&signed.text(), &signature).is_ok())
    }
}

/// Signs answers.
pub(super) struct GatewayKey {
    pair: RsaKeyPair,
    version: u32,
}

impl GatewayKey {
    /// Reads a private key: PKCS#8 or PKCS#1, as PEM or as bare base64.
    pub fn read(text: &[u8], version: u32) -> Result<Self, Error> {
        let der = match bare(text) {
            Some(der) => der,
            None => PrivateKeyDer::from_pem_slice(text)
                .map_err(|_| Error::GatewayPrivateKey)?
                .secret_der()
                .to_vec(),
        };
        let pair = RsaKeyPair::from_pkcs8(&der)
            .or_else(|_| RsaKeyPair::from_der(&der))
            .map_err(|_| Error::GatewayPrivateKey)?;
        Ok(Self { pair, version })
    }

    /// The value of the header `signature` for `signed`; `None` if the machine has no randomness.
    pub fn sign(&self, signed: Signed<'_>) -> Option<String> {
        let mut signature = vec![0; self.pair.public().modulus_len()];
        self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &signed.text(), &mut signature).ok()?;
        let base64 = BASE64.encode(&signature);
        let value = utf8_percent_encode(&base64, NON_ALPHANUMERIC);
        Some(format!("algorithm=RSA256,keyVersion={},signature={value}", self.version))
    }
}

/// The signature in a header value; spaces after commas are allowed, other algorithms are not.
fn signature_of(header: &str) -> Option<Vec<u8>> {
    let member = |name: &str| {
        header.split(',').find_map(|part| {
            part.trim().split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value)
        })
    };
    if member("algorithm")? != "RSA256" {
        return None;
    }
    let base64 = percent_decode_str(member("signature")?).decode_utf8().ok()?;
    BASE64.decode(base64.as_bytes()).ok()
}

/// The bytes of a key given as bare base64; `None` if the text is not that.
fn bare(text: &[u8]) -> Option<Vec<u8>> {
    let dense: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    BASE64.decode(&dense).ok().filter(|der| !der.is_empty())
}
