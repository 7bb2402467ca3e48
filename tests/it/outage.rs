//! The database away, the gateway away, the caller away: each is told plainly where there is somebody to
//! tell, nothing is half done, and what comes back is used again without a restart.

use std::time::Duration;

use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use cardvault::app::App;

use super::support::cut::Network;
use super::support::postgres::{Binaries, Cluster, Durability};
use super::support::vault::{TestVault, by_reference, fresh_pan};
use super::support::wire::Wire;
use super::support::{Database, Engine, left_out, sql};

/// `GET /readyz` of a vault.
async fn ready(address: std::net::SocketAddr) -> u16 {
    let mut plain = tokio::net::TcpStream::connect(address).await.expect("the health listener");
    plain.write_all(b"GET /readyz HTTP/1.1\r\nhost: vault\r\nconnection: close\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.expect("an answer");
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..150 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("{what} did not happen");
}

/// A port that is free just now, for a health listener whose address must be known.
fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port").local_addr().expect("an address").port()
}

/// The database crashes under a running vault: `503 unavailable` with `Retry-After`, not ready, nothing
/// sent; when it is back, everything works again, and what was acknowledged is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_comes_back_is_used_again() {
    let Some(binaries) = Binaries::find() else {
        return left_out("outage::a_database_that_comes_back_is_used_again");
    };
    let mut cluster = Cluster::start(&binaries, Durability::Full).await;
    let db = Database::in_cluster(&cluster).await;
    let ops = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let vault = TestVault::start_with(&db, |config| config.ops.listen = Some(ops)).await;
    let checkout = vault.client("checkout");
    let pan = fresh_pan();
    let card_id = checkout.card(&pan).await;
    let path = format!("/v1/cards/{card_id}");
    checkout.post("/v1/payments", &by_reference("OUT_1", "100", &card_id)).await.expect(200);
    assert_eq!(ready(ops).await, 200);
    // Many connections of the pool are open, and die with the server.
    let mut many = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let (checkout, path) = (checkout.clone(), path.clone());
        many.spawn(async move { checkout.get(&path).await.status });
    }
    assert!(many.join_all().await.iter().all(|status| *status == 200));

    for turn in 0..2 {
        cluster.crash();
        let calls = vault.sandbox.recent_calls().len();
        let away = format!("OUT_AWAY_{turn}");
        let payment = by_reference(&away, "100", &card_id);
        let card = json!({ "cardNo": pan, "expiryMonth": "12", "expiryYear": "30" }).to_string();
        let patch = r#"{"expiryMonth":"12","expiryYear":"31"}"#;
        let erase = async { checkout.delete(&path).await };
        let answers = tokio::join!(
            checkout.get(&path),
            checkout.get("/v1/cards"),
            checkout.post("/v1/cards", &card),
            checkout.send("PATCH", &path, patch),
            checkout.post("/v1/payments", &payment),
            checkout.get("/v1/payments/OUT_1"),
            erase,
        );
        let (a, b, c, d, e, f, g) = answers;
        for answer in [a, b, c, d, e, f, g] {
            assert!(answer.headers.contains_key("retry-after"), "{}", answer.text);
            answer.expect_problem(503, "unavailable");
        }
        // What readiness found is good for a second.
        until("not ready", async || ready(ops).await == 503).await;
        // What needs no database goes on.
        checkout.get("/v1/whoami").await.expect(200);
        // A refusal is recorded before it is told, so it is not told now.
        checkout.post("/v1/cards", "{}").await.expect_problem(503, "unavailable");
        assert_eq!(vault.sandbox.recent_calls().len(), calls, "nothing was sent");

        cluster.launch().await;
        until("ready again", async || ready(ops).await == 200).await;
        until("a card is read again", async || checkout.get(&path).await.status == 200).await;
        let paid = checkout.post("/v1/payments", &payment).await.expect(200);
        assert_eq!(paid.text_at("/status"), "AUTHORIZED");
        assert_eq!(vault.charges(&away), 1);
        assert_eq!(checkout.get("/v1/payments/OUT_1").await.expect(200).text_at("/status"), "AUTHORIZED");
    }
    vault.finish(&[&pan]).await;
}

