//! Whether the vault can work: the database takes a write, the keys open what they seal and their changes are taken
//! up, the audit trail can be appended to, callers can be let in. Each check does the real thing and takes it back, so it leaves no row behind.
//!
//! A check must run on a task of its own: a future that is dropped during `BEGIN` harms its connection.

use crate::base::clock::Millis;
use crate::base::ids::Merchant;
use crate::base::secret::SecretBuf;
use crate::crypto::aad::{Field, Place};
use crate::crypto::envelope::{self, OpenError};
use crate::crypto::keyring::Purpose;
use crate::metrics::{KeyFacts, Waiting};
use crate::model::audit::Entry;
use crate::model::payment::Status;
use crate::store::backend::StoreError;
use crate::store::{events, leases, payments};

use super::Vault;
use super::error::OpError;

/// What a vault needs in order to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Check {
    /// The database takes a write.
    Database,
    /// The keys open what they seal, and their changes can be taken up.
    Keys,
    /// The audit trail can be appended to.
    Audit,
    /// Callers can be let in: nothing is known to be in the way, as a revocation list that is stale.
    Admission,
}

impl Check {
    /// Every check.
    pub const ALL: [Self; 4] = [Self::Database, Self::Keys, Self::Audit, Self::Admission];

    /// The check's name, for operators.
    pub fn name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Keys => "keys",
            Self::Audit => "audit",
            Self::Admission => "admission",
        }
    }
}

impl Vault {
    /// Makes one check.
    pub async fn check(&self, check: Check) -> Result<(), OpError> {
        match check {
            Check::Database => Ok(leases::try_write(&self.db, &self.instance).await?),
            Check::Keys => self.check_keys(),
            Check::Audit => self.check_audit().await,
            Check::Admission => match self.hindrances.first() {
                Some(what) => Err(OpError::Unavailable(anyhow::anyhow!(what))),
                None => Ok(()),
            },
        }
    }

    fn check_keys(&self) -> Result<(), OpError> {
        if self.keys.are_stuck() {
            return Err(OpError::Unavailable(anyhow::anyhow!("a change of the keys cannot be taken up")));
        }
        let key = self.keys.active(Purpose::Card)?;
        let merchant = Merchant::parse("canary").ok_or(OpenError)?;
        let place = Place { merchant: &merchant, record: "canary", field: Field::Details };
        let sealed = envelope::seal(&key, &place, &SecretBuf::from_vec(b"canary".to_vec()))?;
        envelope::open(&key, &place, &sealed)?;
        Ok(())
    }

    async fn check_audit(&self) -> Result<(), OpError> {
        let mut tx = self.begin().await?;
        tx.note(&Entry::done("check", "readiness")).await?;
        Ok(tx.rollback().await?)
    }

    /// Work of all processes that is open: payments by status, and events without a place in the feed.
    pub async fn open_work(&self) -> Result<(Vec<(Status, Waiting)>, Waiting), StoreError> {
        Ok((payments::count_open(&self.db).await?, events::count_waiting(&self.db).await?))
    }

    /// How the keys in use stand.
    pub fn key_facts(&self) -> (Vec<KeyFacts>, Millis) {
        (self.keys.facts(), self.now())
    }
}
