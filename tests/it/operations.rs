//! Captures, cancels and refunds: each idempotent by its own id, sums that never exceed what is left, and
//! unknown outcomes that are cleared up.

use std::time::Duration;

use cardvault::base::clock::{Clock, SystemClock};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::support::gateway::{PAY, Reply, paid_json, result};
use super::support::vault::{Answer, Caller, TestVault, by_reference, fresh_pan, with};
use super::support::{eventually, sql};

/// A payment by reference whose money the merchant captures.
pub fn manual(id: &str, value: &str, card: &str) -> String {
    let request = by_reference(id, value, card);
    with(&request, "/paymentFactor", json!({ "isAuthorization": true, "captureMode": "MANUAL" }))
}

pub fn capture(id: &str, value: &str) -> String {
    let amount = json!({ "currency": "EUR", "value": value });
    json!({ "captureRequestId": id, "captureAmount": amount, "isLastCapture": false }).to_string()
}

pub fn refund(id: &str, value: &str) -> String {
    json!({ "refundRequestId": id, "refundAmount": { "currency": "EUR", "value": value } }).to_string()
}

pub async fn pay(caller: &Caller, body: &str) {
    let paid = caller.post("/v1/payments", body).await.expect(200);
    assert_eq!(paid.text_at("/status"), "AUTHORIZED", "{}", paid.text);
}

pub fn reason(answer: Answer, pointer: &str) -> String {
    let problem = answer.expect_problem(422, "operation_refused");
    assert_eq!(problem.text_at("/errors/0/pointer"), pointer, "{}", problem.text);
    problem.text_at("/errors/0/code")
}

/// Triggers of captures and refunds, the first answer's status, and the status in the end.
const TRIGGERS: &[(&str, &str, &str)] = &[
    ("00", "SUCCEEDED", "SUCCEEDED"),
    ("01", "SUCCEEDED", "SUCCEEDED"),
    ("02", "UNKNOWN", "SUCCEEDED"),
    ("03", "UNKNOWN", "SUCCEEDED"),
    ("04", "UNKNOWN", "SUCCEEDED"),
    ("06", "UNKNOWN", "SUCCEEDED"),
    ("11", "UNKNOWN", "SUCCEEDED"),
    ("12", "UNKNOWN", "SUCCEEDED"),
    ("21", "UNKNOWN", "SUCCEEDED"),
    ("22", "UNKNOWN", "SUCCEEDED"),
    ("23", "UNKNOWN", "SUCCEEDED"),
    ("24", "UNKNOWN", "SUCCEEDED"),
    ("25", "UNKNOWN", "SUCCEEDED"),
    ("31", "FAILED", "FAILED"),
    ("41", "UNKNOWN", "SUCCEEDED"),
    ("42", "PROCESSING", "SUCCEEDED"),
    ("43", "PROCESSING", "FAILED"),
    ("44", "UNKNOWN", "SUCCEEDED"),
    ("45", "PROCESSING", "SUCCEEDED"),
    ("51", "UNKNOWN", "SUCCEEDED"),
    ("52", "UNKNOWN", "SUCCEEDED"),
    ("85", "SUCCEEDED", "SUCCEEDED"),
];

