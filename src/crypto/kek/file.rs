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

use crate::base::clock::Millis;
use crate::base::entropy::NoEntropy;
use crate::base::ids::{DekId, KekId};
use crate::base::secret::{Key256, SecretText, key256};
use crate::crypto::committed::Fresh;
use crate::crypto::keyring::{DataKey, Purpose};

use super::soft::{SoftKek, check_value};
use super::{KekProvider, WrapError, WrapsKeys};

/// Largest keyring file, in bytes: some three hundred keys.
const FILE_BYTES: usize = 64 * 1024;
/// The documented example. Whoever can read this program's source has its keys.
const EXAMPLE: &str = include_str!("../../../keys.example");

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
    /// An entry has no key, or says in two ways where it is.
    #[error("{path}: {kek} needs exactly one of `key`, `split` and `hsm`; restore the file from its backup")]
    NoKey {
        /// The file.
        path: PathBuf,
        /// The key.
        kek: KekId,
    },
    /// The description of a key's shares does not hold together.
    #[error("{path}: the shares of {kek} are not described as in keys.example; restore the file")]
    BadSplit {
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
    /// Another command is changing the keyring.
    #[error("{0}: another `cardvault keys` command is changing it; run this again when that one is done")]
    Locked(PathBuf),
    /// No random bytes to make a key of.
    #[error(transparent)]
    NoEntropy(#[from] NoEntropy),
}

/// The KEKs of one keyring file. No `Debug`, `Clone` or `Serialize`; wiped on drop.
pub struct FileKek {
    active: KekId,
    keks: Vec<Kek>,
}

/// An entry of a keyring file.
pub struct Kek {
    /// The KEK's id.
    pub id: KekId,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Where its key is.
    pub place: Place,
}

/// Where a KEK's key is.
pub enum Place {
    /// In the file.
    File(SoftKek),
    /// With custodians; the file tells their shares from others.
    Split(Split),
    /// In the token of `[keys.hsm]`, under the KEK's id as its label.
    Token,
}

/// How a KEK is split. Nothing of it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The KEK's own check value.
    pub check: [u8; 8],
    /// The id of this split; a share names it.
    pub id: [u8; 8],
    /// How many shares rebuild the key.
    pub threshold: u8,
    /// The check value of each share; the first is that of share 1.
    pub shares: Vec<[u8; 8]>,
}

impl Place {
    /// A word for people: `file`, `split` or `hsm`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Split(_) => "split",
            Self::Token => "hsm",
        }
    }

    fn copy(&self) -> Self {
        match self {
            Self::File(kek) => Self::File(kek.copy()),
            Self::Split(split) => Self::Split(split.clone()),
            Self::Token => Self::Token,
        }
    }
}

impl Kek {
    fn copy(&self) -> Self {
        Self { id: self.id.clone(), created: self.created.clone(), place: self.place.copy() }
    }
}

/// The text of a new keyring file with one random key, made at `now`.
pub fn generate(now: Millis) -> Result<SecretText, NoEntropy> {
    let kek = SoftKek::make()?;
    let (id, created) = (kek.id().clone(), now.rfc3339());
    Ok(FileKek { active: id.clone(), keks: vec![Kek { id, created, place: Place::File(kek) }] }.render())
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

/// Puts a keyring's text in the place of a keyring file, with mode 0600: at any instant, also after a
/// crash, either the old file is there whole or the new one is.
pub fn replace(path: &Path, text: &SecretText) -> Result<(), KeyFileError> {
    // A link is followed once, here: replacing the link would leave the old keys at its target.
    let target = std::fs::canonicalize(path).map_err(|error| KeyFileError::Io(path.to_owned(), error))?;
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = target.with_file_name(name);
    // What is there was left by a run that was cut off: nothing reads it.
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(KeyFileError::Io(beside, error));
        }
        _ => {}
    }
    create_new(&beside, text)?;
    std::fs::rename(&beside, &target)
        .and_then(|()| sync_directory(&target))
        .map_err(|error| KeyFileError::Io(path.to_owned(), error))
}

