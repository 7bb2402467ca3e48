//! One SQL text for both engines: a thin layer over `sqlx` that binds a small set of values and reads
//! rows by column name. (`sqlx::Any` fails on several types at run time, and bodies generic over the
//! driver cost every query a page of bounds.)
//!
//! Every write must run on a task of its own, never inside a caller's future: what is dropped half done closes
//! its connection.

use std::borrow::Cow;
use std::fs::OpenOptions;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, Postgres, Row as _, Sqlite, SqliteConnection};
use zeroize::Zeroizing;

use super::lent::{Lender, Lent};
use super::many::{Batch, Each, Kind, Many, Together};
use crate::base::private_file::is_closed;
use crate::metrics::PoolFacts;

/// How long a request waits for a connection or for SQLite's write lock.
const WAIT: Duration = Duration::from_secs(5);
/// Connections for reading (SQLite) or for everything (PostgreSQL).
const CONNECTIONS: u32 = 16;
/// On the connection whose statements and transactions many share, nobody waits for what another holds.
const LOCKED: &str = "SET lock_timeout = '2s'";
/// What PostgreSQL calls it where they would wait longer.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection, no lock in time, or the connection broke.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// The same, and nothing was done.
    #[error("the database is not available")]
    NotBegun(#[source] sqlx::Error),
    /// A statement failed: a constraint, a type, a missing table.
    #[error("the database refused a statement")]
    Refused(#[source] sqlx::Error),
    /// A row holds something that the vault did not write.
    #[error("a row of the database cannot be read")]
    Damaged,
    /// Others can read the password's file.
    #[error("others can read {0}; run `chmod 600` on it")]
    OpenPassword(PathBuf),
    /// The database's address cannot be used.
    #[error("the database's url cannot be used: it begins sqlite: or postgres:")]
    Url,
    /// The engine has a defect that can lose data.
    #[error("SQLite {0} is too old: 3.51.3 is the first without the WAL checkpoint defect")]
    OldSqlite(String),
    /// The schema is behind, and the role that the vault has may not change it.
    #[error("the schema is behind and this role may not change it: run `cardvault migrate` as its owner")]
    MayNotMigrate,
    /// The schema is behind, and is not to be changed by a server.
    #[error("the schema is behind: run `cardvault migrate`")]
    Behind,
    /// What was overwritten is still in SQLite's log.
    #[error(
        "old rows are still in SQLite's log, since another program reads the database: end it, and run this again"
    )]
    OldRowsInLog,
    /// What was taken away is still in PostgreSQL's table.
    #[error(
        "old rows are still in PostgreSQL's table of data keys, since others have held it for too long: end them, and \
         run this again"
    )]
    OldRowsInTable,
    /// A migration failed.
    #[error("the database could not be migrated")]
    Migration(#[source] Box<sqlx::migrate::MigrateError>),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(told) if told.code().as_deref() == Some(LOCK_NOT_AVAILABLE) => {
                Self::NotBegun(error)
            }
            sqlx::Error::Database(database) if !is_passing(database.code().as_deref()) => {
                Self::Refused(error)
            }
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_) => {
                Self::Damaged
            }
            _ => Self::Unavailable(error),
        }
    }
}

/// Codes of faults that pass: SQLite busy or locked (5, 6 and their extended codes), disk full, not
/// writable or not to be opened (8, 10, 13, 14: also where file descriptors run out); PostgreSQL's classes 08 (connection), 40 (serialisation), 53 (resources), 57
/// (shutdown), 25006 (read-only).
pub(super) fn is_passing(code: Option<&str>) -> bool {
    let Some(code) = code else { return false };
    if let (true, Ok(sqlite)) = (code.len() < 5, code.parse::<u32>()) {
        return matches!(sqlite & 0xff, 5 | 6 | 8 | 10 | 13 | 14);
    }
    ["08", "40", "53", "57"].iter().any(|class| code.starts_with(class)) || code == "25006"
}

/// SQLite's primary result code of an error.
fn primary_code(error: &sqlx::Error) -> Option<u32> {
    let sqlx::Error::Database(told) = error else { return None };
    told.code()?.parse::<u32>().ok().map(|code| code & 0xff)
}

impl StoreError {
    fn told(&self) -> Option<&str> {
        let Self::Refused(sqlx::Error::Database(told)) = self else { return None };
        Some(told.message())
    }

    /// Whether a statement or a commit that failed so may have been carried out all the same: PostgreSQL rolls back
    /// what it answers with an error, unless it is shutting down (class 57), which it also does after a commit.
    pub fn is_unclear(&self) -> bool {
        let Self::Unavailable(error) = self else { return false };
        let sqlx::Error::Database(told) = error else { return true };
        let undone = |code: &str| ["08", "25", "40", "53"].iter().any(|class| code.starts_with(class));
        !told.code().is_some_and(|code| code.len() == 5 && undone(&code))
    }

