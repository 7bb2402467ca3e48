//! Every sealed record of the database, for moving it from one data key to another. The bytes stay opaque:
//! only the key id that a record's header names (bytes 3 to 22, `docs/envelope.md`) is compared.
//!
//! A table with a sealed column that is not listed here would keep its old key alive unseen, so a test
//! compares [`SOURCES`] with the schema.

use super::backend::{Arg, Db, Row, StoreError, Tx, Work, leave, on};
use crate::base::ids::Merchant;
use crate::base::sealed::Sealed;

/// A table with up to two sealed columns.
pub struct Source {
    /// Its name.
    pub table: &'static str,
    /// Its sealed columns.
    pub columns: &'static [&'static str],
    /// The purpose of the keys that seal them (`crypto::keyring::Purpose`).
    pub purpose: &'static str,
    /// The fields that they are sealed as, in the same order (`crypto::aad::Field`).
    pub fields: &'static [&'static str],
    page: &'static str,
    sample: &'static str,
    update: &'static str,
    update_many: &'static str,
    count_stale: &'static str,
    count_by_key: &'static [&'static str],
}

/// Where a page ends: the key of its last row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    first: String,
    second: String,
}

/// A row with sealed columns.
pub struct SealedRow {
    /// Its place in the table.
    pub cursor: Cursor,
    /// Whose it is.
    pub merchant: Merchant,
    /// The record's id, as it is bound into the seal.
    pub record: String,
    /// The sealed columns, in the order of [`Source::columns`].
    pub sealed: [Option<Sealed>; 2],
}

/// A row's columns as they were read and as they shall be; what is none is left alone.
pub struct Moved {
    /// The row.
    pub cursor: Cursor,
    /// As they were read.
    pub old: [Option<Sealed>; 2],
    /// Under the other key.
    pub new: [Option<Sealed>; 2],
}

/// `stale` is true where a column names another key than `$1`.
macro_rules! source {
    (
        $table:literal, key: [$first:literal, $second:literal, $second_value:literal], record: $record:literal,
        a: $a:literal as $fa:literal, b: $b:literal as $fb:literal
    ) => {
        Source {
            table: $table,
            columns: &[$a, $b],
            purpose: "card",
            fields: &[$fa, $fb],
            page: concat!(
                "SELECT ",
                $first,
                " AS k1, ",
                $second_value,
                " AS k2, merchant, ",
                $record,
                " AS record, ",
                $a,
                " AS a, ",
                $b,
                " AS b FROM ",
                $table,
                " WHERE (",
                $first,
                ", ",
                $second_value,
                ") > ($2, $3) AND (substr(",
                $a,
                ", 3, 20) <> $1 OR substr(",
                $b,
                ", 3, 20) <> $1) ORDER BY ",
                $first,
                ", ",
                $second,
                " LIMIT $4"
            ),
            sample: concat!(
                "SELECT ",
                $first,
                " AS k1, ",
                $second_value,
                " AS k2, merchant, ",
                $record,
                " AS record, ",
                $a,
                " AS a, ",
                $b,
                " AS b FROM ",
                $table,
                " WHERE ",
                $a,
                " IS NOT NULL OR ",
                $b,
                " IS NOT NULL ORDER BY random() LIMIT $1"
            ),
            update: concat!(
                "UPDATE ",
                $table,
                " SET ",
                $a,
                " = COALESCE($3, ",
                $a,
                "), ",
                $b,
                " = COALESCE($4, ",
                $b,
                ") WHERE ",
                $first,
                " = $1 AND ",
                $second_value,
                " = $2 AND ($5 IS NULL OR ",
                $a,
                " = $5) AND ($6 IS NULL OR ",
                $b,
                " = $6) \
                 AND EXISTS (SELECT 1 FROM key_epoch WHERE one = 1 AND epoch = $7)"
            ),
            update_many: concat!(
                "UPDATE ",
                $table,
                " SET ",
                $a,
                " = COALESCE(d.new_a, ",
                $a,
                "), ",
                $b,
                " = COALESCE(d.new_b, ",
                $b,
                ") FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[]) \
                 AS d(k1, k2, new_a, new_b, old_a, old_b) WHERE ",
                $first,
                " = d.k1 AND ",
                $second_value,
                " = d.k2 AND (d.old_a IS NULL OR ",
                $a,
                " = d.old_a) AND (d.old_b IS NULL OR ",
                $b,
                " = d.old_b) AND EXISTS (SELECT 1 FROM key_epoch WHERE one = 1 AND epoch = $7)"
            ),
            count_stale: concat!(
                "SELECT count(*) AS n FROM ",
                $table,
                " WHERE substr(",
                $a,
                ", 3, 20) <> $1 OR substr(",
                $b,
                ", 3, 20) <> $1"
            ),
            count_by_key: &[
                concat!(
                    "SELECT substr(",
                    $a,
                    ", 3, 20) AS k, count(*) AS n FROM ",
                    $table,
                    " WHERE ",
                    $a,
                    " IS NOT NULL GROUP BY substr(",
                    $a,
                    ", 3, 20)"
                ),
                concat!(
                    "SELECT substr(",
                    $b,
                    ", 3, 20) AS k, count(*) AS n FROM ",
                    $table,
                    " WHERE ",
                    $b,
                    " IS NOT NULL GROUP BY substr(",
                    $b,
                    ", 3, 20)"
                ),
            ],
        }
    };
}

