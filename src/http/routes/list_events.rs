//! `GET /v1/events?after=&limit=&wait=`: what changed, in order; waits for news up to 30 seconds.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Response, StatusCode};

use crate::base::limits::EVENT_WAIT;
use crate::http::extract::Query;
use crate::http::problem::Problem;
use crate::http::router::{Call, json};
use crate::model::access::ReadEvents;
use crate::model::event::Cursor;

/// Handles the request. It only reads, so it needs no task of its own, and its wait ends when its caller hangs up.
pub async fn handle(call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<ReadEvents>()?;
    let query = Query::read(call.query(), &["after", "limit", "wait"])?;
    let after = query.parsed("after", Cursor::parse)?.unwrap_or_default();
    let limit = query.limit()?;
    let wait = query.parsed("wait", seconds)?.unwrap_or_default().min(call.certificate_left());
    let events = call.vault.events(&allowed, after, limit, wait).await?;
    let next = events.last().map_or(after, |event| event.cursor).to_string();
    let items = events.iter().map(|event| event.json()).collect();
    Ok(json(StatusCode::OK, super::page(items, Some(&next))))
}

/// 0 to 30 whole seconds.
fn seconds(text: &str) -> Option<Duration> {
    let digits = text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit());
    let wait = Duration::from_secs(text.parse().ok().filter(|_| digits)?);
    (wait <= EVENT_WAIT).then_some(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_a_small_whole_number_of_seconds() {
        assert_eq!(seconds("0"), Some(Duration::ZERO));
        assert_eq!(seconds("30"), Some(EVENT_WAIT));
        for bad in ["", "31", "-1", "+1", "1.5", "1e1", "030", "x", "99999999999999999999"] {
            assert_eq!(seconds(bad), None, "{bad:?}");
        }
    }
}
