//! Where a payment stands after each answer of the gateway, and that it stands there for good: over a
//! restart, over repeats of its id, and until an inquiry teaches better.

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::support::gateway::{PAY, Reply, nobody, not_exist, paid_json, result};
use super::support::vault::{
    Caller, METADATA, SAMPLE, SAMPLE_PAN, TestVault, by_reference, fresh_pan, sample_with, typed, with,
    without,
};
use super::support::{Engine, sql};

/// An amount that makes the sandbox act, the status of the reply, the status that inquiries lead to, and
/// how many charges there are in the end.
const TABLE: &[(&str, &str, &str, usize)] = &[
    ("30000", "AUTHORIZED", "AUTHORIZED", 1),
    ("11", "FAILED", "FAILED", 0),
    ("660001", "AUTHORIZED", "AUTHORIZED", 1),
    ("660002", "UNKNOWN", "UNKNOWN", 0),
    ("660003", "UNKNOWN", "AUTHORIZED", 1),
    ("660004", "UNKNOWN", "AUTHORIZED", 1),
    ("660005", "UNKNOWN", "AUTHORIZED", 1),
    ("660006", "UNKNOWN", "UNKNOWN", 0),
    ("660011", "UNKNOWN", "UNKNOWN", 0),
    ("660012", "UNKNOWN", "AUTHORIZED", 1),
    ("660013", "UNKNOWN", "UNKNOWN", 0),
    ("660021", "UNKNOWN", "AUTHORIZED", 1),
    ("660022", "UNKNOWN", "AUTHORIZED", 1),
    ("660023", "UNKNOWN", "UNKNOWN", 0),
    ("660024", "UNKNOWN", "AUTHORIZED", 1),
    ("660025", "UNKNOWN", "AUTHORIZED", 1),
    ("660026", "UNKNOWN", "AUTHORIZED", 1),
    ("660027", "UNKNOWN", "AUTHORIZED", 1),
    ("660028", "UNKNOWN", "AUTHORIZED", 1),
    ("660029", "UNKNOWN", "AUTHORIZED", 1),
    ("660030", "AUTHORIZED", "AUTHORIZED", 1),
    ("660031", "FAILED", "FAILED", 0),
    ("660041", "UNKNOWN", "AUTHORIZED", 1),
    ("660042", "PROCESSING", "AUTHORIZED", 1),
    ("660043", "PROCESSING", "FAILED", 0),
    ("660044", "UNKNOWN", "UNKNOWN", 0),
    ("660051", "UNKNOWN", "UNKNOWN", 0),
    ("660052", "UNKNOWN", "AUTHORIZED", 1),
    ("660053", "UNKNOWN", "CANCELLED", 0),
    ("660061", "UNKNOWN", "AUTHORIZED", 1),
    ("660062", "UNKNOWN", "UNKNOWN", 1),
    ("660071", "FAILED", "FAILED", 0),
    ("660072", "FAILED", "FAILED", 0),
    ("660074", "FAILED", "FAILED", 0),
];

fn id_of(amount: &str) -> String {
    format!("PAY_TABLE_{amount}")
}

/// Makes the same kind of call for every line of the table at once, and gives the bodies in its order.
async fn each(caller: &Caller, method: &'static str, query: &'static str) -> Vec<Value> {
    let mut calls = JoinSet::new();
    for (place, (amount, ..)) in TABLE.iter().enumerate() {
        let caller = caller.clone();
        calls.spawn(async move {
            let answer = match method {
                "POST" => caller.post("/v1/payments", &sample_with(&id_of(amount), amount)).await,
                _ => caller.get(&format!("/v1/payments/{}{query}", id_of(amount))).await,
            };
            (place, answer.expect(200).json())
        });
    }
    let mut all = calls.join_all().await;
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, body)| body).collect()
}

fn assert_statuses(
    bodies: &[Value],
    expected: impl Fn(&(&str, &'static str, &'static str, usize)) -> &'static str,
) {
    for (line, body) in TABLE.iter().zip(bodies) {
        assert_eq!(body["status"], expected(line), "{}: {body}", line.0);
    }
}

