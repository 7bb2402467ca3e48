//! Statements of payments, each alone in its transaction or with others of its kind.
//!
//! One that comes alone goes its own way, and waits for nobody. Those that come while it is under way are committed
//! together, and so are those that come meanwhile.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::base::clock::Millis;
use crate::model::audit::{Actor, Entry};
use crate::store::alone::{Alone, key, run_at_once};
use crate::store::backend::{Arg, Db, Row, StoreError, Value};
use crate::store::events::insert_events;
use crate::store::many::WHOLE;

use super::audit::{Audit, actor};
use super::error::OpError;
use super::events::ReadyEvent;
use super::gather::{Commits, Failed, Gather, Grouped, commit_or_each};
use super::keys::DataKeys;

/// Most statements of one commit: more make it no cheaper, and their callers wait for all of it.
const GROUP: usize = 64;
/// How long a group may take. Nobody knows then whether it is committed.
const LONGEST: Duration = Duration::from_secs(30);

/// A statement with what tells of it.
struct Asked {
    alone: &'static Alone,
    values: Vec<Value>,
    event: Option<ReadyEvent>,
    note: (Actor, Entry, Millis),
}

impl Asked {
    fn args(&self) -> Vec<Arg<'_>> {
        self.values.iter().map(Value::arg).collect()
    }
}

/// The statements of one process.
pub(super) struct Statements {
    /// Whose turn it is to go alone.
    alone: Semaphore,
    others: Gather<Together>,
}

struct Together {
    db: Db,
    keys: Arc<DataKeys>,
    audit: Arc<Audit>,
}

impl Statements {
    /// None is under way.
    pub(super) fn new(db: Db, keys: Arc<DataKeys>, audit: Arc<Audit>) -> Self {
        Self { alone: Semaphore::new(1), others: Gather::new(Together { db, keys, audit }, GROUP, LONGEST) }
    }

    /// Runs a statement with its audit row, in the name of the task's actor, and the event that tells of it; nothing
    /// is written where it returns no row. After [`OpError::Unavailable`] nobody can know whether it was.
    pub(super) async fn run(
        &self,
        (alone, values): (&'static Alone, &[Arg<'_>]),
        event: Option<ReadyEvent>,
        entry: Entry,
    ) -> Result<Option<Row>, OpError> {
        let Together { db, keys, audit } = self.others.work();
        let note = (actor(), entry, audit.now());
        if let Ok(_turn) = self.alone.try_acquire() {
            let event = event.as_ref().map(ReadyEvent::row);
            return audit.write_alone(db, keys, (alone, values), event.as_ref(), note).await;
        }
        let values = values.iter().copied().map(Value::of).collect();
        self.others.ask(Asked { alone, values, event, note }).await
    }
}

impl Grouped for Together {
    type Asked = Asked;
    type Told = Option<Row>;

    async fn run(&self, group: Vec<Asked>) -> Vec<Result<Option<Row>, OpError>> {
        // One statement does not change a row twice: what comes again comes after what came first.
        let (mut seen, mut rounds) = (HashSet::new(), Vec::new());
        let mut round = 0..0;
        for (place, one) in group.iter().enumerate() {
            let args = one.args();
            let row = key(&args).map(|(account, id)| (account.to_owned(), id.to_owned()));
            if seen.contains(&row) {
                rounds.push(std::mem::replace(&mut round, place..place));
                seen.clear();
            }
            seen.insert(row);
            round.end = place + 1;
        }
        rounds.push(round);
        let mut told = Vec::with_capacity(group.len());
        for round in rounds {
            told.extend(commit_or_each(self, group.get(round).unwrap_or_default()).await);
        }
        told
    }
}

impl Commits for Together {
    type Asked = Asked;
    type Told = Option<Row>;

