//! What a call is answered with, and how the answer travels. Logic decides here and knows no sockets; the
//! server delivers and knows no payments.

use serde_json::{Value, json};

use super::check::Refusal;

/// An answer and its way to the client.
pub(super) struct Answer {
    /// The body.
    pub bytes: Vec<u8>,
    /// Shown by `recent_calls` in place of the body, when there is no body or it must not be shown.
    pub shown: Option<&'static str>,
    /// How it is given.
    pub manner: Manner,
    /// What happens when the time of a slow answer has passed.
    pub later: Option<Later>,
    /// The `paymentRequestId` whose notification the answer waits for.
    pub about: Option<String>,
}

/// What happens after the client has given up, or has been told to wait.
pub(super) enum Later {
    /// A payment lands.
    Payment(Box<super::pay::Later>),
    /// A capture or a refund ends.
    Operation(super::operations::Later),
}

/// How an answer is given. All but the last three are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// At once.
    Plain,
    /// After the time of a slow card.
    Late,
    /// After the payment's first notification.
    AfterNotice,
    /// HTTP 302 to another host.
    Redirect,
    /// The first half only.
    Truncated,
    /// HTTP 500.
    ServerError,
    /// With the signature of another text.
    WronglySigned,
    /// Without a signature.
    Unsigned,
    /// Never; the connection stays open for long.
    Silence,
    /// Never; the connection is closed at once.
    Closed,
}

impl Answer {
    /// A JSON body, given as `manner` says.
    pub fn json(body: &Value, manner: Manner) -> Self {
        Self::bytes(body.to_string().into_bytes(), manner)
    }

    /// Any bytes, given as `manner` says.
    pub fn bytes(bytes: Vec<u8>, manner: Manner) -> Self {
        let shown = match manner {
            Manner::Silence => Some("(no answer)"),
            Manner::Closed => Some("(no answer, connection closed)"),
            Manner::ServerError => Some("(HTTP 500)"),
            Manner::Redirect => Some("(HTTP 302 to another host)"),
            _ => None,
        };
        Self { bytes, shown, manner, later: None, about: None }
    }

    /// No body at all.
    pub fn nothing(manner: Manner) -> Self {
        Self::bytes(Vec::new(), manner)
    }

    /// A body with nothing but a result.
    pub fn result(status: &str, code: &str, message: &str) -> Self {
        Self::json(&json!({ "result": result(status, code, message) }), Manner::Plain)
    }

    /// `F` with this code.
    pub fn failure(code: &str) -> Self {
        Self::result("F", code, message(code))
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::result("F", refusal.code, &refusal.message)
    }
}

/// The member `result`.
pub(super) fn result(status: &str, code: &str, message: &str) -> Value {
    json!({ "resultCode": code, "resultMessage": message, "resultStatus": status })
}

/// Words for people that go with a code.
pub(super) fn message(code: &str) -> &'static str {
    match code {
        "SUCCESS" => "success.",
        "PAYMENT_IN_PROCESS" => "The payment is being processed.",
        "UNKNOWN_EXCEPTION" => "An API call has failed, which is caused by unknown reasons.",
        "REQUEST_TRAFFIC_EXCEED_LIMIT" => "The request traffic exceeds the limit.",
        "REPEAT_REQ_INCONSISTENT" => "Repeated requests are inconsistent.",
        "ORDER_IS_CLOSED" => "The order is closed.",
        "CAPTURE_AMOUNT_EXCEED" => "The captures would exceed the authorised amount.",
        "REFUND_AMOUNT_EXCEED" => "The refunds would exceed the captured amount.",
        "CANCEL_WINDOW_EXCEED" => "The payment can no longer be cancelled.",
        "ORDER_NOT_EXIST" => "The order does not exist.",
        "ORDER_STATUS_INVALID" => "The order status is invalid for this operation.",
        "RISK_REJECT" => "The payment is rejected by risk control.",
        "DO_NOT_HONOR" => "The payment is declined by the issuer.",
        "ISSUER_REJECTS_TRANSACTION" => "The issuer rejects the transaction.",
        "USER_BALANCE_NOT_ENOUGH" => "The balance is not enough.",
        "AUTHENTICATION_REQUIRED" => "The issuer requires 3D Secure authentication.",
        "USER_PAYMENT_VERIFICATION_FAILED" => "The payment verification of the user failed.",
        "INVALID_SIGNATURE" => "The signature is invalid.",
        "INVALID_CLIENT" => "The client is invalid.",
        "INVALID_API" => "The called API is invalid or not active.",
        "METHOD_NOT_SUPPORTED" => "The server does not implement the requested HTTP method.",
        "MEDIA_TYPE_NOT_ACCEPTABLE" => "The server does not implement the media type.",
        "PARAM_ILLEGAL" => "Illegal parameters exist.",
        _ => "The request failed.",
    }
}
