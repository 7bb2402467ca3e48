//! Numbers those committed events that were written without a number, so that the feed shows them. One process
//! does it, by lease; another takes over when the lease is over. Nothing is in memory that a crash could lose:
//! what is not numbered yet stands in the table.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::base::clock::{Millis, SharedClock};
use crate::base::ids::InstanceId;
use crate::ops::Vault;
use crate::store::backend::{Db, StoreError};
use crate::store::{events, leases};

/// The lease's name.
pub const LEASE: &str = "event-sequencer";
/// How long a lease lasts without being renewed: how long the feed stands still when its sequencer dies.
pub const LEASE_TIME: Duration = Duration::from_secs(10);
/// Most events of a merchant that are numbered in one transaction.
const BATCH: i64 = 500;
/// How often committed events are looked for that rang no bell here (another process wrote them).
const LOOK: Duration = Duration::from_millis(250);
/// The pause after a turn that numbered something.
const GATHER: Duration = Duration::from_millis(25);
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// No event waits.
    Idle,
    /// Another process has the lease.
    Elsewhere,
    /// So many events were numbered; more may wait.
    Numbered(u64),
}

/// The sequencer of one process.
pub struct Sequencer {
    db: Db,
    owner: InstanceId,
    clock: SharedClock,
    held_until: Option<Millis>,
}

impl Sequencer {
    /// A sequencer that holds no lease yet.
    pub fn new(db: Db, owner: InstanceId, clock: SharedClock) -> Self {
        Self { db, owner, clock, held_until: None }
    }

    /// Numbers what waits, a bounded number of events for each merchant. Only reads where nothing waits.
    pub async fn run_once(&mut self) -> Result<Turn, StoreError> {
        let waiting = events::list_waiting(&self.db).await?;
        if waiting.is_empty() {
            return Ok(Turn::Idle);
        }
        if !self.hold_lease().await? {
            return Ok(Turn::Elsewhere);
        }
        events::sequence_batch(&self.db, &waiting, BATCH).await.map(Turn::Numbered)
    }

    /// Takes the lease, or renews it in its second half: a write for each turn would be waste.
    async fn hold_lease(&mut self) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let until = now.plus(LEASE_TIME);
        let held = match self.held_until {
            Some(end) if now.plus(LEASE_TIME / 2) < end => return Ok(true),
            Some(end) if now < end => leases::renew(&self.db, LEASE, &self.owner, until).await?,
            _ => leases::acquire(&self.db, LEASE, &self.owner, now, until).await?,
        };
        self.held_until = held.then_some(until);
        Ok(held)
    }

    /// Gives the lease back, so that another process goes on at once.
    pub async fn release(self) -> Result<(), StoreError> {
        if self.held_until.is_some() {
            leases::release(&self.db, LEASE, &self.owner).await?;
        }
        Ok(())
    }
}

/// Runs until told to stop.
pub(super) async fn run(vault: Arc<Vault>, mut stopping: watch::Receiver<bool>) {
    if vault.db.is_sqlite() {
        // Events are numbered where they are written.
        return;
    }
    let mut sequencer = Sequencer::new(vault.db.clone(), vault.instance.clone(), vault.clock.clone());
    let mut failing = false;
    while !*stopping.borrow() {
        let turn = sequencer.run_once().await;
        match (&turn, failing) {
            (Err(error), false) => {
                tracing::error!(error = error as &dyn std::error::Error, "events cannot be numbered");
            }
            (Ok(_), true) => tracing::info!("events are numbered again"),
            _ => {}
        }
        failing = turn.is_err();
        if let Ok(Turn::Numbered(1..)) = turn {
            vault.bell.ring_numbered();
            // What is committed meanwhile goes together.
            tokio::time::sleep(GATHER).await;
            continue;
        }
        tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => {}
            () = vault.bell.written(), if !failing => {}
            () = tokio::time::sleep(if failing { PAUSE } else { LOOK }) => {}
        }
    }
    if let Err(error) = sequencer.release().await {
        tracing::warn!(error = &error as &dyn std::error::Error, "the sequencer's lease was not given back");
    }
}
