//! A new KEK: all data keys are wrapped anew, no record is touched.
//!
//! 1. The new KEK is entered in the keyring, not in use.
//! 2. A canary is wrapped under it, and every live server must have opened that.
//! 3. It comes into use in the keyring.
//! 4. All data keys are wrapped under it, in one transaction with a new epoch, at which servers take it for the one in
//!    use.
//!
//! The old KEK stays in the keyring until it is destroyed: backups need it. Cut off after 1 or 2, the next
//! run takes the same new KEK; after 3, it wraps what is left.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::ids::KekId;
use crate::crypto::kek::file::{self, FileKek, Kek, Place};
use crate::crypto::kek::shares::{self, Share};
use crate::crypto::kek::{SoftKek, WrapError, WrapsKeys};
use crate::crypto::keyring::{KeyState, Purpose, make_data_key};
use crate::model::audit::Entry;
use crate::ops::keys::{DataKeysError, apart, unwrap_row};
use crate::store::keys::{KeyRow, epoch, list_keys, raise_epoch_after, rewrap_keys};
use crate::store::replicas::{Canary, put_canary};

use super::{Admin, RotationError, TURNS};

/// Where the new KEK's key shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// In the keyring file.
    File,
    /// In the token of `[keys.hsm]`.
    Token,
    /// With custodians.
    Split {
        /// How many shares are made.
        shares: u8,
        /// How many of them rebuild the key.
        threshold: u8,
    },
}

impl Target {
    fn fits(self, place: &Place) -> bool {
        matches!(
            (self, place),
            (Self::File, Place::File(_))
                | (Self::Token, Place::Token)
                | (Self::Split { .. }, Place::Split(_))
        )
    }
}

/// Gives shares to their custodians, and reads back what they got: only what was kept is proven.
pub type Keep<'a> = dyn FnMut(&KekId, &[Share]) -> anyhow::Result<Vec<Share>> + Send + 'a;

/// A rotation whose new KEK stands in the keyring.
pub struct KekBegun {
    old: KekId,
    /// The new KEK.
    pub new: KekId,
    finished_earlier: bool,
    _lock: std::fs::File,
}

/// What a rotation would do.
#[derive(Debug, PartialEq, Eq)]
pub enum KekWould {
    /// Go on to this KEK, to which one was begun, and wrap so many data keys anew.
    Finish(KekId, usize),
    /// Make one in the place of this KEK, and wrap so many data keys anew.
    Make(KekId, usize),
}

/// What a rotation came to.
#[derive(Debug)]
pub struct KekRotated {
    /// The KEK that was in use.
    pub old: KekId,
    /// The KEK that is in use.
    pub new: KekId,
    /// Data keys that were wrapped anew.
    pub rewrapped: u64,
    /// How long that took.
    pub took: Duration,
    /// Servers that had opened the canary.
    pub servers: usize,
    /// Whether this finished what an earlier run had begun.
    pub finished_earlier: bool,
}

impl Admin {
    /// Enters a new KEK in the keyring, or takes up the one of a rotation that was cut off.
    pub async fn begin_kek(&self, to: Target, keep: &mut Keep<'_>) -> Result<KekBegun, RotationError> {
        let lock = file::lock(self.keks.path())?;
        let keyring = self.keks.read_again()?;
        let old = keyring.active().clone();
        let rows = list_keys(&self.db).await?;
        // The keyring takes part in no transaction, so what is about to change there is recorded first.
        let begun_now = Entry::done("keys.rotate", "kek").with(format!("begun; before it {old}"));
        self.note(&begun_now).await?;
        let (new, finished_earlier) = match begun(&keyring, &rows, to) {
            Begun::Entered(id) => (id, true),
            Begun::InUse => (old.clone(), true),
            Begun::Nothing => (self.enter(&keyring, to, keep).await?, false),
        };
        Ok(KekBegun { old, new, finished_earlier, _lock: lock })
    }

