//! How far an import came: a small file beside it, replaced after each step. Nothing depends on it: without it
//! an import begins anew and finds what is there.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// What is known of an import that was cut off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Checkpoint {
    /// Which file, by its size and its last change; a file that was changed is read anew.
    pub size: u64,
    /// Seconds since 1970.
    pub changed: i64,
    /// For whom.
    pub merchant: String,
    /// Lines that are done.
    pub line: u64,
    /// Bytes of them.
    pub offset: u64,
    /// How long the output files were then.
    pub mapping: u64,
    /// As `mapping`.
    pub refused: u64,
    /// What the lines came to.
    pub counts: Counts,
}

/// What lines came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Counts {
    /// Lines with something on them.
    pub lines: u64,
    /// Cards that are new here.
    pub new_cards: u64,
    /// Cards that were here, and stay as they are.
    pub known_cards: u64,
    /// Agreements that are new here.
    pub new_agreements: u64,
    /// Agreements that were here.
    pub known_agreements: u64,
    /// Lines that were refused.
    pub refused_lines: u64,
}

impl Checkpoint {
    /// What tells a file from another one.
    pub fn of_file(file: &File, merchant: &str) -> std::io::Result<Self> {
        let told = file.metadata()?;
        Ok(Self { size: told.len(), changed: told.mtime(), merchant: merchant.to_owned(), ..Self::default() })
    }

    /// The checkpoint of the same file for the same merchant, where there is one.
    pub fn load(path: &Path, same: &Self) -> anyhow::Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("reading {}", path.display()))?,
        };
        let Ok(read) = serde_json::from_str::<Self>(&text) else {
            bail!("{} is no checkpoint of an import; remove it, and the import begins anew", path.display());
        };
        if (read.size, read.changed, &read.merchant) != (same.size, same.changed, &same.merchant) {
            bail!(
                "{} is the checkpoint of another file, or of another merchant; remove it, and the import begins \
                 anew: what is there already is found",
                path.display()
            );
        }
        Ok(Some(read))
    }

    /// Replaces the checkpoint, whole or not at all.
    pub fn store(&self, path: &Path) -> anyhow::Result<()> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let write = || {
            let mut file = File::create(&beside)?;
            file.write_all(serde_json::to_string(self).unwrap_or_default().as_bytes())?;
            std::fs::rename(&beside, path)
        };
        write().with_context(|| format!("writing {}", path.display()))
    }
}
