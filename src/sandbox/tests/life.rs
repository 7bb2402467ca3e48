//! What comes after a payment: captures, refunds, cancels and notifications.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use super::*;

const CAPTURE: &str = "/ams/sandbox/api/v1/payments/capture";
const REFUND: &str = "/ams/sandbox/api/v1/payments/refund";
const INQUIRY_REFUND: &str = "/ams/sandbox/api/v1/payments/inquiryRefund";
const MASTERCARD: &str = "5162774114974622";

fn manual(id: &str, value: &str) -> Value {
    let mut body = pay_body(id, value);
    body["paymentFactor"]["captureMode"] = json!("MANUAL");
    body
}

fn capture(payment_id: &Value, id: &str, value: &str) -> Value {
    json!({ "captureRequestId": id, "paymentId": payment_id, "captureType": "NON_FINAL",
        "captureAmount": { "currency": "EUR", "value": value } })
}

fn refund(payment_id: &Value, id: &str, value: &str) -> Value {
    json!({ "refundRequestId": id, "paymentId": payment_id,
        "refundAmount": { "currency": "EUR", "value": value } })
}

fn entry(bench: &Bench, id: &str) -> LedgerEntry {
    bench.sandbox.ledger().into_iter().find(|entry| entry.payment_request_id == id).unwrap()
}

#[tokio::test]
async fn captures_take_what_was_authorised_and_no_more() {
    let bench = Bench::new().await;
    let payment = bench.good(PAY, &manual("ONE", "30000")).await["paymentId"].clone();
    assert_eq!(bench.sandbox.net_charged("ONE"), 0);
    assert!(bench.inquire("ONE").await.get("transactions").is_none());
    let first = bench.good(CAPTURE, &capture(&payment, "CAP1", "10000")).await;
    assert_eq!(outcome(&first), SUCCESS);
    for member in ["captureId", "captureTime", "acquirerReferenceNo"] {
        assert!(first[member].is_string(), "{member}");
    }
    assert_eq!(first["captureRequestId"], "CAP1");
    assert_eq!(first["captureAmount"], json!({ "currency": "EUR", "value": "10000" }));
    assert_eq!(first["paymentId"], payment);
    assert_eq!(bench.good(CAPTURE, &capture(&payment, "CAP1", "10000")).await, first);

    let other = bench.good(PAY, &manual("TWO", "30000")).await["paymentId"].clone();
    let mut dollars = capture(&payment, "CAP2", "1");
    dollars["captureAmount"]["currency"] = json!("USD");
    let refusals = [
        (capture(&payment, "CAP1", "10001"), "REPEAT_REQ_INCONSISTENT"),
        (capture(&other, "CAP1", "10000"), "REPEAT_REQ_INCONSISTENT"),
        (capture(&payment, "CAP2", "20001"), "CAPTURE_AMOUNT_EXCEED"),
        (capture(&json!("NO_SUCH_PAYMENT"), "CAP2", "1"), "ORDER_NOT_EXIST"),
        (dollars, "PARAM_ILLEGAL"),
        (capture(&payment, "CAP2", "0"), "PARAM_ILLEGAL"),
        (json!({ "paymentId": payment }), "PARAM_ILLEGAL"),
    ];
    for (body, code) in refusals {
        assert_eq!(outcome(&bench.good(CAPTURE, &body).await), ("F", code), "{body}");
    }
    let mut last = capture(&payment, "CAP2", "15000");
    last["captureType"] = json!("FINAL");
    assert_eq!(outcome(&bench.good(CAPTURE, &last).await), SUCCESS);
    let closed = bench.good(CAPTURE, &capture(&payment, "CAP3", "5000")).await;
    assert_eq!(outcome(&closed), ("F", "ORDER_STATUS_INVALID"));

    let bench = bench.restart().await;
    let transactions = bench.inquire("ONE").await["transactions"].clone();
    let ids: Vec<_> =
        transactions.as_array().unwrap().iter().map(|one| one["transactionRequestId"].clone()).collect();
    assert_eq!(ids, ["CAP1", "CAP2"]);
    assert_eq!(transactions[0]["transactionId"], first["captureId"]);
    assert_eq!(transactions[0]["transactionType"], "CAPTURE");
    assert_eq!(transactions[0]["transactionStatus"], "SUCCESS");
    let entry = entry(&bench, "ONE");
    assert_eq!((entry.captured(), entry.refunded(), entry.net_charged()), (25000, 0, 25000));
    assert!(entry.captures.iter().all(|capture| capture.charged && !capture.automatic));
}

