//! The folder of the server's socket.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::server_user::ServerUser;

/// The longest path that fits into `sockaddr_un` with its final NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Postgres puts its lock file beside the socket, with this name.
const LONGEST_NAME: &str = ".s.PGSQL.5432.lock";

/// Finds or makes a short folder (0700, the server user's) for the socket of the cluster whose data folder is `data`.
///
/// Its name is random, since anybody could make a guessable one in `/tmp` first. It is noted in the data folder, so
/// that restarts, also after `kill -9`, come back to the same one and leave no trail.
pub(super) fn runtime_dir(data: &Path, user: &ServerUser) -> io::Result<PathBuf> {
    let note = data.join("postgres.runtime");
    if let Ok(noted) = fs::read_to_string(&note) {
        let noted = PathBuf::from(noted);
        if fs::symlink_metadata(&noted)
            .is_ok_and(|dir| dir.is_dir() && dir.mode() & 0o777 == 0o700 && dir.uid() == user.uid.as_raw())
        {
            return Ok(noted);
        }
    }

    let made = tempfile::Builder::new().prefix("rookery-").permissions(fs::Permissions::from_mode(0o700)).tempdir_in(parent())?;
    if made.path().join(LONGEST_NAME).as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(io::Error::other(format!("{} is too long a path for a socket", made.path().display())));
    }
    std::os::unix::fs::chown(made.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    fs::write(&note, made.path().as_os_str().as_encoded_bytes())?;
    Ok(made.keep())
}

/// Empties the folder before a start: the lock file of a dead server may name a process that lives.
pub(super) fn clear(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

/// Takes the folder away after a clean stop.
pub(super) fn remove(data: &Path, dir: &Path) {
    // A folder that stays behind does no harm: the next start uses it again.
    let _ = fs::remove_dir_all(dir);
    let _ = fs::remove_file(data.join("postgres.runtime"));
}

/// `/tmp` before `TMPDIR`, which may be long or closed to the server's user; not `XDG_RUNTIME_DIR`, which goes away when
/// the user logs out and the node stays.
fn parent() -> PathBuf {
    let tmp = PathBuf::from("/tmp");
    if tmp.is_dir() { tmp } else { std::env::temp_dir() }
}
