//! The folder that holds all that a node keeps, and the proof that nobody else has it.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::files::not_through_links;

/// A data folder that is ours alone for as long as this value lives.
///
/// The kernel lets go of the lock when the process ends, however it ends. So whoever holds it knows that the process
/// which had the folder before is dead, and need not wait for a lease to run out.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    is_new: bool,
    // Held, not read: closing it releases the lock. Close-on-exec, so that no child of ours keeps it.
    _lock: File,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error(
        "the data folder {} is in use by {}: stop that process, or give this one a folder of its own with \
         ROOKERY__DATA_DIR", .path.display(), holder(*.pid)
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Who holds the lock, if it has said so already.
        pid: Option<u32>,
    },
    /// Anybody could put files into it.
    #[error(
        "the data folder {} may be written by every user of this machine: give Rookery a folder of its own with \
         ROOKERY__DATA_DIR", .0.display()
    )]
    Public(PathBuf),
    /// It could not be made, opened or written.
    #[error("cannot use the data folder {}", .path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DataDir {
    /// Makes the folder if there is none (mode 0700) and takes its lock.
    ///
    /// Blocks for up to a second when the lock is taken: after `kill -9` a process holds its files until the kernel has
    /// taken it apart, and a restart by script is quicker than that.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] while another process lives on the folder.
    pub fn lock(path: impl AsRef<Path>) -> Result<DataDir, DataDirError> {
        let failed = |source| DataDirError::Io { path: path.as_ref().to_owned(), source };

        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        let path = path.as_ref().canonicalize().map_err(failed)?;
        // A folder that was there before keeps its mode: it may be anything, `/tmp` too.
        if path.metadata().map_err(failed)?.mode() & 0o002 != 0 {
            return Err(DataDirError::Public(path));
        }

        let is_new = !path.join("lock").exists();
        let mut lock = not_through_links()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(failed)?;
        if !locked_within(EXIT_GRACE, &lock).map_err(failed)? {
            let mut pid = String::new();
            let pid = lock.read_to_string(&mut pid).ok().and_then(|_| pid.trim().parse().ok());
            return Err(DataDirError::InUse { path, pid });
        }
        lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(failed)?;
        Ok(DataDir { path, is_new, _lock: lock })
    }

    /// Whether nobody has lived on this folder before: it holds nothing, whatever somebody expects to find.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The folder, absolute and without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// How long a killed process may take to give its files back.
const EXIT_GRACE: Duration = Duration::from_secs(1);

fn locked_within(patience: Duration, file: &File) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Ok(false),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_folder_is_closed_to_others() {
        let parent = tempfile::tempdir().unwrap();
        let data = DataDir::lock(parent.path().join("a/b")).unwrap();
        assert_eq!(data.path().metadata().unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_second_lock_is_refused_and_names_the_holder() {
        let parent = tempfile::tempdir().unwrap();
        let _held = DataDir::lock(parent.path()).unwrap();
        let refusal = DataDir::lock(parent.path()).unwrap_err();
        assert!(refusal.to_string().contains(&format!("process {}", std::process::id())), "{refusal}");
    }

    #[test]
    fn a_folder_is_new_once() {
        let parent = tempfile::tempdir().unwrap();
        assert!(DataDir::lock(parent.path()).unwrap().is_new());
        assert!(!DataDir::lock(parent.path()).unwrap().is_new());
    }

    #[test]
    fn a_folder_is_free_again_when_its_holder_is_gone() {
        let parent = tempfile::tempdir().unwrap();
        drop(DataDir::lock(parent.path()).unwrap());
        DataDir::lock(parent.path()).unwrap();
    }

    #[test]
    fn a_folder_that_everybody_may_write_is_refused_and_left_as_it_is() {
        let parent = tempfile::tempdir().unwrap();
        std::fs::set_permissions(parent.path(), PermissionsExt::from_mode(0o777)).unwrap();
        assert!(matches!(DataDir::lock(parent.path()), Err(DataDirError::Public(_))));
        assert_eq!(parent.path().metadata().unwrap().mode() & 0o777, 0o777);
    }
}
