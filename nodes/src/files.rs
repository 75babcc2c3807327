//! Files that others may have a hand in: a folder may belong to another user than the one whom this process runs as.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Writes a file that takes the place of whatever has its name, whole or not at all; readable by its owner alone.
///
/// It is made anew under a name that nobody can guess: a symbolic link that lies in the folder is replaced and never followed.
/// `finish` is given the file before it has its name: to sync it, or to give it to another user.
///
/// # Errors
/// What the operating system says; then the folder is as it was.
pub(crate) fn replace(path: &Path, contents: &[u8], finish: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let mut prefix = name.to_owned();
    prefix.push(".");
    let mut new = tempfile::Builder::new().prefix(&prefix).permissions(Permissions::from_mode(0o600)).tempfile_in(folder)?;
    new.write_all(contents)?;
    finish(new.as_file())?;
    new.persist(path).map(drop).map_err(|refused| refused.error)
}

/// Options for opening a file by its own name and not by that of a symbolic link.
pub(crate) fn not_through_links() -> OpenOptions {
    let mut options = File::options();
    options.custom_flags(libc::O_NOFOLLOW);
    options
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_link_that_lies_in_the_way_is_replaced_and_what_it_leads_to_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, file) = (folder.path().join("victim"), folder.path().join("file"));
        fs::write(&victim, "precious").unwrap();
        for name in ["file", "file.new"] {
            symlink(&victim, folder.path().join(name)).unwrap();
        }
        replace(&file, b"ours", File::sync_all).unwrap();
        assert!(not_through_links().append(true).open(folder.path().join("file.new")).is_err());
        assert_eq!(
            (fs::read_to_string(&victim).unwrap().as_str(), fs::read_to_string(&file).unwrap().as_str()),
            ("precious", "ours")
        );
        assert_eq!(fs::symlink_metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_cannot_be_replaced_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("file")).unwrap();
        assert!(replace(&folder.path().join("file"), b"ours", |_| Ok(())).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
