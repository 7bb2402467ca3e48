//! The real program on a real token of SoftHSM2.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use super::traffic::{Traffic, assert_whole};
use super::{data_keys, id, keys, number, refused, status};
use crate::support::vault::{TestVault, fresh_pan};
use crate::support::{leak, say};

const PIN: &str = "648219";

fn module() -> Option<PathBuf> {
    let places = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
        "/usr/local/lib/softhsm/libsofthsm2.so",
        "/opt/homebrew/lib/softhsm/libsofthsm2.so",
    ];
    places.iter().map(PathBuf::from).find(|path| path.exists())
}

/// A token of this test's own, named in the vault's configuration; none where SoftHSM2 is missing.
fn with_token(vault: &mut TestVault, story: &str) -> bool {
    let there =
        Command::new("softhsm2-util").arg("--version").output().is_ok_and(|done| done.status.success());
    let Some(module) = module().filter(|_| there) else {
        assert!(std::env::var_os("CARDVAULT_REQUIRE_SOFTHSM").is_none(), "{story}: SoftHSM2 is missing");
        say(&format!("{story}: left out: no SoftHSM2 found"));
        return false;
    };
    let folder = vault.dir.path().join("token");
    std::fs::create_dir_all(folder.join("tokens")).unwrap();
    let conf = folder.join("softhsm2.conf");
    std::fs::write(&conf, format!("directories.tokendir = {}\n", folder.join("tokens").display())).unwrap();
    vault.environment.push(("SOFTHSM2_CONF".to_owned(), conf.to_str().unwrap().to_owned()));
    let made = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "vault", "--so-pin", "1234", "--pin", PIN])
        .env("SOFTHSM2_CONF", &conf)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let pin = vault.dir.path().join("keys/hsm-pin");
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&pin);
    file.unwrap().write_all(PIN.as_bytes()).unwrap();
    let config = vault.dir.path().join("cardvault.toml");
    let section = format!(
        "\n[keys.hsm]\nmodule = \"{}\"\ntoken = \"vault\"\npin_file = \"keys/hsm-pin\"\n",
        module.display()
    );
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + &section).unwrap();
    true
}

/// Stops a program gracefully: one that is killed is waited for, for as long as it may still be alive.
fn stop(mut program: Child) {
    let pid = rustix::process::Pid::from_child(&program);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    program.wait().unwrap();
}

both_engines! {
    /// From the file into the token and back, beside a server that serves; each time one command.
    async fn the_key_moves_into_a_token_and_back(db: Database) {
        let mut vault = TestVault::start(&db).await;
        if !with_token(&mut vault, "the_key_moves_into_a_token_and_back") {
            return vault.finish(&[]).await;
        }
        let program = vault.start_program().await;
        let caller = vault.client("checkout");
        let traffic = Traffic::start(std::slice::from_ref(&caller), 2);
        traffic.more(20).await;
        let first = id(&status(&vault).await, "kek", "active");
        let told = keys(&vault, &["rotate", "kek", "--to", "hsm"]).await;
        assert!(told.contains("1 running servers had opened its canary"), "{told}");
        let now = status(&vault).await;
        let second = id(&now, "kek", "active");
        assert_eq!(now["keys"][1]["kept"], "hsm", "{now}");
        let length = match db.engine {
            crate::support::Engine::Sqlite => "length(wrapped)",
            crate::support::Engine::Postgres => "octet_length(wrapped)",
        };
        assert_eq!(number(&db, &format!("SELECT count(*) FROM data_keys WHERE {length} = 82")).await, i64::try_from(data_keys()).unwrap());
        keys(&vault, &["destroy", &first]).await;
        keys(&vault, &["rotate", "dek"]).await;
        traffic.more(20).await;
        keys(&vault, &["reencrypt", "--pause-ms", "1"]).await;
        // A second KEK in the token: where the present one is, the next one goes.
        keys(&vault, &["rotate", "kek"]).await;
        keys(&vault, &["destroy", &second]).await;
        traffic.more(20).await;
        // Restarted, everything is opened through the token.
        let cards = traffic.stop().await;
        stop(program);
        let program = vault.start_program().await;
        let caller = caller.at(vault.address);
        assert_whole(&caller, &cards).await;
        let third = id(&status(&vault).await, "kek", "active");
        keys(&vault, &["rotate", "kek", "--to", "file", "--wait-s", "90"]).await;
        let said = keys(&vault, &["destroy", &third]).await;
        assert!(said.contains("destroyed"), "{said}");
        stop(program);
        vault.restart().await;
        assert_whole(&vault.client("checkout"), &cards).await;
        let log = std::fs::read(vault.program_log()).unwrap();
        assert!(leak::find(&[PIN], &log).is_empty(), "the PIN is in the log");
        let secrets: Vec<&str> = cards.iter().map(|(pan, _)| pan.as_str()).collect();
        vault.finish(&secrets).await;
    }

    /// The token is away: the server goes on with the keys that it has, commands say what is missing, and
    /// when it is back everything goes on without a restart.
    async fn a_server_outlives_its_token(db: Database) {
        let mut vault = TestVault::start(&db).await;
        if !with_token(&mut vault, "a_server_outlives_its_token") {
            return vault.finish(&[]).await;
        }
        let program = vault.start_program().await;
        keys(&vault, &["rotate", "kek", "--to", "hsm"]).await;
        let caller = vault.client("checkout");
        let pan = fresh_pan();
        let card = caller.card(&pan).await;
        let (tokens, away) = (vault.dir.path().join("token/tokens"), vault.dir.path().join("token/away"));
        std::fs::rename(&tokens, &away).unwrap();
        std::fs::create_dir(&tokens).unwrap();
        let said = refused(&vault, &["rotate", "dek"]).await;
        assert!(said.contains("no token with the label vault"), "{said}");
        assert_eq!(caller.card(&pan).await, card);
        caller.card(&fresh_pan()).await;
        std::fs::remove_dir(&tokens).unwrap();
        std::fs::rename(&away, &tokens).unwrap();
        let old = id(&status(&vault).await, "card", "active");
        keys(&vault, &["rotate", "dek"]).await;
        // The server takes the new key up through the token that is back.
        keys(&vault, &["reencrypt", "--pause-ms", "0"]).await;
        keys(&vault, &["destroy", &old]).await;
        assert_eq!(caller.card(&pan).await, card);
        stop(program);
        vault.environment.clear();
        vault.finish(&[&pan]).await;
    }
}
