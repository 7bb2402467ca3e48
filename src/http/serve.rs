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
use axum::http::header::{CONNECTION, TRANSFER_ENCODING};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::Acceptor;
use rustls::{CertificateError, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tower::Service;

use super::admission::{RuleSource, Rules, Standing, changed};
use super::peer::Peer;
use super::sparing::{Sparing, with_others};
use crate::metrics::Metrics;
use crate::model::audit::{Actor, Entry};
use crate::ops::audit::Audit;

mod places;

use places::{Asked, Place, Places};

/// Smallest buffer that hyper takes.
const SMALLEST_BUFFER: usize = 8 * 1024;
/// Lines of log, in a second, about peers that were turned away.
const LINES_A_SECOND: u32 = 20;
/// Rows of the audit trail, in a second, about strangers that were turned away.
pub const ROWS_A_SECOND: u32 = 2;
/// Most certificates that a client may show, and most bytes of them: its own and a few authorities between.
const MAX_CHAIN: usize = 6;
const MAX_CHAIN_BYTES: usize = 16 * 1024;
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
    /// How long after its handshake, or its last answer, a connection may bring a request though the listener is told
    /// to stop: no answer has told its caller to bring none.
    pub quiet: Duration,
    /// How long requests in flight may take to finish once the listener is told to stop.
    pub shutdown_grace: Duration,
    /// Open connections, those in their handshake included. One more takes the place of the one that has
    /// been longest without showing a certificate; where all have shown one, it waits in the kernel's queue.
    pub max_connections: usize,
    /// Open connections from one address. One more is closed, unless one of them has shown no certificate.
    pub max_per_address: usize,
    /// Open connections of one client. One more is closed after its handshake.
    pub max_per_client: usize,
    /// Open connections with a good certificate that is no client's, together.
    pub max_strangers: usize,
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
            quiet: Duration::from_secs(1),
            shutdown_grace: Duration::from_secs(30),
            max_connections: 1024,
            max_per_address: 768,
            max_per_client: 512,
            max_strangers: 64,
            max_headers: 64,
            max_header_bytes: 16 * 1024,
        }
    }
}

/// A bound socket, not yet served: its address is known before the first request can come.
pub struct Listener {
    socket: TcpListener,
    local: SocketAddr,
    counted: Option<(Arc<Metrics>, &'static str)>,
    leaving: Option<watch::Receiver<bool>>,
    audit: Option<Arc<Audit>>,
}

impl Listener {
    /// Binds the address. Port 0 takes a free one.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let local = socket.local_addr()?;
        Ok(Self { socket, local, counted: None, leaving: None, audit: None })
    }

    /// Counts connections under this name.
    pub fn counted(self, metrics: Arc<Metrics>, name: &'static str) -> Self {
        Self { counted: Some((metrics, name)), ..self }
    }

