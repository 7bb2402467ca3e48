//! Data keys: what each one is for, which one is in use, and all that may still open something.
//!
//! A data key serves one purpose, whatever merchant it works for, and every use of it checks that
//! purpose (NIST SP 800-57 part 1 r5, section 5.2; PCI DSS 3.6.1.2, 3.7.4).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::base::entropy::{self, NoEntropy};
use crate::base::ids::{DekId, KekId, base32, from_base32};
use crate::base::secret::{Key256, key256};

/// What a data key is for. The text is part of ciphertexts and of database rows; it is never renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Seals records: PANs, card details, what goes to and comes from the gateway (`card`).
    Card,
    /// Fingerprints PANs, so that one card is found again without being opened (`fingerprint`).
    Fingerprint,
    /// Tells whether a repeated request is the same request (`request_mac`).
    RequestMac,
    /// Seals Antom's tokens of cards that only Antom holds (`gateway_token`).
    GatewayToken,
    /// Chains the rows of the audit trail (`audit`).
    Audit,
    /// The seed of the Ed25519 key that signs checkpoints of the audit trail and reports (`checkpoint`).
    Checkpoint,
    /// Does nothing: it is wrapped under a new KEK so that every replica can show that it opens what that
    /// KEK wraps, before anything depends on it (`canary`). It has no row among the data keys.
    Canary,
}

impl Purpose {
    /// Every purpose that a vault keeps a key for.
    pub const ALL: [Self; 6] =
        [Self::Card, Self::Fingerprint, Self::RequestMac, Self::GatewayToken, Self::Audit, Self::Checkpoint];

    /// The purpose's name in the database and in key derivation.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Card => "card",
            Self::Fingerprint => "fingerprint",
            Self::RequestMac => "request_mac",
            Self::GatewayToken => "gateway_token",
            Self::Audit => "audit",
            Self::Checkpoint => "checkpoint",
            Self::Canary => "canary",
        }
    }

    /// Reads what [`Self::as_str`] gives.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.as_str() == text)
    }
}

/// Where a data key is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyState {
    /// Seals and opens. One key for each purpose (`active`).
    Active,
    /// Opens what it once sealed, and seals nothing more (`decrypt_only`).
    DecryptOnly,
    /// Gone: its wrapped bytes are deleted, and what it sealed is noise (`destroyed`).
    Destroyed,
    /// Announced as the one that will be active: a fingerprint key that is used beside the active one until
    /// every card has a fingerprint under it (`next`).
    Next,
}

impl KeyState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Active, Self::DecryptOnly, Self::Destroyed, Self::Next];

    /// The state's name in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::DecryptOnly => "decrypt_only",
            Self::Destroyed => "destroyed",
            Self::Next => "next",
        }
    }

    /// Reads what [`Self::as_str`] gives.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A key was used for something that it is not for. A fault of the program, never of a caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a data key was used for another purpose than its own")]
pub struct WrongPurpose;

/// A data key in the clear. No `Debug`, `Clone` or `Serialize`; wiped on drop. Its bytes do not leave
/// this module's floor except wrapped.
pub struct DataKey {
    id: DekId,
    purpose: Purpose,
    key: Key256,
    /// Records sealed and digests made since they were last asked for.
    uses: AtomicU64,
}

impl DataKey {
    pub(super) fn new(id: DekId, purpose: Purpose, key: Key256) -> Self {
        Self { id, purpose, key, uses: AtomicU64::new(0) }
    }

    /// The key's id, which every ciphertext names.
    pub fn id(&self) -> &DekId {
        &self.id
    }

