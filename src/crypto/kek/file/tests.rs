//! A keyring file is read whole or refused whole, in words that hold nothing of its keys; a wrapped key
//! unwraps for its own row and under its own KEK only.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::crypto::kek::conformance::conforms;
use crate::crypto::kek::{Keks, shares};
use crate::crypto::keyring::make_data_key;

const NOW: Millis = Millis(1_772_366_400_000);

/// A KEK of known bytes, and a wrapping with known salt and nonce: for golden files only.
pub(in crate::crypto) fn wrap_known(kek: &KekId, key: [u8; 32], dek: &DataKey, fresh: &Fresh) -> Vec<u8> {
    known(kek, key).soft(kek).and_then(|kek| kek.wrap(dek, fresh)).expect("wrapped")
}

/// A provider with one KEK of known bytes.
pub(in crate::crypto) fn known(kek: &KekId, key: [u8; 32]) -> FileKek {
    let key = key256(|bytes| bytes.copy_from_slice(&key));
    let place = Place::File(SoftKek { id: kek.clone(), key });
    FileKek { active: kek.clone(), keks: vec![Kek { id: kek.clone(), created: NOW.rfc3339(), place }] }
}

/// The check value of known key bytes.
pub(in crate::crypto) fn check_of(key: [u8; 32]) -> String {
    HEXLOWER.encode(&check_value(&key256(|bytes| bytes.copy_from_slice(&key))))
}

struct Fixture {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Fixture {
    fn with(text: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("keyring.toml");
        create_new(&path, &SecretText::from(text)).expect("written");
        Self { _directory: directory, path }
    }

    fn load(&self) -> Result<FileKek, KeyFileError> {
        load(&self.path)
    }

