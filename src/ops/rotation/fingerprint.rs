//! A new fingerprint key, with servers that go on storing cards, and no card stored twice.
//!
//! A card has two fingerprint columns, each unique; a key fills one of them, and every new card gets a
//! fingerprint under each key that is in use.
//!
//! 1. The next key is announced, with a new epoch: from then on no card is stored without its fingerprint
//!    under it.
//! 2. Live servers are waited for, and whoever was just storing.
//! 3. Cards that have none yet get theirs.
//! 4. The next key becomes the active one: cards are found by it.
//!
//! The old one stays, and an `fp_…` made by it is found, until it is destroyed.

use crate::crypto::keyring::{KeyState, Purpose};
use crate::model::audit::Entry;
use crate::ops::cards::fingerprint_of_record;
use crate::store::fingerprints::{count_unfilled, empty, fill, list_unfilled};
use crate::store::keys::{
    KeyRow, NewKey, Stored, announce_key, epoch, list_keys, promote_key, raise_epoch, wait_for_writers,
};

use super::super::patience::patiently;
use super::dek::Rotated;
use super::reencrypt::{Pace, Progress};
use super::{Admin, RotationError, TURNS};

/// Rounds until every card has its new fingerprint. After the wait for writers one is enough.
const ROUNDS: usize = 8;