/// Every table with sealed records.
#[rustfmt::skip]
pub const SOURCES: &[Source] = &[
    source!("cards", key: ["card_id", "card_id", "''"], record: "card_id",
        a: "pan" as "pan", b: "details" as "details"),
    source!("payments", key: ["account", "payment_request_id", "payment_request_id"],
        record: "account || '/' || payment_request_id",
        a: "outgoing" as "outgoing", b: "answer" as "gateway_answer"),
    source!("operations", key: ["account", "kind || '/' || request_id", "kind || '/' || request_id"],
        record: "account || '/' || kind || '/' || request_id",
        a: "outgoing" as "outgoing", b: "answer" as "gateway_answer"),
    NOTICES,
    TOKENS,
];

/// Antom's tokens of cards that only Antom holds: under keys of their own.
#[rustfmt::skip]
const TOKENS: Source = Source {
    table: "cards",
    columns: &["token"],
    purpose: "gateway_token",
    fields: &["token"],
    page: "SELECT card_id AS k1, '' AS k2, merchant, card_id AS record, token AS a, CAST(NULL AS BYTEA) AS b \
         FROM cards WHERE (card_id, '') > ($2, $3) AND substr(token, 3, 20) <> $1 ORDER BY card_id LIMIT $4",
    sample: "SELECT card_id AS k1, '' AS k2, merchant, card_id AS record, token AS a, CAST(NULL AS BYTEA) AS b \
         FROM cards WHERE token IS NOT NULL ORDER BY random() LIMIT $1",
    update: "UPDATE cards SET token = COALESCE($3, token) WHERE card_id = $1 AND $2 = '' \
         AND ($5 IS NULL OR token = $5) AND $4 IS NULL AND $6 IS NULL \
         AND EXISTS (SELECT 1 FROM key_epoch WHERE one = 1 AND epoch = $7)",
    update_many: "UPDATE cards SET token = COALESCE(d.new_a, token) \
         FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[]) \
         AS d(k1, k2, new_a, new_b, old_a, old_b) WHERE card_id = d.k1 \
         AND (d.old_a IS NULL OR token = d.old_a) \
         AND EXISTS (SELECT 1 FROM key_epoch WHERE one = 1 AND epoch = $7)",
    count_stale: "SELECT count(*) AS n FROM cards WHERE substr(token, 3, 20) <> $1",
    count_by_key: &["SELECT substr(token, 3, 20) AS k, count(*) AS n FROM cards WHERE token IS NOT NULL \
         GROUP BY substr(token, 3, 20)"],
};

