//! Looks after what has no clear outcome: payments, captures, refunds. Every process does it, each what it
//! has taken; a slow gateway holds back only what waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::ops::Vault;

use super::pause;

/// How often it is looked for what is due.
const LOOK: Duration = Duration::from_millis(500);
/// Most looks at once.
const AT_ONCE: usize = 32;
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(2);

/// Runs until told to stop; what is under way then is finished.
pub(super) async fn run(vault: Arc<Vault>, mut stopping: watch::Receiver<bool>) {
    let mut looks = JoinSet::new();
    let mut failing = false;
    while !*stopping.borrow() {
        while looks.try_join_next().is_some() {}
        let room = i64::try_from(AT_ONCE.saturating_sub(looks.len())).unwrap_or(0);
        let taken = if room > 0 { vault.take_due(room).await } else { Ok(Vec::new()) };
        match (&taken, failing) {
            (Err(error), false) => {
                tracing::error!(error = error as &dyn std::error::Error, "what is due cannot be looked for");
            }
            (Ok(_), true) => tracing::info!("what is due can be looked for again"),
            _ => {}
        }
        failing = taken.is_err();
        for due in taken.unwrap_or_default() {
            let vault = Arc::clone(&vault);
            looks.spawn(async move { vault.look_after(due).await });
        }
        pause(&mut stopping, if failing { PAUSE } else { LOOK }).await;
    }
    while looks.join_next().await.is_some() {}
}
