//! `GET /v1/payments/{paymentRequestId}/cancel`: the payment with its cancel, as it is known.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{Response, StatusCode};

use crate::http::extract::Query;
use crate::http::problem::{self, Problem};
use crate::http::router::{self, Call, detached};
use crate::model::access::ModifyPayments;

/// Handles the request.
pub async fn handle(Path(id): Path<String>, call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<ModifyPayments>()?;
    Query::read(call.query(), &[])?;
    let id = super::payment_request_id(&id)?;
    let vault = call.vault;
    let payment = detached(async move { vault.read_cancel(&allowed, &id).await }).await?;
    let payment = payment.filter(|payment| payment.cancel.is_some()).ok_or(problem::NOT_FOUND)?;
    Ok(router::json(StatusCode::OK, payment.json()))
}
