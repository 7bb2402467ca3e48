//! What decides who gets in, kept up to date without a restart: the certificates of the listeners, the
//! clients' authority, its revocation lists, and the configured clients. They are read again at SIGHUP, and
//! when one of their files, or the configuration that names them, is another than before.
//!
//! Each part is taken up whole or not at all: one that cannot be used leaves the one from before in place,
//! and the others are not held up by it. Revocation lists are the exception: where they are configured and
//! cannot be had, or are stale, nobody new is let in, because nothing tells who is revoked.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use ring::digest::{SHA256, digest};
use tokio::sync::{oneshot, watch};

use crate::base::clock::Millis;
use crate::base::ids::GatewayAccount;
use crate::base::secret::SecretText;
use crate::config::{self, ApiSection, Config, NotifySection};
use crate::http::admission::{Clients, Rules};
use crate::http::peer::not_after;
use crate::http::tls::{Revocation, RevocationLists, ServerTls, Tls};
use crate::metrics::Metrics;
use crate::model::access::Client;
use crate::model::audit::{Actor, Entry};
use crate::ops::error::OpError;
use crate::ops::{Vault, audit};

use super::stamp::{Looks, Stamp, stamp};
use super::{read, read_secret};

/// How often it is told again that something is wrong.
const REMIND: Duration = Duration::from_secs(600);
/// The hindrance that readiness tells of.
const NO_LISTS: &str = "the clients' revocation lists are missing, corrupt or stale: nobody new is let in";

/// A listener's certificate and key.
struct Identity {
    certificate_pem: Vec<u8>,
    private_key: SecretText,
}

impl Identity {
    fn read(section: &str, certificate: &Path, private_key: &Path) -> anyhow::Result<Self> {
        let identity = Self {
            certificate_pem: read(certificate, &format!("{section}.certificate"))?,
            private_key: read_secret(private_key, &format!("{section}.private_key"))?,
        };
        // A pair that does not fit together must not take the place of one that does.
        identity.tls(None, Revocation::Unchecked, Revocation::Unchecked)?;
        Ok(identity)
    }

    fn tls(
        &self,
        client_ca: Option<&[u8]>,
        new: Revocation<'_>,
        open: Revocation<'_>,
    ) -> anyhow::Result<Tls> {
        let files = ServerTls {
            certificate_pem: self.certificate_pem.clone(),
            private_key_pem: self.private_key.expose().as_bytes().to_vec(),
            client_ca_pem: client_ca.map(<[u8]>::to_vec),
        };
        Ok(Tls::new(&files, new, open)?)
    }
}

/// The clients' revocation lists.
enum Lists {
    /// None is configured.
    None,
    /// They were read.
    Read(RevocationLists),
    /// They are configured and cannot be had. Open connections are held against those from before.
    Missing(Option<RevocationLists>),
}

impl Lists {
    fn read(paths: &[PathBuf], before: Option<Self>) -> (Self, anyhow::Result<()>) {
        if paths.is_empty() {
            return (Self::None, Ok(()));
        }
        let files: anyhow::Result<Vec<_>> = paths.iter().map(|path| read(path, "api.crl")).collect();
        let lists = files.and_then(|files| RevocationLists::read(&files).context("api.crl"));
        match lists {
            Ok(lists) => (Self::Read(lists), Ok(())),
            Err(error) => {
                let before = match before {
                    Some(Self::Read(lists) | Self::Missing(Some(lists))) => Some(lists),
                    _ => None,
                };
                (Self::Missing(before), Err(error))
            }
        }
    }

    fn for_new(&self) -> Revocation<'_> {
        match self {
            Self::None => Revocation::Unchecked,
            Self::Read(lists) => Revocation::Lists(lists),
            Self::Missing(_) => Revocation::Closed,
        }
    }

    fn for_open(&self) -> Revocation<'_> {
        match self {
            Self::None | Self::Missing(None) => Revocation::Unchecked,
            Self::Read(lists) | Self::Missing(Some(lists)) => Revocation::Lists(lists),
        }
    }
}

