//! Every golden file opens, and sealing with its salt and nonce makes its very bytes. The files were made
//! by another implementation (`tests/golden/reference.py`), so they hold the code to `docs/envelope.md`.
//! They are kept for ever: a file that no longer opens is somebody's card that no longer opens.

use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde::Deserialize;

use super::aad::{Field, Place};
use super::committed::Fresh;
use super::envelope::{dek_id, open, open_pan, seal_fresh, seal_pan_fresh};
use super::fingerprint::{fingerprint, parse, show};
use super::kek::WrapsKeys;
use super::kek::file::tests::{check_of, known, wrap_known};
use super::keyring::{DataKey, Purpose};
use super::request_mac::{request_mac, verify};
use crate::base::card::Pan;
use crate::base::ids::{DekId, KekId, Merchant};
use crate::base::sealed::Sealed;
use crate::base::secret::{SecretBuf, key256};

/// The files of a folder, parsed; never none.
fn golden<T: for<'de> Deserialize<'de>>(folder: &str) -> Vec<(PathBuf, T)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let files: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("text");
            let file = serde_json::from_str(&text);
            (path.clone(), file.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        })
        .collect();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files
}

fn hex(text: &str) -> Vec<u8> {
    HEXLOWER.decode(text.as_bytes()).expect("hex")
}

fn array<const N: usize>(text: &str) -> [u8; N] {
    hex(text).try_into().expect("the right length")
}

fn data_key(id: &str, purpose: Purpose, key: &str) -> DataKey {
    let id = DekId::parse(id).expect("an id");
    DataKey::new(id, purpose, key256(|bytes| *bytes = array(key)))
}

fn any_id() -> String {
    DekId::make().expect("entropy").to_string()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    dek_id: String,
    purpose: String,
    key: String,
    merchant: String,
    record: String,
    field: String,
    salt: String,
    nonce: String,
    plaintext: String,
    sealed: String,
}

