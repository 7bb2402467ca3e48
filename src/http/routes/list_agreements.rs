//! `GET /v1/cards/{cardId}/agreements`: a card's stored-credential agreements, oldest first.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{Response, StatusCode};

use crate::http::extract::Query;
use crate::http::problem::Problem;
use crate::http::router::{Call, detached, json};
use crate::model::access::ReadAgreements;

/// Handles the request.
pub async fn handle(Path(id): Path<String>, call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<ReadAgreements>()?;
    Query::read(call.query(), &[])?;
    let id = super::card_id(&id)?;
    let vault = call.vault;
    let agreements = detached(async move { vault.list_agreements(&allowed, &id).await }).await?;
    let items = agreements.iter().map(|agreement| agreement.json()).collect();
    Ok(json(StatusCode::OK, super::page(items, None)))
}
