//! The folder of an index: tantivy's own directory, but for two things.
//!
//! It syncs nothing, and keeps small files in memory, with a [log](super::recent) for when the process dies. What a commit
//! writes is for readers; what is to outlive the machine is the business of [`checkpoint`](super::checkpoint).
//!
//! And the list of files is the folder itself. tantivy writes one anew before it begins any file: eight times with every
//! segment. It exists so that files are found that a crash has left behind, and a look into the folder finds them too.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use tantivy::directory::error::{DeleteError, LockError, OpenDirectoryError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    AntiCallToken, Directory, DirectoryLock, FileHandle, FileSlice, Lock, MmapDirectory, TerminatingWrite, WatchCallback,
    WatchHandle, WritePtr,
};

use super::{checkpoint::META, recent::Recent};

/// Files up to this many bytes stay in memory for a while.
pub(super) const SMALL_BYTES_MAX: usize = 1 << 20;
/// tantivy's name for the list.
const LIST: &str = ".managed.json";

/// A folder of files that only grows and shrinks by whole files.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
    files: MmapDirectory,
    recent: Arc<Mutex<Recent>>,
}

impl Folder {
    /// The folder at a path; it has to exist. Nothing is recent there before [`replay`](Self::replay).
    pub(super) fn open(path: &Path) -> Result<Self, OpenDirectoryError> {
        Ok(Self { path: path.to_owned(), files: MmapDirectory::open(path)?, recent: Arc::default() })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Brings back what a process that died had in memory. For whoever has the writer's lock.
    pub(super) fn replay(&self) -> io::Result<()> {
        *self.recent() = Recent::replay(&self.path)?;
        Ok(())
    }

    /// The same folder, without what it remembers of files that were mapped.
    pub(super) fn reopen(&self) -> Result<Self, OpenDirectoryError> {
        Ok(Self { path: self.path.clone(), files: MmapDirectory::open(&self.path)?, recent: Arc::clone(&self.recent) })
    }

    /// Puts what is in memory on the disk under its name. Syncs nothing.
    pub(super) fn spill(&self) -> io::Result<()> {
        self.recent().spill(&self.path, Path::new(META))
    }

    /// Every file that may be in the way some day: all but those with a dot in front, such as locks.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string().ok().filter(|name| !name.starts_with('.')));
        }
        names.extend(self.recent().names().filter_map(|name| Some(name.to_str()?.to_owned())));
        Ok(names.into_iter().collect())
    }

    /// Puts a file where it belongs, in the place of one that may be there.
    pub(super) fn put(&self, path: &Path, content: Vec<u8>) -> io::Result<()> {
        self.recent().put(&self.path, path, content)
    }

    /// Whether there is a file of that name, as far as can be said.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.exists(path).unwrap_or(true)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().expect("no panic under this lock")
    }

    fn list(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(&self.names()?)?)
    }
}

impl Directory for Folder {
    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        if path == Path::new(LIST) {
            return self.list().map_err(|error| OpenReadError::wrap_io_error(error, path.to_owned()));
        }
        if let Some(content) = self.recent().get(path) {
            return Ok(content.to_vec());
        }
        self.files.atomic_read(path)
    }

    fn atomic_write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        if path == Path::new(LIST) {
            return Ok(());
        }
        self.put(path, data.to_vec())?;
        let long = self.recent().is_long();
        if let Some(Err(error)) = long.then(|| self.spill()) {
            // What was written is; the log grows on.
            tracing::warn!(index.dir = %self.path.display(), %error, "an index keeps more than it should in memory");
        }
        Ok(())
    }

    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        match self.recent().get(path) {
            Some(content) => Ok(Arc::new(content)),
            None => self.files.get_file_handle(path),
        }
    }

    fn open_read(&self, path: &Path) -> Result<FileSlice, OpenReadError> {
        Ok(FileSlice::new(self.get_file_handle(path)?))
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        if self.has(path) {
            return Err(OpenWriteError::FileAlreadyExists(path.to_owned()));
        }
        Ok(BufWriter::new(Box::new(Growing { folder: self.clone(), path: path.to_owned(), small: Vec::new(), large: None })))
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        let failed = |error: io::Error| DeleteError::IoError { io_error: Arc::new(error), filepath: path.to_owned() };
        if self.recent().remove(&self.path, path).map_err(failed)? {
            return Ok(());
        }
        self.files.delete(path)
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        if self.recent().get(path).is_some() {
            return Ok(true);
        }
        self.files.exists(path)
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    fn acquire_lock(&self, lock: &Lock) -> Result<DirectoryLock, LockError> {
        self.files.acquire_lock(lock)
    }

    fn watch(&self, callback: WatchCallback) -> tantivy::Result<WatchHandle> {
        self.files.watch(callback)
    }
}

/// A file that is being written: in memory as long as it is small.
struct Growing {
    folder: Folder,
    path: PathBuf,
    small: Vec<u8>,
    large: Option<File>,
}

impl Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.large.is_none() && self.small.len() + bytes.len() > SMALL_BYTES_MAX {
            let mut large = File::create_new(self.folder.path.join(&self.path))?;
            large.write_all(&std::mem::take(&mut self.small))?;
            self.large = Some(large);
        }
        match &mut self.large {
            Some(large) => large.write(bytes),
            None => {
                self.small.extend_from_slice(bytes);
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TerminatingWrite for Growing {
    fn terminate_ref(&mut self, _: AntiCallToken) -> io::Result<()> {
        match self.large {
            Some(_) => Ok(()),
            None => self.folder.put(&self.path, std::mem::take(&mut self.small)),
        }
    }
}
