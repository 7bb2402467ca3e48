//! Time comes in as an argument. Wall time is for what people and the database read; deadlines and
//! lifetimes use the monotonic clock, which does not jump when somebody sets the date.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Milliseconds since 1970-01-01T00:00:00Z, as every table stores time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub i64);

impl Millis {
    /// RFC 3339 in UTC with milliseconds, as the API shows time: always three digits of them, so that
    /// texts sort as times do.
    pub fn rfc3339(self) -> String {
        OffsetDateTime::from_unix_timestamp(self.0.div_euclid(1000))
            .ok()
            .and_then(|time| time.format(&Rfc3339).ok())
            .and_then(|text| Some(format!("{}.{:03}Z", text.strip_suffix('Z')?, self.0.rem_euclid(1000))))
            .unwrap_or_else(|| "1970-01-01T00:00:00.000Z".to_owned())
    }

    /// Reads an RFC 3339 time.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        i64::try_from(time.unix_timestamp_nanos().div_euclid(1_000_000)).ok().map(Self)
    }

    /// This time moved by `by`; saturates at the ends of time.
    pub fn plus(self, by: std::time::Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The (year, month) that it is now in the last time zone on earth (UTC-12), in which a card may
    /// still be in its last month.
    pub fn last_year_month(self) -> (i32, u8) {
        let seconds = self.0.div_euclid(1000) - 12 * 3600;
        OffsetDateTime::from_unix_timestamp(seconds)
            .map(|time| (time.year(), u8::from(time.month())))
            .unwrap_or((1970, 1))
    }
}

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// Wall time.
    fn now(&self) -> Millis;
    /// Monotonic time.
    fn instant(&self) -> Instant;
    /// Returns when so much monotonic time has passed.
    fn sleep(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(time))
    }
}

/// A clock that many tasks share.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's own clock.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Millis {
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
        Millis(i64::try_from(now).unwrap_or(i64::MAX))
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }
}

/// A clock of which both times stand until they are set.
#[cfg(test)]
pub(crate) struct SetClock {
    start: Instant,
    /// Wall time, in milliseconds.
    pub wall: std::sync::atomic::AtomicI64,
    /// Monotonic time, in seconds since it was made.
    pub monotonic: std::sync::atomic::AtomicU64,
}

#[cfg(test)]
impl SetClock {
    /// Set to this wall time.
    pub fn at(wall: Millis) -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), wall: wall.0.into(), monotonic: 0.into() })
    }
}

#[cfg(test)]
impl Clock for SetClock {
    fn now(&self) -> Millis {
        Millis(self.wall.load(std::sync::atomic::Ordering::SeqCst))
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_secs(self.monotonic.load(std::sync::atomic::Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_shown_in_utc() {
        assert_eq!(Millis(1_772_366_400_123).rfc3339(), "2026-03-01T12:00:00.123Z");
        assert_eq!(Millis(1_772_366_400_040).rfc3339(), "2026-03-01T12:00:00.040Z");
        assert_eq!(Millis(1_772_366_400_000).rfc3339(), "2026-03-01T12:00:00.000Z");
        assert_eq!(Millis(-1).rfc3339(), "1969-12-31T23:59:59.999Z");
        assert_eq!(Millis(i64::MAX).rfc3339(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Millis::parse_rfc3339("2026-03-01T13:00:00.123+01:00"), Some(Millis(1_772_366_400_123)));
        assert_eq!(Millis::parse_rfc3339("2026-03-01"), None);
    }

    #[test]
    fn the_last_zone_on_earth_changes_month_twelve_hours_late() {
        let midnight = 1_772_323_200_000; // 2026-03-01T00:00:00Z
        assert_eq!(Millis(midnight).last_year_month(), (2026, 2));
        assert_eq!(Millis(midnight + 12 * 3_600_000).last_year_month(), (2026, 3));
    }
}
