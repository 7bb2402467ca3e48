//! Notifications as the gateway sends them, and as one would who only pretends to be it: signed by any
//! key, with any algorithm, over any path, time and body, and sent byte by byte. It shares no code with
//! the vault or the sandbox.

use cardvault::base::clock::{Clock, SystemClock};
use data_encoding::BASE64;
use md5::{Digest, Md5};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA512, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair};
use rsa::pkcs8::DecodePrivateKey;
use rsa::{Pkcs1v15Sign, PrivateKey};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use super::vault::{Answer, TestVault};
use super::wire::Wire;

/// The path that the gateway calls here.
pub const PATH: &str = "/antom/notify";
/// The account that `init` makes.
pub const CLIENT: &str = "SANDBOX_5YCARDVAULT00001";
/// The only answer that ends a notification's delivery (reference, section 5).
pub const ACKNOWLEDGED: &str =
    r#"{"result":{"resultCode":"SUCCESS","resultStatus":"S","resultMessage":"success"}}"#;

/// How a notification is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// As the gateway does.
    Right,
    /// By the merchant's own key, which is another one.
    OtherKey,
    /// RSASSA-PKCS1-v1_5 with MD5, right in itself.
    Md5,
    /// The same with SHA-1.
    Sha1,
    /// The same with SHA-512.
    Sha512,
    /// SHA-256 without the name of the algorithm in the padding.
    Bare,
    /// RSASSA-PSS with SHA-256.
    Pss,
    /// Over another path.
    Path(&'static str),
    /// Over another time.
    Time(&'static str),
    /// Over another client id.
    Client(&'static str),
    /// Over another body.
    Body(&'static str),
}

/// What is done to the header with the signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Nothing.
    Whole,
    /// There is none.
    Missing,
    /// It is there twice.
    Doubled,
    /// This text, where `$` stands for the base64 of the signature, `%` for the same URL-encoded, and `&`
    /// for the same URL-encoded twice.
    Text(&'static str),
    /// The signature lacks its last bytes.
    Cut,
    /// The signature has a byte more.
    Longer,
}

/// What the time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// So many minutes from now, in milliseconds since 1970.
    Off(i64),
    /// The same, as ISO 8601.
    Iso(i64),
    /// Any text.
    Text(&'static str),
}

/// A notification before it is signed and sent.
#[derive(Debug, Clone)]
pub struct Posted {
    /// The exact bytes that are signed.
    pub body: Vec<u8>,
    /// What is sent in their place.
    pub instead: Option<Vec<u8>>,
    /// `Client-Id`.
    pub client: &'static str,
    /// `Request-Time`.
    pub time: Time,
    /// The signature.
    pub sign: Sign,
    /// The header with it.
    pub header: Header,
    /// The path that is called.
    pub path: &'static str,
    /// The method.
    pub method: &'static str,
    /// Names of headers that come twice, or not at all.
    pub twice: &'static [&'static str],
    /// See `twice`.
    pub without: &'static [&'static str],
    /// The content type.
    pub content_type: &'static str,
    /// Whether the body is sent in chunks, without a length.
    pub chunked: bool,
}

impl Posted {
    /// As the gateway would send it now.
    pub fn new(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            instead: None,
            client: CLIENT,
            time: Time::Off(0),
            sign: Sign::Right,
            header: Header::Whole,
            path: PATH,
            method: "POST",
            twice: &[],
            without: &[],
            content_type: "application/json; charset=UTF-8",
            chunked: false,
        }
    }

    /// Sends it, and gives what comes back.
    pub async fn send(&self, vault: &TestVault) -> Answer {
        self.send_bytes(vault, &self.bytes(vault)).await
    }

    /// The request, byte for byte: sent twice, it is a replay.
    pub fn bytes(&self, vault: &TestVault) -> Vec<u8> {
        let time = match self.time {
            Time::Off(minutes) => near(minutes).0.to_string(),
            Time::Iso(minutes) => near(minutes).rfc3339(),
            Time::Text(text) => text.to_owned(),
        };
        let mut lines = vec![
            ("host", "vault".to_owned()),
            ("content-type", self.content_type.to_owned()),
            ("client-id", self.client.to_owned()),
            ("request-time", time.clone()),
        ];
        lines.extend(self.signature(vault, &time).into_iter().map(|value| ("signature", value)));
        let sent = self.instead.as_ref().unwrap_or(&self.body);
        match self.chunked {
            true => lines.push(("transfer-encoding", "chunked".to_owned())),
            false => lines.push(("content-length", sent.len().to_string())),
        }
        let mut request = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        for (name, value) in lines {
            let times = match () {
                () if self.without.contains(&name) => 0,
                () if self.twice.contains(&name) => 2,
                () => 1,
            };
            request.push_str(&format!("{name}: {value}\r\n").repeat(times));
        }
        let mut request = (request + "\r\n").into_bytes();
        if self.chunked {
            for piece in sent.chunks(100) {
                request.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                request.extend_from_slice(piece);
                request.extend_from_slice(b"\r\n");
            }
            request.extend_from_slice(b"0\r\n\r\n");
        } else {
            request.extend_from_slice(sent);
        }
        request
    }

    /// Sends bytes that [`Posted::bytes`] made.
    pub async fn send_bytes(&self, vault: &TestVault, bytes: &[u8]) -> Answer {
        let mut wire = Wire::notify(vault).await.expect("a connection");
        // A body that is too large may be refused before its end.
        let _ = wire.send(bytes).await;
        wire.answer().await.expect("an answer")
    }

    fn signature(&self, vault: &TestVault, time: &str) -> Vec<String> {
        let (path, client, time, body) = match self.sign {
            Sign::Path(path) => (path, self.client, time, self.body.as_slice()),
            Sign::Time(time) => (self.path, self.client, time, self.body.as_slice()),
            Sign::Client(client) => (self.path, client, time, self.body.as_slice()),
            Sign::Body(body) => (self.path, self.client, time, body.as_bytes()),
            _ => (self.path, self.client, time, self.body.as_slice()),
        };
        let text = [format!("POST {path}\n{client}.{time}.").as_bytes(), body].concat();
        let mut signature = sign(vault, self.sign, &text);
        match self.header {
            Header::Cut => signature.truncate(signature.len() - 8),
            Header::Longer => signature.push(0),
            _ => {}
        }
        let base64 = BASE64.encode(&signature);
        let encoded = utf8_percent_encode(&base64, NON_ALPHANUMERIC).to_string();
        let whole = format!("algorithm=RSA256,keyVersion=1,signature={encoded}");
        match self.header {
            Header::Whole | Header::Cut | Header::Longer => vec![whole],
            Header::Missing => Vec::new(),
            Header::Doubled => vec![whole.clone(), whole],
            Header::Text(text) => {
                let (mark, value) = match text {
                    _ if text.contains('$') => ('$', base64),
                    _ if text.contains('&') => {
                        ('&', utf8_percent_encode(&encoded, NON_ALPHANUMERIC).to_string())
                    }
                    _ => ('%', encoded),
                };
                vec![text.replace(mark, &value)]
            }
        }
    }
}

