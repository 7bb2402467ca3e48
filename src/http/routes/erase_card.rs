//! `DELETE /v1/cards/{cardId}`: erase, at once and for good. 204, also when it was erased before.

use axum::body::Body;
use axum::extract::Path;
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;

use crate::http::extract::Query;
use crate::http::problem::Problem;
use crate::http::router::{Call, detached};
use crate::model::access::EraseCards;

/// Handles the request.
pub async fn handle(Path(id): Path<String>, call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<EraseCards>()?;
    Query::read(call.query(), &[])?;
    let id = super::card_id(&id)?;
    let vault = call.vault;
    detached(async move { vault.erase_card(&allowed, &id).await }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