    /// What a rotation would do. Changes nothing, and unwraps nothing.
    pub async fn would_rotate_kek(&self, to: Target) -> Result<KekWould, RotationError> {
        let keyring = self.keks.keyring();
        let rows = list_keys(&self.db).await?;
        let left = |kek: &KekId| rows.iter().filter(|row| depends(row, kek)).count();
        Ok(match begun(&keyring, &rows, to) {
            Begun::Entered(id) => {
                let left = left(&id);
                KekWould::Finish(id, left)
            }
            Begun::InUse => KekWould::Finish(keyring.active().clone(), left(keyring.active())),
            Begun::Nothing => {
                let all = rows.iter().filter(|row| row.wrapped.is_some()).count();
                KekWould::Make(keyring.active().clone(), all)
            }
        })
    }

    /// Waits until every live server opens what the new KEK wraps, takes it into use, and wraps all data
    /// keys under it.
    pub async fn finish_kek(&self, begun: KekBegun) -> Result<KekRotated, RotationError> {
        let KekBegun { old, new, finished_earlier, _lock } = begun;
        let servers = self.canary_opened(&new).await?;
        if new != old {
            let keyring = self.keks.read_again()?;
            self.keks.replace(keyring.with_active(&new))?;
        }
        let begin = Instant::now();
        let rewrapped = self.rewrap_all(&old, &new).await?;
        Ok(KekRotated { old, new, rewrapped, took: begin.elapsed(), servers, finished_earlier })
    }

    /// Where the present KEK's key is.
    pub fn present_target(&self) -> Target {
        let keyring = self.keks.keyring();
        match keyring.find(keyring.active()).map(|kek| &kek.place) {
            Some(Place::Token) => Target::Token,
            Some(Place::Split(split)) => {
                let shares = u8::try_from(split.shares.len()).unwrap_or(u8::MAX);
                Target::Split { shares, threshold: split.threshold }
            }
            _ => Target::File,
        }
    }

    /// Splits the KEK that is in use, which stays the same key; a split that it had before ends. The keyring
    /// changes only after what the custodians have kept is shown to rebuild the key.
    pub async fn split_kek(
        &self,
        shares: u8,
        threshold: u8,
        keep: &mut Keep<'_>,
    ) -> Result<KekId, RotationError> {
        let _lock = file::lock(self.keks.path())?;
        let keyring = self.keks.read_again()?;
        let id = keyring.active().clone();
        let soft = self.keks.soft(&id).map_err(|error| RotationError::Keys(DataKeysError::Make(error)))?;
        let told = |what: String| Entry::done("keys.split", id.as_str()).with(what);
        self.note(&told(format!("begun; {threshold} of {shares}"))).await?;
        let place = split_and_keep(&soft, shares, threshold, keep)?;
        self.keks.replace(keyring.with_place(&id, place))?;
        self.note(&told(format!("any {threshold} of {shares} shares rebuild it"))).await?;
        Ok(id)
    }

    /// Puts the KEK that is in use back into the keyring file.
    pub async fn combine_kek(&self) -> Result<KekId, RotationError> {
        let _lock = file::lock(self.keks.path())?;
        let keyring = self.keks.read_again()?;
        let id = keyring.active().clone();
        let soft = self.keks.soft(&id).map_err(|error| RotationError::Keys(DataKeysError::Make(error)))?;
        let told = |what: &str| Entry::done("keys.combine", id.as_str()).with(what);
        self.note(&told("begun")).await?;
        self.keks.replace(keyring.with_place(&id, Place::File(soft)))?;
        self.note(&told("it is in the keyring file")).await?;
        Ok(id)
    }

    /// Makes a KEK and enters it in the keyring, where it wraps nothing yet.
    async fn enter(
        &self,
        keyring: &FileKek,
        to: Target,
        keep: &mut Keep<'_>,
    ) -> Result<KekId, RotationError> {
        let created = self.clock.now().rfc3339();
        let (id, place) = match to {
            Target::File => {
                let kek = SoftKek::make().map_err(file::KeyFileError::from)?;
                (kek.id().clone(), Place::File(kek))
            }
            Target::Split { shares, threshold } => {
                let kek = SoftKek::make().map_err(file::KeyFileError::from)?;
                let (id, place) = (kek.id().clone(), split_and_keep(&kek, shares, threshold, keep)?);
                self.keks.take_rebuilt(kek);
                (id, place)
            }
            Target::Token => {
                let id = KekId::make().map_err(file::KeyFileError::from)?;
                self.make_in_token(&id).await?;
                (id, Place::Token)
            }
        };
        self.keks.replace(keyring.with(Kek { id: id.clone(), created, place }))?;
        Ok(id)
    }

