//! No client reaches another merchant's objects, learns whether they exist, or exceeds its scopes. The
//! tables name every route that is served, so that a new route without a row fails.

mod matrix;

use std::collections::BTreeSet;

use cardvault::http::router::ROUTES;
use cardvault::model::access::Scope;
use serde_json::{Value, json};

use super::support::vault::{Answer, Caller, TestVault, by_reference, fresh_pan, sample_with};

/// A route as a request: method, path as the router has it, and the scope that it needs.
const TABLE: &[(&str, &str, Option<Scope>)] = &[
    ("post", "/v1/cards", Some(Scope::CardsWrite)),
    ("get", "/v1/cards", Some(Scope::CardsRead)),
    ("get", "/v1/cards/{card_id}", Some(Scope::CardsRead)),
    ("patch", "/v1/cards/{card_id}", Some(Scope::CardsWrite)),
    ("delete", "/v1/cards/{card_id}", Some(Scope::CardsDelete)),
    ("put", "/v1/cards/{card_id}/cvv", Some(Scope::CardsWrite)),
    ("get", "/v1/cards/{card_id}/agreements", Some(Scope::AgreementsRead)),
    ("get", "/v1/agreements/{agreement_id}", Some(Scope::AgreementsRead)),
    ("delete", "/v1/agreements/{agreement_id}", Some(Scope::AgreementsWrite)),
    ("post", "/v1/payments", Some(Scope::PaymentsCreate)),
    ("get", "/v1/payments", Some(Scope::PaymentsRead)),
    ("get", "/v1/payments/{payment_request_id}", Some(Scope::PaymentsRead)),
    ("post", "/v1/payments/{payment_request_id}/captures", Some(Scope::PaymentsModify)),
    ("get", "/v1/payments/{payment_request_id}/captures", Some(Scope::PaymentsModify)),
    ("get", "/v1/payments/{payment_request_id}/captures/{capture_request_id}", Some(Scope::PaymentsModify)),
    ("post", "/v1/payments/{payment_request_id}/cancel", Some(Scope::PaymentsModify)),
    ("get", "/v1/payments/{payment_request_id}/cancel", Some(Scope::PaymentsModify)),
    ("post", "/v1/payments/{payment_request_id}/refunds", Some(Scope::PaymentsModify)),
    ("get", "/v1/payments/{payment_request_id}/refunds", Some(Scope::PaymentsModify)),
    ("get", "/v1/payments/{payment_request_id}/refunds/{refund_request_id}", Some(Scope::PaymentsModify)),
    ("get", "/v1/events", Some(Scope::EventsRead)),
    ("get", "/v1/whoami", None),
    ("get", "/openapi.json", None),
];

/// What `init` gives its clients, as the documentation tells it.
const CLIENTS: &[(&str, &[Scope])] = &[
    ("checkout", &Scope::ALL),
    (
        "subscriptions",
        &[
            Scope::CardsRead,
            Scope::PaymentsCreate,
            Scope::PaymentsMit,
            Scope::PaymentsRead,
            Scope::AgreementsRead,
            Scope::EventsRead,
        ],
    ),
    (
        "backoffice",
        &[
            Scope::CardsRead,
            Scope::PaymentsRead,
            Scope::PaymentsModify,
            Scope::AgreementsRead,
            Scope::EventsRead,
        ],
    ),
    ("rival", &Scope::ALL),
];

/// An agreement that nobody has; `agreements` tells of another merchant's.
const NO_AGREEMENT: &str = "agr_0123456789ABCDEFGHJKMNPQRSTVWXYZ";

#[test]
fn every_route_that_is_served_has_a_row() {
    let served: BTreeSet<_> = ROUTES.iter().copied().collect();
    let rows: BTreeSet<_> = TABLE.iter().map(|(method, path, _)| (*method, *path)).collect();
    assert_eq!(served, rows);
    assert_eq!(ROUTES.len(), TABLE.len());
}

/// The good body of a route that takes one.
fn body(method: &str, path: &str, card_id: &str, payment_id: &str) -> Option<String> {
    match (method, path) {
        ("post", "/v1/cards") => {
            Some(json!({ "cardNo": "4111111111111111", "expiryMonth": "12", "expiryYear": "29" }).to_string())
        }
        ("patch", _) => Some(json!({ "expiryMonth": "12", "expiryYear": "31" }).to_string()),
        ("put", "/v1/cards/{card_id}/cvv") => Some(json!({ "cvv": "8507" }).to_string()),
        ("post", "/v1/payments") => Some(by_reference(payment_id, "100", card_id)),
        ("post", path) if path.ends_with("/captures") => Some(
            json!({ "captureRequestId": payment_id, "captureAmount": { "currency": "EUR", "value": "100" } })
                .to_string(),
        ),
        ("post", path) if path.ends_with("/refunds") => Some(
            json!({ "refundRequestId": payment_id, "refundAmount": { "currency": "EUR", "value": "100" } })
                .to_string(),
        ),
        ("post", path) if path.ends_with("/cancel") => None,
        ("get" | "delete", _) => None,
        _ => panic!("{method} {path} needs a body here"),
    }
}

