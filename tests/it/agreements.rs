//! Stored credentials, end to end: opened by a payment, used by the buyer and by the merchant, withdrawn.

use serde_json::{Value, json};

use super::notifications::start_scripted;
use super::support::gateway::{PAY, Reply, paid_json};
use super::support::notices::Posted;
use super::support::sql;
use super::support::vault::{
    Answer, Caller, METADATA, TestVault, by_reference, fresh_pan, sample_with, with, without,
};

/// A payment by reference with a `storedCredential`.
fn stored(id: &str, value: &str, card: &str, credential: &Value) -> String {
    let mut request: Value = serde_json::from_str(&by_reference(id, value, card)).expect("JSON");
    request["storedCredential"] = credential.clone();
    request.to_string()
}

fn opens(kind: &str) -> Value {
    json!({
        "initiator": "CUSTOMER",
        "agreement": {
            "type": kind,
            "consent": { "acceptedAt": "2026-01-01T00:00:00Z", "textVersion": "v1" },
            "maxAmount": { "currency": "EUR", "value": "5000" }
        }
    })
}

fn uses(initiator: &str, agreement: &str) -> Value {
    json!({ "initiator": initiator, "agreementId": agreement })
}

/// A merchant-initiated payment: nobody's browser, no 3D Secure.
fn by_merchant(id: &str, value: &str, card: &str, agreement: &str) -> String {
    let mut request: Value =
        serde_json::from_str(&stored(id, value, card, &uses("MERCHANT", agreement))).expect("JSON");
    request["env"].as_object_mut().expect("an object").remove("browserInfo");
    request["paymentMethod"].as_object_mut().expect("an object").remove("paymentMethodMetaData");
    request.to_string()
}

/// What the gateway got in the card's map of the newest payment.
fn sent(vault: &TestVault) -> Value {
    let calls = vault.sandbox.recent_calls();
    let call = calls.iter().rev().find(|call| call.path.ends_with("/pay")).expect("a payment");
    let request: Value = serde_json::from_str(&call.request).expect("JSON");
    request["paymentMethod"]["paymentMethodMetaData"].clone()
}

async fn open(checkout: &Caller, id: &str, card: &str, kind: &str) -> String {
    let request: Value = serde_json::from_str(&stored(id, "4000", card, &opens(kind))).expect("JSON");
    let mut request = request;
    request["paymentMethod"]["paymentMethodMetaData"]["isCardOnFile"] = Value::Bool(false);
    let paid = checkout.post("/v1/payments", &request.to_string()).await.expect(200);
    assert_eq!(paid.text_at("/status"), "AUTHORIZED", "{}", paid.text);
    paid.text_at("/agreementId")
}

/// The reason of a refusal.
fn reason(answer: &Answer) -> String {
    answer.clone().expect_problem(422, "stored_credential_refused").text_at("/errors/0/code")
}

