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
use crate::base::ids::InstanceId;
use crate::crypto::kek::file::KeyFileError;
use crate::crypto::kek::{KekProvider, Keks};
use crate::crypto::keyring::Purpose;
use crate::metrics::AuditTally;
use crate::model::audit::Entry;
use crate::store::backend::{Db, StoreError};
use crate::store::keys::{raise_epoch, raise_epoch_in};
use crate::store::replicas::{self, Replica};

use super::audit::{Audit, AuditedTx};
use super::custody::Custody;
use super::error::OpError;
use super::keys::{DataKeys, DataKeysError, KeyPolicy};
use super::patience::{AGAIN, PATIENCE};

/// A process that was not seen for so long is taken for dead. A server says that it is alive far more often.
pub const LIVE: Duration = Duration::from_secs(30);

/// How often a data key is wrapped anew where the keys have changed before it was stored.
const TURNS: usize = 8;

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

impl RotationError {
    /// Whenever a data key was wrapped, the keys had changed before it was stored.
    fn keys_are_changing() -> Self {
        Self::Refused("the keys are being changed by other commands; run this again after them".to_owned())
    }
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
    /// The audit trail, as this command writes it.
    pub audit: Audit,
    /// The custodians who bring this command their shares.
    pub custody: Custody,
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
        let instance = InstanceId::make().map_err(|error| DataKeysError::Make(error.into()))?;
        let audit = Audit::new(instance, clock.clone(), AuditTally::default());
        let custody = Custody::new(Arc::clone(&keks), clock.clone());
        Ok(Self { db, keks, keys, audit, custody, clock: clock.clone(), policy, patience })
    }

    /// Whether there is an audit trail to write to: a vault that was never started has none.
    pub fn has_trail(&self) -> bool {
        !self.keys.of_purpose(Purpose::Audit).is_empty()
    }

    /// Refuses where the audit key is over: what cannot be recorded is not begun.
    fn can_record(&self) -> Result<(), RotationError> {
        if self.has_trail() {
            self.keys.active(Purpose::Audit)?;
        }
        Ok(())
    }

    /// Records something that is no part of a transaction, where there is a trail.
    pub async fn note(&self, entry: &Entry) -> Result<(), RotationError> {
        if self.has_trail() {
            self.audit.note_alone(&self.db, &self.keys, entry).await?;
        }
        Ok(())
    }

    /// Begins a transaction whose effects are audited.
    async fn begin(&self) -> Result<AuditedTx<'_>, RotationError> {
        Ok(self.audit.begin(&self.db, &self.keys).await?)
    }

    /// Begins a new epoch of the keys, in one transaction with the row that tells why, where there is a trail.
    async fn begin_epoch(&self, why: &Entry) -> Result<(), RotationError> {
        if !self.has_trail() {
            return Ok(raise_epoch(&self.db).await?);
        }
        let mut tx = self.begin().await?;
        raise_epoch_in(&mut tx).await?;
        tx.note(why).await?;
        Ok(tx.commit().await?)
    }

    /// Records the shares that custodians brought to this command, where there is a trail.
    pub async fn record_shares(&self) -> Result<(), RotationError> {
        if self.has_trail() && self.custody.record(&self.audit, &self.db, &self.keys).await? > 0 {
            // A command that only reads ends without another word.
            self.audit.close(&self.db, &self.keys).await;
        }
        Ok(())
    }

    /// Closes what this command wrote of the trail, reports what it used the keys for, and leaves the database.
    pub async fn end(&self) {
        if !self.keys.are_closed() {
            let ended = async {
                // The audit key may be another one by now.
                self.keys.follow().await?;
                // Those that a key past its end could not record.
                self.record_shares().await?;
                self.audit.close(&self.db, &self.keys).await;
                Ok::<_, RotationError>(self.keys.report_uses().await?)
            };
            if let Err(error) = ended.await {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "shares or uses of keys were not recorded");
            }
        }
        self.db.close().await;
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
