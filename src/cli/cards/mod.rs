//! `cardvault cards …`: what an operator does to many cards. Each command can be cut off and run again, and
//! works beside running servers.

mod checkpoint;
mod import;
mod lines;
mod progress;
mod purge;
mod report;

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::base::ids::Merchant;
use crate::config::Config;
use crate::model::audit::{Actor, Entry};
use crate::ops::audit::{acting, origin};
use crate::ops::patience::patiently;
use crate::ops::rotation::Admin;
use crate::ops::{Policy, Vault};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Take cards and agreements over from another vault.
    Import(import::Args),
    /// Erase cards whose time is over now, as the servers' own sweep does.
    Purge(purge::Args),
    /// Write the signed reports of what was erased and why, or prove a file of them.
    Report(report::Args),
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Import(args) => import::run(args).await,
        Command::Purge(args) => purge::run(args).await,
        Command::Report(args) => report::run(args).await,
    }
}

/// How often the uses of keys are reported.
const REPORT_USES: Duration = Duration::from_secs(5);

/// A merchant of the configuration.
fn merchant(config: &Config, name: &str) -> anyhow::Result<Merchant> {
    let known = config.merchant.iter().any(|section| section.name == name);
    match Merchant::parse(name).filter(|_| known) {
        Some(merchant) => Ok(merchant),
        None => bail!("--merchant: no [[merchant]] of the configuration has this name"),
    }
}

/// A vault without listeners, gateway and jobs, for work on its cards.
fn vault(config: &Config, admin: Admin) -> anyhow::Result<Vault> {
    let policy =
        Policy { bin_format: config.bin_format(), retention: config.retention.limits(), ..Policy::default() };
    Ok(Vault::new(admin.db, admin.keys, HashMap::new(), admin.clock, policy)?)
}

/// Does an operator's work in his name; its begin and its end are in the audit trail too. What was not
/// recorded is not begun.
async fn recorded<T>(
    vault: &Vault,
    action: &'static str,
    about: &str,
    merchant: Option<&Merchant>,
    work: impl Future<Output = anyhow::Result<(T, String)>>,
) -> anyhow::Result<T> {
    let user = format!("uid-{}", rustix::process::getuid().as_raw());
    let actor = Actor { merchant: merchant.cloned(), ..Actor::at_console(&user, origin()) };
    acting(actor, async {
        let note = async |entry: Entry| {
            patiently(|| vault.note_alone(&entry)).await.context("recording this in the audit trail")
        };
        note(Entry::done(action, about).with("begun")).await?;
        let done = work.await;
        let ended = note(match &done {
            Ok((_, said)) => Entry::done(action, about).with(said),
            Err(_) => Entry::refused(action, "failed").about(about),
        })
        .await;
        if let Err(error) = vault.keys.report_uses().await {
            eprintln!("cardvault: what the keys were used for could not be reported: {error}");
        }
        vault.audit.close(&vault.db, &vault.keys).await;
        vault.db.close().await;
        let (done, _) = done?;
        ended?;
        Ok(done)
    })
    .await
}