    /// Whether another holds what was to be changed.
    pub fn is_blocked(&self) -> bool {
        let Self::NotBegun(sqlx::Error::Database(told)) = self else { return false };
        told.code().as_deref() == Some(LOCK_NOT_AVAILABLE)
    }

    /// Whether a row of a [`Batch`] changed nothing.
    pub(super) fn is_missed(&self) -> bool {
        self.told() == Some(Batch::MISSED)
    }

    /// Whether a card of a [`Batch`] is there already, by one of its fingerprints.
    pub(super) fn is_known_card(&self) -> bool {
        // https://www.sqlite.org/src/file/src/build.c: `UNIQUE constraint failed: cards.fingerprint, …`.
        self.told().is_some_and(|told| told.contains(": cards.fingerprint"))
    }
}

/// Where the database is.
#[derive(Clone)]
pub struct Options {
    /// `sqlite:PATH` or `postgres://…`.
    pub url: String,
    /// Read before connecting; the URL then needs no password.
    pub password_file: Option<PathBuf>,
}

/// A value to bind.
#[derive(Clone, Copy)]
pub enum Arg<'a> {
    /// Text.
    Text(&'a str),
    /// Text or NULL.
    TextOrNull(Option<&'a str>),
    /// A 64-bit integer.
    Int(i64),
    /// A 64-bit integer or NULL.
    IntOrNull(Option<i64>),
    /// Bytes.
    Bytes(&'a [u8]),
    /// Bytes or NULL.
    BytesOrNull(Option<&'a [u8]>),
}

impl<'a> Arg<'a> {
    pub(super) fn text(self) -> Option<&'a str> {
        match self {
            Self::Text(value) => Some(value),
            Self::TextOrNull(value) => value,
            _ => None,
        }
    }

    fn int(self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(value),
            Self::IntOrNull(value) => value,
            _ => None,
        }
    }

    fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(value) => Some(value),
            Self::BytesOrNull(value) => value,
            _ => None,
        }
    }
}

/// A value to bind that is kept meanwhile.
pub enum Value {
    /// Text or NULL.
    Text(Option<String>),
    /// A 64-bit integer or NULL.
    Int(Option<i64>),
    /// Bytes or NULL.
    Bytes(Option<Vec<u8>>),
}

impl Value {
    /// A copy.
    pub fn of(arg: Arg<'_>) -> Self {
        match arg {
            Arg::Text(value) => Self::Text(Some(value.to_owned())),
            Arg::TextOrNull(value) => Self::Text(value.map(str::to_owned)),
            Arg::Int(value) => Self::Int(Some(value)),
            Arg::IntOrNull(value) => Self::Int(value),
            Arg::Bytes(value) => Self::Bytes(Some(value.to_vec())),
            Arg::BytesOrNull(value) => Self::Bytes(value.map(<[u8]>::to_vec)),
        }
    }

    /// For binding.
    pub fn arg(&self) -> Arg<'_> {
        match self {
            Self::Text(value) => Arg::TextOrNull(value.as_deref()),
            Self::Int(value) => Arg::IntOrNull(*value),
            Self::Bytes(value) => Arg::BytesOrNull(value.as_deref()),
        }
    }
}

/// One row of a result.
pub enum Row {
    /// Of SQLite.
    Sqlite(SqliteRow),
    /// Of PostgreSQL.
    Postgres(PgRow),
}

