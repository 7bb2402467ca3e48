//! On a real token of SoftHSM2. PKCS#11 modules read where their tokens are from the environment once for a
//! process, so each test makes a token and runs itself again in a process of its own that knows it.

use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::base::clock::Millis;
use crate::crypto::kek::conformance::conforms;
use crate::crypto::kek::file::{self, Kek, Place};
use crate::crypto::kek::{KekProvider, Keks};
use crate::crypto::keyring::make_data_key;

const FOLDER: &str = "CARDVAULT_TEST_TOKEN";
const PIN: &str = "648219";

/// Where Debian, Fedora and Homebrew put the module.
const MODULES: &[&str] = &[
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
];

/// Runs `test` again in a process that has a fresh token; `None` here, the token's folder there.
fn on_a_token(test: &str) -> Option<PathBuf> {
    if let Ok(folder) = std::env::var(FOLDER) {
        return Some(folder.into());
    }
    let known =
        Command::new("softhsm2-util").arg("--version").output().is_ok_and(|done| done.status.success());
    if !known || module().is_none() {
        use std::io::Write;
        assert!(std::env::var_os("CARDVAULT_REQUIRE_SOFTHSM").is_none(), "{test}: SoftHSM2 is missing");
        // Past the test harness, which would swallow it.
        let _ = writeln!(std::io::stderr(), "{test}: left out: no SoftHSM2 found");
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let conf = folder.path().join("softhsm2.conf");
    let tokens = folder.path().join("tokens");
    std::fs::create_dir(&tokens).expect("a folder");
    std::fs::write(&conf, format!("directories.tokendir = {}\n", tokens.display())).expect("written");
    let made = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "vault", "--so-pin", "1234", "--pin", PIN])
        .env("SOFTHSM2_CONF", &conf)
        .output()
        .expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    write_pin(&folder.path().join("pin"), PIN);
    let name = format!("crypto::kek::hsm::tests::{test}");
    let done = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", &name, "--nocapture"])
        .env(FOLDER, folder.path())
        .env("SOFTHSM2_CONF", &conf)
        .output()
        .expect("it runs");
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    None
}

fn module() -> Option<PathBuf> {
    MODULES.iter().map(PathBuf::from).find(|path| path.exists())
}

fn write_pin(path: &Path, pin: &str) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let _none = std::fs::remove_file(path);
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.expect("a file").write_all(format!("{pin}\n").as_bytes()).expect("written");
}

fn options(folder: &Path) -> Options {
    let module = module().expect("looked for before");
    Options { module, token: "vault".to_owned(), pin_file: folder.join("pin") }
}

fn kek(hsm: &Hsm) -> KekId {
    let id = KekId::make().expect("entropy");
    hsm.make(&id).unwrap_or_else(|error| panic!("{error}"));
    id
}

#[test]
fn a_token_conforms() {
    let Some(folder) = on_a_token("a_token_conforms") else { return };
    let hsm = Hsm::new(options(&folder));
    let (one, two) = (kek(&hsm), kek(&hsm));
    conforms(&hsm, &one, &two);
    let key = make_data_key(Purpose::Card).expect("entropy");
    let wrapped = hsm.wrap_under(&one, &key).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(wrapped.len(), 82);
    // Making what is there makes nothing more; what is destroyed opens nothing more.
    hsm.make(&one).unwrap_or_else(|error| panic!("{error}"));
    assert!(hsm.unwrap(key.id(), Purpose::Card, &one, &wrapped).is_ok());
    hsm.destroy(&one).and_then(|()| hsm.destroy(&one)).unwrap_or_else(|error| panic!("{error}"));
    let gone = hsm.unwrap(key.id(), Purpose::Card, &one, &wrapped).err();
    assert!(matches!(gone, Some(WrapError::Token(text)) if text.contains("no key with the label")));
    assert!(hsm.wrap_under(&two, &key).is_ok(), "the other one goes on");
}

/// The keyring names a KEK in the token beside one in the file; both are used, each in its place.
#[test]
fn a_keyring_leads_to_the_token() {
    let Some(folder) = on_a_token("a_keyring_leads_to_the_token") else { return };
    let path = folder.join("keyring.toml");
    file::create_new(&path, &file::generate(Millis(0)).expect("entropy")).expect("written");
    let keks = Keks::open(&path, Some(std::sync::Arc::new(Hsm::new(options(&folder))))).expect("opened");
    let in_file = keks.kek_id();
    let entry = |id: &KekId| Kek { id: id.clone(), created: Millis(0).rfc3339(), place: Place::Token };
    let (one, two) = (KekId::make().expect("entropy"), KekId::make().expect("entropy"));
    for id in [&one, &two] {
        keks.make_in_token(id).unwrap_or_else(|error| panic!("{error}"));
        keks.replace(keks.keyring().with(entry(id)).with_active(id)).expect("replaced");
    }
    conforms(&keks, &one, &two);
    let key = make_data_key(Purpose::Card).expect("entropy");
    let old = keks.wrap_under(&in_file, &key).unwrap_or_else(|error| panic!("{error}"));
    assert!(keks.unwrap(key.id(), Purpose::Card, &in_file, &old).is_ok());
    assert_eq!(keks.unwrap(key.id(), Purpose::Card, &one, &old).err(), Some(WrapError::CouldNotOpen));
    let new = keks.wrap(&key).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((new.kek, new.bytes.len()), (two, 82));
    // Without a token, its keys are told to be in one.
    let without = Keks::open(&path, None).expect("opened");
    assert_eq!(without.wrap_under(&one, &key).err(), Some(WrapError::NoToken(one)));
}

