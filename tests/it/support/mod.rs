//! What every story stands on: databases of both engines, and the leak guard.

#![allow(dead_code, reason = "each story uses a part of this")]

pub mod cut;
pub mod gateway;
pub mod leak;
pub mod notices;
pub mod postgres;
pub mod sql;
pub mod vault;
pub mod wire;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

/// A number that a variable of the environment gives: how much of something a test does.
pub fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// The engine below a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// A file in a folder of its own.
    Sqlite,
    /// A database of its own in the private cluster of this process.
    Postgres,
}

/// A fresh, empty database.
pub struct Database {
    /// What the product's configuration takes.
    pub url: String,
    /// Which kind it is.
    pub engine: Engine,
    /// Where the engine keeps its files: data, write-ahead log and, with PostgreSQL, the server's log.
    /// (A PostgreSQL cluster is shared by all tests of a process: search it for numbers of your own.)
    pub files: PathBuf,
    /// Before there was a card in them.
    pub since: SystemTime,
    _owned: Option<TempDir>,
}

impl Database {
    /// A fresh SQLite database.
    pub fn sqlite() -> Self {
        let since = SystemTime::now();
        let (folder, url) = fresh_sqlite();
        Self { url, engine: Engine::Sqlite, files: folder.path().to_owned(), since, _owned: Some(folder) }
    }

    /// A fresh PostgreSQL database; `None` after printing that `story` is left out.
    pub async fn postgres(story: &str) -> Option<Self> {
        let since = SystemTime::now();
        let Some(url) = postgres::fresh_database().await else {
            left_out(story);
            return None;
        };
        let files = postgres::shared_files().await?;
        Some(Self { url, engine: Engine::Postgres, files, since, _owned: None })
    }

    /// A database that somebody else keeps.
    pub fn at(url: String, engine: Engine, files: PathBuf) -> Self {
        Self { url, engine, files, since: UNIX_EPOCH, _owned: None }
    }

    /// A fresh database in a cluster of the story's own, which it may crash.
    pub async fn in_cluster(cluster: &postgres::Cluster) -> Self {
        let since = SystemTime::now();
        let url = cluster.fresh_database().await;
        Self { url, engine: Engine::Postgres, files: cluster.folder.clone(), since, _owned: None }
    }

    /// Fails if one of the secrets is in the engine's files.
    pub fn assert_clean(&self, secrets: &[&str]) {
        leak::scan_dir_since(&self.files, self.since, secrets);
    }
}

/// A folder and the URL of a SQLite database in it that does not exist yet.
pub fn fresh_sqlite() -> (TempDir, String) {
    let folder =
        tempfile::Builder::new().prefix("cardvault-test-sqlite-").tempdir().expect("a temporary folder");
    let url = sqlite_url(folder.path());
    (folder, url)
}

fn sqlite_url(folder: &Path) -> String {
    format!("sqlite://{}", folder.join("cardvault.db").display())
}

/// Waits for what happens in the background; fails after a time that is far beyond what it takes.
pub async fn eventually<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let give_up = tokio::time::Instant::now() + gateway::PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < give_up, "waited in vain for {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Whether the feed has told rightly of a payment, a capture or a refund: its last event is its state, the
/// others are what may come before that, and none comes twice.
pub fn feed_fits(object: &str, status: &str, told: &[&str]) -> bool {
    let last = format!("{object}.{}", status.to_lowercase());
    let may_precede = |kind: &str| {
        kind == format!("{object}.processing")
            || (kind == "payment.authorized" && last == "payment.cancelled")
    };
    let [rest @ .., end] = told else { return false };
    *end == last
        && rest.iter().all(|kind| may_precede(kind))
        && (1..told.len()).all(|at| !told[at..].contains(&told[at - 1]))
}

/// Says that a test was left out for want of PostgreSQL.
pub fn left_out(story: &str) {
    say(&format!("{story}: left out: no PostgreSQL found"));
}

/// Prints a line that the test harness does not swallow.
pub fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Makes one test of a story for each engine:
/// `both_engines!(async fn a_story(db: Database) { .. });`
#[macro_export]
macro_rules! both_engines {
    ($($(#[$attribute:meta])* async fn $name:ident($db:ident: Database) $story:block)+) => {$(
        mod $name {
            #[allow(unused_imports, reason = "a story may need nothing from around it")]
            use super::*;

            async fn story($db: $crate::support::Database) $story

            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                story($crate::support::Database::sqlite()).await;
            }

            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                let name = concat!(module_path!(), "::postgres");
                if let Some(db) = $crate::support::Database::postgres(name).await {
                    story(db).await;
                }
            }
        }
    )+};
}
