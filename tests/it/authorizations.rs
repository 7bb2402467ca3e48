//! What of an authorisation keeps its money from being captured: a review at the gateway, and a cancel whose
//! outcome is not known.

use serde_json::{Value, json};

use super::notifications::start_scripted;
use super::operations::{capture, manual, pay, reason, refund};
use super::support::gateway::{PAY, PAYMENT_ID, Received, Reply, paid_json};
use super::support::notices::Posted;
use super::support::vault::{by_reference, fresh_pan};

/// What the gateway says where the review stands like this.
pub fn reviewed(call: &Received, review: Option<&str>) -> Reply {
    let mut answer = match call.path.rsplit('/').next() {
        Some("capture") => {
            let request = call.json();
            json!({
                "result": { "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "success" },
                "captureRequestId": request["captureRequestId"], "captureId": "9",
                "paymentId": request["paymentId"], "captureAmount": request["captureAmount"],
            })
        }
        _ => paid_json(call),
    };
    if let Some(review) = review {
        answer["authReviewStatus"] = json!(review);
    }
    Reply::Signed(answer.to_string())
}

/// A notification of a payment of the sample's sum.
pub fn notice(id: &str, status: &str, code: &str) -> Value {
    json!({
        "notifyType": "PAYMENT_RESULT", "paymentRequestId": id, "paymentId": PAYMENT_ID,
        "paymentAmount": { "currency": "EUR", "value": "30000" },
        "result": { "resultCode": code, "resultStatus": status, "resultMessage": "words" },
    })
}

both_engines! {
    /// Nothing is captured while an authorisation is under review, nor when the review has rejected it; what it
    /// has accepted is captured, whether an inquiry or a notification tells so.
    async fn a_review_holds_captures_back(db: Database) {
        let (vault, gateway) = start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        for (id, by_inquiry) in [("REVIEW_I", true), ("REVIEW_N", false)] {
            gateway.on(|call| reviewed(call, (call.path == PAY).then_some("PROCESSING")));
            pay(&checkout, &manual(id, "30000", &card)).await;
            let path = format!("/v1/payments/{id}/captures");
            let body = capture(&format!("C_{id}"), "100");
            let captures = || gateway.calls().iter().filter(|call| call.path.ends_with("/capture")).count();
            let before = captures();
            let refused = checkout.post(&path, &body).await;
            assert_eq!(reason(refused, ""), "authorization_under_review");
            for review in ["REJECT", "ACCEPT"] {
                if by_inquiry {
                    gateway.on(move |call| reviewed(call, Some(review)));
                    checkout.get(&format!("/v1/payments/{id}?refresh=true")).await.expect(200);
                } else {
                    gateway.on(|call| reviewed(call, None));
                    let mut told = notice(id, "S", "SUCCESS");
                    told["authReviewStatus"] = json!(review);
                    Posted::new(told.to_string()).send(&vault).await.expect(200);
                }
                let answer = checkout.post(&path, &body).await;
                if review == "REJECT" {
                    assert_eq!(reason(answer, ""), "authorization_under_review");
                    assert_eq!(captures(), before);
                } else {
                    assert_eq!(answer.clone().expect(200).text_at("/status"), "SUCCEEDED", "{}", answer.text);
                }
            }
            assert_eq!(captures(), before + 1);
        }
        vault.finish(&[&pan]).await;
    }

    /// While the outcome of a cancel is not known, nothing is captured or given back.
    async fn an_open_cancel_excludes_operations(db: Database) {
        let (vault, gateway) = start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        pay(&checkout, &manual("CANCELLING_C", "30000", &card)).await;
        pay(&checkout, &by_reference("CANCELLING_R", "30000", &card)).await;
        gateway.on(|_| Reply::Closed);
        for (id, word, body) in [
            ("CANCELLING_C", "captures", capture("X_1", "1")),
            ("CANCELLING_R", "refunds", refund("X_1", "1")),
        ] {
            let path = format!("/v1/payments/{id}");
            let cancelled = checkout.post(&format!("{path}/cancel"), "{}").await.expect(200);
            let told = (cancelled.text_at("/status"), cancelled.text_at("/cancel/status"));
            assert_eq!(told, ("AUTHORIZED".into(), "OPEN".into()), "{}", cancelled.text);
            let refused = checkout.post(&format!("{path}/{word}"), &body).await;
            assert_eq!(reason(refused, ""), "cancel_open", "{word}");
        }
        assert!(!gateway.calls().iter().any(|call| call.path.ends_with("/capture") || call.path.ends_with("/refund")));
        vault.finish(&[&pan]).await;
    }
}
