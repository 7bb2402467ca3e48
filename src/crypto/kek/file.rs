//! KEKs in a file, the provider that needs nothing else. `keys.example` shows the file. It is read whole
//! or refused whole, in words that name the mend and never hold what is in the file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use data_encoding::{BASE64, HEXLOWER};
use secrecy::ExposeSecret;
use serde::Deserialize;
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use crate::base::bytes::length_prefixed;
use crate::base::clock::Millis;
use crate::base::entropy::{self, NoEntropy};
use crate::base::ids::{DekId, KekId};
use crate::base::secret::{Key256, SecretText, key256};
use crate::crypto::committed::{Binding, Fresh, NotSealed};
use crate::crypto::keyring::{DataKey, Purpose, RAW_ID, raw_dek_id, raw_kek_id};
use crate::crypto::mac::hmac_of;

use super::{KekProvider, WrapError};

/// Largest keyring file, in bytes: some three hundred keys.
const FILE_BYTES: usize = 64 * 1024;
/// The documented example. Whoever can read this program's source has its keys.
const EXAMPLE: &str = include_str!("../../../keys.example");

const FORMAT_VERSION: u8 = 1;
const ALGORITHM: u8 = 1;
/// Version, algorithm, KEK id.
const HEADER: usize = 2 + RAW_ID;

/// Why a keyring file is refused. Every text names the file, the cause and the mend; none holds anything
/// of the file but key ids.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is no such file.
    #[error("{0}: there is no such file; make it with `cardvault keys init`, or correct its path")]
    Missing(PathBuf),
    /// The operating system refused to open, read or write it.
    #[error("{0}: cannot be opened, read or written; check that this user may use the path")]
    Io(PathBuf, #[source] io::Error),
    /// Something is at the path already; it may be the only copy of somebody's keys.
    #[error("{0}: is there already and is not overwritten; move it away or choose another path")]
    Exists(PathBuf),
    /// A directory, a device, a pipe.
    #[error("{0}: is not a regular file; correct its path")]
    NotAFile(PathBuf),
    /// Group or others may read or write it (PCI DSS 3.7.7, 7.2).
    #[error("{path}: has mode {mode:04o}, so others can use it; run `chmod 0600` on it")]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another user owns it and can change it at will.
    #[error("{0}: belongs to another user; run `chown` on it for the user that runs cardvault, or root")]
    ForeignOwner(PathBuf),
    /// More than 64 KiB.
    #[error("{0}: is larger than 64 KiB; it is not a keyring, correct its path")]
    TooLarge(PathBuf),
    /// Not TOML, or not the tables and words that a keyring has.
    #[error("{path}: line {line} is not as in keys.example; look for a wrong, missing or misspelt word")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1; where a word is missing, the line at which its table begins.
        line: usize,
    },
    /// `id` or `active` is not a KEK id.
    #[error("{0}: an id is not `kek_` and 32 characters; restore the file from its backup")]
    BadId(PathBuf),
    /// `created` is not an RFC 3339 time.
    #[error("{path}: the time of {kek} is not RFC 3339, as in 2026-03-01T12:00:00Z; correct it")]
    BadTime {
        /// The file.
        path: PathBuf,
        /// The key with that time.
        kek: KekId,
    },
    /// `key` is not the base64 of 32 bytes.
    #[error("{path}: the key of {kek} is not the base64 of 32 bytes; restore the file from its backup")]
    BadKey {
        /// The file.
        path: PathBuf,
        /// The key.
        kek: KekId,
    },
    /// The key is not the one that its check value was made for.
    #[error("{path}: the key of {kek} does not fit its check value; restore the file from its backup")]
    CheckValue {
        /// The file.
        path: PathBuf,
        /// The key.
        kek: KekId,
    },
    /// One id, or one key, is there twice.
    #[error("{path}: {kek} is there twice; remove one, or restore the file from its backup")]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The second of the two.
        kek: KekId,
    },
    /// `active` names no key of the file.
    #[error("{path}: the active key {kek} is not in it; correct `active`, or restore the file")]
    NoActive {
        /// The file.
        path: PathBuf,
        /// What `active` says.
        kek: KekId,
    },
    /// The key of `keys.example`.
    #[error("{path}: {kek} is the published key of keys.example; make one with `cardvault keys init`")]
    Published {
        /// The file.
        path: PathBuf,
        /// The key.
        kek: KekId,
    },
    /// No random bytes to make a key of.
    #[error(transparent)]
    NoEntropy(#[from] NoEntropy),
}

