//! Retention: cards go when their time is over, by the servers' sweep and by command; nothing that is used goes,
//! and what went is told by signed reports.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cardvault::app;
use cardvault::base::clock::{SharedClock, SystemClock};
use cardvault::base::ids::RunId;
use cardvault::config::{Config, RetentionSection};
use cardvault::ops::keys::DataKeys;
use cardvault::ops::{Policy, Vault};
use cardvault::store::retention::Place;
use serde_json::{Value, json};

use super::support::sql::number;
use super::support::vault::{Caller, TestVault, by_reference, fresh_pan, last_json, opening, typed};
use super::support::{Database, eventually, sql};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// Runs `cardvault cards …`: its exit code, and what it printed.
async fn cards(vault: &TestVault, arguments: &[&str]) -> (Option<i32>, String) {
    let all: Vec<&str> = ["cards"].iter().chain(arguments).copied().collect();
    vault.told(&all).await
}

/// Makes everything about a card older.
async fn age(db: &Database, card: &str, by: i64) {
    let older = |column: &str| format!("{column} = {column} - {by}");
    let times = ["typed_at", "created_at", "updated_at", "used_at"].map(older).join(", ");
    assert_eq!(sql::execute(db, &format!("UPDATE cards SET {times} WHERE card_id = '{card}'")).await, 1);
    sql::execute(db, &format!("UPDATE payments SET {} WHERE card_id = '{card}'", older("created_at"))).await;
}

async fn agreement(checkout: &Caller, id: &str, card: &str) -> String {
    let paid = checkout.post("/v1/payments", &opening(&by_reference(id, "100", card))).await.expect(200);
    assert_eq!(paid.text_at("/status"), "AUTHORIZED", "{}", paid.text);
    paid.text_at("/agreementId")
}

async fn is_kept(caller: &Caller, card: &str) -> bool {
    match caller.get(&format!("/v1/cards/{card}")).await.status {
        200 => true,
        404 => false,
        other => panic!("{other}"),
    }
}

/// What is left of an erased row, by column.
async fn left(db: &Database, card: &str) -> BTreeMap<&'static str, Option<String>> {
    const COLUMNS: [&str; 17] = [
        "fingerprint",
        "fingerprint_b",
        "pan",
        "details",
        "token",
        "token_digest",
        "token_digest_key",
        "buyer",
        "bin",
        "expiry_told",
        "cvv_holder",
        "cvv_until",
        "cvv_for",
        "used_at",
        "brand",
        "last4",
        "erased_at",
    ];
    // Whether there is something, and nothing of it.
    let there = COLUMNS
        .map(|name| format!("CASE WHEN {name} IS NULL THEN NULL ELSE length(CAST({name} AS TEXT)) END"));
    let there = there.map(|text| format!("CAST({text} AS TEXT)")).join(", ");
    let rows = sql::rows(db, &format!("SELECT {there} FROM cards WHERE card_id = '{card}'")).await;
    COLUMNS.into_iter().zip(rows[0].clone()).collect()
}

/// A vault that does not sweep by itself, whenever its jobs get to it. Commands read the file, where the limits are
/// the usual ones.
async fn start(db: &Database) -> TestVault {
    TestVault::start_with(db, never).await
}

fn never(config: &mut Config) {
    config.retention.erase_unattached_after_hours = 0;
    config.retention.erase_inactive_after_days = 0;
}

/// A vault of the test's own on a running one's database, with the usual limits: no listeners, no jobs.
async fn beside(vault: &TestVault) -> Vault {
    let clock: SharedClock = Arc::new(SystemClock);
    let db = app::open_database(&vault.config).await.expect("a database");
    let keks = Arc::new(app::keks(&vault.config).expect("a keyring"));
    let keys = DataKeys::start(db.clone(), keks, &clock, vault.config.keys.policy()).await.expect("keys");
    let policy = Policy { retention: RetentionSection::default().limits(), ..Policy::default() };
    Vault::new(db, keys, HashMap::new(), clock, policy).expect("a vault")
}

