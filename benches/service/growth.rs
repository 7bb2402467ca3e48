//! What tokenising and reading cost as the tables grow: cards, and with each its event and its audit row. They are
//! filled in SQL, by rows as wide as the vault's that hold random bytes: nobody opens them. Cards that are read
//! are stored between them, so that they lie as far apart as a caller's would.

use std::time::{Duration, Instant};

use cardvault::base::clock::{Clock, SystemClock};

use super::baseline::Widths;
use super::load;
use super::vault::{Numbers, reading, tokenising};
use super::{Ground, Options, head, line, median, say};

/// Rows of one statement. SQLite writes every page that a transaction has touched, and of indexes over random values
/// those are most; not more, since the vault waits for it.
const CHUNK: u64 = 10_000;
const CHUNK_OF_SQLITE: u64 = 100_000;
/// Rows after which the vault itself stores a card, to be read.
const REAL: u64 = 500;

/// Measures at each size, in the order in which they were given.
pub async fn measure(options: &Options, ground: &Ground) {
    let mut numbers = Numbers::new();
    let mut cards = Vec::new();
    store(ground, 20, &mut numbers, &mut cards).await;
    let chunk = if ground.cluster.is_some() { CHUNK } else { CHUNK_OF_SQLITE };
    let widths = ground.widths().await;
    let mut have = 0;
    for &size in &options.growth {
        let begin = Instant::now();
        while have < size {
            let more = chunk.min(size - have);
            store(ground, more.div_ceil(REAL), &mut numbers, &mut cards).await;
            for statement in fill(ground, widths, have, more) {
                ground.execute(&statement).await;
            }
            if ground.cluster.is_none() {
                ground.settle().await;
            }
            have += more;
        }
        if ground.cluster.is_some() {
            ground.execute("VACUUM ANALYZE").await;
        }
        head(&format!(
            "{}: {size} cards (filled in {:.0} s); tokenise, then read",
            ground.engine(),
            begin.elapsed().as_secs_f64()
        ));
        for &connections in &options.connections {
            let (mut writes, mut reads) = (Vec::new(), Vec::new());
            for _ in 0..options.rounds {
                ground.settle().await;
                let next = tokenising();
                let shape = options.shape(connections);
                writes.push(load::run(&ground.vault.target, shape, &ground.watched(), "card_", next).await);
                tokio::time::sleep(Duration::from_secs(1)).await;
                let next = reading(&cards);
                reads.push(load::run(&ground.vault.target, shape, &ground.watched(), "card_", next).await);
            }
            line(connections, &median(&writes), None);
            line(connections, &median(&reads), None);
        }
    }
    say("");
}

/// Stores cards as callers do.
async fn store(ground: &Ground, count: u64, numbers: &mut Numbers, cards: &mut Vec<String>) {
    for pan in numbers.take(usize::try_from(count).expect("few")) {
        cards.push(ground.card(&pan).await);
    }
}

/// The statements that add so many rows to each table that has `have` of them.
fn fill(ground: &Ground, widths: Widths, have: u64, rows: u64) -> [String; 3] {
    // Of today: what is old is swept away meanwhile.
    let now = SystemClock.now().0;
    let Widths { pan, details } = widths;
    let (random, name, wide): (&str, &str, &dyn Fn(usize) -> String) = if ground.cluster.is_some() {
        let wide = |bytes: usize| {
            let all = ["sha256((random()::text || n)::bytea)"].repeat(bytes.div_ceil(32)).join(" || ");
            format!("substr({all}, 1, {bytes})")
        };
        ("sha256((random()::text || n)::bytea)", "upper(md5(random()::text || n))", &{ wide })
    } else {
        ("randomblob(32)", "hex(randomblob(16))", &|bytes| format!("randomblob({bytes})"))
    };
    let from = if ground.cluster.is_some() {
        format!("FROM generate_series({have}, {have} + {rows} - 1) AS n")
    } else {
        format!("FROM numbers WHERE n < {have} + {rows}")
    };
    let with = if ground.cluster.is_some() {
        String::new()
    } else {
        let end = have + rows;
        format!(
            "WITH RECURSIVE numbers (n) AS (SELECT {have} UNION ALL SELECT n + 1 FROM numbers WHERE n < {end}) "
        )
    };
    let (pan, details) = (wide(pan), wide(details));
    [
        format!(
            "INSERT INTO cards (card_id, merchant, buyer, fingerprint, brand, bin, last4, pan, details, typed_at, \
             version, created_at, updated_at) {with}SELECT 'card_' || {name}, 'acme', '', {random}, 'VISA', '411111', \
             '1111', {pan}, {details}, {now}, 1, {now}, {now} {from}"
        ),
        // Of another merchant: the feed of this one goes on where it is.
        format!(
            "INSERT INTO events (event_id, merchant, position, kind, object_type, object_id, body, created_at) \
             {with}SELECT 'evt_' || {name}, 'filled', n + 1, 'card.stored', 'card', 'card_' || {name}, \
             '{{\"cardId\":\"card_' || {name} || '\",\"source\":\"PAN\"}}', {now} {from}"
        ),
        format!(
            "INSERT INTO audit (chain, seq, at, actor, merchant, action, object, outcome, origin, request_id, key_id, \
             mac) {with}SELECT 'boot_filled/1', n, {now}, 'client:checkout', 'acme', 'card.store', 'card_' || {name}, \
             'done', '127.0.0.1:50000 certificate 0102030405060708090a', 'req_' || {name}, 'dek_' || {name}, {random} {from}"
        ),
    ]
}