/// The KEKs of one keyring file. No `Debug`, `Clone` or `Serialize`; wiped on drop.
pub struct FileKek {
    active: KekId,
    keks: Vec<Kek>,
}

struct Kek {
    id: KekId,
    created: String,
    key: Key256,
}

/// The text of a new keyring file with one random key, made at `now`.
pub fn generate(now: Millis) -> Result<SecretText, NoEntropy> {
    let kek = Kek::make(now)?;
    Ok(render(&kek.id, &[&kek]))
}

/// Writes a keyring's text to a new file with mode 0600, and has the disk keep both the file and its
/// name before it returns. Never overwrites.
pub fn create_new(path: &Path, text: &SecretText) -> Result<(), KeyFileError> {
    let io_error = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => KeyFileError::Exists(path.to_owned()),
        _ => KeyFileError::Io(path.to_owned(), error),
    };
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io_error)?;
    let written = file.write_all(text.expose().as_bytes()).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| sync_directory(path)) {
        // Half a keyring is of no use and would stand in the way of the next attempt; it is ours alone.
        let _already_failing = std::fs::remove_file(path);
        return Err(io_error(error));
    }
    Ok(())
}

/// Reads a keyring file, or says what is wrong with it.
pub fn load(path: &Path) -> Result<FileKek, KeyFileError> {
    let bytes = read(path)?;
    let syntax = |at: usize| {
        let before = bytes.get(..at).unwrap_or(&bytes);
        KeyFileError::Syntax {
            path: path.to_owned(),
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
        }
    };
    let text = std::str::from_utf8(&bytes).map_err(|error| syntax(error.valid_up_to()))?;
    // The parser's own words quote the line, which may be the key's: only the line's number is passed on.
    let file: Keyring =
        toml::from_str(text).map_err(|error| syntax(error.span().map_or(0, |span| span.start)))?;
    FileKek::of(path, file)
}

impl FileKek {
    /// The ids of all KEKs of the file, in its order, with when each was made (RFC 3339).
    pub fn keks(&self) -> impl Iterator<Item = (&KekId, &str)> {
        self.keks.iter().map(|kek| (&kek.id, kek.created.as_str()))
    }

    /// The text of a keyring with all keys of this one and a new one, which is active: the first step of
    /// a KEK's rotation. Data keys that the old KEKs wrapped go on unwrapping.
    pub fn with_new_kek(&self, now: Millis) -> Result<SecretText, NoEntropy> {
        let new = Kek::make(now)?;
        let all: Vec<&Kek> = self.keks.iter().chain([&new]).collect();
        Ok(render(&new.id, &all))
    }

    fn of(path: &Path, file: Keyring) -> Result<Self, KeyFileError> {
        let published: Vec<Key256> = published_keys();
        let mut keks: Vec<Kek> = Vec::with_capacity(file.kek.len());
        for entry in &file.kek {
            let kek = entry.check(path)?;
            let same = |other: &Key256| bool::from(other.expose_secret().ct_eq(kek.key.expose_secret()));
            if published.iter().any(same) {
                return Err(KeyFileError::Published { path: path.to_owned(), kek: kek.id });
            }
            if keks.iter().any(|other| other.id == kek.id || same(&other.key)) {
                return Err(KeyFileError::Duplicate { path: path.to_owned(), kek: kek.id });
            }
            keks.push(kek);
        }
        let active = KekId::parse(&file.active).ok_or_else(|| KeyFileError::BadId(path.to_owned()))?;
        if !keks.iter().any(|kek| kek.id == active) {
            return Err(KeyFileError::NoActive { path: path.to_owned(), kek: active });
        }
        Ok(Self { active, keks })
    }

