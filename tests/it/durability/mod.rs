//! What was acknowledged is never lost, and nothing happens twice: the vault is killed, its database is
//! killed, the connection between them is cut. docs/durability.md says what each test shows, and how each
//! was made to fail.

mod load;
mod syncs;
mod truth;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::subscriber::NoSubscriber;

use super::memory::Wanted;
use super::support::cut::{Cut, Network};
use super::support::postgres::{Binaries, Cluster, Durability};
use super::support::vault::{TestVault, fresh_pan};
use super::support::{Database, Engine, eventually, left_out, say, variable};
use load::{Book, Load};

/// How often something is killed; `CARDVAULT_KILL_ROUNDS` says otherwise.
const ROUNDS: u64 = 25;
/// Callers at once.
const CALLERS: usize = 6;

/// How often the connection to PostgreSQL is cut; `CARDVAULT_CUTS` says otherwise.
const CUTS: u64 = 100;
/// What is written in the transactions whose commits are cut.
const WRITES: [&str; 7] = [
    "INSERT cards",
    "UPDATE cards",
    "INSERT payments",
    "UPDATE payments",
    "INSERT operations",
    "UPDATE operations",
    "INSERT audit",
];

fn rounds() -> u64 {
    variable("CARDVAULT_KILL_ROUNDS").unwrap_or(ROUNDS)
}

/// Runs a story whose thousands of calls are not captured by the leak guard: they would not fit. Others search
/// what this process logs; what the programs log, and the files, are searched at the end.
fn quietly(story: impl Future<Output = ()>) {
    let quiet = || std::mem::forget(tracing::subscriber::set_default(NoSubscriber::new()));
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().on_thread_start(quiet).build().expect("a runtime");
    tracing::subscriber::with_default(NoSubscriber::new(), || runtime.block_on(story));
}

/// A cluster as in production, that says little, and a database in it.
async fn cluster(story: &str) -> Option<(Cluster, Database)> {
    let Some(binaries) = Binaries::find() else {
        left_out(story);
        return None;
    };
    let cluster = Cluster::start(&binaries, Durability::Full).await;
    let db = Database::in_cluster(&cluster).await;
    let name = db.url.rsplit('/').next().unwrap_or_default();
    for setting in ["log_statement = 'none'", "log_min_messages = 'warning'"] {
        cluster.as_superuser(&format!("ALTER DATABASE {name} SET {setting}")).await;
    }
    Some((cluster, db))
}

/// A vault that is to be started as a program, with its log at the level of production.
async fn vault(db: &Database) -> TestVault {
    let mut vault = TestVault::start(db).await;
    vault.environment.push(("CARDVAULT_LOG".to_owned(), "info".to_owned()));
    vault
}

/// Waits until callers are served, and then until a random moment.
async fn at_work(book: &Book) {
    let before = book.answers();
    eventually("callers to be served", || async { (book.answers() > before + 4).then_some(()) }).await;
    let random: [u8; 1] = cardvault::base::entropy::array().expect("entropy");
    tokio::time::sleep(Duration::from_millis(u64::from(random[0]))).await;
}

/// After a storm everything is compared, and told: how much there was of `what` since it began.
async fn end(mut vault: TestVault, db: &Database, book: &Arc<Book>, started: Instant, what: &str) {
    let storm = started.elapsed();
    truth::settle(&mut vault, db).await;
    let told = truth::compare(&mut vault, db, book).await;
    say(&format!("{what} in {storm:?}, {:?} in all: {told}", started.elapsed()));
    let all: Vec<String> = {
        let notes = book.notes();
        notes.cards.keys().chain(&notes.typed).cloned().collect()
    };
    vault.stop().await;
    let log = vault.dir.path().to_owned();
    let searched = [log, db.files.clone()].iter().map(|folder| search(folder, &all)).sum::<usize>();
    say(&format!(
        "{what}: {} numbers, and CVVs as JSON has them, searched for in {} KiB",
        all.len(),
        searched / 1024
    ));
    // Some of them in every form that the guard knows.
    let some: Vec<&str> = all.iter().step_by(25).map(String::as_str).collect();
    vault.finish(&some).await;
}

/// Fails where a file below a folder holds one of the numbers, or a CVV as JSON has one; tells how much was looked
/// through.
fn search(folder: &Path, pans: &[String]) -> usize {
    const CHUNK: usize = 64 * 1024;
    // A form of a number that lies on the border of two chunks.
    const OVERLAP: usize = 64;
    static ZEROS: [u8; CHUNK + OVERLAP] = [0; CHUNK + OVERLAP];
    let (wanted, mut looked) = (Wanted::of(pans), 0);
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            // A socket, or what a server has removed meanwhile.
            let Ok(bytes) = std::fs::read(&path) else { continue };
            let mut found = BTreeMap::new();
            for begin in (0..bytes.len()).step_by(CHUNK) {
                let part = &bytes[begin..bytes.len().min(begin + CHUNK + OVERLAP)];
                // What a database keeps ready is zeros, and there is a lot of it.
                if part != &ZEROS[..part.len()] {
                    looked += part.len();
                    wanted.count(part, &mut found);
                }
            }
            assert!(found.is_empty(), "card data in {}: {found:?}", path.display());
        }
    }
    looked
}

