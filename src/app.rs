//! Wiring: turns a configuration into a running vault.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use tokio::sync::watch;

use crate::base::clock::{SharedClock, SystemClock};
use crate::base::ids::GatewayAccount;
use crate::base::private_file::is_closed;
use crate::base::secret::SecretText;
use crate::config::{Config, GatewaySection, HsmSection, NotifySection};
use crate::crypto::kek::{Keks, TokenKeks};
use crate::gateway::Gateway;
use crate::gateway::antom::client::{self, Client};
use crate::gateway::measured::Measured;
use crate::gateway::patient::Patient;
use crate::http::notify;
use crate::http::pace::Pace;
use crate::http::router::{Api, router};
use crate::http::serve::{Limits, Listener, ROWS_A_SECOND};
use crate::http::sparing::Sparing;
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::ops::custody::Custody;
use crate::ops::keys::DataKeys;
use crate::ops::{Policy, Vault};
use crate::ops_plane::OpsPlane;
use crate::store::backend::{Db, Options};
use crate::store::migrate;

mod admission;
mod gateway_keys;
mod stamp;
pub mod unseal;

use admission::Admission;
pub use gateway_keys::{GatewayKey, list as gateway_keys};

/// How often CVVs whose time is over are wiped.
const SWEEP: Duration = Duration::from_secs(5);

/// A vault whose listeners are bound and whose keys are open.
pub struct App {
    vault: Arc<Vault>,
    router: Router,
    admission: Admission,
    api: Listener,
    limits: Limits,
    notify: Option<NotifyPlane>,
    ops: Option<OpsPlane>,
    gateways: gateway_keys::Watch,
    custody: Arc<Custody>,
    unseal: Option<unseal::UnsealSocket>,
    drain: Duration,
}

/// The bound listener for notifications.
struct NotifyPlane {
    listener: Listener,
    signed_path: String,
    served_path: String,
}

impl NotifyPlane {
    async fn bind(section: &NotifySection) -> anyhow::Result<Self> {
        let listener =
            Listener::bind(section.listen).await.context("binding notify.listen: is the port free?")?;
        let signed_path = section.signed_path();
        let served_path = section.path.clone().unwrap_or_else(|| signed_path.clone());
        Ok(Self { listener, signed_path, served_path })
    }
}

