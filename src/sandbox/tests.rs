//! The sandbox over a real TLS connection, as a merchant's client sees it. Requests are signed and answers
//! verified by code of its own; no test asserts how long anything took.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use reqwest::Client;
use reqwest::redirect::Policy;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::*;

mod life;

const CLIENT_ID: &str = "SANDBOX_5YCTEST0000000001";
const PAY: &str = "/ams/sandbox/api/v1/payments/pay";
const INQUIRY: &str = "/ams/sandbox/api/v1/payments/inquiryPayment";
const CANCEL: &str = "/ams/sandbox/api/v1/payments/cancel";
const VISA: &str = "4054695723100768";
const SLOW: Duration = Duration::from_millis(150);

fn vector(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/antom").join(name)
}

fn key(name: &str) -> Vec<u8> {
    std::fs::read(vector("keys").join(name)).unwrap()
}

fn json_sample(name: &str) -> Value {
    let path = format!("{}/tests/samples/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).expect("a sample")).expect("JSON")
}

fn json_vector(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(vector(name)).unwrap()).unwrap()
}

/// A sandbox, a merchant's HTTP client that trusts it, and the merchant's key.
struct Bench {
    sandbox: Sandbox,
    http: Client,
    merchant: Arc<RsaKeyPair>,
    directory: TempDir,
}

/// What came back: `None` where no whole answer did.
struct Got {
    status: u16,
    verified: bool,
    body: Value,
    bytes: Vec<u8>,
    location: Option<String>,
}

impl Bench {
    async fn new() -> Self {
        Self::within(TempDir::new().unwrap()).await
    }

    async fn within(directory: TempDir) -> Self {
        Self::notifying(directory, None).await
    }

    async fn notifying(directory: TempDir, notify: Option<NotifyOptions>) -> Self {
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let sandbox = Sandbox::start(Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            tls_certificate_pem: certified.cert.pem().into_bytes(),
            tls_private_key_pem: certified.signing_key.serialize_pem().into_bytes(),
            ledger: directory.path().join("ledger.jsonl"),
            client_id: CLIENT_ID.to_owned(),
            merchant_public_key_pem: key("merchant_public_spki.pem"),
            gateway_private_key_pem: key("gateway_private_pkcs8.pem"),
            gateway_key_version: 1,
            slow: SLOW,
            notify,
        })
        .await
        .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certified.cert.der().clone()).unwrap();
        let tls = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .build()
            .unwrap();
        Self { sandbox, http, merchant: Arc::new(merchant_key("merchant")), directory }
    }

    async fn restart(self) -> Self {
        self.sandbox.stop().await;
        Self::within(self.directory).await
    }

    async fn call(&self, path: &str, body: &Value) -> Option<Got> {
        let body = body.to_string();
        let signature = sign(&self.merchant, path, CLIENT_ID, "1685599933871", &body);
        self.send(path, CLIENT_ID, &signature, body).await
    }

    async fn send(&self, path: &str, client_id: &str, signature: &str, body: String) -> Option<Got> {
        let answer = self
            .http
            .post(format!("{}{path}", self.sandbox.base_url()))
            .header("Content-Type", "application/json; charset=UTF-8")
            .header("Client-Id", client_id)
            .header("Request-Time", "1685599933871")
            .header("Signature", signature)
            .body(body)
            .send()
            .await
            .ok()?;
        let header = |name: &str| {
            answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
        };
        let (own_id, time, signature) = (header("client-id"), header("response-time"), header("signature"));
        let location = answer.headers().get("location").map(|value| value.to_str().unwrap().to_owned());
        let status = answer.status().as_u16();
        let bytes = answer.bytes().await.ok()?.to_vec();
        let verified = own_id == client_id && verify(path, client_id, &time, &bytes, &signature);
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Some(Got { status, verified, body, bytes, location })
    }

    /// A verified answer with HTTP 200, which every call here gets unless a trigger forbids it.
    async fn good(&self, path: &str, body: &Value) -> Value {
        let got = self.call(path, body).await.expect("an answer");
        assert_eq!(got.status, 200);
        assert!(got.verified, "the answer must verify");
        got.body
    }

    async fn inquire(&self, id: &str) -> Value {
        self.good(INQUIRY, &json!({ "paymentRequestId": id })).await
    }

    async fn visit(&self, url: &str) -> (u16, String) {
        let answer = self.http.get(url).send().await.unwrap();
        let location = answer.headers().get("location").map(|value| value.to_str().unwrap().to_owned());
        let status = answer.status().as_u16();
        (status, location.unwrap_or(answer.text().await.unwrap()))
    }

    fn charges(&self) -> usize {
        self.sandbox.ledger().iter().filter(|entry| entry.charged).count()
    }
}

fn merchant_key(whose: &str) -> RsaKeyPair {
    let pem = key(&format!("{whose}_private_pkcs8.pem"));
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
    RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap()
}

fn sign(key: &RsaKeyPair, path: &str, client_id: &str, time: &str, body: &str) -> String {
    let text = format!("POST {path}\n{client_id}.{time}.{body}");
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).unwrap();
    let value = BASE64.encode(&signature).replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    format!("algorithm=RSA256,keyVersion=1,signature={value}")
}

fn verify(path: &str, client_id: &str, time: &str, body: &[u8], header: &str) -> bool {
    let Some(value) = header.strip_prefix("algorithm=RSA256,keyVersion=1,signature=") else {
        return false;
    };
    let base64 = value.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=");
    let mut text = format!("POST {path}\n{client_id}.{time}.").into_bytes();
    text.extend_from_slice(body);
    let gateway = merchant_key("gateway");
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, gateway.public().as_ref())
        .verify(&text, &BASE64.decode(base64.as_bytes()).unwrap())
        .is_ok()
}