#[tokio::test]
async fn a_capture_needs_an_open_authorisation_under_manual_capture() {
    let bench = Bench::new().await;
    let automatic = bench.good(PAY, &pay_body("AUTO", "30000")).await["paymentId"].clone();
    assert_eq!(bench.sandbox.net_charged("AUTO"), 30000);
    assert_eq!(bench.inquire("AUTO").await["transactions"][0]["transactionType"], "CAPTURE");
    let expired = bench.good(PAY, &manual("OLD", "660034")).await;
    assert_eq!(expired["authExpiryTime"], expired["paymentTime"]);
    let cancelled = bench.good(PAY, &manual("GONE", "30000")).await["paymentId"].clone();
    bench.good(CANCEL, &json!({ "paymentId": cancelled })).await;
    let refused = bench.good(PAY, &manual("RISK", "11")).await["paymentId"].clone();
    let mut challenged = manual("PAGE", "30000");
    challenged["paymentMethod"]["paymentMethodMetaData"]["is3DSAuthentication"] = json!(true);
    let open = bench.good(PAY, &challenged).await["paymentId"].clone();
    for payment in [&automatic, &expired["paymentId"], &cancelled, &refused, &open] {
        let answer = bench.good(CAPTURE, &capture(payment, "CAP", "1")).await;
        assert_eq!(outcome(&answer), ("F", "ORDER_STATUS_INVALID"));
    }
    let defaults = bench.good(PAY, &manual("DEFAULTS", "30000")).await["paymentId"].clone();
    let mut silent = capture(&defaults, "CAP", "1");
    silent.as_object_mut().unwrap().remove("captureType");
    assert_eq!(outcome(&bench.good(CAPTURE, &silent).await), SUCCESS);
    let second = bench.good(CAPTURE, &capture(&defaults, "CAP_2", "1")).await;
    assert_eq!(outcome(&second), ("F", "ORDER_STATUS_INVALID"), "FINAL is the default");
}

#[tokio::test]
async fn refunds_give_back_what_was_captured_and_no_more() {
    let bench = Bench::new().await;
    let payment = bench.good(PAY, &manual("ONE", "30000")).await["paymentId"].clone();
    let early = bench.good(REFUND, &refund(&payment, "REF1", "1")).await;
    assert_eq!(outcome(&early), ("F", "REFUND_AMOUNT_EXCEED"));
    let captured = bench.good(CAPTURE, &capture(&payment, "CAP", "20000")).await;
    let mut body = refund(&payment, "REF1", "15000");
    body["captureId"] = captured["captureId"].clone();
    let first = bench.good(REFUND, &body).await;
    assert_eq!(outcome(&first), SUCCESS);
    assert_eq!(bench.good(REFUND, &body).await, first);
    let mut elsewhere = refund(&payment, "REF2", "1");
    elsewhere["captureId"] = json!("NO_SUCH_CAPTURE");
    let refusals = [
        (refund(&payment, "REF1", "1"), "REPEAT_REQ_INCONSISTENT"),
        (refund(&payment, "REF2", "5001"), "REFUND_AMOUNT_EXCEED"),
        (refund(&json!("NO_SUCH_PAYMENT"), "REF2", "1"), "ORDER_NOT_EXIST"),
        (elsewhere, "PARAM_ILLEGAL"),
    ];
    for (body, code) in refusals {
        assert_eq!(outcome(&bench.good(REFUND, &body).await), ("F", code), "{body}");
    }
    assert_eq!(outcome(&bench.good(REFUND, &refund(&payment, "REF2", "5000")).await), SUCCESS);
    assert_eq!((entry(&bench, "ONE").refunded(), bench.sandbox.net_charged("ONE")), (20000, 0));
    for named in [json!({ "refundId": first["refundId"] }), json!({ "refundRequestId": "REF1" })] {
        let inquiry = bench.good(INQUIRY_REFUND, &named).await;
        assert_eq!((outcome(&inquiry), &inquiry["refundStatus"]), (SUCCESS, &json!("SUCCESS")));
        assert_eq!(inquiry["refundAmount"]["value"], "15000");
        assert_eq!(inquiry["refundTime"], first["refundTime"]);
    }
    let unknown = bench.good(INQUIRY_REFUND, &json!({ "refundRequestId": "REF9" })).await;
    assert_eq!(outcome(&unknown), ("F", "ORDER_NOT_EXIST"));
    assert_eq!(bench.inquire("ONE").await["transactions"][2]["transactionType"], "REFUND");
    let cancel = bench.good(CANCEL, &json!({ "paymentId": payment })).await;
    assert_eq!(outcome(&cancel), ("F", "ORDER_STATUS_INVALID"));
}