    fn kek(&self, id: &KekId) -> Result<&Kek, WrapError> {
        self.keks.iter().find(|kek| kek.id == *id).ok_or_else(|| WrapError::UnknownKek(id.clone()))
    }
}

impl KekProvider for FileKek {
    fn kek_id(&self) -> &KekId {
        &self.active
    }

    fn wrap(&self, key: &DataKey) -> Result<Vec<u8>, WrapError> {
        self.kek(&self.active)?.wrap(key, &Fresh::make()?)
    }

    fn unwrap(
        &self,
        id: &DekId,
        purpose: Purpose,
        kek: &KekId,
        wrapped: &[u8],
    ) -> Result<DataKey, WrapError> {
        self.kek(kek)?.unwrap(id, purpose, wrapped).ok_or(WrapError::CouldNotOpen)
    }
}

impl Kek {
    fn make(now: Millis) -> Result<Self, NoEntropy> {
        let mut filled = Ok(());
        let key = key256(|bytes| filled = entropy::fill(bytes));
        filled?;
        Ok(Self { id: KekId::make()?, created: now.rfc3339(), key })
    }

    fn wrap(&self, key: &DataKey, fresh: &Fresh) -> Result<Vec<u8>, WrapError> {
        let mut header = [FORMAT_VERSION; HEADER];
        header[1] = ALGORITHM;
        header[2..].copy_from_slice(&raw_kek_id(&self.id).ok_or(WrapError::CouldNotOpen)?);
        let (info, aad) = self.bound_to(key.id(), key.purpose());
        let binding = Binding { key: &self.key, info: &info, aad: &aad };
        binding.seal(&header, key.key().expose_secret(), fresh).map_err(|reason| match reason {
            NotSealed::Refused => WrapError::CouldNotOpen,
            NotSealed::NotReadBack => WrapError::NotReadBack,
        })
    }

    fn unwrap(&self, id: &DekId, purpose: Purpose, wrapped: &[u8]) -> Option<DataKey> {
        let (header, body) = wrapped.split_first_chunk::<HEADER>()?;
        let [FORMAT_VERSION, ALGORITHM, kek @ ..] = header else { return None };
        // The header's id is the KEK's, and the data key's id is one that a header could hold.
        if *kek != raw_kek_id(&self.id)? || raw_dek_id(id).is_none() {
            return None;
        }
        let (info, aad) = self.bound_to(id, purpose);
        let block = Binding { key: &self.key, info: &info, aad: &aad }.open(body)?;
        let bytes: &[u8; 32] = block.as_slice().try_into().ok()?;
        Some(DataKey::new(id.clone(), purpose, key256(|key| key.copy_from_slice(bytes))))
    }

    fn bound_to(&self, id: &DekId, purpose: Purpose) -> (Vec<u8>, Vec<u8>) {
        let lp = |format: &str| {
            let parts = [format, self.id.as_str(), id.as_str(), purpose.as_str()];
            length_prefixed(&parts.map(str::as_bytes))
        };
        (lp("cardvault/wrap/v1"), lp("wrap/1"))
    }
}

