//! Reads a pay request as strictly as the reference describes it (sections 6 to 8).
//!
//! A refusal names the member and never repeats its value. What comes out is typed, so that the rest of
//! the sandbox asks no more questions about shape.

use serde_json::{Map, Value};

use super::cards::is_card_number;
use crate::gateway::antom::wire::Amount;

/// Why a request is refused before anything is done.
pub(super) struct Refusal {
    /// Antom's code.
    pub code: &'static str,
    /// For people; made of constant words.
    pub message: String,
}

/// A pay request that is well formed. No `Debug`: it holds a card.
pub(super) struct PayRequest {
    pub payment_request_id: String,
    pub amount: Amount,
    pub redirect_url: String,
    pub method: Method,
    pub three_ds: bool,
    pub three_ds_upgrade: bool,
    pub tokenize: bool,
    pub billing_address: bool,
    /// The `networkTransactionId` that a merchant-initiated payment continues.
    pub series: Option<String>,
    pub manual_capture: bool,
    pub notify_url: Option<String>,
}

/// What is paid with.
pub(super) enum Method {
    /// The card itself.
    Card { digits: String, cvv: Option<String> },
    /// Antom's token of an earlier payment.
    Token(String),
    /// Whatever the buyer types on the hosted page.
    HostedPage,
}

impl PayRequest {
    /// What a repeat must not change.
    pub fn parts(&self) -> [&str; 4] {
        let (digits, token) = match &self.method {
            Method::Card { digits, .. } => (digits.as_str(), ""),
            Method::Token(token) => ("", token.as_str()),
            Method::HostedPage => ("", ""),
        };
        [&self.amount.currency, &self.amount.value, digits, token]
    }
}

/// Reads the body of a pay request.
pub(super) fn pay(body: &Value) -> Result<PayRequest, Refusal> {
    let top = body.as_object().ok_or_else(|| illegal("the body"))?;
    one_of(top, "productCode", &["CASHIER_PAYMENT"])?;
    let payment_request_id = text(top, "paymentRequestId", 64)?.to_owned();
    let amount = amount(top, "paymentAmount")?;
    order(object(top, "order")?)?;
    environment(object(top, "env")?)?;
    let redirect_url = url(top, "paymentRedirectUrl")?.to_owned();
    let notify_url = notify_url(top, "paymentNotifyUrl", 2048)?;
    if top.contains_key("settlementStrategy") {
        currency(object(top, "settlementStrategy")?, "settlementStrategy.settlementCurrency")?;
    }
    let manual_capture = factor(object(top, "paymentFactor")?)?;
    let method = object(top, "paymentMethod")?;
    one_of(method, "paymentMethod.paymentMethodType", &["CARD"])?;
    let none = Map::new();
    let data = match method.contains_key("paymentMethodMetaData") {
        true => object(method, "paymentMethod.paymentMethodMetaData")?,
        false => &none,
    };
    meta_data(data)?;
    Ok(PayRequest {
        payment_request_id,
        amount,
        redirect_url,
        method: payment_method(method, data)?,
        three_ds: flag(data, THREE_DS)?.unwrap_or(false),
        three_ds_upgrade: flag(data, UPGRADE)?.unwrap_or(false),
        tokenize: flag(data, "tokenize")?.unwrap_or(false),
        billing_address: data.contains_key("billingAddress"),
        series: match data.contains_key("recurringType") {
            true => Some(text(data, "networkTransactionId", 256)?.to_owned()),
            false => None,
        },
        manual_capture,
        notify_url,
    })
}

/// Reads which payment an inquiry or a cancel means: by `paymentId` first, as Antom does.
pub(super) fn payment_named(body: &Value) -> Result<Named, Refusal> {
    let top = body.as_object().ok_or_else(|| illegal("the body"))?;
    if top.contains_key("paymentId") {
        return Ok(Named::PaymentId(text(top, "paymentId", 64)?.to_owned()));
    }
    Ok(Named::PaymentRequestId(text(top, "paymentRequestId", 64)?.to_owned()))
}

/// One of a payment's two names.
pub(super) enum Named {
    PaymentId(String),
    PaymentRequestId(String),
}

