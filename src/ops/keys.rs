//! The data keys of this process: unwrapped at the start, made where a purpose has none, followed while it
//! runs, and loaded on demand when another process has made one since.
//!
//! What a process knows of the keys belongs to an epoch. It reads the epoch before it takes a key, and what
//! stores a sealed record names it: where the keys have changed since, nothing is stored, the process follows,
//! and seals again. That is why no process, however slow, stores a record that nobody can open.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::base::clock::{Millis, SharedClock};
use crate::base::ids::{DekId, InstanceId, KekId};
use crate::base::sealed::Sealed;
use crate::crypto::envelope::{self, OpenError};
use crate::crypto::kek::{KekProvider, WrapError};
use crate::crypto::keyring::{DataKey, KeyState, Keyring, KeyringError, Purpose, make_data_key};
use crate::metrics::{AuditTally, KeyFacts};
use crate::model::audit::Entry;
use crate::model::key_life::{Life, Standing};
use crate::store::backend::{Db, StoreError};
use crate::store::keys::{KeyRow, NewKey, Stored, add_uses, epoch, find_key, insert_first_keys, list_keys};
use crate::store::replicas::{self, Beat};

use super::audit::Audit;
use super::error::OpError;

/// Why the data keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataKeysError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key does not unwrap: the wrong keyring, or an altered row.
    #[error("the data key {0} does not unwrap under the configured keyring")]
    Unwrap(DekId, #[source] WrapError),
    /// A fresh key could not be made or wrapped.
    #[error("a data key could not be made")]
    Make(#[source] WrapError),
    /// The KEK's time is over: it opens, and wraps nothing new.
    #[error("the cryptoperiod of the key-encryption key {0} is over; run `cardvault keys rotate kek` first")]
    KekExpired(KekId),
    /// The rows contradict each other.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The audit key's time is over, or it is destroyed: a key that is missing cannot be made, because that could
    /// not be recorded.
    #[error(
        "the audit key {0} may not be used, so that the making of a data key could not be recorded; run \
         `cardvault keys rotate dek --purpose audit` first"
    )]
    AuditOver(DekId),
    /// The making of a key could not be recorded in the audit trail.
    #[error("the making of the data keys cannot be recorded in the audit trail")]
    Unrecorded(#[source] Box<OpError>),
    /// The work was cut off.
    #[error("a key could not be unwrapped: the work was cut off")]
    CutOff,
}

impl DataKeysError {
    /// The split KEK that is missing, where that is what is wrong.
    pub fn sealed(&self) -> Option<&KekId> {
        match self {
            Self::Unwrap(_, WrapError::Sealed(kek)) | Self::Make(WrapError::Sealed(kek)) => Some(kek),
            _ => None,
        }
    }
}

/// How long keys may seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyPolicy {
    /// Of a KEK.
    pub kek_period: Duration,
    /// Of the card and request-MAC keys.
    pub dek_period: Duration,
    /// Of the fingerprint key.
    pub fingerprint_period: Duration,
    /// How many records a data key seals, or digests it makes. NIST SP 800-38D allows 2^32 seals under one
    /// key; here each record has a key of its own, so half of that is caution.
    pub uses: u64,
}

/// How many rows or checkpoints one key speaks for. A MAC or a signature wears no key out: what ends one is its
/// cryptoperiod (NIST SP 800-57 part 1, section 5.3). A number that a trail can reach would end all access on its
/// busiest day.
const WORDS_PER_KEY: u64 = 1 << 48;

impl Default for KeyPolicy {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 24 * 3600);
        Self { kek_period: days(365), dek_period: days(365), fingerprint_period: days(730), uses: 1 << 31 }
    }
}

impl KeyPolicy {
    /// The cryptoperiod of a purpose.
    pub fn period(&self, purpose: Purpose) -> Duration {
        if purpose == Purpose::Fingerprint { self.fingerprint_period } else { self.dek_period }
    }

    /// How often a key of a purpose is used.
    pub fn budget(&self, purpose: Purpose) -> u64 {
        if matches!(purpose, Purpose::Audit | Purpose::Checkpoint) { WORDS_PER_KEY } else { self.uses }
    }

