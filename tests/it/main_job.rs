//! The main job: the page's own samples, as they stand there.

use super::support::vault::{HOSTED, SAMPLE, SAMPLE_PAN, TestVault, by_reference, fresh_pan};

both_engines! {
    /// The server-to-server sample, byte for byte: tokenised, paid, answered with the card's reference.
    async fn the_servers_sample_pays_as_it_stands(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let paid = checkout.post("/v1/payments", SAMPLE).await.expect(200);
        assert_eq!(paid.text_at("/status"), "AUTHORIZED");
        let card_id = paid.text_at("/cardId");
        let card = checkout.get(&format!("/v1/cards/{card_id}")).await.expect(200);
        assert_eq!(card.text_at("/last4"), "6383");
        assert_eq!(vault.charges("PAY_20221114141714891"), 1);
        let again = checkout.post("/v1/payments", &by_reference("PAY_2", "100", &card_id)).await.expect(200);
        assert_eq!(again.text_at("/status"), "AUTHORIZED");
        vault.finish(&[SAMPLE_PAN]).await;
    }

    /// The hosted page's sample passes without a card and returns where to send the buyer.
    async fn the_hosted_sample_returns_the_redirect(db: Database) {
        let vault = TestVault::start(&db).await;
        let paid = vault.client("checkout").post("/v1/payments", HOSTED).await.expect(200);
        assert_eq!(paid.text_at("/status"), "PROCESSING");
        assert!(paid.text_at("/redirect/normalUrl").starts_with("https://"));
        assert!(paid.json()["cardId"].is_null());
        vault.finish(&[]).await;
    }

    /// A card is tokenised once, read masked, and erased for good.
    async fn a_card_lives_and_goes(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card_id = checkout.card(&pan).await;
        assert_eq!(checkout.card(&pan).await, card_id);
        checkout.delete(&format!("/v1/cards/{card_id}")).await.expect(204);
        checkout.get(&format!("/v1/cards/{card_id}")).await.expect_problem(404, "not_found");
        assert_ne!(checkout.card(&pan).await, card_id);
        vault.finish(&[&pan]).await;
    }
}
