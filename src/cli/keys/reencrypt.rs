//! `cardvault keys reencrypt`

use super::progress::Shown;
use super::{Common, Steps};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    steps: Steps,
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
    super::note(&admin, "keys.reencrypt", "card", "begun").await?;
    let mut shown = Shown::new(args.json);
    let done = admin.reencrypt(args.steps.pace(), &mut |progress| shown.step(progress)).await;
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
