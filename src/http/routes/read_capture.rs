//! `GET /v1/payments/{paymentRequestId}/captures/{captureRequestId}`: what is known; with `?refresh=true` the
//! gateway is asked first.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{Response, StatusCode};

use crate::base::json;
use crate::http::extract::Query;
use crate::http::problem::Problem;
use crate::http::router::{self, Call, detached};
use crate::model::access::ModifyPayments;
use crate::model::operation::OperationKind;

/// Handles the request.
pub async fn handle(
    Path((id, request_id)): Path<(String, String)>,
    call: Call,
) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<ModifyPayments>()?;
    let query = Query::read(call.query(), &["refresh"])?;
    let refresh = query.parsed("refresh", json::boolean)?.unwrap_or(false);
    let (id, request_id) = (super::payment_request_id(&id)?, super::payment_request_id(&request_id)?);
    let vault = call.vault;
    let kind = OperationKind::Capture;
    let found =
        detached(async move { vault.read_operation(&allowed, kind, &id, &request_id, refresh).await })
            .await?;
    Ok(router::json(StatusCode::OK, found.json()))
}
