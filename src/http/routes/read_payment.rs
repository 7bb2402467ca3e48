//! `GET /v1/payments/{paymentRequestId}`: what is known; with `?refresh=true` the gateway is asked first.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{Response, StatusCode};

use crate::base::json;
use crate::http::extract::Query;
use crate::http::problem::Problem;
use crate::http::router::{self, Call, detached};
use crate::model::access::ReadPayments;

/// Handles the request.
pub async fn handle(Path(id): Path<String>, call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<ReadPayments>()?;
    let query = Query::read(call.query(), &["refresh"])?;
    let refresh = query.parsed("refresh", json::boolean)?.unwrap_or(false);
    let id = super::payment_request_id(&id)?;
    let vault = call.vault;
    let payment = detached(async move { vault.read_payment(&allowed, &id, refresh).await }).await?;
    Ok(router::json(StatusCode::OK, payment.json()))
}