/// Notifications that were kept aside: one sealed column, so the second one's places are empty.
#[rustfmt::skip]
const NOTICES: Source = Source {
    table: "notices",
    columns: &["body"],
    purpose: "card",
    fields: &["gateway_answer"],
    page: "SELECT account AS k1, digest AS k2, merchant, 'notice/' || digest AS record, body AS a, \
         CAST(NULL AS BYTEA) AS b FROM notices WHERE (account, digest) > ($2, $3) \
         AND substr(body, 3, 20) <> $1 ORDER BY account, digest LIMIT $4",
    sample: "SELECT account AS k1, digest AS k2, merchant, 'notice/' || digest AS record, body AS a, \
         CAST(NULL AS BYTEA) AS b FROM notices ORDER BY random() LIMIT $1",
    update: "UPDATE notices SET body = COALESCE($3, body) WHERE account = $1 AND digest = $2 \
         AND ($5 IS NULL OR body = $5) AND $4 IS NULL AND $6 IS NULL \
         AND EXISTS (SELECT 1 FROM key_epoch WHERE one = 1 AND epoch = $7)",
    update_many: "UPDATE notices SET body = COALESCE(d.new_a, body) \
         FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[]) \
         AS d(k1, k2, new_a, new_b, old_a, old_b) WHERE account = d.k1 AND digest = d.k2 \
         AND (d.old_a IS NULL OR body = d.old_a) \
         AND EXISTS (SELECT 1 FROM key_epoch WHERE one = 1 AND epoch = $7)",
    count_stale: "SELECT count(*) AS n FROM notices WHERE substr(body, 3, 20) <> $1",
    count_by_key: &["SELECT substr(body, 3, 20) AS k, count(*) AS n FROM notices GROUP BY substr(body, 3, 20)"],
};

/// The next rows with a record that names another key than `key`, in the order of the table's key.
pub async fn page(
    db: &Db,
    source: &Source,
    key: &[u8],
    after: &Cursor,
    limit: i64,
) -> Result<Vec<SealedRow>, StoreError> {
    let args = [Arg::Bytes(key), Arg::Text(&after.first), Arg::Text(&after.second), Arg::Int(limit)];
    db.list(source.page, &args).await?.iter().map(sealed_row).collect()
}

/// Some rows with records, by chance; reads the whole table.
pub async fn sample(db: &Db, source: &Source, limit: i64) -> Result<Vec<SealedRow>, StoreError> {
    db.list(source.sample, &[Arg::Int(limit)]).await?.iter().map(sealed_row).collect()
}

fn sealed_row(row: &Row) -> Result<SealedRow, StoreError> {
    let column = |name| Ok::<_, StoreError>(row.bytes_or_null(name)?.map(Sealed::from_bytes));
    Ok(SealedRow {
        cursor: Cursor { first: row.text("k1")?, second: row.text("k2")? },
        merchant: Merchant::parse(&row.text("merchant")?).ok_or(StoreError::Damaged)?,
        record: row.text("record")?,
        sealed: [column("a")?, column("b")?],
    })
}

/// How many rows have a record that names another key than `key`.
pub async fn count_stale(db: &Db, source: &Source, key: &[u8]) -> Result<u64, StoreError> {
    let row = db.find(source.count_stale, &[Arg::Bytes(key)]).await?.ok_or(StoreError::Damaged)?;
    Ok(u64::try_from(row.int("n")?).unwrap_or_default())
}

/// How many records each key has, by the raw id that they name.
pub async fn count_by_key(db: &Db, source: &Source) -> Result<Vec<(Vec<u8>, u64)>, StoreError> {
    let mut counts = Vec::new();
    for sql in source.count_by_key {
        for row in db.list(sql, &[]).await? {
            counts.push((row.bytes("k")?, u64::try_from(row.int("n")?).unwrap_or_default()));
        }
    }
    Ok(counts)
}

