//! Wrapped data keys. At most one of each purpose is active; the unique index decides who makes it.
//!
//! Every change of the keys raises the epoch in the same transaction. What stores a sealed record names the
//! epoch whose keys it used, and stores nothing where that epoch is over.

use std::time::Duration;

use super::backend::{Arg, Db, Row, StoreError, Tx};
use crate::base::clock::Millis;
use crate::base::ids::{DekId, KekId};

/// A data key as it is stored.
pub struct KeyRow {
    /// Its id.
    pub id: DekId,
    /// What it is for.
    pub purpose: String,
    /// `active`, `next`, `decrypt_only` or `destroyed`.
    pub state: String,
    /// Which KEK wraps it.
    pub kek_id: KekId,
    /// The wrapped key; none once destroyed.
    pub wrapped: Option<Vec<u8>>,
    /// When it was made.
    pub created_at: Millis,
    /// When it stops sealing, where that was written down.
    pub expires_at: Option<Millis>,
    /// Records sealed and digests made, as far as processes have reported them.
    pub uses: i64,
    /// When another took its place.
    pub retired_at: Option<Millis>,
    /// When it was destroyed.
    pub destroyed_at: Option<Millis>,
    /// Which fingerprint column a fingerprint key fills: 0 or 1.
    pub slot: i64,
}

fn key_row(row: &Row) -> Result<KeyRow, StoreError> {
    Ok(KeyRow {
        id: DekId::parse(&row.text("id")?).ok_or(StoreError::Damaged)?,
        purpose: row.text("purpose")?,
        state: row.text("state")?,
        kek_id: KekId::parse(&row.text("kek_id")?).ok_or(StoreError::Damaged)?,
        wrapped: row.bytes_or_null("wrapped")?,
        created_at: Millis(row.int("created_at")?),
        expires_at: row.int_or_null("expires_at")?.map(Millis),
        uses: row.int("uses")?,
        retired_at: row.int_or_null("retired_at")?.map(Millis),
        destroyed_at: row.int_or_null("destroyed_at")?.map(Millis),
        slot: row.int("slot")?,
    })
}

macro_rules! columns {
    () => {
        "id, purpose, state, kek_id, wrapped, created_at, expires_at, uses, retired_at, destroyed_at, slot"
    };
}

/// All data keys, oldest first.
pub async fn list_keys(db: &Db) -> Result<Vec<KeyRow>, StoreError> {
    const SQL: &str = concat!("SELECT ", columns!(), " FROM data_keys ORDER BY created_at, id");
    db.list(SQL, &[]).await?.iter().map(key_row).collect()
}

/// One data key.
pub async fn find_key(db: &Db, id: &DekId) -> Result<Option<KeyRow>, StoreError> {
    const SQL: &str = concat!("SELECT ", columns!(), " FROM data_keys WHERE id = $1");
    db.find(SQL, &[Arg::Text(id.as_str())]).await?.as_ref().map(key_row).transpose()
}

/// A data key to insert.
pub struct NewKey<'a> {
    /// Its fresh id.
    pub id: &'a DekId,
    /// What it is for.
    pub purpose: &'a str,
    /// `active` or `next`.
    pub state: &'a str,
    /// Which KEK wraps it.
    pub kek_id: &'a KekId,
    /// The wrapped key.
    pub wrapped: &'a [u8],
    /// When it stops sealing.
    pub expires_at: Millis,
    /// Which fingerprint column it fills: 0 or 1.
    pub slot: i64,
    /// Now.
    pub now: Millis,
}

macro_rules! insert {
    ($conflict:literal) => {
        concat!(
            "INSERT INTO data_keys (id, purpose, state, kek_id, wrapped, created_at, expires_at, slot) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ",
            $conflict
        )
    };
}

impl NewKey<'_> {
    fn args(&self) -> [Arg<'_>; 8] {
        [
            Arg::Text(self.id.as_str()),
            Arg::Text(self.purpose),
            Arg::Text(self.state),
            Arg::Text(self.kek_id.as_str()),
            Arg::Bytes(self.wrapped),
            Arg::Int(self.now.0),
            Arg::Int(self.expires_at.0),
            Arg::Int(self.slot),
        ]
    }
}