impl App {
    /// Opens everything that the configuration names.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        Self::start_with(config, Policy::default()).await
    }

    /// As [`Self::start`], with another `policy` where the configuration has no word for it.
    pub async fn start_with(config: &Config, policy: Policy) -> anyhow::Result<Self> {
        for (one, other) in config.shared_accounts() {
            tracing::warn!(
                one,
                other,
                "two merchants share a gateway account: a request id that one has used is refused to the other"
            );
        }
        let clock: SharedClock = Arc::new(SystemClock);
        let db = open_database(config).await?;
        if config.database.migrate {
            migrate::run(&db).await.context("migrating the database")?;
        } else {
            migrate::check(&db).await.context("looking at the database")?;
        }
        let db = db.answering_within(policy.database_answers);
        let keks = Arc::new(keks(config)?);
        let custody = Arc::new(Custody::new(Arc::clone(&keks), clock.clone()));
        let keys = DataKeys::closed(db.clone(), Arc::clone(&keks) as _, &clock, config.keys.policy())?;
        match keys.open().await {
            Err(error) if error.sealed().is_some() => {
                tracing::warn!("the vault is sealed: it waits for the shares of its key-encryption key");
            }
            opened => opened.context(
                "opening the data keys (is the schema up to date? `cardvault migrate` brings it there)",
            )?,
        }
        let unseal = unseal_socket(config, &custody, keys.are_closed())?;
        let metrics = Arc::new(Metrics::default());
        let (accounts, clients_of_gateways) = accounts(config, &clock, &metrics)?;
        let admission = Admission::new(config, accounts.keys().cloned().collect())?;
        let gateways = gateway_keys::Watch::new(config, clients_of_gateways);
        let notify = match &config.notify {
            Some(section) => Some(NotifyPlane::bind(section).await?),
            None => None,
        };
        let notify_url = config.notify.as_ref().zip(notify.as_ref());
        let notify_url = notify_url.map(|(section, plane)| section.url(plane.listener.local_addr().port()));
        let policy = Policy {
            bin_format: config.bin_format(),
            unattached: Duration::from_secs(u64::from(config.retention.unattached_card_hours) * 3600),
            retention: config.retention.limits(),
            declined_attempts: config.retention.declined_attempts_in_30_days,
            notify_url,
            ..policy
        };
        let vault = Arc::new(Vault::counting(db, keys, accounts, clock, policy, Arc::clone(&metrics))?);
        let bind = |key: &'static str| move || format!("binding {key}: is the port free?");
        let api = Listener::bind(config.api.listen).await.with_context(bind("api.listen"))?;
        let ops = match config.ops.listen {
            Some(address) => Some(OpsPlane::bind(address).await.with_context(bind("ops.listen"))?),
            None => None,
        };
        admission.tell_expiries(&metrics);
        let drain = Duration::from_millis(config.ops.drain_ms);
        let pace = Arc::new(Pace::new(vault.clock.instant(), metrics.pace()));
        let router = router(Api { vault: vault.clone(), clients: admission.clients(), pace });
        let limits = Limits {
            max_connections: config.api.max_connections,
            max_per_address: config.api.max_connections_per_address,
            max_per_client: config.api.max_connections_per_client,
            ..Limits::default()
        };
        Ok(Self { vault, router, admission, api, limits, notify, ops, gateways, custody, unseal, drain })
    }

    /// Where the API listens.
    pub fn api_address(&self) -> SocketAddr {
        self.api.local_addr()
    }

    /// Where notifications are taken.
    pub fn notify_address(&self) -> Option<SocketAddr> {
        self.notify.as_ref().map(|plane| plane.listener.local_addr())
    }

    /// Where the health checks listen.
    pub fn ops_address(&self) -> Option<SocketAddr> {
        self.ops.as_ref().and_then(|ops| ops.address().ok())
    }

    /// Turns true when the vault is not sealed, or not any more.
    pub fn opened(&self) -> watch::Receiver<bool> {
        self.vault.keys.opened()
    }

    /// The line that tells that the vault is sealed and waits for its custodians.
    pub fn sealed_line(&self) -> String {
        format!("sealed api=https://{}; waiting for shares: cardvault keys unseal", self.api_address())
    }

    /// Who brought shares so far, for the audit.
    pub fn custody(&self) -> Arc<Custody> {
        Arc::clone(&self.custody)
    }

    /// The one line that tells that requests are taken.
    pub fn ready_line(&self) -> String {
        let ops = self.ops_address().map(|address| format!(" ops=http://{address}")).unwrap_or_default();
        let notify =
            self.notify_address().map(|address| format!(" notify=https://{address}")).unwrap_or_default();
        format!("ready api=https://{}{notify}{ops}", self.api_address())
    }

    /// Serves until `shutdown`, lets the requests and payments in flight finish, and wipes what is held in
    /// memory.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Self { vault, router, admission, api, limits, notify, ops, gateways, custody, unseal, drain } =
            self;
        let (leave, leaving) = watch::channel(false);
        let (stop_unsealing, stopped_unsealing) = watch::channel(false);
        let unsealing = tokio::spawn(open_when_rebuilt(vault.clone(), custody, stopped_unsealing));
        let unseal = unseal.map(|socket| tokio::spawn(socket.serve()));
        let gateways = tokio::spawn(gateways.run());
        let (rules, notify_rules) = (admission.rules(), admission.notify_rules());
        let admission = tokio::spawn(admission.run(vault.clone()));
        let sweeper = tokio::spawn(sweep(vault.clone()));
        let health = ops.map(|ops| tokio::spawn(ops.serve(vault.clone(), leaving.clone())));
        let jobs = tokio::spawn(jobs_once_open(vault.clone()));
        let (stop_notify, stopped) = tokio::sync::oneshot::channel::<()>();
        let notified = notify.zip(notify_rules).map(|(plane, rules)| {
            let router = notify::router(notify::Notify {
                vault: vault.clone(),
                signed_path: plane.signed_path.into(),
                served_path: plane.served_path.into(),
                forged: Arc::new(Sparing::new(ROWS_A_SECOND)),
            });
            let listener = plane.listener.counted(vault.metrics.clone(), "notify").leaving(leaving.clone());
            tokio::spawn(listener.serve(rules, router, Limits::default(), async {
                // A sender that is dropped says the same.
                let _ = stopped.await;
            }))
        });
        let told = vault.clone();
        let shutdown = async move {
            shutdown.await;
            tracing::info!("told to stop");
            leave.send_replace(true);
            // A request that waits for events is in flight, and is to finish now.
            told.bell.stop();
            // Until the balancers have seen that this vault goes, they send callers here.
            tokio::time::sleep(drain).await;
        };
        let api = api.counted(vault.metrics.clone(), "api").leaving(leaving).audited(vault.audit.clone());
        api.serve(rules, router, limits, shutdown).await;
        drop(stop_notify);
        if let Some(notified) = notified
            && notified.await.is_err()
        {
            tracing::error!(alarm = true, "the notify listener ended in a way that it should not");
        }
        sweeper.abort();
        gateways.abort();
        admission.abort();
        if let Some(unseal) = unseal {
            unseal.abort();
            // Its file goes with it.
            let _aborted = unseal.await;
        }
        // No share comes any more: those that came are recorded.
        stop_unsealing.send_replace(true);
        if unsealing.await.is_err() {
            tracing::error!(alarm = true, "the shares that were brought may not all be in the audit trail");
        }
        if let Some(health) = health {
            health.abort();
        }
        // What they come to is an event, so they go before the jobs.
        vault.finish_payments().await;
        // Where the vault was never unsealed there are none, and the wait for it ends here.
        jobs.abort();
        if let Ok(jobs) = jobs.await {
            jobs.stop().await;
            vault.audit.close(&vault.db, &vault.keys).await;
            // The closing rows are uses of the audit key.
            if let Err(error) = vault.keys.report_uses().await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "what the keys were used for at the end was not reported");
            }
        }
        vault.forget_held();
        vault.db.close().await;
    }
}

