//! Health: `GET /livez` and `GET /readyz` in plain HTTP, for the machine that watches this one. Neither
//! says anything about cards, keys or callers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::ops::Vault;
use crate::ops::error::OpError;

/// How long a caller may take for a request's headers, and the vault for its checks.
const PATIENCE: Duration = Duration::from_secs(5);

/// A bound health listener.
pub struct OpsPlane {
    socket: TcpListener,
}

impl OpsPlane {
    /// Binds the address. Port 0 takes a free one.
    pub async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(address).await? })
    }

    /// The address that was bound.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until the process ends or the task is dropped.
    pub async fn serve(self, vault: Arc<Vault>) {
        let app = Router::new()
            .route("/livez", get(|| async { "ok" }))
            .route("/readyz", get(readyz))
            .with_state(vault);
        loop {
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
                if timeout(2 * PATIENCE, connection).await.is_err() {
                    tracing::debug!("a health request took too long");
                }
            });
        }
    }
}

/// Ready is: the database answers, and the keys open what they seal.
async fn readyz(State(vault): State<Arc<Vault>>) -> (StatusCode, &'static str) {
    match timeout(PATIENCE, vault.check()).await {
        Ok(Ok(())) => (StatusCode::OK, "ready"),
        Ok(Err(OpError::Sealed)) => (StatusCode::SERVICE_UNAVAILABLE, "sealed"),
        Ok(Err(error)) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "not ready");
            (StatusCode::SERVICE_UNAVAILABLE, "not ready")
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    }
}