/// What became of a key that was to be stored. Where it is not there, the transaction is to be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is there, and a new epoch has begun.
    Yes,
    /// Another key has its place.
    Taken,
    /// The epoch is over in which it was wrapped: its KEK may be gone by now.
    Late,
}

/// Stores the first keys, which were wrapped in an epoch, each of a purpose of its own.
pub async fn insert_first_keys(tx: &mut Tx, keys: &[NewKey<'_>], epoch: i64) -> Result<Stored, StoreError> {
    const SQL: &str = insert!("ON CONFLICT (purpose) WHERE state = 'active' DO NOTHING");
    for key in keys {
        if tx.execute(SQL, &key.args()).await? != 1 {
            return Ok(Stored::Taken);
        }
    }
    stored(tx, epoch).await
}

/// Puts a new active key, which was wrapped in an epoch, in the place of `old`, which only opens from now on.
pub async fn rotate_key(
    tx: &mut Tx,
    old: &DekId,
    key: &NewKey<'_>,
    epoch: i64,
) -> Result<Stored, StoreError> {
    let stands = retire(tx, old, key.now).await?;
    insert_after(tx, stands, key, epoch).await
}

/// Stores a key, which was wrapped in an epoch, that shall be active later in the place of `old`. Its place is taken
/// where `old` is not active any more, or another is announced, or has the column.
pub async fn announce_key(
    tx: &mut Tx,
    old: &DekId,
    key: &NewKey<'_>,
    epoch: i64,
) -> Result<Stored, StoreError> {
    // Its row is locked by this: no other comes into its place before the transaction ends.
    const HELD: &str = "UPDATE data_keys SET state = state WHERE id = $1 AND state = 'active'";
    let stands = tx.execute(HELD, &[Arg::Text(old.as_str())]).await? == 1;
    insert_after(tx, stands, key, epoch).await
}

/// Stores a key, where the one before it stands as it was.
async fn insert_after(tx: &mut Tx, stands: bool, key: &NewKey<'_>, epoch: i64) -> Result<Stored, StoreError> {
    const SQL: &str = insert!("ON CONFLICT DO NOTHING");
    if !stands || tx.execute(SQL, &key.args()).await? != 1 {
        return Ok(Stored::Taken);
    }
    stored(tx, epoch).await
}

/// Begins a new epoch after the one in which what is there now was wrapped.
async fn stored(tx: &mut Tx, epoch: i64) -> Result<Stored, StoreError> {
    Ok(if raise_epoch_after(tx, epoch).await? { Stored::Yes } else { Stored::Late })
}

/// Makes the announced key active in the place of `old`, with a new epoch; `false` where that is not how they
/// stand: then the transaction is to be taken back.
pub async fn promote_key(tx: &mut Tx, old: &DekId, next: &DekId, now: Millis) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE data_keys SET state = 'active' WHERE id = $1 AND state = 'next'";
    let done = retire(tx, old, now).await? && tx.execute(SQL, &[Arg::Text(next.as_str())]).await? == 1;
    with_epoch(tx, done).await
}

async fn retire(tx: &mut Tx, id: &DekId, now: Millis) -> Result<bool, StoreError> {
    const SQL: &str =
        "UPDATE data_keys SET state = 'decrypt_only', retired_at = $2 WHERE id = $1 AND state = 'active'";
    Ok(tx.execute(SQL, &[Arg::Text(id.as_str()), Arg::Int(now.0)]).await? == 1)
}

/// Begins a new epoch where something was done.
async fn with_epoch(tx: &mut Tx, done: bool) -> Result<bool, StoreError> {
    if done {
        raise_epoch_in(tx).await?;
    }
    Ok(done)
}

/// Takes away a key that only opens: its wrapped bytes go, its row stays, and a new epoch begins. `false` where
/// it is not such a key. The caller has made sure that nothing needs it.
pub async fn destroy_key(tx: &mut Tx, id: &DekId, now: Millis) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE data_keys SET state = 'destroyed', wrapped = NULL, destroyed_at = $2 \
         WHERE id = $1 AND state = 'decrypt_only'";
    let done = tx.execute(SQL, &[Arg::Text(id.as_str()), Arg::Int(now.0)]).await? == 1;
    with_epoch(tx, done).await
}

