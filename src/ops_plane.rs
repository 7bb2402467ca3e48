//! The operators' plane: `GET /livez`, `/readyz` and `/metrics` in plain HTTP, for the machines that watch this
//! one. None says anything about cards, callers or key material.
//!
//! `/livez` touches neither network nor database: a vault whose database is gone is not mended by ending it.

mod ready;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, StatusCode};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::timeout;

use crate::metrics::{CONTENT_TYPE as METRICS, Waiting};
use crate::model::payment::Status;
use crate::ops::Vault;

use ready::{Readiness, Report};

/// How long a caller may take for a request's headers.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the database may take to tell what the metrics ask it.
const SAMPLING: Duration = Duration::from_secs(2);
/// How long what the database told is good.
const SAMPLED: Duration = Duration::from_secs(1);
/// Connections at a time; more wait.
const CONNECTIONS: usize = 32;

/// A bound listener for operators.
pub struct OpsPlane {
    socket: TcpListener,
}

/// What the plane needs.
struct Plane {
    vault: Arc<Vault>,
    readiness: Readiness,
    stopping: watch::Receiver<bool>,
    sampled: Mutex<Sampled>,
}

/// When the database was last asked; and the question, where it is under way.
#[derive(Default)]
struct Sampled {
    at: Option<Instant>,
    asking: Option<tokio::task::JoinHandle<Option<OpenWork>>>,
}

type OpenWork = (Vec<(Status, Waiting)>, Waiting);

impl OpsPlane {
    /// Binds the address. Port 0 takes a free one.
    pub async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(address).await? })
    }

    /// The address that was bound.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until the process ends or the task is dropped. From when `stopping` is true, the vault is not
    /// ready any more.
    pub async fn serve(self, vault: Arc<Vault>, stopping: watch::Receiver<bool>) {
        let readiness = Readiness::new(vault.clone());
        let plane = Arc::new(Plane { vault, readiness, stopping, sampled: Mutex::default() });
        let app = Router::new()
            .route("/livez", get(|| async { "ok" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(plane);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let Ok((stream, _)) = self.socket.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let service = TowerToHyperService::new(app.clone());
            tokio::spawn(async move {
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                if timeout(3 * PATIENCE, connection).await.is_err() {
                    tracing::debug!("an operator's request took too long");
                }
                drop(place);
            });
        }
    }
}

type Answer = (StatusCode, [(HeaderName, &'static str); 2], String);

fn answer(status: StatusCode, kind: &'static str, text: String) -> Answer {
    (status, [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-store")], text)
}

async fn readyz(State(plane): State<Arc<Plane>>) -> Answer {
    let (status, text) = plane.ready().await;
    answer(status, "text/plain; charset=utf-8", text)
}

async fn metrics(State(plane): State<Arc<Plane>>) -> Answer {
    plane.ready().await;
    plane.sample().await;
    match plane.vault.metrics.text() {
        Ok(text) => answer(StatusCode::OK, METRICS, text),
        Err(_) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", String::new()),
    }
}

impl Plane {
    /// `ready`, or which checks fail, in constant words.
    async fn ready(&self) -> (StatusCode, String) {
        let stopping = *self.stopping.borrow();
        let report = self.readiness.look().await;
        for (check, passes) in report.checks() {
            self.vault.metrics.readiness(check.name(), passes);
        }
        self.vault.metrics.readiness("serving", !stopping);
        let unavailable = |text: &str| (StatusCode::SERVICE_UNAVAILABLE, text.to_owned());
        match report {
            _ if stopping => unavailable("stopping"),
            Report::Sealed => unavailable("sealed"),
            Report::Checked(failed) if failed.is_empty() => (StatusCode::OK, "ready".to_owned()),
            Report::Checked(failed) => {
                let names: Vec<&str> = failed.iter().map(|check| check.name()).collect();
                unavailable(&format!("not ready: {}", names.join(", ")))
            }
        }
    }

    /// Brings what is not counted but looked up.
    async fn sample(&self) {
        let vault = &self.vault;
        vault.metrics.memory(vault.slots.len(), &vault.db.pools(), vault.keys.are_closed());
        let (keys, now) = vault.key_facts();
        vault.metrics.keys(&keys, now);
        let mut sampled = self.sampled.lock().await;
        if sampled.at.is_some_and(|at| at.elapsed() < SAMPLED) {
            return;
        }
        let asking = sampled.asking.get_or_insert_with(|| {
            let vault = vault.clone();
            tokio::spawn(async move { vault.open_work().await.ok() })
        });
        // A question that takes longer is not asked a second time beside itself.
        let open = match timeout(SAMPLING, &mut *asking).await {
            Ok(told) => {
                sampled.asking = None;
                told.ok().flatten()
            }
            Err(_) => None,
        };
        sampled.at = Some(Instant::now());
        let open = open.as_ref().map(|(payments, events)| (payments.as_slice(), *events));
        vault.metrics.open_work(open, now);
    }
}