fn near(minutes: i64) -> cardvault::base::clock::Millis {
    cardvault::base::clock::Millis(SystemClock.now().0 + minutes * 60_000)
}

/// The names of algorithms in a signature's padding (RFC 8017, section 9.2).
const MD5_NAME: &[u8] =
    &[0x30, 0x20, 0x30, 0x0c, 6, 8, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 2, 5, 5, 0, 4, 0x10];
const SHA1_NAME: &[u8] = &[0x30, 0x21, 0x30, 9, 6, 5, 0x2b, 0x0e, 3, 2, 0x1a, 5, 0, 4, 0x14];
const SHA256_NAME: &[u8] =
    &[0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20];

fn sign(vault: &TestVault, how: Sign, text: &[u8]) -> Vec<u8> {
    let file = if how == Sign::OtherKey { "merchant_private.pem" } else { "sandbox_private.pem" };
    let pem = std::fs::read(vault.dir.path().join("gateway").join(file)).expect("a key");
    let der = PrivateKeyDer::from_pem_slice(&pem).expect("a key");
    let sha256 = digest(&SHA256, text);
    let (name, hash): (&[u8], Vec<u8>) = match how {
        Sign::Md5 => (MD5_NAME, Md5::digest(text).to_vec()),
        Sign::Sha1 => (SHA1_NAME, digest(&SHA1_FOR_LEGACY_USE_ONLY, text).as_ref().to_vec()),
        Sign::Sha512 => return by_ring(&der, &RSA_PKCS1_SHA512, text),
        Sign::Pss => return by_ring(&der, &RSA_PSS_SHA256, text),
        Sign::Bare => (&[], sha256.as_ref().to_vec()),
        _ => (SHA256_NAME, sha256.as_ref().to_vec()),
    };
    let key = PrivateKey::from_pkcs8_der(der.secret_der()).expect("an RSA key");
    let scheme = Pkcs1v15Sign { hash_len: Some(hash.len()), prefix: name.into() };
    key.sign(scheme, &hash).expect("a signature")
}

fn by_ring(der: &PrivateKeyDer<'_>, scheme: &'static dyn RsaEncoding, text: &[u8]) -> Vec<u8> {
    let pair = RsaKeyPair::from_pkcs8(der.secret_der()).expect("an RSA key");
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(scheme, &SystemRandom::new(), text, &mut signature).expect("a signature");
    signature
}
