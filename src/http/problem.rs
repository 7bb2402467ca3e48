//! RFC 9457 problem details. Everything in one comes from this file's constant texts, from pointers
//! whose names the vault knows, and from ids that the vault made: nothing of a request is echoed.
//! `docs/errors.md` tells what to do about each.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;

use crate::base::fault::FieldFault;
use crate::base::ids::RequestId;
use crate::base::json::{JsonFault, JsonFaultKind, ObjectWriter};
use crate::model::rules::Refusal;
use crate::ops::error::OpError;

/// A kind of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// HTTP status.
    pub status: u16,
    /// Stable code.
    pub code: &'static str,
    /// For people.
    pub detail: &'static str,
    /// Seconds after which to try again, if that can help.
    pub retry_after: Option<u32>,
}

macro_rules! kinds {
    ($($name:ident = $status:literal $code:literal $detail:literal $(after $retry:literal)?;)*) => {
        $(
            #[doc = $detail]
            pub const $name: Kind = Kind {
                status: $status,
                code: $code,
                detail: $detail,
                retry_after: kinds!(@after $($retry)?),
            };
        )*

        /// Every kind, for the documentation and its test.
        pub const ALL: &[Kind] = &[$($name),*];
    };
    (@after) => { None };
    (@after $retry:literal) => { Some($retry) };
}

kinds! {
    MALFORMED_JSON = 400 "malformed_json" "The body is not one JSON value in UTF-8.";
    DUPLICATE_MEMBER = 400 "duplicate_member" "An object of the body names a member twice.";
    TOO_DEEP = 400 "too_deep" "The body is nested too deeply.";
    NUL_CHARACTER = 400 "nul_character" "A string of the body holds a NUL character.";
    INCOMPLETE_BODY = 400 "incomplete_body" "The body did not arrive whole.";
    INVALID_QUERY = 400 "invalid_query" "A query parameter is unknown, repeated or not valid.";
    CLIENT_NOT_KNOWN = 403 "client_not_known" "The certificate is good, but its name is no configured client's.";
    CERTIFICATE_EXPIRED = 403 "certificate_expired" "The client's certificate has expired on this connection.";
    CERTIFICATE_REFUSED = 403 "certificate_refused" "The client's certificate is not let in any more: it was revoked, or its authority is trusted no longer.";
    MISSING_SCOPE = 403 "missing_scope" "The client does not have the scope that this needs.";
    NOT_FOUND = 404 "not_found" "There is no such object for this merchant.";
    METHOD_NOT_ALLOWED = 405 "method_not_allowed" "The path does not take this method.";
    BODY_TIMEOUT = 408 "body_timeout" "The body did not arrive in time.";
    REQUEST_ID_REUSED = 409 "request_id_reused" "The request id is in use with another meaning.";
    CVV_NOT_AVAILABLE = 409 "cvv_not_available" "The CVV held for this card is not in this process. Nothing was sent. Send the CVV with the payment, or say cvv: \"OMIT\".";
    BODY_TOO_LARGE = 413 "body_too_large" "The body is larger than 64 KiB.";
    UNSUPPORTED_MEDIA_TYPE = 415 "unsupported_media_type" "The body must be application/json, without a content encoding.";
    INVALID_REQUEST = 422 "invalid_request" "Members of the request are not valid. Nothing was stored or sent.";
    UNKNOWN_FIELD = 422 "unknown_field" "The request has a member that is not known here. Nothing was stored or sent.";
    CARD_DATA_OUTSIDE_CARD = 422 "card_data_outside_card" "Card data stands where none may be. Nothing was stored or sent.";
    STORED_CREDENTIAL_REQUIRED = 422 "stored_credential_required" "The card was typed too long ago to be paid with unless a stored-credential agreement covers it. Nothing was sent.";
    STORED_CREDENTIAL_REFUSED = 422 "stored_credential_refused" "A rule of stored credentials forbids the payment; errors tells which. Nothing was sent.";
    OPERATION_REFUSED = 422 "operation_refused" "The payment does not allow the operation; errors tells why. Nothing was sent.";
    BUYER_MISMATCH = 422 "buyer_mismatch" "The card belongs to another buyer. Nothing was sent.";
    TOO_MANY_REQUESTS = 429 "too_many_requests" "The client asks faster than it may. Nothing was stored or sent." after 1;
    TOO_MANY_AT_ONCE = 429 "too_many_at_once" "Too many requests of the client are under way. Nothing was stored or sent." after 1;
    TOO_MANY_UNKNOWN_IDS = 429 "too_many_unknown_ids" "The client asks for too much that does not exist. Nothing was stored or sent." after 5;
    TOO_MANY_CVVS = 429 "too_many_cvvs" "Too many CVVs are held at once." after 30;
    INTERNAL = 500 "internal" "The vault failed; its log says why.";
    SEALED = 503 "sealed" "The vault is sealed: its custodians have not brought their shares yet. Nothing was stored or sent." after 30;
    UNAVAILABLE = 503 "unavailable" "The database or a key is not available. Nothing was sent." after 5;
    OUTCOME_NOT_KNOWN = 503 "outcome_not_known" "The request was sent, or may be yet, and its outcome is not recorded. Repeat it with the same id." after 5;
}

/// A problem on its way to a caller.
#[derive(Debug, Clone)]
pub struct Problem {
    kind: Kind,
    errors: Vec<FieldFault>,
}

impl From<Kind> for Problem {
    fn from(kind: Kind) -> Self {
        Self { kind, errors: Vec::new() }
    }
}

