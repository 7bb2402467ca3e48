//! How fast keys rotate: re-encryption alone, beside what the database does without sealing, and beside callers;
//! and a new key-encryption key. By the commands that an operator runs.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cardvault::base::clock::{SharedClock, SystemClock};
use cardvault::crypto::kek::Keks;
use cardvault::crypto::keyring::Purpose;
use cardvault::ops::keys::KeyPolicy;
use cardvault::ops::rotation::Admin;
use cardvault::store::backend::{Db, Options as Store};
use serde_json::Value;
use sqlx::{Connection, PgConnection, Row};

use super::load::{self, Figures, Shape};
use super::vault::tokenising;
use super::{Ground, Options, middle, say};

/// Data keys that a new key-encryption key wraps anew, besides those that are there.
const DATA_KEYS: usize = 1_000;
/// Rows of a batch where nothing else is done.
const BATCH: usize = 1_000;

/// Measures on a database with so many cards.
pub async fn measure(options: &Options, ground: &mut Ground, cards: u64) {
    let (engine, begin) = (ground.engine(), Instant::now());
    if ground.cluster.is_some() {
        // It would begin when the cards are there, and take its share of what is measured.
        ground.execute("ALTER TABLE cards SET (autovacuum_enabled = false)").await;
    }
    fill(ground, cards).await;
    say(&format!("\n{engine}: {cards} cards, stored in {:.0} s", begin.elapsed().as_secs_f64()));
    ground.vault.stop();
    moving(options, ground).await;
    if ground.cluster.is_some() {
        ground.execute("ALTER TABLE cards RESET (autovacuum_enabled)").await;
    }
    for (name, pace) in
        [("no pause, batches of 200", &["--batch", "200", "--pause-ms", "0"][..]), ("as shipped", &[])]
    {
        let (rate, whole) = reencrypt(ground, pace);
        say(&format!(
            "{engine}: reencrypt, {name}: {rate:.0} rows/s; with its counts and samples {whole:.0}"
        ));
    }
    ground.vault.serve();
    ground.settle().await;
    say(&format!("{engine}: POST /v1/cards, 4 callers, alone: {}", told(&callers(options, ground).await)));
    keys(ground, &["rotate", "dek"]);
    let mut beside = ground.vault.command(&["keys", "reencrypt", "--json"]);
    let mut beside = beside.stdout(Stdio::piped()).spawn().expect("it starts");
    let figures = callers(options, ground).await;
    let all_along = beside.try_wait().expect("a process").is_none();
    let done = beside.wait_with_output().expect("its end");
    assert!(done.status.success(), "reencrypt failed");
    say(&format!(
        "{engine}: beside reencrypt as shipped ({:.0} rows/s{}): {}",
        whole(&String::from_utf8_lossy(&done.stdout)),
        if all_along { "" } else { ", which ended before they did: take more cards" },
        told(&figures)
    ));
    ground.vault.stop();
    make_data_keys(ground).await;
    say(&format!("{engine}: rotate kek: {}", keys(ground, &["rotate", "kek"]).trim().replace('\n', "; ")));
}

/// Re-encryption at full speed and, on PostgreSQL, the same `UPDATE` in plain SQL, in turns: each finds the table
/// without dead rows and its pages on disk, and no autovacuum in its way.
async fn moving(options: &Options, ground: &Ground) {
    let (engine, batch) = (ground.engine(), BATCH.to_string());
    let with_sql = ground.cluster.is_some();
    let (mut rates, mut wholes, mut plains, mut ratios) = (vec![], vec![], vec![], vec![]);
    for _ in 0..options.rounds {
        tidy(ground).await;
        let (rate, whole) = reencrypt(ground, &["--batch", &batch, "--pause-ms", "0"]);
        rates.push(rate);
        wholes.push(whole);
        if with_sql {
            tidy(ground).await;
            let plain = plain(&ground.url).await;
            plains.push(plain);
            ratios.push(rate / plain);
        }
    }
    say(&format!(
        "{engine}: reencrypt, no pause, batches of {BATCH}: {:.0} rows/s; with its counts and samples {:.0}",
        middle(rates),
        middle(wholes)
    ));
    if with_sql {
        say(&format!(
            "{engine}: the same UPDATE in plain SQL, batches of {BATCH}: {:.0} rows/s; the ratio {:.2}",
            middle(plains),
            middle(ratios)
        ));
    }
}

