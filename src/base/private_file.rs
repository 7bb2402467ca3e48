//! Whether a file's mode keeps others out of it.

use std::ffi::OsStr;
use std::path::Path;

/// Whether nobody but the owner has access to a file of this mode: 0600 or stricter.
///
/// What systemd hands to a service (`LoadCredential=`) may be readable for a group too, as far as the mode
/// tells: it gives the service's user access by an access control list, whose mask shows there. Those files lie
/// in a folder that is the service's alone.
pub fn is_closed(path: &Path, mode: u32) -> bool {
    closed(path, mode, std::env::var_os("CREDENTIALS_DIRECTORY").as_deref())
}

fn closed(path: &Path, mode: u32, credentials: Option<&OsStr>) -> bool {
    let handed = credentials
        .map(Path::new)
        .is_some_and(|folder| folder.is_absolute() && path.parent().is_some_and(|parent| parent == folder));
    mode & if handed { 0o037 } else { 0o077 } == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_may_only_read_what_systemd_hands_over() {
        let folder = Some(OsStr::new("/run/credentials/cardvault.service"));
        let (inside, outside) =
            (Path::new("/run/credentials/cardvault.service/server.key"), Path::new("/etc/server.key"));
        for mode in [0o100400, 0o100600, 0o100000] {
            assert!(closed(inside, mode, folder) && closed(outside, mode, folder), "{mode:o}");
        }
        assert!(closed(inside, 0o100440, folder));
        assert!(!closed(outside, 0o100440, folder) && !closed(inside, 0o100440, None));
        let beside = Path::new("/run/credentials/cardvault.service/more/server.key");
        assert!(
            !closed(beside, 0o100440, folder)
                && !closed(Path::new("server.key"), 0o440, Some(OsStr::new("")))
        );
        for mode in [0o100460, 0o100450, 0o100404, 0o100444, 0o100401, 0o100420] {
            assert!(!closed(inside, mode, folder), "{mode:o}");
        }
    }
}
