//! What a handler is given: the identified caller, a strict query, and a strict JSON body. The errors
//! of the libraries below are never shown: they repeat what they choke on.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, Request};
use bytes::Bytes;
use http_body_util::BodyExt;

use crate::base::card::find_pans;
use crate::base::fault::FieldFault;
use crate::base::json;
use crate::base::limits::{BODY_BYTES, DISCARDED_BYTES, DISCARDING};
use crate::base::secret::{SecretBuf, SecretText};
use crate::model::vocabulary;

use super::problem::{self, Problem};
use super::serve::BodyTooSlow;

/// Reads a whole body: `application/json`, at most 64 KiB, one strict JSON value.
pub async fn json_body(request: Request<Body>) -> Result<SecretText, Problem> {
    let (head, body) = request.into_parts();
    check_headers(&head.headers)?;
    let declared = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if declared.is_some_and(|length: usize| length > BODY_BYTES) {
        discard(body).await;
        return Err(problem::BODY_TOO_LARGE.into());
    }
    let bytes = collect(body, declared.unwrap_or(BODY_BYTES)).await?;
    let text = std::str::from_utf8(bytes.expose()).map_err(|_| problem::MALFORMED_JSON)?;
    json::check(text, &vocabulary::is_known)?;
    Ok(text.into())
}

/// As [`json_body`], where a request may have no body at all.
pub async fn optional_json_body(request: Request<Body>) -> Result<Option<SecretText>, Problem> {
    use hyper::body::Body as _;
    if request.body().is_end_stream() { Ok(None) } else { json_body(request).await.map(Some) }
}

fn check_headers(headers: &HeaderMap) -> Result<(), Problem> {
    let one = |name| {
        let mut values = headers.get_all(name).iter();
        let value = values.next();
        if values.next().is_some() { None } else { value }
    };
    let media = one(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut parts = media.split(';').map(str::trim);
    let json = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"));
    let utf8 = parts.all(|part| part.eq_ignore_ascii_case("charset=utf-8"));
    if json && utf8 && !headers.contains_key(CONTENT_ENCODING) {
        Ok(())
    } else {
        Err(problem::UNSUPPORTED_MEDIA_TYPE.into())
    }
}

/// Reads a body that is not looked at, for a while: a caller that is still writing when the connection closes would
/// lose the answer that tells why.
pub async fn discard(mut body: Body) {
    let all = async {
        let mut read = 0;
        while let (true, Some(Ok(frame))) = (read < DISCARDED_BYTES, body.frame().await) {
            read += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // Whether it came to its end does not matter: the answer is the same.
    let _ = tokio::time::timeout(DISCARDING, all).await;
}

async fn collect(mut body: Body, capacity: usize) -> Result<SecretBuf, Problem> {
    let mut bytes = SecretBuf::with_capacity(capacity);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.push(&data).is_err() {
            drop(bytes);
            discard(body).await;
            return Err(problem::BODY_TOO_LARGE.into());
        }
    }
    Ok(bytes)
}

fn broken(error: &axum::Error) -> Problem {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = source {
        if inner.is::<BodyTooSlow>() {
            return problem::BODY_TIMEOUT.into();
        }
        source = inner.source();
    }
    problem::INCOMPLETE_BODY.into()
}

/// A query whose every parameter is known, given once, and has a plain value.
pub struct Query(BTreeMap<&'static str, String>);

impl Query {
    /// Reads the query of a request.
    pub fn read(raw: Option<&str>, known: &[&'static str]) -> Result<Self, Problem> {
        let mut read = BTreeMap::new();
        for pair in raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = known.iter().find(|known| **known == name).ok_or(problem::INVALID_QUERY)?;
            let value = percent_encoding::percent_decode_str(value)
                .decode_utf8()
                .map_err(|_| Self::fault(name))?
                .into_owned();
            if value.is_empty() || value.contains('\0') || read.insert(*name, value).is_some() {
                return Err(Self::fault(name));
            }
        }
        Ok(Self(read))
    }

    /// The problem that a parameter is not valid.
    pub fn fault(name: &'static str) -> Problem {
        Problem::with(problem::INVALID_QUERY, vec![FieldFault::at(name, "invalid_value")])
    }

    /// A parameter's text.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A parameter, parsed.
    pub fn parsed<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        self.get(name).map(|text| parse(text).ok_or_else(|| Self::fault(name))).transpose()
    }

    /// An id that the database is asked for. A card number is none, whatever the parameter: what is
    /// looked up may stand in the database's log.
    pub fn id<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        self.parsed(name, |text| if find_pans(text).is_empty() { parse(text) } else { None })
    }

    /// `limit`: 1 to 100, 50 where absent.
    pub fn limit(&self) -> Result<i64, Problem> {
        // The standard library also reads `+7` and `007`: a number has one spelling here.
        let plain = |text: &&str| !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
        let limit = self.parsed("limit", |text| {
            Some(text).filter(plain)?.parse().ok().filter(|n| (1..=100).contains(n))
        })?;
        Ok(limit.unwrap_or(50))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_one_reading() {
        let read = |raw| Query::read(Some(raw), &["after", "limit"]);
        assert_eq!(
            read("after=a%2Fb&limit=7").ok().and_then(|q| q.get("after").map(str::to_owned)).as_deref(),
            Some("a/b")
        );
        assert_eq!(read("limit=100").ok().and_then(|q| q.limit().ok()), Some(100));
        assert_eq!(read("").ok().and_then(|q| q.limit().ok()), Some(50));
        for bad in ["x=1", "after=1&after=2", "after=", "after", "after=%ff", "after=%00", "After=1"] {
            assert_eq!(read(bad).err().map(|p| p.code()), Some("invalid_query"), "{bad}");
        }
        for bad in ["limit=0", "limit=101", "limit=-1", "limit=x", "limit=1e1", "limit=+1", "limit=01"] {
            assert!(read(bad).is_ok_and(|q| q.limit().is_err()), "{bad}");
        }
    }

    #[test]
    fn only_plain_json_is_read() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().expect("a value"));
            }
            check_headers(&headers).is_ok()
        };
        assert!(headers(&[("content-type", "application/json")]));
        assert!(headers(&[("content-type", "Application/JSON; charset=UTF-8")]));
        assert!(!headers(&[]));
        assert!(!headers(&[("content-type", "text/plain")]));
        assert!(!headers(&[("content-type", "application/json; charset=latin1")]));
        assert!(!headers(&[("content-type", "application/json"), ("content-type", "application/json")]));
        assert!(!headers(&[("content-type", "application/json"), ("content-encoding", "gzip")]));
    }
}