    /// Records there who was turned away for his certificate, or for having none.
    pub fn audited(self, audit: Arc<Audit>) -> Self {
        Self { audit: Some(audit), ..self }
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

    /// Serves `app` over TLS until `shutdown`; then accepts no more, closes connections once they have been
    /// idle for [`Limits::quiet`], and returns when the requests in flight are done or the grace is over. Each
    /// request carries a `ConnectInfo<SocketAddr>` and, where clients have certificates, an `Arc<Peer>` and
    /// the connection's `Arc<Standing>` as extensions. When the rules change, connections that they do not
    /// let in any more end with the request that they are in.
    pub async fn serve(
        self,
        rules: impl Into<RuleSource>,
        app: Router,
        limits: Limits,
        shutdown: impl Future<Output = ()>,
    ) {
        let places = Arc::new(Places::new(&limits));
        let (stop, stopping) = watch::channel(false);
        let shared = Arc::new(Shared {
            rules: rules.into(),
            app,
            stopping,
            limits,
            counted: self.counted,
            leaving: self.leaving,
            log: Sparing::new(LINES_A_SECOND),
            rows: Sparing::new(ROWS_A_SECOND),
            audit: self.audit,
        });
        let mut tasks = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            while let Some(ended) = tasks.try_join_next() {
                report(ended);
            }
            let (stream, remote, place) = tokio::select! {
                biased;
                () = &mut shutdown => break,
                accepted = accept(&self.socket, &places, &shared.log) => accepted,
            };
            let shared = Arc::clone(&shared);
            tasks.spawn(async move { shared.connection(stream, remote, place).await });
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

/// The next connection and its place. Never fails: what goes wrong with one accept is over with the
/// next, or with the pause.
async fn accept(socket: &TcpListener, places: &Arc<Places>, log: &Sparing) -> (TcpStream, SocketAddr, Place) {
    let mut pause = ACCEPT_PAUSE.0;
    loop {
        match socket.accept().await {
            Ok((stream, remote)) => loop {
                match places.ask(remote.ip()) {
                    Asked::Given(place) => return (stream, remote, place),
                    Asked::TooMany => {
                        closed(log, remote, "too many from its address");
                        break;
                    }
                    Asked::Full => places.freed().await,
                }
            },
            Err(error) if belongs_to_one_peer(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted at the moment");
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
    rules: RuleSource,
    app: Router,
    stopping: watch::Receiver<bool>,
    limits: Limits,
    counted: Option<(Arc<Metrics>, &'static str)>,
    leaving: Option<watch::Receiver<bool>>,
    /// Tells the log, and the trail, of peers that were turned away.
    log: Sparing,
    rows: Sparing,
    audit: Option<Arc<Audit>>,
}

/// Logs peers that were turned away.
fn closed(log: &Sparing, remote: SocketAddr, reason: &str) {
    if let Some(left_out) = log.say() {
        tracing::info!(%remote, reason, left_out, "a connection was closed before its first request");
    }
}

impl Shared {
    fn refused(&self, remote: SocketAddr, reason: &'static str) {
        closed(&self.log, remote, reason);
        self.count_refused(reason);
    }

    /// Turns away who cannot show that he may come in (PCI DSS 10.2.1.4).
    fn denied(&self, remote: SocketAddr, reason: &'static str) {
        self.refused(remote, reason);
        if let (Some(audit), Some(left_out)) = (&self.audit, self.rows.say()) {
            let refused = Entry::refused("connection", with_others(reason, left_out));
            audit.note_soon(Actor::unknown(Some(remote.ip())), refused);
        }
    }

    fn count_refused(&self, reason: &'static str) {
        if let Some((metrics, name)) = &self.counted {
            metrics.handshake_refused(name, reason);
        }
    }

    async fn connection(&self, stream: TcpStream, remote: SocketAddr, mut place: Place) {
        let mut stopping = self.stopping.clone();
        let mut rules = self.rules.current.clone();
        let config = Arc::clone(&rules.borrow_and_update().tls.config);
        let handshake = self.handshake(stream, config, &mut stopping);
        let handshake = tokio::select! {
            result = timeout(self.limits.handshake_timeout, handshake) => result,
            () = place.needed() => {
                tracing::debug!(%remote, "a silent connection made room for another");
                return;
            }
        };
        let stream = match handshake {
            Ok(Ok(Some(stream))) => stream,
            Ok(Ok(None)) => return,
            Ok(Err(error)) if is_denial(&error) => {
                self.denied(remote, reason(&error));
                return;
            }
            Ok(Err(error)) => {
                self.refused(remote, reason(&error));
                return;
            }
            Err(_) => {
                self.refused(remote, "too slow a handshake");
                return;
            }
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        if chain.len() > MAX_CHAIN || chain.iter().map(|one| one.len()).sum::<usize>() > MAX_CHAIN_BYTES {
            self.denied(remote, "too long a chain of certificates");
            return;
        }
        let standing = match chain.first().map(|leaf| Peer::from_certificate(leaf, remote)) {
            Some(Ok(peer)) => {
                let peer = Arc::new(peer);
                let client = rules.borrow().clients.name(&peer);
                if !place.keep(client) {
                    self.refused(remote, "too many of its client");
                    return;
                }
                Some((Arc::clone(&peer), Arc::new(Standing::new(peer, chain, rules.clone()))))
            }
            Some(Err(error)) => {
                tracing::debug!(%remote, %error, "a certificate is of no use");
                self.denied(remote, "certificate not made for clients, or not readable");
                return;
            }
            // Only where the configuration asks for none; else the handshake has failed already.
            None => None,
        };
        let _open = self.counted.as_ref().map(|(metrics, name)| metrics.connection(name));
        tokio::select! {
            () = self.requests(stream, remote, standing, rules, stopping) => {}
            // Only where clients show no certificate.
            () = place.needed() => tracing::debug!(%remote, "a connection made room for another"),
        }
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
        let hello = tokio::select! {
            biased;
            hello = LazyConfigAcceptor::new(Acceptor::default(), stream) => hello?,
            () = told_to_stop(stopping) => return Ok(None),
        };
        // As many compute at once as the runtime has threads. There is no other count of them: what waits for its
        // peer would stand in it, and a peer that says no more after its hello would keep others out.
        hello.into_stream(config).await.map(Some)
    }

    async fn requests(
        &self,
        stream: TlsStream<TcpStream>,
        remote: SocketAddr,
        peer: Option<(Arc<Peer>, Arc<Standing>)>,
        mut rules: watch::Receiver<Arc<Rules>>,
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
                () = stopped_and_quiet(&mut stopping, &activity, limits.quiet), if !closing => closing = true,
                () = changed(&mut rules), if !closing => match &peer {
                    Some((_, standing)) if !standing.may_stay() => closing = true,
                    _ => continue,
                },
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
        peer: Option<(Arc<Peer>, Arc<Standing>)>,
        activity: Arc<Activity>,
    ) -> Result<Response<Body>, Infallible> {
        let _busy = Busy::start(activity);
        // A body in chunks may have come with a length too, which somebody before us may have believed: what
        // follows it is not read as a request (RFC 9112, 6.1).
        let in_chunks = request.headers().contains_key(TRANSFER_ENCODING);
        let unread = Arc::new(AtomicBool::new(!request.body().is_end_stream()));
        let mut request = request.map(|body| {
            if body.is_end_stream() {
                return Body::empty();
            }
            let end = Box::pin(sleep(self.limits.body_timeout));
            Body::new(BodyInTime { body, end, unread: Arc::clone(&unread) })
        });
        request.extensions_mut().insert(ConnectInfo(remote));
        let standing = peer.as_ref().map(|(_, standing)| Arc::clone(standing));
        if let Some((peer, standing)) = peer {
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(standing);
        }
        // A router is always ready: it queues nothing.
        let mut response = self.app.clone().call(request).await?;
        let told = |by: &watch::Receiver<bool>| *by.borrow();
        let leaving = self.leaving.as_ref().is_some_and(told) || told(&self.stopping);
        if leaving || in_chunks || standing.is_some_and(|standing| !standing.is_good()) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if unread.load(Ordering::Acquire) {
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

/// Told to stop, and idle for so long.
async fn stopped_and_quiet(stopping: &mut watch::Receiver<bool>, activity: &Activity, quiet: Duration) {
    told_to_stop(stopping).await;
    sleep_until(activity.idle_since() + quiet).await;
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

/// Whether a handshake failed for who the peer is, or is not.
fn is_denial(error: &io::Error) -> bool {
    use rustls::Error as Tls;
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
    matches!(tls, Some(Tls::NoCertificatesPresented | Tls::InvalidCertificate(_)))
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
            CertificateError::UnknownRevocationStatus => "no revocation list tells of the certificate",
            _ => "certificate not valid",
        },
        Some(Tls::PeerIncompatible(_)) => "no common version or algorithm",
        Some(Tls::AlertReceived(_)) => "the peer refused the server",
        Some(_) => "not a TLS 1.3 handshake",
        None => "the connection broke in the handshake",
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
