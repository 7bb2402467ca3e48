//! Who can read and replace the files that matter.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::base::private_file::is_closed;
use crate::config::Config;

use super::Line;

const AREA: &str = "files";

/// Whom a file must be closed to.
struct Closed {
    /// Whether a file of this mode is.
    is: fn(&Path, u32) -> bool,
    /// What others can do where it is not.
    others_can: &'static str,
    /// What `chmod` needs then.
    mend: &'static str,
}

/// To everybody but its owner, by the rule that the server goes by.
const SECRET: Closed = Closed { is: is_closed, others_can: "read", mend: "600" };
/// To everybody who would replace it.
const PUBLIC: Closed = Closed { is: |_, mode| mode & 0o022 == 0, others_can: "replace", mend: "go-w" };

/// Every file: those with secrets are for their owner alone, the others may not be replaced by others.
pub(super) fn examine(config: &Config, own: &Path) -> Vec<Line> {
    let mut secret: Vec<(String, PathBuf)> = vec![
        ("api.private_key".into(), config.api.private_key.clone()),
        ("keys.keyring".into(), config.keys.keyring.clone()),
    ];
    let mut public: Vec<(String, PathBuf)> = vec![
        ("the configuration".into(), own.to_owned()),
        ("api.certificate".into(), config.api.certificate.clone()),
        ("api.client_ca".into(), config.api.client_ca.clone()),
    ];
    if let Some(notify) = &config.notify {
        secret.push(("notify.private_key".into(), notify.private_key.clone()));
        public.push(("notify.certificate".into(), notify.certificate.clone()));
    }
    secret.extend(config.database.password_file.clone().map(|path| ("database.password_file".into(), path)));
    secret.extend(config.keys.hsm.as_ref().map(|hsm| ("keys.hsm.pin_file".into(), hsm.pin_file.clone())));
    for gateway in &config.gateway {
        let named = |kind: &str, version: &String| format!("gateway.{}.{kind}.{version}", gateway.name);
        secret.extend(
            gateway.private_keys.iter().map(|(version, path)| (named("private_keys", version), path.clone())),
        );
        public.extend(
            gateway.public_keys.iter().map(|(version, path)| (named("public_keys", version), path.clone())),
        );
        public.extend(gateway.ca.clone().map(|path| (format!("gateway.{}.ca", gateway.name), path)));
    }
    if let Some(file) = config.database.url.strip_prefix("sqlite:") {
        let file = file.split('?').next().unwrap_or_default();
        // A database that was not made yet, or has no log now, is told of elsewhere.
        let all = ["", "-wal", "-shm"].map(|end| PathBuf::from(format!("{file}{end}")));
        secret.extend(all.into_iter().filter(|path| path.exists()).map(|path| ("database.url".into(), path)));
    }
    let own = rustix::process::geteuid().as_raw();
    let mut lines: Vec<Line> = secret.iter().map(|(key, path)| look(key, path, &SECRET, own)).collect();
    lines.extend(public.iter().map(|(key, path)| look(key, path, &PUBLIC, own)));
    lines.push(socket_folder(&config.keys.socket(), own));
    lines
}

/// The folder of the socket for custodians: who can write there can put a socket of theirs in its place, to which
/// custodians would bring their shares.
fn socket_folder(socket: &Path, own: u32) -> Line {
    let folder = socket.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.exists() {
        return Line::warn(
            AREA,
            format!("keys.unseal_socket: {} is not there: no share can be brought", folder.display()),
            "make the folder, or name another; systemd makes /run/cardvault at the service's start",
        );
    }
    look("keys.unseal_socket, its folder", folder, &PUBLIC, own)
}

fn look(key: &str, path: &Path, closed: &Closed, own: u32) -> Line {
    let shown = path.display();
    let facts = match std::fs::metadata(path) {
        Ok(facts) => facts,
        Err(error) => {
            return Line::fail(
                AREA,
                format!("{key}: {shown}: {}", error.kind()),
                "put the file there, or name another",
            );
        }
    };
    let mode = facts.mode() & 0o7777;
    if !(closed.is)(path, mode) {
        return Line::fail(
            AREA,
            format!("{key}: {shown} has mode {mode:04o}: others can {} it", closed.others_can),
            format!("chmod {} {shown}", closed.mend),
        );
    }
    if facts.uid() != own && facts.uid() != 0 {
        return Line::fail(
            AREA,
            format!("{key}: {shown} belongs to the user {}, neither this one nor root", facts.uid()),
            format!("chown it, or run this as the service's user: {shown}"),
        );
    }
    Line::pass(AREA, format!("{key}: {shown} has mode {mode:04o}"))
}
