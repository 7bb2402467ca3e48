//! `cardvault keys status`

use serde_json::{Value, json};

use crate::app::gateway_keys;
use crate::base::clock::Millis;
use crate::crypto::keyring::Purpose;
use crate::ops::keys::rotation_of;
use crate::ops::rotation::status::{KeyStatus, Status};

use super::Common;

const DAY_MS: i64 = 24 * 3600 * 1000;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let (config, admin) = super::admin(&args.common).await?;
    let status = admin.status().await?;
    admin.db.close().await;
    let gateway = gateway_keys(&config);
    if args.json {
        println!("{}", as_json(&status, &gateway));
        return Ok(());
    }
    print_keys(&status);
    if !gateway.is_empty() {
        println!("\n{:<16} {:<8} {:<8} {:<9} KEY", "GATEWAY", "KIND", "VERSION", "STATE");
    }
    for key in &gateway {
        let state = if key.signs { "signs" } else { "accepted" };
        println!("{:<16} {:<8} {:<8} {:<9} {}", key.gateway, key.kind, key.version, state, key.shown());
    }
    println!("\n{} running servers, at epoch {} of the keys", status.servers.len(), status.epoch);
    for server in &status.servers {
        let behind = if server.epoch == status.epoch { "" } else { ", which has not followed yet" };
        let ago = (status.now.0 - server.seen_at.0).max(0) / 1000;
        println!("  {} on {}, alive {ago} s ago{behind}", server.instance, server.host);
    }
    for (key, standing) in status.due() {
        let command = Purpose::parse(&key.purpose).map_or("keys rotate kek", rotation_of);
        println!("WARNING {}: {}; run `cardvault {command}`", key.id, standing.words());
    }
    Ok(())
}

fn print_keys(status: &Status) {
    println!(
        "{:<12} {:<13} {:<37} {:>5} {:>7} {:>11} {:>10}  KEPT",
        "PURPOSE", "STATE", "KEY", "AGE d", "LEFT d", "USES", "ROWS"
    );
    for key in &status.keys {
        let uses = key.uses.map(|uses| uses.to_string()).unwrap_or_default();
        println!(
            "{:<12} {:<13} {:<37} {:>5} {:>7} {:>11} {:>10}  {}",
            key.purpose,
            key.state,
            key.id,
            days(key.created, status.now),
            days(status.now, key.expires),
            uses,
            key.rows,
            key.kept
        );
    }
}

fn days(from: Millis, to: Millis) -> i64 {
    to.0.saturating_sub(from.0) / DAY_MS
}

fn as_json(status: &Status, gateway: &[crate::app::GatewayKey]) -> Value {
    let key = |key: &KeyStatus| {
        json!({
            "key": key.id, "purpose": key.purpose, "state": key.state, "kept": key.kept,
            "createdAt": key.created.rfc3339(), "expiresAt": key.expires.rfc3339(),
            "uses": key.uses, "usesAllowed": key.budget, "rows": key.rows,
            "warning": key.standing.filter(|standing| standing.is_due()).map(|standing| standing.words()),
            "seals": key.standing.map(|standing| standing.may_seal()),
        })
    };
    let server = |server: &crate::store::replicas::Replica| {
        json!({
            "instance": server.instance.as_str(), "host": server.host, "seenAt": server.seen_at.rfc3339(),
            "epoch": server.epoch, "openedKek": server.opened_kek,
        })
    };
    let gateway_key = |key: &crate::app::GatewayKey| {
        json!({
            "gateway": key.gateway, "kind": key.kind, "version": key.version, "signs": key.signs,
            "sha256": key.sha256, "fault": key.fault,
        })
    };
    json!({
        "epoch": status.epoch,
        "keys": status.keys.iter().map(key).collect::<Vec<_>>(),
        "gatewayKeys": gateway.iter().map(gateway_key).collect::<Vec<_>>(),
        "servers": status.servers.iter().map(server).collect::<Vec<_>>(),
    })
}