macro_rules! column {
    ($(#[$doc:meta])* $name:ident -> $type:ty) => {
        $(#[$doc])*
        pub fn $name(&self, column: &str) -> Result<$type, StoreError> {
            Ok(match self {
                Self::Sqlite(row) => row.try_get(column)?,
                Self::Postgres(row) => row.try_get(column)?,
            })
        }
    };
}

impl Row {
    column!(
        /// A text column.
        text -> String
    );
    column!(
        /// A text column that may be NULL.
        text_or_null -> Option<String>
    );
    column!(
        /// An integer column.
        int -> i64
    );
    column!(
        /// An integer column that may be NULL.
        int_or_null -> Option<i64>
    );
    column!(
        /// A bytes column.
        bytes -> Vec<u8>
    );
    column!(
        /// A bytes column that may be NULL.
        bytes_or_null -> Option<Vec<u8>>
    );
}

macro_rules! bound {
    ($sql:expr, $args:expr) => {
        bind!(sqlx::query($sql), $args)
    };
}

macro_rules! bind {
    ($query:expr, $args:expr) => {{
        let mut query = $query;
        for arg in $args {
            query = match arg {
                Arg::Text(value) => query.bind(*value),
                Arg::TextOrNull(value) => query.bind(*value),
                Arg::Int(value) => query.bind(*value),
                Arg::IntOrNull(value) => query.bind(*value),
                Arg::Bytes(value) => query.bind(*value),
                Arg::BytesOrNull(value) => query.bind(*value),
            };
        }
        query
    }};
}

/// Runs one statement on a connection that is lent for it. After a statement that was refused it is as whole as
/// after one that was not.
macro_rules! on {
    ($lender:expr, $connection:ident => $statement:expr) => {{
        let mut lent = $lender.lend().await.map_err(StoreError::NotBegun)?;
        let limit = lent.limit();
        let $connection = lent.connection()?;
        let done = limit.of($statement).await;
        lent.after(done.as_ref().err());
        done?
    }};
}

pub(super) use on;

/// What is about to be done in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A statement that reads.
    Read,
    /// A statement that writes, and is its own transaction.
    Write,
    /// A whole transaction.
    Transaction,
}

/// What every connection to SQLite has, also one that only looks: `cardvault doctor` reads it back.
fn sqlite_options(url: &str) -> Result<SqliteConnectOptions, StoreError> {
    Ok(SqliteConnectOptions::from_str(url)
        .map_err(|_| StoreError::Url)?
        // NORMAL can lose an acknowledged card with the power.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(WAIT)
        // Up to so many rows, each number of them has a text of its own ([`super::many::WHOLE`]).
        .statement_cache_capacity(300)
        .pragma("secure_delete", "on"))
}

/// Something that a [`Turnstile`] does in its own time.
pub type Turn<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Stands between the vault and its database. The product has none: it is for simulations, which decide in
/// what order work is done, which of it fails, and where the process dies.
pub trait Turnstile: Send + Sync {
    /// Waits until the work may be done, or has it fail undone.
    fn enter(&self, work: Work) -> Turn<'_, Box<dyn Passage>>;
}

/// Work that is being done. Dropped where it failed, or where a transaction was not committed.
pub trait Passage: Send {
    /// The work is done: waits until its doer may know that, or has him believe that it failed.
    fn leave(self: Box<Self>) -> Turn<'static, ()>;
}

/// The database.
#[derive(Clone)]
pub struct Db {
    engine: Engine,
    turnstile: Option<Arc<dyn Turnstile>>,
}

#[derive(Clone)]
enum Engine {
    /// One connection writes; SQLite has one write lock, and waiting in a queue is fairer than busy.
    Sqlite { writer: Lender<Sqlite>, readers: Lender<Sqlite> },
    /// What is committed in groups has a connection of its own: the same one each time, so that its session
    /// has all that the statement needs at hand, and nothing else makes it wait.
    Postgres { pool: Lender<Postgres>, groups: Lender<Postgres>, shared: Lender<Postgres> },
}

impl Db {
    /// Opens the pools. SQLite's file is made where there is none; nothing is migrated.
    pub async fn open(options: &Options) -> Result<Self, StoreError> {
        if options.url.starts_with("sqlite:") {
            return Self::open_sqlite(&options.url).await;
        }
        let connect = postgres_options(options)?;
        let pool = |most| lender(most, connect.clone(), None);
        let shared = lender(1, connect.clone(), Some(LOCKED));
        let engine = Engine::Postgres { pool: pool(CONNECTIONS), groups: pool(1), shared };
        Ok(Self { engine, turnstile: None })
    }

    /// Opens the database for reading alone: nothing is made, and nothing can be changed.
    pub async fn open_to_look(options: &Options) -> Result<Self, StoreError> {
        if !options.url.starts_with("sqlite:") {
            let connect = postgres_options(options)?.options([("default_transaction_read_only", "on")]);
            let pool = lender(2, connect, None);
            let (groups, shared) = (pool.clone(), pool.clone());
            return Ok(Self { engine: Engine::Postgres { groups, shared, pool }, turnstile: None });
        }
        let connect = sqlite_options(&options.url)?;
        // Where nobody has the database open there is no log beside it, and reading must not make one.
        let beside = |end: &str| {
            let mut name = connect.get_filename().as_os_str().to_owned();
            name.push(end);
            Path::new(&name).exists()
        };
        let served = beside("-wal") && beside("-shm");
        let connect = connect.create_if_missing(false).read_only(true).immutable(!served);
        let pool =
            SqlitePoolOptions::new().max_connections(1).acquire_timeout(WAIT).connect_lazy_with(connect);
        let pool = Lender::new(pool);
        let db = Self { engine: Engine::Sqlite { writer: pool.clone(), readers: pool }, turnstile: None };
        db.check_sqlite_version().await?;
        Ok(db)
    }

    async fn open_sqlite(url: &str) -> Result<Self, StoreError> {
        let connect = sqlite_options(url)?.create_if_missing(true).journal_mode(SqliteJournalMode::Wal);
        make_private(connect.get_filename())?;
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(WAIT)
            // In KiB. Not more: each commit looks through all of the cache.
            .connect_with(connect.clone().pragma("cache_size", "-8000"))
            .await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(WAIT)
            .connect_lazy_with(connect.pragma("query_only", "on"));
        let (writer, readers) = (Lender::new(writer), Lender::new(readers));
        let db = Self { engine: Engine::Sqlite { writer, readers }, turnstile: None };
        db.check_sqlite_version().await?;
        Ok(db)
    }

    /// The version of SQLite.
    pub async fn sqlite_version(&self) -> Result<String, StoreError> {
        let row = self.find("SELECT sqlite_version() AS version", &[]).await?.ok_or(StoreError::Damaged)?;
        row.text("version")
    }

    async fn check_sqlite_version(&self) -> Result<(), StoreError> {
        let version = self.sqlite_version().await?;
        let parts: Vec<u32> = version.split('.').filter_map(|part| part.parse().ok()).collect();
        if parts.as_slice() < [3, 51, 3].as_slice() { Err(StoreError::OldSqlite(version)) } else { Ok(()) }
    }

    /// The same database, of which no statement takes longer where it is PostgreSQL: for servers. Commands wait for what
    /// they have asked for; SQLite's file does not go away without a word.
    pub fn answering_within(self, limit: Duration) -> Self {
        let engine = match self.engine {
            Engine::Postgres { pool, groups, shared } => Engine::Postgres {
                pool: pool.answering_within(limit),
                groups: groups.answering_within(limit),
                shared: shared.answering_within(limit),
            },
            sqlite => sqlite,
        };
        Self { engine, ..self }
    }

    /// The same database, entered through a turnstile.
    pub fn through(self, turnstile: Arc<dyn Turnstile>) -> Self {
        Self { turnstile: Some(turnstile), ..self }
    }

    pub(super) async fn enter(&self, work: Work) -> Result<Option<Box<dyn Passage>>, StoreError> {
        match &self.turnstile {
            None => Ok(None),
            Some(turnstile) => turnstile.enter(work).await.map(Some),
        }
    }

    /// Whether this is SQLite.
    pub fn is_sqlite(&self) -> bool {
        matches!(self.engine, Engine::Sqlite { .. })
    }

    /// PostgreSQL's connections, for statements that only it has; the one of [`Self::begin_shared`] for what many
    /// wait for.
    pub(super) fn postgres(&self, is_shared: bool) -> Option<&Lender<Postgres>> {
        match &self.engine {
            Engine::Sqlite { .. } => None,
            Engine::Postgres { pool, shared, .. } => Some(if is_shared { shared } else { pool }),
        }
    }

    /// The connection on which the schema is changed.
    pub(super) async fn schema(&self) -> Result<Schema, StoreError> {
        Ok(match &self.engine {
            Engine::Sqlite { writer, .. } => Schema::Sqlite(writer.lend().await?),
            Engine::Postgres { pool, .. } => Schema::Postgres(pool.lend().await?),
        })
    }

    /// Reads at most one row.
    pub async fn find(&self, sql: &'static str, args: &[Arg<'_>]) -> Result<Option<Row>, StoreError> {
        let passage = self.enter(Work::Read).await?;
        let row = match &self.engine {
            Engine::Sqlite { readers, .. } => {
                on!(readers, connection => bound!(sql, args).fetch_optional(connection)).map(Row::Sqlite)
            }
            Engine::Postgres { pool, .. } => {
                on!(pool, connection => bound!(sql, args).fetch_optional(connection)).map(Row::Postgres)
            }
        };
        leave(passage).await?;
        Ok(row)
    }

    /// Reads all rows; the statement bounds them.
    pub async fn list(&self, sql: &'static str, args: &[Arg<'_>]) -> Result<Vec<Row>, StoreError> {
        let passage = self.enter(Work::Read).await?;
        let rows = match &self.engine {
            Engine::Sqlite { readers, .. } => {
                let rows = on!(readers, connection => bound!(sql, args).fetch_all(connection));
                rows.into_iter().map(Row::Sqlite).collect()
            }
            Engine::Postgres { pool, .. } => {
                let rows = on!(pool, connection => bound!(sql, args).fetch_all(connection));
                rows.into_iter().map(Row::Postgres).collect()
            }
        };
        leave(passage).await?;
        Ok(rows)
    }

    /// Reads what a statement finds for many rows.
    pub async fn list_many<'a, R>(&self, many: &'static Many, rows: &[R]) -> Result<Vec<Row>, StoreError>
    where
        R: AsRef<[Arg<'a>]>,
    {
        let passage = self.enter(Work::Read).await?;
        let found = match &self.engine {
            Engine::Sqlite { readers, .. } => {
                on!(readers, connection => many_of_sqlite(connection, many, rows))
            }
            Engine::Postgres { pool, .. } => {
                on!(pool, connection => many_of_postgres(connection, many, rows))
            }
        };
        leave(passage).await?;
        Ok(found)
    }

    /// Runs one writing statement, which is its own transaction, and tells how many rows it changed.
    pub async fn execute(&self, sql: &'static str, args: &[Arg<'_>]) -> Result<u64, StoreError> {
        let passage = self.enter(Work::Write).await?;
        let changed = match &self.engine {
            Engine::Sqlite { writer, .. } => {
                on!(writer, connection => bound!(sql, args).execute(connection)).rows_affected()
            }
            Engine::Postgres { pool, .. } => {
                on!(pool, connection => bound!(sql, args).execute(connection)).rows_affected()
            }
        };
        leave(passage).await?;
        Ok(changed)
    }

    /// Runs one statement of PostgreSQL's that writes into several tables and is its own transaction, with
    /// values of its own in front of the tables' rows; the row that it returns. Where it is
    /// [`StoreError::Refused`] nothing was written; after any other failure nobody can know.
    pub(super) async fn write_together<'a>(
        &self,
        lender: &Lender<Postgres>,
        together: &'static Together,
        tables: &[Vec<&[Arg<'a>]>],
    ) -> Result<Option<Row>, StoreError> {
        let passage = self.enter(Work::Write).await?;
        let (text, each) = together.given(tables.iter().map(Vec::len));
        let mut query = sqlx::query(text);
        for (columns, rows) in together.tables().zip(tables) {
            query = match each {
                Each::Value => bind!(query, rows.iter().copied().flatten()),
                Each::Array => by_column(query, columns.iter().map(|(_, kind)| *kind), rows),
            };
        }
        let found = on!(lender, connection => query.fetch_optional(connection));
        leave(passage).await?;
        Ok(found.map(Row::Postgres))
    }

    /// SQLite's writer, for transactions that are sent to it whole.
    pub(super) fn sqlite(&self) -> Option<&Lender<Sqlite>> {
        match &self.engine {
            Engine::Sqlite { writer, .. } => Some(writer),
            Engine::Postgres { .. } => None,
        }
    }

    /// Writes SQLite's log into its file and empties it. `false` where another program still reads a state that only
    /// the log has, or is at the same: nothing tells of that but the answer.
    pub(super) async fn empty_log(&self, writer: &Lender<Sqlite>) -> Result<bool, StoreError> {
        let passage = self.enter(Work::Write).await?;
        let mut lent = writer.lend().await.map_err(StoreError::NotBegun)?;
        let connection = lent.connection()?;
        // It keeps the write lock while it waits for readers, and callers wait for no longer than they always do.
        sqlx::query("PRAGMA busy_timeout = 500").execute(&mut *connection).await?;
        let row = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(connection).await?;
        // With its time to wait, and so not given back.
        drop(lent);
        leave(passage).await?;
        Ok(Row::Sqlite(row).int("busy")? == 0)
    }

    /// Runs a statement of PostgreSQL's that takes a table for itself; `false` where others have it for longer than those
    /// who come after may be held up.
    pub(super) async fn without_waiting(&self, sql: &'static str) -> Result<bool, StoreError> {
        let Some(lender) = self.postgres(false) else { return Ok(true) };
        let passage = self.enter(Work::Write).await?;
        let mut lent = lender.lend().await.map_err(StoreError::NotBegun)?;
        // PostgreSQL asks its own cleaning of a table to go after `deadlock_timeout`, a second.
        lent.connection()?.execute("SET lock_timeout = '1500ms'").await?;
        let done = match lent.connection()?.execute(sql).await.map_err(StoreError::from) {
            Err(error) if error.is_blocked() => false,
            done => done.map(|_| true)?,
        };
        let ended = lent.connection()?.execute("RESET lock_timeout").await;
        lent.after(ended.as_ref().err());
        leave(passage).await?;
        Ok(done)
    }

    /// Runs a whole transaction of SQLite's, and gives what its statements return. Where it is
    /// [`StoreError::Refused`] or [`StoreError::NotBegun`] nothing was written; after any other failure nobody can know.
    pub(super) async fn run_batch(
        &self,
        writer: &Lender<Sqlite>,
        batch: Batch<'_>,
    ) -> Result<Vec<Row>, StoreError> {
        let passage = self.enter(Work::Transaction).await?;
        let mut lent = writer.lend().await.map_err(StoreError::NotBegun)?;
        let (text, values) = batch.finish();
        // Put together out of what is static.
        let ran = bound!(AssertSqlSafe(text), &values).fetch_all(lent.connection()?).await;
        let rows = match ran {
            Ok(rows) => rows,
            Err(error) => {
                let undone = lent.connection()?.execute("ROLLBACK").await;
                lent.after(undone.as_ref().err());
                return Err(match primary_code(&error) {
                    // SQLITE_ERROR, which the batch makes itself, and SQLITE_CONSTRAINT: both before COMMIT.
                    Some(1 | 19) => {
                        leave(passage).await?;
                        StoreError::Refused(error)
                    }
                    // SQLITE_BUSY: another process writes, for longer than one waits.
                    Some(5) => StoreError::NotBegun(error),
                    _ => StoreError::Unavailable(error),
                });
            }
        };
        lent.after(None);
        leave(passage).await?;
        Ok(rows.into_iter().map(Row::Sqlite).collect())
    }

    /// Begins a transaction that will write: `BEGIN IMMEDIATE` on SQLite; READ COMMITTED on PostgreSQL,
    /// where unique keys and compare-and-swap decide.
    pub async fn begin_write(&self) -> Result<Tx, StoreError> {
        self.begin(false).await
    }

    /// As [`Self::begin_write`], for a transaction that many share: where it would wait for a row that another holds
    /// for more than two seconds, it is [blocked](StoreError::is_blocked).
    pub async fn begin_shared(&self) -> Result<Tx, StoreError> {
        self.begin(true).await
    }

    async fn begin(&self, is_shared: bool) -> Result<Tx, StoreError> {
        let passage = self.enter(Work::Transaction).await?;
        let begun = match &self.engine {
            Engine::Sqlite { writer, .. } => {
                let mut lent = writer.lend().await?;
                if let Err(error) = lent.connection()?.execute("BEGIN IMMEDIATE").await {
                    lent.after(Some(&error));
                    return Err(error.into());
                }
                Begun::Sqlite(lent)
            }
            Engine::Postgres { pool, shared, .. } => {
                let mut lent = if is_shared { shared } else { pool }.lend().await?;
                if let Err(error) = lent.limit().of(lent.connection()?.execute("BEGIN")).await {
                    lent.after(Some(&error));
                    return Err(error.into());
                }
                Begun::Postgres(lent)
            }
        };
        Ok(Tx { begun, passage })
    }

    /// PostgreSQL's connections for what is committed in groups.
    pub(super) fn groups(&self) -> Option<Groups<'_>> {
        match &self.engine {
            Engine::Sqlite { .. } => None,
            Engine::Postgres { groups, .. } => Some(Groups { db: self, connections: groups }),
        }
    }

    /// The connections of each pool.
    pub fn pools(&self) -> Vec<PoolFacts> {
        fn facts<DB: sqlx::Database>(name: &'static str, lender: &Lender<DB>) -> PoolFacts {
            let (most, used, idle) = lender.facts();
            PoolFacts { name, used, idle, most }
        }
        match &self.engine {
            Engine::Sqlite { writer, readers } => vec![facts("writer", writer), facts("readers", readers)],
            Engine::Postgres { pool, groups, shared } => {
                vec![facts("all", pool), facts("groups", groups), facts("payments", shared)]
            }
        }
    }

    /// Ends every connection; what was committed is on disk.
    pub async fn close(&self) {
        match &self.engine {
            Engine::Sqlite { writer, readers } => {
                readers.close().await;
                writer.close().await;
            }
            Engine::Postgres { pool, groups, shared } => {
                groups.close().await;
                shared.close().await;
                pool.close().await;
            }
        }
    }
}

