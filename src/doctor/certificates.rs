//! Certificates: that they can be used with their keys, and for how long still.

use std::path::Path;

use crate::app::{read, read_secret};
use crate::base::clock::{Clock, Millis, SystemClock};
use crate::config::Config;
use crate::http::peer::not_after;
use crate::http::tls::{RevocationLists, ServerTls, server_config};

use super::Line;

const AREA: &str = "certificates";
/// From so many days on an expiry is warned of.
const SOON_DAYS: i64 = 30;
/// A revocation list that is stale in less than this is warned of.
const SOON_HOURS: i64 = 12;
const DAY_MS: i64 = 24 * 3600 * 1000;

pub(super) fn examine(config: &Config) -> Vec<Line> {
    let mut lines =
        vec![listener("api", &config.api.certificate, &config.api.private_key, Some(&config.api.client_ca))];
    let mut all = vec![
        ("api.certificate".to_owned(), &config.api.certificate),
        ("api.client_ca".to_owned(), &config.api.client_ca),
    ];
    if let Some(notify) = &config.notify {
        lines.push(listener("notify", &notify.certificate, &notify.private_key, None));
        all.push(("notify.certificate".to_owned(), &notify.certificate));
    }
    for gateway in &config.gateway {
        all.extend(gateway.ca.iter().map(|path| (format!("gateway.{}.ca", gateway.name), path)));
    }
    let now = SystemClock.now();
    for (key, path) in all {
        let expires = read(path, &key).ok().and_then(|pem| not_after(&pem));
        lines.push(match expires {
            Some(expires) => judge(&key, expires, now),
            None => Line::fail(
                AREA,
                format!("{key}: no certificate can be read from {}", path.display()),
                "PEM, one or more certificates",
            ),
        });
    }
    lines.extend(config.api.crl.iter().map(|path| revocation_list(path, now)));
    lines
}

/// A list past its next update lets nobody in whom it is about.
fn revocation_list(path: &Path, now: Millis) -> Line {
    const MEND: &str = "have the authority's newest list put there, by a job that runs well within its time";
    let name = path.display();
    let lists = match read(path, "api.crl").and_then(|file| Ok(RevocationLists::read(&[file])?)) {
        Ok(lists) => lists,
        Err(error) => {
            let what = format!("api.crl: no revocation list can be used from {name}: {error:#}");
            return Line::fail(AREA, what, MEND);
        }
    };
    let (end, hours) =
        (lists.next_update().rfc3339(), (lists.next_update().0.saturating_sub(now.0)) / (3600 * 1000));
    match lists.next_update() {
        end_at if end_at <= now => Line::fail(AREA, format!("api.crl: {name} is stale since {end}"), MEND),
        _ if hours < SOON_HOURS => {
            Line::warn(AREA, format!("api.crl: {name} is stale in {hours} hours, at {end}"), MEND)
        }
        _ => Line::pass(AREA, format!("api.crl: {name} is good until {end}")),
    }
}

fn listener(name: &str, certificate: &Path, key: &Path, client_ca: Option<&Path>) -> Line {
    let usable = || -> anyhow::Result<()> {
        server_config(&ServerTls {
            certificate_pem: read(certificate, "certificate")?,
            private_key_pem: read_secret(key, "private_key")?.into_bytes(),
            client_ca_pem: client_ca.map(|path| read(path, "client_ca")).transpose()?,
        })?;
        Ok(())
    };
    match usable() {
        Ok(()) => Line::pass(AREA, format!("[{name}]: certificate and key belong together")),
        Err(error) => {
            Line::fail(AREA, format!("[{name}]: {error:#}"), "put certificate and key of one another there")
        }
    }
}

fn judge(key: &str, expires: Millis, now: Millis) -> Line {
    let left = expires.0.saturating_sub(now.0);
    let days = left / DAY_MS;
    let until = expires.rfc3339();
    if left <= 0 {
        return Line::fail(
            AREA,
            format!("{key} has expired on {until}"),
            "issue a new one and put it in its place",
        );
    }
    if days < SOON_DAYS {
        return Line::warn(AREA, format!("{key} expires in {days} days, on {until}"), "issue a new one now");
    }
    Line::pass(AREA, format!("{key} expires in {days} days, on {until}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_revocation_list_is_judged_by_its_next_update() {
        let now = SystemClock.now();
        let ca = crate::pki::Authority::make("a test", now).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.pem");
        let judged = |at: Millis| revocation_list(&path, at).verdict;
        assert_eq!(judged(now), Verdict::Fail, "it is missing");
        std::fs::write(&path, ca.revocation_list(&[], now, 7).unwrap()).unwrap();
        for (hours, verdict) in [(0, Verdict::Pass), (6 * 24 + 13, Verdict::Warn), (8 * 24, Verdict::Fail)] {
            assert_eq!(judged(Millis(now.0 + hours * 3600 * 1000)), verdict, "{hours}");
        }
        std::fs::write(&path, "no list").unwrap();
        assert_eq!(judged(now), Verdict::Fail);
        // It can be read, but it is of version 1, which no handshake takes.
        std::fs::write(&path, crate::http::tls::tests::hand_made(b"", &[])).unwrap();
        let line = revocation_list(&path, now);
        assert!(line.verdict == Verdict::Fail && line.told.contains("version 2"), "{}", line.told);
    }

    #[test]
    fn an_expiry_is_warned_of_before_it_comes() {
        let now = Millis(1_000 * DAY_MS);
        for (days, verdict) in [
            (-1, Verdict::Fail),
            (0, Verdict::Fail),
            (1, Verdict::Warn),
            (29, Verdict::Warn),
            (30, Verdict::Pass),
        ] {
            assert_eq!(judge("api", Millis(now.0 + days * DAY_MS), now).verdict, verdict, "{days}");
        }
    }
}
