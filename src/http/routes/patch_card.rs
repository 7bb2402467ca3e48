//! `PATCH /v1/cards/{cardId}`: change expiry, name or address. What is absent stays.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{Response, StatusCode};

use crate::base::fault::FieldFault;
use crate::base::json::Object;
use crate::http::extract::{Query, json_body};
use crate::http::problem::Problem;
use crate::http::router::{Call, detached, json};
use crate::model::access::WriteCards;
use crate::model::card::CardPatch;

/// Handles the request.
pub async fn handle(Path(id): Path<String>, call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<WriteCards>()?;
    Query::read(call.query(), &[])?;
    let id = super::card_id(&id)?;
    let body = json_body(call.request).await?;
    let now = call.vault.clock.now();
    let read = move || {
        let object = Object::parse(body.expose()).ok_or_else(|| vec![FieldFault::at("", "invalid_type")])?;
        CardPatch::read(&object, now)
    };
    read()?;
    let vault = call.vault;
    let card = detached(async move { vault.patch_card(&allowed, &id, read).await }).await?;
    Ok(json(StatusCode::OK, card.json()))
}