pub(super) async fn leave(passage: Option<Box<dyn Passage>>) -> Result<(), StoreError> {
    match passage {
        None => Ok(()),
        Some(passage) => passage.leave().await,
    }
}

fn postgres_options(options: &Options) -> Result<PgConnectOptions, StoreError> {
    if !options.url.starts_with("postgres:") && !options.url.starts_with("postgresql:") {
        return Err(StoreError::Url);
    }
    let connect =
        PgConnectOptions::from_str(&options.url).map_err(|_| StoreError::Url)?.application_name("cardvault");
    let Some(file) = &options.password_file else { return Ok(connect) };
    let password = read_password(file)?;
    Ok(connect.password(password.trim_end_matches(['\r', '\n'])))
}

/// Connections, which may tell the server something before all else.
fn lender(most: u32, connect: PgConnectOptions, first: Option<&'static str>) -> Lender<Postgres> {
    let pool = PgPoolOptions::new()
        .max_connections(most)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                match first {
                    Some(first) => connection.execute(first).await.map(|_| ()),
                    None => Ok(()),
                }
            })
        })
        .acquire_timeout(WAIT)
        .test_before_acquire(false)
        .connect_lazy_with(connect);
    Lender::new(pool)
}

/// Reads a password that nobody but its owner may be able to read.
fn read_password(path: &Path) -> Result<Zeroizing<String>, StoreError> {
    let unreadable = |error| StoreError::Unavailable(sqlx::Error::Io(error));
    let mode = std::fs::metadata(path).map_err(unreadable)?.permissions().mode();
    if !is_closed(path, mode) {
        return Err(StoreError::OpenPassword(path.to_owned()));
    }
    std::fs::read_to_string(path).map(Zeroizing::new).map_err(unreadable)
}

