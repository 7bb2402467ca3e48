//! The API's table of contents, and what every request passes: a caller is identified before anything
//! is read, and every answer is written in one place.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequest, MatchedPath, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::MethodRouter;
use tokio::sync::{oneshot, watch};

use crate::base::ids::RequestId;
use crate::base::stack::leaving_nothing;
use crate::model::access::{Action, Allowed, Caller};
use crate::model::audit::{Actor, Entry};
use crate::ops::Vault;
use crate::ops::audit::{acting, actor};
use crate::ops::error::OpError;

use super::admission::{Clients, Rules, Standing, changed};
use super::extract::discard;
use super::outlasting::Outlasting;
use super::pace::{HOLD, Missed, Pace};
use super::peer::Peer;
use super::problem::{self, Problem};
use super::routes;

/// Under what name every answer is logged.
pub const LOGGED_AS: &str = module_path!();

/// The route whose reads wait.
const EVENTS: &str = "/v1/events";

/// Ends when a request's caller has gone.
type Gone = oneshot::Receiver<std::convert::Infallible>;

/// What the API needs.
#[derive(Clone)]
pub struct Api {
    /// The operations.
    pub vault: Arc<Vault>,
    /// The configured clients.
    pub clients: Clients,
    /// How fast they may ask.
    pub pace: Arc<Pace>,
}

/// Makes the table of routes and its list, so that no route is served that a test of access does not see.
macro_rules! routes {
    ($($path:literal { $($method:ident $handler:ident)+ })+) => {
        /// Every route that is served: method and path.
        pub const ROUTES: &[(&str, &str)] = &[$($((stringify!($method), $path),)+)+];

        fn table() -> Router<Api> {
            Router::new()$(.route($path, MethodRouter::new()$(.$method(routes::$handler::handle))+))+
        }
    };
}

routes! {
    "/v1/cards" { post create_card get list_cards }
    "/v1/cards/{card_id}" { get read_card patch patch_card delete erase_card }
    "/v1/cards/{card_id}/cvv" { put put_cvv }
    "/v1/cards/{card_id}/agreements" { get list_agreements }
    "/v1/agreements/{agreement_id}" { get read_agreement delete withdraw_agreement }
    "/v1/payments" { post create_payment get list_payments }
    "/v1/payments/{payment_request_id}" { get read_payment }
    "/v1/payments/{payment_request_id}/captures" { post create_capture get list_captures }
    "/v1/payments/{payment_request_id}/captures/{capture_request_id}" { get read_capture }
    "/v1/payments/{payment_request_id}/cancel" { post cancel_payment get read_cancel }
    "/v1/payments/{payment_request_id}/refunds" { post create_refund get list_refunds }
    "/v1/payments/{payment_request_id}/refunds/{refund_request_id}" { get read_refund }
    "/v1/events" { get list_events }
    "/v1/whoami" { get whoami }
    "/openapi.json" { get openapi }
}

/// The API's routes.
pub fn router(api: Api) -> Router {
    table()
        .fallback(|| async { Problem::from(problem::NOT_FOUND) })
        .method_not_allowed_fallback(|| async { Problem::from(problem::METHOD_NOT_ALLOWED) })
        .layer(from_fn_with_state(api.clone(), every_request))
        .with_state(api)
}

/// Answers a request. What becomes of it does not depend on whether its caller waits for the answer.
async fn every_request(State(api): State<Api>, request: Request, next: Next) -> Response<Body> {
    // A read that waits for events ends when its caller hangs up: this is dropped, and the other end is told.
    let (_here, gone) = match route_of(&request) {
        Some(EVENTS) => {
            let (here, gone) = oneshot::channel();
            (Some(here), Some(gone))
        }
        _ => (None, None),
    };
    Outlasting::new(Arc::clone(&api.vault), answered(api, request, next, gone)).await
}

