//! What an operator does to keys: rotate, re-encrypt, destroy, look. Every step is safe to be cut off at any
//! instant and to be run again, beside servers that go on serving: what is half done is found in the
//! database or in the keyring and finished.

pub mod dek;
pub mod destroy;
pub mod fingerprint;
#[cfg(test)]
mod interleavings;
pub mod kek;
pub mod reencrypt;
pub mod status;

use std::sync::Arc;
use std::time::Duration;

use crate::base::clock::{Millis, SharedClock};
use crate::crypto::kek::file::KeyFileError;
use crate::crypto::kek::{KekProvider, Keks};
use crate::store::backend::{Db, StoreError};
use crate::store::replicas::{self, Replica};

use super::error::OpError;
use super::keys::{DataKeys, DataKeysError, KeyPolicy};
use super::patience::{AGAIN, PATIENCE};

/// A process that was not seen for so long is taken for dead. A server says that it is alive far more often.
pub const LIVE: Duration = Duration::from_secs(30);

/// Why something was not done to a key. Each says the mend; what was half done is finished by running the
/// same again.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data keys.
    #[error(transparent)]
    Keys(#[from] DataKeysError),
    /// The keyring file.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// Sealing or opening.
    #[error("a key could not be used")]
    Op(#[source] Box<OpError>),
    /// Servers have not followed in time.
    #[error(
        "these servers have not followed in time: {0}; see that each has this keyring and reaches the \
         database, then run this again"
    )]
    Behind(String),
    /// What was asked for is refused; the text says why and what to do.
    #[error("{0}")]
    Refused(String),
    /// Records do not open; they are named.
    #[error("{0}")]
    Broken(String),
}

impl From<OpError> for RotationError {
    fn from(error: OpError) -> Self {
        Self::Op(Box::new(error))
    }
}

/// Everything that an operator's command works with.
pub struct Admin {
    /// The database.
    pub db: Db,
    /// The KEKs.
    pub keks: Arc<Keks>,
    /// The data keys.
    pub keys: DataKeys,
    /// Time.
    pub clock: SharedClock,
    /// How long keys may seal.
    pub policy: KeyPolicy,
    /// How long servers are waited for.
    pub patience: Duration,
}

impl Admin {
    /// Puts the parts together; nothing is unwrapped yet.
    pub fn new(
        db: Db,
        keks: Arc<Keks>,
        clock: &SharedClock,
        policy: KeyPolicy,
        patience: Duration,
    ) -> Result<Self, RotationError> {
        let provider: Arc<dyn KekProvider> = keks.clone();
        let keys = DataKeys::closed(db.clone(), provider, clock, policy)?;
        Ok(Self { db, keks, keys, clock: clock.clone(), policy, patience })
    }

    /// The servers that are alive.
    pub async fn live(&self) -> Result<Vec<Replica>, RotationError> {
        let window = i64::try_from(LIVE.as_millis()).unwrap_or(i64::MAX);
        let since = Millis(self.clock.now().0.saturating_sub(window));
        Ok(replicas::list_live(&self.db, since).await?)
    }

    /// Takes over what changed of the keys; a database that is busy or away is waited for.
    async fn follow_patiently(&self) -> Result<(), RotationError> {
        let end = self.clock.instant() + PATIENCE;
        loop {
            match self.keys.follow().await {
                Err(OpError::Unavailable(_)) if self.clock.instant() < end => tokio::time::sleep(AGAIN).await,
                done => return done.map(|_| ()).map_err(Into::into),
            }
        }
    }

    /// Waits until every live server fits; how many there are.
    async fn wait_for_servers(&self, fits: impl Fn(&Replica) -> bool) -> Result<usize, RotationError> {
        let end = self.clock.instant() + self.patience;
        loop {
            let live = self.live().await?;
            let behind: Vec<String> = live
                .iter()
                .filter(|replica| !fits(replica))
                .map(|replica| format!("{} on {}", replica.instance, replica.host))
                .collect();
            if behind.is_empty() {
                return Ok(live.len());
            }
            if self.clock.instant() >= end {
                return Err(RotationError::Behind(behind.join(", ")));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}