/// Makes the database's file readable for its owner alone before SQLite opens it; SQLite gives the
/// write-ahead log the same mode.
fn make_private(path: &Path) -> Result<(), StoreError> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(_) if path.as_os_str().is_empty() || path == Path::new(":memory:") => Ok(()),
        Err(error) => Err(StoreError::Unavailable(sqlx::Error::Io(error))),
    }
}

/// Binds rows as one array for each column.
fn by_column<'a, R: AsRef<[Arg<'a>]>>(
    mut query: Query<'a, Postgres, PgArguments>,
    kinds: impl Iterator<Item = Kind>,
    rows: &[R],
) -> Query<'a, Postgres, PgArguments> {
    for (place, kind) in kinds.enumerate() {
        let column = rows.iter().map(|row| row.as_ref().get(place).copied());
        query = match kind {
            Kind::Text => query.bind(column.map(|arg| arg?.text()).collect::<Vec<_>>()),
            Kind::Int => query.bind(column.map(|arg| arg?.int()).collect::<Vec<_>>()),
            Kind::Bytes => query.bind(column.map(|arg| arg?.bytes()).collect::<Vec<_>>()),
        };
    }
    query
}

/// Runs a statement over many rows, a chunk at a time, few chunks together, and gives what it returns.
async fn many_of_sqlite<'a, R: AsRef<[Arg<'a>]>>(
    connection: &mut SqliteConnection,
    many: &'static Many,
    rows: &[R],
) -> Result<Vec<Row>, sqlx::Error> {
    let (mut returned, mut left) = (Vec::new(), rows);
    while !left.is_empty() {
        let (text, size) = many.chunks(left.len());
        let (these, others) = left.split_at(size);
        let args = these.iter().flat_map(AsRef::as_ref);
        let found = match text {
            Cow::Borrowed(text) => bound!(text, args).fetch_all(&mut *connection).await?,
            // Put together out of what is static.
            Cow::Owned(text) => bound!(AssertSqlSafe(text), args).fetch_all(&mut *connection).await?,
        };
        returned.extend(found.into_iter().map(Row::Sqlite));
        left = others;
    }
    Ok(returned)
}