/// The first 8 bytes, in hex, of HMAC-SHA-256(key, "cardvault/kek-check/v1"). Tells a damaged key from a
/// good one and reveals nothing of it.
fn check_value(key: &Key256) -> String {
    let mac = hmac_of(key, b"cardvault/kek-check/v1");
    HEXLOWER.encode(mac.first_chunk::<8>().unwrap_or(&[0; 8]))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keyring {
    active: String,
    kek: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: String,
    created: String,
    #[serde(deserialize_with = "wiped")]
    key: SecretText,
    check: String,
}

fn wiped<'de, D: serde::Deserializer<'de>>(from: D) -> Result<SecretText, D::Error> {
    String::deserialize(from).map(SecretText::new)
}

impl Entry {
    fn check(&self, path: &Path) -> Result<Kek, KeyFileError> {
        let path = || path.to_owned();
        let id = KekId::parse(&self.id).ok_or_else(|| KeyFileError::BadId(path()))?;
        if OffsetDateTime::parse(&self.created, &Rfc3339).is_err() {
            return Err(KeyFileError::BadTime { path: path(), kek: id });
        }
        let Some(key) = decode(self.key.expose()) else {
            return Err(KeyFileError::BadKey { path: path(), kek: id });
        };
        if !bool::from(check_value(&key).as_bytes().ct_eq(self.check.as_bytes())) {
            return Err(KeyFileError::CheckValue { path: path(), kek: id });
        }
        Ok(Kek { id, created: self.created.clone(), key })
    }
}

/// 32 bytes from base64 with its padding, in its one spelling.
fn decode(text: &str) -> Option<Key256> {
    let bytes = Zeroizing::new(BASE64.decode(text.as_bytes()).ok()?);
    let bytes: &[u8; 32] = bytes.as_slice().try_into().ok()?;
    Some(key256(|key| key.copy_from_slice(bytes)))
}

/// Every key that `keys.example` holds, commented out or not.
fn published_keys() -> Vec<Key256> {
    let values = EXAMPLE
        .lines()
        .filter_map(|line| line.trim_start_matches(['#', ' ']).strip_prefix("key = \"")?.split('"').next());
    values.filter_map(decode).collect()
}

/// A keyring's text, in a buffer that does not regrow.
fn render(active: &KekId, keks: &[&Kek]) -> SecretText {
    const HEAD: &str =
        "# cardvault's keyring. Whoever reads it can open every card; keys.example explains it.\n";
    const BYTES_EACH: usize = 256;
    let mut text = String::with_capacity(HEAD.len() + BYTES_EACH * (keks.len() + 1));
    text.push_str(HEAD);
    for part in ["active = \"", active.as_str(), "\"\n"] {
        text.push_str(part);
    }
    for kek in keks {
        let mut key = Zeroizing::new([0; 44]);
        BASE64.encode_mut(kek.key.expose_secret(), key.as_mut());
        let key = std::str::from_utf8(key.as_slice()).unwrap_or_default();
        let check = check_value(&kek.key);
        let lines =
            [("\n[[kek]]\nid", kek.id.as_str()), ("created", &kek.created), ("key", key), ("check", &check)];
        for (name, value) in lines {
            for part in [name, " = \"", value, "\"\n"] {
                text.push_str(part);
            }
        }
    }
    SecretText::new(text)
}

/// Opens, checks the open file (not the name, which could change under the check), and reads it into
/// one buffer that is wiped.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let owned = || path.to_owned();
    let io_error = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => KeyFileError::Missing(owned()),
        _ => KeyFileError::Io(owned(), error),
    };
    // Without NONBLOCK, opening a pipe would wait for somebody to write to it.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(io_error)?;
    let metadata = file.metadata().map_err(io_error)?;
    if !metadata.is_file() {
        return Err(KeyFileError::NotAFile(owned()));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::OpenToOthers { path: owned(), mode });
    }
    if !owner_is_trusted(metadata.uid(), rustix::process::geteuid().as_raw()) {
        return Err(KeyFileError::ForeignOwner(owned()));
    }
    let mut bytes = Zeroizing::new(vec![0; FILE_BYTES + 1]);
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error(error)),
        }
    }
    if filled > FILE_BYTES {
        return Err(KeyFileError::TooLarge(owned()));
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The user that runs this program, or root.
fn owner_is_trusted(owner: u32, own: u32) -> bool {
    owner == own || owner == 0
}

/// A new file is there after a crash only when its directory is on disk too.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
pub(in crate::crypto) mod tests;