    async fn make_in_token(&self, id: &KekId) -> Result<(), RotationError> {
        let (keks, id) = (Arc::clone(&self.keks), id.clone());
        apart(move || keks.make_in_token(&id).map_err(DataKeysError::Make)).await.map_err(Into::into)
    }

    /// Sets the canary of a KEK out, and waits until every live server has opened it.
    async fn canary_opened(&self, kek: &KekId) -> Result<usize, RotationError> {
        let (keks, id) = (Arc::clone(&self.keks), kek.clone());
        let canary = apart(move || {
            let key = make_data_key(Purpose::Canary).map_err(|error| DataKeysError::Make(error.into()))?;
            let wrapped = keks.wrap_under(&id, &key).map_err(DataKeysError::Make)?;
            Ok(Canary { kek_id: id, dek_id: key.id().clone(), wrapped })
        })
        .await?;
        put_canary(&self.db, &canary, self.clock.now()).await?;
        self.wait_for_servers(|replica| replica.opened_kek.as_deref() == Some(kek.as_str())).await
    }

    /// Wraps every data key under `kek` that is wrapped under another one, in one transaction with the row that
    /// tells of it and with a new epoch, at which servers take up which KEK is in use.
    async fn rewrap_all(&self, old: &KekId, kek: &KekId) -> Result<u64, RotationError> {
        let mut wrapped_before = None;
        for _ in 0..TURNS {
            let epoch = epoch(&self.db).await?;
            let rows: Vec<KeyRow> =
                list_keys(&self.db).await?.into_iter().filter(|row| depends(row, kek)).collect();
            if rows.is_empty() {
                if wrapped_before.is_none() {
                    self.begin_epoch(&in_use(old, kek, 0)).await?;
                }
                return Ok(wrapped_before.unwrap_or_default());
            }
            let (keks, id) = (Arc::clone(&self.keks), kek.clone());
            let wrapped = apart(move || {
                let wrap = |row: KeyRow| {
                    let (key, _) = unwrap_row(keks.as_ref(), &row)?
                        .ok_or_else(|| DataKeysError::Unwrap(row.id.clone(), WrapError::CouldNotOpen))?;
                    let wrapped = keks.wrap_under(&id, &key).map_err(DataKeysError::Make)?;
                    Ok((row, wrapped))
                };
                rows.into_iter().map(wrap).collect::<Result<Vec<_>, DataKeysError>>()
            })
            .await?;
            if let Some(stored) = self.store_wrapped(old, kek, &wrapped, epoch).await? {
                wrapped_before = Some(wrapped_before.unwrap_or_default() + stored);
            }
        }
        Err(RotationError::Refused(
            "data keys go on being wrapped under another key; see that every host has this keyring, and run this again"
                .to_owned(),
        ))
    }

    /// Stores what was wrapped in an epoch; none where that is over, and nothing was stored.
    async fn store_wrapped(
        &self,
        old: &KekId,
        kek: &KekId,
        wrapped: &[(KeyRow, Vec<u8>)],
        epoch: i64,
    ) -> Result<Option<u64>, RotationError> {
        let mut tx = self.begin().await?;
        let done = rewrap_keys(&mut tx, kek, wrapped).await?;
        if !raise_epoch_after(&mut tx, epoch).await? {
            tx.rollback().await?;
            return Ok(None);
        }
        // A database from before there was a trail: its audit key is made at the next start.
        if self.has_trail() {
            tx.note(&in_use(old, kek, done)).await?;
        }
        tx.commit().await?;
        Ok(Some(done))
    }
}

/// What is recorded of a KEK that is in use now.
fn in_use(old: &KekId, new: &KekId, rewrapped: u64) -> Entry {
    let before = if old == new { String::new() } else { format!("; before it {old}") };
    Entry::done("keys.rotate", new.as_str())
        .with(format!("the kek; {rewrapped} data keys are wrapped under it anew{before}"))
}

