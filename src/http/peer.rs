//! Who is on the other end of a connection, read once from the certificate that the handshake has
//! verified. Names come from the subject alternative names alone: the common name is never looked at,
//! because nothing says what it means.

use std::net::SocketAddr;

use ring::digest;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::base::clock::Millis;

/// The verified facts about a client. The router compares them with the configuration on every
/// request, so that a client that is removed, or whose time is over, does not live on in an open
/// connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// URI names, as written in the certificate.
    pub uri_sans: Vec<String>,
    /// DNS names, as written in the certificate.
    pub dns_sans: Vec<String>,
    /// SHA-256 of the SubjectPublicKeyInfo, for pinning.
    pub spki_sha256: [u8; 32],
    /// First moment of the certificate's validity.
    pub not_before: Millis,
    /// Last moment of the certificate's validity.
    pub not_after: Millis,
    /// Serial number in lower-case hexadecimal, for the audit trail.
    pub serial: String,
    /// Where the connection came from.
    pub remote: SocketAddr,
}

/// Why a certificate that a handshake accepted does not name a peer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PeerError {
    /// Not DER, with bytes left over, or with an extension that appears twice.
    #[error("the client's certificate cannot be read")]
    Unreadable,
    /// A name that is not valid text.
    #[error("a name in the client's certificate cannot be read")]
    BadName,
    /// The certificate says what its key is for, and signatures, such as the handshake's, are not among it.
    #[error("the client's certificate is not for signatures")]
    NotForSignatures,
    /// The certificate does not say that it is for clients. (rustls takes one that says nothing.)
    #[error("the client's certificate has no extended key usage for client authentication")]
    NotForClients,
}

impl Peer {
    /// Reads a verified certificate. This does not verify anything by itself.
    pub fn from_certificate(der: &[u8], remote: SocketAddr) -> Result<Self, PeerError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| PeerError::Unreadable)?;
        if !rest.is_empty() {
            return Err(PeerError::Unreadable);
        }
        let usage = certificate.extended_key_usage().map_err(|_| PeerError::Unreadable)?;
        if !usage.is_some_and(|usage| usage.value.client_auth) {
            return Err(PeerError::NotForClients);
        }
        let usage = certificate.key_usage().map_err(|_| PeerError::Unreadable)?;
        if usage.is_some_and(|usage| !usage.value.digital_signature()) {
            return Err(PeerError::NotForSignatures);
        }
        let (mut uri_sans, mut dns_sans) = (Vec::new(), Vec::new());
        if let Some(names) = certificate.subject_alternative_name().map_err(|_| PeerError::Unreadable)? {
            for name in &names.value.general_names {
                match name {
                    GeneralName::URI(uri) => uri_sans.push((*uri).to_owned()),
                    GeneralName::DNSName(dns) => dns_sans.push((*dns).to_owned()),
                    GeneralName::Invalid(..) => return Err(PeerError::BadName),
                    _ => {}
                }
            }
        }
        let mut spki_sha256 = [0; 32];
        spki_sha256.copy_from_slice(digest::digest(&digest::SHA256, certificate.public_key().raw).as_ref());
        let validity = certificate.validity();
        Ok(Self {
            uri_sans,
            dns_sans,
            spki_sha256,
            not_before: Millis(validity.not_before.timestamp().saturating_mul(1000)),
            not_after: Millis(validity.not_after.timestamp().saturating_mul(1000)),
            serial: data_encoding::HEXLOWER.encode(certificate.raw_serial()),
            remote,
        })
    }
}

/// When the first of a file's certificates expires that does; none where one of them cannot be read.
pub fn not_after(pem: &[u8]) -> Option<Millis> {
    let mut first = None;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let der = certificate.ok()?;
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        let at = Millis(certificate.validity().not_after.timestamp().saturating_mul(1000));
        first = Some(first.map_or(at, |first: Millis| first.min(at)));
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::{Clock, SystemClock};
    use crate::pki::{Authority, LeafOptions, Usage, serial_of};
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;

    fn remote() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 7], 4711))
    }

    fn peer(options: &LeafOptions) -> Result<Peer, PeerError> {
        let leaf = Authority::make("test", SystemClock.now()).unwrap().leaf(options).unwrap();
        let der = CertificateDer::from_pem_slice(leaf.certificate_pem.as_bytes()).unwrap();
        Peer::from_certificate(&der, remote())
    }

    fn client_options() -> LeafOptions {
        LeafOptions { usages: vec![Usage::Client], ..LeafOptions::valid_for(SystemClock.now(), 1) }
    }

    #[test]
    fn names_come_from_the_alternative_names_and_never_from_the_common_name() {
        let options = LeafOptions {
            common_name: "spiffe://cardvault/acme/checkout".to_owned(),
            uri_sans: vec!["spiffe://a/b".to_owned(), "spiffe://a/c".to_owned()],
            dns_sans: vec!["one.example".to_owned()],
            ip_sans: vec![[127, 0, 0, 1].into()],
            ..client_options()
        };
        let peer = peer(&options).unwrap();
        assert_eq!(peer.uri_sans, ["spiffe://a/b", "spiffe://a/c"]);
        assert_eq!(peer.dns_sans, ["one.example"]);
        assert_eq!(peer.remote, remote());
    }

    #[test]
    fn a_certificate_with_only_a_common_name_has_no_name() {
        let options =
            LeafOptions { common_name: "spiffe://cardvault/acme/checkout".to_owned(), ..client_options() };
        let peer = peer(&options).unwrap();
        assert!(peer.uri_sans.is_empty() && peer.dns_sans.is_empty());
    }

    #[test]
    fn time_serial_and_key_are_the_certificates_own() {
        let now = SystemClock.now();
        let authority = Authority::make("test", now).unwrap();
        let leaf = authority.client("spiffe://a/b", now, 1).unwrap();
        let der = CertificateDer::from_pem_slice(leaf.certificate_pem.as_bytes()).unwrap();
        let peer = Peer::from_certificate(&der, remote()).unwrap();
        let serial = serial_of(&leaf.certificate_pem).unwrap();
        assert_eq!(peer.serial, data_encoding::HEXLOWER.encode(&serial));
        assert_eq!(peer.not_after, Millis((now.0 / 1000 + 86_400) * 1000));
        assert!(peer.not_before < now);
        let other = authority.client("spiffe://a/b", now, 1).unwrap();
        let other = CertificateDer::from_pem_slice(other.certificate_pem.as_bytes()).unwrap();
        assert_ne!(Peer::from_certificate(&other, remote()).unwrap().spki_sha256, peer.spki_sha256);
    }

    #[test]
    fn a_certificate_that_does_not_say_client_is_refused() {
        for usages in [vec![], vec![Usage::Server]] {
            let refused = peer(&LeafOptions { usages, ..client_options() });
            assert_eq!(refused, Err(PeerError::NotForClients));
        }
    }

    #[test]
    fn every_cut_and_any_byte_more_is_unreadable_and_none_panics() {
        let leaf = Authority::make("test", SystemClock.now()).unwrap().leaf(&client_options()).unwrap();
        let der = CertificateDer::from_pem_slice(leaf.certificate_pem.as_bytes()).unwrap();
        for end in 0..der.len() {
            assert!(Peer::from_certificate(&der[..end], remote()).is_err());
        }
        let longer = [&der[..], b"\0"].concat();
        assert_eq!(Peer::from_certificate(&longer, remote()), Err(PeerError::Unreadable));
    }
}
