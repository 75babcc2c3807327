//! Where the admin port is: a socket in the data folder, or, when that path is too long for one, in a short folder.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

use nix::sys::stat::{Mode, fchmod};
use tokio::net::{UnixListener, UnixSocket};

use crate::files;

/// The longest path that fits into `sockaddr_un` with its final NUL.
const PATH_BYTES_MAX: usize = 107;
const NAME: &str = "admin.sock";
/// Holds the path of the socket when it is not in the data folder.
const NOTE: &str = "admin.path";
/// Connections that wait to be accepted.
const BACKLOG: u32 = 64;

/// Listens in a data folder, whose lock the caller holds: a socket that is there already is a dead node's.
///
/// # Errors
/// What the operating system says.
pub fn listen(data: &Path) -> io::Result<(UnixListener, PathBuf)> {
    let path = place(data)?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixSocket::new_stream()?;
    // Before it has a name: whoever may not open it never could.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&path)?;
    let listener = socket.listen(BACKLOG)?;
    Ok((listener, path))
}

/// The socket of the node that runs, or ran last, with this data folder.
pub fn find(data: &Path) -> PathBuf {
    match fs::read(data.join(NOTE)) {
        Ok(noted) => PathBuf::from(std::ffi::OsStr::from_bytes(&noted)),
        Err(_) => data.join(NAME),
    }
}

/// Takes the socket away after a clean stop.
pub fn remove(data: &Path, socket: &Path) {
    let _ = fs::remove_file(socket);
    if fs::remove_file(data.join(NOTE)).is_ok()
        && let Some(folder) = socket.parent()
    {
        let _ = fs::remove_dir(folder);
    }
}

fn place(data: &Path) -> io::Result<PathBuf> {
    let note = data.join(NOTE);
    let here = data.join(NAME);
    if here.as_os_str().len() <= PATH_BYTES_MAX {
        // A note of a time when the folder had a longer name would mislead.
        let _ = fs::remove_file(note);
        return Ok(here);
    }
    let noted = find(data);
    if noted != here && noted.parent().is_some_and(is_private) {
        return Ok(noted);
    }
    let folder = tempfile::Builder::new().prefix("rookery-").permissions(fs::Permissions::from_mode(0o700)).tempdir_in("/tmp")?;
    let path = folder.path().join(NAME);
    files::replace(&note, path.as_os_str().as_bytes(), |_| Ok(()))?;
    let _ = folder.keep();
    Ok(path)
}

/// A folder of ours that nobody else can write to: a name in `/tmp` may have become anybody's.
fn is_private(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(folder)
        .is_ok_and(|folder| folder.is_dir() && folder.mode() & 0o777 == 0o700 && folder.uid() == nix::unistd::geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_listens_where_a_client_looks_and_nobody_else_may_connect() {
        let data = tempfile::tempdir().unwrap();
        let (_listener, path) = listen(data.path()).unwrap();
        assert_eq!(path, find(data.path()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn what_a_killed_node_left_is_replaced() {
        let data = tempfile::tempdir().unwrap();
        drop(listen(data.path()).unwrap());
        assert!(listen(data.path()).is_ok());
    }

    #[tokio::test]
    async fn a_long_data_folder_gets_its_socket_elsewhere_and_the_same_one_again() {
        let base = tempfile::tempdir().unwrap();
        let data = base.path().join("x".repeat(120));
        fs::create_dir(&data).unwrap();
        let (_first, path) = listen(&data).unwrap();
        assert_eq!(path, find(&data));
        let (_second, again) = listen(&data).unwrap();
        assert_eq!(path, again);
        remove(&data, &path);
        assert!(!path.parent().unwrap().exists());
    }
}
