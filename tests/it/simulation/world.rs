//! Time, and the gates at which everything waits until the schedule lets it go on: every statement and
//! transaction of the database (before it, and after it where it wrote), every call to the gateway (before
//! it arrives, and before its answer does), every sleep.
//!
//! A process is a runtime of one thread with a vault of its own on the shared database. Only one process
//! runs at a time, and only until everything in it waits: what happens is decided by the schedule alone.
//! A crash drops the runtime, and with it every future at the await that it is at.

use std::collections::{BTreeMap, HashSet};
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cardvault::base::clock::{Clock, Millis};
use cardvault::base::ids::{DekId, KekId};
use cardvault::crypto::kek::file::FileKek;
use cardvault::crypto::kek::{KekProvider, WrapError, WrapsKeys};
use cardvault::crypto::keyring::{DataKey, Purpose};
use cardvault::store::backend::{Passage, StoreError, Turn, Turnstile, Work};
use tokio::sync::{Notify, oneshot};

use super::random::Random;

/// A process, from its start to its crash.
pub type ProcessId = usize;

/// When every simulation begins: 2026-03-01T12:00:00Z.
pub const BEGIN: i64 = 1_772_366_400_000;

/// What waits at a gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A statement or transaction that is not begun.
    Before(Work),
    /// One that is done, and whose doer does not know it.
    After(Work),
    /// A call that has not arrived.
    Call(String),
    /// An answer that has not arrived.
    Answer(String),
}

impl What {
    pub fn is_database(&self) -> bool {
        matches!(self, Self::Before(_) | Self::After(_))
    }
}

/// How something goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Go {
    /// As it should.
    On,
    /// A database that cannot be reached.
    Fail,
    /// A call that is lost.
    Lost,
    /// A call that nobody has sent.
    NotSent,
    /// A call that nobody answers, and that arrives so many milliseconds later.
    Late(i64),
    /// `U`: too many requests.
    Busy,
    /// `U`: an unknown exception, before the call was carried out.
    Fault,
    /// `U`: an unknown exception, after it was carried out.
    FaultAfter,
    /// The task that waits ends here: its future is dropped, and the process lives on.
    Dropped,
    /// An answer that is signed by somebody else and says `F`.
    Forged,
    /// A signed answer about another payment or sum.
    OtherOne,
    /// A signed answer that is none.
    Garbage,
}

pub struct Parked {
    pub seq: u64,
    pub process: ProcessId,
    pub what: What,
    pub since: i64,
    go: oneshot::Sender<Go>,
}

struct Sleeper {
    seq: u64,
    process: ProcessId,
    until: i64,
    wake: oneshot::Sender<()>,
}

type Task = Option<tokio::task::Id>;

/// What all gates share.
pub struct Inner {
    /// Milliseconds of monotonic time since the beginning.
    pub now: i64,
    pub random: Random,
    /// Chances in a thousand that something stops at a database's gate.
    pub grain: u64,
    /// Chances in a thousand that a statement fails.
    pub failing: u64,
    /// Nothing stops at a gate, and nothing fails.
    pub calm: bool,
    /// Whether keys have changed while processes ran, which then unwrap them.
    pub new_keys: bool,
    /// How far each process's wall clock is off.
    pub skew: BTreeMap<ProcessId, i64>,
    /// Processes that cannot reach the database.
    pub away: HashSet<ProcessId>,
    pub parked: Vec<Parked>,
    sleepers: Vec<Sleeper>,
    seq: u64,
    busy: BTreeMap<ProcessId, usize>,
    /// How often a process's keys are in the database, where nobody else waits for them.
    looking: BTreeMap<ProcessId, usize>,
    in_transaction: HashSet<(ProcessId, Task)>,
    /// When each task was last let into the database.
    entered: BTreeMap<(ProcessId, String), u64>,
    pub log: Vec<String>,
}

pub struct World {
    inner: Mutex<Inner>,
    idle: Notify,
    origin: Instant,
    /// How often a KEK was used.
    unwrapped: AtomicU64,
}