/// Binds the socket for shares. A KEK that is in the file today can be split beside this server, which then
/// needs its shares.
fn unseal_socket(
    config: &Config,
    custody: &Arc<Custody>,
    sealed: bool,
) -> anyhow::Result<Option<unseal::UnsealSocket>> {
    match unseal::UnsealSocket::bind(&config.keys.socket(), Arc::clone(custody)) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if sealed => Err(error),
        // Custodians are needed again only at the next rotation or start.
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "shares cannot be brought to this server");
            Ok(None)
        }
    }
}

/// Opens the keys as soon as the KEKs that they need are rebuilt, and records who brought which share, until
/// told to stop; what was brought until then is recorded too.
async fn open_when_rebuilt(vault: Arc<Vault>, custody: Arc<Custody>, mut stopping: watch::Receiver<bool>) {
    let mut brought = custody.brought();
    loop {
        brought.mark_unchanged();
        let stop = *stopping.borrow();
        let done = (stop || open_if_rebuilt(&vault).await) && record_shares(&vault, &custody).await;
        if stop {
            return;
        }
        tokio::select! {
            // A sender that is dropped says the same.
            _ = stopping.wait_for(|stop| *stop) => {}
            _ = brought.changed() => {}
            () = tokio::time::sleep(Duration::from_secs(1)), if !done => {}
        }
    }
}

/// Opens the keys where that can be; `false` where it is to be tried again without another share.
async fn open_if_rebuilt(vault: &Vault) -> bool {
    if !vault.keys.are_closed() {
        return true;
    }
    match vault.keys.open().await {
        Ok(()) => {
            tracing::info!("the vault is unsealed");
            true
        }
        // Custodians are waited for.
        Err(error) if error.sealed().is_some() => true,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the keys cannot be opened");
            false
        }
    }
}

/// Records the shares that were brought, where the audit trail is open; `false` where that failed.
async fn record_shares(vault: &Vault, custody: &Custody) -> bool {
    if vault.keys.are_closed() {
        return true;
    }
    let recorded = custody.record(&vault.audit, &vault.db, &vault.keys).await;
    if let Err(error) = &recorded {
        let error = error as &dyn std::error::Error;
        tracing::error!(alarm = true, error, "the shares that were brought are not in the audit trail yet");
    }
    recorded.is_ok()
}

