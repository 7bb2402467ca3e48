//! The keys between the vault and Antom.

use std::path::PathBuf;
use std::time::Duration;

use super::status;
use crate::support::vault::{Caller, TestVault, by_reference, fresh_pan};
use crate::support::{Database, eventually};

/// The configuration that a server watches.
struct Watched {
    file: PathBuf,
    text: String,
}

impl Watched {
    fn of(vault: &TestVault) -> Self {
        let file = vault.dir.path().join("cardvault.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        Self { file, text }
    }

    /// Puts lines in the place of the one that sets a key.
    fn set(&mut self, key: &str, lines: &str) {
        let is = |line: &&str| line.starts_with(&format!("{key} = "));
        let old = self.text.lines().find(is).expect(key).to_owned();
        self.text = self.text.replace(&old, lines);
        std::fs::write(&self.file, &self.text).unwrap();
    }
}

/// The versions of a side's keys that `keys status` lists, and of which the first that signs.
async fn versions(vault: &TestVault, kind: &str) -> (Vec<String>, Option<String>) {
    let now = status(vault).await;
    let all = now["gatewayKeys"].as_array().unwrap().iter().filter(|key| key["kind"] == kind);
    let all: Vec<_> =
        all.map(|key| (key["version"].as_str().unwrap().to_owned(), key["signs"] == true)).collect();
    let signs = all.iter().find(|(_, signs)| *signs).map(|(version, _)| version.clone());
    (all.into_iter().map(|(version, _)| version).collect(), signs)
}

async fn pay(caller: &Caller, card: &str, id: &str) -> String {
    let paid = caller.post("/v1/payments", &by_reference(id, "100", card)).await;
    paid.expect(200).text_at("/status")
}

/// Antom takes a second key into use before the vault knows it: its answers and notifications are none, until the
/// configuration names the key. Then the notification that comes again settles what was open, and the first key
/// can go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn antoms_key_changes_by_its_version_without_a_restart() {
    let db = Database::sqlite();
    let mut vault = TestVault::start_notified(&db, &[Duration::from_millis(250); 100]).await;
    // Nothing is asked after: what settles, settles by its answer or by notification.
    vault.policy.inquiry_pauses = vec![Duration::from_secs(3600)];
    vault.restart().await;
    let caller = vault.client("checkout");
    let pan = fresh_pan();
    let card = caller.card(&pan).await;
    assert_eq!(pay(&caller, &card, "ANTOM_1").await, "AUTHORIZED");
    let pair = cardvault::pki::rsa_key_pair().unwrap();
    let second = vault.dir.path().join("gateway/antom_public_2.pem");
    std::fs::write(second, &pair.public_spki_pem).unwrap();
    vault
        .restart_sandbox_with(|options| {
            options.gateway_private_key_pem = pair.private_pkcs8_pem.expose().as_bytes().to_vec();
            options.gateway_key_version = 2;
        })
        .await;
    assert_eq!(pay(&caller, &card, "ANTOM_2").await, "UNKNOWN");
    let sent = |vault: &TestVault, id: &str| {
        let calls = vault.sandbox.recent_calls();
        let of = calls.into_iter().filter(|call| call.notification && call.request.contains(id));
        of.map(|call| call.answer.contains("SUCCESS")).collect::<Vec<bool>>()
    };
    let told = async || (sent(&vault, "ANTOM_2").len() >= 2).then_some(());
    eventually("notifications under the second key", told).await;
    assert!(sent(&vault, "ANTOM_2").iter().all(|acknowledged| !acknowledged));
    let shown =
        async |id: &str| caller.get(&format!("/v1/payments/{id}")).await.expect(200).text_at("/status");
    assert_eq!(shown("ANTOM_2").await, "UNKNOWN");

    let mut file = Watched::of(&vault);
    let first = file.text.lines().find_map(|line| line.strip_prefix("public_keys = { 1 = ")).unwrap();
    let both = format!("public_keys = {{ 2 = \"gateway/antom_public_2.pem\", 1 = {first}");
    file.set("public_keys", &both);
    assert_eq!(versions(&vault, "antom").await.0, ["1", "2"]);
    let settled = async || (shown("ANTOM_2").await == "AUTHORIZED").then_some(());
    eventually("the notification under the second key to count", settled).await;
    assert_eq!(pay(&caller, &card, "ANTOM_3").await, "AUTHORIZED");
    // Both are accepted, until the first is taken out.
    vault.restart_sandbox().await;
    assert_eq!(pay(&caller, &card, "ANTOM_4").await, "AUTHORIZED");
    file.set("public_keys", "public_keys = { 2 = \"gateway/antom_public_2.pem\" }");
    let count = std::sync::atomic::AtomicU32::new(5);
    let refused = async || {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        (pay(&caller, &card, &format!("ANTOM_{n}")).await == "UNKNOWN").then_some(())
    };
    eventually("the first key to be forgotten", refused).await;
    vault.finish(&[&pan]).await;
}

