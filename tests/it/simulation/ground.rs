//! What many simulations stand on: a database, a keyring, and processes that are warm.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use cardvault::base::clock::{Millis, SharedClock};
use cardvault::base::ids::{ClientName, GatewayAccount, Merchant};
use cardvault::crypto::kek::{KekProvider, file};
use cardvault::gateway::Gateway;
use cardvault::http::notify::{self, Notify};
use cardvault::http::pace::Pace;
use cardvault::http::peer::Peer;
use cardvault::http::router::{Api, router};
use cardvault::http::sparing::Sparing;
use cardvault::model::access::{Client, ClientPace, SanName, Scope};
use cardvault::ops::keys::DataKeys;
use cardvault::ops::{Policy, Vault};
use cardvault::store::backend::{Db, Options};
use cardvault::store::migrate;
use http_body_util::BodyExt;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;
use tower::ServiceExt;

use super::gateway::{Model, NOTIFY_PATH, Wire};
use super::world::{BEGIN, CountedKek, Gate, ManualClock, ProcessId, Watched, World};
use crate::support::vault::SAMPLE_PAN;
use crate::support::{leak, postgres};

const SAN: &str = "spiffe://simulation/all";

/// A runtime with its connections, before or after it is a process.
pub struct Warm {
    runtime: Runtime,
    db: Db,
}

/// What is kept from one simulation to the next.
pub struct Ground {
    url: String,
    kek: PathBuf,
    warm: Vec<Warm>,
    /// Looks into the database past all gates.
    pub observer: Warm,
    folder: TempDir,
}

/// Every card number that a simulation types. (A CVV of three digits would be found in its amounts.)
const PANS: [&str; 4] = [SAMPLE_PAN, "4111111111111111", "4242424242424242", "5555555555554444"];

/// What thousands of schedules log is not captured; what they leave in their database's files is searched.
impl Drop for Ground {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            for folder in [Some(self.folder.path().to_owned()), self.files_of_postgres()].iter().flatten() {
                leak::scan_dir(folder, &PANS);
            }
        }
    }
}

fn runtime() -> Runtime {
    // One thread for what blocks, so that it is done in its order.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.max_blocking_threads(1).enable_all().build().expect("a runtime")
}

impl Ground {
    /// A ground on a fresh SQLite database, in memory where the machine has a file system for it.
    pub fn sqlite() -> Self {
        let folder = Self::folder();
        let url = format!("sqlite://{}", folder.path().join("simulation.db").display());
        Self::at(url, folder)
    }

    /// A ground on a database that is there and empty.
    pub fn postgres(url: String) -> Self {
        Self::at(url, Self::folder())
    }

    fn folder() -> TempDir {
        let memory = std::path::Path::new("/dev/shm");
        let mut builder = tempfile::Builder::new();
        builder.prefix("cardvault-test-simulation-");
        builder.tempdir_in(memory).or_else(|_| builder.tempdir()).expect("a folder")
    }

    fn at(url: String, folder: TempDir) -> Self {
        let kek = folder.path().join("keyring.toml");
        let text = file::generate(Millis(BEGIN)).expect("entropy");
        file::create_new(&kek, &text).expect("a keyring");
        let observer = Self::open(&url);
        observer.runtime.block_on(migrate::run(&observer.db)).expect("a schema");
        Self { url, kek, warm: Vec::new(), observer, folder }
    }

    /// Where PostgreSQL has this database and no other, all of it written out.
    fn files_of_postgres(&self) -> Option<PathBuf> {
        const OID: &str = "SELECT oid::bigint AS oid FROM pg_database WHERE datname = current_database()";
        if self.observer.db.is_sqlite() {
            return None;
        }
        self.observer.runtime.block_on(async {
            let row = self.observer.db.find(OID, &[]).await.expect("a query").expect("a row");
            postgres::shared_checkpoint().await;
            let cluster = postgres::shared_files().await.expect("a cluster");
            let files = cluster.join(format!("data/base/{}", row.int("oid").expect("a number")));
            assert!(files.join("PG_VERSION").exists(), "{} is no database", files.display());
            Some(files)
        })
    }

    fn open(url: &str) -> Warm {
        let runtime = runtime();
        let options = Options { url: url.to_owned(), password_file: None };
        let db = runtime.block_on(Db::open(&options)).expect("a database");
        Warm { runtime, db }
    }