    /// What is known of a stored key's life; `extra` uses were not reported yet.
    pub fn life(&self, row: &KeyRow, extra: u64) -> Life {
        let purpose = Purpose::parse(&row.purpose).unwrap_or(Purpose::Card);
        let written = row.expires_at.unwrap_or(Millis(i64::MAX));
        Life {
            created: row.created_at,
            // The shorter of what was written down at its making and of what is configured now.
            expires: written.min(row.created_at.plus(self.period(purpose))),
            uses: u64::try_from(row.uses).unwrap_or_default().saturating_add(extra),
            budget: self.budget(purpose),
        }
    }
}

/// The command that puts a new key in the place of the one in use.
pub fn rotation_of(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Card => "keys rotate dek",
        Purpose::Fingerprint => "keys rotate fingerprint",
        Purpose::RequestMac => "keys rotate dek --purpose request-mac",
        Purpose::GatewayToken => "keys rotate dek --purpose gateway-token",
        Purpose::Audit => "keys rotate dek --purpose audit",
        Purpose::Checkpoint => "keys rotate dek --purpose checkpoint",
        // What canaries are for: there is no key of this purpose in use.
        Purpose::Canary => "keys rotate kek",
    }
}

/// A fingerprint key and the column that it fills.
#[derive(Clone)]
pub struct SlotKey {
    /// 0 or 1.
    pub slot: usize,
    /// The key.
    pub key: Arc<DataKey>,
}

/// What is known of the keys besides their bytes.
#[derive(Default)]
struct View {
    epoch: i64,
    lives: HashMap<DekId, Life>,
    fingerprints: Vec<SlotKey>,
}

/// Data keys in the clear, in this process only.
pub struct DataKeys {
    ring: Keyring,
    kek: Arc<dyn KekProvider>,
    db: Db,
    clock: SharedClock,
    policy: KeyPolicy,
    view: ArcSwap<View>,
    /// One look at the changed keys at a time.
    looking: tokio::sync::Mutex<()>,
    /// Whether the keys are open, for those who wait for it.
    opened: watch::Sender<bool>,
    /// Whether the keys have changed, and that could not be taken up.
    stuck: AtomicBool,
}

impl DataKeys {
    /// Unwraps every key of the database, and makes what is missing. Two processes that start at once
    /// make one key for each purpose between them: the database decides whose.
    pub async fn start(
        db: Db,
        kek: Arc<dyn KekProvider>,
        clock: &SharedClock,
        policy: KeyPolicy,
    ) -> Result<Self, DataKeysError> {
        let keys = Self::closed(db, kek, clock, policy)?;
        keys.open().await?;
        Ok(keys)
    }

    /// Knows no key yet; [`Self::open`] changes that.
    pub fn closed(
        db: Db,
        kek: Arc<dyn KekProvider>,
        clock: &SharedClock,
        policy: KeyPolicy,
    ) -> Result<Self, DataKeysError> {
        Ok(Self {
            ring: Keyring::new(Vec::new())?,
            kek,
            db,
            clock: clock.clone(),
            policy,
            view: ArcSwap::default(),
            looking: tokio::sync::Mutex::default(),
            opened: watch::Sender::new(false),
            stuck: AtomicBool::new(false),
        })
    }

    /// Makes what is missing, and unwraps everything.
    pub async fn open(&self) -> Result<(), DataKeysError> {
        while !self.make_missing().await? {}
        self.look().await
    }

    /// Turns true when the keys are open.
    pub fn opened(&self) -> watch::Receiver<bool> {
        self.opened.subscribe()
    }

    /// Unwraps everything that is there and makes nothing; for commands.
    pub async fn open_only(&self) -> Result<(), DataKeysError> {
        self.look().await
    }

    /// Whether no key is open yet: the KEK is split, and its custodians have not come.
    pub fn are_closed(&self) -> bool {
        self.view.load().epoch == 0
    }

