//! The audit trail: every access has its row, what cannot be recorded does not happen, and whatever is done
//! to the trail afterwards is found.

use std::time::Duration;

use serde_json::Value;

use super::group_commit::Held;
use super::support::notices::{Posted, Sign};
use super::support::sql::number;
use super::support::vault::{TestVault, by_reference, fresh_pan, typed};
use super::support::wire::Wire;
use super::support::{eventually, sql};

/// `audit export`.
async fn rows(vault: &TestVault) -> Vec<Value> {
    let done = vault.run(&["audit", "export"]).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8(done.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn of<'a>(rows: &'a [Value], action: &str) -> Vec<&'a Value> {
    rows.iter().filter(|row| row["action"] == action).collect()
}

/// `audit verify`: its exit code, and what it said.
async fn verify(vault: &TestVault, more: &[&str]) -> (Option<i32>, String) {
    let all: Vec<&str> = ["audit", "verify"].iter().chain(more).copied().collect();
    vault.told(&all).await
}

both_engines! {
    /// Who did what to which object, when, from where, in which request: PCI DSS 10.2.2.
    async fn every_access_has_its_row(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let (pan, other) = (fresh_pan(), fresh_pan());
        let card = checkout.card(&pan).await;
        checkout.send("PATCH", &format!("/v1/cards/{card}"), r#"{"expiryYear":"30","expiryMonth":"11"}"#).await.expect(200);
        checkout.send("PUT", &format!("/v1/cards/{card}/cvv"), r#"{"cvv":"123"}"#).await.expect(200);
        checkout.post("/v1/payments", &by_reference("AUDIT_1", "100", &card)).await.expect(200);
        checkout.post("/v1/payments", &typed("AUDIT_2", "100", &other, "123")).await.expect(200);
        let read = checkout.get(&format!("/v1/cards/{card}")).await.expect(200);
        checkout.get(&format!("/v1/cards/{pan}")).await.expect(404);
        checkout.get(&format!("/v1/{pan}")).await.expect(404);
        checkout.post("/v1/cards", &format!(r#"{{"{pan}":1}}"#)).await.expect(422);
        checkout.delete(&format!("/v1/cards/{card}")).await.expect(204);
        vault.stop().await;

        let all = rows(&vault).await;
        for (action, objects) in [
            ("card.store", 2), ("card.update", 1), ("cvv.hold", 1), ("payment.create", 2), ("card.erase", 1),
        ] {
            assert!(of(&all, action).len() >= objects, "{action}: {all:#?}");
        }
        let erased = of(&all, "card.erase")[0];
        assert_eq!((&erased["object"], &erased["outcome"]), (&card.as_str().into(), &"done".into()));
        assert_eq!((&erased["actor"], &erased["merchant"]), (&"client:checkout".into(), &"acme".into()));
        assert!(erased["origin"].as_str().is_some_and(|origin| origin.contains("127.0.0.1:") && origin.contains("certificate")));
        assert!(erased["requestId"].as_str().is_some_and(|id| id.starts_with("req_")), "{erased}");
        let reads = of(&all, "read");
        assert!(reads.iter().any(|row| row["object"] == format!("/v1/cards/{card}")), "{reads:?} {}", read.status);
        let refused: Vec<(&str, &str)> = of(&all, "request").iter()
            .filter(|row| row["outcome"] == "refused")
            .filter_map(|row| Some((row["object"].as_str()?, row["detail"].as_str()?)))
            .collect();
        assert_eq!(refused.len(), 3, "{refused:?}");
        assert!(refused.contains(&("GET /v1/cards/{card_id}", "not_found")), "{refused:?}");
        assert!(refused.contains(&("GET none", "not_found")), "{refused:?}");
        assert!(refused.iter().any(|(route, _)| *route == "POST /v1/cards"), "{refused:?}");
        // Whoever acts, there is a place from which it was done, and a time (PCI DSS 10.2.2).
        for row in &all {
            let text = |name: &str| row[name].as_str().is_some_and(|text| !text.is_empty());
            assert!(["at", "actor", "action", "outcome", "origin"].iter().all(|name| text(name)), "{row}");
        }
        // Ended as it should: every chain is closed.
        let (code, said) = verify(&vault, &[]).await;
        assert_eq!((code, said.contains("open ")), (Some(0), false), "{said}");
        vault.finish(&[&pan, &other]).await;
    }

    /// Who is turned away before he could ask for anything has a row too (PCI DSS 10.2.1.4), and so has a
    /// notification that is not the gateway's; a flood has few.
    async fn strangers_have_their_rows(db: Database) {
        let vault = TestVault::start_notified(&db, &[]).await;
        for _ in 0..30 {
            // With TLS 1.3 the client learns of it at its first read.
            if let Ok(mut wire) = Wire::connect(&vault, None).await {
                wire.request("GET", "/v1/whoami", None).await.expect_err("an answer without a certificate");
            }
        }
        let mut forged = Posted::new("{}");
        forged.sign = Sign::OtherKey;
        forged.send(&vault).await.expect(401);
        let told = async |action: &str| {
            let columns = "actor, outcome, origin, detail";
            sql::rows(&db, &format!("SELECT {columns} FROM audit WHERE action = '{action}' ORDER BY at, seq")).await
        };
        let words = |row: &[Option<String>]| row.iter().map(|word| word.clone().unwrap_or_default()).collect::<Vec<_>>();
        let rows = eventually("a row of the forgery", || async {
            let rows = told("notification").await;
            (!rows.is_empty()).then_some(rows)
        })
        .await;
        assert_eq!(words(&rows[0]), ["peer:unknown", "refused", "127.0.0.1", "not_verified"]);
        let rows = told("connection").await;
        assert_eq!(words(&rows[0]), ["peer:unknown", "refused", "127.0.0.1", "no client certificate"]);
        assert!(rows.len() < 30, "a row for each of a flood");
        vault.finish(&[]).await;
    }

    /// What cannot be recorded does not happen, and is not answered.
    async fn without_a_row_nothing_happens(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let (pan, other) = (fresh_pan(), fresh_pan());
        let card = checkout.card(&pan).await;
        sql::execute(&db, "ALTER TABLE audit RENAME TO audit_away").await;
        let stored = checkout.post("/v1/cards", &format!(r#"{{"cardNo":"{other}","expiryYear":"30","expiryMonth":"10"}}"#)).await;
        stored.expect_problem(503, "unavailable");
        checkout.delete(&format!("/v1/cards/{card}")).await.expect_problem(503, "unavailable");
        checkout.post("/v1/payments", &by_reference("AUDIT_3", "100", &card)).await.expect_problem(503, "unavailable");
        checkout.get("/v1/nothing").await.expect_problem(503, "unavailable");
        // A masked read waits for no row, but there is none once the rows before it cannot be written.
        let path = format!("/v1/cards/{card}");
        let mut served = 0;
        while checkout.get(&path).await.status == 200 {
            served += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        checkout.get(&path).await.expect_problem(503, "unavailable");
        assert_eq!(vault.charges("AUDIT_3"), 0);
        sql::execute(&db, "ALTER TABLE audit_away RENAME TO audit").await;
        eventually("reads to be recorded again", || async { (checkout.get(&path).await.status == 200).then_some(()) }).await;
        let read = || number(&db, "SELECT COUNT(*) FROM audit WHERE action = 'read'");
        eventually("every read to have its row", || async { (read().await == served + 1).then_some(()) }).await;
        let count = number(&db, "SELECT COUNT(*) FROM cards").await;
        assert_eq!(count, 1);
        checkout.post("/v1/payments", &by_reference("AUDIT_3", "100", &card)).await.expect(200);
        assert_eq!(vault.charges("AUDIT_3"), 1);
        vault.finish(&[&pan, &other]).await;
    }

    /// A caller who hangs up before he is answered was refused all the same: each refusal has its row, and no
    /// chain is given up for it.
    async fn a_refusal_has_its_row_though_its_caller_has_gone(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let refused = [
            &b"GET /v1/cards?limit=x HTTP/1.1\r\nhost: vault\r\n\r\n"[..],
            b"PUT /v1/cards HTTP/1.1\r\nhost: vault\r\n\r\n",
            b"POST /v1/cards HTTP/1.1\r\nhost: vault\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
        ];
        // They all wait for their rows when their callers go.
        let mut wires = Vec::new();
        for _ in 0..12 {
            wires.push(Wire::client(&vault, "checkout").await);
        }
        let held = Held::hold(&db, "audit").await;
        for (wire, request) in wires.iter_mut().zip(refused.iter().cycle()) {
            wire.send(request).await.expect("sent");
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        drop(wires);
        tokio::time::sleep(Duration::from_millis(200)).await;
        held.release().await;
        let rows = || number(&db, "SELECT COUNT(*) FROM audit WHERE action = 'request' AND outcome = 'refused'");
        eventually("every refusal to have its row", || async { (rows().await == 12).then_some(()) }).await;
        // And at every moment of its being written, the commit among them.
        for (n, request) in (0..150_u64).zip(refused.iter().cycle()) {
            let mut wire = Wire::client(&vault, "checkout").await;
            wire.send(request).await.expect("sent");
            tokio::time::sleep(Duration::from_micros(n % 50 * 200)).await;
        }
        vault.stop().await;
        let (code, said) = verify(&vault, &[]).await;
        assert_eq!((code, said.contains("open ")), (Some(0), false), "{said}");
        vault.finish(&[]).await;
    }

    /// Who reads the trail is in it (PCI DSS 10.2.1.3), before he reads, and leaves no chain open.
    async fn who_reads_the_trail_is_in_it(db: Database) {
        let mut vault = TestVault::start(&db).await;
        vault.client("checkout").card(&fresh_pan()).await;
        vault.stop().await;
        assert_eq!(of(&rows(&vault).await, "audit.export").len(), 1);
        let some = vault.run(&["audit", "export", "--from", "2026-01-02T00:00:00Z", "--until", "2026-01-03T00:00:00Z"]).await;
        assert!(some.status.success() && some.stdout.is_empty(), "{some:?}");
        assert!(some.stderr.is_empty(), "{}", String::from_utf8_lossy(&some.stderr));
        let (code, said) = verify(&vault, &[]).await;
        assert_eq!((code, said.contains("open ")), (Some(0), false), "{said}");
        let all = rows(&vault).await;
        let exports = of(&all, "audit.export");
        assert_eq!(exports.len(), 3, "{exports:?}");
        assert_eq!(exports[0]["detail"], "from the beginning until now");
        assert_eq!(exports[1]["detail"], "from 2026-01-02T00:00:00.000Z until 2026-01-03T00:00:00.000Z");
        let verified = of(&all, "audit.verify");
        assert_eq!((verified.len(), &verified[0]["detail"]), (1, &"without checkpoints".into()));
        let user = format!("cli:uid-{}", rustix::process::getuid().as_raw());
        for row in exports.iter().chain(&verified) {
            assert_eq!((&row["actor"], &row["object"]), (&user.as_str().into(), &"audit".into()));
        }
        // Where nothing can be recorded, the trail is read all the same, and that is said.
        let keyring = vault.dir.path().join("keys/keyring.toml");
        let away = keyring.with_extension("away");
        std::fs::rename(&keyring, &away).expect("moved");
        let read = vault.run(&["audit", "export"]).await;
        std::fs::rename(&away, &keyring).expect("moved");
        assert!(read.status.success() && !read.stdout.is_empty(), "{read:?}");
        assert!(String::from_utf8_lossy(&read.stderr).contains("is not recorded in it"), "{read:?}");
        assert_eq!(of(&rows(&vault).await, "audit.export").len(), 4);
        vault.finish(&[]).await;
    }

    /// A row that was altered, removed or moved is named; a chain that was cut off or removed is told by a
    /// checkpoint.
    async fn what_is_done_to_the_trail_is_found(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let pan = fresh_pan();
        let mut program = vault.start_program().await;
        let caller = vault.client("checkout");
        let card = caller.card(&pan).await;
        for _ in 0..4 {
            caller.send("PATCH", &format!("/v1/cards/{card}"), r#"{"expiryYear":"30","expiryMonth":"11"}"#).await.expect(200);
            caller.send("PATCH", &format!("/v1/cards/{card}"), r#"{"expiryYear":"30","expiryMonth":"12"}"#).await.expect(200);
        }
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(i32::try_from(program.id()).expect("a pid")).expect("a pid"),
            rustix::process::Signal::TERM,
        ).expect("to tell it to stop");
        tokio::task::spawn_blocking(move || program.wait()).await.expect("a task").expect("its end");
        let log = vault.program_log();
        let log = log.to_str().expect("UTF-8");
        let (code, said) = verify(&vault, &["--checkpoints", log]).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains(" 0 checkpoints"), "{said}");
        let newer = |said: &str| {
            let line = said.lines().find(|line| line.contains("newer than the newest checkpoint")).expect(said);
            line.split(' ').next().and_then(|count| count.parse::<u64>().ok()).expect("a count")
        };
        let before = newer(&said);

        let row = "chain = (SELECT chain FROM audit WHERE action = 'card.update' ORDER BY chain LIMIT 1)";
        let seq = number(&db, &format!("SELECT MAX(seq) - 2 FROM audit WHERE {row}")).await;
        assert!(seq > 0);
        sql::execute(&db, "CREATE TABLE audit_copy AS SELECT * FROM audit").await;
        let newest = format!("SELECT MAX(seq) FROM audit_copy WHERE {}", row.replace("FROM audit ", "FROM audit_copy "));
        let harms = [
            (
                format!(
                    "UPDATE audit SET seq = 1000000 WHERE {row} AND seq = {seq}; \
                     UPDATE audit SET seq = {seq} WHERE {row} AND seq = {seq} + 1; \
                     UPDATE audit SET seq = {seq} + 1 WHERE {row} AND seq = 1000000"
                ),
                "is not where it was written",
                true,
            ),
            (format!("UPDATE audit SET object = 'card_x' WHERE {row} AND seq = {seq}"), "was altered", true),
            (format!("UPDATE audit SET at = at + 1 WHERE {row} AND seq = {seq}"), "was altered", true),
            (format!("DELETE FROM audit WHERE {row} AND seq = {seq}"), "missing", true),
            (format!("UPDATE audit SET chain = 'boot_0/1' WHERE {row} AND seq = {seq}"), "missing", true),
            (format!("DELETE FROM audit WHERE {row} AND seq >= ({newest}) - 1"), "missing", false),
            (format!("DELETE FROM audit WHERE {row}"), "missing", false),
        ];
        for (harm, told, alone) in harms {
            for statement in harm.split("; ") {
                sql::execute(&db, statement).await;
            }
            let (code, said) = verify(&vault, &["--checkpoints", log]).await;
            assert!(code == Some(1) && said.contains("WRONG") && said.contains(told), "{harm}: {said}");
            // A trail that ends too early is whole in itself: that is what checkpoints are for.
            let (code, said) = verify(&vault, &[]).await;
            assert_eq!(code, Some(if alone { 1 } else { 0 }), "{harm}: {said}");
            sql::execute(&db, "DELETE FROM audit").await;
            sql::execute(&db, "INSERT INTO audit SELECT * FROM audit_copy").await;
        }
        // A checkpoint that somebody else has written is none.
        let text = std::fs::read_to_string(log).expect("the log");
        let forged = vault.dir.path().join("forged.log");
        let line = text.lines().rfind(|line| line.contains("checkpoint/1")).expect("a checkpoint");
        std::fs::write(&forged, line.replace(r#"\\\"seq\\\":"#, r#"\\\"seq\\\":1"#)).expect("to write");
        let (code, said) = verify(&vault, &["--checkpoints", forged.to_str().expect("UTF-8")]).await;
        assert!(code == Some(1) && said.contains("signature"), "{said}");
        assert_eq!(verify(&vault, &["--checkpoints", log]).await.0, Some(0));
        sql::execute(&db, "DROP TABLE audit_copy").await;
        // What comes after the newest checkpoint is not vouched for, and is said not to be.
        vault.restart().await;
        vault.client("checkout").card(&fresh_pan()).await;
        let (code, said) = verify(&vault, &["--checkpoints", log]).await;
        assert!(code == Some(0) && newer(&said) > before, "{said}");
        vault.finish(&[&pan]).await;
    }
}
