//! Real TLS over loopback: who is let in, who gets no HTTP byte, and what a slow peer costs others.

use std::net::Ipv4Addr;
use std::sync::atomic::AtomicUsize;

use axum::Extension;
use axum::http::StatusCode;
use axum::routing::{get, post};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::*;
use crate::base::clock::{Clock, Millis, SystemClock};
use crate::base::ids::{ClientName, GatewayAccount, Merchant};
use crate::http::tls::{
    Revocation, RevocationLists, ServerTls, Tls, server_config, server_config_with_revocation,
};
use crate::model::access::{Client, ClientPace, SanName, Scope};
use crate::pki::{Authority, CertifiedPem, LeafOptions, Usage, serial_of};

const CHECKOUT: &str = "spiffe://cardvault/acme/checkout";
const DAY: Duration = Duration::from_secs(86_400);

/// A listener with its authority, its client-facing address and a count of requests that came through.
struct Edge {
    authority: Authority,
    address: SocketAddr,
    served: Arc<AtomicUsize>,
    rules: watch::Sender<Arc<Rules>>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Edge {
    async fn start(limits: Limits) -> Self {
        let authority = Authority::make("clients", SystemClock.now()).unwrap();
        let (rules, source) = watch::channel(by(server_config(&files(&authority)).unwrap()));
        let served = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&served);
        let app = Router::new()
            .route("/", get(|Extension(peer): Extension<Arc<Peer>>| async move { peer.uri_sans.join(",") }))
            .route(
                "/slow",
                get(|| async {
                    sleep(Duration::from_millis(400)).await;
                    "done"
                }),
            )
            .route(
                "/echo",
                post(|body: Body| async move {
                    match axum::body::to_bytes(body, 1024).await {
                        Ok(bytes) => (StatusCode::OK, bytes),
                        Err(_) => (StatusCode::REQUEST_TIMEOUT, Bytes::new()),
                    }
                }),
            )
            .layer(axum::middleware::map_request(move |request: Request<Body>| {
                count.fetch_add(1, Ordering::SeqCst);
                async move { request }
            }));
        let listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
        let address = listener.local_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(listener.serve(source, app, limits, async {
            let _ = stopped.await;
        }));
        Self { authority, address, served, rules, stop: Some(stop), task }
    }

    fn good_client(&self) -> CertifiedPem {
        self.authority.client(CHECKOUT, SystemClock.now(), 1).unwrap()
    }

    async fn connect(&self, client: Option<&CertifiedPem>) -> io::Result<Conversation> {
        self.connect_with(client, &rustls::version::TLS13).await
    }

    async fn connect_with(
        &self,
        client: Option<&CertifiedPem>,
        version: &'static SupportedProtocolVersion,
    ) -> io::Result<Conversation> {
        let stream = TcpStream::connect(self.address).await?;
        let connector = TlsConnector::from(client_config(&self.authority, client, version));
        let name = ServerName::try_from("localhost").unwrap();
        Ok(Conversation { stream: connector.connect(name, stream).await? })
    }

    /// What a client gets for one good request: bytes, or nothing.
    async fn answer(&self, client: Option<&CertifiedPem>) -> Vec<u8> {
        match self.connect(client).await {
            Ok(mut conversation) => {
                let _ = conversation.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
                conversation.rest().await
            }
            Err(_) => Vec::new(),
        }
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }
}

struct Conversation {
    stream: tokio_rustls::client::TlsStream<TcpStream>,
}

impl Conversation {
    async fn send(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(text.as_bytes()).await?;
        self.stream.flush().await
    }

    /// Everything until the server closes, however it does that.
    async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = timeout(Duration::from_secs(20), self.stream.read_to_end(&mut bytes)).await;
        bytes
    }

    /// One answer on a connection that stays open.
    async fn some(&mut self) -> String {
        let mut buffer = [0; 2048];
        let read =
            timeout(Duration::from_secs(10), self.stream.read(&mut buffer)).await.unwrap().unwrap_or(0);
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    }
}