#[tokio::test]
async fn a_cancel_voids_or_gives_back() {
    let bench = Bench::new().await;
    let payment = bench.good(PAY, &manual("ONE", "30000")).await["paymentId"].clone();
    bench.good(CAPTURE, &capture(&payment, "CAP", "10000")).await;
    let waiting = bench.good(CAPTURE, &capture(&payment, "WAIT", "660142")).await;
    assert_eq!(outcome(&waiting), ("F", "CAPTURE_AMOUNT_EXCEED"));
    assert_eq!(outcome(&bench.good(CANCEL, &json!({ "paymentId": payment })).await), SUCCESS);
    assert_eq!((entry(&bench, "ONE").captured(), bench.sandbox.net_charged("ONE")), (10000, 0));
    for (path, body) in [(CAPTURE, capture(&payment, "C", "1")), (REFUND, refund(&payment, "R", "1"))] {
        assert_eq!(outcome(&bench.good(path, &body).await), ("F", "ORDER_STATUS_INVALID"));
    }
    let payment = bench.good(PAY, &manual("TWO", "999999")).await["paymentId"].clone();
    assert_eq!(outcome(&bench.good(CAPTURE, &capture(&payment, "WAIT", "660142")).await), IN_PROCESS);
    let named = json!({ "paymentId": payment });
    assert_eq!(outcome(&bench.good(CANCEL, &named).await), ("F", "ORDER_STATUS_INVALID"));
}

/// For every trigger of cancels: the first answer, what it did, and the second answer.
#[tokio::test]
async fn every_trigger_of_cancels_does_what_the_help_says() {
    let bench = Bench::new().await;
    let cases = [
        ("660064", Some("F"), "SUCCESS", "F"),
        ("660065", Some("U"), "CANCELLED", "S"),
        ("660066", Some("U"), "SUCCESS", "S"),
        ("660067", None, "SUCCESS", "S"),
        ("660068", Some("S"), "CANCELLED", "S"),
        ("660069", Some("S"), "CANCELLED", "S"),
    ];
    for (amount, first, status, second) in cases {
        let paid = bench.good(PAY, &pay_body(amount, amount)).await;
        let named = json!({ "paymentRequestId": amount });
        let got = bench.call(CANCEL, &named).await;
        assert_eq!(got.as_ref().map(|got| outcome(&got.body).0), first, "{amount}");
        if let Some(got) = got {
            assert_eq!(got.verified, amount != "660068", "{amount}");
            let same = got.body["paymentId"] == paid["paymentId"];
            assert_eq!(same, amount == "660068", "{amount}");
        }
        assert_eq!(bench.inquire(amount).await["paymentStatus"], status, "{amount}");
        assert_eq!(outcome(&bench.good(CANCEL, &named).await).0, second, "{amount}");
    }
}