both_engines! {
    /// Consent given with a first payment carries the merchant's later ones, and its end ends them.
    async fn an_agreement_is_opened_used_and_withdrawn(db: Database) {
        let vault = TestVault::start(&db).await;
        let (checkout, subscriptions) = (vault.client("checkout"), vault.client("subscriptions"));
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let agreement = open(&checkout, "OPEN_1", &card, "SCHEDULED").await;
        assert_eq!(sent(&vault)["isCardOnFile"], false);
        let path = format!("/v1/agreements/{agreement}");
        let shown = checkout.get(&path).await.expect(200).json();
        assert_eq!((&shown["state"], &shown["cardId"]), (&json!("ACTIVE"), &json!(card)));
        assert_eq!(shown["networkTransactionId"]["source"], "pay");

        let charged = subscriptions.post("/v1/payments", &by_merchant("MIT_1", "5000", &card, &agreement)).await;
        assert_eq!(charged.clone().expect(200).text_at("/status"), "AUTHORIZED", "{}", charged.text);
        let metadata = sent(&vault);
        assert_eq!(metadata["isCardOnFile"], true);
        assert_eq!(metadata["recurringType"], "SCHEDULED");
        assert_eq!(metadata["networkTransactionId"], shown["networkTransactionId"]["value"]);
        assert_eq!(metadata["is3DSAuthentication"], false);
        assert_eq!(metadata["enableAuthenticationUpgrade"], false);
        assert!(metadata["cvv"].is_null());

        let mut later: Value =
            serde_json::from_str(&stored("CIT_1", "9999", &card, &uses("CUSTOMER", &agreement))).expect("JSON");
        later["paymentMethod"]["paymentMethodMetaData"]["isCardOnFile"] = Value::Bool(true);
        checkout.post("/v1/payments", &later.to_string()).await.expect(200);
        let metadata = sent(&vault);
        assert_eq!(metadata["isCardOnFile"], true);
        assert!(metadata["recurringType"].is_null() && metadata["networkTransactionId"].is_null());

        let first = &shown["networkTransactionId"];
        let shown = checkout.get(&path).await.expect(200).json();
        assert_eq!(&shown["networkTransactionId"], first);
        assert_ne!(shown["latestNetworkTransactionId"]["value"], first["value"]);

        let listed = checkout.get(&format!("/v1/cards/{card}/agreements")).await.expect(200).json();
        assert_eq!(listed["data"].as_array().map(Vec::len), Some(1));
        subscriptions.delete(&path).await.expect_problem(403, "missing_scope");
        checkout.delete(&path).await.expect(204);
        checkout.delete(&path).await.expect(204);
        assert_eq!(checkout.get(&path).await.text_at("/endedReason"), "withdrawn");
        let refused = subscriptions.post("/v1/payments", &by_merchant("MIT_2", "5000", &card, &agreement)).await;
        assert_eq!(reason(&refused), "agreement_ended");
        assert_eq!(vault.charges("MIT_2"), 0);
        vault.finish(&[&pan]).await;
    }

    /// What is refused is refused before anything is sent, with its reason.
    async fn the_rules_are_kept(db: Database) {
        let vault = TestVault::start(&db).await;
        let (checkout, subscriptions) = (vault.client("checkout"), vault.client("subscriptions"));
        let (pan, other) = (fresh_pan(), fresh_pan());
        let (card, other_card) = (checkout.card(&pan).await, checkout.card(&other).await);
        let agreement = open(&checkout, "OPEN_2", &card, "UNSCHEDULED").await;
        let on_file = open(&checkout, "OPEN_3", &other_card, "CARD_ON_FILE").await;
        let calls = vault.sandbox.recent_calls().len();
        let changed = |from: &str, to: &str| by_merchant("MIT_3", "5000", &card, &agreement).replace(from, to);
        let metadata = "\"paymentMethodType\":\"CARD\"";
        let with = |member: &str| format!("{metadata},\"paymentMethodMetaData\":{{{member}}}");
        for (request, expected) in [
            (by_merchant("MIT_3", "5001", &card, &agreement), "amount_above_max"),
            (changed("\"currency\":\"EUR\"", "\"currency\":\"USD\""), "currency_mismatch"),
            (by_merchant("MIT_3", "5000", &other_card, &agreement), "agreement_of_other_card"),
            (by_merchant("MIT_3", "5000", &other_card, &on_file), "agreement_type"),
            (changed(metadata, &with("\"cvv\":\"8507\"")), "cvv_present"),
            (changed(metadata, &with("\"is3DSAuthentication\":true")), "three_ds_requested"),
            (changed(metadata, &with("\"mpiData\":{\"eci\":\"05\"}")), "mpi_data_present"),
        ] {
            assert_eq!(reason(&checkout.post("/v1/payments", &request).await), expected, "{request}");
        }
        let browser = changed("\"terminalType\"", "\"browserInfo\":{\"language\":\"en\"},\"terminalType\"");
        let browser = checkout.post("/v1/payments", &browser).await.expect_problem(422, "invalid_request");
        assert!(browser.text.contains("/env/browserInfo"), "{}", browser.text);
        let nobody = "agr_0123456789ABCDEFGHJKMNPQRSTVWXYZ";
        let unknown = checkout.post("/v1/payments", &by_merchant("MIT_3", "1", &card, nobody)).await;
        assert_eq!(unknown.expect_problem(404, "not_found").text_at("/errors/0/pointer"), "/storedCredential/agreementId");
        let rival = vault.client("rival");
        rival.get(&format!("/v1/agreements/{agreement}")).await.expect_problem(404, "not_found");
        let foreign = rival.card(&pan).await;
        rival.post("/v1/payments", &by_merchant("MIT_3", "1", &foreign, &agreement)).await.expect_problem(404, "not_found");
        assert_eq!(vault.sandbox.recent_calls().len(), calls);

        // The card goes, and with it what it was agreed for.
        checkout.delete(&format!("/v1/cards/{card}")).await.expect(204);
        let ended = checkout.get(&format!("/v1/agreements/{agreement}")).await.expect(200);
        assert_eq!(ended.text_at("/endedReason"), "card_erased");
        let gone = by_merchant("MIT_3", "1", &card, &agreement);
        for path in ["/v1/payments", "/v1/payments?dryRun=true"] {
            assert_eq!(reason(&subscriptions.post(path, &gone).await), "card_erased");
        }
        vault.finish(&[&pan, &other, "8507"]).await;
    }

    /// A first payment that fails leaves no agreement; one whose answer has no network transaction id serves
    /// the buyer, and the merchant only once an inquiry has told it. The issuer's word is heard.
    async fn an_agreement_follows_its_payments(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let failed = checkout.post("/v1/payments", &stored("OPEN_4", "660031", &card, &opens("SCHEDULED"))).await;
        assert_eq!(failed.clone().expect(200).text_at("/status"), "FAILED");
        let gone = checkout.get(&format!("/v1/agreements/{}", failed.text_at("/agreementId"))).await;
        assert_eq!((gone.text_at("/state").as_str(), gone.text_at("/endedReason").as_str()), ("ENDED", "first_payment_failed"));

        let mut terms = opens("SCHEDULED");
        terms["agreement"].as_object_mut().expect("an object").remove("maxAmount");
        let late = checkout.post("/v1/payments", &stored("OPEN_5", "660032", &card, &terms)).await.expect(200);
        let agreement = late.text_at("/agreementId");
        let refused = checkout.post("/v1/payments", &by_merchant("MIT_4", "100", &card, &agreement)).await;
        assert_eq!(reason(&refused), "no_network_transaction_id");
        checkout.get("/v1/payments/OPEN_5?refresh=true").await.expect(200);
        let shown = checkout.get(&format!("/v1/agreements/{agreement}")).await.expect(200).json();
        assert_eq!(shown["networkTransactionId"]["source"], "inquiry");
        checkout.post("/v1/payments", &by_merchant("MIT_4", "100", &card, &agreement)).await.expect(200);

        let declined = checkout.post("/v1/payments", &by_merchant("MIT_5", "660072", &card, &agreement)).await;
        assert_eq!(declined.expect(200).text_at("/status"), "FAILED");
        let again = checkout.post("/v1/payments", &by_merchant("MIT_6", "100", &card, &agreement)).await;
        assert_eq!(reason(&again), "do_not_retry");

        // Another card, whose issuer says that the buyer stopped it.
        let other = fresh_pan();
        let card = checkout.card(&other).await;
        let opened = checkout.post("/v1/payments", &stored("OPEN_6", "100", &card, &terms)).await.expect(200);
        let agreement = opened.text_at("/agreementId");
        checkout.post("/v1/payments", &by_merchant("MIT_7", "660073", &card, &agreement)).await.expect(200);
        let ended = checkout.get(&format!("/v1/agreements/{agreement}")).await.expect(200);
        assert_eq!(ended.text_at("/endedReason"), "consent_revoked");
        for path in ["/v1/payments", "/v1/payments?dryRun=true"] {
            let again = checkout.post(path, &by_merchant("MIT_8", "100", &card, &agreement)).await;
            assert_eq!(reason(&again), "consent_revoked");
        }
        vault.finish(&[&pan, &other]).await;
    }

    /// A dry run shows what would be sent and why, and does nothing.
    async fn a_dry_run_shows_and_does_nothing(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let agreement = open(&checkout, "OPEN_7", &card, "SCHEDULED").await;
        let calls = vault.sandbox.recent_calls().len();
        let request = by_merchant("MIT_8", "100", &card, &agreement);
        let shown = checkout.post("/v1/payments?dryRun=true", &request).await.expect(200).json();
        let metadata = &shown["request"]["paymentMethod"]["paymentMethodMetaData"];
        assert_eq!(metadata["cardNo"], format!("************{}", &pan[12..]));
        assert_eq!(metadata["recurringType"], "SCHEDULED");
        assert!(shown["request"]["storedCredential"].is_null());
        let pointers: Vec<&str> =
            shown["members"].as_array().expect("members").iter().filter_map(|m| m["pointer"].as_str()).collect();
        assert!(pointers.iter().any(|pointer| pointer.ends_with("/networkTransactionId")), "{pointers:?}");
        assert!(shown["members"].as_array().expect("members").iter().all(|m| m["reason"].is_string()));
        // A CVV beside a reference is typed, and never the card's.
        let cvv = with(&by_reference("DRY_2", "100", &card), &format!("{METADATA}/cvv"), json!("8507"));
        let typed = checkout.post("/v1/payments?dryRun=true", &cvv).await.expect(200).json();
        assert_eq!(typed["request"]["paymentMethod"]["paymentMethodMetaData"]["cvv"], "***");
        let why = |name: &str| {
            let members = typed["members"].as_array().expect("members");
            let member = members.iter().find(|m| m["pointer"].as_str().is_some_and(|at| at.ends_with(name)));
            member.and_then(|m| m["reason"].as_str()).unwrap_or("").to_owned()
        };
        assert_eq!((why("/cvv").as_str(), why("/cardNo").as_str()), ("typed in this request", "of the referenced card"));
        let fresh = fresh_pan();
        let inline = sample_with("DRY_1", "100").replace("4117347806156383", &fresh);
        checkout.post("/v1/payments?dryRun=true", &inline).await.expect(200);
        checkout.get("/v1/payments/MIT_8").await.expect_problem(404, "not_found");
        checkout.get("/v1/payments/DRY_1").await.expect_problem(404, "not_found");
        let cards = checkout.get("/v1/cards").await.expect(200).json();
        assert_eq!(cards["data"].as_array().map(Vec::len), Some(1));
        assert_eq!(vault.sandbox.recent_calls().len(), calls);
        let above = by_merchant("MIT_8", "5001", &card, &agreement);
        assert_eq!(reason(&checkout.post("/v1/payments?dryRun=true", &above).await), "amount_above_max");
        vault.finish(&[&pan, &fresh]).await;
    }

    /// The feed tells when an agreement begins and ends.
    async fn the_feed_tells_of_agreements(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let agreement = open(&checkout, "OPEN_8", &card, "SCHEDULED").await;
        checkout.delete(&format!("/v1/agreements/{agreement}")).await.expect(204);
        let mut told = Vec::new();
        let mut after = "0".to_owned();
        while told.len() < 4 {
            let page = checkout.get(&format!("/v1/events?after={after}&wait=10")).await.expect(200).json();
            after = page["next"].as_str().expect("a cursor").to_owned();
            told.extend(page["data"].as_array().expect("events").iter().map(|e| e["type"].as_str().unwrap_or("").to_owned()));
        }
        told.sort();
        assert_eq!(told, ["agreement.active", "agreement.ended", "card.stored", "payment.authorized"]);
        vault.finish(&[&pan]).await;
    }

    /// The merchant waits until the payment that opens the agreement is paid.
    async fn a_pending_agreement_is_not_charged(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let first = with(&stored("OPEN_9", "4000", &card, &opens("SCHEDULED")), &format!("{METADATA}/is3DSAuthentication"), json!(true));
        let first = checkout.post("/v1/payments", &first).await.expect(200);
        assert_eq!(first.text_at("/status"), "PROCESSING", "{}", first.text);
        let charge = by_merchant("MIT_9", "100", &card, &first.text_at("/agreementId"));
        for path in ["/v1/payments", "/v1/payments?dryRun=true"] {
            assert_eq!(reason(&checkout.post(path, &charge).await), "agreement_pending");
        }
        assert_eq!(vault.calls("/pay", "MIT_9"), 0);
        checkout.visit(&format!("{}/approve", first.text_at("/redirect/normalUrl"))).await;
        checkout.get("/v1/payments/OPEN_9?refresh=true").await.expect(200);
        assert_eq!(checkout.post("/v1/payments", &charge).await.expect(200).text_at("/status"), "AUTHORIZED");
        vault.finish(&[&pan]).await;
    }

    /// Fifteen declined charges of the merchant in thirty days are enough, unless the configuration allows more.
    /// What is older does not count.
    async fn declined_attempts_are_limited(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let mut terms = opens("UNSCHEDULED");
        terms["agreement"].as_object_mut().expect("an object").remove("maxAmount");
        let opened = checkout.post("/v1/payments", &stored("OPEN_10", "100", &card, &terms)).await.expect(200);
        let agreement = opened.text_at("/agreementId");
        // The buyer's own are not counted.
        let flag = format!("{METADATA}/isCardOnFile");
        let own = without(&stored("CIT_10", "660071", &card, &uses("CUSTOMER", &agreement)), &flag);
        assert_eq!(checkout.post("/v1/payments", &own).await.expect(200).text_at("/status"), "FAILED");
        let declined = |number: u32| by_merchant(&format!("LIMIT_{number}"), "660071", &card, &agreement);
        for number in 1..=15 {
            let told = checkout.post("/v1/payments", &declined(number)).await.expect(200);
            assert_eq!(told.text_at("/status"), "FAILED", "{number}");
        }
        let charge = by_merchant("LIMITED", "100", &card, &agreement);
        for path in ["/v1/payments", "/v1/payments?dryRun=true"] {
            assert_eq!(reason(&checkout.post(path, &charge).await), "retry_limit");
        }
        // One of them as if it were so many days old.
        let aged = async |days: i64| {
            let moved = days * 24 * 3_600_000;
            let changed = format!("UPDATE payments SET created_at = updated_at - {moved} WHERE payment_request_id = 'LIMIT_1'");
            assert_eq!(sql::execute(&db, &changed).await, 1);
        };
        aged(29).await;
        assert_eq!(reason(&checkout.post("/v1/payments", &charge).await), "retry_limit");
        aged(31).await;
        let told = checkout.post("/v1/payments", &declined(16)).await.expect(200);
        assert_eq!(told.text_at("/status"), "FAILED", "fourteen were left");
        assert_eq!(reason(&checkout.post("/v1/payments", &charge).await), "retry_limit");

        vault.config.retention.declined_attempts_in_30_days = 16;
        vault.restart().await;
        let checkout = vault.client("checkout");
        assert_eq!(checkout.post("/v1/payments", &charge).await.expect(200).text_at("/status"), "AUTHORIZED");
        vault.finish(&[&pan]).await;
    }

    /// The ids that the schemes want to see again are taken from whatever tells them first, and it is told
    /// what did.
    async fn ids_are_taken_from_whatever_tells_them(db: Database) {
        const LINK: &str = "abcDEF0123456789_-abcd";
        let (vault, gateway) = start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        for source in ["pay", "notification", "inquiry"] {
            let id = format!("IDS_{source}");
            gateway.on(move |call| {
                let mut answer = paid_json(call);
                let tells = (call.path == PAY && source == "pay") || (call.path != PAY && source == "inquiry");
                answer["paymentResultInfo"] = match tells {
                    true => json!({ "networkTransactionId": format!("NTI_{source}"), "transactionLinkId": LINK }),
                    false => json!({}),
                };
                Reply::Signed(answer.to_string())
            });
            let opening = stored(&id, "30000", &card, &opens("SCHEDULED"));
            let opening = without(&opening, &format!("{METADATA}/isCardOnFile"));
            let opened = checkout.post("/v1/payments", &opening).await.expect(200);
            assert_eq!(opened.text_at("/status"), "AUTHORIZED", "{}", opened.text);
            let path = format!("/v1/agreements/{}", opened.text_at("/agreementId"));
            if source != "pay" {
                let before = checkout.get(&path).await.expect(200).json();
                assert!(before["networkTransactionId"].is_null() && before["transactionLinkId"].is_null(), "{before}");
            }
            if source == "notification" {
                let told = json!({
                    "notifyType": "PAYMENT_RESULT", "paymentRequestId": id, "paymentId": opened.text_at("/paymentId"),
                    "paymentAmount": { "currency": "EUR", "value": "30000" },
                    "result": { "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "success" },
                    "paymentResultInfo": { "networkTransactionId": "NTI_notification", "transactionLinkId": LINK },
                });
                Posted::new(told.to_string()).send(&vault).await.expect(200);
            } else {
                checkout.get(&format!("/v1/payments/{id}?refresh=true")).await.expect(200);
            }
            let shown = checkout.get(&path).await.expect(200);
            for (member, value) in [("networkTransactionId", format!("NTI_{source}")), ("transactionLinkId", LINK.to_owned())] {
                let told = (shown.text_at(&format!("/{member}/value")), shown.text_at(&format!("/{member}/source")));
                assert_eq!(told, (value, source.to_owned()), "{}", shown.text);
                assert!(!shown.text_at(&format!("/{member}/receivedAt")).is_empty());
            }
        }
        vault.finish(&[&pan]).await;
    }

    /// A Mastercard's Transaction Link ID comes with the answer to its payment.
    async fn a_mastercard_tells_its_link(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let card = checkout.card("5162774114974622").await;
        let mut terms = opens("SCHEDULED");
        terms["agreement"].as_object_mut().expect("an object").remove("maxAmount");
        let opened = checkout.post("/v1/payments", &stored("OPEN_11", "660033", &card, &terms)).await.expect(200);
        let shown = checkout.get(&format!("/v1/agreements/{}", opened.text_at("/agreementId"))).await.expect(200);
        let answer = opened.text_at("/paymentResultInfo/transactionLinkId");
        assert_eq!(answer.len(), 22, "{}", opened.text);
        assert_eq!((shown.text_at("/transactionLinkId/value"), shown.text_at("/transactionLinkId/source")), (answer, "pay".into()));
        vault.finish(&["5162774114974622"]).await;
    }
}
