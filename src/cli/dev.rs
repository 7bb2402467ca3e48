//! `cardvault dev`: the shortest way to see the vault work.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::sync::oneshot;

use crate::app::App;
use crate::base::entropy;
use crate::config::{self, Config};
use crate::sandbox::{DEFAULT_LISTEN, DEFAULT_SLOW, NotifyOptions, Options, Sandbox};
use crate::telemetry;

use super::init::{self, Choices};
use super::taken_up;
use super::walk::{self, Walk};

#[derive(clap::Args)]
pub struct Args {
    /// Where to keep the state; a second start takes it up again [default: a folder that goes at the end].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Exit after the walk: 0 if every step did what it should.
    #[arg(long)]
    once: bool,
    /// Where the gateway sandbox listens.
    #[arg(long, default_value_t = DEFAULT_LISTEN)]
    sandbox_listen: SocketAddr,
    #[command(flatten)]
    choices: Choices,
}

/// A folder of this run, removed with everything in it when the run ends.
struct Folder {
    path: PathBuf,
    temporary: bool,
}

impl Folder {
    fn of(args: &Args) -> anyhow::Result<Self> {
        if let Some(path) = &args.dir {
            return Ok(Self { path: path.clone(), temporary: false });
        }
        let name = format!("cardvault-dev-{}", data_encoding::HEXLOWER.encode(&entropy::array::<8>()?));
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path).context("making a temporary folder")?;
        Ok(Self { path, temporary: true })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary && std::fs::remove_dir_all(&self.path).is_err() {
            eprintln!("cardvault: {} could not be removed", self.path.display());
        }
    }
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    // Its two merchants share the sandbox's one account; the warning about that is for real ones.
    telemetry::start("warn,cardvault::app=error");
    telemetry::keep_memory_private();
    let folder = Folder::of(&args)?;
    let dir = std::path::absolute(&folder.path)?;
    let path = dir.join("cardvault.toml");
    let known = path.exists();
    if !known {
        println!("Making certificates, keys and a configuration in {}", dir.display());
        init::write(&dir, &args.choices)?;
    }
    let mut config = Config::load(&path, config::environment())?;
    if known {
        taken_up::check(&dir, &config, &args.choices)?;
        println!("Taking up {}", dir.display());
    }
    let sandbox = match is_sandbox(&dir, &config) {
        true => Some(start_sandbox(&dir, &config, args.sandbox_listen).await?),
        false => None,
    };
    if let (Some(sandbox), Some(gateway)) = (&sandbox, config.gateway.first_mut()) {
        gateway.base_url = sandbox.base_url();
        gateway.allow_private_addresses = true;
        println!("The gateway sandbox serves  {}", sandbox.base_url());
    }
    let app = App::start(&config).await?;
    println!("The vault serves            https://{}\n", app.api_address());
    let ready = app.ready_line();
    let address = app.api_address();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(app.serve(async {
        // A sender that is dropped says the same.
        let _ = stopped.await;
    }));
    let walked = walk::run(&Walk { dir: &dir, address, sandbox: sandbox.as_ref() }).await;
    if !args.once {
        if let Err(error) = &walked {
            eprintln!("cardvault: the walk stopped: {error:#}; the vault serves all the same");
        }
        walk::print_curl(&dir, address, walked.as_deref().ok());
        println!("{ready}\nCtrl-C ends it.");
        super::told_to_stop().await;
    }
    let _ = stop.send(());
    serving.await.context("the vault stopped in a way that it should not")?;
    if let Some(sandbox) = sandbox {
        sandbox.stop().await;
    }
    // Without `--once` it has been told, and there is a vault to try.
    if args.once { walked.map(|_| ()) } else { Ok(()) }
}

/// Whether a folder's gateway is the local sandbox: it has the key of one, whatever this start was told.
fn is_sandbox(dir: &Path, config: &Config) -> bool {
    let key = dir.join(init::SANDBOX_PUBLIC_KEY);
    config.gateway.first().is_some_and(|gateway| gateway.public_keys.values().any(|path| *path == key))
}

async fn start_sandbox(dir: &Path, config: &Config, listen: SocketAddr) -> anyhow::Result<Sandbox> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    let client_id = config.gateway.first().map(|gateway| gateway.client_id.clone());
    let options = Options {
        listen,
        tls_certificate_pem: read("pki/sandbox.pem")?,
        tls_private_key_pem: read("pki/sandbox.key")?,
        ledger: dir.join("sandbox-ledger.jsonl"),
        client_id: client_id.context("the configuration has no [[gateway]]")?,
        merchant_public_key_pem: read("gateway/merchant_public.pem")?,
        gateway_private_key_pem: read("gateway/sandbox_private.pem")?,
        gateway_key_version: 1,
        slow: DEFAULT_SLOW,
        notify: Some(NotifyOptions { ca_pem: Some(read("pki/ca.pem")?), ..NotifyOptions::default() }),
    };
    Sandbox::start(options).await.context("starting the gateway sandbox")
}
