//! `PUT /v1/cards/{cardId}/cvv`: hold a freshly typed CVV for the next payment, or for one payment.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{Response, StatusCode};

use crate::http::extract::{Query, json_body};
use crate::http::problem::Problem;
use crate::http::router::{Call, detached, json};
use crate::model::access::WriteCards;
use crate::model::card::read_cvv;

/// Handles the request.
pub async fn handle(Path(id): Path<String>, call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<WriteCards>()?;
    Query::read(call.query(), &[])?;
    let id = super::card_id(&id)?;
    let body = json_body(call.request).await?;
    let (cvv, payment) = read_cvv(&super::object(body.expose())?)?;
    drop(body);
    let vault = call.vault;
    let card = detached(async move { vault.hold_cvv(&allowed, &id, cvv, payment.as_ref()).await }).await?;
    Ok(json(StatusCode::OK, card.json()))
}
