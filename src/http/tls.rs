//! The server's side of TLS: version 1.3 only, and on the api plane no connection without a client
//! certificate of the configured authority. Resumption, tickets and early data are off, because rustls
//! does not look at a client's certificate again when a session resumes.

use std::sync::Arc;

use ring::digest;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::base::clock::Millis;

/// What a PEM file has and a DER file has not.
const PEM_BEGIN: &[u8] = b"-----BEGIN";

/// What a listener needs, as it was read from files.
pub struct ServerTls {
    /// The server's certificate and the intermediates after it.
    pub certificate_pem: Vec<u8>,
    /// The server's private key.
    pub private_key_pem: Vec<u8>,
    /// The authority of the clients. `None` asks for no client certificate (the notify plane).
    pub client_ca_pem: Option<Vec<u8>>,
}

/// Why a listener's TLS files are not usable. None holds a byte of them.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate file is not PEM, or holds no certificate.
    #[error("the server's certificate file holds no readable certificate")]
    Certificate,
    /// The key file is not PEM, or holds no private key.
    #[error("the server's private key file holds no readable private key")]
    PrivateKey,
    /// The authority's file is not PEM, holds no certificate, or one that cannot be a trust anchor.
    #[error("the clients' authority file holds no readable certificate")]
    ClientAuthority,
    /// A revocation list is neither PEM nor DER, not whole, or says nothing of its next update.
    #[error("a revocation list is no readable list with a next update")]
    RevocationList,
    /// A revocation list can be read, but no handshake can use it.
    #[error(
        "a revocation list is of a kind that cannot be used: it must be of version 2, whole (no delta), direct, \
         for all reasons, and without critical extensions that nobody knows"
    )]
    RevocationKind(#[source] VerifierBuilderError),
    /// Certificate and key do not belong together, or the key is of an unusable kind.
    #[error("the server's certificate and private key do not belong together")]
    Mismatch(#[source] rustls::Error),
    /// The cryptography does not offer TLS 1.3.
    #[error("TLS 1.3 is not available")]
    Version(#[source] rustls::Error),
}

/// What stands for the clients' revocation in a configuration.
#[derive(Clone, Copy)]
pub enum Revocation<'a> {
    /// No list is configured.
    Unchecked,
    /// These lists; a client that none of them speaks of, or only one that is past its next update, is
    /// refused.
    Lists(&'a RevocationLists),
    /// Lists are configured and cannot be had: nobody is let in.
    Closed,
}

/// The revocation lists of the clients' authority and of those below it.
pub struct RevocationLists {
    lists: Vec<CertificateRevocationListDer<'static>>,
    next_update: Millis,
    digest: [u8; 32],
}

impl RevocationLists {
    /// Reads files, each of which is PEM with one list or more, or one list in DER.
    pub fn read<B: AsRef<[u8]>>(files: &[B]) -> Result<Self, TlsError> {
        let mut dated = Vec::new();
        for file in files {
            let found = lists_in(file.as_ref()).ok_or(TlsError::RevocationList)?;
            for der in found {
                let facts = list_facts(&der).ok_or(TlsError::RevocationList)?;
                dated.push((facts, der));
            }
        }
        // Of two lists of one issuer the first is used: the newer one goes first.
        dated.sort_by_key(|((this_update, _), _)| std::cmp::Reverse(*this_update));
        let next_update =
            dated.iter().map(|((_, next_update), _)| *next_update).min().ok_or(TlsError::RevocationList)?;
        let lists: Vec<_> = dated.into_iter().map(|(_, der)| der).collect();
        usable(&lists)?;
        let mut all = digest::Context::new(&digest::SHA256);
        files.iter().for_each(|file| all.update(file.as_ref()));
        let mut digest = [0; 32];
        digest.copy_from_slice(all.finish().as_ref());
        Ok(Self { lists, next_update, digest })
    }

    /// When the first of them is stale.
    pub fn next_update(&self) -> Millis {
        self.next_update
    }

    /// The SHA-256 of the files, one after the other.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lists.len()
    }
}

fn lists_in(file: &[u8]) -> Option<Vec<CertificateRevocationListDer<'static>>> {
    if file.windows(PEM_BEGIN.len()).any(|window| window == PEM_BEGIN) {
        let all = CertificateRevocationListDer::pem_slice_iter(file).collect::<Result<Vec<_>, _>>().ok()?;
        return (!all.is_empty()).then_some(all);
    }
    Some(vec![CertificateRevocationListDer::from(file.to_vec())])
}

/// A list's times, this update and the next; none where it is not one list, whole, that has both.
fn list_facts(der: &[u8]) -> Option<(Millis, Millis)> {
    let (rest, list) = CertificateRevocationList::from_der(der).ok()?;
    let millis = |time: x509_parser::time::ASN1Time| Millis(time.timestamp().saturating_mul(1000));
    rest.is_empty().then_some((millis(list.last_update()), millis(list.next_update()?)))
}