async fn call(caller: &Caller, method: &str, path: &str, card_id: &str, payment_id: &str) -> Answer {
    let body = body(method, path, card_id, payment_id);
    let filled = path
        .replace("{card_id}", card_id)
        .replace("{payment_request_id}", payment_id)
        .replace("{agreement_id}", NO_AGREEMENT)
        .replace("{capture_request_id}", payment_id)
        .replace("{refund_request_id}", payment_id);
    assert!(!filled.contains('{'), "{filled}: an id that this test does not know");
    let headers = [("content-type", "application/json")];
    let headers = if body.is_some() { &headers[..] } else { &[] };
    let answer =
        caller.try_call(&method.to_uppercase(), &filled, headers, body.map(String::into_bytes)).await;
    answer.unwrap_or_else(|error| panic!("{method} {filled}: {error:?}"))
}

/// An answer without what is every answer's own, and with ids replaced by words.
fn without_ids(answer: &Answer, card_id: &str, payment_id: &str) -> (u16, Value) {
    let text = answer.text.replace(card_id, "CARD").replace(payment_id, "PAYMENT");
    let mut body: Value = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    if let Some(members) = body.as_object_mut() {
        members.remove("requestId");
    }
    (answer.status, body)
}

both_engines! {
    /// For a rival with every scope, another merchant's ids and ids of nothing are the same.
    async fn foreign_ids_and_unknown_ids_look_the_same(db: Database) {
        let vault = TestVault::start(&db).await;
        let (checkout, rival) = (vault.client("checkout"), vault.client("rival"));
        let pan = fresh_pan();
        let card_id = checkout.card(&pan).await;
        checkout.post("/v1/payments", &by_reference("ACME_1", "100", &card_id)).await.expect(200);
        let before = checkout.get(&format!("/v1/cards/{card_id}")).await.expect(200).text;
        let calls = vault.sandbox.recent_calls().len();
        let nothing = "card_0123456789ABCDEFGHJKMNPQRSTVWXYZ";
        for (method, path, _) in TABLE {
            if !path.contains('{') && (*method, *path) != ("post", "/v1/payments") {
                continue;
            }
            // A payment of the rival's own, with the other merchant's card.
            let own = (*method, *path) == ("post", "/v1/payments");
            let (foreign_id, unknown_id) = if own { ("RIVAL_1", "RIVAL_2") } else { ("ACME_1", "NOTHING_1") };
            let foreign = call(&rival, method, path, &card_id, foreign_id).await;
            let unknown = call(&rival, method, path, nothing, unknown_id).await;
            assert_eq!(foreign.status, 404, "{method} {path}: {}", foreign.text);
            assert_eq!(
                without_ids(&foreign, &card_id, foreign_id),
                without_ids(&unknown, nothing, unknown_id),
                "{method} {path}"
            );
            let names = |answer: &Answer| {
                let kept = |name: &&str| !matches!(*name, "date" | "x-request-id");
                let mut names: Vec<String> = answer.headers.keys().map(|name| name.as_str()).filter(kept).map(str::to_owned).collect();
                names.sort();
                names
            };
            assert_eq!(names(&foreign), names(&unknown), "{method} {path}");
        }
        for query in ["refresh=true", "refresh=false"] {
            let foreign = rival.get(&format!("/v1/payments/ACME_1?{query}")).await.expect_problem(404, "not_found");
            let unknown = rival.get(&format!("/v1/payments/NOTHING_1?{query}")).await;
            assert_eq!(without_ids(&foreign, "-", "-"), without_ids(&unknown, "-", "-"));
        }
        // Nothing of it was done.
        assert_eq!(checkout.get(&format!("/v1/cards/{card_id}")).await.expect(200).text, before);
        assert_eq!(vault.sandbox.recent_calls().len(), calls);
        vault.finish(&[&pan, "8507"]).await;
    }

    /// A list shows a merchant's own objects, whatever it is asked for; the fingerprint of one number is
    /// another one for another merchant.
    async fn lists_and_fingerprints_are_a_merchants_own(db: Database) {
        let vault = TestVault::start(&db).await;
        let (checkout, rival) = (vault.client("checkout"), vault.client("rival"));
        let pan = fresh_pan();
        let acme = checkout.card(&pan).await;
        let globex = rival.card(&pan).await;
        assert_ne!(acme, globex);
        let print = async |caller: &Caller, id: &str| {
            caller.get(&format!("/v1/cards/{id}")).await.expect(200).text_at("/fingerprint")
        };
        let (acmes, globexs) = (print(&checkout, &acme).await, print(&rival, &globex).await);
        assert_ne!(acmes, globexs);
        checkout.post("/v1/payments", &by_reference("ACME_2", "100", &acme)).await.expect(200);
        let ids = async |caller: &Caller, path: &str| -> Vec<String> {
            let page = caller.get(path).await.expect(200).json();
            assert!(page["next"].is_null());
            let id = |item: &Value| item["cardId"].as_str().expect("text").to_owned();
            page["data"].as_array().expect("an array").iter().map(id).collect()
        };
        assert_eq!(ids(&checkout, "/v1/cards").await, [acme.as_str()]);
        assert_eq!(ids(&rival, "/v1/cards").await, [globex.as_str()]);
        assert_eq!(ids(&rival, &format!("/v1/cards?fingerprint={acmes}")).await, [""; 0]);
        // A cursor of another merchant is one of nobody: it tells nothing of when its card was made.
        assert_eq!(ids(&rival, &format!("/v1/cards?after={acme}")).await, [globex.as_str()]);
        assert_eq!(ids(&rival, "/v1/payments").await, [""; 0]);
        assert_eq!(ids(&rival, &format!("/v1/payments?cardId={acme}")).await, [""; 0]);
        assert_eq!(ids(&rival, "/v1/payments?after=ACME_2").await, [""; 0]);
        assert_eq!(ids(&checkout, "/v1/payments").await, [acme.as_str()]);
        // One account, two merchants: the id is in use, and nothing is said of by what.
        let taken = rival.post("/v1/payments", &by_reference("ACME_2", "100", &globex)).await;
        taken.expect_problem(409, "request_id_reused");
        // Erasing one leaves the other.
        rival.delete(&format!("/v1/cards/{globex}")).await.expect(204);
        checkout.get(&format!("/v1/cards/{acme}")).await.expect(200);
        vault.finish(&[&pan]).await;
    }

    /// Every route for every client that `init` makes: allowed by its scope, else refused before anything
    /// is read.
    async fn a_client_does_what_its_scopes_say(db: Database) {
        let vault = TestVault::start(&db).await;
        let pan = fresh_pan();
        for (name, scopes) in CLIENTS {
            let client = vault.client(name);
            let whoami = client.get("/v1/whoami").await.expect(200).json();
            let mut told: Vec<&str> = whoami["scopes"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
            let mut expected: Vec<&str> = scopes.iter().map(|scope| scope.name()).collect();
            told.sort_unstable();
            expected.sort_unstable();
            assert_eq!(told, expected, "{name}");
            assert_eq!(whoami["client"], *name);
            assert_eq!(whoami["merchant"], if *name == "rival" { "globex" } else { "acme" });
            let owner = vault.client(if *name == "rival" { "rival" } else { "checkout" });
            for (place, (method, path, scope)) in TABLE.iter().enumerate() {
                let card_id = owner.card(&pan).await;
                let payment_id = format!("{}_{place}", name.to_uppercase());
                let allowed = scope.is_none_or(|scope| scopes.contains(&scope));
                let answer = call(&client, method, path, &card_id, &payment_id).await;
                if allowed {
                    let of_payment = path.starts_with("/v1/payments/{") || path.starts_with("/v1/agreements/{");
                    let unpaid = of_payment && answer.status == 404;
                    assert!(answer.status < 300 || unpaid, "{name} {method} {path}: {}", answer.text);
                } else {
                    answer.expect_problem(403, "missing_scope");
                    // Not even whether the object exists, or the body is good, is told.
                    let nothing = "card_0123456789ABCDEFGHJKMNPQRSTVWXYZ";
                    call(&client, method, path, nothing, "a.b").await.expect_problem(403, "missing_scope");
                }
            }
        }
        // A card inline needs the right to write cards too, and so does a CVV beside a reference.
        let subscriptions = vault.client("subscriptions");
        let inline = sample_with("SUBSCRIPTIONS_INLINE", "100");
        subscriptions.post("/v1/payments", &inline).await.expect_problem(403, "missing_scope");
        let card_id = vault.client("checkout").card(&pan).await;
        let mut with_cvv: Value = serde_json::from_str(&by_reference("SUBSCRIPTIONS_CVV", "100", &card_id)).unwrap();
        with_cvv["paymentMethod"]["paymentMethodMetaData"]["cvv"] = json!("8507");
        subscriptions.post("/v1/payments", &with_cvv.to_string()).await.expect_problem(403, "missing_scope");
        vault.finish(&[&pan, "4111111111111111", "8507"]).await;
    }
}

/// The list of routes is the router's: what is on it is answered by a handler, and nothing else is.
#[tokio::test]
async fn what_is_not_on_the_list_is_not_served() {
    let methods = ["get", "post", "put", "patch", "delete"];
    let db = super::support::Database::sqlite();
    let vault = TestVault::start(&db).await;
    let checkout = vault.client("checkout");
    let paths: BTreeSet<&str> = ROUTES.iter().map(|(_, path)| *path).collect();
    for path in paths {
        for method in methods {
            let filled = path
                .replace("{card_id}", "card_0123456789ABCDEFGHJKMNPQRSTVWXYZ")
                .replace("{agreement_id}", NO_AGREEMENT)
                .replace("{payment_request_id}", "NOTHING")
                .replace("{capture_request_id}", "NOTHING")
                .replace("{refund_request_id}", "NOTHING");
            let headers = [("content-type", "application/json")];
            let answer =
                checkout.try_call(&method.to_uppercase(), &filled, &headers, Some(b"{}".to_vec())).await;
            let served = answer.expect("an answer").status != 405;
            assert_eq!(served, ROUTES.contains(&(method, path)), "{method} {path}");
        }
    }
    vault.finish(&[]).await;
}
