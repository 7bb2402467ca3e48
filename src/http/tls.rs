//! The server's side of TLS: version 1.3 only, and on the api plane no connection without a client
//! certificate of the configured authority. Resumption, tickets and early data are off, because rustls
//! does not look at a client's certificate again when a session resumes.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

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
    /// The revocation list is not PEM, or not of the clients' authority's shape.
    #[error("the revocation list cannot be read")]
    RevocationList,
    /// Certificate and key do not belong together, or the key is of an unusable kind.
    #[error("the server's certificate and private key do not belong together")]
    Mismatch(#[source] rustls::Error),
    /// The cryptography does not offer TLS 1.3.
    #[error("TLS 1.3 is not available")]
    Version(#[source] rustls::Error),
}

/// The listener's configuration.
pub fn server_config(tls: &ServerTls) -> Result<Arc<ServerConfig>, TlsError> {
    server_config_with_revocation(tls, None)
}

/// The same, with a revocation list of the clients' authority (PEM, one or more lists). A list that is
/// past its next update refuses every client: a stale list must not let a revoked client in.
pub fn server_config_with_revocation(
    tls: &ServerTls,
    revocation_pem: Option<&[u8]>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(&tls.certificate_pem).ok_or(TlsError::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&tls.private_key_pem).map_err(|_| TlsError::PrivateKey)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Version)?;
    let builder = match &tls.client_ca_pem {
        Some(pem) => builder.with_client_cert_verifier(client_verifier(provider, pem, revocation_pem)?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Mismatch)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn client_verifier(
    provider: Arc<CryptoProvider>,
    authority_pem: &[u8],
    revocation_pem: Option<&[u8]>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(authority_pem).ok_or(TlsError::ClientAuthority)? {
        roots.add(authority).map_err(|_| TlsError::ClientAuthority)?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if let Some(pem) = revocation_pem {
        let lists = CertificateRevocationListDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .ok()
            .filter(|lists| !lists.is_empty())
            .ok_or(TlsError::RevocationList)?;
        builder = builder.with_crls(lists).enforce_revocation_expiration();
    }
    builder.build().map_err(|_| match revocation_pem {
        Some(_) => TlsError::RevocationList,
        None => TlsError::ClientAuthority,
    })
}

/// All certificates of a PEM file; `None` where there is none, or one does not decode.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().ok()?;
    (!all.is_empty()).then_some(all)
}

#[cfg(test)]
mod tests {
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
        let config = server_config(&files(&leaf, &authority)).unwrap();
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
        let list = server_config_with_revocation(&good(), Some(b"nothing"));
        assert!(matches!(list, Err(TlsError::RevocationList)));
    }
}
