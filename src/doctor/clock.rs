//! The clock, against what else has one. Certificates, notifications and cryptoperiods depend on it.

use std::time::{Duration, Instant};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::app::read;
use crate::base::clock::{Clock, Millis, SystemClock};
use crate::config::{Config, GatewaySection};
use crate::gateway::antom::client::tls;

use super::Line;

const AREA: &str = "clock";
/// Further off than this, notifications of the gateway are not trusted any more, nor ours there.
const WRONG_SECONDS: i64 = 120;
/// The mend of a clock.
const MEND: &str = "run chrony or systemd-timesyncd on this host";

pub(super) async fn examine(config: &Config) -> Vec<Line> {
    let mut lines = Vec::new();
    for gateway in &config.gateway {
        lines.push(against(gateway).await);
    }
    lines
}

async fn against(gateway: &GatewaySection) -> Line {
    let name = format!("the gateway {}", gateway.name);
    let cannot = |why: String| {
        Line::warn(AREA, format!("{name}: {why}"), "payments need it: name resolution, firewall, gateway.ca")
    };
    let ca = match gateway.ca.as_ref().map(|path| read(path, "ca")).transpose() {
        Ok(ca) => ca,
        Err(error) => return cannot(format!("{error:#}")),
    };
    let Ok(tls) = tls(ca.as_deref()) else { return cannot("its authorities cannot be used".into()) };
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .http1_only()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_millis(gateway.connect_timeout_ms))
        .build();
    let Ok(client) = client else { return cannot("the HTTP client could not be made".into()) };
    let started = Instant::now();
    let Ok(answer) = client.head(&gateway.base_url).send().await else {
        return cannot("it cannot be reached by TLS".into());
    };
    let date = answer.headers().get(reqwest::header::DATE).and_then(|date| date.to_str().ok());
    match date.and_then(|date| OffsetDateTime::parse(date, &Rfc2822).ok()) {
        // A Date has whole seconds.
        Some(date) => {
            let at = Millis(date.unix_timestamp().saturating_mul(1000) + 500);
            compare(&name, at, &SystemClock, started.elapsed(), 3)
        }
        None => Line::warn(
            AREA,
            format!("{name} is reached, and does not tell its time"),
            "compare the clock by other means",
        ),
    }
}

/// Judges another clock's word, which was asked for `took` ago; up to `fine` seconds it is good.
pub(super) fn compare(name: &str, theirs: Millis, ours: &impl Clock, took: Duration, fine: i64) -> Line {
    let half = i64::try_from(took.as_millis() / 2).unwrap_or_default();
    judge(name, ours.now().0.saturating_sub(half).saturating_sub(theirs.0), fine)
}

fn judge(name: &str, off_ms: i64, fine: i64) -> Line {
    let seconds = off_ms.saturating_abs() / 1000;
    let told = format!("this clock and that of {name} differ by {seconds} s");
    if seconds > WRONG_SECONDS {
        Line::fail(AREA, told, MEND)
    } else if seconds > fine {
        Line::warn(AREA, told, MEND)
    } else {
        Line::pass(AREA, told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_clock_that_is_off_is_told_either_way() {
        for (off, verdict) in [
            (0, Verdict::Pass),
            (1_900, Verdict::Pass),
            (5_000, Verdict::Warn),
            (121_000, Verdict::Fail),
            (i64::MAX, Verdict::Fail),
        ] {
            for off in [off, -off] {
                assert_eq!(judge("x", off, 1).verdict, verdict, "{off}");
            }
        }
    }

    #[test]
    fn a_date_of_http_is_read() {
        let date = OffsetDateTime::parse("Thu, 26 Nov 2026 14:00:00 GMT", &Rfc2822);
        assert_eq!(date.map(OffsetDateTime::unix_timestamp).ok(), Some(1_795_701_600));
    }
}
