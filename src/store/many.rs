//! Statements over many rows at once, for what is committed in groups. PostgreSQL gets each column as an
//! array, also for several tables in one statement, which needs no transaction around it; SQLite gets rows in
//! chunks of a few sizes, so that few statements are prepared.

use std::sync::OnceLock;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text or NULL.
    Text,
    /// A 64-bit integer or NULL.
    Int,
    /// Bytes or NULL.
    Bytes,
}

/// Names and kinds of columns.
pub type Columns = &'static [(&'static str, Kind)];

/// How many rows one statement takes on SQLite, largest first.
const CHUNKS: [usize; 7] = [64, 32, 16, 8, 4, 2, 1];

/// A statement over rows that it calls `given`, with columns of these names and kinds.
pub struct Many {
    columns: Columns,
    sqlite: &'static str,
    postgres: &'static str,
    texts: OnceLock<Texts>,
}

struct Texts {
    arrays: String,
    chunks: [String; CHUNKS.len()],
}

impl Many {
    /// `rest` is what follows `WITH given (…) AS (…)`.
    pub const fn new(columns: Columns, rest: &'static str) -> Self {
        Self::of_each(columns, rest, rest)
    }

    /// As [`Self::new`], where the engines need different words.
    pub const fn of_each(columns: Columns, sqlite: &'static str, postgres: &'static str) -> Self {
        Self { columns, sqlite, postgres, texts: OnceLock::new() }
    }

    pub(super) fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.columns.iter().map(|(_, kind)| *kind)
    }

    /// The text for PostgreSQL: a parameter for each column, an array.
    pub(super) fn arrays(&'static self) -> &'static str {
        &self.texts().arrays
    }

    /// The text for SQLite for as many of `left` rows as one statement takes, and how many those are.
    pub(super) fn chunk(&'static self, left: usize) -> (&'static str, usize) {
        let place = CHUNKS.iter().position(|size| *size <= left).unwrap_or(CHUNKS.len() - 1);
        let [.., smallest] = &self.texts().chunks;
        let text = self.texts().chunks.get(place).unwrap_or(smallest);
        (text, CHUNKS.get(place).copied().unwrap_or(1))
    }

    fn texts(&self) -> &Texts {
        self.texts.get_or_init(|| {
            let names = names(self.columns);
            let whole =
                |source: &str, rest: &str| format!("WITH given ({}) AS ({source}) {rest}", names.join(", "));
            // Where one row cannot be written the whole transaction is given up. Otherwise SQLite copies each page
            // that the statement changes to a file of its own, to take back the statement alone.
            let sqlite = self.sqlite.replacen("INSERT INTO", "INSERT OR FAIL INTO", 1);
            let chunk = |size: usize| {
                // Without numbers: the driver looks for the name of each parameter in a list of all names.
                let row = format!("({})", vec!["?"; names.len()].join(", "));
                whole(&format!("VALUES {}", vec![row.as_str(); size].join(", ")), &sqlite)
            };
            Texts { arrays: whole(&unnested(self.columns, 1), self.postgres), chunks: CHUNKS.map(chunk) }
        })
    }
}

/// A statement of PostgreSQL's over the rows of several tables, each given under a name.
pub struct Together {
    values: usize,
    tables: &'static [(&'static str, Columns)],
    rest: &'static str,
    text: OnceLock<String>,
}

impl Together {
    /// `rest` follows `WITH name (…) AS (…), …, `: the statements that write, and what is asked in the end.
    pub const fn new(tables: &'static [(&'static str, Columns)], rest: &'static str) -> Self {
        Self::after(0, tables, rest)
    }

    /// As [`Self::new`], where `rest` has so many parameters of its own, which come first.
    pub const fn after(
        values: usize,
        tables: &'static [(&'static str, Columns)],
        rest: &'static str,
    ) -> Self {
        Self { values, tables, rest, text: OnceLock::new() }
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = Columns> {
        self.tables.iter().map(|(_, columns)| *columns)
    }

    /// The text: a parameter for each column of each table, an array.
    pub(super) fn text(&'static self) -> &'static str {
        self.text.get_or_init(|| {
            let (mut text, mut next) = (String::from("WITH "), 1 + self.values);
            for (name, columns) in self.tables {
                text += &format!("{name} ({}) AS ({}), ", names(columns).join(", "), unnested(columns, next));
                next += columns.len();
            }
            text + self.rest
        })
    }
}

fn names(columns: Columns) -> Vec<&'static str> {
    columns.iter().map(|(name, _)| *name).collect()
}

/// Rows of columns that are given as arrays from a parameter on.
fn unnested(columns: Columns, first: usize) -> String {
    let arrays = columns.iter().enumerate().map(|(place, (_, kind))| {
        let kind = match kind {
            Kind::Text => "text",
            Kind::Int => "bigint",
            Kind::Bytes => "bytea",
        };
        format!("${}::{kind}[]", first + place)
    });
    format!("SELECT * FROM unnest({})", arrays.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    static SOME: Many =
        Many::new(&[("a", Kind::Text), ("b", Kind::Int)], "INSERT INTO t (a, b) SELECT a, b FROM given");

    #[test]
    fn a_column_is_one_array_or_each_value_a_parameter() {
        assert_eq!(
            SOME.arrays(),
            "WITH given (a, b) AS (SELECT * FROM unnest($1::text[], $2::bigint[])) \
             INSERT INTO t (a, b) SELECT a, b FROM given"
        );
        assert_eq!(
            SOME.chunk(3),
            (
                "WITH given (a, b) AS (VALUES (?, ?), (?, ?)) INSERT OR FAIL INTO t (a, b) \
                 SELECT a, b FROM given",
                2
            )
        );
    }

    #[test]
    fn several_tables_number_their_parameters_on() {
        static BOTH: Together = Together::new(
            &[("one", &[("a", Kind::Text), ("b", Kind::Int)]), ("two", &[("c", Kind::Bytes)])],
            "done AS (INSERT INTO t (a) SELECT a FROM one) SELECT 1",
        );
        assert_eq!(
            BOTH.text(),
            "WITH one (a, b) AS (SELECT * FROM unnest($1::text[], $2::bigint[])), \
             two (c) AS (SELECT * FROM unnest($3::bytea[])), \
             done AS (INSERT INTO t (a) SELECT a FROM one) SELECT 1"
        );
    }

    #[test]
    fn values_of_the_statements_own_come_first() {
        static AFTER: Together = Together::after(
            2,
            &[("one", &[("a", Kind::Int)])],
            "done AS (UPDATE t SET a = $1 WHERE b = $2) SELECT 1",
        );
        assert!(AFTER.text().starts_with("WITH one (a) AS (SELECT * FROM unnest($3::bigint[])), done"));
    }

    #[test]
    fn chunks_take_every_row_once() {
        for rows in 1..200 {
            let mut left = rows;
            while left > 0 {
                let (text, size) = SOME.chunk(left);
                assert!(size <= left && text.matches("), (").count() == size - 1);
                left -= size;
            }
        }
    }
}
