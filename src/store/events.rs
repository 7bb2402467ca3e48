//! The event feed. Readers see rows that have a position, and go on from the last one that they saw; so a
//! position must never become visible after a greater one.
//!
//! Who inserts a row in the transaction of its effect may give it a position only while nobody else can: by
//! changing the merchant's head first, which nobody else changes before this transaction is over. On SQLite
//! that costs nothing, since writers stand in a queue anyway, and it is what [`insert_event`] does there; on
//! PostgreSQL groups of new cards do it ([`super::groups`]), whose commits follow one another too. All other
//! rows of PostgreSQL's are inserted without a position, as their commits overtake one another, and
//! [`sequence_batch`] numbers what is committed.

use std::collections::BTreeMap;

use super::backend::{Arg, Db, Row, StoreError, Tx};
use super::many::{Batch, Columns, Kind, Many};
use crate::base::clock::Millis;
use crate::base::ids::{EventId, Merchant};
use crate::base::json::Object;
use crate::metrics::Waiting;
use crate::model::event::{Cursor, Event, EventKind};

/// An event to insert.
#[derive(Clone, Copy)]
pub struct NewEvent<'a> {
    /// Its fresh id.
    pub event_id: &'a EventId,
    /// Whose feed it is for.
    pub merchant: &'a Merchant,
    /// What happened.
    pub kind: EventKind,
    /// What kind of object it happened to.
    pub object_type: &'a str,
    /// Which one.
    pub object_id: &'a str,
    /// The object, as JSON, without card data.
    pub body: &'a str,
    /// When. Events that wait together are numbered by this, so it must rise from one change of an
    /// object to the next, also where two machines' clocks differ.
    pub created_at: Millis,
}

/// Writes an event in the transaction of its effect: both are durable, or neither is.
pub async fn insert_event(tx: &mut Tx, event: &NewEvent<'_>) -> Result<(), StoreError> {
    insert_events(tx, std::slice::from_ref(event)).await
}

/// The statement that inserts events from what has [`COLUMNS`], with an expression for their position.
macro_rules! insert_from {
    ($position:literal, $given:literal) => {
        concat!(
            "INSERT INTO events (event_id, merchant, position, kind, object_type, object_id, body, created_at) \
             SELECT event_id, merchant, ",
            $position,
            ", kind, object_type, object_id, body, created_at FROM ",
            $given
        )
    };
}
pub(super) use insert_from;

/// The statement that moves heads on by as many events as what has `merchant` and `many` says, in an order in
/// which nobody waits for one another in a circle, and tells the last positions.
macro_rules! move_heads {
    ($given:literal) => {
        $crate::store::events::move_heads!($given, " RETURNING merchant AS owner, position AS newest")
    };
    ($given:literal, $told:literal) => {
        concat!(
            "INSERT INTO event_heads (merchant, position) SELECT merchant, many FROM ",
            $given,
            " WHERE many > 0 ORDER BY merchant ON CONFLICT (merchant) \
             DO UPDATE SET position = event_heads.position + EXCLUDED.position",
            $told
        )
    };
}
pub(super) use move_heads;

/// The columns of an event to insert.
pub(super) const COLUMNS: Columns = &[
    ("event_id", Kind::Text),
    ("merchant", Kind::Text),
    ("position", Kind::Int),
    ("kind", Kind::Text),
    ("object_type", Kind::Text),
    ("object_id", Kind::Text),
    ("body", Kind::Text),
    ("created_at", Kind::Int),
];

/// An event as it is inserted, with what stands for its position.
pub(super) fn args<'a>(event: &NewEvent<'a>, position: Option<i64>) -> [Arg<'a>; 8] {
    [
        Arg::Text(event.event_id.as_str()),
        Arg::Text(event.merchant.as_str()),
        Arg::IntOrNull(position),
        Arg::Text(event.kind.name()),
        Arg::Text(event.object_type),
        Arg::Text(event.object_id),
        Arg::Text(event.body),
        Arg::Int(event.created_at.0),
    ]
}

