//! The small files of an index that are not on the disk under their names yet.
//!
//! A commit makes half a dozen small files, and the next merge deletes them again, seconds later. For a file system that is the
//! most expensive thing there is: ext4 looks at every inode that was freed in the last minutes before it gives out one. So
//! they stay in memory, and a single log beside the index, to which they are appended, brings them back after the process died.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use tantivy::directory::OwnedBytes;
use xxhash_rust::xxh3::Xxh3;

/// The name of the log.
const LOG: &str = ".recent";
/// Bytes of a log from which on its files are put on the disk under their names.
const LOG_BYTES_MAX: u64 = 32 << 20;
/// Of a record: lengths of name and content, and their hash.
const HEADER_BYTES: usize = 16;

/// Files by name.
#[derive(Debug, Default)]
pub(super) struct Recent {
    files: HashMap<PathBuf, OwnedBytes>,
    log_bytes: u64,
    /// The log may end with a part of a record.
    torn: bool,
    /// Some of the files may lie in the folder as well, whole or not.
    spilled_in_part: bool,
}

impl Recent {
    /// What a process that died has left in a folder; what it was in the middle of writing is dropped.
    pub(super) fn replay(dir: &Path) -> io::Result<Self> {
        let mut log = match fs::read(dir.join(LOG)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let (mut files, mut whole) = (HashMap::new(), 0);
        while let Some((name, content, end)) = record(&log, whole) {
            files.insert(name, OwnedBytes::new(content));
            whole = end;
        }
        log.truncate(whole);
        OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(LOG))?.set_len(whole as u64)?;
        let spilled_in_part = !files.is_empty();
        Ok(Self { files, log_bytes: whole as u64, torn: false, spilled_in_part })
    }

    pub(super) fn get(&self, name: &Path) -> Option<OwnedBytes> {
        self.files.get(name).cloned()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.keys()
    }

    /// Adds or replaces a file.
    pub(super) fn put(&mut self, dir: &Path, name: &Path, content: Vec<u8>) -> io::Result<()> {
        if self.torn {
            // Nothing would be read that comes behind.
            OpenOptions::new().write(true).open(dir.join(LOG))?.set_len(self.log_bytes)?;
        }
        self.torn = true;
        self.append(dir, name, &content)?;
        self.torn = false;
        self.files.insert(name.to_owned(), OwnedBytes::new(content));
        Ok(())
    }

    fn append(&mut self, dir: &Path, name: &Path, content: &[u8]) -> io::Result<()> {
        let bytes = name.as_os_str().as_encoded_bytes();
        let mut head = Vec::with_capacity(HEADER_BYTES + bytes.len());
        head.extend((bytes.len() as u32).to_le_bytes());
        head.extend((content.len() as u32).to_le_bytes());
        head.extend(hash(bytes, content).to_le_bytes());
        head.extend(bytes);
        // By its name each time: a folder that is gone is noticed.
        let mut log = OpenOptions::new().append(true).open(dir.join(LOG))?;
        log.write_all(&head)?;
        log.write_all(content)?;
        self.log_bytes += (head.len() + content.len()) as u64;
        Ok(())
    }

    /// Forgets a file; whether it was here.
    pub(super) fn remove(&mut self, dir: &Path, name: &Path) -> io::Result<bool> {
        let was_here = self.files.remove(name).is_some();
        if was_here && self.spilled_in_part {
            remove_if_there(&dir.join(name))?;
        }
        Ok(was_here)
    }

    pub(super) fn is_long(&self) -> bool {
        self.log_bytes > LOG_BYTES_MAX
    }

    /// Puts everything on the disk under its name, `last` at last, and begins a new log. Syncs nothing.
    pub(super) fn spill(&mut self, dir: &Path, last: &Path) -> io::Result<()> {
        let again = std::mem::replace(&mut self.spilled_in_part, true);
        for (name, content) in self.files.iter().filter(|(name, _)| *name != last) {
            if again {
                // It is not written to: it may be linked.
                remove_if_there(&dir.join(name))?;
            }
            File::create_new(dir.join(name))?.write_all(content)?;
        }
        if let Some(content) = self.files.get(last) {
            let next = dir.join(".next");
            fs::write(&next, content)?;
            fs::rename(next, dir.join(last))?;
        }
        OpenOptions::new().write(true).open(dir.join(LOG))?.set_len(0)?;
        *self = Self::default();
        Ok(())
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The record at a place of a log, and where it ends; none if there is no whole one.
fn record(log: &[u8], at: usize) -> Option<(PathBuf, Vec<u8>, usize)> {
    let header = log.get(at..at + HEADER_BYTES)?;
    let number = |from: usize| u32::from_le_bytes(header[from..from + 4].try_into().expect("four bytes")) as usize;
    let name_end = at + HEADER_BYTES + number(0);
    let end = name_end + number(4);
    let (name, content) = (log.get(at + HEADER_BYTES..name_end)?, log.get(name_end..end)?);
    let whole = header[8..] == hash(name, content).to_le_bytes();
    whole.then(|| Some((PathBuf::from(std::str::from_utf8(name).ok()?), content.to_vec(), end)))?
}

fn hash(name: &[u8], content: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(name);
    hash.update(content);
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(recent: &mut Recent, dir: &Path, name: &str, content: &str) {
        recent.put(dir, Path::new(name), content.as_bytes().to_vec()).unwrap();
    }

    fn content(recent: &Recent, name: &str) -> Option<Vec<u8>> {
        recent.get(Path::new(name)).map(|bytes| bytes.to_vec())
    }

    #[test]
    fn what_was_put_is_there_again_after_the_process_died() {
        let dir = tempfile::tempdir().unwrap();
        let mut recent = Recent::replay(dir.path()).unwrap();
        put(&mut recent, dir.path(), "a", "first");
        put(&mut recent, dir.path(), "b", "");
        put(&mut recent, dir.path(), "a", "second");
        let recent = Recent::replay(dir.path()).unwrap();
        assert_eq!(content(&recent, "a").unwrap(), b"second");
        assert_eq!(content(&recent, "b").unwrap(), b"");
    }

    #[test]
    fn a_record_that_was_cut_short_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut recent = Recent::replay(dir.path()).unwrap();
        put(&mut recent, dir.path(), "a", "first");
        let whole = recent.log_bytes;
        put(&mut recent, dir.path(), "b", "second");
        for cut in whole..recent.log_bytes {
            OpenOptions::new().write(true).open(dir.path().join(LOG)).unwrap().set_len(cut).unwrap();
            let mut recent = Recent::replay(dir.path()).unwrap();
            assert_eq!((content(&recent, "b"), recent.log_bytes), (None, whole));
            put(&mut recent, dir.path(), "b", "second");
            assert_eq!(content(&Recent::replay(dir.path()).unwrap(), "b").unwrap(), b"second");
        }
    }

    #[test]
    fn what_is_spilled_lies_in_the_folder_and_no_longer_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut recent = Recent::replay(dir.path()).unwrap();
        put(&mut recent, dir.path(), "a", "content");
        put(&mut recent, dir.path(), "list", "a");
        recent.spill(dir.path(), Path::new("list")).unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"content");
        assert_eq!(fs::read(dir.path().join("list")).unwrap(), b"a");
        assert_eq!(Recent::replay(dir.path()).unwrap().names().count(), 0);
    }
}
