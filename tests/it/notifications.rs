//! Notifications: verified over the raw body and the path that the gateway called, durable before they are
//! acknowledged, and without any effect that they should not have.

mod table;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use cardvault::sandbox::Call;

use super::support::gateway::{INQUIRY, PAY, Reply, Scripted, not_exist, paid_json};
use super::support::notices::{ACKNOWLEDGED, Header, Posted, Sign};
use super::support::postgres::{Binaries, Cluster, Durability};
use super::support::vault::{Caller, HOSTED, TestVault, by_reference, fresh_pan, with};
use super::support::{Database, eventually, left_out, sql};

/// The gaps between the sendings of a notification here: often enough, and for long enough.
const GAPS: [Duration; 100] = [Duration::from_millis(250); 100];
/// Longer than any story.
const LONG: Duration = Duration::from_secs(3600);

/// A vault that does not ask by itself: what settles, settles by notification.
async fn start(db: &Database) -> TestVault {
    let mut vault = TestVault::start_notified(db, &GAPS).await;
    vault.policy.inquiry_pauses = vec![LONG];
    vault.restart().await;
    vault
}

/// A vault in front of a scripted gateway, with the same patience.
pub async fn start_scripted(db: &Database) -> (TestVault, Scripted) {
    let mut vault = TestVault::start_notified(db, &[]).await;
    let gateway = Scripted::start(vault.dir.path()).await;
    vault.gateway_at(&gateway.base_url());
    vault.policy.inquiry_pauses = vec![LONG];
    vault.restart().await;
    (vault, gateway)
}

/// A payment as it is shown.
pub async fn shown(caller: &Caller, id: &str) -> Value {
    caller.get(&format!("/v1/payments/{id}")).await.expect(200).json()
}

/// Waits until a payment has a status.
async fn settled(caller: &Caller, id: &str, status: &str) -> Value {
    eventually(&format!("{id} to be {status}"), || async {
        let shown = shown(caller, id).await;
        (shown["status"] == status).then_some(shown)
    })
    .await
}

/// What the sandbox has sent of a payment, by what stands in every notification of it.
fn sent(vault: &TestVault, text: &str) -> Vec<Call> {
    let calls = vault.sandbox.recent_calls();
    calls.into_iter().filter(|call| call.notification && call.request.contains(text)).collect()
}

/// Whether the vault acknowledged a sending; the sandbox shows the answer with its members sorted.
fn is_acknowledged(call: &Call) -> bool {
    let json = |text: &str| serde_json::from_str::<Value>(text).ok();
    json(&call.answer).is_some_and(|answer| Some(answer) == json(ACKNOWLEDGED))
}

/// The kinds of a payment's events, its captures', refunds' and disputes', in no order.
async fn events(db: &Database, id: &str) -> Vec<String> {
    let query = format!("SELECT kind FROM events WHERE body LIKE '%\"{id}\"%' ORDER BY kind");
    sql::rows(db, &query).await.into_iter().flatten().flatten().collect()
}

/// The hosted page's request under another id.
fn hosted(id: &str) -> String {
    HOSTED.replace("PAY_20221114141714891", id)
}

/// The page on which the buyer pays.
async fn page(checkout: &Caller, body: &str) -> String {
    let paid = checkout.post("/v1/payments", body).await.expect(200);
    assert_eq!(paid.text_at("/status"), "PROCESSING", "{}", paid.text);
    paid.text_at("/redirect/normalUrl")
}

