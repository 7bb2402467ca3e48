//! A signed word about the whole audit trail, every minute, in the log: a copy of it elsewhere tells what a
//! thief of the database has cut off. One process does it, by lease.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::ops::Vault;
use crate::ops::audit::checkpoint;
use crate::ops::error::OpError;
use crate::store::leases;

use super::{give_back, pause};

/// The lease's name.
const LEASE: &str = "checkpoint";
/// How often a checkpoint is made.
const EVERY: Duration = Duration::from_secs(60);
/// How long a lease lasts: over the pause between two turns, so that one process keeps it.
const LEASE_TIME: Duration = Duration::from_secs(90);

/// Runs until told to stop; the last word is about everything that this process could see at its end.
pub(super) async fn run(vault: Arc<Vault>, mut stopping: watch::Receiver<bool>) {
    loop {
        let stop = *stopping.borrow();
        if let Err(error) = turn(&vault).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "no checkpoint of the audit trail was made"
            );
        }
        if stop {
            break;
        }
        pause(&mut stopping, EVERY).await;
    }
    give_back(&vault, LEASE).await;
}

async fn turn(vault: &Vault) -> Result<(), OpError> {
    let now = vault.clock.now();
    if leases::acquire(&vault.db, LEASE, &vault.instance, now, now.plus(LEASE_TIME)).await? {
        let checkpoint = checkpoint(&vault.db, &vault.keys, now).await?;
        tracing::info!(checkpoint, "audit checkpoint");
        vault.metrics.checkpoint(now);
    }
    Ok(())
}
