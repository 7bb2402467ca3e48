//! The HTTPS client: builds nothing and decides nothing. It signs the bytes that it is given, sends
//! those bytes once, and verifies what comes back before anybody reads it.
//!
//! No redirect (the signature is bound to the path), no proxy from the environment, no automatic
//! repeat: a `pay` that was sent is only ever repeated on purpose. No address inside, unless it is allowed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::base::clock::SharedClock;
use crate::base::limits::GATEWAY_ANSWER_BYTES;
use crate::base::secret::SecretBuf;
use crate::gateway::reach::{self, Guard, Lookup};
use crate::gateway::{Call, Exchange, Gateway, Signed};

use super::sign::SigningKey;
use super::verify::{NotVerified, SignatureHeaders, VerifiedText, Verifier};
use super::wire;

/// From how many milliseconds on a signature is made anew before it is sent.
const SIGNED_LONG_AGO: u64 = 1000;

/// How an account is reached.
pub struct Options {
    /// `https://host[:port]`, without a path.
    pub base_url: String,
    /// Antom's client id; one that begins `SANDBOX_` uses the sandbox paths.
    pub client_id: String,
    /// Certificate authorities in PEM that alone are trusted; the public ones where there is none.
    pub ca_pem: Option<Vec<u8>>,
    /// Whether the host may have an address of a private or special range.
    pub allow_private_addresses: bool,
    /// For TCP and TLS.
    pub connect_timeout: Duration,
    /// For the whole call.
    pub timeout: Duration,
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not `https://host[:port]`.
    #[error("the gateway's base_url must be https://host[:port] without a path")]
    BaseUrl,
    /// The host is an address of a private or special range.
    #[error(
        "base_url is an address of a private or special range; set allow_private_addresses = true if the \
         gateway really is there"
    )]
    PrivateAddress,
    /// The CA file holds no certificate.
    #[error("the gateway's ca file holds no usable certificate")]
    Ca,
    /// TLS or the HTTP client could not be set up.
    #[error("the gateway's HTTP client could not be set up")]
    Setup,
}

/// A gateway account.
pub struct Client {
    http: reqwest::Client,
    base_url: String,
    client_id: String,
    signing: ArcSwap<SigningKey>,
    verifier: ArcSwap<Verifier>,
    clock: SharedClock,
}

impl Client {
    /// Sets the client up; connects to nothing yet.
    pub fn new(
        options: Options,
        signing: SigningKey,
        verifier: Verifier,
        clock: SharedClock,
    ) -> Result<Self, ClientError> {
        Self::with_lookup(options, signing, verifier, clock, Arc::new(reach::System))
    }

    /// As [`Self::new`], with somebody else to find the addresses of names.
    pub fn with_lookup(
        options: Options,
        signing: SigningKey,
        verifier: Verifier,
        clock: SharedClock,
        lookup: Arc<dyn Lookup>,
    ) -> Result<Self, ClientError> {
        let base_url = options.base_url.trim_end_matches('/').to_owned();
        let url = reqwest::Url::parse(&base_url).map_err(|_| ClientError::BaseUrl)?;
        if url.scheme() != "https" || url.path() != "/" || url.query().is_some() || !url.username().is_empty()
        {
            return Err(ClientError::BaseUrl);
        }
        // What is an address already is not looked up any more.
        if !options.allow_private_addresses && url.host_str().is_some_and(reach::is_private_host) {
            return Err(ClientError::PrivateAddress);
        }
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(options.ca_pem.as_deref())?)
            .https_only(true)
            .http1_only()
            .no_proxy()
            .dns_resolver(Guard::new(lookup, options.allow_private_addresses))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(options.connect_timeout)
            .timeout(options.timeout)
            .pool_idle_timeout(Duration::from_secs(20))
            .tcp_nodelay(true)
            .build()
            .map_err(|_| ClientError::Setup)?;
        let (signing, verifier) = (ArcSwap::from_pointee(signing), ArcSwap::from_pointee(verifier));
        Ok(Self { http, base_url, client_id: options.client_id, signing, verifier, clock })
    }

    /// Signs with another key and accepts other keys from now on. A call that is under way keeps the
    /// signature that it has; its answer may be signed with any key that is accepted when it comes.
    pub fn set_keys(&self, signing: SigningKey, verifier: Verifier) {
        // First what is accepted: an answer may come under a new key as soon as we sign with ours.
        self.verifier.store(Arc::new(verifier));
        self.signing.store(Arc::new(signing));
    }

    fn path(&self, call: Call) -> String {
        wire::path_for(&self.client_id, path_of(call))
    }

    /// What was to happen before it leaves took long: it leaves with the time at which it does.
    fn up_to_date(&self, signed: Signed) -> Signed {
        match self.clock.now().0.abs_diff(signed.time.0) > SIGNED_LONG_AGO {
            true => self.sign(signed.call, signed.body),
            false => signed,
        }
    }

    async fn exchange(&self, signed: Signed) -> Exchange {
        let Signed { call, body, time, signature } = self.up_to_date(signed);
        let path = self.path(call);
        let Some(signature) = signature else {
            return Exchange::NotSent("the request could not be signed");
        };
        let Some(headers) = headers(&self.client_id, &time.0.to_string(), &signature) else {
            return Exchange::NotSent("the request's headers could not be made");
        };
        let request = self
            .http
            .post(format!("{}{path}", self.base_url))
            .headers(headers)
            .body(Bytes::from_owner(Wiped(body)));
        let mut answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if reach::was_refused(&error) => {
                return Exchange::NotSent("the gateway's name has an address of a private or special range");
            }
            Err(error) if error.is_connect() || error.is_builder() => {
                return Exchange::NotSent("no connection to the gateway");
            }
            Err(error) if error.is_timeout() => {
                return Exchange::NoAnswer("the gateway did not answer in time");
            }
            Err(_) => return Exchange::NoAnswer("the connection to the gateway broke"),
        };
        if answer.status() != reqwest::StatusCode::OK {
            return Exchange::NoAnswer("the gateway's answer is not HTTP 200");
        }
        let headers = std::mem::take(answer.headers_mut());
        match read_bounded(&mut answer).await {
            Ok(text) => self.verify(&path, &headers, &text),
            Err(reason) => Exchange::NoAnswer(reason),
        }
    }

    fn verify(&self, path: &str, headers: &HeaderMap, body: &[u8]) -> Exchange {
        let headers = SignatureHeaders {
            client_id: one(headers, wire::CLIENT_ID),
            time: one(headers, wire::RESPONSE_TIME),
            signature: one(headers, wire::SIGNATURE),
        };
        match self.verifier.load().verify(path, &headers, body) {
            Ok(verified) => Exchange::Answered(verified.into()),
            Err(reason) => {
                tracing::warn!(%reason, "an answer of the gateway does not verify");
                Exchange::NoAnswer("the gateway's answer does not verify")
            }
        }
    }
}

