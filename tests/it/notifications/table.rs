//! The table of notifications: what is known before, what comes, and what that changes. A row that is
//! `refused` or `ignored` changes nothing at all; one that is `asked` changes nothing by itself, and has the
//! gateway asked, who here says nothing clear.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::support::gateway::{INQUIRY, PAY, Received, Reply, Scripted, result};
use super::super::support::notices::{ACKNOWLEDGED, Header, Posted, Sign, Time};
use super::super::support::vault::{Caller, TestVault, by_reference, fresh_pan, with};
use super::super::support::{Database, eventually, sql};

/// A second account at the gateway, with the same keys.
const ELSEWHERE: &str = "SANDBOX_5YCARDVAULT00002";
/// What a request is told that is not the gateway's or is not for us.
const REFUSED: &str =
    r#"{"result":{"resultCode":"INVALID_SIGNATURE","resultStatus":"F","resultMessage":"refused"}}"#;

/// What a row's payment, and its capture or refund, is before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Unknown,
    Processing,
    /// Paid, and captured by the gateway.
    Authorized,
    Failed,
    Cancelled,
    /// Paid, to be captured by the merchant.
    Manual,
    /// A capture of such a payment, with its status.
    Capture(&'static str),
    /// A refund, with its status.
    Refund(&'static str),
}

/// What the notifications of a row do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Refused with this HTTP status.
    Refused(u16),
    /// Acknowledged.
    Nothing,
    /// Acknowledged; what issuer and scheme said is shown from then on, and nothing else changes.
    Tells,
    /// Acknowledged, and the gateway is asked about the payment or the operation.
    Asks,
    /// Acknowledged, and kept aside under this name.
    Keeps(&'static str),
    /// Acknowledged; the row's status is this one then, and these events are told.
    Moves(&'static str, &'static [&'static str]),
    /// As `Moves`, and the gateway is asked.
    MovesAndAsks(&'static str, &'static [&'static str]),
}

struct Row {
    name: &'static str,
    before: Before,
    sent: Vec<Notice>,
    does: Does,
}

fn row(name: &'static str, before: Before, sent: impl Into<Vec<Notice>>, does: Does) -> Row {
    Row { name, before, sent: sent.into(), does }
}

/// A notification whose names are filled in when its row has them: `@PAYMENT` is the `paymentRequestId`,
/// `@GATEWAY` Antom's id of it, `@OPERATION` the capture's or refund's id, `@DONE` Antom's id of that.
#[derive(Debug, Clone)]
struct Notice {
    body: Body,
    posted: Posted,
    /// What the body that is sent is made of, where it is not what was signed.
    instead: Option<fn(&str) -> String>,
}

#[derive(Debug, Clone)]
enum Body {
    Json(Value),
    Text(&'static str),
    Bytes(&'static [u8]),
    /// So many bytes, right in all else.
    Padded(usize),
}

impl From<Notice> for Vec<Notice> {
    fn from(notice: Notice) -> Self {
        vec![notice]
    }
}

impl Notice {
    fn of(body: Body) -> Self {
        Self { body, posted: Posted::new(""), instead: None }
    }

    fn json(body: Value) -> Self {
        Self::of(Body::Json(body))
    }

    /// With another value at a pointer; `null` takes the member out.
    fn set(mut self, pointer: &str, value: Value) -> Self {
        let Body::Json(body) = &mut self.body else { panic!("not JSON") };
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        let parent = body.pointer_mut(parent).and_then(Value::as_object_mut).expect("a parent");
        match value {
            Value::Null => drop(parent.remove(name).expect("a member")),
            value => drop(parent.insert(name.to_owned(), value)),
        }
        self
    }

    fn without(self, pointer: &str) -> Self {
        self.set(pointer, Value::Null)
    }

    /// A member that is there and null.
    fn null(self, pointer: &str) -> Self {
        let mut notice = self.set(pointer, json!(0));
        let Body::Json(body) = &mut notice.body else { panic!("not JSON") };
        *body.pointer_mut(pointer).expect("a member") = Value::Null;
        notice
    }

    fn sign(mut self, sign: Sign) -> Self {
        self.posted.sign = sign;
        self
    }

    fn header(mut self, header: Header) -> Self {
        self.posted.header = header;
        self
    }

    fn header_text(self, text: &'static str) -> Self {
        self.header(Header::Text(text))
    }

    fn time(mut self, time: Time) -> Self {
        self.posted.time = time;
        self
    }

    fn off(self, minutes: i64) -> Self {
        self.time(Time::Off(minutes))
    }

    fn post(mut self, change: impl FnOnce(&mut Posted)) -> Self {
        change(&mut self.posted);
        self
    }

    fn path(self, path: &'static str) -> Self {
        self.post(|posted| posted.path = path)
    }

    fn instead(mut self, instead: fn(&str) -> String) -> Self {
        self.instead = Some(instead);
        self
    }

    fn twice(self) -> Vec<Self> {
        vec![self.clone(), self]
    }

    fn then(self, next: Self) -> Vec<Self> {
        vec![self, next]
    }

    fn posted(&self, case: &Case) -> Posted {
        let body = match &self.body {
            Body::Json(body) => case.fill(&body.to_string()).into_bytes(),
            Body::Text(text) => case.fill(text).into_bytes(),
            Body::Bytes(bytes) => bytes.to_vec(),
            Body::Padded(length) => {
                let text = case.fill(&paid_json().to_string());
                text.replacen('{', &format!("{{\"padding\":\"{}\",", "x".repeat(*length)), 1).into_bytes()
            }
        };
        let instead = self.instead.map(|make| make(std::str::from_utf8(&body).expect("text")).into_bytes());
        Posted { body, instead, ..self.posted.clone() }
    }
}

fn paid_json() -> Value {
    json!({
        "notifyType": "PAYMENT_RESULT",
        "result": { "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "success" },
        "paymentRequestId": "@PAYMENT",
        "paymentId": "@GATEWAY",
        "paymentAmount": { "value": "30000", "currency": "EUR" },
        "paymentCreateTime": "2026-01-01T12:01:00+08:30",
        "paymentTime": "2026-01-01T12:01:01+08:30",
        "paymentResultInfo": { "avsResultRaw": "A", "cvvResultRaw": "Y", "networkTransactionId": "NTI1" },
    })
}

fn paid() -> Notice {
    Notice::json(paid_json())
}

fn failed() -> Notice {
    let result =
        json!({ "resultCode": "DO_NOT_HONOR", "resultStatus": "F", "resultMessage": "Do not honor." });
    paid().set("/result", result).without("/paymentTime").without("/paymentResultInfo")
}

fn pending() -> Notice {
    paid().set("/notifyType", json!("PAYMENT_PENDING")).without("/paymentTime")
}

fn status(notice: Notice, status: &str, code: &str) -> Notice {
    notice.set("/result", json!({ "resultCode": code, "resultStatus": status, "resultMessage": "words" }))
}

fn captured() -> Notice {
    Notice::json(json!({
        "notifyType": "CAPTURE_RESULT",
        "result": { "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "success" },
        "captureRequestId": "@OPERATION",
        "captureId": "@DONE",
        "paymentId": "@GATEWAY",
        "captureAmount": { "value": "10000", "currency": "EUR" },
        "captureTime": "2026-01-01T12:01:01+08:30",
        "acquirerReferenceNo": "ARN1",
    }))
}

fn not_captured() -> Notice {
    status(captured(), "F", "PROCESS_FAIL").without("/captureTime")
}

/// The gateway's own capture of the whole.
fn captured_alone() -> Notice {
    let whole = json!({ "value": "30000", "currency": "EUR" });
    captured().set("/captureRequestId", json!("AUTO_@PAYMENT")).set("/captureAmount", whole)
}

fn refunded() -> Notice {
    Notice::json(json!({
        "notifyType": "REFUND_RESULT",
        "refundStatus": "SUCCESS",
        "result": { "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "success" },
        "refundRequestId": "@OPERATION",
        "refundId": "@DONE",
        "paymentId": "@GATEWAY",
        "refundAmount": { "value": "10000", "currency": "EUR" },
        "refundTime": "2026-01-01T12:01:01+08:30",
        "arn": "ARN1",
    }))
}

fn not_refunded() -> Notice {
    status(refunded(), "F", "PROCESS_FAIL").set("/refundStatus", json!("FAIL")).without("/refundTime")
}

fn dispute(kind: &str) -> Notice {
    Notice::json(json!({
        "notifyType": kind,
        "paymentRequestId": "@PAYMENT",
        "paymentId": "@GATEWAY",
        "disputeId": "DISPUTE_@PAYMENT",
        "disputeTime": "2026-01-01T12:01:01+08:30",
        "disputeAmount": { "value": "30000", "currency": "EUR" },
        "disputeType": "CHARGEBACK",
        "disputeReasonCode": "10.4",
        "disputeReasonMsg": "Other fraud: card-absent environment",
    }))
}

const AUTHORIZED: Does = Does::Moves("AUTHORIZED", &["payment.authorized"]);
const FAILED: Does = Does::Moves("FAILED", &["payment.failed"]);
const PROCESSING: Does = Does::Moves("PROCESSING", &["payment.processing"]);

/// Not the gateway's word: nothing of it counts.
fn forged() -> Vec<Row> {
    use Before::{Manual, Processing, Refund, Unknown};
    let refused = |name, notice: Notice| row(name, Processing, notice, Does::Refused(401));
    let lost = |name, notice: Notice| row(name, Unknown, notice, Does::Refused(404));
    vec![
        refused("no signature", paid().header(Header::Missing)),
        refused("an empty signature header", paid().header_text("")),
        refused("`signature=`", paid().header_text("signature=")),
        refused("an empty signature", paid().header_text("algorithm=RSA256,keyVersion=1,signature=")),
        refused("a signature that is cut", paid().header(Header::Cut)),
        refused("a signature with a byte more", paid().header(Header::Longer)),
        refused("the signature header doubled", paid().header(Header::Doubled)),
        refused("another algorithm's name", paid().header_text("algorithm=RSA512,keyVersion=1,signature=%")),
        refused("no algorithm by name", paid().header_text("algorithm=none,keyVersion=1,signature=%")),
        refused("no algorithm", paid().header_text("keyVersion=1,signature=%")),
        refused("an unknown key version", paid().header_text("algorithm=RSA256,keyVersion=2,signature=%")),
        refused("no key version", paid().header_text("algorithm=RSA256,signature=%")),
        refused("a key version in words", paid().header_text("algorithm=RSA256,keyVersion=one,signature=%")),
        refused(
            "two key versions",
            paid().header_text("algorithm=RSA256,keyVersion=2,keyVersion=1,signature=%"),
        ),
        refused(
            "two signatures",
            paid().header_text("algorithm=RSA256,keyVersion=1,signature=AAAA,signature=%"),
        ),
        refused("a member too many", paid().header_text("algorithm=RSA256,keyVersion=1,signature=%,more=1")),
        refused("encoded twice", paid().header_text("algorithm=RSA256,keyVersion=1,signature=&")),
        refused("not base64", paid().header_text("algorithm=RSA256,keyVersion=1,signature=(%)")),
        refused("signed by an unrelated key", paid().sign(Sign::OtherKey)),
        refused("signed with MD5", paid().sign(Sign::Md5)),
        refused("signed with SHA-1", paid().sign(Sign::Sha1)),
        refused("signed with SHA-512", paid().sign(Sign::Sha512)),
        refused("signed without the algorithm's name", paid().sign(Sign::Bare)),
        refused("signed with PSS", paid().sign(Sign::Pss)),
        refused("a space behind the body", paid().instead(|body| format!("{body} "))),
        refused("a line end behind the body", paid().instead(|body| format!("{body}\r\n"))),
        refused("a second object behind the body", paid().instead(|body| body.repeat(2))),
        refused(
            "the body re-serialised",
            paid().instead(|body| {
                let value: Value = serde_json::from_str(body).expect("JSON");
                serde_json::to_string_pretty(&value).expect("JSON")
            }),
        ),
        refused("the amount changed", paid().instead(|body| body.replace("30000", "30001"))),
        refused("the failure made a success", failed().instead(|body| body.replace("\"F\"", "\"S\""))),
        refused("no body", paid().instead(|_| String::new())),
        refused("signed without the body", paid().sign(Sign::Body(""))),
        refused("signed over another path", paid().sign(Sign::Path("/antom/other"))),
        refused("signed over the path with a slash", paid().sign(Sign::Path("/antom/notify/"))),
        refused("signed over the path with a query", paid().sign(Sign::Path("/antom/notify?a=1"))),
        refused("signed over the address", paid().sign(Sign::Path("https://127.0.0.1/antom/notify"))),
        refused("signed over another time", paid().sign(Sign::Time("1772366400123"))),
        refused("signed over another client id", paid().sign(Sign::Client(ELSEWHERE))),
        refused(
            "another client id in the header",
            paid()
                .sign(Sign::Client(super::super::support::notices::CLIENT))
                .post(|it| it.client = ELSEWHERE),
        ),
        refused("a client id that nobody has", paid().post(|it| it.client = "SANDBOX_5YCARDVAULT99999")),
        refused("the client id in lower case", paid().post(|it| it.client = "sandbox_5ycardvault00001")),
        refused("no client id", paid().post(|it| it.without = &["client-id"])),
        refused("the client id doubled", paid().post(|it| it.twice = &["client-id"])),
        refused("no time", paid().post(|it| it.without = &["request-time"])),
        refused("the time doubled", paid().post(|it| it.twice = &["request-time"])),
        refused("not text", Notice::of(Body::Bytes(b"{\"notifyType\":\"\xff\"}"))),
        lost("the path with a slash", paid().path("/antom/notify/")),
        lost("the path with a query", paid().path("/antom/notify?a=1")),
        lost("the path in other letters", paid().path("/Antom/notify")),
        lost("the path encoded", paid().path("/antom/%6eotify")),
        lost("another path", paid().path("/v1/payments")),
        lost("GET", paid().post(|it| it.method = "GET")),
        lost("PUT", paid().post(|it| it.method = "PUT")),
        row("300 KB", Unknown, Notice::of(Body::Padded(300_000)), Does::Refused(400)),
        row("a forged capture", Manual, captured().sign(Sign::OtherKey), Does::Refused(401)),
        row("a forged refund", Refund("UNKNOWN"), refunded().header(Header::Cut), Does::Refused(401)),
        row("a forged dispute", Manual, dispute("DISPUTE_CREATED").sign(Sign::Sha1), Does::Refused(401)),
    ]
}

/// The gateway's own word, in every form that it may have.
fn forms() -> Vec<Row> {
    use Before::{Authorized, Processing, Unknown};
    let paid_by = |name, notice: Notice| row(name, Unknown, notice, AUTHORIZED);
    let asked = |name, notice: Notice| row(name, Unknown, notice, Does::Asks);
    vec![
        paid_by("as it should be", paid()),
        paid_by(
            "spaces behind the commas",
            paid().header_text("algorithm=RSA256, keyVersion=1, signature=%"),
        ),
        paid_by("base64 as it is", paid().header_text("algorithm=RSA256,keyVersion=1,signature=$")),
        paid_by("ISO 8601", paid().time(Time::Iso(0))),
        paid_by("four minutes old", paid().off(-4)),
        paid_by("four minutes ahead", paid().off(4)),
        paid_by("four minutes old, ISO 8601", paid().time(Time::Iso(-4))),
        paid_by("another content type", paid().post(|it| it.content_type = "text/plain")),
        paid_by("no content type", paid().post(|it| it.without = &["content-type"])),
        paid_by("in chunks", paid().post(|it| it.chunked = true)),
        paid_by("200 KB", Notice::of(Body::Padded(200_000))),
        asked("six minutes old", paid().off(-6)),
        asked("six minutes ahead", paid().off(6)),
        asked("a day old", paid().off(-24 * 60)),
        asked("a day ahead", paid().off(24 * 60)),
        asked("six minutes old, ISO 8601", paid().time(Time::Iso(-6))),
        asked("a time in words", paid().time(Time::Text("yesterday"))),
        asked("a time in seconds", paid().time(Time::Text("1772366400"))),
        row("a failure a day old", Processing, failed().off(-24 * 60), Does::Asks),
        row("a day old and known", Authorized, paid().off(-24 * 60), Does::Nothing),
        row("a day old and otherwise", Authorized, failed().off(-24 * 60), Does::Asks),
        row("not JSON", Processing, Notice::of(Body::Text("PAYMENT_RESULT")), Does::Nothing),
        row("a list", Processing, Notice::of(Body::Text("[]")), Does::Nothing),
        row("an empty body", Processing, Notice::of(Body::Text("")), Does::Nothing),
        row(
            "a name twice",
            Processing,
            Notice::of(Body::Text(
                r#"{"notifyType":"PAYMENT_RESULT","paymentRequestId":"other","paymentRequestId":"@PAYMENT",
                "result":{"resultCode":"SUCCESS","resultStatus":"S","resultMessage":"success"},
                "paymentId":"@GATEWAY","paymentAmount":{"value":"30000","currency":"EUR"}}"#,
            )),
            Does::Nothing,
        ),
        row(
            "an id with a zero byte",
            Processing,
            paid().set("/paymentRequestId", json!("@PAYMENT\u{0}")),
            Does::Nothing,
        ),
        row("a byte order mark", Processing, Notice::of(Body::Text("\u{feff}{}")), Does::Nothing),
    ]
}

/// What the gateway says of a payment, and what was known.
fn payments() -> Vec<Row> {
    use Before::{Authorized, Cancelled, Failed, Manual, Processing, Unknown};
    let (nothing, asks) = (Does::Nothing, Does::Asks);
    vec![
        row("paid, in process", Processing, paid(), AUTHORIZED),
        row("paid, known", Authorized, paid(), Does::Tells),
        row("paid, known, twice", Authorized, paid().twice(), Does::Tells),
        row("paid, known, to be captured", Manual, paid(), Does::Tells),
        row("paid after failed", Failed, paid(), asks),
        row("paid after cancelled", Cancelled, paid(), nothing),
        row("failed", Unknown, failed(), FAILED),
        row("failed, in process", Processing, failed(), FAILED),
        row("failed, without a sum", Processing, failed().without("/paymentAmount"), FAILED),
        row("failed, with its result alone", Unknown, failed().without("/paymentId"), FAILED),
        row("failed after paid", Authorized, failed(), asks),
        row("failed after paid, to be captured", Manual, failed(), asks),
        row("failed, known", Failed, failed(), nothing),
        row("failed after cancelled", Cancelled, failed(), asks),
        row("closed", Processing, status(failed(), "F", "ORDER_IS_CLOSED"), asks),
        row("inconsistent", Unknown, status(failed(), "F", "REPEAT_REQ_INCONSISTENT"), asks),
        row("pending", Unknown, pending(), PROCESSING),
        row("pending, known", Processing, pending(), nothing),
        row("pending, U", Unknown, status(pending(), "U", "PAYMENT_IN_PROCESS"), PROCESSING),
        row("pending after paid", Authorized, pending(), nothing),
        row("pending after failed", Failed, pending(), nothing),
        row("pending after cancelled", Cancelled, pending(), nothing),
        row("pending and failed", Unknown, status(pending(), "F", "PROCESS_FAIL"), asks),
        row("unclear", Unknown, status(paid(), "U", "UNKNOWN_EXCEPTION"), asks),
        row("unclear, known", Authorized, status(paid(), "U", "UNKNOWN_EXCEPTION"), nothing),
        row("a letter that nobody knows", Processing, status(paid(), "X", "SUCCESS"), asks),
        row("no result", Processing, paid().without("/result"), asks),
        row("a result without a status", Processing, paid().without("/result/resultStatus"), asks),
        row("another sum", Unknown, paid().set("/paymentAmount/value", json!("1")), asks),
        row("another sum, in process", Processing, paid().set("/paymentAmount/value", json!("30001")), asks),
        row("another sum, known", Authorized, paid().set("/paymentAmount/value", json!("29999")), asks),
        row("another sum, failed", Processing, failed().set("/paymentAmount/value", json!("1")), asks),
        row("another currency", Unknown, paid().set("/paymentAmount/currency", json!("USD")), asks),
        row("a sum with a zero in front", Unknown, paid().set("/paymentAmount/value", json!("030000")), asks),
        row("a sum with a point", Unknown, paid().set("/paymentAmount/value", json!("300.00")), asks),
        row("a sum that is null", Unknown, paid().null("/paymentAmount"), asks),
        row("no sum", Unknown, paid().without("/paymentAmount"), asks),
        row("no currency", Unknown, paid().without("/paymentAmount/currency"), asks),
        row("a whole number", Unknown, paid().set("/paymentAmount/value", json!(30000)), AUTHORIZED),
        row(
            "another actual sum",
            Unknown,
            paid().set("/actualPaymentAmount", json!({ "value": "7", "currency": "USD" })),
            AUTHORIZED,
        ),
        row("no paymentId", Unknown, paid().without("/paymentId"), asks),
        row("an empty paymentId", Unknown, paid().set("/paymentId", json!("")), asks),
        row("a paymentId that is no text", Unknown, paid().set("/paymentId", json!(1)), asks),
        row("another paymentId", Processing, paid().set("/paymentId", json!("GW_OTHER")), asks),
        row("another paymentId, known", Authorized, paid().set("/paymentId", json!("GW_OTHER")), asks),
        row("another paymentId, failed", Processing, failed().set("/paymentId", json!("GW_OTHER")), asks),
        row("paid twice", Unknown, paid().twice(), AUTHORIZED),
        row("failed twice", Unknown, failed().twice(), FAILED),
        row(
            "pending, then paid",
            Unknown,
            pending().then(paid()),
            Does::Moves("AUTHORIZED", &["payment.processing", "payment.authorized"]),
        ),
        row("paid, then pending", Unknown, paid().then(pending()), AUTHORIZED),
        row(
            "paid, then failed",
            Unknown,
            paid().then(failed()),
            Does::MovesAndAsks("AUTHORIZED", &["payment.authorized"]),
        ),
        row(
            "failed, then paid",
            Unknown,
            failed().then(paid()),
            Does::MovesAndAsks("FAILED", &["payment.failed"]),
        ),
        row("forty times", Processing, vec![paid(); 40], AUTHORIZED),
    ]
}

/// Of what is not known here, or of a kind that is not.
fn strangers() -> Vec<Row> {
    use Before::{Authorized, Processing, Unknown};
    let other = |notice: Notice| notice.set("/paymentRequestId", json!("OTHER_@PAYMENT"));
    vec![
        row("an unknown id", Processing, other(paid()), Does::Keeps("payment")),
        row("an unknown id twice", Processing, other(paid()).twice(), Does::Keeps("payment")),
        row("an unknown id that failed", Processing, other(failed()), Does::Keeps("payment")),
        row("an unknown id, a day old", Processing, other(paid()).off(-24 * 60), Does::Keeps("payment")),
        row(
            "an impossible id",
            Processing,
            paid().set("/paymentRequestId", json!("@PAYMENT' OR 1=1 --")),
            Does::Keeps("payment"),
        ),
        row(
            "an id in lower case",
            Processing,
            paid().set("/paymentRequestId", json!("nt_@PAYMENT")),
            Does::Keeps("payment"),
        ),
        row(
            "another account's, signed for it",
            Processing,
            paid().post(|it| it.client = ELSEWHERE),
            Does::Keeps("payment"),
        ),
        row(
            "an id that is no text",
            Processing,
            paid().set("/paymentRequestId", json!(1)),
            Does::Keeps("other"),
        ),
        row("no id", Processing, paid().without("/paymentRequestId"), Does::Keeps("other")),
        row("no type", Processing, paid().without("/notifyType"), Does::Keeps("other")),
        row("an unknown type", Processing, paid().set("/notifyType", json!("NEW")), Does::Keeps("other")),
        row(
            "an unknown type twice",
            Authorized,
            paid().set("/notifyType", json!("NEW")).twice(),
            Does::Keeps("other"),
        ),
        row(
            "an unknown type of an unknown id",
            Unknown,
            other(paid()).set("/notifyType", json!("NEW")),
            Does::Keeps("other"),
        ),
        row(
            "a review",
            Authorized,
            paid().set("/notifyType", json!("RISK_POST_REVIEW")),
            Does::Keeps("other"),
        ),
        row(
            "an update of the amount",
            Authorized,
            paid().set("/notifyType", json!("UPDATE_AMOUNT_RESULT")),
            Does::Keeps("other"),
        ),
        row(
            "an empty object",
            Processing,
            Notice::of(Body::Text("{ \"@PAYMENT\": 0 }")),
            Does::Keeps("other"),
        ),
        row(
            "a capture of an unknown payment",
            Processing,
            captured().set("/paymentId", json!("GW_OTHER_@PAYMENT")),
            Does::Keeps("capture"),
        ),
        row("a capture of no payment", Processing, captured().without("/paymentId"), Does::Keeps("other")),
        row("a capture before its payment is known", Unknown, captured_alone(), Does::Keeps("capture")),
        row(
            "a refund of an unknown payment",
            Processing,
            refunded().set("/paymentId", json!("GW_OTHER_@PAYMENT")),
            Does::Keeps("refund"),
        ),
        row(
            "a dispute of an unknown payment",
            Processing,
            other(dispute("DISPUTE_CREATED")),
            Does::Keeps("dispute"),
        ),
        row(
            "a dispute without an id",
            Authorized,
            dispute("DISPUTE_CREATED").without("/disputeId"),
            Does::Keeps("other"),
        ),
    ]
}

fn captures() -> Vec<Row> {
    use Before::{Authorized, Capture, Manual, Processing};
    let (unknown, processing) = (Capture("UNKNOWN"), Capture("PROCESSING"));
    let (succeeded, failed) = (Capture("SUCCEEDED"), Capture("FAILED"));
    let (nothing, asks) = (Does::Nothing, Does::Asks);
    let done = Does::Moves("SUCCEEDED", &["capture.succeeded"]);
    let not_done = Does::Moves("FAILED", &["capture.failed"]);
    let alone = Does::Moves("AUTHORIZED", &["capture.succeeded"]);
    vec![
        row("captured", unknown, captured(), done),
        row("captured, in process", processing, captured(), done),
        row("captured, known", succeeded, captured(), nothing),
        row("captured after failed", failed, captured(), asks),
        row("captured twice", unknown, captured().twice(), done),
        row("captured, a day old", unknown, captured().off(-24 * 60), asks),
        row("captured, a day old, known", succeeded, captured().off(-24 * 60), nothing),
        row("not captured", unknown, not_captured(), not_done),
        row("not captured, in process", processing, not_captured(), not_done),
        row("not captured, known", failed, not_captured(), nothing),
        row("not captured after captured", succeeded, not_captured(), asks),
        row(
            "not captured, inconsistent",
            unknown,
            status(not_captured(), "F", "REPEAT_REQ_INCONSISTENT"),
            asks,
        ),
        row(
            "capture in process",
            unknown,
            status(captured(), "U", "PAYMENT_IN_PROCESS"),
            Does::Moves("PROCESSING", &["capture.processing"]),
        ),
        row("capture unclear", unknown, status(captured(), "U", "UNKNOWN_EXCEPTION"), asks),
        row("captured another sum", unknown, captured().set("/captureAmount/value", json!("1")), asks),
        row(
            "captured another currency",
            unknown,
            captured().set("/captureAmount/currency", json!("USD")),
            asks,
        ),
        row("captured no sum", unknown, captured().without("/captureAmount"), asks),
        row("captured null", unknown, captured().null("/captureAmount"), asks),
        row("captured without an id", unknown, captured().without("/captureId"), asks),
        row("captured another payment", unknown, captured().set("/paymentId", json!("GW_OTHER")), asks),
        row("another capture of a payment", Manual, captured(), asks),
        row("a capture that nobody asked for", Manual, captured().without("/captureRequestId"), asks),
        row("the gateway's own capture", Authorized, captured_alone(), alone),
        row("the gateway's own capture twice", Authorized, captured_alone().twice(), alone),
        row(
            "the gateway's own capture without our id",
            Authorized,
            captured_alone().without("/captureRequestId"),
            alone,
        ),
        row(
            "the gateway's own capture failed",
            Authorized,
            status(captured_alone(), "F", "PROCESS_FAIL"),
            Does::Moves("AUTHORIZED", &["capture.failed"]),
        ),
        row(
            "the gateway's own capture of a part",
            Authorized,
            captured_alone().set("/captureAmount/value", json!("1")),
            asks,
        ),
        row("the gateway's own capture, a day old", Authorized, captured_alone().off(-24 * 60), asks),
        row(
            "the gateway's own capture, then paid",
            Processing,
            captured_alone().then(paid()),
            Does::MovesAndAsks("AUTHORIZED", &["payment.authorized"]),
        ),
        row("the gateway's own capture, in process", Processing, captured_alone(), asks),
    ]
}

fn refunds() -> Vec<Row> {
    use Before::{Authorized, Refund};
    let (unknown, processing) = (Refund("UNKNOWN"), Refund("PROCESSING"));
    let (succeeded, failed) = (Refund("SUCCEEDED"), Refund("FAILED"));
    let (nothing, asks) = (Does::Nothing, Does::Asks);
    let done = Does::Moves("SUCCEEDED", &["refund.succeeded"]);
    let not_done = Does::Moves("FAILED", &["refund.failed"]);
    vec![
        row("refunded", unknown, refunded(), done),
        row("refunded, in process", processing, refunded(), done),
        row("refunded, known", succeeded, refunded(), nothing),
        row("refunded after failed", failed, refunded(), asks),
        row("refunded twice", processing, refunded().twice(), done),
        row("refunded, ten minutes old", unknown, refunded().off(-10), asks),
        row("not refunded", unknown, not_refunded(), not_done),
        row("not refunded, in process", processing, not_refunded(), not_done),
        row("not refunded, known", failed, not_refunded(), nothing),
        row("not refunded after refunded", succeeded, not_refunded(), asks),
        row("refund that contradicts itself", unknown, refunded().set("/refundStatus", json!("FAIL")), asks),
        row("refund without a status", unknown, refunded().without("/refundStatus"), done),
        row("refunded another sum", unknown, refunded().set("/refundAmount/value", json!("10001")), asks),
        row(
            "refunded another currency",
            processing,
            refunded().set("/refundAmount/currency", json!("USD")),
            asks,
        ),
        row("refunded no sum", unknown, refunded().without("/refundAmount"), asks),
        row("refunded without an id", unknown, refunded().without("/refundId"), asks),
        row("refunded another payment", unknown, refunded().set("/paymentId", json!("GW_OTHER")), asks),
        row("another refund of a payment", Authorized, refunded(), asks),
        row("a refund that nobody asked for", Authorized, refunded().without("/refundRequestId"), asks),
    ]
}

fn disputes() -> Vec<Row> {
    use Before::{Authorized, Manual};
    const CREATED: Does = Does::Moves("AUTHORIZED", &["dispute.created"]);
    const BOTH: Does = Does::Moves("AUTHORIZED", &["dispute.created", "dispute.judged"]);
    let created = || dispute("DISPUTE_CREATED");
    let told = |name, kind, event: &'static [&'static str]| {
        row(name, Authorized, dispute(kind), Does::Moves("AUTHORIZED", event))
    };
    vec![
        row("a dispute", Authorized, created(), CREATED),
        row("a dispute twice", Authorized, created().twice(), CREATED),
        row(
            "a dispute, told otherwise",
            Authorized,
            created().then(created().set("/arn", json!("1"))),
            CREATED,
        ),
        row("a dispute, a day old", Authorized, created().off(-24 * 60), CREATED),
        row("a dispute and its end", Manual, created().then(dispute("DISPUTE_JUDGED")), BOTH),
        row("the end of a dispute first", Authorized, dispute("DISPUTE_JUDGED").then(created()), BOTH),
        row(
            "two disputes",
            Authorized,
            created().then(created().set("/disputeId", json!("DISPUTE_2_@PAYMENT"))),
            Does::Moves("AUTHORIZED", &["dispute.created", "dispute.created"]),
        ),
        row(
            "by the other name of its type",
            Authorized,
            created().without("/notifyType").set("/disputeNotificationType", json!("DISPUTE_CREATED")),
            CREATED,
        ),
        told("judged", "DISPUTE_JUDGED", &["dispute.judged"]),
        told("taken back", "DISPUTE_CANCELLED", &["dispute.cancelled"]),
        told("accepted", "DISPUTE_ACCEPTED", &["dispute.accepted"]),
        told("defended", "DEFENSE_SUPPLIED", &["dispute.defense_supplied"]),
        told("to be defended", "DEFENSE_DUE_ALERT", &["dispute.defense_due"]),
        told("resolved", "RDR_RESOLVED", &["dispute.resolved"]),
    ]
}

fn table() -> Vec<Row> {
    [forged(), forms(), payments(), strangers(), captures(), refunds(), disputes()]
        .into_iter()
        .flatten()
        .collect()
}

/// The names of one row's things.
struct Case {
    payment: String,
    gateway: String,
    operation: String,
    done: String,
    before: Before,
}

impl Case {
    fn new(place: usize, before: Before) -> Self {
        // What the gateway is to answer stands at the end of the name.
        let state = match before {
            Before::Unknown => "UNKNOWN",
            Before::Processing => "PROCESSING",
            Before::Failed => "FAILED",
            _ => "SUCCEEDED",
        };
        let operation = match before {
            Before::Capture(state) | Before::Refund(state) => state,
            _ => "NONE",
        };
        let (payment, operation) = (format!("NT_{place:03}_{state}"), format!("OP_{place:03}_{operation}"));
        Self { gateway: format!("GW_{payment}"), done: format!("GW_{operation}"), payment, operation, before }
    }

    fn fill(&self, text: &str) -> String {
        text.replace("@PAYMENT", &self.payment)
            .replace("@GATEWAY", &self.gateway)
            .replace("@OPERATION", &self.operation)
            .replace("@DONE", &self.done)
    }

    fn path(&self) -> String {
        format!("/v1/payments/{}", self.payment)
    }

    /// Brings about what is to be there before.
    async fn make(&self, checkout: &Caller, card: &str) {
        let manual = matches!(self.before, Before::Manual | Before::Capture(_));
        let mode = if manual { "MANUAL" } else { "AUTOMATIC" };
        let factor = json!({ "isAuthorization": true, "captureMode": mode });
        let body = with(&by_reference(&self.payment, "30000", card), "/paymentFactor", factor);
        checkout.post("/v1/payments", &body).await.expect(200);
        let amount = json!({ "currency": "EUR", "value": "10000" });
        match self.before {
            Before::Cancelled => {
                drop(checkout.post(&format!("{}/cancel", self.path()), "{}").await.expect(200))
            }
            Before::Capture(_) => {
                let body = json!({ "captureRequestId": self.operation, "captureAmount": amount, "isLastCapture": false });
                checkout.post(&format!("{}/captures", self.path()), &body.to_string()).await.expect(200);
            }
            Before::Refund(_) => {
                let body = json!({ "refundRequestId": self.operation, "refundAmount": amount });
                checkout.post(&format!("{}/refunds", self.path()), &body.to_string()).await.expect(200);
            }
            _ => {}
        }
    }

    fn status_before(&self) -> &'static str {
        match self.before {
            Before::Unknown => "UNKNOWN",
            Before::Processing => "PROCESSING",
            Before::Failed => "FAILED",
            Before::Cancelled => "CANCELLED",
            Before::Authorized | Before::Manual => "AUTHORIZED",
            Before::Capture(status) | Before::Refund(status) => status,
        }
    }

    /// The status of what the row is about, in a payment as it is shown.
    fn status(&self, shown: &Value) -> String {
        let at = match self.before {
            Before::Capture(_) => "/captures/0/status",
            Before::Refund(_) => "/refunds/0/status",
            _ => "/status",
        };
        shown.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// Whether a call to the gateway asks about this row.
    fn is_asked_by(&self, call: &Received) -> bool {
        let named = |name: &str, value: &str| call.json()[name] == value;
        call.path == INQUIRY && named("paymentRequestId", &self.payment)
            || call.path.ends_with("/inquiryRefund") && named("refundRequestId", &self.operation)
    }
}

/// Answers as the ids say, and says nothing clear when it is asked.
fn gateway(call: &Received) -> Reply {
    let request = call.json();
    let text = |name: &str| request[name].as_str().unwrap_or_default().to_owned();
    let sum = |name: &str| request[name].clone();
    let (id, mut answer) = match call.path.rsplit('/').next() {
        Some("pay") => {
            let id = text("paymentRequestId");
            let answer = json!({
                "paymentRequestId": id, "paymentId": format!("GW_{id}"), "paymentAmount": sum("paymentAmount"),
                "paymentResultInfo": { "networkTransactionId": "NTI1" },
            });
            (id, answer)
        }
        Some("capture") => {
            let id = text("captureRequestId");
            let answer = json!({
                "captureRequestId": id, "captureId": format!("GW_{id}"), "captureAmount": sum("captureAmount"),
                "paymentId": text("paymentId"),
            });
            (id, answer)
        }
        Some("refund") => {
            let id = text("refundRequestId");
            let answer = json!({
                "refundRequestId": id, "refundId": format!("GW_{id}"), "refundAmount": sum("refundAmount"),
                "paymentId": text("paymentId"),
            });
            (id, answer)
        }
        Some("cancel") => {
            let id = text("paymentRequestId");
            ("SUCCEEDED".to_owned(), json!({ "paymentRequestId": id, "paymentId": format!("GW_{id}") }))
        }
        _ => return result("U", "UNKNOWN_EXCEPTION"),
    };
    let (status, code) = match id.rsplit('_').next() {
        Some("SUCCEEDED") => ("S", "SUCCESS"),
        Some("PROCESSING") => ("U", "PAYMENT_IN_PROCESS"),
        Some("FAILED") => ("F", "DO_NOT_HONOR"),
        _ => return result("U", "UNKNOWN_EXCEPTION"),
    };
    answer["result"] = json!({ "resultCode": code, "resultStatus": status, "resultMessage": "words" });
    Reply::Signed(answer.to_string())
}

/// Everything that a notification could change but should not.
struct World {
    events: BTreeMap<String, usize>,
    kept: BTreeMap<String, usize>,
}

impl World {
    async fn look(db: &Database) -> Self {
        let count = |rows: Vec<Vec<Option<String>>>| {
            let mut counts = BTreeMap::new();
            for name in rows.into_iter().filter_map(|row| row.into_iter().next().flatten()) {
                *counts.entry(name).or_default() += 1;
            }
            counts
        };
        Self {
            events: count(sql::rows(db, "SELECT kind FROM events").await),
            kept: count(sql::rows(db, "SELECT kind FROM notices").await),
        }
    }
}

/// What there is more of.
fn more(before: &BTreeMap<String, usize>, after: &BTreeMap<String, usize>) -> Vec<String> {
    let times = |(name, count): (&String, &usize)| vec![name.clone(); count - before.get(name).unwrap_or(&0)];
    after.iter().flat_map(times).collect()
}

/// A vault with everything that the table's rows have before, at rest.
async fn prepare(db: &Database, cases: &[Case], pan: &str) -> (TestVault, Scripted) {
    let mut vault = TestVault::start_notified(db, &[]).await;
    let scripted = Scripted::start(vault.dir.path()).await;
    scripted.on(gateway);
    let mut elsewhere = vault.config.gateway[0].clone();
    elsewhere.name = "elsewhere".to_owned();
    elsewhere.client_id = ELSEWHERE.to_owned();
    vault.config.gateway.push(elsewhere);
    vault.gateway_at(&scripted.base_url());
    let long = std::time::Duration::from_secs(3600);
    (vault.policy.inquiry_pauses, vault.policy.attempt_deadline) = (vec![long], long);
    vault.restart().await;
    let checkout = vault.client("checkout");
    let card = checkout.card(pan).await;
    for case in cases {
        case.make(&checkout, &card).await;
    }
    // Nothing is asked after by itself from here on.
    vault.stop().await;
    for table in ["payments", "operations"] {
        let rest = "next_look = next_look + 86400000, lease_owner = NULL, lease_until = NULL";
        sql::execute(db, &format!("UPDATE {table} SET {rest} WHERE next_look IS NOT NULL")).await;
    }
    vault.restart().await;
    (vault, scripted)
}

/// A payment as it is shown, without the gateway's own words.
fn without_words(shown: &Value) -> Value {
    let mut shown = shown.clone();
    let members = shown.as_object_mut().expect("an object");
    for name in ["gatewayResponse", "result", "paymentResultInfo", "updatedAt"] {
        members.remove(name).expect(name);
    }
    shown
}

/// Goes through the whole table.
pub async fn hold(db: Database) {
    let rows = table();
    assert!(rows.len() >= 80, "{}", rows.len());
    let cases: Vec<Case> = rows.iter().enumerate().map(|(place, row)| Case::new(place, row.before)).collect();
    let last = Case::new(rows.len(), Before::Processing);
    let pan = fresh_pan();
    let all: Vec<Case> = rows
        .iter()
        .map(|row| row.before)
        .chain([Before::Processing])
        .enumerate()
        .map(|(place, before)| Case::new(place, before))
        .collect();
    let (vault, scripted) = prepare(&db, &all, &pan).await;
    let checkout = vault.client("checkout");
    let mut wrong: Vec<String> = Vec::new();
    let mut shown_after = Vec::new();
    let calls_before = scripted.calls().len();
    for (row, case) in rows.iter().zip(&cases) {
        let mut fail = |what: String| wrong.push(format!("{} ({:?}): {what}", row.name, row.before));
        let before = checkout.get(&case.path()).await.expect(200).json();
        if case.status(&before) != case.status_before() {
            fail(format!("it was to be {} before: {before}", case.status_before()));
        }
        let world = World::look(&db).await;
        for notice in &row.sent {
            let answer = notice.posted(case).send(&vault).await;
            let (status, body) = match row.does {
                Does::Refused(status) => (status, REFUSED),
                _ => (200, ACKNOWLEDGED),
            };
            if (answer.status, answer.text.as_str()) != (status, body) {
                fail(format!("{} {}", answer.status, answer.text));
            }
        }
        let after = checkout.get(&case.path()).await.expect(200).json();
        let now = World::look(&db).await;
        let (events, kept) = (more(&world.events, &now.events), more(&world.kept, &now.kept));
        let (status, told, keeps): (_, &[&str], &[&str]) = match row.does {
            Does::Moves(status, told) | Does::MovesAndAsks(status, told) => (status, told, &[]),
            Does::Keeps(ref kind) => (case.status_before(), &[], std::slice::from_ref(kind)),
            _ => (case.status_before(), &[], &[]),
        };
        if case.status(&after) != status {
            fail(format!("it is to be {status}: {after}"));
        }
        let told: Vec<String> = {
            let mut told: Vec<String> = told.iter().map(ToString::to_string).collect();
            told.sort();
            told
        };
        if events != told {
            fail(format!("the events are {events:?}"));
        }
        let disputes = told.iter().filter(|kind| kind.starts_with("dispute.")).count();
        if kept.len() != keeps.len() + disputes || (disputes == 0 && kept != keeps) {
            fail(format!("kept aside are {kept:?}"));
        }
        let moves = matches!(row.does, Does::Moves(..) | Does::MovesAndAsks(..)) && disputes == 0;
        if moves {
            let settled = if case.status(&before) == status { "" } else { "notification" };
            let by = after.pointer(match row.before {
                Before::Capture(_) => "/captures/0/settledBy",
                Before::Refund(_) => "/refunds/0/settledBy",
                _ => "/settledBy",
            });
            let by = by.and_then(Value::as_str).unwrap_or_default();
            if !settled.is_empty() && status != "PROCESSING" && by != settled {
                fail(format!("it was settled by {by:?}"));
            }
        } else if row.does == Does::Tells {
            let told = &after["paymentResultInfo"];
            if told.get("cvvResultRaw").is_none() || without_words(&before) != without_words(&after) {
                fail(format!("it was {before} and is {after}"));
            }
        } else if before != after {
            fail(format!("it was {before} and is {after}"));
        }
        shown_after.push(after);
    }
    // The last of all is asked about after everything that was to be asked about before it.
    Notice::posted(&paid().off(-60), &last).send(&vault).await.expect(200);
    let asks = |does| matches!(does, Does::Asks | Does::MovesAndAsks(..));
    let asked = |case: &Case| scripted.calls()[calls_before..].iter().any(|call| case.is_asked_by(call));
    eventually("the gateway to be asked", || async { asked(&last).then_some(()) }).await;
    let all_asked = || rows.iter().zip(&cases).all(|(row, case)| !asks(row.does) || asked(case));
    for _ in 0..500 {
        if all_asked() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for ((row, case), shown) in rows.iter().zip(&cases).zip(&shown_after) {
        // What is in process is asked about soon in any case.
        let in_process = matches!(row.does, Does::Moves("PROCESSING", _));
        if !in_process && asked(case) != asks(row.does) {
            let was = if asked(case) { "was" } else { "was not" };
            wrong.push(format!("{} ({:?}): the gateway {was} asked", row.name, row.before));
        }
        // No row has changed another one's.
        let now = checkout.get(&case.path()).await.expect(200).json();
        if now != *shown {
            wrong.push(format!("{} ({:?}): it was {shown} and is {now}", row.name, row.before));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    assert_eq!(scripted.calls().iter().filter(|call| call.path == PAY).count(), cases.len() + 1);
    vault.finish(&[&pan]).await;
}
