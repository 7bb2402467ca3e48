//! Shares that a command needs: from files, or typed by their custodians, without an echo.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use zeroize::Zeroizing;

use crate::base::ids::KekId;
use crate::base::secret::SecretText;
use crate::crypto::kek::shares::Share;
use crate::ops::custody::{Custody, SWEEP, Who};
use crate::ops::rotation::Admin;

/// Largest share file, in bytes.
const FILE_BYTES: u64 = 4096;

/// The custodians who stand by while a command runs.
pub struct Custodians<'a> {
    custody: &'a Custody,
    files: VecDeque<PathBuf>,
}

impl<'a> Custodians<'a> {
    /// Takes the shares of `files` first, and asks for those that are missing.
    pub fn new(admin: &'a Admin, files: &[PathBuf]) -> Self {
        Self { custody: &admin.custody, files: files.iter().cloned().collect() }
    }

    /// Collects the shares of a KEK until it is rebuilt. A wrong share is named, and asked for again; one that has
    /// waited too long for the others is gone.
    pub fn collect(&mut self, kek: &KekId) -> anyhow::Result<()> {
        let custody = self.custody;
        custody.sweeping(SWEEP, || self.ask_until_rebuilt(kek))
    }

    fn ask_until_rebuilt(&mut self, kek: &KekId) -> anyhow::Result<()> {
        let who =
            Who { uid: rustix::process::geteuid().as_raw(), pid: i32::try_from(std::process::id()).ok() };
        while !self.custody.keks().is_open(kek) {
            let (text, from) = match self.files.pop_front() {
                Some(path) => (read_file(&path)?, Some(path)),
                None => {
                    let have = self.custody.waiting(kek);
                    let asked = ask(&format!("{kek} is split; share (the {}. of those needed): ", have + 1))?;
                    (asked.with_context(|| format!("{kek} is split, and {have} of its shares came"))?, None)
                }
            };
            match (self.custody.submit(&text, who), from) {
                (Ok(taken), _) if taken.open => eprintln!("{kek} is rebuilt, for this command only"),
                (Ok(taken), _) => eprintln!("{} of {} shares are here", taken.have, taken.need),
                (Err(error), Some(path)) => bail!("{}: {error}", path.display()),
                (Err(error), None) => eprintln!("{error}"),
            }
        }
        Ok(())
    }
}

/// Asks for a line without showing it; from what is piped in where there is no terminal. `None` at the end.
pub fn ask(prompt: &str) -> anyhow::Result<Option<SecretText>> {
    let stdin = std::io::stdin();
    let mut line = Zeroizing::new(String::with_capacity(256));
    let restore = if stdin.is_terminal() {
        eprint!("{prompt}");
        std::io::stderr().flush()?;
        Some(hide_typing(&stdin)?)
    } else {
        None
    };
    let read = stdin.lock().read_line(&mut line);
    if let Some(restore) = restore {
        rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Now, &restore)?;
        eprintln!();
    }
    Ok((read? > 0).then(|| SecretText::from(line.trim())))
}

/// Switches the terminal's echo off; how it was before.
fn hide_typing(stdin: &std::io::Stdin) -> anyhow::Result<rustix::termios::Termios> {
    let before = rustix::termios::tcgetattr(stdin)?;
    let mut hidden = before.clone();
    hidden.local_modes -= rustix::termios::LocalModes::ECHO;
    rustix::termios::tcsetattr(stdin, rustix::termios::OptionalActions::Now, &hidden)?;
    Ok(before)
}

/// Reads a share's file, which nobody but its owner may be able to read: the line that is no comment.
pub fn read_file(path: &Path) -> anyhow::Result<SecretText> {
    let what = || format!("reading {}", path.display());
    let file = std::fs::File::open(path).with_context(what)?;
    let facts = file.metadata().with_context(what)?;
    ensure!(
        facts.mode() & 0o077 == 0,
        "others can read {}; run `chmod 600` on it, and make new shares if they may have",
        path.display()
    );
    let mut text = Zeroizing::new(String::with_capacity(4096));
    file.take(FILE_BYTES).read_to_string(&mut text).with_context(what)?;
    let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    line.map(SecretText::from).with_context(|| format!("{} holds no share", path.display()))
}

/// Gives shares to their custodians: a file each in a folder, or printed. What was kept is read back.
pub fn keep(kek: &KekId, shares: &[Share], out: Option<&Path>, threshold: u8) -> anyhow::Result<Vec<Share>> {
    let mut kept = Vec::with_capacity(shares.len());
    for share in shares {
        let head = format!(
            "# cardvault: share {} of {}; any {threshold} rebuild {kek}. Keep it apart from the others.",
            share.index(),
            shares.len()
        );
        let text = share.text();
        let again = match out {
            Some(folder) => {
                // With the split's name, so that a run that was cut off stands in no other's way.
                let split = data_encoding::HEXLOWER.encode(&share.split_id());
                let path = folder.join(format!("{kek}-split-{split}-share-{}.txt", share.index()));
                write_file(&path, &head, &text)?;
                eprintln!("wrote {}", path.display());
                read_file(&path)?
            }
            None => {
                let mut page = Zeroizing::new(String::with_capacity(head.len() + 256));
                for part in [head.as_str(), "\n", text.expose(), "\n\n"] {
                    page.push_str(part);
                }
                std::io::stdout().write_all(page.as_bytes())?;
                text
            }
        };
        kept.push(Share::parse(&again)?);
    }
    Ok(kept)
}

fn write_file(path: &Path, head: &str, text: &SecretText) -> anyhow::Result<()> {
    let what = || format!("writing {}", path.display());
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(what)?;
    for part in [head, "\n", text.expose(), "\n"] {
        file.write_all(part.as_bytes()).with_context(what)?;
    }
    file.sync_all().with_context(what)
}
