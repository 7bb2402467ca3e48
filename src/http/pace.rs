//! How fast a client may ask, how much of it at once, and how often for what does not exist. One client's
//! haste or guessing costs that client time, and nobody else. What is refused here is recorded once for each
//! episode: a row of the audit trail for every request would be a weapon of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::base::ids::ClientName;
use crate::metrics::PaceTally;
use crate::model::access::{Client, ClientPace};

use super::problem::{self, Kind};

/// How long an answer about what does not exist is held back from a client that guesses.
pub const HOLD: Duration = Duration::from_millis(250);
/// How many such answers are held back at once; beyond them a guessing client is refused.
const HELD: u32 = 8;
/// An episode is over when nothing was in excess for so long.
const QUIET: Duration = Duration::from_secs(60);
/// Refusals of certificates that are no client's which have a row each, in a minute.
const STRANGERS: u32 = 60;

/// An amount that is used up and comes back with time.
#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    /// Takes one, where there is one.
    fn take(&mut self, most: f64, per_second: f64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * per_second).min(most);
        self.at = now;
        let there = self.left >= 1.0;
        if there {
            self.left -= 1.0;
        }
        there
    }
}

/// A time of excess.
#[derive(Debug)]
struct Episode {
    what: &'static str,
    last: Instant,
    count: u64,
}

/// What one client has used up.
#[derive(Debug)]
struct Meter {
    requests: Bucket,
    misses: Bucket,
    at_once: u32,
    held: u32,
    haste: Option<Episode>,
    guessing: Option<Episode>,
}

impl Meter {
    fn new(pace: &ClientPace, now: Instant) -> Self {
        let full = |most: u32| Bucket { left: most.into(), at: now };
        Self {
            requests: full(pace.per_second),
            misses: full(pace.unknown_ids_per_minute),
            at_once: 0,
            held: 0,
            haste: None,
            guessing: None,
        }
    }
}

/// Notes an excess, and tells whether it begins an episode.
fn excess(episode: &mut Option<Episode>, what: &'static str, client: &str, now: Instant) -> bool {
    if let Some(running) = episode.as_mut().filter(|it| now.saturating_duration_since(it.last) < QUIET) {
        running.last = now;
        running.count += 1;
        return false;
    }
    over(episode, client);
    *episode = Some(Episode { what, last: now, count: 1 });
    tracing::warn!(client, what, "a client goes beyond its pace");
    true
}

fn over(episode: &mut Option<Episode>, client: &str) {
    if let Some(ended) = episode.take() {
        let (what, count) = (ended.what, ended.count);
        tracing::warn!(client, what, count, "a client is within its pace again");
    }
}

/// Ends what has been quiet for long enough.
fn settle(episode: &mut Option<Episode>, client: &str, now: Instant) {
    if episode.as_ref().is_some_and(|it| now.saturating_duration_since(it.last) >= QUIET) {
        over(episode, client);
    }
}

/// The pace of all clients of a listener.
#[derive(Debug)]
pub struct Pace {
    meters: Mutex<HashMap<ClientName, Meter>>,
    strangers: Mutex<(Bucket, Option<Episode>)>,
    /// What came of it.
    counts: PaceTally,
}

impl Pace {
    /// Nobody has asked for anything yet.
    pub fn new(now: Instant, counts: PaceTally) -> Self {
        Self {
            meters: Mutex::default(),
            strangers: Mutex::new((Bucket { left: STRANGERS.into(), at: now }, None)),
            counts,
        }
    }
}

/// Why a request is not let on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// What the caller is told.
    pub kind: Kind,
    /// Whether it is the first of its episode, which is recorded.
    pub first: bool,
}

/// What becomes of an answer about what does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// It goes out, and is recorded, like any other.
    Usual,
    /// It is held back for [`HOLD`].
    Held {
        /// Whether it is the first of its episode, which is recorded.
        first: bool,
    },
}

impl Pace {
    fn meters(&self) -> MutexGuard<'_, HashMap<ClientName, Meter>> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a client's request on, or not.
    pub fn enter(self: &Arc<Self>, client: &Client, now: Instant) -> Result<Pass, Refusal> {
        let (pace, name) = (&client.pace, client.name.as_str());
        let mut meters = self.meters();
        let meter = meters.entry(client.name.clone()).or_insert_with(|| Meter::new(pace, now));
        settle(&mut meter.haste, name, now);
        settle(&mut meter.guessing, name, now);
        let (kind, what, count) = if meter.held >= HELD {
            (problem::TOO_MANY_UNKNOWN_IDS, "unknown ids", &self.counts.guessing)
        } else if meter.at_once >= pace.at_once {
            (problem::TOO_MANY_AT_ONCE, "requests at once", &self.counts.too_many_at_once)
        } else if !meter.requests.take(pace.per_second.into(), pace.per_second.into(), now) {
            (problem::TOO_MANY_REQUESTS, "requests", &self.counts.too_fast)
        } else {
            meter.at_once += 1;
            return Ok(Pass {
                pace: Arc::clone(self),
                client: client.name.clone(),
                limits: *pace,
                held: false,
            });
        };
        count.inc();
        let episode =
            if kind == problem::TOO_MANY_UNKNOWN_IDS { &mut meter.guessing } else { &mut meter.haste };
        let first = excess(episode, what, name, now);
        Err(Refusal { kind, first })
    }

