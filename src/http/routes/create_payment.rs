//! `POST /v1/payments`: Antom's pay request, with a card's reference in place of the card, a card inline,
//! or no card at all. With `?dryRun=true` only what would be sent is shown. Any answer of the gateway, and none, is HTTP 200.

use axum::body::Body;
use axum::http::{Response, StatusCode};

use crate::base::json;
use crate::http::extract::{Query, json_body};
use crate::http::problem::Problem;
use crate::http::router::{self, Call, detached};
use crate::model::access::{Pay, WriteCards};

/// Handles the request.
pub async fn handle(call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<Pay>()?;
    let write_cards = call.caller.allow::<WriteCards>().ok();
    let query = Query::read(call.query(), &["dryRun"])?;
    let dry_run = query.parsed("dryRun", json::boolean)?.unwrap_or(false);
    let body = json_body(call.request).await?;
    let vault = call.vault;
    if dry_run {
        let shown =
            detached(async move { vault.dry_run(&allowed, write_cards.as_ref(), body).await }).await?;
        return Ok(router::json(StatusCode::OK, shown.json()));
    }
    let payment = detached(async move { vault.pay(&allowed, write_cards.as_ref(), body).await }).await?;
    Ok(router::json(StatusCode::OK, payment.json()))
}
