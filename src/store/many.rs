//! Statements over many rows at once, for what is committed in groups. PostgreSQL gets each column as an
//! array, also for several tables in one statement, which needs no transaction around it, and a row that is
//! alone as values, which spares it a third of the work; SQLite gets rows in chunks of a few sizes, so that few
//! statements are prepared.

use std::borrow::Cow;
use std::sync::OnceLock;

use super::backend::Arg;

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
    lone: String,
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

    /// The text for PostgreSQL for so many rows, and whether a parameter is a value or an array.
    pub(super) fn given(&'static self, rows: usize) -> (&'static str, Each) {
        let Texts { lone, arrays, .. } = self.texts();
        if rows == 1 { (lone, Each::Value) } else { (arrays, Each::Array) }
    }

    /// The text for SQLite for as many of `left` rows as are sent together, and how many those are: all of a few, a
    /// statement for each chunk of them, or the first chunk of many.
    pub(super) fn chunks(&'static self, left: usize) -> (Cow<'static, str>, usize) {
        let (text, size) = self.chunk(left);
        if size == left || left > WHOLE {
            return (Cow::Borrowed(text), size);
        }
        let (mut text, mut have) = (text.to_owned(), size);
        while have < left {
            let (next, size) = self.chunk(left - have);
            text += "; ";
            text += next;
            have += size;
        }
        (Cow::Owned(text), left)
    }

    /// The text for SQLite for as many of `left` rows as one statement takes, and how many those are.
    fn chunk(&'static self, left: usize) -> (&'static str, usize) {
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
            let sqlite = match self.sqlite.strip_prefix("UPDATE ") {
                Some(rest) => format!("UPDATE OR FAIL {rest}"),
                None => self.sqlite.replacen("INSERT INTO", "INSERT OR FAIL INTO", 1),
            };
            let chunk = |size: usize| {
                // Without numbers: the driver looks for the name of each parameter in a list of all names.
                let row = format!("({})", vec!["?"; names.len()].join(", "));
                whole(&format!("VALUES {}", vec![row.as_str(); size].join(", ")), &sqlite)
            };
            Texts {
                lone: whole(&lone(self.columns, 1), self.postgres),
                arrays: whole(&unnested(self.columns, 1), self.postgres),
                chunks: CHUNKS.map(chunk),
            }
        })
    }
}

/// Most changes of a transaction that is sent to SQLite whole. Each number of them has a text of its own, whose
/// statements are kept; where there are more, the ways there and back are the smaller part.
pub const WHOLE: usize = 16;

/// A whole transaction of SQLite's in one text: its thread is asked once, where each statement alone would be a way
/// there and back. Each row that is given must change one row; where one does not, nothing is written.
pub(super) struct Batch<'a> {
    text: String,
    values: Vec<Arg<'a>>,
}

impl<'a> Batch<'a> {
    /// How a batch fails in which a row changed nothing.
    pub(super) const MISSED: &'static str = "integer overflow";

    pub(super) fn new() -> Self {
        Self { text: String::from("BEGIN IMMEDIATE"), values: Vec::new() }
    }

    /// Adds a statement over rows.
    pub(super) fn add<R: AsRef<[Arg<'a>]>>(&mut self, many: &'static Many, rows: &[R]) {
        let mut left = rows.len();
        while left > 0 {
            let (text, size) = many.chunk(left);
            self.text += "; ";
            self.text += text;
            // https://www.sqlite.org/lang_corefunc.html#abs: of this number it is an error.
            self.text += &format!("; SELECT abs(-9223372036854775808) WHERE changes() <> {size}");
            left = left.saturating_sub(size);
        }
        self.values.extend(rows.iter().flat_map(AsRef::as_ref));
    }

    /// The text, and its values.
    pub(super) fn finish(mut self) -> (String, Vec<Arg<'a>>) {
        self.text += "; COMMIT";
        (self.text, self.values)
    }
}

/// What a parameter of PostgreSQL's stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Each {
    /// A value of the only row.
    Value,
    /// A column of all rows.
    Array,
}

/// Most tables of one [`Together`].
const TABLES: usize = 3;

/// A statement of PostgreSQL's over the rows of several tables, each given under a name.
pub struct Together {
    tables: &'static [(&'static str, Columns)],
    rest: &'static str,
    arrays: OnceLock<String>,
    /// By which tables have a row, where none has more.
    lone: [OnceLock<String>; 1 << TABLES],
}