    /// Makes the first key of each purpose that has none, in one transaction with the rows that tell of it;
    /// `false` where somebody else did so at the same moment, or the keys have changed since these were wrapped, and
    /// what is missing has to be looked at again.
    async fn make_missing(&self) -> Result<bool, DataKeysError> {
        let mut active = list_keys(&self.db).await?;
        active.retain(|row| row.state == KeyState::Active.as_str());
        let has = |purpose: Purpose| active.iter().position(|row| row.purpose == purpose.as_str());
        let mut made = Vec::new();
        for purpose in Purpose::ALL.into_iter().filter(|purpose| has(*purpose).is_none()) {
            let MadeKey { key, kek, wrapped, epoch } = self.make(purpose).await?;
            made.push((Arc::new(key), kek, wrapped, epoch));
        }
        let Some(oldest) = made.iter().map(|(.., epoch)| *epoch).min() else { return Ok(true) };
        let now = self.clock.now();
        // A new vault's audit key is among them, and its first rows tell of it and of the others.
        let of_rows =
            match (made.iter().find(|(key, ..)| key.purpose() == Purpose::Audit), has(Purpose::Audit)) {
                (None, Some(place)) => {
                    let row = active.swap_remove(place);
                    let (id, over) = (row.id.clone(), !self.policy.life(&row, 0).standing(now).may_seal());
                    match self.unwrap(row).await? {
                        Some((key, _)) if !over => Arc::new(key),
                        _ => return Err(DataKeysError::AuditOver(id)),
                    }
                }
                (Some((key, ..)), _) => Arc::clone(key),
                (None, None) => return Err(KeyringError::NoActiveKey(Purpose::Audit).into()),
            };
        let unrecorded = |error: OpError| DataKeysError::Unrecorded(Box::new(error));
        let instance = InstanceId::make().map_err(|error| DataKeysError::Make(error.into()))?;
        let audit = Audit::new(instance, self.clock.clone(), AuditTally::default());
        let mut tx = audit.begin_under(&self.db, self, Arc::clone(&of_rows)).await.map_err(unrecorded)?;
        let rows = made.iter().map(|(key, kek, wrapped, _)| NewKey {
            id: key.id(),
            purpose: key.purpose().as_str(),
            state: KeyState::Active.as_str(),
            kek_id: kek,
            wrapped,
            expires_at: now.plus(self.policy.period(key.purpose())),
            slot: 0,
            now,
        });
        if insert_first_keys(&mut tx, &rows.collect::<Vec<_>>(), oldest).await? != Stored::Yes {
            tx.rollback().await?;
            return Ok(false);
        }
        for (key, ..) in &made {
            let entry = Entry::done("keys.make", key.id().as_str());
            let what = format!("the first {} key", key.purpose().as_str());
            tx.note(&entry.with(what)).await.map_err(unrecorded)?;
        }
        tx.commit_last().await.map_err(unrecorded)?;
        self.report_uses_of(&of_rows).await?;
        for (key, ..) in &made {
            tracing::info!(key = %key.id(), purpose = key.purpose().as_str(), "made a data key");
        }
        Ok(true)
    }

    /// A fresh data key, wrapped under the KEK in use. Nothing is stored; and who stores it does so in the epoch that
    /// it names: once that is over, the KEK may be gone.
    pub(super) async fn make(&self, purpose: Purpose) -> Result<MadeKey, DataKeysError> {
        // Before the keyring: who destroys a KEK begins an epoch, and another KEK was in use before that.
        let epoch = epoch(&self.db).await?;
        let kek = Arc::clone(&self.kek);
        apart(move || kek.reload().map_err(DataKeysError::Make)).await?;
        let kek = Arc::clone(&self.kek);
        // Where the audit key is over too, the rotation of the KEK could not be recorded: it waits for the
        // audit key, so that one cannot wait for it, and is wrapped anew with all others soon.
        let first = purpose == Purpose::Audit && self.is_over(purpose);
        if !first && !self.kek_standing().may_seal() {
            return Err(DataKeysError::KekExpired(kek.kek_id()));
        }
        apart(move || {
            let key = make_data_key(purpose).map_err(|error| DataKeysError::Make(error.into()))?;
            let wrapped = kek.wrap(&key).map_err(DataKeysError::Make)?;
            Ok(MadeKey { key, kek: wrapped.kek, wrapped: wrapped.bytes, epoch })
        })
        .await
    }

    /// The key that seals for `purpose`, unless its time or its uses are over.
    pub fn active(&self, purpose: Purpose) -> Result<Arc<DataKey>, OpError> {
        if self.are_closed() {
            return Err(OpError::Sealed);
        }
        let key = self.ring.active(purpose)?;
        let standing = self.standing(&key);
        if standing.may_seal() {
            return Ok(key);
        }
        Err(OpError::Unavailable(anyhow::anyhow!(
            "the {} key {} may not be used ({}); run `cardvault {}`",
            purpose.as_str(),
            key.id(),
            standing.words(),
            rotation_of(purpose)
        )))
    }

