//! Operations: each reads like the story of one thing, and brings crypto, store and gateway together.
//!
//! Order matters here and is written down: record the intent, act, record the outcome. Ask of every
//! line: what if the process dies now?

pub mod agreements;
pub mod audit;
pub mod cards;
pub mod custody;
pub mod error;
pub mod events;
mod gather;
pub mod hindrances;
pub mod import;
pub mod keys;
pub mod notifications;
pub mod operations;
pub mod patience;
pub mod payments;
pub mod readiness;
pub mod retention;
pub mod rotation;
mod running;
mod statements;
pub mod sweeps;
mod writer;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::base::card::BinFormat;
use crate::base::clock::{Millis, SharedClock};
use crate::base::cvv::Cvv;
use crate::base::entropy::NoEntropy;
use crate::base::ids::{CardId, GatewayAccount, InstanceId};
use crate::base::secret::SecretBuf;
use crate::crypto::ephemeral::{EphemeralSealed, ProcessKey};
use crate::gateway::Gateway;
use crate::metrics::Metrics;
use crate::model::audit::Entry;
use crate::model::retention::Limits;
use crate::slots::Slots;
use crate::store::backend::Db;

use audit::{Audit, AuditedTx};
use cards::CardReads;
use error::OpError;
use events::EventBell;
use gather::Gather;
use hindrances::Hindrances;
use keys::DataKeys;
use running::Running;
use statements::Statements;
use writer::Writer;

/// What a deployment chooses.
#[derive(Debug, Clone)]
pub struct Policy {
    /// How much of a BIN is shown.
    pub bin_format: BinFormat,
    /// How long after it was typed a card without an agreement can be paid with.
    pub unattached: Duration,
    /// How long cards are kept.
    pub retention: Limits,
    /// Declined merchant-initiated attempts in 30 days after which no more is made with a card.
    pub declined_attempts: u32,
    /// How long the process that sent a payment may repeat it and keep its CVV.
    pub attempt_deadline: Duration,
    /// Where the gateway sends notifications: the vault's own address, where it takes them.
    pub notify_url: Option<String>,
    /// How long PostgreSQL may take for a statement before it is taken for gone.
    pub database_answers: Duration,
    /// How long a process keeps a payment that it looks after, before another may.
    pub look_lease: Duration,
    /// Pauses between inquiries after an unclear answer (reference, section 11.2).
    pub inquiry_pauses: Vec<Duration>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            bin_format: BinFormat::Six,
            unattached: Duration::from_secs(168 * 3600),
            retention: Limits::default(),
            declined_attempts: 15,
            attempt_deadline: crate::base::limits::ATTEMPT_DEADLINE,
            notify_url: None,
            database_answers: Duration::from_secs(30),
            look_lease: Duration::from_secs(120),
            inquiry_pauses: [0, 2, 3, 3, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5].map(Duration::from_secs).to_vec(),
        }
    }
}

/// Queues for those who read a card's details, change them and write them back. The database's
/// compare-and-swap decides who is first, also between processes; but among many callers it lets one win
/// at a time and sends all others round again, until some give up. Cards share a queue by chance, which
/// costs them nothing but a little waiting.
struct CardQueues([tokio::sync::Mutex<()>; 64]);

impl Default for CardQueues {
    fn default() -> Self {
        Self([const { tokio::sync::Mutex::const_new(()) }; 64])
    }
}

impl CardQueues {
    /// Waits for the card's turn, which lasts until the guard is dropped.
    async fn turn(&self, id: &CardId) -> tokio::sync::MutexGuard<'_, ()> {
        // An id is random, so any part of it spreads evenly.
        let place = id
            .as_str()
            .bytes()
            .fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        let [first, ..] = &self.0;
        self.0.get(place % self.0.len()).unwrap_or(first).lock().await
    }
}