/// A capture or a refund that is well formed.
pub(super) struct OperationRequest {
    pub request_id: String,
    pub payment_id: String,
    pub amount: Amount,
    /// Whether a capture is the last one.
    pub last: bool,
    /// Which capture a refund is of.
    pub capture_id: Option<String>,
    pub notify_url: Option<String>,
}

/// Reads the body of a capture. Without a word on it, a capture is the last one (`captureType` FINAL).
pub(super) fn capture(body: &Value) -> Result<OperationRequest, Refusal> {
    let top = body.as_object().ok_or_else(|| illegal("the body"))?;
    let last = flag(top, "isLastCapture")?;
    let kind = match top.contains_key("captureType") {
        true => {
            one_of(top, "captureType", &["FINAL", "NON_FINAL"])?;
            top.get("captureType").and_then(Value::as_str)
        }
        false => None,
    };
    Ok(OperationRequest {
        request_id: text(top, "captureRequestId", 64)?.to_owned(),
        payment_id: text(top, "paymentId", 64)?.to_owned(),
        amount: amount(top, "captureAmount")?,
        last: last == Some(true) || kind == Some("FINAL") || (last.is_none() && kind.is_none()),
        capture_id: None,
        notify_url: None,
    })
}

/// Reads the body of a refund.
pub(super) fn refund(body: &Value) -> Result<OperationRequest, Refusal> {
    let top = body.as_object().ok_or_else(|| illegal("the body"))?;
    for (name, max) in [("referenceRefundId", 64), ("refundReason", 256)] {
        if top.contains_key(name) {
            text(top, name, max)?;
        }
    }
    flag(top, "isAsyncRefund")?;
    Ok(OperationRequest {
        request_id: text(top, "refundRequestId", 64)?.to_owned(),
        payment_id: text(top, "paymentId", 64)?.to_owned(),
        amount: amount(top, "refundAmount")?,
        last: false,
        capture_id: match top.contains_key("captureId") {
            true => Some(text(top, "captureId", 64)?.to_owned()),
            false => None,
        },
        notify_url: notify_url(top, "refundNotifyUrl", 1024)?,
    })
}

/// Reads which refund an inquiry means: by `refundId` first.
pub(super) fn refund_named(body: &Value) -> Result<RefundNamed, Refusal> {
    let top = body.as_object().ok_or_else(|| illegal("the body"))?;
    if top.contains_key("refundId") {
        return Ok(RefundNamed::Id(text(top, "refundId", 64)?.to_owned()));
    }
    Ok(RefundNamed::RequestId(text(top, "refundRequestId", 64)?.to_owned()))
}

/// One of a refund's two names.
pub(super) enum RefundNamed {
    Id(String),
    RequestId(String),
}

/// A refusal of a member that was well formed but does not fit the payment.
pub(super) fn misfit(path: &str) -> Refusal {
    illegal(path)
}

fn order(order: &Map<String, Value>) -> Result<(), Refusal> {
    text(order, "order.referenceOrderId", 64)?;
    text(order, "order.orderDescription", 256)?;
    amount(order, "order.orderAmount")?;
    match order.get("goods") {
        None => Ok(()),
        Some(Value::Array(goods)) if goods.len() <= 100 => Ok(()),
        Some(_) => Err(illegal("order.goods")),
    }
}

fn environment(env: &Map<String, Value>) -> Result<(), Refusal> {
    one_of(env, "env.terminalType", &["WEB", "WAP", "APP", "MINI_APP"])?;
    if env.contains_key("osType") {
        one_of(env, "env.osType", &["IOS", "ANDROID"])?;
    }
    if env.contains_key("clientIp") {
        text(env, "env.clientIp", 64)?;
    }
    Ok(())
}

/// Whether the merchant captures by itself.
fn factor(factor: &Map<String, Value>) -> Result<bool, Refusal> {
    flag(factor, "paymentFactor.isAuthorization")?;
    if !factor.contains_key("captureMode") {
        return Ok(false);
    }
    one_of(factor, "paymentFactor.captureMode", &["AUTOMATIC", "MANUAL"])?;
    Ok(factor.get("captureMode").is_some_and(|mode| mode == "MANUAL"))
}

