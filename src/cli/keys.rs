//! `cardvault keys init`

use std::path::PathBuf;

use crate::base::clock::{Clock, SystemClock};
use crate::crypto::kek::file;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Make a keyring file with one random key-encryption key.
    Init {
        /// Where to write it; never over a file that is there.
        #[arg(long, default_value = "keys/keyring.toml")]
        keyring: PathBuf,
    },
}

pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init { keyring } => {
            file::create_new(&keyring, &file::generate(SystemClock.now())?)?;
            println!("wrote {}; keep a copy where the database's backups are not", keyring.display());
            Ok(())
        }
    }
}