fn pay_body(id: &str, value: &str) -> Value {
    json!({
        "productCode": "CASHIER_PAYMENT",
        "paymentRequestId": id,
        "paymentAmount": { "currency": "EUR", "value": value },
        "order": {
            "referenceOrderId": "ORDER_1",
            "orderDescription": "goods",
            "orderAmount": { "currency": "EUR", "value": value },
        },
        "paymentMethod": {
            "paymentMethodType": "CARD",
            "paymentMethodMetaData": {
                "cardNo": VISA,
                "cvv": "850",
                "expiryYear": "29",
                "expiryMonth": "12",
                "cardholderName": { "firstName": "Tom", "lastName": "Jay" },
                "isCardOnFile": false,
                "is3DSAuthentication": false,
            },
        },
        "env": { "terminalType": "WEB", "clientIp": "203.0.113.7" },
        "paymentFactor": { "isAuthorization": true },
        "paymentRedirectUrl": "https://merchant.example/return",
    })
}

fn with_card(id: &str, member: &str, value: Value) -> Value {
    let mut body = pay_body(id, "30000");
    body["paymentMethod"]["paymentMethodMetaData"][member] = value;
    body
}

fn outcome(answer: &Value) -> (&str, &str) {
    let word = |name: &str| answer["result"][name].as_str().unwrap_or("-");
    (word("resultStatus"), word("resultCode"))
}

const SUCCESS: (&str, &str) = ("S", "SUCCESS");
const IN_PROCESS: (&str, &str) = ("U", "PAYMENT_IN_PROCESS");

#[tokio::test]
async fn the_documented_card_sample_pays() {
    let bench = Bench::new().await;
    let answer = bench.good(PAY, &json_sample("pay-server-to-server.json")).await;
    assert_eq!(outcome(&answer), SUCCESS);
    assert_eq!(answer["paymentRequestId"], "PAY_20221114141714891");
    assert_eq!(answer["paymentAmount"], json!({ "currency": "EUR", "value": "30000" }));
    assert_eq!(answer["actualPaymentAmount"], answer["paymentAmount"]);
    assert!(answer["paymentId"].as_str().unwrap().len() >= 30);
    let info = &answer["paymentResultInfo"];
    assert_eq!(info["cardNo"], "************6383");
    assert_eq!((info["avsResultRaw"].as_str(), info["cvvResultRaw"].as_str()), (Some("A"), Some("Y")));
    assert_eq!(info["cardBrand"], "VISA");
    assert!(info["networkTransactionId"].is_string());
    assert!(info.get("cardToken").is_none());
    let inquiry = bench.good(INQUIRY, &json!({ "paymentId": answer["paymentId"] })).await;
    assert_eq!(inquiry["paymentStatus"], "SUCCESS");
    assert_eq!(inquiry["paymentResultInfo"], answer["paymentResultInfo"]);
}

#[tokio::test]
async fn every_body_of_the_official_sdk_is_taken() {
    let bench = Bench::new().await;
    let vectors = json_vector("s2s_pay_requests.json");
    let first = bench.good(PAY, &pay_body("FIRST", "30000")).await;
    let network_id = first["paymentResultInfo"]["networkTransactionId"].clone();
    for scenario in vectors["scenarios"].as_array().unwrap() {
        let (status, code) = match &scenario["body"]["paymentMethod"]["paymentMethodMetaData"] {
            data if data["is3DSAuthentication"] == true => IN_PROCESS,
            _ => SUCCESS,
        };
        let mut body = scenario["body"].clone();
        if let Some(id) = body.pointer_mut("/paymentMethod/paymentMethodMetaData/networkTransactionId") {
            *id = network_id.clone();
        }
        let answer = bench.good(PAY, &body).await;
        assert_eq!(outcome(&answer), (status, code), "{} {answer}", scenario["name"]);
    }
}

#[tokio::test]
async fn the_documented_hosted_sample_redirects_and_completes() {
    let bench = Bench::new().await;
    let body = json_sample("pay-hosted-page.json");
    let answer = bench.good(PAY, &body).await;
    assert_eq!(outcome(&answer), IN_PROCESS);
    let url = answer["normalUrl"].as_str().unwrap();
    assert_eq!(answer["redirectActionForm"]["redirectUrl"], url);
    assert_eq!(bench.inquire("PAY_20221114141714891").await["paymentStatus"], "PROCESSING");
    let (status, html) = bench.visit(url).await;
    assert_eq!(status, 200);
    assert!(html.contains("/approve") && html.contains("/decline"));
    assert_eq!(bench.charges(), 0);
    assert_eq!(bench.good(PAY, &body).await["normalUrl"], url, "a repeat waits for the buyer too");

    let there = (302, "https://www.alipay.com".to_owned());
    assert_eq!(bench.visit(&format!("{url}/approve")).await, there);
    assert_eq!(bench.visit(&format!("{url}/decline")).await, there, "too late to decline");
    let inquiry = bench.inquire("PAY_20221114141714891").await;
    assert_eq!(inquiry["paymentStatus"], "SUCCESS");
    let token = inquiry["paymentResultInfo"]["cardToken"].clone();
    assert!(token.is_string());
    assert_eq!(inquiry["cardInfo"]["cardToken"], token);
    assert!(inquiry.get("normalUrl").is_none());

    let mut next = pay_body("NEXT", "30000");
    next["paymentMethod"] = json!({ "paymentMethodType": "CARD", "paymentMethodId": token,
        "paymentMethodMetaData": { "isCardOnFile": true } });
    let paid = bench.good(PAY, &next).await;
    assert_eq!(outcome(&paid), SUCCESS);
    assert_eq!(paid["paymentResultInfo"]["lastFour"], "0768");
    next["paymentMethod"]["paymentMethodId"] = json!("another");
    assert_eq!(outcome(&bench.good(PAY, &next).await).1, "REPEAT_REQ_INCONSISTENT");
}

