//! A gateway that answers each call as its story says: where the sandbox's amounts are not exact enough.
//! It keeps every body as it came, checks each signature with code of its own, can hold an answer back
//! until the story lets it go, and can be unreachable.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

/// The sandbox form of the pay path, which is what must be called and signed.
pub const PAY: &str = "/ams/sandbox/api/v1/payments/pay";
/// The sandbox form of inquiryPayment.
pub const INQUIRY: &str = "/ams/sandbox/api/v1/payments/inquiryPayment";

/// Antom's id of every payment here.
pub const PAYMENT_ID: &str = "20260101194010800100188000000000001";

/// A call as it arrived.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its path.
    pub path: String,
    /// The exact bytes.
    pub body: Vec<u8>,
    /// Whether its signature is right over exactly those bytes.
    pub signed: bool,
    /// How many calls of this path came before it.
    pub nth: usize,
}

impl Received {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    fn is_pay(&self) -> bool {
        self.path == PAY
    }

    /// A member of the card's map.
    pub fn card(&self, name: &str) -> Value {
        self.json()["paymentMethod"]["paymentMethodMetaData"][name].clone()
    }
}

/// What a call is answered with.
pub enum Reply {
    /// Signed.
    Signed(String),
    /// Not signed.
    Unsigned(String),
    /// Not signed, with this status and `location`.
    Redirect(u16, String),
    /// The connection is closed.
    Closed,
    /// Another answer, when the story calls [`Scripted::release`].
    Held(Box<Reply>),
}

type Script = dyn Fn(&Received) -> Reply + Send + Sync;

struct State {
    script: Mutex<Arc<Script>>,
    calls: Mutex<Vec<Received>>,
    released: watch::Sender<bool>,
    signing: RsaKeyPair,
    merchant: UnparsedPublicKey<Vec<u8>>,
}