/// Everything that decides who gets in, as it was last good.
pub(super) struct Admission {
    config: Config,
    accounts: HashSet<GatewayAccount>,
    api: Identity,
    client_ca: Vec<u8>,
    lists: Lists,
    clients: Clients,
    rules: watch::Sender<Arc<Rules>>,
    notify: Option<watch::Sender<Arc<Rules>>>,
    /// When the certificates expire that are in use, and the authority; its file may hold what was refused.
    expiries: BTreeMap<&'static str, Millis>,
    seen: Vec<Stamp>,
    stale: bool,
    reminded: tokio::time::Instant,
    /// What was said last in the audit trail of who is let in; nothing yet at the start.
    said: Option<String>,
    /// Changes of access that are not in the audit trail yet.
    unaudited: Vec<Entry>,
    /// Tells how many of them are there now, and why not all.
    recording: Option<oneshot::Receiver<(usize, Option<OpError>)>>,
}

impl Admission {
    /// Reads everything. What is wrong here stops the start, but for revocation lists: they are waited for.
    pub(super) fn new(config: &Config, accounts: HashSet<GatewayAccount>) -> anyhow::Result<Self> {
        // Before the files are read: what changes meanwhile is seen at the next look.
        let seen = stamps(config);
        let ApiSection { certificate, private_key, client_ca, crl, .. } = &config.api;
        let api = Identity::read("api", certificate, private_key).context("setting up TLS for [api]")?;
        let client_ca = read(client_ca, "api.client_ca")?;
        let (lists, had) = Lists::read(crl, None);
        if let Err(error) = had {
            let error = format!("{error:#}");
            tracing::error!(
                error,
                alarm = true,
                "revocation lists cannot be had: nobody is let in until they can"
            );
        }
        let tls = api
            .tls(Some(&client_ca), lists.for_new(), lists.for_open())
            .context("setting up TLS for [api]")?;
        let clients = Clients::from(config.clients()?);
        let mut expiries = expiries_of(&[("api", &api.certificate_pem), ("client_ca", &client_ca)]);
        let notify = match &config.notify {
            Some(section) => {
                let (identity, rules) = notify_rules(section)?;
                expiries.extend(expiries_of(&[("notify", &identity.certificate_pem)]));
                Some(watch::Sender::new(Arc::new(rules)))
            }
            None => None,
        };
        let rules = watch::Sender::new(Arc::new(Rules { tls, clients: clients.clone() }));
        let config = config.clone();
        let reminded = tokio::time::Instant::now();
        Ok(Self {
            config,
            accounts,
            api,
            client_ca,
            lists,
            clients,
            rules,
            notify,
            expiries,
            seen,
            stale: false,
            reminded,
            said: None,
            unaudited: Vec::new(),
            recording: None,
        })
    }

    /// The configured clients.
    pub(super) fn clients(&self) -> Clients {
        self.clients.clone()
    }

    /// What the API's listener lets in by.
    pub(super) fn rules(&self) -> watch::Receiver<Arc<Rules>> {
        self.rules.subscribe()
    }

    /// The same of the listener for notifications.
    pub(super) fn notify_rules(&self) -> Option<watch::Receiver<Arc<Rules>>> {
        self.notify.as_ref().map(watch::Sender::subscribe)
    }

    /// Tells when the certificates expire that this process shows, and the authority of its clients.
    pub(super) fn tell_expiries(&self, metrics: &Metrics) {
        for (name, expires) in &self.expiries {
            metrics.certificate(name, *expires);
        }
    }

    /// Runs until it is aborted.
    pub(super) async fn run(mut self, vault: Arc<Vault>) {
        let mut looks = Looks::new("certificates and clients");
        self.watch_lists(&vault);
        self.say_who_gets_in();
        self.record(&vault);
        loop {
            let anyway = looks.next().await;
            if self.look(anyway) {
                self.tell_expiries(&vault.metrics);
                self.say_who_gets_in();
            }
            self.watch_lists(&vault);
            self.record(&vault);
        }
    }

