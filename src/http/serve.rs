//! The accept loop: TCP, TLS, HTTP/1.1, each with a timer and a ceiling, so that a slow or silent peer
//! costs a connection for seconds and never a place for ever. No HTTP byte is read from a peer before
//! its handshake is done and, where the configuration asks for clients, its certificate was read.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::Acceptor;
use rustls::{CertificateError, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tower::Service;

use super::peer::Peer;
use crate::metrics::Metrics;

/// Smallest buffer that hyper takes.
const SMALLEST_BUFFER: usize = 8 * 1024;
/// First and longest pause after an accept that failed (out of file descriptors, mostly).
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// The ceilings of one listener.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From the accepted connection to the end of the handshake, all waiting included.
    pub handshake_timeout: Duration,
    /// From the first wait for a request to the end of its headers.
    pub header_timeout: Duration,
    /// From the end of the headers to the last byte of the body.
    pub body_timeout: Duration,
    /// How long a connection may lie between two requests. The shorter of this and `header_timeout`
    /// counts. A connection that is closed keeps no card data in its buffers. An answer must have been
    /// read within this and `header_timeout` together, counted from the end of its handler.
    pub idle_timeout: Duration,
    /// How long requests in flight may take to finish once the listener is told to stop.
    pub shutdown_grace: Duration,
    /// Open connections, those in their handshake included. Further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// Handshakes that compute at the same time. A peer that has not sent its
    /// whole hello yet is not counted.
    pub max_handshakes: usize,
    /// Header lines of a request.
    pub max_headers: usize,
    /// Bytes of a request's line and headers (8 KiB at least), and of what is read ahead.
    pub max_header_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(30),
            max_connections: 1024,
            max_handshakes: 256,
            max_headers: 64,
            max_header_bytes: 16 * 1024,
        }
    }
}

/// Where a listener's TLS configuration comes from: one for all its life, or a channel that brings new
/// ones when certificates, authority or revocation list are reloaded. After a change, open connections
/// end with the request that they are in, so that no connection outlives the rules it was let in by.
pub struct TlsSource {
    current: watch::Receiver<Arc<ServerConfig>>,
    /// Keeps a fixed source's channel open.
    _fixed: Option<Arc<watch::Sender<Arc<ServerConfig>>>>,
}

impl From<Arc<ServerConfig>> for TlsSource {
    fn from(config: Arc<ServerConfig>) -> Self {
        let (sender, current) = watch::channel(config);
        Self { current, _fixed: Some(Arc::new(sender)) }
    }
}

impl From<watch::Receiver<Arc<ServerConfig>>> for TlsSource {
    fn from(current: watch::Receiver<Arc<ServerConfig>>) -> Self {
        Self { current, _fixed: None }
    }
}

/// A bound socket, not yet served: its address is known before the first request can come.
pub struct Listener {
    socket: TcpListener,
    local: SocketAddr,
    counted: Option<(Arc<Metrics>, &'static str)>,
    leaving: Option<watch::Receiver<bool>>,
}

impl Listener {
    /// Binds the address. Port 0 takes a free one.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let local = socket.local_addr()?;
        Ok(Self { socket, local, counted: None, leaving: None })
    }

    /// Counts connections under this name.
    pub fn counted(self, metrics: Arc<Metrics>, name: &'static str) -> Self {
        Self { counted: Some((metrics, name)), ..self }
    }

    /// From when `leaving` turns true, every answer tells its caller to close the connection. What is
    /// asked until the end of [`Self::serve`] is answered all the same, and a caller that was told
    /// writes nothing into a connection that is about to close.
    pub fn leaving(self, leaving: watch::Receiver<bool>) -> Self {
        Self { leaving: Some(leaving), ..self }
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Serves `app` over TLS until `shutdown`; then accepts no more, closes idle connections, and
    /// returns when the requests in flight are done or the grace is over. Each request carries a
    /// `ConnectInfo<SocketAddr>` and, where clients have certificates, an `Arc<Peer>` as extensions.
    pub async fn serve(
        self,
        tls: impl Into<TlsSource>,
        app: Router,
        limits: Limits,
        shutdown: impl Future<Output = ()>,
    ) {
        let slots = Arc::new(Semaphore::new(limits.max_connections));
        let (stop, stopping) = watch::channel(false);
        let shared = Arc::new(Shared {
            tls: tls.into(),
            app,
            handshakes: Semaphore::new(limits.max_handshakes),
            stopping,
            limits,
            counted: self.counted,
            leaving: self.leaving,
        });
        let mut tasks = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            while let Some(ended) = tasks.try_join_next() {
                report(ended);
            }
            let (stream, remote, slot) = tokio::select! {
                biased;
                () = &mut shutdown => break,
                accepted = accept(&self.socket, &slots) => accepted,
            };
            let shared = Arc::clone(&shared);
            tasks.spawn(async move {
                shared.connection(stream, remote).await;
                drop(slot);
            });
        }
        drop(self.socket);
        stop.send_replace(true);
        let drained = timeout(shared.limits.shutdown_grace, async {
            while let Some(ended) = tasks.join_next().await {
                report(ended);
            }
        });
        if drained.await.is_err() {
            tracing::warn!(connections = tasks.len(), "connections were cut at the end of the grace");
            tasks.shutdown().await;
        }
    }
}