impl Gateway for Client {
    fn sign(&self, call: Call, body: SecretBuf) -> Signed {
        let time = self.clock.now();
        let (path, text) = (self.path(call), time.0.to_string());
        let signature = self.signing.load().sign(&path, &self.client_id, &text, body.expose()).ok();
        Signed { call, body, time, signature }
    }

    fn send(&self, signed: Signed) -> Pin<Box<dyn Future<Output = Exchange> + Send + '_>> {
        Box::pin(self.exchange(signed))
    }

    fn verify_notification(
        &self,
        path: &str,
        headers: &SignatureHeaders<'_>,
        body: &[u8],
    ) -> Result<VerifiedText, NotVerified> {
        self.verifier.load().verify(path, headers, body).map(Into::into)
    }
}

/// Lends a secret buffer to the HTTP library, which drops (and so wipes) it when it is sent.
struct Wiped(SecretBuf);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        self.0.expose()
    }
}

fn path_of(call: Call) -> &'static str {
    match call {
        Call::Pay => wire::PAY,
        Call::InquiryPayment => wire::INQUIRY_PAYMENT,
        Call::Cancel => wire::CANCEL,
        Call::Capture => wire::CAPTURE,
        Call::Refund => wire::REFUND,
        Call::InquiryRefund => wire::INQUIRY_REFUND,
    }
}

fn headers(client_id: &str, time: &str, signature: &str) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8"));
    headers.insert(wire::CLIENT_ID, HeaderValue::from_str(client_id).ok()?);
    headers.insert(wire::REQUEST_TIME, HeaderValue::from_str(time).ok()?);
    headers.insert(wire::SIGNATURE, HeaderValue::from_str(signature).ok()?);
    Some(headers)
}

/// A header that came exactly once.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

async fn read_bounded(answer: &mut reqwest::Response) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let mut body = Zeroizing::new(Vec::new());
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= GATEWAY_ANSWER_BYTES => {
                body.extend_from_slice(&chunk)
            }
            Ok(Some(_)) => return Err("the gateway's answer is too long"),
            Ok(None) => return Ok(body),
            Err(_) => return Err("the gateway's answer broke off"),
        }
    }
}

/// The TLS by which the gateway is reached: these authorities, or the public ones.
pub fn tls(ca_pem: Option<&[u8]>) -> Result<rustls::ClientConfig, ClientError> {
    let mut roots = RootCertStore::empty();
    match ca_pem {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|_| ClientError::Ca)?;
                roots.add(certificate).map_err(|_| ClientError::Ca)?;
            }
        }
    }
    if roots.is_empty() {
        return Err(ClientError::Ca);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| ClientError::Setup)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::base::clock::{Millis, SetClock};
    use crate::base::secret::SecretText;

    /// Where recording a payment took long, or the clock was set, the request leaves with the time of its leaving.
    #[test]
    fn what_was_signed_long_ago_is_signed_anew() {
        let clock = SetClock::at(Millis(1_772_366_400_000));
        let key = include_str!("../../../tests/vectors/antom/keys/merchant_private_pkcs8.pem");
        let options = Options {
            base_url: "https://gateway.example".to_owned(),
            client_id: "SANDBOX_5YCARDVAULT00001".to_owned(),
            ca_pem: None,
            allow_private_addresses: false,
            connect_timeout: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
        };
        let signing = || SigningKey::read(&SecretText::new(key.to_owned()), 1).expect("a key");
        let verifier = Verifier::new(&options.client_id);
        let client = Client::new(options, signing(), verifier, clock.clone()).expect("a client");
        let body = || SecretBuf::from_vec(b"{\"a\":1}".to_vec());
        let (path, id) = (client.path(Call::Pay), client.client_id.clone());
        for (later, anew) in [(0, false), (1000, false), (1001, true), (-1000, false), (-1001, true)] {
            let signed = client.sign(Call::Pay, body());
            let before = signed.time;
            clock.wall.fetch_add(later, Ordering::SeqCst);
            let sent = client.up_to_date(signed);
            assert_eq!(sent.time, if anew { client.clock.now() } else { before }, "{later}");
            let expected = signing().sign(&path, &id, &sent.time.0.to_string(), sent.body.expose());
            assert_eq!(sent.signature, expected.ok(), "{later}");
        }
    }
}
