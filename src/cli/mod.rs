//! The command line. One file for each command; errors name the cause and the mend.

mod audit;
mod cards;
mod dev;
mod doctor;
mod init;
mod keys;
mod migrate;
mod sandbox;
mod serve;
mod taken_up;
mod walk;
mod walk_ids;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A card vault and tokenizer for the Antom gateway.
#[derive(Parser)]
#[command(name = "cardvault", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Try it: make everything, start a vault and a gateway sandbox, walk through a payment, serve.
    Dev(dev::Args),
    /// Write a configuration, a keyring, certificates and gateway keys into a folder.
    Init(init::Args),
    /// Serve the API.
    Serve(serve::Args),
    /// Look at everything around a vault, and change nothing: each line pass, warn or fail, with the mend.
    Doctor(doctor::Args),
    /// Bring the database's schema up to date.
    Migrate(migrate::Args),
    /// Keys: their state, rotation, re-encryption, destruction.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Cards: bring them from another vault, erase those whose time is over, prove what went.
    #[command(subcommand)]
    Cards(cards::Command),
    /// The audit trail: prove it, print it.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Run the local emulator of the gateway, for tests of your own.
    Sandbox(sandbox::Args),
    /// Print the API's OpenAPI 3.1 document.
    Openapi,
}

/// Runs the command that the arguments name: 0, 1 (failed) or 2 (usage).
pub async fn run() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Dev(args) => dev::run(args).await,
        Command::Init(args) => init::run(args),
        Command::Serve(args) => serve::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Migrate(args) => migrate::run(args).await,
        Command::Keys(command) => keys::run(command).await,
        Command::Cards(command) => cards::run(command).await,
        Command::Audit(command) => audit::run(command).await,
        Command::Sandbox(args) => sandbox::run(args).await,
        Command::Openapi => print_openapi(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cardvault: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_openapi() -> anyhow::Result<()> {
    use std::io::Write;
    // A reader that has seen enough (`| head`) is no failure.
    match std::io::stdout().write_all(crate::http::routes::openapi::DOCUMENT.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Ends when the process is told to: Ctrl-C or SIGTERM.
async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(_) => {
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}
