//! `POST /v1/payments`: Antom's pay request, with a card's reference in place of the card, a card inline,
//! or no card at all. Any answer of the gateway, and none, is HTTP 200.

use axum::body::Body;
use axum::http::{Response, StatusCode};

use crate::http::extract::{Query, json_body};
use crate::http::problem::Problem;
use crate::http::router::{Call, detached, json};
use crate::model::access::{Pay, WriteCards};

/// Handles the request.
pub async fn handle(call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<Pay>()?;
    let write_cards = call.caller.allow::<WriteCards>().ok();
    Query::read(call.query(), &[])?;
    let body = json_body(call.request).await?;
    let vault = call.vault;
    let payment = detached(async move { vault.pay(&allowed, write_cards.as_ref(), body).await }).await?;
    Ok(json(StatusCode::OK, payment.json()))
}
