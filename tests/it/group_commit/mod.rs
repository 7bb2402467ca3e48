//! What waits for the database is stored together, and each of it is as if it had been stored alone: another's
//! failure, hang-up or equal number harms nobody, and what was sealed with keys that changed meanwhile is not
//! stored.
//!
//! A story makes changes wait by holding the lock that the vault needs, and lets them go together.

mod cards;
mod payments;

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

use super::support::sql::number;
use super::support::{Database, Engine};

/// How long they gather. It is no promise of the vault's: too short a time makes a story prove less.
const GATHER: Duration = Duration::from_millis(700);

/// A transaction that keeps the vault from writing a table.
pub(crate) enum Held {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Held {
    pub(crate) async fn hold(db: &Database, table: &str) -> Self {
        let mut held = match db.engine {
            Engine::Sqlite => Self::Sqlite(SqliteConnection::connect(&db.url).await.expect("connect")),
            Engine::Postgres => Self::Postgres(PgConnection::connect(&db.url).await.expect("connect")),
        };
        match db.engine {
            Engine::Sqlite => held.run("BEGIN IMMEDIATE").await,
            Engine::Postgres => {
                held.run("BEGIN").await;
                held.run(&format!("LOCK TABLE {table} IN SHARE MODE")).await;
            }
        }
        held
    }

    async fn run(&mut self, statement: &str) {
        let text = AssertSqlSafe(statement.to_owned());
        match self {
            Self::Sqlite(connection) => sqlx::query(text).execute(connection).await.map(|_| ()),
            Self::Postgres(connection) => sqlx::query(text).execute(connection).await.map(|_| ()),
        }
        .expect("a statement");
    }

    pub(crate) async fn release(mut self) {
        self.run("COMMIT").await;
        match self {
            Self::Sqlite(connection) => connection.close().await,
            Self::Postgres(connection) => connection.close().await,
        }
        .expect("close");
    }
}

/// How many transactions have written what is in the table; on SQLite, how many there were since its log began.
async fn commits(db: &Database, table: &str) -> i64 {
    if db.engine == Engine::Postgres {
        return number(db, &format!("SELECT COUNT(DISTINCT CAST(xmin AS TEXT)) FROM {table}")).await;
    }
    let log = std::fs::read(db.files.join("cardvault.db-wal")).expect("the log");
    // https://www.sqlite.org/fileformat2.html#walformat: a header of 32 bytes with the page's size and two salts,
    // then frames of 24 bytes and a page. The last frame of a transaction tells the size of the database.
    let word = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().expect("four bytes"));
    let frame = 24 + word(8) as usize;
    let frames = (32..).step_by(frame).take_while(|at| at + frame <= log.len() && word(at + 8) == word(16));
    i64::try_from(frames.filter(|at| word(at + 4) != 0).count()).expect("few")
}
