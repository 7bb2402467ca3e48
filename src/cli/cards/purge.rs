//! `cardvault cards purge`

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;

use crate::base::ids::{Merchant, RunId};
use crate::model::retention::{Limits, Reason};
use crate::ops::Vault;
use crate::ops::patience::patiently;
use crate::ops::retention::BATCH;
use crate::store::retention::{Place, ReportFilter};

use super::super::keys::{Common, opened};
use super::super::told_to_stop;
use super::progress::{Shown, Step};
use super::{REPORT_USES, merchant, recorded, report, vault};

/// Cards that are looked at in one query.
const PAGE: i64 = 500;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Only this merchant's cards.
    #[arg(long)]
    merchant: Option<String>,
    /// Only tell how many cards would be erased, and why; nothing is changed.
    #[arg(long)]
    dry_run: bool,
    /// Print progress and result as lines of JSON.
    #[arg(long)]
    json: bool,
    /// Cards that are erased in one transaction.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=50))]
    batch: u16,
    /// Milliseconds between batches, for others to write in.
    #[arg(long, default_value_t = 5)]
    pause_ms: u64,
    /// Write the signed reports of this run into this file; `cards report` can do so later too.
    #[arg(long, conflicts_with = "dry_run")]
    report: Option<PathBuf>,
}

/// What it came to.
#[derive(Default)]
struct Counts {
    looked: u64,
    unattached: u64,
    inactive: u64,
    of: u64,
    is_cut_off: bool,
}

impl Counts {
    fn count(&mut self, reason: Reason) {
        match reason {
            Reason::Unattached => self.unattached += 1,
            Reason::Inactive => self.inactive += 1,
        }
    }

    fn all(&self) -> u64 {
        self.unattached + self.inactive
    }

    fn step(&self) -> Step {
        let counts =
            vec![("erased", self.all()), ("unattached", self.unattached), ("inactive", self.inactive)];
        Step { done: self.looked, at: self.looked, of: Some(self.of), counts }
    }
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let (config, admin) = opened(&args.common).await?;
    let only = args.merchant.as_deref().map(|name| merchant(&config, name)).transpose()?;
    let vault = vault(&config, admin)?;
    let limits = vault.policy.retention;
    if limits == Limits::default() {
        bail!(
            "[retention] erases nothing: both erase_unattached_after_hours and erase_inactive_after_days are 0"
        );
    }
    let run = RunId::make()?;
    let mut shown = Shown::new(args.json, "looked");
    if args.dry_run {
        let counts = sweep(&vault, &run, limits, only.as_ref(), &args, &mut shown).await?;
        vault.db.close().await;
        let step = Step {
            counts: vec![("unattached", counts.unattached), ("inactive", counts.inactive)],
            ..counts.step()
        };
        shown.end("dryRun", &step, &[("wouldErase", counts.all().into())]);
        if shown.is_for_people() {
            println!(
                "{} cards would be erased: {} unattached, {} inactive; nothing was changed",
                counts.all(),
                counts.unattached,
                counts.inactive
            );
        }
        return Ok(());
    }
    let work = async {
        let counts = sweep(&vault, &run, limits, only.as_ref(), &args, &mut shown).await?;
        if let Some(path) = &args.report {
            let filter = ReportFilter { run: Some(run.clone()), ..ReportFilter::default() };
            report::write(&vault.db, &vault.keys, &filter, vault.clock.now(), Some(path)).await?;
        }
        let said =
            format!("{}; erased {}", if counts.is_cut_off { "interrupted" } else { "done" }, counts.all());
        Ok((counts, said))
    };
    let counts = recorded(&vault, "cards.purge", run.as_str(), only.as_ref(), work).await?;
    let event = if counts.is_cut_off { "interrupted" } else { "done" };
    shown.end(event, &counts.step(), &[("run", run.as_str().into())]);
    if shown.is_for_people() {
        println!(
            "erased {} cards: {} unattached, {} inactive; `cardvault cards report --run {run}` writes the signed report",
            counts.all(),
            counts.unattached,
            counts.inactive
        );
    }
    if counts.is_cut_off {
        bail!("interrupted; what was erased is erased, and running it again erases the rest");
    }
    Ok(())
}

async fn sweep(
    vault: &Vault,
    run: &RunId,
    limits: Limits,
    only: Option<&Merchant>,
    args: &Args,
    shown: &mut Shown,
) -> anyhow::Result<Counts> {
    let mut stop = std::pin::pin!(told_to_stop());
    let of = patiently(|| vault.count_old_cards(limits, only)).await?;
    let mut counts = Counts { of, ..Counts::default() };
    let mut after = Place::beginning();
    let mut reported = tokio::time::Instant::now();
    loop {
        let page = patiently(|| async {
            vault.keys.follow().await?;
            vault.look_at_cards(limits, only, &after, PAGE).await
        })
        .await?;
        for (merchant, cards) in &page.due {
            if args.dry_run {
                cards.iter().for_each(|(_, reason)| counts.count(*reason));
                continue;
            }
            for batch in cards.chunks(usize::from(args.batch).min(BATCH)) {
                // Nothing else is polled while this runs, so no transaction is dropped half-way.
                let gone = patiently(|| vault.erase_old_cards(run, limits, merchant, batch)).await?;
                gone.iter().for_each(|gone| counts.count(gone.reason));
                shown.step(&counts.step());
                if is_told(&mut stop, Duration::from_millis(args.pause_ms)).await {
                    counts.is_cut_off = true;
                    return Ok(counts);
                }
            }
        }
        counts.looked += page.looked;
        shown.step(&counts.step());
        if reported.elapsed() >= REPORT_USES {
            patiently(|| vault.keys.report_uses()).await?;
            reported = tokio::time::Instant::now();
        }
        let Some(next) = page.next else { return Ok(counts) };
        after = next;
        if is_told(&mut stop, Duration::ZERO).await {
            counts.is_cut_off = true;
            return Ok(counts);
        }
    }
}

/// Waits for a pause; whether the process was told to stop meanwhile.
pub(super) async fn is_told(stop: &mut (impl Future<Output = ()> + Unpin), pause: Duration) -> bool {
    tokio::select! {
        biased;
        () = stop => true,
        () = tokio::time::sleep(pause) => false,
    }
}