impl World {
    pub fn new(seed: u64) -> Arc<Self> {
        let inner = Inner {
            now: 0,
            random: Random::of(seed),
            grain: 0,
            failing: 0,
            calm: true,
            new_keys: false,
            skew: BTreeMap::new(),
            away: HashSet::new(),
            parked: Vec::new(),
            sleepers: Vec::new(),
            seq: 0,
            busy: BTreeMap::new(),
            looking: BTreeMap::new(),
            in_transaction: HashSet::new(),
            entered: BTreeMap::new(),
            log: Vec::new(),
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
            idle: Notify::new(),
            origin: Instant::now(),
            unwrapped: AtomicU64::new(0),
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what happens.
    pub fn note(&self, line: impl Into<String>) {
        let mut inner = self.lock();
        let line = format!("{:>9} ms  {}", inner.now, line.into());
        inner.log.push(line);
    }

    /// The wall time of nobody in particular.
    pub fn wall(&self) -> i64 {
        BEGIN + self.lock().now
    }

    async fn park(&self, process: ProcessId, what: What) -> Go {
        let waiting = {
            let mut inner = self.lock();
            let (go, waiting) = oneshot::channel();
            inner.seq += 1;
            let (seq, since) = (inner.seq, inner.now);
            inner.parked.push(Parked { seq, process, what, since, go });
            waiting
        };
        // Nobody lets it go: the process has died, and this future with it.
        match waiting.await {
            // It unwinds without the words of a panic.
            Ok(Go::Dropped) => std::panic::resume_unwind(Box::new("dropped at a gate")),
            Ok(go) => go,
            Err(_) => std::future::pending().await,
        }
    }

    /// A call's gate.
    pub async fn call(&self, process: ProcessId, what: What) -> Go {
        if self.lock().calm {
            return Go::On;
        }
        self.park(process, what).await
    }

    /// Lets something go on; the caller then runs its process.
    pub fn release(&self, seq: u64, go: Go) -> Option<ProcessId> {
        let mut inner = self.lock();
        let place = inner.parked.iter().position(|parked| parked.seq == seq)?;
        let parked = inner.parked.remove(place);
        let line = format!("{:>9} ms  p{} {:?}: {go:?}", inner.now, parked.process, parked.what);
        inner.log.push(line);
        drop(inner);
        // A receiver that is gone was a future that was dropped.
        let _ = parked.go.send(go);
        Some(parked.process)
    }

    /// Wakes the sleeper that has waited longest past its time.
    pub fn wake_one(&self) -> Option<ProcessId> {
        let mut inner = self.lock();
        inner.sleepers.retain(|sleeper| !sleeper.wake.is_closed());
        let now = inner.now;
        let due = inner.sleepers.iter().enumerate().filter(|(_, sleeper)| sleeper.until <= now);
        let place = due.min_by_key(|(_, sleeper)| (sleeper.until, sleeper.seq)).map(|(place, _)| place)?;
        let sleeper = inner.sleepers.remove(place);
        drop(inner);
        let _ = sleeper.wake.send(());
        Some(sleeper.process)
    }

    /// When the next sleeper wakes.
    pub fn next_waking(&self) -> Option<i64> {
        let mut inner = self.lock();
        inner.sleepers.retain(|sleeper| !sleeper.wake.is_closed());
        inner.sleepers.iter().map(|sleeper| sleeper.until).min()
    }

    /// Forgets what a process was at.
    pub fn bury(&self, process: ProcessId) {
        let mut inner = self.lock();
        inner.parked.retain(|parked| parked.process != process);
        inner.sleepers.retain(|sleeper| sleeper.process != process);
        inner.busy.remove(&process);
        inner.in_transaction.retain(|(of, _)| *of != process);
        inner.away.remove(&process);
    }

    /// Returns when everything in a process waits at a gate or for another that does.
    pub async fn settled(&self, process: ProcessId) {
        let mut seen = None;
        loop {
            // Each turn lets every task that can run do so; a lock may be handed on in between.
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            let (busy, new_keys) = {
                let inner = self.lock();
                let of = |counts: &BTreeMap<ProcessId, usize>| counts.get(&process).copied().unwrap_or(0);
                (of(&inner.busy) + of(&inner.looking), inner.new_keys)
            };
            if busy > 0 {
                self.idle.notified().await;
                continue;
            }
            if !new_keys {
                return;
            }
            // Keys are unwrapped on the one thread that may block: whoever comes after them finds them done. Where
            // nobody has unwrapped one since the last time, nobody waits for one.
            tokio::task::spawn_blocking(|| ()).await.expect("no panic");
            let unwrapped = Some(self.unwrapped.load(SeqCst));
            if seen == unwrapped {
                return;
            }
            seen = unwrapped;
        }
    }

    /// When the current task was last let into the database.
    pub fn last_entry(&self, process: ProcessId) -> u64 {
        let task = format!("{:?}", tokio::task::try_id());
        self.lock().entered.get(&(process, task)).copied().unwrap_or(0)
    }

    /// As if the current task had just been let into the database.
    pub fn enter_as(&self, process: ProcessId) {
        let task = format!("{:?}", tokio::task::try_id());
        let mut inner = self.lock();
        inner.seq += 1;
        let seq = inner.seq;
        inner.entered.insert((process, task), seq);
    }

    /// A number that grows with everything that happens.
    pub fn tick(&self) -> u64 {
        let mut inner = self.lock();
        inner.seq += 1;
        inner.seq
    }
}

/// A process's KEK, whose uses are counted.
pub struct CountedKek {
    pub kek: FileKek,
    pub world: Arc<World>,
}

impl WrapsKeys for CountedKek {
    fn wrap_under(&self, kek: &KekId, key: &DataKey) -> Result<Vec<u8>, WrapError> {
        self.world.unwrapped.fetch_add(1, SeqCst);
        self.kek.wrap_under(kek, key)
    }

    fn unwrap(
        &self,
        id: &DekId,
        purpose: Purpose,
        kek: &KekId,
        wrapped: &[u8],
    ) -> Result<DataKey, WrapError> {
        self.world.unwrapped.fetch_add(1, SeqCst);
        self.kek.unwrap(id, purpose, kek, wrapped)
    }
}

impl KekProvider for CountedKek {
    fn kek_id(&self) -> KekId {
        self.kek.kek_id()
    }

    fn reload(&self) -> Result<(), WrapError> {
        self.world.unwrapped.fetch_add(1, SeqCst);
        Ok(())
    }
}

/// The way of a process's keys to the database: nothing is stopped there, but it is known that they are there.
pub struct Watched {
    pub world: Arc<World>,
    pub process: ProcessId,
}

impl Turnstile for Watched {
    fn enter(&self, _: Work) -> Turn<'_, Box<dyn Passage>> {
        Box::pin(async move {
            *self.world.lock().looking.entry(self.process).or_default() += 1;
            Ok(Box::new(Looking { world: self.world.clone(), process: self.process }) as Box<dyn Passage>)
        })
    }
}

struct Looking {
    world: Arc<World>,
    process: ProcessId,
}

impl Passage for Looking {
    fn leave(self: Box<Self>) -> Turn<'static, ()> {
        drop(self);
        Box::pin(async { Ok(()) })
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        if let Some(looking) = self.world.lock().looking.get_mut(&self.process) {
            *looking = looking.saturating_sub(1);
        }
        self.world.idle.notify_one();
    }
}

