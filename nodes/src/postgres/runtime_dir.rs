//! The folder of the server's socket.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::server_user::ServerUser;
use crate::files;

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
        if open(&noted).is_ok_and(|dir| is_the_users(&dir, user)) {
            return Ok(noted);
        }
    }

    let made = tempfile::Builder::new().prefix("rookery-").permissions(fs::Permissions::from_mode(0o700)).tempdir_in(parent())?;
    if made.path().join(LONGEST_NAME).as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(io::Error::other(format!("{} is too long a path for a socket", made.path().display())));
    }
    std::os::unix::fs::chown(made.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    files::replace(&note, made.path().as_os_str().as_encoded_bytes(), |_| Ok(()))?;
    Ok(made.keep())
}

/// Empties the folder before a start, and makes it again if it is gone: the lock file of a dead server may name a process that
/// lives, and who tidies `/tmp` up knows nothing of us.
///
/// # Errors
/// When something else has its name: the server's user owns the folder, and could put a link to anywhere in its place, where
/// root would then remove all files.
pub(super) fn prepare(dir: &Path, user: &ServerUser) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => user.own_file(&open(dir)?)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let opened = open(dir)?;
    if !is_the_users(&opened, user) {
        return Err(io::Error::other("it is not the folder of the server's user alone any more: remove it"));
    }
    // By what was looked at, and not by its name, which may be another folder's from one moment to the next.
    for entry in fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd()))? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

/// Opens a folder, and nothing that a link leads to.
fn open(dir: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(dir)
}

fn is_the_users(dir: &File, user: &ServerUser) -> bool {
    dir.metadata().is_ok_and(|dir| dir.mode() & 0o777 == 0o700 && dir.uid() == user.uid.as_raw())
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
