//! Custodians bring the shares of a split KEK, one by one, each at its own time and terminal. A share waits
//! 10 minutes for the others and is wiped then; a wrong one is named and not kept. Who brought what, and
//! when, is remembered until it stands in the audit trail: while the vault is sealed, that cannot be written.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::base::clock::{Millis, SharedClock};
use crate::base::ids::KekId;
use crate::base::secret::SecretText;
use crate::crypto::kek::Keks;
use crate::crypto::kek::shares::{Share, ShareError, combine};
use crate::model::audit::{Actor, Entry};
use crate::store::backend::Db;

use super::audit::{Audit, origin_of};
use super::error::OpError;
use super::keys::DataKeys;

/// How long a share waits for the others.
pub const WAIT: Duration = Duration::from_secs(10 * 60);
/// How often shares that have waited long enough are wiped.
pub const SWEEP: Duration = Duration::from_secs(5);
/// Most shares that wait at once.
const SHARES: usize = 255;
/// Most submissions that are remembered; of the oldest ones beyond, only the number is.
const REMEMBERED: usize = 1_000;
/// Most submissions that are recorded in one transaction.
const BATCH: usize = 250;

/// Who brought a share: the user and process at the other end of the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who {
    /// The user's number.
    pub uid: u32,
    /// The process, where the system tells it.
    pub pid: Option<i32>,
}

/// A share that was brought, taken or not.
#[derive(Debug, Clone)]
pub struct Submission {
    /// When.
    pub at: Millis,
    /// By whom.
    pub who: Who,
    /// Which share, where it could be read.
    pub share: Option<u8>,
    /// Of which KEK, where that is known.
    pub kek: Option<KekId>,
    /// What came of it.
    pub outcome: Result<(), ShareError>,
}

/// How a KEK stands after a share was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The KEK.
    pub kek: KekId,
    /// Which share it was.
    pub share: u8,
    /// Different shares that wait.
    pub have: usize,
    /// How many are needed.
    pub need: u8,
    /// Whether it is rebuilt.
    pub open: bool,
}

struct Waiting {
    kek: KekId,
    share: Share,
    until: Instant,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    submissions: VecDeque<Submission>,
    /// How many submissions have left `submissions`, recorded or not: the place of its first one.
    gone: u64,
    /// How many of them were pushed out by later ones before they could be recorded.
    forgotten: u64,
}

/// The custody of a process's KEKs.
pub struct Custody {
    keks: Arc<Keks>,
    clock: SharedClock,
    state: Mutex<State>,
    brought: watch::Sender<u64>,
    /// One records at a time.
    recording: tokio::sync::Mutex<()>,
}

impl Custody {
    /// Nobody has brought anything yet.
    pub fn new(keks: Arc<Keks>, clock: SharedClock) -> Self {
        Self {
            keks,
            clock,
            state: Mutex::default(),
            brought: watch::Sender::new(0),
            recording: tokio::sync::Mutex::default(),
        }
    }

    /// Takes a share, and rebuilds its KEK where that was the last one needed.
    pub fn submit(&self, text: &SecretText, who: Who) -> Result<Taken, ShareError> {
        let share = Share::parse(text);
        let (index, taken) = match share {
            Ok(share) => (Some(share.index()), self.take(share)),
            Err(error) => (None, Err(error)),
        };
        let submission = Submission {
            at: self.clock.now(),
            who,
            share: index,
            kek: taken.as_ref().ok().map(|taken| taken.kek.clone()),
            outcome: taken.as_ref().map(|_| ()).map_err(Clone::clone),
        };
        let mut state = self.state();
        if state.submissions.len() >= REMEMBERED {
            state.submissions.pop_front();
            state.gone += 1;
            state.forgotten += 1;
        }
        state.submissions.push_back(submission);
        drop(state);
        self.brought.send_modify(|count| *count += 1);
        taken
    }

    fn take(&self, share: Share) -> Result<Taken, ShareError> {
        let (kek, split) = self.keks.split_of(&share)?;
        share.fits(&split)?;
        let index = share.index();
        if self.keks.is_open(&kek) {
            return Ok(Taken { kek, share: index, have: 0, need: split.threshold, open: true });
        }
        let now = self.clock.instant();
        let mut state = self.state();
        // Shares of a split that the keyring does not have any more would spoil the rebuilding.
        state.waiting.retain(|waiting| {
            waiting.until > now && (waiting.kek != kek || waiting.share.split_id() == split.id)
        });
        let mine = |waiting: &&Waiting| waiting.kek == kek;
        if state.waiting.iter().filter(mine).any(|waiting| waiting.share.index() == index) {
            return Err(ShareError::Again(index));
        }
        if state.waiting.len() >= SHARES {
            return Err(ShareError::Numbers);
        }
        state.waiting.push(Waiting { kek: kek.clone(), share, until: now + WAIT });
        let shares: Vec<&Share> = state.waiting.iter().filter(mine).map(|waiting| &waiting.share).collect();
        let have = shares.len();
        if have < usize::from(split.threshold) {
            return Ok(Taken { kek, share: index, have, need: split.threshold, open: false });
        }
        let rebuilt = combine(&kek, &split, &shares);
        state.waiting.retain(|waiting| waiting.kek != kek);
        self.keks.take_rebuilt(rebuilt?);
        Ok(Taken { kek, share: index, have, need: split.threshold, open: true })
    }