/// The database's host goes away without a word: no connection breaks, nothing answers. Callers are told in time, and
/// when it is back everything works again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_says_nothing_is_given_up() {
    let Some(binaries) = Binaries::find() else {
        return left_out("outage::a_database_that_says_nothing_is_given_up");
    };
    let cluster = Cluster::start(&binaries, Durability::Fast).await;
    let db = Database::in_cluster(&cluster).await;
    let network = Network::start(cluster.port()).await;
    let through = db.url.replace(&format!(":{}/", cluster.port()), &format!(":{}/", network.address.port()));
    let mut vault = TestVault::start(&Database::at(through, Engine::Postgres, db.files.clone())).await;
    vault.policy.database_answers = Duration::from_millis(1_000);
    vault.restart().await;
    let checkout = vault.client("checkout");
    let pan = fresh_pan();
    let card_id = checkout.card(&pan).await;
    let path = format!("/v1/cards/{card_id}");
    let card = json!({ "cardNo": fresh_pan(), "expiryMonth": "12", "expiryYear": "30" }).to_string();
    let (payment, patch) =
        (by_reference("SILENT_1", "100", &card_id), r#"{"expiryMonth":"12","expiryYear":"31"}"#);
    network.silence(true);
    let answers = tokio::join!(
        checkout.get(&path),
        checkout.get("/v1/payments"),
        checkout.send("PATCH", &path, patch),
        checkout.post("/v1/cards", &card),
        checkout.post("/v1/payments", &payment),
    );
    let (a, b, c, d, e) = answers;
    for answer in [a, b, c, d, e] {
        answer.expect_problem(503, "unavailable");
    }
    assert!(vault.sandbox.recent_calls().is_empty(), "nothing was sent");
    network.silence(false);
    until("a card is read again", async || checkout.get(&path).await.status == 200).await;
    let paid = checkout.post("/v1/payments", &payment).await.expect(200);
    assert_eq!(paid.text_at("/status"), "AUTHORIZED");
    vault.finish(&[&pan]).await;
}

/// A vault that starts before its database says what it cannot reach, and starts once it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_a_database_says_so() {
    let Some(binaries) = Binaries::find() else {
        return left_out("outage::a_start_without_a_database_says_so");
    };
    let mut cluster = Cluster::start(&binaries, Durability::Fast).await;
    let db = Database::in_cluster(&cluster).await;
    let mut vault = TestVault::start(&db).await;
    vault.stop().await;
    cluster.crash();
    let Err(error) = App::start(&vault.config).await else { panic!("it started") };
    assert!(format!("{error:#}").contains("database"), "{error:#}");
    cluster.launch().await;
    vault.restart().await;
    vault.client("checkout").get("/v1/cards").await.expect(200);
    vault.finish(&[]).await;
}

