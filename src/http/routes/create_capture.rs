//! `POST /v1/payments/{paymentRequestId}/captures`: Antom's own capture request. Any answer of the gateway, and
//! none, is HTTP 200.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{Response, StatusCode};

use crate::http::extract::{Query, json_body};
use crate::http::problem::Problem;
use crate::http::router::{self, Call, detached};
use crate::model::access::ModifyPayments;
use crate::model::operation::OperationKind;

/// Handles the request.
pub async fn handle(Path(id): Path<String>, call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<ModifyPayments>()?;
    Query::read(call.query(), &[])?;
    let id = super::payment_request_id(&id)?;
    let body = json_body(call.request).await?;
    let vault = call.vault;
    let kind = OperationKind::Capture;
    let done = detached(async move { vault.operate(&allowed, kind, &id, body).await }).await?;
    Ok(router::json(StatusCode::OK, done.json()))
}