    /// Wipes shares that have waited long enough; how many.
    pub fn sweep(&self) -> usize {
        let now = self.clock.instant();
        let mut state = self.state();
        let before = state.waiting.len();
        state.waiting.retain(|waiting| waiting.until > now);
        before - state.waiting.len()
    }

    /// Does something that may wait for custodians on this very thread, and meanwhile wipes shares that have waited
    /// long enough.
    pub fn sweeping<T>(&self, every: Duration, work: impl FnOnce() -> T) -> T {
        std::thread::scope(|threads| {
            let (done, is_done) = mpsc::channel::<()>();
            threads.spawn(move || {
                // It is dropped when the work is done, or has panicked.
                while is_done.recv_timeout(every) == Err(mpsc::RecvTimeoutError::Timeout) {
                    let wiped = self.sweep();
                    if wiped > 0 {
                        tracing::warn!(wiped, "shares waited 10 minutes for the others and are gone");
                    }
                }
            });
            let worked = work();
            drop(done);
            worked
        })
    }

    /// Different shares that wait for a KEK.
    pub fn waiting(&self, kek: &KekId) -> usize {
        let now = self.clock.instant();
        self.state().waiting.iter().filter(|waiting| waiting.kek == *kek && waiting.until > now).count()
    }

    /// What was brought so far and is not recorded yet, oldest first.
    pub fn submissions(&self) -> Vec<Submission> {
        self.state().submissions.iter().cloned().collect()
    }

    /// Writes what was brought so far into the audit trail: each share with its own time, in the name of who
    /// brought it; how many. What could not be written stays for the next time. Where nobody can know whether
    /// it was, it is written again: a row twice is better than none.
    pub async fn record(&self, audit: &Audit, db: &Db, keys: &DataKeys) -> Result<usize, OpError> {
        let _turn = self.recording.lock().await;
        let mut recorded = 0;
        loop {
            let (batch, place, forgotten) = {
                let state = self.state();
                let batch: Vec<Submission> = state.submissions.iter().take(BATCH).cloned().collect();
                (batch, state.gone, state.forgotten)
            };
            let mut notes: Vec<(Actor, Entry, Millis)> = batch.iter().map(note).collect();
            if forgotten > 0 {
                let what = format!("{forgotten} shares more were brought, which are in the log alone");
                notes.push((
                    Actor::vault(),
                    Entry::refused("keys.share", what).about("kek"),
                    self.clock.now(),
                ));
            }
            if notes.is_empty() {
                return Ok(recorded);
            }
            let mut tx = audit.begin(db, keys).await?;
            tx.note_all(&notes).await?;
            tx.commit().await?;
            recorded += notes.len();
            let end = place + u64::try_from(batch.len()).unwrap_or_default();
            let mut state = self.state();
            // What was pushed out while it was being written is written all the same.
            let pushed_out = state.gone.min(end) - place;
            state.forgotten = state.forgotten.saturating_sub(forgotten + pushed_out);
            while state.gone < end && state.submissions.pop_front().is_some() {
                state.gone += 1;
            }
        }
    }

    /// Changes whenever a share is brought.
    pub fn brought(&self) -> watch::Receiver<u64> {
        self.brought.subscribe()
    }

