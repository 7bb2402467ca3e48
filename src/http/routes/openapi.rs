//! `GET /openapi.json`: the API's own description.

use axum::body::Body;
use axum::http::{Response, StatusCode};

use crate::http::extract::Query;
use crate::http::problem::Problem;
use crate::http::router::{Call, json};

/// OpenAPI 3.1. The tests hold it against the router.
pub const DOCUMENT: &str = include_str!("../openapi.json");

/// Handles the request.
pub async fn handle(call: Call) -> Result<Response<Body>, Problem> {
    Query::read(call.query(), &[])?;
    Ok(json(StatusCode::OK, DOCUMENT.to_owned()))
}
