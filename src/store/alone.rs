//! A writing statement that is alone in its transaction with the event and the audit rows that tell of it. On
//! PostgreSQL all of it is one statement: one round trip, where a transaction takes five.

use super::audit::{self, NewRow, insert_rows};
use super::backend::{Arg, Db, Row, StoreError};
use super::events::{self, NewEvent, insert_event};
use super::many::Together;

/// A statement that returns a row where it changed something.
pub struct Alone {
    /// For a transaction.
    pub(super) text: &'static str,
    together: Together,
}

/// Makes an [`Alone`] out of the number of parameters and a macro that gives the text.
macro_rules! alone {
    ($values:literal, $text:ident) => {
        $crate::store::alone::Alone::new(
            $text!(),
            $crate::store::many::Together::after(
                $values,
                $crate::store::alone::TABLES,
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

/// What is given beside the statement's own values.
pub(super) const TABLES: &[(&str, super::many::Columns)] =
    &[("given_events", events::COLUMNS), ("given_rows", audit::COLUMNS)];

impl Alone {
    pub(super) const fn new(text: &'static str, together: Together) -> Self {
        Self { text, together }
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
            event.iter().map(<[Arg<'_>; 8]>::as_slice).collect(),
            noted.iter().map(<[Arg<'_>; 13]>::as_slice).collect::<Vec<_>>(),
        ];
        db.write_together(connections, &self.together, values, &tables).await
    }

    async fn transact(
        &self,
        db: &Db,
        values: &[Arg<'_>],
        event: Option<&NewEvent<'_>>,
        noted: &[NewRow],
    ) -> Result<Option<Row>, StoreError> {
        let mut tx = db.begin_write().await?;
        let Some(row) = tx.find(self.text, values).await? else {
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
}