    /// What the key is for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Counts one record sealed, or one digest made.
    pub(super) fn count_use(&self) {
        self.uses.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it was used in this process since [`Self::take_uses`] was last called.
    pub fn uses(&self) -> u64 {
        self.uses.load(Ordering::Relaxed)
    }

    /// As [`Self::uses`], and begins to count anew.
    pub fn take_uses(&self) -> u64 {
        self.uses.swap(0, Ordering::Relaxed)
    }

    /// Gives back what was taken and could not be recorded.
    pub fn give_back_uses(&self, uses: u64) {
        self.uses.fetch_add(uses, Ordering::Relaxed);
    }

    /// The raw key; for wrapping it.
    pub(super) fn key(&self) -> &Key256 {
        &self.key
    }

    /// The raw key, where `purpose` is its own.
    pub(super) fn key_for(&self, purpose: Purpose) -> Result<&Key256, WrongPurpose> {
        if self.purpose == purpose { Ok(&self.key) } else { Err(WrongPurpose) }
    }
}

/// A fresh random data key with a fresh id (PCI DSS 3.7.1).
pub fn make_data_key(purpose: Purpose) -> Result<DataKey, NoEntropy> {
    let mut filled = Ok(());
    let key = key256(|bytes| filled = entropy::fill(bytes));
    filled?;
    Ok(DataKey::new(DekId::make()?, purpose, key))
}

/// What is wrong with a set of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// Nothing may be sealed for this purpose: no key of it is active.
    #[error("no active data key for the purpose {}", .0.as_str())]
    NoActiveKey(Purpose),
    /// Two keys claim to be the one that seals.
    #[error("two active data keys for the purpose {}", .0.as_str())]
    TwoActiveKeys(Purpose),
    /// One id came twice.
    #[error("the data key {0} is there twice")]
    Duplicate(DekId),
}

/// Data keys in the clear, by id, and the active one of each purpose. Shared by all tasks; keys that
/// another process made are added while it is in use.
pub struct Keyring {
    keys: RwLock<Keys>,
}

#[derive(Default)]
struct Keys {
    by_id: HashMap<DekId, Arc<DataKey>>,
    active: HashMap<Purpose, DekId>,
}

impl Keyring {
    /// A keyring of `keys`. Destroyed keys are left out (and wiped).
    ///
    /// Refuses two active keys of one purpose, and one id twice. A purpose without an active key is
    /// taken: its keys open, and [`Self::active`] says that nothing can be sealed.
    pub fn new(keys: Vec<(DataKey, KeyState)>) -> Result<Self, KeyringError> {
        let mut ring = Keys::default();
        for (key, state) in keys {
            if ring.by_id.contains_key(key.id()) {
                return Err(KeyringError::Duplicate(key.id().clone()));
            }
            if state == KeyState::Active && ring.active.contains_key(&key.purpose) {
                return Err(KeyringError::TwoActiveKeys(key.purpose));
            }
            ring.insert(key, state);
        }
        Ok(Self { keys: RwLock::new(ring) })
    }

    /// The key that seals for `purpose`.
    pub fn active(&self, purpose: Purpose) -> Result<Arc<DataKey>, KeyringError> {
        let keys = self.read();
        let id = keys.active.get(&purpose);
        id.and_then(|id| keys.by_id.get(id)).cloned().ok_or(KeyringError::NoActiveKey(purpose))
    }

    /// The key that a ciphertext names; `None` where it is not loaded (or destroyed).
    pub fn by_id(&self, id: &DekId) -> Option<Arc<DataKey>> {
        self.read().by_id.get(id).cloned()
    }

    /// Every loaded key of a purpose, the active one first.
    pub fn of_purpose(&self, purpose: Purpose) -> Vec<Arc<DataKey>> {
        let keys = self.read();
        let active = keys.active.get(&purpose);
        let mut all: Vec<_> = keys.by_id.values().filter(|key| key.purpose == purpose).cloned().collect();
        all.sort_by_key(|key| (Some(key.id()) != active, key.id().clone()));
        all
    }

    /// Adds a key that was loaded on demand, or gives a known key another state. An active key takes the
    /// place of the one that was active, which goes on opening. A destroyed key is forgotten.
    pub fn insert(&self, key: DataKey, state: KeyState) {
        self.write().insert(key, state);
    }

