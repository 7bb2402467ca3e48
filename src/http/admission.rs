//! By what rules callers are let in, and whether one that was let in still may be. Rules change while
//! connections are open: a certificate is revoked, an authority goes, a client is taken out. Each open
//! connection is then held against the new ones, and so is every request on it, so that none outlives what
//! it was let in by, and those whom the change does not concern notice nothing.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use ring::digest;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use crate::base::bytes::length_prefixed;
use crate::base::ids::{ClientName, RequestId};
use crate::model::access::{Caller, Client, Presented, identify};

use super::peer::Peer;
use super::tls::Tls;

/// The configured clients, as they are now.
#[derive(Clone)]
pub struct Clients(Arc<ArcSwap<Vec<Client>>>);

impl From<Vec<Client>> for Clients {
    fn from(clients: Vec<Client>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(clients)))
    }
}

impl Clients {
    /// Puts others in their place, and tells whose access that changed, and how.
    pub fn replace(&self, clients: Vec<Client>) -> Vec<(ClientName, &'static str)> {
        let clients = Arc::new(clients);
        let before = self.0.swap(Arc::clone(&clients));
        let find = |all: &[Client], name: &ClientName| all.iter().find(|one| one.name == *name).cloned();
        let fresh = clients.iter().filter_map(|client| match find(&before, &client.name) {
            None => Some((client.name.clone(), "added")),
            Some(old) if old != *client => Some((client.name.clone(), "changed")),
            Some(_) => None,
        });
        let gone = before.iter().filter(|old| find(&clients, &old.name).is_none());
        fresh.chain(gone.map(|old| (old.name.clone(), "removed"))).collect()
    }

    /// A digest (SHA-256) of all that is configured of them, in whatever order.
    pub fn digest(&self) -> [u8; 32] {
        let mut all: Vec<Vec<u8>> = self.0.load().iter().map(Client::canonical).collect();
        all.sort_unstable();
        let parts: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
        let mut digest = [0; 32];
        digest.copy_from_slice(digest::digest(&digest::SHA256, &length_prefixed(&parts)).as_ref());
        digest
    }

    /// The caller that a certificate stands for.
    pub fn caller(&self, peer: &Peer, request_id: &RequestId) -> Option<Caller> {
        Caller::identify(&self.0.load(), &presented(peer), request_id)
    }

    /// The name of the client that a certificate stands for.
    pub fn name(&self, peer: &Peer) -> Option<ClientName> {
        identify(&self.0.load(), &presented(peer)).map(|client| client.name.clone())
    }
}

fn presented(peer: &Peer) -> Presented<'_> {
    Presented { uris: &peer.uri_sans, dns: &peer.dns_sans, spki_sha256: &peer.spki_sha256 }
}

/// What a listener lets in by.
#[derive(Clone)]
pub struct Rules {
    /// Certificates, authorities and revocation lists.
    pub tls: Tls,
    /// Who may call; nobody is asked for where `tls` asks for no client.
    pub clients: Clients,
}

/// Where a listener's rules come from: the same for all its life, or a channel that brings new ones.
pub struct RuleSource {
    pub(super) current: watch::Receiver<Arc<Rules>>,
    /// Keeps a fixed source's channel open.
    _fixed: Option<Arc<watch::Sender<Arc<Rules>>>>,
}

impl From<Tls> for RuleSource {
    fn from(tls: Tls) -> Self {
        let rules = Rules { tls, clients: Vec::new().into() };
        let (sender, current) = watch::channel(Arc::new(rules));
        Self { current, _fixed: Some(Arc::new(sender)) }
    }
}

impl From<watch::Receiver<Arc<Rules>>> for RuleSource {
    fn from(current: watch::Receiver<Arc<Rules>>) -> Self {
        Self { current, _fixed: None }
    }
}

/// How a connection stands to the rules.
pub struct Standing {
    peer: Arc<Peer>,
    chain: Vec<CertificateDer<'static>>,
    waiting: watch::Receiver<Arc<Rules>>,
    held: Mutex<Held>,
}

struct Held {
    rules: watch::Receiver<Arc<Rules>>,
    good: bool,
}

impl Standing {
    /// The standing of a connection that was let in with `chain` by the rules that `rules` has seen.
    pub fn new(
        peer: Arc<Peer>,
        chain: Vec<CertificateDer<'static>>,
        rules: watch::Receiver<Arc<Rules>>,
    ) -> Self {
        Self { peer, chain, waiting: rules.clone(), held: Mutex::new(Held { rules, good: true }) }
    }

    /// Whether the certificate is still let in. Where the rules have changed it is held against them; what
    /// was refused once stays refused.
    pub fn is_good(&self) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.good && held.rules.has_changed().unwrap_or(false) {
            let rules = Arc::clone(&held.rules.borrow_and_update());
            held.good = self.passes(&rules);
        }
        held.good
    }

    fn passes(&self, rules: &Rules) -> bool {
        match (&rules.tls.open, self.chain.split_first()) {
            (Some(verifier), Some((leaf, rest))) => {
                verifier.verify_client_cert(leaf, rest, UnixTime::now()).is_ok()
            }
            (None, _) => true,
            (Some(_), None) => false,
        }
    }

    /// Whether the connection may stay open: its certificate is let in, and is a client's.
    pub fn may_stay(&self) -> bool {
        let clients = self.waiting.borrow().clients.clone();
        self.is_good() && clients.name(&self.peer).is_some()
    }

    /// Tells of changes of the rules from now on.
    pub fn watch(&self) -> watch::Receiver<Arc<Rules>> {
        let mut watch = self.waiting.clone();
        watch.mark_unchanged();
        watch
    }
}

/// Ends when the rules have changed.
pub async fn changed(rules: &mut watch::Receiver<Arc<Rules>>) {
    if rules.changed().await.is_err() {
        // Nobody can change them any more; those at hand stay.
        std::future::pending::<()>().await;
    }
}
