//! Erases cards whose time is over: a pass over the old ones every ten minutes, in small pieces, by the one
//! process that has the lease. Two at once would harm nobody.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::base::ids::RunId;
use crate::ops::Vault;
use crate::ops::error::OpError;
use crate::ops::retention::BATCH;
use crate::store::leases;
use crate::store::retention::Place;

use super::{give_back, pause};

/// The lease's name.
const LEASE: &str = "retention";
/// The pause between two passes.
const EVERY: Duration = Duration::from_secs(600);
/// How long a lease lasts; it is renewed with each page.
const LEASE_TIME: Duration = Duration::from_secs(900);
/// Cards that are looked at in one query.
const PAGE: i64 = 500;
/// The pause after each query and each transaction, in which others work.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs until told to stop.
pub(super) async fn run(vault: Arc<Vault>, mut stopping: watch::Receiver<bool>) {
    while !*stopping.borrow() {
        if let Err(error) = pass(&vault, &stopping).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cards whose time is over could not be erased"
            );
        }
        pause(&mut stopping, EVERY).await;
    }
    give_back(&vault, LEASE).await;
}

async fn pass(vault: &Vault, stopping: &watch::Receiver<bool>) -> Result<(), OpError> {
    let (run, limits) = (RunId::make()?, vault.policy.retention);
    let mut after = Place::beginning();
    let mut erased = 0;
    while !*stopping.borrow() {
        let now = vault.clock.now();
        if !leases::acquire(&vault.db, LEASE, &vault.instance, now, now.plus(LEASE_TIME)).await? {
            break;
        }
        let page = vault.look_at_cards(limits, None, &after, PAGE).await?;
        for (merchant, cards) in &page.due {
            for batch in cards.chunks(BATCH) {
                if *stopping.borrow() {
                    break;
                }
                erased += vault.erase_old_cards(&run, limits, merchant, batch).await?.len();
                tokio::time::sleep(PAUSE).await;
            }
        }
        match page.next {
            Some(next) => after = next,
            None => break,
        }
        tokio::time::sleep(PAUSE).await;
    }
    if erased > 0 {
        tracing::info!(run = %run, erased, "erased cards whose time was over");
    }
    Ok(())
}
