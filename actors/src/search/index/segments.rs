//! The files of a commit on their way to another replica, which then need not make them again (ADR 0014).
//!
//! A file of an index never changes, and that of a segment bears a name that nobody else gives. Only the files that say what
//! is deleted are named after a stamp, which is used again after a crash and by another who goes on from the same commit. So
//! a file is known by its end too: there tantivy keeps a checksum of all that is before.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tantivy::{
    HasLen, Index, TantivyError,
    directory::{Directory, FileSlice, META_LOCK},
};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    checkpoint::META,
    folder::{Folder, SMALL_BYTES_MAX},
};

/// Before the name of a file that is not here as a whole yet.
const INCOMPLETE: &str = ".incomplete.";
/// What of the end of a file is compared: tantivy's footer is a little shorter.
const END_BYTES: usize = 128;

/// What a commit consists of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Commit {
    format: u32,
    /// tantivy's list.
    pub(super) meta: String,
    pub(super) files: Vec<FileMark>,
}

/// A file, as far as it takes to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileMark {
    pub(super) name: String,
    length: u64,
    /// A hash of its end.
    end: u64,
}

impl FileMark {
    fn of(name: String, file: &FileSlice) -> io::Result<Self> {
        let end = file.read_bytes_slice(file.len().saturating_sub(END_BYTES)..file.len())?;
        Ok(Self { name, length: file.len() as u64, end: xxh3_64(&end) })
    }

    /// Where it grows.
    fn incomplete(&self, dir: &Path) -> PathBuf {
        let mut name = OsString::from(INCOMPLETE);
        name.push(&self.name);
        dir.join(name)
    }

    /// Whether a name is one that tantivy gives, and leads nowhere else.
    fn is_plain(&self) -> bool {
        !self.name.starts_with('.') && self.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
    }
}

/// Where the segments of an index can be had.
#[derive(Clone)]
pub struct Segments {
    pub(super) index: Index,
    pub(super) folder: Folder,
    pub(super) format: u32,
}

/// A commit whose files stay readable, whatever becomes of the index: they are open.
pub struct Snapshot {
    commit: Commit,
    files: Vec<FileSlice>,
}

impl Segments {
    /// The last commit.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, TantivyError> {
        // Nothing that is listed while this lock is ours is deleted meanwhile.
        let _lock = self.index.directory().acquire_lock(&META_LOCK)?;
        let metas = self.index.load_metas()?;
        let (mut marks, mut files) = (Vec::new(), Vec::new());
        for path in metas.list_segment_files() {
            // A segment without deletions has no file for them.
            if !self.folder.exists(&path)? {
                continue;
            }
            let file = self.folder.open_read(&path)?;
            let name = path.to_str().expect("tantivy's names are ASCII").to_owned();
            marks.push(FileMark::of(name, &file)?);
            files.push(file);
        }
        let meta = serde_json::to_string(&metas)?;
        Ok(Snapshot { commit: Commit { format: self.format, meta, files: marks }, files })
    }
}

impl Snapshot {
    /// What it consists of.
    pub fn commit(&self) -> &Commit {
        &self.commit
    }

    /// Bytes of a file of its commit from an offset on, so many at most; none if it has no such place.
    ///
    /// # Errors
    /// When the disk does not read.
    pub fn piece(&self, file: usize, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        let Some(file) = self.files.get(file) else {
            return Ok(Vec::new());
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(file.len());
        Ok(file.read_bytes_slice(from..file.len().min(from.saturating_add(bytes_max)))?.to_vec())
    }
}

impl Commit {
    /// Whether it is of this format, and none of its names is a trap.
    pub fn is_of(&self, format: u32) -> bool {
        self.format == format && self.files.iter().all(FileMark::is_plain)
    }

    /// Which of its files, by number, are not in a folder as they should be.
    pub(super) fn missing(&self, folder: &Folder) -> Result<Vec<usize>, TantivyError> {
        let mut missing = Vec::new();
        for (number, mark) in self.files.iter().enumerate() {
            let path = Path::new(&mark.name);
            if !folder.exists(path)? || FileMark::of(mark.name.clone(), &folder.open_read(path)?)? != *mark {
                missing.push(number);
            }
        }
        Ok(missing)
    }

    /// The length of a file.
    pub fn length(&self, file: usize) -> u64 {
        self.files.get(file).map_or(0, |file| file.length)
    }

    /// Puts files that have come where they belong; whether another of the same name was there.
    pub(super) fn put_in_place(&self, folder: &Folder, incoming: Incoming, files: &[usize]) -> io::Result<bool> {
        let marks = || files.iter().map(|file| (*file, &self.files[*file]));
        let mut small = incoming.small;
        for (file, mark) in marks() {
            let come = match small.get(&file) {
                Some(content) => content.len() as u64,
                None => fs::metadata(mark.incomplete(folder.path()))?.len(),
            };
            if come != mark.length {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a file of a segment came in part"));
            }
        }
        let taken: Vec<&Path> = marks().map(|(_, mark)| Path::new(&mark.name)).filter(|name| folder.has(name)).collect();
        if !taken.is_empty() {
            // Who dies in between has none of the two commits, and must not take it for one.
            folder.atomic_write(Path::new(META), b"")?;
            taken.iter().try_for_each(|name| folder.delete(name)).map_err(io::Error::other)?;
        }
        for (file, mark) in marks() {
            match small.remove(&file) {
                Some(content) => folder.put(Path::new(&mark.name), content)?,
                None => fs::rename(mark.incomplete(folder.path()), folder.path().join(&mark.name))?,
            }
        }
        Ok(!taken.is_empty())
    }

    /// Deletes what does not belong to it, as tantivy's writer does where there is one.
    pub(super) fn clear(&self, index: &Index, folder: &Folder) -> Result<(), TantivyError> {
        let _lock = index.directory().acquire_lock(&META_LOCK)?;
        for name in folder.names()? {
            if name != META && !self.files.iter().any(|file| file.name == name) {
                folder.delete(Path::new(&name)).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }
}

/// Files of a commit that are on their way.
#[derive(Default)]
pub(super) struct Incoming {
    /// Those that fit into memory, by number; others grow in the folder.
    small: HashMap<usize, Vec<u8>>,
}

impl Incoming {
    /// Adds to a file what comes next of it.
    pub(super) fn add(&mut self, commit: &Commit, folder: &Folder, file: usize, bytes: &[u8]) -> io::Result<()> {
        let mark = &commit.files[file];
        if mark.length <= SMALL_BYTES_MAX as u64 {
            self.small.entry(file).or_default().extend_from_slice(bytes);
            return Ok(());
        }
        OpenOptions::new().create(true).append(true).open(mark.incomplete(folder.path()))?.write_all(bytes)
    }
}

/// Deletes what came in part and nobody goes on with.
pub(super) fn forget_incomplete(folder: &Folder) -> io::Result<()> {
    for entry in fs::read_dir(folder.path())? {
        let name = entry?.file_name();
        if name.to_string_lossy().starts_with(INCOMPLETE) {
            fs::remove_file(folder.path().join(name))?;
        }
    }
    Ok(())
}