#[tokio::test]
async fn three_ds_needs_the_buyer_unless_the_card_is_frictionless() {
    let bench = Bench::new().await;
    for (id, verb, status) in [("YES", "approve", "SUCCESS"), ("NO", "decline", "FAIL")] {
        let answer = bench.good(PAY, &with_card(id, "is3DSAuthentication", json!(true))).await;
        assert_eq!(outcome(&answer), IN_PROCESS);
        assert!(answer.get("paymentResultInfo").is_none());
        let url = format!("{}/{verb}", answer["normalUrl"].as_str().unwrap());
        assert_eq!(bench.visit(&url).await.0, 302);
        let inquiry = bench.inquire(id).await;
        assert_eq!(inquiry["paymentStatus"], status);
        assert_eq!(inquiry["paymentResultInfo"]["threeDSResult"]["eci"].is_string(), status == "SUCCESS");
    }
    assert_eq!(bench.inquire("NO").await["paymentResultCode"], "USER_PAYMENT_VERIFICATION_FAILED");
    let mut body = with_card("FREE", "is3DSAuthentication", json!("true"));
    body["paymentMethod"]["paymentMethodMetaData"]["cardNo"] = json!("4035501000000008");
    let answer = bench.good(PAY, &body).await;
    assert_eq!(outcome(&answer), SUCCESS);
    for member in ["eci", "cavv", "dsTransactionId"] {
        assert!(answer["paymentResultInfo"]["threeDSResult"][member].is_string());
    }
    assert_eq!(bench.visit(&format!("{}/pages/UNKNOWN", bench.sandbox.base_url())).await.0, 404);
}

#[tokio::test]
async fn cards_end_as_the_help_says() {
    let bench = Bench::new().await;
    let paid = [
        (VISA, "VISA", "GLOBAL"),
        ("5162774114974622", "MASTERCARD", "GLOBAL"),
        ("9490220011669217", "HYUNDAI", "KR"),
        ("4294097400915107", "VISA", "BR"),
        ("4006055482525268", "VISA", "MX"),
        ("4600729331819383", "VISA", "CL"),
        ("4310377720003234", "VISA", "PE"),
        ("378282246310005", "AMEX", "GLOBAL"),
    ];
    for (card, brand, region) in paid {
        let answer = bench.good(PAY, &with_card(card, "cardNo", json!(card))).await;
        assert_eq!(outcome(&answer), SUCCESS, "{card}");
        assert_eq!(answer["paymentResultInfo"]["cardBrand"], brand);
        assert_eq!(answer["paymentResultInfo"]["paymentMethodRegion"], region);
    }
    for (card, advice) in [("4054692760174822", "02"), ("5162770472561357", "03")] {
        let body = with_card(card, "cardNo", json!(card));
        let answer = bench.good(PAY, &body).await;
        assert_eq!(outcome(&answer), ("F", "DO_NOT_HONOR"));
        assert_eq!(answer["paymentResultInfo"]["merchantAdviceCode"], advice);
        assert_eq!(answer["paymentResultInfo"]["refusalCodeRaw"], "05");
        assert_eq!(bench.inquire(card).await["paymentStatus"], "FAIL");
        assert_eq!(bench.good(PAY, &body).await, answer);
    }
    let tokenized = bench.good(PAY, &with_card("TOKEN", "tokenize", json!(true))).await;
    assert!(tokenized["paymentResultInfo"]["cardToken"].is_string());
    assert_eq!(bench.charges(), paid.len() + 1);
}

#[tokio::test]
async fn declines_carry_the_issuers_own_words() {
    let bench = Bench::new().await;
    let cases = [
        ("660071", "51", None),
        ("660072", "05", Some("03")),
        ("660073", "R1", None),
        ("660074", "1A", None),
    ];
    for (amount, raw, advice) in cases {
        let info = bench.good(PAY, &pay_body(amount, amount)).await["paymentResultInfo"].clone();
        assert_eq!(info["refusalCodeRaw"], raw);
        assert_eq!(info.get("merchantAdviceCode").and_then(Value::as_str), advice);
        assert_eq!(bench.inquire(amount).await["paymentResultInfo"], info);
    }
}

#[tokio::test]
async fn the_same_request_again_is_the_same_payment_and_another_one_is_refused() {
    let bench = Bench::new().await;
    let first = bench.good(PAY, &pay_body("ONE", "30000")).await;
    assert_eq!(bench.good(PAY, &pay_body("ONE", "30000")).await, first);
    let mut other_currency = pay_body("ONE", "30000");
    other_currency["paymentAmount"]["currency"] = json!("USD");
    let others = [
        pay_body("ONE", "30001"),
        pay_body("ONE", "660003"),
        other_currency,
        with_card("ONE", "cardNo", json!("5162774114974622")),
    ];
    for other in others {
        assert_eq!(outcome(&bench.good(PAY, &other).await), ("F", "REPEAT_REQ_INCONSISTENT"));
    }
    assert_eq!(bench.good(PAY, &pay_body("ONE", "30000")).await, first);
    assert_eq!(bench.sandbox.ledger().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_requests_with_one_id_are_one_charge() {
    let bench = Arc::new(Bench::new().await);
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move { bench.good(PAY, &pay_body("SAME", "30000")).await })
        })
        .collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap());
    }
    assert!(answers.iter().all(|answer| answer == &answers[0]));
    assert_eq!((bench.sandbox.ledger().len(), bench.charges()), (1, 1));
}

