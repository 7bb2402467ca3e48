//! What time brings about: agreements that end, cards that expire, notices that were kept long enough. One
//! process does it, by lease.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::ops::Vault;
use crate::ops::error::OpError;
use crate::store::leases;

use super::{give_back, pause};

/// The lease's name.
const LEASE: &str = "housekeeping";
/// How often a turn is taken.
const EVERY: Duration = Duration::from_secs(60);
/// How long a lease lasts: over the pause between two turns, so that one process keeps it.
const LEASE_TIME: Duration = Duration::from_secs(150);
/// Pages of cards whose expiry is looked at in one turn; the next turn goes on from there.
const PAGES: usize = 20;

/// Runs until told to stop.
pub(super) async fn run(vault: Arc<Vault>, mut stopping: watch::Receiver<bool>) {
    let mut after = String::new();
    while !*stopping.borrow() {
        match turn(&vault, &after).await {
            Ok(next) => after = next,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "housekeeping failed");
            }
        }
        pause(&mut stopping, EVERY).await;
    }
    give_back(&vault, LEASE).await;
}

/// One turn; gives the card after which the next one goes on.
async fn turn(vault: &Vault, after: &str) -> Result<String, OpError> {
    let now = vault.clock.now();
    if !leases::acquire(&vault.db, LEASE, &vault.instance, now, now.plus(LEASE_TIME)).await? {
        return Ok(after.to_owned());
    }
    while vault.end_expired_agreements().await? > 0 {}
    while vault.drop_old_notices().await? > 0 {}
    let mut after = after.to_owned();
    for _ in 0..PAGES {
        match vault.tell_expiring_cards(&after).await? {
            Some(last) => after = last,
            None => return Ok(String::new()),
        }
    }
    Ok(after)
}
