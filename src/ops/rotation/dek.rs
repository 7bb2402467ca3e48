//! A new data key: it seals from now on, and the old one only opens.

use std::sync::Arc;

use crate::base::ids::DekId;
use crate::crypto::keyring::{KeyState, Purpose};
use crate::model::audit::Entry;
use crate::store::keys::{NewKey, Stored, list_keys, rotate_key};

use super::{Admin, RotationError, TURNS};

/// What a rotation came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Rotated {
    /// The key that only opens from now on.
    pub old: DekId,
    /// The key that seals.
    pub new: DekId,
}

impl Admin {
    /// Makes a new active key for `purpose`. Where somebody else does so at the same moment, theirs is
    /// taken: one rotation was asked for, and one is made.
    pub async fn rotate_data_key(&self, purpose: Purpose) -> Result<Rotated, RotationError> {
        if purpose != Purpose::Audit {
            self.can_record()?;
        }
        let old = self.active_id(purpose).await?;
        for _ in 0..TURNS {
            let made = self.keys.make(purpose).await?;
            let now = self.clock.now();
            let key = Arc::new(made.key);
            let new = key.id().clone();
            let row = NewKey {
                id: &new,
                purpose: purpose.as_str(),
                state: KeyState::Active.as_str(),
                kek_id: &made.kek,
                wrapped: &made.wrapped,
                expires_at: now.plus(self.policy.period(purpose)),
                slot: 0,
                now,
            };
            // An audit key that is over makes no row: the first row of the new one tells that it came.
            let mut tx = match purpose {
                Purpose::Audit => self.audit.begin_under(&self.db, &self.keys, Arc::clone(&key)).await?,
                _ => self.begin().await?,
            };
            match rotate_key(&mut tx, &old, &row, made.epoch).await? {
                Stored::Yes => {
                    let what = format!("the {} key; before it {old}", purpose.as_str());
                    tx.note(&Entry::done("keys.rotate", new.as_str()).with(what)).await?;
                    tx.commit().await?;
                    self.keys.report_uses_of(&key).await?;
                    return Ok(Rotated { old, new });
                }
                Stored::Taken => {
                    tx.rollback().await?;
                    return self.take_theirs(purpose, old).await;
                }
                Stored::Late => tx.rollback().await?,
            }
        }
        Err(RotationError::keys_are_changing())
    }

    /// The key that another command has made of this purpose at the same moment.
    async fn take_theirs(&self, purpose: Purpose, old: DekId) -> Result<Rotated, RotationError> {
        let new = self.active_id(purpose).await?;
        // Where it is the audit key, this row is made with theirs.
        self.follow_patiently().await?;
        let what = format!("the {} key; another command made it at this moment", purpose.as_str());
        self.note(&Entry::done("keys.rotate", new.as_str()).with(what)).await?;
        Ok(Rotated { old, new })
    }

    pub(super) async fn active_id(&self, purpose: Purpose) -> Result<DekId, RotationError> {
        let active = KeyState::Active.as_str();
        let rows = list_keys(&self.db).await?;
        let row = rows.into_iter().find(|row| row.purpose == purpose.as_str() && row.state == active);
        row.map(|row| row.id).ok_or_else(|| {
            RotationError::Refused(format!(
                "there is no {} key yet; start a server once, it makes the first",
                purpose.as_str()
            ))
        })
    }
}
