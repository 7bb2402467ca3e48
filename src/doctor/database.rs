//! The database: whether it is reached, how, by whom, and whether its schema and settings are right.

use std::io::Read;

use crate::config::Config;
use crate::store::backend::{Db, Options, StoreError};
use crate::store::facts::{self, Postgres, Sqlite};
use crate::store::migrate;

use super::Line;
use super::clock::compare;

const AREA: &str = "database";
/// What puts a role's rights right.
const GRANTS: &str = "run deploy/postgresql/grants.sql as the owner of the tables";

pub(super) fn options(config: &Config) -> Options {
    Options { url: config.database.url.clone(), password_file: config.database.password_file.clone() }
}

pub(super) async fn examine(config: &Config) -> Vec<Line> {
    let db = match Db::open_to_look(&options(config)).await {
        Ok(db) => db,
        Err(error) => return vec![cannot(&error)],
    };
    let lines = if db.is_sqlite() { sqlite(config, &db).await } else { postgres(&db).await };
    db.close().await;
    lines
}

fn cannot(error: &StoreError) -> Line {
    let mut told = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        told = format!("{told}: {inner}");
        source = inner.source();
    }
    Line::fail(
        AREA,
        told,
        "is it there, reachable, and does the role exist? A new one is made by `cardvault migrate`",
    )
}

async fn sqlite(config: &Config, db: &Db) -> Vec<Line> {
    let mut lines = Vec::new();
    match facts::sqlite(db).await {
        Ok(facts) => lines.push(judge_sqlite(&facts)),
        Err(error) => return vec![cannot(&error)],
    }
    lines.push(match is_wal(&config.database.url) {
        Some(true) => Line::pass(AREA, "the journal is a write-ahead log"),
        Some(false) => Line::warn(
            AREA,
            "the journal is not a write-ahead log",
            "the next start of the vault makes it one",
        ),
        None => Line::fail(AREA, "the file is no SQLite database", "name another file in database.url"),
    });
    lines.push(schema(db).await);
    lines
}

/// What is right and wrong with a connection to SQLite, as every one of the vault is opened.
fn judge_sqlite(facts: &Sqlite) -> Line {
    let synchronous = match facts.synchronous {
        0 => "OFF",
        1 => "NORMAL",
        2 => "FULL",
        3 => "EXTRA",
        _ => "unknown",
    };
    let on = |set: bool| if set { "on" } else { "off" };
    let told = format!(
        "SQLite {}; connections have synchronous {synchronous}, secure_delete {}, foreign_keys {}",
        facts.version,
        on(facts.secure_delete == 1),
        on(facts.foreign_keys)
    );
    if matches!(facts.synchronous, 2 | 3) && facts.secure_delete == 1 && facts.foreign_keys {
        return Line::pass(AREA, told);
    }
    Line::fail(
        AREA,
        format!("{told}: the vault asks for FULL, on and on"),
        "this program was built with another SQLite; take one whose settings hold",
    )
}

/// Whether the file's header says that its journal is a write-ahead log (SQLite's file format, section 1.3).
fn is_wal(url: &str) -> Option<bool> {
    let path = url.strip_prefix("sqlite:")?.split('?').next()?;
    let mut header = [0; 20];
    std::fs::File::open(path).ok()?.read_exact(&mut header).ok()?;
    let magic = header.starts_with(b"SQLite format 3\0");
    magic.then(|| header.ends_with(&[2, 2]))
}

async fn postgres(db: &Db) -> Vec<Line> {
    let asked = (crate::base::clock::SystemClock, std::time::Instant::now());
    let facts = match facts::postgres(db).await {
        Ok(facts) => facts,
        Err(error) => return vec![cannot(&error)],
    };
    let mut lines = judge(&facts);
    lines.push(compare("the database", facts.now, &asked.0, asked.1.elapsed(), 1));
    lines.push(schema(db).await);
    lines
}

async fn schema(db: &Db) -> Line {
    match migrate::differing(db).await {
        Ok(Some((missing, unknown))) if missing.is_empty() && unknown.is_empty() => {
            Line::pass(AREA, "the schema is up to date")
        }
        Ok(Some((missing, _))) if !missing.is_empty() => {
            Line::fail(AREA, format!("migrations are missing: {missing:?}"), "cardvault migrate")
        }
        Ok(Some((_, unknown))) => Line::warn(
            AREA,
            format!("the schema is of a newer program: {unknown:?}"),
            "bring this program up to date",
        ),
        Ok(None) | Err(_) => Line::fail(AREA, "there is no schema yet", "cardvault migrate"),
    }
}

