//! Everything that a card payment can ask for: what arrives at the gateway equals what the official SDK
//! would have sent, member for member, in each of its thirteen scenarios; and what comes back is shown.

use serde_json::{Value, json};

use super::support::gateway::{PAY, Reply, paid_json};
use super::support::vault::{Answer, Caller, METADATA, TestVault, by_reference, fresh_pan, with};

const VECTORS: &str = include_str!("../vectors/antom/s2s_pay_requests.json");
/// The scheme's id that the vectors continue.
const CHAIN: &str = "sampleNetworkTransactionId123456";

pub(crate) fn scenario(name: &str, id: &str) -> Value {
    let vectors: Value = serde_json::from_str(VECTORS).expect("vectors");
    let all = vectors["scenarios"].as_array().expect("scenarios").clone();
    let mut found = all.into_iter().find(|scenario| scenario["name"] == name).expect(name)["body"].take();
    found["paymentRequestId"] = json!(id);
    found
}

/// The scenario as a merchant sends it: the card's reference in the card's place, and without the members
/// that the vault writes.
fn by_card(body: &Value, card: &str, credential: &Value) -> Value {
    let mut request = body.clone();
    request["paymentMethod"]["paymentMethodId"] = json!(card);
    request["storedCredential"] = credential.clone();
    let metadata = request["paymentMethod"]["paymentMethodMetaData"].as_object_mut().expect("a map");
    for name in [
        "cardNo",
        "expiryYear",
        "expiryMonth",
        "cardholderName",
        "isCardOnFile",
        "recurringType",
        "networkTransactionId",
    ] {
        metadata.remove(name);
    }
    request
}

/// Pays, after a dry run of the same request; gives the answer, and keeps what the dry run has shown.
async fn pay_after_dry_run(caller: &Caller, request: &Value, shown: &mut Vec<Value>) -> Answer {
    let dry = caller.post("/v1/payments?dryRun=true", &request.to_string()).await.expect(200).json();
    shown.push(dry["request"].clone());
    let paid = caller.post("/v1/payments", &request.to_string()).await.expect(200);
    assert_eq!(paid.text_at("/status"), "AUTHORIZED", "{}", paid.text);
    paid
}

/// A body with what may not be shown masked.
fn masked(sent: &Value) -> Value {
    let mut sent = sent.clone();
    let method = &mut sent["paymentMethod"];
    if method.get("paymentMethodId").is_some() {
        method["paymentMethodId"] = json!("***");
    }
    let metadata = method["paymentMethodMetaData"].as_object_mut().expect("a map");
    if let Some(number) = metadata.get_mut("cardNo") {
        *number = json!(format!("************{}", &number.as_str().expect("a number")[12..]));
    }
    for name in ["cvv", "cardPasswordDigest"] {
        metadata.entry(name).and_modify(|value| *value = json!("***"));
    }
    if let Some(cavv) = metadata.get_mut("mpiData").and_then(|mpi| mpi.get_mut("cavv")) {
        *cavv = json!("***");
    }
    sent
}

async fn agreement(checkout: &Caller, kind: &str, first: &Value, shown: &mut Vec<Value>) -> (String, String) {
    let mut request = first.clone();
    request["storedCredential"] = json!({
        "initiator": "CUSTOMER",
        "agreement": { "type": kind, "consent": { "acceptedAt": "2026-01-01T00:00:00Z", "textVersion": "v1" } }
    });
    let paid = pay_after_dry_run(checkout, &request, shown).await;
    (paid.text_at("/cardId"), paid.text_at("/agreementId"))
}

