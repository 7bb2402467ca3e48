//! One `paymentRequestId`, one charge: under concurrency, repeats, lost answers, callers that hang up,
//! restarts, and a database that goes away at the worst moment.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::payments::wait_for;
use super::support::cut::{Cut, Network};
use super::support::gateway::{PAY, Received, Reply, Scripted, not_exist, paid, paid_json, result};
use super::support::postgres::{Binaries, Cluster, Durability};
use super::support::vault::{
    Answer, Caller, METADATA, SAMPLE, SAMPLE_PAN, TestVault, by_reference, fresh_pan, sample_with, typed,
    with, without,
};
use super::support::{Database, Engine, eventually, leak, left_out};

const ID: &str = "PAY_20221114141714891";
const PATH: &str = "/v1/payments/PAY_20221114141714891";

/// The sample by reference: the same order, address and buyer, and the card's id in the card's place.
fn referenced(card: &str) -> String {
    let text = with(SAMPLE, "/paymentMethod/paymentMethodId", json!(card));
    ["cardNo", "cvv", "expiryMonth", "expiryYear", "cardholderName"]
        .iter()
        .fold(text, |text, name| without(&text, &format!("{METADATA}/{name}")))
}

fn inquiries(gateway: &Scripted) -> usize {
    gateway.calls().iter().filter(|call| call.path != PAY).count()
}

/// Lets the vault inquire a few times more.
async fn some_inquiries(gateway: &Scripted) {
    let before = inquiries(gateway);
    eventually("inquiries", || async { (inquiries(gateway) >= before + 4).then_some(()) }).await;
}

