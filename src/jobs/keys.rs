//! Follows the keys: a new data key is taken up, a new KEK's canary opened, what was used is reported, and
//! the process says that it is alive. A key whose time is nearly over is told of in the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::base::clock::Millis;
use crate::base::ids::KekId;
use crate::ops::Vault;
use crate::ops::error::OpError;

use super::pause;

/// How often changes are looked for.
const LOOK: Duration = Duration::from_millis(500);
/// How often the process says that it is alive, and reports uses; a silence of 30 seconds is death.
const BEAT: Duration = Duration::from_secs(5);
/// How often a key that should be rotated is told of.
const WARN: Duration = Duration::from_secs(3600);

/// What one process knows between two looks.
pub struct Follower {
    started_at: Millis,
    opened_kek: Option<KekId>,
    told: Option<(i64, Option<KekId>)>,
    beat: Option<Instant>,
    warned: Option<Instant>,
}

impl Follower {
    /// A follower that has not looked yet.
    pub fn new(started_at: Millis) -> Self {
        Self { started_at, opened_kek: None, told: None, beat: None, warned: None }
    }

    /// Looks once, and tells what has changed; also that nothing has, every 5 seconds. A process that cannot follow
    /// tells so all the same: it serves, so that commands have to wait for it.
    pub async fn run_once(&mut self, vault: &Vault) -> Result<(), OpError> {
        let followed = vault.keys.follow().await;
        if let Ok(true) = followed {
            tracing::info!(epoch = vault.keys.epoch(), "took up a change of the keys");
        }
        let tried = vault.keys.try_canary(self.opened_kek.clone()).await;
        let tried = tried.map(|opened| self.opened_kek = opened);
        let told = self.tell(vault).await;
        followed.and(tried).and(told)
    }

    /// Says that the process is alive, and how far it has followed; and which keys should be rotated.
    async fn tell(&mut self, vault: &Vault) -> Result<(), OpError> {
        let now = vault.clock.instant();
        let over = |since: Option<Instant>, time| since.is_none_or(|since| now.duration_since(since) >= time);
        let state = (vault.keys.epoch(), self.opened_kek.clone());
        if over(self.beat, BEAT) || self.told.as_ref() != Some(&state) {
            vault.keys.beat(&vault.instance, self.started_at, self.opened_kek.as_ref()).await?;
            vault.keys.report_uses().await?;
            self.told = Some(state);
            self.beat = Some(now);
        }
        if over(self.warned, WARN) {
            self.warned = Some(now);
            for (purpose, key, standing) in vault.keys.due() {
                let why = standing.words();
                tracing::warn!(
                    key,
                    purpose,
                    why,
                    alarm = true,
                    "a key should be rotated: `cardvault keys rotate`"
                );
            }
        }
        Ok(())
    }
}

/// Runs until told to stop.
pub(super) async fn run(vault: Arc<Vault>, mut stopping: watch::Receiver<bool>) {
    let mut follower = Follower::new(vault.clock.now());
    let mut failing = false;
    while !*stopping.borrow() {
        let turn = follower.run_once(&vault).await;
        match (&turn, failing) {
            (Err(error), false) => {
                tracing::error!(error = error as &dyn std::error::Error, "the keys cannot be followed");
            }
            (Ok(()), true) => tracing::info!("the keys are followed again"),
            _ => {}
        }
        failing = turn.is_err();
        pause(&mut stopping, LOOK).await;
    }
    for done in [vault.keys.report_uses().await, vault.keys.leave(&vault.instance).await] {
        if let Err(error) = done {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the process could not say that it ends"
            );
        }
    }
}