/// Takes the right to change a keyring file, until the guard is dropped or the process ends: two commands
/// that change it at once would lose one of the two changes.
pub fn lock(path: &Path) -> Result<File, KeyFileError> {
    let failed = |error: io::Error| KeyFileError::Io(path.to_owned(), error);
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = File::open(folder).map_err(failed)?;
    rustix::fs::flock(&folder, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        match error {
            rustix::io::Errno::WOULDBLOCK => KeyFileError::Locked(path.to_owned()),
            other => failed(other.into()),
        }
    })?;
    Ok(folder)
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
    /// All KEKs of the file, in its order: the newest last.
    pub fn keks(&self) -> &[Kek] {
        &self.keks
    }

    /// The KEK that wraps.
    pub fn active(&self) -> &KekId {
        &self.active
    }

    /// The entry of a KEK.
    pub fn find(&self, id: &KekId) -> Option<&Kek> {
        self.keks.iter().find(|kek| kek.id == *id)
    }

    /// This keyring and one KEK more at its end, which wraps nothing yet.
    pub fn with(&self, kek: Kek) -> Self {
        let mut all = self.copy();
        all.keks.push(kek);
        all
    }

    /// This keyring with a new KEK in the file, which wraps from now on.
    pub fn with_new_kek(&self, now: Millis) -> Result<Self, NoEntropy> {
        let kek = SoftKek::make()?;
        let id = kek.id().clone();
        let all = self.with(Kek { id: id.clone(), created: now.rfc3339(), place: Place::File(kek) });
        Ok(all.with_active(&id))
    }

    /// This keyring with another of its KEKs in use for wrapping.
    pub fn with_active(&self, id: &KekId) -> Self {
        Self { active: id.clone(), ..self.copy() }
    }

    /// This keyring with a KEK's key somewhere else.
    pub fn with_place(&self, id: &KekId, place: Place) -> Self {
        let mut all = self.copy();
        if let Some(kek) = all.keks.iter_mut().find(|kek| kek.id == *id) {
            kek.place = place;
        }
        all
    }

    /// This keyring without a KEK.
    pub fn without(&self, id: &KekId) -> Self {
        let mut all = self.copy();
        all.keks.retain(|kek| kek.id != *id);
        all
    }

    fn copy(&self) -> Self {
        Self { active: self.active.clone(), keks: self.keks.iter().map(Kek::copy).collect() }
    }

    fn of(path: &Path, file: Keyring) -> Result<Self, KeyFileError> {
        let published: Vec<Key256> = published_keys();
        let mut keks: Vec<Kek> = Vec::with_capacity(file.kek.len());
        for entry in &file.kek {
            let kek = entry.check(path)?;
            let same = |other: &Key256| match &kek.place {
                Place::File(soft) => bool::from(other.expose_secret().ct_eq(soft.key.expose_secret())),
                _ => false,
            };
            if published.iter().any(same) {
                return Err(KeyFileError::Published { path: path.to_owned(), kek: kek.id });
            }
            let twice = |other: &Kek| {
                other.id == kek.id || matches!(&other.place, Place::File(soft) if same(&soft.key))
            };
            if keks.iter().any(twice) {
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

    /// The key of a KEK, where it is in the file.
    pub(super) fn soft(&self, id: &KekId) -> Result<&SoftKek, WrapError> {
        match self.find(id).map(|kek| &kek.place) {
            Some(Place::File(soft)) => Ok(soft),
            Some(Place::Split(_)) => Err(WrapError::Sealed(id.clone())),
            Some(Place::Token) => Err(WrapError::NoToken(id.clone())),
            None => Err(WrapError::UnknownKek(id.clone())),
        }
    }

    /// The file's text, in a buffer that does not regrow.
    pub fn render(&self) -> SecretText {
        const HEAD: &str =
            "# cardvault's keyring. Whoever reads it can open every card; keys.example explains it.\n";
        const BYTES_EACH: usize = 320;
        const BYTES_OF_A_SHARE: usize = 24;
        let shares: usize = self.keks.iter().map(|kek| kek.place.shares()).sum();
        let size = HEAD.len() + BYTES_EACH * (self.keks.len() + 1) + BYTES_OF_A_SHARE * shares;
        let mut text = String::with_capacity(size);
        let line = |text: &mut String, name: &str, value: &str| {
            for part in [name, " = \"", value, "\"\n"] {
                text.push_str(part);
            }
        };
        text.push_str(HEAD);
        line(&mut text, "active", self.active.as_str());
        for kek in &self.keks {
            line(&mut text, "\n[[kek]]\nid", kek.id.as_str());
            line(&mut text, "created", &kek.created);
            match &kek.place {
                Place::File(soft) => {
                    let mut key = Zeroizing::new([0; 44]);
                    BASE64.encode_mut(soft.key.expose_secret(), key.as_mut());
                    line(&mut text, "key", std::str::from_utf8(key.as_slice()).unwrap_or_default());
                    line(&mut text, "check", &HEXLOWER.encode(&soft.check()));
                }
                Place::Split(split) => {
                    line(&mut text, "check", &HEXLOWER.encode(&split.check));
                    let shares: Vec<String> =
                        split.shares.iter().map(|check| format!("\"{}\"", HEXLOWER.encode(check))).collect();
                    let (id, shares) = (HEXLOWER.encode(&split.id), shares.join(", "));
                    let threshold = split.threshold;
                    text.push_str(&format!(
                        "split = {{ id = \"{id}\", threshold = {threshold}, shares = [{shares}] }}\n"
                    ));
                }
                Place::Token => text.push_str("hsm = true\n"),
            }
        }
        SecretText::new(text)
    }
}

impl Place {
    fn shares(&self) -> usize {
        if let Self::Split(split) = self { split.shares.len() } else { 0 }
    }
}

impl KekProvider for FileKek {
    fn kek_id(&self) -> KekId {
        self.active.clone()
    }
}

impl WrapsKeys for FileKek {
    fn wrap_under(&self, kek: &KekId, key: &DataKey) -> Result<Vec<u8>, WrapError> {
        self.soft(kek)?.wrap(key, &Fresh::make()?)
    }

    fn unwrap(
        &self,
        id: &DekId,
        purpose: Purpose,
        kek: &KekId,
        wrapped: &[u8],
    ) -> Result<DataKey, WrapError> {
        self.soft(kek)?.unwrap(id, purpose, wrapped).ok_or(WrapError::CouldNotOpen)
    }
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
    #[serde(default, deserialize_with = "wiped")]
    key: Option<SecretText>,
    #[serde(default)]
    check: String,
    #[serde(default)]
    split: Option<SplitEntry>,
    #[serde(default)]
    hsm: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SplitEntry {
    id: String,
    threshold: u8,
    shares: Vec<String>,
}

fn wiped<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<SecretText>, D::Error> {
    String::deserialize(from).map(|text| Some(SecretText::new(text)))
}

impl Entry {
    fn check(&self, path: &Path) -> Result<Kek, KeyFileError> {
        let path = || path.to_owned();
        let id = KekId::parse(&self.id).ok_or_else(|| KeyFileError::BadId(path()))?;
        if OffsetDateTime::parse(&self.created, &Rfc3339).is_err() {
            return Err(KeyFileError::BadTime { path: path(), kek: id });
        }
        let place = match (&self.key, &self.split, self.hsm) {
            (Some(key), None, false) => {
                let Some(key) = decode(key.expose()) else {
                    return Err(KeyFileError::BadKey { path: path(), kek: id });
                };
                let check = HEXLOWER.encode(&check_value(&key));
                if !bool::from(check.as_bytes().ct_eq(self.check.as_bytes())) {
                    return Err(KeyFileError::CheckValue { path: path(), kek: id });
                }
                Place::File(SoftKek { id: id.clone(), key })
            }
            (None, Some(split), false) => match split.read(&self.check) {
                Some(split) => Place::Split(split),
                None => return Err(KeyFileError::BadSplit { path: path(), kek: id }),
            },
            (None, None, true) => Place::Token,
            _ => return Err(KeyFileError::NoKey { path: path(), kek: id }),
        };
        Ok(Kek { id, created: self.created.clone(), place })
    }
}

impl SplitEntry {
    fn read(&self, check: &str) -> Option<Split> {
        let eight = |text: &str| HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok();
        let shares: Vec<[u8; 8]> = self.shares.iter().map(|text| eight(text)).collect::<Option<_>>()?;
        let threshold = usize::from(self.threshold);
        let sound = threshold >= 2 && threshold <= shares.len() && shares.len() <= 255;
        sound.then_some(Split {
            check: eight(check)?,
            id: eight(&self.id)?,
            threshold: self.threshold,
            shares,
        })
    }
}

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