#[tokio::test]
async fn a_restart_keeps_the_books_and_a_torn_line_is_forgotten() {
    let bench = Bench::new().await;
    let first = bench.good(PAY, &pay_body("KEPT", "30000")).await;
    assert_eq!(outcome(&bench.good(PAY, &pay_body("BUSY", "660044")).await).0, "U");
    let before = bench.sandbox.ledger();
    let file = bench.directory.path().join("ledger.jsonl");
    let mut torn = std::fs::read(&file).unwrap();
    torn.extend_from_slice(br#"{"payment":{"paymentRequestId":"TORN","#);
    bench.sandbox.stop().await;
    std::fs::write(&file, torn).unwrap();
    let bench = Bench::within(bench.directory).await;
    assert_eq!(bench.sandbox.ledger(), before);
    assert_eq!(bench.good(PAY, &pay_body("KEPT", "30000")).await, first);
    assert_eq!(outcome(&bench.good(PAY, &pay_body("KEPT", "1")).await).1, "REPEAT_REQ_INCONSISTENT");
    assert_eq!(outcome(&bench.good(PAY, &pay_body("BUSY", "660044")).await), SUCCESS, "struck before");
    assert_eq!(outcome(&bench.good(PAY, &pay_body("TORN", "30000")).await), SUCCESS);
    let bench = bench.restart().await;
    assert_eq!(bench.sandbox.ledger().len(), 3);
}

#[tokio::test]
async fn one_ledger_has_one_sandbox_and_a_strange_line_stops_the_start() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("ledger.jsonl");
    let held = Ledger::open(&path, None).unwrap();
    assert!(matches!(Ledger::open(&path, None), Err(Error::LedgerInUse)));
    drop(held);
    std::fs::write(&path, "{\"struck\":\"A\"}\nnot ours\n").unwrap();
    assert!(matches!(Ledger::open(&path, None), Err(Error::LedgerLine(2))));
}

#[tokio::test]
async fn what_is_not_rightly_signed_and_addressed_is_refused_in_a_signed_answer() {
    let bench = Bench::new().await;
    let body = pay_body("ONE", "30000").to_string();
    let time = "1685599933871";
    let own = sign(&bench.merchant, PAY, CLIENT_ID, time, &body);
    let stranger = sign(&merchant_key("unrelated"), PAY, CLIENT_ID, time, &body);
    let other_body = sign(&bench.merchant, PAY, CLIENT_ID, time, "{}");
    let other_time = sign(&bench.merchant, PAY, CLIENT_ID, "1685599933872", &body);
    let production = "/ams/api/v1/payments/pay";
    let unknown = "/ams/sandbox/api/v1/payments/refundAll";
    let queried = format!("{PAY}?x=1");
    let sign_for = |path: &str| sign(&bench.merchant, path, CLIENT_ID, time, &body);
    let cases = [
        (PAY, CLIENT_ID, stranger, "INVALID_SIGNATURE"),
        (PAY, CLIENT_ID, other_body, "INVALID_SIGNATURE"),
        (PAY, CLIENT_ID, other_time, "INVALID_SIGNATURE"),
        (PAY, CLIENT_ID, String::new(), "INVALID_SIGNATURE"),
        (PAY, CLIENT_ID, own.replace("RSA256", "NONE"), "INVALID_SIGNATURE"),
        (PAY, CLIENT_ID, "algorithm=RSA256,signature=%ff".to_owned(), "INVALID_SIGNATURE"),
        (&queried, CLIENT_ID, own.clone(), "INVALID_SIGNATURE"),
        (PAY, "SANDBOX_OTHER", own.clone(), "INVALID_CLIENT"),
        (production, CLIENT_ID, sign_for(production), "INVALID_API"),
        (unknown, CLIENT_ID, sign_for(unknown), "INVALID_API"),
        ("/", CLIENT_ID, sign_for("/"), "INVALID_API"),
    ];
    for (path, client_id, signature, code) in cases {
        let got = bench.send(path, client_id, &signature, body.clone()).await.unwrap();
        assert_eq!((got.status, got.verified), (200, true), "{code}");
        assert_eq!(outcome(&got.body), ("F", code));
    }
    let spaced = own.replace(',', ", ");
    assert!(bench.sandbox.ledger().is_empty());
    let got = bench.send(PAY, CLIENT_ID, &spaced, body.clone()).await.unwrap();
    assert_eq!(outcome(&got.body), SUCCESS, "spaces after commas are legal");
    let got =
        bench.send(&queried, CLIENT_ID, &sign_for(&queried), pay_body("ONE", "30000").to_string()).await;
    assert_eq!(outcome(&got.unwrap().body), SUCCESS, "the query is signed too");
}

#[tokio::test]
async fn method_media_type_and_size_are_checked() {
    let bench = Bench::new().await;
    let url = format!("{}{PAY}", bench.sandbox.base_url());
    let got: Value =
        serde_json::from_slice(&bench.http.get(&url).send().await.unwrap().bytes().await.unwrap()).unwrap();
    assert_eq!(outcome(&got).1, "METHOD_NOT_SUPPORTED");
    let answer = bench.http.post(&url).header("content-type", "text/plain").body("{}").send().await.unwrap();
    let got: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!(outcome(&got).1, "MEDIA_TYPE_NOT_ACCEPTABLE");
    let huge = bench.http.post(&url).body(vec![b' '; 1024 * 1024 + 1]).send().await;
    assert!(huge.is_err() || huge.unwrap().status() == 413);
    assert_eq!(outcome(&bench.good(PAY, &json!([])).await).1, "PARAM_ILLEGAL");
}