/// The same, all rows at once.
async fn many_of_postgres<'a, R: AsRef<[Arg<'a>]>>(
    connection: &mut PgConnection,
    many: &'static Many,
    rows: &[R],
) -> Result<Vec<Row>, sqlx::Error> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let (text, each) = many.given(rows.len());
    let query = match each {
        Each::Value => bound!(text, rows.iter().flat_map(AsRef::as_ref)),
        Each::Array => by_column(sqlx::query(text), many.kinds(), rows),
    };
    Ok(query.fetch_all(connection).await?.into_iter().map(Row::Postgres).collect())
}

/// PostgreSQL's connection for what is committed in groups.
pub struct Groups<'a> {
    db: &'a Db,
    connections: &'a Lender<Postgres>,
}

impl Groups<'_> {
    /// Reads what a statement finds for many rows.
    pub async fn list<'a, R>(&self, many: &'static Many, rows: &[R]) -> Result<Vec<Row>, StoreError>
    where
        R: AsRef<[Arg<'a>]>,
    {
        let passage = self.db.enter(Work::Read).await?;
        let found = on!(self.connections, connection => many_of_postgres(connection, many, rows));
        leave(passage).await?;
        Ok(found)
    }

    /// Runs one statement that writes into several tables, which is its own transaction, and gives the row that
    /// it returns. `tables` are the rows of each. Where it is [`StoreError::Refused`] nothing was written;
    /// after any other failure nobody can know.
    pub async fn write<'a>(
        &self,
        together: &'static Together,
        tables: &[Vec<&[Arg<'a>]>],
    ) -> Result<Option<Row>, StoreError> {
        self.db.write_together(self.connections, together, tables).await
    }
}

/// A transaction that writes. Dropped without [`Tx::commit`], it is rolled back.
pub struct Tx {
    begun: Begun,
    passage: Option<Box<dyn Passage>>,
}

enum Begun {
    Sqlite(Lent<Sqlite>),
    Postgres(Lent<Postgres>),
}

impl Begun {
    /// Ends the transaction by a statement. Where that fails the connection is closed.
    async fn end(self, by: &'static str) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(mut lent) => {
                let done = lent.connection()?.execute(by).await;
                lent.after(done.as_ref().err());
                done?;
            }
            Self::Postgres(mut lent) => {
                let done = lent.limit().of(lent.connection()?.execute(by)).await;
                lent.after(done.as_ref().err());
                done?;
            }
        }
        Ok(())
    }
}

