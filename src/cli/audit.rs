//! `cardvault audit …`: the audit trail, shown and proved.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::app::open_database;
use crate::base::clock::Millis;
use crate::config::{self, Config};
use crate::ops::audit::verify;
use crate::store::audit;
use crate::telemetry;

use super::keys::{Common, opened};

/// Rows that are read at once.
const PAGE: i64 = 1000;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Prove that no row was altered, removed or put elsewhere.
    Verify {
        #[command(flatten)]
        common: Common,
        /// A copy of the log, or of the checkpoints in it, that was kept elsewhere: with it, a trail that was
        /// cut off at its end is found too.
        #[arg(long)]
        checkpoints: Option<PathBuf>,
    },
    /// Print the trail's rows, a line of JSON each, oldest first.
    Export {
        /// The configuration file.
        #[arg(long, env = "CARDVAULT_CONFIG")]
        config: PathBuf,
        /// From this time on, as in 2026-11-24T00:00:00Z [default: all].
        #[arg(long, value_parser = time)]
        from: Option<Millis>,
        /// Before this time [default: all].
        #[arg(long, value_parser = time)]
        until: Option<Millis>,
    },
}

fn time(text: &str) -> Result<Millis, String> {
    Millis::parse_rfc3339(text).ok_or_else(|| "a time is written as 2026-11-24T00:00:00Z".to_owned())
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Verify { common, checkpoints } => verify(&common, checkpoints).await,
        Command::Export { config, from, until } => {
            export(&config, from.unwrap_or(Millis(0)), until.unwrap_or(Millis(i64::MAX))).await
        }
    }
}

async fn verify(common: &Common, checkpoints: Option<PathBuf>) -> anyhow::Result<()> {
    let (_, admin) = opened(common).await?;
    let has_checkpoints = checkpoints.is_some();
    let lines: Box<dyn Iterator<Item = std::io::Result<String>>> = match checkpoints {
        Some(path) => {
            let file = File::open(&path).with_context(|| format!("reading {}", path.display()))?;
            Box::new(BufReader::new(file).lines())
        }
        None => Box::new(std::iter::empty()),
    };
    let report = verify::verify(&admin.db, &admin.keys, lines).await.context("reading the audit trail")?;
    admin.end().await;
    for finding in &report.findings {
        println!("WRONG {finding}");
    }
    for chain in &report.open {
        println!("open  chain {chain}: its process runs, or was killed");
    }
    let (rows, chains, checkpoints) = (report.rows, report.chains, report.checkpoints);
    println!("{rows} rows in {chains} chains, {checkpoints} checkpoints");
    if let Some(newest) = report.newest {
        let (newest, unproven) = (newest.rfc3339(), report.unproven);
        println!(
            "{unproven} rows are newer than the newest checkpoint, of {newest}: whether more followed them is unproven"
        );
    }
    if !report.findings.is_empty() {
        bail!("the audit trail is not whole: {} findings", report.findings.len());
    }
    if has_checkpoints && checkpoints == 0 {
        bail!("there is no checkpoint in that file, so it proves nothing");
    }
    if !has_checkpoints {
        println!("without --checkpoints, rows that were cut off at a chain's end are not missed");
    }
    Ok(())
}

async fn export(config: &std::path::Path, from: Millis, until: Millis) -> anyhow::Result<()> {
    telemetry::start("error");
    let config = Config::load(config, config::environment())?;
    let db = open_database(&config).await?;
    let mut out = std::io::stdout().lock();
    let mut after = (Millis(i64::MIN), String::new(), -1);
    loop {
        let page = audit::list_by_time(&db, from, until, (after.0, &after.1, after.2), PAGE).await.context(
            "reading the audit trail (is the schema up to date? `cardvault migrate` brings it there)",
        )?;
        let Some((last, _)) = page.last() else { break };
        after = (last.at, last.chain.clone(), last.seq);
        for (row, mac) in &page {
            match writeln!(out, "{}", row.json(&data_encoding::HEXLOWER.encode(mac))) {
                // A reader that has seen enough (`| head`) is no failure.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                done => done?,
            }
        }
    }
    db.close().await;
    Ok(())
}