/// Makes an operation with every trigger, each on a payment of its own, waits until all are settled, and
/// compares with the gateway's ledger.
async fn every_trigger(vault: &TestVault, kind: &str, card: &str) {
    let mut all = JoinSet::new();
    for (trigger, first, last) in TRIGGERS {
        let checkout = vault.client("checkout");
        let (kind, card) = (kind.to_owned(), card.to_owned());
        all.spawn(async move {
            let captures = kind == "captures";
            let (payment, id) = (format!("P_{kind}_{trigger}"), format!("O_{kind}_{trigger}"));
            let value = format!("{}{trigger}", if captures { "6601" } else { "6602" });
            let (request, body) = match captures {
                true => (manual(&payment, "2000000", &card), capture(&id, &value)),
                false => (by_reference(&payment, "2000000", &card), refund(&id, &value)),
            };
            pay(&checkout, &request).await;
            let path = format!("/v1/payments/{payment}/{kind}");
            let done = checkout.post(&path, &body).await.expect(200);
            assert_eq!(done.text_at("/status"), *first, "{trigger}: {}", done.text);
            let path = format!("{path}/{id}");
            let settled = eventually("the operation to be settled", || async {
                let shown = checkout.get(&path).await.expect(200);
                matches!(shown.text_at("/status").as_str(), "SUCCEEDED" | "FAILED").then_some(shown)
            })
            .await;
            assert_eq!(settled.text_at("/status"), *last, "{trigger}: {}", settled.text);
            // A repeat tells the same.
            let again = checkout.post(&format!("/v1/payments/{payment}/{kind}"), &body).await.expect(200);
            assert_eq!(again.text_at("/status"), *last, "{trigger}");
            let member = if captures { "/captureId" } else { "/refundId" };
            assert_eq!(again.text_at(member).is_empty(), *last == "FAILED" && *trigger == "31", "{trigger}");
            (payment, *last)
        });
    }
    for (payment, last) in all.join_all().await {
        let ledger = vault.sandbox.ledger();
        let entry = ledger.iter().find(|entry| entry.payment_request_id == payment).expect("a payment");
        let operations = if kind == "captures" { &entry.captures } else { &entry.refunds };
        let done = operations.iter().filter(|operation| operation.charged).count();
        assert_eq!(done, usize::from(last == "SUCCEEDED"), "{payment}: {operations:?}");
    }
}