/// Identifies the caller, runs the handler, writes the answer and one line of log.
async fn answered(api: Api, request: Request, next: Next, gone: Option<Gone>) -> Response<Body> {
    let started = Instant::now();
    // The path as it was matched, and a method that has a name: what was sent may hold anything.
    let method = method_name(request.method());
    let route = route_of(&request).unwrap_or("none");
    let Ok(request_id) = RequestId::make() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let peer = request.extensions().get::<Arc<Peer>>().cloned();
    let standing = request.extensions().get::<Arc<Standing>>().cloned();
    let mut rules = standing.as_ref().map(|standing| standing.watch());
    let caller = identified(&api, peer.as_deref(), standing.as_deref(), &request_id);
    let who = acts(caller.as_ref().ok(), peer.as_deref(), &request_id);
    let client = caller.as_ref().ok().map(|caller| caller.client().name.clone());
    // The path itself is told only once it was found.
    let read =
        matches!(*request.method(), Method::GET | Method::HEAD).then(|| request.uri().path().to_owned());
    let response = acting(who, async {
        let mut telling = Telling::Each;
        let response = match caller {
            Err(problem) => {
                if !api.pace.stranger(api.vault.clock.instant()) {
                    telling = Telling::No;
                }
                problem.into_response()
            }
            Ok(caller) => match api.pace.enter(caller.client(), api.vault.clock.instant()) {
                Err(refusal) => {
                    telling = if refusal.first { Telling::Episode } else { Telling::No };
                    discard(request.into_body()).await;
                    Problem::from(refusal.kind).into_response()
                }
                Ok(mut pass) => {
                    let look = Look { api: &api, peer: peer.as_deref(), standing: standing.as_deref() };
                    let response = look.on(caller, request, next, &request_id, &mut rules, gone).await?;
                    if response.extensions().get::<Problem>().is_some_and(Problem::is_not_found)
                        && let Missed::Held { first } = pass.missed(api.vault.clock.instant())
                    {
                        telling = if first { Telling::Episode } else { Telling::No };
                        tokio::time::sleep(HOLD).await;
                    }
                    response
                }
            },
        };
        Some(audited(&api.vault, response, (method, route), read, telling).await)
    })
    .await;
    // Nobody waits for it, and it has come to nothing.
    let Some(response) = response else { return Response::new(Body::empty()) };
    let code = response.extensions().get::<Problem>().map(Problem::code);
    let response = finish(response, &request_id);
    api.vault.metrics.request(
        route,
        method,
        response.status().as_u16(),
        client.as_ref().map(|name| name.as_str()),
        started.elapsed(),
    );
    tracing::info!(
        request = request_id.as_str(),
        client = client.as_ref().map(|name| name.as_str()),
        method,
        route,
        status = response.status().as_u16(),
        code,
        ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "answered"
    );
    response
}

/// Whether a refusal has a row of the audit trail.
#[derive(Clone, Copy)]
enum Telling {
    /// Yes, as a rule.
    Each,
    /// Yes, for the many that follow too.
    Episode,
    /// No: an episode was told of already.
    No,
}

/// A request whose caller may ask.
struct Look<'a> {
    api: &'a Api,
    peer: Option<&'a Peer>,
    standing: Option<&'a Standing>,
}

impl Look<'_> {
    /// Runs the handler; none where its caller has gone, and was told nothing.
    async fn on(
        &self,
        caller: Caller,
        mut request: Request,
        next: Next,
        request_id: &RequestId,
        rules: &mut Option<watch::Receiver<Arc<Rules>>>,
        gone: Option<Gone>,
    ) -> Option<Response<Body>> {
        if !is_canonical(request.uri().path()) {
            return Some(Problem::from(problem::NOT_FOUND).into_response());
        }
        // Nothing works without keys, and a caller who knows that can wait.
        if self.api.vault.keys.are_closed() {
            return Some(Problem::from(problem::SEALED).into_response());
        }
        // A read that waits ends when its caller is let in no more. What changes something does not: it was
        // begun, and its caller must learn how it ended.
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let refused = async {
            loop {
                match rules {
                    Some(rules) => changed(rules).await,
                    None => std::future::pending().await,
                }
                if let Err(problem) = identified(self.api, self.peer, self.standing, request_id) {
                    return problem.into_response();
                }
            }
        };
        let gone = async {
            match gone {
                // Nothing is ever sent: the end of the channel is what is waited for.
                Some(gone) => {
                    let _ = gone.await;
                }
                None => std::future::pending().await,
            }
        };
        request.extensions_mut().insert(caller);
        let answered = async {
            // A read is told what is masked.
            if reads { next.run(request).await } else { leaving_nothing(next.run(request)).await }
        };
        tokio::select! {
            biased;
            response = answered => Some(response),
            response = refused, if reads => Some(response),
            () = gone => None,
        }
    }
}

