//! The two fingerprint columns of cards, while the fingerprint key rotates.

use super::backend::{Arg, Db, Row, StoreError, Tx};
use crate::base::ids::{CardId, DekId, Merchant};
use crate::base::sealed::Sealed;

/// A live card that has no fingerprint in a column.
pub struct Unfilled {
    /// Its reference.
    pub card_id: CardId,
    /// Whose it is.
    pub merchant: Merchant,
    /// The sealed PAN.
    pub pan: Sealed,
}

macro_rules! by_slot {
    ($slot:expr, $a:expr, $b:expr) => {
        if $slot == 0 { $a } else { $b }
    };
}

/// That no key has a column. It stands in the statement itself: who announces a key for the column then waits for
/// those that are under way.
macro_rules! nobodys {
    ($slot:literal) => {
        concat!(
            "NOT EXISTS (SELECT 1 FROM data_keys WHERE purpose = 'fingerprint' AND slot = ",
            $slot,
            " AND state <> 'destroyed')"
        )
    };
}

/// The next live cards without a fingerprint in this column.
pub async fn list_unfilled(
    db: &Db,
    slot: usize,
    after: &str,
    limit: i64,
) -> Result<Vec<Unfilled>, StoreError> {
    let sql = by_slot!(
        slot,
        "SELECT card_id, merchant, pan FROM cards WHERE card_id > $1 AND erased_at IS NULL \
         AND source = 'PAN' AND fingerprint IS NULL ORDER BY card_id LIMIT $2",
        "SELECT card_id, merchant, pan FROM cards WHERE card_id > $1 AND erased_at IS NULL \
         AND source = 'PAN' AND fingerprint_b IS NULL ORDER BY card_id LIMIT $2"
    );
    db.list(sql, &[Arg::Text(after), Arg::Int(limit)]).await?.iter().map(unfilled).collect()
}

fn unfilled(row: &Row) -> Result<Unfilled, StoreError> {
    Ok(Unfilled {
        card_id: CardId::parse(&row.text("card_id")?).ok_or(StoreError::Damaged)?,
        merchant: Merchant::parse(&row.text("merchant")?).ok_or(StoreError::Damaged)?,
        pan: Sealed::from_bytes(row.bytes("pan")?),
    })
}

/// How many live cards have no fingerprint in this column.
pub async fn count_unfilled(db: &Db, slot: usize) -> Result<u64, StoreError> {
    let sql = by_slot!(
        slot,
        "SELECT count(*) AS n FROM cards WHERE erased_at IS NULL AND source = 'PAN' AND fingerprint IS NULL",
        "SELECT count(*) AS n FROM cards WHERE erased_at IS NULL AND source = 'PAN' AND fingerprint_b IS NULL"
    );
    count(db, sql).await
}

/// How many cards have a fingerprint in this column.
pub async fn count_filled(db: &Db, slot: usize) -> Result<u64, StoreError> {
    let sql = by_slot!(
        slot,
        "SELECT count(*) AS n FROM cards WHERE fingerprint IS NOT NULL",
        "SELECT count(*) AS n FROM cards WHERE fingerprint_b IS NOT NULL"
    );
    count(db, sql).await
}

async fn count(db: &Db, sql: &'static str) -> Result<u64, StoreError> {
    let row = db.find(sql, &[]).await?.ok_or(StoreError::Damaged)?;
    Ok(u64::try_from(row.int("n")?).unwrap_or_default())
}

/// Fills the column of cards that are alive and still have none, in one transaction, while its key is not destroyed.
pub async fn fill(db: &Db, slot: usize, key: &DekId, rows: &[(CardId, [u8; 32])]) -> Result<u64, StoreError> {
    let sql = by_slot!(
        slot,
        "UPDATE cards SET fingerprint = $2 WHERE card_id = $1 AND fingerprint IS NULL AND erased_at IS NULL \
         AND EXISTS (SELECT 1 FROM data_keys WHERE id = $3 AND state <> 'destroyed')",
        "UPDATE cards SET fingerprint_b = $2 WHERE card_id = $1 AND fingerprint_b IS NULL AND erased_at IS NULL \
         AND EXISTS (SELECT 1 FROM data_keys WHERE id = $3 AND state <> 'destroyed')"
    );
    let mut tx: Tx = db.begin_write().await?;
    let mut done = 0;
    for (id, digest) in rows {
        let args = [Arg::Text(id.as_str()), Arg::Bytes(digest), Arg::Text(key.as_str())];
        done += tx.execute(sql, &args).await?;
    }
    tx.commit().await?;
    Ok(done)
}

/// Empties the column of some cards after `after`, while no key has it; where the next turn begins, or none at the
/// end.
pub async fn empty(db: &Db, slot: usize, after: &str, limit: i64) -> Result<Option<String>, StoreError> {
    let list = by_slot!(
        slot,
        concat!(
            "SELECT card_id FROM cards WHERE card_id > $1 AND fingerprint IS NOT NULL AND ",
            nobodys!(0),
            " ORDER BY card_id LIMIT $2"
        ),
        concat!(
            "SELECT card_id FROM cards WHERE card_id > $1 AND fingerprint_b IS NOT NULL AND ",
            nobodys!(1),
            " ORDER BY card_id LIMIT $2"
        )
    );
    let clear = by_slot!(
        slot,
        concat!(
            "UPDATE cards SET fingerprint = NULL \
             WHERE card_id > $1 AND card_id <= $2 AND fingerprint IS NOT NULL AND ",
            nobodys!(0)
        ),
        concat!(
            "UPDATE cards SET fingerprint_b = NULL \
             WHERE card_id > $1 AND card_id <= $2 AND fingerprint_b IS NOT NULL AND ",
            nobodys!(1)
        )
    );
    let page = db.list(list, &[Arg::Text(after), Arg::Int(limit)]).await?;
    let Some(last) = page.last() else { return Ok(None) };
    let last = last.text("card_id")?;
    db.execute(clear, &[Arg::Text(after), Arg::Text(&last)]).await?;
    Ok(Some(last))
}