#[test]
fn every_golden_record_opens_and_is_made_again() {
    let mut fields = Vec::new();
    for (path, file) in golden::<Record>("envelope-v1") {
        let dek = data_key(&file.dek_id, Purpose::parse(&file.purpose).expect("a purpose"), &file.key);
        let merchant = Merchant::parse(&file.merchant).expect("a name");
        let field = Field::parse(&file.field).expect("a field");
        let place = Place { merchant: &merchant, record: &file.record, field };
        let sealed = Sealed::from_bytes(hex(&file.sealed));
        let fresh = Fresh { salt: array(&file.salt), nonce: array(&file.nonce) };
        assert_eq!(dek_id(&sealed).as_ref(), Ok(dek.id()));
        let again = if field == Field::Pan {
            let Ok(pan) = open_pan(&dek, &place, &sealed) else { panic!("{}", path.display()) };
            assert_eq!(pan.expose(), file.plaintext);
            seal_pan_fresh(&dek, &place, &pan, &fresh)
        } else {
            let Ok(plaintext) = open(&dek, &place, &sealed) else { panic!("{}", path.display()) };
            assert_eq!(plaintext.expose(), file.plaintext.as_bytes());
            seal_fresh(&dek, &place, &SecretBuf::from_vec(file.plaintext.into_bytes()), &fresh)
        };
        assert_eq!(again.expect("sealed").as_bytes(), sealed.as_bytes(), "{}", path.display());
        fields.push(field);
    }
    assert!(Field::ALL.into_iter().all(|field| fields.contains(&field)), "a field without a golden file");
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped {
    kek_id: String,
    kek: String,
    kek_check: String,
    dek_id: String,
    purpose: String,
    salt: String,
    nonce: String,
    key: String,
    wrapped: String,
}

#[test]
fn every_golden_wrapped_key_unwraps_and_is_made_again() {
    let mut purposes = Vec::new();
    for (path, file) in golden::<Wrapped>("wrap-v1") {
        let kek_id = KekId::parse(&file.kek_id).expect("an id");
        let purpose = Purpose::parse(&file.purpose).expect("a purpose");
        let dek = data_key(&file.dek_id, purpose, &file.key);
        let fresh = Fresh { salt: array(&file.salt), nonce: array(&file.nonce) };
        assert_eq!(check_of(array(&file.kek)), file.kek_check);
        let unwrapped =
            known(&kek_id, array(&file.kek)).unwrap(dek.id(), purpose, &kek_id, &hex(&file.wrapped));
        let Ok(unwrapped) = unwrapped else { panic!("{}", path.display()) };
        // The key that came out wraps to the same bytes, so it is the key that went in.
        let again = wrap_known(&kek_id, array(&file.kek), &unwrapped, &fresh);
        assert_eq!(HEXLOWER.encode(&again), file.wrapped, "{}", path.display());
        let from_file = wrap_known(&kek_id, array(&file.kek), &dek, &fresh);
        assert_eq!(again, from_file, "{}", path.display());
        purposes.push(purpose);
    }
    assert!(Purpose::ALL.into_iter().all(|purpose| purposes.contains(&purpose)), "a purpose without a file");
}

#[cfg(feature = "pkcs11")]
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenWrapped {
    kek_id: String,
    kek: String,
    dek_id: String,
    purpose: String,
    nonce: String,
    key: String,
    wrapped: String,
}

/// What a token wraps, with the token's part done here: the header is taken and the bytes fit.
#[cfg(feature = "pkcs11")]
#[test]
fn every_golden_key_of_a_token_is_read_and_opens() {
    use super::kek::hsm::{aad, parse};
    for (path, file) in golden::<TokenWrapped>("wrap-v2") {
        let kek_id = KekId::parse(&file.kek_id).expect("an id");
        let dek_id = DekId::parse(&file.dek_id).expect("an id");
        let purpose = Purpose::parse(&file.purpose).expect("a purpose");
        let wrapped = hex(&file.wrapped);
        let (nonce, body) = parse(&kek_id, &wrapped).expect("the right form");
        assert_eq!(nonce, array(&file.nonce), "{}", path.display());
        let (ciphertext, tag) = body.split_last_chunk::<16>().expect("a tag");
        let mut block = ciphertext.to_vec();
        let kek = key256(|bytes| *bytes = array(&file.kek));
        let opened =
            super::aead::open_in_place(&kek, &nonce, &aad(&kek_id, &dek_id, purpose), &mut block, tag);
        assert!(opened.is_ok() && block == hex(&file.key), "{}", path.display());
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shares {
    kek_id: String,
    kek: String,
    kek_check: String,
    split: String,
    threshold: u8,
    shares: Vec<String>,
    checks: Vec<String>,
}

#[test]
fn every_golden_share_is_read_and_rebuilds() {
    use super::kek::file::Split;
    use super::kek::shares::{Share, combine};
    for (path, file) in golden::<Shares>("shares-v1") {
        let kek_id = KekId::parse(&file.kek_id).expect("an id");
        let split = Split {
            check: array(&file.kek_check),
            id: array(&file.split),
            threshold: file.threshold,
            shares: file.checks.iter().map(|check| array(check)).collect(),
        };
        let shares: Vec<Share> = file
            .shares
            .iter()
            .map(|text| Share::parse(&text.as_str().into()).unwrap_or_else(|error| panic!("{error}")))
            .collect();
        for (share, text) in shares.iter().zip(&file.shares) {
            assert_eq!(share.text().expose(), text, "{}", path.display());
        }
        for first in 0..=shares.len() - usize::from(file.threshold) {
            let some: Vec<&Share> = shares.iter().skip(first).take(usize::from(file.threshold)).collect();
            let rebuilt = combine(&kek_id, &split, &some).unwrap_or_else(|error| panic!("{error}"));
            let key = data_key(&any_id(), Purpose::Card, &file.kek);
            let fresh = Fresh { salt: [1; 32], nonce: [2; 12] };
            let (mine, known) =
                (rebuilt.wrap(&key, &fresh), wrap_known(&kek_id, array(&file.kek), &key, &fresh));
            assert_eq!(mine, Ok(known), "the key that came out is the key that went in");
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fingerprint {
    key: String,
    merchant: String,
    pan: String,
    fingerprint: String,
    shown: String,
}

#[test]
fn every_golden_fingerprint_is_made_again() {
    for (path, file) in golden::<Fingerprint>("fingerprint-v1") {
        let key = data_key(&any_id(), Purpose::Fingerprint, &file.key);
        let merchant = Merchant::parse(&file.merchant).expect("a name");
        let pan = Pan::parse(&file.pan).expect("a PAN");
        assert_eq!(fingerprint(&key, &merchant, &pan), Ok(array(&file.fingerprint)), "{}", path.display());
        assert_eq!(show(&array(&file.fingerprint)), file.shown);
        assert_eq!(parse(&file.shown), Some(array(&file.fingerprint)));
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestMac {
    key: String,
    canonical: String,
    mac: String,
}

#[test]
fn every_golden_request_mac_is_made_again() {
    for (path, file) in golden::<RequestMac>("request-mac-v1") {
        let key = data_key(&any_id(), Purpose::RequestMac, &file.key);
        let canonical = file.canonical.as_bytes();
        assert_eq!(request_mac(&key, canonical), Ok(array(&file.mac)), "{}", path.display());
        assert_eq!(verify(&key, canonical, &hex(&file.mac)), Ok(true));
    }
}

/// The worked example of the documentation is the golden file's, part by part.
#[test]
fn the_documents_worked_example_is_a_golden_file() {
    let text = include_str!("../../docs/envelope.md");
    let golden = golden::<Record>("envelope-v1");
    let (_, file) = golden.iter().find(|(path, _)| path.ends_with("pan.json")).expect("the example's file");
    let (_, example) = text.split_once("\nsealed\n").expect("the example");
    let bytes: String = example
        .lines()
        .take_while(|line| !line.starts_with("```"))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| HEXLOWER.decode(word.as_bytes()).is_ok())
        .collect();
    assert_eq!(bytes, file.sealed);
    for part in [&file.key, &file.dek_id, &file.record, &file.salt, &file.nonce] {
        assert!(text.contains(part.as_str()), "{part}");
    }
}
