//! What of an index survives the machine, not only the process (ADR 0013).
//!
//! A commit makes writes findable and syncs nothing: the page cache outlives us, whatever ends the process. A *checkpoint*
//! takes a commit to the disk: hard links to its files, which never change, and its `meta.json`, in a folder of their own, so
//! that tantivy deletes what it likes. After a start of the machine an index begins again at its last checkpoint, because of
//! what came later nobody knows what has reached the disk.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tantivy::{
    Index, TantivyError,
    directory::{Directory, META_LOCK},
};

use super::folder::Folder;

/// The folder of the checkpoint in the folder of the index. tantivy leaves alone what has a dot in front.
const CHECKPOINT: &str = ".checkpoint";
/// Which boot of the machine has written what is in the folder.
pub(super) const BOOT: &str = ".boot";
/// How often a commit is tried to be taken hold of: others may come in between.
const SPILLS_MAX: usize = 5;
/// tantivy's list of the files of a commit.
pub(super) const META: &str = "meta.json";
/// The next one, until it is complete.
const NEXT_META: &str = "meta.json.next";

/// Names the boot of this machine, if it has one: it changes with everything that empties the page cache.
pub(super) fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Why there is no new checkpoint; the last one stays.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The index cannot say what belongs to it.
    #[error("cannot read what a checkpoint consists of")]
    Read(#[source] TantivyError),
    /// It cannot be written, as on a full disk.
    #[error("cannot write a checkpoint")]
    Write(#[from] io::Error),
    /// The disk refused what an index consists of, and the kernel may have forgotten it: the index is to be built anew.
    #[error("cannot sync {} of an index", .0.display())]
    Lost(PathBuf, #[source] io::Error),
}

/// Sees to it that what is in the folder of an index can be trusted: written during this boot, or else the last checkpoint,
/// or nothing. For whoever has the writer's lock.
pub(super) fn settle(dir: &Path, boot: Option<&str>) -> io::Result<()> {
    let written = fs::read_to_string(dir.join(BOOT)).ok();
    if boot.is_some() && written.as_deref() == boot {
        return Ok(());
    }
    let clear = || super::partition::empty(dir, &[OsString::from(CHECKPOINT)]);
    clear()?;
    if let Err(error) = restore(dir) {
        tracing::warn!(index.dir = %dir.display(), %error, "an index cannot begin at its checkpoint, it begins anew");
        clear()?;
    }
    // Last: who dies before begins again. Not synced, for after another boot it says nothing either way.
    let marked = boot.map_or(Ok(()), |boot| fs::write(dir.join(BOOT), boot));
    if let Err(error) = marked {
        tracing::warn!(index.dir = %dir.display(), %error, "after the next start of this node an index begins at its checkpoint");
    }
    Ok(())
}

/// Puts the files of the last checkpoint into the empty folder of the index, if there is one.
fn restore(dir: &Path) -> io::Result<()> {
    let checkpoint = dir.join(CHECKPOINT);
    if !checkpoint.join(META).try_exists()? {
        return Ok(());
    }
    for entry in fs::read_dir(&checkpoint)? {
        let name = entry?.file_name();
        // What does not belong to it, from one that was cut short, the next writer clears away.
        if name != META && name != NEXT_META {
            fs::hard_link(checkpoint.join(&name), dir.join(&name))?;
        }
    }
    // The list makes an index of them. It is replaced, never written to.
    fs::hard_link(checkpoint.join(META), dir.join(META))
}

/// The checkpoints of one index, which goes on while one is taken.
#[derive(Clone)]
pub struct Checkpoints {
    index: Index,
    folder: Folder,
    dir: PathBuf,
    last: Arc<Mutex<Last>>,
}

/// What this process knows to be on the disk.
#[derive(Debug, Default)]
struct Last {
    meta: Vec<u8>,
    files: HashSet<PathBuf>,
}

/// A commit that is about to be on the disk.
pub(super) struct Checkpoint {
    of: Checkpoints,
    meta: Vec<u8>,
    files: HashSet<PathBuf>,
}

impl Checkpoints {
    /// Those of the index in a folder.
    pub(super) fn of(index: Index, folder: Folder, dir: &Path) -> Self {
        Self { index, folder, dir: dir.join(CHECKPOINT), last: Arc::default() }
    }

    /// The same of the same index, after it was opened again.
    pub(super) fn of_reopened(&self, index: Index, folder: Folder) -> Self {
        Self { index, folder, dir: self.dir.clone(), last: Arc::clone(&self.last) }
    }

    /// Brings the last commit to the disk, unless it is there, and waits for that. One at a time.
    ///
    /// # Errors
    /// [`CheckpointError::Lost`], after which the index is to be built anew; others leave the last checkpoint as it is.
    pub fn take(&self) -> Result<(), CheckpointError> {
        self.begin()?.map_or(Ok(()), Checkpoint::finish)
    }

    /// Takes hold of the files of the last commit; none if they are on the disk already.
    pub(super) fn begin(&self) -> Result<Option<Checkpoint>, CheckpointError> {
        // Nothing that is listed while this lock is ours is deleted meanwhile.
        let _lock = self.index.directory().acquire_lock(&META_LOCK).map_err(|error| CheckpointError::Read(error.into()))?;
        let dir = self.dir.parent().expect("it lies in the folder of the index");
        fs::create_dir_all(&self.dir)?;
        for _ in 0..SPILLS_MAX {
            let metas = self.index.load_metas().map_err(CheckpointError::Read)?;
            let meta = serde_json::to_vec(&metas).map_err(io::Error::from)?;
            if self.last().meta == meta {
                return Ok(None);
            }
            self.folder.spill()?;
            // A segment without deletions has no file for them.
            let exists = |file: &PathBuf| self.folder.has(file);
            let files: HashSet<PathBuf> = metas.list_segment_files().into_iter().filter(exists).collect();
            match files.iter().try_for_each(|file| self.link(dir, file)) {
                // Another commit has come in between, and is in memory.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                linked => return linked.map_err(Into::into).map(|()| Some(Checkpoint { of: self.clone(), meta, files })),
            }
        }
        Err(CheckpointError::Write(io::Error::other("an index does not hold still")))
    }

    /// Links a file of the index.
    fn link(&self, dir: &Path, file: &Path) -> io::Result<()> {
        let (from, to) = (dir.join(file), self.dir.join(file));
        match fs::metadata(&to) {
            Ok(taken) if taken.ino() == fs::metadata(&from)?.ino() => return Ok(()),
            // Stamps are used again after a crash, and names with them; this one is from a checkpoint that was cut short.
            Ok(_) => {
                self.last().files.remove(file);
                fs::remove_file(&to)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::hard_link(from, to)
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Last> {
        self.last.lock().expect("no panic under this lock")
    }
}

impl Checkpoint {
    /// Makes it the one from which the index begins again.
    fn finish(self) -> Result<(), CheckpointError> {
        let dir = &self.of.dir;
        let synced = std::mem::take(&mut self.of.last().files);
        for file in self.files.difference(&synced) {
            sync(&File::open(dir.join(file))?, &dir.join(file)).map_err(|error| CheckpointError::Lost(file.clone(), error))?;
        }
        sync_folder(dir)?;
        let next = dir.join(NEXT_META);
        fs::write(&next, &self.meta)?;
        sync(&File::open(&next)?, &next)?;
        fs::rename(&next, dir.join(META))?;
        sync_folder(dir)?;
        // For the folder itself, the first time.
        sync_folder(dir.parent().expect("it lies in the folder of the index"))?;
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name();
            if name != META && !self.files.contains(Path::new(&name)) {
                fs::remove_file(dir.join(name))?;
            }
        }
        *self.of.last() = Last { meta: self.meta, files: self.files };
        Ok(())
    }
}

#[cfg_attr(not(test), expect(unused_variables, reason = "tests want to know what was synced"))]
fn sync(file: &File, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    #[cfg(test)]
    super::tests::outage::synced(path);
    Ok(())
}

fn sync_folder(path: &Path) -> io::Result<()> {
    sync(&File::open(path)?, path)
}
