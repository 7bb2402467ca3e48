//! Custodians bring the shares of a split KEK, one by one, each at its own time and terminal. A share waits
//! 10 minutes for the others and is wiped then; a wrong one is named and not kept. Who brought what, and
//! when, is remembered until it can be told: while the vault is sealed, nothing can be written that counts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::base::clock::{Millis, SharedClock};
use crate::base::ids::KekId;
use crate::base::secret::SecretText;
use crate::crypto::kek::Keks;
use crate::crypto::kek::shares::{Share, ShareError, combine};

/// How long a share waits for the others.
pub const WAIT: Duration = Duration::from_secs(10 * 60);
/// Most shares that wait at once.
const SHARES: usize = 255;
/// Most submissions that are remembered; the oldest go first.
const REMEMBERED: usize = 1_000;

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
    submissions: Vec<Submission>,
}

/// The custody of a process's KEKs.
pub struct Custody {
    keks: Arc<Keks>,
    clock: SharedClock,
    state: Mutex<State>,
    rebuilt: watch::Sender<u64>,
}

impl Custody {
    /// Nobody has brought anything yet.
    pub fn new(keks: Arc<Keks>, clock: SharedClock) -> Self {
        Self { keks, clock, state: Mutex::default(), rebuilt: watch::Sender::new(0) }
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
            state.submissions.remove(0);
        }
        state.submissions.push(submission);
        drop(state);
        if taken.as_ref().is_ok_and(|taken| taken.open) {
            self.rebuilt.send_modify(|count| *count += 1);
        }
        taken
    }

    fn take(&self, share: Share) -> Result<Taken, ShareError> {
        let (kek, split) = self.keks.split_of(&share)?;
        share.fits(&split)?;
        if self.keks.is_open(&kek) {
            return Ok(Taken { kek, have: 0, need: split.threshold, open: true });
        }
        let now = self.clock.instant();
        let mut state = self.state();
        // Shares of a split that the keyring does not have any more would spoil the rebuilding.
        state.waiting.retain(|waiting| {
            waiting.until > now && (waiting.kek != kek || waiting.share.split_id() == split.id)
        });
        let mine = |waiting: &&Waiting| waiting.kek == kek;
        if state.waiting.iter().filter(mine).any(|waiting| waiting.share.index() == share.index()) {
            return Err(ShareError::Again(share.index()));
        }
        if state.waiting.len() >= SHARES {
            return Err(ShareError::Numbers);
        }
        state.waiting.push(Waiting { kek: kek.clone(), share, until: now + WAIT });
        let shares: Vec<&Share> = state.waiting.iter().filter(mine).map(|waiting| &waiting.share).collect();
        let have = shares.len();
        if have < usize::from(split.threshold) {
            return Ok(Taken { kek, have, need: split.threshold, open: false });
        }
        let rebuilt = combine(&kek, &split, &shares);
        state.waiting.retain(|waiting| waiting.kek != kek);
        self.keks.take_rebuilt(rebuilt?);
        Ok(Taken { kek, have, need: split.threshold, open: true })
    }

    /// Wipes shares that have waited long enough; how many.
    pub fn sweep(&self) -> usize {
        let now = self.clock.instant();
        let mut state = self.state();
        let before = state.waiting.len();
        state.waiting.retain(|waiting| waiting.until > now);
        before - state.waiting.len()
    }

    /// Different shares that wait for a KEK.
    pub fn waiting(&self, kek: &KekId) -> usize {
        let now = self.clock.instant();
        self.state().waiting.iter().filter(|waiting| waiting.kek == *kek && waiting.until > now).count()
    }

    /// Hands out what was brought so far, to be audited.
    pub fn take_submissions(&self) -> Vec<Submission> {
        std::mem::take(&mut self.state().submissions)
    }

    /// Rises whenever a KEK is rebuilt.
    pub fn rebuilt(&self) -> watch::Receiver<u64> {
        self.rebuilt.subscribe()
    }

    /// The KEKs.
    pub fn keks(&self) -> &Arc<Keks> {
        &self.keks
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::base::clock::SetClock;
    use crate::crypto::kek::file::{self, Place};
    use crate::crypto::kek::shares::split;

    struct Fixture {
        _folder: tempfile::TempDir,
        hands: Arc<SetClock>,
        custody: Custody,
        kek: KekId,
        shares: Vec<Share>,
    }

    const WHO: Who = Who { uid: 1000, pid: Some(1) };

    fn fixture() -> Fixture {
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
        Fixture { _folder: folder, hands, custody: Custody::new(keks, clock), kek, shares }
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
        let told: Vec<_> =
            custody.take_submissions().iter().map(|one| (one.share, one.outcome.is_ok())).collect();
        assert_eq!(
            told,
            [(Some(1), true), (Some(1), false), (None, false), (Some(4), true), (Some(3), true)]
        );
        assert!(custody.take_submissions().is_empty());
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
