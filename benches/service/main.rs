//! How fast the whole service is: the real program, loaded over mutual TLS, beside what its database does
//! alone. `cargo bench --bench service -- --help` tells what can be chosen; docs/performance.md has figures.
//!
//! Figures of one machine say little elsewhere, and this machine is seldom quiet. So each is taken in turns
//! with what it is compared with, and the ratio of the medians is what counts.

#[path = "../../tests/it/support/postgres.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod postgres;

mod baseline;
mod cpu;
mod growth;
mod import;
mod load;
mod rotation;
mod vault;
mod versus;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqliteConnection};
use tempfile::TempDir;

use baseline::{Echo, Widths};
use cpu::Watched;
use load::{Figures, Shape, median, middle};
use postgres::{Binaries, Cluster, Durability};
use vault::{Numbers, PayBody, Vault, paying, read, reading, tokenise, tokenising};

/// Measures the service.
#[derive(Parser, Clone)]
struct Options {
    /// How long each run is measured, after a second of warming up.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Keep-alive connections, one measurement for each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    connections: Vec<usize>,
    /// How often each measurement and its comparison are taken in turns.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Which databases.
    #[arg(long, value_delimiter = ',', default_values_t = ["postgres".to_owned(), "sqlite".to_owned()])]
    engines: Vec<String>,
    /// Which work.
    #[arg(long, value_delimiter = ',', default_values_t = ["tokenise".to_owned(), "read".to_owned(), "pay".to_owned()])]
    work: Vec<String>,
    /// Instead of all that: what tokenising and reading cost where so many cards are stored. Rising sizes,
    /// such as 10000,1000000; ten million take some 16 GB of disk and half an hour to fill.
    #[arg(long, value_delimiter = ',')]
    growth: Vec<u64>,
    /// Instead of all that: how fast keys rotate where so many cards are stored.
    #[arg(long, value_name = "CARDS", num_args = 0..=1, default_missing_value = "100000")]
    rotation: Option<u64>,
    /// Instead of all that: how fast so many cards are imported, and in how much memory.
    #[arg(long, value_name = "LINES", num_args = 0..=1, default_missing_value = "100000")]
    import: Option<u64>,
    /// Another build of the program, to compare with.
    #[arg(long, default_value = vault::PROGRAM)]
    program: PathBuf,
    /// Instead of all that: the chosen program against this other build of it, a second each in turns.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Cargo says this.
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    echo: Option<usize>,
    #[arg(long, hide = true)]
    echo_dir: Option<PathBuf>,
}

impl Options {
    fn shape(&self, connections: usize) -> Shape {
        Shape {
            connections,
            warm: Duration::from_secs(1),
            measured: Duration::from_secs(self.seconds),
            pause: Duration::ZERO,
        }
    }

    fn does(&self, work: &str) -> bool {
        self.work.iter().any(|one| one == work)
    }
}

/// A line that the reader sees at once.
fn say(line: &str) {
    println!("{line}");
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let options = Options::parse();
    if let (Some(bytes), Some(dir)) = (options.echo, &options.echo_dir) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let (dir, runtime) = (dir.clone(), runtime.expect("a runtime"));
        let done = std::thread::spawn(move || runtime.block_on(baseline::serve_echo(&dir, bytes))).join();
        return done.expect("the echo");
    }
    say(&format!(
        "{} rounds of {} s; {} cores; medians",
        options.rounds,
        options.against.as_ref().map_or(options.seconds, |_| versus::TURN.as_secs()),
        std::thread::available_parallelism().map_or(0, usize::from)
    ));
    for engine in options.engines.clone() {
        if let Some(other) = &options.against {
            versus::measure(&options, &engine, other).await;
            continue;
        }
        let Some(mut ground) = Ground::of(&engine, &options.program).await else { continue };
        if let Some(cards) = options.rotation {
            rotation::measure(&options, &mut ground, cards).await;
        } else if let Some(lines) = options.import {
            import::measure(&ground, lines).await;
        } else if options.growth.is_empty() {
            measure(&options, &ground).await;
        } else {
            growth::measure(&options, &ground).await;
        }
    }
}

/// A database, and the vault on it.
pub struct Ground {
    vault: Vault,
    url: String,
    cluster: Option<(Cluster, PathBuf)>,
    folder: Option<TempDir>,
}

impl Ground {
    async fn of(engine: &str, program: &Path) -> Option<Self> {
        match engine {
            "postgres" => Self::postgres(program).await,
            "sqlite" => Some(Self::sqlite(program)),
            other => panic!("{other}: neither postgres nor sqlite"),
        }
    }