/// The token goes away in the middle of the work, and comes back; so do the PIN's file and its PIN.
#[test]
fn a_token_may_go_away_and_come_back() {
    let Some(folder) = on_a_token("a_token_may_go_away_and_come_back") else { return };
    let hsm = Hsm::new(options(&folder));
    let one = kek(&hsm);
    let key = make_data_key(Purpose::Card).expect("entropy");
    let wrapped = hsm.wrap_under(&one, &key).unwrap_or_else(|error| panic!("{error}"));
    let opens = || hsm.unwrap(key.id(), Purpose::Card, &one, &wrapped);
    let (tokens, away) = (folder.join("tokens"), folder.join("away"));
    for _ in 0..3 {
        std::fs::rename(&tokens, &away).expect("moved");
        std::fs::create_dir(&tokens).expect("made");
        // What is open may go on; whoever asks for something else finds nothing.
        let other = KekId::make().expect("entropy");
        let refused = hsm.wrap_under(&other, &key).err();
        assert!(matches!(&refused, Some(WrapError::Token(text)) if text.contains("no token with the label")));
        assert!(matches!(opens().err(), Some(WrapError::Token(_))));
        std::fs::remove_dir_all(&tokens).expect("removed");
        std::fs::rename(&away, &tokens).expect("moved");
        assert!(opens().is_ok());
    }
    // A wrong PIN is tried once, not until the token locks; a file that is mended is taken.
    let pin = folder.join("pin");
    write_pin(&pin, "000000");
    let fresh = Options { token: "vault".to_owned(), ..options(&folder) };
    let again = Hsm::new(Options { pin_file: folder.join("other-pin"), ..fresh });
    write_pin(&folder.join("other-pin"), "000000");
    for _ in 0..20 {
        // The session that is open is logged in; a fresh one is refused.
        let other = KekId::make().expect("entropy");
        assert!(hsm.wrap_under(&other, &key).is_err());
        let refused = again.wrap_under(&one, &key).err();
        assert!(matches!(&refused, Some(WrapError::Token(text)) if text.contains("PIN")), "{refused:?}");
    }
    write_pin(&pin, PIN);
    assert!(opens().is_ok());
    std::fs::set_permissions(&pin, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("changed");
    let other = KekId::make().expect("entropy");
    assert!(
        matches!(hsm.wrap_under(&other, &key).err(), Some(WrapError::Token(text)) if text.contains("chmod 600"))
    );
}

/// Many threads ask at once; one speaks to the token.
#[test]
fn many_may_ask_at_once() {
    let Some(folder) = on_a_token("many_may_ask_at_once") else { return };
    let hsm = Hsm::new(options(&folder));
    let one = kek(&hsm);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let key = make_data_key(Purpose::Card).expect("entropy");
                    let wrapped = hsm.wrap_under(&one, &key).unwrap_or_else(|error| panic!("{error}"));
                    assert!(hsm.unwrap(key.id(), Purpose::Card, &one, &wrapped).is_ok());
                }
            });
        }
    });
}

/// The key cannot be read, nor wrapped out of the token.
#[test]
fn the_key_stays_in_the_token() {
    let Some(folder) = on_a_token("the_key_stays_in_the_token") else { return };
    let hsm = Hsm::new(options(&folder));
    let one = kek(&hsm);
    let facts = hsm.ask(move |token| {
        let key = token.key(&one)?;
        let value = token.session.get_attributes(key, &[AttributeType::Value]);
        let out = token.session.wrap_key(&Mechanism::AesKeyWrap, key, key);
        Ok((value.map(|found| found.len()).unwrap_or_default(), out.is_err()))
    });
    assert_eq!(facts, Ok((0, true)));
}

/// A golden file, made by another implementation, opens inside the token: the format is the token's too.
#[test]
fn a_golden_key_opens_in_a_token() {
    let Some(folder) = on_a_token("a_golden_key_opens_in_a_token") else { return };
    let hsm = Hsm::new(options(&folder));
    let text = include_str!("../../../../tests/golden/wrap-v2/card.json");
    let file: serde_json::Value = serde_json::from_str(text).expect("JSON");
    let text = |name: &str| file[name].as_str().expect("a text").to_owned();
    let hex = |name: &str| data_encoding::HEXLOWER.decode(text(name).as_bytes()).expect("hex");
    let (kek, value) = (KekId::parse(&text("kek_id")).expect("an id"), hex("kek"));
    let label = kek.as_str().as_bytes().to_vec();
    let put = hsm.ask(move |token| {
        Ok(token.session.create_object(&[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Value(value.clone()),
            Attribute::Label(label.clone()),
            Attribute::Token(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
        ])?)
    });
    assert!(put.is_ok());
    let id = DekId::parse(&text("dek_id")).expect("an id");
    let opened =
        hsm.unwrap(&id, Purpose::Card, &kek, &hex("wrapped")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(opened.key().expose_secret().as_slice(), hex("key"));
}
