//! Every cell of the access matrix, made from the OpenAPI document: each operation, by a client with each
//! scope alone, with none and with all, on its own objects, another merchant's and nobody's. What the
//! document says is what is expected: a route without a row, or a row without its scope, fails.

use std::collections::{BTreeMap, BTreeSet};

use cardvault::base::clock::{Clock, SystemClock};
use cardvault::base::secret::SecretText;
use cardvault::config::{ClientSection, Config};
use cardvault::http::router::ROUTES;
use cardvault::http::routes::openapi::DOCUMENT;
use cardvault::model::access::Scope;
use cardvault::pki::Authority;
use serde_json::{Value, json};

use crate::operations::manual;
use crate::support::vault::{Answer, Caller, TestVault, by_reference, fresh_pan};

/// An operation as the document has it.
struct Row {
    method: String,
    path: String,
    scope: Option<Scope>,
}

impl Row {
    fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path == path
    }

    /// Whether it is about one object.
    fn names_an_object(&self) -> bool {
        self.path.contains('{') || self.is("post", "/v1/payments")
    }
}

fn rows() -> Vec<Row> {
    let document: Value = serde_json::from_str(DOCUMENT).expect("JSON");
    let mut rows = Vec::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let scopes =
                operation["x-scopes"].as_array().unwrap_or_else(|| panic!("{method} {path}: no x-scopes"));
            let known = |scope: &Value| {
                let name = scope.as_str().expect("text");
                Scope::parse(name).unwrap_or_else(|| panic!("{method} {path}: {name} is no scope"))
            };
            assert!(scopes.len() <= 1, "{method} {path}: which of its scopes lets a client in?");
            rows.push(Row { method: method.clone(), path: path.clone(), scope: scopes.first().map(known) });
            let answers = operation["responses"].as_object().expect("responses");
            assert!(answers.contains_key("403"), "{method} {path}");
            assert_eq!(
                answers.contains_key("404"),
                rows.last().expect("a row").names_an_object(),
                "{method} {path}"
            );
        }
    }
    rows
}

/// One merchant's things.
#[derive(Clone)]
struct Objects {
    card: String,
    agreement: String,
    payment: String,
    capture: String,
    refund: String,
    /// A payment that nothing was done to.
    plain: String,
}

impl Objects {
    async fn make(owner: &Caller, tag: &str) -> Self {
        let card = owner.card(&fresh_pan()).await;
        let agreed = json!({
            "initiator": "CUSTOMER",
            "agreement": {
                "type": "UNSCHEDULED",
                "consent": { "acceptedAt": "2026-01-01T00:00:00Z", "textVersion": "v1" },
                "maxAmount": { "currency": "EUR", "value": "5000" },
            }
        });
        let mut opening: Value =
            serde_json::from_str(&by_reference(&format!("A_{tag}"), "100", &card)).expect("JSON");
        opening["storedCredential"] = agreed;
        let agreement =
            owner.post("/v1/payments", &opening.to_string()).await.expect(200).text_at("/agreementId");
        let (payment, plain) = (format!("P_{tag}"), format!("Q_{tag}"));
        for id in [&payment, &plain] {
            let paid = owner.post("/v1/payments", &manual(id, "2000", &card)).await.expect(200);
            assert_eq!(paid.text_at("/status"), "AUTHORIZED", "{}", paid.text);
        }
        let (capture, refund) = (format!("C_{tag}"), format!("R_{tag}"));
        owner.post(&format!("/v1/payments/{payment}/captures"), &capturing(&capture)).await.expect(200);
        owner.post(&format!("/v1/payments/{payment}/refunds"), &refunding(&refund)).await.expect(200);
        Self { card, agreement, payment, capture, refund, plain }
    }

    fn nobodys() -> Self {
        let id = |kind: &str| format!("{kind}_0123456789ABCDEFGHJKMNPQRSTVWXYZ");
        Self {
            card: id("card"),
            agreement: id("agr"),
            payment: "NOTHING".into(),
            capture: "NOTHING_C".into(),
            refund: "NOTHING_R".into(),
            plain: "NOTHING_Q".into(),
        }
    }