/// Has the lists read by what the handshake reads them with, which takes fewer kinds than [`list_facts`]: a
/// list that only fails when the rules are made would leave those from before in force.
fn usable(lists: &[CertificateRevocationListDer<'static>]) -> Result<(), TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // The parser is reached only through a verifier, and that wants an authority: any will do.
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.iter().take(1).cloned().collect() };
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .with_crls(lists.iter().cloned())
        .build()
        .map(|_| ())
        .map_err(TlsError::RevocationKind)
}

/// What a listener lets in by: the handshake's rules, and those for connections that are open already.
#[derive(Clone)]
pub struct Tls {
    /// What new handshakes are held against.
    pub config: Arc<ServerConfig>,
    /// What the certificate of an open connection is held against when the rules change: the same
    /// authorities and lists, but a list may be past its next update. None where no client is asked for one.
    pub open: Option<Arc<dyn ClientCertVerifier>>,
}

impl Tls {
    /// The rules as the files have them. `open` is what open connections are held against; it differs
    /// from `new` only where the lists cannot be had.
    pub fn new(tls: &ServerTls, new: Revocation<'_>, open: Revocation<'_>) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(&tls.certificate_pem).ok_or(TlsError::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&tls.private_key_pem).map_err(|_| TlsError::PrivateKey)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Version)?;
        let (builder, open) = match &tls.client_ca_pem {
            Some(pem) => {
                let strict = client_verifier(&provider, pem, new, true)?;
                let open = client_verifier(&provider, pem, open, false)?;
                (builder.with_client_cert_verifier(strict), Some(open))
            }
            None => (builder.with_no_client_auth(), None),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Mismatch)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), open })
    }
}

/// The rules without revocation.
pub fn server_config(tls: &ServerTls) -> Result<Tls, TlsError> {
    Tls::new(tls, Revocation::Unchecked, Revocation::Unchecked)
}

/// The rules with a revocation list of the clients' authority (PEM, one or more lists, or DER). A list that
/// is past its next update refuses every client: a stale list must not let a revoked client in.
pub fn server_config_with_revocation(tls: &ServerTls, revocation: &[u8]) -> Result<Tls, TlsError> {
    let lists = RevocationLists::read(&[revocation])?;
    Tls::new(tls, Revocation::Lists(&lists), Revocation::Lists(&lists))
}

