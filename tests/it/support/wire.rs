//! TLS connections whose every byte is the story's own: for certificates that no proper client would
//! show, and for requests that no HTTP library would send. (It logs no byte of them either, so what is
//! found in the log is the vault's doing.)

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::vault::{Answer, TestVault};

/// Nothing takes this long but what hangs.
const HANGS: Duration = Duration::from_secs(30);

/// A certificate chain and a key, PEM.
#[derive(Clone)]
pub struct Identity {
    /// The chain.
    pub pem: Vec<u8>,
    /// The key; it need not belong to the chain.
    pub key: Vec<u8>,
}

impl Identity {
    /// One of the clients that `init` makes.
    pub fn of(vault: &TestVault, name: &str) -> Self {
        let folder = vault.dir.path().join("pki/clients");
        let read = |end: &str| std::fs::read(folder.join(format!("{name}.{end}"))).expect("a file of init");
        Self { pem: read("pem"), key: read("key") }
    }
}

/// Shows its certificate whatever the server asks for, and signs with its key whether they match or not.
#[derive(Debug)]
struct Show(Arc<CertifiedKey>);

impl ResolvesClientCert for Show {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// One connection.
pub struct Wire {
    stream: TlsStream<TcpStream>,
}

impl Wire {
    /// Connects as one of the clients that `init` makes.
    pub async fn client(vault: &TestVault, name: &str) -> Self {
        Self::connect(vault, Some(&Identity::of(vault, name))).await.expect("a connection")
    }

    /// Connects with TLS 1.3.
    pub async fn connect(vault: &TestVault, identity: Option<&Identity>) -> io::Result<Self> {
        Self::connect_with(vault, identity, &rustls::version::TLS13).await
    }

    /// Connects with one version of TLS. In TLS 1.3 a client that is refused learns it only when it
    /// reads.
    pub async fn connect_with(
        vault: &TestVault,
        identity: Option<&Identity>,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> io::Result<Self> {
        Self::connect_to(&authority(vault), vault.address, identity, version).await
    }

    /// Connects with TLS 1.3, where there is no vault at hand but its address and authority.
    pub async fn connect_at(address: SocketAddr, ca: &Path, identity: Option<&Identity>) -> io::Result<Self> {
        Self::connect_to(ca, address, identity, &rustls::version::TLS13).await
    }

    /// Connects to where notifications are taken.
    pub async fn notify(vault: &TestVault) -> io::Result<Self> {
        let address = vault.notify_address.expect("a listener");
        Self::connect_to(&authority(vault), address, None, &rustls::version::TLS13).await
    }

    async fn connect_to(
        ca: &Path,
        address: SocketAddr,
        identity: Option<&Identity>,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(ca).expect("an authority");
        roots.add(ca).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain =
                    CertificateDer::pem_slice_iter(&identity.pem).map(|it| it.expect("PEM")).collect();
                let key = PrivateKeyDer::from_pem_slice(&identity.key).expect("a key");
                let key = provider.key_provider.load_private_key(key).expect("a key");
                builder.with_client_cert_resolver(Arc::new(Show(Arc::new(CertifiedKey::new(chain, key)))))
            }
        };
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        Ok(Self { stream: in_time(connecting).await? })
    }

    /// What the server showed, DER.
    pub fn server_certificate(&self) -> Vec<u8> {
        self.stream.get_ref().1.peer_certificates().and_then(<[_]>::first).expect("a certificate").to_vec()
    }

    /// Writes bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        in_time(async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        })
        .await
    }

    /// Writes a request with a JSON body, or without a body.
    pub async fn request(&mut self, method: &str, target: &str, body: Option<&[u8]>) -> io::Result<Answer> {
        let mut bytes = format!("{method} {target} HTTP/1.1\r\nhost: vault\r\n").into_bytes();
        if let Some(body) = body {
            let headers = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
            bytes.extend_from_slice(headers.as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body.unwrap_or_default());
        self.send(&bytes).await?;
        if method == "HEAD" { self.head().await.map(|(answer, _)| answer) } else { self.answer().await }
    }

    /// Reads one answer. The connection may close before it (`UnexpectedEof`).
    pub async fn answer(&mut self) -> io::Result<Answer> {
        let (mut answer, length) = self.head().await?;
        let mut body = vec![0; length];
        in_time(self.stream.read_exact(&mut body)).await?;
        answer.text = String::from_utf8(body).expect("text");
        Ok(answer)
    }

    async fn head(&mut self) -> io::Result<(Answer, usize)> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(in_time(self.stream.read_u8()).await?);
            assert!(head.len() < 64 * 1024, "no end of headers");
        }
        let head = String::from_utf8(head).expect("text");
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
        let mut headers = reqwest::header::HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").expect("a header");
            let name = reqwest::header::HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        assert!(!headers.contains_key("transfer-encoding"), "answers have a length: {head}");
        let length = headers.get("content-length").map_or(0, |it| it.to_str().unwrap().parse().unwrap());
        Ok((Answer { status, headers, text: String::new() }, length))
    }

    /// Reads until the vault closes the connection; what it ends with does not matter.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = in_time(self.stream.read_to_end(&mut bytes)).await;
        bytes
    }
}

fn authority(vault: &TestVault) -> PathBuf {
    vault.dir.path().join("pki/ca.pem")
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(HANGS, work).await.expect("it hangs")
}
