//! Moves every record from retired card keys to the active one, beside servers that go on serving.
//!
//! A batch is read, sealed again in memory, and stored in one transaction, each row only where it is as it
//! was read. Nothing remembers how far it came: what is left is what still names another key, so it can be
//! cut off at any instant and run twice at once.

use std::collections::HashMap;
use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::ids::DekId;
use crate::crypto::aad::{Field, Place};
use crate::crypto::envelope;
use crate::crypto::keyring::{DataKey, Purpose};
use crate::store::backend::{Db, StoreError};
use crate::store::reseal::{self, Cursor, Moved, SOURCES, SealedRow, Source};

use super::super::patience::patiently;
use super::{Admin, RotationError};

/// Passes over all tables until nothing is left: each finds what was stored under the old key meanwhile.
const PASSES: usize = 16;
/// Records of each table that are opened at the end.
const SAMPLE: i64 = 200;
/// Most broken records that are named.
const NAMED: usize = 20;

/// How fast to go.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Rows of a batch.
    pub batch: u32,
    /// The pause after a batch, in which others write.
    pub pause: Duration,
}

impl Pace {
    /// The pause in milliseconds where none is asked for.
    pub const PAUSE_MS: u64 = 5;
    /// Rows of a batch with pauses. Few: callers wait while a batch is sealed and stored.
    const FEW: u32 = 50;
    /// Rows of a batch where nobody waits.
    const MANY: u32 = 1_000;

    /// The pace with this pause, and with batches of a size that fits it where none is asked for.
    pub fn new(batch: Option<u32>, pause_ms: u64) -> Self {
        let usual = if pause_ms == 0 { Self::MANY } else { Self::FEW };
        Self { batch: batch.unwrap_or(usual), pause: Duration::from_millis(pause_ms) }
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Rows that were moved by this run.
    pub moved: u64,
    /// Rows that are left.
    pub left: u64,
    /// Rows a second, so far.
    pub rate: f64,
}

/// What it came to.
#[derive(Debug, Default)]
pub struct Reencrypted {
    /// Rows that were moved by this run.
    pub moved: u64,
    /// Rows that somebody else changed under way, so that they were read once more.
    pub lost: u64,
    /// Records that were opened at the end.
    pub sampled: u64,
    /// How long it took.
    pub took: Duration,
}

struct Run<'a> {
    admin: &'a Admin,
    pace: Pace,
    begin: Instant,
    left: u64,
    done: Reencrypted,
    broken: Vec<String>,
}

