//! The fingerprint key.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cardvault::store::backend::Work;

use super::doorman::{Doorman, PACE, command_through};
use super::{id, ids, keys, number, refused, status};
use crate::support::sql;
use crate::support::vault::{TestVault, fresh_pan};

both_engines! {
    /// Two servers store the same numbers again and again, at the same moment, while the fingerprint key is
    /// rotated twice: no number gets two references, and an old `fp_…` is found until its key is destroyed.
    async fn two_servers_store_the_same_numbers_throughout(db: Database) {
        let vault = TestVault::start(&db).await;
        let second = vault.another().await;
        let caller = vault.client("checkout");
        let callers = [caller.clone(), caller.at(second.address)];
        let pans: Arc<Vec<String>> = Arc::new((0..40).map(|_| fresh_pan()).collect());
        for pan in pans.iter().take(10) {
            caller.card(pan).await;
        }
        let first = caller.card(&pans[0]).await;
        let old_fingerprint = caller.get(&format!("/v1/cards/{first}")).await.text_at("/fingerprint");
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = tokio::task::JoinSet::new();
        for caller in &callers {
            for _ in 0..2 {
                let (caller, pans, stop) = (caller.clone(), Arc::clone(&pans), Arc::clone(&stop));
                workers.spawn(async move {
                    let mut known: HashMap<String, String> = HashMap::new();
                    let mut round = 0;
                    while !stop.load(Ordering::Relaxed) {
                        // All workers come to a number that was never seen at about the same moment.
                        let upto = (10 + round).min(pans.len());
                        for pan in &pans[..upto] {
                            let card = caller.card(pan).await;
                            let before = known.insert(pan.clone(), card.clone());
                            assert!(before.is_none_or(|before| before == card), "a second reference");
                        }
                        round += 1;
                    }
                    known
                });
            }
        }
        let kek = id(&status(&vault).await, "fingerprint", "active");
        keys(&vault, &["rotate", "fingerprint", "--batch", "2", "--pause-ms", "30"]).await;
        let now = status(&vault).await;
        assert_ne!(id(&now, "fingerprint", "active"), kek);
        let found = async |fingerprint: &str| {
            let list = caller.get(&format!("/v1/cards?fingerprint={fingerprint}")).await.expect(200).json();
            list["data"].as_array().map_or(0, Vec::len)
        };
        let shown = async || {
            let now = caller.get(&format!("/v1/cards/{first}")).await.text_at("/fingerprint");
            (now != old_fingerprint).then_some(now)
        };
        let new_fingerprint = crate::support::eventually("the new fingerprint", shown).await;
        assert_eq!((found(&old_fingerprint).await, found(&new_fingerprint).await), (1, 1));
        let said = refused(&vault, &["rotate", "fingerprint"]).await;
        assert!(said.contains("keys destroy") && said.contains(&kek), "{said}");
        keys(&vault, &["destroy", &kek]).await;
        assert_eq!((found(&old_fingerprint).await, found(&new_fingerprint).await), (0, 1));
        keys(&vault, &["rotate", "fingerprint", "--batch", "3", "--pause-ms", "10", "--json"]).await;
        stop.store(true, Ordering::Relaxed);
        let mut all: HashMap<String, String> = HashMap::new();
        while let Some(worker) = workers.join_next().await {
            for (pan, card) in worker.expect("a worker saw an error") {
                let before = all.insert(pan, card.clone());
                assert!(before.is_none_or(|before| before == card), "two servers gave two references");
            }
        }
        assert_eq!(number(&db, "SELECT count(*) FROM cards").await, i64::try_from(all.len()).unwrap());
        for (pan, card) in &all {
            assert_eq!(caller.card(pan).await, *card);
        }
        second.stop().await;
        let secrets: Vec<&str> = pans.iter().map(String::as_str).collect();
        vault.finish(&secrets).await;
    }

    /// Killed at any instant, the rotation is finished by the next run with the key that was announced.
    async fn a_rotation_that_was_killed_is_finished(db: Database) {
        let vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let mut cards = Vec::new();
        for _ in 0..30 {
            let pan = fresh_pan();
            cards.push((pan.clone(), caller.card(&pan).await));
        }
        let old = id(&status(&vault).await, "fingerprint", "active");
        for round in 0..5_u64 {
            let arguments = ["keys", "rotate", "fingerprint", "--batch", "1", "--pause-ms", "100"];
            let mut run = vault.command(&arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50 + 150 * round)).await;
            run.kill().await.unwrap();
            let pan = fresh_pan();
            cards.push((pan.clone(), caller.card(&pan).await));
        }
        assert_eq!(id(&status(&vault).await, "fingerprint", "active"), old, "none of them came to its end");
        keys(&vault, &["rotate", "fingerprint", "--pause-ms", "0"]).await;
        let now = status(&vault).await;
        assert_eq!(id(&now, "fingerprint", "decrypt_only"), old);
        assert_eq!(number(&db, "SELECT count(*) FROM data_keys WHERE purpose = 'fingerprint'").await, 2);
        keys(&vault, &["destroy", &old]).await;
        for (pan, card) in &cards {
            assert_eq!(caller.card(pan).await, *card);
        }
        assert_eq!(number(&db, "SELECT count(*) FROM cards").await, i64::try_from(cards.len()).unwrap());
        let secrets: Vec<&str> = cards.iter().map(|(pan, _)| pan.as_str()).collect();
        vault.finish(&secrets).await;
    }

    /// Of two rotations at once one was held up until the other had ended: it announces nothing, and the column
    /// stays the key's that is in use.
    async fn a_rotation_that_comes_late_announces_nothing(db: Database) {
        let vault = TestVault::start(&db).await;
        let (caller, pan, other) = (vault.client("checkout"), fresh_pan(), fresh_pan());
        let card = caller.card(&pan).await;
        let door = Arc::new(Doorman::default());
        let late = command_through(&vault, &door).await;
        // The first waits for writers, the second announces.
        door.hold(Work::Transaction, 2);
        let late = tokio::spawn(async move { late.rotate_fingerprint(PACE, &mut |_| ()).await });
        door.arrived().await;
        keys(&vault, &["rotate", "fingerprint"]).await;
        let second = id(&status(&vault).await, "fingerprint", "active");
        door.let_go();
        let said = late.await.expect("a task").expect_err("a rotation that was late").to_string();
        assert!(said.contains("another rotation of the fingerprint key has just ended"), "{said}");
        let now = status(&vault).await;
        assert_eq!((id(&now, "fingerprint", "active"), ids(&now, "fingerprint", "next")), (second, Vec::new()));
        let new = caller.card(&other).await;
        assert_eq!((caller.card(&other).await, caller.card(&pan).await), (new, card));
        vault.finish(&[&pan, &other]).await;
    }

    /// A column is one key's. Where an older version has given it to two, the second does not come into use.
    async fn a_column_is_one_keys(db: Database) {
        const TWO: &str = "UPDATE data_keys SET state = 'next', \
             slot = (SELECT slot FROM data_keys WHERE purpose = 'fingerprint' AND state = 'active') \
             WHERE purpose = 'fingerprint' AND state = 'decrypt_only'";
        let vault = TestVault::start(&db).await;
        keys(&vault, &["rotate", "fingerprint"]).await;
        let active = id(&status(&vault).await, "fingerprint", "active");
        let store = cardvault::app::open_database(&vault.config).await.expect("a database");
        assert!(store.execute(TWO, &[]).await.is_err(), "two keys have one column");
        store.close().await;
        sql::execute(&db, "DROP INDEX data_keys_slot").await;
        sql::execute(&db, TWO).await;
        let said = refused(&vault, &["rotate", "fingerprint"]).await;
        assert!(said.contains("was announced for the column that") && said.contains(&active), "{said}");
        assert_eq!(id(&status(&vault).await, "fingerprint", "active"), active);
        vault.finish(&[]).await;
    }

    /// Who destroys a key was held up until another had its column: nothing is taken from that one.
    async fn an_end_that_comes_late_takes_no_fingerprint(db: Database) {
        let vault = TestVault::start(&db).await;
        let (caller, pan) = (vault.client("checkout"), fresh_pan());
        let card = caller.card(&pan).await;
        let first = id(&status(&vault).await, "fingerprint", "active");
        keys(&vault, &["rotate", "fingerprint"]).await;
        let door = Arc::new(Doorman::default());
        let late = command_through(&vault, &door).await;
        // The first write begins an epoch, the second empties the column.
        door.hold(Work::Write, 2);
        let key = cardvault::base::ids::DekId::parse(&first).expect("an id");
        let late = tokio::spawn(async move { late.destroy_data_key(&key, false).await });
        door.arrived().await;
        keys(&vault, &["rotate", "fingerprint"]).await;
        door.let_go();
        late.await.expect("a task").expect("destroyed");
        assert_eq!(number(&db, "SELECT count(*) FROM cards WHERE fingerprint IS NULL").await, 0);
        assert_eq!(caller.card(&pan).await, card);
        vault.finish(&[&pan]).await;
    }

    /// Who gives cards their fingerprints was held up until the key was destroyed: the column stays empty for the
    /// next one.
    async fn a_fingerprint_that_comes_late_is_not_stored(db: Database) {
        let vault = TestVault::start(&db).await;
        let (caller, pan) = (vault.client("checkout"), fresh_pan());
        let card = caller.card(&pan).await;
        let first = id(&status(&vault).await, "fingerprint", "active");
        let door = Arc::new(Doorman::default());
        let late = command_through(&vault, &door).await;
        // Before the fourth it has waited, announced the key, and waited again.
        door.hold(Work::Transaction, 4);
        let late = tokio::spawn(async move { late.rotate_fingerprint(PACE, &mut |_| ()).await });
        door.arrived().await;
        keys(&vault, &["rotate", "fingerprint"]).await;
        let second = id(&status(&vault).await, "fingerprint", "active");
        keys(&vault, &["destroy", &first]).await;
        keys(&vault, &["rotate", "fingerprint"]).await;
        keys(&vault, &["destroy", &second]).await;
        door.let_go();
        late.await.expect("a task").expect_err("its key is gone");
        assert_eq!(number(&db, "SELECT count(*) FROM cards WHERE fingerprint_b IS NOT NULL").await, 0);
        keys(&vault, &["rotate", "fingerprint"]).await;
        assert_eq!(caller.card(&pan).await, card);
        vault.finish(&[&pan]).await;
    }
}