/// For every trigger of captures and of refunds: the first answer, what it did, and what a repeat says.
#[tokio::test]
async fn every_trigger_of_captures_and_refunds_does_what_the_help_says() {
    use Seen::*;
    let bench = Bench::new().await;
    let ok = || Verified("S", "SUCCESS");
    let cases = [
        ("01", ok(), "SUCCESS", "S SUCCESS"),
        ("02", Nothing, "-", "S SUCCESS"),
        ("03", Nothing, "SUCCESS", "S SUCCESS"),
        ("04", Nothing, "SUCCESS", "S SUCCESS"),
        ("06", Nothing, "-", "S SUCCESS"),
        ("11", Status(500), "-", "S SUCCESS"),
        ("12", Status(500), "SUCCESS", "S SUCCESS"),
        ("21", Unverified("S"), "SUCCESS", "S SUCCESS"),
        ("22", Unverified("S"), "SUCCESS", "S SUCCESS"),
        ("23", Unverified("F"), "-", "S SUCCESS"),
        ("24", ok(), "SUCCESS", "S SUCCESS"),
        ("25", ok(), "SUCCESS", "S SUCCESS"),
        ("31", Verified("F", "PROCESS_FAIL"), "FAIL", "F PROCESS_FAIL"),
        ("41", Verified("U", "UNKNOWN_EXCEPTION"), "SUCCESS", "S SUCCESS"),
        ("42", Verified("U", "PAYMENT_IN_PROCESS"), "PROCESSING", "S SUCCESS"),
        ("43", Verified("U", "PAYMENT_IN_PROCESS"), "PROCESSING", "F PROCESS_FAIL"),
        ("44", Verified("U", "REQUEST_TRAFFIC_EXCEED_LIMIT"), "-", "S SUCCESS"),
        ("45", Verified("U", "PAYMENT_IN_PROCESS"), "later", "S SUCCESS"),
        ("51", Verified("F", "REPEAT_REQ_INCONSISTENT"), "-", "S SUCCESS"),
        ("52", Verified("F", "REPEAT_REQ_INCONSISTENT"), "SUCCESS", "S SUCCESS"),
        ("81", ok(), "SUCCESS", "S SUCCESS"),
        ("82", ok(), "SUCCESS", "S SUCCESS"),
        ("83", ok(), "SUCCESS", "S SUCCESS"),
        ("84", ok(), "SUCCESS", "S SUCCESS"),
        ("85", ok(), "SUCCESS", "S SUCCESS"),
        ("86", ok(), "SUCCESS", "S SUCCESS"),
        ("87", ok(), "SUCCESS", "S SUCCESS"),
        ("89", ok(), "SUCCESS", "S SUCCESS"),
    ];
    assert_eq!(
        cases.iter().map(|case| case.0).collect::<Vec<_>>(),
        triggers::OPERATION_TRIGGERS.iter().map(|trigger| trigger.suffix).collect::<Vec<_>>()
    );
    for path in [CAPTURE, REFUND] {
        for (suffix, seen, status, repeated) in &cases {
            assert!(CARDS_HELP.contains(&format!("\n      {suffix}  ")), "{suffix} is not in the help");
            let id = format!("{suffix}{path}");
            let pay = if path == CAPTURE { manual(&id, "700000") } else { pay_body(&id, "700000") };
            let payment = bench.good(PAY, &pay).await["paymentId"].clone();
            let (body, amount) = match path {
                CAPTURE => (capture(&payment, &id, &format!("6601{suffix}")), "captureAmount"),
                _ => (refund(&payment, &id, &format!("6602{suffix}")), "refundAmount"),
            };
            let got = bench.call(path, &body).await;
            match (seen, &got) {
                (Nothing, None) => {}
                (Verified(status, code), Some(got)) => {
                    assert!(got.verified, "{id}");
                    assert_eq!(outcome(&got.body), (*status, *code), "{id}");
                    let value = got.body[amount]["value"].as_str();
                    assert_eq!(*suffix == "25", value == Some("1"), "{id}");
                }
                (Unverified(status), Some(got)) => {
                    assert!(!got.verified, "{id}");
                    assert_eq!(outcome(&got.body).0, *status, "{id}");
                }
                (Status(status), Some(got)) => assert_eq!(got.status, *status, "{id}"),
                (_, got) => panic!("{id}: an answer: {}", got.is_some()),
            }
            let done = |bench: &Bench| {
                let entry = entry(bench, &id);
                let operations = if path == CAPTURE { entry.captures } else { entry.refunds };
                let word = |one: &Operation| json!(one.status).as_str().unwrap().to_owned();
                (operations.first().map_or("-".to_owned(), word), operations.iter().any(|one| one.charged))
            };
            match *status {
                "later" => {
                    while done(&bench).0 != "SUCCESS" {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
                status => assert_eq!(done(&bench), (status.to_owned(), status == "SUCCESS"), "{id}"),
            }
            let first = bench.good(path, &body).await;
            let (status, code) = outcome(&first);
            assert_eq!(format!("{status} {code}"), *repeated, "{id}");
            assert_eq!(bench.good(path, &body).await, first, "{id}");
            assert_eq!(done(&bench).1, status == "S", "{id}");
            let entry = entry(&bench, &id);
            assert_eq!((entry.captures.len(), entry.refunds.len()), (1, usize::from(path == REFUND)), "{id}");
        }
    }
}

#[tokio::test]
async fn waiting_captures_and_refunds_end_at_the_second_inquiry() {
    let bench = Bench::new().await;
    for (suffix, end) in [("42", "SUCCESS"), ("43", "FAIL")] {
        let payment = bench.good(PAY, &manual(suffix, "2000000")).await["paymentId"].clone();
        let body = capture(&payment, &format!("C{suffix}"), &format!("6601{suffix}"));
        assert_eq!(outcome(&bench.good(CAPTURE, &body).await), IN_PROCESS);
        let status = async || bench.inquire(suffix).await["transactions"][0]["transactionStatus"].clone();
        assert_eq!((status().await, status().await), (json!("PROCESSING"), json!(end)));
        bench.good(CAPTURE, &capture(&payment, &format!("ALL{suffix}"), "1000000")).await;
        let id = format!("R{suffix}");
        let body = refund(&payment, &id, &format!("6602{suffix}"));
        assert_eq!(outcome(&bench.good(REFUND, &body).await), IN_PROCESS);
        let named = json!({ "refundRequestId": id });
        let status = async || bench.good(INQUIRY_REFUND, &named).await["refundStatus"].clone();
        assert_eq!((status().await, status().await), (json!("PROCESSING"), json!(end)));
    }
}

#[tokio::test]
async fn only_a_mastercard_has_a_transaction_link() {
    let bench = Bench::new().await;
    for (card, linked) in [(MASTERCARD, true), (VISA, false)] {
        let mut body = pay_body(card, "660033");
        body["paymentMethod"]["paymentMethodMetaData"]["cardNo"] = json!(card);
        let info = bench.good(PAY, &body).await["paymentResultInfo"].clone();
        assert_eq!(info.get("transactionLinkId").is_some(), linked);
        assert!(!linked || info["transactionLinkId"].as_str().unwrap().len() == 22);
    }
}

#[tokio::test]
async fn a_ledger_of_before_captures_is_read() {
    let bench = Bench::new().await;
    bench.good(PAY, &manual("OLD", "30000")).await;
    let file = bench.directory.path().join("ledger.jsonl");
    bench.sandbox.stop().await;
    let text = std::fs::read_to_string(&file).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        if let Some(entry) = line.get_mut("payment").and_then(Value::as_object_mut) {
            let new =
                ["captures", "refunds", "manualCapture", "notifyUrl", "cardDigest", "transactionLinkId"];
            entry.retain(|name, _| !new.contains(&name.as_str()));
        }
        format!("{line}\n")
    });
    std::fs::write(&file, lines.collect::<String>()).unwrap();
    let bench = Bench::within(bench.directory).await;
    assert_eq!(bench.inquire("OLD").await["paymentStatus"], "SUCCESS");
}