    /// Whether the key in use of a purpose may not be used any more.
    fn is_over(&self, purpose: Purpose) -> bool {
        self.ring.active(purpose).is_ok_and(|key| !self.standing(&key).may_seal())
    }

    /// Where a key stands; what this process used it for and did not report yet is counted.
    fn standing(&self, key: &DataKey) -> Standing {
        let view = self.view.load();
        let Some(life) = view.lives.get(key.id()) else { return Standing::Good };
        let uses = life.uses.saturating_add(key.uses());
        Life { uses, ..*life }.standing(self.clock.now())
    }

    /// Where the KEK in use stands.
    fn kek_standing(&self) -> Standing {
        let Some(created) = self.kek.kek_created() else { return Standing::Good };
        let life = Life { created, expires: created.plus(self.policy.kek_period), uses: 0, budget: u64::MAX };
        life.standing(self.clock.now())
    }

    /// The keys in use that should be rotated, or should have been: what each is for, its id, and why.
    pub fn due(&self) -> Vec<(&'static str, String, Standing)> {
        let active = Purpose::ALL.into_iter().filter_map(|purpose| self.ring.active(purpose).ok());
        active
            .map(|key| (key.purpose().as_str(), key.id().to_string(), self.standing(&key)))
            .chain([("kek", self.kek.kek_id().to_string(), self.kek_standing())])
            .filter(|(_, _, standing)| standing.is_due())
            .collect()
    }

    /// How each key in use stands. A KEK whose making is not known is left out.
    pub fn facts(&self) -> Vec<KeyFacts> {
        let view = self.view.load();
        let active = Purpose::ALL.into_iter().filter_map(|purpose| self.ring.active(purpose).ok());
        let data = active.filter_map(|key| {
            let life = view.lives.get(key.id())?;
            let standing = self.standing(&key);
            Some(KeyFacts {
                purpose: key.purpose().as_str(),
                created: life.created,
                expires: life.expires,
                uses: Some((life.uses.saturating_add(key.uses()), life.budget)),
                seals: standing.may_seal(),
                due: standing.is_due(),
            })
        });
        let kek = self.kek.kek_created().map(|created| {
            let standing = self.kek_standing();
            KeyFacts {
                purpose: "kek",
                created,
                expires: created.plus(self.policy.kek_period),
                uses: None,
                seals: standing.may_seal(),
                due: standing.is_due(),
            }
        });
        data.chain(kek).collect()
    }

    /// The fingerprint key by which cards are found.
    pub fn fingerprint_key(&self) -> Result<SlotKey, OpError> {
        if self.are_closed() {
            return Err(OpError::Sealed);
        }
        let active = self.ring.active(Purpose::Fingerprint)?;
        let view = self.view.load();
        let slot = view.fingerprints.iter().find(|known| known.key.id() == active.id());
        Ok(slot.cloned().unwrap_or(SlotKey { slot: 0, key: active }))
    }

    /// All fingerprint keys: every card gets a fingerprint under each of them.
    pub fn fingerprint_keys(&self) -> Vec<SlotKey> {
        self.view.load().fingerprints.clone()
    }

    /// Every loaded key of a purpose, the active one first: for finding what an older one has made.
    pub fn of_purpose(&self, purpose: Purpose) -> Vec<Arc<DataKey>> {
        self.ring.of_purpose(purpose)
    }

    /// The epoch of what is known here. Read it before the keys.
    pub fn epoch(&self) -> i64 {
        self.view.load().epoch
    }

    /// A key by its id; one that is not known yet is loaded.
    pub async fn by_id(&self, id: &DekId) -> Result<Arc<DataKey>, OpError> {
        if let Some(key) = self.ring.by_id(id) {
            return Ok(key);
        }
        if self.are_closed() {
            return Err(OpError::Sealed);
        }
        // Not beside a look: what it makes of this key, active or destroyed, would be undone below.
        let _turn = self.looking.lock().await;
        if let Some(key) = self.ring.by_id(id) {
            return Ok(key);
        }
        let row = find_key(&self.db, id).await?.ok_or(OpenError)?;
        let unwrapped = self.unwrap(row).await.map_err(|error| OpError::Unavailable(error.into()))?;
        let (key, _) = unwrapped.ok_or(OpenError)?;
        // Which key seals is decided by `look` alone, which sees all keys at once.
        self.ring.insert(key, KeyState::DecryptOnly);
        self.ring.by_id(id).ok_or(OpError::Internal(OpenError.into()))
    }