    /// Has digests of all that decides who gets in recorded, at the start and where they differ from what was said
    /// last: a row of a client tells of what changed while the vault ran, and of nothing but the clients.
    fn say_who_gets_in(&mut self) {
        let hex = |bytes: &[u8]| format!("sha256:{}", data_encoding::HEXLOWER.encode(bytes));
        let lists = match &self.lists {
            Lists::None => "none".to_owned(),
            Lists::Read(lists) => hex(lists.digest()),
            Lists::Missing(_) => "missing".to_owned(),
        };
        let authority = hex(digest(&SHA256, &self.client_ca).as_ref());
        let clients = hex(&self.clients.digest());
        let said = format!("client_ca {authority}, crl {lists}, clients {clients}");
        if self.said.as_ref() != Some(&said) {
            self.unaudited.push(Entry::done("access.config", "api").with(&said));
            self.said = Some(said);
        }
    }

    /// Has it recorded who was let in or shut out, beside the looks: a database that is away must not keep a client in.
    /// What cannot be recorded now is tried again at the next look: it has happened.
    fn record(&mut self, vault: &Arc<Vault>) {
        if let Some(recording) = &mut self.recording {
            match recording.try_recv() {
                Ok((done, failed)) => {
                    self.unaudited.drain(..done.min(self.unaudited.len()));
                    if let Some(error) = failed {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(alarm = true, error, "a change of access is not audited yet");
                    }
                }
                Err(oneshot::error::TryRecvError::Empty) => return,
                Err(oneshot::error::TryRecvError::Closed) => {}
            }
            self.recording = None;
        }
        if self.unaudited.is_empty() || vault.keys.are_closed() {
            return;
        }
        let (told, recording) = oneshot::channel();
        let (here, entries) = (Arc::clone(vault), self.unaudited.clone());
        let who = Actor { origin: Some(audit::origin()), ..Actor::vault() };
        // The vault waits for it before it ends: a commit that is dropped would leave its chain for ever.
        vault.outlast(audit::acting(who, async move {
            for (done, entry) in entries.iter().enumerate() {
                if let Err(error) = here.note_alone(entry).await {
                    // Where nobody listens, the vault is stopping.
                    let _ = told.send((done, Some(error)));
                    return;
                }
            }
            let _ = told.send((entries.len(), None));
        }));
        self.recording = Some(recording);
    }

    /// Reads everything again where a file has changed, or `anyway`. What was wrong then waits for the next
    /// change: every turn has all open connections held against the rules. Tells whether anything was read.
    fn look(&mut self, anyway: bool) -> bool {
        // Before the files are read: what changes meanwhile is seen at the next look.
        let now = stamps(&self.config);
        if now == self.seen && !anyway {
            return false;
        }
        let faults = self.take_up();
        self.seen = now;
        if faults.is_empty() {
            tracing::info!("took up certificates, revocation lists and clients again");
        }
        for fault in &faults {
            tracing::error!(error = fault, alarm = true, "this was not taken up; what was before goes on");
        }
        true
    }

    /// Takes up every part that can be used, and tells what is wrong with the others.
    fn take_up(&mut self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut note = |done: anyhow::Result<()>| faults.extend(done.err().map(|error| format!("{error:#}")));
        note(self.take_up_configuration());
        let ApiSection { certificate, private_key, client_ca, crl, .. } = &self.config.api;
        note(Identity::read("api", certificate, private_key).map(|fresh| self.api = fresh));
        note(read(client_ca, "api.client_ca").and_then(|fresh| {
            self.api
                .tls(Some(&fresh), Revocation::Unchecked, Revocation::Unchecked)
                .context("api.client_ca")?;
            self.client_ca = fresh;
            Ok(())
        }));
        let before = std::mem::replace(&mut self.lists, Lists::None);
        let (lists, had) = Lists::read(crl, Some(before));
        self.lists = lists;
        note(had);
        let tls = self.api.tls(Some(&self.client_ca), self.lists.for_new(), self.lists.for_open());
        note(tls.map(|tls| {
            let used = [("api", &self.api.certificate_pem), ("client_ca", &self.client_ca)];
            self.expiries.extend(expiries_of(&used));
            self.rules.send_replace(Arc::new(Rules { tls, clients: self.clients.clone() }));
        }));
        if let (Some(section), Some(sender)) = (&self.config.notify, &self.notify) {
            note(notify_rules(section).map(|(identity, rules)| {
                self.expiries.extend(expiries_of(&[("notify", &identity.certificate_pem)]));
                sender.send_replace(Arc::new(rules));
            }));
        }
        faults
    }

