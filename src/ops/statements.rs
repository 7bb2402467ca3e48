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
use crate::store::alone::{Alone, Returned, key, run_at_once};
use crate::store::backend::{Arg, Db, Row, StoreError, Value};
use crate::store::events::{NewEvent, insert_events};
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
/// Most statements of a transaction of more than one kind that is sent to SQLite whole: its texts are as many as
/// there are mixtures.
const MIXED: usize = 6;

/// A statement with what tells of it.
struct Asked {
    alone: &'static Alone,
    values: Vec<Value>,
    event: Option<Arc<ReadyEvent>>,
    note: (Actor, Entry, Millis),
}

/// What came of it.
enum Told {
    /// It returned this row, or none and nothing was written.
    Done(Option<Row>),
    /// Another process holds a row of the group's, and nothing was written: each waits for its row alone, on a
    /// connection of its own.
    Blocked,
}

impl Asked {
    fn args(&self) -> Vec<Arg<'_>> {
        self.values.iter().map(Value::arg).collect()
    }

    fn event(&self) -> Option<NewEvent<'_>> {
        self.event.as_ref().map(|event| event.row())
    }

    /// What was returned for it.
    fn take(&self, returned: &mut Returned) -> Option<Row> {
        returned.remove(&key(&self.args())?)
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
    /// is written where it returns no row.
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
            return audit.write_alone((db, false), keys, (alone, values), event.as_ref(), note).await;
        }
        let given = values.iter().copied().map(Value::of).collect();
        let event = event.map(Arc::new);
        let asked = Asked { alone, values: given, event: event.clone(), note: note.clone() };
        match self.others.ask(asked).await? {
            Told::Done(row) => Ok(row),
            Told::Blocked => {
                let event = event.as_ref().map(|event| event.row());
                audit.write_alone((db, false), keys, (alone, values), event.as_ref(), note).await
            }
        }
    }
}

impl Grouped for Together {
    type Asked = Asked;
    type Told = Told;

    async fn run(&self, group: Vec<Asked>) -> Vec<Result<Told, OpError>> {
        // One statement does not change a row twice: what comes again comes after what came first.
        let (mut seen, mut rounds) = (HashSet::new(), Vec::new());
        let mut round = 0..0;
        for (place, one) in group.iter().enumerate() {
            let row = key(&one.args());
            if seen.contains(&row) {
                rounds.push(std::mem::replace(&mut round, place..place));
                seen.clear();
            }
            seen.insert(row);
            round.end = place + 1;
        }
        rounds.push(round);
        let mut told = Vec::with_capacity(group.len());
        for round in rounds.into_iter().filter(|round| !round.is_empty()) {
            told.extend(commit_or_each(self, group.get(round).unwrap_or_default()).await);
        }
        told
    }
}

impl Commits for Together {
    type Asked = Asked;
    type Told = Told;

    async fn commit(&self, group: &[Asked]) -> Result<Vec<Told>, Failed> {
        if let [one] = group {
            let (args, event) = (one.args(), one.event());
            let alone = (one.alone, args.as_slice());
            let db = (&self.db, true);
            let done = self.audit.write_alone(db, &self.keys, alone, event.as_ref(), one.note.clone()).await;
            return match done {
                Ok(row) => Ok(vec![Told::Done(row)]),
                Err(OpError::Unavailable(why)) if is_blocked(&why) => Ok(vec![Told::Blocked]),
                Err(error @ (OpError::Unavailable(_) | OpError::Unclear(_) | OpError::Sealed)) => {
                    Err(Failed::for_all(error))
                }
                Err(error) => Err(Failed::for_one(error)),
            };
        }
        if let Some(mut returned) = self.at_once(group).await? {
            return Ok(group.iter().map(|one| Told::Done(one.take(&mut returned))).collect());
        }
        let mut tx = self.audit.begin_shared(&self.db, &self.keys).await.map_err(Failed::for_all)?;
        let mut returned = Returned::new();
        for (alone, given) in kinds(group) {
            match alone.run_each(&mut tx, given).await {
                Ok(rows) => returned.extend(rows),
                Err(error) if error.is_blocked() => return Ok(group.iter().map(|_| Told::Blocked).collect()),
                Err(error) => return Err(Failed::for_one(error)),
            }
        }
        let returned: Vec<Option<Row>> = group.iter().map(|one| one.take(&mut returned)).collect();
        let done = || group.iter().zip(&returned).filter(|(_, row)| row.is_some()).map(|(one, _)| one);
        let events: Vec<_> = done().filter_map(Asked::event).collect();
        insert_events(&mut tx, &events).await.map_err(Failed::for_one)?;
        let notes: Vec<_> = done().map(|one| one.note.clone()).collect();
        tx.note_all(&notes).await.map_err(Failed::for_one)?;
        if notes.is_empty() {
            tx.rollback().await.map_err(Failed::for_all)?;
        } else {
            // Where this fails nobody can know whether they are committed, and doing it again would not tell.
            tx.commit().await.map_err(OpError::of_commit).map_err(Failed::for_all)?;
        }
        Ok(returned.into_iter().map(Told::Done).collect())
    }
}

impl Together {
    /// Commits a group in a transaction that is sent whole, where the database takes one; none where nothing was
    /// written, and a transaction of several steps finds out what of it can be.
    async fn at_once(&self, group: &[Asked]) -> Result<Option<Returned>, Failed> {
        let kinds = kinds(group);
        let most = if kinds.len() > 1 { MIXED } else { WHOLE };
        if !self.db.is_sqlite() || group.len() > most {
            return Ok(None);
        }
        let events = group.iter().filter_map(Asked::event);
        let notes: Vec<_> = group.iter().map(|one| one.note.clone()).collect();
        let mut links = self.audit.links(&self.keys).await.map_err(Failed::for_all)?;
        let rows = links.rows(&notes).map_err(Failed::for_all)?;
        match links.write(run_at_once(&self.db, &kinds, events, &rows), Option::is_some).await {
            Err(StoreError::Refused(_)) => Ok(None),
            Err(error) => {
                self.audit.count_failure();
                Err(Failed::for_all(OpError::of_commit(error)))
            }
            Ok(returned) => Ok(returned),
        }
    }
}

/// The values of those of one kind, then of those of the next, always in the same order of kinds.
fn kinds(group: &[Asked]) -> Vec<(&'static Alone, Vec<Vec<Arg<'_>>>)> {
    let mut kinds: Vec<(&'static Alone, Vec<_>)> = Vec::new();
    for one in group {
        match kinds.iter_mut().find(|(alone, _)| std::ptr::eq(*alone, one.alone)) {
            Some((_, given)) => given.push(one.args()),
            None => kinds.push((one.alone, vec![one.args()])),
        }
    }
    kinds.sort_by_key(|(alone, _)| std::ptr::from_ref(*alone).addr());
    kinds
}

/// Whether a row was to be changed that another process holds: that is its caller's trouble.
fn is_blocked(why: &anyhow::Error) -> bool {
    why.downcast_ref::<StoreError>().is_some_and(StoreError::is_blocked)
}
