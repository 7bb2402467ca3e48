//! The data keys of this process: unwrapped at the start, made where a purpose has none, and loaded on
//! demand when another process has made one since.

use std::sync::Arc;

use crate::base::clock::SharedClock;
use crate::base::ids::DekId;
use crate::base::sealed::Sealed;
use crate::crypto::envelope::{self, OpenError};
use crate::crypto::kek::{KekProvider, WrapError};
use crate::crypto::keyring::{DataKey, KeyState, Keyring, KeyringError, Purpose, make_data_key};
use crate::store::backend::{Db, StoreError};
use crate::store::keys::{KeyRow, find_key, insert_active_key, list_keys};

use super::error::OpError;

/// Why the data keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataKeysError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key does not unwrap: the wrong keyring, or an altered row.
    #[error("the data key {0} does not unwrap under the configured keyring")]
    Unwrap(DekId, #[source] WrapError),
    /// A fresh key could not be made or wrapped.
    #[error("a data key could not be made")]
    Make(#[source] WrapError),
    /// The rows contradict each other.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
}

/// Data keys in the clear, in this process only.
pub struct DataKeys {
    ring: Keyring,
    kek: Arc<dyn KekProvider>,
    db: Db,
}

impl DataKeys {
    /// Unwraps every key of the database, and makes what is missing. Two processes that start at once
    /// make one key for each purpose between them: the database decides whose.
    pub async fn start(
        db: Db,
        kek: Arc<dyn KekProvider>,
        clock: &SharedClock,
    ) -> Result<Self, DataKeysError> {
        for purpose in Purpose::ALL {
            let rows = list_keys(&db).await?;
            let active = KeyState::Active.as_str();
            if !rows.iter().any(|row| row.purpose == purpose.as_str() && row.state == active) {
                make_key(&db, kek.as_ref(), clock, purpose).await?;
            }
        }
        let mut keys = Vec::new();
        for row in list_keys(&db).await? {
            if let Some(key) = unwrap_row(kek.as_ref(), &row)? {
                keys.push(key);
            }
        }
        Ok(Self { ring: Keyring::new(keys)?, kek, db })
    }

    /// The key that seals for `purpose`.
    pub fn active(&self, purpose: Purpose) -> Result<Arc<DataKey>, OpError> {
        Ok(self.ring.active(purpose)?)
    }

    /// A key by its id; one that is not known yet is loaded.
    pub async fn by_id(&self, id: &DekId) -> Result<Arc<DataKey>, OpError> {
        if let Some(key) = self.ring.by_id(id) {
            return Ok(key);
        }
        let row = find_key(&self.db, id).await?.ok_or(OpenError)?;
        let unwrapped =
            unwrap_row(self.kek.as_ref(), &row).map_err(|error| OpError::Unavailable(error.into()))?;
        let (key, state) = unwrapped.ok_or(OpenError)?;
        self.ring.insert(key, state);
        self.ring.by_id(id).ok_or(OpError::Internal(OpenError.into()))
    }

    /// The key that a record names.
    pub async fn of(&self, sealed: &Sealed) -> Result<Arc<DataKey>, OpError> {
        self.by_id(&envelope::dek_id(sealed)?).await
    }
}

async fn make_key(
    db: &Db,
    kek: &dyn KekProvider,
    clock: &SharedClock,
    purpose: Purpose,
) -> Result<(), DataKeysError> {
    let key = make_data_key(purpose).map_err(|error| DataKeysError::Make(error.into()))?;
    let wrapped = kek.wrap(&key).map_err(DataKeysError::Make)?;
    let made = insert_active_key(db, key.id(), purpose.as_str(), kek.kek_id(), &wrapped, clock.now()).await?;
    if made {
        tracing::info!(key = %key.id(), purpose = purpose.as_str(), "made a data key");
    }
    Ok(())
}

/// The key of a row; none where it is destroyed, or for a purpose that this version does not have.
fn unwrap_row(kek: &dyn KekProvider, row: &KeyRow) -> Result<Option<(DataKey, KeyState)>, DataKeysError> {
    let (Some(purpose), Some(state)) = (Purpose::parse(&row.purpose), KeyState::parse(&row.state)) else {
        tracing::warn!(key = %row.id, "a data key of an unknown purpose or state is left alone");
        return Ok(None);
    };
    let (Some(wrapped), true) = (&row.wrapped, state != KeyState::Destroyed) else { return Ok(None) };
    let key = kek
        .unwrap(&row.id, purpose, &row.kek_id, wrapped)
        .map_err(|error| DataKeysError::Unwrap(row.id.clone(), error))?;
    Ok(Some((key, state)))
}