    fn path(&self, row: &Row) -> String {
        let payment = if row.path.ends_with("/cancel") { &self.plain } else { &self.payment };
        let filled = row
            .path
            .replace("{cardId}", &self.card)
            .replace("{agreementId}", &self.agreement)
            .replace("{paymentRequestId}", payment)
            .replace("{captureRequestId}", &self.capture)
            .replace("{refundRequestId}", &self.refund);
        assert!(!filled.contains('{'), "{filled}: an id that this test does not know");
        filled
    }

    /// Everything that can be seen of them.
    async fn seen(&self, owner: &Caller) -> Vec<String> {
        let mut all = Vec::new();
        for path in [
            format!("/v1/cards/{}", self.card),
            format!("/v1/agreements/{}", self.agreement),
            format!("/v1/payments/{}", self.payment),
            format!("/v1/payments/{}", self.plain),
        ] {
            all.push(owner.get(&path).await.expect(200).text);
        }
        all
    }
}

fn capturing(id: &str) -> String {
    json!({ "captureRequestId": id, "captureAmount": { "currency": "EUR", "value": "500" }, "isLastCapture": false })
        .to_string()
}

fn refunding(id: &str) -> String {
    json!({ "refundRequestId": id, "refundAmount": { "currency": "EUR", "value": "100" } }).to_string()
}

/// A good body, with an id of its own.
fn body(row: &Row, objects: &Objects, id: &str) -> Option<String> {
    match (row.method.as_str(), row.path.rsplit('/').next().expect("a part")) {
        ("get" | "delete", _) | ("post", "cancel") => None,
        ("post", "cards") => {
            Some(json!({ "cardNo": fresh_pan(), "expiryMonth": "12", "expiryYear": "29" }).to_string())
        }
        ("patch", "{cardId}") => Some(json!({ "expiryMonth": "12", "expiryYear": "31" }).to_string()),
        ("put", "cvv") => Some(json!({ "cvv": "8507" }).to_string()),
        ("post", "payments") => Some(by_reference(id, "100", &objects.card)),
        ("post", "captures") => Some(capturing(id)),
        ("post", "refunds") => Some(refunding(id)),
        (method, _) => panic!("{method} {}: a body that this test does not know", row.path),
    }
}

async fn call(caller: &Caller, row: &Row, objects: &Objects, id: &str) -> Answer {
    let body = body(row, objects, id);
    let headers = [("content-type", "application/json")];
    let headers = if body.is_some() { &headers[..] } else { &[] };
    let path = objects.path(row);
    let answer =
        caller.try_call(&row.method.to_uppercase(), &path, headers, body.map(String::into_bytes)).await;
    answer.unwrap_or_else(|error| panic!("{} {path}: {error:?}", row.method))
}

/// An answer to the byte, but for what is every answer's own.
fn bytes(answer: &Answer) -> (u16, BTreeMap<String, String>, String) {
    let id = answer.headers["x-request-id"].to_str().expect("text");
    let own = ["date", "x-request-id"];
    let headers = answer
        .headers
        .iter()
        .filter(|(name, _)| !own.contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()))
        .collect();
    (answer.status, headers, answer.text.replace(id, ""))
}

/// The clients of the matrix: a name, and what it may do.
fn clients() -> Vec<(String, BTreeSet<Scope>)> {
    let mut clients = vec![("none".to_owned(), BTreeSet::new()), ("every".to_owned(), Scope::ALL.into())];
    for scope in Scope::ALL {
        clients.push((scope.name().replace(':', "-"), [scope].into()));
    }
    clients
}

fn section(name: &str, scopes: &BTreeSet<Scope>) -> ClientSection {
    let names: Vec<String> = scopes.iter().map(|scope| format!("\"{}\"", scope.name())).collect();
    let text = format!(
        "name = \"{name}\"\nuri = \"spiffe://cardvault/acme/{name}\"\nmerchant = \"acme\"\nscopes = [{}]",
        names.join(",")
    );
    toml::from_str(&text).expect("a section")
}

fn caller(vault: &TestVault, name: &str) -> Caller {
    let read = |name: &str| std::fs::read_to_string(vault.dir.path().join(name)).expect("a file of init");
    let authority =
        Authority::load(&read("pki/ca.pem"), &SecretText::new(read("pki/ca.key"))).expect("an authority");
    let uri = format!("spiffe://cardvault/acme/{name}");
    let made = authority.client(&uri, SystemClock.now(), 1).expect("a certificate");
    Caller::new(vault, Some((made.certificate_pem.as_bytes(), made.private_key_pem.expose().as_bytes())))
}