/// A process's way to the database.
pub struct Gate {
    pub world: Arc<World>,
    pub process: ProcessId,
}

impl Turnstile for Gate {
    fn enter(&self, work: Work) -> Turn<'_, Box<dyn Passage>> {
        Box::pin(async move {
            let task = (self.process, tokio::task::try_id());
            let stops = {
                let mut inner = self.world.lock();
                let inside = inner.in_transaction.contains(&task);
                let (grain, busy) = (inner.grain, inner.busy.get(&self.process).copied().unwrap_or(0));
                let drawn = !inner.calm && inner.random.chance(grain);
                !inside && (drawn || busy > 0)
            };
            let go = if stops { self.world.park(self.process, What::Before(work)).await } else { Go::On };
            let mut inner = self.world.lock();
            let failing = inner.failing;
            let fails = !inner.calm
                && (go == Go::Fail || inner.away.contains(&self.process) || inner.random.chance(failing));
            if fails {
                let line = format!("{:>9} ms  p{} {work:?} fails", inner.now, self.process);
                inner.log.push(line);
                return Err(away());
            }
            inner.seq += 1;
            let seq = inner.seq;
            inner.entered.insert((self.process, format!("{:?}", task.1)), seq);
            *inner.busy.entry(self.process).or_default() += 1;
            if work == Work::Transaction {
                inner.in_transaction.insert(task);
            }
            let (world, process) = (self.world.clone(), self.process);
            Ok(Box::new(Entered { world, process, task: task.1, work, over: false }) as Box<dyn Passage>)
        })
    }
}

struct Entered {
    world: Arc<World>,
    process: ProcessId,
    task: Task,
    work: Work,
    over: bool,
}

impl Entered {
    fn end(&mut self) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let mut inner = self.world.lock();
        if self.work == Work::Transaction {
            inner.in_transaction.remove(&(self.process, self.task));
        }
        if let Some(busy) = inner.busy.get_mut(&self.process) {
            *busy = busy.saturating_sub(1);
        }
        drop(inner);
        self.world.idle.notify_one();
    }
}

impl Passage for Entered {
    fn leave(mut self: Box<Self>) -> Turn<'static, ()> {
        Box::pin(async move {
            self.end();
            if self.work == Work::Read {
                return Ok(());
            }
            let stops = {
                let mut inner = self.world.lock();
                let grain = inner.grain;
                !inner.calm && inner.random.chance(grain)
            };
            let go = if stops { self.world.park(self.process, What::After(self.work)).await } else { Go::On };
            let mut inner = self.world.lock();
            let failing = inner.failing;
            if !inner.calm && (go == Go::Fail || inner.random.chance(failing)) {
                let line = format!(
                    "{:>9} ms  p{} {:?} is done and seems to fail",
                    inner.now, self.process, self.work
                );
                inner.log.push(line);
                return Err(away());
            }
            Ok(())
        })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.end();
    }
}

fn away() -> StoreError {
    StoreError::Unavailable(sqlx::Error::PoolTimedOut)
}

/// A process's clock.
pub struct ManualClock {
    pub world: Arc<World>,
    pub process: ProcessId,
}

impl Clock for ManualClock {
    fn now(&self) -> Millis {
        let inner = self.world.lock();
        Millis(BEGIN + inner.now + inner.skew.get(&self.process).copied().unwrap_or(0))
    }

    fn instant(&self) -> Instant {
        let now = self.world.lock().now;
        self.world.origin + Duration::from_millis(u64::try_from(now).expect("time goes on"))
    }

    fn sleep(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let waking = {
            let mut inner = self.world.lock();
            let (wake, waking) = oneshot::channel();
            let until = inner.now + i64::try_from(time.as_millis()).expect("a time").max(1);
            inner.seq += 1;
            let seq = inner.seq;
            inner.sleepers.push(Sleeper { seq, process: self.process, until, wake });
            waking
        };
        Box::pin(async move {
            if waking.await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}