/// Everything an operation works with.
pub struct Vault {
    /// The database.
    pub db: Db,
    /// Data keys, loaded on demand.
    pub keys: Arc<DataKeys>,
    /// CVVs that wait for their payment.
    pub slots: Slots<EphemeralSealed>,
    /// Seals what may only be in memory.
    process_key: ProcessKey,
    /// Antom, by client id.
    pub accounts: HashMap<GatewayAccount, Arc<dyn Gateway>>,
    /// Time.
    pub clock: SharedClock,
    /// Changes of one card wait for one another here.
    queues: CardQueues,
    /// This process.
    pub instance: InstanceId,
    /// What the deployment chose.
    pub policy: Policy,
    /// What is on its way, payments above all, whether or not its callers still wait.
    running: Arc<Running>,
    /// Rings when there are events.
    pub bell: Arc<EventBell>,
    /// Who did what.
    pub audit: Arc<Audit>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What keeps this process from its work, beyond what [`Vault::check`] finds out by itself.
    pub hindrances: Hindrances,
    /// Commits cards in groups.
    writer: Writer,
    /// Commits payments, several together where they come together.
    statements: Statements,
    /// Reads cards in groups.
    reader: Gather<CardReads>,
}

impl Vault {
    /// Puts the parts together under a fresh process key and name.
    pub fn new(
        db: Db,
        keys: DataKeys,
        accounts: HashMap<GatewayAccount, Arc<dyn Gateway>>,
        clock: SharedClock,
        policy: Policy,
    ) -> Result<Self, NoEntropy> {
        Self::counting(db, keys, accounts, clock, policy, Arc::default())
    }

    /// As [`Self::new`], and counts into `metrics`.
    pub fn counting(
        db: Db,
        keys: DataKeys,
        accounts: HashMap<GatewayAccount, Arc<dyn Gateway>>,
        clock: SharedClock,
        policy: Policy,
        metrics: Arc<Metrics>,
    ) -> Result<Self, NoEntropy> {
        let instance = InstanceId::make()?;
        let audit = Arc::new(Audit::new(instance.clone(), clock.clone(), metrics.audit()));
        let keys = Arc::new(keys);
        // SQLite's writers stand in a queue.
        let bell = Arc::new(EventBell::new(db.is_sqlite()));
        Ok(Self {
            reader: CardReads::gather(db.clone()),
            statements: Statements::new(db.clone(), Arc::clone(&keys), Arc::clone(&audit)),
            writer: Writer::new(db.clone(), Arc::clone(&keys), Arc::clone(&audit), Arc::clone(&bell)),
            db,
            keys,
            audit,
            slots: Slots::new(clock.clone()),
            process_key: ProcessKey::make()?,
            accounts,
            clock,
            queues: CardQueues::default(),
            instance,
            policy,
            running: Arc::default(),
            bell,
            metrics,
            hindrances: Hindrances::default(),
        })
    }

    /// Waits, for as long as one attempt may last, until every payment that is on its way has its answer
    /// and has recorded it. Follow-ups stop at their next pause: an inquiry can be made later.
    pub async fn finish_payments(&self) {
        if tokio::time::timeout(self.policy.attempt_deadline, self.running.finish()).await.is_err() {
            tracing::error!(
                alarm = true,
                "payments are still on their way; inquiries will tell their outcome"
            );
        }
    }

    /// Wipes what is held in memory: nothing will use it any more.
    pub fn forget_held(&self) {
        self.slots.clear();
    }

    /// Gives `work`, which nobody else brings to its end, a task of its own; the vault waits for it before it ends. Outside of
    /// a runtime there is nobody who could finish it.
    pub fn outlast<F: Future<Output: Send> + Send + 'static>(&self, work: F) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let running = self.running.begin_apart();
        runtime.spawn(async move {
            let _running = running;
            work.await;
        });
    }

    fn running(&self) -> &Running {
        &self.running
    }

    /// Begins a transaction whose effects are audited.
    async fn begin(&self) -> Result<AuditedTx<'_>, OpError> {
        self.audit.begin(&self.db, &self.keys).await
    }

    /// Records something that has no other effect: a refusal, for one.
    pub async fn note_alone(&self, entry: &Entry) -> Result<(), OpError> {
        self.audit.note_alone(&self.db, &self.keys, entry).await
    }

    fn now(&self) -> Millis {
        self.clock.now()
    }
}

/// Reads a CVV back from what a slot held.
fn cvv_of(bytes: &SecretBuf) -> Option<Cvv> {
    std::str::from_utf8(bytes.expose()).ok().and_then(Cvv::parse)
}
