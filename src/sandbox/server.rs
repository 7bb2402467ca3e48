//! TLS and HTTP: accepts connections, reads bounded requests, and delivers answers in all the ways, good
//! and bad, in which an answer can arrive.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming as Received, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::Error;
use super::answer::Later;
use super::answer::{Answer, Manner};
use super::api::{Core, Incoming};
use super::deliver;
use super::pages::{self, Page};
use super::sign::Signed;
use super::{operations, pay};
use crate::gateway::antom::wire;

/// Largest request body, in bytes.
const BODY_BYTES: usize = 1024 * 1024;
/// Most connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 1024;
/// For the TLS handshake, for the head of a request (idle time included) and for its body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// A failing accept (too many open files) is tried again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Silence lasts this many times as long as slowness.
pub(super) const SILENCE: u32 = 4;

/// TLS for the listener, with ring and without client certificates.
pub(super) fn tls(certificate_pem: &[u8], key_pem: &[u8]) -> Result<TlsAcceptor, Error> {
    let chain = CertificateDer::pem_slice_iter(certificate_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| Error::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| Error::PrivateKey)?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Accepts until it is dropped; its connections end with it.
pub(super) async fn accept(listener: TcpListener, tls: TlsAcceptor, core: Arc<Core>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(converse(stream, tls.clone(), Arc::clone(&core), place));
            }
            Err(error) => {
                tracing::warn!(%error, "the sandbox could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(stream: TcpStream, tls: TlsAcceptor, core: Arc<Core>, _place: OwnedSemaphorePermit) {
    let Ok(Ok(stream)) = timeout(READ_TIMEOUT, tls.accept(stream)).await else {
        tracing::debug!("a TLS handshake with the sandbox failed");
        return;
    };
    let service = service_fn(|request| serve(Arc::clone(&core), request));
    let ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if ended.is_err() {
        tracing::debug!("a connection to the sandbox was broken off");
    }
}

/// No answer is to be given; the connection is closed.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed without an answer")]
pub(super) struct NoAnswer;

async fn serve(core: Arc<Core>, request: Request<Received>) -> Result<Response<Payload>, NoAnswer> {
    let (parts, body) = request.into_parts();
    let collected = timeout(READ_TIMEOUT, Limited::new(body, BODY_BYTES).collect()).await;
    let body = match collected {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return Ok(plain(StatusCode::PAYLOAD_TOO_LARGE)),
        Err(_) => return Err(NoAnswer),
    };
    if parts.uri.path().starts_with("/pages/") {
        return page(core, &parts).await;
    }
    let incoming = incoming(&parts, &body);
    let (incoming, answer) = blocking({
        let core = Arc::clone(&core);
        move || {
            let answer = core.answer(&incoming);
            (incoming, answer)
        }
    })
    .await?;
    deliver(core, incoming, answer).await
}

fn incoming(parts: &Parts, body: &Bytes) -> Incoming {
    let header = |name: &str| {
        parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    Incoming {
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        content_type: header("content-type"),
        client_id: header(wire::CLIENT_ID),
        request_time: header(wire::REQUEST_TIME),
        signature: header(wire::SIGNATURE),
        body: body.to_vec(),
    }
}

async fn deliver(
    core: Arc<Core>,
    incoming: Incoming,
    mut answer: Answer,
) -> Result<Response<Payload>, NoAnswer> {
    if let Some(later) = answer.later.take() {
        land_later(&core, later);
    }
    match answer.manner {
        Manner::Closed => return Err(NoAnswer),
        Manner::Silence => {
            sleep(core.slow * SILENCE).await;
            return Err(NoAnswer);
        }
        Manner::Late => sleep(core.slow).await,
        Manner::AfterNotice => deliver::notified(&core, answer.about.as_deref()).await,
        _ => {}
    }
    let time = core.now().rfc3339();
    let signature = signature(&core, &incoming, &answer, &time);
    let mut response = plain(match answer.manner {
        Manner::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
        Manner::Redirect => StatusCode::FOUND,
        _ => StatusCode::OK,
    });
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json;charset=UTF-8"));
    if answer.manner == Manner::Redirect {
        headers
            .insert(LOCATION, HeaderValue::from_static("https://elsewhere.invalid/ams/api/v1/payments/pay"));
    }
    let named = [
        (wire::CLIENT_ID, Some(incoming.client_id)),
        (wire::RESPONSE_TIME, Some(time)),
        (wire::SIGNATURE, signature),
    ];
    for (name, value) in named {
        if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    *response.body_mut() = match answer.manner {
        Manner::Truncated => Payload::half(answer.bytes),
        _ => Payload::whole(answer.bytes),
    };
    Ok(response)
}

/// The answer is signed for the client id that called, so that a merchant with the wrong id can verify,
/// and read, that it is wrong.
fn signature(core: &Core, incoming: &Incoming, answer: &Answer, time: &str) -> Option<String> {
    let body: &[u8] = match answer.manner {
        Manner::Unsigned | Manner::ServerError => return None,
        Manner::WronglySigned => b"{}",
        _ => &answer.bytes,
    };
    core.gateway.sign(Signed {
        method: &incoming.method,
        path: &incoming.path,
        client_id: &incoming.client_id,
        time,
        body,
    })
}

/// Outlives the connection, which the client closes when it has had enough, but not the sandbox.
fn land_later(core: &Arc<Core>, later: Later) {
    let (core, pause) = (Arc::downgrade(core), core.slow);
    tokio::spawn(async move {
        sleep(pause).await;
        let Some(core) = core.upgrade() else { return };
        let landed = blocking(move || match later {
            Later::Payment(later) => pay::land(&core, &later),
            Later::Operation(later) => operations::land(&core, &later),
        })
        .await;
        if !matches!(landed, Ok(Ok(()))) {
            tracing::error!("a late change could not be written to the sandbox's ledger");
        }
    });
}

async fn page(core: Arc<Core>, parts: &Parts) -> Result<Response<Payload>, NoAnswer> {
    if !matches!(parts.method.as_str(), "GET" | "POST") {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED));
    }
    let path = parts.uri.path().to_owned();
    let page = blocking(move || pages::visit(&core, &path)).await?;
    let mut response = plain(StatusCode::OK);
    match page {
        Ok(Page::Html(html)) => {
            let kind = HeaderValue::from_static("text/html; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            *response.body_mut() = Payload::whole(html.into_bytes());
        }
        Ok(Page::Redirect(url)) => {
            if let Ok(url) = HeaderValue::try_from(url) {
                *response.status_mut() = StatusCode::FOUND;
                response.headers_mut().insert(LOCATION, url);
            }
        }
        Ok(Page::NotFound) => *response.status_mut() = StatusCode::NOT_FOUND,
        Err(error) => {
            tracing::error!(%error, "the sandbox's ledger could not be written");
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
    }
    Ok(response)
}

/// The ledger waits for the disk, so it runs beside the connections.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NoAnswer> {
    tokio::task::spawn_blocking(work).await.map_err(|_| NoAnswer)
}

fn plain(status: StatusCode) -> Response<Payload> {
    let mut response = Response::new(Payload::whole(Vec::new()));
    *response.status_mut() = status;
    response
}

/// A body that is sent whole, or one that promises its whole length and breaks off half-way.
struct Payload {
    bytes: Option<Bytes>,
    promised: u64,
    breaks: bool,
    flushed: bool,
}

impl Payload {
    fn whole(bytes: Vec<u8>) -> Self {
        Self { promised: bytes.len() as u64, bytes: Some(bytes.into()), breaks: false, flushed: false }
    }

    fn half(mut bytes: Vec<u8>) -> Self {
        let promised = bytes.len() as u64;
        bytes.truncate(bytes.len() / 2);
        Self { promised, bytes: Some(bytes.into()), breaks: true, flushed: false }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = NoAnswer;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, NoAnswer>>> {
        if let Some(bytes) = self.bytes.take().filter(|bytes| !bytes.is_empty()) {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match (self.breaks, std::mem::replace(&mut self.flushed, true)) {
            (false, _) => Poll::Ready(None),
            // The first half must be on its way before the connection breaks.
            (true, false) => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            (true, true) => Poll::Ready(Some(Err(NoAnswer))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.promised == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.promised)
    }
}