both_engines! {
    /// Whatever the gateway does to a capture, it is done once or not at all, and the vault knows which.
    async fn every_capture_is_cleared_up(db: Database) {
        let vault = TestVault::start(&db).await;
        let pan = fresh_pan();
        let card = vault.client("checkout").card(&pan).await;
        every_trigger(&vault, "captures", &card).await;
        vault.finish(&[&pan]).await;
    }

    /// The same for refunds.
    async fn every_refund_is_cleared_up(db: Database) {
        let vault = TestVault::start(&db).await;
        let pan = fresh_pan();
        let card = vault.client("checkout").card(&pan).await;
        every_trigger(&vault, "refunds", &card).await;
        vault.finish(&[&pan]).await;
    }

    /// Twenty at once: never more than what is left; and one id is one operation.
    async fn sums_never_exceed_what_is_left(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        pay(&checkout, &manual("SUM_1", "1000", &card)).await;
        let many = async |kind: &'static str, body: fn(&str, &str) -> String, each: &'static str| {
            let mut calls = JoinSet::new();
            for place in 0..20 {
                let caller = vault.client(if place % 2 == 0 { "checkout" } else { "backoffice" });
                calls.spawn(async move {
                    caller.post(&format!("/v1/payments/SUM_1/{kind}"), &body(&format!("M{place}"), each)).await
                });
            }
            let mut done = 0;
            for answer in calls.join_all().await {
                match answer.status {
                    200 => done += 1,
                    _ => {
                        let pointer = if kind == "captures" { "/captureAmount/value" } else { "/refundAmount/value" };
                        assert_eq!(reason(answer, pointer), "amount_above_remaining");
                    }
                }
            }
            done
        };
        assert_eq!(many("captures", capture, "90").await, 11);
        assert_eq!(many("refunds", refund, "110").await, 9);
        assert_eq!(vault.sandbox.net_charged("SUM_1"), 0);
        let shown = checkout.get("/v1/payments/SUM_1").await.expect(200).json();
        assert_eq!(shown["captures"].as_array().map(Vec::len), Some(11));
        assert_eq!(shown["refunds"].as_array().map(Vec::len), Some(9));

        pay(&checkout, &by_reference("SUM_2", "1000", &card)).await;
        let mut calls = JoinSet::new();
        for _ in 0..12 {
            let caller = checkout.clone();
            calls.spawn(async move { caller.post("/v1/payments/SUM_2/refunds", &refund("ONE", "100")).await });
        }
        for answer in calls.join_all().await {
            assert!(matches!(answer.clone().expect(200).text_at("/status").as_str(), "SUCCEEDED" | "UNKNOWN"), "{}", answer.text);
        }
        assert_eq!(vault.sandbox.net_charged("SUM_2"), 900);
        for (path, body) in [
            ("/v1/payments/SUM_2/refunds", refund("ONE", "101")),
            ("/v1/payments/SUM_2/refunds", with(&refund("ONE", "100"), "/refundReason", json!("x"))),
            ("/v1/payments/SUM_1/refunds", refund("ONE", "100")),
        ] {
            let used = checkout.post(path, &body).await.expect_problem(409, "request_id_reused");
            assert_eq!(used.text_at("/errors/0/pointer"), "/refundRequestId");
        }
        vault.finish(&[&pan]).await;
    }

    /// What is under way counts as done: a sum whose outcome is not known is not spent twice.
    async fn an_unknown_outcome_stays_reserved(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        gateway.on(|call| match call.path.as_str() {
            PAY => Reply::Signed(paid_json(call).to_string()),
            _ => Reply::Closed,
        });
        pay(&checkout, &by_reference("RES_1", "1000", &card)).await;
        let path = "/v1/payments/RES_1/refunds";
        let lost = checkout.post(path, &refund("R1", "600")).await.expect(200);
        assert_eq!(lost.text_at("/status"), "UNKNOWN");
        let refused = checkout.post(path, &refund("R2", "500")).await;
        assert_eq!(reason(refused, "/refundAmount/value"), "amount_above_remaining");
        assert_eq!(reason(checkout.post("/v1/payments/RES_1/cancel", "{}").await, ""), "operation_open");
        // A verified failure gives it back.
        gateway.on(|call| match call.path.rsplit('/').next() {
            Some("inquiryRefund") => Reply::Signed(
                json!({
                    "result": { "resultCode": "SUCCESS", "resultStatus": "S" },
                    "refundRequestId": "R1", "refundId": "9", "refundStatus": "FAIL",
                    "refundAmount": { "currency": "EUR", "value": "600" }
                })
                .to_string(),
            ),
            Some("refund") => Reply::Signed(
                json!({
                    "result": { "resultCode": "SUCCESS", "resultStatus": "S" },
                    "refundRequestId": call.json()["refundRequestId"], "refundId": "10",
                    "paymentId": call.json()["paymentId"], "refundAmount": call.json()["refundAmount"]
                })
                .to_string(),
            ),
            _ => Reply::Closed,
        });
        let failed = checkout.get(&format!("{path}/R1?refresh=true")).await.expect(200);
        assert_eq!((failed.text_at("/status").as_str(), failed.text_at("/settledBy").as_str()), ("FAILED", "inquiry"));
        assert_eq!(checkout.post(path, &refund("R2", "1000")).await.expect(200).text_at("/status"), "SUCCEEDED");
        let sent: Vec<Value> = gateway.calls().iter().filter(|call| call.path.ends_with("/refund")).map(|call| call.json()).collect();
        assert!(sent.iter().all(|body| body["paymentId"].is_string()), "{sent:?}");
        vault.finish(&[&pan]).await;
    }

    /// A payment that was cancelled elsewhere takes along what was open on it: a capture is refused when it is
    /// sent again, and its sum given back.
    async fn a_cancel_elsewhere_ends_an_open_capture(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        for first in ["lost", "in process"] {
            let id = format!("GONE_{}", &first[..2]);
            gateway.on(|call| Reply::Signed(paid_json(call).to_string()));
            pay(&checkout, &manual(&id, "30000", &card)).await;
            gateway.on(move |call| match call.path.rsplit('/').next() {
                Some("capture") if first == "lost" => Reply::Closed,
                Some("capture") => result("U", "PAYMENT_IN_PROCESS"),
                _ => Reply::Signed(paid_json(call).to_string()),
            });
            let path = format!("/v1/payments/{id}/captures");
            let open = checkout.post(&path, &capture(&format!("C_{id}"), "100")).await.expect(200);
            let expected = if first == "lost" { "UNKNOWN" } else { "PROCESSING" };
            assert_eq!(open.text_at("/status"), expected, "{}", open.text);
            gateway.on(|call| match call.path.rsplit('/').next() {
                Some("inquiryPayment") => {
                    let mut answer = paid_json(call);
                    answer["paymentStatus"] = json!("CANCELLED");
                    Reply::Signed(answer.to_string())
                }
                _ => result("F", "ORDER_IS_CANCELED"),
            });
            let ended = eventually("the capture to end with its payment", || async {
                let shown = checkout.get(&format!("{path}/C_{id}")).await.expect(200);
                (shown.text_at("/status") == "FAILED").then_some(shown)
            })
            .await;
            assert_eq!(ended.text_at("/result/resultCode"), "ORDER_IS_CANCELED", "{}", ended.text);
            assert_eq!(checkout.get(&format!("/v1/payments/{id}")).await.text_at("/status"), "CANCELLED");
        }
        vault.finish(&[&pan]).await;
    }

    /// A refund that the gateway does not know, and answers unclearly whenever it is sent again, waits longer
    /// from look to look: it is not sent at every turn.
    async fn an_unclear_repeat_waits_for_its_next_look(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        pay(&checkout, &by_reference("SLOW", "30000", &card)).await;
        gateway.on(|call| match call.path.rsplit('/').next() {
            Some("inquiryRefund") => result("F", "REFUND_NOT_EXIST"),
            Some("refund") => result("U", "UNKNOWN_EXCEPTION"),
            _ => Reply::Signed(paid_json(call).to_string()),
        });
        let asked = checkout.post("/v1/payments/SLOW/refunds", &refund("R_SLOW", "1")).await.expect(200);
        assert_eq!(asked.text_at("/status"), "UNKNOWN", "{}", asked.text);
        let looked = "SELECT CASE WHEN next_look > updated_at THEN 'later' ELSE 'at once' END FROM operations \
             WHERE looks > 0 AND lease_owner IS NULL";
        let next = eventually("a look", || async { sql::rows(&db, looked).await.pop() }).await;
        assert_eq!(next, [Some("later".to_owned())]);
        vault.finish(&[&pan]).await;
    }

    /// Every reason for which a payment does not allow an operation, before anything is sent.
    async fn what_is_refused_is_not_sent(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        pay(&checkout, &by_reference("AUTO", "1000", &card)).await;
        pay(&checkout, &manual("MANUAL", "1000", &card)).await;
        pay(&checkout, &manual("EXPIRED", "660034", &card)).await;
        checkout.get("/v1/payments/EXPIRED?refresh=true").await.expect(200);
        checkout.post("/v1/payments", &by_reference("FAILED", "11", &card)).await.expect(200);
        let operations = |vault: &TestVault| {
            let calls = vault.sandbox.recent_calls();
            calls.iter().filter(|call| ["/capture", "/refund", "/cancel"].iter().any(|end| call.path.ends_with(end))).count()
        };
        let usd = |text: String| text.replace("EUR", "USD");
        for (path, body, pointer, expected) in [
            ("AUTO/captures", capture("A1", "1"), "", "automatic_capture"),
            ("MANUAL/captures", capture("A1", "1001"), "/captureAmount/value", "amount_above_remaining"),
            ("MANUAL/captures", usd(capture("A1", "1")), "/captureAmount/currency", "currency_mismatch"),
            ("MANUAL/captures", with(&capture("A1", "1"), "/paymentId", json!("2021")), "/paymentId", "other_payment"),
            ("MANUAL/refunds", refund("A1", "1"), "/refundAmount/value", "amount_above_remaining"),
            ("AUTO/refunds", refund("A1", "1001"), "/refundAmount/value", "amount_above_remaining"),
            ("AUTO/refunds", usd(refund("A1", "1")), "/refundAmount/currency", "currency_mismatch"),
            ("EXPIRED/captures", capture("A1", "1"), "", "authorization_expired"),
            ("FAILED/captures", capture("A1", "1"), "", "payment_not_authorized"),
            ("FAILED/refunds", refund("A1", "1"), "", "payment_not_authorized"),
            ("FAILED/cancel", "{}".to_owned(), "", "payment_not_authorized"),
        ] {
            let answer = checkout.post(&format!("/v1/payments/{path}"), &body).await;
            assert_eq!(reason(answer, pointer), expected, "{path} {body}");
        }
        assert_eq!(operations(&vault), 0);
        // A refund excludes a cancel, and a cancel a refund.
        assert_eq!(checkout.post("/v1/payments/AUTO/refunds", &refund("A1", "1")).await.expect(200).text_at("/status"), "SUCCEEDED");
        assert_eq!(reason(checkout.post("/v1/payments/AUTO/cancel", "{}").await, ""), "already_refunded");
        checkout.post("/v1/payments/MANUAL/cancel", "{}").await.expect(200);
        let refused = checkout.post("/v1/payments/MANUAL/captures", &capture("A1", "1")).await;
        assert_eq!(reason(refused, ""), "payment_not_authorized");
        vault.finish(&[&pan]).await;
    }

    /// Odd and hostile bodies of operations get a 4xx that names the member; nothing is sent.
    async fn bad_operations_are_named(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        pay(&checkout, &manual("BAD", "1000", &card)).await;
        let calls = vault.sandbox.recent_calls().len();
        let good = capture("B1", "1");
        let long = "x".repeat(65);
        for (body, status, code, pointer) in [
            (with(&good, "/captureRequestId", json!(long)), 422, "invalid_request", "/captureRequestId"),
            (with(&good, "/captureRequestId", json!(pan)), 422, "card_data_outside_card", "/captureRequestId"),
            (with(&good, "/captureAmount/value", json!(1)), 422, "invalid_request", "/captureAmount/value"),
            (with(&good, "/captureAmount/value", json!("-1")), 422, "invalid_request", "/captureAmount/value"),
            (with(&good, "/captureAmount/value", json!("01")), 422, "invalid_request", "/captureAmount/value"),
            (with(&good, "/captureAmount/value", json!("٣")), 422, "invalid_request", "/captureAmount/value"),
            (with(&good, "/captureAmount/value", json!("9".repeat(17))), 422, "invalid_request", "/captureAmount/value"),
            (with(&good, "/captureAmount/currency", json!("XXX")), 422, "invalid_request", "/captureAmount/currency"),
            (with(&good, "/paymentId", json!(1)), 422, "invalid_request", "/paymentId"),
            (with(&good, "/metadata", json!(pan)), 422, "card_data_outside_card", "/metadata"),
            (with(&good, "/cvv", json!("850")), 422, "card_data_outside_card", "/cvv"),
            ("[]".to_owned(), 422, "invalid_request", ""),
            ("{\"captureRequestId\":\"a\",\"captureRequestId\":\"b\"}".to_owned(), 400, "duplicate_member", "/captureRequestId"),
            ("{".to_owned(), 400, "malformed_json", ""),
        ] {
            // The same is wrong with a refund.
            let other = body.replace("captureRequestId", "refundRequestId").replace("captureAmount", "refundAmount");
            for (word, body, pointer) in [("captures", &body, pointer.to_owned()), ("refunds", &other, pointer.replace("/capture", "/refund"))] {
                let answer = checkout.post(&format!("/v1/payments/BAD/{word}"), body).await.expect_problem(status, code);
                if code != "malformed_json" {
                    assert_eq!(answer.text_at("/errors/0/pointer"), pointer, "{word} {body}: {}", answer.text);
                }
                assert!(!answer.text.contains(&pan));
            }
        }
        for (word, body, member) in [
            ("captures", with(&good, "/isLastCapture", json!("yes")), "/isLastCapture"),
            ("refunds", with(&refund("B1", "1"), "/refundNotifyUrl", json!(1)), "/refundNotifyUrl"),
        ] {
            let answer = checkout.post(&format!("/v1/payments/BAD/{word}"), &body).await.expect_problem(422, "invalid_request");
            assert_eq!(answer.text_at("/errors/0/pointer"), member, "{}", answer.text);
        }
        let unknown = checkout.post("/v1/payments/BAD/cancel", "{\"x\":1}").await;
        unknown.expect_problem(422, "unknown_field");
        for path in ["NOTHING/captures", "NOTHING/refunds"] {
            checkout.post(&format!("/v1/payments/{path}"), &good).await.expect_problem(404, "not_found");
        }
        let rival = vault.client("rival");
        for path in ["BAD/captures", "BAD/refunds", "BAD/cancel"] {
            let body = if path.ends_with("cancel") { "{}" } else { good.as_str() };
            rival.post(&format!("/v1/payments/{path}"), body).await.expect_problem(404, "not_found");
        }
        vault.client("subscriptions").post("/v1/payments/BAD/captures", &good).await.expect_problem(403, "missing_scope");
        assert_eq!(vault.sandbox.recent_calls().len(), calls);
        vault.finish(&[&pan]).await;
    }

    /// A cancel ends a payment whatever its state, once; what becomes of a cancel whose answer is lost is
    /// found out; one that the gateway refuses leaves the payment as it is.
    async fn cancels_are_cleared_up(db: Database) {
        let vault = TestVault::start(&db).await;
        let pan = fresh_pan();
        let card = vault.client("checkout").card(&pan).await;
        let mut all = JoinSet::new();
        for (amount, first, last) in [
            ("30000", "CANCELLED", "CANCELLED"),
            ("660042", "CANCELLED", "CANCELLED"),
            ("660064", "AUTHORIZED", "AUTHORIZED"),
            ("660065", "AUTHORIZED", "CANCELLED"),
            ("660066", "AUTHORIZED", "CANCELLED"),
            ("660067", "AUTHORIZED", "CANCELLED"),
            ("660068", "AUTHORIZED", "CANCELLED"),
            ("660069", "AUTHORIZED", "CANCELLED"),
        ] {
            let (checkout, card) = (vault.client("checkout"), card.clone());
            all.spawn(async move {
                let id = format!("CANCEL_{amount}");
                checkout.post("/v1/payments", &by_reference(&id, amount, &card)).await.expect(200);
                let path = format!("/v1/payments/{id}/cancel");
                checkout.get(&path).await.expect_problem(404, "not_found");
                let cancelled = checkout.try_call("POST", &path, &[], None).await.expect("an answer").expect(200);
                assert_eq!(cancelled.text_at("/status"), first, "{amount}: {}", cancelled.text);
                let shown = eventually("the cancel to be cleared up", || async {
                    let shown = checkout.get(&path).await.expect(200);
                    (shown.text_at("/cancel/status") != "OPEN").then_some(shown)
                })
                .await;
                assert_eq!(shown.text_at("/status"), last, "{amount}: {}", shown.text);
                let state = if last == "CANCELLED" { "DONE" } else { "REFUSED" };
                assert_eq!((shown.text_at("/cancel/status").as_str(), shown.text_at("/cancel/requestedBy").as_str()), (state, "CALLER"));
                let again = checkout.post(&path, "{}").await.expect(200);
                assert_eq!(again.text_at("/status"), last, "{amount}");
            });
        }
        all.join_all().await;
        // Not cancelled, so the money can still be given back.
        let refunded = vault.client("backoffice").post("/v1/payments/CANCEL_660064/refunds", &refund("C1", "660064")).await;
        assert_eq!(refunded.expect(200).text_at("/status"), "SUCCEEDED");
        let net: u64 = vault.sandbox.ledger().iter().map(|entry| vault.sandbox.net_charged(&entry.payment_request_id)).sum();
        assert_eq!(net, 0);
        vault.finish(&[&pan]).await;
    }

    /// What was done elsewhere, by the gateway itself or in its dashboard, is learned from an inquiry, is
    /// shown, and counts.
    async fn what_was_done_elsewhere_counts(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        gateway.on(|call| {
            let mut answer = paid_json(call);
            if call.path != PAY {
                answer["transactions"] = json!([
                    { "transactionType": "CAPTURE", "transactionStatus": "SUCCESS", "transactionId": "CAP9",
                      "transactionRequestId": "AUTO9", "transactionAmount": { "currency": "EUR", "value": "30000" } },
                    { "transactionType": "REFUND", "transactionStatus": "SUCCESS", "transactionId": "REF9",
                      "transactionRequestId": "DASHBOARD_1", "transactionAmount": { "currency": "EUR", "value": "29000" } },
                ]);
            }
            Reply::Signed(answer.to_string())
        });
        pay(&checkout, &by_reference("ELSE", "30000", &card)).await;
        for _ in 0..2 {
            checkout.get("/v1/payments/ELSE?refresh=true").await.expect(200);
        }
        let refunds = checkout.get("/v1/payments/ELSE/refunds").await.expect(200).json();
        assert_eq!(refunds["data"][0]["refundRequestId"], "DASHBOARD_1");
        assert_eq!((&refunds["data"][0]["askedHere"], refunds["data"].as_array().map(Vec::len)), (&json!(false), Some(1)));
        let captures = checkout.get("/v1/payments/ELSE/captures").await.expect(200).json();
        assert_eq!(captures["data"][0]["captureId"], "CAP9");
        let refused = checkout.post("/v1/payments/ELSE/refunds", &refund("E1", "1001")).await;
        assert_eq!(reason(refused, "/refundAmount/value"), "amount_above_remaining");
        let used = checkout.post("/v1/payments/ELSE/refunds", &refund("DASHBOARD_1", "1")).await;
        used.expect_problem(409, "request_id_reused");
        vault.finish(&[&pan]).await;
    }
}