/// Has the engine take away what it still keeps of rows that were changed. What is in backups and in PostgreSQL's own
/// log goes with those. [`StoreError::OldRowsInLog`] and [`StoreError::OldRowsInTable`] where others kept it from that
/// for ten seconds.
pub async fn sweep_old_rows(db: &Db) -> Result<Swept, StoreError> {
    let end = tokio::time::Instant::now() + READERS;
    if let Some(writer) = db.sqlite() {
        while !db.empty_log(writer).await? {
            if tokio::time::Instant::now() > end {
                return Err(StoreError::OldRowsInLog);
            }
            tokio::time::sleep(BETWEEN).await;
        }
        return Ok(Swept::Overwritten);
    }
    if db.find(IS_OWNER, &[]).await?.ok_or(StoreError::Damaged)?.int("is_owner")? != 1 {
        return Ok(Swept::ByOwner);
    }
    // Without FULL a row that is dead is freed, and its bytes stay where they were.
    while !db.without_waiting("VACUUM (FULL) data_keys").await? {
        if tokio::time::Instant::now() > end {
            return Err(StoreError::OldRowsInTable);
        }
        tokio::time::sleep(BETWEEN).await;
    }
    db.execute("CHECKPOINT", &[]).await.or_else(|error| match error {
        // Only a superuser may; the next checkpoint comes by itself, and takes what is left of the table's old file.
        StoreError::Refused(_) => Ok(0),
        other => Err(other),
    })?;
    Ok(Swept::Anew)
}

/// What became of what the engine still kept of old rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swept {
    /// SQLite has overwritten them in its file, and emptied its log.
    Overwritten,
    /// PostgreSQL has written the table anew without them, but for those that an older transaction may still see.
    Anew,
    /// PostgreSQL keeps them until the owner of the tables has that done, which this role may not.
    ByOwner,
}

const IS_OWNER: &str = "SELECT CASE WHEN pg_has_role(relowner, 'USAGE') THEN 1 ELSE 0 END::bigint AS is_owner \
     FROM pg_class WHERE oid = 'data_keys'::regclass";

/// Puts keys that are wrapped under another KEK in the place of what was read; how many were still as they were
/// read.
pub async fn rewrap_keys(tx: &mut Tx, kek_id: &KekId, rows: &[(KeyRow, Vec<u8>)]) -> Result<u64, StoreError> {
    const SQL: &str = "UPDATE data_keys SET kek_id = $2, wrapped = $3 \
         WHERE id = $1 AND kek_id = $4 AND wrapped = $5";
    let mut done = 0;
    for (row, wrapped) in rows {
        let args = [
            Arg::Text(row.id.as_str()),
            Arg::Text(kek_id.as_str()),
            Arg::Bytes(wrapped),
            Arg::Text(row.kek_id.as_str()),
            Arg::BytesOrNull(row.wrapped.as_deref()),
        ];
        done += tx.execute(SQL, &args).await?;
    }
    Ok(done)
}

/// Adds what a process counted.
pub async fn add_uses(db: &Db, id: &DekId, uses: u64) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE data_keys SET uses = uses + $2 WHERE id = $1";
    let uses = i64::try_from(uses).unwrap_or(i64::MAX);
    db.execute(SQL, &[Arg::Text(id.as_str()), Arg::Int(uses)]).await?;
    Ok(())
}

/// The epoch of the keys.
pub async fn epoch(db: &Db) -> Result<i64, StoreError> {
    let row = db.find("SELECT epoch FROM key_epoch WHERE one = 1", &[]).await?;
    row.ok_or(StoreError::Damaged)?.int("epoch")
}

/// Begins a new epoch: nothing that was sealed with a view of the keys from before is stored any more.
pub async fn raise_epoch(db: &Db) -> Result<(), StoreError> {
    db.execute(RAISE, &[]).await.map(|_| ())
}

/// As [`raise_epoch`], in a transaction.
pub async fn raise_epoch_in(tx: &mut Tx) -> Result<(), StoreError> {
    tx.execute(RAISE, &[]).await.map(|_| ())
}