    /// Gives a key that is loaded another state; `false` where it is not loaded.
    pub fn set_state(&self, id: &DekId, state: KeyState) -> bool {
        let mut keys = self.write();
        let Some(purpose) = keys.by_id.get(id).map(|key| key.purpose) else { return false };
        match state {
            KeyState::Active => {
                keys.active.insert(purpose, id.clone());
            }
            KeyState::DecryptOnly | KeyState::Next => keys.active.retain(|_, active| active != id),
            KeyState::Destroyed => keys.forget(id),
        }
        true
    }

    /// Forgets a key: nothing is sealed or opened with it here any more. Its bytes are wiped as soon as
    /// the last task that is just using it is done.
    pub fn forget(&self, id: &DekId) {
        self.write().forget(id);
    }

    /// The ids of all keys that are loaded, sorted.
    pub fn ids(&self) -> Vec<DekId> {
        let mut ids: Vec<DekId> = self.read().by_id.keys().cloned().collect();
        ids.sort();
        ids
    }

    // A task that panicked while it held the lock cannot have left the maps half changed in a way that
    // matters: an id without a key reads as "no such key". So a poisoned lock is taken all the same.
    fn read(&self) -> RwLockReadGuard<'_, Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Keys> {
        self.keys.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    fn insert(&mut self, key: DataKey, state: KeyState) {
        self.forget(&key.id);
        match state {
            KeyState::Destroyed => return,
            KeyState::DecryptOnly | KeyState::Next => {}
            KeyState::Active => {
                self.active.insert(key.purpose, key.id.clone());
            }
        }
        self.by_id.insert(key.id.clone(), Arc::new(key));
    }

    fn forget(&mut self, id: &DekId) {
        self.active.retain(|_, active| active != id);
        self.by_id.remove(id);
    }
}

/// Bytes of an id as headers hold it: the 160 random bits behind its prefix.
pub(super) const RAW_ID: usize = 20;

/// The raw bytes of a data key's id.
pub(super) fn raw_dek_id(id: &DekId) -> Option<[u8; RAW_ID]> {
    raw(id.as_str().strip_prefix(DekId::PREFIX)?)
}

/// The raw bytes of a key-encryption key's id.
pub(super) fn raw_kek_id(id: &KekId) -> Option<[u8; RAW_ID]> {
    raw(id.as_str().strip_prefix(KekId::PREFIX)?)
}

/// The data key's id that a header holds.
pub(super) fn dek_id_of(raw: &[u8; RAW_ID]) -> Option<DekId> {
    DekId::parse(&format!("{}{}", DekId::PREFIX, base32(raw)))
}

