//! The Unix socket by which custodians bring their shares: mode 0600, and only for this process's own user
//! or root, whom the kernel names. One line in, one line of JSON out. It is the only line from the command
//! line to a running server.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::base::secret::SecretText;
use crate::ops::custody::{Custody, Who};

/// How long a custodian's program may take for its line.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest line, in bytes.
const LINE: usize = 512;
/// How often shares that have waited long enough are wiped.
const SWEEP: Duration = Duration::from_secs(5);

/// A bound socket; its file goes when it is dropped.
pub(super) struct UnsealSocket {
    listener: UnixListener,
    path: PathBuf,
    custody: Arc<Custody>,
}

impl UnsealSocket {
    /// Binds the path. A socket that nobody answers any more is taken away first.
    pub(super) async fn bind(path: &Path, custody: Arc<Custody>) -> anyhow::Result<Self> {
        let what = || format!("keys.unseal_socket: binding {}", path.display());
        match std::fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => {
                if UnixStream::connect(path).await.is_ok() {
                    anyhow::bail!(
                        "keys.unseal_socket: another server answers at {}; give each server a path of its own",
                        path.display()
                    );
                }
                std::fs::remove_file(path).with_context(what)?;
            }
            Ok(_) => anyhow::bail!("keys.unseal_socket: {} is there and is no socket", path.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(what),
        }
        let listener = UnixListener::bind(path).with_context(what)?;
        // Until here others could have connected; the kernel's word on who they are keeps them out.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).with_context(what)?;
        Ok(Self { listener, path: path.to_owned(), custody })
    }

    /// Serves until it is aborted.
    pub(super) async fn serve(self) {
        loop {
            tokio::select! {
                taken = self.listener.accept() => match taken {
                    Ok((stream, _)) => self.answer(stream),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
                () = tokio::time::sleep(SWEEP) => {
                    let wiped = self.custody.sweep();
                    if wiped > 0 {
                        tracing::warn!(wiped, "shares waited 10 minutes for the others and are gone");
                    }
                }
            }
        }
    }

    fn answer(&self, mut stream: UnixStream) {
        let who = match stream.peer_cred() {
            Ok(peer) if may_bring(peer.uid()) => Who { uid: peer.uid(), pid: peer.pid() },
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), "a user who may not bring shares was turned away");
                return;
            }
            Err(_) => return,
        };
        let custody = Arc::clone(&self.custody);
        tokio::spawn(async move {
            let told = timeout(PATIENCE, async {
                let line = read_line(&mut stream).await?;
                let answer = format!("{}\n", submit(&custody, &line, who));
                stream.write_all(answer.as_bytes()).await
            });
            if !matches!(told.await, Ok(Ok(()))) {
                tracing::debug!("a custodian's program went away");
            }
        });
    }
}

impl Drop for UnsealSocket {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(&self.path);
    }
}

/// The user that runs this program, or root.
fn may_bring(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

fn submit(custody: &Custody, line: &SecretText, who: Who) -> serde_json::Value {
    match custody.submit(line, who) {
        Ok(taken) => {
            let (kek, have, need, open) = (taken.kek.as_str(), taken.have, taken.need, taken.open);
            tracing::info!(kek, have, need, open, uid = who.uid, pid = who.pid, "a share was brought");
            serde_json::json!({ "kek": kek, "have": have, "need": need, "open": open })
        }
        Err(error) => {
            tracing::warn!(%error, uid = who.uid, pid = who.pid, "a share was brought and not taken");
            serde_json::json!({ "error": error.to_string() })
        }
    }
}

/// Reads one line into a buffer that is wiped.
async fn read_line(stream: &mut UnixStream) -> io::Result<SecretText> {
    let mut buffer = Zeroizing::new([0; LINE]);
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let count = stream.read(rest).await?;
        filled += count;
        if count == 0 || buffer.get(..filled).is_some_and(|read| read.contains(&b'\n')) {
            break;
        }
    }
    let line = buffer.get(..filled).unwrap_or_default();
    let text = std::str::from_utf8(line).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut whole = String::with_capacity(LINE);
    whole.push_str(text.trim());
    Ok(SecretText::new(whole))
}

/// Brings a share to the server that listens at `path`; what it answers.
pub async fn bring(path: &Path, share: &SecretText) -> anyhow::Result<serde_json::Value> {
    let talk = async {
        let mut stream = UnixStream::connect(path).await.with_context(|| {
            format!("no server listens at {}; is it running, and are you its user or root?", path.display())
        })?;
        let mut line = Zeroizing::new(Vec::with_capacity(LINE));
        line.extend_from_slice(share.expose().trim().as_bytes());
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await?;
        anyhow::ensure!(!answer.is_empty(), "the server at {} turned this user away", path.display());
        Ok(serde_json::from_slice(&answer)?)
    };
    timeout(PATIENCE, talk).await.context("the server did not answer in time")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_user_or_root_brings_shares() {
        let own = rustix::process::geteuid().as_raw();
        assert!(may_bring(0) && may_bring(own));
        assert!(!may_bring(own.wrapping_add(1)));
    }
}
