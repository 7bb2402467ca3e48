//! Cards and agreements come from another vault: subscriptions go on at once, nothing comes twice, what is refused
//! is told without a word of it, and an import that is killed is finished by running it again.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::support::sql::number;
use super::support::vault::{TestVault, by_reference, fresh_pan, init, last_json, printed};
use super::support::{Database, eventually, leak, sql};

/// Runs `cardvault cards import --merchant acme …`: its exit code, and what it printed.
async fn import(vault: &TestVault, arguments: &[&str]) -> (Option<i32>, String) {
    let all: Vec<&str> = ["cards", "import", "--merchant", "acme"].iter().chain(arguments).copied().collect();
    vault.told(&all).await
}

fn lines(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("a file");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// A file with card numbers in it, as private as it should be.
fn file(vault: &TestVault, name: &str, text: &[u8]) -> String {
    let path = path(vault, name);
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    file.as_mut().expect("a file").write_all(text).expect("to write");
    path
}

fn path(vault: &TestVault, name: &str) -> String {
    let path: PathBuf = vault.dir.path().join(name);
    path.to_str().expect("UTF-8").to_owned()
}

fn agreement(kind: &str, chain: Option<&str>) -> Value {
    let mut agreement = json!({
        "type": kind,
        "consent": { "acceptedAt": "2025-02-03T04:05:06Z", "textVersion": "old-terms-3" },
        "maxAmount": { "currency": "EUR", "value": "5000" },
        "interval": "P1M",
    });
    if let Some(chain) = chain {
        agreement["networkTransactionId"] = json!(chain);
    }
    agreement
}

fn card(pan: &str, buyer: &str, agreements: &[Value]) -> Value {
    json!({
        "externalId": format!("old-{buyer}"), "cardNo": pan, "expiryMonth": "11", "expiryYear": "39",
        "cardholderName": { "firstName": "Tom", "lastName": "Jay" }, "billingAddress": { "region": "DE" },
        "referenceBuyerId": buyer, "agreements": agreements,
    })
}

/// A merchant-initiated payment.
fn by_merchant(id: &str, card: &str, buyer: &str, agreement: &str) -> String {
    let mut request: Value = serde_json::from_str(&by_reference(id, "4000", card)).expect("JSON");
    request["order"]["buyer"] = json!({ "referenceBuyerId": buyer });
    request["storedCredential"] = json!({ "initiator": "MERCHANT", "agreementId": agreement });
    request["env"].as_object_mut().expect("an object").remove("browserInfo");
    request["paymentMethod"].as_object_mut().expect("an object").remove("paymentMethodMetaData");
    request.to_string()
}

both_engines! {
    /// A dry run stores nothing, not even the first keys of a vault that was never started.
    async fn a_dry_run_of_a_new_vault_makes_no_keys(db: Database) {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("vault");
        init(&dir, &db.url);
        let pan = fresh_pan();
        let input = folder.path().join("cards.jsonl");
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&input).expect("a file");
        writeln!(file, "{}", card(&pan, "b-0", &[])).expect("to write");
        let run = async |arguments: &[&str]| {
            let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_cardvault"));
            let done = command.args(arguments).arg("--config").arg(dir.join("cardvault.toml")).output().await.expect("it runs");
            assert!(done.status.success(), "{}", printed(&done));
            printed(&done)
        };
        run(&["migrate"]).await;
        let said = run(&["cards", "import", "--merchant", "acme", "--dry-run", input.to_str().expect("UTF-8")]).await;
        assert!(said.contains("1 lines: 0 would be refused; nothing was stored"), "{said}");
        for table in ["data_keys", "audit", "cards"] {
            assert_eq!(number(&db, &format!("SELECT COUNT(*) FROM {table}")).await, 0, "{table}");
        }
    }

    /// A subscription goes on where it was: the imported agreement is in force, and its chain is sent with the
    /// first charge. A second import changes nothing.
    async fn subscriptions_go_on(db: Database) {
        let vault = TestVault::start(&db).await;
        let (checkout, subscriptions, rival) = (vault.client("checkout"), vault.client("subscriptions"), vault.client("rival"));
        let pans: Vec<String> = (0..4).map(|_| fresh_pan()).collect();
        let known = checkout.card(&pans[3]).await;
        let link = "abcDEF0123456789_-abcd";
        // The chain began elsewhere: at the same gateway, with the same card, in somebody else's vault.
        let elsewhere = rival.card(&pans[0]).await;
        let mut opening: Value = serde_json::from_str(&by_reference("ELSEWHERE_1", "100", &elsewhere)).expect("JSON");
        opening["storedCredential"] = json!({ "initiator": "CUSTOMER", "agreement": {
            "type": "SCHEDULED", "consent": { "acceptedAt": "2025-02-03T04:05:06Z", "textVersion": "v1" } } });
        let opened = rival.post("/v1/payments", &opening.to_string()).await.expect(200).text_at("/agreementId");
        let chain = rival.get(&format!("/v1/agreements/{opened}")).await.text_at("/networkTransactionId/value");
        let mut scheduled = agreement("SCHEDULED", Some(&chain));
        scheduled["transactionLinkId"] = json!(link);
        let mut nameless = card(&pans[3], "x", &[agreement("UNSCHEDULED", Some("NTI-4"))]);
        nameless.as_object_mut().expect("an object").remove("referenceBuyerId");
        let all = [
            card(&pans[0], "b-0", &[scheduled, agreement("CARD_ON_FILE", None)]),
            card(&pans[1], "b-1", &[]),
            card(&pans[2], "b-2", &[agreement("UNSCHEDULED", Some("NTI-3"))]),
            // The same card of the same buyer once more, with one agreement that it has and one that it has not.
            card(&pans[2], "b-2", &[agreement("UNSCHEDULED", Some("NTI-3")), agreement("SCHEDULED", Some("NTI-3"))]),
            // The same card of another buyer is another card.
            card(&pans[2], "b-3", &[]),
            nameless,
        ];
        let text: String = all.iter().map(|line| format!("{line}\n")).collect();
        let input = file(&vault, "cards.jsonl", text.as_bytes());
        let (mapping, refused) = (path(&vault, "mapping.jsonl"), path(&vault, "refused.jsonl"));
        let (code, said) = import(&vault, &[&input, "--dry-run"]).await;
        assert!(code == Some(0) && said.contains("6 lines: 0 would be refused"), "{said}");
        assert_eq!(number(&db, "SELECT COUNT(*) FROM cards").await, 2);
        let arguments = [input.as_str(), "--mapping", &mapping, "--refused", &refused, "--json"];
        let (code, said) = import(&vault, &arguments).await;
        let told = last_json(&said);
        assert_eq!((code, &told["event"], &told["lines"]), (Some(0), &json!("done"), &json!(6)), "{said}");
        assert_eq!((&told["newCards"], &told["knownCards"]), (&json!(4), &json!(2)), "{said}");
        assert_eq!((&told["newAgreements"], &told["knownAgreements"], &told["refused"]), (&json!(5), &json!(1), &json!(0)), "{said}");
        let map = lines(&mapping);
        assert_eq!(map.len(), 6);
        assert_eq!((&map[0]["line"], &map[0]["externalId"], &map[0]["new"]), (&json!(1), &json!("old-b-0"), &json!(true)));
        assert_eq!(map[2]["cardId"], map[3]["cardId"]);
        assert_eq!(map[2]["agreementIds"][0], map[3]["agreementIds"][0]);
        assert_ne!(map[2]["cardId"], map[4]["cardId"]);
        assert_eq!(map[5]["cardId"], json!(known));
        for file in [&mapping, &refused] {
            assert_eq!(std::fs::metadata(file).expect("a file").permissions().mode() & 0o077, 0);
        }

        let (card_id, agreed) = (map[0]["cardId"].as_str().expect("a card"), map[0]["agreementIds"][0].as_str().expect("an agreement"));
        let shown = checkout.get(&format!("/v1/cards/{card_id}")).await.expect(200).json();
        assert_eq!((&shown["expiryYear"], &shown["referenceBuyerId"], &shown["cardholderName"]["firstName"]), (&json!("39"), &json!("b-0"), &json!("Tom")));
        let terms = checkout.get(&format!("/v1/agreements/{agreed}")).await.expect(200).json();
        assert_eq!((&terms["state"], &terms["paymentRequestId"], &terms["consent"]["textVersion"]), (&json!("ACTIVE"), &Value::Null, &json!("old-terms-3")));
        assert_eq!((&terms["networkTransactionId"]["value"], &terms["networkTransactionId"]["source"]), (&json!(chain), &json!("import")));
        assert_eq!(terms["transactionLinkId"]["value"], json!(link));
        rival.get(&format!("/v1/cards/{card_id}")).await.expect_problem(404, "not_found");
        // A card that was here keeps what is known of it here.
        assert_eq!(checkout.get(&format!("/v1/cards/{known}")).await.expect(200).text_at("/expiryYear"), "29");

        let paid = subscriptions.post("/v1/payments", &by_merchant("IMP_1", card_id, "b-0", agreed)).await.expect(200);
        assert_eq!(paid.text_at("/status"), "AUTHORIZED", "{}", paid.text);
        let calls = vault.sandbox.recent_calls();
        let call = calls.iter().rev().find(|call| call.path.ends_with("/pay")).expect("a payment");
        let sent: Value = serde_json::from_str(&call.request).expect("JSON");
        let sent = &sent["paymentMethod"]["paymentMethodMetaData"];
        assert_eq!((&sent["cardNo"], &sent["networkTransactionId"], &sent["recurringType"]), (&json!(format!("************{}", &pans[0][12..])), &json!(chain), &json!("SCHEDULED")));
        // What is withdrawn here stays withdrawn, whatever an old file says.
        let withdrawn = map[2]["agreementIds"][0].as_str().expect("an agreement");
        checkout.delete(&format!("/v1/agreements/{withdrawn}")).await.expect(204);

        let told = eventually("the feed", || async {
            let page = checkout.get("/v1/events?limit=100").await.expect(200).json();
            let of = |kind: &str| page["data"].as_array().expect("events").iter().filter(|event| event["type"] == kind).count();
            (of("card.stored") == 5 && of("agreement.active") == 5).then_some(())
        });
        told.await;
        let rows = |table: &'static str| number(&db, table);
        let before = (rows("SELECT COUNT(*) FROM cards").await, rows("SELECT COUNT(*) FROM agreements").await, rows("SELECT COUNT(*) FROM events").await);
        let stored = rows("SELECT COUNT(*) FROM audit WHERE action IN ('card.store', 'card.update', 'agreement.import')").await;
        assert_eq!(stored, 6 + 5);
        let newest = rows("SELECT MAX(updated_at) FROM cards").await;
        let used = "SELECT COALESCE(SUM(used_at), 0) FROM cards";
        let before_used = rows(used).await;
        let again = path(&vault, "again.jsonl");
        let (code, said) = import(&vault, &[&input, "--mapping", &again, "--json"]).await;
        let told = last_json(&said);
        assert_eq!((code, &told["newCards"], &told["newAgreements"], &told["knownAgreements"]), (Some(0), &json!(0), &json!(0), &json!(6)), "{said}");
        let after = (rows("SELECT COUNT(*) FROM cards").await, rows("SELECT COUNT(*) FROM agreements").await, rows("SELECT COUNT(*) FROM events").await);
        assert_eq!(after, before);
        assert_eq!(rows("SELECT COUNT(*) FROM audit WHERE action IN ('card.store', 'card.update', 'agreement.import')").await, stored);
        assert_eq!((rows("SELECT MAX(updated_at) FROM cards").await, rows(used).await), (newest, before_used));
        assert_eq!(checkout.get(&format!("/v1/agreements/{withdrawn}")).await.text_at("/state"), "ENDED");
        for (one, other) in map.iter().zip(lines(&again)) {
            assert_eq!((&one["line"], &one["cardId"], &one["agreementIds"]), (&other["line"], &other["cardId"], &other["agreementIds"]));
        }
        let rows = sql::rows(&db, "SELECT actor, merchant FROM audit WHERE action = 'agreement.import'").await;
        assert!(rows.iter().all(|row| row[0].as_deref().is_some_and(|actor| actor.starts_with("cli:uid-")) && row[1].as_deref() == Some("acme")));
        let secrets: Vec<&str> = pans.iter().map(String::as_str).collect();
        for said in [std::fs::read(&mapping).expect("a file"), std::fs::read(&again).expect("a file"), said.into_bytes()] {
            assert!(leak::find(&secrets, &said).is_empty());
        }
        vault.finish(&secrets).await;
    }

    /// What is refused is told by line, pointer and code, by the API's own codes and with nothing of the line; the
    /// lines around it are taken. Standard input does as well as a file.
    async fn what_is_refused_is_told(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pans: Vec<String> = (0..10).map(|_| fresh_pan()).collect();
        let good = |at: usize| card(&pans[at], &format!("b-{at}"), &[]).to_string();
        let mut bad: Vec<(String, &str, &str)> = Vec::new();
        let change = |at: usize, from: &str, to: &str| {
            let line = good(at);
            assert!(line.contains(from), "{from}");
            line.replacen(from, to, 1)
        };
        bad.push((change(1, "\"39\"", "\"20\""), "/expiryYear", "expired"));
        bad.push((change(2, "\"11\"", "\"13\""), "/expiryMonth", "invalid_value"));
        let digit = pans[3].chars().last().and_then(|digit| digit.to_digit(10)).expect("a digit");
        let wrong = format!("{}{}", &pans[3][..15], (digit + 1) % 10);
        bad.push((good(3).replace(&pans[3], &wrong), "/cardNo", "invalid_check_digit"));
        bad.push((change(4, "\"region\"", "\"colour\""), "/billingAddress", "unknown_field"));
        bad.push((change(5, "\"expiryMonth\"", "\"expiryYear\""), "/expiryYear", "duplicate_member"));
        bad.push((good(6).trim_end_matches('}').to_owned(), "", "malformed_json"));
        // The API says the same of the same.
        for (line, pointer, code) in &bad {
            let body = line.replacen(",\"agreements\":[]", "", 1).replacen("\"agreements\":[],", "", 1);
            let start = body.find("\"externalId\"").expect("a member");
            let body = format!("{}{}", &body[..start], &body[start + body[start..].find(',').expect("a comma") + 1..]);
            let answer = checkout.post("/v1/cards", &body).await;
            assert!(answer.text.contains(code) && answer.text_at("/errors/0/pointer") == *pointer, "{code}: {}", answer.text);
        }
        bad.push((change(7, "\"old-b-7\"", &format!("\"was {}\"", pans[7])), "/externalId", "card_data_outside_card"));
        bad.push((change(8, "\"agreements\":[]", "\"agreements\":[{\"type\":\"SCHEDULED\"}]"), "/agreements/0/consent", "required"));
        bad.push((format!("{{\"{}\":\"{}\"}}", "x".repeat(65 * 1024), pans[8]), "", "body_too_large"));
        let mut text = vec![0xff, b'\n'];
        text.extend(format!("{}\r\n\n   \n", good(0)).bytes());
        for (line, _, _) in &bad {
            text.extend(format!("{line}\n").bytes());
        }
        text.extend(good(9).bytes());
        let refused = path(&vault, "refused.jsonl");
        let mut command = vault.command(&["cards", "import", "--merchant", "acme", "-", "--refused", &refused, "--json", "--batch", "3"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        let mut pipe = child.stdin.take().expect("piped");
        pipe.write_all(&text).await.expect("to write");
        drop(pipe);
        let done = child.wait_with_output().await.expect("its end");
        let said = printed(&done);
        let told = last_json(&said);
        let count = bad.len() + 1;
        assert_eq!((done.status.code(), &told["newCards"], &told["refused"]), (Some(0), &json!(2), &json!(count)), "{said}");
        let report = lines(&refused);
        assert_eq!(report.len(), count, "{report:?}");
        assert_eq!((&report[0]["line"], &report[0]["errors"][0]["code"]), (&json!(1), &json!("malformed_json")));
        for (at, ((_, pointer, code), told)) in bad.iter().zip(&report[1..]).enumerate() {
            let errors = told["errors"].as_array().expect("errors");
            assert_eq!(told["line"], json!(at + 5), "{told}");
            assert!(errors.iter().any(|error| error["pointer"] == *pointer && error["code"] == *code), "{code}: {told}");
        }
        assert_eq!(number(&db, "SELECT COUNT(*) FROM cards").await, 2);
        assert_eq!(number(&db, "SELECT COUNT(*) FROM audit WHERE action = 'card.store' AND outcome = 'refused' AND object LIKE 'line %'").await, i64::try_from(count).expect("few"));
        let mut secrets: Vec<&str> = pans.iter().map(String::as_str).collect();
        secrets.push(&wrong);
        assert!(leak::find(&secrets, said.as_bytes()).is_empty() && leak::find(&secrets, &std::fs::read(&refused).expect("a file")).is_empty());
        let input = file(&vault, "cards.jsonl", &text);
        for (arguments, told) in [
            (&["--merchant", "acme", "/nowhere/cards.jsonl"][..], "/nowhere/cards.jsonl"),
            (&["--merchant", "nobody", &input], "--merchant"),
            (&["--merchant", "acme", "-", "--checkpoint", "x"], "--checkpoint"),
        ] {
            let all: Vec<&str> = ["cards", "import"].iter().chain(arguments).copied().collect();
            let done = vault.run(&all).await;
            assert!(done.status.code() == Some(1) && String::from_utf8_lossy(&done.stderr).contains(told), "{done:?}");
        }
        // One that fails on its way is no success in the trail.
        let failed = "SELECT COUNT(*) FROM audit WHERE action = 'cards.import' AND outcome = 'refused' AND detail = 'failed'";
        assert_eq!(number(&db, failed).await, 0);
        let (code, said) = import(&vault, &[&input, "--mapping", "/dev/full"]).await;
        assert!(code == Some(1) && number(&db, failed).await == 1, "{said}");
        std::fs::set_permissions(&input, std::fs::Permissions::from_mode(0o644)).expect("a mode");
        assert!(import(&vault, &[&input, "--dry-run"]).await.1.contains("chmod 600"));
        vault.finish(&secrets).await;
    }

    /// Killed twice, with a checkpoint and without, and with another import of the same file beside it, it ends as
    /// one that was never killed: every card once, every agreement once, one line of the mapping for each.
    async fn an_import_survives_being_killed(db: Database) {
        const CARDS: usize = 300;
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pans: Vec<String> = (0..CARDS).map(|_| fresh_pan()).collect();
        let all = pans.iter().enumerate().map(|(at, pan)| {
            let chain = format!("NTI-{at}");
            card(pan, &format!("b-{at}"), &[agreement("SCHEDULED", Some(&chain))])
        });
        let text: String = all.map(|line| format!("{line}\n")).collect();
        let input = file(&vault, "cards.jsonl", text.as_bytes());
        let (mapping, checkpoint) = (path(&vault, "mapping.jsonl"), path(&vault, "checkpoint.json"));
        let arguments = ["cards", "import", "--merchant", "acme", &input, "--mapping", &mapping, "--checkpoint", &checkpoint, "--batch", "7", "--pause-ms", "15", "--parallel", "2"];
        for kill_at in [30, 120] {
            let mut running = vault.command(&arguments).spawn().expect("it runs");
            eventually("some to be stored", || async {
                (number(&db, "SELECT COUNT(*) FROM cards").await >= kill_at).then_some(())
            })
            .await;
            running.kill().await.expect("a kill");
            let stored = number(&db, "SELECT COUNT(*) FROM cards").await;
            assert!(stored < i64::try_from(CARDS).expect("few"), "it was killed too late");
            assert_eq!(number(&db, "SELECT COUNT(*) FROM agreements").await, stored);
        }
        // By the checkpoint alone: nobody else brings what it passes over. A caller is served meanwhile.
        let beside = fresh_pan();
        let (done, _) = tokio::join!(vault.run(&arguments), checkout.card(&beside));
        assert!(done.status.success(), "{done:?}");
        assert!(!std::path::Path::new(&checkpoint).exists());
        let count = i64::try_from(CARDS).expect("few");
        assert_eq!(number(&db, "SELECT COUNT(*) FROM cards").await, count + 1);
        // Two at once, of what is there already.
        let again = [input.as_str(), "--batch", "11"];
        let (one, other) = tokio::join!(import(&vault, &again), import(&vault, &again));
        assert!(one.0 == Some(0) && other.0 == Some(0), "{} {}", one.1, other.1);
        for (query, expected) in [
            ("SELECT COUNT(*) FROM cards", count + 1),
            ("SELECT COUNT(*) FROM agreements WHERE state = 'ACTIVE'", count),
            ("SELECT COUNT(DISTINCT card_id) FROM agreements", count),
            ("SELECT COUNT(*) FROM events WHERE kind = 'card.stored'", count + 1),
            ("SELECT COUNT(*) FROM events WHERE kind = 'agreement.active'", count),
            ("SELECT COUNT(*) FROM audit WHERE action = 'card.store'", count + 1),
        ] {
            assert_eq!(number(&db, query).await, expected, "{query}");
        }
        let map = lines(&mapping);
        assert_eq!(map.iter().map(|line| line["line"].as_u64().expect("a number")).collect::<Vec<_>>(), (1..=300).collect::<Vec<_>>());
        for at in [0, 17, 150, CARDS - 1] {
            let card = map[at]["cardId"].as_str().expect("a card");
            let shown = checkout.get(&format!("/v1/cards/{card}")).await.expect(200);
            assert_eq!((shown.text_at("/last4"), shown.text_at("/referenceBuyerId")), (pans[at][12..].to_owned(), format!("b-{at}")));
            let agreed = map[at]["agreementIds"][0].as_str().expect("an agreement");
            assert_eq!(checkout.get(&format!("/v1/agreements/{agreed}")).await.text_at("/cardId"), card);
        }
        // A checkpoint of another file is not followed.
        let done = vault.run(&arguments).await;
        assert!(done.status.success());
        std::fs::write(&checkpoint, "{}").expect("to write");
        let done = vault.run(&arguments).await;
        assert!(done.status.code() == Some(1) && String::from_utf8_lossy(&done.stderr).contains("checkpoint"), "{done:?}");
        std::fs::remove_file(&checkpoint).expect("a file");

        // Told to stop while a pipe says nothing, it ends, and says so.
        let mut command = vault.command(&["cards", "import", "--merchant", "acme", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        let mut pipe = child.stdin.take().expect("piped");
        let last = fresh_pan();
        let many: String = (0..150).map(|at| format!("{}\n", card(if at == 0 { &last } else { &pans[at] }, &format!("z-{at}"), &[]))).collect();
        pipe.write_all(many.as_bytes()).await.expect("to write");
        eventually("some to be stored", || async {
            (number(&db, "SELECT COUNT(*) FROM cards").await > count + 1).then_some(())
        })
        .await;
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().expect("it runs")).expect("a pid")).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("to tell it to stop");
        let done = child.wait_with_output().await.expect("its end");
        assert!(done.status.code() == Some(1) && String::from_utf8_lossy(&done.stderr).contains("interrupted after line 100"), "{done:?}");
        drop(pipe);
        let mut secrets: Vec<&str> = pans.iter().map(String::as_str).collect();
        secrets.extend([beside.as_str(), last.as_str()]);
        vault.finish(&secrets).await;
    }
}

/// Into a vault that was never started, its keys are made; rotated keys are followed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_is_filled_before_it_is_started() {
    let db = Database::sqlite();
    let mut vault = TestVault::start(&db).await;
    vault.stop().await;
    let fresh = Database::sqlite();
    vault.environment.push(("CARDVAULT_DATABASE_URL".to_owned(), fresh.url.clone()));
    let pan = fresh_pan();
    let input = file(
        &vault,
        "cards.jsonl",
        card(&pan, "b", &[agreement("SCHEDULED", Some("N"))]).to_string().as_bytes(),
    );
    let (code, said) = import(&vault, &[&input]).await;
    assert!(code == Some(1) && said.contains("cardvault migrate"), "{said}");
    assert!(vault.run(&["migrate"]).await.status.success());
    let (code, said) = import(&vault, &[&input]).await;
    assert!(code == Some(0) && said.contains("1 cards are new"), "{said}");
    vault.environment.clear();
    vault.config.database.url.clone_from(&fresh.url);
    vault.restart().await;
    let found = vault.client("checkout").get("/v1/cards?referenceBuyerId=b").await.expect(200).json();
    assert_eq!(found["data"][0]["last4"], json!(pan[12..]));
    fresh.assert_clean(&[&pan]);
    vault.finish(&[&pan]).await;
}
