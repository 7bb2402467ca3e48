//! When files are looked at again, and whether one is still the one that was read.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The times at which files are looked at: every second, and at SIGHUP.
pub(super) struct Looks(Option<Signal>);

impl Looks {
    /// From now on. `what` follows its files where SIGHUP cannot be listened to.
    pub(super) fn new(what: &'static str) -> Self {
        let hangup = signal(SignalKind::hangup()).ok();
        if hangup.is_none() {
            tracing::warn!("SIGHUP cannot be listened to; {what} follow their files");
        }
        Self(hangup)
    }

    /// Waits for the next; whether it was asked for, so that even files that are as before are read.
    pub(super) async fn next(&mut self) -> bool {
        let asked = async {
            let told = match &mut self.0 {
                Some(hangup) => hangup.recv().await,
                None => None,
            };
            if told.is_none() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = asked => true,
            () = tokio::time::sleep(LOOK) => false,
        }
    }
}

/// Tells a file from what it was before. The time of the last change of the inode is in it, which no
/// program sets as it likes.
#[derive(PartialEq, Eq)]
pub(super) struct Stamp(PathBuf, Option<[i128; 6]>);

/// How a file is now; one that cannot be looked at has a stamp too.
pub(super) fn stamp(path: &Path) -> Stamp {
    let facts = std::fs::metadata(path).ok().map(|facts| {
        [
            facts.ino().into(),
            facts.size().into(),
            facts.mtime().into(),
            facts.mtime_nsec().into(),
            facts.ctime().into(),
            facts.ctime_nsec().into(),
        ]
    });
    Stamp(path.to_owned(), facts)
}