    /// Takes up the clients and the names of files. The rest of the configuration needs a restart.
    fn take_up_configuration(&mut self) -> anyhow::Result<()> {
        let Some(file) = &self.config.file else { return Ok(()) };
        let fresh = Config::load(file, config::environment())?;
        let clients = fresh.clients()?;
        self.check_accounts(&clients)?;
        self.unaudited.extend(self.clients.replace(clients).into_iter().map(|(client, what)| {
            tracing::info!(client = %client, what, "a client's access changed");
            Entry::done("access.client", client.as_str()).with(what)
        }));
        let listen = self.config.api.listen;
        self.config.api = ApiSection { listen, ..fresh.api };
        if let (Some(section), Some(fresh)) = (&mut self.config.notify, fresh.notify) {
            section.certificate = fresh.certificate;
            section.private_key = fresh.private_key;
        }
        Ok(())
    }

    /// A client can be served only where its merchant's gateway was there at the start.
    fn check_accounts(&self, clients: &[Client]) -> anyhow::Result<()> {
        match clients.iter().find(|client| !self.accounts.contains(&client.account)) {
            Some(client) => bail!("client.{}: its [[gateway]] is new; restart to take it up", client.name),
            None => Ok(()),
        }
    }

    /// Tells when the lists become stale, and are so no more. That nobody new gets in is the handshake's
    /// doing, which looks at the time itself.
    fn watch_lists(&mut self, vault: &Vault) {
        let ends = match &self.lists {
            Lists::Read(lists) => Some(lists.next_update()),
            _ => None,
        };
        let stale = ends.is_some_and(|end| vault.clock.now() > end);
        let hindered = stale || matches!(self.lists, Lists::Missing(_));
        vault.hindrances.set(NO_LISTS, hindered);
        let remind = hindered && self.reminded.elapsed() >= REMIND;
        if stale && (!self.stale || remind) {
            let ended = ends.map(|end| end.rfc3339());
            tracing::error!(
                ended,
                alarm = true,
                "api.crl: a revocation list is stale: its clients are not let in"
            );
        } else if remind {
            tracing::error!(alarm = true, "api.crl: revocation lists cannot be had: nobody new is let in");
        }
        if self.stale && !stale {
            tracing::info!("api.crl: the revocation lists are fresh again");
        }
        if remind {
            self.reminded = tokio::time::Instant::now();
        }
        self.stale = stale;
    }
}

fn notify_rules(section: &NotifySection) -> anyhow::Result<(Identity, Rules)> {
    let of = || {
        let identity = Identity::read("notify", &section.certificate, &section.private_key)?;
        let tls = identity.tls(None, Revocation::Unchecked, Revocation::Unchecked)?;
        anyhow::Ok((identity, tls))
    };
    let (identity, tls) = of().context("setting up TLS for [notify]")?;
    Ok((identity, Rules { tls, clients: Vec::new().into() }))
}

/// When each of them expires that tells it.
fn expiries_of(all: &[(&'static str, &Vec<u8>)]) -> BTreeMap<&'static str, Millis> {
    all.iter().filter_map(|(name, pem)| Some((*name, not_after(pem)?))).collect()
}

fn stamps(config: &Config) -> Vec<Stamp> {
    let ApiSection { certificate, private_key, client_ca, crl, .. } = &config.api;
    let mut paths = vec![certificate, private_key, client_ca];
    paths.extend(crl);
    if let Some(section) = &config.notify {
        paths.extend([&section.certificate, &section.private_key]);
    }
    paths.extend(&config.file);
    paths.into_iter().map(|path| stamp(path)).collect()
}
