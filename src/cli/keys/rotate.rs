//! `cardvault keys rotate …`

use std::time::Duration;

use clap::ValueEnum;

use crate::crypto::keyring::Purpose;
use crate::ops::rotation::kek::Target;
use crate::ops::rotation::reencrypt::Pace;

use super::Common;
use super::progress::Shown;

#[derive(clap::Subcommand)]
pub enum Command {
    /// A new key-encryption key: all data keys are wrapped anew, no card is touched.
    Kek {
        #[command(flatten)]
        common: Common,
        /// Where the new key shall be [default: where the present one is].
        #[arg(long)]
        to: Option<Provider>,
    },
    /// A new data key for cards; `keys reencrypt` then moves what the old one sealed.
    Dek {
        #[command(flatten)]
        common: Common,
        /// Which data key.
        #[arg(long, default_value = "card")]
        purpose: DekPurpose,
    },
    /// A new fingerprint key; every card gets a new fingerprint, and is found by the old one as well.
    Fingerprint {
        #[command(flatten)]
        common: Common,
        /// Cards that are stored in one transaction.
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        batch: u32,
        /// Milliseconds between batches, for others to write in.
        #[arg(long, default_value_t = 20)]
        pause_ms: u64,
        /// Print progress and result as lines of JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(ValueEnum, Clone, Copy)]
pub enum Provider {
    /// In the keyring file.
    File,
    /// In the token of [keys.hsm].
    Hsm,
}

#[derive(ValueEnum, Clone, Copy)]
pub enum DekPurpose {
    /// Seals cards and what is kept of payments.
    Card,
    /// Tells whether a repeated request is the same one.
    RequestMac,
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Kek { common, to } => kek(&common, to).await,
        Command::Dek { common, purpose } => dek(&common, purpose).await,
        Command::Fingerprint { common, batch, pause_ms, json } => {
            let pace = Pace { batch, pause: Duration::from_millis(pause_ms) };
            fingerprint(&common, pace, json).await
        }
    }
}

async fn kek(common: &Common, to: Option<Provider>) -> anyhow::Result<()> {
    let (_, admin) = super::opened(common).await?;
    let to = match to {
        Some(Provider::File) => Target::File,
        Some(Provider::Hsm) => Target::Token,
        None => admin.present_target(),
    };
    let done = admin.rotate_kek(to).await?;
    admin.db.close().await;
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

async fn dek(common: &Common, purpose: DekPurpose) -> anyhow::Result<()> {
    let (_, admin) = super::opened(common).await?;
    let purpose = match purpose {
        DekPurpose::Card => Purpose::Card,
        DekPurpose::RequestMac => Purpose::RequestMac,
    };
    let done = admin.rotate_data_key(purpose).await?;
    admin.db.close().await;
    println!("{} seals from now on; {} only opens", done.new, done.old);
    if purpose == Purpose::Card {
        println!("next: cardvault keys reencrypt");
    }
    Ok(())
}

async fn fingerprint(common: &Common, pace: Pace, json: bool) -> anyhow::Result<()> {
    let (_, admin) = super::opened(common).await?;
    let mut shown = Shown::new(json);
    let done = admin.rotate_fingerprint(pace, &mut |progress| shown.step(progress)).await;
    shown.end();
    let done = done?;
    admin.db.close().await;
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
