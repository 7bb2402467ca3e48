//! What a database says of itself: for `cardvault doctor`, which reads only.

use super::backend::{Arg, Db, StoreError};
use crate::base::clock::Millis;

/// What SQLite says of a connection that is opened as all of the vault's are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sqlite {
    /// `3.51.3` and the like.
    pub version: String,
    /// 0 is OFF, 1 NORMAL, 2 FULL, 3 EXTRA.
    pub synchronous: i64,
    /// Whether what is deleted is overwritten: 0 is no, 1 yes, 2 only where that costs nothing.
    pub secure_delete: i64,
    /// Whether foreign keys are looked after.
    pub foreign_keys: bool,
}

/// Asks SQLite.
pub async fn sqlite(db: &Db) -> Result<Sqlite, StoreError> {
    const SETTINGS: &str = "SELECT sqlite_version() AS version, synchronous, secure_delete, foreign_keys \
         FROM pragma_synchronous, pragma_secure_delete, pragma_foreign_keys";
    let row = db.find(SETTINGS, &[]).await?.ok_or(StoreError::Damaged)?;
    Ok(Sqlite {
        version: row.text("version")?,
        synchronous: row.int("synchronous")?,
        secure_delete: row.int("secure_delete")?,
        foreign_keys: row.int("foreign_keys")? != 0,
    })
}

/// The tables of which rows are removed. Of all others they are made and changed, and of `audit` only made: what
/// `deploy/postgresql/grants.sql` grants, which a test compares with this and with every statement there is.
pub const REMOVED_FROM: [&str; 4] = ["leases", "notices", "replicas", "kek_canaries"];

/// What PostgreSQL says of this connection, its role, and its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postgres {
    /// `170002` and the like.
    pub version: i64,
    /// The version of TLS; none where the connection has none.
    pub tls: Option<String>,
    /// Whether the role is a superuser, may make roles or databases, or passes by row security.
    pub powers: Vec<&'static str>,
    /// Whether the role owns the tables, or may make some.
    pub owns_tables: bool,
    /// See above.
    pub makes_tables: bool,
    /// The tables on which the role lacks a right that it needs, with commas; mostly none.
    pub closed_tables: String,
    /// The tables, but for `audit`, of which the role could remove rows, and never does.
    pub removable_tables: String,
    /// Whether the role can alter or remove rows of the audit trail.
    pub alters_audit: bool,
    /// The database's clock.
    pub now: Millis,
    /// `log_parameter_max_length`, and the same on errors.
    pub log_parameters: (String, String),
    /// `fsync` and `full_page_writes`.
    pub fsync: String,
    /// See above.
    pub full_page_writes: String,
    /// `synchronous_commit`, `data_checksums`, `password_encryption`.
    pub synchronous_commit: String,
    /// See above.
    pub checksums: String,
    /// See above.
    pub password_encryption: String,
}

/// Asks PostgreSQL. The schema must be there.
pub async fn postgres(db: &Db) -> Result<Postgres, StoreError> {
    const ROLE: &str = "SELECT current_setting('server_version_num')::bigint AS version, \
         (SELECT s.version FROM pg_stat_ssl s WHERE s.pid = pg_backend_pid() AND s.ssl) AS tls, \
         r.rolsuper::int::bigint AS super, r.rolcreaterole::int::bigint AS roles, \
         r.rolcreatedb::int::bigint AS databases, r.rolbypassrls::int::bigint AS bypass, \
         has_schema_privilege(current_schema(), 'CREATE')::int::bigint AS makes, \
         (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint AS now, \
         current_setting('log_parameter_max_length') AS logged, \
         current_setting('log_parameter_max_length_on_error') AS logged_on_error, \
         current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_pages, \
         current_setting('synchronous_commit') AS synchronous, \
         current_setting('data_checksums') AS checksums, \
         current_setting('password_encryption') AS passwords \
         FROM pg_roles r WHERE r.rolname = current_user";
    const TABLES: &str = "SELECT \
         COALESCE(string_agg(t.name, ', ' ORDER BY t.name) FILTER (WHERE NOT (t.reads AND t.adds \
             AND (t.changes OR t.name = 'audit') AND (t.removes OR NOT t.shrinks))), '') AS closed, \
         COALESCE(string_agg(t.name, ', ' ORDER BY t.name) FILTER (WHERE t.name <> 'audit' AND NOT t.shrinks \
             AND (t.removes OR t.empties)), '') AS removable, \
         COALESCE(MAX(t.owned::int), 0)::bigint AS owned, \
         COALESCE(MAX((t.name = 'audit' AND (t.changes OR t.removes OR t.empties))::int), 0)::bigint AS audit \
         FROM (SELECT c.relname::text AS name, pg_has_role(c.relowner, 'MEMBER') AS owned, \
             c.relname::text = ANY(string_to_array($1, ',')) AS shrinks, \
             has_table_privilege(c.oid, 'SELECT') AS reads, has_table_privilege(c.oid, 'INSERT') AS adds, \
             has_table_privilege(c.oid, 'UPDATE') AS changes, has_table_privilege(c.oid, 'DELETE') AS removes, \
             has_table_privilege(c.oid, 'TRUNCATE') AS empties \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p') AND n.nspname = current_schema() \
             AND c.relname <> '_sqlx_migrations') t";
    let role = db.find(ROLE, &[]).await?.ok_or(StoreError::Damaged)?;
    let shrinking = REMOVED_FROM.join(",");
    let tables = db.find(TABLES, &[Arg::Text(&shrinking)]).await?.ok_or(StoreError::Damaged)?;
    let mut powers = Vec::new();
    for (column, power) in [
        ("super", "is a superuser"),
        ("roles", "may make roles"),
        ("databases", "may make databases"),
        ("bypass", "passes by row security"),
    ] {
        if role.int(column)? != 0 {
            powers.push(power);
        }
    }
    Ok(Postgres {
        version: role.int("version")?,
        tls: role.text_or_null("tls")?,
        powers,
        owns_tables: tables.int("owned")? != 0,
        makes_tables: role.int("makes")? != 0,
        closed_tables: tables.text("closed")?,
        removable_tables: tables.text("removable")?,
        alters_audit: tables.int("audit")? != 0,
        now: Millis(role.int("now")?),
        log_parameters: (role.text("logged")?, role.text("logged_on_error")?),
        fsync: role.text("fsync")?,
        full_page_writes: role.text("full_pages")?,
        synchronous_commit: role.text("synchronous")?,
        checksums: role.text("checksums")?,
        password_encryption: role.text("passwords")?,
    })
}
