//! `DELETE /v1/agreements/{agreementId}`: withdraw the buyer's consent. 204, also when it was over before.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;

use crate::base::ids::AgreementId;
use crate::http::extract::Query;
use crate::http::problem::{self, Problem};
use crate::http::router::{Call, detached};
use crate::model::access::WithdrawAgreements;

/// Handles the request.
pub async fn handle(Path(id): Path<String>, call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<WithdrawAgreements>()?;
    Query::read(call.query(), &[])?;
    let id = AgreementId::parse(&id).ok_or(problem::NOT_FOUND)?;
    let vault = call.vault;
    detached(async move { vault.withdraw_agreement(&allowed, &id).await }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
