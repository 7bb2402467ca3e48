//! Work that nobody asked for just now. A job does one bounded piece at a time, which is what tests call;
//! the loop around it only decides when.

mod checkpoint;
mod housekeeping;
pub mod keys;
mod retention;
pub mod sequence;
mod settle;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::ops::Vault;
use crate::store::leases;

/// The running jobs of a process.
pub struct Jobs {
    stop: watch::Sender<bool>,
    running: Vec<(&'static str, JoinHandle<()>)>,
    /// What the others write is numbered to the last.
    sequencer: (watch::Sender<bool>, JoinHandle<()>),
}

impl Jobs {
    /// Starts all jobs.
    pub fn start(vault: &Arc<Vault>) -> Self {
        let (stop, stopping) = watch::channel(false);
        let running = vec![
            ("reconciler", tokio::spawn(settle::run(Arc::clone(vault), stopping.clone()))),
            ("housekeeping", tokio::spawn(housekeeping::run(Arc::clone(vault), stopping.clone()))),
            ("retention", tokio::spawn(retention::run(Arc::clone(vault), stopping.clone()))),
            ("follower of the keys", tokio::spawn(keys::run(Arc::clone(vault), stopping.clone()))),
            ("checkpoints", tokio::spawn(checkpoint::run(Arc::clone(vault), stopping.clone()))),
            ("audit of reads", tokio::spawn(audit_reads(Arc::clone(vault), stopping))),
        ];
        let (last, stopping) = watch::channel(false);
        let sequencer = (last, tokio::spawn(sequence::run(Arc::clone(vault), stopping)));
        Self { stop, running, sequencer }
    }

    /// Lets each job finish the piece that it is at. A job is never cut off: that could leave a
    /// transaction open.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for (name, job) in self.running {
            ended(name, job).await;
        }
        let (last, sequencer) = self.sequencer;
        last.send_replace(true);
        ended("event sequencer", sequencer).await;
    }
}

async fn audit_reads(vault: Arc<Vault>, stopping: watch::Receiver<bool>) {
    vault.audit.write_reads(&vault.db, &vault.keys, stopping).await;
}

/// Waits for a pause between two turns, or until told to stop.
async fn pause(stopping: &mut watch::Receiver<bool>, time: Duration) {
    tokio::select! {
        _ = stopping.wait_for(|stop| *stop) => {}
        () = tokio::time::sleep(time) => {}
    }
}

/// Gives a lease back, so that another process goes on at once.
async fn give_back(vault: &Vault, lease: &'static str) {
    if let Err(error) = leases::release(&vault.db, lease, &vault.instance).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "the {lease} lease was not given back");
    }
}

async fn ended(name: &'static str, job: JoinHandle<()>) {
    if job.await.is_err() {
        tracing::error!(alarm = true, job = name, "a job ended in a way that it should not");
    }
}
