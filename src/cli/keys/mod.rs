//! `cardvault keys …`: what an operator does to keys. Each command can be cut off and run again.

mod custodians;
mod destroy;
mod progress;
mod reencrypt;
mod rotate;
mod split;
mod status;
mod unseal;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::app::{self, open_database};
use crate::base::clock::{Clock, SharedClock, SystemClock};
use crate::config::{self, Config};
use crate::crypto::kek::file;
use crate::model::audit::{Actor, Entry};
use crate::ops::audit::{acting, origin};
use crate::ops::rotation::Admin;
use crate::ops::rotation::reencrypt::Pace;
use crate::store::backend::Db;
use crate::telemetry;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Make a keyring file with one random key-encryption key.
    Init {
        /// Where to write it; never over a file that is there.
        #[arg(long, default_value = "keys/keyring.toml")]
        keyring: PathBuf,
    },
    /// Show every key: state, age, cryptoperiod, uses, and the rows that need it.
    Status(status::Args),
    /// Bring a new key into use.
    #[command(subcommand)]
    Rotate(rotate::Command),
    /// Move all records from retired card keys to the active one, beside running servers.
    Reencrypt(reencrypt::Args),
    /// Destroy a key that was rotated away, once nothing needs it.
    Destroy(destroy::Args),
    /// Give the key-encryption key to custodians, in shares; some of them together open the vault.
    Split(split::Args),
    /// Put a split key-encryption key back into the keyring file.
    Combine(split::CombineArgs),
    /// Bring one custodian's share to a server that waits for it.
    Unseal(unseal::Args),
}

/// What every command that works on the keys takes.
#[derive(clap::Args, Clone)]
pub struct Common {
    /// The configuration file.
    #[arg(long, env = "CARDVAULT_CONFIG")]
    config: PathBuf,
    /// How many seconds to wait for running servers to follow.
    #[arg(long, default_value_t = 60)]
    wait_s: u64,
    /// A file with a custodian's share, where the key-encryption key is split; repeat it for each. Shares
    /// that are missing are asked for.
    #[arg(long)]
    share_file: Vec<PathBuf>,
}

/// How fast a command goes through all rows.
#[derive(clap::Args)]
pub struct Steps {
    /// Rows that are stored in one transaction [default: 50, or 1000 without a pause].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: Option<u32>,
    /// Milliseconds between batches, for others to write in.
    #[arg(long, default_value_t = Pace::PAUSE_MS)]
    pause_ms: u64,
}

impl Steps {
    fn pace(&self) -> Pace {
        Pace::new(self.batch, self.pause_ms)
    }
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    acting(console(), done(command)).await
}

/// Who runs this command.
pub(super) fn console() -> Actor {
    Actor::at_console(&format!("uid-{}", rustix::process::getuid().as_raw()), origin())
}

async fn done(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init { keyring } => {
            file::create_new(&keyring, &file::generate(SystemClock.now())?)?;
            println!("wrote {}; keep a copy where the database's backups are not", keyring.display());
            Ok(())
        }
        Command::Status(args) => status::run(args).await,
        Command::Rotate(command) => rotate::run(command).await,
        Command::Reencrypt(args) => reencrypt::run(args).await,
        Command::Destroy(args) => destroy::run(args).await,
        Command::Split(args) => split::run(args).await,
        Command::Combine(args) => split::combine(args).await,
        Command::Unseal(args) => unseal::run(args).await,
    }
}

/// Reads the configuration and opens what it names. No key is unwrapped.
pub(super) async fn admin(common: &Common) -> anyhow::Result<(Config, Admin)> {
    telemetry::start("error");
    telemetry::keep_memory_private();
    let config = Config::load(&common.config, config::environment())?;
    let db = open_database(&config).await?;
    crate::store::keys::epoch(&db)
        .await
        .context("looking at the keys (is the schema up to date? `cardvault migrate` brings it there)")?;
    let keks = Arc::new(app::keks(&config)?);
    let clock: SharedClock = Arc::new(SystemClock);
    let patience = Duration::from_secs(common.wait_s);
    let admin = Admin::new(db, keks, &clock, config.keys.policy(), patience)?;
    Ok((config, admin))
}

/// As [`admin`], with every data key unwrapped. Where the KEK is split, its custodians are asked.
pub(super) async fn opened(common: &Common) -> anyhow::Result<(Config, Admin)> {
    open(common, false).await
}

/// As [`opened`], for commands that seal: in a vault that was never started, the data keys are made.
pub(super) async fn opened_to_seal(common: &Common) -> anyhow::Result<(Config, Admin)> {
    open(common, true).await
}

/// The same, of a database that is open already, for commands that can do without: nothing is made, and no custodian
/// is asked.
pub(super) async fn opened_by_itself(config: &Config, db: Db) -> anyhow::Result<Admin> {
    telemetry::keep_memory_private();
    let keks = Arc::new(app::keks(config)?);
    let clock: SharedClock = Arc::new(SystemClock);
    let admin = Admin::new(db, keks, &clock, config.keys.policy(), Duration::ZERO)?;
    admin.keys.open_only().await.context("opening the data keys")?;
    Ok(admin)
}

async fn open(common: &Common, make: bool) -> anyhow::Result<(Config, Admin)> {
    let (config, admin) = admin(common).await?;
    unseal(&admin, &common.share_file, make).await?;
    Ok((config, admin))
}

async fn unseal(admin: &Admin, files: &[PathBuf], make: bool) -> anyhow::Result<()> {
    let mut custodians = custodians::Custodians::new(admin, files);
    loop {
        let opened =
            if make { acting(console(), admin.keys.open()).await } else { admin.keys.open_only().await };
        let Err(error) = opened else { break };
        match error.sealed() {
            Some(kek) => custodians.collect(kek)?,
            None => {
                return Err(error).context(
                    "opening the data keys (is the schema up to date? `cardvault migrate` brings it there)",
                );
            }
        }
    }
    // An audit key that is over records nothing: the shares are then recorded when the command ends, which does
    // nothing but put another key in its place.
    if let Err(error) = admin.record_shares().await {
        tracing::debug!(error = &error as &dyn std::error::Error, "the shares are not recorded yet");
    }
    Ok(())
}

/// Records in the audit trail what is no part of a transaction: a command that cannot be recorded does nothing
/// (PCI DSS 10.2.1.2).
async fn note(admin: &Admin, action: &'static str, object: &str, detail: &str) -> anyhow::Result<()> {
    admin.note(&Entry::done(action, object).with(detail)).await.context("recording this in the audit trail")
}

/// Ends a command. What was done has its row already, in the transaction of its effect; what was refused or has
/// failed gets one here.
async fn ended<T, E: Into<anyhow::Error>>(
    admin: &Admin,
    action: &'static str,
    object: &str,
    done: Result<T, E>,
) -> anyhow::Result<T> {
    let done = done.map_err(Into::into);
    if let Err(error) = &done
        && let Err(why) = admin.note(&Entry::refused(action, error.to_string()).about(object)).await
    {
        eprintln!(
            "cardvault: that this was refused is not in the audit trail: {:#}",
            anyhow::Error::from(why)
        );
    }
    if !admin.has_trail() {
        eprintln!("cardvault: the vault was never started and has no audit trail yet; this is not recorded");
    }
    admin.end().await;
    done
}
