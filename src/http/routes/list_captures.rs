//! `GET /v1/payments/{paymentRequestId}/captures`: those asked for here, and those that the gateway told of.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{Response, StatusCode};

use crate::http::extract::Query;
use crate::http::problem::Problem;
use crate::http::router::{self, Call, detached};
use crate::model::access::ModifyPayments;
use crate::model::operation::OperationKind;

/// Handles the request.
pub async fn handle(Path(id): Path<String>, call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<ModifyPayments>()?;
    Query::read(call.query(), &[])?;
    let id = super::payment_request_id(&id)?;
    let vault = call.vault;
    let kind = OperationKind::Capture;
    let all = detached(async move { vault.list_operations(&allowed, kind, &id).await }).await?;
    let items = all.iter().map(|operation| operation.brief_json()).collect();
    Ok(router::json(StatusCode::OK, super::page(items, None)))
}
