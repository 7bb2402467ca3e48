//! The checks behind `/readyz`: each with a deadline, none twice at once, and what they found is good for a
//! second, so that no crowd of watchers loads the database.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

use crate::ops::Vault;
use crate::ops::error::OpError;
use crate::ops::readiness::Check;

/// How long a check may take.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long a report is good.
const GOOD: Duration = Duration::from_secs(1);

/// What the checks found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Report {
    /// The vault waits for its custodians: nothing else can be checked.
    Sealed,
    /// The checks that failed.
    Checked(Vec<Check>),
}

impl Report {
    /// Every check, and whether it passes.
    pub(super) fn checks(&self) -> Vec<(Check, bool)> {
        let passes = |check: &Check| match self {
            Self::Sealed => *check == Check::Database,
            Self::Checked(failed) => !failed.contains(check),
        };
        Check::ALL.iter().map(|check| (*check, passes(check))).collect()
    }
}

/// The newest report, and checks that are not done yet.
pub(super) struct Readiness {
    vault: Arc<Vault>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    newest: Option<(Instant, Report)>,
    /// In the order of [`Check::ALL`]. A check that has missed its deadline goes on: it must not be cut off
    /// within a transaction, and none is begun beside it.
    running: [Option<JoinHandle<bool>>; Check::ALL.len()],
}

impl Readiness {
    pub(super) fn new(vault: Arc<Vault>) -> Self {
        Self { vault, state: Mutex::default() }
    }

    /// The newest report, made now where it is too old.
    pub(super) async fn look(&self) -> Report {
        // Costs nothing, and is over the moment that the last share comes.
        if self.vault.keys.are_closed() {
            return Report::Sealed;
        }
        let mut state = self.state.lock().await;
        if let Some((at, report)) = &state.newest
            && at.elapsed() < GOOD
        {
            return report.clone();
        }
        let report = self.make(&mut state).await;
        if state.newest.as_ref().map(|(_, before)| before) != Some(&report) {
            match &report {
                Report::Sealed => {}
                Report::Checked(failed) if failed.is_empty() => tracing::info!("the vault is ready"),
                Report::Checked(failed) => {
                    let failed: Vec<&str> = failed.iter().map(|check| check.name()).collect();
                    tracing::warn!(?failed, "the vault is not ready");
                }
            }
        }
        state.newest = Some((Instant::now(), report.clone()));
        report
    }

    async fn make(&self, state: &mut State) -> Report {
        for (check, running) in Check::ALL.into_iter().zip(&mut state.running) {
            running.get_or_insert_with(|| tokio::spawn(passes(self.vault.clone(), check)));
        }
        let deadline = tokio::time::Instant::now() + DEADLINE;
        let mut failed = Vec::new();
        for (check, running) in Check::ALL.into_iter().zip(&mut state.running) {
            let Some(task) = running else { continue };
            let passed = match timeout_at(deadline, &mut *task).await {
                Ok(ended) => {
                    *running = None;
                    ended.unwrap_or(false)
                }
                Err(_) => {
                    tracing::warn!(check = check.name(), "a check of readiness takes too long");
                    false
                }
            };
            if !passed {
                failed.push(check);
            }
        }
        Report::Checked(failed)
    }
}

async fn passes(vault: Arc<Vault>, check: Check) -> bool {
    match vault.check(check).await {
        Ok(()) => true,
        Err(OpError::Sealed) => false,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(check = check.name(), error, "a check of readiness failed");
            false
        }
    }
}