    /// PostgreSQL as in production: fsync, and no log of statements.
    async fn postgres(program: &Path) -> Option<Self> {
        let Some(binaries) = Binaries::find() else {
            say("no PostgreSQL found: its part is left out");
            return None;
        };
        let mut cluster = Cluster::start(&binaries, Durability::Full).await;
        for setting in ["shared_buffers = '512MB'", "max_wal_size = '4GB'", "checkpoint_timeout = '30min'"] {
            cluster.as_superuser(&format!("ALTER SYSTEM SET {setting}")).await;
        }
        cluster.as_superuser("CHECKPOINT").await;
        cluster.crash();
        cluster.launch().await;
        let url = cluster.fresh_database().await;
        let name = url.rsplit('/').next().unwrap_or_default();
        for setting in ["log_statement = 'none'", "log_min_messages = 'warning'"] {
            cluster.as_superuser(&format!("ALTER DATABASE {name} SET {setting}")).await;
        }
        let vault = Vault::start(program, &url);
        let ground = Self { vault, url, cluster: Some((cluster, binaries.program("pgbench"))), folder: None };
        ground.execute("CREATE TABLE one_row (LIKE cards INCLUDING ALL)").await;
        Some(ground)
    }

    fn sqlite(program: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("cardvault-bench-").tempdir().expect("a folder");
        let url = format!("sqlite://{}", folder.path().join("cardvault.db").display());
        Self { vault: Vault::start(program, &url), url, cluster: None, folder: Some(folder) }
    }

    fn engine(&self) -> &'static str {
        if self.cluster.is_some() { "PostgreSQL" } else { "SQLite" }
    }

    /// The vault, and PostgreSQL where it is one.
    fn watched(&self) -> Vec<Watched> {
        let cluster = self.cluster.as_ref().map(|(cluster, _)| Watched::cluster(&cluster.folder));
        std::iter::once(self.vault.cpu).chain(cluster).collect()
    }

    /// Runs one statement beside the vault.
    async fn execute(&self, statement: &str) {
        let statement = AssertSqlSafe(statement.to_owned());
        if self.cluster.is_some() {
            let mut connection = PgConnection::connect(&self.url).await.expect("a connection");
            sqlx::query(statement).execute(&mut connection).await.expect("a statement");
            connection.close().await.expect("close");
        } else {
            let mut connection = SqliteConnection::connect(&self.url).await.expect("a connection");
            // What a large transaction touches is written once.
            sqlx::query("PRAGMA cache_size = -2000000").execute(&mut connection).await.expect("a cache");
            sqlx::query(statement).execute(&mut connection).await.expect("a statement");
            connection.close().await.expect("close");
        }
    }

    /// Makes every run begin alike: the engine owes its files nothing.
    async fn settle(&self) {
        match &self.cluster {
            Some((cluster, _)) => cluster.as_superuser("CHECKPOINT").await,
            // A log of gigabytes, as it is left by filling, would make each page take long to find.
            None => self.execute("PRAGMA wal_checkpoint(TRUNCATE)").await,
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    /// How wide a card's sealed parts are; there must be one.
    async fn widths(&self) -> Widths {
        const SQL: &str = "SELECT CAST(MAX(LENGTH(pan)) AS BIGINT) AS pan, CAST(MAX(LENGTH(details)) AS BIGINT) AS details FROM cards";
        let (pan, details): (i64, i64) = if self.cluster.is_some() {
            let mut connection = PgConnection::connect(&self.url).await.expect("a connection");
            let row = sqlx::query(SQL).fetch_one(&mut connection).await.expect("a row");
            (row.get("pan"), row.get("details"))
        } else {
            let mut connection = SqliteConnection::connect(&self.url).await.expect("a connection");
            let row = sqlx::query(SQL).fetch_one(&mut connection).await.expect("a row");
            (row.get("pan"), row.get("details"))
        };
        Widths {
            pan: usize::try_from(pan).expect("a length"),
            details: usize::try_from(details).expect("a length"),
        }
    }

    /// Stores a card; its reference.
    async fn card(&self, pan: &str) -> String {
        let mut connection = self.vault.target.connect().await.expect("a connection");
        let (status, text) = connection.ask(&tokenise(pan)).await.expect("an answer");
        let text = String::from_utf8_lossy(text);
        assert!(matches!(status, 200 | 201), "{text}");
        let begin = text.find("card_").expect("a reference");
        text[begin..begin + 37].to_owned()
    }
}

fn head(what: &str) {
    say(&format!(
        "\n{what}\n{:>6} {:>10} {:>10} {:>7} {:>9} {:>9} {:>9}  {}",
        "conns",
        "vault/s",
        "other/s",
        "ratio",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "CPU ms a request: vault, database"
    ));
}

fn line(connections: usize, figures: &Figures, other: Option<f64>) {
    let cpu: Vec<String> = figures.cpu.iter().map(|one| format!("{one:.3}")).collect();
    let (rate, ratio) = other.map_or((String::new(), String::new()), |other| {
        (format!("{other:.0}"), format!("{:.2}", figures.rate / other))
    });
    let sum: f64 = figures.cpu.iter().sum();
    say(&format!(
        "{connections:>6} {:>10.0} {rate:>10} {ratio:>7} {:>9.2} {:>9.2} {:>9.2}  {} = {sum:.3}",
        figures.rate,
        figures.p50,
        figures.p99,
        figures.p999,
        cpu.join(" + ")
    ));
}

async fn measure(options: &Options, ground: &Ground) {
    if options.does("tokenise") {
        measure_tokenise(options, ground).await;
    }
    if options.does("read") {
        measure_read(options, ground).await;
    }
    if options.does("pay") {
        measure_pay(options, ground).await;
    }
}

async fn measure_tokenise(options: &Options, ground: &Ground) {
    let mut numbers = Numbers::new();
    ground.card(&numbers.next().expect("a number")).await;
    let widths = ground.widths().await;
    let time = Duration::from_secs(options.seconds);
    let other =
        if ground.cluster.is_some() { "pgbench's one-row INSERT" } else { "one INSERT a transaction" };
    head(&format!("{}: tokenise, against {other}", ground.engine()));
    for &connections in &options.connections {
        let (mut rates, mut runs, mut pgbench_cpu) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            if let Some((cluster, pgbench)) = &ground.cluster {
                ground.execute("TRUNCATE one_row").await;
                ground.settle().await;
                let cpu = Watched::cluster(&cluster.folder);
                let alone = baseline::pgbench(pgbench, &ground.url, widths, connections, time, cpu);
                rates.push(alone.rate);
                pgbench_cpu.extend(alone.cpu);
                ground.execute("TRUNCATE cards, events").await;
            } else if let Some(folder) = &ground.folder {
                rates.push(
                    baseline::sqlite_inserts(&folder.path().join("alone.db"), &ground.url, widths, time)
                        .await,
                );
            }
            ground.settle().await;
            let shape = options.shape(connections);
            let watched = ground.watched();
            runs.push(load::run(&ground.vault.target, shape, &watched, "card_", tokenising()).await);
        }
        line(connections, &median(&runs), Some(middle(rates)));
        if !pgbench_cpu.is_empty() {
            say(&format!("       the INSERT alone costs the database {:.3} ms of CPU", middle(pgbench_cpu)));
        }
    }
}