/// The connection on which the schema is changed.
pub(super) enum Schema {
    /// Of SQLite.
    Sqlite(Lent<Sqlite>),
    /// Of PostgreSQL.
    Postgres(Lent<Postgres>),
}

impl Tx {
    /// Runs one writing statement and tells how many rows it changed.
    pub async fn execute(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<u64, StoreError> {
        Ok(match &mut self.begun {
            Begun::Sqlite(tx) => bound!(sql, args).execute(tx.connection()?).await?.rows_affected(),
            Begun::Postgres(tx) => {
                tx.limit().of(bound!(sql, args).execute(tx.connection()?)).await?.rows_affected()
            }
        })
    }

    /// Runs one writing statement and gives the row that it returns, if it returns one.
    pub async fn find(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<Option<Row>, StoreError> {
        // All rows are fetched: a statement that is left before its end may not have done all.
        Ok(match &mut self.begun {
            Begun::Sqlite(tx) => bound!(sql, args).fetch_all(tx.connection()?).await?.pop().map(Row::Sqlite),
            Begun::Postgres(tx) => {
                let rows = tx.limit().of(bound!(sql, args).fetch_all(tx.connection()?)).await?;
                rows.into_iter().next_back().map(Row::Postgres)
            }
        })
    }

    /// Runs a statement over many rows, in their order, and gives what it returns.
    pub async fn run_many<'a, R>(&mut self, many: &'static Many, rows: &[R]) -> Result<Vec<Row>, StoreError>
    where
        R: AsRef<[Arg<'a>]>,
    {
        Ok(match &mut self.begun {
            Begun::Sqlite(tx) => many_of_sqlite(tx.connection()?, many, rows).await?,
            Begun::Postgres(tx) => tx.limit().of(many_of_postgres(tx.connection()?, many, rows)).await?,
        })
    }

    /// Whether this is SQLite.
    pub(super) fn is_sqlite(&self) -> bool {
        matches!(self.begun, Begun::Sqlite(_))
    }

    /// Makes the changes durable. Where this fails, nobody can know whether they are.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.begun.end("COMMIT").await?;
        leave(self.passage).await
    }

    /// Takes the changes back.
    pub async fn rollback(self) -> Result<(), StoreError> {
        self.begun.end("ROLLBACK").await?;
        leave(self.passage).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Read back on the writer and on all readers, held at once so that each is another connection.
    #[tokio::test]
    async fn every_connection_to_sqlite_waits_for_the_disk() {
        const SETTINGS: &str =
            "SELECT synchronous, journal_mode FROM pragma_synchronous, pragma_journal_mode";
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}", folder.path().join("cardvault.db").display());
        let db = Db::open(&Options { url, password_file: None }).await.expect("a database");
        let Engine::Sqlite { writer, readers } = &db.engine else { panic!("SQLite was asked for") };
        let mut all = vec![writer.lend().await.expect("the writer")];
        for _ in 0..CONNECTIONS {
            all.push(readers.lend().await.expect("a reader"));
        }
        for lent in &mut all {
            let connection = lent.connection().expect("open");
            let row = sqlx::query(SETTINGS).fetch_one(connection).await.expect("the settings");
            assert_eq!((row.get::<i64, _>(0), row.get::<String, _>(1)), (2, "wal".to_owned()));
        }
    }

    #[test]
    fn faults_that_pass_are_told_from_those_that_stay() {
        for code in ["5", "6", "517", "13", "14", "08006", "40001", "40P01", "53300", "57P01", "25006"] {
            assert!(is_passing(Some(code)), "{code}");
        }
        for code in ["1", "19", "2067", "23505", "42P01", "22001"] {
            assert!(!is_passing(Some(code)), "{code}");
        }
        assert!(!is_passing(None));
    }
}
