//! Writing statements that are alone in their transaction with the event and the audit rows that tell of them, or
//! share it with others of their kind. On PostgreSQL one that is alone is one statement with all of that: one
//! round trip, where a transaction takes five. On SQLite the transaction is sent whole.

use std::collections::HashMap;

use super::audit::{self, NewRow};
use super::backend::{Arg, Db, Row, StoreError, Tx};
use super::events::{self, NewEvent};
use super::many::{Batch, Many, Together};

/// A statement on a row of `payments`, which returns the row where it changed something. The first two values
/// that it is given are the row's account and id.
pub struct Alone {
    each: Many,
    together: Together,
}

/// Makes an [`Alone`] out of the columns of what is given and a macro that gives the text.
macro_rules! alone {
    ($columns:ident, $text:ident) => {
        $crate::store::alone::Alone::new(
            $crate::store::many::Many::new($columns, $text!()),
            $crate::store::many::Together::new(
                &[
                    ("given", $columns),
                    ("given_events", $crate::store::events::COLUMNS),
                    ("given_rows", $crate::store::audit::COLUMNS),
                ],
                concat!(
                    "done AS (",
                    $text!(),
                    "), told AS (",
                    $crate::store::events::insert_from!("position", "given_events"),
                    " WHERE EXISTS (SELECT 1 FROM done)), noted AS (",
                    $crate::store::audit::insert_from!("given_rows"),
                    " WHERE EXISTS (SELECT 1 FROM done)) SELECT * FROM done"
                ),
            ),
        )
    };
}
pub(super) use alone;

impl Alone {
    pub(super) const fn new(each: Many, together: Together) -> Self {
        Self { each, together }
    }

    /// Runs it with the event and the rows that tell of it, which are written only where it returns a row.
    /// Where it is [`StoreError::Refused`] or [`StoreError::NotBegun`] nothing was written; after any other failure
    /// nobody can know. Where others wait for it, it does not wait for long for what another process holds.
    pub async fn run(
        &'static self,
        (db, others_wait): (&Db, bool),
        values: &[Arg<'_>],
        event: Option<&NewEvent<'_>>,
        noted: &[NewRow],
    ) -> Result<Option<Row>, StoreError> {
        let Some(connections) = db.postgres(others_wait) else {
            let part = (self, vec![values.to_vec()]);
            let told = run_at_once(db, &[part], event.into_iter().copied(), noted).await?;
            return Ok(told.and_then(|rows| rows.into_values().next()));
        };
        // Events of single payments are numbered when they are committed.
        let event = event.map(|event| events::args(event, None));
        let noted: Vec<_> = noted.iter().map(audit::args).collect();
        let tables = [
            vec![values],
            event.iter().map(<[Arg<'_>; 8]>::as_slice).collect(),
            noted.iter().map(<[Arg<'_>; 13]>::as_slice).collect::<Vec<_>>(),
        ];
        db.write_together(connections, &self.together, &tables).await
    }

    /// Runs it in a transaction, in which the caller tells of it.
    pub(super) async fn run_in(
        &'static self,
        tx: &mut Tx,
        values: &[Arg<'_>],
    ) -> Result<Option<Row>, StoreError> {
        Ok(tx.run_many(&self.each, &[values]).await?.pop())
    }

    /// Runs it for several rows, no two of them the same, in a transaction in which the caller tells of them.
    pub async fn run_each(
        &'static self,
        tx: &mut Tx,
        mut given: Vec<Vec<Arg<'_>>>,
    ) -> Result<Returned, StoreError> {
        // In an order in which nobody waits for one another in a circle.
        given.sort_by_cached_key(|values| key(values));
        by_key(tx.run_many(&self.each, &given).await?)
    }
}

/// Account and id of a row of `payments`.
pub type Key = (String, String);

/// The rows that statements have returned.
pub type Returned = HashMap<Key, Row>;

/// Runs several with what tells of them in one transaction that is sent whole, where the database is SQLite; what they
/// return. None where one of them changes nothing, and so nothing was written. Where it is
/// [`StoreError::Refused`] or [`StoreError::NotBegun`] nothing was written; after any other failure nobody can know.
pub async fn run_at_once(
    db: &Db,
    parts: &[(&'static Alone, Vec<Vec<Arg<'_>>>)],
    told: impl Iterator<Item = NewEvent<'_>>,
    noted: &[NewRow],
) -> Result<Option<Returned>, StoreError> {
    let Some(writer) = db.sqlite() else { return Ok(None) };
    let mut batch = Batch::new();
    for (alone, given) in parts {
        batch.add(&alone.each, given);
    }
    events::add(&mut batch, &told.collect::<Vec<_>>());
    audit::add(&mut batch, noted);
    let many = parts.iter().map(|(_, given)| given.len()).sum::<usize>();
    match db.run_batch(writer, batch).await {
        Ok(rows) if rows.len() != many => Err(StoreError::Damaged),
        Ok(rows) => by_key(rows).map(Some),
        Err(error) if error.is_missed() => Ok(None),
        Err(error) => Err(error),
    }
}

fn by_key(rows: Vec<Row>) -> Result<Returned, StoreError> {
    rows.into_iter().map(|row| Ok(((row.text("account")?, row.text("payment_request_id")?), row))).collect()
}

/// The row that such values are for.
pub fn key(values: &[Arg<'_>]) -> Option<Key> {
    let [account, id, ..] = values else { return None };
    Some((account.text()?.to_owned(), id.text()?.to_owned()))
}