/// How many events of its merchant follow each in this list.
pub(super) fn followers(events: &[NewEvent<'_>]) -> Vec<i64> {
    let mut seen = BTreeMap::new();
    let mut followers: Vec<i64> = events
        .iter()
        .rev()
        .map(|event| {
            let many = seen.entry(event.merchant).or_insert(0);
            *many += 1;
            *many - 1
        })
        .collect();
    followers.reverse();
    followers
}

/// As [`insert_event`], for many.
pub async fn insert_events(tx: &mut Tx, events: &[NewEvent<'_>]) -> Result<(), StoreError> {
    static SQL: Many = Many::new(COLUMNS, insert_from!("position", "given"));
    let positions = match tx.is_sqlite() {
        true => take_positions(tx, events).await?,
        false => vec![None; events.len()],
    };
    let rows: Vec<_> = events.iter().zip(positions).map(|(event, position)| args(event, position)).collect();
    tx.run_many(&SQL, &rows).await.map(|_| ())
}

/// What heads are moved by.
const HEADS: Columns = &[("merchant", Kind::Text), ("many", Kind::Int)];

/// How many events there are of each merchant.
fn counts<'a>(events: &[NewEvent<'a>]) -> Vec<[Arg<'a>; 2]> {
    let mut counts = BTreeMap::new();
    for event in events {
        *counts.entry(event.merchant).or_insert(0) += 1;
    }
    counts.into_iter().map(|(merchant, many)| [Arg::Text(merchant.as_str()), Arg::Int(many)]).collect()
}

/// Adds events to a transaction of SQLite's, numbered.
pub(super) fn add<'a>(batch: &mut Batch<'a>, events: &[NewEvent<'a>]) {
    static MOVE: Many = Many::new(HEADS, move_heads!("given", ""));
    static INSERT: Many = Many::new(
        COLUMNS,
        insert_from!(
            "(SELECT event_heads.position FROM event_heads WHERE event_heads.merchant = given.merchant) \
             - given.position",
            "given"
        ),
    );
    batch.add(&MOVE, &counts(events));
    let rows: Vec<_> =
        events.iter().zip(followers(events)).map(|(event, followers)| args(event, Some(followers))).collect();
    batch.add(&INSERT, &rows);
}

