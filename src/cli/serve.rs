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
    let app = App::start(&config).await?;
    println!("{}", app.ready_line());
    app.serve(super::told_to_stop()).await;
    Ok(())
}
