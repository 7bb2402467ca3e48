//! The end of a key. First everybody is made to leave it, then it is shown that nothing needs it, then it
//! goes; what it sealed is noise from then on.
//!
//! A new epoch makes servers look at the keys before they store another record. Who was already storing is
//! waited for, and so is every live server. Only then are the records counted, so that none is missed.

use std::time::Duration;

use crate::base::clock::Millis;
use crate::base::ids::{DekId, KekId};
use crate::crypto::envelope;
use crate::crypto::kek::file::{self, Place};
use crate::crypto::keyring::{KeyState, Purpose};
use crate::model::audit::Entry;
use crate::ops::keys::{DataKeysError, apart};
use crate::store::keys::{
    KeyRow, Swept, count_wrapped, destroy_key, epoch, find_key, list_keys, raise_epoch, raise_epoch_in,
    sweep_old_rows, wait_for_writers,
};
use crate::store::{audit, fingerprints, reseal};

use super::super::patience::patiently;
use super::{Admin, RotationError};

/// How long a key must have been retired: longer than most requests that had taken it take to store what they sealed,
/// so that they need not seal it again. That nothing is stored under it later is the epoch's to see to.
pub const REST: Duration = Duration::from_secs(5);
/// Cards whose old fingerprint is cleared in one statement.
const CLEARED: i64 = 500;

/// What the end of a key came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Destroyed {
    /// It is gone.
    Now(Swept),
    /// It was gone before. What follows its end was done again, unless that was only looked at.
    Before(Option<Swept>),
    /// Nothing needs it; it would be gone without `dry_run`.
    Would,
}

impl Admin {
    /// Destroys a data key that only opens, once nothing needs it.
    pub async fn destroy_data_key(&self, id: &DekId, dry_run: bool) -> Result<Destroyed, RotationError> {
        let row = find_key(&self.db, id).await?.ok_or_else(|| {
            RotationError::Refused(format!("there is no key {id}; `cardvault keys status` lists them"))
        })?;
        let purpose = Purpose::parse(&row.purpose);
        match (KeyState::parse(&row.state), purpose) {
            (Some(KeyState::Destroyed), _) if dry_run => return Ok(Destroyed::Before(None)),
            (Some(KeyState::Destroyed), _) => return Ok(Destroyed::Before(Some(self.finish(&row).await?))),
            (Some(KeyState::DecryptOnly), Some(_)) => {}
            _ => {
                return Err(RotationError::Refused(format!(
                    "{id} is {}: only a key that was rotated away can be destroyed; run `cardvault keys rotate` \
                     first",
                    row.state
                )));
            }
        }
        if dry_run {
            self.nothing_needs(&row).await?;
            return Ok(Destroyed::Would);
        }
        self.everybody_has_left(&row).await?;
        self.nothing_needs(&row).await?;
        let mut tx = self.begin().await?;
        let gone = destroy_key(&mut tx, id, self.clock.now()).await?;
        if gone {
            tx.note(&Entry::done("keys.destroy", id.as_str()).with(format!("a {} key", row.purpose))).await?;
            tx.commit().await?;
        } else {
            tx.rollback().await?;
        }
        let swept = self.finish(&row).await?;
        Ok(if gone { Destroyed::Now(swept) } else { Destroyed::Before(Some(swept)) })
    }

    /// What follows a key's end, and is done again where it was cut off: servers forget the key, its
    /// fingerprints go, and the engine takes away what it kept of the row, as far as this role may ask for that.
    async fn finish(&self, row: &KeyRow) -> Result<Swept, RotationError> {
        let now = epoch(&self.db).await?;
        self.wait_for_servers(|replica| replica.epoch >= now).await?;
        if row.purpose == Purpose::Fingerprint.as_str() {
            self.clear_fingerprints(row).await?;
        }
        Ok(sweep_old_rows(&self.db).await?)
    }

    /// Returns when nobody who knew `row` as a key that seals can store anything under it any more.
    async fn everybody_has_left(&self, row: &KeyRow) -> Result<(), RotationError> {
        raise_epoch(&self.db).await?;
        let now = epoch(&self.db).await?;
        self.wait_for_servers(|replica| replica.epoch >= now).await?;
        let retired = row.retired_at.unwrap_or(Millis(0)).plus(REST);
        let rest = retired.0.saturating_sub(self.clock.now().0).max(0);
        let most = i64::try_from(REST.as_millis()).unwrap_or(i64::MAX);
        tokio::time::sleep(Duration::from_millis(u64::try_from(rest.min(most)).unwrap_or_default())).await;
        wait_for_writers(&self.db).await?;
        Ok(())
    }

