//! Wrapped data keys. At most one of each purpose is active; the unique index decides who makes it.

use super::backend::{Arg, Db, Row, StoreError};
use crate::base::clock::Millis;
use crate::base::ids::{DekId, KekId};

/// A data key as it is stored.
pub struct KeyRow {
    /// Its id.
    pub id: DekId,
    /// What it is for.
    pub purpose: String,
    /// `active`, `decrypt-only` or `destroyed`.
    pub state: String,
    /// Which KEK wraps it.
    pub kek_id: KekId,
    /// The wrapped key; none once destroyed.
    pub wrapped: Option<Vec<u8>>,
}

fn key_row(row: &Row) -> Result<KeyRow, StoreError> {
    Ok(KeyRow {
        id: DekId::parse(&row.text("id")?).ok_or(StoreError::Damaged)?,
        purpose: row.text("purpose")?,
        state: row.text("state")?,
        kek_id: KekId::parse(&row.text("kek_id")?).ok_or(StoreError::Damaged)?,
        wrapped: row.bytes_or_null("wrapped")?,
    })
}

/// All data keys, oldest first.
pub async fn list_keys(db: &Db) -> Result<Vec<KeyRow>, StoreError> {
    const SQL: &str = "SELECT id, purpose, state, kek_id, wrapped FROM data_keys ORDER BY created_at, id";
    db.list(SQL, &[]).await?.iter().map(key_row).collect()
}

/// One data key.
pub async fn find_key(db: &Db, id: &DekId) -> Result<Option<KeyRow>, StoreError> {
    const SQL: &str = "SELECT id, purpose, state, kek_id, wrapped FROM data_keys WHERE id = $1";
    db.find(SQL, &[Arg::Text(id.as_str())]).await?.as_ref().map(key_row).transpose()
}

/// Stores a new active key; `false` where its purpose has one already.
pub async fn insert_active_key(
    db: &Db,
    id: &DekId,
    purpose: &str,
    kek_id: &KekId,
    wrapped: &[u8],
    now: Millis,
) -> Result<bool, StoreError> {
    const SQL: &str = "INSERT INTO data_keys (id, purpose, state, kek_id, wrapped, created_at) \
         VALUES ($1, $2, 'active', $3, $4, $5) \
         ON CONFLICT (purpose) WHERE state = 'active' DO NOTHING";
    let changed = db
        .execute(
            SQL,
            &[
                Arg::Text(id.as_str()),
                Arg::Text(purpose),
                Arg::Text(kek_id.as_str()),
                Arg::Bytes(wrapped),
                Arg::Int(now.0),
            ],
        )
        .await?;
    Ok(changed == 1)
}
