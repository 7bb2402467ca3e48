//! Schema changes, compiled in. Expand, then contract; a migration that has shipped is never edited.

use std::borrow::Cow;
use std::collections::BTreeMap;

use sqlx::SqlSafeStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};

use super::backend::{Db, Schema, StoreError};

/// Number, name, and the text for SQLite and for PostgreSQL.
const MIGRATIONS: &[(i64, &str, &str, &str)] = &[
    (
        1,
        "cards payments keys",
        include_str!("../../migrations/sqlite/0001_cards_payments_keys.sql"),
        include_str!("../../migrations/postgres/0001_cards_payments_keys.sql"),
    ),
    (
        2,
        "agreements",
        include_str!("../../migrations/sqlite/0002_agreements.sql"),
        include_str!("../../migrations/postgres/0002_agreements.sql"),
    ),
    (
        3,
        "events",
        include_str!("../../migrations/sqlite/0003_events.sql"),
        include_str!("../../migrations/postgres/0003_events.sql"),
    ),
    (
        4,
        "operations",
        include_str!("../../migrations/sqlite/0004_operations.sql"),
        include_str!("../../migrations/postgres/0004_operations.sql"),
    ),
    (
        5,
        "gateway tokens",
        include_str!("../../migrations/sqlite/0005_gateway_tokens.sql"),
        include_str!("../../migrations/postgres/0005_gateway_tokens.sql"),
    ),
    (
        10,
        "key rotation",
        include_str!("../../migrations/sqlite/0010_key_rotation.sql"),
        include_str!("../../migrations/postgres/0010_key_rotation.sql"),
    ),
    (
        20,
        "retention",
        include_str!("../../migrations/sqlite/0020_retention.sql"),
        include_str!("../../migrations/postgres/0020_retention.sql"),
    ),
    (
        21,
        "imported agreements",
        include_str!("../../migrations/sqlite/0021_imported_agreements.sql"),
        include_str!("../../migrations/postgres/0021_imported_agreements.sql"),
    ),
    (
        30,
        "audit",
        include_str!("../../migrations/sqlite/0030_audit.sql"),
        include_str!("../../migrations/postgres/0030_audit.sql"),
    ),
    (
        45,
        "open payments",
        include_str!("../../migrations/sqlite/0045_open_payments.sql"),
        include_str!("../../migrations/postgres/0045_open_payments.sql"),
    ),
    (
        50,
        "fewer index rows",
        include_str!("../../migrations/sqlite/0050_fewer_index_rows.sql"),
        include_str!("../../migrations/postgres/0050_fewer_index_rows.sql"),
    ),
    (
        51,
        "numbered at once",
        include_str!("../../migrations/sqlite/0051_numbered_at_once.sql"),
        include_str!("../../migrations/postgres/0051_numbered_at_once.sql"),
    ),
    (
        52,
        "digest key",
        include_str!("../../migrations/sqlite/0052_digest_key.sql"),
        include_str!("../../migrations/postgres/0052_digest_key.sql"),
    ),
    (
        53,
        "one key a column",
        include_str!("../../migrations/sqlite/0053_one_key_a_column.sql"),
        include_str!("../../migrations/postgres/0053_one_key_a_column.sql"),
    ),
];

/// Numbers of the migrations that the database has not had yet, and of those that this program does not know;
/// none where there is no schema.
pub async fn differing(db: &Db) -> Result<Option<(Vec<i64>, Vec<i64>)>, StoreError> {
    let Some(made) = made(db).await? else { return Ok(None) };
    let known: Vec<i64> = MIGRATIONS.iter().map(|(number, ..)| *number).collect();
    let missing = known.iter().filter(|number| !made.contains_key(number)).copied().collect();
    Ok(Some((missing, made.into_keys().filter(|number| !known.contains(number)).collect())))
}

/// Brings the schema up to date. Safe to run twice at once: the migrator takes a lock. Where nothing is to be
/// done, nothing is tried either, so a role that may not change the schema can serve with it; and so can a
/// server that is older than the schema.
pub async fn run(db: &Db) -> Result<(), StoreError> {
    let migrator = migrator(db);
    if is_current(db, &migrator).await? {
        return Ok(());
    }
    let done = match db.schema().await? {
        Schema::Sqlite(mut lent) => migrator.run(lent.connection()?).await,
        Schema::Postgres(mut lent) => migrator.run(lent.connection()?).await,
    };
    done.map_err(|error| match error {
        MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) if is_forbidden(&cause) => {
            StoreError::MayNotMigrate
        }
        error => StoreError::Migration(Box::new(error)),
    })
}

/// Whether every migration of this program was made. Changes nothing.
pub async fn check(db: &Db) -> Result<(), StoreError> {
    if is_current(db, &migrator(db)).await? { Ok(()) } else { Err(StoreError::Behind) }
}

fn migrator(db: &Db) -> Migrator {
    let migrations = MIGRATIONS
        .iter()
        .map(|(version, name, sqlite, postgres)| {
            let sql = if db.is_sqlite() { *sqlite } else { *postgres };
            Migration::new(*version, Cow::Borrowed(*name), MigrationType::Simple, sql.into_sql_str(), false)
        })
        .collect();
    Migrator { migrations: Cow::Owned(migrations), ..Migrator::DEFAULT }
}

/// Whether each migration was made, to its end and with the text that it has here.
async fn is_current(db: &Db, migrator: &Migrator) -> Result<bool, StoreError> {
    let Some(made) = made(db).await? else { return Ok(false) };
    let is_made = |migration: &Migration| {
        made.get(&migration.version).is_some_and(|checksum| **checksum == *migration.checksum)
    };
    Ok(migrator.migrations.iter().all(is_made))
}

/// The migrations that were made to their end, by number, with what their texts came to; none where there is
/// no schema.
async fn made(db: &Db) -> Result<Option<BTreeMap<i64, Vec<u8>>>, StoreError> {
    let there = match db.is_sqlite() {
        true => "SELECT name FROM sqlite_master WHERE name = '_sqlx_migrations'",
        false => {
            "SELECT tablename AS name FROM pg_catalog.pg_tables \
                  WHERE schemaname = current_schema() AND tablename = '_sqlx_migrations'"
        }
    };
    if db.find(there, &[]).await?.is_none() {
        return Ok(None);
    }
    let rows = db.list("SELECT version, checksum FROM _sqlx_migrations WHERE success", &[]).await?;
    rows.iter()
        .map(|row| Ok((row.int("version")?, row.bytes("checksum")?)))
        .collect::<Result<_, _>>()
        .map(Some)
}

/// PostgreSQL's insufficient_privilege.
fn is_forbidden(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().as_deref() == Some("42501"))
}