/// Our second key is there and does not sign before Antom knows it; `key_version` then switches to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_key_changes_to_one_that_antom_knows() {
    let db = Database::sqlite();
    let mut vault = TestVault::start(&db).await;
    let caller = vault.client("checkout");
    let pan = fresh_pan();
    let card = caller.card(&pan).await;
    let pair = cardvault::pki::rsa_key_pair().unwrap();
    let second = vault.dir.path().join("gateway/merchant_private_2.pem");
    cardvault::pki::write_private(&second, pair.private_pkcs8_pem.expose().as_bytes()).unwrap();
    let mut file = Watched::of(&vault);
    let keys = "{ 1 = \"gateway/merchant_private.pem\", 2 = \"gateway/merchant_private_2.pem\" }";
    file.set("private_keys", &format!("key_version = 1\nprivate_keys = {keys}"));
    assert_eq!(versions(&vault, "ours").await, (vec!["1".to_owned(), "2".to_owned()], Some("1".to_owned())));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(pay(&caller, &card, "OURS_1").await, "AUTHORIZED");
    let public = pair.public_spki_pem.clone().into_bytes();
    vault.restart_sandbox_with(|options| options.merchant_public_key_pem = public).await;
    assert_ne!(pay(&caller, &card, "OURS_2").await, "AUTHORIZED");
    file.set("key_version", "key_version = 2");
    assert_eq!(versions(&vault, "ours").await.1.as_deref(), Some("2"));
    let count = std::sync::atomic::AtomicU32::new(3);
    let paid = async || {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        (pay(&caller, &card, &format!("OURS_{n}")).await == "AUTHORIZED").then_some(())
    };
    eventually("the second key to sign", paid).await;
    vault.finish(&[&pan]).await;
}

/// Ours changes to a second version and back by the configuration alone; a file that is no key changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_key_changes_and_changes_back_without_a_restart() {
    let db = Database::sqlite();
    let vault = TestVault::start(&db).await;
    let caller = vault.client("checkout");
    let pan = fresh_pan();
    let card = caller.card(&pan).await;
    let count = std::sync::atomic::AtomicU32::new(0);
    let pay = async || {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let paid = caller.post("/v1/payments", &by_reference(&format!("GATEWAY_{n}"), "100", &card)).await;
        paid.expect(200).text_at("/status")
    };
    assert_eq!(pay().await, "AUTHORIZED");
    let file = vault.dir.path().join("cardvault.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    let pair = cardvault::pki::rsa_key_pair().unwrap();
    let second = vault.dir.path().join("gateway/merchant_private_2.pem");
    cardvault::pki::write_private(&second, pair.private_pkcs8_pem.expose().as_bytes()).unwrap();
    let ours = "private_keys = { 1 = \"gateway/merchant_private.pem\"";
    assert!(good.contains(ours), "{good}");
    // A second key that the sandbox does not know: once it signs, nothing verifies there.
    let both = good.replace(ours, &format!("{ours}, 2 = \"gateway/merchant_private_2.pem\""));
    std::fs::write(&file, &both).unwrap();
    let signs = async |version: &str| {
        let now = status(&vault).await;
        let keys = now["gatewayKeys"].as_array().unwrap().clone();
        keys.iter().any(|key| key["kind"] == "ours" && key["version"] == version && key["signs"] == true)
    };
    assert!(signs("2").await);
    let refused = async || (pay().await != "AUTHORIZED").then_some(());
    eventually("the second key to sign", refused).await;
    // A file that is not a configuration, or no key, changes nothing.
    std::fs::write(&file, "nonsense").unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert_ne!(pay().await, "AUTHORIZED");
    std::fs::write(&file, &good).unwrap();
    let paid = async || (pay().await == "AUTHORIZED").then_some(());
    eventually("the first key to sign again", paid).await;
    vault.finish(&[&pan]).await;
}
