//! The notify plane: Antom's notifications in, over TLS without client certificates, on an address of its
//! own. What speaks for a notification is its signature over the path that Antom called and the raw bytes;
//! nothing of it is read before, and nothing of it is repeated in an answer.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt;

use crate::base::limits::GATEWAY_ANSWER_BYTES;
use crate::base::secret::SecretBuf;
use crate::base::stack::leaving_nothing;
use crate::gateway::antom::notification::{ACKNOWLEDGEMENT, TRY_AGAIN};
use crate::gateway::antom::verify::SignatureHeaders;
use crate::gateway::antom::wire;
use crate::model::audit::{Actor, Entry};
use crate::ops::Vault;
use crate::ops::notifications::NotTaken;

use super::sparing::{Sparing, with_others};

/// What an unsigned or misdirected request is told.
const REFUSED: &str =
    r#"{"result":{"resultCode":"INVALID_SIGNATURE","resultStatus":"F","resultMessage":"refused"}}"#;

/// What the notify plane needs.
#[derive(Clone)]
pub struct Notify {
    /// The operations.
    pub vault: Arc<Vault>,
    /// The path of `notify.public_url`, with its query: what Antom calls, and signs.
    pub signed_path: Arc<str>,
    /// The path that reaches this listener: another one where a proxy rewrites it.
    pub served_path: Arc<str>,
    /// Which forged notifications have an audit row.
    pub forged: Arc<Sparing>,
}

/// The notify plane's one route.
pub fn router(notify: Notify) -> Router {
    Router::new().fallback(handle).with_state(notify)
}

async fn handle(State(notify): State<Notify>, request: Request) -> Response<Body> {
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    if request.method() != Method::POST || path != &*notify.served_path {
        return answer(StatusCode::NOT_FOUND, REFUSED);
    }
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|remote| remote.ip());
    let (head, body) = request.into_parts();
    let Some(body) = collect(body).await else { return answer(StatusCode::BAD_REQUEST, REFUSED) };
    let headers = SignatureHeaders {
        client_id: one(&head.headers, wire::CLIENT_ID),
        time: one(&head.headers, wire::REQUEST_TIME),
        signature: one(&head.headers, wire::SIGNATURE),
    };
    let owned = Owned {
        client_id: headers.client_id.map(str::to_owned),
        time: headers.time.map(str::to_owned),
        signature: headers.signature.map(str::to_owned),
    };
    // On a task of its own: a sender that hangs up leaves no half-done work.
    let vault = Arc::clone(&notify.vault);
    let taken = tokio::spawn(leaving_nothing(async move {
        let headers = SignatureHeaders {
            client_id: owned.client_id.as_deref(),
            time: owned.time.as_deref(),
            signature: owned.signature.as_deref(),
        };
        let taken = vault.take_notification(&notify.signed_path, &headers, body.expose(), from).await;
        // Here, so that a sender that hangs up is told of too.
        if matches!(taken, Err(NotTaken::Forged))
            && let Some(left_out) = notify.forged.say()
        {
            let refused = Entry::refused("notification", with_others("not_verified", left_out));
            vault.audit.note_soon(Actor::unknown(from), refused);
        }
        taken
    }));
    match taken.await {
        Ok(Ok(())) => answer(StatusCode::OK, ACKNOWLEDGEMENT),
        Ok(Err(NotTaken::Forged)) => answer(StatusCode::UNAUTHORIZED, REFUSED),
        Ok(Err(error @ NotTaken::NotRecorded(_))) => {
            tracing::error!(error = &error as &dyn std::error::Error, "a notification must come again");
            answer(StatusCode::SERVICE_UNAVAILABLE, TRY_AGAIN)
        }
        Err(_) => answer(StatusCode::INTERNAL_SERVER_ERROR, TRY_AGAIN),
    }
}

struct Owned {
    client_id: Option<String>,
    time: Option<String>,
    signature: Option<String>,
}

/// A header that came exactly once.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// The whole body; none where it is too large or breaks off.
async fn collect(mut body: Body) -> Option<SecretBuf> {
    let mut bytes = SecretBuf::with_capacity(GATEWAY_ANSWER_BYTES);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        bytes.push(&data).ok()?;
    }
    Some(bytes)
}

fn answer(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
