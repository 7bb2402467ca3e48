//! Keys rotate beside servers that go on serving: no caller sees an error, no card is lost or doubled, and
//! what was cut off is finished by running it again.

mod behind;
mod custodians;
mod doorman;
mod ends;
mod fingerprint;
mod gateway;
mod hsm;
mod once;
mod rotation;
mod traffic;
mod trail;

use serde_json::Value;

use super::support::leak;
use super::support::sql::number;
use super::support::vault::{TestVault, printed};

/// Runs `cardvault keys …`, which must succeed; what it printed.
async fn keys(vault: &TestVault, arguments: &[&str]) -> String {
    let all: Vec<&str> = ["keys"].iter().chain(arguments).copied().collect();
    let done = vault.run(&all).await;
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{arguments:?}: {out} {err}");
    out.into_owned()
}

/// Runs `cardvault keys …`, which must fail with exit code 1; what it said.
async fn refused(vault: &TestVault, arguments: &[&str]) -> String {
    let all: Vec<&str> = ["keys"].iter().chain(arguments).copied().collect();
    let done = vault.run(&all).await;
    let err = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(1), "{arguments:?}: {} {err}", String::from_utf8_lossy(&done.stdout));
    err
}

/// `keys status --json`.
async fn status(vault: &TestVault) -> Value {
    serde_json::from_str(&keys(vault, &["status", "--json"]).await).expect("JSON")
}

/// The ids of the keys of a purpose in a state, in the order of `status`.
fn ids(status: &Value, purpose: &str, state: &str) -> Vec<String> {
    let all = status["keys"].as_array().expect("keys").iter();
    all.filter(|key| key["purpose"] == purpose && key["state"] == state)
        .map(|key| key["key"].as_str().expect("an id").to_owned())
        .collect()
}

/// The one key of a purpose in a state.
fn id(status: &Value, purpose: &str, state: &str) -> String {
    let all = ids(status, purpose, state);
    assert_eq!(all.len(), 1, "{purpose} {state}: {status}");
    all[0].clone()
}

/// How many data keys a vault has of which none was rotated.
fn data_keys() -> u64 {
    u64::try_from(cardvault::crypto::keyring::Purpose::ALL.len()).expect("a few")
}

/// The rows of the audit trail.
async fn trail(vault: &TestVault) -> Vec<Value> {
    let done = vault.run(&["audit", "export"]).await;
    assert!(done.status.success(), "{}", printed(&done));
    let said = String::from_utf8(done.stdout).expect("UTF-8");
    said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Makes the KEK older than its cryptoperiod.
fn age_kek(vault: &TestVault) {
    let keyring = &vault.config.keys.keyring;
    let text = std::fs::read_to_string(keyring).expect("the keyring");
    let old = |line: &str| match line.starts_with("created") {
        true => "created = \"2024-01-01T00:00:00Z\"\n".to_owned(),
        false => format!("{line}\n"),
    };
    std::fs::write(keyring, text.lines().map(old).collect::<String>()).expect("the keyring");
}

/// How many rows need a key.
fn rows(status: &Value, id: &str) -> u64 {
    let all = status["keys"].as_array().expect("keys");
    all.iter().find(|key| key["key"] == id).and_then(|key| key["rows"].as_u64()).expect("the key")
}

/// What a command printed holds none of these.
fn assert_clean(text: &str, secrets: &[&str]) {
    assert!(leak::find(secrets, text.as_bytes()).is_empty(), "{text}");
}
