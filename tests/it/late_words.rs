//! What the gateway says late: after the payment is settled, after an inquiry, after a question that it left
//! unanswered. None of it comes a second time by itself.

use std::time::Duration;

use serde_json::{Value, json};

use super::authorizations::{notice, reviewed};
use super::notifications::{shown, start_scripted};
use super::operations::{capture, manual, pay, refund, status_becomes};
use super::support::gateway::{
    INQUIRY, PAY, PAYMENT_ID, Received, Reply, Scripted, not_exist, paid, paid_json, result,
};
use super::support::notices::Posted;
use super::support::vault::{TestVault, by_reference, fresh_pan, with};
use super::support::{eventually, sql};

async fn tell(vault: &TestVault, notice: &Value) {
    Posted::new(notice.to_string()).send(vault).await.expect(200);
}

fn asked(gateway: &Scripted) -> usize {
    gateway.calls().iter().filter(|call| call.path != PAY).count()
}

/// The answer to a call about a refund.
fn refunded(call: &Received, status: &str) -> Reply {
    let done = if status == "S" { "SUCCESS" } else { "FAIL" };
    let code = if status == "S" { "SUCCESS" } else { "REFUND_WINDOW_EXCEED" };
    let result = json!({ "resultCode": code, "resultStatus": status, "resultMessage": "words" });
    let mut answer = json!({
        "refundRequestId": "LATE_REFUND", "refundId": "R1", "paymentId": PAYMENT_ID,
        "refundAmount": { "currency": "EUR", "value": "10000" }, "result": result,
    });
    if call.path.ends_with("/inquiryRefund") {
        answer["refundStatus"] = json!(done);
        answer["result"] = json!({ "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "words" });
    }
    Reply::Signed(answer.to_string())
}

both_engines! {
    /// A notification contradicts what is settled, and is acknowledged; the gateway, asked, says nothing at first. It is
    /// asked until it does.
    async fn a_question_stays_until_it_is_answered(db: Database) {
        let (vault, gateway) = start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        gateway.on(|_| result("F", "DO_NOT_HONOR"));
        let failed = checkout.post("/v1/payments", &by_reference("LATE_PAID", "30000", &card)).await.expect(200);
        assert_eq!(failed.text_at("/status"), "FAILED");
        gateway.on(paid);
        pay(&checkout, &by_reference("LATE_REFUNDED", "30000", &card)).await;
        gateway.on(|call| refunded(call, "F"));
        let refused = checkout.post("/v1/payments/LATE_REFUNDED/refunds", &refund("LATE_REFUND", "10000")).await;
        assert_eq!(refused.expect(200).text_at("/status"), "FAILED");

        gateway.on(|_| Reply::Closed);
        let before = asked(&gateway);
        tell(&vault, &notice("LATE_PAID", "S", "SUCCESS")).await;
        tell(&vault, &json!({
            "notifyType": "REFUND_RESULT", "refundStatus": "SUCCESS", "refundRequestId": "LATE_REFUND",
            "refundId": "R1", "paymentId": PAYMENT_ID, "refundAmount": { "currency": "EUR", "value": "10000" },
            "result": { "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "success" },
        })).await;
        eventually("both to be asked about in vain", || async { (asked(&gateway) >= before + 2).then_some(()) }).await;
        gateway.on(|call| if call.path == INQUIRY { paid(call) } else { refunded(call, "S") });
        let now = status_becomes(&checkout, "LATE_PAID", "AUTHORIZED").await;
        assert_eq!(now.text_at("/settledBy"), "inquiry");
        eventually("the refund to have succeeded", || async {
            let now = shown(&checkout, "LATE_REFUNDED/refunds/LATE_REFUND").await;
            (now["status"] == "SUCCEEDED").then_some(())
        })
        .await;
        vault.finish(&[&pan]).await;
    }

    /// An inquiry overtakes the answer to the payment, and has no page for the buyer: the answer's is shown.
    async fn a_page_that_comes_after_an_inquiry_is_shown(db: Database) {
        let (vault, gateway) = start_scripted(&db).await;
        let processing = |call: &Received, url: Option<&str>| {
            let mut answer = paid_json(call);
            answer["paymentStatus"] = json!("PROCESSING");
            if let Some(url) = url {
                answer["normalUrl"] = json!(url);
                answer["result"] = json!({ "resultCode": "PAYMENT_IN_PROCESS", "resultStatus": "U", "resultMessage": "words" });
            }
            Reply::Signed(answer.to_string())
        };
        gateway.on(move |call| match call.path.as_str() {
            PAY => Reply::Held(Box::new(processing(call, Some("https://pay.example/page")))),
            _ => processing(call, None),
        });
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let body = by_reference("LATE_PAGE", "30000", &checkout.card(&pan).await);
        let paying = tokio::spawn({
            let checkout = checkout.clone();
            async move { checkout.post("/v1/payments", &body).await.expect(200) }
        });
        gateway.wait_for_pays(1).await;
        let early = shown(&checkout, "LATE_PAGE?refresh=true").await;
        assert_eq!((&early["status"], early["redirect"].is_null()), (&json!("PROCESSING"), true), "{early}");
        gateway.release();
        let paid = paying.await.expect("an answer");
        assert_eq!(paid.text_at("/redirect/normalUrl"), "https://pay.example/page", "{}", paid.text);
        // A later inquiry without it takes nothing away.
        let later = shown(&checkout, "LATE_PAGE?refresh=true").await;
        assert_eq!(later["redirect"]["normalUrl"], "https://pay.example/page", "{later}");
        vault.finish(&[&pan]).await;
    }

    /// What issuer and scheme said of a settled payment comes later: it is shown, and their "never again" is heard.
    async fn what_issuers_say_late_is_kept(db: Database) {
        let (vault, gateway) = start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let (pan, other) = (fresh_pan(), fresh_pan());
        let card = checkout.card(&pan).await;
        gateway.on(|call| {
            let mut answer = paid_json(call);
            answer["paymentResultInfo"] = json!({ "cvvResultRaw": "M", "avsResultRaw": "Y" });
            if call.path == PAY {
                answer.as_object_mut().expect("an object").remove("paymentResultInfo");
            }
            Reply::Signed(answer.to_string())
        });
        pay(&checkout, &by_reference("LATE_AVS", "30000", &card)).await;
        let now = shown(&checkout, "LATE_AVS?refresh=true").await;
        assert_eq!(now["paymentResultInfo"], json!({ "cvvResultRaw": "M", "avsResultRaw": "Y" }), "{now}");
        // One that tells less takes nothing away.
        gateway.on(paid);
        let now = shown(&checkout, "LATE_AVS?refresh=true").await;
        assert_eq!(now["paymentResultInfo"]["avsResultRaw"], "Y", "{now}");

        gateway.on(|_| result("F", "DO_NOT_HONOR"));
        let lost = checkout.card(&other).await;
        let failed = checkout.post("/v1/payments", &by_reference("LATE_NEVER", "30000", &lost)).await.expect(200);
        assert_eq!(failed.text_at("/status"), "FAILED");
        let mut told = notice("LATE_NEVER", "F", "DO_NOT_HONOR");
        told["paymentResultInfo"] = json!({ "refusalCodeRaw": "41", "merchantAdviceCode": "03" });
        tell(&vault, &told).await;
        let now = shown(&checkout, "LATE_NEVER").await;
        assert_eq!(now["paymentResultInfo"]["refusalCodeRaw"], "41", "{now}");
        let again = checkout.post("/v1/payments?dryRun=true", &by_reference("LATE_AGAIN", "30000", &lost)).await;
        again.expect(200);
        let heard = "SELECT decline FROM payments WHERE payment_request_id = 'LATE_NEVER'";
        assert_eq!(sql::rows(&db, heard).await, [[Some("never".to_owned())]]);
        vault.finish(&[&pan, &other]).await;
    }

    /// A review of which only a notification tells is asked about until it is over; and a notification that comes after
    /// its end does not begin it again.
    async fn a_review_told_late_comes_to_its_end(db: Database) {
        let (vault, gateway) = start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        gateway.on(|call| reviewed(call, (call.path == INQUIRY).then_some("ACCEPT")));
        pay(&checkout, &manual("LATE_REVIEW", "30000", &card)).await;
        let mut told = notice("LATE_REVIEW", "S", "SUCCESS");
        told["authReviewStatus"] = json!("PROCESSING");
        tell(&vault, &told).await;
        let path = "/v1/payments/LATE_REVIEW/captures";
        checkout.post(path, &capture("LATE_C1", "100")).await.expect_problem(422, "operation_refused");
        let first = eventually("the review to be over", || async {
            let answer = checkout.post(path, &capture("LATE_C1", "100")).await;
            (answer.status == 200).then_some(answer)
        })
        .await;
        assert_eq!(first.text_at("/status"), "SUCCEEDED");
        tell(&vault, &told).await;
        let second = checkout.post(path, &capture("LATE_C2", "100")).await.expect(200);
        assert_eq!(second.text_at("/status"), "SUCCEEDED");
        vault.finish(&[&pan]).await;
    }

    /// The vault has begun to cancel a payment of which nothing is known, in vain. A caller who asks for the cancel then
    /// gets it, also where the payment turns out to be paid.
    async fn a_caller_takes_over_the_vaults_cancel(db: Database) {
        let (mut vault, gateway) = start_scripted(&db).await;
        vault.policy.attempt_deadline = Duration::from_millis(500);
        vault.restart().await;
        gateway.on(|call| if call.path == INQUIRY { not_exist() } else { Reply::Closed });
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let body = by_reference("LATE_CANCEL", "30000", &checkout.card(&pan).await);
        let body = with(&body, "/paymentMethod/paymentMethodMetaData/cvv", json!("8507"));
        checkout.post("/v1/payments", &body).await.expect(200);
        eventually("the vault's cancel", || async {
            (shown(&checkout, "LATE_CANCEL").await["cancel"]["requestedBy"] == "VAULT").then_some(())
        })
        .await;
        let told = checkout.post("/v1/payments/LATE_CANCEL/cancel", "{}").await.expect(200);
        let told = (told.text_at("/cancel/status"), told.text_at("/cancel/requestedBy"));
        assert_eq!(told, ("OPEN".into(), "CALLER".into()));
        gateway.on(|call| match call.path.rsplit('/').next() {
            Some("cancel") => {
                let result = json!({ "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "success" });
                let id = call.json()["paymentRequestId"].clone();
                Reply::Signed(json!({ "result": result, "paymentRequestId": id, "paymentId": PAYMENT_ID }).to_string())
            }
            _ => paid(call),
        });
        let now = status_becomes(&checkout, "LATE_CANCEL", "CANCELLED").await;
        assert_eq!(now.text_at("/cancel/status"), "DONE", "{}", now.text);
        vault.finish(&[&pan, "8507"]).await;
    }
}