/// Rules with one client: checkout.
fn by(tls: Tls) -> Arc<Rules> {
    let client = Client {
        name: ClientName::parse("checkout").unwrap(),
        san: SanName::Uri(CHECKOUT.to_owned()),
        spki_sha256: None,
        merchant: Merchant::parse("acme").unwrap(),
        account: GatewayAccount::parse("SANDBOX_1").unwrap(),
        scopes: Scope::ALL.into(),
        pace: ClientPace::default(),
    };
    Arc::new(Rules { tls, clients: vec![client].into() })
}

fn files(authority: &Authority) -> ServerTls {
    let server = authority.server(&["localhost", "127.0.0.1"], SystemClock.now(), 1).unwrap();
    ServerTls {
        certificate_pem: server.certificate_pem.into_bytes(),
        private_key_pem: server.private_key_pem.expose().as_bytes().to_vec(),
        client_ca_pem: Some(authority.certificate_pem().as_bytes().to_vec()),
    }
}

fn client_config(
    authority: &Authority,
    client: Option<&CertifiedPem>,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match client {
        None => builder.with_no_client_auth(),
        Some(client) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(client.certificate_pem.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(client.private_key_pem.expose().as_bytes()).unwrap(),
            )
            .unwrap(),
    })
}

fn quick() -> Limits {
    Limits {
        handshake_timeout: Duration::from_millis(400),
        header_timeout: Duration::from_millis(400),
        body_timeout: Duration::from_millis(400),
        idle_timeout: Duration::from_millis(400),
        ..Limits::default()
    }
}