both_engines! {
    /// What is over goes and nothing else, with its agreements, its audit rows and its signed report; a look
    /// before changes nothing, and a second run finds nothing.
    async fn cards_go_when_their_time_is_over(db: Database) {
        let mut vault = start(&db).await;
        // Nothing asks after the unclear payment by itself.
        vault.policy.inquiry_pauses = vec![Duration::from_secs(3600)];
        vault.restart().await;
        let (checkout, rival) = (vault.client("checkout"), vault.client("rival"));
        let pans: Vec<String> = (0..7).map(|_| fresh_pan()).collect();
        let mut ids = Vec::new();
        for pan in &pans[..6] {
            ids.push(checkout.card(pan).await);
        }
        let foreign = rival.card(&pans[6]).await;
        let [fresh, unattached, attached, inactive, open, withdrawn] = ids.try_into().expect("six");
        let attached_agreement = agreement(&checkout, "RET_1", &attached).await;
        let inactive_agreement = agreement(&checkout, "RET_2", &inactive).await;
        let ended = agreement(&checkout, "RET_3", &withdrawn).await;
        checkout.delete(&format!("/v1/agreements/{ended}")).await.expect(204);
        // Paid, and the answer was lost: it stays UNKNOWN.
        let unknown = checkout.post("/v1/payments", &by_reference("RET_4", "660003", &open)).await.expect(200);
        assert_eq!(unknown.text_at("/status"), "UNKNOWN", "{}", unknown.text);
        // One hour less than is configured, and one hour more.
        age(&db, &fresh, 719 * HOUR_MS).await;
        age(&db, &attached, 539 * DAY_MS).await;
        for card in [&unattached, &open, &withdrawn, &foreign] {
            age(&db, card, 721 * HOUR_MS).await;
        }
        age(&db, &inactive, 540 * DAY_MS + HOUR_MS).await;
        sql::execute(&db, &format!("UPDATE cards SET expiry_told = '2029-12' WHERE card_id = '{inactive}'")).await;

        let (code, said) = cards(&vault, &["purge", "--dry-run", "--json"]).await;
        let told = last_json(&said);
        assert_eq!((code, &told["event"]), (Some(0), &json!("dryRun")), "{said}");
        assert_eq!((&told["unattached"], &told["inactive"], &told["wouldErase"]), (&json!(4), &json!(1), &json!(5)), "{said}");
        let (_, said) = cards(&vault, &["purge", "--dry-run", "--merchant", "acme"]).await;
        assert!(said.contains("4 cards would be erased: 3 unattached, 1 inactive"), "{said}");
        assert_eq!(number(&db, "SELECT COUNT(*) FROM cards WHERE erased_at IS NOT NULL").await, 0);
        assert_eq!(number(&db, "SELECT COUNT(*) FROM retention_reports").await, 0);
        let (code, said) = cards(&vault, &["purge", "--merchant", "nobody"]).await;
        assert!(code == Some(1) && said.contains("--merchant"), "{said}");

        let file = vault.dir.path().join("purge.jsonl");
        let file = file.to_str().expect("UTF-8");
        let (code, said) = cards(&vault, &["purge", "--json", "--merchant", "acme", "--report", file]).await;
        let told = last_json(&said);
        assert_eq!((code, &told["event"], &told["erased"]), (Some(0), &json!("done"), &json!(4)), "{said}");
        let run = told["run"].as_str().expect("a run").to_owned();
        for (card, kept) in [(&fresh, true), (&attached, true), (&unattached, false), (&inactive, false), (&open, false), (&withdrawn, false)] {
            assert_eq!(is_kept(&checkout, card).await, kept, "{card}");
        }
        assert!(is_kept(&rival, &foreign).await);
        for card in [&unattached, &inactive] {
            let left = left(&db, card).await;
            for (column, there) in &left {
                let stays = ["brand", "last4", "erased_at"].contains(column);
                assert_eq!(there.as_deref().is_some_and(|length| length != "0"), stays, "{column}: {left:?}");
            }
        }
        let shown = checkout.get(&format!("/v1/agreements/{inactive_agreement}")).await.expect(200);
        assert_eq!((shown.text_at("/state"), shown.text_at("/endedReason")), ("ENDED".into(), "card_erased".into()));
        assert_eq!(checkout.get(&format!("/v1/agreements/{attached_agreement}")).await.text_at("/state"), "ACTIVE");
        let told = eventually("the end to be told", || async {
            let page = checkout.get("/v1/events?limit=100").await.expect(200).json();
            let all = page["data"].as_array().expect("events").clone();
            all.into_iter().find(|event| event["data"]["agreementId"] == json!(inactive_agreement) && event["type"] == "agreement.ended")
        })
        .await;
        assert_eq!(told["data"]["endedReason"], "card_erased");

        // The payment that was open goes on: the gateway knows it as paid.
        let paid = checkout.get("/v1/payments/RET_4?refresh=true").await.expect(200);
        assert_eq!(paid.text_at("/status"), "AUTHORIZED", "{}", paid.text);
        let cancelled = checkout.post("/v1/payments/RET_4/cancel", "{}").await.expect(200);
        assert_eq!(cancelled.text_at("/status"), "CANCELLED", "{}", cancelled.text);

        let rows = vault.run(&["audit", "export"]).await;
        let rows: Vec<Value> = String::from_utf8(rows.stdout).expect("UTF-8").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let of = |action: &str| rows.iter().filter(|row| row["action"] == action).collect::<Vec<_>>();
        let erased = of("card.erase");
        assert_eq!(erased.len(), 4);
        assert!(erased.iter().all(|row| row["actor"].as_str().is_some_and(|actor| actor.starts_with("cli:uid-")) && row["merchant"] == "acme"));
        let why = |card: &str| erased.iter().find(|row| row["object"] == card).and_then(|row| row["detail"].as_str()).map(str::to_owned);
        assert_eq!(why(&unattached).as_deref(), Some("retention: unattached"));
        assert_eq!(why(&inactive).as_deref(), Some("retention: inactive"));
        assert!(of("cards.purge").iter().any(|row| row["object"].as_str().is_some_and(|object| object.starts_with("rpt_"))));

        // The report: written by the run, and again later; proved; nothing in it but what may be.
        let text = std::fs::read_to_string(file).expect("a report");
        assert!(pans.iter().all(|pan| !text.contains(pan.as_str())) && text.contains(&unattached) && !text.contains(&fresh));
        let again = vault.dir.path().join("again.jsonl");
        let again = again.to_str().expect("UTF-8");
        let (code, said) = cards(&vault, &["report", "--run", &run, "--out", again]).await;
        assert!(code == Some(0) && said.contains("1 reports of 4 cards"), "{said}");
        for file in [file, again] {
            let (code, said) = cards(&vault, &["report", "--verify", file]).await;
            assert!(code == Some(0) && said.contains("1 reports of 4 erased cards"), "{said}");
        }
        let harmed = vault.dir.path().join("harmed.jsonl");
        let first = text.lines().next().expect("a line");
        for (harm, told) in [
            (text.replacen("unattached", "inactive", 1), "signature"),
            (format!("{first}\n"), "cut off"),
            (text.lines().skip(1).map(|line| format!("{line}\n")).collect(), "missing"),
            (format!("{first}\n{text}"), "missing"),
            (format!("{text}{first}\n"), "after the end"),
            (text.replacen("{\"report\"", "{\"repor\"", 1), "cannot be read"),
        ] {
            std::fs::write(&harmed, harm).expect("to write");
            let (code, said) = cards(&vault, &["report", "--verify", harmed.to_str().expect("UTF-8")]).await;
            assert!(code == Some(1) && said.contains("WRONG") && said.contains(told), "{told}: {said}");
        }
        sql::execute(&db, &format!("UPDATE cards SET erased_at = NULL WHERE card_id = '{unattached}'")).await;
        let (code, said) = cards(&vault, &["report", "--verify", file]).await;
        assert!(code == Some(1) && said.contains(&format!("{unattached} is not erased")), "{said}");
        sql::execute(&db, &format!("UPDATE cards SET erased_at = 1 WHERE card_id = '{unattached}'")).await;

        let (code, said) = cards(&vault, &["purge", "--json", "--merchant", "acme"]).await;
        assert_eq!((code, &last_json(&said)["erased"]), (Some(0), &json!(0)), "{said}");
        assert_eq!(number(&db, "SELECT COUNT(*) FROM retention_reports").await, 1);
        let secrets: Vec<&str> = pans.iter().map(String::as_str).collect();
        vault.finish(&secrets).await;
    }

    /// The servers sweep by themselves, two of them on one database, and each card goes once; where the
    /// configuration says never, none goes.
    async fn servers_sweep_by_themselves(db: Database) {
        let mut vault = start(&db).await;
        let checkout = vault.client("checkout");
        let mut ids = Vec::new();
        for _ in 0..6 {
            let card = checkout.card(&fresh_pan()).await;
            age(&db, &card, 1_000 * DAY_MS).await;
            ids.push(card);
        }
        let kept = checkout.card(&fresh_pan()).await;
        vault.restart().await;
        // A turn of housekeeping shows that jobs have run; the sweep began beside it.
        let checkout = vault.client("checkout");
        let (code, said) = cards(&vault, &["purge", "--dry-run", "--json"]).await;
        assert_eq!((code, &last_json(&said)["wouldErase"]), (Some(0), &json!(6)), "{said}");
        assert!(is_kept(&checkout, &ids[0]).await);
        vault.config.retention = RetentionSection::default();
        vault.restart().await;
        let other = vault.another().await;
        let checkout = vault.client("checkout");
        eventually("the sweep", || async {
            (number(&db, "SELECT COUNT(*) FROM cards WHERE erased_at IS NOT NULL").await == 6).then_some(())
        })
        .await;
        assert!(is_kept(&checkout, &kept).await);
        other.stop().await;
        assert_eq!(number(&db, "SELECT COALESCE(SUM(cards), 0) FROM retention_reports").await, 6);
        assert_eq!(number(&db, "SELECT COUNT(*) FROM audit WHERE action = 'card.erase' AND actor = 'vault'").await, 6);
        let file = vault.dir.path().join("all.jsonl");
        let file = file.to_str().expect("UTF-8");
        assert_eq!(cards(&vault, &["report", "--out", file]).await.0, Some(0));
        let (code, said) = cards(&vault, &["report", "--verify", file]).await;
        assert!(code == Some(0) && said.contains("of 6 erased cards"), "{said}");
        vault.finish(&[]).await;
    }

    /// A purge that is killed, twice, and one beside it, leave every card either whole or erased with its
    /// audit row and its report; run again, the rest goes.
    async fn a_purge_survives_being_killed(db: Database) {
        const CARDS: i64 = 120;
        let vault = start(&db).await;
        let checkout = vault.client("checkout");
        for _ in 0..CARDS {
            checkout.card(&fresh_pan()).await;
        }
        sql::execute(&db, &format!("UPDATE cards SET typed_at = typed_at - {}", 721 * HOUR_MS)).await;
        for kill_at in [20, 60] {
            let mut purge = vault.command(&["cards", "purge", "--batch", "3", "--pause-ms", "20"]).spawn().expect("it runs");
            eventually("some to be erased", || async {
                let erased = number(&db, "SELECT COUNT(*) FROM cards WHERE erased_at IS NOT NULL").await;
                (erased >= kill_at).then_some(())
            })
            .await;
            purge.kill().await.expect("a kill");
            let erased = number(&db, "SELECT COUNT(*) FROM cards WHERE erased_at IS NOT NULL").await;
            assert!(erased < CARDS, "it was killed too late");
            assert_eq!(number(&db, "SELECT COALESCE(SUM(cards), 0) FROM retention_reports").await, erased);
            assert_eq!(number(&db, "SELECT COUNT(*) FROM audit WHERE action = 'card.erase'").await, erased);
        }
        let (one, two) = tokio::join!(
            cards(&vault, &["purge", "--json", "--batch", "2"]),
            cards(&vault, &["purge", "--json", "--batch", "2"])
        );
        assert_eq!((one.0, two.0), (Some(0), Some(0)), "{} {}", one.1, two.1);
        assert_eq!(number(&db, "SELECT COUNT(*) FROM cards WHERE erased_at IS NULL OR pan IS NOT NULL").await, 0);
        assert_eq!(number(&db, "SELECT SUM(cards) FROM retention_reports").await, CARDS);
        assert_eq!(number(&db, "SELECT COUNT(DISTINCT object) FROM audit WHERE action = 'card.erase'").await, CARDS);
        let file = vault.dir.path().join("all.jsonl");
        let file = file.to_str().expect("UTF-8");
        assert_eq!(cards(&vault, &["report", "--out", file]).await.0, Some(0));
        let (code, said) = cards(&vault, &["report", "--verify", file]).await;
        assert!(code == Some(0) && said.contains(&format!("of {CARDS} erased cards")), "{said}");
        // Told to stop, it ends its batch and says so.
        for _ in 0..40 {
            checkout.card(&fresh_pan()).await;
        }
        sql::execute(&db, &format!("UPDATE cards SET typed_at = typed_at - {} WHERE erased_at IS NULL", 721 * HOUR_MS)).await;
        let mut command = vault.command(&["cards", "purge", "--batch", "1", "--pause-ms", "50"]);
        let purge = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().expect("it runs");
        eventually("some to be erased", || async {
            (number(&db, "SELECT COUNT(*) FROM cards WHERE erased_at IS NOT NULL").await > CARDS).then_some(())
        })
        .await;
        let pid = rustix::process::Pid::from_raw(i32::try_from(purge.id().expect("it runs")).expect("a pid")).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("to tell it to stop");
        let done = purge.wait_with_output().await.expect("its end");
        assert!(done.status.code() == Some(1) && String::from_utf8_lossy(&done.stderr).contains("interrupted"), "{done:?}");
        let (code, said) = cards(&vault, &["purge", "--json"]).await;
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(number(&db, "SELECT COUNT(*) FROM cards WHERE erased_at IS NULL").await, 0);
        vault.finish(&[]).await;
    }

    /// Payments that begin while their old cards are being erased: each card is either erased, and its
    /// payment refused with nothing sent, or kept with the agreement that the payment opened.
    async fn no_card_goes_under_a_payment(db: Database) {
        const CARDS: usize = 40;
        let vault = start(&db).await;
        let checkout = vault.client("checkout");
        let pans: Vec<String> = (0..CARDS).map(|_| fresh_pan()).collect();
        for pan in &pans {
            let body = json!({ "cardNo": pan, "expiryMonth": "12", "expiryYear": "29", "referenceBuyerId": "test12345678" });
            checkout.post("/v1/cards", &body.to_string()).await.expect(201);
        }
        sql::execute(&db, &format!("UPDATE cards SET typed_at = typed_at - {}", 721 * HOUR_MS)).await;
        let mut payments = tokio::task::JoinSet::new();
        for (at, pan) in pans.iter().enumerate() {
            let (checkout, request) = (checkout.clone(), opening(&typed(&format!("RACE_{at}"), "100", pan, "123")));
            payments.spawn(async move {
                tokio::time::sleep(Duration::from_millis(5 * u64::try_from(at).expect("few"))).await;
                // Busy is no answer: the same is sent again.
                let mut answer = checkout.post("/v1/payments", &request).await;
                while answer.status == 503 {
                    answer = checkout.post("/v1/payments", &request).await;
                }
                (at, answer)
            });
        }
        let own = beside(&vault).await;
        let (run, limits) = (RunId::make().expect("entropy"), own.policy.retention);
        let (mut erased, mut paid) = (0, 0);
        while !payments.is_empty() {
            let page = own.look_at_cards(limits, None, &Place::beginning(), 100).await.expect("a page");
            for (merchant, due) in &page.due {
                for one in due.iter().take(3) {
                    erased += own.erase_old_cards(&run, limits, merchant, std::slice::from_ref(one)).await.expect("erased").len();
                }
            }
            while let Some(done) = payments.try_join_next() {
                let (at, answer) = done.expect("a payment");
                if answer.status != 200 {
                    answer.expect_problem(404, "not_found");
                    assert_eq!(vault.charges(&format!("RACE_{at}")), 0);
                    continue;
                }
                // On a slow machine the gateway's answer may be late, or the payment be given up: its agreement
                // is judged at the end.
                if answer.text_at("/status") != "AUTHORIZED" {
                    continue;
                }
                paid += 1;
                let (card, agreement) = (answer.text_at("/cardId"), answer.text_at("/agreementId"));
                assert!(is_kept(&checkout, &card).await, "{at}: {card} went under its payment");
                assert_eq!(checkout.get(&format!("/v1/agreements/{agreement}")).await.text_at("/state"), "ACTIVE");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(erased > 0 && paid > 0, "nothing raced: {erased} erased, {paid} paid");
        assert_eq!(number(&db, "SELECT COUNT(*) FROM agreements WHERE state <> 'ENDED' AND card_id IN \
            (SELECT card_id FROM cards WHERE erased_at IS NOT NULL)").await, 0);
        own.db.close().await;
        let secrets: Vec<&str> = pans.iter().map(String::as_str).collect();
        vault.finish(&secrets).await;
    }
}

/// The moment itself, on the engine where transactions run side by side: a payment has taken the card and is not
/// committed when the card is erased. The erasure waits for it, and then leaves the card.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_waits_for_a_payment_that_has_begun() {
    use sqlx::{AssertSqlSafe, Connection, Executor};
    let Some(db) = Database::postgres("an_erasure_waits_for_a_payment_that_has_begun").await else { return };
    let vault = start(&db).await;
    let pan = fresh_pan();
    let card = vault.client("checkout").card(&pan).await;
    age(&db, &card, 721 * HOUR_MS).await;
    let own = Arc::new(beside(&vault).await);
    let limits = own.policy.retention;
    let page = own.look_at_cards(limits, None, &Place::beginning(), 10).await.expect("a page");
    let (merchant, due) = page.due.into_iter().next().expect("one is due");
    let mut connection = sqlx::PgConnection::connect(&db.url).await.expect("connect");
    let mut payment = connection.begin().await.expect("begin");
    for statement in [
        format!(
            "INSERT INTO agreements (agreement_id, merchant, card_id, type, state, account, payment_request_id, consent, \
             version, created_at, updated_at) VALUES ('agr_{}', 'acme', '{card}', 'SCHEDULED', 'PENDING', 'a', 'p', '{{}}', 1, 1, 1)",
            "0".repeat(32)
        ),
        format!("UPDATE cards SET used_at = 7 WHERE card_id = '{card}'"),
    ] {
        payment.execute(sqlx::query(AssertSqlSafe(statement))).await.expect("a statement");
    }
    let eraser = Arc::clone(&own);
    let erasing = tokio::spawn(async move {
        eraser.erase_old_cards(&RunId::make().expect("entropy"), limits, &merchant, &due).await
    });
    eventually("it to wait", || async {
        let waiting = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        (number(&db, waiting).await > 0).then_some(())
    })
    .await;
    payment.commit().await.expect("commit");
    assert!(erasing.await.expect("a task").expect("no error").is_empty());
    assert!(is_kept(&vault.client("checkout"), &card).await);
    own.db.close().await;
    vault.finish(&[&pan]).await;
}
