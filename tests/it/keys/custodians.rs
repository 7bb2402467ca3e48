//! Dual control: one custodian alone opens nothing, a wrong share is named, and the vault waits sealed.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{id, ids, keys, refused, status, trail};
use crate::support::eventually;
use crate::support::vault::{TestVault, by_reference, fresh_pan};

/// The files of a KEK's only split in a folder, in the order of the shares.
pub fn share_files(folder: &Path, kek: &str) -> Vec<PathBuf> {
    let mut splits = splits_in(folder, kek);
    assert!(splits.len() <= 1, "{splits:?}");
    splits.pop().map(|(_, files)| files).unwrap_or_default()
}

/// The splits of a KEK that have files in a folder, and those, in the order of the shares.
fn splits_in(folder: &Path, kek: &str) -> Vec<(String, Vec<PathBuf>)> {
    let mut splits = BTreeMap::<String, Vec<PathBuf>>::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap().to_owned();
        let split = name.strip_prefix(&format!("{kek}-split-")).and_then(|rest| rest.split_once("-share-"));
        if let Some((split, _)) = split {
            splits.entry(split.to_owned()).or_default().push(path);
        }
    }
    // Of fewer than ten shares.
    splits.values_mut().for_each(|files| files.sort());
    splits.into_iter().collect()
}

