//! `POST /v1/cards`: tokenise. 201 for a new card, 200 for a known one, whose details are updated.

use axum::body::Body;
use axum::http::{Response, StatusCode};

use crate::http::extract::{Query, json_body};
use crate::http::problem::Problem;
use crate::http::router::{Call, detached, json};
use crate::model::access::WriteCards;
use crate::model::card::read_new_card;

/// Handles the request.
pub async fn handle(call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<WriteCards>()?;
    Query::read(call.query(), &[])?;
    let body = json_body(call.request).await?;
    let (card, cvv) = read_new_card(&super::object(body.expose())?, call.vault.clock.now())?;
    let vault = call.vault;
    let (new, card) = detached(async move { vault.tokenise(&allowed, card, cvv).await }).await?;
    Ok(json(if new { StatusCode::CREATED } else { StatusCode::OK }, card.json()))
}