/// Takes one member away, or makes it wrong, and names the member that the refusal must name.
#[tokio::test]
async fn a_wrong_member_is_named_and_its_value_is_not_repeated() {
    let bench = Bench::new().await;
    let cases: &[(&str, Option<Value>, &str)] = &[
        ("/productCode", None, "productCode"),
        ("/productCode", Some(json!("EVIL_VALUE")), "productCode"),
        ("/paymentRequestId", None, "paymentRequestId"),
        ("/paymentRequestId", Some(json!("x".repeat(65))), "paymentRequestId"),
        ("/paymentAmount", None, "paymentAmount"),
        ("/paymentAmount/value", Some(json!(30000)), "paymentAmount.value"),
        ("/paymentAmount/value", Some(json!("030")), "paymentAmount.value"),
        ("/paymentAmount/value", Some(json!("3.00")), "paymentAmount.value"),
        ("/paymentAmount/currency", Some(json!("eur")), "paymentAmount.currency"),
        ("/order", None, "order"),
        ("/order/referenceOrderId", None, "order.referenceOrderId"),
        ("/order/orderDescription", None, "order.orderDescription"),
        ("/order/orderAmount", None, "order.orderAmount"),
        ("/order/orderAmount/value", Some(json!("EVIL_VALUE")), "order.orderAmount.value"),
        ("/env", None, "env"),
        ("/env/terminalType", Some(json!("EVIL_VALUE")), "env.terminalType"),
        ("/paymentRedirectUrl", None, "paymentRedirectUrl"),
        ("/paymentRedirectUrl", Some(json!("javascript:EVIL_VALUE")), "paymentRedirectUrl"),
        ("/paymentFactor", None, "paymentFactor"),
        ("/paymentFactor/isAuthorization", Some(json!("EVIL_VALUE")), "paymentFactor.isAuthorization"),
        ("/paymentMethod", None, "paymentMethod"),
        ("/paymentMethod/paymentMethodType", None, "paymentMethod.paymentMethodType"),
        ("/paymentMethod/paymentMethodId", Some(json!("TOKEN")), "cardNo"),
        ("/paymentMethod/paymentMethodMetaData/cardNo", None, "cardNo"),
        ("/paymentMethod/paymentMethodMetaData/expiryYear", None, "expiryYear"),
        ("/paymentMethod/paymentMethodMetaData/expiryMonth", Some(json!(12)), "expiryMonth"),
        ("/paymentMethod/paymentMethodMetaData/cardholderName", None, "cardholderName"),
        ("/paymentMethod/paymentMethodMetaData/cvv", Some(json!(850)), "cvv"),
        ("/paymentMethod/paymentMethodMetaData/isCardOnFile", Some(json!("EVIL_VALUE")), "isCardOnFile"),
    ];
    for (pointer, value, name) in cases {
        let mut body = pay_body("CHECKED", "30000");
        let (parent, member) = pointer.rsplit_once('/').unwrap();
        let parent = body.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => drop(parent.insert(member.to_owned(), value.clone())),
            None => drop(parent.remove(member)),
        }
        let answer = bench.good(PAY, &body).await;
        assert_eq!(outcome(&answer), ("F", "PARAM_ILLEGAL"), "{pointer}");
        let message = answer["result"]["resultMessage"].as_str().unwrap();
        assert!(message.contains(&format!(" {name} is")), "{pointer}: {message}");
        assert!(!message.contains("EVIL_VALUE") && !message.contains("TOKEN"));
    }
    assert!(bench.sandbox.ledger().is_empty());
    assert_eq!(outcome(&bench.inquire("CHECKED").await), ("F", "ORDER_NOT_EXIST"));
}

#[tokio::test]
async fn wrong_card_data_has_its_own_codes() {
    let bench = Bench::new().await;
    let cases = [
        ("cardNo", "4054695723100769", "INVALID_CARD_NUMBER"),
        ("cardNo", "4054 6957 2310 0768", "INVALID_CARD_NUMBER"),
        ("expiryMonth", "13", "INVALID_EXPIRATION_DATE"),
        ("expiryMonth", "00", "INVALID_EXPIRATION_DATE"),
        ("expiryMonth", "1", "INVALID_EXPIRY_DATE_FORMAT"),
        ("expiryYear", "2029", "INVALID_EXPIRY_DATE_FORMAT"),
        ("cvv", "99", "INVALID_CVV"),
        ("cvv", "12a", "INVALID_CVV"),
        ("cardNumber", VISA, "INVALID_PAYMENT_METHOD_META_DATA"),
    ];
    for (member, value, code) in cases {
        let answer = bench.good(PAY, &with_card("WRONG", member, json!(value))).await;
        assert_eq!(outcome(&answer), ("F", code), "{member}");
    }
}

#[tokio::test]
async fn a_merchant_initiated_payment_keeps_the_rules() {
    let bench = Bench::new().await;
    let first = bench.good(PAY, &with_card("FIRST", "tokenize", json!(true))).await;
    let info = &first["paymentResultInfo"];
    let mit = |id: &str| {
        let mut body = pay_body(id, "30000");
        let data = body["paymentMethod"]["paymentMethodMetaData"].as_object_mut().unwrap();
        data.remove("cvv");
        data.insert("isCardOnFile".to_owned(), json!(true));
        data.insert("recurringType".to_owned(), json!("SCHEDULED"));
        data.insert("networkTransactionId".to_owned(), info["networkTransactionId"].clone());
        body
    };
    let answer = bench.good(PAY, &mit("GOOD")).await;
    assert_eq!(outcome(&answer), SUCCESS);
    assert_eq!(answer["paymentResultInfo"]["cvvResultRaw"], "");
    let wrong = [
        ("networkTransactionId", Value::Null),
        ("cvv", json!("850")),
        ("is3DSAuthentication", json!(true)),
        ("isCardOnFile", json!(false)),
        ("recurringType", json!("NOW_AND_THEN")),
    ];
    for (member, value) in wrong {
        let mut body = mit("BAD");
        body["paymentMethod"]["paymentMethodMetaData"][member] = value;
        let answer = bench.good(PAY, &body).await;
        assert_eq!(outcome(&answer).1, "PARAM_ILLEGAL");
        assert!(answer["result"]["resultMessage"].as_str().unwrap().contains(member));
    }
    bench.good(PAY, &with_card("DECLINED", "cardNo", json!("4054692760174822"))).await;
    for (member, value) in [
        ("networkTransactionId", json!("GIVEN_BY_NOBODY")),
        ("cardNo", json!("5162774114974622")),
        ("cardNo", json!("4054692760174822")),
    ] {
        let mut body = mit("UNFOUNDED");
        body["paymentMethod"]["paymentMethodMetaData"][member] = value;
        let answer = bench.good(PAY, &body).await;
        assert_eq!(outcome(&answer), ("F", "INVALID_PAYMENT_METHOD_META_DATA"));
    }
    assert_eq!(outcome(&bench.inquire("UNFOUNDED").await), ("F", "ORDER_NOT_EXIST"));

    let with_token = |id: &str, token: &Value| {
        let mut body = mit(id);
        let method = body["paymentMethod"].as_object_mut().unwrap();
        method.insert("paymentMethodId".to_owned(), token.clone());
        let data = method["paymentMethodMetaData"].as_object_mut().unwrap();
        data.retain(|name, _| {
            !["cardNo", "expiryYear", "expiryMonth", "cardholderName"].contains(&name.as_str())
        });
        body
    };
    let answer = bench.good(PAY, &with_token("TOKEN", &info["cardToken"])).await;
    assert_eq!(outcome(&answer), SUCCESS);
    assert_eq!(answer["paymentResultInfo"]["lastFour"], "0768");
    let answer = bench.good(PAY, &with_token("STRANGE", &json!("ANOTHER_TOKEN"))).await;
    assert_eq!(outcome(&answer), ("F", "INVALID_PAYMENT_METHOD_META_DATA"));
    let mut customer = with_token("CUSTOMER", &info["cardToken"]);
    customer["paymentMethod"]["paymentMethodMetaData"] = json!({});
    assert_eq!(outcome(&bench.good(PAY, &customer).await), ("F", "PARAM_ILLEGAL"));
    customer["paymentMethod"]["paymentMethodMetaData"] = json!({ "isCardOnFile": true });
    assert_eq!(outcome(&bench.good(PAY, &customer).await), SUCCESS);
}