/// In whose name a request's work is done.
fn acts(caller: Option<&Caller>, peer: Option<&Peer>, request_id: &RequestId) -> Actor {
    Actor {
        name: caller
            .map_or_else(|| "peer:unknown".to_owned(), |caller| format!("client:{}", caller.client().name)),
        merchant: caller.map(|caller| caller.client().merchant.clone()),
        origin: peer.map(|peer| format!("{} certificate {}", peer.remote, peer.serial)),
        request_id: Some(request_id.as_str().to_owned()),
    }
}

/// Records what wrote no row of its own: a refusal, before it is answered, and a read. What cannot be
/// recorded is not answered (PCI DSS 10.2.1.1, 10.2.1.4).
async fn audited(
    vault: &Vault,
    response: Response<Body>,
    (method, route): (&'static str, &'static str),
    read: Option<String>,
    telling: Telling,
) -> Response<Body> {
    let recorded = match (response.extensions().get::<Problem>(), read) {
        // What cannot work for now has done nothing; and without keys nothing can be recorded.
        (Some(problem), _) if problem.status() >= 503 || vault.keys.are_closed() => return response,
        (Some(_), _) if matches!(telling, Telling::No) => return response,
        (Some(problem), _) => {
            let action = if matches!(telling, Telling::Episode) { "request.excess" } else { "request" };
            // Few need its room, and every request would carry it.
            let asked = Entry::refused(action, problem.code()).about(format!("{method} {route}"));
            Box::pin(vault.note_alone(&asked)).await
        }
        // These tell nothing that is stored, and need no database.
        (None, Some(path)) if matches!(path.as_str(), "/v1/whoami" | "/openapi.json") => {
            vault.audit.note_soon(actor(), Entry::done("read", path));
            return response;
        }
        (None, Some(path)) => vault.audit.note_read(Entry::done("read", path)).await,
        (None, None) => return response,
    };
    match recorded {
        Ok(()) => response,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "a request cannot be audited");
            Problem::from(problem::UNAVAILABLE).into_response()
        }
    }
}

fn identified(
    api: &Api,
    peer: Option<&Peer>,
    standing: Option<&Standing>,
    request_id: &RequestId,
) -> Result<Caller, Problem> {
    let peer = peer.ok_or(problem::CLIENT_NOT_KNOWN)?;
    // The handshake looked at the certificate once; a connection can outlive it, and the rules of its time.
    if api.vault.clock.now() > peer.not_after {
        return Err(problem::CERTIFICATE_EXPIRED.into());
    }
    if standing.is_some_and(|standing| !standing.is_good()) {
        return Err(problem::CERTIFICATE_REFUSED.into());
    }
    api.clients.caller(peer, request_id).ok_or_else(|| problem::CLIENT_NOT_KNOWN.into())
}

/// The route that a request was matched to.
fn route_of(request: &Request) -> Option<&'static str> {
    let matched = request.extensions().get::<MatchedPath>()?;
    ROUTES.iter().map(|(_, path)| *path).find(|path| *path == matched.as_str())
}

