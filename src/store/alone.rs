//! Writing statements that are alone in their transaction with the event and the audit rows that tell of them, or
//! share it with others of their kind. On PostgreSQL one that is alone is one statement with all of that: one
//! round trip, where a transaction takes five.

use std::collections::HashMap;

use super::audit::{self, NewRow, insert_rows};
use super::backend::{Arg, Db, Row, StoreError, Tx};
use super::events::{self, NewEvent, insert_event};
use super::many::{Many, Together};

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
    /// Where it is [`StoreError::Refused`] nothing was written; after any other failure nobody can know.
    pub async fn run(
        &'static self,
        db: &Db,
        values: &[Arg<'_>],
        event: Option<&NewEvent<'_>>,
        noted: &[NewRow],
    ) -> Result<Option<Row>, StoreError> {
        let Some(connections) = db.postgres() else { return self.transact(db, values, event, noted).await };
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

    async fn transact(
        &'static self,
        db: &Db,
        values: &[Arg<'_>],
        event: Option<&NewEvent<'_>>,
        noted: &[NewRow],
    ) -> Result<Option<Row>, StoreError> {
        let mut tx = db.begin_write().await?;
        let Some(row) = self.run_in(&mut tx, values).await? else {
            tx.rollback().await?;
            return Ok(None);
        };
        if let Some(event) = event {
            insert_event(&mut tx, event).await?;
        }
        insert_rows(&mut tx, noted).await?;
        tx.commit().await?;
        Ok(Some(row))
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
        let mut returned = HashMap::new();
        for row in tx.run_many(&self.each, &ordered).await? {
            returned.insert((row.text("account")?, row.text("payment_request_id")?), row);
        }
        let row_of = |values: &Vec<Arg<'_>>| {
            let (account, id) = key(values)?;
            returned.remove(&(account.to_owned(), id.to_owned()))
        };
        Ok(given.iter().map(row_of).collect())
    }
}

/// The row that such values are for.
pub fn key<'a>(values: &[Arg<'a>]) -> Option<(&'a str, &'a str)> {
    let [account, id, ..] = values else { return None };
    Some((account.text()?, id.text()?))
}
