//! The audit trail: a row for every access, in the transaction of its effect. If the row cannot be written,
//! nothing happened; if the effect is not committed, neither is the row.
//!
//! Rows are chained, so that none can be altered, removed or put elsewhere unseen. Transactions of one
//! process run at once, and a chain must have one order; so a process has several chains, and a transaction
//! has one of them to itself from its beginning to its end. A chain whose last commit is in doubt is left,
//! and another one begun: what is true stands in the database.

pub mod verify;

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::base::clock::{Millis, SharedClock};
use crate::base::ids::InstanceId;
use crate::base::mutex::held;
use crate::crypto::audit_mac::{self, BEGINNING, audit_mac};
use crate::crypto::keyring::{DataKey, Purpose};
use crate::metrics::AuditTally;
use crate::model::audit::{
    Actor, AuditRow, CLOSE, Entry, Head, OPEN, Outcome, Rest, checkpoint_text, rest_input,
};
use crate::store::alone::Alone;
use crate::store::audit as rows;
use crate::store::backend::{Arg, Db, Row, StoreError, Tx};
use crate::store::events::NewEvent;
use crate::store::keys::{hold_epoch, is_epoch};

use super::error::OpError;
use super::keys::DataKeys;

/// Chains of a process: as many transactions as the database takes at once.
const CHAINS: usize = 16;
/// How long a transaction waits for a chain.
const WAIT: Duration = Duration::from_secs(5);
/// How long a masked read waits where those before it could not be written.
const CATCH_UP: Duration = Duration::from_secs(2);
/// Masked reads that wait to be written; one more waits until there is room.
const READS: usize = 4096;
/// Most masked reads that are written in one transaction.
const BATCH: usize = 256;
/// A chain that was closed so long ago is told in a checkpoint by a digest only. It is longer than a
/// transaction can take, so that none with an older closing row appears later.
const CLOSED: Duration = Duration::from_secs(600);

/// Which chains a checkpoint tells by a digest: those that were closed before this.
fn closed_before(at: Millis) -> Millis {
    Millis(at.0.saturating_sub(i64::try_from(CLOSED.as_millis()).unwrap_or(i64::MAX)))
}

tokio::task_local! {
    static ACTOR: Actor;
}

/// Runs something in the name of an actor: every row that it writes says so.
pub async fn acting<T>(actor: Actor, work: impl Future<Output = T>) -> T {
    ACTOR.scope(actor, work).await
}

/// In whose name this task runs.
pub fn actor() -> Actor {
    ACTOR.try_with(Clone::clone).unwrap_or_else(|_| Actor::vault())
}

/// One chain of this process: its name, and its newest row.
struct Chain {
    name: String,
    next: i64,
    mac: [u8; 32],
}

/// The audit trail, as one process writes it.
pub struct Audit {
    instance: InstanceId,
    permits: Arc<Semaphore>,
    chains: Arc<Mutex<Chains>>,
    reads: mpsc::Sender<(Actor, Entry, Millis)>,
    waiting: Mutex<Option<mpsc::Receiver<(Actor, Entry, Millis)>>>,
    /// Whether what waited for no disk could not be written at the last attempt.
    behind: watch::Sender<bool>,
    /// Where this process runs: the origin of what nobody from elsewhere has asked for.
    here: Arc<str>,
    clock: SharedClock,
    tally: AuditTally,
}

#[derive(Default)]
struct Chains {
    free: Vec<Chain>,
    made: u64,
}

impl Audit {
    /// A trail that has written nothing yet, and counts into `tally`.
    pub fn new(instance: InstanceId, clock: SharedClock, tally: AuditTally) -> Self {
        let (reads, waiting) = mpsc::channel(READS);
        Self {
            instance,
            permits: Arc::new(Semaphore::new(CHAINS)),
            chains: Arc::default(),
            reads,
            waiting: Mutex::new(Some(waiting)),
            behind: watch::Sender::new(false),
            here: origin().into(),
            clock,
            tally,
        }
    }

    /// Now, as rows tell it.
    pub(super) fn now(&self) -> Millis {
        self.clock.now()
    }

