//! `cardvault keys rotate …`

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::ValueEnum;

use crate::app::unseal::bring;
use crate::base::secret::SecretText;
use crate::config::Config;
use crate::crypto::kek::shares::Share;
use crate::crypto::keyring::Purpose;
use crate::ops::rotation::Admin;
use crate::ops::rotation::kek::{KekRotated, KekWould, Target};
use crate::ops::rotation::reencrypt::Pace;

use super::custodians::{self, Custodians};
use super::progress::Shown;
use super::{Common, Steps};

#[derive(clap::Subcommand)]
pub enum Command {
    /// A new key-encryption key: all data keys are wrapped anew, no card is touched.
    Kek {
        #[command(flatten)]
        common: Common,
        /// Where the new key shall be [default: where the present one is].
        #[arg(long)]
        to: Option<Provider>,
        /// With `--to split`: how many shares to make [default: as many as now].
        #[arg(long, value_parser = clap::value_parser!(u8).range(2..))]
        shares: Option<u8>,
        /// With `--to split`: how many of them open the vault [default: as many as now].
        #[arg(long, value_parser = clap::value_parser!(u8).range(2..))]
        threshold: Option<u8>,
        /// With `--to split`: a folder for the shares, a file each with mode 0600 [default: they are printed].
        #[arg(long)]
        out: Option<PathBuf>,
        /// Only tell what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// A new data key for cards; `keys reencrypt` then moves what the old one sealed.
    Dek {
        #[command(flatten)]
        common: Common,
        /// Which data key.
        #[arg(long, default_value = "card")]
        purpose: DekPurpose,
        /// Only tell what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// A new fingerprint key; every card gets a new fingerprint, and is found by the old one as well.
    Fingerprint {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        steps: Steps,
        /// Print progress and result as lines of JSON.
        #[arg(long)]
        json: bool,
        /// Only tell what would be done.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(ValueEnum, Clone, Copy)]
pub enum Provider {
    /// In the keyring file.
    File,
    /// In the token of [keys.hsm].
    Hsm,
    /// With custodians, in shares.
    Split,
}

#[derive(ValueEnum, Clone, Copy)]
pub enum DekPurpose {
    /// Seals cards and what is kept of payments.
    Card,
    /// The key that seals Antom's tokens of cards that only Antom holds.
    GatewayToken,
    /// Tells whether a repeated request is the same one.
    RequestMac,
    /// Makes the audit trail's MACs.
    Audit,
    /// Signs checkpoints of the audit trail.
    Checkpoint,
}

impl DekPurpose {
    fn purpose(self) -> Purpose {
        match self {
            Self::Card => Purpose::Card,
            Self::GatewayToken => Purpose::GatewayToken,
            Self::RequestMac => Purpose::RequestMac,
            Self::Audit => Purpose::Audit,
            Self::Checkpoint => Purpose::Checkpoint,
        }
    }
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Kek { common, to, shares, threshold, dry_run: true, .. } => {
            would_kek(&common, to, shares.zip(threshold)).await
        }
        Command::Dek { common, purpose, dry_run: true } => would(&common, purpose.purpose().as_str()).await,
        Command::Fingerprint { common, dry_run: true, .. } => would(&common, "fingerprint").await,
        Command::Kek { common, to, shares, threshold, out, .. } => {
            kek(&common, to, shares.zip(threshold), out.as_deref()).await
        }
        Command::Dek { common, purpose, .. } => dek(&common, purpose.purpose()).await,
        Command::Fingerprint { common, steps, json, .. } => fingerprint(&common, steps.pace(), json).await,
    }
}

/// Where the new KEK shall be.
fn target(to: Option<Provider>, numbers: Option<(u8, u8)>, present: Target) -> anyhow::Result<Target> {
    Ok(match (to, numbers, present) {
        (Some(Provider::File), ..) => Target::File,
        (Some(Provider::Hsm), ..) => Target::Token,
        (Some(Provider::Split) | None, Some((shares, threshold)), _) => Target::Split { shares, threshold },
        (Some(Provider::Split), None, Target::Split { .. }) | (None, None, _) => present,
        (Some(Provider::Split), None, _) => bail!("--to split needs --shares and --threshold"),
    })
}

/// Tells what a rotation of the KEK would do, and changes nothing.
async fn would_kek(common: &Common, to: Option<Provider>, numbers: Option<(u8, u8)>) -> anyhow::Result<()> {
    let (_, admin) = super::admin(common).await?;
    let to = target(to, numbers, admin.present_target())?;
    let (would, servers) = (admin.would_rotate_kek(to).await?, admin.live().await?.len());
    admin.end().await;
    match would {
        KekWould::Finish(id, left) => {
            println!("would finish the rotation to {id}, which was begun, and wrap {left} data keys anew");
        }
        KekWould::Make(id, all) => {
            let place = match to {
                Target::File => "in the keyring file".to_owned(),
                Target::Token => "in the token".to_owned(),
                Target::Split { shares, threshold } => {
                    format!("in {shares} shares of which {threshold} rebuild it")
                }
            };
            println!("would make a new one {place}, after {id}, and wrap {all} data keys anew");
        }
    }
    println!("{servers} running servers would have to follow");
    Ok(())
}

/// Tells what a rotation would do to the data keys of a purpose, and changes nothing.
async fn would(common: &Common, purpose: &str) -> anyhow::Result<()> {
    let (_, admin) = super::admin(common).await?;
    let status = admin.status().await?;
    admin.end().await;
    let begun = status.keys.iter().find(|key| key.purpose == purpose && key.state == "next");
    let active = status.keys.iter().find(|key| key.purpose == purpose && key.state == "active");
    match (begun, active) {
        (Some(key), _) => println!("would finish the rotation to {}, which was begun", key.id),
        (None, Some(key)) => {
            println!("would make a new one in the place of {}, on which {} rows depend", key.id, key.rows);
        }
        (None, None) => bail!("there is no {purpose} key yet; start a server once, it makes the first"),
    }
    println!("{} running servers would have to follow", status.servers.len());
    Ok(())
}

async fn kek(
    common: &Common,
    to: Option<Provider>,
    numbers: Option<(u8, u8)>,
    out: Option<&Path>,
) -> anyhow::Result<()> {
    let (config, admin) = super::opened(common).await?;
    let to = target(to, numbers, admin.present_target())?;
    let done = turn(&config, common, &admin, to, out).await;
    let done = super::ended(&admin, "keys.rotate", "kek", done).await?;
    if done.finished_earlier {
        println!("finished the rotation that had been begun");
    }
    println!(
        "{} is in use: {} running servers had opened its canary, {} data keys are wrapped under it anew ({} ms)",
        done.new,
        done.servers,
        done.rewrapped,
        done.took.as_millis()
    );
    if done.old != done.new {
        println!(
            "{} opens what it once wrapped, so keep it while backups from before shall open; then: cardvault keys \
             destroy {0}",
            done.old
        );
    }
    Ok(())
}

/// Makes the new KEK, has the shares of it kept and brought where they are needed, and takes it into use.
async fn turn(
    config: &Config,
    common: &Common,
    admin: &Admin,
    to: Target,
    out: Option<&Path>,
) -> anyhow::Result<KekRotated> {
    let threshold = if let Target::Split { threshold, .. } = to { threshold } else { 0 };
    let mut for_servers = Vec::new();
    let begun = admin
        .begin_kek(to, &mut |kek, made| {
            let kept = custodians::keep(kek, made, out, threshold)?;
            for_servers.extend(kept.iter().take(usize::from(threshold)).map(Share::text));
            Ok(kept)
        })
        .await?;
    if admin.keks.soft(&begun.new).is_err() && matches!(to, Target::Split { .. }) {
        // The rotation was begun by an earlier run, whose shares only the custodians have.
        Custodians::new(admin, &common.share_file).collect(&begun.new)?;
    }
    bring_to_server(config, &for_servers).await;
    // Not while the servers are waited for.
    drop(for_servers);
    Ok(admin.finish_kek(begun).await?)
}

/// The server of this host must open the new key; here are enough shares, so no custodian has to come.
async fn bring_to_server(config: &Config, shares: &[SecretText]) {
    for share in shares {
        if let Err(error) = bring(&config.keys.socket(), share).await {
            eprintln!("cardvault: {error:#}; other servers need their custodians: cardvault keys unseal");
            return;
        }
    }
}

async fn dek(common: &Common, purpose: Purpose) -> anyhow::Result<()> {
    let (_, admin) = super::opened(common).await?;
    let done = admin.rotate_data_key(purpose).await;
    let done = super::ended(&admin, "keys.rotate", purpose.as_str(), done).await?;
    println!("{} seals from now on; {} only opens", done.new, done.old);
    if matches!(purpose, Purpose::Card | Purpose::GatewayToken) {
        println!("next: cardvault keys reencrypt");
    }
    Ok(())
}

async fn fingerprint(common: &Common, pace: Pace, json: bool) -> anyhow::Result<()> {
    let (_, admin) = super::opened(common).await?;
    let mut shown = Shown::new(json);
    let done = admin.rotate_fingerprint(pace, &mut |progress| shown.step(progress)).await;
    shown.end();
    let done = super::ended(&admin, "keys.rotate", Purpose::Fingerprint.as_str(), done).await?;
    if json {
        let (old, new) = (done.old.as_str(), done.new.as_str());
        println!("{}", serde_json::json!({ "event": "done", "old": old, "new": new }));
    } else {
        println!(
            "{} makes fingerprints from now on; one made by {} is found until that key is destroyed",
            done.new, done.old
        );
    }
    Ok(())
}