/// Splits a KEK, has the shares kept, and shows that what was kept rebuilds the key.
fn split_and_keep(
    kek: &SoftKek,
    count: u8,
    threshold: u8,
    keep: &mut Keep<'_>,
) -> Result<Place, RotationError> {
    let refused = |why: String| RotationError::Refused(why);
    let (split, made) = shares::split(kek, count, threshold).map_err(|error| refused(error.to_string()))?;
    let kept = keep(kek.id(), &made).map_err(|error| {
        refused(format!("the shares could not be kept, so nothing was changed: {error:#}"))
    })?;
    shares::prove(kek.id(), &split, &kept).map_err(|error| {
        refused(format!("the shares that were kept do not rebuild the key, so nothing was changed: {error}"))
    })?;
    Ok(Place::Split(split))
}

/// Whether a data key is wrapped under another KEK.
fn depends(row: &KeyRow, kek: &KekId) -> bool {
    row.wrapped.is_some() && row.state != KeyState::Destroyed.as_str() && row.kek_id != *kek
}

/// How far an earlier rotation came.
#[derive(Debug, PartialEq, Eq)]
enum Begun {
    /// There is none, or the last one is done.
    Nothing,
    /// Its KEK is entered, and not in use yet.
    Entered(KekId),
    /// Its KEK is in use; data keys may be left to wrap.
    InUse,
}

