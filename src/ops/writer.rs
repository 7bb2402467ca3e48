//! Group commit: what is to be stored while a commit is under way goes into the next one, together.
//!
//! A commit is the database's dearest work, and costs the same for one row as for sixty. Each change has its
//! event and its audit rows in the transaction that it is in. Where a group cannot be written, each of it is
//! written alone, so that what is wrong with one is that one's trouble.

use std::sync::Arc;
use std::time::Duration;

use crate::base::clock::Millis;
use crate::model::audit::{Actor, Entry};
use crate::store::backend::{Db, StoreError};
use crate::store::cards::{NewCard, NewDetails, insert_cards, update_details};
use crate::store::events::insert_events;
use crate::store::groups::{find_known, store};
use crate::store::many::WHOLE;

use super::audit::{Audit, AuditedTx, actor};
use super::error::OpError;
use super::events::{EventBell, ReadyEvent};
use super::gather::{Commits, Failed, Gather, Grouped, commit_or_each};
use super::keys::DataKeys;

/// Most changes of one commit: more make it no cheaper, and their callers wait for all of it.
const GROUP: usize = 64;
/// How long a group may take. Nobody knows then whether it is stored.
const LONGEST: Duration = Duration::from_secs(30);

/// Something to be stored. It is not stored where what it was made from has changed meanwhile.
pub(super) enum Change {
    /// A new card.
    Store(Box<NewCard>),
    /// A card's new details.
    Retype(Box<NewDetails>),
}

/// A change with what tells of it.
pub(super) struct Asked {
    change: Change,
    event: Option<ReadyEvent>,
    notes: Vec<(Actor, Entry, Millis)>,
}

/// The writer of one process.
pub(super) struct Writer(Gather<Cards>);

struct Cards {
    db: Db,
    keys: Arc<DataKeys>,
    audit: Arc<Audit>,
    bell: Arc<EventBell>,
}

impl Writer {
    /// A writer at rest.
    pub(super) fn new(db: Db, keys: Arc<DataKeys>, audit: Arc<Audit>, bell: Arc<EventBell>) -> Self {
        Self(Gather::new(Cards { db, keys, audit, bell }, GROUP, LONGEST))
    }

    /// Stores something with its event and its audit rows, in the name of the task's actor; `false` where it
    /// was not stored, and nothing was written.
    pub(super) async fn write(
        &self,
        change: Change,
        event: Option<ReadyEvent>,
        notes: Vec<Entry>,
    ) -> Result<bool, OpError> {
        let (who, at) = (actor(), self.0.work().audit.now());
        let notes = notes.into_iter().map(|entry| (who.clone(), entry, at)).collect();
        self.0.ask(Asked { change, event, notes }).await
    }
}

impl Grouped for Cards {
    type Asked = Asked;
    type Told = bool;

    async fn run(&self, group: Vec<Asked>) -> Vec<Result<bool, OpError>> {
        commit_or_each(self, &group).await
    }
}

impl Commits for Cards {
    type Asked = Asked;
    type Told = bool;

    /// Writes a group in one commit; which of it was stored.
    async fn commit(&self, group: &[Asked]) -> Result<Vec<bool>, Failed> {
        if let Some(stored) = self.store_at_once(group).await? {
            return Ok(stored);
        }
        let mut tx = self.audit.begin(&self.db, &self.keys).await.map_err(Failed::for_all)?;
        let stored = write(&mut tx, group).await.map_err(Failed::for_one)?;
        if stored.contains(&true) {
            // Where this fails nobody can know whether they are stored, and doing it again would not tell.
            tx.commit().await.map_err(Failed::for_all)?;
            if group.iter().zip(&stored).any(|(one, stored)| *stored && one.event.is_some()) {
                self.bell.ring_written();
            }
        } else {
            tx.rollback().await.map_err(Failed::for_all)?;
        }
        Ok(stored)
    }
}

impl Cards {
    /// Stores a group of new cards in one statement, or one transaction that is sent whole; none where nothing was
    /// stored, and a transaction of several steps finds out which of it can be.
    async fn store_at_once(&self, group: &[Asked]) -> Result<Option<Vec<bool>>, Failed> {
        if self.db.is_sqlite() && group.len() > WHOLE {
            return Ok(None);
        }
        let new = group.iter().map(|one| match &one.change {
            Change::Store(card) => Some(card.as_ref()),
            Change::Retype(_) => None,
        });
        let Some(cards) = new.collect::<Option<Vec<_>>>() else { return Ok(None) };
        // One that comes alone is looked for by the statement itself.
        let known = match cards.as_slice() {
            [_] => vec![false],
            several => find_known(&self.db, several).await.map_err(Failed::for_all)?,
        };
        let fresh = || group.iter().zip(&cards).zip(&known).filter(|(_, known)| !**known).map(|(one, _)| one);
        let cards: Vec<&NewCard> = fresh().map(|(_, card)| *card).collect();
        if cards.is_empty() {
            return Ok(Some(vec![false; group.len()]));
        }
        let events: Vec<_> = fresh().filter_map(|(one, _)| one.event.as_ref().map(ReadyEvent::row)).collect();
        let notes: Vec<_> = fresh().flat_map(|(one, _)| one.notes.iter().cloned()).collect();
        let mut links = self.audit.links(&self.keys).await.map_err(Failed::for_all)?;
        let rows = links.rows(&notes).map_err(Failed::for_all)?;
        match links.write(store(&self.db, &cards, &events, &rows), |stored| *stored).await {
            Ok(true) => {
                self.bell.ring_numbered();
                Ok(Some(known.into_iter().map(|known| !known).collect()))
            }
            Ok(false) if group.len() == 1 => Ok(Some(vec![false])),
            Ok(false) | Err(StoreError::Refused(_)) => Ok(None),
            Err(error) => {
                self.audit.count_failure();
                Err(Failed::for_all(error))
            }
        }
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
    let events: Vec<_> = done().filter_map(|one| one.event.as_ref().map(ReadyEvent::row)).collect();
    insert_events(tx, &events).await?;
    let notes: Vec<_> = done().flat_map(|one| one.notes.iter().cloned()).collect();
    tx.note_all(&notes).await?;
    Ok(stored)
}
