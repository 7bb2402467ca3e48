//! The Unix socket by which custodians bring their shares: mode 0600, and only for this process's own user
//! or root, whom the kernel names. One line in, one line of JSON out. It is the only line from the command
//! line to a running server.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::base::secret::SecretText;
use crate::ops::custody::{Custody, SWEEP, Who};

/// How long a custodian's program may take for its line.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest line, in bytes.
const LINE: usize = 512;

/// A bound socket; its file goes when it is dropped.
pub(super) struct UnsealSocket {
    listener: UnixListener,
    path: PathBuf,
    custody: Arc<Custody>,
    /// Held for as long as this lives, and released by the kernel when the process is killed.
    _lock: File,
}

impl UnsealSocket {
    /// Binds the path, in the place of a socket that a killed server has left.
    ///
    /// A lock beside it says who has the path, however many servers start at once. The socket comes to its path
    /// closed to others already.
    pub(super) fn bind(path: &Path, custody: Arc<Custody>) -> anyhow::Result<Self> {
        let what = || format!("keys.unseal_socket: binding {}", path.display());
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mode = std::fs::metadata(folder).with_context(what)?.permissions().mode();
        anyhow::ensure!(
            mode & 0o022 == 0,
            "keys.unseal_socket: others can put a socket of theirs into {}; run `chmod go-w` on it",
            folder.display()
        );
        let mut options = OpenOptions::new();
        options.create(true).write(true).truncate(false).mode(0o600);
        let lock = options.open(beside(path, "lock")).with_context(what)?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => anyhow::bail!(
                "keys.unseal_socket: another server answers at {}; give each server a path of its own",
                path.display()
            ),
            locked => locked.with_context(what)?,
        }
        match std::fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                anyhow::bail!("keys.unseal_socket: {} is there and is no socket", path.display())
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(what),
            _ => {}
        }
        let new = beside(path, "new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(what),
            _ => {}
        }
        let listener = UnixListener::bind(&new).with_context(what)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).with_context(what)?;
        std::fs::rename(&new, path).with_context(what)?;
        Ok(Self { listener, path: path.to_owned(), custody, _lock: lock })
    }

    /// Serves until it is aborted.
    pub(super) async fn serve(self) {
        self.serve_sweeping(SWEEP).await;
    }

    async fn serve_sweeping(self, every: Duration) {
        // One clock for all turns: who connects again and again does not put the wiping off.
        let mut sweep = tokio::time::interval(every);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // They end with this: no share is taken by a server that has recorded its last.
        let mut answers = JoinSet::new();
        loop {
            tokio::select! {
                taken = self.listener.accept() => match taken {
                    Ok((stream, _)) => self.answer(stream, &mut answers),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
                Some(_) = answers.join_next() => {}
                _ = sweep.tick() => {
                    let wiped = self.custody.sweep();
                    if wiped > 0 {
                        tracing::warn!(wiped, "shares waited 10 minutes for the others and are gone");
                    }
                }
            }
        }
    }

    fn answer(&self, mut stream: UnixStream, answers: &mut JoinSet<()>) {
        let who = match stream.peer_cred() {
            Ok(peer) if may_bring(peer.uid()) => Who { uid: peer.uid(), pid: peer.pid() },
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), "a user who may not bring shares was turned away");
                return;
            }
            Err(_) => return,
        };
        let custody = Arc::clone(&self.custody);
        answers.spawn(async move {
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

/// The file of this name beside the socket.
fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{what}"));
    PathBuf::from(name)
}

/// The user that runs this program, or root.
fn may_bring(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

fn submit(custody: &Custody, line: &SecretText, who: Who) -> serde_json::Value {
    match custody.submit(line, who) {
        Ok(taken) => {
            let (kek, have, need, open) = (taken.kek.as_str(), taken.have, taken.need, taken.open);
            let (share, uid, pid) = (taken.share, who.uid, who.pid);
            // A server that is stopped before it was ever open leaves this line alone.
            tracing::warn!(kek, share, have, need, open, uid, pid, "a share was brought");
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
    use crate::base::clock::Millis;
    use crate::crypto::kek::Keks;
    use crate::crypto::kek::file;
    use crate::ops::custody::tests::{Fixture, fixture};

    #[test]
    fn only_this_user_or_root_brings_shares() {
        let own = rustix::process::geteuid().as_raw();
        assert!(may_bring(0) && may_bring(own));
        assert!(!may_bring(own.wrapping_add(1)));
    }

    fn custody(folder: &Path) -> Arc<Custody> {
        let keyring = folder.join("keyring.toml");
        let clock: crate::base::clock::SharedClock = Arc::new(crate::base::clock::SystemClock);
        file::create_new(&keyring, &file::generate(Millis(0)).expect("entropy")).expect("written");
        let keks = Keks::open(&keyring, None).unwrap_or_else(|error| panic!("{error}"));
        Arc::new(Custody::new(Arc::new(keks), clock))
    }

    /// A killed server leaves its socket, and the next takes its place; a living one is left alone, by many that
    /// start at once.
    #[tokio::test]
    async fn a_socket_has_one_server() {
        let folder = tempfile::tempdir().expect("a folder");
        let custody = custody(folder.path());
        let path = folder.path().join("unseal.sock");
        // As a killed one leaves it.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        assert!(path.exists());
        let mut starts: Vec<_> = (0..8).map(|_| UnsealSocket::bind(&path, Arc::clone(&custody))).collect();
        assert_eq!(starts.iter().filter(|start| start.is_ok()).count(), 1);
        let first = starts.swap_remove(0).expect("the first");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let error = UnsealSocket::bind(&path, Arc::clone(&custody)).err().expect("refused").to_string();
        assert!(error.contains("another server answers"), "{error}");
        assert!(UnixStream::connect(&path).await.is_ok());
        drop(first);
        assert!(!path.exists());
        let left: Vec<_> =
            std::fs::read_dir(folder.path()).expect("a folder").flatten().map(|it| it.file_name()).collect();
        assert_eq!(left.len(), 2, "the keyring and the lock: {left:?}");

        std::fs::write(&path, "a file").expect("written");
        assert!(UnsealSocket::bind(&path, Arc::clone(&custody)).is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("a file"), "a file");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("changed");
        let error = UnsealSocket::bind(&folder.path().join("other.sock"), custody).err().expect("refused");
        assert!(error.to_string().contains("chmod go-w"), "{error}");
    }

    /// Somebody who connects all the time does not keep shares waiting beyond their time.
    #[tokio::test]
    async fn shares_are_wiped_however_often_somebody_connects() {
        let Fixture { folder, hands, custody, shares, .. } = fixture();
        let custody = Arc::new(custody);
        let path = folder.path().join("unseal.sock");
        let socket = UnsealSocket::bind(&path, Arc::clone(&custody)).expect("bound");
        let serving = tokio::spawn(socket.serve_sweeping(Duration::from_millis(50)));
        let answer = bring(&path, &shares[0].text()).await.expect("an answer");
        assert_eq!((&answer["have"], custody.held()), (&1.into(), 1), "{answer}");
        hands.monotonic.store(10 * 60, std::sync::atomic::Ordering::Relaxed);
        for _ in 0..200 {
            let _connected = UnixStream::connect(&path).await.expect("connected");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(custody.held(), 0);
        serving.abort();
    }
}