    /// The refusal's text and the whole chain below it, checked for the file's name and against leaks.
    fn refusal(&self) -> (KeyFileError, String) {
        let Some(error) = self.load().err() else { panic!("taken") };
        let words = error.to_string();
        assert!(words.contains("keyring.toml"), "{words}");
        let all = format!("{words} {error:?} {:?}", std::error::Error::source(&error));
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        for key in text.lines().filter_map(|line| line.split('"').nth(1)).filter(|value| value.len() > 40) {
            assert!(!all.contains(&key[..8]), "{all}");
        }
        (error, words)
    }
}

fn generated() -> String {
    generate(NOW).expect("entropy").expose().to_owned()
}

/// The generated text with the value of `name` replaced.
fn with(text: &str, name: &str, value: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once(" = ") {
        Some((found, _)) if found == name => format!("{name} = {value}\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}

#[test]
fn a_generated_keyring_is_private_and_loads() {
    let fixture = Fixture::with(&generated());
    let mode = std::fs::metadata(&fixture.path).expect("there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let keyring = fixture.load().unwrap_or_else(|error| panic!("{error}"));
    let [kek] = keyring.keks() else { panic!("one key") };
    assert_eq!((&kek.id, kek.created.as_str()), (keyring.active(), NOW.rfc3339().as_str()));
}

#[test]
fn generated_text_fits_its_buffer() {
    let keyring = Fixture::with(&generated()).load().unwrap_or_else(|error| panic!("{error}"));
    let split = Split { check: [255; 8], id: [255; 8], threshold: 3, shares: vec![[255; 8]; 255] };
    let mut all = keyring.copy();
    for place in [Place::Split(split), Place::Token] {
        let created = NOW.rfc3339();
        all.keks.extend(std::iter::repeat_n((), 50).map(|()| keyring.keks[0].copy()));
        all.keks.push(Kek { id: keyring.active.clone(), created, place });
    }
    let text = all.render();
    assert!(text.expose().len() < 320 * 103 + 24 * 255, "the capacity that was reserved");
}

#[test]
fn a_keyring_is_never_overwritten() {
    let fixture = Fixture::with("precious");
    let outcome = create_new(&fixture.path, &SecretText::from("other"));
    assert!(matches!(outcome, Err(KeyFileError::Exists(_))));
    assert_eq!(std::fs::read_to_string(&fixture.path).expect("there"), "precious");
}

#[test]
fn a_file_that_others_can_use_is_refused() {
    let fixture = Fixture::with(&generated());
    for mode in [0o640, 0o620, 0o604, 0o602, 0o644, 0o777, 0o610] {
        std::fs::set_permissions(&fixture.path, PermissionsExt::from_mode(mode)).expect("changed");
        let (error, words) = fixture.refusal();
        assert!(matches!(error, KeyFileError::OpenToOthers { .. }), "{words}");
        assert!(words.contains(&format!("{mode:04o}")) && words.contains("chmod 0600"), "{words}");
    }
    std::fs::set_permissions(&fixture.path, PermissionsExt::from_mode(0o400)).expect("changed");
    assert!(fixture.load().is_ok());
}

#[test]
fn only_this_user_or_root_may_own_it() {
    assert!(owner_is_trusted(1000, 1000) && owner_is_trusted(0, 1000));
    assert!(!owner_is_trusted(1001, 1000) && !owner_is_trusted(1000, 0));
}

#[test]
fn what_is_not_a_file_is_refused_and_a_link_is_followed() {
    let fixture = Fixture::with(&generated());
    let directory = fixture.path.parent().expect("a directory");
    assert!(matches!(load(directory).err(), Some(KeyFileError::NotAFile(_))));
    assert!(matches!(load(&directory.join("none")).err(), Some(KeyFileError::Missing(_))));
    let link = directory.join("link.toml");
    std::os::unix::fs::symlink(&fixture.path, &link).expect("linked");
    assert!(load(&link).is_ok());
}

#[test]
fn a_file_without_an_end_is_refused() {
    let text = format!("{}#{}", generated(), "x".repeat(FILE_BYTES));
    assert!(matches!(Fixture::with(&text).refusal().0, KeyFileError::TooLarge(_)));
}

#[test]
fn what_is_not_a_keyring_is_refused_by_line() {
    let good = generated();
    let key_line = good.lines().position(|line| line.starts_with("key")).expect("a key") + 1;
    let key = good.lines().find_map(|line| line.strip_prefix("key = ")).expect("a key");
    for (text, expected) in [
        (with(&good, "key", &key[..20]), key_line),
        (with(&good, "key", "7"), key_line),
        (good.replace("\nkey = ", "\nkeys = "), key_line),
        (good.replace("active = ", "actve = "), 2),
        (format!("{good}extra = 1\n"), good.lines().count() + 1),
    ] {
        let (error, words) = Fixture::with(&text).refusal();
        assert!(matches!(error, KeyFileError::Syntax { line, .. } if line == expected), "{words}");
    }
    for text in ["", "active = 1", "\u{0}", &good.replace("check", "chek")] {
        assert!(matches!(Fixture::with(text).refusal().0, KeyFileError::Syntax { .. }));
    }
    let fixture = Fixture::with("");
    std::fs::write(&fixture.path, b"\n\xff").expect("written");
    assert!(matches!(fixture.load().err(), Some(KeyFileError::Syntax { line: 2, .. })));
}

#[test]
fn wrong_values_are_refused_each_in_its_own_words() {
    let good = generated();
    let text = |name: &str, value: &str| Fixture::with(&with(&good, name, value)).refusal().0;
    assert!(matches!(text("id", "\"kek_1\""), KeyFileError::BadId(_)));
    assert!(matches!(text("active", "\"kek_1\""), KeyFileError::BadId(_)));
    assert!(matches!(text("created", "\"yesterday\""), KeyFileError::BadTime { .. }));
    let other = KekId::make().expect("entropy");
    assert!(matches!(text("active", &format!("\"{other}\"")), KeyFileError::NoActive { .. }));
    for key in ["", "AAAA", &BASE64.encode(&[1; 31]), &BASE64.encode(&[1; 33]), "not base64!"] {
        assert!(matches!(text("key", &format!("\"{key}\"")), KeyFileError::BadKey { .. }), "{key}");
    }
    let other_key = format!("\"{}\"", BASE64.encode(&[1; 32]));
    assert!(matches!(text("key", &other_key), KeyFileError::CheckValue { .. }));
    assert!(matches!(text("check", "\"0011223344556677\""), KeyFileError::CheckValue { .. }));
    assert!(matches!(text("check", "\"\""), KeyFileError::CheckValue { .. }));
}

#[test]
fn one_id_or_one_key_twice_is_refused() {
    let good = generated();
    let entry = &good[good.find("\n[[kek]]").expect("an entry")..];
    assert!(matches!(Fixture::with(&format!("{good}{entry}")).refusal().0, KeyFileError::Duplicate { .. }));
    let other = format!("\"{}\"", KekId::make().expect("entropy"));
    let renamed = with(entry, "id", &other);
    assert!(matches!(Fixture::with(&format!("{good}{renamed}")).refusal().0, KeyFileError::Duplicate { .. }));
}

#[test]
fn the_published_example_is_good_in_all_but_its_key() {
    let error = Fixture::with(EXAMPLE).refusal().0;
    assert!(matches!(error, KeyFileError::Published { .. }), "{error}");
    let published = published_keys();
    let active = EXAMPLE.lines().filter(|line| line.starts_with("key = ")).count();
    assert!(active >= 1 && published.len() >= active);
    // Under another id too, and beside a good key.
    let bytes = *published[0].expose_secret();
    let stolen = known(&KekId::make().expect("entropy"), bytes).with_new_kek(NOW).expect("entropy");
    let fixture = Fixture::with(stolen.render().expose());
    assert!(matches!(fixture.load().err(), Some(KeyFileError::Published { .. })));
}

#[test]
fn a_wrapped_key_unwraps_for_its_row_only() {
    let keyring = Fixture::with(&generated()).load().unwrap_or_else(|error| panic!("{error}"));
    let (kek, dek) = (keyring.active(), make_data_key(Purpose::Card).expect("entropy"));
    let wrapped = keyring.wrap(&dek).expect("wrapped").bytes;
    assert_eq!(wrapped.len(), 146);
    let unwrap = |id: &DekId, purpose, wrapped: &[u8]| keyring.unwrap(id, purpose, kek, wrapped);
    let opened = unwrap(dek.id(), Purpose::Card, &wrapped).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(opened.key().expose_secret(), dek.key().expose_secret());
    assert_eq!((opened.id(), opened.purpose()), (dek.id(), Purpose::Card));

    let other = DekId::make().expect("entropy");
    assert_eq!(unwrap(&other, Purpose::Card, &wrapped).err(), Some(WrapError::CouldNotOpen));
    for purpose in [Purpose::Fingerprint, Purpose::RequestMac] {
        assert_eq!(unwrap(dek.id(), purpose, &wrapped).err(), Some(WrapError::CouldNotOpen));
    }
    for bit in 0..wrapped.len() * 8 {
        let mut bent = wrapped.clone();
        bent[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(unwrap(dek.id(), Purpose::Card, &bent).err(), Some(WrapError::CouldNotOpen), "{bit}");
    }
    for length in 0..wrapped.len() {
        assert_eq!(unwrap(dek.id(), Purpose::Card, &wrapped[..length]).err(), Some(WrapError::CouldNotOpen));
    }
    let longer = [&wrapped[..], &[0]].concat();
    assert_eq!(unwrap(dek.id(), Purpose::Card, &longer).err(), Some(WrapError::CouldNotOpen));
}

#[test]
fn after_rotation_the_old_kek_still_unwraps_and_the_new_one_wraps() {
    let before = Fixture::with(&generated()).load().unwrap_or_else(|error| panic!("{error}"));
    let dek = make_data_key(Purpose::Fingerprint).expect("entropy");
    let wrapped = before.wrap(&dek).expect("wrapped").bytes;
    let text = before.with_new_kek(NOW).expect("entropy").render();
    let after = Fixture::with(text.expose()).load().unwrap_or_else(|error| panic!("{error}"));
    assert_ne!(after.kek_id(), before.kek_id());
    let opened = after.unwrap(dek.id(), Purpose::Fingerprint, before.active(), &wrapped);
    let opened = opened.unwrap_or_else(|error| panic!("{error}"));
    let again = after.wrap(&opened).expect("wrapped").bytes;
    assert!(after.unwrap(dek.id(), Purpose::Fingerprint, after.active(), &again).is_ok());
    let mixed = after.unwrap(dek.id(), Purpose::Fingerprint, after.active(), &wrapped);
    assert_eq!(mixed.err(), Some(WrapError::CouldNotOpen));
    let unknown = before.unwrap(dek.id(), Purpose::Fingerprint, after.active(), &again);
    assert_eq!(unknown.err(), Some(WrapError::UnknownKek(after.active().clone())));
}

#[test]
fn a_split_key_and_one_in_a_token_are_kept_as_they_are_described() {
    let keyring = Fixture::with(&generated()).load().unwrap_or_else(|error| panic!("{error}"));
    let split = Split { check: [1; 8], id: [2; 8], threshold: 2, shares: vec![[3; 8], [4; 8], [5; 8]] };
    let entry = |place| Kek { id: KekId::make().expect("entropy"), created: NOW.rfc3339(), place };
    let (split, token) = (entry(Place::Split(split)), entry(Place::Token));
    let (split_id, token_id) = (split.id.clone(), token.id.clone());
    let fixture = Fixture::with(keyring.with(split).with(token).render().expose());
    let again = fixture.load().unwrap_or_else(|error| panic!("{error}"));
    let Some(Kek { place: Place::Split(split), .. }) = again.find(&split_id) else { panic!("split") };
    assert_eq!((split.check, split.id, split.threshold, split.shares.len()), ([1; 8], [2; 8], 2, 3));
    assert_eq!(again.soft(&split_id).err(), Some(WrapError::Sealed(split_id.clone())));
    assert_eq!(again.soft(&token_id).err(), Some(WrapError::NoToken(token_id)));
    let text = again.render();
    for (from, to) in [("threshold = 2", "threshold = 1"), ("threshold = 2", "threshold = 4"), ("0303", "03")]
    {
        let broken = Fixture::with(&text.expose().replacen(from, to, 1));
        assert!(matches!(broken.refusal().0, KeyFileError::BadSplit { .. }), "{from} {to}");
    }
    let both = text.expose().replacen("hsm = true", "hsm = true\nkey = \"AAAA\"", 1);
    assert!(matches!(Fixture::with(&both).refusal().0, KeyFileError::NoKey { .. }));
    let none = text.expose().replacen("hsm = true", "", 1);
    assert!(matches!(Fixture::with(&none).refusal().0, KeyFileError::NoKey { .. }));
}

#[test]
fn a_keyring_is_replaced_whole_and_stays_private() {
    let fixture = Fixture::with(&generated());
    let before = fixture.load().unwrap_or_else(|error| panic!("{error}"));
    // What a run that was cut off left behind is no hindrance.
    std::fs::write(fixture.path.with_file_name("keyring.toml.new"), "half").expect("written");
    let link = fixture.path.with_file_name("link.toml");
    std::os::unix::fs::symlink(&fixture.path, &link).expect("linked");
    replace(&link, &before.with_new_kek(NOW).expect("entropy").render()).expect("replaced");
    let after = fixture.load().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((after.keks().len(), after.keks()[0].id == *before.active()), (2, true));
    assert_eq!(std::fs::metadata(&fixture.path).expect("there").permissions().mode() & 0o7777, 0o600);
    assert!(std::fs::symlink_metadata(&link).expect("there").is_symlink());
    assert!(!fixture.path.with_file_name("keyring.toml.new").exists());
}

#[test]
fn one_command_at_a_time_changes_a_keyring() {
    let fixture = Fixture::with(&generated());
    let held = lock(&fixture.path).expect("locked");
    assert!(matches!(lock(&fixture.path).err(), Some(KeyFileError::Locked(_))));
    drop(held);
    assert!(lock(&fixture.path).is_ok());
}

#[test]
fn keys_in_the_file_conform_and_so_do_those_rebuilt_from_shares() {
    let first = Fixture::with(&generated()).load().unwrap_or_else(|error| panic!("{error}"));
    let both = first.with_new_kek(NOW).expect("entropy");
    let (one, two) = (first.active().clone(), both.active().clone());
    conforms(&both, &one, &two);
    let fixture = Fixture::with(both.render().expose());
    conforms(&Keks::open(&fixture.path, None).expect("opened"), &one, &two);
    // Split, and rebuilt in a process that never saw the file with the keys.
    let mut split = both.copy();
    let mut rebuilt = Vec::new();
    for id in [&one, &two] {
        let soft = both.soft(id).expect("in the file");
        let (description, made) = shares::split(soft, 5, 3).unwrap_or_else(|error| panic!("{error}"));
        let some: Vec<&shares::Share> = made.iter().rev().take(3).collect();
        rebuilt.push(shares::combine(id, &description, &some).unwrap_or_else(|error| panic!("{error}")));
        split = split.with_place(id, Place::Split(description));
    }
    let fixture = Fixture::with(split.render().expose());
    let keks = Keks::open(&fixture.path, None).expect("opened");
    let key = make_data_key(Purpose::Card).expect("entropy");
    assert_eq!(keks.wrap_under(&one, &key).err(), Some(WrapError::Sealed(one.clone())));
    for kek in rebuilt {
        keks.take_rebuilt(kek);
    }
    conforms(&keks, &one, &two);
}