/// A KEK that is entered goes behind the one in use, so one that stands there belongs to a rotation that
/// was cut off.
fn begun(keyring: &FileKek, rows: &[KeyRow], to: Target) -> Begun {
    let behind = keyring.keks().iter().skip_while(|kek| kek.id != *keyring.active()).skip(1).last();
    if let Some(kek) = behind.filter(|kek| to.fits(&kek.place)) {
        return Begun::Entered(kek.id.clone());
    }
    if rows.iter().any(|row| depends(row, keyring.active())) { Begun::InUse } else { Begun::Nothing }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::base::clock::{SharedClock, SystemClock};
    use crate::crypto::kek::Keks;
    use crate::ops::keys::KeyPolicy;
    use crate::store::backend::{Db, Options};
    use crate::store::migrate;

    const SPLIT: Target = Target::Split { shares: 4, threshold: 2 };

    async fn admin(folder: &Path, keyring: &Path) -> Admin {
        let admin = never_started(folder, keyring).await;
        admin.keys.open().await.unwrap_or_else(|error| panic!("{error}"));
        admin
    }

    async fn never_started(folder: &Path, keyring: &Path) -> Admin {
        let url = format!("sqlite:{}", folder.join("vault.db").display());
        let db = Db::open(&Options { url, password_file: None }).await.expect("a database");
        migrate::run(&db).await.expect("a schema");
        let keks = Arc::new(Keks::open(keyring, None).unwrap_or_else(|error| panic!("{error}")));
        let clock: SharedClock = Arc::new(SystemClock);
        let admin = Admin::new(db, keks, &clock, KeyPolicy::default(), Duration::from_secs(1));
        admin.unwrap_or_else(|error| panic!("{error}"))
    }

    /// An epoch begins with every new KEK, also where no data key is there that it could wrap.
    #[tokio::test]
    async fn servers_are_told_of_every_new_kek() {
        for has_keys in [false, true] {
            let folder = tempfile::tempdir().expect("a folder");
            let keyring = keyring_in(folder.path());
            let admin = match has_keys {
                true => admin(folder.path(), &keyring).await,
                false => never_started(folder.path(), &keyring).await,
            };
            let before = epoch(&admin.db).await.expect("an epoch");
            let begun = admin.begin_kek(Target::File, &mut |_, made| Ok(whole(made))).await;
            let done = admin.finish_kek(begun.unwrap_or_else(|error| panic!("{error}"))).await;
            let done = done.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((done.old != done.new, done.rewrapped > 0), (true, has_keys));
            assert_eq!(epoch(&admin.db).await.expect("an epoch"), before + 1);
        }
    }

    fn keyring_in(folder: &Path) -> PathBuf {
        let path = folder.join("keyring.toml");
        let clock = crate::base::clock::Clock::now(&SystemClock);
        file::create_new(&path, &file::generate(clock).expect("entropy")).expect("written");
        path
    }

    fn again(share: &Share) -> Share {
        Share::parse(&share.text()).unwrap_or_else(|error| panic!("{error}"))
    }

    fn whole(shares: &[Share]) -> Vec<Share> {
        shares.iter().map(again).collect()
    }

    /// What custodians can have kept instead of their shares.
    type Wrong = (&'static str, fn(&[Share]) -> anyhow::Result<Vec<Share>>);

    /// Shares that were kept wrongly are found before the keyring changes, for a new KEK and for the present one;
    /// the old one opens as before.
    #[tokio::test]
    async fn what_was_kept_wrongly_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let keyring = keyring_in(folder.path());
        let admin = admin(folder.path(), &keyring).await;
        let before = std::fs::read_to_string(&keyring).expect("the keyring");
        let other = |shares: &[Share]| {
            let kek = SoftKek::make()?;
            let (_, made) = shares::split(&kek, u8::try_from(shares.len())?, 2)?;
            Ok(made)
        };
        let wrong: [Wrong; 5] = [
            ("nothing could be written", |_| anyhow::bail!("no space is left")),
            ("one is missing", |shares| Ok(whole(&shares[1..]))),
            ("some twice, others never", |shares| {
                Ok(whole(&[again(&shares[0]), again(&shares[1]), again(&shares[0]), again(&shares[1])]))
            }),
            ("one of another key", |shares| {
                let kek = SoftKek::make()?;
                let (_, mut made) = shares::split(&kek, u8::try_from(shares.len())?, 2)?;
                let mut kept = whole(shares);
                kept.pop();
                kept.extend(made.pop());
                Ok(kept)
            }),
            ("all of another key", other),
        ];
        for (what, wrong) in wrong {
            let mut keep = |_: &KekId, made: &[Share]| wrong(made);
            let split = admin.split_kek(4, 2, &mut keep).await.expect_err(what).to_string();
            let rotated = admin.begin_kek(SPLIT, &mut keep).await.err().expect(what).to_string();
            for error in [split, rotated] {
                assert!(error.contains("nothing was changed"), "{what}: {error}");
            }
            assert_eq!(std::fs::read_to_string(&keyring).expect("the keyring"), before, "{what}");
        }
        let fresh = Keks::open(&keyring, None).unwrap_or_else(|error| panic!("{error}"));
        assert!(fresh.soft(fresh.keyring().active()).is_ok());
        admin.split_kek(4, 2, &mut |_, made| Ok(whole(made))).await.expect("split");
        assert_ne!(std::fs::read_to_string(&keyring).expect("the keyring"), before);
    }

    /// A command that is killed when the custodians have their shares and the keyring is not replaced yet leaves
    /// what stands on the disk at that moment: the old key opens everything, the shares open nothing, and the next
    /// run makes others.
    #[tokio::test]
    async fn killed_between_the_shares_and_the_keyring_the_old_key_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let keyring = keyring_in(folder.path());
        let running = admin(folder.path(), &keyring).await;
        let old = running.keks.keyring().active().clone();
        let left = folder.path().join("left.toml");
        let mut given = Vec::new();
        let mut keep = |_: &KekId, made: &[Share]| {
            std::fs::copy(&keyring, &left)?;
            given = whole(made);
            Ok(whole(made))
        };
        let begun = running.begin_kek(SPLIT, &mut keep).await.unwrap_or_else(|error| panic!("{error}"));
        assert_ne!(begun.new, old);
        drop(begun);

        // The next run finds the keyring as the killed one left it.
        let next = admin(folder.path(), &left).await;
        assert_eq!((next.keks.keyring().active(), next.keks.keyring().keks().len()), (&old, 1));
        assert!(!next.has_trail() || next.keks.soft(&old).is_ok());
        for share in &given {
            assert!(next.keks.split_of(share).is_err(), "a share of a key that nothing knows");
        }
        let anew = next.begin_kek(SPLIT, &mut |_, made| Ok(whole(made))).await;
        let anew = anew.unwrap_or_else(|error| panic!("{error}"));
        let done = next.finish_kek(anew).await.unwrap_or_else(|error| panic!("{error}"));
        assert!(done.old == old && !done.finished_earlier && done.rewrapped > 0);
    }
}
