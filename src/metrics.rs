//! What is counted, for `GET /metrics`. A label's value is a word of this program (`&'static str`) or the
//! name of a client as the configuration has it, so nothing that a caller sent can become one, and the
//! number of series is bounded. Nothing here reads a file, a socket or the database.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::base::clock::Millis;
use crate::model::payment::Status;

/// The content type of what [`Metrics::text`] writes.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// The gateway's calls, and how one ends.
const CALLS: [&str; 6] = ["pay", "inquiry_payment", "cancel", "capture", "refund", "inquiry_refund"];
const CALL_OUTCOMES: [&str; 3] = ["answered", "not_sent", "no_answer"];
/// Kinds of notifications; what does not verify is not read. What became of one: it was taken, could not be
/// recorded and must come again, or was forged.
const NOTICE_KINDS: [&str; 6] = ["payment", "capture", "refund", "dispute", "other", "not_json"];
const NOTICE_VERDICTS: [&str; 2] = ["taken", "not_recorded"];
/// Upper bounds of latencies, in seconds.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// One label: its name is the field's.
macro_rules! label {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),+ })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name { $($field: $type),+ }
    )+};
}

label! {
    Asked { route: &'static str, method: &'static str, status: &'static str, client: String }
    Route { route: &'static str, method: &'static str }
    Of { status: &'static str }
    Called { call: &'static str, outcome: &'static str }
    Call { call: &'static str }
    Outcome { outcome: &'static str }
    Told { kind: &'static str, verdict: &'static str }
    Handshake { listener: &'static str, reason: &'static str }
    Limit { limit: &'static str }
    ListenerName { listener: &'static str }
    Key { purpose: &'static str }
    Pool { pool: &'static str, state: &'static str }
    PoolName { pool: &'static str }
    Certificate { certificate: &'static str }
    Check { check: &'static str }
    Build { version: &'static str }
}

#[derive(Clone)]
struct Latency;

impl MetricConstructor<Histogram> for Latency {
    fn new_metric(&self) -> Histogram {
        Histogram::new(SECONDS)
    }
}

type Latencies<L> = Family<L, Histogram, Latency>;
type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

/// What the audit trail counts by itself.
#[derive(Clone, Default)]
pub struct AuditTally {
    /// Rows that were committed.
    pub rows: Counter,
    /// Transactions that could not be begun, written to or committed.
    pub failures: Counter,
}

/// What the pace of clients counts by itself.
#[derive(Debug, Clone)]
pub struct PaceTally {
    /// Requests refused because they came too fast.
    pub too_fast: Counter,
    /// Requests refused because too many were under way.
    pub too_many_at_once: Counter,
    /// Requests of guessing clients that were refused.
    pub guessing: Counter,
    /// Answers about what does not exist that were held back.
    pub held_back: Counter,
}

/// A key in use, as it stands now.
pub struct KeyFacts {
    /// What it is for: a data key's purpose, or `kek`.
    pub purpose: &'static str,
    /// When it was made, and when it stops sealing.
    pub created: Millis,
    /// See above.
    pub expires: Millis,
    /// How often it was used and may be used; none for a KEK.
    pub uses: Option<(u64, u64)>,
    /// Whether it may still seal, and whether it should be rotated.
    pub seals: bool,
    /// See above.
    pub due: bool,
}

/// The connections of one pool.
pub struct PoolFacts {
    /// Which pool.
    pub name: &'static str,
    /// Connections that are lent, that wait, and that there may be.
    pub used: u32,
    /// See above.
    pub idle: u32,
    /// See above.
    pub most: u32,
}

/// How many of something there are, and how old the oldest is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// How many.
    pub count: i64,
    /// When the oldest was made.
    pub oldest: Option<Millis>,
}

/// The metrics, each named once: its field, what it is, the name and the words under which it is told.
macro_rules! metrics {
    ($($field:ident: $type:ty = $made:expr, $name:literal, $help:literal;)+) => {
        /// All metrics of one process.
        pub struct Metrics {
            registry: Registry,
            $($field: $type,)+
        }

        impl Metrics {
            fn registered() -> Self {
                let mut registry = Registry::with_prefix("cardvault");
                $(
                    let $field: $type = $made;
                    registry.register($name, $help, $field.clone());
                )+
                let build = Info::new(Build { version: env!("CARGO_PKG_VERSION") });
                registry.register("build", "The program", build);
                Self { registry, $($field,)+ }
            }
        }
    };
}

metrics! {
    requests: Family<Asked, Counter> = Family::default(),
        "requests", "Requests answered";
    request_seconds: Latencies<Route> = Latencies::new_with_constructor(Latency),
        "request_duration_seconds", "Time from a request's headers to its answer";
    payments: Family<Of, Counter> = Family::default(),
        "payments", "Payments that came to a status in this process";
    payments_open: Family<Of, Gauge> = Family::default(),
        "payments_open", "Payments of all processes that are UNKNOWN or PROCESSING";
    payments_open_oldest: Family<Of, Seconds> = Family::default(),
        "payments_open_oldest_age_seconds", "Age of the oldest of them";
    gateway_calls: Family<Called, Counter> = Family::default(),
        "gateway_calls", "Calls to the gateway by how they ended";
    gateway_call_seconds: Latencies<Call> = Latencies::new_with_constructor(Latency),
        "gateway_call_duration_seconds", "Time of a call to the gateway";
    looks: Family<Outcome, Counter> = Family::default(),
        "reconciler_looks", "Looks after what has no clear outcome";
    notifications: Family<Told, Counter> = Family::default(),
        "notifications", "Notifications of the gateway by kind and what became of them";
    events_waiting: Gauge = Gauge::default(),
        "events_unsequenced", "Events that are committed and not in the feed yet";
    events_oldest: Seconds = Seconds::default(),
        "events_unsequenced_oldest_age_seconds", "Age of the oldest of them";
    audit_rows: Counter = Counter::default(),
        "audit_rows", "Rows of the audit trail that this process committed";
    audit_failures: Counter = Counter::default(),
        "audit_append_failures", "Transactions whose audit rows could not be written";
    checkpoint: Seconds = Seconds::default(),
        "audit_checkpoint_timestamp_seconds",
        "When this process last wrote a checkpoint of the audit trail; 0 for never";
    key_age: Family<Key, Seconds> = Family::default(),
        "key_age_seconds", "Age of the key in use";
    key_expiry: Family<Key, Seconds> = Family::default(),
        "key_expiry_timestamp_seconds", "When the key in use stops sealing";
    key_uses: Family<Key, Gauge> = Family::default(),
        "key_uses", "Records sealed and digests made with the key in use";
    key_uses_allowed: Family<Key, Gauge> = Family::default(),
        "key_uses_allowed", "How often the key in use may be used";
    key_seals: Family<Key, Gauge> = Family::default(),
        "key_seals", "Whether the key in use may still seal";
    key_due: Family<Key, Gauge> = Family::default(),
        "key_rotation_due", "Whether the key in use should be rotated";
    pool: Family<Pool, Gauge> = Family::default(),
        "database_pool_connections", "Connections to the database";
    pool_most: Family<PoolName, Gauge> = Family::default(),
        "database_pool_connections_max", "Most connections to the database";
    cvv_slots: Gauge = Gauge::default(),
        "cvv_slots_held", "CVVs that wait in memory for their payment";
    handshakes_refused: Family<Handshake, Counter> = Family::default(),
        "tls_handshakes_refused", "Handshakes that failed, by reason";
    paced: Family<Limit, Counter> = Family::default(),
        "requests_held_back", "Requests that a client's pace refused, and answers that it held back";
    connections: Family<ListenerName, Gauge> = Family::default(),
        "connections_open", "Connections that passed their handshake";
    certificate_expiry: Family<Certificate, Seconds> = Family::default(),
        "certificate_expiry_timestamp_seconds", "When a certificate of ours expires";
    ready: Family<Check, Gauge> = Family::default(),
        "ready", "Whether a check of readiness passes";
    sampled: Gauge = Gauge::default(),
        "database_sampled", "Whether the database could be asked for the metrics that come from it";
    sealed: Gauge = Gauge::default(),
        "sealed", "Whether the vault waits for the shares of its key-encryption key";
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self::registered();
        metrics.begin_at_zero();
        metrics
    }
}

impl Metrics {
    /// A counter that is not there yet cannot be seen to rise from nothing: alerts need the zero.
    fn begin_at_zero(&self) {
        for status in Status::ALL {
            drop(self.payments.get_or_create(&Of { status: status.name() }));
        }
        for call in CALLS {
            for outcome in CALL_OUTCOMES {
                drop(self.gateway_calls.get_or_create(&Called { call, outcome }));
            }
        }
        for outcome in ["done", "failed"] {
            drop(self.looks.get_or_create(&Outcome { outcome }));
        }
        for kind in NOTICE_KINDS {
            for verdict in NOTICE_VERDICTS {
                drop(self.notifications.get_or_create(&Told { kind, verdict }));
            }
        }
        drop(self.notifications.get_or_create(&Told { kind: "unread", verdict: "forged" }));
        drop(self.pace());
        drop(
            self.handshakes_refused
                .get_or_create(&Handshake { listener: "api", reason: "too slow a handshake" }),
        );
    }

    /// A request was answered. `route` is the template that it matched.
    pub fn request(
        &self,
        route: &'static str,
        method: &'static str,
        status: u16,
        client: Option<&str>,
        took: Duration,
    ) {
        let status = match status {
            0..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        let client = client.unwrap_or("none").to_owned();
        self.requests.get_or_create(&Asked { route, method, status, client }).inc();
        self.request_seconds.get_or_create(&Route { route, method }).observe(took.as_secs_f64());
    }

    /// A payment came to a status.
    pub fn payment(&self, status: Status) {
        self.payments.get_or_create(&Of { status: status.name() }).inc();
    }

    /// A call to the gateway ended.
    pub fn gateway_call(&self, call: &'static str, outcome: &'static str, took: Duration) {
        self.gateway_calls.get_or_create(&Called { call, outcome }).inc();
        self.gateway_call_seconds.get_or_create(&Call { call }).observe(took.as_secs_f64());
    }

    /// The reconciler looked after something.
    pub fn look(&self, done: bool) {
        let outcome = if done { "done" } else { "failed" };
        self.looks.get_or_create(&Outcome { outcome }).inc();
    }

    /// A notification came.
    pub fn notification(&self, kind: &'static str, verdict: &'static str) {
        self.notifications.get_or_create(&Told { kind, verdict }).inc();
    }

    /// A handshake failed.
    pub fn handshake_refused(&self, listener: &'static str, reason: &'static str) {
        self.handshakes_refused.get_or_create(&Handshake { listener, reason }).inc();
    }

    /// What the pace of clients counts.
    pub fn pace(&self) -> PaceTally {
        let of = |limit| self.paced.get_or_create_owned(&Limit { limit });
        PaceTally {
            too_fast: of("too_many_requests"),
            too_many_at_once: of("too_many_at_once"),
            guessing: of("too_many_unknown_ids"),
            held_back: of("unknown_ids"),
        }
    }

    /// A connection passed its handshake; it is counted for as long as what is given lives.
    pub fn connection(&self, listener: &'static str) -> OpenConnection {
        let gauge = self.connections.get_or_create_owned(&ListenerName { listener });
        gauge.inc();
        OpenConnection(gauge)
    }

    /// What the audit trail counts.
    pub fn audit(&self) -> AuditTally {
        AuditTally { rows: self.audit_rows.clone(), failures: self.audit_failures.clone() }
    }

    /// A checkpoint of the audit trail was written.
    pub fn checkpoint(&self, at: Millis) {
        self.checkpoint.set(seconds(at));
    }

    /// A certificate is in use that expires then.
    pub fn certificate(&self, certificate: &'static str, expires: Millis) {
        self.certificate_expiry.get_or_create(&Certificate { certificate }).set(seconds(expires));
    }

    /// What a check of readiness says.
    pub fn readiness(&self, check: &'static str, passes: bool) {
        self.ready.get_or_create(&Check { check }).set(i64::from(passes));
    }

    /// What is held in memory, now.
    pub fn memory(&self, cvv_slots: usize, pools: &[PoolFacts], sealed: bool) {
        self.cvv_slots.set(i64::try_from(cvv_slots).unwrap_or(i64::MAX));
        self.sealed.set(i64::from(sealed));
        for pool in pools {
            let set = |state, count: u32| {
                self.pool.get_or_create(&Pool { pool: pool.name, state }).set(i64::from(count));
            };
            set("used", pool.used);
            set("idle", pool.idle);
            self.pool_most.get_or_create(&PoolName { pool: pool.name }).set(i64::from(pool.most));
        }
    }

    /// How the keys in use stand, now.
    pub fn keys(&self, keys: &[KeyFacts], now: Millis) {
        for key in keys {
            let label = Key { purpose: key.purpose };
            self.key_age.get_or_create(&label).set(age(key.created, now));
            self.key_expiry.get_or_create(&label).set(seconds(key.expires));
            self.key_seals.get_or_create(&label).set(i64::from(key.seals));
            self.key_due.get_or_create(&label).set(i64::from(key.due));
            if let Some((uses, allowed)) = key.uses {
                let whole = |number| i64::try_from(number).unwrap_or(i64::MAX);
                self.key_uses.get_or_create(&label).set(whole(uses));
                self.key_uses_allowed.get_or_create(&label).set(whole(allowed));
            }
        }
    }

    /// What the database says of work that is open; none where it could not be asked. What it said before
    /// then stays, and `database_sampled` says so.
    pub fn open_work(&self, open: Option<(&[(Status, Waiting)], Waiting)>, now: Millis) {
        self.sampled.set(i64::from(open.is_some()));
        let Some((payments, events)) = open else { return };
        let oldest = |waiting: &Waiting| waiting.oldest.map_or(0.0, |at| age(at, now));
        for (status, waiting) in payments {
            let label = Of { status: status.name() };
            self.payments_open.get_or_create(&label).set(waiting.count);
            self.payments_open_oldest.get_or_create(&label).set(oldest(waiting));
        }
        self.events_waiting.set(events.count);
        self.events_oldest.set(oldest(&events));
    }

    /// Everything, in the Prometheus text format.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// An open connection, for as long as this lives.
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn seconds(at: Millis) -> f64 {
    Duration::from_millis(u64::try_from(at.0).unwrap_or_default()).as_secs_f64()
}

fn age(from: Millis, to: Millis) -> f64 {
    seconds(Millis(to.0.saturating_sub(from.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told_in_the_text_format() {
        let metrics = Metrics::default();
        metrics.request("/v1/cards", "POST", 201, Some("checkout"), Duration::from_millis(3));
        metrics.payment(Status::Authorized);
        metrics.gateway_call("pay", "answered", Duration::from_millis(70));
        metrics.notification("unread", "forged");
        let open = [(Status::Unknown, Waiting { count: 2, oldest: Some(Millis(1_000)) })];
        metrics.open_work(Some((&open, Waiting::default())), Millis(61_000));
        metrics.certificate("api", Millis(5_000));
        let text = metrics.text().expect("text");
        for line in [
            "# TYPE cardvault_requests_total counter",
            "cardvault_requests_total{route=\"/v1/cards\",method=\"POST\",status=\"2xx\",client=\"checkout\"} 1",
            "cardvault_request_duration_seconds_bucket{route=\"/v1/cards\",method=\"POST\",le=\"0.005\"} 1",
            "cardvault_payments_total{status=\"AUTHORIZED\"} 1",
            "cardvault_payments_total{status=\"FAILED\"} 0",
            "cardvault_payments_open{status=\"UNKNOWN\"} 2",
            "cardvault_payments_open_oldest_age_seconds{status=\"UNKNOWN\"} 60.0",
            "cardvault_gateway_calls_total{call=\"pay\",outcome=\"answered\"} 1",
            "cardvault_notifications_total{kind=\"unread\",verdict=\"forged\"} 1",
            "cardvault_certificate_expiry_timestamp_seconds{certificate=\"api\"} 5.0",
            concat!("cardvault_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|told| told == line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_connection_is_counted_while_it_is_open() {
        let metrics = Metrics::default();
        let open = |metrics: &Metrics| {
            metrics
                .text()
                .expect("text")
                .lines()
                .any(|line| line == "cardvault_connections_open{listener=\"api\"} 1")
        };
        let connection = metrics.connection("api");
        assert!(open(&metrics));
        drop(connection);
        assert!(!open(&metrics));
    }

    #[test]
    fn what_could_not_be_sampled_is_told() {
        let metrics = Metrics::default();
        metrics.open_work(None, Millis(0));
        assert!(metrics.text().expect("text").contains("cardvault_database_sampled 0"));
    }
}