    /// Starts a process.
    pub fn start(
        &mut self,
        id: ProcessId,
        world: &Arc<World>,
        model: &Arc<Model>,
        merchant: &Merchant,
    ) -> Process {
        let warm = self.warm.pop().unwrap_or_else(|| Self::open(&self.url));
        let clock: SharedClock = Arc::new(ManualClock { world: world.clone(), process: id });
        let kek = file::load(&self.kek).expect("a keyring");
        let kek: Arc<dyn KekProvider> = Arc::new(CountedKek { kek, world: world.clone() });
        let account = GatewayAccount::parse(&model.account).expect("an account");
        let wire: Arc<dyn Gateway> = Arc::new(Wire::new(model.clone(), id));
        let policy =
            Policy { notify_url: Some(format!("https://vault.example{NOTIFY_PATH}")), ..Policy::default() };
        let vault = warm.runtime.block_on(async {
            let db = warm.db.clone().through(Arc::new(Watched { world: world.clone(), process: id }));
            let life = cardvault::ops::keys::KeyPolicy::default();
            let keys = DataKeys::start(db, kek, &clock, life).await.expect("data keys");
            let db = warm.db.clone().through(Arc::new(Gate { world: world.clone(), process: id }));
            let accounts = HashMap::from([(account.clone(), wire)]);
            Arc::new(Vault::new(db, keys, accounts, clock, policy).expect("a vault"))
        });
        let client = Client {
            name: ClientName::parse("all").expect("a name"),
            san: SanName::Uri(SAN.to_owned()),
            spki_sha256: None,
            merchant: merchant.clone(),
            account: account.clone(),
            scopes: Scope::ALL.into_iter().collect(),
            pace: ClientPace { per_second: u32::MAX, at_once: u32::MAX, unknown_ids_per_minute: u32::MAX },
        };
        let pace = Pace::new(vault.clock.instant(), vault.metrics.pace());
        let api = router(Api { vault: vault.clone(), clients: vec![client].into(), pace: Arc::new(pace) });
        let path: Arc<str> = NOTIFY_PATH.into();
        let notify = notify::router(Notify {
            vault: vault.clone(),
            signed_path: path.clone(),
            served_path: path,
            forged: Arc::new(Sparing::new(1)),
        });
        Process { id, vault, account, api, notify, world: world.clone(), warm }
    }

    /// Takes back a process in which nothing runs any more.
    pub fn keep(&mut self, process: Process) {
        let Process { warm, vault, .. } = process;
        drop(vault);
        self.warm.push(warm);
    }

    /// Where its database is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its keyring file.
    pub fn keyring(&self) -> &Path {
        &self.kek
    }

    /// Runs a read past all gates.
    pub fn look<T>(&self, read: impl AsyncFnOnce(&Db) -> T) -> T {
        self.observer.runtime.block_on(read(&self.observer.db))
    }
}

/// An answer of the vault.
#[derive(Debug, Clone)]
pub struct Told {
    pub call: u64,
    pub status: u16,
    pub text: String,
}

pub type Answers = Arc<Mutex<Vec<Told>>>;

/// A running process.
pub struct Process {
    pub id: ProcessId,
    pub vault: Arc<Vault>,
    pub account: GatewayAccount,
    api: Router,
    notify: Router,
    world: Arc<World>,
    warm: Warm,
}

impl Process {
    /// Runs until everything waits.
    pub fn run(&self) {
        self.warm.runtime.block_on(self.world.settled(self.id));
    }

    /// Calls the API as a caller with every right; the answer is put among `answers` when it comes.
    pub fn call(&self, number: u64, method: &str, path: &str, body: &str, answers: &Answers) -> AbortHandle {
        let peer = Arc::new(Peer {
            uri_sans: vec![SAN.to_owned()],
            dns_sans: Vec::new(),
            spki_sha256: [0; 32],
            not_before: Millis(0),
            not_after: Millis(i64::MAX),
            serial: "01".to_owned(),
            remote: SocketAddr::from(([192, 0, 2, 1], 4711)),
        });
        let mut request = Request::builder().method(method).uri(path);
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let mut request = request.body(Body::from(body.to_owned())).expect("a request");
        request.extensions_mut().insert(peer);
        self.spawn(number, self.api.clone(), request, answers)
    }

    /// Delivers a notification.
    pub fn notify(&self, number: u64, body: &str, time: &str, signature: &str, answers: &Answers) {
        let request = Request::builder()
            .method("POST")
            .uri(NOTIFY_PATH)
            .header("client-id", self.account.as_str())
            .header("request-time", time)
            .header("signature", signature)
            .body(Body::from(body.to_owned()))
            .expect("a request");
        self.spawn(number, self.notify.clone(), request, answers);
    }

    fn spawn(&self, call: u64, router: Router, request: Request<Body>, answers: &Answers) -> AbortHandle {
        let answers = answers.clone();
        let task = self.warm.runtime.spawn(async move {
            let Ok(response) = router.oneshot(request).await;
            let status = response.status().as_u16();
            let bytes = response.into_body().collect().await.expect("a body").to_bytes();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.push(Told { call, status, text });
        });
        task.abort_handle()
    }

    /// Begins something that nobody waits for.
    pub fn begin(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.warm.runtime.spawn(work);
    }

    /// Does something to its end, where nothing stops.
    pub fn now<T>(&self, work: impl Future<Output = T>) -> T {
        self.warm.runtime.block_on(work)
    }

    /// Drops the runtime, and with it everything that ran.
    pub fn crash(self) {
        let Self { id, world, warm, vault, api, notify, account: _ } = self;
        drop((api, notify));
        let Warm { runtime, db } = warm;
        drop(runtime);
        drop((vault, db));
        world.bury(id);
    }
}

/// What a simulation must not leave in a file is found when its ground goes.
#[test]
fn a_number_that_is_left_is_found() {
    let ground = leak::unheard(Ground::sqlite);
    let planted = "CREATE TABLE planted AS SELECT '41111111' || '11111111' AS pan";
    leak::unheard(|| ground.look(async |db| db.execute(planted, &[]).await)).expect("a table");
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(ground))).is_err());
}