/// How many payments, operations, cards that only Antom holds, and kept notifications are known again by each
/// request-MAC key.
pub async fn count_meanings(db: &Db) -> Result<Vec<(String, u64)>, StoreError> {
    // An older version kept notifications without the key of their digest: it was the newest one then.
    const SQL: &str = "SELECT meaning_key, count(*) AS n FROM ( \
         SELECT meaning_key FROM payments UNION ALL \
         SELECT token_digest_key FROM cards WHERE token_digest_key IS NOT NULL UNION ALL \
         SELECT COALESCE(digest_key, (SELECT id FROM data_keys \
             WHERE purpose = 'request_mac' AND created_at <= notices.received_at \
             ORDER BY created_at DESC LIMIT 1)) FROM notices UNION ALL \
         SELECT meaning_key FROM operations) AS meanings WHERE meaning_key IS NOT NULL GROUP BY meaning_key";
    let rows = db.list(SQL, &[]).await?;
    let count = |row: &Row| Ok((row.text("meaning_key")?, u64::try_from(row.int("n")?).unwrap_or_default()));
    rows.iter().map(count).collect()
}

/// Stores moved records in one transaction, each row only where it is as it was read, and all only while
/// the epoch lasts; how many rows that were.
pub async fn store(db: &Db, source: &Source, rows: &[Moved], epoch: i64) -> Result<u64, StoreError> {
    if rows.is_empty() {
        return Ok(0);
    }
    let Some(pool) = db.postgres(false) else {
        let mut tx = db.begin_write().await?;
        let mut done = 0;
        for row in rows {
            done += store_one(&mut tx, source, row, epoch).await?;
        }
        tx.commit().await?;
        return Ok(done);
    };
    let bytes = |of: fn(&Moved) -> &Option<Sealed>| -> Vec<Option<&[u8]>> {
        rows.iter().map(|row| of(row).as_ref().map(Sealed::as_bytes)).collect()
    };
    let texts = |of: fn(&Moved) -> &str| -> Vec<&str> { rows.iter().map(of).collect() };
    let update = sqlx::query(source.update_many)
        .bind(texts(|row| &row.cursor.first))
        .bind(texts(|row| &row.cursor.second))
        .bind(bytes(|row| &row.new[0]))
        .bind(bytes(|row| &row.new[1]))
        .bind(bytes(|row| &row.old[0]))
        .bind(bytes(|row| &row.old[1]))
        .bind(epoch);
    let passage = db.enter(Work::Write).await?;
    let done = on!(pool, connection => update.execute(connection)).rows_affected();
    leave(passage).await?;
    Ok(done)
}

async fn store_one(tx: &mut Tx, source: &Source, row: &Moved, epoch: i64) -> Result<u64, StoreError> {
    let bytes = |sealed: &'_ Option<Sealed>| sealed.as_ref().map(|sealed| sealed.as_bytes().to_vec());
    let [new_a, new_b] = row.new.each_ref().map(bytes);
    let [old_a, old_b] = row.old.each_ref().map(bytes);
    let args = [
        Arg::Text(&row.cursor.first),
        Arg::Text(&row.cursor.second),
        Arg::BytesOrNull(new_a.as_deref()),
        Arg::BytesOrNull(new_b.as_deref()),
        Arg::BytesOrNull(old_a.as_deref()),
        Arg::BytesOrNull(old_b.as_deref()),
        Arg::Int(epoch),
    ];
    tx.execute(source.update, &args).await
}

/// The tables of binary columns that are known, for the test that looks for forgotten ones.
pub async fn binary_columns(db: &Db) -> Result<Vec<String>, StoreError> {
    const SQLITE: &str = "SELECT m.name || '.' || p.name AS name FROM sqlite_master m, pragma_table_info(m.name) p \
         WHERE m.type = 'table' AND p.type = 'BLOB' ORDER BY 1";
    const POSTGRES: &str = "SELECT table_name || '.' || column_name AS name FROM information_schema.columns \
         WHERE table_schema = current_schema() AND data_type = 'bytea' ORDER BY 1";
    let rows = match db.postgres(false) {
        None => db.list(SQLITE, &[]).await?,
        Some(pool) => {
            let rows = on!(pool, connection => sqlx::query(POSTGRES).fetch_all(connection));
            rows.into_iter().map(Row::Postgres).collect()
        }
    };
    rows.iter().map(|row| row.text("name")).collect()
}
