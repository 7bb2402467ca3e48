//! The operators' plane: what a vault says of its readiness and of its work, that its alerts speak of metrics
//! that there are, and that a vault which is told to stop loses no request that it took.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

use super::support::vault::{SAMPLE, SAMPLE_PAN, TestVault, by_reference, fresh_pan, sample_with};
use super::support::wire::{Identity, Wire};
use super::support::{Engine, eventually, leak, sql};

const RULES: &str = include_str!("../../deploy/prometheus/cardvault.rules.yml");

/// The sample of a series in the Prometheus text format.
fn sample(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// The names of all series, without their labels.
fn names(text: &str) -> BTreeSet<&str> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| line.split(['{', ' ']).next()).filter(|name| !name.is_empty()).collect()
}

/// The metrics that the rules' expressions speak of.
fn named_in_rules() -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for line in RULES.lines().filter(|line| !line.trim_start().starts_with('#')) {
        for word in line.split(|it: char| !it.is_ascii_alphanumeric() && it != '_') {
            // The job's name is no metric.
            if word.starts_with("cardvault_") {
                named.insert(word.to_owned());
            }
        }
    }
    named
}

both_engines! {
    /// After some work every metric of the alerts is there, says what was done, and holds nothing of a card
    /// or of what a caller made up.
    async fn work_is_told_in_metrics(db: Database) {
        let vault = TestVault::start_still(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        checkout.post("/v1/payments", SAMPLE).await.expect(200);
        checkout.post("/v1/payments", &by_reference("TOLD_OPEN", "660041", &card)).await.expect(200);
        checkout.get(&format!("/v1/{pan}")).await.expect(404);
        let headers = [("x-made-up", pan.as_str())];
        let odd = checkout.try_call(&format!("X{pan}"), "/v1/cards", &headers, None).await.expect("an answer");
        assert_eq!(odd.status, 405);
        // One that shows no certificate.
        let mut stranger = Wire::connect(&vault, None).await.expect("TLS 1.3 tells it later");
        assert!(stranger.rest().await.is_empty());
        let refused = "cardvault_tls_handshakes_refused_total{listener=\"api\",reason=\"no client certificate\"}";
        let text = eventually("the numbers", || async {
            let (status, text) = vault.operators("/metrics").await;
            assert_eq!(status, 200);
            let all = sample(&text, refused) == Some(1.0)
                && sample(&text, "cardvault_events_unsequenced") == Some(0.0)
                && sample(&text, "cardvault_audit_checkpoint_timestamp_seconds") > Some(0.0);
            all.then_some(text)
        })
        .await;
        for (series, least) in [
            ("cardvault_requests_total{route=\"/v1/cards\",method=\"POST\",status=\"2xx\",client=\"checkout\"}", 1.0),
            ("cardvault_requests_total{route=\"none\",method=\"GET\",status=\"4xx\",client=\"checkout\"}", 1.0),
            ("cardvault_requests_total{route=\"/v1/cards\",method=\"other\",status=\"4xx\",client=\"checkout\"}", 1.0),
            ("cardvault_request_duration_seconds_count{route=\"/v1/payments\",method=\"POST\"}", 2.0),
            ("cardvault_payments_total{status=\"UNKNOWN\"}", 2.0),
            ("cardvault_payments_total{status=\"AUTHORIZED\"}", 1.0),
            ("cardvault_payments_open{status=\"UNKNOWN\"}", 1.0),
            ("cardvault_payments_open_oldest_age_seconds{status=\"UNKNOWN\"}", 0.001),
            ("cardvault_gateway_calls_total{call=\"pay\",outcome=\"answered\"}", 2.0),
            ("cardvault_gateway_call_duration_seconds_count{call=\"pay\"}", 2.0),
            ("cardvault_audit_rows_total", 4.0),
            ("cardvault_key_seals{purpose=\"card\"}", 1.0),
            ("cardvault_key_seals{purpose=\"kek\"}", 1.0),
            ("cardvault_key_uses{purpose=\"card\"}", 2.0),
            ("cardvault_connections_open{listener=\"api\"}", 1.0),
            ("cardvault_certificate_expiry_timestamp_seconds{certificate=\"api\"}", 1.0e9),
            ("cardvault_ready{check=\"audit\"}", 1.0),
            ("cardvault_database_sampled", 1.0),
        ] {
            let told = sample(&text, series);
            assert!(told >= Some(least), "{series}: {told:?}\n{text}");
        }
        for (series, exactly) in [
            ("cardvault_audit_append_failures_total", 0.0),
            ("cardvault_cvv_slots_held", 0.0),
            ("cardvault_key_rotation_due{purpose=\"card\"}", 0.0),
            ("cardvault_sealed", 0.0),
        ] {
            assert_eq!(sample(&text, series), Some(exactly), "{series}");
        }
        let (there, wanted) = (names(&text), named_in_rules());
        assert!(wanted.len() > 15, "the rules are read: {wanted:?}");
        let missing: Vec<_> = wanted.iter().filter(|name| !there.contains(name.as_str())).collect();
        assert!(missing.is_empty(), "no such metric: {missing:?}");
        leak::assert_clean(&[SAMPLE_PAN, &pan, &card], text.as_bytes(), "the metrics");
        vault.finish(&[SAMPLE_PAN, &pan]).await;
    }

    /// Readiness does the real thing: what cannot be written is named, within the checks' time, liveness does
    /// not care, and it heals by itself. No check leaves a row.
    async fn what_fails_is_named(db: Database) {
        let vault = TestVault::start(&db).await;
        let ready = |text: &'static str| {
            let vault = &vault;
            move || async move { (vault.operators("/readyz").await.1 == text).then_some(()) }
        };
        eventually("readiness", ready("ready")).await;
        assert_eq!(vault.operators("/readyz").await, (200, "ready".to_owned()));
        sql::execute(&db, "ALTER TABLE audit RENAME TO audit_away").await;
        eventually("the audit's failure", ready("not ready: audit")).await;
        assert_eq!(vault.operators("/readyz").await.0, 503);
        let (_, text) = vault.operators("/metrics").await;
        assert_eq!(sample(&text, "cardvault_ready{check=\"audit\"}"), Some(0.0));
        assert_eq!(sample(&text, "cardvault_ready{check=\"database\"}"), Some(1.0));
        assert!(sample(&text, "cardvault_audit_append_failures_total") > Some(0.0));
        sql::execute(&db, "ALTER TABLE audit_away RENAME TO audit").await;
        eventually("readiness again", ready("ready")).await;

        macro_rules! locked {
            ($connection:ty, $begin:literal, $($more:literal),*) => {{
                let mut connection = <$connection>::connect(&db.url).await.expect("connect");
                for text in [$begin, $($more),*] {
                    sqlx::query(AssertSqlSafe(text)).execute(&mut connection).await.expect(text);
                }
                eventually("the database's failure", ready("not ready: database, audit")).await;
                assert_eq!(vault.operators("/livez").await, (200, "ok".to_owned()));
                sqlx::query("ROLLBACK").execute(&mut connection).await.expect("rolled back");
                connection.close().await.expect("closed");
            }};
        }
        match db.engine {
            Engine::Sqlite => locked!(SqliteConnection, "BEGIN IMMEDIATE",),
            Engine::Postgres => {
                locked!(PgConnection, "BEGIN", "LOCK TABLE leases, audit IN ACCESS EXCLUSIVE MODE")
            }
        }
        eventually("readiness at the end", ready("ready")).await;
        let left = sql::rows(&db, "SELECT name FROM leases WHERE name LIKE 'check %'").await;
        assert!(left.is_empty(), "{left:?}");
        let left = sql::rows(&db, "SELECT action FROM audit WHERE action = 'check'").await;
        assert!(left.is_empty(), "{left:?}");
        vault.finish(&[]).await;
    }

    /// The real program is told to stop under load. It is not ready before it refuses anybody, and every
    /// request whose bytes went into a connection is answered, slow ones too.
    async fn a_graceful_stop_loses_nothing(db: Database) {
        let mut vault = TestVault::start(&db).await;
        vault.environment.push(("CARDVAULT_OPS_DRAIN_MS".to_owned(), "2500".to_owned()));
        vault.environment.push(("CARDVAULT_LOG".to_owned(), "info".to_owned()));
        let mut program = vault.start_program().await;
        let vault = Arc::new(vault);
        let told = Arc::new(AtomicBool::new(false));
        let unready = Arc::new(AtomicBool::new(false));
        let [answered, lost, early, busy] = [0; 4].map(|_| Arc::new(AtomicUsize::new(0)));
        let pan = fresh_pan();
        let mut load = tokio::task::JoinSet::new();
        for number in 0..12 {
            let (vault, pan) = (vault.clone(), pan.clone());
            let (told, unready) = (told.clone(), unready.clone());
            let (answered, lost, early, busy) = (answered.clone(), lost.clone(), early.clone(), busy.clone());
            load.spawn(async move {
                let identity = Identity::of(&vault, "checkout");
                let card = format!(r#"{{"cardNo":"{pan}","expiryMonth":"12","expiryYear":"29"}}"#);
                let mut turn = 0;
                loop {
                    let Ok(mut wire) = Wire::connect(&vault, Some(&identity)).await else {
                        assert!(told.load(Ordering::SeqCst), "refused before it was told to stop");
                        early.fetch_add(usize::from(!unready.load(Ordering::SeqCst)), Ordering::SeqCst);
                        return;
                    };
                    loop {
                        turn += 1;
                        let answer = match turn % 4 {
                            0 => {
                                let payment = sample_with(&format!("STOP_{number}_{turn}"), "100");
                                wire.request("POST", "/v1/payments", Some(payment.as_bytes())).await
                            }
                            1 => wire.request("GET", "/v1/whoami", None).await,
                            _ => wire.request("POST", "/v1/cards", Some(card.as_bytes())).await,
                        };
                        match answer {
                            Ok(answer) => {
                                // A slow machine's database may be busy; that is an answer too.
                                assert!(matches!(answer.status, 200 | 201 | 503), "{}", answer.text);
                                busy.fetch_add(usize::from(answer.status == 503), Ordering::SeqCst);
                                answered.fetch_add(1, Ordering::SeqCst);
                                if answer.headers.get("connection").is_some_and(|it| it == "close") {
                                    break;
                                }
                            }
                            Err(_) => {
                                lost.fetch_add(1, Ordering::SeqCst);
                                break;
                            }
                        }
                    }
                }
            });
        }
        let count = || answered.load(Ordering::SeqCst);
        eventually("load", || async { (count() > 60).then_some(()) }).await;
        // One that its gateway answers late.
        let slow = tokio::spawn({
            let checkout = vault.client("checkout");
            async move { checkout.post("/v1/payments", &sample_with("STOP_SLOW", "660001")).await }
        });
        eventually("the slow payment", || async { (vault.calls("/pay", "STOP_SLOW") > 0).then_some(()) }).await;
        let before = count();
        let pid = rustix::process::Pid::from_child(&program);
        told.store(true, Ordering::SeqCst);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("told");
        eventually("unreadiness", || async {
            (vault.operators("/readyz").await == (503, "stopping".to_owned())).then_some(())
        })
        .await;
        unready.store(true, Ordering::SeqCst);
        assert_eq!(vault.operators("/livez").await.0, 200);
        while let Some(ended) = load.join_next().await {
            ended.expect("a caller");
        }
        let slow = slow.await.expect("a task").expect(200);
        assert_eq!(slow.text_at("/status"), "AUTHORIZED");
        let status = tokio::task::spawn_blocking(move || program.wait()).await.expect("a task").expect("ended");
        assert!(status.success(), "{status:?}");
        assert_eq!(lost.load(Ordering::SeqCst), 0, "of {} answered", count());
        assert_eq!(early.load(Ordering::SeqCst), 0, "it was not ready first");
        assert!(count() > before, "it took requests until its callers were gone");
        let mut vault = Arc::into_inner(vault).expect("all callers are gone");
        vault.restart().await;
        let open = sql::rows(&db, "SELECT payment_request_id FROM payments WHERE status <> 'AUTHORIZED'").await;
        assert!(open.is_empty() || busy.load(Ordering::SeqCst) > 0, "{open:?}");
        vault.finish(&[&pan, SAMPLE_PAN]).await;
    }
}

/// The rules are whole: every alert has an expression, a severity, and says what is wrong and what to do.
#[test]
fn every_alert_says_what_to_do() {
    let mut alerts = 0;
    for rule in RULES.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap_or_default();
        for part in ["expr:", "labels: { severity: ", "summary: \"", "action: \""] {
            assert!(rule.contains(part), "{name} has no {part}");
        }
        let guide = include_str!("../../docs/operations.md");
        assert!(guide.contains(&format!("**{name}**")), "docs/operations.md has nothing on {name}");
        assert!(!rule.contains('\t'), "{name}: YAML has no tabs");
        alerts += 1;
    }
    assert!(alerts > 20);
}