/// As [`raise_epoch_in`]; `false` where this epoch is over already. What is wrapped under a KEK is stored by this: who
/// destroys a KEK begins a new epoch first, and counts what is wrapped under it in the same transaction.
pub async fn raise_epoch_after(tx: &mut Tx, epoch: i64) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE key_epoch SET epoch = epoch + 1 WHERE one = 1 AND epoch = $1";
    Ok(tx.execute(SQL, &[Arg::Int(epoch)]).await? == 1)
}

/// How many data keys a KEK wraps, for a transaction that has begun a new epoch: until it ends no more come.
pub async fn count_wrapped(tx: &mut Tx, kek: &KekId) -> Result<i64, StoreError> {
    const SQL: &str = "SELECT count(*) AS n FROM data_keys WHERE kek_id = $1 AND wrapped IS NOT NULL";
    tx.find(SQL, &[Arg::Text(kek.as_str())]).await?.ok_or(StoreError::Damaged)?.int("n")
}

const RAISE: &str = "UPDATE key_epoch SET epoch = epoch + 1 WHERE one = 1";

/// Whether this is the epoch of the keys, for a transaction that has written what it seals: the table that it wrote to
/// is locked by then, and [`wait_for_writers`] waits for it.
pub async fn is_epoch(tx: &mut Tx, epoch: i64) -> Result<bool, StoreError> {
    const SQL: &str = "SELECT epoch FROM key_epoch WHERE one = 1 AND epoch = $1";
    Ok(tx.find(SQL, &[Arg::Int(epoch)]).await?.is_some())
}

/// As [`is_epoch`]; and no other epoch begins before the transaction ends. Who follows then finds what it has stored,
/// by the keys before. All who ask this wait for one row, which is why only they ask it whose record may be there once.
pub async fn hold_epoch(tx: &mut Tx, epoch: i64) -> Result<bool, StoreError> {
    const SQL: &str = "SELECT epoch FROM key_epoch WHERE one = 1 AND epoch = $1 FOR SHARE";
    if tx.is_sqlite() {
        // Whoever writes is alone.
        return is_epoch(tx, epoch).await;
    }
    Ok(tx.find(SQL, &[Arg::Int(epoch)]).await?.is_some())
}

/// How often the wait for other writers is begun anew, and how long one wait may hold up those who come
/// after it.
const WAITS: usize = 300;
/// Every so many waits there is a longer one.
const LONG_WAIT: usize = 10;
/// Every table that has sealed records ([`super::reseal::SOURCES`]).
const LOCK: &str = "LOCK TABLE cards, payments, operations, notices IN SHARE MODE";
const PAUSE: Duration = Duration::from_millis(100);
/// How long programs are waited for that read SQLite's database.
const READERS: Duration = Duration::from_secs(10);
/// The pause between two tries, in each of which nobody can write for half a second.
const BETWEEN: Duration = Duration::from_secs(2);

/// Returns when every transaction that was writing records as this was called has ended. Those
/// that write later have seen what was committed before the call.
pub async fn wait_for_writers(db: &Db) -> Result<(), StoreError> {
    if db.is_sqlite() {
        // One writes at a time: who gets the lock has waited for the others.
        return db.begin_write().await?.commit().await;
    }
    let mut last = StoreError::Damaged;
    for turn in 1..=WAITS {
        let mut tx = db.begin_write().await?;
        // PostgreSQL asks its own cleaning of a table to go after `deadlock_timeout`, a second.
        let wait = match turn % LONG_WAIT {
            0 => "SET LOCAL lock_timeout = '1500ms'",
            _ => "SET LOCAL lock_timeout = '250ms'",
        };
        tx.execute(wait, &[]).await?;
        // SHARE waits for everybody who has written and not committed, and lets readers through.
        match tx.execute(LOCK, &[]).await {
            Ok(_) => return tx.commit().await,
            Err(error) => last = error,
        }
        tx.rollback().await?;
        // Those who queued behind the wait go first.
        tokio::time::sleep(PAUSE).await;
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::reseal::SOURCES;

    #[test]
    fn writers_of_every_sealed_record_are_waited_for() {
        for source in SOURCES {
            assert!(LOCK.contains(&format!(" {}", source.table)), "{} is not locked", source.table);
        }
    }
}