both_engines! {
    /// All thirteen scenarios of the SDK, sent by a merchant who never sees a stored card's number. A dry run
    /// has shown each of them as it was sent, but for its masks.
    async fn bodies_arrive_as_the_sdks(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let (checkout, subscriptions) = (vault.client("checkout"), vault.client("subscriptions"));
        gateway.on(|call| {
            let mut answer = paid_json(call);
            answer["paymentResultInfo"]["networkTransactionId"] = json!(CHAIN);
            Reply::Signed(answer.to_string())
        });
        let (first, mut shown) = (scenario("first_payment_storing_card", "V_FIRST"), Vec::new());
        let (card, scheduled) = agreement(&checkout, "SCHEDULED", &first, &mut shown).await;
        // The second agreement of one card begins with a later payment of the buyer: its flags say so.
        let mut second = by_card(&scenario("cit_stored_card_with_cvv", "V_SECOND"), &card, &Value::Null);
        second.as_object_mut().expect("an object").remove("storedCredential");
        let (_, unscheduled) = agreement(&checkout, "UNSCHEDULED", &second, &mut shown).await;
        let customer = json!({ "initiator": "CUSTOMER", "agreementId": scheduled });
        let mut sent = vec![first, scenario("cit_stored_card_with_cvv", "V_SECOND")];
        for (place, name) in [
            "one_time", "one_time_manual_capture", "first_payment_tokenize_at_antom", "cit_antom_token",
            "mpi_third_party_3ds", "co_badged_selected_brand", "korean_personal_card", "brazilian_card_installments",
        ]
        .into_iter()
        .enumerate()
        {
            let body = scenario(name, &format!("V_{place}"));
            pay_after_dry_run(&checkout, &body, &mut shown).await;
            sent.push(body);
        }
        for name in ["cit_stored_card_with_cvv", "cit_stored_card_without_cvv"] {
            let body = scenario(name, &format!("V_{name}"));
            let request = by_card(&body, &card, &customer);
            pay_after_dry_run(&checkout, &request, &mut shown).await;
            sent.push(body);
        }
        for (name, agreement) in [("mit_scheduled", &scheduled), ("mit_unscheduled", &unscheduled)] {
            let body = scenario(name, &format!("V_{name}"));
            let request = by_card(&body, &card, &json!({ "initiator": "MERCHANT", "agreementId": agreement }));
            pay_after_dry_run(&subscriptions, &request, &mut shown).await;
            sent.push(body);
        }
        let arrived: Vec<Value> = gateway.calls().iter().filter(|call| call.path == PAY).map(|call| call.json()).collect();
        assert_eq!((arrived.len(), sent.len()), (14, 14));
        assert_eq!(arrived, sent);
        assert_eq!(shown, arrived.iter().map(masked).collect::<Vec<_>>());
        assert!(gateway.calls().iter().all(|call| call.signed));
        vault.finish(&["4054695723100768", "9490220011669217", "4294097400915107", "AAABBEg0VhI0VniQEjRWAAAAAAA=", "ALIPAYexampleCardToken=="]).await;
    }

    /// An issuer that asks for 3D Secure gets it where the upgrade is allowed, and the buyer is sent there;
    /// results of address, CVV and 3D Secure are shown, the cryptogram is not.
    async fn authentication_is_upgraded(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let upgrade = |id: &str, allowed: bool| {
            with(&by_reference(id, "660075", &card), &format!("{METADATA}/enableAuthenticationUpgrade"), json!(allowed))
        };
        let sent = checkout.post("/v1/payments", &upgrade("UP_1", true)).await.expect(200);
        assert_eq!(sent.text_at("/status"), "PROCESSING", "{}", sent.text);
        checkout.visit(&format!("{}/approve", sent.text_at("/redirect/normalUrl"))).await;
        let paid = checkout.get("/v1/payments/UP_1?refresh=true").await.expect(200).json();
        assert_eq!(paid["status"], "AUTHORIZED");
        let info = &paid["paymentResultInfo"];
        assert!(info["avsResultRaw"].is_string() && info["cvvResultRaw"].is_string(), "{info}");
        assert!(info["threeDSResult"]["eci"].is_string(), "{info}");
        assert_eq!(info["threeDSResult"]["cavv"], "[removed]");
        let refused = checkout.post("/v1/payments", &upgrade("UP_2", false)).await.expect(200);
        assert_eq!(refused.text_at("/status"), "FAILED");
        assert_eq!(refused.text_at("/result/resultCode"), "AUTHENTICATION_REQUIRED");
        let bad = with(&by_reference("UP_3", "100", &card), "/paymentFactor", json!({ "captureMode": "LATER" }));
        let bad = checkout.post("/v1/payments", &bad).await.expect_problem(422, "invalid_request");
        assert_eq!(bad.text_at("/errors/0/pointer"), "/paymentFactor/captureMode");
        vault.finish(&[&pan]).await;
    }

    /// Antom's own token is imported for the merchant who brings it, and follows the rules of a stored card:
    /// nothing of a card beside it, no CVV, and the right to write cards to bring it.
    async fn a_token_is_a_card_that_only_antom_holds(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let token = "ALIPAYtokenOfNobodyElse0123456789==";
        let body = |id: &str| {
            let mut body = scenario("cit_antom_token", id);
            body["paymentMethod"]["paymentMethodId"] = json!(token);
            body.to_string()
        };
        let dry = checkout.post("/v1/payments?dryRun=true", &body("T_0")).await.expect(200);
        assert!(!dry.text.contains(token), "{}", dry.text);
        let paid = checkout.post("/v1/payments", &body("T_1")).await.expect(200);
        let card = paid.text_at("/cardId");
        let shown = checkout.get(&format!("/v1/cards/{card}")).await.expect(200).json();
        assert_eq!(shown["source"], "GATEWAY_TOKEN");
        for name in ["brand", "bin", "last4", "expiryMonth", "expiryYear", "fingerprint", "cardholderName"] {
            assert!(shown[name].is_null(), "{name}");
        }
        // The same token is the same card; the repeat of an id is a repeat.
        assert_eq!(checkout.post("/v1/payments", &body("T_2")).await.expect(200).text_at("/cardId"), card);
        assert_eq!(checkout.post("/v1/payments", &body("T_1")).await.expect(200).text_at("/cardId"), card);
        let by_card = serde_json::from_str(&body("T_3").replace(token, &card)).expect("JSON");
        let mut shown = Vec::new();
        pay_after_dry_run(&checkout, &by_card, &mut shown).await;
        let last = gateway.pays().last().expect("a payment").json();
        assert_eq!(last["paymentMethod"]["paymentMethodId"], token);
        assert_eq!(shown, [masked(&last)]);
        assert!(last["paymentMethod"]["paymentMethodMetaData"].get("cardNo").is_none());
        assert_eq!(gateway.pays().len(), 3);
        let cvv = with(&body("T_4"), &format!("{METADATA}/cvv"), json!("8507"));
        let refused = checkout.post("/v1/payments", &cvv).await.expect_problem(422, "invalid_request");
        assert_eq!(refused.text_at("/errors/0/code"), "held_by_gateway");
        let path = format!("/v1/cards/{card}");
        checkout.send("PATCH", &path, r#"{"expiryMonth":"12","expiryYear":"31"}"#).await.expect_problem(422, "invalid_request");
        checkout.send("PUT", &format!("{path}/cvv"), r#"{"cvv":"8507"}"#).await.expect_problem(422, "invalid_request");
        vault.client("subscriptions").post("/v1/payments", &body("T_5")).await.expect_problem(403, "missing_scope");
        vault.client("rival").get(&path).await.expect_problem(404, "not_found");
        checkout.delete(&path).await.expect(204);
        checkout.post("/v1/payments", &body("T_6").replace(token, &card)).await.expect_problem(404, "not_found");
        assert_ne!(checkout.post("/v1/payments", &body("T_7")).await.expect(200).text_at("/cardId"), card);
        vault.finish(&[token, "8507"]).await;
    }
}