    /// Whether the refusal of a certificate that is no client's is recorded.
    pub fn stranger(&self, now: Instant) -> bool {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        let (bucket, episode) = &mut *strangers;
        settle(episode, "nobody", now);
        bucket.take(STRANGERS.into(), f64::from(STRANGERS) / 60.0, now)
            || excess(episode, "certificates of nobody", "nobody", now)
    }
}

/// A request that was let on; it is under way until this is dropped.
#[derive(Debug)]
pub struct Pass {
    pace: Arc<Pace>,
    client: ClientName,
    limits: ClientPace,
    held: bool,
}

impl Pass {
    /// Notes that the request was for something that does not exist.
    pub fn missed(&mut self, now: Instant) -> Missed {
        let most = f64::from(self.limits.unknown_ids_per_minute);
        let mut meters = self.pace.meters();
        let Some(meter) = meters.get_mut(&self.client) else { return Missed::Usual };
        if meter.misses.take(most, most / 60.0, now) {
            return Missed::Usual;
        }
        self.pace.counts.held_back.inc();
        meter.held += 1;
        self.held = true;
        Missed::Held { first: excess(&mut meter.guessing, "unknown ids", self.client.as_str(), now) }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(meter) = self.pace.meters().get_mut(&self.client) {
            meter.at_once = meter.at_once.saturating_sub(1);
            meter.held = meter.held.saturating_sub(self.held.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{GatewayAccount, Merchant};
    use crate::metrics::Metrics;
    use crate::model::access::SanName;

    fn client(name: &str, pace: ClientPace) -> Client {
        Client {
            name: ClientName::parse(name).expect("a name"),
            san: SanName::Uri("x:y".to_owned()),
            spki_sha256: None,
            merchant: Merchant::parse("acme").expect("a merchant"),
            account: GatewayAccount::parse("SANDBOX_1").expect("an account"),
            scopes: std::collections::BTreeSet::new(),
            pace,
        }
    }

    fn refused(pace: &Arc<Pace>, client: &Client, now: Instant) -> Option<(&'static str, bool)> {
        pace.enter(client, now).err().map(|refusal| (refusal.kind.code, refusal.first))
    }

    #[test]
    fn a_client_that_is_too_fast_waits_and_others_do_not() {
        let start = Instant::now();
        let pace = Arc::new(Pace::new(start, Metrics::default().pace()));
        let limits = ClientPace { per_second: 3, at_once: 10, unknown_ids_per_minute: 10 };
        let (one, other) = (client("one", limits), client("other", limits));
        for _ in 0..3 {
            assert_eq!(refused(&pace, &one, start), None);
        }
        assert_eq!(refused(&pace, &one, start), Some(("too_many_requests", true)));
        assert_eq!(refused(&pace, &one, start), Some(("too_many_requests", false)));
        assert_eq!(refused(&pace, &other, start), None);
        let later = start + Duration::from_millis(334);
        assert_eq!(refused(&pace, &one, later), None);
        assert_eq!(refused(&pace, &one, later), Some(("too_many_requests", false)));
        // No more is saved up than a second's worth; another episode begins after a quiet minute.
        let much_later = later + Duration::from_secs(3600);
        for _ in 0..3 {
            assert_eq!(refused(&pace, &one, much_later), None);
        }
        assert_eq!(refused(&pace, &one, much_later), Some(("too_many_requests", true)));
        // Time that goes back gives nothing and breaks nothing.
        assert_eq!(refused(&pace, &one, start), Some(("too_many_requests", false)));
    }

    #[test]
    fn so_many_are_under_way_at_once_and_no_more() {
        let now = Instant::now();
        let pace = Arc::new(Pace::new(now, Metrics::default().pace()));
        let one = client("one", ClientPace { per_second: 100, at_once: 2, unknown_ids_per_minute: 10 });
        let first = pace.enter(&one, now);
        let second = pace.enter(&one, now);
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(refused(&pace, &one, now), Some(("too_many_at_once", true)));
        drop(first);
        assert_eq!(refused(&pace, &one, now), None);
    }

    #[test]
    fn guessing_is_slowed_then_refused_and_recorded_once() {
        let now = Instant::now();
        let pace = Arc::new(Pace::new(now, Metrics::default().pace()));
        let one = client("one", ClientPace { per_second: 1000, at_once: 100, unknown_ids_per_minute: 5 });
        let miss = || {
            let mut pass = pace.enter(&one, now).expect("let on");
            (pass.missed(now), pass)
        };
        for _ in 0..5 {
            assert_eq!(miss().0, Missed::Usual);
        }
        let mut held = Vec::new();
        for n in 0..HELD {
            let (missed, pass) = miss();
            assert_eq!(missed, Missed::Held { first: n == 0 });
            held.push(pass);
        }
        assert_eq!(refused(&pace, &one, now), Some(("too_many_unknown_ids", false)));
        held.pop();
        assert_eq!(miss().0, Missed::Held { first: false });
        drop(held);
        // What exists is not held back meanwhile.
        assert_eq!(refused(&pace, &one, now), None);
        assert_eq!(pace.counts.held_back.get(), u64::from(HELD) + 1);
        assert_eq!(pace.counts.guessing.get(), 1);
    }

    #[test]
    fn strangers_have_a_row_each_until_there_are_many() {
        let now = Instant::now();
        let pace = Pace::new(now, Metrics::default().pace());
        let told = (0..1000).filter(|_| pace.stranger(now)).count();
        assert_eq!(told, 61);
        assert!(pace.stranger(now + Duration::from_secs(1)));
    }
}