/// The next connection and its slot. Never fails: what goes wrong with one accept is over with the
/// next, or with the pause.
async fn accept(
    socket: &TcpListener,
    slots: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let mut pause = ACCEPT_PAUSE.0;
    loop {
        // The semaphore is never closed; were it, waiting is right: nothing may be accepted.
        let Ok(slot) = Arc::clone(slots).acquire_owned().await else {
            return std::future::pending().await;
        };
        match socket.accept().await {
            Ok((stream, remote)) => return (stream, remote, slot),
            Err(error) if belongs_to_one_peer(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted at the moment");
                drop(slot);
                sleep(pause).await;
                pause = (pause * 2).min(ACCEPT_PAUSE.1);
            }
        }
    }
}

/// Errors of a connection that died in the queue; there is nothing to wait for.
fn belongs_to_one_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        // The text of a panic could hold anything, so it is not repeated here.
        tracing::error!("a connection ended with a panic");
    }
}

/// What all connections of a listener share.
struct Shared {
    tls: TlsSource,
    app: Router,
    handshakes: Semaphore,
    stopping: watch::Receiver<bool>,
    limits: Limits,
    counted: Option<(Arc<Metrics>, &'static str)>,
    leaving: Option<watch::Receiver<bool>>,
}

impl Shared {
    fn refused(&self, remote: SocketAddr, reason: &'static str) {
        tracing::info!(%remote, reason, "a handshake failed");
        if let Some((metrics, name)) = &self.counted {
            metrics.handshake_refused(name, reason);
        }
    }

