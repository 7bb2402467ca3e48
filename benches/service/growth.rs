//! What tokenising and reading cost as the table grows. It is filled in SQL, by rows as wide as the vault's
//! that hold random bytes: nobody opens them.

use std::time::{Duration, Instant};

use cardvault::base::clock::{Clock, SystemClock};

use super::baseline::Widths;
use super::load;
use super::vault::{Numbers, reading, tokenising};
use super::{Ground, Options, head, line, median, say};

/// Rows of one statement.
const CHUNK: u64 = 100_000;

/// Measures at each size, in the order in which they were given.
pub async fn measure(options: &Options, ground: &Ground) {
    let mut cards = Vec::new();
    for pan in Numbers::new().take(200) {
        cards.push(ground.card(&pan).await);
    }
    let widths = ground.widths().await;
    let mut have = 0;
    for &size in &options.growth {
        let begin = Instant::now();
        while have < size {
            let more = CHUNK.min(size - have);
            ground.execute(&fill(ground, widths, more)).await;
            have += more;
        }
        if ground.cluster.is_some() {
            ground.execute("VACUUM ANALYZE cards").await;
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

fn fill(ground: &Ground, widths: Widths, rows: u64) -> String {
    let columns = "INSERT INTO cards (card_id, merchant, buyer, fingerprint, brand, bin, last4, pan, details, \
         typed_at, version, created_at, updated_at)";
    // Of today: what is old is swept away meanwhile.
    let now = SystemClock.now().0;
    let rest = format!("{now}, 1, {now}, {now}");
    let Widths { pan, details } = widths;
    if ground.cluster.is_some() {
        let random = "sha256((random()::text || n)::bytea)";
        let wide = |bytes: usize| {
            let all = vec![random; bytes.div_ceil(32)].join(" || ");
            format!("substr({all}, 1, {bytes})")
        };
        format!(
            "{columns} SELECT 'card_' || upper(md5(random()::text || n)), 'acme', '', {random}, 'VISA', '411111', \
             '1111', {}, {}, {rest} FROM generate_series(1, {rows}) AS n",
            wide(pan),
            wide(details)
        )
    } else {
        format!(
            "{columns} WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows}) \
             SELECT 'card_' || hex(randomblob(16)), 'acme', '', randomblob(32), 'VISA', '411111', '1111', \
             randomblob({pan}), randomblob({details}), {rest} FROM numbers"
        )
    }
}