/// Leaves PostgreSQL no dead rows to step over, and no changed pages to write out.
async fn tidy(ground: &Ground) {
    if let Some((cluster, _)) = &ground.cluster {
        ground.execute("VACUUM ANALYZE cards").await;
        cluster.as_superuser("CHECKPOINT").await;
    }
}

/// Moves all cards to a new key: rows a second until the last was moved, and until all is proven.
fn reencrypt(ground: &Ground, pace: &[&str]) -> (f64, f64) {
    keys(ground, &["rotate", "dek"]);
    let said = keys(ground, &[&["reencrypt", "--json"], pace].concat());
    let moved = lines(&said).find(|line| line["event"] == "progress" && line["left"] == 0);
    (moved.expect("an end")["rowsPerSecond"].as_f64().expect("rows"), whole(&said))
}

/// Stores cards as callers do: only those can be opened.
async fn fill(ground: &Ground, cards: u64) {
    let (mut next, mut left) = (tokenising(), cards);
    let shape = Shape {
        connections: 64,
        warm: Duration::ZERO,
        measured: Duration::from_secs(24 * 3600),
        pause: Duration::ZERO,
    };
    let some = move || {
        left = left.checked_sub(1)?;
        next()
    };
    load::run(&ground.vault.target, shape, &[], "card_", some).await;
}

/// Four callers that store new cards, each again 10 ms after its answer.
async fn callers(options: &Options, ground: &Ground) -> Figures {
    let shape = Shape { pause: Duration::from_millis(10), ..options.shape(4) };
    load::run(&ground.vault.target, shape, &[], "card_", tokenising()).await
}

fn told(figures: &Figures) -> String {
    format!("p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms", figures.p50, figures.p99, figures.p999)
}

/// Runs a command on keys, which must succeed; what it printed.
fn keys(ground: &Ground, arguments: &[&str]) -> String {
    let done = ground.vault.command(&[&["keys"], arguments].concat()).output().expect("it runs");
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn lines(said: &str) -> impl Iterator<Item = Value> {
    said.lines().map(|line| serde_json::from_str(line).expect("JSON"))
}

/// Rows a second, as `reencrypt --json` tells at its end.
fn whole(said: &str) -> f64 {
    let last = lines(said).last().expect("a line");
    last["moved"].as_f64().expect("rows") / last["seconds"].as_f64().expect("seconds")
}

/// The same batches without any cryptography: what the database alone can do.
async fn plain(url: &str) -> f64 {
    const UPDATE: &str = "UPDATE cards SET pan = d.pan, details = d.details \
         FROM unnest($1::text[], $2::bytea[], $3::bytea[]) AS d(id, pan, details) WHERE card_id = d.id";
    let mut connection = PgConnection::connect(url).await.expect("a connection");
    let all = sqlx::query("SELECT card_id, pan, details FROM cards ORDER BY card_id");
    let rows = all.fetch_all(&mut connection).await.expect("rows");
    let begin = Instant::now();
    for batch in rows.chunks(BATCH) {
        let ids: Vec<&str> = batch.iter().map(|row| row.get(0)).collect();
        let pans: Vec<&[u8]> = batch.iter().map(|row| row.get(1)).collect();
        let details: Vec<&[u8]> = batch.iter().map(|row| row.get(2)).collect();
        let query = sqlx::query(UPDATE).bind(ids).bind(pans).bind(details);
        query.execute(&mut connection).await.expect("a statement");
    }
    rows.len() as f64 / begin.elapsed().as_secs_f64()
}

/// As after years: in this process, because a thousand commands would take longer than what is measured.
async fn make_data_keys(ground: &Ground) {
    let db = Db::open(&Store { url: ground.url.clone(), password_file: None }).await.expect("a database");
    let keyring = ground.vault.dir.path().join("keys/keyring.toml");
    let keks = Arc::new(Keks::open(&keyring, None).expect("a keyring"));
    let clock: SharedClock = Arc::new(SystemClock);
    let admin = Admin::new(db, keks, &clock, KeyPolicy::default(), Duration::from_secs(60)).expect("keys");
    admin.keys.open_only().await.expect("data keys");
    for _ in 0..DATA_KEYS {
        admin.rotate_data_key(Purpose::RequestMac).await.expect("a data key");
    }
    admin.db.close().await;
}
