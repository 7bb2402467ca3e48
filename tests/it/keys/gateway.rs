//! The keys between the vault and Antom.

use super::status;
use crate::support::vault::{TestVault, by_reference, fresh_pan};
use crate::support::{Database, eventually};

/// Ours changes to a second version and back, and theirs to a second one, by the configuration alone; a
/// file that is no key changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_keys_change_without_a_restart() {
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
