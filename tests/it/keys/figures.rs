//! How fast rotation is. Not run with the others; nothing is asserted about time:
//! `cargo test --release --test it figures -- --ignored --nocapture --test-threads 1`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cardvault::base::card::Pan;
use cardvault::base::clock::{SharedClock, SystemClock};
use cardvault::base::ids::{CardId, Merchant};
use cardvault::base::secret::SecretBuf;
use cardvault::crypto::aad::{Field, Place};
use cardvault::crypto::envelope;
use cardvault::crypto::kek::Keks;
use cardvault::crypto::keyring::Purpose;
use cardvault::ops::keys::KeyPolicy;
use cardvault::ops::rotation::Admin;
use cardvault::ops::rotation::kek::Target;
use cardvault::ops::rotation::reencrypt::Pace;
use cardvault::store::backend::{Db, Options};
use sqlx::{Connection, PgConnection, SqliteConnection};

use crate::support::vault::{Caller, TestVault, fresh_pan};
use crate::support::{Database, Engine, say};

const CARDS: usize = 100_000;
const DATA_KEYS: usize = 1_000;

const INSERT: &str = "INSERT INTO cards (card_id, merchant, buyer, fingerprint, brand, bin, last4, pan, details, \
     typed_at, version, created_at, updated_at) VALUES ($1, 'acme', '', $2, 'VISA', '411111', '1111', $3, $4, 1, 1, 1, 1)";

both_engines! {
    #[ignore = "takes minutes; for figures only"]
    async fn figures_of_rotation(db: Database) {
        let mut vault = TestVault::start(&db).await;
        vault.stop().await;
        let options = Options { url: db.url.clone(), password_file: None };
        let store = Db::open(&options).await.unwrap();
        let keks = Arc::new(Keks::open(&vault.config.keys.keyring, None).unwrap());
        let clock: SharedClock = Arc::new(SystemClock);
        let admin = Admin::new(store, keks, &clock, KeyPolicy::default(), Duration::from_secs(60)).unwrap();
        admin.keys.open_only().await.unwrap();
        let dek = admin.keys.active(Purpose::Card).unwrap_or_else(|error| panic!("{error}"));
        let merchant = Merchant::parse("acme").unwrap();
        let details = br#"{"expiryMonth":"12","expiryYear":"29","firstName":"Tom","lastName":"Jay"}"#;
        let mut rows = Vec::with_capacity(CARDS);
        for _ in 0..CARDS {
            let id = CardId::make().unwrap();
            let place = |field| Place { merchant: &merchant, record: id.as_str(), field };
            let pan = envelope::seal_pan(&dek, &place(Field::Pan), &Pan::parse(&fresh_pan()).unwrap()).unwrap();
            let text = SecretBuf::from_vec(details.to_vec());
            let details = envelope::seal(&dek, &place(Field::Details), &text).unwrap();
            let fingerprint: [u8; 32] = cardvault::base::entropy::array().unwrap();
            rows.push((id.to_string(), fingerprint.to_vec(), pan.as_bytes().to_vec(), details.as_bytes().to_vec()));
        }
        macro_rules! fill {
            ($connection:ty) => {{
                let mut connection = <$connection>::connect(&db.url).await.unwrap();
                let mut tx = connection.begin().await.unwrap();
                for (id, fingerprint, pan, details) in &rows {
                    let query = sqlx::query(INSERT).bind(id).bind(fingerprint).bind(pan).bind(details);
                    query.execute(&mut *tx).await.unwrap();
                }
                tx.commit().await.unwrap();
            }};
        }
        match db.engine {
            Engine::Sqlite => fill!(SqliteConnection),
            Engine::Postgres => fill!(PgConnection),
        }
        for (name, pace) in [
            ("full speed, batches of 1000", Pace { batch: 1_000, pause: Duration::ZERO }),
            ("full speed, batches of 200", Pace { batch: 200, pause: Duration::ZERO }),
            ("as shipped", Pace::default()),
        ] {
            admin.rotate_data_key(Purpose::Card).await.unwrap();
            let done = admin.reencrypt(pace, &mut |_| {}).await.unwrap();
            let rate = CARDS as f64 / done.took.as_secs_f64();
            say(&format!("{:?}: re-encryption {name}: {rate:.0} rows/s", db.engine));
            if db.engine == Engine::Postgres {
                say(&format!("{:?}: the same UPDATE in plain SQL: {:.0} rows/s", db.engine, plain(&db, &rows, pace).await));
                // The plain update has put old ciphertext in: back to what the vault knows.
                admin.reencrypt(Pace { batch: 1_000, pause: Duration::ZERO }, &mut |_| {}).await.unwrap();
            }
        }
        vault.restart().await;
        let caller = vault.client("checkout");
        let stop = Arc::new(AtomicBool::new(false));
        let alone = load(&caller, &stop);
        tokio::time::sleep(Duration::from_secs(8)).await;
        stop.store(true, Ordering::Relaxed);
        say(&format!("{:?}: tokenise alone: {}", db.engine, alone.await.unwrap()));
        admin.rotate_data_key(Purpose::Card).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let beside = load(&caller, &stop);
        let done = admin.reencrypt(Pace::default(), &mut |_| {}).await.unwrap();
        stop.store(true, Ordering::Relaxed);
        let rate = done.moved as f64 / done.took.as_secs_f64();
        say(&format!("{:?}: beside re-encryption as shipped ({rate:.0} rows/s): {}", db.engine, beside.await.unwrap()));
        vault.stop().await;
        for _ in 0..DATA_KEYS {
            admin.rotate_data_key(Purpose::RequestMac).await.unwrap();
        }
        let begun = admin.begin_kek(Target::File, &mut |_, _| Ok(Vec::new())).await.unwrap();
        let begin = Instant::now();
        let done = admin.finish_kek(begun).await.unwrap();
        say(&format!(
            "{:?}: {} data keys wrapped anew in {:.1} ms, {:.1} ms with the canary",
            db.engine, done.rewrapped, done.took.as_secs_f64() * 1e3, begin.elapsed().as_secs_f64() * 1e3
        ));
        admin.db.close().await;
        vault.finish(&[]).await;
    }
}

