//! Moves every record from retired card keys to the active one, beside servers that go on serving.
//!
//! A batch is read, sealed again in memory, and stored in one transaction, each row only where it is as it
//! was read. Nothing remembers how far it came: what is left is what still names another key, so it can be
//! cut off at any instant and run twice at once.

use std::time::{Duration, Instant};

use crate::base::entropy;
use crate::base::ids::{CardId, base32};
use crate::base::sealed::Sealed;
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
const SAMPLE: i64 = 100;
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

impl Default for Pace {
    fn default() -> Self {
        Self { batch: 200, pause: Duration::from_millis(20) }
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

    /// Opens some records of each table, wherever a random place is.
    async fn open_samples(&self) -> Result<u64, RotationError> {
        let mut opened = 0;
        for source in SOURCES {
            let random: [u8; 20] = entropy::array().map_err(crate::ops::error::OpError::from)?;
            for from in [String::new(), format!("{}{}", CardId::PREFIX, base32(&random))] {
                for row in patiently(|| reseal::sample(&self.db, source, &from, SAMPLE)).await? {
                    opened += self.open_record(source, &row).await?;
                }
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
            let mut moved = Vec::with_capacity(rows.len());
            if let Some(last) = rows.last() {
                after = last.cursor.clone();
            }
            for row in rows {
                moved.extend(self.reseal(source, row, &active).await);
            }
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

    /// The row's records under the active key; none where one of them does not open.
    async fn reseal(&mut self, source: &Source, row: SealedRow, active: &DataKey) -> Option<Moved> {
        let mut moved = Moved { cursor: row.cursor, old: [None, None], new: [None, None] };
        let slots = moved.old.iter_mut().zip(moved.new.iter_mut());
        for ((sealed, field), (old, new)) in row.sealed.into_iter().zip(fields(source)).zip(slots) {
            let (Some(sealed), Some(field)) = (sealed, field) else { continue };
            let named = envelope::dek_id(&sealed);
            if named.as_ref() == Ok(active.id()) {
                continue;
            }
            let place = Place { merchant: &row.merchant, record: &row.record, field };
            match self.again(&place, &sealed, active).await {
                Some(under) => (*old, *new) = (Some(sealed), Some(under)),
                None => {
                    self.broken.push(format!("{} of {}", field.as_str(), row.record));
                    return None;
                }
            }
        }
        moved.new.iter().any(Option::is_some).then_some(moved)
    }

    async fn again(&self, place: &Place<'_>, sealed: &Sealed, active: &DataKey) -> Option<Sealed> {
        let key = self.admin.keys.of(sealed).await.ok()?;
        envelope::reseal(&key, active, place, sealed).ok()
    }

    fn report(&self, report: &mut (dyn FnMut(Progress) + Send)) {
        let seconds = self.begin.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = if seconds > 0.0 { self.done.moved as f64 / seconds } else { 0.0 };
        report(Progress { moved: self.done.moved, left: self.left, rate });
    }
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