/// What is served and what is described are the same, and every operation says which scope it needs.
#[test]
fn every_route_has_its_row_and_every_row_its_route() {
    let spelled = |path: &str| {
        let snake = |text: &str| {
            text.chars().fold(String::new(), |mut out, c| {
                if c.is_ascii_uppercase() {
                    out.push('_');
                }
                out.push(c.to_ascii_lowercase());
                out
            })
        };
        let parts =
            path.split('/').map(|part| if part.starts_with('{') { snake(part) } else { part.to_owned() });
        parts.collect::<Vec<_>>().join("/")
    };
    let described: BTreeSet<(String, String)> =
        rows().iter().map(|row| (row.method.clone(), spelled(&row.path))).collect();
    let served: BTreeSet<(String, String)> =
        ROUTES.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(described, served);
    let free: Vec<String> =
        rows().into_iter().filter(|row| row.scope.is_none()).map(|row| row.path).collect();
    assert_eq!(free, ["/openapi.json", "/v1/whoami"], "what needs no scope shows nothing of a merchant's");
    let used: BTreeSet<Scope> = rows().iter().filter_map(|row| row.scope).collect();
    let all: BTreeSet<Scope> = Scope::ALL.into();
    // Paying without the buyer is a matter of the body, not of the route.
    assert_eq!(all.difference(&used).collect::<Vec<_>>(), [&Scope::PaymentsMit]);
}

both_engines! {
    /// Every cell.
    async fn every_cell_is_as_the_document_says(db: Database) {
        let change = |config: &mut Config| {
            config.client.extend(clients().iter().map(|(name, scopes)| section(name, scopes)));
        };
        let vault = TestVault::start_with(&db, change).await;
        let owner = caller(&vault, "every");
        let rival = vault.client("rival");
        let foreign = Objects::make(&rival, "FOREIGN").await;
        let before = foreign.seen(&rival).await;
        let mine = Objects::make(&owner, "MINE").await;
        let mine_before = mine.seen(&owner).await;
        let nobodys = Objects::nobodys();
        let (mut cells, mut let_on) = (0, 0);
        for (name, scopes) in clients() {
            let client = caller(&vault, &name);
            for (place, row) in rows().iter().enumerate() {
                let what = format!("{name}: {} {}", row.method, row.path);
                let id = |kind: &str| format!("{}_{place}_{kind}", name.to_uppercase().replace('-', "_"));
                let others: &[_] = if row.names_an_object() { &[&foreign, &nobodys] } else { &[] };
                if row.scope.is_none_or(|scope| scopes.contains(&scope)) {
                    let own = Objects::make(&owner, &id("OWN")).await;
                    if row.is("get", "/v1/payments/{paymentRequestId}/cancel") {
                        owner.post(&own.path(row), "{}").await.expect(200);
                    }
                    let answer = call(&client, row, &own, &id("NEW")).await;
                    assert!((200..300).contains(&answer.status), "{what}: {}", answer.text);
                    let mut told = Vec::new();
                    for objects in others {
                        let answer = call(&client, row, objects, &id("OTHER")).await;
                        told.push(bytes(&answer.expect_problem(404, "not_found")));
                        cells += 1;
                    }
                    assert!(told.windows(2).all(|two| two[0] == two[1]), "{what}: {told:#?}");
                    let_on += 1;
                    cells += 1;
                } else {
                    // Not even whether the object exists is told.
                    let mut told = Vec::new();
                    for objects in [&mine].iter().chain(others) {
                        let answer = call(&client, row, objects, &id("REFUSED")).await;
                        told.push(bytes(&answer.expect_problem(403, "missing_scope")));
                        cells += 1;
                    }
                    assert!(told.windows(2).all(|two| two[0] == two[1]), "{what}: {told:#?}");
                }
            }
        }
        assert_eq!(foreign.seen(&rival).await, before, "another merchant's objects are as they were");
        assert_eq!(mine.seen(&owner).await, mine_before, "what was refused was not done");
        crate::support::say(&format!("access matrix: {cells} cells, {let_on} of them let on"));
        vault.finish(&["8507"]).await;
    }
}