fn client_verifier(
    provider: &Arc<CryptoProvider>,
    authority_pem: &[u8],
    revocation: Revocation<'_>,
    strict: bool,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(authority_pem).ok_or(TlsError::ClientAuthority)? {
        roots.add(authority).map_err(|_| TlsError::ClientAuthority)?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    if let Revocation::Lists(lists) = revocation {
        builder = builder.with_crls(lists.lists.clone());
        if strict {
            builder = builder.enforce_revocation_expiration();
        }
    }
    let verifier = builder.build().map_err(|_| match revocation {
        Revocation::Lists(_) => TlsError::RevocationList,
        _ => TlsError::ClientAuthority,
    })?;
    Ok(match revocation {
        Revocation::Closed => Arc::new(Nobody(verifier)),
        _ => verifier,
    })
}

/// Lets nobody in: what would tell who is revoked cannot be had.
#[derive(Debug)]
struct Nobody(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Nobody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Err(rustls::CertificateError::UnknownRevocationStatus.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// All certificates of a PEM file; `None` where there is none, or one does not decode.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().ok()?;
    (!all.is_empty()).then_some(all)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::base::clock::{Clock, SystemClock};
    use crate::pki::{Authority, CertifiedPem};

    fn files(leaf: &CertifiedPem, authority: &Authority) -> ServerTls {
        ServerTls {
            certificate_pem: leaf.certificate_pem.clone().into_bytes(),
            private_key_pem: leaf.private_key_pem.expose().as_bytes().to_vec(),
            client_ca_pem: Some(authority.certificate_pem().as_bytes().to_vec()),
        }
    }

    #[test]
    fn nothing_resumes_and_only_http_1_1_is_spoken() {
        let now = SystemClock.now();
        let authority = Authority::make("test", now).unwrap();
        let leaf = authority.server(&["localhost"], now, 1).unwrap();
        let config = server_config(&files(&leaf, &authority)).unwrap().config;
        assert_eq!(config.send_tls13_tickets, 0);
        assert_eq!(config.max_early_data_size, 0);
        assert!(!config.session_storage.can_cache());
        assert!(!config.ticketer.enabled());
        assert_eq!(config.alpn_protocols, [b"http/1.1".to_vec()]);
    }

    #[test]
    fn each_bad_file_is_named() {
        let now = SystemClock.now();
        let authority = Authority::make("test", now).unwrap();
        let leaf = authority.server(&["localhost"], now, 1).unwrap();
        let other = authority.server(&["localhost"], now, 1).unwrap();
        let good = || files(&leaf, &authority);
        let bad = |tls: ServerTls| server_config(&tls).map(|_| ()).unwrap_err();
        let nothing = b"nothing".to_vec();
        assert!(matches!(
            bad(ServerTls { certificate_pem: nothing.clone(), ..good() }),
            TlsError::Certificate
        ));
        assert!(matches!(
            bad(ServerTls { private_key_pem: nothing.clone(), ..good() }),
            TlsError::PrivateKey
        ));
        assert!(matches!(
            bad(ServerTls { client_ca_pem: Some(nothing), ..good() }),
            TlsError::ClientAuthority
        ));
        let key = other.private_key_pem.expose().as_bytes().to_vec();
        assert!(matches!(bad(ServerTls { private_key_pem: key, ..good() }), TlsError::Mismatch(_)));
        let list = server_config_with_revocation(&good(), b"nothing");
        assert!(matches!(list, Err(TlsError::RevocationList)));
    }

    /// A list counts only whole, in either form; of several the earliest end is told.
    #[test]
    fn lists_are_read_whole_or_not_at_all() {
        let now = SystemClock.now();
        let authority = Authority::make("test", now).unwrap();
        let (short, long) = (
            authority.revocation_list(&[], now, 1).unwrap(),
            authority.revocation_list(&[], now, 3).unwrap(),
        );
        let der = CertificateRevocationListDer::from_pem_slice(short.as_bytes()).unwrap().to_vec();
        let read =
            |file: &[u8]| RevocationLists::read(&[file]).map(|lists| (lists.count(), lists.next_update()));
        let end = read(short.as_bytes()).unwrap().1;
        assert_eq!(read(&der).unwrap(), (1, end));
        assert_eq!(read(format!("{long}{short}").as_bytes()).unwrap(), (2, end));
        assert_eq!(RevocationLists::read(&[long.as_bytes(), &der]).unwrap().next_update(), end);
        for cut in 0..der.len() {
            assert!(read(&der[..cut]).is_err(), "{cut}");
        }
        assert!(read(&[&der[..], b"\0"].concat()).is_err());
        assert!(read(&[&der[..], &der[..]].concat()).is_err(), "two in one DER file");
        assert!(read(authority.certificate_pem().as_bytes()).is_err(), "a certificate");
        assert!(RevocationLists::read::<&[u8]>(&[]).is_err(), "no file");
        assert!(RevocationLists::read(&[short.as_bytes(), b""]).is_err(), "one of two is empty");
    }

    fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let length = u8::try_from(content.len()).ok().filter(|length| *length < 128).unwrap();
        [&[tag, length], &content[..]].concat()
    }

    /// A list of the issuer `x`: its version's element, its extensions.
    pub(crate) fn hand_made(version: &[u8], extensions: &[&[u8]]) -> Vec<u8> {
        let algorithm = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
        let issuer = b"\x30\x0c\x31\x0a\x30\x08\x06\x03\x55\x04\x03\x0c\x01x";
        let (this, next) = (tlv(0x17, &[b"260101000000Z"]), tlv(0x17, &[b"360101000000Z"]));
        let extensions = match extensions {
            [] => Vec::new(),
            some => tlv(0xa0, &[&tlv(0x30, some)]),
        };
        let signed = tlv(0x30, &[version, algorithm, issuer, &this, &next, &extensions]);
        tlv(0x30, &[&signed, algorithm, b"\x03\x02\x00\x00"])
    }

    /// What the handshake cannot use is no list, though it can be read.
    #[test]
    fn a_list_of_a_kind_that_no_handshake_takes_is_refused() {
        let extension = |id: u8, critical: bool, content: &[u8]| {
            let critical: &[u8] = if critical { b"\x01\x01\xff" } else { b"" };
            tlv(0x30, &[&[6, 3, 0x55, 0x1d, id], critical, &tlv(0x04, &[content])])
        };
        let number = extension(20, false, b"\x02\x01\x05");
        let read = |version: &[u8], extensions: &[&[u8]]| {
            let der = hand_made(version, extensions);
            assert!(list_facts(&der).is_some(), "it can be read");
            RevocationLists::read(&[der]).map(|lists| lists.count())
        };
        let two: &[u8] = b"\x02\x01\x01";
        assert_eq!(read(two, &[&number]).unwrap(), 1);
        for (what, version, extensions) in [
            ("version 1", &b""[..], vec![]),
            ("no extensions", two, vec![]),
            ("a delta", two, vec![&number, &extension(27, true, b"\x02\x01\x04")]),
            ("indirect", two, vec![&number, &extension(28, true, b"\x30\x03\x84\x01\xff")]),
            ("some reasons", two, vec![&number, &extension(28, true, b"\x30\x04\x83\x02\x05\x60")]),
            ("unknown and critical", two, vec![&number, &extension(99, true, b"\x05\x00")]),
        ] {
            let extensions: Vec<&[u8]> = extensions.into_iter().map(Vec::as_slice).collect();
            assert!(matches!(read(version, &extensions), Err(TlsError::RevocationKind(_))), "{what}");
        }
    }
}
