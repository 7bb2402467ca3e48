//! Verifies what comes from Antom. Nothing is parsed before its signature has been checked, and only
//! this module can make a [`Verified`]: an answer that does not verify is no answer.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use percent_encoding::percent_decode_str;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

use crate::base::secret::SecretText;

use super::sign::{der_of, fingerprint_of, string_to_sign};

/// A body whose signature is right for our client id, path and the time it names.
pub struct Verified<'a>(&'a str);

impl<'a> Verified<'a> {
    /// The body's text.
    pub fn text(&self) -> &'a str {
        self.0
    }
}

/// A verified body that is kept for a while; wiped on drop.
pub struct VerifiedText(SecretText);

impl VerifiedText {
    /// The verified body again.
    pub fn verified(&self) -> Verified<'_> {
        Verified(self.0.expose())
    }
}

impl From<Verified<'_>> for VerifiedText {
    fn from(verified: Verified<'_>) -> Self {
        Self(verified.0.into())
    }
}

/// Why a message is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotVerified {
    /// A header that the signature needs is missing, or given twice.
    #[error("a signature header is missing")]
    MissingHeader,
    /// The `Client-Id` header names somebody else.
    #[error("the answer is for another client id")]
    OtherClient,
    /// The `Signature` header is not `algorithm=RSA256,keyVersion=…,signature=…`.
    #[error("the signature header cannot be read")]
    Header,
    /// No public key of that version is configured.
    #[error("the signature's key version is not configured")]
    UnknownKey,
    /// The signature is wrong.
    #[error("the signature is wrong")]
    Signature,
    /// The body is not UTF-8.
    #[error("the body is not text")]
    Text,
}

/// Why a gateway public key cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the key is not an RSA public key of at least 2048 bits (SubjectPublicKeyInfo, PEM or base64)")]
pub struct PublicKeyError;

/// Antom's public keys for one client id.
pub struct Verifier {
    client_id: String,
    keys: BTreeMap<u32, UnparsedPublicKey<Vec<u8>>>,
}

/// The headers that a signature speaks of, as they came; `None` where absent or repeated.
pub struct SignatureHeaders<'a> {
    /// `Client-Id`.
    pub client_id: Option<&'a str>,
    /// `Response-Time` of an answer, `Request-Time` of a notification.
    pub time: Option<&'a str>,
    /// `Signature`.
    pub signature: Option<&'a str>,
}

impl Verifier {
    /// A verifier for answers to `client_id`.
    pub fn new(client_id: &str) -> Self {
        Self { client_id: client_id.to_owned(), keys: BTreeMap::new() }
    }

    /// Adds the public key of one `keyVersion`.
    pub fn add_key(&mut self, version: u32, text: &str) -> Result<(), PublicKeyError> {
        let spki = der_of(text).ok_or(PublicKeyError)?;
        let key = rsa_key_of_spki(&spki).ok_or(PublicKeyError)?;
        self.keys.insert(version, UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key));
        Ok(())
    }

    /// SHA-256, in hex, of a public key (PKCS#1 DER) in PEM or bare base64.
    pub fn public_sha256(text: &str) -> Result<String, PublicKeyError> {
        let spki = der_of(text).ok_or(PublicKeyError)?;
        Ok(fingerprint_of(&rsa_key_of_spki(&spki).ok_or(PublicKeyError)?))
    }

    /// Checks a message over the path that was called. The client id must be our own: the official
    /// SDKs take the one in the message, so that an answer to somebody else passes there.
    pub fn verify<'a>(
        &self,
        path: &str,
        headers: &SignatureHeaders<'_>,
        body: &'a [u8],
    ) -> Result<Verified<'a>, NotVerified> {
        let (Some(client_id), Some(time), Some(signature)) =
            (headers.client_id, headers.time, headers.signature)
        else {
            return Err(NotVerified::MissingHeader);
        };
        if client_id != self.client_id {
            return Err(NotVerified::OtherClient);
        }
        let (version, signature) = parse_header(signature).ok_or(NotVerified::Header)?;
        let key = self.keys.get(&version).ok_or(NotVerified::UnknownKey)?;
        let text = string_to_sign(path, &self.client_id, time, body);
        key.verify(&text, &signature).map_err(|_| NotVerified::Signature)?;
        std::str::from_utf8(body).map(Verified).map_err(|_| NotVerified::Text)
    }
}