/// A notification as it arrived.
struct Received {
    path: String,
    verified: bool,
    content_type: String,
    text: Vec<u8>,
    body: Value,
}

/// A merchant's listener. It refuses the first `refusals` notifications in three ways, then acknowledges.
struct Receiver {
    url: String,
    options: NotifyOptions,
    received: mpsc::UnboundedReceiver<Received>,
    refusals: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Receiver {
    async fn new(gaps: &[Duration]) -> Self {
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let pem = certified.cert.pem().into_bytes();
        let tls = server::tls(&pem, certified.signing_key.serialize_pem().as_bytes()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/antom/notify?shop=1", listener.local_addr().unwrap());
        let (sender, received) = mpsc::unbounded_channel();
        let refusals = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&refusals);
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, sender, left) = (tls.clone(), sender.clone(), Arc::clone(&left));
                tokio::spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let service = service_fn(|request| take(request, &sender, &left));
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        let options = NotifyOptions { ca_pem: Some(pem), gaps: gaps.to_vec() };
        Self { url, options, received, refusals, accepting }
    }

    async fn next(&mut self) -> Received {
        self.received.recv().await.expect("a notification")
    }

    /// The next notifications of a type, in the order of their arrival, while others are passed over.
    async fn of_type(&mut self, name: &str) -> Received {
        loop {
            let next = self.next().await;
            if next.body["notifyType"] == name {
                return next;
            }
        }
    }
}

