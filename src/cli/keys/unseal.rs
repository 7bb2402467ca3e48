//! `cardvault keys unseal`

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::app::unseal::bring;
use crate::config::{self, Config};
use crate::telemetry;

use super::custodians::{ask, read_file};

#[derive(clap::Args)]
pub struct Args {
    /// The configuration file.
    #[arg(long, env = "CARDVAULT_CONFIG")]
    config: PathBuf,
    /// A file with the share [default: it is asked for, and not shown].
    #[arg(long)]
    share_file: Option<PathBuf>,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::keep_memory_private();
    let config = Config::load(&args.config, config::environment())?;
    let share = match &args.share_file {
        Some(path) => read_file(path)?,
        None => ask("share: ")?.context("no share was given")?,
    };
    let answer = bring(&config.keys.socket(), &share).await?;
    if let Some(error) = answer["error"].as_str() {
        bail!("{error}");
    }
    let kek = answer["kek"].as_str().unwrap_or_default();
    if answer["open"] == true {
        println!("{kek} is open in this server");
    } else {
        println!("{} of {} shares of {kek} are here; they wait 10 minutes", answer["have"], answer["need"]);
    }
    Ok(())
}
