//! A server that cannot follow the keys.

use std::collections::HashMap;
use std::sync::Arc;

use cardvault::app;
use cardvault::base::clock::{Clock, SharedClock, SystemClock};
use cardvault::jobs::keys::Follower;
use cardvault::ops::keys::DataKeys;
use cardvault::ops::readiness::Check;
use cardvault::ops::{Policy, Vault};

use super::{id, keys, refused, status};
use crate::support::sql;
use crate::support::vault::TestVault;

both_engines! {
    /// A server whose host has not got the new keyring serves on, and cannot take up a key that is wrapped under the
    /// new KEK: it is alive, commands wait for it and name it, and it is not ready; with the keyring it follows.
    async fn a_server_that_cannot_follow_is_waited_for(db: Database) {
        let vault = TestVault::start(&db).await;
        let mut config = vault.config.clone();
        config.keys.keyring = vault.dir.path().join("keys/elsewhere.toml");
        let copy = || std::fs::copy(&vault.config.keys.keyring, &config.keys.keyring).expect("a copy");
        copy();
        let clock: SharedClock = Arc::new(SystemClock);
        let rows = app::open_database(&config).await.expect("a database");
        let keks = Arc::new(app::keks(&config).expect("a keyring"));
        let known = DataKeys::start(rows.clone(), keks, &clock, config.keys.policy()).await.expect("keys");
        let server = Vault::new(rows.clone(), known, HashMap::new(), clock, Policy::default()).expect("a vault");
        let mut follower = Follower::new(SystemClock.now());
        follower.run_once(&server).await.expect("followed");
        server.check(Check::Keys).await.expect("ready");
        let name = format!("{} on ", server.instance);
        let said = refused(&vault, &["rotate", "kek", "--wait-s", "1"]).await;
        assert!(said.contains(&name), "{said}");

        // It was silent for 30 seconds, and comes back; it has told nothing yet.
        sql::execute(&db, &format!("DELETE FROM replicas WHERE instance = '{}'", server.instance)).await;
        keys(&vault, &["rotate", "kek"]).await;
        keys(&vault, &["rotate", "dek"]).await;
        keys(&vault, &["reencrypt"]).await;
        let old = id(&status(&vault).await, "card", "decrypt_only");
        let mut follower = Follower::new(SystemClock.now());
        follower.run_once(&server).await.expect_err("a key that it cannot open");
        assert_eq!(status(&vault).await["servers"].as_array().map(Vec::len), Some(2));
        assert!(server.check(Check::Keys).await.is_err());
        let said = refused(&vault, &["destroy", &old, "--wait-s", "1"]).await;
        assert!(said.contains(&name), "{said}");

        copy();
        follower.run_once(&server).await.expect("followed");
        server.check(Check::Keys).await.expect("ready again");
        server.keys.leave(&server.instance).await.expect("it ends");
        rows.close().await;
        keys(&vault, &["destroy", &old]).await;
        vault.finish(&[]).await;
    }
}