/// Starts the jobs when the keys are open.
async fn jobs_once_open(vault: Arc<Vault>) -> Jobs {
    let mut opened = vault.keys.opened();
    // The sender lives in the vault, so the wait ends only by what it waits for.
    let _ = opened.wait_for(|open| *open).await;
    Jobs::start(&vault)
}

async fn sweep(vault: Arc<Vault>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let wiped = vault.slots.sweep();
        if wiped > 0 {
            tracing::info!(wiped, "CVVs were not used in time and are gone");
        }
    }
}

/// The KEKs that the configuration names.
pub fn keks(config: &Config) -> anyhow::Result<Keks> {
    let token = config.keys.hsm.as_ref().map(token).transpose()?;
    Ok(Keks::open(&config.keys.keyring, token)?)
}

#[cfg(feature = "pkcs11")]
fn token(section: &HsmSection) -> anyhow::Result<Arc<dyn TokenKeks>> {
    use crate::crypto::kek::hsm::{Hsm, Options};
    Ok(Arc::new(Hsm::new(Options {
        module: section.module.clone(),
        token: section.token.clone(),
        pin_file: section.pin_file.clone(),
    })))
}

#[cfg(not(feature = "pkcs11"))]
fn token(_: &HsmSection) -> anyhow::Result<Arc<dyn TokenKeks>> {
    bail!("keys.hsm: this program was built without PKCS#11; build it with `--features pkcs11`")
}

/// Opens the configured database.
pub async fn open_database(config: &Config) -> anyhow::Result<Db> {
    let options =
        Options { url: config.database.url.clone(), password_file: config.database.password_file.clone() };
    Db::open(&options).await.context("opening the database")
}

type Accounts = HashMap<GatewayAccount, Arc<dyn Gateway>>;

/// The clients by the names of their sections.
type Clients = Vec<(String, Arc<Client>)>;

fn accounts(
    config: &Config,
    clock: &SharedClock,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(Accounts, Clients)> {
    let mut accounts = Accounts::new();
    let mut clients = Vec::new();
    for section in &config.gateway {
        let client =
            gateway(section, clock).with_context(|| format!("setting up [[gateway]] {}", section.name))?;
        let client = Arc::new(client);
        clients.push((section.name.clone(), Arc::clone(&client)));
        // What is held back is no call, and is not measured.
        let measured = Arc::new(Measured::new(client, metrics.clone()));
        accounts.insert(section.account()?, Arc::new(Patient::new(measured, clock.clone())));
    }
    Ok((accounts, clients))
}

fn gateway(section: &GatewaySection, clock: &SharedClock) -> anyhow::Result<Client> {
    let (signing, verifier) = gateway_keys::load(section)?;
    let options = client::Options {
        base_url: section.base_url.clone(),
        client_id: section.client_id.clone(),
        ca_pem: section.ca.as_ref().map(|path| read(path, "ca")).transpose()?,
        allow_private_addresses: section.allow_private_addresses,
        connect_timeout: Duration::from_millis(section.connect_timeout_ms),
        timeout: Duration::from_millis(section.timeout_ms),
    };
    Ok(Client::new(options, signing, verifier, clock.clone())?)
}

pub(crate) fn read(path: &Path, key: &str) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{key}: reading {}", path.display()))
}

/// Reads a private key's file, which nobody but its owner may be able to read.
pub(crate) fn read_secret(path: &Path, key: &str) -> anyhow::Result<SecretText> {
    let what = || format!("{key}: reading {}", path.display());
    let mut file = File::open(path).with_context(what)?;
    let mode = file.metadata().with_context(what)?.permissions().mode();
    if !is_closed(path, mode) {
        bail!("{key}: others can read {}; run `chmod 600 {0}`", path.display());
    }
    let mut text = String::with_capacity(16 * 1024);
    file.read_to_string(&mut text).with_context(what)?;
    Ok(SecretText::new(text))
}
