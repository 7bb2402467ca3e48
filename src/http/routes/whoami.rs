//! `GET /v1/whoami`: who the vault takes the caller for.

use axum::body::Body;
use axum::http::{Response, StatusCode};

use crate::base::json::ObjectWriter;
use crate::http::extract::Query;
use crate::http::problem::Problem;
use crate::http::router::{Call, json};

/// Handles the request.
pub async fn handle(call: Call) -> Result<Response<Body>, Problem> {
    Query::read(call.query(), &[])?;
    let client = call.caller.client();
    let scopes: Vec<String> = client.scopes.iter().map(|scope| format!("\"{}\"", scope.name())).collect();
    let text = ObjectWriter::default()
        .string("client", client.name.as_str())
        .string("merchant", client.merchant.as_str())
        .raw("scopes", &format!("[{}]", scopes.join(",")))
        .string("certificateExpiresAt", &call.peer.not_after.rfc3339())
        .finish();
    Ok(json(StatusCode::OK, text))
}