    /// Begins a transaction that writes, with a chain of its own.
    pub async fn begin<'a>(&self, db: &Db, keys: &'a DataKeys) -> Result<AuditedTx<'a>, OpError> {
        let links = self.links(keys).await?;
        Self::begin_with(db.begin_write(), links).await
    }

    /// As [`Self::begin`], for what many share ([`Db::begin_shared`]).
    pub(super) async fn begin_shared<'a>(
        &self,
        db: &Db,
        keys: &'a DataKeys,
    ) -> Result<AuditedTx<'a>, OpError> {
        let links = self.links(keys).await?;
        Self::begin_with(db.begin_shared(), links).await
    }

    /// As [`Self::begin`], with rows under a key that comes into use in this very transaction.
    pub(super) async fn begin_under<'a>(
        &self,
        db: &Db,
        keys: &'a DataKeys,
        key: Arc<DataKey>,
    ) -> Result<AuditedTx<'a>, OpError> {
        let links = self.links(keys).await?;
        Self::begin_with(db.begin_write(), Links { key: Some(key), ..links }).await
    }

    async fn begin_with<'a>(
        begun: impl Future<Output = Result<Tx, StoreError>>,
        links: Links<'a>,
    ) -> Result<AuditedTx<'a>, OpError> {
        match begun.await {
            Ok(tx) => Ok(AuditedTx { tx, links }),
            Err(error) => {
                links.count_failure();
                Err(error.into())
            }
        }
    }

    /// A chain, for rows that are written in one statement with their effect.
    pub(super) async fn links<'a>(&self, keys: &'a DataKeys) -> Result<Links<'a>, OpError> {
        let permit = tokio::time::timeout(WAIT, Arc::clone(&self.permits).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            self.tally.failures.inc();
            return Err(OpError::Unavailable(anyhow::anyhow!("the audit trail is not free")));
        };
        let chain = {
            let mut chains = held(&self.chains);
            match chains.free.pop() {
                Some(chain) => chain,
                None => {
                    chains.made += 1;
                    Chain { name: format!("{}/{}", self.instance, chains.made), next: 0, mac: BEGINNING }
                }
            }
        };
        let lease =
            Lease { home: Arc::clone(&self.chains), chain: Some(chain), in_doubt: false, _permit: permit };
        let newest = lease.newest();
        let (here, clock, tally) = (Arc::clone(&self.here), self.clock.clone(), self.tally.clone());
        Ok(Links { lease, newest, keys, key: None, here, clock, tally })
    }

    /// Runs a statement that is alone in its transaction, with its audit row, who did what and when, and the event
    /// that tells of it; nothing is written where it returns no row.
    pub(super) async fn write_alone(
        &self,
        (db, others_wait): (&Db, bool),
        keys: &DataKeys,
        (alone, values): (&'static Alone, &[Arg<'_>]),
        event: Option<&NewEvent<'_>>,
        note: (Actor, Entry, Millis),
    ) -> Result<Option<Row>, OpError> {
        let mut links = self.links(keys).await?;
        let rows = links.rows(&[note])?;
        let written = links.write(alone.run((db, others_wait), values, event, &rows), Option::is_some).await;
        written.map_err(|error| {
            self.count_failure();
            OpError::of_commit(error)
        })
    }

    /// Counts a failure to write rows.
    pub(super) fn count_failure(&self) {
        self.tally.failures.inc();
    }

    /// Records a masked read, which waits for no disk: a crash can lose what was read in the last moments.
    /// Fails where so many wait that there is no room for a while, and while those before it cannot be written:
    /// what is read then would never be recorded.
    pub async fn note_read(&self, entry: Entry) -> Result<(), OpError> {
        let refused = || OpError::Unavailable(anyhow::anyhow!("masked reads cannot be audited"));
        let mut behind = self.behind.subscribe();
        // Where it was the database, it may be back already.
        let caught_up = tokio::time::timeout(CATCH_UP, behind.wait_for(|behind| !*behind)).await;
        if !caught_up.is_ok_and(|told| told.is_ok()) {
            return Err(refused());
        }
        let sent = tokio::time::timeout(WAIT, self.reads.send((actor(), entry, self.clock.now()))).await;
        sent.ok().and_then(Result::ok).ok_or_else(refused)
    }

    /// Records what can wait for no row, or needs none: a connection or a notification that was refused, a caller
    /// who asked who he is. It is written with the masked reads, and left out where there is no room.
    pub fn note_soon(&self, who: Actor, entry: Entry) {
        if self.reads.try_send((who, entry, self.clock.now())).is_err() {
            self.tally.failures.inc();
            tracing::warn!("something is not audited: too much waits to be");
        }
    }

    /// Writes masked reads until told to stop, and what is left then.
    pub async fn write_reads(&self, db: &Db, keys: &DataKeys, mut stop: tokio::sync::watch::Receiver<bool>) {
        let Some(mut waiting) = held(&self.waiting).take() else { return };
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let stopping = *stop.borrow();
            if batch.is_empty() {
                tokio::select! {
                    // What waits comes before the end.
                    biased;
                    count = waiting.recv_many(&mut batch, BATCH) => if count == 0 { return },
                    _ = stop.wait_for(|stop| *stop), if !stopping => {}
                    () = std::future::ready(()), if stopping => return,
                }
                if batch.is_empty() {
                    // Told to stop: what is there already is written.
                    while let (true, Ok(read)) = (batch.len() < BATCH, waiting.try_recv()) {
                        batch.push(read);
                    }
                    if batch.is_empty() {
                        return;
                    }
                }
            }
            // A sealed vault reads nothing, and what it refuses can be recorded once it is open.
            if keys.are_closed() && !stopping {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            let written = self.write_batch(db, keys, &batch).await;
            self.behind
                .send_if_modified(|behind| std::mem::replace(behind, written.is_err()) != written.is_err());
            match written {
                Ok(()) => batch.clear(),
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "masked reads cannot be audited"
                    );
                    if stopping {
                        return;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn write_batch(
        &self,
        db: &Db,
        keys: &DataKeys,
        batch: &[(Actor, Entry, Millis)],
    ) -> Result<(), OpError> {
        let mut tx = self.begin(db, keys).await?;
        tx.note_all(batch).await?;
        Ok(tx.commit().await?)
    }

    /// Records something that is no part of a transaction.
    pub async fn note_alone(&self, db: &Db, keys: &DataKeys, entry: &Entry) -> Result<(), OpError> {
        let mut tx = self.begin(db, keys).await?;
        tx.note(entry).await?;
        Ok(tx.commit().await?)
    }

    /// Writes the closing rows of this process's chains: a chain without one was cut off.
    pub async fn close(&self, db: &Db, keys: &DataKeys) {
        for _ in 0..CHAINS {
            if held(&self.chains).free.is_empty() {
                return;
            }
            let closed = async {
                let mut tx = self.begin(db, keys).await?;
                if tx.links.newest.0 == 0 {
                    // Nothing was ever written to it.
                    tx.links.lease.chain = None;
                    return Ok(tx.rollback().await?);
                }
                tx.commit_last().await
            };
            if let Err(error) = closed.await {
                tracing::warn!(error = &error as &dyn std::error::Error, "an audit chain was not closed");
                return;
            }
        }
    }
}

/// A chain that a transaction has to itself.
struct Lease {
    home: Arc<Mutex<Chains>>,
    chain: Option<Chain>,
    /// Whether a commit was begun whose outcome is not known.
    in_doubt: bool,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    fn newest(&self) -> (i64, [u8; 32]) {
        self.chain.as_ref().map_or((0, BEGINNING), |chain| (chain.next, chain.mac))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(chain) = self.chain.take().filter(|_| !self.in_doubt) {
            held(&self.home).free.push(chain);
        }
    }
}

/// A chain in the hands of one that writes: the rows that it makes follow one another. What was not written is
/// forgotten, and the chain goes on from its newest row.
pub(super) struct Links<'a> {
    lease: Lease,
    newest: (i64, [u8; 32]),
    keys: &'a DataKeys,
    /// The key of the MACs, where that is not the one in use.
    key: Option<Arc<DataKey>>,
    here: Arc<str>,
    clock: SharedClock,
    tally: AuditTally,
}

impl Links<'_> {
    /// The next rows: who did what, and when.
    pub(super) fn rows(&mut self, notes: &[(Actor, Entry, Millis)]) -> Result<Vec<rows::NewRow>, OpError> {
        let mut made = Vec::with_capacity(notes.len() + 1);
        if let (0, Some((_, _, first))) = (self.newest.0, notes.first()) {
            let opening =
                Entry { action: OPEN, object: None, outcome: Outcome::Done, detail: Some(origin()) };
            made.push(self.chained(&Actor::vault(), &opening, *first)?);
        }
        for (actor, entry, at) in notes {
            made.push(self.chained(actor, entry, *at)?);
        }
        Ok(made)
    }

    /// The chain's next row, with its MAC.
    fn chained(&mut self, actor: &Actor, entry: &Entry, at: Millis) -> Result<rows::NewRow, OpError> {
        let key = match &self.key {
            Some(key) => Arc::clone(key),
            None => self.keys.active(Purpose::Audit)?,
        };
        let (seq, before) = self.newest;
        let Some(chain) = &self.lease.chain else {
            return Err(OpError::Internal(anyhow::anyhow!("an audit chain is gone")));
        };
        let row = AuditRow {
            chain: chain.name.clone(),
            seq,
            at,
            actor: actor.name.clone(),
            merchant: actor.merchant.as_ref().map(ToString::to_string),
            action: entry.action.to_owned(),
            object: entry.object.clone(),
            outcome: entry.outcome.name().to_owned(),
            detail: entry.detail.clone(),
            origin: Some(actor.origin.clone().unwrap_or_else(|| self.here.to_string())),
            request_id: actor.request_id.clone(),
            key_id: key.id().to_string(),
        };
        let mac = audit_mac(&key, &before, &row.canonical())?;
        self.newest = (seq + 1, mac);
        Ok((row, mac))
    }

    /// Waits for the statement that writes them, or, where `stored` says of what it gives that it did not,
    /// nothing. Where nobody can know, or this is dropped, the chain is left: its rows may be durable.
    pub(super) async fn write<T>(
        mut self,
        writing: impl Future<Output = Result<T, StoreError>>,
        stored: impl Fn(&T) -> bool,
    ) -> Result<T, StoreError> {
        self.lease.in_doubt = true;
        let done = writing.await;
        match &done {
            Ok(told) if stored(told) => drop(self.settle()),
            // Nothing of it is in the database, and the chain goes on from its newest row.
            Ok(_) | Err(StoreError::Refused(_) | StoreError::NotBegun(_)) => self.lease.in_doubt = false,
            Err(_) => {}
        }
        done
    }

    fn settle(mut self) -> Lease {
        self.lease.in_doubt = false;
        let rows = self.newest.0.saturating_sub(self.lease.newest().0);
        self.tally.rows.inc_by(u64::try_from(rows).unwrap_or_default());
        if let Some(chain) = &mut self.lease.chain {
            (chain.next, chain.mac) = self.newest;
        }
        self.lease
    }

    /// Counts a failure to write them.
    pub(super) fn count_failure(&self) {
        self.tally.failures.inc();
    }
}

