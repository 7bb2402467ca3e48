//! Schema changes, compiled in. Expand, then contract; a migration that has shipped is never edited.

use std::borrow::Cow;

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use super::backend::{Db, StoreError};

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
        30,
        "audit",
        include_str!("../../migrations/sqlite/0030_audit.sql"),
        include_str!("../../migrations/postgres/0030_audit.sql"),
    ),
];

/// Brings the schema up to date. Safe to run twice at once: the migrator takes a lock.
pub async fn run(db: &Db) -> Result<(), StoreError> {
    let migrations = MIGRATIONS
        .iter()
        .map(|(version, name, sqlite, postgres)| {
            let sql = if db.is_sqlite() { *sqlite } else { *postgres };
            Migration::new(*version, Cow::Borrowed(*name), MigrationType::Simple, sql.into_sql_str(), false)
        })
        .collect();
    let migrator = Migrator { migrations: Cow::Owned(migrations), ..Migrator::DEFAULT };
    let done = match (db.writer_sqlite(), db.postgres()) {
        (Some(pool), _) => migrator.run(pool).await,
        (None, Some(pool)) => migrator.run(pool).await,
        (None, None) => return Err(StoreError::Url),
    };
    done.map_err(|error| StoreError::Migration(Box::new(error)))
}
