//! Every key of the deployment: its state, its age, how much of its time and uses is over, what depends on it.

use std::collections::HashMap;

use crate::base::clock::Millis;
use crate::crypto::envelope;
use crate::crypto::keyring::{KeyState, Purpose};
use crate::model::key_life::{Life, Standing};
use crate::store::keys::{KeyRow, list_keys};
use crate::store::replicas::Replica;
use crate::store::{audit, fingerprints, reseal};

use super::super::patience::patiently;
use super::{Admin, RotationError};

/// One key.
#[derive(Debug)]
pub struct KeyStatus {
    /// Its id.
    pub id: String,
    /// `kek`, or a data key's purpose.
    pub purpose: String,
    /// `active`, `next`, `decrypt_only`, `destroyed`; of a KEK also `entered`.
    pub state: String,
    /// Of a KEK: `file`, `split` or `hsm`. Of a data key: the KEK that wraps it.
    pub kept: String,
    /// When it was made.
    pub created: Millis,
    /// When it stops sealing.
    pub expires: Millis,
    /// How often it was used; none for a KEK.
    pub uses: Option<u64>,
    /// How often it may be used.
    pub budget: Option<u64>,
    /// Rows that need it; of a KEK, data keys.
    pub rows: u64,
    /// Whether it may still seal. Only asked of keys that are active.
    pub standing: Option<Standing>,
}

/// All of them.
pub struct Status {
    /// KEKs, then data keys, oldest first.
    pub keys: Vec<KeyStatus>,
    /// Servers that are alive.
    pub servers: Vec<Replica>,
    /// The epoch of the keys.
    pub epoch: i64,
    /// When this was so.
    pub now: Millis,
}

impl Status {
    /// The keys that should be rotated, or should have been.
    pub fn due(&self) -> impl Iterator<Item = (&KeyStatus, Standing)> {
        self.keys.iter().filter_map(|key| Some((key, key.standing.filter(|standing| standing.is_due())?)))
    }
}

impl Admin {
    /// Looks at every key. Counts rows, so it reads the tables once; it unwraps nothing.
    pub async fn status(&self) -> Result<Status, RotationError> {
        let now = self.clock.now();
        let rows = list_keys(&self.db).await?;
        let mut keys = self.keks_of(&rows, now);
        let needs = self.needs().await?;
        keys.extend(rows.iter().map(|row| self.data_key(row, &needs, now)));
        let epoch = crate::store::keys::epoch(&self.db).await?;
        Ok(Status { keys, servers: self.live().await?, epoch, now })
    }

    fn keks_of(&self, rows: &[KeyRow], now: Millis) -> Vec<KeyStatus> {
        let keyring = self.keks.keyring();
        let mut behind = false;
        let status = |kek: &crate::crypto::kek::file::Kek| {
            let active = kek.id == *keyring.active();
            let state = match (active, behind) {
                (true, _) => "active",
                (false, true) => "entered",
                (false, false) => "decrypt_only",
            };
            behind |= active;
            let created = Millis::parse_rfc3339(&kek.created).unwrap_or(Millis(0));
            let expires = created.plus(self.policy.kek_period);
            let life = Life { created, expires, uses: 0, budget: u64::MAX };
            let wraps = rows.iter().filter(|row| row.wrapped.is_some() && row.kek_id == kek.id).count();
            KeyStatus {
                id: kek.id.to_string(),
                purpose: "kek".to_owned(),
                state: state.to_owned(),
                kept: kek.place.name().to_owned(),
                created,
                expires,
                uses: None,
                budget: None,
                rows: u64::try_from(wraps).unwrap_or(u64::MAX),
                standing: active.then(|| life.standing(now)),
            }
        };
        keyring.keks().iter().map(status).collect()
    }

    fn data_key(&self, row: &KeyRow, needs: &HashMap<String, u64>, now: Millis) -> KeyStatus {
        let life = self.policy.life(row, 0);
        let active = row.state == KeyState::Active.as_str();
        let column = format!("slot {}", row.slot);
        let gone = row.state == KeyState::Destroyed.as_str();
        let needed = if row.purpose == Purpose::Fingerprint.as_str() && !gone {
            needs.get(&column)
        } else {
            needs.get(row.id.as_str())
        };
        KeyStatus {
            id: row.id.to_string(),
            purpose: row.purpose.clone(),
            state: row.state.clone(),
            kept: row.kek_id.to_string(),
            created: row.created_at,
            expires: life.expires,
            uses: Some(life.uses),
            budget: Some(life.budget),
            rows: needed.copied().unwrap_or_default(),
            standing: active.then(|| life.standing(now)),
        }
    }

    /// Rows by the key that they need: its id, or a fingerprint column.
    async fn needs(&self) -> Result<HashMap<String, u64>, RotationError> {
        let mut needs: HashMap<String, u64> = HashMap::new();
        for source in reseal::SOURCES {
            for (raw, count) in patiently(|| reseal::count_by_key(&self.db, source)).await? {
                if let Some(id) = envelope::key_id_of_raw(&raw) {
                    *needs.entry(id.to_string()).or_default() += count;
                }
            }
        }
        for (id, count) in patiently(|| reseal::count_meanings(&self.db)).await? {
            *needs.entry(id).or_default() += count;
        }
        for (id, count) in patiently(|| audit::count_by_key(&self.db)).await? {
            *needs.entry(id).or_default() += count;
        }
        for slot in [0, 1] {
            let count = patiently(|| fingerprints::count_filled(&self.db, slot)).await?;
            needs.insert(format!("slot {slot}"), count);
        }
        Ok(needs)
    }
}
