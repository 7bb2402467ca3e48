//! The audit trail's rows. They are inserted in the transaction of their effect and never changed: the role
//! that serves needs no right to update or delete here.

use super::backend::{Arg, Db, Row, StoreError, Tx};
use super::many::{Batch, Columns, Kind, Many};
use crate::base::clock::Millis;
use crate::model::audit::{AuditRow, CLOSE, Head};

/// The statement that inserts rows from what has [`COLUMNS`].
macro_rules! insert_from {
    ($given:literal) => {
        concat!(
            "INSERT INTO audit (chain, seq, at, actor, merchant, action, object, outcome, detail, origin, \
             request_id, key_id, mac) SELECT chain, seq, at, actor, merchant, action, object, outcome, detail, \
             origin, request_id, key_id, mac FROM ",
            $given
        )
    };
}
pub(super) use insert_from;

/// The columns of a row to insert.
pub(super) const COLUMNS: Columns = &[
    ("chain", Kind::Text),
    ("seq", Kind::Int),
    ("at", Kind::Int),
    ("actor", Kind::Text),
    ("merchant", Kind::Text),
    ("action", Kind::Text),
    ("object", Kind::Text),
    ("outcome", Kind::Text),
    ("detail", Kind::Text),
    ("origin", Kind::Text),
    ("request_id", Kind::Text),
    ("key_id", Kind::Text),
    ("mac", Kind::Bytes),
];

/// A row to insert, with its MAC.
pub type NewRow = (AuditRow, [u8; 32]);

pub(super) fn args((row, mac): &NewRow) -> [Arg<'_>; 13] {
    [
        Arg::Text(&row.chain),
        Arg::Int(row.seq),
        Arg::Int(row.at.0),
        Arg::Text(&row.actor),
        Arg::TextOrNull(row.merchant.as_deref()),
        Arg::Text(&row.action),
        Arg::TextOrNull(row.object.as_deref()),
        Arg::Text(&row.outcome),
        Arg::TextOrNull(row.detail.as_deref()),
        Arg::TextOrNull(row.origin.as_deref()),
        Arg::TextOrNull(row.request_id.as_deref()),
        Arg::Text(&row.key_id),
        Arg::Bytes(mac),
    ]
}

/// Writes rows in the transaction of their effects.
pub async fn insert_rows(tx: &mut Tx, rows: &[NewRow]) -> Result<(), StoreError> {
    let rows: Vec<_> = rows.iter().map(args).collect();
    tx.run_many(&INSERT, &rows).await.map(|_| ())
}

/// Adds rows to a transaction of SQLite's.
pub(super) fn add<'a>(batch: &mut Batch<'a>, rows: &'a [NewRow]) {
    batch.add(&INSERT, &rows.iter().map(args).collect::<Vec<_>>());
}

static INSERT: Many = Many::new(COLUMNS, insert_from!("given"));

fn audit_row(row: &Row) -> Result<(AuditRow, Vec<u8>), StoreError> {
    let read = AuditRow {
        chain: row.text("chain")?,
        seq: row.int("seq")?,
        at: Millis(row.int("at")?),
        actor: row.text("actor")?,
        merchant: row.text_or_null("merchant")?,
        action: row.text("action")?,
        object: row.text_or_null("object")?,
        outcome: row.text("outcome")?,
        detail: row.text_or_null("detail")?,
        origin: row.text_or_null("origin")?,
        request_id: row.text_or_null("request_id")?,
        key_id: row.text("key_id")?,
    };
    Ok((read, row.bytes("mac")?))
}

macro_rules! columns {
    () => {
        "chain, seq, at, actor, merchant, action, object, outcome, detail, origin, request_id, key_id, mac"
    };
}

/// Rows after a place in the order of chains, with their MACs.
pub async fn list_rows(
    db: &Db,
    after: (&str, i64),
    limit: i64,
) -> Result<Vec<(AuditRow, Vec<u8>)>, StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM audit WHERE (chain, seq) > ($1, $2) ORDER BY chain, seq LIMIT $3"
    );
    let args = [Arg::Text(after.0), Arg::Int(after.1), Arg::Int(limit)];
    db.list(SQL, &args).await?.iter().map(audit_row).collect()
}

/// Rows of a time, oldest first, after a row of it.
pub async fn list_by_time(
    db: &Db,
    from: Millis,
    until: Millis,
    after: (Millis, &str, i64),
    limit: i64,
) -> Result<Vec<(AuditRow, Vec<u8>)>, StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM audit WHERE at >= $1 AND at < $2 AND (at, chain, seq) > ($3, $4, $5) \
         ORDER BY at, chain, seq LIMIT $6"
    );
    let (at, chain, seq) = after;
    let args = [
        Arg::Int(from.0),
        Arg::Int(until.0),
        Arg::Int(at.0),
        Arg::Text(chain),
        Arg::Int(seq),
        Arg::Int(limit),
    ];
    db.list(SQL, &args).await?.iter().map(audit_row).collect()
}

/// The newest row of every chain, in the order of their names; with its time where it closes the chain.
pub async fn list_heads(db: &Db) -> Result<Vec<(Head, Option<Millis>)>, StoreError> {
    // One look into the index for each chain, however long the chains are.
    const SQL: &str = "WITH RECURSIVE chains (chain) AS ( \
             SELECT MIN(chain) FROM audit \
             UNION ALL \
             SELECT (SELECT MIN(audit.chain) FROM audit WHERE audit.chain > chains.chain) \
             FROM chains WHERE chains.chain IS NOT NULL) \
         SELECT audit.chain, audit.seq, audit.mac, audit.at, audit.action FROM chains, audit \
         WHERE chains.chain IS NOT NULL AND audit.chain = chains.chain \
         AND audit.seq = (SELECT MAX(newest.seq) FROM audit AS newest WHERE newest.chain = chains.chain) \
         ORDER BY audit.chain";
    let rows = db.list(SQL, &[]).await?;
    rows.iter()
        .map(|row| {
            let head = Head { chain: row.text("chain")?, seq: row.int("seq")?, mac: row.bytes("mac")? };
            let closed = (row.text("action")? == CLOSE).then_some(Millis(row.int("at")?));
            Ok((head, closed))
        })
        .collect()
}

/// How many rows have a MAC of each key.
pub async fn count_by_key(db: &Db) -> Result<Vec<(String, u64)>, StoreError> {
    const SQL: &str = "SELECT key_id, COUNT(*) AS count FROM audit GROUP BY key_id";
    let rows = db.list(SQL, &[]).await?;
    rows.iter()
        .map(|row| Ok((row.text("key_id")?, u64::try_from(row.int("count")?).unwrap_or_default())))
        .collect()
}