impl Admin {
    /// Moves all records to the active card key, and proves that nothing is left and that records open.
    pub async fn reencrypt(
        &self,
        pace: Pace,
        report: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Reencrypted, RotationError> {
        let begin = Instant::now();
        let left = self.count_stale().await?;
        let mut run =
            Run { admin: self, pace, begin, left, done: Reencrypted::default(), broken: Vec::new() };
        run.report(report);
        for pass in 0.. {
            run.broken.clear();
            for source in SOURCES {
                run.source(source, report).await?;
            }
            let left = self.count_stale().await?;
            run.left = left;
            run.report(report);
            // A row may have two broken records.
            let broken = u64::try_from(run.broken.len()).unwrap_or(u64::MAX);
            if left == 0 || (pass + 1 >= PASSES) || (broken > 0 && left <= broken) {
                break;
            }
        }
        if !run.broken.is_empty() {
            return Err(RotationError::Broken(format!(
                "{} records do not open under the key that they name, and were left as they are: {}; restore \
                 these rows from a backup, or erase the cards",
                run.broken.len(),
                run.broken.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ")
            )));
        }
        if run.left > 0 {
            return Err(RotationError::Refused(format!(
                "{} rows still name a retired key: a server goes on sealing with it; see `keys status`, and run \
                 this again",
                run.left
            )));
        }
        run.done.sampled = self.open_samples().await?;
        run.done.took = begin.elapsed();
        Ok(run.done)
    }

    /// How many rows have a record under another card key than the active one.
    pub async fn count_stale(&self) -> Result<u64, RotationError> {
        self.follow_patiently().await?;
        let mut left = 0;
        for source in SOURCES {
            let raw = raw(&*self.keys.active(purpose(source))?)?;
            left += patiently(|| reseal::count_stale(&self.db, source, &raw)).await?;
        }
        Ok(left)
    }

    /// Opens some records of each table, whichever chance picks.
    async fn open_samples(&self) -> Result<u64, RotationError> {
        let mut opened = 0;
        for source in SOURCES {
            for row in patiently(|| reseal::sample(&self.db, source, SAMPLE)).await? {
                opened += self.open_record(source, &row).await?;
            }
        }
        Ok(opened)
    }

    async fn open_record(&self, source: &Source, row: &SealedRow) -> Result<u64, RotationError> {
        let mut opened = 0;
        for (sealed, field) in row.sealed.iter().zip(fields(source)) {
            let (Some(sealed), Some(field)) = (sealed, field) else { continue };
            let place = Place { merchant: &row.merchant, record: &row.record, field };
            let key = self.keys.of(sealed).await?;
            envelope::opens(&key, &place, sealed).map_err(|_| {
                RotationError::Broken(format!("{} of {} does not open", field.as_str(), row.record))
            })?;
            opened += 1;
        }
        Ok(opened)
    }
}

impl Run<'_> {
    /// One pass over a table. While a batch is being stored, the next one is read and sealed.
    async fn source(
        &mut self,
        source: &'static Source,
        report: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(), RotationError> {
        let db = &self.admin.db;
        let mut after = Cursor::default();
        let mut storing = None;
        loop {
            // Another rotation may begin meanwhile: the records then go to its key.
            self.admin.follow_patiently().await?;
            let epoch = self.admin.keys.epoch();
            let active = self.admin.keys.active(purpose(source))?;
            let raw = raw(&active)?;
            let limit = i64::from(self.pace.batch.max(1));
            let rows = patiently(|| reseal::page(db, source, &raw, &after, limit)).await?;
            if let Some(last) = rows.last() {
                after = last.cursor.clone();
            }
            let moved = self.reseal(source, rows, &active).await?;
            let at_end = moved.is_empty();
            self.stored(storing.take()).await?;
            self.report(report);
            if at_end && self.is_end(source, &raw, &after).await? {
                return Ok(());
            }
            tokio::time::sleep(self.pace.pause).await;
            storing = Some(tokio::spawn(store_batch(db.clone(), source, moved, epoch)));
        }
    }

    /// Whether no row comes after this place: a batch may be empty because all of it is broken.
    async fn is_end(&self, source: &Source, raw: &[u8], after: &Cursor) -> Result<bool, RotationError> {
        let db = &self.admin.db;
        Ok(patiently(|| reseal::page(db, source, raw, after, 1)).await?.is_empty())
    }

    /// Waits for the batch that is being stored, and counts it.
    async fn stored(&mut self, storing: Option<Storing>) -> Result<(), RotationError> {
        let Some(storing) = storing else { return Ok(()) };
        let (asked, stored) = storing.await.unwrap_or(Err(StoreError::Damaged))?;
        self.done.moved += stored;
        self.done.lost += asked.saturating_sub(stored);
        self.left = self.left.saturating_sub(stored);
        Ok(())
    }

    /// The rows' records under the active key, without the rows of which one does not open. At full speed every
    /// processor seals; with pauses in between, one, since the others are the servers'.
    async fn reseal(
        &mut self,
        source: &'static Source,
        mut rows: Vec<SealedRow>,
        active: &Arc<DataKey>,
    ) -> Result<Vec<Moved>, RotationError> {
        let keys = Arc::new(self.keys_of(&rows).await);
        let processors = match self.pace.pause.is_zero() {
            true => std::thread::available_parallelism().map_or(1, NonZero::get),
            false => 1,
        };
        let size = rows.len().div_ceil(processors).max(1);
        let mut parts = Vec::new();
        while !rows.is_empty() {
            let rest = rows.split_off(size.min(rows.len()));
            let part = std::mem::replace(&mut rows, rest);
            let (keys, active) = (Arc::clone(&keys), Arc::clone(active));
            parts.push(tokio::task::spawn_blocking(move || {
                part.into_iter().map(|row| reseal_row(source, row, &keys, &active)).collect::<Vec<_>>()
            }));
        }
        let mut moved = Vec::new();
        for part in parts {
            let part = part.await.map_err(|_| RotationError::Broken("sealing was cut off".to_owned()))?;
            for row in part {
                match row {
                    Ok(row) => moved.extend(row),
                    Err(broken) => self.broken.push(broken),
                }
            }
        }
        Ok(moved)
    }

    /// The keys that records name, where they are known.
    async fn keys_of(&self, rows: &[SealedRow]) -> HashMap<DekId, Arc<DataKey>> {
        let mut keys = HashMap::new();
        for sealed in rows.iter().flat_map(|row| row.sealed.iter().flatten()) {
            if let Ok(id) = envelope::dek_id(sealed)
                && !keys.contains_key(&id)
                && let Ok(key) = self.admin.keys.by_id(&id).await
            {
                keys.insert(id, key);
            }
        }
        keys
    }

    fn report(&self, report: &mut (dyn FnMut(Progress) + Send)) {
        let seconds = self.begin.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = if seconds > 0.0 { self.done.moved as f64 / seconds } else { 0.0 };
        report(Progress { moved: self.done.moved, left: self.left, rate });
    }
}

/// A row's records under the active key, if one of them is under another; which of them does not open.
fn reseal_row(
    source: &Source,
    row: SealedRow,
    keys: &HashMap<DekId, Arc<DataKey>>,
    active: &DataKey,
) -> Result<Option<Moved>, String> {
    let mut moved = Moved { cursor: row.cursor, old: [None, None], new: [None, None] };
    let slots = moved.old.iter_mut().zip(moved.new.iter_mut());
    for ((sealed, field), (old, new)) in row.sealed.into_iter().zip(fields(source)).zip(slots) {
        let (Some(sealed), Some(field)) = (sealed, field) else { continue };
        let named = envelope::dek_id(&sealed).ok();
        if named.as_ref() == Some(active.id()) {
            continue;
        }
        let place = Place { merchant: &row.merchant, record: &row.record, field };
        let key = named.and_then(|id| keys.get(&id));
        match key.and_then(|key| envelope::reseal(key, active, &place, &sealed).ok()) {
            Some(under) => (*old, *new) = (Some(sealed), Some(under)),
            None => return Err(format!("{} of {}", field.as_str(), row.record)),
        }
    }
    Ok(moved.new.iter().any(Option::is_some).then_some(moved))
}

/// A batch on its way: how many rows it has, and how many were as they had been read.
type Storing = tokio::task::JoinHandle<Result<(u64, u64), StoreError>>;

async fn store_batch(
    db: Db,
    source: &'static Source,
    moved: Vec<Moved>,
    epoch: i64,
) -> Result<(u64, u64), StoreError> {
    let asked = u64::try_from(moved.len()).unwrap_or_default();
    let stored = patiently(|| reseal::store(&db, source, &moved, epoch)).await?;
    Ok((asked, stored))
}

fn fields(source: &Source) -> impl Iterator<Item = Option<Field>> + '_ {
    source.fields.iter().map(|name| Field::parse(name))
}

/// What the keys of a table's records are for.
fn purpose(source: &Source) -> Purpose {
    Purpose::parse(source.purpose).unwrap_or(Purpose::Card)
}

fn raw(key: &DataKey) -> Result<[u8; 20], RotationError> {
    envelope::raw_key_id(key.id())
        .ok_or_else(|| RotationError::Refused(format!("the data key {} has no usable id", key.id())))
}