/// The search finds a number and a CVV wherever in a file they lie.
#[test]
fn a_number_in_a_file_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let pan = fresh_pan();
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).expect("a folder");
    for (text, at) in
        [(pan.as_str(), 64 * 1024 - 8), (pan.as_str(), 200_000), (r#""cvv":"850""#, 64 * 1024 - 3)]
    {
        let mut bytes = vec![0; 300_000];
        bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
        std::fs::write(inner.join("file"), &bytes).expect("a file");
        let found = std::panic::catch_unwind(|| search(folder.path(), std::slice::from_ref(&pan)));
        assert!(found.is_err(), "{text} at {at}");
    }
    std::fs::write(inner.join("file"), vec![1; 300_000]).expect("a file");
    assert!(search(folder.path(), std::slice::from_ref(&pan)) >= 300_000);
}

/// The real program is killed at any instant, and another one starts on its database.
async fn a_killed_vault(db: Database) {
    let mut vault = vault(&db).await;
    let (book, started) = (Arc::new(Book::default()), Instant::now());
    let known = book.store(&vault.client("checkout"), &fresh_pan()).await.expect("a card");
    for _ in 0..rounds() {
        let mut program = vault.start_program().await;
        let load = Load::start(&book, &vault.client("checkout"), CALLERS, &known);
        at_work(&book).await;
        program.kill().expect("killed");
        program.wait().expect("killed");
        load.stop().await;
    }
    let what = format!("{:?}, {} kills of the vault", db.engine, rounds());
    end(vault, &db, &book, started, &what).await;
}

/// Every process of the database's server is killed at once while the vault is at work, and it starts again.
async fn a_killed_database(mut cluster: Cluster, db: Database) {
    let mut vault = vault(&db).await;
    let (book, started) = (Arc::new(Book::default()), Instant::now());
    let known = book.store(&vault.client("checkout"), &fresh_pan()).await.expect("a card");
    let mut program = vault.start_program().await;
    let load = Load::start(&book, &vault.client("checkout"), CALLERS, &known);
    for _ in 0..rounds() {
        at_work(&book).await;
        cluster.crash_whole();
        cluster.launch().await;
    }
    at_work(&book).await;
    program.kill().expect("killed");
    program.wait().expect("killed");
    load.stop().await;
    end(vault, &db, &book, started, &format!("{} kills of PostgreSQL", rounds())).await;
}

/// The connection breaks at commits of every kind: before the server has them, while it carries them out,
/// before it has told so.
async fn a_cut_connection(cluster: Cluster, db: Database) {
    let network = Network::start(cluster.port()).await;
    let through = db.url.replace(&format!(":{}/", cluster.port()), &format!(":{}/", network.address.port()));
    let vault = TestVault::start(&Database::at(through, Engine::Postgres, db.files.clone())).await;
    let (book, started) = (Arc::new(Book::default()), Instant::now());
    let known = book.store(&vault.client("checkout"), &fresh_pan()).await.expect("a card");
    let load = Load::start(&book, &vault.client("checkout"), CALLERS, &known);
    let cuts = variable("CARDVAULT_CUTS").unwrap_or(CUTS);
    let kinds = [Cut::Before, Cut::During, Cut::After].into_iter().cycle();
    let writes = WRITES.into_iter().cycle();
    for (cut, what) in kinds.zip(writes).take(usize::try_from(cuts).expect("a count")) {
        network.arm(cut, what);
        eventually(what, || async { (!network.is_armed()).then_some(()) }).await;
    }
    load.stop().await;
    end(vault, &db, &book, started, &format!("{} cuts", network.cuts().len())).await;
}

#[test]
fn a_killed_vault_loses_nothing_on_sqlite() {
    quietly(a_killed_vault(Database::sqlite()));
}

#[test]
fn a_killed_vault_loses_nothing_on_postgres() {
    quietly(async {
        let name = "durability::a_killed_vault_loses_nothing_on_postgres";
        let Some((_cluster, db)) = cluster(name).await else { return };
        a_killed_vault(db).await;
    });
}

#[test]
fn a_killed_postgres_loses_nothing() {
    quietly(async {
        let Some((cluster, db)) = cluster("durability::a_killed_postgres_loses_nothing").await else {
            return;
        };
        a_killed_database(cluster, db).await;
    });
}

#[test]
fn a_cut_connection_loses_nothing() {
    quietly(async {
        let Some((cluster, db)) = cluster("durability::a_cut_connection_loses_nothing").await else { return };
        a_cut_connection(cluster, db).await;
    });
}