/// An amount that changes its notifications, how many of them the gateway sends, what the vault tells,
/// and what it keeps aside.
type Trigger = (&'static str, usize, &'static [&'static str], usize);
const PAID: &[&str] = &["capture.succeeded", "payment.authorized"];
const TRIGGERS: &[Trigger] = &[
    ("30000", 2, PAID, 0),
    ("660081", 3, PAID, 0),
    ("660082", 2, PAID, 0),
    ("660083", 2, PAID, 0),
    ("660084", 2, PAID, 0),
    ("660085", 0, &["payment.authorized"], 0),
    ("660086", 3, PAID, 0),
    ("660088", 4, &["capture.succeeded", "dispute.created", "dispute.judged", "payment.authorized"], 2),
    ("660089", 3, PAID, 1),
    ("660090", 3, PAID, 0),
    ("660091", 2, PAID, 0),
];

/// The notifications of captures and refunds: as above, with what the operation comes to, and whether the
/// call itself is answered.
const OPERATION_TRIGGERS: &[(&str, usize, &str)] = &[
    ("00", 1, "SUCCEEDED"),
    ("03", 1, "SUCCEEDED"),
    ("12", 1, "SUCCEEDED"),
    ("21", 1, "SUCCEEDED"),
    ("24", 1, "SUCCEEDED"),
    ("25", 1, "SUCCEEDED"),
    ("31", 1, "FAILED"),
    ("41", 1, "SUCCEEDED"),
    ("45", 1, "SUCCEEDED"),
    ("81", 2, "SUCCEEDED"),
    ("82", 1, "SUCCEEDED"),
    ("83", 1, "SUCCEEDED"),
    ("84", 1, "SUCCEEDED"),
    ("85", 0, "SUCCEEDED"),
    ("86", 2, "SUCCEEDED"),
    ("87", 2, "SUCCEEDED"),
    ("89", 2, "SUCCEEDED"),
];

both_engines! {
    /// Every row of the table: the answer, the status, the events, and whether the gateway is asked.
    async fn the_table_holds(db: Database) {
        table::hold(db).await;
    }

    /// Whatever the gateway does with the notifications of a payment, each is acknowledged at its first
    /// sending, and everything is told once.
    async fn every_kind_of_payment_notification_is_taken(db: Database) {
        let vault = start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        for (amount, count, told, kept) in TRIGGERS {
            let id = format!("NP_{amount}");
            let paid = checkout.post("/v1/payments", &by_reference(&id, amount, &card)).await.expect(200);
            assert_eq!(paid.text_at("/status"), "AUTHORIZED", "{amount}: {}", paid.text);
            // On a busy machine other notifications may overtake the answer too.
            let by = paid.text_at("/settledBy");
            assert!(by == "notification" || *amount != "660082", "{amount}: {by}");
            let gateway = paid.text_at("/paymentId");
            eventually("the notifications", || async { (sent(&vault, &gateway).len() >= *count).then_some(()) }).await;
            let calls = sent(&vault, &gateway);
            assert_eq!(calls.len(), *count, "{amount}: {calls:?}");
            for call in &calls {
                assert!(is_acknowledged(call), "{amount}: {call:?}");
            }
            let now = shown(&checkout, &id).await;
            assert_eq!((&now["status"], &now["settledBy"]), (&json!("AUTHORIZED"), &json!(by)), "{amount}: {now}");
            assert_eq!(now["captures"].as_array().map(Vec::len), Some(usize::from(*count > 0)), "{amount}: {now}");
            let mut events = events(&db, &id).await;
            events.retain(|kind| *amount != "660090" || kind != "payment.processing");
            assert_eq!(events, *told, "{amount}");
            let notices = sql::rows(&db, &format!("SELECT kind FROM notices WHERE payment_request_id = '{id}'")).await;
            assert_eq!(notices.len(), *kept, "{amount}: {notices:?}");
            assert_eq!(vault.charges(&id), 1);
            // An inquiry tells of the same capture, not of another one.
            let asked = checkout.get(&format!("/v1/payments/{id}?refresh=true")).await.expect(200).json();
            assert_eq!(asked["captures"].as_array().map(Vec::len), Some(1), "{amount}: {asked}");
        }
        // The sum that was not ours, and the failure that came late, had the gateway asked.
        eventually("the gateway to be asked", || async {
            (vault.calls("/inquiryPayment", "NP_660083") > 1 && vault.calls("/inquiryPayment", "NP_660086") > 1).then_some(())
        })
        .await;
        vault.finish(&[&pan]).await;
    }

    /// A notification that is signed wrongly is refused however often it comes, and what it would have
    /// told is learned by asking.
    async fn a_wrong_signature_is_refused_for_ever(db: Database) {
        let mut vault = TestVault::start_notified(&db, &GAPS[..3]).await;
        vault.policy.inquiry_pauses = vec![LONG];
        vault.restart().await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let paid = checkout.post("/v1/payments", &by_reference("NW_1", "660087", &card)).await.expect(200);
        let gateway = paid.text_at("/paymentId");
        // One and three more of the payment's, and the capture's own, which is in order.
        eventually("the notifications", || async { (sent(&vault, &gateway).len() >= 5).then_some(()) }).await;
        let refused = |call: &&Call| call.answer == "(HTTP 401)";
        assert_eq!(sent(&vault, &gateway).iter().filter(refused).count(), 4);
        assert_eq!(events(&db, "NW_1").await, PAID);
        vault.finish(&[&pan]).await;
    }

    /// Where the answer to pay is lost, the notification settles the payment, and tells what the answer
    /// would have told.
    async fn a_notification_stands_in_for_a_lost_answer(db: Database) {
        let vault = start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let mut all = JoinSet::new();
        for amount in ["660003", "660004", "660012", "660021", "660022", "660024", "660025", "660026", "660041", "660052"] {
            let (checkout, card) = (checkout.clone(), card.clone());
            all.spawn(async move {
                let id = format!("NL_{amount}");
                let paid = checkout.post("/v1/payments", &by_reference(&id, amount, &card)).await.expect(200);
                assert!(matches!(paid.text_at("/status").as_str(), "UNKNOWN" | "AUTHORIZED"), "{}", paid.text);
                let now = settled(&checkout, &id, "AUTHORIZED").await;
                assert_eq!(now["settledBy"], "notification", "{now}");
                assert!(now["paymentResultInfo"]["networkTransactionId"].is_string(), "{now}");
                (amount, id)
            });
        }
        for (amount, id) in all.join_all().await {
            eventually("the capture", || async { (events(&db, &id).await == PAID).then_some(()) }).await;
            assert_eq!(vault.charges(&id), 1, "{amount}");
        }
        vault.finish(&[&pan]).await;
    }

    /// The same for captures and refunds, with every fault of the call and of the notification.
    async fn every_kind_of_operation_notification_is_taken(db: Database) {
        let mut vault = TestVault::start_notified(&db, &GAPS[..1]).await;
        vault.policy.inquiry_pauses = vec![LONG];
        vault.restart().await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        for (kind, prefix) in [("capture", "6601"), ("refund", "6602")] {
            for (trigger, count, status) in OPERATION_TRIGGERS {
                let id = format!("NO_{kind}_{trigger}");
                let mode = if kind == "capture" { "MANUAL" } else { "AUTOMATIC" };
                let factor = json!({ "isAuthorization": true, "captureMode": mode });
                let body = with(&by_reference(&id, "2000000", &card), "/paymentFactor", factor);
                checkout.post("/v1/payments", &body).await.expect(200);
                let amount = json!({ "currency": "EUR", "value": format!("{prefix}{trigger}") });
                let mut body = json!({ format!("{kind}RequestId"): format!("{id}_OP"), format!("{kind}Amount"): amount });
                if kind == "capture" {
                    body["isLastCapture"] = json!(false);
                }
                checkout.post(&format!("/v1/payments/{id}/{kind}s"), &body.to_string()).await.expect(200);
                let now = eventually("the operation to be settled", || async {
                    let now = shown(&checkout, &id).await;
                    (now[format!("{kind}s")][0]["status"] == *status).then_some(now)
                })
                .await;
                let own = format!("{id}_OP");
                let told = || sent(&vault, &own);
                eventually("the notifications", || async { (told().len() >= *count).then_some(()) }).await;
                let right = |call: &Call| match *trigger {
                    "87" => call.answer == "(HTTP 401)",
                    _ => is_acknowledged(call),
                };
                assert!(told().iter().all(right), "{kind} {trigger}: {:?}", told());
                let event = format!("{kind}.{}", status.to_lowercase());
                let events = events(&db, &own).await;
                assert_eq!(events.iter().filter(|kind| **kind == event).count(), 1, "{kind} {trigger}: {events:?} {now}");
                let other = events.iter().filter(|told| **told != event && **told != format!("{kind}.processing"));
                assert_eq!(other.count(), 0, "{kind} {trigger}: {events:?}");
            }
        }
        vault.finish(&[&pan]).await;
    }

    /// Antom's own samples, for the sums that they name: all that they say is shown, but for the
    /// cryptogram, however it is spelt.
    async fn the_documents_samples_are_shown(db: Database) {
        const CRYPTOGRAM: &str = "AJkBBkhgQQAAAE4gSEJydQAAAAA=";
        let (vault, gateway) = start_scripted(&db).await;
        gateway.on(|call| {
            let mut answer = paid_json(call);
            answer["paymentId"] = json!("2020010123456789XXXX");
            answer["result"] = json!({ "resultCode": "PAYMENT_IN_PROCESS", "resultStatus": "U", "resultMessage": "" });
            Reply::Signed(answer.to_string())
        });
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let general = include_str!("../samples/notification-general.json").replace("cavvSample", CRYPTOGRAM);
        let korean = include_str!("../samples/notification-korean.json");
        let filled = korean.replace(r#""cavv": """#, &format!(r#""cavv": "{CRYPTOGRAM}""#));
        let european = |name: &str| json!({
            "avsResultRaw": "A", "cvvResultRaw": "Y", "networkTransactionId": "sampleNetworkTransactionId123456",
            "threeDSResult": {
                "eci": "02", "threeDSVersion": "2.2.0", "dsTransactionId": "sample_dsTranasctionId", name: "[removed]",
            },
        });
        let seoul = json!({
            "avsResultRaw": "", "cvvResultRaw": "", "paymentMethodRegion": "KR",
            "threeDSResult": { "cavv": "[removed]", "eci": "" },
        });
        for (turn, (sample, value, currency, info)) in [
            (general.clone(), "8000", "EUR", european("caav")),
            (general.replace("caav", "cavv"), "8000", "EUR", european("cavv")),
            (korean.to_owned(), "120", "KRW", seoul.clone()),
            (filled, "120", "KRW", seoul),
        ]
        .into_iter()
        .enumerate()
        {
            let id = format!("NS_{turn}");
            let amount = json!({ "currency": currency, "value": value });
            let body = with(&by_reference(&id, value, &card), "/paymentAmount", amount.clone());
            let body = with(&body, "/order/orderAmount", amount.clone());
            let body = with(&body, "/settlementStrategy", json!({ "settlementCurrency": currency }));
            checkout.post("/v1/payments", &body).await.expect(200);
            // The sample's two ids are alike; the first one is ours.
            let sample = sample.replace(r#""paymentRequestId": "2020010123456789XXXX""#, &format!(r#""paymentRequestId": "{id}""#));
            let told = Posted::new(sample).send(&vault).await;
            assert_eq!((told.status, told.text.as_str()), (200, ACKNOWLEDGED));
            let now = shown(&checkout, &id).await;
            assert_eq!((&now["status"], &now["settledBy"]), (&json!("AUTHORIZED"), &json!("notification")), "{now}");
            assert_eq!(now["paymentId"], "2020010123456789XXXX");
            assert_eq!(now["paymentAmount"], amount);
            assert_eq!(now["paymentResultInfo"], info, "{now}");
            assert_eq!(now["gatewayResponse"]["paymentResultInfo"], info);
            if currency == "KRW" {
                assert_eq!(now["gatewayResponse"]["cardInfo"], info, "{now}");
                assert_eq!(now["gatewayResponse"]["actualPaymentAmount"], amount);
            }
        }
        vault.finish(&[&pan, CRYPTOGRAM]).await;
    }

    /// A notification that overtakes the answer to pay settles the payment; the answer then says the same
    /// and is told no second time.
    async fn a_notification_overtakes_the_answer(db: Database) {
        let (vault, gateway) = start_scripted(&db).await;
        gateway.on(|call| Reply::Held(Box::new(Reply::Signed(paid_json(call).to_string()))));
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let body = by_reference("NO_1", "30000", &checkout.card(&pan).await);
        let paying = tokio::spawn({
            let checkout = checkout.clone();
            async move { checkout.post("/v1/payments", &body).await.expect(200) }
        });
        let call = gateway.wait_for_pays(1).await.remove(0);
        let mut notice = paid_json(&call);
        notice["notifyType"] = json!("PAYMENT_RESULT");
        let told = Posted::new(notice.to_string()).send(&vault).await;
        assert_eq!((told.status, told.text.as_str()), (200, ACKNOWLEDGED));
        assert_eq!(shown(&checkout, "NO_1").await["settledBy"], "notification");
        gateway.release();
        let paid = paying.await.expect("an answer");
        assert_eq!((paid.text_at("/status"), paid.text_at("/settledBy")), ("AUTHORIZED".into(), "notification".into()));
        assert_eq!(events(&db, "NO_1").await, ["payment.authorized"]);
        vault.finish(&[&pan]).await;
    }

    /// A notification that cannot be trusted, while the payment is being made: the gateway is asked, and
    /// what it does not know yet is neither repeated nor cancelled beside its sender.
    async fn a_sender_is_not_disturbed(db: Database) {
        let (mut vault, gateway) = start_scripted(&db).await;
        // The sender waits for as long as the story takes.
        vault.config.gateway[0].timeout_ms = 50_000;
        vault.restart().await;
        gateway.on(|call| match call.path.as_str() {
            PAY => Reply::Held(Box::new(Reply::Signed(paid_json(call).to_string()))),
            _ => not_exist(),
        });
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let body = by_reference("ND_1", "30000", &checkout.card(&pan).await);
        let paying = tokio::spawn({
            let checkout = checkout.clone();
            async move { checkout.post("/v1/payments", &body).await.expect(200) }
        });
        let call = gateway.wait_for_pays(1).await.remove(0);
        let mut notice = paid_json(&call);
        notice["notifyType"] = json!("PAYMENT_RESULT");
        notice["paymentAmount"]["value"] = json!("1");
        Posted::new(notice.to_string()).send(&vault).await.expect(200);
        let asked = || gateway.calls().iter().filter(|call| call.path == INQUIRY).count();
        eventually("the gateway to be asked", || async { (asked() > 1).then_some(()) }).await;
        // What would follow the first inquiry comes before the second.
        gateway.release();
        let paid = paying.await.expect("an answer");
        assert_eq!((paid.text_at("/status"), paid.text_at("/settledBy")), ("AUTHORIZED".into(), "pay".into()));
        let others: Vec<_> = gateway.calls().into_iter().filter(|call| call.path != PAY && call.path != INQUIRY).collect();
        assert_eq!((gateway.pays().len(), others.len()), (1, 0), "{others:?}");
        assert!(paid.json()["cancel"].is_null(), "{}", paid.text);
        vault.finish(&[&pan]).await;
    }

    /// What was told while the vault or the sandbox was away is told again, and settles the payment.
    async fn a_restart_between_loses_nothing(db: Database) {
        let mut vault = start(&db).await;
        let checkout = vault.client("checkout");
        let (first, second) = (page(&checkout, &hosted("NR_1")).await, page(&checkout, &hosted("NR_2")).await);
        vault.stop().await;
        checkout.visit(&format!("{first}/approve")).await;
        checkout.visit(&format!("{second}/decline")).await;
        for id in ["NR_1", "NR_2"] {
            eventually("a sending in vain", || async { (!sent(&vault, id).is_empty()).then_some(()) }).await;
            assert!(sent(&vault, id).iter().all(|call| call.answer == "(no answer)"), "{:?}", sent(&vault, id));
        }
        vault.restart_sandbox().await;
        vault.restart().await;
        let checkout = vault.client("checkout");
        for (id, status) in [("NR_1", "AUTHORIZED"), ("NR_2", "FAILED")] {
            let now = settled(&checkout, id, status).await;
            assert_eq!(now["settledBy"], "notification", "{now}");
        }
        eventually("the capture", || async {
            (events(&db, "NR_1").await == ["capture.succeeded", "payment.authorized", "payment.processing"]).then_some(())
        })
        .await;
        assert_eq!(events(&db, "NR_2").await, ["payment.failed", "payment.processing"]);
        vault.finish(&[]).await;
    }

    /// The path that reaches the listener may be another one than the gateway calls and signs; each of
    /// the two alone is not enough.
    async fn a_proxy_may_rewrite_the_path(db: Database) {
        let mut vault = TestVault::start_notified(&db, &[]).await;
        let notify = vault.config.notify.as_mut().expect("a section");
        notify.public_url = "https://shop.example.com/hooks/antom?tenant=7".to_owned();
        notify.path = Some("/internal".to_owned());
        vault.restart().await;
        let checkout = vault.client("checkout");
        page(&checkout, &hosted("NX_1")).await;
        let calls = vault.sandbox.recent_calls();
        let request: Value = serde_json::from_str(&calls.last().expect("a call").request).expect("JSON");
        assert_eq!(request["paymentNotifyUrl"], "https://shop.example.com/hooks/antom?tenant=7");
        let failed = json!({
            "notifyType": "PAYMENT_RESULT", "paymentRequestId": "NX_1",
            "result": { "resultCode": "DO_NOT_HONOR", "resultStatus": "F", "resultMessage": "" },
        });
        let post = |called, signed| {
            let mut posted = Posted::new(failed.to_string());
            posted.path = called;
            posted.sign = Sign::Path(signed);
            posted
        };
        for (called, signed, status) in [
            ("/internal", "/internal", 401),
            ("/internal", "/hooks/antom", 401),
            ("/hooks/antom?tenant=7", "/hooks/antom?tenant=7", 404),
            ("/antom/notify", "/hooks/antom?tenant=7", 404),
            ("/internal?tenant=7", "/hooks/antom?tenant=7", 404),
        ] {
            post(called, signed).send(&vault).await.expect(status);
        }
        assert_eq!(shown(&checkout, "NX_1").await["status"], "PROCESSING");
        post("/internal", "/hooks/antom?tenant=7").send(&vault).await.expect(200);
        assert_eq!(shown(&checkout, "NX_1").await["status"], "FAILED");
        vault.finish(&[]).await;
    }

    /// A hosted page: the card that its notification tells is a card of the vault's, which can be paid with
    /// by the buyer and by the merchant. Antom's token of it is nowhere in the clear.
    async fn a_card_comes_by_notification(db: Database) {
        let vault = start(&db).await;
        let (checkout, subscriptions) = (vault.client("checkout"), vault.client("subscriptions"));
        let credential = json!({
            "initiator": "CUSTOMER",
            "agreement": {
                "type": "UNSCHEDULED", "consent": { "acceptedAt": "2026-01-01T00:00:00Z", "textVersion": "v1" },
            },
        });
        let mut body: Value = serde_json::from_str(&hosted("NH_1")).expect("JSON");
        body["storedCredential"] = credential;
        let page = page(&checkout, &body.to_string()).await;
        checkout.visit(&format!("{page}/approve")).await;
        let paid = settled(&checkout, "NH_1", "AUTHORIZED").await;
        assert_eq!(paid["settledBy"], "notification");
        let token = vault.sandbox.ledger().iter().find_map(|entry| entry.card_token.clone()).expect("a token");
        let card = paid["paymentResultInfo"]["cardToken"].as_str().unwrap_or_default().to_owned();
        assert!(card.starts_with("card_"), "{paid}");
        assert!(!paid.to_string().contains(&token));
        let agreement = paid["agreementId"].as_str().expect("an agreement").to_owned();
        let state = checkout.get(&format!("/v1/agreements/{agreement}")).await.expect(200).json();
        assert_eq!((&state["state"], &state["cardId"]), (&json!("ACTIVE"), &json!(card)), "{state}");
        checkout.get(&format!("/v1/cards/{card}")).await.expect(200);
        // The feed names it where it tells of the payment and of the agreement.
        for (kind, object) in [("payment.authorized", "NH_1"), ("agreement.active", agreement.as_str())] {
            let told = format!("SELECT body FROM events WHERE kind = '{kind}' AND object_id = '{object}'");
            let told = sql::rows(&db, &told).await.concat();
            let [Some(told)] = told.as_slice() else { panic!("{kind}: {told:?}") };
            assert_eq!(serde_json::from_str::<Value>(told).expect("JSON")["cardId"], card, "{kind}: {told}");
        }

        let mut later: Value = serde_json::from_str(&by_reference("NH_2", "30000", &card)).expect("JSON");
        later["storedCredential"] = json!({ "initiator": "CUSTOMER", "agreementId": agreement });
        let metadata = later["paymentMethod"]["paymentMethodMetaData"].as_object_mut().expect("an object");
        metadata.remove("isCardOnFile");
        let paid = checkout.post("/v1/payments", &later.to_string()).await.expect(200);
        assert_eq!((paid.text_at("/status"), paid.text_at("/cardId")), ("AUTHORIZED".into(), card.clone()), "{}", paid.text);
        let mut charge: Value = serde_json::from_str(&by_reference("NH_3", "30000", &card)).expect("JSON");
        charge["storedCredential"] = json!({ "initiator": "MERCHANT", "agreementId": agreement });
        charge["env"].as_object_mut().expect("an object").remove("browserInfo");
        charge["paymentMethod"].as_object_mut().expect("an object").remove("paymentMethodMetaData");
        let paid = subscriptions.post("/v1/payments", &charge.to_string()).await.expect(200);
        assert_eq!(paid.text_at("/status"), "AUTHORIZED", "{}", paid.text);
        assert_eq!((vault.charges("NH_2"), vault.charges("NH_3")), (1, 1));
        // A second telling makes no second card.
        let asked = checkout.get("/v1/payments/NH_1?refresh=true").await.expect(200).json();
        assert_eq!(asked["paymentResultInfo"]["cardToken"], card, "{asked}");
        let cards = checkout.get("/v1/cards").await.expect(200).json();
        assert_eq!(cards["data"].as_array().map(Vec::len), Some(1), "{cards}");
        assert_eq!(events(&db, &card).await.iter().filter(|kind| *kind == "card.stored").count(), 1);
        vault.finish(&[&token]).await;
    }

    /// What was kept aside goes after 30 days and not before. A dispute that was told is remembered: sent
    /// again after that time it is no news.
    async fn what_is_kept_aside_goes_in_its_time(db: Database) {
        let mut vault = TestVault::start_notified(&db, &[]).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        checkout.post("/v1/payments", &by_reference("NT_1", "30000", &card)).await.expect(200);
        let notice = |kind: &str, id: &str| {
            let result = json!({ "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "" });
            Posted::new(
                json!({ "notifyType": kind, "paymentRequestId": id, "disputeId": "D_1", "result": result }).to_string(),
            )
        };
        let disputed = notice("DISPUTE_CREATED", "NT_1");
        // Of something unknown, of an unknown kind, and a dispute; and one that is older than all.
        for posted in [notice("PAYMENT_RESULT", "NT_UNKNOWN"), notice("NEW", "NT_1"), disputed.clone()] {
            posted.send(&vault).await.expect(200);
        }
        let age = |days: i64, condition: &'static str| {
            let db = &db;
            async move {
                let back = days * 24 * 3_600_000 + 60_000;
                let statement = format!("UPDATE notices SET received_at = received_at - {back} WHERE {condition}");
                sql::execute(db, &statement).await
            }
        };
        let kept = || async {
            let rows = sql::rows(&db, "SELECT kind FROM notices ORDER BY kind").await;
            rows.into_iter().flatten().flatten().collect::<Vec<String>>()
        };
        assert_eq!(age(29, "1 = 1").await, 3);
        notice("OLDEST", "NT_UNKNOWN").send(&vault).await.expect(200);
        assert_eq!(age(30, "kind = 'other' AND payment_request_id IS NULL").await, 1);
        assert_eq!(kept().await, ["dispute.created", "other", "other", "payment"]);
        // Each start sweeps.
        vault.restart().await;
        eventually("the oldest to go", || async { (kept().await.len() == 3).then_some(()) }).await;
        assert_eq!(kept().await, ["dispute.created", "other", "payment"]);
        age(1, "1 = 1").await;
        vault.restart().await;
        eventually("the others to go", || async { (kept().await == ["dispute.created"]).then_some(()) }).await;
        disputed.send(&vault).await.expect(200);
        let events = events(&db, "NT_1").await;
        assert_eq!(events.iter().filter(|kind| *kind == "dispute.created").count(), 1, "{events:?}");
        vault.finish(&[&pan]).await;
    }

    /// A number in a notification of something unknown is not kept.
    async fn what_is_kept_aside_is_cleaned(db: Database) {
        let vault = TestVault::start_notified(&db, &[]).await;
        let pan = fresh_pan();
        let body = json!({
            "notifyType": "PAYMENT_RESULT", "paymentRequestId": "NK_1", "paymentId": "2",
            "result": { "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": pan },
            "paymentResultInfo": { "cardNo": pan, "cvv": "850", "cavv": "AJkBBkhgQQAAAE4gSEJydQAAAAA=", "cardToken": "TOKENOFNOBODY0001" },
        });
        Posted::new(body.to_string()).send(&vault).await.expect(200);
        let kept = sql::rows(&db, "SELECT kind FROM notices").await;
        assert_eq!(kept, [[Some("payment".to_owned())]]);
        vault.finish(&[&pan, "850", "AJkBBkhgQQAAAE4gSEJydQAAAAA=", "TOKENOFNOBODY0001"]).await;
    }
}

/// The database is away when the gateway tells: nothing is acknowledged until it is back and the effect is
/// durable; then all is applied, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_without_a_database() {
    let Some(binaries) = Binaries::find() else {
        return left_out("notifications::nothing_is_acknowledged_without_a_database");
    };
    let mut cluster = Cluster::start(&binaries, Durability::Full).await;
    let db = Database::in_cluster(&cluster).await;
    let vault = start(&db).await;
    let checkout = vault.client("checkout");
    let page = page(&checkout, &hosted("NA_1")).await;
    cluster.crash();
    checkout.visit(&format!("{page}/approve")).await;
    eventually("sendings in vain", || async { (sent(&vault, "NA_1").len() >= 3).then_some(()) }).await;
    for call in sent(&vault, "NA_1") {
        assert_eq!(call.answer, "(HTTP 503)");
    }
    // Those that are not ours are told so without a database.
    let mut forged = Posted::new("{}");
    forged.header = Header::Missing;
    forged.send(&vault).await.expect(401);
    cluster.launch().await;
    let now = settled(&checkout, "NA_1", "AUTHORIZED").await;
    assert_eq!(now["settledBy"], "notification", "{now}");
    let acknowledged = || sent(&vault, "NA_1").iter().filter(|call| is_acknowledged(call)).count();
    eventually("the acknowledgement", || async { (acknowledged() == 1).then_some(()) }).await;
    eventually("the capture", || async {
        (shown(&checkout, "NA_1").await["captures"][0]["status"] == "SUCCEEDED").then_some(())
    })
    .await;
    assert_eq!(events(&db, "NA_1").await, ["capture.succeeded", "payment.authorized", "payment.processing"]);
    vault.finish(&[]).await;
}