    /// The key that a record names.
    pub async fn of(&self, sealed: &Sealed) -> Result<Arc<DataKey>, OpError> {
        self.by_id(&envelope::dek_id(sealed)?).await
    }

    /// Takes over what has changed since the keys were last looked at; `true` where something had.
    pub async fn follow(&self) -> Result<bool, OpError> {
        if self.are_closed() {
            return Ok(false);
        }
        let done = match epoch(&self.db).await {
            Ok(now) if now == self.epoch() => Ok(false),
            Ok(_) => self.look().await.map(|()| true),
            Err(error) => Err(error.into()),
        };
        match &done {
            // The database is away, and says nothing of the keys.
            Err(DataKeysError::Store(StoreError::Unavailable(_) | StoreError::NotBegun(_))) => {}
            done => self.stuck.store(done.is_err(), Ordering::Relaxed),
        }
        done.map_err(|error| match error {
            DataKeysError::Store(error) => error.into(),
            error => OpError::Unavailable(error.into()),
        })
    }

    /// Whether the keys have changed, and when this process last looked it could not take that up: it stores nothing
    /// until it can.
    pub fn are_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }

    /// Looks at all keys. What was known stays where this fails.
    async fn look(&self) -> Result<(), DataKeysError> {
        let _turn = self.looking.lock().await;
        // Before the rows: what changes in between is then seen at the next look, and never missed.
        let epoch = epoch(&self.db).await?;
        if epoch == self.epoch() {
            return Ok(());
        }
        if !self.are_closed() {
            let kek = Arc::clone(&self.kek);
            apart(move || {
                // What was known stays, and opens what is not new.
                if let Err(error) = kek.reload() {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the key-encryption keys cannot be read again");
                }
                Ok(())
            })
            .await?;
        }
        let mut states = Vec::new();
        let (mut lives, mut slots) = (HashMap::new(), Vec::new());
        for row in list_keys(&self.db).await? {
            let Some((purpose, state)) = known(&row) else { continue };
            let id = row.id.clone();
            lives.insert(id.clone(), self.policy.life(&row, 0));
            if purpose == Purpose::Fingerprint && state != KeyState::Destroyed {
                slots.push((usize::try_from(row.slot).unwrap_or_default(), id.clone()));
            }
            if state != KeyState::Destroyed && self.ring.by_id(&id).is_none() {
                let Some((key, _)) = self.unwrap(row).await? else { continue };
                self.ring.insert(key, KeyState::DecryptOnly);
            }
            states.push((id, purpose, state));
        }
        // The active ones first, so that there is no moment without one.
        let is_active = |state: KeyState| state == KeyState::Active;
        let mut taken = Vec::new();
        for (id, purpose, state) in &states {
            if is_active(*state) {
                if taken.contains(purpose) {
                    return Err(KeyringError::TwoActiveKeys(*purpose).into());
                }
                taken.push(*purpose);
                self.ring.set_state(id, *state);
            }
        }
        for (id, _, state) in states.iter().filter(|(_, _, state)| !is_active(*state)) {
            self.ring.set_state(id, *state);
        }
        let fingerprints =
            slots.into_iter().filter_map(|(slot, id)| Some(SlotKey { slot, key: self.ring.by_id(&id)? }));
        let view = View { epoch, lives, fingerprints: fingerprints.collect() };
        self.view.store(Arc::new(view));
        self.opened.send_replace(true);
        Ok(())
    }

    /// The key of a row; none where it is destroyed, or for a purpose that this version does not have.
    async fn unwrap(&self, row: KeyRow) -> Result<Option<(DataKey, KeyState)>, DataKeysError> {
        if row.wrapped.is_none() {
            return Ok(None);
        }
        let kek = Arc::clone(&self.kek);
        apart(move || unwrap_row(kek.as_ref(), &row)).await
    }

    /// Reports what this process has used the keys for.
    pub async fn report_uses(&self) -> Result<(), OpError> {
        for id in self.ring.ids() {
            let Some(key) = self.ring.by_id(&id) else { continue };
            self.report_uses_of(&key).await?;
        }
        // What all processes together have used them for comes back with this.
        let view = self.view.load_full();
        let mut lives = view.lives.clone();
        for row in list_keys(&self.db).await? {
            lives.insert(row.id.clone(), self.policy.life(&row, 0));
        }
        let fresh = View { epoch: view.epoch, lives, fingerprints: view.fingerprints.clone() };
        // Where the keys were looked at meanwhile, that look knew as much.
        self.view.compare_and_swap(&view, Arc::new(fresh));
        Ok(())
    }

    /// As [`Self::report_uses`], of a key that need not be in use here.
    pub(super) async fn report_uses_of(&self, key: &DataKey) -> Result<(), StoreError> {
        let uses = key.take_uses();
        if uses == 0 {
            return Ok(());
        }
        let added = add_uses(&self.db, key.id(), uses).await;
        if added.is_err() {
            key.give_back_uses(uses);
        }
        added
    }

    /// Opens the canary that is out, unless `opened` says that it was opened before; which KEK's was opened
    /// by now.
    pub async fn try_canary(&self, opened: Option<KekId>) -> Result<Option<KekId>, OpError> {
        let Some(canary) = replicas::find_canary(&self.db).await? else { return Ok(opened) };
        if opened.as_ref() == Some(&canary.kek_id) || self.are_closed() {
            return Ok(opened);
        }
        let kek = Arc::clone(&self.kek);
        let id = canary.kek_id.clone();
        let tried = apart(move || {
            kek.unwrap(&canary.dek_id, Purpose::Canary, &canary.kek_id, &canary.wrapped)
                .map_err(|error| DataKeysError::Unwrap(canary.dek_id.clone(), error))
        })
        .await;
        match tried {
            Ok(_) => {
                tracing::info!(kek = %id, "opened the canary of a new key-encryption key");
                Ok(Some(id))
            }
            Err(error) => {
                tracing::debug!(kek = %id, error = &error as &dyn std::error::Error, "a canary does not open yet");
                Ok(opened)
            }
        }
    }

    /// Says that this process is alive, and what it works with.
    pub async fn beat(
        &self,
        instance: &InstanceId,
        started_at: Millis,
        opened_kek: Option<&KekId>,
    ) -> Result<(), OpError> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let (epoch, now) = (self.epoch(), self.clock.now());
        let beat = Beat { instance, host: &host, started_at, epoch, opened_kek, now };
        Ok(replicas::beat(&self.db, &beat).await?)
    }

    /// Says that this process ends.
    pub async fn leave(&self, instance: &InstanceId) -> Result<(), OpError> {
        const FORGET: i64 = 24 * 3600 * 1000;
        Ok(replicas::leave(&self.db, instance, Millis(self.clock.now().0.saturating_sub(FORGET))).await?)
    }
}

