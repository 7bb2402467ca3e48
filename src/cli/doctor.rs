//! `cardvault doctor`

use std::path::PathBuf;

use anyhow::bail;

use crate::config;
use crate::doctor::{Verdict, examine};
use crate::telemetry;

/// Looks at the configuration, files, certificates, database, keys, clock, host and segment. Changes nothing.
/// Ends with 0 where nothing fails (warnings are told), with 1 where something does.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration file.
    #[arg(long, env = "CARDVAULT_CONFIG")]
    config: PathBuf,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::start("off");
    // It opens every data key, as the server does.
    telemetry::keep_memory_private();
    let report = examine(&args.config, config::environment()).await;
    let count = |verdict| report.iter().filter(|line| line.verdict == verdict).count();
    let [pass, warn, fail] = [Verdict::Pass, Verdict::Warn, Verdict::Fail].map(count);
    if args.json {
        let lines: Vec<serde_json::Value> = report.iter().map(|line| line.as_json()).collect();
        println!("{}", serde_json::json!({ "pass": pass, "warn": warn, "fail": fail, "lines": lines }));
    } else {
        for line in &report {
            println!("{:<4}  {:<12} {}", line.verdict.name(), line.area, line.told);
            if let Some(mend) = &line.mend {
                println!("      {:<12} -> {mend}", "");
            }
        }
        println!("\n{pass} pass, {warn} warn, {fail} fail");
    }
    match fail {
        0 => Ok(()),
        1 => bail!("1 check fails"),
        _ => bail!("{fail} checks fail"),
    }
}