/// How long the vault of these stories leaves a payment to its sender.
const DEADLINE: Duration = Duration::from_millis(1_500);

/// A vault whose payments are looked after soon.
async fn hasty(db: &super::support::Database) -> TestVault {
    let mut vault = TestVault::start(db).await;
    vault.policy.attempt_deadline = DEADLINE;
    vault.policy.inquiry_pauses = vec![Duration::from_secs(3600)];
    vault.restart().await;
    vault
}

pub async fn status_becomes(caller: &Caller, id: &str, wanted: &str) -> Answer {
    eventually(&format!("{id} to become {wanted}"), || async {
        let shown = caller.get(&format!("/v1/payments/{id}")).await.expect(200);
        (shown.text_at("/status") == wanted).then_some(shown)
    })
    .await
}

both_engines! {
    /// What its sender left unclear is cleared up: found by an inquiry; sent again where nothing that may
    /// not be kept went with it; cancelled otherwise.
    async fn unclear_payments_are_cleared_up(db: Database) {
        let vault = hasty(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        for (id, amount, cvv, wanted, charges) in [
            ("U_03", "660003", false, "AUTHORIZED", 1),
            ("U_02", "660002", false, "AUTHORIZED", 1),
            ("U_11", "660011", false, "AUTHORIZED", 1),
            ("U_23", "660023", false, "AUTHORIZED", 1),
            ("U_62", "660062", false, "CANCELLED", 1),
            ("U_63", "660063", false, "CANCELLED", 1),
            ("U_53", "660053", true, "CANCELLED", 0),
            ("U_42", "660042", false, "AUTHORIZED", 1),
            ("U_43", "660043", false, "FAILED", 0),
        ] {
            let mut request: Value = serde_json::from_str(&by_reference(id, amount, &card)).expect("JSON");
            if cvv {
                request["paymentMethod"]["paymentMethodMetaData"]["cvv"] = json!("8507");
            }
            checkout.post("/v1/payments", &request.to_string()).await.expect(200);
            let shown = status_becomes(&checkout, id, wanted).await;
            let by_vault = shown.text_at("/cancel/requestedBy");
            assert_eq!(by_vault == "VAULT", wanted == "CANCELLED" && amount != "660053", "{id}: {}", shown.text);
            assert_eq!(vault.charges(id), charges, "{id}");
        }
        vault.finish(&[&pan, "8507"]).await;
    }

    /// A payment that left with a CVV is never sent again by anybody but its sender: it is cancelled, and
    /// when nobody knows it long after, it has failed.
    async fn what_went_with_a_cvv_is_not_sent_again(db: Database) {
        let vault = hasty(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let request = with(&by_reference("C_02", "660002", &card), "/paymentMethod/paymentMethodMetaData/cvv", json!("8507"));
        checkout.post("/v1/payments", &request).await.expect(200);
        eventually("a cancel", || async { (vault.calls("/cancel", "C_02") >= 2).then_some(()) }).await;
        assert_eq!((vault.calls("/pay", "C_02"), vault.charges("C_02")), (1, 0));
        let shown = checkout.get("/v1/payments/C_02").await.expect(200);
        assert_eq!((shown.text_at("/status").as_str(), shown.text_at("/cancel/status").as_str()), ("UNKNOWN", "OPEN"));
        // A quarter of an hour later.
        sql::execute(&db, "UPDATE payments SET sent_at = sent_at - 1000000, next_look = 0").await;
        let failed = status_becomes(&checkout, "C_02", "FAILED").await;
        assert_eq!(failed.text_at("/settledBy"), "absence");
        vault.finish(&[&pan, "8507"]).await;
    }

    /// Nor is one that left with a card password or a cryptogram alone, after a restart: what it left with is
    /// not there any more.
    async fn what_went_with_anything_sensitive_is_not_sent_again(db: Database) {
        const CAVV: &str = "QUJDREVGR0hJSktMTU5PUFFSU1Q=";
        let mut vault = hasty(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let with_it = [
            ("S_PASSWORD", "cardPasswordDigest", json!("97")),
            ("S_CAVV", "mpiData", json!({ "eci": "05", "cavv": CAVV, "threeDSVersion": "2.2.0" })),
            ("S_NOTHING", "mpiData", json!({ "eci": "05", "threeDSVersion": "2.2.0" })),
        ];
        for (id, member, value) in with_it {
            let body = with(&by_reference(id, "660011", &card), &format!("/paymentMethod/paymentMethodMetaData/{member}"), value);
            let told = checkout.post("/v1/payments", &body).await.expect(200);
            assert_eq!(told.text_at("/status"), "UNKNOWN", "{id}: {}", told.text);
        }
        vault.restart().await;
        let checkout = vault.client("checkout");
        // What may be kept is sent again from its copy.
        status_becomes(&checkout, "S_NOTHING", "AUTHORIZED").await;
        assert_eq!(vault.calls("/pay", "S_NOTHING"), 2);
        for id in ["S_PASSWORD", "S_CAVV"] {
            eventually("a cancel", || async { (vault.calls("/cancel", id) >= 2).then_some(()) }).await;
            assert!(vault.calls("/inquiryPayment", id) > 0, "{id}");
            assert_eq!((vault.calls("/pay", id), vault.charges(id)), (1, 0), "{id}");
        }
        vault.finish(&[&pan, CAVV]).await;
    }

    /// A payment that ends by itself before its next look is looked at when it has ended.
    async fn a_payments_own_end_is_looked_at(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        for (id, minutes) in [("ENDS_SOON", 20), ("ENDS_LATE", 2 * 24 * 60)] {
            let end = SystemClock.now().plus(Duration::from_secs(minutes * 60));
            let body = with(&by_reference(id, "1000", &card), "/paymentExpiryTime", json!(end.rfc3339()));
            let body = with(&body, "/paymentMethod/paymentMethodMetaData/is3DSAuthentication", json!(true));
            let told = checkout.post("/v1/payments", &body).await.expect(200);
            assert_eq!(told.text_at("/status"), "PROCESSING", "{id}: {}", told.text);
        }
        // So often in vain that the next look is an hour away.
        sql::execute(&db, "UPDATE payments SET looks = 22, next_look = 0").await;
        let looks = "SELECT payment_request_id, CAST(next_look - expires_at AS TEXT) FROM payments WHERE looks = 23";
        let looked = eventually("a look at both", || async {
            let rows = sql::rows(&db, &format!("{looks} ORDER BY payment_request_id DESC")).await;
            (rows.len() == 2).then(|| rows.concat())
        })
        .await;
        let [_, Some(soon), _, Some(late)] = looked.as_slice() else { panic!("{looked:?}") };
        assert_eq!(soon, "5000", "shortly after its end");
        assert!(late.starts_with('-'), "long before its end: {late}");
        vault.finish(&[&pan]).await;
    }

    /// A vault that is killed while it pays leaves nothing unclear to the next one.
    async fn the_next_process_clears_up(db: Database) {
        let mut vault = hasty(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let mut program = vault.start_program().await;
        let checkout = vault.client("checkout");
        let body = by_reference("KILLED", "660004", &card);
        let call = tokio::spawn(async move {
            let sent = checkout.try_call("POST", "/v1/payments", &[("content-type", "application/json")], Some(body.into_bytes())).await;
            assert!(sent.is_err(), "the program is killed before it can answer");
        });
        eventually("the gateway to be called", || async { (vault.calls("/pay", "KILLED") == 1).then_some(()) }).await;
        program.kill().expect("a kill");
        program.wait().expect("an end");
        call.await.expect("a call");
        sql::execute(&db, "UPDATE payments SET next_look = 0").await;
        vault.restart().await;
        let checkout = vault.client("checkout");
        status_becomes(&checkout, "KILLED", "AUTHORIZED").await;
        assert_eq!((vault.calls("/pay", "KILLED"), vault.charges("KILLED")), (1, 1));
        vault.finish(&[&pan]).await;
    }
}