both_engines! {
    /// Every answer of the gateway is HTTP 200 with the status of the table; the status survives a
    /// restart; the same id again sends nothing; inquiries settle what they can, and nothing is charged
    /// twice.
    async fn each_answer_leads_to_its_status(db: Database) {
        let mut vault = TestVault::start_still(&db).await;
        let checkout = vault.client("checkout");
        let first = each(&checkout, "POST", "").await;
        assert_statuses(&first, |line| line.1);
        for body in &first {
            let unclear = body["status"] == "UNKNOWN" || body["status"] == "PROCESSING";
            assert_eq!(body["settledBy"].is_null(), unclear, "{body}");
        }
        vault.restart().await;
        let checkout = vault.client("checkout");
        assert_eq!(each(&checkout, "GET", "").await, first);
        assert_eq!(each(&checkout, "POST", "").await, first);
        for (amount, ..) in TABLE {
            assert_eq!(vault.calls("/pay", &id_of(amount)), 1, "{amount}");
        }
        each(&checkout, "GET", "?refresh=true").await;
        let settled = each(&checkout, "GET", "?refresh=true").await;
        assert_statuses(&settled, |line| line.2);
        vault.restart().await;
        let checkout = vault.client("checkout");
        assert_statuses(&each(&checkout, "GET", "").await, |line| line.2);
        assert_statuses(&each(&checkout, "POST", "").await, |line| line.2);
        for (amount, _, _, charges) in TABLE {
            assert_eq!(vault.charges(&id_of(amount)), *charges, "{amount}");
        }
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// Left alone, the vault settles by itself what got no clear answer, and repeats what never arrived.
    async fn what_got_no_answer_settles_by_itself(db: Database) {
        let mut vault = TestVault::start(&db).await;
        vault.policy.inquiry_pauses = vec![std::time::Duration::from_millis(200)];
        vault.restart().await;
        let checkout = vault.client("checkout");
        for amount in ["660003", "660006", "660011", "660012", "660022", "660041", "660061"] {
            let told = checkout.post("/v1/payments", &sample_with(&id_of(amount), amount)).await.expect(200);
            assert_eq!(told.text_at("/status"), "UNKNOWN");
        }
        for amount in ["660003", "660006", "660011", "660012", "660022", "660041", "660061"] {
            wait_for(&checkout, &id_of(amount), "AUTHORIZED").await;
            assert_eq!(vault.charges(&id_of(amount)), 1, "{amount}");
        }
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// A buyer who must act is sent somewhere; when he has acted, an inquiry tells.
    async fn a_buyer_is_sent_to_a_page(db: Database) {
        let mut vault = TestVault::start_still(&db).await;
        let checkout = vault.client("checkout");
        let request = with(SAMPLE, &format!("{METADATA}/is3DSAuthentication"), json!(true));
        let told = checkout.post("/v1/payments", &request).await.expect(200);
        assert_eq!(told.text_at("/status"), "PROCESSING");
        assert_eq!(told.text_at("/result/resultCode"), "PAYMENT_IN_PROCESS");
        let page = told.text_at("/redirect/normalUrl");
        assert!(told.json()["redirect"]["redirectActionForm"].is_object());
        vault.restart().await;
        let checkout = vault.client("checkout");
        let path = "/v1/payments/PAY_20221114141714891";
        assert_eq!(checkout.get(path).await.text_at("/redirect/normalUrl"), page);
        assert_eq!(checkout.get(&format!("{path}?refresh=true")).await.text_at("/redirect/normalUrl"), page);
        checkout.visit(&format!("{page}/approve")).await;
        let paid = checkout.get(&format!("{path}?refresh=true")).await.expect(200);
        assert_eq!((paid.text_at("/status"), paid.text_at("/settledBy")), ("AUTHORIZED".into(), "inquiry".into()));
        assert!(paid.json()["redirect"].is_null());
        assert_eq!(vault.charges("PAY_20221114141714891"), 1);
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// Where no connection came about, nothing was sent: FAILED, for good, and without a charge.
    async fn what_was_never_sent_has_failed(db: Database) {
        let mut vault = TestVault::start_still(&db).await;
        let works = vault.sandbox.base_url();
        vault.gateway_at(&nobody());
        vault.restart().await;
        let refused = vault.client("checkout").post("/v1/payments", SAMPLE).await.expect(200);
        assert_eq!((refused.text_at("/status"), refused.text_at("/settledBy")), ("FAILED".into(), "not_sent".into()));
        assert!(refused.json()["result"].is_null());
        // A server that hangs up during the TLS handshake has read no request either.
        let rude = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        vault.gateway_at(&format!("https://{}", rude.local_addr().expect("an address")));
        let task = tokio::spawn(async move { while rude.accept().await.is_ok() {} });
        vault.restart().await;
        let cut = vault.client("checkout").post("/v1/payments", &sample_with("PAY_CUT", "100")).await.expect(200);
        assert_eq!((cut.text_at("/status"), cut.text_at("/settledBy")), ("FAILED".into(), "not_sent".into()));
        task.abort();
        vault.gateway_at(&works);
        vault.restart().await;
        let again = vault.client("checkout").post("/v1/payments", SAMPLE).await.expect(200);
        assert_eq!(again.json(), refused.json());
        assert_eq!(vault.charges("PAY_20221114141714891") + vault.charges("PAY_CUT"), 0);
        assert_eq!(vault.sandbox.recent_calls().len(), 0);
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// A payment that failed and turns out to be charged is AUTHORIZED: an inquiry has the last word. One
    /// that is paid does not become FAILED.
    async fn an_inquiry_has_the_last_word(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        gateway.on(|call| {
            if call.path == PAY { result("F", "PROCESS_FAIL") } else { Reply::Signed(paid_json(call).to_string()) }
        });
        let checkout = vault.client("checkout");
        assert_eq!(checkout.post("/v1/payments", SAMPLE).await.text_at("/status"), "FAILED");
        let path = "/v1/payments/PAY_20221114141714891?refresh=true";
        assert_eq!(checkout.get(path).await.text_at("/status"), "AUTHORIZED");
        gateway.on(|call| {
            let mut answer = paid_json(call);
            answer["paymentStatus"] = json!("FAIL");
            Reply::Signed(answer.to_string())
        });
        assert_eq!(checkout.get(path).await.text_at("/status"), "AUTHORIZED");
        gateway.on(|_| not_exist());
        assert_eq!(checkout.get(path).await.text_at("/status"), "AUTHORIZED");
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// An inquiry that is not about this payment, or does not say so, settles nothing.
    async fn an_inquiry_about_something_else_settles_nothing(db: Database) {
        let (mut vault, gateway) = TestVault::start_scripted(&db).await;
        vault.policy.inquiry_pauses = vec![std::time::Duration::from_secs(3600)];
        vault.restart().await;
        let checkout = vault.client("checkout");
        gateway.on(|_| Reply::Closed);
        assert_eq!(checkout.post("/v1/payments", SAMPLE).await.text_at("/status"), "UNKNOWN");
        let path = "/v1/payments/PAY_20221114141714891?refresh=true";
        for (pointer, value) in [
            ("/paymentRequestId", json!("PAY_OTHER")),
            ("/paymentRequestId", Value::Null),
            ("/paymentAmount/value", json!("1")),
            ("/paymentAmount/currency", json!("USD")),
            ("/paymentId", json!("")),
            ("/paymentStatus", json!("PAID")),
            ("/result/resultStatus", json!("U")),
        ] {
            gateway.on(move |call| Reply::Signed(with(&paid_json(call).to_string(), pointer, value.clone())));
            assert_eq!(checkout.get(path).await.expect(200).text_at("/status"), "UNKNOWN", "{pointer}");
        }
        gateway.on(|call| Reply::Unsigned(paid_json(call).to_string()));
        assert_eq!(checkout.get(path).await.text_at("/status"), "UNKNOWN");
        gateway.on(|call| Reply::Signed(paid_json(call).to_string()));
        assert_eq!(checkout.get(path).await.text_at("/status"), "AUTHORIZED");
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// A stored card is paid with by its own buyer only, soon after it was typed, while it is there, and
    /// as it is stored; each refusal names its reason and sends nothing.
    async fn a_stored_card_has_rules(db: Database) {
        let (mut vault, gateway) = TestVault::start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let first = checkout.post("/v1/payments", &typed("PAY_1", "100", &pan, "8503")).await.expect(200);
        let card = first.text_at("/cardId");
        let path = format!("/v1/cards/{card}");
        let pay = by_reference("PAY_2", "100", &card);
        let order = with(&pay, "/order/buyer", json!({ "referenceBuyerId": "somebody-else" }));
        checkout.post("/v1/payments", &order).await.expect_problem(422, "buyer_mismatch");
        for (name, value) in [
            ("expiryMonth", json!("11")),
            ("expiryYear", json!("30")),
            ("cardholderName", json!({ "firstName": "Other", "lastName": "Jay" })),
            ("isCardOnFile", json!(true)),
            ("recurringType", json!("SCHEDULED")),
            ("networkTransactionId", json!("NTI1")),
        ] {
            let pointer = format!("{METADATA}/{name}");
            let refused = checkout.post("/v1/payments", &with(&pay, &pointer, value)).await;
            let refused = refused.expect_problem(422, "invalid_request");
            assert_eq!(refused.text_at("/errors/0/pointer"), pointer);
            assert_eq!(refused.text_at("/errors/0/code"), "conflict");
        }
        let stored = with(&pay, "/storedCredential", json!({ "initiator": "CUSTOMER" }));
        checkout.post("/v1/payments", &stored).await.expect_problem(422, "invalid_request");
        let number = with(&pay, "/orderNote", json!(format!("card {pan}")));
        checkout.post("/v1/payments", &number).await.expect_problem(422, "card_data_outside_card");
        // What agrees is no disagreement, and no buyer is not another one.
        let agreeing = with(&pay, &format!("{METADATA}/expiryMonth"), json!("12"));
        assert_eq!(checkout.post("/v1/payments", &agreeing).await.text_at("/status"), "AUTHORIZED");
        vault.client("rival").post("/v1/payments", &by_reference("PAY_3", "100", &card)).await
            .expect_problem(404, "not_found");
        vault.config.retention.unattached_card_hours = 0;
        vault.restart().await;
        let checkout = vault.client("checkout");
        checkout.post("/v1/payments", &by_reference("PAY_4", "100", &card)).await
            .expect_problem(422, "stored_credential_required");
        vault.config.retention.unattached_card_hours = 1;
        vault.restart().await;
        let checkout = vault.client("checkout");
        checkout.delete(&path).await.expect(204);
        checkout.post("/v1/payments", &by_reference("PAY_4", "100", &card)).await.expect_problem(404, "not_found");
        // A payment of an erased card is still known under its id.
        let known = checkout.post("/v1/payments", &agreeing).await.expect(200);
        assert_eq!(known.text_at("/status"), "AUTHORIZED");
        checkout.get("/v1/payments/PAY_4").await.expect_problem(404, "not_found");
        assert_eq!(gateway.pays().len(), 2);
        vault.finish(&[&pan, "8503"]).await;
    }

    /// What is typed with a payment becomes the known card's only when that payment has succeeded, also
    /// where an inquiry tells of the success.
    async fn typed_details_wait_for_success(db: Database) {
        let mut vault = TestVault::start_still(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let later = |id: &str, amount: &str, year: &str| {
            let text = typed(id, amount, &pan, "8503");
            with(&text, &format!("{METADATA}/expiryYear"), json!(year))
        };
        let card = checkout.post("/v1/payments", &later("PAY_1", "100", "29")).await.expect(200).text_at("/cardId");
        let path = format!("/v1/cards/{card}");
        let failed = checkout.post("/v1/payments", &later("PAY_2", "11", "30")).await.expect(200);
        assert_eq!((failed.text_at("/status"), failed.text_at("/cardId")), ("FAILED".into(), card.clone()));
        assert_eq!(checkout.get(&path).await.text_at("/expiryYear"), "29");
        checkout.post("/v1/payments", &later("PAY_3", "100", "31")).await.expect(200);
        assert_eq!(checkout.get(&path).await.text_at("/expiryYear"), "31");
        assert_eq!(checkout.post("/v1/payments", &later("PAY_4", "660003", "32")).await.text_at("/status"), "UNKNOWN");
        assert_eq!(checkout.get(&path).await.text_at("/expiryYear"), "31");
        vault.restart().await;
        let checkout = vault.client("checkout");
        let told = checkout.get("/v1/payments/PAY_4?refresh=true").await;
        assert_eq!(told.text_at("/status"), "AUTHORIZED");
        let shown = checkout.get(&path).await;
        assert_eq!(shown.text_at("/expiryYear"), "32");
        assert_eq!(shown.text_at("/cardholderName/firstName"), "Tom");
        // Both or neither: where the card cannot be written, the payment is not settled, and loses nothing.
        let version = sql::number(&db, "SELECT version FROM cards").await;
        sql::execute(&db, &match db.engine {
            Engine::Sqlite => format!(
                "CREATE TRIGGER frozen BEFORE UPDATE ON cards WHEN NEW.version > {version} \
                 BEGIN SELECT RAISE(ABORT, 'frozen'); END"
            ),
            Engine::Postgres => format!("ALTER TABLE cards ADD CONSTRAINT frozen CHECK (version <= {version})"),
        }).await;
        let lost = checkout.post("/v1/payments", &later("PAY_5", "100", "33")).await;
        assert!(lost.status >= 500, "{}", lost.text);
        assert_eq!(checkout.get("/v1/payments/PAY_5").await.text_at("/status"), "UNKNOWN");
        sql::execute(&db, match db.engine {
            Engine::Sqlite => "DROP TRIGGER frozen",
            Engine::Postgres => "ALTER TABLE cards DROP CONSTRAINT frozen",
        }).await;
        let told = checkout.get("/v1/payments/PAY_5?refresh=true").await.expect(200);
        assert_eq!(told.text_at("/status"), "AUTHORIZED");
        assert_eq!(checkout.get(&path).await.text_at("/expiryYear"), "33");
        assert_eq!(vault.charges("PAY_5"), 1);
        vault.finish(&[&pan, "8503"]).await;
    }

    /// The gateway receives the sample as it stands; members that nobody knows pass byte for byte; each
    /// body is signed as it is sent, over the sandbox's path.
    async fn the_gateway_receives_what_was_asked(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let checkout = vault.client("checkout");
        checkout.post("/v1/payments", SAMPLE).await.expect(200);
        let odd = "\"newMember\": [ 1.50, {\"deep\" :\t\"\\u00e9\"}, 1e2, -0 ],\n\"env\"";
        let inner = "\"aKeyOfTomorrow\": { \"a\" : 1.0 },\n\"isCardOnFile\"";
        let text = sample_with("PAY_2", "100").replacen("\"env\"", odd, 1).replacen("\"isCardOnFile\"", inner, 1);
        checkout.post("/v1/payments", &text).await.expect(200);
        let pays = gateway.pays();
        assert_eq!(pays[0].json(), serde_json::from_str::<Value>(SAMPLE).expect("JSON"));
        let body = String::from_utf8(pays[1].body.clone()).expect("text");
        assert!(body.contains("\"newMember\":[ 1.50, {\"deep\" :\t\"\\u00e9\"}, 1e2, -0 ]"));
        assert!(body.contains("\"aKeyOfTomorrow\":{ \"a\" : 1.0 }"));
        assert!(pays.iter().all(|pay| pay.signed));
        // Beside a reference the same card leaves: number, expiry, name, address; and no CVV.
        let card = checkout.get("/v1/payments/PAY_2").await.text_at("/cardId");
        let reference = with(&sample_with("PAY_3", "30000"), "/paymentMethod/paymentMethodId", json!(card));
        let reference = ["cardNo", "cvv", "expiryMonth", "expiryYear", "cardholderName", "billingAddress"]
            .iter()
            .fold(reference, |text, name| without(&text, &format!("{METADATA}/{name}")));
        checkout.post("/v1/payments", &reference).await.expect(200);
        let expected = without(&sample_with("PAY_3", "30000"), &format!("{METADATA}/cvv"));
        assert_eq!(gateway.pays()[2].json(), serde_json::from_str::<Value>(&expected).expect("JSON"));
        let told = checkout.get("/v1/payments/PAY_3?refresh=true").await.expect(200);
        assert_eq!(told.json()["gatewayResponse"]["paymentId"], "20260101194010800100188000000000001");
        assert!(gateway.calls().iter().all(|call| call.signed));
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }
}

/// Waits until a payment has a status.
pub async fn wait_for(caller: &Caller, id: &str, status: &str) {
    super::support::eventually(&format!("{id} to be {status}"), || async {
        let told = caller.get(&format!("/v1/payments/{id}")).await.expect(200);
        (told.text_at("/status") == status).then_some(())
    })
    .await
}
