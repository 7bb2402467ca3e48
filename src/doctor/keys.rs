//! Keys: that the keyring can be used, that it opens what the database has, and how long the keys seal.

use std::sync::Arc;

use crate::app::{gateway_keys, keks};
use crate::base::clock::{SharedClock, SystemClock};
use crate::config::Config;
use crate::metrics::KeyFacts;
use crate::ops::keys::{DataKeys, DataKeysError};
use crate::store::backend::Db;

use super::Line;
use super::database::options;

const AREA: &str = "keys";

pub(super) async fn examine(config: &Config) -> Vec<Line> {
    let mut lines = Vec::new();
    for key in gateway_keys(config) {
        let name = format!("gateway {}: {} key {}", key.gateway, key.kind, key.version);
        lines.push(match &key.fault {
            None => Line::pass(AREA, format!("{name} can be read")),
            Some(fault) => Line::fail(
                AREA,
                format!("{name}: {fault}"),
                "PEM, or the dashboard's one line of base64; 0600 if it is private",
            ),
        });
    }
    let keks = match keks(config) {
        Ok(keks) => Arc::new(keks),
        Err(error) => {
            lines.push(Line::fail(AREA, format!("{error:#}"), "keys.example describes the file"));
            return lines;
        }
    };
    let clock: SharedClock = Arc::new(SystemClock);
    let Ok(db) = Db::open_to_look(&options(config)).await else { return lines };
    match DataKeys::closed(db.clone(), keks, &clock, config.keys.policy()) {
        Ok(keys) => lines.extend(open(&keys, &clock).await),
        Err(error) => lines.push(Line::fail(AREA, error.to_string(), "cardvault keys status")),
    }
    db.close().await;
    lines
}

async fn open(keys: &DataKeys, clock: &SharedClock) -> Vec<Line> {
    match keys.open_only().await {
        Ok(()) => {}
        // What is wrong with the database is told where it is looked at.
        Err(DataKeysError::Store(_)) => return Vec::new(),
        Err(error) if error.sealed().is_some() => {
            return vec![Line::warn(
                AREA,
                "the key-encryption key is split: whether it opens the data keys is seen at the next start",
                "have the custodians at hand: cardvault keys unseal",
            )];
        }
        Err(error) => {
            return vec![Line::fail(
                AREA,
                error.to_string(),
                "the keyring and the database must belong together; `cardvault migrate` for a new database",
            )];
        }
    }
    let facts = keys.facts();
    if facts.iter().all(|key| key.purpose == "kek") {
        return vec![Line::warn(AREA, "the database has no data keys yet", "the first start makes them")];
    }
    let mut lines = vec![Line::pass(AREA, "the keyring opens every data key")];
    lines.extend(facts.iter().map(|key| judge(key, clock.now().0)));
    lines
}

fn judge(key: &KeyFacts, now: i64) -> Line {
    let days = key.expires.0.saturating_sub(now) / (24 * 3600 * 1000);
    let told = format!("the {} key seals for {days} days more", key.purpose);
    match (key.seals, key.due) {
        (true, false) => Line::pass(AREA, told),
        (true, true) => Line::warn(
            AREA,
            format!("{told}, or few uses more"),
            "rotate it: `cardvault keys status` names the command",
        ),
        (false, _) => Line::fail(
            AREA,
            format!("the {} key seals nothing more", key.purpose),
            "rotate it: `cardvault keys status` names the command",
        ),
    }
}