/// A method for the log: HTTP lets a caller make one up, a card number for one.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// A path has one spelling: nothing encoded, no empty or dotted segment.
fn is_canonical(path: &str) -> bool {
    let segments = path.strip_prefix('/').map(|rest| rest.split('/'));
    !path.contains('%')
        && segments.is_some_and(|mut all| all.all(|segment| !matches!(segment, "" | "." | "..")))
}

fn finish(mut response: Response<Body>, request_id: &RequestId) -> Response<Body> {
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let allow = response.headers_mut().remove(axum::http::header::ALLOW);
        response = problem.response(request_id);
        if let Some(allow) = allow {
            response.headers_mut().insert(axum::http::header::ALLOW, allow);
        }
    }
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(request_id.as_str()) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    response
}

/// A request of an identified caller, as a handler takes it.
pub struct Call {
    /// The operations.
    pub vault: Arc<Vault>,
    /// Who calls.
    pub caller: Caller,
    /// The certificate that the caller showed.
    pub peer: Arc<Peer>,
    /// Everything else.
    pub request: Request,
}

impl FromRequest<Api> for Call {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        let caller = request.extensions().get::<Caller>().cloned();
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        match (caller, peer) {
            (Some(caller), Some(peer)) => Ok(Self { vault: api.vault.clone(), caller, peer, request }),
            _ => Err(problem::CLIENT_NOT_KNOWN.into()),
        }
    }
}

impl Call {
    /// Decides whether the caller may do `A`.
    pub fn allow<A: Action>(&self) -> Result<Allowed<A>, Problem> {
        self.caller.allow::<A>().map_err(|_| problem::MISSING_SCOPE.into())
    }

    /// How long the caller's certificate is still good: no answer may wait past its end.
    pub fn certificate_left(&self) -> Duration {
        let left = self.peer.not_after.0.saturating_sub(self.vault.clock.now().0);
        Duration::from_millis(u64::try_from(left).unwrap_or_default())
    }

    /// The query, without a leading `?`.
    pub fn query(&self) -> Option<&str> {
        self.request.uri().query()
    }
}

/// Runs an operation on a task of its own, so that a caller who hangs up leaves no half-done work and no
/// open transaction, and a panic in it harms nobody else. It begins at once, in a box: an operation is some
/// kilobytes, which every future around it would move again.
pub fn detached<T: Send + 'static>(
    operation: impl Future<Output = Result<T, OpError>> + Send + 'static,
) -> impl Future<Output = Result<T, Problem>> {
    let task = tokio::spawn(acting(actor(), leaving_nothing(Box::pin(operation))));
    async {
        match task.await {
            Ok(done) => done.map_err(Problem::from),
            Err(_) => Err(problem::INTERNAL.into()),
        }
    }
}

/// A JSON answer.
pub fn json(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document describes exactly what is served.
    #[test]
    fn openapi_and_the_router_agree() {
        let document: serde_json::Value = serde_json::from_str(routes::openapi::DOCUMENT).expect("JSON");
        let paths = document["paths"].as_object().expect("paths");
        let snake = |path: &str| {
            path.replace("cardId", "card_id")
                .replace("paymentRequestId", "payment_request_id")
                .replace("captureRequestId", "capture_request_id")
                .replace("refundRequestId", "refund_request_id")
                .replace("agreementId", "agreement_id")
        };
        let mut described: Vec<(String, String)> = Vec::new();
        for (path, operations) in paths {
            for method in operations.as_object().expect("operations").keys() {
                described.push((method.clone(), snake(path)));
            }
        }
        let mut served: Vec<(String, String)> =
            ROUTES.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect();
        described.sort();
        served.sort();
        assert_eq!(described, served);
    }

    #[test]
    fn a_path_has_one_spelling() {
        assert!(is_canonical("/v1/cards") && is_canonical("/v1/cards/card_1"));
        for bad in ["/v1//cards", "/v1/cards/", "/v1/./cards", "/v1/../cards", "/v1/%63ards", "", "v1", "*"] {
            assert!(!is_canonical(bad), "{bad}");
        }
    }
}
