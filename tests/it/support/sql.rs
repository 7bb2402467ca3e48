//! What an administrator of the database could do: any SQL, past the vault.

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqliteConnection};

use super::{Database, Engine};

/// Runs one statement and tells how many rows it changed.
pub async fn execute(db: &Database, statement: &str) -> u64 {
    macro_rules! run {
        ($connection:ty) => {{
            let mut connection = <$connection>::connect(&db.url).await.expect("connect");
            let query = sqlx::query(AssertSqlSafe(statement.to_owned()));
            let done = query.execute(&mut connection).await.expect("a statement").rows_affected();
            connection.close().await.expect("close");
            done
        }};
    }
    match db.engine {
        Engine::Sqlite => run!(SqliteConnection),
        Engine::Postgres => run!(PgConnection),
    }
}

/// A number that a query gives.
pub async fn number(db: &Database, query: &str) -> i64 {
    let rows = rows(db, &format!("SELECT CAST(({query}) AS TEXT)")).await;
    rows[0][0].as_deref().and_then(|text| text.parse().ok()).expect("a number")
}

/// All rows of a query, every column read as text.
pub async fn rows(db: &Database, query: &str) -> Vec<Vec<Option<String>>> {
    macro_rules! read {
        ($connection:ty) => {{
            let mut connection = <$connection>::connect(&db.url).await.expect("connect");
            let rows = sqlx::query(AssertSqlSafe(query.to_owned()))
                .fetch_all(&mut connection)
                .await
                .expect("a query");
            let read = rows
                .iter()
                .map(|row| (0..row.len()).map(|at| row.try_get(at).expect("a text column")).collect())
                .collect();
            connection.close().await.expect("close");
            read
        }};
    }
    match db.engine {
        Engine::Sqlite => read!(SqliteConnection),
        Engine::Postgres => read!(PgConnection),
    }
}

/// A column of one row, as hexadecimal.
pub async fn bytes(db: &Database, table: &str, column: &str, condition: &str) -> Vec<u8> {
    let shown = match db.engine {
        Engine::Sqlite => format!("hex({column})"),
        Engine::Postgres => format!("encode({column}, 'hex')"),
    };
    let found = rows(db, &format!("SELECT {shown} FROM {table} WHERE {condition}")).await;
    assert_eq!(found.len(), 1, "one row");
    let text = found[0][0].clone().expect("not null");
    data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).expect("hexadecimal")
}

/// A literal of bytes.
pub fn literal(db: &Database, bytes: &[u8]) -> String {
    let hex = data_encoding::HEXLOWER.encode(bytes);
    match db.engine {
        Engine::Sqlite => format!("X'{hex}'"),
        Engine::Postgres => format!("'\\x{hex}'::bytea"),
    }
}