/// The next positions of the events' merchants.
async fn take_positions(tx: &mut Tx, events: &[NewEvent<'_>]) -> Result<Vec<Option<i64>>, StoreError> {
    static SQL: Many = Many::new(HEADS, move_heads!("given"));
    let mut newest = BTreeMap::new();
    for row in tx.run_many(&SQL, &counts(events)).await? {
        newest.insert(row.text("owner")?, row.int("newest")?);
    }
    let place = |(event, followers): (&NewEvent<'_>, i64)| {
        let newest = newest.get(event.merchant.as_str()).ok_or(StoreError::Damaged)?;
        Ok(Some(newest - followers))
    };
    events.iter().zip(followers(events)).map(place).collect()
}

/// The merchants that have committed events without a position. One look into the index for each of
/// them, however many events wait.
pub async fn list_waiting(db: &Db) -> Result<Vec<Merchant>, StoreError> {
    const SQL: &str = "WITH RECURSIVE waiting (merchant) AS ( \
             SELECT MIN(merchant) FROM events WHERE position IS NULL \
             UNION ALL \
             SELECT (SELECT MIN(events.merchant) FROM events \
                 WHERE events.position IS NULL AND events.merchant > waiting.merchant) \
             FROM waiting WHERE waiting.merchant IS NOT NULL) \
         SELECT merchant FROM waiting WHERE merchant IS NOT NULL ORDER BY merchant";
    let rows = db.list(SQL, &[]).await?;
    rows.iter().map(|row| Merchant::parse(&row.text("merchant")?).ok_or(StoreError::Damaged)).collect()
}

/// Numbers at most `limit` committed events of each of `merchants`, oldest first, and tells how many.
/// The merchants must be in the order of [`list_waiting`], so that two sequencers cannot wait for one
/// another in a circle.
///
/// It is safe to run twice at once: the head's row is changed first, and the second sequencer waits
/// there until the first one's positions are committed, which the following statements then see. The
/// lease only spares the waiting. The unique index is the last line.
pub async fn sequence_batch(db: &Db, merchants: &[Merchant], limit: i64) -> Result<u64, StoreError> {
    const LOCK: &str = "INSERT INTO event_heads (merchant, position) VALUES ($1, 0) \
         ON CONFLICT (merchant) DO UPDATE SET position = event_heads.position";
    const NUMBER: &str = "UPDATE events SET position = numbered.position FROM ( \
             SELECT waiting.event_id, event_heads.position \
                 + ROW_NUMBER() OVER (ORDER BY waiting.created_at, waiting.event_id) AS position \
             FROM (SELECT event_id, created_at FROM events WHERE merchant = $1 AND position IS NULL \
                 ORDER BY created_at, event_id LIMIT $2) AS waiting, event_heads \
             WHERE event_heads.merchant = $1) AS numbered \
         WHERE events.event_id = numbered.event_id AND events.position IS NULL";
    const ADVANCE: &str = "UPDATE event_heads SET position = position + $2 WHERE merchant = $1";
    if merchants.is_empty() {
        return Ok(0);
    }
    let mut numbered = 0;
    let mut tx = db.begin_write().await?;
    for merchant in merchants {
        let merchant = Arg::Text(merchant.as_str());
        tx.execute(LOCK, &[merchant]).await?;
        let count = tx.execute(NUMBER, &[merchant, Arg::Int(limit)]).await?;
        let step = i64::try_from(count).map_err(|_| StoreError::Damaged)?;
        tx.execute(ADVANCE, &[merchant, Arg::Int(step)]).await?;
        numbered += count;
    }
    tx.commit().await?;
    Ok(numbered)
}

fn event(row: &Row) -> Result<Event, StoreError> {
    let body = row.text("body")?;
    // It goes out as it stands, inside another text.
    if Object::parse(&body).is_none() {
        return Err(StoreError::Damaged);
    }
    Ok(Event {
        event_id: EventId::parse(&row.text("event_id")?).ok_or(StoreError::Damaged)?,
        cursor: Cursor::at(row.int("position")?),
        kind: row.text("kind")?,
        object_type: row.text("object_type")?,
        object_id: row.text("object_id")?,
        body,
        created_at: Millis(row.int("created_at")?),
    })
}

/// The events of a merchant that follow a place in its feed, in order.
pub async fn list_events(
    db: &Db,
    merchant: &Merchant,
    after: Cursor,
    limit: i64,
) -> Result<Vec<Event>, StoreError> {
    const SQL: &str = "SELECT event_id, position, kind, object_type, object_id, body, created_at \
         FROM events WHERE merchant = $1 AND position > $2 AND position IS NOT NULL \
         ORDER BY position LIMIT $3";
    let args = [Arg::Text(merchant.as_str()), Arg::Int(after.position()), Arg::Int(limit)];
    db.list(SQL, &args).await?.iter().map(event).collect()
}

/// How many committed events have no position yet, and when the oldest was written.
pub async fn count_waiting(db: &Db) -> Result<Waiting, StoreError> {
    const SQL: &str =
        "SELECT COUNT(*) AS count, MIN(created_at) AS oldest FROM events WHERE position IS NULL";
    let row = db.find(SQL, &[]).await?.ok_or(StoreError::Damaged)?;
    Ok(Waiting { count: row.int("count")?, oldest: row.int_or_null("oldest")?.map(Millis) })
}
