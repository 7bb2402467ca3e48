//! `POST /v1/payments/{paymentRequestId}/cancel`: ends a payment, whole. The body is absent or empty.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{Response, StatusCode};

use crate::http::extract::{Query, optional_json_body};
use crate::http::problem::Problem;
use crate::http::router::{self, Call, detached};
use crate::model::access::ModifyPayments;
use crate::model::operation_request::check_cancel;

/// Handles the request.
pub async fn handle(Path(id): Path<String>, call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<ModifyPayments>()?;
    Query::read(call.query(), &[])?;
    let id = super::payment_request_id(&id)?;
    if let Some(body) = optional_json_body(call.request).await? {
        check_cancel(body.expose())?;
    }
    let vault = call.vault;
    let payment = detached(async move { vault.cancel_payment(&allowed, &id).await }).await?;
    Ok(router::json(StatusCode::OK, payment.json()))
}
