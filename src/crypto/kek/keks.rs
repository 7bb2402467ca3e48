//! All KEKs of a deployment, wherever each one's key is: in the keyring file, with custodians, in a token.
//! The file lists them all; it is read again when a KEK is asked for that it did not have.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwap;

use crate::base::clock::Millis;
use crate::base::ids::{DekId, KekId};
use crate::crypto::committed::Fresh;
use crate::crypto::keyring::{DataKey, Purpose};

use super::file::{self, FileKek, KeyFileError, Place, Split};
use super::shares::{Share, ShareError};
use super::soft::SoftKek;
use super::{KekProvider, TokenKeks, WrapError, WrapsKeys};

/// The KEKs that a keyring file lists.
pub struct Keks {
    path: PathBuf,
    file: ArcSwap<FileKek>,
    /// Rebuilt from shares; in memory only.
    rebuilt: RwLock<HashMap<KekId, SoftKek>>,
    token: Option<Arc<dyn TokenKeks>>,
}

impl Keks {
    /// Reads the keyring file. `token` has the keys of the entries that are in a token.
    pub fn open(path: &Path, token: Option<Arc<dyn TokenKeks>>) -> Result<Self, KeyFileError> {
        let file = ArcSwap::from_pointee(file::load(path)?);
        Ok(Self { path: path.to_owned(), file, rebuilt: RwLock::default(), token })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file holds, as it was last read.
    pub fn keyring(&self) -> Arc<FileKek> {
        self.file.load_full()
    }

    /// Reads the file again.
    pub fn read_again(&self) -> Result<Arc<FileKek>, KeyFileError> {
        self.take(file::load(&self.path)?);
        Ok(self.keyring())
    }

    /// As [`Self::read_again`]; where that cannot be, what was known stays.
    fn look_again(&self) {
        if let Err(error) = self.read_again() {
            tracing::warn!(error = &error as &dyn std::error::Error, "the keyring cannot be read again");
        }
    }

    /// Takes a keyring in the place of the one that was known. A KEK that was in the file and is split in the
    /// new one goes on here: its split must not stop a server that runs.
    fn take(&self, new: FileKek) {
        let old = self.keyring();
        for kek in new.keks() {
            let Place::Split(split) = &kek.place else { continue };
            if let Some(Place::File(soft)) = old.find(&kek.id).map(|kek| &kek.place)
                && soft.check() == split.check
            {
                self.take_rebuilt(soft.copy());
            }
        }
        // One that was taken ahead of its entry has its entry in this very keyring.
        self.rebuilt().retain(|id, _| new.find(id).is_some());
        self.file.store(Arc::new(new));
    }

    fn rebuilt(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<KekId, SoftKek>> {
        self.rebuilt.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key of a KEK that is in the file, or was rebuilt; for splitting it, or for putting it back.
    pub fn soft(&self, id: &KekId) -> Result<SoftKek, WrapError> {
        self.with(id, |place| match place {
            Key::Soft(soft) => Ok(soft.copy()),
            Key::Token(_) => Err(WrapError::NotInFile(id.clone())),
        })
    }

    /// The split that a share belongs to, and its KEK. The file is read again where it does not know it.
    pub fn split_of(&self, share: &Share) -> Result<(KekId, Split), ShareError> {
        let find = |file: &FileKek| {
            file.keks().iter().find_map(|kek| match &kek.place {
                Place::Split(split) if split.id == share.split_id() => Some((kek.id.clone(), split.clone())),
                _ => None,
            })
        };
        if let Some(found) = find(&self.keyring()) {
            return Ok(found);
        }
        self.look_again();
        find(&self.keyring()).ok_or(ShareError::OtherSplit(share.index()))
    }

    /// Puts another keyring in the file's place.
    pub fn replace(&self, keyring: FileKek) -> Result<(), KeyFileError> {
        file::replace(&self.path, &keyring.render())?;
        self.take(keyring);
        Ok(())
    }

    /// Makes a KEK in the token. The keyring file does not list it yet.
    pub fn make_in_token(&self, id: &KekId) -> Result<(), WrapError> {
        self.token(id)?.make(id)
    }

    /// Destroys a KEK in the token.
    pub fn destroy_in_token(&self, id: &KekId) -> Result<(), WrapError> {
        self.token(id)?.destroy(id)
    }

    fn token(&self, id: &KekId) -> Result<&dyn TokenKeks, WrapError> {
        self.token.as_deref().ok_or_else(|| WrapError::NoToken(id.clone()))
    }

    /// Takes a KEK that was rebuilt from its shares, until the process ends.
    pub fn take_rebuilt(&self, kek: SoftKek) {
        self.rebuilt().insert(kek.id().clone(), kek);
    }

    /// Whether a KEK can be used: it is in the file, or was rebuilt, or is in the token's care.
    pub fn is_open(&self, id: &KekId) -> bool {
        let file = self.keyring();
        match file.find(id).map(|kek| &kek.place) {
            Some(Place::File(_) | Place::Token) => true,
            Some(Place::Split(_)) => {
                self.rebuilt.read().unwrap_or_else(PoisonError::into_inner).contains_key(id)
            }
            None => false,
        }
    }

    fn with<T>(&self, id: &KekId, use_it: impl Fn(Key<'_>) -> Result<T, WrapError>) -> Result<T, WrapError> {
        if self.keyring().find(id).is_none() {
            self.look_again();
        }
        let file = self.keyring();
        match file.find(id).map(|kek| &kek.place) {
            Some(Place::File(soft)) => use_it(Key::Soft(soft)),
            Some(Place::Split(_)) => {
                let rebuilt = self.rebuilt.read().unwrap_or_else(PoisonError::into_inner);
                use_it(Key::Soft(rebuilt.get(id).ok_or_else(|| WrapError::Sealed(id.clone()))?))
            }
            Some(Place::Token) => use_it(Key::Token(self.token(id)?)),
            None => Err(WrapError::UnknownKek(id.clone())),
        }
    }
}

/// What does the work for one KEK.
enum Key<'a> {
    Soft(&'a SoftKek),
    Token(&'a dyn TokenKeks),
}

impl KekProvider for Keks {
    fn kek_id(&self) -> KekId {
        self.keyring().active().clone()
    }

    fn kek_created(&self) -> Option<Millis> {
        let file = self.keyring();
        Millis::parse_rfc3339(&file.find(file.active())?.created)
    }

    fn reload(&self) -> Result<(), WrapError> {
        self.read_again().map(drop).map_err(|error| WrapError::NotRead(error.to_string()))
    }
}

impl WrapsKeys for Keks {
    fn wrap_under(&self, kek: &KekId, key: &DataKey) -> Result<Vec<u8>, WrapError> {
        self.with(kek, |place| match place {
            Key::Soft(soft) => soft.wrap(key, &Fresh::make()?),
            Key::Token(token) => token.wrap_under(kek, key),
        })
    }

    fn unwrap(
        &self,
        id: &DekId,
        purpose: Purpose,
        kek: &KekId,
        wrapped: &[u8],
    ) -> Result<DataKey, WrapError> {
        self.with(kek, |place| match place {
            Key::Soft(soft) => soft.unwrap(id, purpose, wrapped).ok_or(WrapError::CouldNotOpen),
            Key::Token(token) => token.unwrap(id, purpose, kek, wrapped),
        })
    }
}
