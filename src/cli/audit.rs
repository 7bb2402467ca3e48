//! `cardvault audit …`: the audit trail, shown and proved. Who reads it is in it (PCI DSS 10.2.1.3), where the role
//! and the keys of whoever reads allow that.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::app::open_database;
use crate::base::clock::Millis;
use crate::config::{self, Config};
use crate::model::audit::Entry;
use crate::ops::audit::{acting, verify};
use crate::ops::rotation::Admin;
use crate::store::audit;
use crate::store::backend::Db;
use crate::telemetry;

use super::keys::{Common, console, opened, opened_by_itself};

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
    let how = if has_checkpoints { "with checkpoints" } else { "without checkpoints" };
    told_of(record(&admin, &Entry::done("audit.verify", "audit").with(how)).await);
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

/// Records that the trail is read, before it is, in a chain that ends with this. A vault that was never started has
/// no trail.
async fn record(admin: &Admin, reading: &Entry) -> anyhow::Result<()> {
    if admin.has_trail() {
        acting(console(), admin.note(reading)).await?;
        admin.audit.close(&admin.db, &admin.keys).await;
    }
    Ok(())
}

/// Whoever may only read can record nothing, and is not kept from reading: an auditor is one.
fn told_of(recorded: anyhow::Result<()>) {
    if let Err(error) = recorded {
        eprintln!(
            "cardvault: that the audit trail is read here is not recorded in it: {error:#}; the database's own log \
             must tell (pgaudit)"
        );
    }
}

async fn export(config: &std::path::Path, from: Millis, until: Millis) -> anyhow::Result<()> {
    telemetry::start("error");
    let config = Config::load(config, config::environment())?;
    let db = open_database(&config).await?;
    let start = if from == Millis(0) { "the beginning".to_owned() } else { from.rfc3339() };
    let end = if until == Millis(i64::MAX) { "now".to_owned() } else { until.rfc3339() };
    let reading = Entry::done("audit.export", "audit").with(format!("from {start} until {end}"));
    let admin = match opened_by_itself(&config, db.clone()).await {
        Ok(admin) => {
            told_of(record(&admin, &reading).await);
            Some(admin)
        }
        Err(error) => {
            told_of(Err(error));
            None
        }
    };
    let printed = print(&db, from, until).await;
    match admin {
        Some(admin) => admin.end().await,
        None => db.close().await,
    }
    printed
}

async fn print(db: &Db, from: Millis, until: Millis) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let mut after = (Millis(i64::MIN), String::new(), -1);
    loop {
        let page = audit::list_by_time(db, from, until, (after.0, &after.1, after.2), PAGE).await.context(
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
    Ok(())
}