both_engines! {
    /// Twenty callers at once with one body: one charge, one call, and no answer that contradicts it.
    async fn twenty_at_once_are_one_payment(db: Database) {
        let vault = TestVault::start(&db).await;
        let mut calls = JoinSet::new();
        for _ in 0..20 {
            let checkout = vault.client("checkout");
            calls.spawn(async move { checkout.post("/v1/payments", SAMPLE).await.expect(200) });
        }
        let statuses: Vec<String> =
            calls.join_all().await.iter().map(|answer| answer.text_at("/status")).collect();
        assert!(statuses.iter().any(|status| status == "AUTHORIZED"), "{statuses:?}");
        assert!(statuses.iter().all(|status| status == "AUTHORIZED" || status == "UNKNOWN"), "{statuses:?}");
        assert_eq!((vault.calls("/pay", ID), vault.charges(ID)), (1, 1));
        let checkout = vault.client("checkout");
        assert_eq!(checkout.get(PATH).await.text_at("/status"), "AUTHORIZED");
        // However many raced to make the card, there is one.
        let cards = checkout.get("/v1/cards?referenceBuyerId=test12345678").await.expect(200).json();
        assert_eq!(cards["data"].as_array().or(cards["cards"].as_array()).map(Vec::len), Some(1), "{cards}");
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// Many callers at once with one id and different meanings: one of them pays, the others are told.
    async fn one_of_many_meanings_wins(db: Database) {
        let vault = TestVault::start(&db).await;
        let mut calls = JoinSet::new();
        for amount in 1..=12 {
            let checkout = vault.client(if amount % 3 == 0 { "rival" } else { "checkout" });
            let body = sample_with("PAY_RACE", &format!("{amount}00"));
            calls.spawn(async move { checkout.post("/v1/payments", &body).await });
        }
        let mut won = 0;
        for answer in calls.join_all().await {
            match answer.status {
                200 => won += 1,
                _ => drop(answer.expect_problem(409, "request_id_reused")),
            }
        }
        assert_eq!((won, vault.calls("/pay", "PAY_RACE"), vault.charges("PAY_RACE")), (1, 1, 1));
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// An id that is in use takes nothing but the same meaning: another merchant, amount, currency, card,
    /// order or flag is told so; another device, CVV, cryptogram or way to name the card is the same.
    async fn an_id_has_one_meaning(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let first = checkout.post("/v1/payments", SAMPLE).await.expect(200);
        let card = first.text_at("/cardId");
        let other_pan = fresh_pan();
        let other_card = checkout.card(&other_pan).await;
        for (what, body) in [
            ("amount", sample_with(ID, "30001")),
            ("currency", with(SAMPLE, "/paymentAmount/currency", json!("USD"))),
            ("card", SAMPLE.replace(SAMPLE_PAN, &other_pan)),
            ("referenced card", referenced(&other_card)),
            ("no card", without(&with(SAMPLE, "/paymentMethod/paymentMethodMetaData", json!({})), "/env")),
            ("order", with(SAMPLE, "/order/referenceOrderId", json!("ORDER_2"))),
            ("redirect", with(SAMPLE, "/paymentRedirectUrl", json!("https://elsewhere.example"))),
            ("new member", with(SAMPLE, "/newMember", json!(1))),
            ("3DS", with(SAMPLE, &format!("{METADATA}/is3DSAuthentication"), json!(true))),
            ("strategy", without(SAMPLE, "/settlementStrategy")),
        ] {
            let refused = checkout.post("/v1/payments", &body).await;
            assert_eq!(refused.status, 409, "{what}: {}", refused.text);
            refused.expect_problem(409, "request_id_reused");
        }
        vault.client("rival").post("/v1/payments", SAMPLE).await.expect_problem(409, "request_id_reused");
        vault.client("rival").get(PATH).await.expect_problem(404, "not_found");
        for (what, body) in [
            ("itself", SAMPLE.to_owned()),
            ("order of members", serde_json::from_str::<Value>(SAMPLE).expect("JSON").to_string()),
            ("device", with(SAMPLE, "/env/clientIp", json!("10.0.0.1"))),
            ("no device", without(SAMPLE, "/env")),
            ("CVV", with(SAMPLE, &format!("{METADATA}/cvv"), json!("123"))),
            ("no CVV", without(SAMPLE, &format!("{METADATA}/cvv"))),
            ("spaced number", SAMPLE.replace(SAMPLE_PAN, "4117 3478 0615 6383")),
            ("reference", referenced(&card)),
            ("reference, CVV", with(&referenced(&card), &format!("{METADATA}/cvv"), json!("850"))),
            ("reference, OMIT", with(&referenced(&card), &format!("{METADATA}/cvv"), json!("OMIT"))),
        ] {
            let known = checkout.post("/v1/payments", &body).await;
            assert_eq!(known.status, 200, "{what}: {}", known.text);
            assert_eq!(known.json(), first.json(), "{what}");
        }
        assert_eq!((vault.calls("/pay", ID), vault.charges(ID)), (1, 1));
        vault.finish(&[SAMPLE_PAN, &other_pan, "850"]).await;
    }

    /// A card that was paid with inline and with nothing said but itself is the same card by reference
    /// with nothing said at all.
    async fn an_empty_card_map_is_none(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let bare = ["isCardOnFile", "enableAuthenticationUpgrade", "is3DSAuthentication", "billingAddress"]
            .iter()
            .fold(SAMPLE.to_owned(), |text, name| without(&text, &format!("{METADATA}/{name}")));
        let first = checkout.post("/v1/payments", &bare).await.expect(200);
        let said = with(&bare, &format!("{METADATA}/isCardOnFile"), json!(false));
        assert_eq!(checkout.post("/v1/payments", &said).await.expect(200).json(), first.json());
        let named = with(&bare, "/paymentMethod/paymentMethodId", json!(first.text_at("/cardId")));
        let named = without(&named, METADATA);
        assert_eq!(checkout.post("/v1/payments", &named).await.expect(200).json(), first.json());
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// While the first call is under way a repeat answers at once with what is known, and sends nothing.
    async fn a_repeat_does_not_wait(db: Database) {
        let (mut vault, gateway) = TestVault::start_scripted(&db).await;
        // The held call must not time out while the repeats are made.
        vault.config.gateway.iter_mut().for_each(|gateway| gateway.timeout_ms = 60_000);
        vault.restart().await;
        gateway.on(|call| Reply::Held(Box::new(paid(call))));
        let checkout = vault.client("checkout");
        let first = tokio::spawn({
            let checkout = checkout.clone();
            async move { checkout.post("/v1/payments", SAMPLE).await.expect(200) }
        });
        gateway.wait_for_pays(1).await;
        for _ in 0..3 {
            let repeat = checkout.post("/v1/payments", SAMPLE).await.expect(200);
            assert_eq!(repeat.text_at("/status"), "UNKNOWN");
            assert_eq!(checkout.get(PATH).await.text_at("/status"), "UNKNOWN");
        }
        checkout.post("/v1/payments", &sample_with(ID, "1")).await.expect_problem(409, "request_id_reused");
        assert_eq!(gateway.calls().len(), 1);
        gateway.release();
        assert_eq!(first.await.expect("an answer").text_at("/status"), "AUTHORIZED");
        assert_eq!(checkout.post("/v1/payments", SAMPLE).await.text_at("/status"), "AUTHORIZED");
        assert_eq!(gateway.calls().len(), 1);
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// A caller who hangs up changes nothing: the payment goes through and is recorded, also where the
    /// vault is told to stop meanwhile.
    async fn a_caller_may_hang_up(db: Database) {
        let (mut vault, gateway) = TestVault::start_scripted(&db).await;
        vault.config.gateway.iter_mut().for_each(|gateway| gateway.timeout_ms = 60_000);
        vault.restart().await;
        gateway.on(|call| Reply::Held(Box::new(paid(call))));
        let checkout = vault.client("checkout");
        let first = tokio::spawn(async move { checkout.post("/v1/payments", SAMPLE).await });
        gateway.wait_for_pays(1).await;
        first.abort();
        let _ = first.await;
        let stopping = async { vault.restart().await };
        let releasing = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            gateway.release();
        };
        tokio::join!(stopping, releasing);
        let known = vault.client("checkout").get(PATH).await.expect(200);
        assert_eq!((known.text_at("/status"), known.text_at("/settledBy")), ("AUTHORIZED".into(), "pay".into()));
        assert_eq!(gateway.calls().len(), 1);
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// The vault is killed while the gateway works on the payment: the row was there before, so that the
    /// next process knows the id, sends nothing, and learns the outcome.
    async fn a_killed_vault_sends_nothing_twice(db: Database) {
        let (mut vault, gateway) = TestVault::start_scripted(&db).await;
        gateway.on(|call| if call.path == PAY { Reply::Held(Box::new(paid(call))) } else { not_exist() });
        let body = without(SAMPLE, &format!("{METADATA}/isCardOnFile"));
        let mut program = vault.start_program().await;
        let checkout = vault.client("checkout");
        let first = tokio::spawn({
            let body = body.clone().into_bytes();
            async move {
                let headers = [("content-type", "application/json")];
                checkout.try_call("POST", "/v1/payments", &headers, Some(body)).await
            }
        });
        gateway.wait_for_pays(1).await;
        program.kill().expect("killed");
        program.wait().expect("killed");
        assert!(first.await.expect("a task").is_err());
        db.assert_clean(&[SAMPLE_PAN, "850"]);
        let log = std::fs::read(vault.program_log()).expect("a log");
        leak::assert_clean(&[SAMPLE_PAN, "850"], &log, "the program's log");
        vault.restart().await;
        let checkout = vault.client("checkout");
        for _ in 0..2 {
            assert_eq!(checkout.post("/v1/payments", &body).await.expect(200).text_at("/status"), "UNKNOWN");
            let asked = checkout.get(&format!("{PATH}?refresh=true")).await.expect(200);
            assert_eq!(asked.text_at("/status"), "UNKNOWN");
        }
        gateway.on(paid);
        let asked = checkout.get(&format!("{PATH}?refresh=true")).await.expect(200);
        assert_eq!(asked.text_at("/status"), "AUTHORIZED");
        assert_eq!(gateway.pays().len(), 1);
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// A payment that the gateway works on is never repeated by the vault itself.
    async fn a_payment_in_process_is_not_repeated(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        gateway.on(|call| if call.path == PAY { result("U", "PAYMENT_IN_PROCESS") } else { not_exist() });
        let checkout = vault.client("checkout");
        let plain = without(SAMPLE, &format!("{METADATA}/cvv"));
        assert_eq!(checkout.post("/v1/payments", &plain).await.expect(200).text_at("/status"), "PROCESSING");
        for _ in 0..3 {
            let asked = checkout.get(&format!("{PATH}?refresh=true")).await.expect(200);
            assert_eq!(asked.text_at("/status"), "PROCESSING");
            assert_eq!(checkout.post("/v1/payments", &plain).await.text_at("/status"), "PROCESSING");
        }
        assert_eq!(gateway.pays().len(), 1);
        gateway.on(paid);
        let asked = checkout.get(&format!("{PATH}?refresh=true")).await.expect(200);
        assert_eq!(asked.text_at("/status"), "AUTHORIZED");
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// A request that the gateway says it never had is repeated by the process that sent it: the same id,
    /// the same bytes, CVV and cryptogram included, each signed anew.
    async fn a_lost_request_is_repeated_byte_for_byte(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let checkout = vault.client("checkout");
        let cryptogram = json!({ "eci": "05", "cavv": "QUJDREVGR0hJSktMTU5PUFFSU1Q=", "threeDSVersion": "2.2.0" });
        let with_mpi = with(SAMPLE, &format!("{METADATA}/mpiData"), cryptogram);
        for (id, body) in [
            ("PAY_CVV", with_mpi.clone()),
            ("PAY_PLAIN", without(SAMPLE, &format!("{METADATA}/cvv"))),
        ] {
            let before = gateway.pays().len();
            let known = std::sync::atomic::AtomicBool::new(false);
            gateway.on(move |call: &Received| {
                use std::sync::atomic::Ordering::SeqCst;
                match (call.path == PAY, call.nth == before) {
                    (true, true) => Reply::Closed,
                    (true, false) => {
                        known.store(true, SeqCst);
                        paid(call)
                    }
                    (false, _) if known.load(SeqCst) => paid(call),
                    (false, _) => not_exist(),
                }
            });
            let body = body.replace(ID, id);
            assert_eq!(checkout.post("/v1/payments", &body).await.expect(200).text_at("/status"), "UNKNOWN");
            wait_for(&checkout, id, "AUTHORIZED").await;
            let pays = gateway.pays().split_off(before);
            assert_eq!(pays.len(), 2);
            assert!(pays[0].body == pays[1].body && pays.iter().all(|pay| pay.signed));
        }
        let first = &gateway.pays()[0];
        assert_eq!(first.card("cvv"), "850");
        assert_eq!(first.card("mpiData")["cavv"], "QUJDREVGR0hJSktMTU5PUFFSU1Q=");
        vault.finish(&[SAMPLE_PAN, "850", "QUJDREVGR0hJSktMTU5PUFFSU1Q="]).await;
    }

    /// A card that is erased while its payment is unclear is not sent again; the payment is inquired.
    async fn an_erased_cards_payment_is_inquired(db: Database) {
        let (mut vault, gateway) = TestVault::start_scripted(&db).await;
        vault.policy.inquiry_pauses = vec![Duration::from_millis(500)];
        vault.restart().await;
        let checkout = vault.client("checkout");
        gateway.on(|call| if call.path == PAY { Reply::Closed } else { not_exist() });
        let told = checkout.post("/v1/payments", SAMPLE).await.expect(200);
        checkout.delete(&format!("/v1/cards/{}", told.text_at("/cardId"))).await.expect(204);
        let before = gateway.pays().len();
        some_inquiries(&gateway).await;
        assert_eq!(gateway.pays().len(), before);
        gateway.on(paid);
        wait_for(&checkout, ID, "AUTHORIZED").await;
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// After a restart nobody has the CVV: the payment is inquired, and never sent again.
    async fn after_a_restart_a_cvv_payment_is_only_inquired(db: Database) {
        let (mut vault, gateway) = TestVault::start_scripted(&db).await;
        vault.policy.inquiry_pauses = vec![Duration::from_secs(3600)];
        vault.restart().await;
        gateway.on(|call| if call.path == PAY { Reply::Closed } else { not_exist() });
        let told = vault.client("checkout").post("/v1/payments", SAMPLE).await.expect(200);
        assert_eq!(told.text_at("/status"), "UNKNOWN");
        vault.policy.inquiry_pauses = vec![Duration::from_millis(100)];
        vault.restart().await;
        let checkout = vault.client("checkout");
        for _ in 0..3 {
            assert_eq!(checkout.post("/v1/payments", SAMPLE).await.expect(200).text_at("/status"), "UNKNOWN");
            let asked = checkout.get(&format!("{PATH}?refresh=true")).await.expect(200);
            assert_eq!(asked.text_at("/status"), "UNKNOWN");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(gateway.pays().len(), 1);
        gateway.on(paid);
        let asked = checkout.get(&format!("{PATH}?refresh=true")).await.expect(200);
        assert_eq!(asked.text_at("/status"), "AUTHORIZED");
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// Any signed answer ends the CVV, also one that settles nothing or speaks of another payment: such a
    /// payment is not sent again. One without a CVV is.
    async fn a_signed_answer_ends_the_cvv(db: Database) {
        let (vault, gateway) = TestVault::start_scripted(&db).await;
        let checkout = vault.client("checkout");
        type Answer = fn(&Received) -> Reply;
        let answers: [(&str, Answer); 4] = [
            ("PAY_UNCLEAR", |_| result("U", "UNKNOWN_EXCEPTION")),
            ("PAY_REPEATED", |_| result("F", "REPEAT_REQ_INCONSISTENT")),
            ("PAY_OTHER", |call| {
                Reply::Signed(with(&paid_json(call).to_string(), "/paymentRequestId", json!("PAY_ELSE")))
            }),
            ("PAY_NO_JSON", |_| Reply::Signed("<html>".to_owned())),
        ];
        for (id, answer) in answers {
            gateway.on(move |call| if call.path == PAY { answer(call) } else { not_exist() });
            let before = gateway.pays().len();
            let told = checkout.post("/v1/payments", &SAMPLE.replace(ID, id)).await.expect(200);
            assert_eq!(told.text_at("/status"), "UNKNOWN", "{id}");
            some_inquiries(&gateway).await;
            assert_eq!(gateway.pays().len(), before + 1, "{id}");
            gateway.on(paid);
            wait_for(&checkout, id, "AUTHORIZED").await;
        }
        let first = gateway.pays().len();
        gateway.on(move |call| match (call.path == PAY, call.nth == first) {
            (true, true) => result("U", "REQUEST_TRAFFIC_EXCEED_LIMIT"),
            (true, false) => paid(call),
            (false, _) => not_exist(),
        });
        let plain = without(&SAMPLE.replace(ID, "PAY_PLAIN"), &format!("{METADATA}/cvv"));
        assert_eq!(checkout.post("/v1/payments", &plain).await.expect(200).text_at("/status"), "UNKNOWN");
        wait_for(&checkout, "PAY_PLAIN", "AUTHORIZED").await;
        let pays = gateway.pays().split_off(first);
        assert!(pays.len() == 2 && pays[0].body == pays[1].body);
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }

    /// When its time is over an attempt is given up: nothing is sent after it.
    async fn an_attempt_ends_at_its_deadline(db: Database) {
        let (mut vault, gateway) = TestVault::start_scripted(&db).await;
        vault.policy.attempt_deadline = Duration::from_millis(500);
        vault.restart().await;
        gateway.on(|call| if call.path == PAY { Reply::Closed } else { result("U", "UNKNOWN_EXCEPTION") });
        let checkout = vault.client("checkout");
        assert_eq!(checkout.post("/v1/payments", SAMPLE).await.expect(200).text_at("/status"), "UNKNOWN");
        let mut seen = 0;
        eventually("the attempt to end", || {
            let now = gateway.calls().len();
            let quiet = std::mem::replace(&mut seen, now) == now && now > 1;
            async move {
                tokio::time::sleep(Duration::from_millis(1_000)).await;
                quiet.then_some(())
            }
        })
        .await;
        gateway.on(|call| if call.path == PAY { paid(call) } else { not_exist() });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(checkout.post("/v1/payments", SAMPLE).await.expect(200).text_at("/status"), "UNKNOWN");
        assert_eq!(gateway.pays().len(), 1);
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }
}

/// The database dies after the request was sent: the caller is told that the outcome is not known, the id
/// may be repeated, and when the database is back the answer that came meanwhile is recorded, without
/// another word to the gateway, however long that took.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_lost_after_sending_loses_no_outcome() {
    let Some(binaries) = Binaries::find() else {
        return left_out("a_database_lost_after_sending_loses_no_outcome");
    };
    let mut cluster = Cluster::start(&binaries, Durability::Fast).await;
    for (id, reply, status) in [("PAY_S", "S", "AUTHORIZED"), ("PAY_F", "F", "FAILED")] {
        let db = Database::at(cluster.fresh_database().await, Engine::Postgres, cluster.folder.clone());
        let (mut vault, gateway) = TestVault::start_scripted(&db).await;
        vault.config.gateway.iter_mut().for_each(|gateway| gateway.timeout_ms = 60_000);
        vault.policy.attempt_deadline = Duration::from_millis(1_000);
        vault.restart().await;
        gateway.on(move |call| {
            let answer = if reply == "S" { paid(call) } else { result("F", "DO_NOT_HONOR") };
            if call.path == PAY { Reply::Held(Box::new(answer)) } else { not_exist() }
        });
        let checkout = vault.client("checkout");
        let body = SAMPLE.replace(ID, id);
        let first = tokio::spawn({
            let (checkout, body) = (checkout.clone(), body.clone());
            async move { checkout.post("/v1/payments", &body).await }
        });
        gateway.wait_for_pays(1).await;
        cluster.crash();
        gateway.release();
        let lost = first.await.expect("an answer").expect_problem(503, "outcome_not_known");
        assert!(lost.headers.contains_key("retry-after"));
        checkout.post("/v1/payments", &body).await.expect_problem(503, "unavailable");
        // Longer than the attempt may last.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        cluster.launch().await;
        wait_for_any(&checkout, id, status).await;
        let known = checkout.post("/v1/payments", &body).await.expect(200);
        assert_eq!((known.text_at("/status"), known.text_at("/settledBy")), (status.into(), "pay".into()));
        assert_eq!(gateway.pays().len(), 1);
        vault.finish(&[SAMPLE_PAN, "850"]).await;
    }
}

/// The connection breaks while a payment, a refund or a cancel is committed, and the database stays away: nobody can
/// know whether it was recorded, and if it was, it is sent later. The caller is not told that nothing was sent; the same
/// id, repeated, is the same payment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_been_recorded_is_not_called_unsent() {
    let Some(binaries) = Binaries::find() else {
        return left_out("what_may_have_been_recorded_is_not_called_unsent");
    };
    let cluster = Cluster::start(&binaries, Durability::Fast).await;
    let db = Database::at(cluster.fresh_database().await, Engine::Postgres, cluster.folder.clone());
    let network = Network::start(cluster.port()).await;
    let through = db.url.replace(&format!(":{}/", cluster.port()), &format!(":{}/", network.address.port()));
    let mut vault = TestVault::start(&Database::at(through, Engine::Postgres, db.files.clone())).await;
    vault.policy.attempt_deadline = Duration::from_millis(1_000);
    vault.policy.look_lease = Duration::from_secs(3);
    vault.restart().await;
    let checkout = vault.client("checkout");
    let pan = fresh_pan();
    let card = checkout.card(&pan).await;
    let credential = json!({ "initiator": "CUSTOMER", "agreement": { "type": "CARD_ON_FILE",
        "consent": { "acceptedAt": "2026-01-01T00:00:00Z", "textVersion": "v1" } } });
    let mut count = 0;
    for cut in [Cut::Before, Cut::During, Cut::After] {
        // Alone in its statement; in a transaction with its agreement.
        for opens in [false, true] {
            count += 1;
            let id = format!("UNSENT_{count}");
            let body = by_reference(&id, "100", &card);
            let body = if opens { with(&body, "/storedCredential", credential.clone()) } else { body };
            let body = without(&body, &format!("{METADATA}/isCardOnFile"));
            network.arm_for_good(cut, "INSERT payments");
            until_cut(&network, &checkout, "/v1/payments", &body)
                .await
                .expect_problem(503, "outcome_not_known");
            assert_eq!(vault.charges(&id), 0, "{cut:?}");
            network.mend();
            // Whoever looks after it may send it meanwhile; or the repeat is the first to.
            let again = eventually("the database to be back", || async {
                let again = checkout.post("/v1/payments", &body).await;
                (again.status != 503).then_some(again)
            })
            .await;
            again.expect(200);
            wait_for(&checkout, &id, "AUTHORIZED").await;
            assert_eq!(vault.charges(&id), 1, "{cut:?}");
        }
    }
    for (cut, what, path, body) in [
        (
            Cut::After,
            "INSERT operations",
            "/v1/payments/UNSENT_1/refunds",
            super::operations::refund("UNSENT_R", "40"),
        ),
        (Cut::After, "UPDATE payments", "/v1/payments/UNSENT_3/cancel", "{}".to_owned()),
    ] {
        network.arm_for_good(cut, what);
        until_cut(&network, &checkout, path, &body).await.expect_problem(503, "outcome_not_known");
        network.mend();
    }
    eventually("the refund to be sent", || async {
        let shown = checkout.get("/v1/payments/UNSENT_1/refunds/UNSENT_R").await;
        (shown.status == 200 && shown.text_at("/status") == "SUCCEEDED").then_some(())
    })
    .await;
    wait_for(&checkout, "UNSENT_3", "CANCELLED").await;
    vault.finish(&[&pan]).await;
}

/// What a call is told at whose commit the connection breaks. Connections that the cut before has broken may be found
/// first, with nothing recorded.
async fn until_cut(network: &Network, caller: &Caller, path: &str, body: &str) -> Answer {
    eventually("the cut", || async {
        let told = caller.post(path, body).await;
        match network.is_armed() {
            true => {
                told.expect_problem(503, "unavailable");
                None
            }
            false => Some(told),
        }
    })
    .await
}

/// As [`wait_for`], where the database may still be starting.
async fn wait_for_any(caller: &Caller, id: &str, status: &str) {
    eventually(&format!("{id} to be {status}"), || async {
        let told = caller.get(&format!("/v1/payments/{id}")).await;
        (told.status == 200 && told.text_at("/status") == status).then_some(())
    })
    .await
}

/// A SQLite file that another program has locked for too long refuses the outcome, not the reading: the
/// caller is told, and the outcome is recorded when the lock is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_file_loses_no_outcome() {
    use sqlx::{Connection, SqliteConnection};
    let db = Database::sqlite();
    let (mut vault, gateway) = TestVault::start_scripted(&db).await;
    vault.config.gateway.iter_mut().for_each(|gateway| gateway.timeout_ms = 60_000);
    vault.restart().await;
    gateway.on(|call| if call.path == PAY { Reply::Held(Box::new(paid(call))) } else { not_exist() });
    let checkout = vault.client("checkout");
    let first = tokio::spawn({
        let checkout = checkout.clone();
        async move { checkout.post("/v1/payments", SAMPLE).await }
    });
    gateway.wait_for_pays(1).await;
    let mut other = SqliteConnection::connect(&db.url).await.expect("the file");
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.expect("the lock");
    gateway.release();
    first.await.expect("an answer").expect_problem(503, "outcome_not_known");
    assert_eq!(checkout.post("/v1/payments", SAMPLE).await.expect(200).text_at("/status"), "UNKNOWN");
    let refused = checkout.post("/v1/payments", &typed("PAY_2", "100", SAMPLE_PAN, "850")).await;
    refused.expect_problem(503, "unavailable");
    sqlx::query("ROLLBACK").execute(&mut other).await.expect("the lock");
    wait_for(&checkout, ID, "AUTHORIZED").await;
    assert_eq!(gateway.pays().len(), 1);
    checkout.get("/v1/payments/PAY_2").await.expect_problem(404, "not_found");
    vault.finish(&[SAMPLE_PAN, "850"]).await;
}
