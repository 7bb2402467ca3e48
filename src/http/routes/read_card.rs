//! `GET /v1/cards/{cardId}`: one masked card.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{Response, StatusCode};

use crate::http::extract::Query;
use crate::http::problem::Problem;
use crate::http::router::{Call, detached, json};
use crate::model::access::ReadCards;

/// Handles the request.
pub async fn handle(Path(id): Path<String>, call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<ReadCards>()?;
    Query::read(call.query(), &[])?;
    let id = super::card_id(&id)?;
    let vault = call.vault;
    let card = detached(async move { vault.read_card(&allowed, &id).await }).await?;
    Ok(json(StatusCode::OK, card.json()))
}
