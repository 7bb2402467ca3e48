//! A CVV that is held: used once, by the payment that it is for, kept by a refusal, lost with the process,
//! and never in a file or a log.

use serde_json::{Value, json};

use super::payments::wait_for;
use super::support::gateway::{PAY, Reply, Scripted, not_exist, paid};
use super::support::vault::{
    Caller, METADATA, SAMPLE_PAN, TestVault, by_reference, fresh_pan, sample_with, typed, with, without,
};

/// A CVV of four digits that nothing else here looks like.
const CVV: &str = "7391";
const OTHER_CVV: &str = "4682";

/// A card that is tokenised together with its CVV.
async fn card_with_cvv(caller: &Caller, pan: &str, cvv: &str) -> String {
    let body = json!({ "cardNo": pan, "expiryMonth": "12", "expiryYear": "29", "cvv": cvv });
    let answer = caller.post("/v1/cards", &body.to_string()).await;
    assert!(matches!(answer.status, 200 | 201), "{}", answer.text);
    assert!(answer.json()["cvvHeldUntil"].is_string(), "{}", answer.text);
    answer.text_at("/cardId")
}

async fn put_cvv(caller: &Caller, card: &str, body: Value) {
    let held = caller.send("PUT", &format!("/v1/cards/{card}/cvv"), &body.to_string()).await.expect(200);
    assert!(held.json()["cvvHeldUntil"].is_string(), "{}", held.text);
}

async fn is_held(caller: &Caller, card: &str) -> bool {
    caller.get(&format!("/v1/cards/{card}")).await.expect(200).json()["cvvHeldUntil"].is_string()
}

async fn pay(caller: &Caller, id: &str, card: &str) {
    let paid = caller.post("/v1/payments", &by_reference(id, "30000", card)).await.expect(200);
    assert_eq!(paid.text_at("/status"), "AUTHORIZED", "{}", paid.text);
}

/// By reference with what is said of the CVV.
fn saying(id: &str, card: &str, cvv: &str) -> String {
    with(&by_reference(id, "30000", card), &format!("{METADATA}/cvv"), json!(cvv))
}

/// The CVVs that the gateway has been sent, null where there was none.
fn sent(gateway: &Scripted) -> Vec<Value> {
    gateway.pays().iter().map(|pay| pay.card("cvv")).collect()
}