/// The address of notifications; one that is not https is legal, and is not used.
fn notify_url(
    parent: &Map<String, Value>,
    path: &'static str,
    max: usize,
) -> Result<Option<String>, Refusal> {
    if !parent.contains_key(path) {
        return Ok(None);
    }
    let url = url(parent, path)?;
    if url.len() > max {
        return Err(illegal(path));
    }
    Ok(url.starts_with("https://").then(|| url.to_owned()))
}

/// Every key that a card's map may have (reference 7.3).
const META_DATA: &[&str] = &[
    "cardNo",
    "cvv",
    "expiryYear",
    "expiryMonth",
    "cardholderName",
    "billingAddress",
    "isCardOnFile",
    THREE_DS,
    UPGRADE,
    "recurringType",
    "networkTransactionId",
    "tokenize",
    "selectedCardBrand",
    "mpiData",
    "paymentMethodRegion",
    "cpf",
    "payerEmail",
    "dateOfBirth",
    "businessNo",
    "cardPasswordDigest",
];
const THREE_DS: &str = "is3DSAuthentication";
const UPGRADE: &str = "enableAuthenticationUpgrade";

/// Keys, flags and the rules of a merchant-initiated payment (reference 8.1).
fn meta_data(data: &Map<String, Value>) -> Result<(), Refusal> {
    if data.keys().any(|key| !META_DATA.contains(&key.as_str())) {
        return Err(refusal("INVALID_PAYMENT_METHOD_META_DATA", "paymentMethodMetaData has an unknown key."));
    }
    let on_file = flag(data, "isCardOnFile")?;
    if data.contains_key("billingAddress") {
        text(object(data, "billingAddress")?, "billingAddress.region", 2)?;
    }
    if data.contains_key("mpiData") {
        text(object(data, "mpiData")?, "mpiData.eci", 2)?;
    }
    if data.contains_key("networkTransactionId") {
        text(data, "networkTransactionId", 256)?;
    }
    if !data.contains_key("recurringType") {
        return Ok(());
    }
    one_of(data, "recurringType", &["SCHEDULED", "UNSCHEDULED"])?;
    text(data, "networkTransactionId", 256)?;
    absent(data, &["cvv", "mpiData"])?;
    if flag(data, THREE_DS)? == Some(true) {
        return Err(illegal(THREE_DS));
    }
    if on_file != Some(true) {
        return Err(illegal("isCardOnFile"));
    }
    Ok(())
}

fn payment_method(method: &Map<String, Value>, data: &Map<String, Value>) -> Result<Method, Refusal> {
    const CARD: [&str; 4] = ["expiryYear", "expiryMonth", "cvv", "cardholderName"];
    if method.contains_key("paymentMethodId") {
        absent(data, &["cardNo"])?;
        absent(data, &CARD)?;
        if flag(data, "isCardOnFile")? != Some(true) {
            return Err(illegal("isCardOnFile"));
        }
        return Ok(Method::Token(text(method, "paymentMethod.paymentMethodId", 2048)?.to_owned()));
    }
    if data.contains_key("cardNo") {
        return card(data);
    }
    match CARD.iter().any(|key| data.contains_key(*key)) {
        true => Err(illegal("cardNo")),
        false => Ok(Method::HostedPage),
    }
}

fn card(data: &Map<String, Value>) -> Result<Method, Refusal> {
    let digits = text(data, "cardNo", 32)?;
    if !is_card_number(digits) {
        return Err(refusal("INVALID_CARD_NUMBER", "The card number is invalid."));
    }
    let holder = object(data, "cardholderName")?;
    text(holder, "cardholderName.firstName", 32)?;
    text(holder, "cardholderName.lastName", 32)?;
    let (year, month) = (text(data, "expiryYear", 64)?, text(data, "expiryMonth", 64)?);
    if !all_digits(year, 2..=2) || !all_digits(month, 2..=2) {
        return Err(refusal("INVALID_EXPIRY_DATE_FORMAT", "The expiry date is not two digits each."));
    }
    if !("01"..="12").contains(&month) {
        return Err(refusal("INVALID_EXPIRATION_DATE", "The expiry date is invalid."));
    }
    let cvv = match data.contains_key("cvv") {
        true => Some(text(data, "cvv", 64)?.to_owned()),
        false => None,
    };
    if cvv.as_deref().is_some_and(|cvv| !all_digits(cvv, 3..=4)) {
        return Err(refusal("INVALID_CVV", "The CVV is invalid."));
    }
    Ok(Method::Card { digits: digits.to_owned(), cvv })
}

