//! Whatever the gateway sends back, no card data of it reaches a caller, the database or the log.

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::support::gateway::{PAY, Reply, paid_json};
use super::support::leak;
use super::support::vault::{Caller, TestVault, fresh_pan, typed, with};

const CVV: &str = "6184";
const CAVV: &str = "ZWNob2VkIGNhdnYgdmFsdWU=";

/// Every way in which a payment is shown.
async fn shown(caller: &Caller, id: &str) -> Vec<String> {
    let path = format!("/v1/payments/{id}");
    let mut all = Vec::new();
    for path in [path.clone(), format!("{path}?refresh=true"), "/v1/payments".to_owned()] {
        all.push(caller.get(&path).await.expect(200).text);
    }
    all
}

both_engines! {
    /// The sandbox's hostile answer, card data in the clear and in four disguises, arrives clean.
    async fn a_hostile_answer_arrives_clean(db: Database) {
        let mut vault = TestVault::start_still(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let secrets = [pan.as_str(), CVV, CAVV, "ZWNob2VkIGNhYXYgdmFsdWU=", "SBXTOKENECHOED"];
        let body = typed("PAY_ECHO", "660030", &pan, CVV);
        let told = checkout.post("/v1/payments", &body).await.expect(200);
        assert_eq!(told.text_at("/status"), "AUTHORIZED");
        leak::assert_clean(&secrets, told.text.as_bytes(), "the reply");
        // What is no card data is still there.
        assert_eq!(told.text_at("/gatewayResponse/paymentAmount/value"), "660030");
        assert!(!told.text_at("/paymentResultInfo/networkTransactionId").is_empty());
        assert!(!told.text_at("/paymentId").is_empty());
        vault.restart().await;
        let checkout = vault.client("checkout");
        let again = checkout.post("/v1/payments", &body).await.expect(200);
        assert_eq!(again.json(), told.json());
        for text in shown(&checkout, "PAY_ECHO").await {
            leak::assert_clean(&secrets, text.as_bytes(), "a reply");
        }
        vault.finish(&secrets).await;
    }

    /// An answer that hides the number under other names, in names of members, inside JSON in a string,
    /// encoded and split, arrives clean; what only looks like the CVV stays.
    async fn a_cunning_answer_arrives_clean(db: Database) {
        let (mut vault, gateway) = TestVault::start_scripted(&db).await;
        let pan = fresh_pan();
        let echoed = pan.clone();
        gateway.on(move |call| {
            let mut answer = paid_json(call);
            let groups: Vec<&str> = [0, 4, 8, 12].iter().filter_map(|at| echoed.get(*at..at + 4)).collect();
            answer["echo"] = json!({
                "number": echoed, "spaced": groups.join(" "), "dashed": groups.join("-"), "dotted": groups.join("."),
                "as_number": echoed.parse::<u64>().expect("a number"),
                "inside": format!("{{\"cardNo\":\"{echoed}\",\"cvv\":\"{CVV}\"}}"),
                "base64": BASE64.encode(format!("x{echoed}y").as_bytes()),
                "hex": data_encoding::HEXLOWER.encode(echoed.as_bytes()),
                "list": [[[echoed]]], "cvv": CVV, "cvc2": CVV, "security_code": CVV, "code": CVV,
                "cavv": CAVV, "CAAV": CAVV, "cardToken": "TOKENOFTHEGATEWAY",
                "paymentRequestId": echoed, "rrn": echoed,
            });
            answer["echo"][&echoed] = json!(1);
            answer["total"] = json!({ "currency": "EUR", "value": format!("{CVV}00") });
            answer["fee"] = json!({ "currency": "EUR", "value": CVV });
            answer["note"] = json!(format!("order {CVV}00 of {CVV}"));
            Reply::Signed(answer.to_string())
        });
        let secrets = [pan.as_str(), CAVV, "TOKENOFTHEGATEWAY"];
        let checkout = vault.client("checkout");
        let body = with(&typed("PAY_ECHO", "30000", &pan, CVV), "/order/orderAmount/value", json!("618400"));
        let told = checkout.post("/v1/payments", &body).await.expect(200);
        assert_eq!(told.text_at("/status"), "AUTHORIZED");
        leak::assert_clean(&secrets, told.text.as_bytes(), "the reply");
        let echo = told.json()["gatewayResponse"]["echo"].clone();
        for name in ["cvv", "cvc2", "security_code", "code"] {
            assert_ne!(echo[name], CVV, "{name}");
        }
        assert!(!told.text_at("/gatewayResponse/echo/inside").contains(CVV), "{echo}");
        assert_eq!(told.text_at("/gatewayResponse/total/value"), format!("{CVV}00"));
        assert_eq!(told.text_at("/gatewayResponse/fee/value"), CVV);
        assert_eq!(told.text_at("/gatewayResponse/note"), format!("order {CVV}00 of {CVV}"));
        vault.restart().await;
        let checkout = vault.client("checkout");
        assert_eq!(checkout.post("/v1/payments", &body).await.expect(200).json(), told.json());
        for text in shown(&checkout, "PAY_ECHO").await {
            leak::assert_clean(&secrets, text.as_bytes(), "a reply");
        }
        vault.finish(&secrets).await;
    }

    /// Also an answer that settles nothing, an inquiry's, and a decline's are cleaned; answers that are
    /// not trusted are not kept at all.
    async fn every_answer_is_cleaned(db: Database) {
        let (mut vault, gateway) = TestVault::start_scripted(&db).await;
        vault.policy.inquiry_pauses = vec![std::time::Duration::from_secs(3600)];
        vault.restart().await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let secrets = [pan.as_str(), CVV, "TOKENOFTHEGATEWAY"];
        for (id, status, signed) in
            [("PAY_U", "U", true), ("PAY_F", "F", true), ("PAY_S", "S", true), ("PAY_X", "S", false)]
        {
            let echoed = pan.clone();
            gateway.on(move |call| {
                let mut answer = paid_json(call);
                answer["result"]["resultMessage"] = json!(format!("card {echoed}"));
                answer["cardInfo"] = json!({ "cardNo": echoed, "cvv": CVV, "cardToken": "TOKENOFTHEGATEWAY" });
                if call.path == PAY {
                    answer["result"]["resultStatus"] = json!(status);
                }
                let text = answer.to_string();
                if signed { Reply::Signed(text) } else { Reply::Unsigned(text) }
            });
            let told = checkout.post("/v1/payments", &typed(id, "30000", &pan, CVV)).await.expect(200);
            leak::assert_clean(&secrets, told.text.as_bytes(), "the reply");
            assert_eq!(told.json()["gatewayResponse"].is_null(), !signed, "{id}");
            for text in shown(&checkout, id).await {
                leak::assert_clean(&secrets, text.as_bytes(), "a reply");
            }
        }
        let unclear: Value = checkout.get("/v1/payments/PAY_U").await.json();
        assert_eq!((&unclear["status"], &unclear["settledBy"]), (&json!("AUTHORIZED"), &json!("inquiry")));
        vault.finish(&secrets).await;
    }

    /// The sample's own case: 85000 is a sum of money, beside the CVV 850.
    async fn a_sum_beside_a_cvv_is_untouched(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        gateway.on(|call| {
            let mut answer = paid_json(call);
            answer["grossSettlementAmount"] = json!({ "currency": "EUR", "value": "850" });
            answer["echo"] = json!("850");
            Reply::Signed(answer.to_string())
        });
        let pan = fresh_pan();
        let told = vault.client("checkout").post("/v1/payments", &typed("PAY_1", "85000", &pan, "850")).await;
        let told = told.expect(200);
        assert_eq!(told.text_at("/paymentAmount/value"), "85000");
        assert_eq!(told.text_at("/gatewayResponse/paymentAmount/value"), "85000");
        assert_eq!(told.text_at("/gatewayResponse/grossSettlementAmount/value"), "850");
        assert_eq!(told.text_at("/gatewayResponse/echo"), "[removed]");
        vault.finish(&[&pan]).await;
    }
}