/// A transaction whose every effect has its row. Dropped without [`AuditedTx::commit`], neither happened.
pub struct AuditedTx<'a> {
    tx: Tx,
    links: Links<'a>,
}

impl Deref for AuditedTx<'_> {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        &self.tx
    }
}

impl DerefMut for AuditedTx<'_> {
    fn deref_mut(&mut self) -> &mut Tx {
        &mut self.tx
    }
}

impl AuditedTx<'_> {
    /// Records what this transaction does, in the name of the task's actor.
    pub async fn note(&mut self, entry: &Entry) -> Result<(), OpError> {
        let at = self.links.clock.now();
        self.note_all(&[(actor(), entry.clone(), at)]).await
    }

    /// Records what this transaction does for many: who did what, and when.
    pub async fn note_all(&mut self, notes: &[(Actor, Entry, Millis)]) -> Result<(), OpError> {
        let made = self.links.rows(notes)?;
        if made.is_empty() {
            return Ok(());
        }
        let inserted = rows::insert_rows(&mut self.tx, &made).await;
        if inserted.is_err() {
            self.links.count_failure();
        }
        Ok(inserted?)
    }

    /// Makes effect and rows durable. Where this fails, nobody can know whether they are.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.finish().await.map(|_| ())
    }

    /// As [`Self::commit`], of what was sealed in this epoch of the keys: `false` where they have changed since, and
    /// nothing was written. Who destroys a key has begun a new epoch, and then waits for those who were writing.
    pub async fn commit_sealed(mut self, epoch: i64) -> Result<bool, StoreError> {
        let lasts = is_epoch(&mut self.tx, epoch).await?;
        self.commit_while(lasts).await
    }

    /// As [`Self::commit_sealed`], of what may be there once and is known again by a digest of the key in use: who
    /// comes under the next key finds it ([`hold_epoch`]).
    pub async fn commit_sealed_once(mut self, epoch: i64) -> Result<bool, StoreError> {
        let lasts = hold_epoch(&mut self.tx, epoch).await?;
        self.commit_while(lasts).await
    }

    async fn commit_while(self, lasts: bool) -> Result<bool, StoreError> {
        if lasts {
            return self.commit().await.map(|()| true);
        }
        self.rollback().await?;
        Ok(false)
    }

    /// Writes the closing row of the chain too, commits, and uses the chain no more.
    pub(super) async fn commit_last(mut self) -> Result<(), OpError> {
        let closing = Entry { action: CLOSE, object: None, outcome: Outcome::Done, detail: None };
        let row = self.links.chained(&Actor::vault(), &closing, self.links.clock.now())?;
        rows::insert_rows(&mut self.tx, &[row]).await?;
        self.finish().await?.chain = None;
        Ok(())
    }

    async fn finish(self) -> Result<Lease, StoreError> {
        let Self { tx, mut links } = self;
        // From here on a drop leaves the chain: its rows may have become durable.
        links.lease.in_doubt = true;
        let committed = tx.commit().await;
        if committed.is_err() {
            links.count_failure();
        }
        committed?;
        Ok(links.settle())
    }

    /// Takes the changes back.
    pub async fn rollback(self) -> Result<(), StoreError> {
        self.tx.rollback().await
    }
}