    /// The KEKs.
    pub fn keks(&self) -> &Arc<Keks> {
        &self.keks
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A submission as the audit trail tells it.
fn note(one: &Submission) -> (Actor, Entry, Millis) {
    let about = one.kek.as_ref().map_or("kek", KekId::as_str);
    let share = one.share.map_or_else(|| "no share".to_owned(), |share| format!("share {share}"));
    let entry = match &one.outcome {
        Ok(()) => Entry::done("keys.share", about).with(share),
        Err(error) => Entry::refused("keys.share", format!("{share}: {error}")).about(about),
    };
    (Actor::at_console(&format!("uid-{}", one.who.uid), origin_of(one.who.pid)), entry, one.at)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::base::clock::SetClock;
    use crate::crypto::kek::file::{self, Place};
    use crate::crypto::kek::shares::split;

    /// A KEK that is split into 4 shares, of which 3 rebuild it, and nobody has come yet.
    pub(crate) struct Fixture {
        pub(crate) folder: tempfile::TempDir,
        pub(crate) hands: Arc<SetClock>,
        pub(crate) custody: Custody,
        kek: KekId,
        pub(crate) shares: Vec<Share>,
    }

    impl Custody {
        /// Shares that are in memory, whether their time is over or not.
        pub(crate) fn held(&self) -> usize {
            self.state().waiting.len()
        }
    }

    const WHO: Who = Who { uid: 1000, pid: Some(1) };

    pub(crate) fn fixture() -> Fixture {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keyring.toml");
        file::create_new(&path, &file::generate(Millis(0)).expect("entropy")).expect("written");
        let keyring = file::load(&path).unwrap_or_else(|error| panic!("{error}"));
        let kek = keyring.active().clone();
        let keks = Keks::open(&path, None).unwrap_or_else(|error| panic!("{error}"));
        let soft = keks.soft(&kek).unwrap_or_else(|error| panic!("{error}"));
        let (description, shares) = split(&soft, 4, 3).unwrap_or_else(|error| panic!("{error}"));
        keks.replace(keyring.with_place(&kek, Place::Split(description))).expect("replaced");
        // The program that splits goes on; another one has to be unsealed.
        assert!(keks.is_open(&kek));
        let keks = Arc::new(Keks::open(&path, None).unwrap_or_else(|error| panic!("{error}")));
        assert!(!keks.is_open(&kek));
        let hands = SetClock::at(Millis(1_772_366_400_000));
        let clock: SharedClock = hands.clone();
        Fixture { folder, hands, custody: Custody::new(keks, clock), kek, shares }
    }

    #[test]
    fn the_last_share_that_is_needed_opens() {
        let Fixture { custody, kek, shares, .. } = fixture();
        let one = custody.submit(&shares[0].text(), WHO).expect("taken");
        assert_eq!((one.have, one.need, one.open), (1, 3, false));
        assert_eq!(custody.submit(&shares[0].text(), WHO).err(), Some(ShareError::Again(1)));
        let slip = SecretText::new(shares[1].text().expose().replacen('-', "-Z", 1));
        assert_eq!(custody.submit(&slip, WHO).err(), Some(ShareError::Malformed));
        assert!(!custody.submit(&shares[3].text(), WHO).expect("taken").open);
        assert!(!custody.keks().is_open(&kek));
        assert!(custody.submit(&shares[2].text(), WHO).expect("taken").open);
        assert!(custody.keks().is_open(&kek) && custody.waiting(&kek) == 0);
        let told: Vec<_> = custody.submissions().iter().map(|one| (one.share, one.outcome.is_ok())).collect();
        assert_eq!(
            told,
            [(Some(1), true), (Some(1), false), (None, false), (Some(4), true), (Some(3), true)]
        );
        let (actor, entry, _) = note(&custody.submissions()[1]);
        assert_eq!((actor.name.as_str(), entry.outcome.name()), ("cli:uid-1000", "refused"));
        assert!(actor.origin.is_some_and(|origin| origin.ends_with(" pid 1")));
        let (_, entry, _) = note(&custody.submissions()[3]);
        assert_eq!((entry.outcome.name(), entry.object.as_deref()), ("done", Some(kek.as_str())));
    }

    #[test]
    fn of_too_many_submissions_the_number_is_kept() {
        let Fixture { custody, .. } = fixture();
        let nonsense = SecretText::from("nonsense");
        for _ in 0..REMEMBERED + 3 {
            assert!(custody.submit(&nonsense, WHO).is_err());
        }
        let state = custody.state();
        assert_eq!((state.submissions.len(), state.gone, state.forgotten), (REMEMBERED, 3, 3));
    }

    /// Also where everybody is waited for on one thread, as a command does.
    #[test]
    fn a_share_is_wiped_while_a_command_waits_for_the_next() {
        let Fixture { hands, custody, shares, .. } = fixture();
        let left = custody.sweeping(Duration::from_millis(10), || {
            custody.submit(&shares[0].text(), WHO).expect("taken");
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(custody.held(), 1);
            hands.monotonic.store(10 * 60, Ordering::Relaxed);
            let end = Instant::now() + Duration::from_secs(30);
            while custody.held() > 0 && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            custody.held()
        });
        assert_eq!(left, 0);
    }

    #[test]
    fn a_share_waits_ten_minutes_and_no_longer() {
        let Fixture { hands, custody, kek, shares, .. } = fixture();
        custody.submit(&shares[0].text(), WHO).expect("taken");
        hands.monotonic.store(9 * 60, Ordering::Relaxed);
        custody.submit(&shares[1].text(), WHO).expect("taken");
        hands.monotonic.store(10 * 60, Ordering::Relaxed);
        assert_eq!((custody.waiting(&kek), custody.sweep()), (1, 1));
        let third = custody.submit(&shares[2].text(), WHO).expect("taken");
        assert_eq!((third.have, third.open), (2, false));
        assert!(custody.submit(&shares[0].text(), WHO).expect("taken").open);
    }
}