/// The text of a share, without the comment.
fn text_of(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().find(|line| line.starts_with("cvshare")).unwrap().to_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

both_engines! {
    /// The KEK is split while the server runs; the next start waits sealed, is opened by three of five
    /// custodians, one at a time, and then everything is there.
    async fn a_vault_is_opened_by_custodians_only(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let caller = vault.client("checkout");
        let pan = fresh_pan();
        let card = caller.card(&pan).await;
        let keyring = vault.config.keys.keyring.clone();
        let before = std::fs::read_to_string(&keyring).unwrap();
        let secret = before.lines().find_map(|line| line.strip_prefix("key = \"")).unwrap().trim_end_matches('"').to_owned();
        let folder = vault.dir.path().join("shares");
        // No folder: nothing can be kept, so nothing changes.
        let out = path(&folder).to_owned();
        let said = refused(&vault, &["split", "--shares", "5", "--threshold", "3", "--out", &out]).await;
        assert!(said.contains("nothing was changed"), "{said}");
        assert_eq!(std::fs::read_to_string(&keyring).unwrap(), before);
        std::fs::create_dir(&folder).unwrap();
        let kek = id(&status(&vault).await, "kek", "active");
        keys(&vault, &["split", "--shares", "5", "--threshold", "3", "--out", &out]).await;
        let files = share_files(&folder, &kek);
        assert_eq!(files.len(), 5);
        let after = std::fs::read_to_string(&keyring).unwrap();
        assert!(!after.contains(&secret) && after.contains("threshold = 3"), "{after}");
        for file in &files {
            assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
            assert!(!after.contains(&text_of(file)[8..20]));
        }
        // The server that runs goes on, also through a rotation of other keys that it must follow.
        keys(&vault, &["rotate", "dek", "--share-file", path(&files[0]), "--share-file", path(&files[4]), "--share-file", path(&files[2])]).await;
        let other = fresh_pan();
        let other_card = caller.card(&other).await;
        assert_eq!(status(&vault).await["keys"][0]["kept"], "split");

        vault.restart().await;
        let caller = vault.client("checkout");
        let socket = vault.config.keys.socket();
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        let sealed = async |what: &str| {
            let answer = caller.get(&format!("/v1/cards/{card}")).await.expect_problem(503, "sealed");
            assert_eq!(answer.headers["retry-after"], "30", "{what}");
            assert_eq!(vault.readiness().await, "HTTP/1.1 503 Service Unavailable sealed", "{what}");
        };
        sealed("at the start").await;
        caller.post("/v1/payments", &by_reference("SEALED_1", "100", &card)).await.expect_problem(503, "sealed");
        // Commands need custodians too, and say how many came.
        let said = refused(&vault, &["rotate", "dek", "--share-file", path(&files[0])]).await;
        assert!(said.contains("1 of 3 shares") && said.contains("is split, and 1 of its shares came"), "{said}");
        let unseal = async |file: &Path| keys(&vault, &["unseal", "--share-file", path(file)]).await;
        assert!(unseal(&files[1]).await.contains("1 of 3"));
        sealed("one share").await;
        // The same again, a slip, a share of nobody, and a file that others can read.
        let said = refused(&vault, &["unseal", "--share-file", path(&files[1])]).await;
        assert!(said.contains("share 2 is here already"), "{said}");
        let slip = folder.join("slip.txt");
        let text = text_of(&files[2]);
        let replaced = if text.ends_with('7') { "8" } else { "7" };
        std::fs::write(&slip, format!("{}{replaced}", &text[..text.len() - 1])).unwrap();
        let said = refused(&vault, &["unseal", "--share-file", path(&slip)]).await;
        assert!(said.contains("others can read"), "{said}");
        std::fs::set_permissions(&slip, PermissionsExt::from_mode(0o600)).unwrap();
        let said = refused(&vault, &["unseal", "--share-file", path(&slip)]).await;
        assert!(said.contains("has a slip in it"), "{said}");
        assert!(unseal(&files[4]).await.contains("2 of 3"));
        sealed("two shares").await;
        assert!(unseal(&files[0]).await.contains("is open in this server"));
        let opened = async || (caller.get(&format!("/v1/cards/{card}")).await.status == 200).then_some(());
        eventually("the vault to be unsealed", opened).await;
        assert!(vault.readiness().await.starts_with("HTTP/1.1 200"));
        let paid = caller.post("/v1/payments", &by_reference("SEALED_1", "100", &card)).await.expect(200);
        assert_eq!(paid.text_at("/status"), "AUTHORIZED");
        assert_eq!(caller.card(&other).await, other_card);
        let texts: Vec<String> = files.iter().map(|file| text_of(file)).collect();
        let mut secrets: Vec<&str> = texts.iter().map(String::as_str).collect();
        secrets.extend([pan.as_str(), other.as_str(), secret.as_str()]);
        vault.stop().await;
        assert!(!socket.exists(), "the socket goes with the server");
        vault.finish(&secrets).await;
    }

    /// A split KEK rotates to another split KEK beside a server, which gets the new one over its socket; the
    /// old shares are of no use after it, and a new split of the same key ends the shares before.
    async fn a_split_key_rotates_and_is_split_anew(db: Database) {
        // As `init` leaves it: the key is in the file, and the configuration has no word about a socket.
        let mut vault = TestVault::start(&db).await;
        assert_eq!(vault.config.keys.unseal_socket, None);
        let caller = vault.client("checkout");
        let pan = fresh_pan();
        let card = caller.card(&pan).await;
        let folder = vault.dir.path().join("shares");
        std::fs::create_dir(&folder).unwrap();
        let out = path(&folder).to_owned();
        let first = id(&status(&vault).await, "kek", "active");
        assert!(refused(&vault, &["rotate", "kek", "--to", "split"]).await.contains("needs --shares and --threshold"));
        let said = keys(&vault, &["rotate", "kek", "--to", "split", "--shares", "3", "--threshold", "2", "--out", &out]).await;
        assert!(said.contains("1 running servers had opened its canary"), "{said}");
        let second = id(&status(&vault).await, "kek", "active");
        let files = share_files(&folder, &second);
        assert_eq!(files.len(), 3);
        let shares = ["--share-file", path(&files[0]), "--share-file", path(&files[2])];
        let with = |more: &[&'static str]| -> Vec<String> {
            more.iter().map(|part| (*part).to_owned()).chain(shares.iter().map(|part| (*part).to_owned())).collect()
        };
        let run = async |arguments: Vec<String>| {
            keys(&vault, &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
        };
        // As many shares as before, of another key. They are printed where no folder is named.
        let printed = run(with(&["rotate", "kek"])).await;
        assert_eq!(printed.matches("\ncvshare").count(), 3, "{printed}");
        let third = id(&status(&vault).await, "kek", "active");
        assert!(third != second && printed.contains(&third));
        let mine: Vec<PathBuf> = printed.lines().filter(|line| line.starts_with("cvshare")).enumerate().map(|(n, line)| {
            let file = folder.join(format!("printed-{n}.txt"));
            std::fs::write(&file, line).unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
            file
        }).collect();
        // It is recorded in the audit trail, whose key is under the KEK that the custodians hold now.
        for old in [&first, &second] {
            keys(&vault, &["destroy", old, "--share-file", path(&mine[0]), "--share-file", path(&mine[1])]).await;
        }
        let said = refused(&vault, &["unseal", "--share-file", path(&files[0])]).await;
        assert!(said.contains("share 1 is of another split"), "{said}");
        // A custodian leaves: the same key, shared anew among four.
        let (one, two) = (path(&mine[0]).to_owned(), path(&mine[1]).to_owned());
        keys(&vault, &["split", "--shares", "4", "--threshold", "3", "--out", &out, "--share-file", &one, "--share-file", &two]).await;
        let anew = share_files(&folder, &third);
        assert_eq!((anew.len(), id(&status(&vault).await, "kek", "active")), (4, third.clone()));
        vault.restart().await;
        let said = refused(&vault, &["unseal", "--share-file", &one]).await;
        assert!(said.contains("of another split"), "{said}");
        for file in &anew[1..] {
            keys(&vault, &["unseal", "--share-file", path(file)]).await;
        }
        let caller = caller.at(vault.address);
        let opened = async || (caller.get(&format!("/v1/cards/{card}")).await.status == 200).then_some(());
        eventually("the vault to be unsealed", opened).await;
        // And back into the file.
        let collected: Vec<&str> = anew.iter().take(3).flat_map(|file| ["--share-file", path(file)]).collect();
        let all: Vec<&str> = ["combine"].into_iter().chain(collected).collect();
        keys(&vault, &all).await;
        assert_eq!(status(&vault).await["keys"][0]["kept"], "file");
        vault.restart().await;
        assert_eq!(vault.client("checkout").card(&pan).await, card);
        assert_eq!(ids(&status(&vault).await, "kek", "active").len(), 1);
        vault.finish(&[&pan]).await;
    }

    /// Each share that is brought, taken or not, to a server or to a command, has a row that says who brought it,
    /// from which process, when, and what came of it.
    async fn every_share_that_is_brought_has_its_row(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let folder = vault.dir.path().join("shares");
        std::fs::create_dir(&folder).unwrap();
        let kek = id(&status(&vault).await, "kek", "active");
        keys(&vault, &["split", "--shares", "3", "--threshold", "2", "--out", path(&folder)]).await;
        let files = share_files(&folder, &kek);
        let slip = folder.join("slip.txt");
        std::fs::write(&slip, format!("{}7", text_of(&files[0]))).unwrap();
        std::fs::set_permissions(&slip, PermissionsExt::from_mode(0o600)).unwrap();
        vault.restart().await;
        let pids = std::cell::RefCell::new(Vec::new());
        let bring = async |vault: &TestVault, file: &Path| {
            let mut custodian = vault.command(&["keys", "unseal", "--share-file", path(file)]).spawn().unwrap();
            pids.borrow_mut().push(custodian.id().unwrap());
            custodian.wait().await.unwrap().success()
        };
        let told = async |vault: &TestVault| {
            let mut all = trail(vault).await;
            all.retain(|row| row["action"] == "keys.share");
            all
        };
        assert!(!bring(&vault, &slip).await);
        assert!(bring(&vault, &files[0]).await);
        assert!(!bring(&vault, &files[0]).await);
        assert!(told(&vault).await.is_empty(), "nothing can be written while the vault is sealed");
        let log = vault.logged();
        let line = log.lines().find(|line| line.contains("\"a share was brought\"") && line.contains(&kek));
        let line = line.expect("the only word of it, were the server stopped now");
        assert!(line.contains("\"WARN\"") && line.contains("\"share\":1,"), "{line}");
        let sealed_until = cardvault::base::clock::Clock::now(&cardvault::base::clock::SystemClock);
        assert!(bring(&vault, &files[2]).await);
        let count = async |expected: usize| {
            eventually("the rows", async || (told(&vault).await.len() == expected).then_some(())).await;
        };
        count(4).await;
        // One that comes after the unsealing has its row too, though the row has to wait for the database.
        super::trail::refuse_rows(&db, "no share: this is not a share%").await;
        assert!(!bring(&vault, &slip).await);
        assert!(bring(&vault, &files[1]).await, "a share that fits, though nobody needs it any more");
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!(told(&vault).await.len(), 4);
        super::trail::take_rows(&db).await;
        count(6).await;
        // A command on the keys takes shares itself.
        let mut rotation = vault.command(&[
            "keys", "rotate", "dek", "--share-file", path(&files[1]), "--share-file", path(&files[2]),
        ]).spawn().unwrap();
        let command = rotation.id().unwrap();
        assert!(rotation.wait().await.unwrap().success());
        assert_eq!(told(&vault).await.len(), 8);
        // And one that comes as the server is about to stop.
        assert!(!bring(&vault, &slip).await);
        vault.stop().await;
        let mut all = told(&vault).await;
        all.sort_by_key(|row| row["at"].as_str().unwrap().to_owned());
        let mut brought = pids.into_inner();
        brought.splice(6..6, [command, command]);
        let own = format!("cli:uid-{}", rustix::process::getuid().as_raw());
        let expected = [
            ("refused", "no share: "), ("done", "share 1"), ("refused", "share 1: share 1 is here already"), ("done", "share 3"),
            ("refused", "no share: "), ("done", "share 2"), ("done", "share 2"), ("done", "share 3"), ("refused", "no share: "),
        ];
        assert_eq!((all.len(), brought.len()), (expected.len(), expected.len()), "{all:#?}");
        for ((row, pid), (outcome, detail)) in all.iter().zip(&brought).zip(expected) {
            assert_eq!((&row["outcome"], &row["actor"]), (&outcome.into(), &own.as_str().into()), "{row}");
            assert!(row["detail"].as_str().unwrap().starts_with(detail), "{row}");
            assert!(row["origin"].as_str().unwrap().ends_with(&format!(" pid {pid}")), "{pid}: {row}");
            assert_eq!(row["object"], if outcome == "done" { kek.as_str() } else { "kek" }, "{row}");
        }
        assert!(all[2]["at"].as_str().unwrap() <= sealed_until.rfc3339().as_str(), "{:#?}", all[2]);
        let (code, said) = vault.told(&["audit", "verify", "--share-file", path(&files[0]), "--share-file", path(&files[1])]).await;
        assert_eq!(code, Some(0), "{said}");
        let texts: Vec<String> = files.iter().map(|file| text_of(file)).collect();
        vault.finish(&texts.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }

    /// The real program is killed as soon as it has given out the shares: either the keyring is as it was and needs
    /// none of them, or they are the shares of the key, by the split that it names. All runs have one folder.
    async fn a_split_that_is_killed_was_none_or_is_whole(db: Database) {
        let vault = TestVault::start(&db).await;
        let pan = fresh_pan();
        let caller = vault.client("checkout");
        let card = caller.card(&pan).await;
        let kek = id(&status(&vault).await, "kek", "active");
        let folder = vault.dir.path().join("shares");
        std::fs::create_dir(&folder).unwrap();
        for round in 0..6 {
            let written = || splits_in(&folder, &kek).iter().map(|(_, files)| files.len()).sum::<usize>();
            let arguments = ["keys", "split", "--shares", "3", "--threshold", "2", "--out", path(&folder)];
            let mut run = vault.command(&arguments).spawn().unwrap();
            while written() < 3 * (round + 1) && run.try_wait().unwrap().is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            // Now, and a little later each time.
            tokio::time::sleep(std::time::Duration::from_millis(2 * u64::try_from(round).unwrap())).await;
            run.kill().await.unwrap();
            let now = status(&vault).await;
            assert_eq!(id(&now, "kek", "active"), kek);
            let splits = splits_in(&folder, &kek);
            assert_eq!(splits.len(), round + 1, "{splits:?}");
            match now["keys"][0]["kept"].as_str() {
                Some("split") => {
                    let keyring = std::fs::read_to_string(&vault.config.keys.keyring).unwrap();
                    let (_, files) = splits.iter().find(|(split, _)| keyring.contains(split.as_str())).expect("its split");
                    keys(&vault, &["combine", "--share-file", path(&files[2]), "--share-file", path(&files[0])]).await;
                }
                _ => drop(keys(&vault, &["rotate", "dek", "--purpose", "checkpoint"]).await),
            }
            assert_eq!(caller.card(&pan).await, card);
        }
        vault.finish(&[&pan]).await;
    }
}
