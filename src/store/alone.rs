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
            let told = run_at_once(db, &[(self, vec![values])], event.into_iter().copied(), noted).await?;
            return Ok(told.and_then(|mut rows| rows.pop()));
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

    /// Runs it for several rows, no two of them the same, in a transaction in which the caller tells of them; what it
    /// returns for each.
    pub async fn run_each(
        &'static self,
        tx: &mut Tx,
        given: &[Vec<Arg<'_>>],
    ) -> Result<Vec<Option<Row>>, StoreError> {
        // In an order in which nobody waits for one another in a circle.
        let mut ordered: Vec<&[Arg<'_>]> = given.iter().map(Vec::as_slice).collect();
        ordered.sort_by_key(|values| key(values));
        let mut returned = by_key(tx.run_many(&self.each, &ordered).await?)?;
        Ok(given.iter().map(|values| returned.remove(&owned_key(values)?)).collect())
    }
}

/// Runs several with what tells of them in one transaction that is sent whole, where the database is SQLite; what they
/// return, in their order. None where one of them changes nothing, and so nothing was written. Where it is
/// [`StoreError::Refused`] or [`StoreError::NotBegun`] nothing was written; after any other failure nobody can know.
pub async fn run_at_once(
    db: &Db,
    parts: &[(&'static Alone, Vec<&[Arg<'_>]>)],
    told: impl Iterator<Item = NewEvent<'_>>,
    noted: &[NewRow],
) -> Result<Option<Vec<Row>>, StoreError> {
    let Some(writer) = db.sqlite() else { return Ok(None) };
    let mut batch = Batch::new();
    for (alone, given) in parts {
        batch.add(&alone.each, given);
    }
    events::add(&mut batch, &told.collect::<Vec<_>>());
    audit::add(&mut batch, noted);
    let rows = match db.run_batch(writer, batch).await {
        Ok(rows) => rows,
        Err(error) if error.is_missed() => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut returned = by_key(rows)?;
    let given = parts.iter().flat_map(|(_, given)| given);
    // Each of them has returned its row, or nothing was written.
    let row_of = |values: &&[Arg<'_>]| owned_key(values).and_then(|key| returned.remove(&key));
    given.map(row_of).collect::<Option<Vec<_>>>().ok_or(StoreError::Damaged).map(Some)
}

fn by_key(rows: Vec<Row>) -> Result<HashMap<(String, String), Row>, StoreError> {
    rows.into_iter().map(|row| Ok(((row.text("account")?, row.text("payment_request_id")?), row))).collect()
}

fn owned_key(values: &[Arg<'_>]) -> Option<(String, String)> {
    key(values).map(|(account, id)| (account.to_owned(), id.to_owned()))
}

/// The row that such values are for.
pub fn key<'a>(values: &[Arg<'a>]) -> Option<(&'a str, &'a str)> {
    let [account, id, ..] = values else { return None };
    Some((account.text()?, id.text()?))
}
