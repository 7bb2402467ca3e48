//! A card from its first tokenisation to its erasure, and what callers see of it on the way.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::support::sql;
use super::support::vault::{Caller, SAMPLE_PAN, TestVault, by_reference, fresh_pan, sample_with};

/// Tokenises with these members beside number and expiry.
async fn typed(caller: &Caller, pan: &str, more: Value) -> super::support::vault::Answer {
    let mut body = json!({ "cardNo": pan, "expiryMonth": "12", "expiryYear": "29" });
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    caller.post("/v1/cards", &body.to_string()).await
}

/// The ids of a whole list, page by page.
async fn all_ids(caller: &Caller, query: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut after = String::new();
    loop {
        let page = caller.get(&format!("/v1/cards?{query}{after}")).await.expect(200).json();
        let cards = page["data"].as_array().expect("an array");
        pages.push(cards.iter().map(|card| card["cardId"].as_str().expect("text").to_owned()).collect());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return pages,
        }
    }
}

both_engines! {
    /// What a new card shows, member by member: nulls where nothing is known, never a digit too many.
    async fn a_card_shows_what_the_contract_says(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let answer = typed(&checkout, &pan, json!({})).await.expect(201);
        assert_eq!(answer.headers["content-type"], "application/json");
        assert_eq!(answer.headers["cache-control"], "no-store");
        let card = answer.json();
        let members: BTreeSet<&str> = card.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = [
            "billingAddress", "bin", "brand", "cardId", "cardholderName", "createdAt", "cvvHeldUntil",
            "expiryMonth", "expiryYear", "fingerprint", "last4", "referenceBuyerId", "source", "updatedAt",
        ];
        assert_eq!(members, BTreeSet::from(expected));
        for name in ["cardholderName", "billingAddress", "referenceBuyerId", "cvvHeldUntil"] {
            assert!(card[name].is_null(), "{name}");
        }
        assert_eq!(card["source"], "PAN");
        assert_eq!(card["brand"], "VISA");
        assert_eq!(card["bin"], pan[..6]);
        assert_eq!(card["last4"], pan[12..]);
        assert_eq!((&card["expiryMonth"], &card["expiryYear"]), (&json!("12"), &json!("29")));
        let id = card["cardId"].as_str().unwrap();
        assert!(id.starts_with("card_") && id.len() >= 5 + 26 && !id.contains(&pan[..6]));
        assert!(card["fingerprint"].as_str().unwrap().starts_with("fp_"));
        assert_eq!(card["createdAt"], card["updatedAt"]);
        assert_eq!(checkout.get(&format!("/v1/cards/{id}")).await.expect(200).json(), card);
        vault.finish(&[&pan]).await;
    }

    /// A number as people write it is the same card; typed again it is 200 and takes the new details,
    /// and what was not typed again stays.
    async fn a_known_card_takes_what_is_typed_and_keeps_the_rest(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let name = json!({ "firstName": "Tom", "lastName": "Jay" });
        let address = json!({ "region": "CN", "city": "Hangzhou" });
        let more = json!({ "cardholderName": name, "billingAddress": address });
        let first = typed(&checkout, &pan, more).await.expect(201).json();
        let spaced = format!("{} {}-{} {}", &pan[..4], &pan[4..8], &pan[8..12], &pan[12..]);
        let again = typed(&checkout, &spaced, json!({ "expiryYear": "31" })).await.expect(200).json();
        assert_eq!(again["cardId"], first["cardId"]);
        assert_eq!(again["fingerprint"], first["fingerprint"]);
        assert_eq!(again["createdAt"], first["createdAt"]);
        assert_eq!((&again["expiryYear"], &again["cardholderName"]), (&json!("31"), &name));
        assert_eq!(again["billingAddress"], address);
        let third = typed(&checkout, &pan, json!({ "cardholderName": { "fullName": "T. Jay" } })).await;
        let third = third.expect(200).json();
        assert_eq!(third["cardholderName"], json!({ "fullName": "T. Jay" }));
        assert_eq!((&third["expiryYear"], &third["billingAddress"]), (&json!("29"), &address));
        assert_eq!(all_ids(&checkout, "").await, [[first["cardId"].as_str().unwrap()]]);
        vault.finish(&[&pan]).await;
    }

    /// One number of two buyers, and of no buyer, is three cards with one fingerprint.
    async fn buyers_do_not_share_a_card(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let (pan, other) = (fresh_pan(), fresh_pan());
        let mut ids = BTreeSet::new();
        let mut fingerprints = BTreeSet::new();
        for buyer in [json!({}), json!({ "referenceBuyerId": "a" }), json!({ "referenceBuyerId": "A" })] {
            let card = typed(&checkout, &pan, buyer.clone()).await.expect(201).json();
            assert_eq!(card["referenceBuyerId"], buyer["referenceBuyerId"]);
            assert_eq!(typed(&checkout, &pan, buyer).await.expect(200).json()["cardId"], card["cardId"]);
            ids.insert(card["cardId"].as_str().unwrap().to_owned());
            fingerprints.insert(card["fingerprint"].as_str().unwrap().to_owned());
        }
        assert_eq!((ids.len(), fingerprints.len()), (3, 1));
        let odd = typed(&checkout, &other, json!({ "referenceBuyerId": "Zoë & Söhne/7" })).await.expect(201);
        let found = all_ids(&checkout, "referenceBuyerId=Zo%C3%AB%20%26%20S%C3%B6hne%2F7").await;
        assert_eq!(found, [[odd.text_at("/cardId")]]);
        let fingerprint = fingerprints.first().unwrap();
        let found = all_ids(&checkout, &format!("fingerprint={fingerprint}")).await.concat();
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), ids);
        let both = format!("fingerprint={fingerprint}&referenceBuyerId=A");
        assert_eq!(all_ids(&checkout, &both).await.concat().len(), 1);
        assert_eq!(all_ids(&checkout, "referenceBuyerId=nobody").await.concat().len(), 0);
        let wrong = checkout.get(&format!("/v1/cards?fingerprint={}x", &fingerprint)).await;
        wrong.expect_problem(400, "invalid_query");
        vault.finish(&[&pan, &other]).await;
    }

    /// 120 cards come in pages, each card once, in the order of creation; a card erased between two
    /// pages, also the cursor itself, disturbs nothing.
    async fn a_long_list_comes_in_pages(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pans: Vec<String> = (0..120).map(|_| fresh_pan()).collect();
        let mut made = Vec::new();
        for pan in &pans {
            made.push(checkout.card(pan).await);
        }
        let lengths = |pages: &[Vec<String>]| pages.iter().map(Vec::len).collect::<Vec<_>>();
        let pages = all_ids(&checkout, "").await;
        assert_eq!(lengths(&pages), [50, 50, 20]);
        let all = pages.concat();
        assert_eq!(all.iter().collect::<BTreeSet<_>>(), made.iter().collect::<BTreeSet<_>>());
        let in_order = checkout.get("/v1/cards?limit=100").await.expect(200).json();
        let times: Vec<&str> =
            in_order["data"].as_array().unwrap().iter().map(|card| card["createdAt"].as_str().unwrap()).collect();
        assert!(times.is_sorted());
        assert_eq!(lengths(&all_ids(&checkout, "limit=100").await), [100, 20]);
        assert_eq!(lengths(&all_ids(&checkout, "limit=60").await), [60, 60]);
        assert_eq!(all_ids(&checkout, "limit=7").await.concat(), all);
        let cursor = &all[49];
        checkout.delete(&format!("/v1/cards/{cursor}")).await.expect(204);
        let rest = checkout.get(&format!("/v1/cards?limit=100&after={cursor}")).await.expect(200).json();
        let rest: Vec<&str> =
            rest["data"].as_array().unwrap().iter().map(|card| card["cardId"].as_str().unwrap()).collect();
        assert_eq!(rest, all[50..]);
        let pans: Vec<&str> = pans.iter().map(String::as_str).collect();
        vault.finish(&pans).await;
    }

    /// PATCH changes what it names and nothing else.
    async fn a_change_changes_what_it_names(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let path = format!("/v1/cards/{}", checkout.card(&pan).await);
        let before = checkout.get(&path).await.json();
        let patch = async |body: Value| checkout.send("PATCH", &path, &body.to_string()).await.expect(200).json();
        let after = patch(json!({ "expiryMonth": "01", "expiryYear": "35" })).await;
        let mut expected = before.clone();
        expected["expiryMonth"] = json!("01");
        expected["expiryYear"] = json!("35");
        expected["updatedAt"] = after["updatedAt"].clone();
        assert_eq!(after, expected);
        let address = json!({ "region": "KR", "address1": "1 \"Quoted\" \\ Rd", "zipCode": "04524" });
        let after = patch(json!({ "billingAddress": address })).await;
        assert_eq!(after["billingAddress"], address);
        assert_eq!(after["cardholderName"], before["cardholderName"]);
        let after = patch(json!({ "cardholderName": { "fullName": "ŌÄ 太郎" } })).await;
        assert_eq!(after["cardholderName"], json!({ "fullName": "ŌÄ 太郎" }));
        let same = patch(json!({})).await;
        assert_eq!(same["cardholderName"], after["cardholderName"]);
        assert_eq!(checkout.get(&path).await.json(), same);
        vault.finish(&[&pan]).await;
    }

    /// Erased, a card is gone for every route, again and again; its row keeps id, brand, last four and
    /// times and nothing else; the same number gets a new id.
    async fn an_erased_card_leaves_nothing_to_open(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let more = json!({ "cvv": "8507", "referenceBuyerId": "test12345678",
            "cardholderName": { "fullName": "Tom Jay" } });
        let card = typed(&checkout, &pan, more.clone()).await.expect(201);
        let id = card.text_at("/cardId");
        let path = format!("/v1/cards/{id}");
        checkout.delete(&path).await.expect(204);
        checkout.delete(&path).await.expect(204);
        checkout.get(&path).await.expect_problem(404, "not_found");
        checkout.send("PATCH", &path, r#"{"expiryMonth":"12","expiryYear":"30"}"#).await.expect_problem(404, "not_found");
        checkout.send("PUT", &format!("{path}/cvv"), r#"{"cvv":"8507"}"#).await.expect_problem(404, "not_found");
        checkout.post("/v1/payments", &by_reference("ERASED_1", "100", &id)).await.expect_problem(404, "not_found");
        assert_eq!(all_ids(&checkout, "").await.concat().len(), 0);
        let by_fingerprint = format!("fingerprint={}", card.text_at("/fingerprint"));
        assert_eq!(all_ids(&checkout, &by_fingerprint).await.concat().len(), 0);
        assert!(vault.sandbox.recent_calls().is_empty());
        let left = sql::rows(
            &db,
            &format!(
                "SELECT brand, last4, bin, buyer, cvv_holder, cvv_for, CAST(cvv_until AS TEXT), \
                 CASE WHEN pan IS NULL AND details IS NULL AND fingerprint IS NULL THEN 'none' ELSE 'some' END, \
                 CASE WHEN created_at > 0 AND erased_at >= created_at THEN 'times' ELSE 'no times' END \
                 FROM cards WHERE card_id = '{id}'"
            ),
        )
        .await;
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            left,
            [[text("VISA"), text(&pan[12..]), text(""), text(""), None, None, None, text("none"), text("times")]]
        );
        let anew = typed(&checkout, &pan, more).await.expect(201);
        assert_ne!(anew.text_at("/cardId"), id);
        assert_eq!(anew.text_at("/fingerprint"), card.text_at("/fingerprint"));
        checkout.get(&path).await.expect_problem(404, "not_found");
        checkout.delete("/v1/cards/card_00000000000000000000000000000000").await.expect_problem(404, "not_found");
        vault.finish(&[&pan, "8507"]).await;
    }

    /// 64 callers type one number at once: one card, one 201, no refusal.
    async fn one_number_typed_by_many_at_once_is_one_card(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let mut callers = tokio::task::JoinSet::new();
        for n in 0..64 {
            let (checkout, pan) = (checkout.clone(), pan.clone());
            callers.spawn(async move {
                let name = json!({ "cardholderName": { "fullName": format!("Caller {n}") } });
                typed(&checkout, &pan, name).await
            });
        }
        let answers = callers.join_all().await;
        let told: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(told.iter().filter(|status| **status == 201).count(), 1, "{told:?}");
        assert_eq!(told.iter().filter(|status| **status == 200).count(), 63, "{told:?}");
        let ids: BTreeSet<String> = answers.iter().map(|answer| answer.text_at("/cardId")).collect();
        assert_eq!(ids.len(), 1);
        assert_eq!(all_ids(&checkout, "").await.concat(), ids.into_iter().collect::<Vec<_>>());
        vault.finish(&[&pan]).await;
    }

    /// Changes of one card that meet are all made, whoever comes first.
    async fn changes_that_meet_are_all_made(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let path = format!("/v1/cards/{}", checkout.card(&pan).await);
        let mut callers = tokio::task::JoinSet::new();
        for n in 0..32 {
            let (checkout, path, pan) = (checkout.clone(), path.clone(), pan.clone());
            callers.spawn(async move {
                match n % 4 {
                    0 => typed(&checkout, &pan, json!({})).await,
                    1 => checkout.send("PATCH", &path, r#"{"billingAddress":{"region":"KR"}}"#).await,
                    2 => checkout.send("PUT", &format!("{path}/cvv"), r#"{"cvv":"8507"}"#).await,
                    _ => checkout.send("PATCH", &path, r#"{"cardholderName":{"fullName":"New"}}"#).await,
                }
            });
        }
        for answer in callers.join_all().await {
            answer.expect(200);
        }
        let card = checkout.get(&path).await.expect(200).json();
        assert_eq!((&card["billingAddress"]["region"], &card["cardholderName"]["fullName"]), (&json!("KR"), &json!("New")));
        vault.finish(&[&pan, "8507"]).await;
    }

    /// A CVV is announced until its payment has used it; the card pays on without one.
    async fn a_held_cvv_is_announced_until_it_is_used(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = typed(&checkout, &pan, json!({ "cvv": "8507" })).await.expect(201);
        let id = card.text_at("/cardId");
        let path = format!("/v1/cards/{id}");
        assert!(card.text_at("/cvvHeldUntil") > card.text_at("/createdAt"));
        let held = checkout.get(&path).await.expect(200).text_at("/cvvHeldUntil");
        assert_eq!(held, card.text_at("/cvvHeldUntil"));
        checkout.post("/v1/payments", &by_reference("CVV_1", "100", &id)).await.expect(200);
        assert!(checkout.get(&path).await.expect(200).json()["cvvHeldUntil"].is_null());
        let sent = vault.sandbox.recent_calls().last().expect("a call").request.clone();
        assert!(sent.contains("\"cvv\""), "the CVV that was held was sent");
        checkout.post("/v1/payments", &by_reference("CVV_2", "100", &id)).await.expect(200);
        let sent = vault.sandbox.recent_calls().last().expect("a call").request.clone();
        assert!(!sent.contains("\"cvv\""), "a CVV is used once");
        let put = checkout.send("PUT", &format!("{path}/cvv"), r#"{"cvv":"8507"}"#).await.expect(200);
        assert!(put.json()["cvvHeldUntil"].is_string());
        vault.finish(&[&pan, "8507"]).await;
    }

    /// Where eight digits of the BIN are chosen, a 16-digit number shows eight and another one six.
    async fn the_bin_is_as_long_as_was_chosen(db: Database) {
        let vault = TestVault::start_with(&db, |config| config.api.bin_digits = 8).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = typed(&checkout, &pan, json!({})).await.expect(201);
        assert_eq!(card.text_at("/bin"), pan[..8]);
        for (number, brand) in [
            ("378282246310005", "AMEX"),
            ("30569309025904", "DINERS"),
            ("5555555555554444", "MASTERCARD"),
            ("3530111333300000", "JCB"),
            ("9490220011669217", "UNKNOWN"),
        ] {
            let card = typed(&checkout, number, json!({})).await.expect(201);
            assert_eq!(card.text_at("/brand"), brand);
            assert_eq!(card.text_at("/bin"), number[..if number.len() == 16 { 8 } else { 6 }]);
            assert_eq!(card.text_at("/last4"), number[number.len() - 4..]);
        }
        vault.finish(&[&pan, "30569309025904", "3530111333300000"]).await;
    }

    /// A card that was typed in a payment is the card that was tokenised, and the other way round.
    async fn a_card_typed_in_a_payment_is_the_same_card(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let body = sample_with("INLINE_1", "100").replace(SAMPLE_PAN, &pan);
        let paid = checkout.post("/v1/payments", &body).await.expect(200);
        let card = typed(&checkout, &pan, json!({ "referenceBuyerId": "test12345678" })).await.expect(200);
        assert_eq!(card.text_at("/cardId"), paid.text_at("/cardId"));
        typed(&checkout, &pan, json!({ "referenceBuyerId": "somebody else" })).await.expect(201);
        vault.finish(&[&pan]).await;
    }
}
