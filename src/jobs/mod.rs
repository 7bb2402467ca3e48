//! Work that nobody asked for just now. A job does one bounded piece at a time, which is what tests call;
//! the loop around it only decides when.

pub mod sequence;

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::ops::Vault;

/// The running jobs of a process.
pub struct Jobs {
    stop: watch::Sender<bool>,
    sequencer: JoinHandle<()>,
}

impl Jobs {
    /// Starts all jobs.
    pub fn start(vault: &Arc<Vault>) -> Self {
        let (stop, stopping) = watch::channel(false);
        let sequencer = tokio::spawn(sequence::run(Arc::clone(vault), stopping));
        Self { stop, sequencer }
    }

    /// Lets each job finish the piece that it is at. A job is never cut off: that could leave a
    /// transaction open.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if self.sequencer.await.is_err() {
            tracing::error!(alarm = true, "the event sequencer ended in a way that it should not");
        }
    }
}