    async fn commit(&self, group: &[Asked]) -> Result<Vec<Option<Row>>, Failed> {
        if let [one] = group {
            let (args, event) = (one.args(), one.event.as_ref().map(ReadyEvent::row));
            let alone = (one.alone, args.as_slice());
            let done =
                self.audit.write_alone(&self.db, &self.keys, alone, event.as_ref(), one.note.clone()).await;
            return done.map(|row| vec![row]).map_err(|error| match error {
                OpError::Unavailable(_) | OpError::Sealed => Failed::for_all(error),
                error => Failed::for_one(error),
            });
        }
        if let Some(returned) = self.at_once(group).await? {
            return Ok(returned.into_iter().map(Some).collect());
        }
        let mut tx = self.audit.begin(&self.db, &self.keys).await.map_err(Failed::for_all)?;
        let mut returned: Vec<Option<Row>> = group.iter().map(|_| None).collect();
        for (alone, places) in kinds(group) {
            let given: Vec<_> =
                places.iter().filter_map(|place| group.get(*place)).map(Asked::args).collect();
            let rows = alone.run_each(&mut tx, &given).await.map_err(Failed::for_one)?;
            for (place, row) in places.into_iter().zip(rows) {
                if let Some(returned) = returned.get_mut(place) {
                    *returned = row;
                }
            }
        }
        let done = || group.iter().zip(&returned).filter(|(_, row)| row.is_some()).map(|(one, _)| one);
        let events: Vec<_> = done().filter_map(|one| one.event.as_ref().map(ReadyEvent::row)).collect();
        insert_events(&mut tx, &events).await.map_err(Failed::for_one)?;
        let notes: Vec<_> = done().map(|one| one.note.clone()).collect();
        tx.note_all(&notes).await.map_err(Failed::for_one)?;
        if notes.is_empty() {
            tx.rollback().await.map_err(Failed::for_all)?;
        } else {
            // Where this fails nobody can know whether they are committed, and doing it again would not tell.
            tx.commit().await.map_err(Failed::for_all)?;
        }
        Ok(returned)
    }
}

impl Together {
    /// Commits a group in a transaction that is sent whole, where the database takes one; none where nothing was
    /// written, and a transaction of several steps finds out what of it can be.
    async fn at_once(&self, group: &[Asked]) -> Result<Option<Vec<Row>>, Failed> {
        if !self.db.is_sqlite() || group.len() > WHOLE {
            return Ok(None);
        }
        let args: Vec<_> = group.iter().map(Asked::args).collect();
        let kinds = kinds(group);
        let parts: Vec<_> = kinds
            .iter()
            .map(|(alone, places)| {
                (*alone, places.iter().filter_map(|place| args.get(*place)).map(Vec::as_slice).collect())
            })
            .collect();
        let events = group.iter().filter_map(|one| one.event.as_ref().map(ReadyEvent::row));
        let notes: Vec<_> = group.iter().map(|one| one.note.clone()).collect();
        let mut links = self.audit.links(&self.keys).await.map_err(Failed::for_all)?;
        let rows = links.rows(&notes).map_err(Failed::for_all)?;
        let returned = match links.write(run_at_once(&self.db, &parts, events, &rows), Option::is_some).await
        {
            Ok(Some(returned)) => returned,
            Ok(None) | Err(StoreError::Refused(_)) => return Ok(None),
            Err(error) => {
                self.audit.count_failure();
                return Err(Failed::for_all(error));
            }
        };
        // In the order of their kinds.
        let mut returned: Vec<_> = kinds.into_iter().flat_map(|(_, places)| places).zip(returned).collect();
        returned.sort_by_key(|(place, _)| *place);
        Ok(Some(returned.into_iter().map(|(_, row)| row).collect()))
    }
}

/// The places of those of one kind, then of those of the next.
fn kinds(group: &[Asked]) -> Vec<(&'static Alone, Vec<usize>)> {
    let mut kinds: Vec<(&'static Alone, Vec<usize>)> = Vec::new();
    for (place, one) in group.iter().enumerate() {
        match kinds.iter_mut().find(|(alone, _)| std::ptr::eq(*alone, one.alone)) {
            Some((_, places)) => places.push(place),
            None => kinds.push((one.alone, vec![place])),
        }
    }
    kinds
}