    /// Refuses while a row needs the key.
    async fn nothing_needs(&self, row: &KeyRow) -> Result<(), RotationError> {
        let (count, what) = match Purpose::parse(&row.purpose) {
            Some(Purpose::Card | Purpose::GatewayToken) => (
                self.records_under(&row.id).await?,
                "records are sealed under it; run `cardvault keys reencrypt` first",
            ),
            Some(Purpose::RequestMac) => {
                let all = reseal::count_meanings(&self.db).await?;
                let mine = all.iter().filter(|(key, _)| key == row.id.as_str()).map(|(_, count)| count);
                (
                    mine.sum(),
                    "payments, cards or kept notifications are known again by it; it stays as long as they do",
                )
            }
            Some(Purpose::Audit) => {
                let all = audit::count_by_key(&self.db).await?;
                let mine = all.iter().filter(|(key, _)| key == row.id.as_str()).map(|(_, count)| count);
                (mine.sum(), "rows of the audit trail are verified with it; it stays as long as they do")
            }
            Some(Purpose::Checkpoint) => {
                let all = audit::count_by_key(&self.db).await?.iter().map(|(_, count)| count).sum();
                (
                    all,
                    "rows of the audit trail may be covered by its checkpoints; it stays as long as they do",
                )
            }
            // The active key has a fingerprint of every card: nothing needs the old ones but old references.
            _ => (0, ""),
        };
        if count > 0 {
            return Err(RotationError::Refused(format!("{} is not destroyed: {count} {what}", row.id)));
        }
        Ok(())
    }

    /// How many records name a data key.
    pub(super) async fn records_under(&self, id: &DekId) -> Result<u64, RotationError> {
        let raw = envelope::raw_key_id(id).unwrap_or_default();
        let mut count = 0;
        for source in reseal::SOURCES {
            let all = patiently(|| reseal::count_by_key(&self.db, source)).await?;
            count += all.iter().filter(|(key, _)| key[..] == raw[..]).map(|(_, count)| count).sum::<u64>();
        }
        Ok(count)
    }

    /// Takes a destroyed key's fingerprints away; safe to be cut off. Where another key has the column by now, it
    /// was empty then, and nothing is taken.
    async fn clear_fingerprints(&self, row: &KeyRow) -> Result<(), RotationError> {
        let slot = usize::try_from(row.slot).unwrap_or_default();
        wait_for_writers(&self.db).await?;
        let mut after = String::new();
        while let Some(next) = patiently(|| fingerprints::empty(&self.db, slot, &after, CLEARED)).await? {
            after = next;
        }
        Ok(())
    }

    /// Takes a KEK that is not in use out of the keyring, or out of its token, once it wraps nothing.
    pub async fn destroy_kek(&self, id: &KekId, dry_run: bool) -> Result<Destroyed, RotationError> {
        let _lock = file::lock(self.keks.path())?;
        let keyring = self.keks.read_again()?;
        let Some(kek) = keyring.find(id) else {
            // What follows its end is done again, where that was cut off or could not be done.
            if dry_run {
                return Ok(Destroyed::Before(None));
            }
            let again = Entry::done("keys.destroy", id.as_str()).with("a kek that the keyring does not have");
            self.begin_epoch(&again).await?;
            return Ok(Destroyed::Before(Some(self.finish_kek_end().await?)));
        };
        if keyring.active() == id {
            return Err(RotationError::Refused(format!(
                "{id} is in use; run `cardvault keys rotate kek` first"
            )));
        }
        let still_wraps = |count: i64| {
            RotationError::Refused(format!(
                "{id} is not destroyed: it wraps {count} data keys; run `cardvault keys rotate kek` first"
            ))
        };
        let rows = list_keys(&self.db).await?;
        let wraps = rows.iter().filter(|row| row.wrapped.is_some() && row.kek_id == *id).count();
        if wraps > 0 {
            return Err(still_wraps(i64::try_from(wraps).unwrap_or(i64::MAX)));
        }
        if dry_run {
            return Ok(Destroyed::Would);
        }
        // Neither a file nor a token takes part in a transaction, so what is about to go is recorded first.
        self.note(&Entry::done("keys.destroy", id.as_str()).with("begun")).await?;
        let mut tx = self.begin().await?;
        // A data key that somebody has wrapped under it and not stored yet is not stored any more: until this ends
        // none is, and then its epoch is over. At the new one servers look at the keys again, and forget this one.
        raise_epoch_in(&mut tx).await?;
        let wraps = count_wrapped(&mut tx, id).await?;
        if wraps > 0 {
            tx.rollback().await?;
            return Err(still_wraps(wraps));
        }
        if self.has_trail() {
            tx.note(&Entry::done("keys.destroy", id.as_str()).with("a kek")).await?;
        }
        if matches!(kek.place, Place::Token) {
            let (keks, id) = (std::sync::Arc::clone(&self.keks), id.clone());
            apart(move || keks.destroy_in_token(&id).map_err(DataKeysError::Make)).await?;
        }
        self.keks.replace(keyring.without(id))?;
        tx.commit().await?;
        Ok(Destroyed::Now(self.finish_kek_end().await?))
    }

    /// What follows a KEK's end: servers forget it, and the engine takes away what it kept of what it wrapped.
    async fn finish_kek_end(&self) -> Result<Swept, RotationError> {
        let now = epoch(&self.db).await?;
        self.wait_for_servers(|replica| replica.epoch >= now).await?;
        Ok(sweep_old_rows(&self.db).await?)
    }
}