/// A fresh key that is not stored yet.
pub(super) struct MadeKey {
    pub(super) key: DataKey,
    pub(super) kek: KekId,
    pub(super) wrapped: Vec<u8>,
    /// The epoch in which it was wrapped.
    pub(super) epoch: i64,
}

/// Runs something that may wait for a token on a thread where waiting harms nobody.
pub(super) async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DataKeysError> + Send + 'static,
) -> Result<T, DataKeysError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(DataKeysError::CutOff))
}

fn known(row: &KeyRow) -> Option<(Purpose, KeyState)> {
    let known = (Purpose::parse(&row.purpose), KeyState::parse(&row.state));
    let (Some(purpose), Some(state)) = known else {
        tracing::warn!(key = %row.id, "a data key of an unknown purpose or state is left alone");
        return None;
    };
    Some((purpose, state))
}

/// The key of a row; none where it is destroyed, or for a purpose that this version does not have.
pub(super) fn unwrap_row(
    kek: &dyn KekProvider,
    row: &KeyRow,
) -> Result<Option<(DataKey, KeyState)>, DataKeysError> {
    let Some((purpose, state)) = known(row) else { return Ok(None) };
    let (Some(wrapped), true) = (&row.wrapped, state != KeyState::Destroyed) else { return Ok(None) };
    let key = kek
        .unwrap(&row.id, purpose, &row.kek_id, wrapped)
        .map_err(|error| DataKeysError::Unwrap(row.id.clone(), error))?;
    Ok(Some((key, state)))
}