async fn measure_read(options: &Options, ground: &Ground) {
    let mut cards = Vec::new();
    for pan in Numbers::new().take(200) {
        cards.push(ground.card(&pan).await);
    }
    let mut connection = ground.vault.target.connect().await.expect("a connection");
    let (_, text) = connection.ask(&read(&cards[0])).await.expect("an answer");
    let echo = Echo::start(ground.vault.dir.path(), text.len());
    let target = load::Target::new(ground.vault.dir.path(), "checkout", echo.address);
    head(&format!("{}: read a masked card, against a TLS echo", ground.engine()));
    for &connections in &options.connections {
        let (mut alone, mut runs) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            for (target, watched, wanted, runs) in [
                (&target, vec![echo.cpu()], "", &mut alone),
                (&ground.vault.target, ground.watched(), "card_", &mut runs),
            ] {
                ground.settle().await;
                let next = reading(&cards);
                runs.push(load::run(target, options.shape(connections), &watched, wanted, next).await);
            }
        }
        line(connections, &median(&runs), Some(median(&alone).rate));
    }
}

async fn measure_pay(options: &Options, ground: &Ground) {
    let pan = Numbers::new().next().expect("a number");
    let card = ground.card(&pan).await;
    let mut id = 0_u64;
    head(&format!("{}: pay by reference, against the gateway asked directly", ground.engine()));
    for &connections in &options.connections {
        let (mut alone, mut runs) = (Vec::new(), Vec::new());
        for round in 0..options.rounds {
            ground.settle().await;
            let with_number = PayBody::with_number();
            // More than the sandbox can answer in the time: it signs, at 0.6 ms each.
            let many = (options.seconds + 1) * 1_800 * if connections == 1 { 1 } else { 2 };
            let bodies =
                (0..many).map(|n| with_number.filled(&format!("DIRECT_{connections}_{round}_{n}"), &pan));
            let mut ready = baseline::signed(ground.vault.dir.path(), bodies).into_iter();
            let shape = options.shape(connections);
            let direct =
                load::run(&ground.vault.gateway, shape, &[], "\"SUCCESS\"", move || ready.next()).await;
            alone.push(direct);
            ground.settle().await;
            let next = paying(&card, id);
            id += 1_000_000;
            runs.push(load::run(&ground.vault.target, shape, &ground.watched(), "AUTHORIZED", next).await);
        }
        let (direct, pay) = (median(&alone), median(&runs));
        line(connections, &pay, Some(direct.rate));
        say(&format!(
            "       added at the median: {:.2} ms (the gateway alone: p50 {:.2} ms)",
            pay.p50 - direct.p50,
            direct.p50
        ));
    }
}
