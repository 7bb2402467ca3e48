//! Dual control: one custodian alone opens nothing, a wrong share is named, and the vault waits sealed.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{id, ids, keys, refused, status};
use crate::support::eventually;
use crate::support::vault::{TestVault, by_reference, fresh_pan};

/// The share files of a KEK, in order.
fn share_files(folder: &Path, kek: &str) -> Vec<PathBuf> {
    (1..).map(|n| folder.join(format!("{kek}-share-{n}.txt"))).take_while(|path| path.exists()).collect()
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
}
