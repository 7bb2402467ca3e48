//! How fast cards come from another vault, and in how much memory, however many there are. By the command that an
//! operator runs, beside a server, from a pipe.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;

use super::vault::Numbers;
use super::{Ground, say};

/// Imports so many lines: each a card with its buyer's agreement, of other cards each time.
pub async fn measure(ground: &Ground, lines: u64) {
    let mut command = ground.vault.command(&["cards", "import", "--merchant", "acme", "--json", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts");
    let mut pipe = child.stdin.take().expect("a pipe");
    let begin = Instant::now();
    let writing = std::thread::spawn(move || {
        for (number, pan) in (0..lines).zip(Numbers::new()) {
            let line = json!({
                "cardNo": pan, "expiryMonth": "12", "expiryYear": "39", "externalId": format!("old-{number}"),
                "cardholderName": { "firstName": "Tom", "lastName": "Jay" },
                "referenceBuyerId": format!("buyer-{number}"),
                "agreements": [{
                    "type": "UNSCHEDULED", "networkTransactionId": format!("NTI{number}"),
                    "consent": { "acceptedAt": "2025-01-01T00:00:00Z", "textVersion": "v1" },
                }],
            });
            writeln!(pipe, "{line}").expect("it reads on");
        }
    });
    let mut most = 0;
    let status = loop {
        most = most.max(peak_kib(child.id()).unwrap_or_default());
        match child.try_wait().expect("a process") {
            Some(status) => break status,
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert!(status.success() && writing.join().is_ok(), "the import failed");
    let rate = lines as f64 / begin.elapsed().as_secs_f64();
    say(&format!(
        "\n{}: import of {lines} lines, a card and an agreement each: {rate:.0} lines/s, {:.1} MiB at most",
        ground.engine(),
        most as f64 / 1024.0
    ));
}

/// The most memory that a process has had so far.
fn peak_kib(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?.parse().ok()
}