#[tokio::test]
async fn a_good_client_is_served_and_the_handler_sees_its_name() {
    let edge = Edge::start(Limits::default()).await;
    let answer = String::from_utf8(edge.answer(Some(&edge.good_client())).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with(CHECKOUT), "{answer}");
    assert_eq!(edge.served.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn certificates_that_do_not_fit_get_no_http_byte() {
    let edge = Edge::start(Limits::default()).await;
    let now = SystemClock.now();
    let options = LeafOptions {
        uri_sans: vec![CHECKOUT.to_owned()],
        usages: vec![Usage::Client],
        ..LeafOptions::valid_for(now, 1)
    };
    let leaf = |options: LeafOptions| edge.authority.leaf(&options).unwrap();
    let past = Millis(now.0 - i64::try_from(DAY.as_millis()).unwrap());
    let stranger = Authority::make("clients", now).unwrap();
    // An authority's own name and key do not make it a client.
    let authority = CertifiedPem {
        certificate_pem: edge.authority.certificate_pem().to_owned(),
        private_key_pem: edge.authority.private_key_pem(),
    };
    let refused = [
        ("other authority, same name", stranger.leaf(&options).unwrap()),
        (
            "expired",
            leaf(LeafOptions { not_before: past, not_after: Millis(now.0 - 2000), ..options.clone() }),
        ),
        (
            "not yet valid",
            leaf(LeafOptions { not_before: now.plus(DAY), not_after: now.plus(2 * DAY), ..options.clone() }),
        ),
        ("only for servers", leaf(LeafOptions { usages: vec![Usage::Server], ..options.clone() })),
        ("for nothing in particular", leaf(LeafOptions { usages: vec![], ..options.clone() })),
        ("the authority itself", authority),
    ];
    for (what, client) in &refused {
        let answer = edge.answer(Some(client)).await;
        assert!(answer.is_empty(), "{what}: {}", String::from_utf8_lossy(&answer));
    }
    assert!(edge.answer(None).await.is_empty(), "no certificate");
    let both = leaf(LeafOptions { usages: vec![Usage::Client, Usage::Server], ..options });
    assert_eq!(edge.served.load(Ordering::SeqCst), 0);
    assert!(!edge.answer(Some(&both)).await.is_empty(), "for clients and servers");
}

#[tokio::test]
async fn a_certificate_with_anothers_key_gets_no_http_byte() {
    let edge = Edge::start(Limits::default()).await;
    let (one, two) = (edge.good_client(), edge.good_client());
    // rustls refuses to load such a pair, so the client signs with a resolver that does not care.
    let provider = rustls::crypto::ring::default_provider();
    let key = PrivateKeyDer::from_pem_slice(two.private_key_pem.expose().as_bytes()).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(one.certificate_pem.as_bytes()).unwrap()];
    let certified = Arc::new(rustls::sign::CertifiedKey::new(chain, key));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(edge.authority.certificate_pem().as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    let stream = TcpStream::connect(edge.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    if let Ok(stream) = stream {
        let mut conversation = Conversation { stream };
        let _ = conversation.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(conversation.rest().await.is_empty());
    }
    assert_eq!(edge.served.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn tls_1_2_and_plain_http_are_refused() {
    let edge = Edge::start(Limits::default()).await;
    let client = edge.good_client();
    assert!(edge.connect_with(Some(&client), &rustls::version::TLS12).await.is_err());
    let mut plain = TcpStream::connect(edge.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    let _ = plain.read_to_end(&mut bytes).await;
    assert!(!bytes.starts_with(b"HTTP"));
    assert_eq!(edge.served.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn no_session_is_resumed() {
    let edge = Edge::start(Limits::default()).await;
    let client = edge.good_client();
    let config = client_config(&edge.authority, Some(&client), &rustls::version::TLS13);
    for _ in 0..2 {
        let stream = TcpStream::connect(edge.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::clone(&config)).connect(name, stream).await.unwrap();
        let mut conversation = Conversation { stream };
        conversation.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert!(conversation.some().await.contains(CHECKOUT));
        let (_, session) = conversation.stream.get_ref();
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn a_slow_handshake_is_cut() {
    let edge = Edge::start(quick()).await;
    for first in [&b""[..], b"\x16", b"\x16\x03\x01\x01\x00\x01"] {
        let started = Instant::now();
        let mut stream = TcpStream::connect(edge.address).await.unwrap();
        stream.write_all(first).await.unwrap();
        let mut bytes = Vec::new();
        let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut bytes)).await.expect("cut");
        assert!(!bytes.starts_with(b"HTTP") && started.elapsed() < Duration::from_secs(2));
    }
}

#[tokio::test]
async fn slow_headers_and_slow_bodies_are_cut() {
    let edge = Edge::start(Limits { idle_timeout: DAY, ..quick() }).await;
    let client = edge.good_client();
    let post = "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n1234";
    for (what, first) in [("nothing", ""), ("half a header", "GET / HTTP/1.1\r\nhos"), ("half a body", post)]
    {
        let mut conversation = edge.connect(Some(&client)).await.unwrap();
        let started = Instant::now();
        conversation.send(first).await.unwrap();
        let answer = String::from_utf8(conversation.rest().await).unwrap();
        assert!(started.elapsed() < Duration::from_secs(3), "{what}");
        assert!(!answer.contains("200 OK"), "{what}: {answer}");
    }
}

#[tokio::test]
async fn between_two_requests_a_connection_may_lie_for_a_while_and_then_no_longer() {
    let edge = Edge::start(Limits { idle_timeout: Duration::from_millis(400), ..Limits::default() }).await;
    let client = edge.good_client();
    let mut conversation = edge.connect(Some(&client)).await.unwrap();
    for _ in 0..2 {
        conversation.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert!(conversation.some().await.contains("200 OK"));
        sleep(Duration::from_millis(100)).await;
    }
    let started = Instant::now();
    assert!(conversation.rest().await.is_empty());
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_request_that_takes_longer_than_the_idle_timeout_is_answered() {
    let limits = Limits { idle_timeout: Duration::from_millis(100), ..Limits::default() };
    let edge = Edge::start(limits).await;
    let mut conversation = edge.connect(Some(&edge.good_client())).await.unwrap();
    conversation.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(conversation.some().await.contains("200 OK"));
}

#[tokio::test]
async fn a_peer_that_does_not_read_its_answer_is_cut() {
    let authority = Authority::make("clients", SystemClock.now()).unwrap();
    let app = Router::new().route("/", get(|| async { "a".repeat(64 * 1024 * 1024) }));
    let listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    let address = listener.local_addr();
    let tls = server_config(&files(&authority)).unwrap();
    tokio::spawn(listener.serve(tls, app, quick(), std::future::pending()));
    let client = authority.client(CHECKOUT, SystemClock.now(), 1).unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let config = client_config(&authority, Some(&client), &rustls::version::TLS13);
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
    let mut conversation = Conversation { stream };
    conversation.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    sleep(Duration::from_secs(2)).await;
    assert!(conversation.rest().await.len() < 64 * 1024 * 1024);
}

#[tokio::test]
async fn headers_have_a_ceiling() {
    let edge = Edge::start(Limits::default()).await;
    let client = edge.good_client();
    let many = "a: b\r\n".repeat(65);
    let large = format!("a: {}\r\n", "b".repeat(17 * 1024));
    for headers in [many, large] {
        let mut conversation = edge.connect(Some(&client)).await.unwrap();
        let _ = conversation.send(&format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n")).await;
        let answer = String::from_utf8(conversation.rest().await).unwrap();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    assert_eq!(edge.served.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn two_hundred_silent_connections_do_not_keep_a_good_client_out() {
    let edge = Edge::start(Limits::default()).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(edge.address).await.unwrap();
        // Half of them begin a hello and leave it at that.
        if silent.len() % 2 == 0 {
            stream.write_all(b"\x16\x03\x01\x01\x00\x01").await.unwrap();
        }
        silent.push(stream);
    }
    let answer = timeout(Duration::from_secs(2), edge.answer(Some(&edge.good_client()))).await.unwrap();
    assert!(!answer.is_empty());
    drop(silent);
}

/// A peer that says hello, gets the server's part of the handshake, and says nothing more, costs its place alone.
#[tokio::test]
async fn three_hundred_stalled_handshakes_do_not_keep_a_good_client_out() {
    let edge = Edge::start(Limits::default()).await;
    let config = client_config(&edge.authority, None, &rustls::version::TLS13);
    let name = ServerName::try_from("localhost").unwrap();
    let mut hello = Vec::new();
    rustls::ClientConnection::new(config, name).unwrap().write_tls(&mut hello).unwrap();
    let mut stalled = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(edge.address).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        // The server has answered, so that it waits for its peer from now on.
        let mut first = [0; 5];
        let answered = timeout(Duration::from_secs(2), stream.read_exact(&mut first)).await;
        assert!(answered.is_ok_and(|read| read.is_ok()), "stalled {}", stalled.len());
        stalled.push(stream);
    }
    let answer = timeout(Duration::from_secs(2), edge.answer(Some(&edge.good_client()))).await.unwrap();
    assert!(!answer.is_empty());
    drop(stalled);
}

/// A full house: silent connections make room at once, those of clients do not.
#[tokio::test]
async fn past_the_ceiling_silence_makes_room_and_clients_are_waited_for() {
    let edge = Edge::start(Limits { max_connections: 3, ..quick() }).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(edge.address).await.unwrap());
    }
    assert!(!edge.answer(Some(&edge.good_client())).await.is_empty());
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut one = edge.connect(Some(&edge.good_client())).await.unwrap();
        one.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert!(one.some().await.contains("200 OK"));
        open.push(one);
    }
    // They are idle soon, and closed then.
    assert!(!edge.answer(Some(&edge.good_client())).await.is_empty());
}

/// One client's connections, and those with a certificate that is nobody's, have an end of their own.
#[tokio::test]
async fn a_client_cannot_take_the_places_of_others() {
    let edge = Edge::start(Limits { max_per_client: 2, max_strangers: 1, ..Limits::default() }).await;
    let nobody = edge.authority.client("spiffe://cardvault/nobody", SystemClock.now(), 1).unwrap();
    let mut open = Vec::new();
    for (client, places) in [(edge.good_client(), 2), (nobody, 1)] {
        for place in 0..places + 2 {
            let mut one = edge.connect(Some(&client)).await.unwrap();
            let _ = one.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let served = one.some().await.contains("200 OK");
            assert_eq!(served, place < places);
            open.push(one);
        }
    }
    drop(open);
    sleep(Duration::from_millis(200)).await;
    assert!(!edge.answer(Some(&edge.good_client())).await.is_empty(), "places come back");
}

#[tokio::test]
async fn an_address_has_so_many_connections() {
    let edge = Edge::start(Limits { max_per_address: 2, ..Limits::default() }).await;
    let client = edge.good_client();
    let mut open = Vec::new();
    for place in 0..4 {
        // A silent one of the same address makes room; one of a client does not.
        let _silent = TcpStream::connect(edge.address).await.unwrap();
        let served = match edge.connect(Some(&client)).await {
            Ok(mut one) => {
                let _ = one.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
                let served = one.some().await.contains("200 OK");
                open.push(one);
                served
            }
            Err(_) => false,
        };
        assert_eq!(served, place < 2, "{place}");
    }
}

#[tokio::test]
async fn stopping_finishes_what_is_in_flight_and_closes_what_is_idle() {
    let mut edge = Edge::start(Limits { quiet: Duration::from_millis(50), ..Limits::default() }).await;
    let client = edge.good_client();
    let mut idle = edge.connect(Some(&client)).await.unwrap();
    idle.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(idle.some().await.contains("200 OK"));
    let mut fresh = edge.connect(Some(&client)).await.unwrap();
    let _silent = TcpStream::connect(edge.address).await.unwrap();
    let mut busy = edge.connect(Some(&client)).await.unwrap();
    busy.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    sleep(Duration::from_millis(100)).await;
    edge.stop();
    let started = Instant::now();
    assert!(idle.rest().await.is_empty() && fresh.rest().await.is_empty());
    let answer = String::from_utf8(busy.rest().await).unwrap();
    assert!(answer.contains("200 OK") && answer.ends_with("done"), "{answer}");
    (&mut edge.task).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(TcpStream::connect(edge.address).await.is_err());
}

/// A request may be on its way when the listener is told to stop, on a connection that had no answer to tell it so.
#[tokio::test]
async fn what_is_on_its_way_when_it_stops_is_answered() {
    let mut edge = Edge::start(Limits { quiet: Duration::from_secs(10), ..Limits::default() }).await;
    let client = edge.good_client();
    let fresh = edge.connect(Some(&client)).await.unwrap();
    let mut answered = edge.connect(Some(&client)).await.unwrap();
    answered.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(!answered.some().await.contains("connection: close"));
    edge.stop();
    while TcpStream::connect(edge.address).await.is_ok() {
        sleep(Duration::from_millis(1)).await;
    }
    sleep(Duration::from_millis(50)).await;
    for mut one in [fresh, answered] {
        one.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let answer = String::from_utf8(one.rest().await).unwrap();
        assert!(answer.contains("200 OK") && answer.contains("connection: close"), "{answer}");
    }
    (&mut edge.task).await.unwrap();
}

#[tokio::test]
async fn the_grace_has_an_end() {
    let mut edge =
        Edge::start(Limits { shutdown_grace: Duration::from_millis(50), ..Limits::default() }).await;
    let mut busy = edge.connect(Some(&edge.good_client())).await.unwrap();
    busy.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    sleep(Duration::from_millis(50)).await;
    edge.stop();
    timeout(Duration::from_millis(300), &mut edge.task).await.expect("stopped").unwrap();
}

#[tokio::test]
async fn a_revoked_client_is_refused_and_its_open_connection_ends() {
    let edge = Edge::start(Limits::default()).await;
    let (revoked, other) = (edge.good_client(), edge.good_client());
    let mut open = edge.connect(Some(&revoked)).await.unwrap();
    open.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(open.some().await.contains("200 OK"));
    let serial = serial_of(&revoked.certificate_pem).unwrap();
    let list = edge.authority.revocation_list(&[serial], SystemClock.now(), 1).unwrap();
    let config = server_config_with_revocation(&files(&edge.authority), list.as_bytes()).unwrap();
    edge.rules.send_replace(by(config));
    assert!(timeout(Duration::from_secs(2), open.rest()).await.unwrap().is_empty());
    assert!(edge.answer(Some(&revoked)).await.is_empty());
    assert!(!edge.answer(Some(&other)).await.is_empty());
}

/// What does not concern a connection leaves it open: a renewed certificate of the server, a list that does
/// not name its client, and lists that cannot be had any more, which let nobody new in.
#[tokio::test]
async fn an_open_connection_stays_where_the_new_rules_let_it_in() {
    let edge = Edge::start(Limits::default()).await;
    let (client, revoked) = (edge.good_client(), edge.good_client());
    let serial = serial_of(&revoked.certificate_pem).unwrap();
    let list = edge.authority.revocation_list(&[serial], SystemClock.now(), 1).unwrap();
    let files = files(&edge.authority);
    let mut open = edge.connect(Some(&client)).await.unwrap();
    let lists = RevocationLists::read(&[list.as_bytes()]).unwrap();
    let with_list = server_config_with_revocation(&files, list.as_bytes()).unwrap();
    let closed = Tls::new(&files, Revocation::Closed, Revocation::Lists(&lists)).unwrap();
    for (tls, lets_in) in [(server_config(&files).unwrap(), true), (with_list, true), (closed, false)] {
        edge.rules.send_replace(by(tls));
        sleep(Duration::from_millis(50)).await;
        open.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert!(open.some().await.contains("200 OK"));
        assert_eq!(!edge.answer(Some(&client)).await.is_empty(), lets_in);
    }
    // A client that is taken out.
    let nobody = Rules { tls: server_config(&files).unwrap(), clients: Vec::new().into() };
    edge.rules.send_replace(Arc::new(nobody));
    assert!(timeout(Duration::from_secs(2), open.rest()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_stale_or_foreign_revocation_list_refuses_everybody() {
    let edge = Edge::start(Limits::default()).await;
    let client = edge.good_client();
    let long_ago = Millis(SystemClock.now().0 - i64::try_from((9 * DAY).as_millis()).unwrap());
    let stale = edge.authority.revocation_list(&[], long_ago, 1).unwrap();
    let foreign = Authority::make("stranger", SystemClock.now()).unwrap();
    let foreign = foreign.revocation_list(&[], SystemClock.now(), 1).unwrap();
    for list in [stale, foreign] {
        let config = server_config_with_revocation(&files(&edge.authority), list.as_bytes()).unwrap();
        edge.rules.send_replace(by(config));
        assert!(edge.answer(Some(&client)).await.is_empty());
    }
}

#[tokio::test]
async fn a_panic_ends_one_connection_and_not_the_listener() {
    let authority = Authority::make("clients", SystemClock.now()).unwrap();
    let app = Router::new().route(
        "/",
        get(|| async {
            if true {
                panic!("planned")
            }
        }),
    );
    let listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    let address = listener.local_addr();
    let tls = server_config(&files(&authority)).unwrap();
    tokio::spawn(listener.serve(tls, app, Limits::default(), std::future::pending()));
    let client = authority.client(CHECKOUT, SystemClock.now(), 1).unwrap();
    for _ in 0..3 {
        let stream = TcpStream::connect(address).await.unwrap();
        let config = client_config(&authority, Some(&client), &rustls::version::TLS13);
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
        let mut conversation = Conversation { stream };
        conversation.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert!(conversation.rest().await.is_empty());
    }
}

#[tokio::test]
async fn a_listener_that_asks_for_no_client_gives_the_address_and_no_peer() {
    let authority = Authority::make("clients", SystemClock.now()).unwrap();
    let app = Router::new().route(
        "/",
        get(|ConnectInfo(remote): ConnectInfo<SocketAddr>, peer: Option<Extension<Arc<Peer>>>| async move {
            format!("{} {}", remote.ip(), peer.is_some())
        }),
    );
    let listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    let address = listener.local_addr();
    let tls = server_config(&ServerTls { client_ca_pem: None, ..files(&authority) }).unwrap();
    tokio::spawn(listener.serve(tls, app, Limits::default(), std::future::pending()));
    let stream = TcpStream::connect(address).await.unwrap();
    let config = client_config(&authority, None, &rustls::version::TLS13);
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
    let mut conversation = Conversation { stream };
    conversation.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(conversation.some().await.ends_with("127.0.0.1 false"));
}
