//! What time brings about by itself, told in the feed: agreements that end and cards that are about to.

use std::time::Duration;

use cardvault::base::clock::{Clock, Millis, SystemClock};
use serde_json::{Value, json};

use super::support::vault::{Caller, TestVault, by_reference, fresh_pan, with};
use super::support::{eventually, sql};

async fn events(caller: &Caller, kind: &str) -> Vec<Value> {
    let page = caller.get("/v1/events?limit=100").await.expect(200).json();
    let all = page["data"].as_array().expect("events").iter();
    all.filter(|event| event["type"] == kind).cloned().collect()
}

async fn agreement(checkout: &Caller, id: &str, card: &str, expires_at: Option<Millis>) -> String {
    let mut terms = json!({ "type": "SCHEDULED", "consent": { "acceptedAt": "2026-01-01T00:00:00Z", "textVersion": "v1" } });
    if let Some(at) = expires_at {
        terms["expiresAt"] = json!(at.rfc3339());
    }
    let mut request: Value = serde_json::from_str(&by_reference(id, "100", card)).expect("JSON");
    request["storedCredential"] = json!({ "initiator": "CUSTOMER", "agreement": terms });
    checkout.post("/v1/payments", &request.to_string()).await.expect(200).text_at("/agreementId")
}

both_engines! {
    /// An agreement ends with its time, is told to have, and is refused from that moment on, also before
    /// anybody has swept.
    async fn an_agreement_ends_with_its_time(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let end = SystemClock.now().plus(Duration::from_secs(2));
        let agreement = agreement(&checkout, "ENDS_1", &card, Some(end)).await;
        let path = format!("/v1/agreements/{agreement}");
        assert_eq!(checkout.get(&path).await.text_at("/state"), "ACTIVE");
        eventually("its end", || async { (SystemClock.now() > end).then_some(()) }).await;
        let mut request: Value = serde_json::from_str(&by_reference("ENDS_2", "100", &card)).expect("JSON");
        request["storedCredential"] = json!({ "initiator": "CUSTOMER", "agreementId": agreement });
        let refused = checkout.post("/v1/payments", &request.to_string()).await.expect_problem(422, "stored_credential_refused");
        assert!(["agreement_expired", "agreement_ended"].contains(&refused.text_at("/errors/0/code").as_str()));
        // Each start sweeps.
        vault.restart().await;
        let checkout = vault.client("checkout");
        let ended = eventually("the end to be told", || async { events(&checkout, "agreement.ended").await.pop() }).await;
        assert_eq!((&ended["data"]["agreementId"], &ended["data"]["endedReason"]), (&json!(agreement), &json!("expired")));
        assert_eq!(checkout.get(&path).await.text_at("/endedReason"), "expired");
        vault.finish(&[&pan]).await;
    }

    /// A card that does not open keeps nobody from being told of those after it.
    async fn a_broken_card_stops_no_notice(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let (pan, other) = (fresh_pan(), fresh_pan());
        let month = &SystemClock.now().rfc3339()[..7];
        let mut cards = [checkout.card(&pan).await, checkout.card(&other).await];
        cards.sort();
        let soon = json!({ "expiryMonth": &month[5..], "expiryYear": &month[2..4] }).to_string();
        for (n, card) in cards.iter().enumerate() {
            checkout.send("PATCH", &format!("/v1/cards/{card}"), &soon).await.expect(200);
            agreement(&checkout, &format!("BROKEN_{n}"), card, None).await;
        }
        vault.stop().await;
        let [first, second] = &cards;
        // Sealed for another card.
        let moved = format!("UPDATE cards SET details = (SELECT c.details FROM cards c WHERE c.card_id = '{second}') WHERE card_id = '{first}'");
        assert_eq!(sql::execute(&db, &moved).await, 1);
        // What was told before the vault was stopped is told again.
        sql::execute(&db, "UPDATE cards SET expiry_told = NULL").await;
        sql::execute(&db, "DELETE FROM events WHERE kind = 'card.expiring'").await;
        vault.restart().await;
        let checkout = vault.client("checkout");
        let told = eventually("the second card's expiry to be told", || async {
            events(&checkout, "card.expiring").await.pop()
        })
        .await;
        assert_eq!(told["data"]["cardId"], json!(second));
        vault.finish(&[&pan, &other]).await;
    }

    /// A card that an agreement uses is told to expire, once; one that no agreement uses is nobody's news.
    /// A change of its details is news too.
    async fn a_card_that_expires_is_told_once(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let (pan, other, idle) = (fresh_pan(), fresh_pan(), fresh_pan());
        let month = &SystemClock.now().rfc3339()[..7];
        let (card, later, alone) = (checkout.card(&pan).await, checkout.card(&other).await, checkout.card(&idle).await);
        let soon = json!({ "expiryMonth": &month[5..], "expiryYear": &month[2..4] }).to_string();
        for card in [&card, &alone] {
            checkout.send("PATCH", &format!("/v1/cards/{card}"), &soon).await.expect(200);
        }
        agreement(&checkout, "SOON_1", &card, None).await;
        agreement(&checkout, "SOON_2", &later, None).await;
        for _ in 0..2 {
            vault.restart().await;
            let checkout = vault.client("checkout");
            let told = eventually("the expiry to be told", || async {
                let told = events(&checkout, "card.expiring").await;
                (!told.is_empty()).then_some(told)
            })
            .await;
            assert_eq!(told.len(), 1, "{told:?}");
            assert_eq!((&told[0]["data"]["cardId"], &told[0]["data"]["expiresAfter"]), (&json!(card), &json!(month)));
        }
        let checkout = vault.client("checkout");
        assert!(events(&checkout, "card.updated").await.is_empty());
        let renewed = with(&soon, "/expiryYear", json!("39"));
        for card in [&card, &alone] {
            checkout.send("PATCH", &format!("/v1/cards/{card}"), &renewed).await.expect(200);
        }
        let updated = eventually("the change to be told", || async { events(&checkout, "card.updated").await.pop() }).await;
        assert_eq!(updated["data"]["cardId"], json!(card));
        vault.finish(&[&pan, &other, &idle]).await;
    }
}
