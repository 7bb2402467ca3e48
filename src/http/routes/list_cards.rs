//! `GET /v1/cards?referenceBuyerId=&fingerprint=&after=&limit=`: a page of masked cards, oldest first.

use axum::body::Body;
use axum::http::{Response, StatusCode};

use crate::base::ids::{BuyerId, CardId};
use crate::crypto::fingerprint;
use crate::http::extract::Query;
use crate::http::problem::Problem;
use crate::http::router::{Call, detached, json};
use crate::model::access::ReadCards;
use crate::ops::cards::CardQuery;

/// Handles the request.
pub async fn handle(call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<ReadCards>()?;
    let query = Query::read(call.query(), &["referenceBuyerId", "fingerprint", "after", "limit"])?;
    let limit = query.limit()?;
    let buyer = query.id("referenceBuyerId", BuyerId::parse)?;
    let wanted = CardQuery {
        buyer: buyer.map(|buyer| buyer.as_str().to_owned()),
        fingerprint: query.parsed("fingerprint", fingerprint::parse)?,
        after: query.parsed("after", CardId::parse)?,
    };
    let vault = call.vault;
    let (cards, more) = detached(async move { vault.list_cards(&allowed, &wanted, limit).await }).await?;
    let next = cards.last().filter(|_| more).map(|card| card.card_id.to_string());
    let items = cards.iter().map(|card| card.json()).collect();
    Ok(json(StatusCode::OK, super::page(items, next.as_deref())))
}