impl Problem {
    /// A problem that names fields.
    pub fn with(kind: Kind, errors: Vec<FieldFault>) -> Self {
        Self { kind, errors }
    }

    /// The body, with the id of the request that it answers.
    pub fn json(&self, request_id: &RequestId) -> String {
        let errors: Vec<String> = self
            .errors
            .iter()
            .map(|fault| {
                ObjectWriter::default().string("pointer", &fault.pointer).string("code", fault.code).finish()
            })
            .collect();
        ObjectWriter::default()
            .string("type", &format!("urn:cardvault:problem:{}", self.kind.code))
            .raw("status", &self.kind.status.to_string())
            .string("code", self.kind.code)
            .string("detail", self.kind.detail)
            .raw("errors", &format!("[{}]", errors.join(",")))
            .string("requestId", request_id.as_str())
            .finish()
    }

    /// Its stable code.
    pub fn code(&self) -> &'static str {
        self.kind.code
    }

    /// Whether it says that something does not exist.
    pub fn is_not_found(&self) -> bool {
        self.kind == NOT_FOUND
    }

    /// Its HTTP status.
    pub fn status(&self) -> u16 {
        self.kind.status
    }

    /// The whole answer.
    pub fn response(&self, request_id: &RequestId) -> Response<Body> {
        let mut response = Response::new(Body::from(self.json(request_id)));
        *response.status_mut() =
            StatusCode::from_u16(self.kind.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.kind.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Inside the router a problem travels as an extension of an empty answer; the outermost layer, which
/// knows the request's id, writes it out.
impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        response.extensions_mut().insert(self);
        response
    }
}

impl From<JsonFault> for Problem {
    fn from(fault: JsonFault) -> Self {
        let kind = match fault.kind {
            JsonFaultKind::Syntax => return MALFORMED_JSON.into(),
            JsonFaultKind::Duplicate => DUPLICATE_MEMBER,
            JsonFaultKind::Depth => TOO_DEEP,
            JsonFaultKind::Nul => NUL_CHARACTER,
        };
        Self::with(kind, vec![FieldFault { pointer: fault.pointer.into(), code: fault.kind.code() }])
    }
}

impl From<Vec<FieldFault>> for Problem {
    fn from(errors: Vec<FieldFault>) -> Self {
        let all = |code: &str| !errors.is_empty() && errors.iter().all(|fault| fault.code == code);
        let kind = if all("unknown_field") {
            UNKNOWN_FIELD
        } else if all("card_data_outside_card") {
            CARD_DATA_OUTSIDE_CARD
        } else {
            INVALID_REQUEST
        };
        Self::with(kind, errors)
    }
}

impl From<OpError> for Problem {
    fn from(error: OpError) -> Self {
        let log = |what: &str, source: &anyhow::Error| {
            tracing::error!(error = format!("{source:#}"), "{what}");
        };
        match error {
            OpError::NotFound(fault) => Self::with(NOT_FOUND, fault.into_iter().collect()),
            OpError::Invalid(faults) => faults.into(),
            OpError::Forbidden(_) => MISSING_SCOPE.into(),
            OpError::Refused(Refusal::StoredCredentialRequired) => STORED_CREDENTIAL_REQUIRED.into(),
            OpError::Refused(Refusal::StoredCredential(reason)) => {
                let fault = FieldFault::at("/storedCredential", reason.code());
                Self::with(STORED_CREDENTIAL_REFUSED, vec![fault])
            }
            OpError::Refused(Refusal::BuyerMismatch) => {
                let fault = FieldFault::at("/order/buyer/referenceBuyerId", "buyer_mismatch");
                Self::with(BUYER_MISMATCH, vec![fault])
            }
            OpError::OperationRefused(refusal) => {
                let fault = FieldFault::at(refusal.pointer(None), refusal.code());
                Self::with(OPERATION_REFUSED, vec![fault])
            }
            OpError::OperationNotAllowed(kind, refusal) => {
                let fault = FieldFault::at(refusal.pointer(Some(kind)), refusal.code());
                Self::with(OPERATION_REFUSED, vec![fault])
            }
            OpError::RequestIdReused(pointer) => {
                Self::with(REQUEST_ID_REUSED, vec![FieldFault::at(pointer, "request_id_reused")])
            }
            OpError::CvvNotAvailable => CVV_NOT_AVAILABLE.into(),
            OpError::TooMuch => TOO_MANY_CVVS.into(),
            OpError::Sealed => SEALED.into(),
            OpError::Unavailable(source) | OpError::Unclear(source) => {
                log("a request could not be carried out", &source);
                UNAVAILABLE.into()
            }
            OpError::OutcomeNotKnown(source) => {
                log("a request's outcome could not be recorded", &source);
                OUTCOME_NOT_KNOWN.into()
            }
            OpError::Internal(source) => {
                log("a request failed inside", &source);
                INTERNAL.into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_code_and_is_documented() {
        let documented = include_str!("../../docs/errors.md");
        let mut codes: Vec<&str> = ALL.iter().map(|kind| kind.code).collect();
        for kind in ALL {
            assert!(documented.contains(&format!("`{}`", kind.code)), "{}", kind.code);
            assert!(documented.contains(&format!("| {} |", kind.status)), "{}", kind.status);
        }
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ALL.len());
    }

    #[test]
    fn a_fault_of_json_has_the_code_of_its_problem() {
        for kind in
            [JsonFaultKind::Syntax, JsonFaultKind::Duplicate, JsonFaultKind::Depth, JsonFaultKind::Nul]
        {
            let problem = Problem::from(JsonFault { kind, pointer: String::new() });
            assert_eq!(problem.code(), kind.code());
        }
    }
}