fn amount(parent: &Map<String, Value>, path: &'static str) -> Result<Amount, Refusal> {
    let amount = object(parent, path)?;
    let currency = currency(amount, path_of(path, "currency"))?;
    let value = text(amount, path_of(path, "value"), 16)?;
    let whole = all_digits(value, 1..=16) && !value.starts_with('0');
    if !whole || (currency == "IDR" && !value.ends_with("00")) {
        return Err(illegal(path_of(path, "value")));
    }
    Ok(Amount { currency: currency.to_owned(), value: value.to_owned() })
}

fn path_of(path: &'static str, member: &'static str) -> &'static str {
    match (path, member) {
        ("paymentAmount", "currency") => "paymentAmount.currency",
        ("paymentAmount", _) => "paymentAmount.value",
        ("captureAmount", "currency") => "captureAmount.currency",
        ("captureAmount", _) => "captureAmount.value",
        ("refundAmount", "currency") => "refundAmount.currency",
        ("refundAmount", _) => "refundAmount.value",
        (_, "currency") => "order.orderAmount.currency",
        _ => "order.orderAmount.value",
    }
}

fn currency<'a>(parent: &'a Map<String, Value>, path: &'static str) -> Result<&'a str, Refusal> {
    let code = text(parent, path, 3)?;
    let good = code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_uppercase());
    if good { Ok(code) } else { Err(illegal(path)) }
}

/// An address that a browser can be sent to, and that fits into a header.
fn url<'a>(parent: &'a Map<String, Value>, path: &'static str) -> Result<&'a str, Refusal> {
    let url = text(parent, path, 2048)?;
    let web = url.starts_with("https://") || url.starts_with("http://");
    if web && url.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(url) } else { Err(illegal(path)) }
}

fn one_of(parent: &Map<String, Value>, path: &'static str, words: &[&str]) -> Result<(), Refusal> {
    if words.contains(&text(parent, path, 64)?) { Ok(()) } else { Err(illegal(path)) }
}

fn absent(data: &Map<String, Value>, names: &[&'static str]) -> Result<(), Refusal> {
    names.iter().find(|name| data.contains_key(**name)).map_or(Ok(()), |name| Err(illegal(name)))
}

/// A text of 1 to `max` characters. The member's name is the last part of its path.
fn text<'a>(parent: &'a Map<String, Value>, path: &'static str, max: usize) -> Result<&'a str, Refusal> {
    parent
        .get(last(path))
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty() && text.chars().count() <= max)
        .ok_or_else(|| illegal(path))
}

fn object<'a>(parent: &'a Map<String, Value>, path: &'static str) -> Result<&'a Map<String, Value>, Refusal> {
    parent.get(last(path)).and_then(Value::as_object).ok_or_else(|| illegal(path))
}

/// A boolean; Antom's pages also write it as a text.
fn flag(parent: &Map<String, Value>, path: &'static str) -> Result<Option<bool>, Refusal> {
    match parent.get(last(path)) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(Value::String(text)) if text == "true" => Ok(Some(true)),
        Some(Value::String(text)) if text == "false" => Ok(Some(false)),
        Some(_) => Err(illegal(path)),
    }
}

fn last(path: &'static str) -> &'static str {
    path.rsplit('.').next().unwrap_or(path)
}

fn all_digits(text: &str, length: std::ops::RangeInclusive<usize>) -> bool {
    length.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn illegal(path: &str) -> Refusal {
    refusal("PARAM_ILLEGAL", &format!("Illegal parameter: {path} is missing, malformed or not allowed here."))
}

fn refusal(code: &'static str, message: &str) -> Refusal {
    Refusal { code, message: message.to_owned() }
}