/// Where this process runs.
pub fn origin() -> String {
    origin_of(i32::try_from(std::process::id()).ok())
}

/// Where a process of this host runs, whose number may not be known.
pub fn origin_of(pid: Option<i32>) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    match pid {
        Some(pid) => format!("{host} pid {pid}"),
        None => host,
    }
}

/// A signed word about the whole trail, one line of JSON.
pub async fn checkpoint(db: &Db, keys: &DataKeys, now: Millis) -> Result<String, OpError> {
    let heads = rows::list_heads(db).await?;
    let since = closed_before(now);
    let (live, old): (Vec<_>, Vec<_>) =
        heads.into_iter().partition(|(_, closed)| closed.is_none_or(|at| at >= since));
    let live: Vec<Head> = live.into_iter().map(|(head, _)| head).collect();
    let old: Vec<Head> = old.into_iter().map(|(head, _)| head).collect();
    let key = keys.active(Purpose::Audit)?;
    let rest = Rest {
        chains: u64::try_from(old.len()).unwrap_or(u64::MAX),
        rows: old.iter().map(|head| u64::try_from(head.seq + 1).unwrap_or(0)).sum(),
        mac: audit_mac(&key, &BEGINNING, &rest_input(old.iter()))?.to_vec(),
    };
    let text = checkpoint_text(now, &live, &rest);
    let signing = keys.active(Purpose::Checkpoint)?;
    let cannot = |error: audit_mac::CannotSign| OpError::Internal(error.into());
    let signature = audit_mac::sign(&signing, text.as_bytes()).map_err(cannot)?;
    let public = audit_mac::public_key(&signing).map_err(cannot)?;
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    Ok(crate::base::json::ObjectWriter::default()
        .string("checkpoint", &text)
        .string("keyId", signing.id().as_str())
        .string("auditKeyId", key.id().as_str())
        .string("publicKey", &hex(&public))
        .string("signature", &hex(&signature))
        .finish())
}