/// A running scripted gateway; dropping it closes it.
pub struct Scripted {
    state: Arc<State>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Scripted {
    /// Starts with the keys and the certificate that `init` made for the sandbox.
    pub async fn start(dir: &Path) -> Self {
        let read = |name: &str| std::fs::read(dir.join(name)).expect(name);
        let key = PrivateKeyDer::from_pem_slice(&read("gateway/sandbox_private.pem")).expect("a key");
        let signing = RsaKeyPair::from_pkcs8(key.secret_der())
            .or_else(|_| RsaKeyPair::from_der(key.secret_der()))
            .expect("an RSA key");
        let spki =
            SubjectPublicKeyInfoDer::from_pem_slice(&read("gateway/merchant_public.pem")).expect("a key");
        let (_, info) = SubjectPublicKeyInfo::from_der(&spki).expect("a public key");
        let merchant =
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, info.subject_public_key.data.to_vec());
        let tls = tls(&read("pki/sandbox.pem"), &read("pki/sandbox.key"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let script: Arc<Script> = Arc::new(paid);
        let state = Arc::new(State {
            script: Mutex::new(script),
            calls: Mutex::default(),
            released: watch::Sender::new(false),
            signing,
            merchant,
        });
        let accepting = tokio::spawn(accept(listener, tls, state.clone()));
        Self { state, address, accepting }
    }

    /// `https://127.0.0.1:PORT`.
    pub fn base_url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// From now on calls are answered so.
    pub fn on(&self, script: impl Fn(&Received) -> Reply + Send + Sync + 'static) {
        *held(&self.state.script) = Arc::new(script);
    }

    /// Lets go what is held back, and holds nothing back any more.
    pub fn release(&self) {
        self.state.released.send_replace(true);
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<Received> {
        held(&self.state.calls).clone()
    }

    /// The pay calls so far.
    pub fn pays(&self) -> Vec<Received> {
        self.calls().into_iter().filter(Received::is_pay).collect()
    }

    /// Waits until so many pay calls have come.
    pub async fn wait_for_pays(&self, count: usize) -> Vec<Received> {
        super::eventually("the gateway to be called", || async {
            let pays = self.pays();
            (pays.len() >= count).then_some(pays)
        })
        .await
    }
}

/// A payment that is paid, and an inquiry that says so.
pub fn paid(call: &Received) -> Reply {
    Reply::Signed(paid_json(call).to_string())
}

/// The body of [`paid`]. An inquiry names no amount, so its answer is the sample's.
pub fn paid_json(call: &Received) -> Value {
    let request = call.json();
    let mut answer = json!({
        "paymentRequestId": request["paymentRequestId"],
        "paymentId": PAYMENT_ID,
        "paymentAmount": request["paymentAmount"],
        "paymentCreateTime": "2026-01-01T00:00:00Z",
        "paymentResultInfo": { "networkTransactionId": "NTI000000000001", "cvvResultRaw": "Y" },
        "result": { "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "success." },
    });
    if !call.is_pay() {
        answer["paymentAmount"] = json!({ "currency": "EUR", "value": "30000" });
        answer["paymentStatus"] = json!("SUCCESS");
    }
    answer
}

/// Nothing but a result.
pub fn result(status: &str, code: &str) -> Reply {
    let result = json!({ "resultCode": code, "resultStatus": status, "resultMessage": "words" });
    Reply::Signed(json!({ "result": result }).to_string())
}

/// `ORDER_NOT_EXIST`.
pub fn not_exist() -> Reply {
    result("F", "ORDER_NOT_EXIST")
}

fn held<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tls(pem: &[u8], key: &[u8]) -> TlsAcceptor {
    let chain = CertificateDer::pem_slice_iter(pem).map(|it| it.expect("a certificate")).collect();
    let key = PrivateKeyDer::from_pem_slice(key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("an identity");
    TlsAcceptor::from(Arc::new(config))
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, state: Arc<State>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, state) = (tls.clone(), state.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(|request| serve(state.clone(), request));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn serve(
    state: Arc<State>,
    request: Request<hyper::body::Incoming>,
) -> Result<Response<Full<Bytes>>, io::Error> {
    let (parts, body) = request.into_parts();
    let header = |name: &str| {
        parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes().to_vec();
    let path = parts.uri.path().to_owned();
    let (client, time) = (header("client-id"), header("request-time"));
    let signed = verifies(&state, &header("signature"), &text(&path, &client, &time, &body));
    let call = {
        let mut calls = held(&state.calls);
        let nth = calls.iter().filter(|call| call.path == path).count();
        let call = Received { path: path.clone(), body, signed, nth };
        calls.push(call.clone());
        call
    };
    let script = held(&state.script).clone();
    let mut reply = script(&call);
    while let Reply::Held(inner) = reply {
        let _ = state.released.subscribe().wait_for(|released| *released).await;
        reply = *inner;
    }
    let (body, sign) = match reply {
        Reply::Redirect(status, location) => {
            let response = Response::builder().status(status).header("location", location);
            return response.body(Full::default()).map_err(io::Error::other);
        }
        Reply::Signed(body) => (body, true),
        Reply::Unsigned(body) => (body, false),
        Reply::Closed | Reply::Held(_) => return Err(io::Error::other("closed")),
    };
    let time = "2026-01-01T00:00:00Z";
    let mut response = Response::builder().header("client-id", &client).header("response-time", time);
    if sign {
        let signature = sign_text(&state.signing, &text(&path, &client, time, body.as_bytes()));
        response = response.header("signature", signature);
    }
    response.body(Full::new(Bytes::from(body))).map_err(io::Error::other)
}

fn text(path: &str, client: &str, time: &str, body: &[u8]) -> Vec<u8> {
    [format!("POST {path}\n{client}.{time}.").as_bytes(), body].concat()
}

fn verifies(state: &State, header: &str, text: &[u8]) -> bool {
    let members: HashMap<&str, &str> =
        header.split(',').filter_map(|part| part.trim().split_once('=')).collect();
    let signature = members.get("signature").map(|it| percent_decode_str(it).collect::<Vec<u8>>());
    let signature = signature.and_then(|it| BASE64.decode(&it).ok());
    members.get("algorithm") == Some(&"RSA256")
        && signature.is_some_and(|signature| state.merchant.verify(text, &signature).is_ok())
}

fn sign_text(pair: &RsaKeyPair, text: &[u8]) -> String {
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature).expect("a signature");
    let value = utf8_percent_encode(&BASE64.encode(&signature), NON_ALPHANUMERIC).to_string();
    format!("algorithm=RSA256,keyVersion=1,signature={value}")
}

/// A port on which nobody listens: a connection to it is refused.
pub fn nobody() -> String {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("https://{}", socket.local_addr().expect("an address"))
}

/// How long a story waits for what happens in the background before it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);