/// Reads `algorithm=RSA256,keyVersion=1,signature=<url-encoded base64>`, spaces after commas allowed
/// (the documents print them), each part once.
fn parse_header(header: &str) -> Option<(u32, Vec<u8>)> {
    let (mut algorithm, mut version, mut signature) = (None, None, None);
    for part in header.split(',') {
        let (name, value) = part.trim().split_once('=')?;
        let place = match name {
            "algorithm" => &mut algorithm,
            "keyVersion" => &mut version,
            "signature" => &mut signature,
            _ => return None,
        };
        if place.replace(value).is_some() {
            return None;
        }
    }
    if algorithm? != "RSA256" {
        return None;
    }
    let encoded = percent_decode_str(signature?).decode_utf8().ok()?;
    let signature = BASE64.decode(encoded.as_bytes()).ok()?;
    Some((version?.parse().ok()?, signature))
}

/// The `RSAPublicKey` inside a SubjectPublicKeyInfo of an RSA key.
fn rsa_key_of_spki(spki: &[u8]) -> Option<Vec<u8>> {
    let (rest, info) = <x509_parser::x509::SubjectPublicKeyInfo<'_> as x509_parser::prelude::FromDer<
        '_,
        x509_parser::error::X509Error,
    >>::from_der(spki)
    .ok()?;
    match info.parsed().ok()? {
        x509_parser::public_key::PublicKey::RSA(key) if rest.is_empty() && key.key_size() >= 2048 => {
            Some(info.subject_public_key.data.to_vec())
        }
        _ => None,
    }
}

/// A verified text for the tests of what reads it.
#[cfg(test)]
pub(in crate::gateway) fn tests_only(text: &str) -> Verified<'_> {
    Verified(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(client_id: &str) -> Verifier {
        let mut verifier = Verifier::new(client_id);
        let key = include_str!("../../../tests/vectors/antom/keys/gateway_public_spki.pem");
        verifier.add_key(1, key).expect("a key");
        verifier
    }

    fn header<'a>(case: &'a serde_json::Value, kind: &str, name: &str) -> Option<&'a str> {
        case[kind].as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?.1.as_str()
    }

    fn verdict(case: &serde_json::Value, kind: &str, time: &str, client: &str) -> Result<(), NotVerified> {
        let headers = SignatureHeaders {
            client_id: header(case, kind, "client-id"),
            time: header(case, kind, time),
            signature: header(case, kind, "signature"),
        };
        let text = |name: &str| case[name].as_str().unwrap_or_else(|| panic!("{name} in {case}"));
        gateway(text(client)).verify(text("path"), &headers, text("body").as_bytes()).map(|_| ())
    }

    #[test]
    fn answers_verify_as_a_careful_client_would_have_it() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/antom/response_verification.json"))
                .expect("vectors");
        let cases = vectors["cases"].as_array().expect("cases");
        assert_eq!(cases.len(), 21);
        for case in cases {
            let made = verdict(case, "response_headers", "response-time", "client_id");
            match case["expected"].as_str() {
                Some("valid") => assert_eq!(made, Ok(()), "{}", case["name"]),
                Some("invalid") => assert!(made.is_err(), "{}", case["name"]),
                Some("either") => {}
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn notifications_verify_over_the_path_that_was_called() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/antom/notification_verification.json"))
                .expect("vectors");
        let cases = vectors["cases"].as_array().expect("cases");
        assert_eq!(cases.len(), 13);
        for case in cases {
            let made = verdict(case, "request_headers", "request-time", "own_client_id");
            assert_eq!(made.is_ok(), case["expected"] == "valid", "{}: {made:?}", case["name"]);
        }
    }

    #[test]
    fn a_header_has_one_reading() {
        for bad in [
            "",
            "signature=",
            "algorithm=RSA256,keyVersion=1",
            "algorithm=RSA512,keyVersion=1,signature=AAAA",
            "algorithm=RSA256,keyVersion=1,keyVersion=2,signature=AAAA",
            "algorithm=RSA256,keyVersion=-1,signature=AAAA",
            "algorithm=RSA256,keyVersion=1,signature=%2",
            "algorithm=RSA256,keyVersion=1,signature=AAAA,extra=1",
        ] {
            assert_eq!(parse_header(bad), None, "{bad}");
        }
        assert_eq!(parse_header("algorithm=RSA256, keyVersion=2, signature=AAAA"), Some((2, vec![0; 3])));
    }

    #[test]
    fn a_private_or_short_or_foreign_key_is_not_a_gateway_key() {
        let mut verifier = Verifier::new("x");
        for bad in
            [include_str!("../../../tests/vectors/antom/keys/gateway_private_pkcs8.pem"), "", "AAAA", "%%"]
        {
            assert_eq!(verifier.add_key(1, bad), Err(PublicKeyError));
        }
    }
}
