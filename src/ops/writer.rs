//! Group commit: what is to be stored while a commit is under way goes into the next one, together. Nothing
//! waits for company: what comes when nothing runs is committed at once, alone.
//!
//! A commit is the database's dearest work, and costs the same for one row as for sixty. Each change has its
//! event and its audit rows in the transaction that it is in. Where a group cannot be written, each of it is
//! written alone, so that what is wrong with one is that one's trouble. Groups are written by tasks of the
//! writer's own: a caller that goes away leaves nothing half done.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::base::clock::Millis;
use crate::model::audit::{Actor, Entry};
use crate::store::backend::{Db, StoreError};
use crate::store::cards::{NewCard, NewDetails, insert_cards, update_details};
use crate::store::events::insert_events;
use crate::store::groups::{find_known, store};

use super::audit::{Audit, AuditedTx, actor};
use super::error::OpError;
use super::events::{CardEvent, EventBell};
use super::keys::DataKeys;

/// Most changes of one commit: more make it no cheaper, and their callers wait for all of it.
const GROUP: usize = 64;
/// Changes that may wait. There are no more callers than connections, so that this is never reached.
const QUEUE: usize = 4096;
/// Groups under way at once on PostgreSQL. SQLite has one writer.
const LANES: usize = 1;

/// Something to be stored. It is not stored where what it was made from has changed meanwhile.
pub(super) enum Change {
    /// A new card.
    Store(Box<NewCard>),
    /// A card's new details.
    Retype(Box<NewDetails>),
}

/// A change with what tells of it.
struct Asked {
    change: Change,
    event: Option<CardEvent>,
    notes: Vec<(Actor, Entry, Millis)>,
}

struct Waiting {
    asked: Asked,
    answer: oneshot::Sender<Result<bool, OpError>>,
}

/// The writer of one process.
pub(super) struct Writer(Arc<Inner>);

struct Inner {
    db: Db,
    keys: Arc<DataKeys>,
    audit: Arc<Audit>,
    bell: Arc<EventBell>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    lanes: usize,
}

impl Writer {
    /// A writer at rest.
    pub(super) fn new(db: Db, keys: Arc<DataKeys>, audit: Arc<Audit>, bell: Arc<EventBell>) -> Self {
        Self(Arc::new(Inner { db, keys, audit, bell, queue: Mutex::default() }))
    }

    /// Stores something with its event and its audit rows, in the name of the task's actor; `false` where it
    /// was not stored, and nothing was written.
    pub(super) async fn write(
        &self,
        change: Change,
        event: Option<CardEvent>,
        notes: Vec<Entry>,
    ) -> Result<bool, OpError> {
        let (who, at) = (actor(), self.0.audit.now());
        let notes = notes.into_iter().map(|entry| (who.clone(), entry, at)).collect();
        let (answer, answered) = oneshot::channel();
        self.0.enqueue(Waiting { asked: Asked { change, event, notes }, answer })?;
        answered.await.unwrap_or_else(|_| Err(OpError::Internal(anyhow::anyhow!("a group was cut off"))))
    }
}

impl Inner {
    fn enqueue(self: &Arc<Self>, one: Waiting) -> Result<(), OpError> {
        let lanes = if self.db.is_sqlite() { 1 } else { LANES };
        let mut queue = self.queue();
        if queue.waiting.len() >= QUEUE {
            return Err(OpError::Unavailable(anyhow::anyhow!("too many cards wait to be stored")));
        }
        queue.waiting.push_back(one);
        if queue.lanes < lanes {
            queue.lanes += 1;
            drop(queue);
            tokio::spawn(Lane { writer: Some(Arc::clone(self)) }.run());
        }
        Ok(())
    }

    // A panic while the lock was held leaves the queue whole: each change is one call.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits, for one commit; none where the lane that asks is over.
    fn next_group(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.queue();
        if queue.waiting.is_empty() {
            queue.lanes -= 1;
            return None;
        }
        let size = queue.waiting.len().min(GROUP);
        Some(queue.waiting.drain(..size).collect())
    }

    async fn write_group(&self, group: Vec<Waiting>) {
        let (asked, answers): (Vec<Asked>, Vec<_>) =
            group.into_iter().map(|one| (one.asked, one.answer)).unzip();
        match self.commit(&asked).await {
            Ok(stored) => {
                for (answer, stored) in answers.into_iter().zip(stored) {
                    // A caller that is gone asks again.
                    let _ = answer.send(Ok(stored));
                }
            }
            Err(Failed { error, retry }) if asked.len() > 1 => {
                if retry {
                    tracing::warn!(
                        cards = asked.len(),
                        error = &error as &dyn std::error::Error,
                        "a group could not be written; each is written alone"
                    );
                }
                let mut away = (!retry).then_some(error);
                for (one, answer) in asked.iter().zip(answers) {
                    let told = match &away {
                        // Nothing can be reached: the others need not find out one by one.
                        Some(error) => Err(as_for_another(error)),
                        None => match self.commit(std::slice::from_ref(one)).await {
                            Ok(stored) => Ok(stored.first().copied().unwrap_or(false)),
                            Err(Failed { error, retry: true }) => Err(error),
                            Err(Failed { error, retry: false }) => {
                                let told = as_for_another(&error);
                                away = Some(error);
                                Err(told)
                            }
                        },
                    };
                    let _ = answer.send(told);
                }
            }
            Err(Failed { error, .. }) => {
                if let Some(answer) = answers.into_iter().next() {
                    let _ = answer.send(Err(error));
                }
            }
        }
    }

