//! `GET /v1/payments?cardId=&status=&after=&limit=`: a page of payments, oldest first.

use axum::body::Body;
use axum::http::{Response, StatusCode};

use crate::base::ids::{CardId, PaymentRequestId};
use crate::http::extract::Query;
use crate::http::problem::Problem;
use crate::http::router::{Call, detached, json};
use crate::model::access::ReadPayments;
use crate::model::payment::Status;
use crate::ops::payments::PaymentQuery;

/// Handles the request.
pub async fn handle(call: Call) -> Result<Response<Body>, Problem> {
    let allowed = call.allow::<ReadPayments>()?;
    let query = Query::read(call.query(), &["cardId", "status", "after", "limit"])?;
    let limit = query.limit()?;
    let wanted = PaymentQuery {
        card_id: query.parsed("cardId", CardId::parse)?,
        status: query.parsed("status", Status::parse)?,
        after: query.id("after", PaymentRequestId::parse)?,
    };
    let vault = call.vault;
    let (payments, more) =
        detached(async move { vault.list_payments(&allowed, &wanted, limit).await }).await?;
    let next = payments.last().filter(|_| more).map(|payment| payment.payment_request_id.clone());
    let items = payments.iter().map(|payment| payment.json()).collect();
    Ok(json(StatusCode::OK, super::page(items, next.as_deref())))
}