#[tokio::test]
async fn cancel_ends_a_payment_for_good() {
    let bench = Bench::new().await;
    let named = json!({ "paymentRequestId": "ONE" });
    assert_eq!(outcome(&bench.good(CANCEL, &named).await), ("F", "ORDER_NOT_EXIST"));
    assert_eq!(outcome(&bench.good(CANCEL, &json!({})).await), ("F", "PARAM_ILLEGAL"));
    let paid = bench.good(PAY, &pay_body("ONE", "30000")).await;
    let cancelled = bench.good(CANCEL, &json!({ "paymentId": paid["paymentId"] })).await;
    assert_eq!(outcome(&cancelled), SUCCESS);
    assert!(cancelled["cancelTime"].is_string());
    assert_eq!(bench.good(CANCEL, &named).await, cancelled);
    let inquiry = bench.inquire("ONE").await;
    assert_eq!(inquiry["paymentStatus"], "CANCELLED");
    assert_eq!(inquiry["transactions"][0]["transactionType"], "CAPTURE");
    assert_eq!(inquiry["transactions"][1]["transactionType"], "CANCEL");
    assert_eq!(bench.sandbox.net_charged("ONE"), 0);
    assert_eq!(outcome(&bench.good(PAY, &pay_body("ONE", "30000")).await), ("F", "ORDER_IS_CLOSED"));

    let waiting = bench.good(PAY, &with_card("PAGE", "is3DSAuthentication", json!(true))).await;
    assert_eq!(outcome(&bench.good(CANCEL, &json!({ "paymentRequestId": "PAGE" })).await), SUCCESS);
    bench.visit(&format!("{}/approve", waiting["normalUrl"].as_str().unwrap())).await;
    assert_eq!(bench.inquire("PAGE").await["paymentStatus"], "CANCELLED");
    bench.good(PAY, &pay_body("RISK", "11")).await;
    let refused = bench.good(CANCEL, &json!({ "paymentRequestId": "RISK" })).await;
    assert_eq!(outcome(&refused), ("F", "ORDER_STATUS_INVALID"));
}