/// What is right and wrong with a PostgreSQL.
fn judge(facts: &Postgres) -> Vec<Line> {
    let mut lines = Vec::new();
    lines.push(match &facts.tls {
        Some(version) => Line::pass(AREA, format!("the connection is {version}")),
        None => Line::warn(
            AREA,
            "the connection is not encrypted",
            "sslmode=verify-full and sslrootcert in database.url",
        ),
    });
    lines.push(match facts.powers.as_slice() {
        [] => Line::pass(AREA, "the role has no powers beyond its tables"),
        powers => Line::warn(
            AREA,
            format!("the role {}", powers.join(", ")),
            "serve as a role of its own without these",
        ),
    });
    lines.push(if facts.owns_tables || facts.makes_tables {
        Line::warn(
            AREA,
            "the role owns the tables or can make some",
            "serve as another role, with migrate = false under [database]",
        )
    } else {
        Line::pass(AREA, "the role cannot change the schema")
    });
    lines.push(match facts.closed_tables.as_str() {
        "" => Line::pass(AREA, "the role can do with every table what it needs to"),
        tables => Line::fail(AREA, format!("the role lacks rights on {tables}"), GRANTS),
    });
    // Whose the tables are can do everything with them, which is told above.
    if !facts.removable_tables.is_empty() && !facts.owns_tables {
        let told = format!("the role can remove rows of {}, and never needs to", facts.removable_tables);
        lines.push(Line::warn(AREA, told, GRANTS));
    }
    lines.push(if facts.alters_audit {
        Line::warn(AREA, "the role can alter the audit trail", GRANTS)
    } else {
        Line::pass(AREA, "the role can only add to the audit trail")
    });
    let (logged, on_error) = (facts.log_parameters.0.as_str(), facts.log_parameters.1.as_str());
    lines.push(if (logged, on_error) == ("0", "0") {
        Line::pass(AREA, "no parameters of statements are logged")
    } else {
        Line::warn(
            AREA,
            "the server can log parameters of statements",
            "log_parameter_max_length = 0 and log_parameter_max_length_on_error = 0",
        )
    });
    for (name, setting, what) in [
        ("fsync", &facts.fsync, "a crash of the machine can lose or damage everything"),
        ("full_page_writes", &facts.full_page_writes, "a crash of the machine can leave pages half written"),
    ] {
        lines.push(match setting.as_str() {
            "on" => Line::pass(AREA, format!("{name} is on")),
            other => Line::fail(AREA, format!("{name} is {other}: {what}"), format!("{name} = on")),
        });
    }
    lines.push(match facts.synchronous_commit.as_str() {
        "off" | "local" => Line::fail(
            AREA,
            format!("synchronous_commit is {}: an acknowledged card can be lost", facts.synchronous_commit),
            "synchronous_commit = on",
        ),
        setting => Line::pass(AREA, format!("synchronous_commit is {setting}")),
    });
    lines.push(match facts.checksums.as_str() {
        "on" => Line::pass(AREA, "data checksums are on"),
        _ => Line::warn(AREA, "data checksums are off", "pg_checksums --enable, with the server stopped"),
    });
    lines.push(match facts.password_encryption.as_str() {
        "scram-sha-256" => Line::pass(AREA, "passwords are kept as SCRAM-SHA-256"),
        other => Line::warn(
            AREA,
            format!("passwords are kept as {other}"),
            "password_encryption = scram-sha-256, and set the passwords again",
        ),
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Millis;
    use crate::doctor::Verdict;

    fn good() -> Postgres {
        Postgres {
            version: 170_002,
            tls: Some("TLSv1.3".into()),
            powers: Vec::new(),
            owns_tables: false,
            makes_tables: false,
            closed_tables: String::new(),
            removable_tables: String::new(),
            alters_audit: false,
            now: Millis(0),
            log_parameters: ("0".into(), "0".into()),
            fsync: "on".into(),
            full_page_writes: "on".into(),
            synchronous_commit: "on".into(),
            checksums: "on".into(),
            password_encryption: "scram-sha-256".into(),
        }
    }

    #[test]
    fn sqlite_must_wait_for_the_disk_and_overwrite() {
        let good = Sqlite { version: "3.51.3".into(), synchronous: 2, secure_delete: 1, foreign_keys: true };
        assert_eq!(judge_sqlite(&good).verdict, Verdict::Pass);
        for bad in [
            Sqlite { synchronous: 0, ..good.clone() },
            Sqlite { synchronous: 1, ..good.clone() },
            Sqlite { secure_delete: 0, ..good.clone() },
            Sqlite { secure_delete: 2, ..good.clone() },
            Sqlite { foreign_keys: false, ..good.clone() },
        ] {
            assert_eq!(judge_sqlite(&bad).verdict, Verdict::Fail, "{bad:?}");
        }
    }

    /// One thing is wrong at a time, and exactly its line says so.
    #[test]
    fn each_fact_has_its_line() {
        assert!(judge(&good()).iter().all(|line| line.verdict == Verdict::Pass));
        type Break = fn(&mut Postgres);
        let broken: [(Break, Verdict, &str); 13] = [
            (|it| it.tls = None, Verdict::Warn, "not encrypted"),
            (|it| it.powers = vec!["is a superuser"], Verdict::Warn, "superuser"),
            (|it| it.owns_tables = true, Verdict::Warn, "owns"),
            (|it| it.makes_tables = true, Verdict::Warn, "can make"),
            (|it| it.closed_tables = "leases, notices".into(), Verdict::Fail, "rights on leases, notices"),
            (|it| it.removable_tables = "cards".into(), Verdict::Warn, "remove rows of cards"),
            (|it| it.alters_audit = true, Verdict::Warn, "audit"),
            (|it| it.log_parameters.1 = "-1".into(), Verdict::Warn, "parameters"),
            (|it| it.fsync = "off".into(), Verdict::Fail, "fsync is off"),
            (|it| it.full_page_writes = "off".into(), Verdict::Fail, "full_page_writes is off"),
            (|it| it.synchronous_commit = "off".into(), Verdict::Fail, "synchronous_commit"),
            (|it| it.checksums = "off".into(), Verdict::Warn, "checksums"),
            (|it| it.password_encryption = "md5".into(), Verdict::Warn, "md5"),
        ];
        for (change, verdict, told) in broken {
            let mut facts = good();
            change(&mut facts);
            let wrong: Vec<Line> =
                judge(&facts).into_iter().filter(|line| line.verdict != Verdict::Pass).collect();
            let [line] = wrong.as_slice() else { panic!("{told}: {wrong:?}") };
            assert!(line.verdict == verdict && line.told.contains(told) && line.mend.is_some(), "{line:?}");
        }
    }
}
