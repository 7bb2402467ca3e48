//! Antom's words: paths, header names, result statuses and codes. Data only, so that the client and
//! the sandbox can share it without sharing logic.

use serde::{Deserialize, Serialize};

/// `POST` path of pay, production form.
pub const PAY: &str = "/ams/api/v1/payments/pay";
/// `POST` path of inquiryPayment, production form.
pub const INQUIRY_PAYMENT: &str = "/ams/api/v1/payments/inquiryPayment";
/// `POST` path of cancel, production form.
pub const CANCEL: &str = "/ams/api/v1/payments/cancel";
/// `POST` path of capture, production form.
pub const CAPTURE: &str = "/ams/api/v1/payments/capture";
/// `POST` path of refund, production form.
pub const REFUND: &str = "/ams/api/v1/payments/refund";
/// `POST` path of inquiryRefund, production form.
pub const INQUIRY_REFUND: &str = "/ams/api/v1/payments/inquiryRefund";

/// What a sandbox client id begins with.
pub const SANDBOX_CLIENT_PREFIX: &str = "SANDBOX_";

/// Names the merchant at Antom; sent both ways.
pub const CLIENT_ID: &str = "client-id";
/// When the request was made; signed as it stands.
pub const REQUEST_TIME: &str = "request-time";
/// When the answer was made; signed as it stands.
pub const RESPONSE_TIME: &str = "response-time";
/// `algorithm=RSA256,keyVersion=1,signature=<url-encoded base64>`.
pub const SIGNATURE: &str = "signature";

/// The path that a client id really calls (and signs): sandbox ids use `/ams/sandbox/api/…`.
pub fn path_for(client_id: &str, path: &str) -> String {
    if client_id.starts_with(SANDBOX_CLIENT_PREFIX) {
        path.replacen("/ams/api", "/ams/sandbox/api", 1)
    } else {
        path.to_owned()
    }
}

/// A sum of money as it stands on the wire: `value` in the currency's smallest unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// ISO 4217, three capitals.
    pub currency: String,
    /// Digits only, no sign, no dot.
    pub value: String,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallResult {
    /// Antom's code, such as `SUCCESS`.
    pub result_code: String,
    /// `S`, `F` or `U`.
    pub result_status: String,
    /// For people; absent in some answers.
    #[serde(default)]
    pub result_message: String,
}