fn raw(name: &str) -> Option<[u8; RAW_ID]> {
    from_base32(name)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn key(purpose: Purpose) -> DataKey {
        make_data_key(purpose).expect("entropy")
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for purpose in Purpose::ALL {
            assert_eq!(Purpose::parse(purpose.as_str()), Some(purpose));
        }
        for state in KeyState::ALL {
            assert_eq!(KeyState::parse(state.as_str()), Some(state));
        }
        assert_eq!((Purpose::parse("Card"), KeyState::parse("")), (None, None));
    }

    #[test]
    fn data_keys_are_random_and_have_ids_of_their_own() {
        let (one, two) = (key(Purpose::Card), key(Purpose::Card));
        assert_ne!(one.key().expose_secret(), two.key().expose_secret());
        assert_ne!(one.id(), two.id());
        assert_eq!(dek_id_of(&raw_dek_id(one.id()).expect("20 bytes")).as_ref(), Some(one.id()));
    }

    #[test]
    fn one_key_of_a_purpose_is_active_and_all_open() {
        let (old, new, mac) = (key(Purpose::Card), key(Purpose::Card), key(Purpose::RequestMac));
        let (old_id, new_id) = (old.id().clone(), new.id().clone());
        let ring = Keyring::new(vec![
            (old, KeyState::DecryptOnly),
            (new, KeyState::Active),
            (mac, KeyState::DecryptOnly),
        ])
        .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(ring.active(Purpose::Card).map(|key| key.id().clone()), Ok(new_id));
        assert!(ring.by_id(&old_id).is_some());
        assert_eq!(
            ring.active(Purpose::RequestMac).err(),
            Some(KeyringError::NoActiveKey(Purpose::RequestMac))
        );
    }

    #[test]
    fn two_active_keys_or_one_id_twice_are_refused() {
        let two = vec![(key(Purpose::Card), KeyState::Active), (key(Purpose::Card), KeyState::Active)];
        assert_eq!(Keyring::new(two).err(), Some(KeyringError::TwoActiveKeys(Purpose::Card)));
        let one = key(Purpose::Card);
        let again = DataKey::new(one.id().clone(), Purpose::RequestMac, key256(|_| {}));
        let id = one.id().clone();
        let twice = vec![(one, KeyState::Active), (again, KeyState::Active)];
        assert_eq!(Keyring::new(twice).err(), Some(KeyringError::Duplicate(id)));
    }

    #[test]
    fn a_key_loaded_later_takes_over_and_a_destroyed_one_is_gone() {
        let (old, new) = (key(Purpose::Card), key(Purpose::Card));
        let (old_id, new_id) = (old.id().clone(), new.id().clone());
        let ring = Keyring::new(vec![(old, KeyState::Active)]).unwrap_or_else(|error| panic!("{error}"));
        ring.insert(new, KeyState::Active);
        assert_eq!(ring.active(Purpose::Card).map(|key| key.id().clone()), Ok(new_id.clone()));
        assert!(ring.by_id(&old_id).is_some());
        ring.insert(DataKey::new(old_id.clone(), Purpose::Card, key256(|_| {})), KeyState::Destroyed);
        assert!(ring.by_id(&old_id).is_none());
        ring.insert(DataKey::new(new_id.clone(), Purpose::Card, key256(|_| {})), KeyState::DecryptOnly);
        assert_eq!(ring.active(Purpose::Card).err(), Some(KeyringError::NoActiveKey(Purpose::Card)));
        assert_eq!(ring.ids(), std::slice::from_ref(&new_id));
        assert!(ring.set_state(&new_id, KeyState::Active));
        assert_eq!(ring.active(Purpose::Card).map(|key| key.id().clone()), Ok(new_id.clone()));
        assert!(ring.set_state(&new_id, KeyState::DecryptOnly));
        assert!(ring.active(Purpose::Card).is_err() && ring.by_id(&new_id).is_some());
        ring.forget(&new_id);
        assert!(ring.ids().is_empty());
        assert!(!ring.set_state(&new_id, KeyState::Active), "a key that is not loaded");
    }

    #[test]
    fn uses_are_counted_until_they_are_taken() {
        let one = key(Purpose::Card);
        one.count_use();
        one.count_use();
        assert_eq!((one.uses(), one.take_uses(), one.uses()), (2, 2, 0));
        one.give_back_uses(2);
        assert_eq!(one.uses(), 2);
    }

    #[test]
    fn a_panic_under_the_lock_does_not_take_the_keys_away() {
        let one = key(Purpose::Card);
        let id = one.id().clone();
        let ring = Keyring::new(vec![(one, KeyState::Active)]).unwrap_or_else(|error| panic!("{error}"));
        let shared = Arc::new(ring);
        let other = Arc::clone(&shared);
        let outcome = std::thread::spawn(move || {
            let _held = other.write();
            panic!("on purpose");
        })
        .join();
        assert!(outcome.is_err() && shared.keys.is_poisoned());
        assert!(shared.by_id(&id).is_some() && shared.active(Purpose::Card).is_ok());
    }
}