    /// Writes a group in one commit; which of it was stored.
    async fn commit(&self, group: &[Asked]) -> Result<Vec<bool>, Failed> {
        if let Some(stored) = self.store_at_once(group).await? {
            return Ok(stored);
        }
        let mut tx = self.audit.begin(&self.db, &self.keys).await.map_err(Failed::for_all)?;
        let stored = write(&mut tx, group).await.map_err(Failed::for_one)?;
        if stored.contains(&true) {
            // Where this fails nobody can know whether they are stored, and doing it again would not tell.
            tx.commit().await.map_err(|error| Failed::for_all(error.into()))?;
            if group.iter().zip(&stored).any(|(one, stored)| *stored && one.event.is_some()) {
                self.bell.ring_written();
            }
        } else {
            tx.rollback().await.map_err(|error| Failed::for_all(error.into()))?;
        }
        Ok(stored)
    }
}

impl Inner {
    /// Stores a group of new cards in one statement, where the database has one for that; none where nothing
    /// was stored, and a transaction finds out which of it can be.
    async fn store_at_once(&self, group: &[Asked]) -> Result<Option<Vec<bool>>, Failed> {
        let Some(way) = self.db.groups() else { return Ok(None) };
        let new = group.iter().map(|one| match &one.change {
            Change::Store(card) => Some(card.as_ref()),
            Change::Retype(_) => None,
        });
        let Some(cards) = new.collect::<Option<Vec<_>>>() else { return Ok(None) };
        // One that comes alone is looked for by the statement itself.
        let known = match cards.as_slice() {
            [_] => vec![false],
            several => find_known(&way, several).await.map_err(|error| Failed::for_all(error.into()))?,
        };
        let fresh = || group.iter().zip(&cards).zip(&known).filter(|(_, known)| !**known).map(|(one, _)| one);
        let cards: Vec<&NewCard> = fresh().map(|(_, card)| *card).collect();
        if cards.is_empty() {
            return Ok(Some(vec![false; group.len()]));
        }
        let events: Vec<_> = fresh().filter_map(|(one, _)| one.event.as_ref().map(CardEvent::row)).collect();
        let notes: Vec<_> = fresh().flat_map(|(one, _)| one.notes.iter().cloned()).collect();
        let mut links = self.audit.links(&self.keys).await.map_err(Failed::for_all)?;
        let rows = links.rows(&notes).map_err(Failed::for_all)?;
        links.in_doubt();
        match store(&way, &cards, &events, &rows).await {
            Ok(true) => {
                links.written();
                self.bell.ring_numbered();
                Ok(Some(known.into_iter().map(|known| !known).collect()))
            }
            Ok(false) if group.len() == 1 => {
                links.not_written();
                Ok(Some(vec![false]))
            }
            Ok(false) | Err(StoreError::Refused(_)) => {
                links.not_written();
                Ok(None)
            }
            Err(error) => {
                links.count_failure();
                Err(Failed::for_all(error.into()))
            }
        }
    }
}

/// Why a group was not written.
struct Failed {
    error: OpError,
    /// Whether one of it may be to blame, so that the others are stored alone.
    retry: bool,
}

impl Failed {
    fn for_all(error: OpError) -> Self {
        Self { error, retry: false }
    }

    fn for_one(error: OpError) -> Self {
        Self { error, retry: true }
    }
}

/// The same trouble, for another caller; the log has the whole of it once.
fn as_for_another(error: &OpError) -> OpError {
    match error {
        OpError::Sealed => OpError::Sealed,
        OpError::Unavailable(why) => OpError::Unavailable(anyhow::anyhow!("{why}")),
        other => OpError::Internal(anyhow::anyhow!("{other}")),
    }
}

/// Writes everything of a group but the commit; which of it was stored.
async fn write(tx: &mut AuditedTx<'_>, group: &[Asked]) -> Result<Vec<bool>, OpError> {
    let mut stored = vec![false; group.len()];
    let (mut cards, mut details) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for (place, one) in group.iter().enumerate() {
        match &one.change {
            Change::Store(card) => {
                cards.0.push(place);
                cards.1.push(card.as_ref());
            }
            Change::Retype(new) => {
                details.0.push(place);
                details.1.push(new.as_ref());
            }
        }
    }
    let mut mark = |places: Vec<usize>, done: Vec<bool>| {
        for (place, done) in places.into_iter().zip(done) {
            if let Some(stored) = stored.get_mut(place) {
                *stored = done;
            }
        }
    };
    if !cards.1.is_empty() {
        mark(cards.0, insert_cards(tx, &cards.1).await?);
    }
    if !details.1.is_empty() {
        mark(details.0, update_details(tx, &details.1).await?);
    }
    let done = || group.iter().zip(&stored).filter(|(_, stored)| **stored).map(|(one, _)| one);
    let events: Vec<_> = done().filter_map(|one| one.event.as_ref().map(CardEvent::row)).collect();
    if !events.is_empty() {
        insert_events(tx, &events).await?;
    }
    let notes: Vec<_> = done().flat_map(|one| one.notes.iter().cloned()).collect();
    tx.note_all(&notes).await?;
    Ok(stored)
}

/// Writes groups until nothing waits. Where it is cut off, the callers of its group are told, and those that
/// still wait get another lane.
struct Lane {
    writer: Option<Arc<Inner>>,
}

impl Lane {
    async fn run(mut self) {
        while let Some(writer) = &self.writer {
            match writer.next_group() {
                Some(group) => writer.write_group(group).await,
                None => self.writer = None,
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        let mut queue = writer.queue();
        queue.lanes -= 1;
        // They are told that they were cut off, or the next caller's lane takes them.
        if queue.lanes == 0 {
            queue.waiting.clear();
        }
    }
}
