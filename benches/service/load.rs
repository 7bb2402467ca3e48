//! Load in a closed loop: so many keep-alive connections over mutual TLS, each sending its next request when
//! it has read the answer to the last. HTTP is written and read by hand, so that little of the machine goes
//! into asking.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::cpu::Watched;

/// Where requests go.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    tls: Arc<ClientConfig>,
}

impl Target {
    /// A server of the authority in `dir`, called with the certificate of one of `init`'s clients.
    pub fn new(dir: &Path, client: &str, address: SocketAddr) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(dir.join("pki/ca.pem")).expect("PEM")).expect("an authority");
        let chain = CertificateDer::pem_file_iter(dir.join(format!("pki/clients/{client}.pem")))
            .expect("PEM")
            .map(|one| one.expect("PEM"))
            .collect();
        let key = PrivateKeyDer::from_pem_file(dir.join(format!("pki/clients/{client}.key"))).expect("PEM");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .expect("a certificate and its key");
        Self { address, tls: Arc::new(tls) }
    }

    /// Opens a connection.
    pub async fn connect(&self) -> io::Result<Connection> {
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        let stream = TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        Ok(Connection { stream, read: Vec::with_capacity(16 * 1024) })
    }
}

/// One keep-alive connection.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    read: Vec<u8>,
}

impl Connection {
    /// Sends one request and reads its answer: status, and the whole text.
    pub async fn ask(&mut self, request: &[u8]) -> io::Result<(u16, &[u8])> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        self.read.clear();
        loop {
            if let Some(whole) = length(&self.read)
                && self.read.len() >= whole
            {
                let status = self.read.get(9..12).and_then(|text| std::str::from_utf8(text).ok());
                let status = status.and_then(|text| text.parse().ok()).unwrap_or(0);
                return Ok((status, &self.read));
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// How long an answer is, once its headers are there.
pub fn length(read: &[u8]) -> Option<usize> {
    let head = read.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&read[..head]).ok()?;
    let body = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    Some(head + body.unwrap_or(0))
}

/// A request with a JSON body, or without a body.
pub fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = if body.is_empty() {
        String::new()
    } else {
        format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len())
    };
    format!("{method} {path} HTTP/1.1\r\nhost: vault\r\n{headers}{length}\r\n{body}").into_bytes()
}

/// How long a run is, and by how many.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub connections: usize,
    pub warm: Duration,
    pub measured: Duration,
    /// How long each connection waits after an answer.
    pub pause: Duration,
}

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Requests a second.
    pub rate: f64,
    /// Milliseconds: median, 99 and 99.9 in a hundred.
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    /// CPU milliseconds a request, of each watched program.
    pub cpu: Vec<f64>,
}

/// Loads a target with what `next` makes, until the time is over or there is no more. Every answer must have
/// a status below 300 and hold `wanted`.
pub async fn run(
    target: &Target,
    shape: Shape,
    watched: &[Watched],
    wanted: &'static str,
    next: impl FnMut() -> Option<Vec<u8>> + 'static,
) -> Figures {
    let next = Rc::new(std::cell::RefCell::new(next));
    let mut open = Vec::with_capacity(shape.connections);
    for _ in 0..shape.connections {
        open.push(target.connect().await.expect("a connection"));
    }
    let begin = Instant::now() + shape.warm;
    let end = begin + shape.measured;
    let local = tokio::task::LocalSet::new();
    let workers: Vec<_> = open
        .into_iter()
        .map(|mut connection| {
            let next = Rc::clone(&next);
            local.spawn_local(async move {
                let mut times: Vec<u32> = Vec::with_capacity(4096);
                let mut last = begin;
                loop {
                    let now = Instant::now();
                    if now >= end {
                        break;
                    }
                    let Some(request) = next.borrow_mut()() else { break };
                    let sent = Instant::now();
                    let (status, text) = connection.ask(&request).await.expect("an answer");
                    let good = (200..300).contains(&status)
                        && (wanted.is_empty()
                            || text.windows(wanted.len()).any(|it| it == wanted.as_bytes()));
                    assert!(good, "{status}: {}", String::from_utf8_lossy(text));
                    let read = Instant::now();
                    if sent >= begin && read <= end {
                        times.push(u32::try_from((read - sent).as_micros()).unwrap_or(u32::MAX));
                        last = read;
                    }
                    if !shape.pause.is_zero() {
                        tokio::time::sleep(shape.pause).await;
                    }
                }
                (times, last)
            })
        })
        .collect();
    local
        .run_until(async {
            tokio::time::sleep_until(begin.into()).await;
            let before: Vec<Duration> = watched.iter().map(|one| one.used()).collect();
            let mut times = Vec::new();
            let mut last = begin;
            for worker in workers {
                let (mine, mine_last) = worker.await.expect("a worker");
                times.extend(mine);
                last = last.max(mine_last);
            }
            let used = watched.iter().zip(before).map(|(one, before)| one.used() - before);
            let cpu: Vec<f64> = used.map(|used| used.as_secs_f64() * 1e3 / times.len() as f64).collect();
            figures(times, last - begin, cpu)
        })
        .await
}

fn figures(mut times: Vec<u32>, took: Duration, cpu: Vec<f64>) -> Figures {
    assert!(!times.is_empty(), "nothing was answered in time");
    times.sort_unstable();
    let at = |part: usize| f64::from(times[(times.len() - 1) * part / 1000]) / 1e3;
    Figures { rate: times.len() as f64 / took.as_secs_f64(), p50: at(500), p99: at(990), p999: at(999), cpu }
}

/// The median of each figure over some runs.
pub fn median(runs: &[Figures]) -> Figures {
    let of = |figure: &dyn Fn(&Figures) -> f64| middle(runs.iter().map(figure).collect());
    let watched = runs.first().map_or(0, |run| run.cpu.len());
    Figures {
        rate: of(&|run| run.rate),
        p50: of(&|run| run.p50),
        p99: of(&|run| run.p99),
        p999: of(&|run| run.p999),
        cpu: (0..watched).map(|place| of(&|run| run.cpu[place])).collect(),
    }
}

/// The median; of an even number, the mean of the two in the middle.
pub fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
    f64::midpoint(at(values.len().saturating_sub(1) / 2), at(values.len() / 2))
}