impl Admin {
    /// Rotates the fingerprint key, or finishes a rotation that was cut off.
    pub async fn rotate_fingerprint(
        &self,
        pace: Pace,
        report: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Rotated, RotationError> {
        self.can_record()?;
        let [old, next, retired] =
            self.keys_in([KeyState::Active, KeyState::Next, KeyState::DecryptOnly]).await?;
        let old = old.ok_or_else(|| {
            RotationError::Refused("there is no fingerprint key yet; start a server once".to_owned())
        })?;
        let next = match next {
            Some(next) if next.slot == old.slot => {
                return Err(RotationError::Refused(format!(
                    "{} was announced for the column that {} fills, so it may not come into use; docs/keys.md says \
                     how it is taken away",
                    next.id, old.id
                )));
            }
            Some(next) => next,
            None => self.announce(&old, retired).await?,
        };
        let now = epoch(&self.db).await?;
        self.wait_for_servers(|replica| replica.epoch >= now).await?;
        wait_for_writers(&self.db).await?;
        self.follow_patiently().await?;
        self.backfill(&next, pace, report).await?;
        let mut tx = self.begin().await?;
        if promote_key(&mut tx, &old.id, &next.id, self.clock.now()).await? {
            let what = format!("the fingerprint key; before it {}", old.id);
            tx.note(&Entry::done("keys.rotate", next.id.as_str()).with(what)).await?;
            tx.commit().await?;
        } else {
            tx.rollback().await?;
            // Somebody else who ran this was first.
            let active = self.active_id(Purpose::Fingerprint).await?;
            if active != next.id {
                return Err(RotationError::Refused(
                    "another rotation of the fingerprint key is under way; see `keys status`".to_owned(),
                ));
            }
        }
        Ok(Rotated { old: old.id, new: next.id })
    }

    /// The fingerprint key in each state, as they stood at one moment.
    async fn keys_in<const N: usize>(
        &self,
        states: [KeyState; N],
    ) -> Result<[Option<KeyRow>; N], RotationError> {
        let mut rows = list_keys(&self.db).await?;
        rows.retain(|row| row.purpose == Purpose::Fingerprint.as_str());
        Ok(states.map(|state| {
            let place = rows.iter().position(|row| row.state == state.as_str());
            place.map(|place| rows.swap_remove(place))
        }))
    }

    /// Announces a next key, in the column that no key has.
    async fn announce(&self, old: &KeyRow, retired: Option<KeyRow>) -> Result<KeyRow, RotationError> {
        if let Some(retired) = retired {
            return Err(RotationError::Refused(format!(
                "the fingerprint key before the present one is still kept, and there are two columns; run \
                 `cardvault keys destroy {}` first",
                retired.id
            )));
        }
        let slot = 1 - usize::try_from(old.slot.clamp(0, 1)).unwrap_or_default();
        // What the destruction of the key before has left, where it was cut off.
        raise_epoch(&self.db).await?;
        wait_for_writers(&self.db).await?;
        let mut after = String::new();
        while let Some(more) = patiently(|| empty(&self.db, slot, &after, 500)).await? {
            after = more;
        }
        let mut turns = 0..TURNS;
        loop {
            turns.next().ok_or_else(RotationError::keys_are_changing)?;
            let made = self.keys.make(Purpose::Fingerprint).await?;
            let now = self.clock.now();
            let row = NewKey {
                id: made.key.id(),
                purpose: Purpose::Fingerprint.as_str(),
                state: KeyState::Next.as_str(),
                kek_id: &made.kek,
                wrapped: &made.wrapped,
                expires_at: now.plus(self.policy.period(Purpose::Fingerprint)),
                slot: i64::try_from(slot).unwrap_or_default(),
                now,
            };
            let mut tx = self.begin().await?;
            let stored = announce_key(&mut tx, &old.id, &row, made.epoch).await?;
            if stored == Stored::Yes {
                let what = format!("announced as the fingerprint key after {}", old.id);
                tx.note(&Entry::done("keys.rotate", row.id.as_str()).with(what)).await?;
                tx.commit().await?;
                break;
            }
            tx.rollback().await?;
            if stored == Stored::Taken {
                break;
            }
        }
        // It may be somebody else's who ran this at the same moment.
        let [next] = self.keys_in([KeyState::Next]).await?;
        next.filter(|next| next.slot != old.slot).ok_or_else(|| {
            RotationError::Refused("another rotation of the fingerprint key has just ended".to_owned())
        })
    }

    /// Gives every card that has none its fingerprint under `next`.
    async fn backfill(
        &self,
        next: &KeyRow,
        pace: Pace,
        report: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(), RotationError> {
        let slot = usize::try_from(next.slot).unwrap_or_default();
        let key = self.keys.by_id(&next.id).await?;
        let begin = std::time::Instant::now();
        let mut left = patiently(|| count_unfilled(&self.db, slot)).await?;
        let mut moved = 0;
        for _ in 0..ROUNDS {
            let mut after = String::new();
            let mut named = Vec::new();
            loop {
                let limit = i64::from(pace.batch.max(1));
                let page = patiently(|| list_unfilled(&self.db, slot, &after, limit)).await?;
                let Some(last) = page.last() else { break };
                after = last.card_id.to_string();
                let mut digests = Vec::with_capacity(page.len());
                for card in page {
                    match fingerprint_of_record(&self.keys, &key, &card.merchant, &card.card_id, &card.pan)
                        .await
                    {
                        Ok(digest) => digests.push((card.card_id, digest)),
                        Err(_) => named.push(card.card_id.to_string()),
                    }
                }
                let filled = patiently(|| fill(&self.db, slot, &next.id, &digests)).await?;
                moved += filled;
                left = left.saturating_sub(filled);
                let seconds = begin.elapsed().as_secs_f64().max(0.001);
                #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
                report(Progress { moved, left, rate: moved as f64 / seconds });
                tokio::time::sleep(pace.pause).await;
            }
            if !named.is_empty() {
                return Err(RotationError::Broken(format!(
                    "{} cards do not open, so they get no new fingerprint: {}; restore these rows from a backup, \
                     or erase the cards, and run this again",
                    named.len(),
                    named.iter().take(20).cloned().collect::<Vec<_>>().join(", ")
                )));
            }
            if patiently(|| count_unfilled(&self.db, slot)).await? == 0 {
                return Ok(());
            }
        }
        Err(RotationError::Refused(
            "cards go on being stored without the new fingerprint; see that every server runs this version, and \
             run this again"
                .to_owned(),
        ))
    }
}
