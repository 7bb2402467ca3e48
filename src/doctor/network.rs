//! That what must not be reachable is not. A connection is tried and closed again; nothing is sent.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Config;

use super::Line;

const AREA: &str = "network";
/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn examine(config: &Config) -> Vec<Line> {
    let mut lines = Vec::new();
    for address in &config.doctor.forbidden {
        lines.push(match timeout(PATIENCE, TcpStream::connect(address)).await {
            Ok(Ok(_)) => Line::fail(
                AREA,
                format!("{address} can be reached"),
                "a firewall rule: this host goes out to the database and the gateway only",
            ),
            // A firewall that rejects, or the host itself: from here they look the same.
            Ok(Err(error)) => Line::pass(AREA, format!("{address} cannot be reached: {}", error.kind())),
            Err(_) => Line::pass(AREA, format!("{address} does not answer")),
        });
    }
    if lines.is_empty() {
        lines.push(Line::warn(
            AREA,
            "no forbidden addresses are named, so none was tried",
            "doctor.forbidden: one of the office, of the internet, of the merchants' segment",
        ));
    }
    lines
}
