//! `cardvault migrate`

use std::path::PathBuf;

use anyhow::Context;

use crate::app::open_database;
use crate::config::{self, Config};
use crate::store::migrate;
use crate::telemetry;

#[derive(clap::Args)]
pub struct Args {
    /// The configuration file.
    #[arg(long, env = "CARDVAULT_CONFIG")]
    config: PathBuf,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::start("warn");
    let config = Config::load(&args.config, config::environment())?;
    let db = open_database(&config).await?;
    migrate::run(&db).await.context("migrating the database")?;
    db.close().await;
    println!("the schema is up to date");
    Ok(())
}
