//! `cardvault cards report`

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::base::clock::Millis;
use crate::base::ids::RunId;
use crate::ops::keys::DataKeys;
use crate::ops::retention::{WriteError, verify_reports, write_reports};
use crate::store::backend::Db;
use crate::store::retention::ReportFilter;

use super::super::keys::{Common, opened};
use super::merchant;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Prove this file of reports instead of writing one: that each was signed by this vault, that none is
    /// missing from the file, and that the cards are gone.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["out", "from", "until", "merchant", "run"])]
    verify: Option<PathBuf>,
    /// Where to write the reports [default: standard output].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// From this time on, as in 2026-11-24T00:00:00Z [default: all].
    #[arg(long, value_parser = time)]
    from: Option<Millis>,
    /// Before this time [default: all].
    #[arg(long, value_parser = time)]
    until: Option<Millis>,
    /// Only this merchant's cards.
    #[arg(long)]
    merchant: Option<String>,
    /// Only of one run, as `cards purge` names it.
    #[arg(long, value_parser = run_id)]
    run: Option<RunId>,
}

fn time(text: &str) -> Result<Millis, String> {
    Millis::parse_rfc3339(text).ok_or_else(|| "a time is written as 2026-11-24T00:00:00Z".to_owned())
}

fn run_id(text: &str) -> Result<RunId, String> {
    RunId::parse(text).ok_or_else(|| "a run's name is `run_` and 32 characters".to_owned())
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let (config, admin) = opened(&args.common).await?;
    if let Some(path) = &args.verify {
        return verify(&admin.db, &admin.keys, path).await;
    }
    let merchant = args.merchant.as_deref().map(|name| merchant(&config, name)).transpose()?;
    let filter = ReportFilter { from: args.from, until: args.until, merchant, run: args.run };
    write(&admin.db, &admin.keys, &filter, admin.clock.now(), args.out.as_deref()).await?;
    admin.end().await;
    Ok(())
}

/// Writes reports into a file, or to standard output.
pub(super) async fn write(
    db: &Db,
    keys: &DataKeys,
    filter: &ReportFilter,
    now: Millis,
    path: Option<&Path>,
) -> anyhow::Result<()> {
    let mut out: Box<dyn Write + Send> = match path {
        None => Box::new(std::io::stdout()),
        Some(path) => Box::new(BufWriter::new(
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(path)
                .with_context(|| format!("writing {}", path.display()))?,
        )),
    };
    let written = write_reports(db, keys, filter, now, |line| writeln!(out, "{line}")).await;
    let (reports, cards) = match written {
        // A reader that has seen enough (`| head`) is no failure.
        Err(WriteError::Io(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
        Err(WriteError::Io(error)) => return Err(error).context("writing the reports"),
        Err(WriteError::Op(error)) => return Err(error).context("reading and signing the reports"),
        Ok(counts) => counts,
    };
    out.flush().context("writing the reports")?;
    if let Some(path) = path {
        println!("wrote {reports} reports of {cards} cards to {}", path.display());
    }
    Ok(())
}

async fn verify(db: &Db, keys: &DataKeys, path: &Path) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let done = verify_reports(db, keys, BufReader::new(file).lines()).await.context("reading the vault")?;
    db.close().await;
    for finding in &done.findings {
        println!("WRONG {finding}");
    }
    println!("{} reports of {} erased cards", done.reports, done.cards);
    if !done.findings.is_empty() {
        bail!("the reports are not what this vault has written: {} findings", done.findings.len());
    }
    Ok(())
}