impl Together {
    /// `rest` follows `WITH name (…) AS (…), …, `: the statements that write, and what is asked in the end.
    pub const fn new(tables: &'static [(&'static str, Columns)], rest: &'static str) -> Self {
        assert!(tables.len() <= TABLES, "more tables than there are texts for");
        Self { tables, rest, arrays: OnceLock::new(), lone: [const { OnceLock::new() }; 1 << TABLES] }
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = Columns> {
        self.tables.iter().map(|(_, columns)| *columns)
    }

    /// The text for so many rows of each table, and whether a parameter is a value or an array.
    pub(super) fn given(&'static self, rows: impl Iterator<Item = usize>) -> (&'static str, Each) {
        let mut which = 0;
        for (place, rows) in rows.take(TABLES).enumerate() {
            match rows {
                0 => {}
                1 => which |= 1 << place,
                _ => return (self.arrays.get_or_init(|| self.text(unnested)), Each::Array),
            }
        }
        let make = || {
            let mut place = 0;
            self.text(|columns, next| {
                place += 1;
                if which & (1 << (place - 1)) == 0 { empty(columns) } else { lone(columns, next) }
            })
        };
        match self.lone.get(which) {
            Some(text) => (text.get_or_init(make), Each::Value),
            None => (self.arrays.get_or_init(|| self.text(unnested)), Each::Array),
        }
    }

    /// The text, where each table comes from a source that is told its columns and its first parameter.
    fn text(&self, mut source: impl FnMut(Columns, usize) -> String) -> String {
        let (mut text, mut next) = (String::from("WITH "), 1);
        for (name, columns) in self.tables {
            let source = source(columns, next);
            text += &format!("{name} ({}) AS ({source}), ", names(columns).join(", "));
            next += source.matches('$').count();
        }
        text + self.rest
    }
}

fn names(columns: Columns) -> Vec<&'static str> {
    columns.iter().map(|(name, _)| *name).collect()
}

fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "text",
        Kind::Int => "bigint",
        Kind::Bytes => "bytea",
    }
}

/// Rows of columns that are given as arrays from a parameter on.
fn unnested(columns: Columns, first: usize) -> String {
    let array =
        |(place, (_, kind)): (usize, &(&str, Kind))| format!("${}::{}[]", first + place, name_of(*kind));
    format!("SELECT * FROM unnest({})", columns.iter().enumerate().map(array).collect::<Vec<_>>().join(", "))
}

/// One row, whose values are given from a parameter on.
fn lone(columns: Columns, first: usize) -> String {
    let value =
        |(place, (_, kind)): (usize, &(&str, Kind))| format!("${}::{}", first + place, name_of(*kind));
    format!("SELECT {}", columns.iter().enumerate().map(value).collect::<Vec<_>>().join(", "))
}

/// No row.
fn empty(columns: Columns) -> String {
    let nothing = |(_, kind): &(&str, Kind)| format!("NULL::{}", name_of(*kind));
    format!("SELECT {} WHERE FALSE", columns.iter().map(nothing).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    static SOME: Many =
        Many::new(&[("a", Kind::Text), ("b", Kind::Int)], "INSERT INTO t (a, b) SELECT a, b FROM given");

    #[test]
    fn a_column_is_one_array_or_each_value_a_parameter() {
        assert_eq!(
            SOME.given(2),
            (
                "WITH given (a, b) AS (SELECT * FROM unnest($1::text[], $2::bigint[])) \
                 INSERT INTO t (a, b) SELECT a, b FROM given",
                Each::Array
            )
        );
        assert_eq!(
            SOME.given(1),
            (
                "WITH given (a, b) AS (SELECT $1::text, $2::bigint) INSERT INTO t (a, b) SELECT a, b FROM given",
                Each::Value
            )
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
            BOTH.given([2, 1].into_iter()),
            (
                "WITH one (a, b) AS (SELECT * FROM unnest($1::text[], $2::bigint[])), \
                 two (c) AS (SELECT * FROM unnest($3::bytea[])), \
                 done AS (INSERT INTO t (a) SELECT a FROM one) SELECT 1",
                Each::Array
            )
        );
        assert_eq!(
            BOTH.given([1, 1].into_iter()).0,
            "WITH one (a, b) AS (SELECT $1::text, $2::bigint), two (c) AS (SELECT $3::bytea), \
             done AS (INSERT INTO t (a) SELECT a FROM one) SELECT 1"
        );
        // What is not there takes no parameter.
        assert_eq!(
            BOTH.given([0, 1].into_iter()).0,
            "WITH one (a, b) AS (SELECT NULL::text, NULL::bigint WHERE FALSE), two (c) AS (SELECT $1::bytea), \
             done AS (INSERT INTO t (a) SELECT a FROM one) SELECT 1"
        );
    }

    #[test]
    fn a_batch_is_one_transaction_and_counts_what_it_changes() {
        let rows: Vec<_> = (0..3).map(|n| [Arg::Text("x"), Arg::Int(n)]).collect();
        let mut batch = Batch::new();
        batch.add(&SOME, &rows);
        let (text, values) = batch.finish();
        assert_eq!(
            text,
            "BEGIN IMMEDIATE; WITH given (a, b) AS (VALUES (?, ?), (?, ?)) INSERT OR FAIL INTO t (a, b) \
             SELECT a, b FROM given; SELECT abs(-9223372036854775808) WHERE changes() <> 2; \
             WITH given (a, b) AS (VALUES (?, ?)) INSERT OR FAIL INTO t (a, b) SELECT a, b FROM given; \
             SELECT abs(-9223372036854775808) WHERE changes() <> 1; COMMIT"
        );
        assert_eq!(values.len(), 6);
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