/// What a client sees of the first answer to each amount.
enum Seen {
    Verified(&'static str, &'static str),
    Unverified(&'static str),
    Status(u16),
    Unreadable,
    Nothing,
}

/// For every trigger: the first answer, what the books hold after it, what an inquiry says, and that a
/// repeat never makes a second charge.
#[tokio::test]
async fn every_trigger_does_what_the_help_says() {
    use Seen::*;
    let bench = Bench::new().await;
    let cases: &[(&str, Seen, &str, &str)] = &[
        ("11", Verified("F", "RISK_REJECT"), "FAIL", "F RISK_REJECT"),
        ("660001", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660002", Nothing, "-", "S SUCCESS"),
        ("660003", Nothing, "SUCCESS", "S SUCCESS"),
        ("660004", Nothing, "SUCCESS", "S SUCCESS"),
        ("660005", Nothing, "SUCCESS", "S SUCCESS"),
        ("660006", Nothing, "-", "S SUCCESS"),
        ("660011", Status(500), "-", "S SUCCESS"),
        ("660012", Status(500), "SUCCESS", "S SUCCESS"),
        ("660013", Status(302), "-", "S SUCCESS"),
        ("660021", Unverified("S"), "SUCCESS", "S SUCCESS"),
        ("660022", Unverified("S"), "SUCCESS", "S SUCCESS"),
        ("660023", Unverified("F"), "-", "S SUCCESS"),
        ("660024", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660025", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660026", Unreadable, "SUCCESS", "S SUCCESS"),
        ("660027", Nothing, "SUCCESS", "S SUCCESS"),
        ("660028", Unreadable, "SUCCESS", "S SUCCESS"),
        ("660029", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660030", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660031", Verified("F", "PROCESS_FAIL"), "FAIL", "F PROCESS_FAIL"),
        ("660032", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660033", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660034", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660041", Verified("U", "UNKNOWN_EXCEPTION"), "SUCCESS", "S SUCCESS"),
        ("660042", Verified("U", "PAYMENT_IN_PROCESS"), "PROCESSING", "S SUCCESS"),
        ("660043", Verified("U", "PAYMENT_IN_PROCESS"), "PROCESSING", "F PROCESS_FAIL"),
        ("660044", Verified("U", "REQUEST_TRAFFIC_EXCEED_LIMIT"), "-", "S SUCCESS"),
        ("660051", Verified("F", "REPEAT_REQ_INCONSISTENT"), "-", "S SUCCESS"),
        ("660052", Verified("F", "REPEAT_REQ_INCONSISTENT"), "SUCCESS", "S SUCCESS"),
        ("660053", Verified("F", "ORDER_IS_CLOSED"), "CANCELLED", "F ORDER_IS_CLOSED"),
        ("660061", Nothing, "silent", "S SUCCESS"),
        ("660062", Nothing, "U", "S SUCCESS"),
        ("660063", Nothing, "U", "S SUCCESS"),
        ("660064", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660065", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660066", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660067", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660068", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660069", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660071", Verified("F", "USER_BALANCE_NOT_ENOUGH"), "FAIL", "F USER_BALANCE_NOT_ENOUGH"),
        ("660072", Verified("F", "DO_NOT_HONOR"), "FAIL", "F DO_NOT_HONOR"),
        ("660073", Verified("F", "ISSUER_REJECTS_TRANSACTION"), "FAIL", "F ISSUER_REJECTS_TRANSACTION"),
        ("660074", Verified("F", "AUTHENTICATION_REQUIRED"), "FAIL", "F AUTHENTICATION_REQUIRED"),
        ("660075", Verified("F", "AUTHENTICATION_REQUIRED"), "FAIL", "F AUTHENTICATION_REQUIRED"),
        ("660081", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660082", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660083", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660084", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660085", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660086", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660087", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660088", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660089", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660090", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
        ("660091", Verified("S", "SUCCESS"), "SUCCESS", "S SUCCESS"),
    ];
    assert_eq!(
        cases.iter().map(|case| case.0).collect::<Vec<_>>(),
        triggers::TRIGGERS.iter().map(|trigger| trigger.amount).collect::<Vec<_>>()
    );
    for (amount, seen, inquired, repeated) in cases {
        assert!(CARDS_HELP.contains(&format!("\n{amount:>8}  ")), "{amount} is not in the help");
        let body = pay_body(amount, amount);
        let got = bench.call(PAY, &body).await;
        match (seen, &got) {
            (Nothing, None) => {}
            (Verified(status, code), Some(got)) => {
                assert!(got.verified, "{amount}");
                assert_eq!(outcome(&got.body), (*status, *code), "{amount}");
            }
            (Unverified(status), Some(got)) => {
                assert!(!got.verified, "{amount}");
                assert_eq!(outcome(&got.body).0, *status, "{amount}");
            }
            (Status(status), Some(got)) => assert_eq!(got.status, *status, "{amount}"),
            (Unreadable, Some(got)) => assert!(got.verified && got.body.is_null(), "{amount}"),
            (_, got) => panic!("{amount}: an answer: {}", got.is_some()),
        }
        if *amount == "660005" {
            while bench.sandbox.ledger().iter().all(|entry| entry.payment_request_id != *amount) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        match *inquired {
            "silent" => {
                assert!(bench.call(INQUIRY, &json!({ "paymentRequestId": amount })).await.is_none());
                assert_eq!(bench.inquire(amount).await["paymentStatus"], "SUCCESS");
            }
            "U" => assert_eq!(outcome(&bench.inquire(amount).await), ("U", "UNKNOWN_EXCEPTION")),
            "-" => assert_eq!(outcome(&bench.inquire(amount).await), ("F", "ORDER_NOT_EXIST"), "{amount}"),
            status => assert_eq!(bench.inquire(amount).await["paymentStatus"], status, "{amount}"),
        }
        let first = bench.good(PAY, &body).await;
        let (status, code) = outcome(&first);
        assert_eq!(format!("{status} {code}"), *repeated, "{amount}");
        assert_eq!(bench.good(PAY, &body).await, first, "{amount}");
    }
    let paid = cases.iter().filter(|case| case.3 == "S SUCCESS").count();
    assert_eq!(bench.charges(), paid);
}

#[tokio::test]
async fn spoilt_answers_are_spoilt_in_the_right_place() {
    let bench = Bench::new().await;
    let answer = bench.good(PAY, &pay_body("A", "660024")).await;
    assert_ne!(answer["paymentRequestId"], "A");
    let answer = bench.good(PAY, &pay_body("B", "660025")).await;
    assert_ne!(answer["paymentAmount"]["value"], "660025");
    let answer = bench.good(PAY, &pay_body("C", "660031")).await;
    assert_eq!(answer.as_object().unwrap().len(), 1);
    let answer = bench.good(PAY, &pay_body("D", "660032")).await;
    assert!(answer["paymentResultInfo"].get("networkTransactionId").is_none());
    assert!(bench.inquire("D").await["paymentResultInfo"]["networkTransactionId"].is_string());
    let got = bench.call(PAY, &pay_body("E", "660029")).await.unwrap();
    assert!(got.bytes.len() > 1024 * 1024);
    let got = bench.call(PAY, &pay_body("F", "660013")).await.unwrap();
    assert!(got.location.unwrap().starts_with("https://elsewhere.invalid/"));
    let answer = bench.good(PAY, &pay_body("G", "660030")).await;
    let info = &answer["paymentResultInfo"];
    assert_eq!((info["cardNo"].as_str(), info["cvv"].as_str()), (Some(VISA), Some("850")));
    let message = answer["result"]["resultMessage"].as_str().unwrap();
    for disguise in
        [VISA, "4054 6957 2310 0768", "4054%206957%202310%200768", "%34%30%35%34", "NDA1NDY5NTcyMzEwMDc2OA=="]
    {
        assert!(message.contains(disguise), "{disguise}");
    }
}

#[tokio::test]
async fn waiting_payments_end_at_the_second_inquiry() {
    let bench = Bench::new().await;
    for (amount, end, charged) in [("660042", "SUCCESS", 1), ("660043", "FAIL", 1)] {
        let mut body = pay_body(amount, amount);
        body["paymentMethod"] = json!({ "paymentMethodType": "CARD" });
        let answer = bench.good(PAY, &body).await;
        assert!(answer.get("normalUrl").is_none());
        assert_eq!(bench.inquire(amount).await["paymentStatus"], "PROCESSING");
        assert_eq!(bench.inquire(amount).await["paymentStatus"], end);
        assert_eq!(bench.charges(), charged);
    }
}

#[tokio::test]
async fn an_unclear_payment_can_be_cancelled_even_if_the_answer_is_lost() {
    let bench = Bench::new().await;
    for amount in ["660062", "660063"] {
        let named = json!({ "paymentRequestId": amount });
        assert!(bench.call(PAY, &pay_body(amount, amount)).await.is_none());
        assert_eq!(bench.call(CANCEL, &named).await.is_none(), amount == "660063");
        assert_eq!(bench.inquire(amount).await["paymentStatus"], "CANCELLED");
        assert_eq!(outcome(&bench.good(CANCEL, &named).await), SUCCESS);
    }
}

#[tokio::test]
async fn a_soft_decline_becomes_a_page_if_the_request_allows_it() {
    let bench = Bench::new().await;
    let mut body = pay_body("SOFT", "660075");
    body["paymentMethod"]["paymentMethodMetaData"]["enableAuthenticationUpgrade"] = json!(true);
    let answer = bench.good(PAY, &body).await;
    assert_eq!(outcome(&answer), IN_PROCESS);
    bench.visit(&format!("{}/approve", answer["normalUrl"].as_str().unwrap())).await;
    let paid = bench.good(PAY, &body).await;
    assert_eq!(outcome(&paid), SUCCESS);
    assert_eq!(paid["paymentResultInfo"]["threeDSResult"]["challenged"], true);
}

#[tokio::test]
async fn a_late_payment_gives_way_to_a_repeat() {
    let bench = Bench::new().await;
    let body = pay_body("LATE", "660005");
    let (first, second) = tokio::join!(bench.call(PAY, &body), async {
        tokio::time::sleep(SLOW / 5).await;
        bench.good(PAY, &body).await
    });
    assert!(first.is_none());
    assert_eq!(outcome(&second), SUCCESS);
    assert_eq!(bench.good(PAY, &body).await, second);
    assert_eq!(bench.charges(), 1);
}

/// Pays with every kind of card data, then looks for it in the file and in what may be shown.
#[tokio::test]
async fn neither_the_ledger_nor_the_recent_calls_hold_card_data() {
    let bench = Bench::new().await;
    let cvv = "7391";
    for (id, value) in [("A", "30000"), ("B", "660003"), ("C", "660030"), ("D", "660029")] {
        let mut body = pay_body(id, value);
        body["paymentMethod"]["paymentMethodMetaData"]["cvv"] = json!(cvv);
        body["order"]["orderDescription"] = json!(format!("card {VISA}"));
        bench.call(PAY, &body).await;
    }
    let calls = bench.sandbox.recent_calls();
    assert_eq!(calls.len(), 4);
    assert!(calls[0].request.contains("************0768") && calls[0].request.contains("\"cvv\":\"***\""));
    assert!(calls[0].answer.contains("SUCCESS"));
    assert_eq!(calls[1].answer, "(no answer, connection closed)");
    for call in &calls {
        assert_eq!(call.path, PAY);
        for text in [&call.request, &call.answer] {
            assert!(!text.contains(VISA) && !text.contains(cvv), "{text}");
        }
    }
    let file = std::fs::read_to_string(bench.directory.path().join("ledger.jsonl")).unwrap();
    assert!(file.contains("0768"), "the last four digits may be kept");
    assert!(!file.contains(VISA) && !file.contains(&format!("\"{cvv}\"")));
    for _ in 0..70 {
        bench.inquire("A").await;
    }
    assert_eq!(bench.sandbox.recent_calls().len(), 64);
}

/// PKCS#1 v1.5 signatures are deterministic: ours must be the official SDK's, byte for byte.
#[test]
fn signatures_agree_with_the_official_sdk() {
    let requests = json_vector("request_signing.json");
    for case in requests["cases"].as_array().unwrap() {
        let text = |name: &str| case[name].as_str().unwrap();
        let version = text("key_version").parse().unwrap();
        let merchant = sign::GatewayKey::read(&key("merchant_private_pkcs1.pem"), version).unwrap();
        let verifier = sign::MerchantKey::read(&key("merchant_public_spki.pem")).unwrap();
        let signed = sign::Signed {
            method: text("method"),
            path: text("path"),
            client_id: text("client_id"),
            time: text("request_time"),
            body: text("body").as_bytes(),
        };
        let header = merchant.sign(signed).unwrap();
        let expected = case["signature_header"].as_str().unwrap_or_else(|| panic!("{case}"));
        assert_eq!(header, expected, "{}", case["name"]);
        assert!(verifier.accepts(&header, signed));
        assert!(!verifier.accepts(&header, sign::Signed { body: b"another", ..signed }));
    }
}

#[test]
fn keys_are_read_from_pem_and_from_bare_base64() {
    let bare = |pem: Vec<u8>| -> Vec<u8> {
        let text = String::from_utf8(pem).unwrap();
        text.lines().filter(|line| !line.starts_with('-')).collect::<String>().into_bytes()
    };
    for name in ["gateway_private_pkcs1.pem", "gateway_private_pkcs8.pem"] {
        assert!(sign::GatewayKey::read(&key(name), 1).is_ok());
        assert!(sign::GatewayKey::read(&bare(key(name)), 1).is_ok());
    }
    assert!(sign::MerchantKey::read(&bare(key("merchant_public_spki.pem"))).is_ok());
    for wrong in [b"".as_slice(), b"not a key", b"AAAA", &key("merchant_private_pkcs8.pem")] {
        assert!(sign::MerchantKey::read(wrong).is_err());
    }
    assert!(sign::GatewayKey::read(&key("merchant_public_spki.pem"), 1).is_err());
}