both_engines! {
    /// What was typed with the card, or later, goes out with the next payment and with no other.
    async fn a_held_cvv_is_used_once(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let (checkout, subscriptions) = (vault.client("checkout"), vault.client("subscriptions"));
        let pan = fresh_pan();
        let card = card_with_cvv(&checkout, &pan, CVV).await;
        // The payment itself need not be allowed to bring card data.
        pay(&subscriptions, "PAY_1", &card).await;
        assert!(!is_held(&checkout, &card).await);
        pay(&subscriptions, "PAY_2", &card).await;
        put_cvv(&checkout, &card, json!({ "cvv": OTHER_CVV })).await;
        pay(&checkout, "PAY_3", &card).await;
        pay(&checkout, "PAY_4", &card).await;
        // The newest one counts.
        put_cvv(&checkout, &card, json!({ "cvv": OTHER_CVV })).await;
        put_cvv(&checkout, &card, json!({ "cvv": CVV })).await;
        pay(&checkout, "PAY_5", &card).await;
        assert_eq!(sent(&gateway), [json!(CVV), Value::Null, json!(OTHER_CVV), Value::Null, json!(CVV)]);
        vault.finish(&[&pan, CVV, OTHER_CVV]).await;
    }

    /// Of many payments at once one takes the CVV; none waits, none fails for the want of it.
    async fn one_of_many_payments_takes_it(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = card_with_cvv(&checkout, &pan, CVV).await;
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..8 {
            let (checkout, body) = (checkout.clone(), by_reference(&format!("PAY_{number}"), "30000", &card));
            calls.spawn(async move { checkout.post("/v1/payments", &body).await });
        }
        for answer in calls.join_all().await {
            if answer.status != 200 {
                answer.expect_problem(409, "cvv_not_available");
            }
        }
        assert_eq!(sent(&gateway).iter().filter(|cvv| **cvv == json!(CVV)).count(), 1);
        vault.finish(&[&pan, CVV]).await;
    }

    /// A CVV that is for one payment waits for that one.
    async fn a_cvv_may_be_for_one_payment_only(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        put_cvv(&checkout, &card, json!({ "cvv": CVV, "paymentRequestId": "PAY_MINE" })).await;
        pay(&checkout, "PAY_OTHER", &card).await;
        assert!(is_held(&checkout, &card).await);
        pay(&checkout, "PAY_MINE", &card).await;
        assert!(!is_held(&checkout, &card).await);
        assert_eq!(sent(&gateway), [Value::Null, json!(CVV)]);
        vault.finish(&[&pan, CVV]).await;
    }

    /// `OMIT` leaves the held CVV out, and one that is typed with the payment is used in its place; the
    /// payment was the next one all the same, so that no CVV waits for a later one.
    async fn a_payment_may_go_without_or_with_another(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        for (id, cvv) in [("PAY_1", "OMIT"), ("PAY_2", OTHER_CVV)] {
            let card = card_with_cvv(&checkout, &pan, CVV).await;
            checkout.post("/v1/payments", &saying(id, &card, cvv)).await.expect(200);
            assert!(!is_held(&checkout, &card).await, "{id}");
            pay(&checkout, &format!("{id}_NEXT"), &card).await;
        }
        assert_eq!(sent(&gateway), [Value::Null, Value::Null, json!(OTHER_CVV), Value::Null]);
        vault.finish(&[&pan, CVV, OTHER_CVV]).await;
    }

    /// A CVV does not survive its process. A payment that counts on it is refused before it exists, and
    /// its id is free for a payment that says what to do.
    async fn a_cvv_is_lost_with_its_process(db: Database) {
        let (mut vault, gateway) = TestVault::start_scripted(&db).await;
        let pan = fresh_pan();
        let card = card_with_cvv(&vault.client("checkout"), &pan, CVV).await;
        vault.restart().await;
        let checkout = vault.client("checkout");
        for _ in 0..2 {
            checkout.post("/v1/payments", &by_reference("PAY_1", "30000", &card)).await
                .expect_problem(409, "cvv_not_available");
        }
        checkout.get("/v1/payments/PAY_1").await.expect_problem(404, "not_found");
        assert_eq!(gateway.calls().len(), 0);
        // Another meaning is free to use the id too: nothing was recorded.
        let omitting = with(&saying("PAY_1", &card, "OMIT"), "/paymentAmount/value", json!("40000"));
        assert_eq!(checkout.post("/v1/payments", &omitting).await.expect(200).text_at("/status"), "AUTHORIZED");
        checkout.post("/v1/payments", &saying("PAY_2", &card, OTHER_CVV)).await.expect(200);
        put_cvv(&checkout, &card, json!({ "cvv": CVV })).await;
        pay(&checkout, "PAY_3", &card).await;
        assert_eq!(sent(&gateway), [Value::Null, json!(OTHER_CVV), json!(CVV)]);
        vault.finish(&[&pan, CVV, OTHER_CVV]).await;
    }

    /// Who may not write cards may not type a CVV, a number or a card password either; nothing is looked
    /// at before that.
    async fn typing_card_data_needs_its_scope(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let (checkout, subscriptions) = (vault.client("checkout"), vault.client("subscriptions"));
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let digest = format!("{METADATA}/cardPasswordDigest");
        for body in [
            saying("PAY_1", &card, CVV),
            with(&by_reference("PAY_1", "30000", &card), &digest, json!("12")),
            typed("PAY_1", "30000", &pan, CVV),
            saying("PAY_1", "card_UNKNOWN", CVV),
        ] {
            subscriptions.post("/v1/payments", &body).await.expect_problem(403, "missing_scope");
        }
        let put = subscriptions.send("PUT", &format!("/v1/cards/{card}/cvv"), r#"{"cvv":"7391"}"#).await;
        put.expect_problem(403, "missing_scope");
        assert_eq!(gateway.calls().len(), 0);
        subscriptions.post("/v1/payments", &saying("PAY_1", &card, "OMIT")).await.expect(200);
        // A repeat with a CVV asks for the right too.
        subscriptions.post("/v1/payments", &saying("PAY_1", &card, CVV)).await
            .expect_problem(403, "missing_scope");
        vault.finish(&[&pan, CVV]).await;
    }

    /// A payment that is refused before it is sent leaves the CVV waiting for the next one.
    async fn a_refusal_consumes_nothing(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        pay(&checkout, "PAY_USED", &checkout.card(&pan).await).await;
        checkout.post("/v1/payments", &sample_with("PAY_OTHERS", "100")).await.expect(200);
        let body = json!({
            "cardNo": pan, "expiryMonth": "12", "expiryYear": "29", "cvv": CVV, "referenceBuyerId": "buyer-1",
        });
        let card = checkout.post("/v1/cards", &body.to_string()).await.expect(201).text_at("/cardId");
        let good = by_reference("PAY_1", "30000", &card);
        let buyer = json!({ "referenceBuyerId": "buyer-2" });
        for (body, status, code) in [
            (with(&good, "/paymentRequestId", json!("PAY_USED")), 409, "request_id_reused"),
            (with(&good, "/paymentRequestId", json!("PAY_OTHERS")), 409, "request_id_reused"),
            (with(&good, "/order/buyer", buyer), 422, "buyer_mismatch"),
            (with(&good, &format!("{METADATA}/expiryMonth"), json!("01")), 422, "invalid_request"),
            (with(&good, &format!("{METADATA}/isCardOnFile"), json!(true)), 422, "invalid_request"),
            (with(&good, "/orderNote", json!(pan)), 422, "card_data_outside_card"),
            (without(&good, "/paymentAmount"), 422, "invalid_request"),
        ] {
            checkout.post("/v1/payments", &body).await.expect_problem(status, code);
            assert!(is_held(&checkout, &card).await, "{code}");
        }
        vault.client("rival").post("/v1/payments", &good).await.expect_problem(404, "not_found");
        pay(&checkout, "PAY_1", &card).await;
        let last = sent(&gateway).pop();
        assert_eq!(last, Some(json!(CVV)));
        vault.finish(&[&pan, SAMPLE_PAN, CVV]).await;
    }

    /// A held CVV serves the repeat of its own payment: the same bytes. A new CVV typed meanwhile is not
    /// touched by it.
    async fn a_held_cvv_serves_its_payments_repeat(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = card_with_cvv(&checkout, &pan, CVV).await;
        let repeated = std::sync::atomic::AtomicBool::new(false);
        gateway.on(move |call| {
            use std::sync::atomic::Ordering::SeqCst;
            match (call.path == PAY, call.nth) {
                (true, 0) => Reply::Closed,
                (true, _) => {
                    repeated.store(true, SeqCst);
                    paid(call)
                }
                (false, _) if repeated.load(SeqCst) => paid(call),
                (false, _) => not_exist(),
            }
        });
        let told = checkout.post("/v1/payments", &by_reference("PAY_1", "30000", &card)).await.expect(200);
        assert_eq!(told.text_at("/status"), "UNKNOWN");
        put_cvv(&checkout, &card, json!({ "cvv": OTHER_CVV })).await;
        wait_for(&checkout, "PAY_1", "AUTHORIZED").await;
        pay(&checkout, "PAY_2", &card).await;
        assert_eq!(sent(&gateway), [json!(CVV), json!(CVV), json!(OTHER_CVV)]);
        vault.finish(&[&pan, CVV, OTHER_CVV]).await;
    }

    /// The cryptogram of 3D Secure and the Korean card password go out and are nowhere else, also while
    /// the payment is unclear and its request waits in the database.
    async fn what_authenticates_is_kept_nowhere(db: Database) {
        const CAVV: &str = "WlpaWVlZWFhYV1dXVlZWVVVVVFQ=";
        let (mut vault, gateway) = TestVault::start_scripted(&db).await;
        vault.policy.inquiry_pauses = vec![std::time::Duration::from_secs(3600)];
        vault.restart().await;
        gateway.on(|call| if call.path == PAY { Reply::Closed } else { not_exist() });
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let mpi = json!({ "threeDSVersion": "2.2.0", "eci": "05", "cavv": CAVV, "dsTransactionId": "DS1" });
        let body = with(&typed("PAY_1", "30000", &pan, CVV), &format!("{METADATA}/mpiData"), mpi.clone());
        let body = with(&body, &format!("{METADATA}/cardPasswordDigest"), json!("97"));
        let told = checkout.post("/v1/payments", &body).await.expect(200);
        assert_eq!(told.text_at("/status"), "UNKNOWN");
        let pay = gateway.pays().remove(0);
        assert_eq!((pay.card("mpiData"), pay.card("cvv"), pay.card("cardPasswordDigest")), (mpi, json!(CVV), json!("97")));
        db.assert_clean(&[&pan, CVV, CAVV]);
        // No digest of them is kept either: a repeat with others, or none, means the same.
        let other = with(&body, &format!("{METADATA}/mpiData/cavv"), json!("AAAA"));
        let none = without(&body, &format!("{METADATA}/mpiData/cavv"));
        for repeat in [other, none, without(&body, &format!("{METADATA}/cardPasswordDigest"))] {
            assert_eq!(checkout.post("/v1/payments", &repeat).await.expect(200).json(), told.json());
        }
        vault.finish(&[&pan, CVV, CAVV]).await;
    }

    /// Erasing a card ends its CVV.
    async fn erasing_a_card_ends_its_cvv(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = card_with_cvv(&checkout, &pan, CVV).await;
        checkout.delete(&format!("/v1/cards/{card}")).await.expect(204);
        checkout.post("/v1/payments", &by_reference("PAY_1", "30000", &card)).await.expect_problem(404, "not_found");
        pay(&checkout, "PAY_1", &checkout.card(&pan).await).await;
        assert_eq!(sent(&gateway), [Value::Null]);
        vault.finish(&[&pan, CVV]).await;
    }
}