    async fn connection(&self, stream: TcpStream, remote: SocketAddr) {
        let mut stopping = self.stopping.clone();
        let mut tls = self.tls.current.clone();
        let config = Arc::clone(&tls.borrow_and_update());
        let handshake = self.handshake(stream, config, &mut stopping);
        let stream = match timeout(self.limits.handshake_timeout, handshake).await {
            Ok(Ok(Some(stream))) => stream,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => {
                self.refused(remote, reason(&error));
                return;
            }
            Err(_) => {
                self.refused(remote, "too slow");
                return;
            }
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let peer = match certificate.map(|der| Peer::from_certificate(der, remote)) {
            Some(Ok(peer)) => Some(Arc::new(peer)),
            Some(Err(error)) => {
                tracing::info!(%remote, reason = %error, "a client was turned away");
                if let Some((metrics, name)) = &self.counted {
                    metrics.handshake_refused(name, "certificate not made for clients, or not readable");
                }
                return;
            }
            // Only where the configuration asks for none; else the handshake has failed already.
            None => None,
        };
        let _open = self.counted.as_ref().map(|(metrics, name)| metrics.connection(name));
        self.requests(stream, remote, peer, tls, stopping).await;
    }

    /// None where the listener was told to stop before the peer has said hello. One that has may send its
    /// request together with the end of the handshake, and gets its answer.
    async fn handshake(
        &self,
        stream: TcpStream,
        config: Arc<ServerConfig>,
        stopping: &mut watch::Receiver<bool>,
    ) -> io::Result<Option<TlsStream<TcpStream>>> {
        stream.set_nodelay(true)?;
        // A peer that has not said hello must not hold a place that a talking one could use.
        let hello = tokio::select! {
            biased;
            hello = LazyConfigAcceptor::new(Acceptor::default(), stream) => hello?,
            () = told_to_stop(stopping) => return Ok(None),
        };
        let _place = self.handshakes.acquire().await.map_err(io::Error::other)?;
        hello.into_stream(config).await.map(Some)
    }

    async fn requests(
        &self,
        stream: TlsStream<TcpStream>,
        remote: SocketAddr,
        peer: Option<Arc<Peer>>,
        mut tls: watch::Receiver<Arc<ServerConfig>>,
        mut stopping: watch::Receiver<bool>,
    ) {
        let limits = &self.limits;
        let activity = Arc::new(Activity::default());
        let service = service_fn(|request: Request<Incoming>| {
            self.call(request, remote, peer.clone(), Arc::clone(&activity))
        });
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.header_timeout)
                .max_headers(limits.max_headers)
                .max_buf_size(limits.max_header_bytes.max(SMALLEST_BUFFER))
                .keep_alive(true)
                .half_close(false)
                .serve_connection(TokioIo::new(stream), service)
        );
        let mut closing = false;
        loop {
            let patience = if closing { limits.header_timeout } else { limits.idle_timeout };
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%remote, reason = ending(&error), "a connection ended early");
                    }
                    return;
                }
                () = told_to_stop(&mut stopping), if !closing => closing = true,
                () = replaced(&mut tls), if !closing => closing = true,
                () = sleep_until(activity.idle_since() + patience) => match activity.is_idle() {
                    // Told to go and silent for a while more: it does not read its answer.
                    Some(idle) if closing && idle >= patience => return,
                    Some(idle) if idle >= patience => closing = true,
                    _ => continue,
                },
            }
            // What has arrived by now is taken up first.
            if std::future::poll_fn(|context| Poll::Ready(connection.as_mut().poll(context))).await.is_ready()
            {
                return;
            }
            // An idle connection closes at once, a busy one after its answer.
            connection.as_mut().graceful_shutdown();
        }
    }

    async fn call(
        &self,
        request: Request<Incoming>,
        remote: SocketAddr,
        peer: Option<Arc<Peer>>,
        activity: Arc<Activity>,
    ) -> Result<Response<Body>, Infallible> {
        let _busy = Busy::start(activity);
        let unread = Arc::new(AtomicBool::new(!request.body().is_end_stream()));
        let mut request = request.map(|body| {
            if body.is_end_stream() {
                return Body::empty();
            }
            let end = Box::pin(sleep(self.limits.body_timeout));
            Body::new(BodyInTime { body, end, unread: Arc::clone(&unread) })
        });
        request.extensions_mut().insert(ConnectInfo(remote));
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        // A router is always ready: it queues nothing.
        let mut response = self.app.clone().call(request).await?;
        let leaving = self.leaving.as_ref().is_some_and(|leaving| *leaving.borrow());
        if leaving || unread.load(Ordering::Acquire) {
            // The rest of the body stands where the next request would: hyper may have to close, and a
            // caller that is not told would send its next request into the void.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

async fn told_to_stop(stopping: &mut watch::Receiver<bool>) {
    // An error means that the listener is gone: stop too.
    let _ = stopping.wait_for(|stop| *stop).await;
}

async fn replaced(tls: &mut watch::Receiver<Arc<ServerConfig>>) {
    if tls.changed().await.is_err() {
        // Nobody can bring a new configuration any more; the one at hand stays.
        std::future::pending::<()>().await;
    }
}

/// Whether a connection is between requests, and since when.
struct Activity {
    in_flight: AtomicUsize,
    since: Mutex<Instant>,
}

impl Default for Activity {
    fn default() -> Self {
        Self { in_flight: AtomicUsize::new(0), since: Mutex::new(Instant::now()) }
    }
}

impl Activity {
    /// The moment from which to count: the last answer, or now while a request is in flight.
    fn idle_since(&self) -> Instant {
        match self.in_flight.load(Ordering::Acquire) {
            0 => *self.since.lock().unwrap_or_else(PoisonError::into_inner),
            _ => Instant::now(),
        }
    }

    /// How long nothing has been in flight.
    fn is_idle(&self) -> Option<Duration> {
        (self.in_flight.load(Ordering::Acquire) == 0).then(|| self.idle_since().elapsed())
    }
}

/// One request in flight, also when its future is dropped half-way.
struct Busy(Arc<Activity>);

impl Busy {
    fn start(activity: Arc<Activity>) -> Self {
        activity.in_flight.fetch_add(1, Ordering::AcqRel);
        Self(activity)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A request's body that must arrive in time.
struct BodyInTime {
    body: Incoming,
    end: Pin<Box<Sleep>>,
    /// Cleared once the last byte was read.
    unread: Arc<AtomicBool>,
}

/// The body did not arrive in time.
#[derive(Debug, thiserror::Error)]
#[error("the request's body did not arrive in time")]
pub struct BodyTooSlow;

impl HttpBody for BodyInTime {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            if frame.is_none() || self.body.is_end_stream() {
                self.unread.store(false, Ordering::Release);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        self.end.as_mut().poll(context).map(|()| Some(Err(BodyTooSlow.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Why a handshake failed, in words that hold nothing of what the peer sent.
fn reason(error: &io::Error) -> &'static str {
    use rustls::Error as Tls;
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
    match tls {
        Some(Tls::NoCertificatesPresented) => "no client certificate",
        Some(Tls::InvalidCertificate(why)) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "certificate not valid yet"
            }
            CertificateError::Revoked => "certificate revoked",
            CertificateError::UnknownIssuer => "certificate of an unknown authority",
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "certificate not made for clients"
            }
            CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => "the revocation list is stale",
            CertificateError::UnknownRevocationStatus => "the revocation list does not cover the authority",
            _ => "certificate not valid",
        },
        Some(Tls::PeerIncompatible(_)) => "no common version or algorithm",
        Some(Tls::AlertReceived(_)) => "the peer refused the server",
        Some(_) => "not a TLS 1.3 handshake",
        None => "the connection broke",
    }
}

/// Why a connection ended, in words that hold nothing of what the peer sent.
fn ending(error: &hyper::Error) -> &'static str {
    if error.is_timeout() {
        "too slow"
    } else if error.is_parse() {
        "not HTTP/1.1, or too large"
    } else if error.is_incomplete_message() {
        "cut off"
    } else {
        "broken"
    }
}

#[cfg(test)]
mod tests;
