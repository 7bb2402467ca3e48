//! `cardvault serve`

use std::path::PathBuf;

use crate::app::App;
use crate::config::{self, Config};
use crate::telemetry;

#[derive(clap::Args)]
pub struct Args {
    /// The configuration file.
    #[arg(long, env = "CARDVAULT_CONFIG")]
    config: PathBuf,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::start("info");
    telemetry::keep_memory_private();
    let config = Config::load(&args.config, config::environment())?;
    let faults = telemetry::memory_faults();
    for (fault, mend) in &faults {
        tracing::warn!(mend, "{fault}");
    }
    if let (true, Some((fault, mend))) = (config.keys.require_private_memory, faults.first()) {
        anyhow::bail!("keys.require_private_memory: {fault}; {mend}");
    }
    telemetry::make_room_for(config.api.max_connections);
    let app = App::start(&config).await?;
    let (ready, mut opened) = (app.ready_line(), app.opened());
    if !*opened.borrow() {
        println!("{}", app.sealed_line());
    }
    let telling = tokio::spawn(async move {
        if opened.wait_for(|open| *open).await.is_ok() {
            println!("{ready}");
        }
    });
    app.serve(super::told_to_stop()).await;
    telling.abort();
    Ok(())
}