async fn take(
    request: Request<hyper::body::Incoming>,
    sender: &mpsc::UnboundedSender<Received>,
    refusals: &AtomicUsize,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let text = body.collect().await?.to_bytes().to_vec();
    let header = |name: &str| {
        parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    let path = parts.uri.path_and_query().unwrap().as_str().to_owned();
    let (client_id, time) = (header("client-id"), header("request-time"));
    let verified = client_id == CLIENT_ID
        && verify(&path, CLIENT_ID, &time, &text, &header("signature"))
        && time.parse::<u64>().is_ok();
    let body = serde_json::from_slice(&text).unwrap();
    let _ = sender.send(Received { path, verified, content_type: header("content-type"), text, body });
    let acknowledged =
        json!({ "result": { "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "success" } });
    let left = refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    let (status, answer) = match left {
        Err(_) => (StatusCode::OK, acknowledged),
        Ok(left) if left % 3 == 0 => (StatusCode::INTERNAL_SERVER_ERROR, acknowledged),
        Ok(left) if left % 3 == 1 => (StatusCode::OK, json!({})),
        Ok(_) => {
            (StatusCode::OK, json!({ "result": { "resultCode": "UNKNOWN_EXCEPTION", "resultStatus": "U" } }))
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
    *response.status_mut() = status;
    Ok(response)
}

async fn benched() -> (Bench, Receiver) {
    let receiver = Receiver::new(&[Duration::from_millis(5); 7]).await;
    let bench = Bench::notifying(TempDir::new().unwrap(), Some(receiver.options.clone())).await;
    (bench, receiver)
}

impl Receiver {
    fn pay(&self, id: &str, value: &str) -> Value {
        let mut body = pay_body(id, value);
        body["paymentNotifyUrl"] = json!(self.url);
        body
    }

    fn manual(&self, id: &str, value: &str) -> Value {
        let mut body = manual(id, value);
        body["paymentNotifyUrl"] = json!(self.url);
        body
    }
}

#[tokio::test]
async fn a_payment_its_capture_and_its_refund_are_notified() {
    let (bench, mut receiver) = benched().await;
    let paid = bench.good(PAY, &receiver.pay("ONE", "30000")).await;
    let told = receiver.next().await;
    assert!(told.verified, "the query is signed too");
    assert_eq!(told.path, "/antom/notify?shop=1");
    assert_eq!(told.content_type, "application/json; charset=UTF-8");
    assert_eq!((&told.body["notifyType"], outcome(&told.body)), (&json!("PAYMENT_RESULT"), SUCCESS));
    for member in ["paymentRequestId", "paymentId", "paymentAmount", "paymentTime", "paymentResultInfo"] {
        assert_eq!(told.body[member], paid[member], "{member}");
    }
    let captured = receiver.next().await;
    assert_eq!((&captured.body["notifyType"], outcome(&captured.body)), (&json!("CAPTURE_RESULT"), SUCCESS));
    let transaction = bench.inquire("ONE").await["transactions"][0].clone();
    assert_eq!(captured.body["captureId"], transaction["transactionId"]);
    assert_eq!(captured.body["captureAmount"]["value"], "30000");

    let mut body = refund(&paid["paymentId"], "REF", "1000");
    body["refundNotifyUrl"] = json!(receiver.url);
    let refunded = bench.good(REFUND, &body).await;
    let told = receiver.next().await;
    assert!(told.verified && captured.verified);
    assert_eq!(
        (&told.body["notifyType"], &told.body["refundStatus"]),
        (&json!("REFUND_RESULT"), &json!("SUCCESS"))
    );
    for member in ["refundRequestId", "refundId", "refundAmount", "refundTime"] {
        assert_eq!(told.body[member], refunded[member], "{member}");
    }
    // One of each, then nothing more: what comes next is of the next payment.
    bench.good(PAY, &receiver.pay("RISK", "11")).await;
    let told = receiver.next().await;
    assert_eq!(outcome(&told.body), ("F", "RISK_REJECT"));
    assert!(told.body.get("paymentTime").is_none());
    let calls = bench.sandbox.recent_calls();
    assert!(calls.iter().any(|call| call.notification && call.path == receiver.url));
    let file = std::fs::read_to_string(bench.directory.path().join("ledger.jsonl")).unwrap();
    assert!(file.contains("CAPTURE_RESULT") && !file.contains(VISA));
    assert!(calls.iter().all(|call| !call.request.contains(VISA) && !call.answer.contains(VISA)));
}

#[tokio::test]
async fn a_notification_is_sent_until_it_is_acknowledged() {
    let (bench, mut receiver) = benched().await;
    receiver.refusals.store(5, Ordering::SeqCst);
    bench.good(PAY, &receiver.manual("ONE", "30000")).await;
    let mut texts = BTreeSet::new();
    for _ in 0..6 {
        let told = receiver.next().await;
        assert!(told.verified);
        texts.insert(told.text);
    }
    assert_eq!(texts.len(), 1, "the same text each time");
    // Nobody ever acknowledges: eight sendings are all.
    receiver.refusals.store(usize::MAX, Ordering::SeqCst);
    bench.good(PAY, &receiver.manual("TWO", "30000")).await;
    for _ in 0..8 {
        assert_eq!(receiver.next().await.body["paymentRequestId"], "TWO");
    }
    receiver.refusals.store(0, Ordering::SeqCst);
    bench.good(PAY, &receiver.manual("THREE", "30000")).await;
    assert_eq!(receiver.next().await.body["paymentRequestId"], "THREE");
}

#[tokio::test]
async fn what_was_not_acknowledged_is_sent_after_a_restart() {
    let mut receiver = Receiver::new(&[Duration::ZERO]).await;
    let directory = TempDir::new().unwrap();
    let patient = NotifyOptions {
        gaps: vec![Duration::from_millis(1), Duration::from_secs(3600)],
        ..receiver.options.clone()
    };
    receiver.refusals.store(1, Ordering::SeqCst);
    let bench = Bench::notifying(directory, Some(patient)).await;
    bench.good(PAY, &receiver.manual("DONE", "30000")).await;
    receiver.next().await;
    receiver.next().await;
    let late = receiver.manual("LATE", "660084");
    bench.good(PAY, &late).await;
    bench.sandbox.stop().await;
    let bench = Bench::notifying(bench.directory, Some(receiver.options.clone())).await;
    // The last acknowledgement may not have been written before the stop.
    while receiver.next().await.body["paymentRequestId"] != "LATE" {}
    assert_eq!(bench.inquire("LATE").await["paymentStatus"], "SUCCESS");
}

#[tokio::test]
async fn nobody_is_notified_who_did_not_ask_or_is_not_https() {
    let (bench, mut receiver) = benched().await;
    bench.good(PAY, &pay_body("SILENT", "30000")).await;
    let mut plain = pay_body("PLAIN", "30000");
    plain["paymentNotifyUrl"] = json!(receiver.url.replace("https://", "http://"));
    bench.good(PAY, &plain).await;
    bench.good(PAY, &receiver.manual("SECRET", "660085")).await;
    bench.good(PAY, &receiver.manual("LOUD", "30000")).await;
    assert_eq!(receiver.next().await.body["paymentRequestId"], "LOUD");
}

#[tokio::test]
async fn a_page_and_an_inquiry_end_in_a_notification_too() {
    let (bench, mut receiver) = benched().await;
    let mut body = receiver.pay("PAGE", "30000");
    body["paymentMethod"] = json!({ "paymentMethodType": "CARD" });
    let answer = bench.good(PAY, &body).await;
    bench.visit(&format!("{}/approve", answer["normalUrl"].as_str().unwrap())).await;
    let told = receiver.of_type("PAYMENT_RESULT").await;
    let token = told.body["paymentResultInfo"]["cardToken"].clone();
    assert!(token.is_string());
    assert_eq!(told.body["cardInfo"]["cardToken"], token);

    bench.good(PAY, &receiver.pay("WAIT", "660043")).await;
    bench.inquire("WAIT").await;
    bench.inquire("WAIT").await;
    let told = receiver.of_type("PAYMENT_RESULT").await;
    assert_eq!((told.body["paymentRequestId"].as_str(), outcome(&told.body).0), (Some("WAIT"), "F"));
}

#[tokio::test]
async fn notifications_look_like_the_documented_samples() {
    let (bench, mut receiver) = benched().await;
    let mut korean = receiver.manual("KOREAN", "30000");
    korean["paymentMethod"]["paymentMethodMetaData"]["cardNo"] = json!("9490220011669217");
    bench.good(PAY, &korean).await;
    let told = receiver.next().await.body;
    bench.good(PAY, &receiver.manual("GENERAL", "660091")).await;
    let general = receiver.next().await.body;
    // Every member of Antom's own samples is there, in the same place.
    for (sample, told) in [("notification-korean.json", &told), ("notification-general.json", &general)] {
        covers(&json_sample(sample), told, sample);
    }
    assert_eq!(told["cardInfo"]["paymentMethodRegion"], "KR");
    let three_ds = &general["paymentResultInfo"]["threeDSResult"];
    assert!(three_ds["caav"].is_string() && three_ds.get("cavv").is_none());
    assert!(bench.inquire("GENERAL").await["paymentResultInfo"]["threeDSResult"]["cavv"].is_string());
}

fn covers(sample: &Value, told: &Value, name: &str) {
    for (member, value) in sample.as_object().unwrap() {
        assert!(told.get(member).is_some(), "{name}: {member}");
        if value.is_object() {
            covers(value, &told[member], name);
        }
    }
}

/// For every trigger of notifications: what arrives for a payment under manual capture, in order.
#[tokio::test]
async fn every_trigger_of_notifications_does_what_the_help_says() {
    let (bench, mut receiver) = benched().await;
    const PAID: &str = "PAYMENT_RESULT S";
    let cases: &[(&str, &[&str])] = &[
        ("660081", &[PAID, PAID]),
        ("660082", &[PAID]),
        ("660083", &[PAID]),
        ("660084", &[PAID]),
        ("660085", &[]),
        ("660086", &[PAID, "PAYMENT_RESULT F"]),
        ("660087", &[PAID]),
        ("660088", &[PAID, "DISPUTE_CREATED -", "DISPUTE_JUDGED -"]),
        ("660089", &["SOMETHING_NEW S", PAID]),
        ("660090", &["PAYMENT_PENDING S", PAID]),
        ("660091", &[PAID]),
    ];
    let triggers = triggers::TRIGGERS.iter().filter(|trigger| trigger.notices != triggers::Notices::Once);
    let amounts: Vec<_> = cases.iter().map(|case| case.0).collect();
    assert_eq!(amounts, triggers.map(|trigger| trigger.amount).collect::<Vec<_>>());
    for (amount, expected) in cases {
        let paid = bench.good(PAY, &receiver.manual(amount, amount)).await;
        assert_eq!(outcome(&paid), SUCCESS);
        if *amount == "660082" {
            assert!(!receiver.received.is_empty(), "before the answer");
        }
        for expected in *expected {
            let told = receiver.next().await;
            assert_eq!(told.body["paymentRequestId"], *amount);
            let kind = told.body["notifyType"].as_str().unwrap();
            assert_eq!(format!("{kind} {}", outcome(&told.body).0), *expected, "{amount}");
            assert_eq!(told.verified, *amount != "660087", "{amount}");
            let other = told.body["paymentAmount"]["value"] == "1";
            assert_eq!(other, *amount == "660083", "{amount}");
        }
    }
    // The amounts of a capture and of a refund do the same to their notifications.
    let payment = bench.good(PAY, &receiver.manual("BIG", "9999999")).await["paymentId"].clone();
    assert_eq!(receiver.next().await.body["paymentRequestId"], "BIG");
    bench.good(CAPTURE, &capture(&payment, "ALL", "2500000")).await;
    assert_eq!(receiver.next().await.body["captureRequestId"], "ALL");
    let cases: &[(&str, &[&str])] = &[
        ("31", &["RESULT F"]),
        ("45", &["RESULT S"]),
        ("81", &["RESULT S", "RESULT S"]),
        ("82", &["RESULT S"]),
        ("83", &["RESULT S"]),
        ("84", &["RESULT S"]),
        ("85", &[]),
        ("86", &["RESULT S", "RESULT F"]),
        ("89", &["SOMETHING_NEW S", "RESULT S"]),
    ];
    for (suffix, expected) in cases {
        for kind in ["CAPTURE", "REFUND"] {
            let (path, mut body, amount) = match kind {
                "CAPTURE" => (CAPTURE, capture(&payment, suffix, &format!("6601{suffix}")), "captureAmount"),
                _ => (REFUND, refund(&payment, suffix, &format!("6602{suffix}")), "refundAmount"),
            };
            body["refundNotifyUrl"] = json!(receiver.url);
            bench.good(path, &body).await;
            for expected in *expected {
                let told = receiver.next().await;
                let name = told.body["notifyType"].as_str().unwrap().replace(&format!("{kind}_"), "");
                assert_eq!(format!("{name} {}", outcome(&told.body).0), *expected, "{kind} {suffix}");
                assert_eq!(told.body[amount]["value"] == "1", *suffix == "83", "{kind} {suffix}");
            }
        }
    }
}
