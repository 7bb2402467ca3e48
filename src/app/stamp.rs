//! Whether a file is still the one that was read.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