both_engines! {
    /// Nobody listens where the gateway should be: the payment has provably not left, and is FAILED for
    /// good; its repeat says the same, and a new one goes through once the gateway is back.
    async fn a_gateway_that_is_away_fails_the_payment_and_nothing_else(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card_id = checkout.card(&pan).await;
        let real = vault.config.gateway[0].base_url.clone();
        vault.config.gateway[0].base_url = format!("https://127.0.0.1:{}", free_port());
        vault.restart().await;
        let checkout = vault.client("checkout");
        for _ in 0..2 {
            let failed = checkout.post("/v1/payments", &by_reference("AWAY_1", "100", &card_id)).await.expect(200);
            assert_eq!(failed.text_at("/status"), "FAILED", "{}", failed.text);
            assert!(failed.text.contains("not_sent"), "{}", failed.text);
        }
        checkout.get(&format!("/v1/cards/{card_id}")).await.expect(200);
        assert_eq!(vault.charges("AWAY_1"), 0);
        vault.config.gateway[0].base_url = real;
        vault.restart().await;
        let checkout = vault.client("checkout");
        let repeat = checkout.post("/v1/payments", &by_reference("AWAY_1", "100", &card_id)).await.expect(200);
        assert_eq!(repeat.text_at("/status"), "FAILED");
        let paid = checkout.post("/v1/payments", &by_reference("AWAY_2", "100", &card_id)).await.expect(200);
        assert_eq!(paid.text_at("/status"), "AUTHORIZED");
        vault.finish(&[&pan]).await;
    }

    /// A caller hangs up after any number of bytes of its request, or right after the last: nothing is
    /// half done, no transaction stays open, and the next caller is served.
    async fn a_caller_that_hangs_up_harms_nobody(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let (pan, other) = (fresh_pan(), fresh_pan());
        let card_id = checkout.card(&pan).await;
        let requests = [
            ("POST", "/v1/cards".to_owned(), json!({ "cardNo": other, "expiryMonth": "12", "expiryYear": "29",
                "cardholderName": { "fullName": "Tom Jay" } }).to_string()),
            ("POST", "/v1/payments".to_owned(), by_reference("HANGUP_1", "100", &card_id)),
            ("PATCH", format!("/v1/cards/{card_id}"), r#"{"expiryMonth":"12","expiryYear":"31"}"#.to_owned()),
        ];
        for (method, path, body) in &requests {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: vault\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            );
            for end in (1..request.len()).step_by(37).chain([request.len() - 1]) {
                let mut wire = Wire::client(&vault, "checkout").await;
                wire.send(&request.as_bytes()[..end]).await.expect("sent");
                drop(wire);
            }
            checkout.get("/v1/whoami").await.expect(200);
        }
        // Nothing that was cut was taken.
        let cards = checkout.get("/v1/cards").await.expect(200).json();
        assert_eq!(cards["data"].as_array().map(Vec::len), Some(1));
        assert_eq!(cards["data"][0]["expiryYear"], "29");
        assert_eq!(checkout.get("/v1/payments").await.expect(200).json()["data"], json!([]));
        assert!(vault.sandbox.recent_calls().is_empty());
        // The whole request, and the caller goes at some moment before the answer: it is done or it is
        // not, and a repeat finds out; it is never done twice.
        for (method, path, body) in &requests {
            for pause in [0, 1, 2, 4, 8, 16, 32] {
                let mut wire = Wire::client(&vault, "checkout").await;
                let request = format!(
                    "{method} {path} HTTP/1.1\r\nhost: vault\r\ncontent-type: application/json\r\n\
                     content-length: {}\r\n\r\n{body}",
                    body.len()
                );
                wire.send(request.as_bytes()).await.expect("sent");
                tokio::time::sleep(Duration::from_millis(pause)).await;
                drop(wire);
            }
            let repeat = checkout.send(method, path, body).await;
            assert!(matches!(repeat.status, 200 | 201), "{}", repeat.text);
        }
        until("the payment is done", async || {
            checkout.get("/v1/payments/HANGUP_1").await.expect(200).text_at("/status") == "AUTHORIZED"
        })
        .await;
        let cards = checkout.get("/v1/cards").await.expect(200).json();
        assert_eq!(cards["data"].as_array().map(Vec::len), Some(2));
        assert_eq!(vault.charges("HANGUP_1"), 1);
        if db.url.starts_with("postgres") {
            let mut connection = PgConnection::connect(&db.url).await.expect("connect");
            let open: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND state LIKE 'idle in transaction%'",
            )
            .fetch_one(&mut connection)
            .await
            .expect("a count");
            assert_eq!(open, 0, "a transaction stayed open");
        } else {
            // SQLite has one writer: a transaction that stayed open would keep this out.
            assert_eq!(sql::execute(&db, "UPDATE cards SET version = version + 1").await, 2);
        }
        vault.finish(&[&pan, &other]).await;
    }
}
