//! `cardvault sandbox`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use crate::sandbox::{CARDS_HELP, DEFAULT_LISTEN, NotifyOptions, Options, Sandbox};
use crate::telemetry;

#[derive(clap::Args)]
#[command(after_long_help = CARDS_HELP)]
pub struct Args {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value_t = DEFAULT_LISTEN)]
    listen: SocketAddr,
    /// The folder that `cardvault init` wrote: gives every file that is not named below.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// The server's certificate chain, PEM [default: DIR/pki/sandbox.pem].
    #[arg(long)]
    certificate: Option<PathBuf>,
    /// Its private key, PEM [default: DIR/pki/sandbox.key].
    #[arg(long)]
    private_key: Option<PathBuf>,
    /// The file of payments [default: DIR/sandbox-ledger.jsonl].
    #[arg(long)]
    ledger: Option<PathBuf>,
    /// The client id that is served.
    #[arg(long, default_value = super::init::SANDBOX_CLIENT_ID)]
    client_id: String,
    /// Verifies requests [default: DIR/gateway/merchant_public.pem].
    #[arg(long)]
    merchant_public_key: Option<PathBuf>,
    /// Signs answers [default: DIR/gateway/sandbox_private.pem].
    #[arg(long)]
    gateway_private_key: Option<PathBuf>,
    /// The version that signatures name.
    #[arg(long, default_value_t = 1)]
    gateway_key_version: u32,
    /// How long a slow answer takes, in milliseconds; silence takes four times as long.
    #[arg(long, default_value_t = 10_000)]
    slow_ms: u64,
    /// Certificate authorities of notification receivers, PEM [default: DIR/pki/ca.pem].
    #[arg(long)]
    notify_ca: Option<PathBuf>,
    /// Send no notifications.
    #[arg(long)]
    no_notify: bool,
}

impl Args {
    fn options(&self) -> anyhow::Result<Options> {
        let at =
            |given: &Option<PathBuf>, default: &str| given.clone().unwrap_or_else(|| self.dir.join(default));
        let read =
            |path: PathBuf| std::fs::read(&path).with_context(|| format!("reading {}", path.display()));
        Ok(Options {
            listen: self.listen,
            tls_certificate_pem: read(at(&self.certificate, "pki/sandbox.pem"))?,
            tls_private_key_pem: read(at(&self.private_key, "pki/sandbox.key"))?,
            ledger: at(&self.ledger, "sandbox-ledger.jsonl"),
            client_id: self.client_id.clone(),
            merchant_public_key_pem: read(at(&self.merchant_public_key, "gateway/merchant_public.pem"))?,
            gateway_private_key_pem: read(at(&self.gateway_private_key, "gateway/sandbox_private.pem"))?,
            gateway_key_version: self.gateway_key_version,
            slow: Duration::from_millis(self.slow_ms),
            notify: match self.no_notify {
                true => None,
                false => Some(NotifyOptions {
                    ca_pem: Some(read(at(&self.notify_ca, "pki/ca.pem"))?),
                    ..NotifyOptions::default()
                }),
            },
        })
    }
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::start("info");
    let sandbox = Sandbox::start(args.options()?).await.context("starting the sandbox")?;
    println!("ready sandbox={}", sandbox.base_url());
    super::told_to_stop().await;
    sandbox.stop().await;
    Ok(())
}
