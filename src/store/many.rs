//! Statements over many rows at once, for what is committed in groups. PostgreSQL gets each column as an
//! array; SQLite gets rows in chunks of a few sizes, so that few statements are prepared.

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

/// How many rows one statement takes on SQLite, largest first.
const CHUNKS: [usize; 6] = [32, 16, 8, 4, 2, 1];

/// A statement over rows that it calls `given`, with columns of these names and kinds.
pub struct Many {
    columns: &'static [(&'static str, Kind)],
    rest: &'static str,
    texts: OnceLock<Texts>,
}

struct Texts {
    arrays: String,
    chunks: [String; CHUNKS.len()],
}

impl Many {
    /// `rest` is what follows `WITH given (…) AS (…)`.
    pub const fn new(columns: &'static [(&'static str, Kind)], rest: &'static str) -> Self {
        Self { columns, rest, texts: OnceLock::new() }
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
            let names: Vec<&str> = self.columns.iter().map(|(name, _)| *name).collect();
            let whole =
                |source: &str| format!("WITH given ({}) AS ({source}) {}", names.join(", "), self.rest);
            let arrays: Vec<String> = self
                .kinds()
                .enumerate()
                .map(|(place, kind)| {
                    let kind = match kind {
                        Kind::Text => "text",
                        Kind::Int => "bigint",
                        Kind::Bytes => "bytea",
                    };
                    format!("${}::{kind}[]", place + 1)
                })
                .collect();
            let chunk = |size: usize| {
                let row = |row: usize| {
                    let first = row * names.len() + 1;
                    let all: Vec<String> = (first..first + names.len()).map(|n| format!("${n}")).collect();
                    format!("({})", all.join(", "))
                };
                whole(&format!("VALUES {}", (0..size).map(row).collect::<Vec<_>>().join(", ")))
            };
            Texts {
                arrays: whole(&format!("SELECT * FROM unnest({})", arrays.join(", "))),
                chunks: CHUNKS.map(chunk),
            }
        })
    }
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
                "WITH given (a, b) AS (VALUES ($1, $2), ($3, $4)) INSERT INTO t (a, b) SELECT a, b FROM given",
                2
            )
        );
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