/// Four callers that store new cards, each again 10 ms after its answer; what they saw.
fn load(caller: &Caller, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<String> {
    let (caller, stop) = (caller.clone(), Arc::clone(stop));
    tokio::spawn(async move {
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (caller, stop) = (caller.clone(), Arc::clone(&stop));
            workers.spawn(async move {
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    caller.card(&fresh_pan()).await;
                    times.push(begin.elapsed());
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                times
            });
        }
        let mut times: Vec<Duration> = workers.join_all().await.into_iter().flatten().collect();
        times.sort_unstable();
        let at = |part: usize| times[(times.len() - 1) * part / 1000].as_secs_f64() * 1e3;
        format!(
            "{} cards, p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms",
            times.len(),
            at(500),
            at(990),
            at(999)
        )
    })
}

/// Reference, fingerprint, sealed number, sealed details.
type Stored = (String, Vec<u8>, Vec<u8>, Vec<u8>);

/// The same batches without any cryptography: what the database alone can do.
async fn plain(db: &Database, rows: &[Stored], pace: Pace) -> f64 {
    const UPDATE: &str = "UPDATE cards SET pan = d.pan, details = d.details \
         FROM unnest($1::text[], $2::bytea[], $3::bytea[]) AS d(id, pan, details) WHERE card_id = d.id";
    let mut connection = PgConnection::connect(&db.url).await.unwrap();
    let mut sorted: Vec<&Stored> = rows.iter().collect();
    sorted.sort();
    let begin = Instant::now();
    for batch in sorted.chunks(pace.batch as usize) {
        let ids: Vec<&str> = batch.iter().map(|row| row.0.as_str()).collect();
        let pans: Vec<&[u8]> = batch.iter().map(|row| row.2.as_slice()).collect();
        let details: Vec<&[u8]> = batch.iter().map(|row| row.3.as_slice()).collect();
        let query = sqlx::query(UPDATE).bind(ids).bind(pans).bind(details);
        query.execute(&mut connection).await.unwrap();
        tokio::time::sleep(pace.pause).await;
    }
    rows.len() as f64 / begin.elapsed().as_secs_f64()
}
