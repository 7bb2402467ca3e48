//! `GET /v1/agreements/{agreementId}`: one agreement, with the consent and the ids that the gateway told.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{Response, StatusCode};

use crate::base::ids::AgreementId;
use crate::http::extract::Query;
use crate::http::problem::{self, Problem};
use crate::http::router::{Call, detached, json};
use crate::model::access::ReadAgreements;

/// Handles the request.
pub async fn handle(Path(id): Path<String>, call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<ReadAgreements>()?;
    Query::read(call.query(), &[])?;
    let id = AgreementId::parse(&id).ok_or(problem::NOT_FOUND)?;
    let vault = call.vault;
    let agreement = detached(async move { vault.read_agreement(&allowed, &id).await }).await?;
    Ok(json(StatusCode::OK, agreement.json()))
}
