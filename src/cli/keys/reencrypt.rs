//! `cardvault keys reencrypt`

use crate::ops::rotation::reencrypt::Pace;

use super::Common;
use super::progress::Shown;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Rows that are stored in one transaction [default: 50, or 1000 without a pause].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: Option<u32>,
    /// Milliseconds between batches, for others to write in.
    #[arg(long, default_value_t = Pace::PAUSE_MS)]
    pause_ms: u64,
    /// Print progress and result as lines of JSON.
    #[arg(long)]
    json: bool,
    /// Only tell how many rows would be moved.
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let (_, admin) = super::opened(&args.common).await?;
    if args.dry_run {
        let left = admin.count_stale().await?;
        match args.json {
            true => println!("{}", serde_json::json!({ "event": "dryRun", "left": left })),
            false => println!("{left} rows have records under a retired card key"),
        }
        return Ok(());
    }
    let pace = Pace::new(args.batch, args.pause_ms);
    super::note(&admin, "keys.reencrypt", "card", "begun").await?;
    let mut shown = Shown::new(args.json);
    let done = admin.reencrypt(pace, &mut |progress| shown.step(progress)).await;
    shown.end();
    if let Ok(done) = &done {
        super::note(&admin, "keys.reencrypt", "card", &format!("done; moved {} rows", done.moved)).await?;
    }
    let done = super::ended(&admin, "keys.reencrypt", "card", done).await?;
    if args.json {
        println!(
            "{}",
            serde_json::json!({
                "event": "done", "moved": done.moved, "changedMeanwhile": done.lost,
                "opened": done.sampled, "seconds": done.took.as_secs_f64(),
            })
        );
    } else {
        println!(
            "moved {} rows in {:.1} s; nothing is left under a retired card key, and {} records that were tried open",
            done.moved,
            done.took.as_secs_f64(),
            done.sampled
        );
    }
    Ok(())
}
