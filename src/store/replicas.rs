//! Which processes serve, and how far each of them follows the keys; and the canaries of new KEKs.

use super::backend::{Arg, Db, Row, StoreError};
use crate::base::clock::Millis;
use crate::base::ids::{DekId, InstanceId, KekId};

/// A process that serves.
pub struct Replica {
    /// Its name.
    pub instance: InstanceId,
    /// The machine that it runs on, for people.
    pub host: String,
    /// When it was last alive.
    pub seen_at: Millis,
    /// The epoch of the keys that it works with.
    pub epoch: i64,
    /// The newest canary's KEK that it has opened.
    pub opened_kek: Option<String>,
}

/// What a process tells of itself.
pub struct Beat<'a> {
    /// Its name.
    pub instance: &'a InstanceId,
    /// The machine that it runs on.
    pub host: &'a str,
    /// When it started.
    pub started_at: Millis,
    /// The epoch of the keys that it works with.
    pub epoch: i64,
    /// The newest canary's KEK that it has opened.
    pub opened_kek: Option<&'a KekId>,
    /// Now.
    pub now: Millis,
}

/// Says that a process is alive.
pub async fn beat(db: &Db, beat: &Beat<'_>) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO replicas (instance, host, started_at, seen_at, epoch, opened_kek) \
         VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (instance) DO UPDATE SET \
             seen_at = excluded.seen_at, epoch = excluded.epoch, opened_kek = excluded.opened_kek";
    let args = [
        Arg::Text(beat.instance.as_str()),
        Arg::Text(beat.host),
        Arg::Int(beat.started_at.0),
        Arg::Int(beat.now.0),
        Arg::Int(beat.epoch),
        Arg::TextOrNull(beat.opened_kek.map(KekId::as_str)),
    ];
    db.execute(SQL, &args).await.map(|_| ())
}

/// Says that a process has ended, and forgets those that were not seen since `before`.
pub async fn leave(db: &Db, instance: &InstanceId, before: Millis) -> Result<(), StoreError> {
    const SQL: &str = "DELETE FROM replicas WHERE instance = $1 OR seen_at < $2";
    db.execute(SQL, &[Arg::Text(instance.as_str()), Arg::Int(before.0)]).await.map(|_| ())
}

/// The processes that were alive at `since` or later.
pub async fn list_live(db: &Db, since: Millis) -> Result<Vec<Replica>, StoreError> {
    const SQL: &str = "SELECT instance, host, seen_at, epoch, opened_kek FROM replicas \
         WHERE seen_at >= $1 ORDER BY instance";
    db.list(SQL, &[Arg::Int(since.0)]).await?.iter().map(replica).collect()
}

fn replica(row: &Row) -> Result<Replica, StoreError> {
    Ok(Replica {
        instance: InstanceId::parse(&row.text("instance")?).ok_or(StoreError::Damaged)?,
        host: row.text("host")?,
        seen_at: Millis(row.int("seen_at")?),
        epoch: row.int("epoch")?,
        opened_kek: row.text_or_null("opened_kek")?,
    })
}

/// A key that does nothing, wrapped under a KEK that shall come into use.
pub struct Canary {
    /// The KEK.
    pub kek_id: KekId,
    /// The key's id.
    pub dek_id: DekId,
    /// The wrapped key.
    pub wrapped: Vec<u8>,
}

/// Sets a canary out, in the place of all others.
pub async fn put_canary(db: &Db, canary: &Canary, now: Millis) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO kek_canaries (kek_id, dek_id, wrapped, made_at) VALUES ($1, $2, $3, $4)";
    let mut tx = db.begin_write().await?;
    tx.execute("DELETE FROM kek_canaries", &[]).await?;
    let args = [
        Arg::Text(canary.kek_id.as_str()),
        Arg::Text(canary.dek_id.as_str()),
        Arg::Bytes(&canary.wrapped),
        Arg::Int(now.0),
    ];
    tx.execute(SQL, &args).await?;
    tx.commit().await
}

/// The canary that is out.
pub async fn find_canary(db: &Db) -> Result<Option<Canary>, StoreError> {
    const SQL: &str = "SELECT kek_id, dek_id, wrapped FROM kek_canaries ORDER BY made_at DESC LIMIT 1";
    let Some(row) = db.find(SQL, &[]).await? else { return Ok(None) };
    Ok(Some(Canary {
        kek_id: KekId::parse(&row.text("kek_id")?).ok_or(StoreError::Damaged)?,
        dek_id: DekId::parse(&row.text("dek_id")?).ok_or(StoreError::Damaged)?,
        wrapped: row.bytes("wrapped")?,
    }))
}
