//! One partition of the index on disk: the writer, what it has durably applied, and how it comes back from trouble.
//!
//! Documents and the position up to which they were applied are written together, in one commit: after any crash, the
//! position that is read back is exactly what the index contains. After one of the machine that is the last
//! [checkpoint](Checkpoints). So nothing here is precious. What cannot be read is thrown away and built again
//! from the `documents` table.

mod copying;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use serde::{Deserialize, Serialize};
use tantivy::directory::error::LockError;
use tantivy::directory::{Directory, DirectoryLock, INDEX_WRITER_LOCK, META_LOCK};
use tantivy::index::SegmentId;
use tantivy::indexer::IndexWriterOptions;
use tantivy::{Index, IndexReader, IndexSettings, IndexWriter, ReloadPolicy, SegmentReader, TantivyError};
use tracing::warn;
use uuid::Uuid;

use super::checkpoint::{self, Checkpoints};
use super::document::{Document, Kind};
use super::folder::Folder;
use super::hits::{Hits, Search, Suggestion};
use super::merging::{Merging, deleted_from, surplus};
use super::reader::{PartitionReader, SearchError};
use super::schema::{self, Layout, label};

/// The longest pause between two attempts to get the writer's lock.
const LOCK_PAUSE_MAX: Duration = Duration::from_millis(200);

/// Documents are compressed together in blocks of this size. A page of hits unpacks as many blocks as it has hits.
const STORE_BLOCK_BYTES: usize = 4_096;

/// How a partition uses the machine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the writer gathers in memory before it writes a segment; tantivy takes no less than 15,000,000.
    pub writer_memory_bytes: usize,
    /// How long [`Partition::open`] waits for a former owner of the folder to let go of it.
    pub lock_wait: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { writer_memory_bytes: 20_000_000, lock_wait: Duration::from_secs(10) }
    }
}

/// How far an index has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The last seq of the `documents` table that is contained.
    pub applied_seq: u64,
    /// By which history of the log that is: the batch of its last epoch record up to there. None: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<Uuid>,
    /// The last seq of each source shard (such as `posts/17`) whose effect is contained.
    pub sources: BTreeMap<String, u64>,
}

/// Why a partition cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    /// Someone else writes to this folder and did not stop in time.
    #[error("the index in {} is locked by another writer", dir.display())]
    Locked {
        /// The folder of the index.
        dir: PathBuf,
    },
    /// The folder cannot be made, read or emptied.
    #[error("cannot use the index folder {}", dir.display())]
    Folder {
        /// The folder of the index.
        dir: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Writing failed. What was applied since the last commit is lost; see [`Partition::recover`].
    #[error("cannot write the index")]
    Write(#[source] TantivyError),
    /// A write failed before, and nobody has called [`Partition::recover`] since.
    #[error("the index failed before and has not been recovered")]
    Failed,
}

/// One partition, open for writing. There is one of it for each folder, on all of the machine.
///
/// All methods block; it belongs on a thread of its own. Searching needs no more than its [`reader`](Partition::reader).
pub struct Partition {
    dir: PathBuf,
    settings: Settings,
    folder: Folder,
    index: Index,
    reader: PartitionReader,
    checkpoints: Checkpoints,
    /// None after a failure, and while its segments come from another.
    writer: Option<IndexWriter>,
    /// While they do.
    copying: Option<copying::Copying>,
    position: Position,
    /// The versions applied since the last commit, which the reader does not see yet.
    uncommitted: HashMap<(Kind, Uuid), u64>,
    /// No committed document has an id with a greater first half, which is when it was minted.
    youngest: u64,
    /// The greatest first half of the ids that were applied since the last commit.
    youngest_uncommitted: u64,
    /// Whether the committed documents are about to be replaced as a whole.
    resetting: bool,
    /// Up to this seq each document then comes once, and is not noted in `uncommitted`.
    once_until: u64,
}

impl Partition {
    /// Opens the index in a folder, or makes one.
    ///
    /// Where the machine has started since, it is the index of the last [checkpoint](Checkpoints). A folder of another
    /// format, or one that cannot be read, is emptied with a warning: [`position`](Self::position) is then 0, and everything
    /// is applied anew. Damage inside a segment that opens may surface only later, as a failed search.
    ///
    /// # Errors
    /// [`PartitionError::Locked`] if a former owner does not let go in time, [`PartitionError::Folder`] if the folder
    /// itself is unusable.
    pub fn open(dir: &Path, settings: Settings) -> Result<Partition, PartitionError> {
        Self::open_as(dir, settings, &schema::present())
    }

    /// The same with the layout of an earlier release, if there is such an index in the folder: it is followed and searched until
    /// one of ours has been built.
    ///
    /// # Errors
    /// The same.
    pub fn open_former(dir: &Path, settings: Settings) -> Result<Option<Partition>, PartitionError> {
        let folder = |source| PartitionError::Folder { dir: dir.to_owned(), source };
        if !dir.try_exists().map_err(folder)? {
            return Ok(None);
        }
        let layout = schema::layout(schema::FORMER).expect("the layout before ours is known");
        let partition = Self::open_as(dir, settings, &layout)?;
        if partition.position.applied_seq > 0 {
            return Ok(Some(partition));
        }
        partition.close()?;
        Ok(None)
    }

    pub(super) fn open_as(dir: &Path, settings: Settings, layout: &Arc<Layout>) -> Result<Partition, PartitionError> {
        let folder = |source| PartitionError::Folder { dir: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(folder)?;
        let directory = Folder::open(dir).map_err(|error| folder(io::Error::other(error)))?;
        // Whoever holds the lock may be writing: only under it can we tell damage from work in progress.
        let lock = retry_locked(dir, settings.lock_wait, || lock_writer(&directory))?;
        checkpoint::settle(dir, checkpoint::boot().as_deref()).map_err(folder)?;
        directory.replay().map_err(folder)?;
        let opened = match open_existing(&directory, layout) {
            Ok(opened) => opened,
            Err(reason) => {
                warn!(index.dir = %dir.display(), %reason, "building the index in {} anew: {reason}", dir.display());
                empty(dir, &[]).map_err(folder)?;
                None
            }
        };
        let (folder, index, reader) = match opened {
            Some((index, reader)) => (directory, index, reader),
            None => {
                // The mark of this boot has gone with the rest.
                checkpoint::settle(dir, checkpoint::boot().as_deref()).map_err(folder)?;
                // A new handle: the old one remembers files that are gone.
                let directory = Folder::open(dir).map_err(|error| folder(io::Error::other(error)))?;
                directory.replay().map_err(folder)?;
                create(directory, layout).map_err(PartitionError::Write)?
            }
        };
        drop(lock);
        let mut partition = Partition {
            dir: dir.to_owned(),
            settings,
            checkpoints: Checkpoints::of(index.clone(), folder.clone(), dir),
            folder,
            index,
            reader: PartitionReader::new(reader, Arc::clone(layout)),
            writer: None,
            copying: None,
            position: Position::default(),
            uncommitted: HashMap::new(),
            youngest: 0,
            youngest_uncommitted: 0,
            resetting: false,
            once_until: 0,
        };
        // Nobody writes between the two locks: what a node has in its data folder is its own.
        partition.recover()?;
        Ok(partition)
    }

    /// Applies documents with the seqs of their rows. They can be found after the next [`commit`](Self::commit).
    ///
    /// A document replaces the one of the same kind and id unless that has a greater version, whatever the order.
    /// A deleted one only removes; its row in `documents` is what keeps an older version from coming back later. A deleted
    /// post takes its comments along, those that were applied before it.
    ///
    /// # Errors
    /// [`PartitionError::Write`]; then [`recover`](Self::recover).
    pub fn apply(&mut self, batch: &[(u64, Document)]) -> Result<(), PartitionError> {
        let result = self.try_apply(batch);
        self.note_failure(result)
    }

    /// Makes everything applied so far searchable, together with how far that is. It outlives the process, but the machine
    /// only with a [checkpoint](Checkpoints).
    ///
    /// # Errors
    /// [`PartitionError::Write`]; then [`recover`](Self::recover).
    pub fn commit(&mut self, position: Position) -> Result<(), PartitionError> {
        let result = self.try_commit(&position);
        self.note_failure(result)?;
        self.position = position;
        self.uncommitted.clear();
        self.youngest = self.youngest.max(self.youngest_uncommitted);
        (self.resetting, self.once_until) = (false, 0);
        Ok(())
    }

    /// How far the committed index has come; after [`reset`](Self::reset), the beginning.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Forgets the position and, with the next commit, all documents.
    ///
    /// Until that commit the old documents are still found. So a rebuild that commits only when it has caught up is
    /// never seen half done; if it dies on the way, the old index and its old position are back.
    ///
    /// # Errors
    /// [`PartitionError::Write`]; then [`recover`](Self::recover).
    pub fn reset(&mut self) -> Result<(), PartitionError> {
        self.reset_once_until(0)
    }

    /// The same for a rebuild that will apply each document once up to this seq, as it reads the rows of a table that were there
    /// before it began. Of those no list is kept, which would grow with the index until the commit.
    ///
    /// # Errors
    /// The same.
    pub fn reset_once_until(&mut self, once_until: u64) -> Result<(), PartitionError> {
        let result = self.try_reset();
        self.note_failure(result)?;
        self.position = Position::default();
        self.uncommitted.clear();
        (self.resetting, self.once_until) = (true, once_until);
        Ok(())
    }

    /// Goes back to the last commit with a new writer, and says where to go on from there.
    ///
    /// A [`reset`](Self::reset) that was not committed is forgotten too.
    ///
    /// # Errors
    /// As [`open`](Self::open); the partition can be recovered again later.
    pub fn recover(&mut self) -> Result<&Position, PartitionError> {
        if self.copying.is_some() {
            // The writer deletes what is of no use, as far as it knows of it; what was copied it learns from the folder.
            self.reopen().map_err(PartitionError::Write)?;
        }
        // The old writer holds the lock that the new one needs, or we did.
        (self.writer, self.copying) = (None, None);
        self.uncommitted.clear();
        self.youngest_uncommitted = 0;
        (self.resetting, self.once_until) = (false, 0);
        let writer = self.new_writer()?;
        // What the reader sees is what the writer goes on from: by it we tell whether there is something to delete.
        self.reader.reload().map_err(PartitionError::Write)?;
        let payload = self.index.load_metas().map_err(PartitionError::Write)?.payload;
        let format = self.reader.layout.format;
        let read = payload.as_deref().map(|payload| read_payload(payload, format)).transpose();
        self.position = read.ok().flatten().unwrap_or_default();
        self.youngest = self.reader.youngest().map_err(PartitionError::Write)?;
        self.writer = Some(writer);
        Ok(&self.position)
    }

    /// Searches what merges have made since the last commit; whether there was anything.
    ///
    /// # Errors
    /// When the list of segments cannot be read.
    pub fn refresh(&mut self) -> Result<bool, PartitionError> {
        let view = self.reader.view();
        let mut shown: Vec<SegmentId> = view.searcher.segment_readers().iter().map(SegmentReader::segment_id).collect();
        let mut there = self.index.searchable_segment_ids().map_err(PartitionError::Write)?;
        shown.sort_unstable();
        there.sort_unstable();
        if shown == there {
            return Ok(false);
        }
        self.reader.reload().map_err(PartitionError::Write)?;
        Ok(true)
    }

    /// Begins to write anew every segment from which something was deleted, so that its text leaves the files.
    ///
    /// # Errors
    /// When the list of segments cannot be read.
    pub fn purge(&mut self) -> Result<(), PartitionError> {
        let Some(writer) = self.writer.as_mut() else { return Ok(()) };
        let segments = self.index.searchable_segment_metas().map_err(PartitionError::Write)?;
        for segment in deleted_from(&segments) {
            // Its end is not waited for. One that is being merged already is written anew by that.
            drop(writer.merge(&[segment]));
        }
        Ok(())
    }

    /// Begins to merge the smallest segments of an index that has nothing to do.
    ///
    /// # Errors
    /// The same.
    pub fn tidy(&mut self) -> Result<(), PartitionError> {
        let Some(writer) = self.writer.as_mut() else { return Ok(()) };
        let surplus = surplus(&self.index.searchable_segment_metas().map_err(PartitionError::Write)?);
        if !surplus.is_empty() {
            drop(writer.merge(&surplus));
        }
        Ok(())
    }

    /// A handle that brings commits to the disk, from any thread.
    pub fn checkpoints(&self) -> Checkpoints {
        self.checkpoints.clone()
    }

    /// Which layout it has: commits of another are of no use to it.
    pub fn format(&self) -> u32 {
        self.reader.layout.format
    }

    /// A handle that searches this partition from any thread, through resets and recoveries, until it is closed.
    pub fn reader(&self) -> PartitionReader {
        self.reader.clone()
    }

    /// See [`PartitionReader::search`].
    ///
    /// # Errors
    /// The same.
    pub fn search(&self, search: &Search) -> Result<Hits, SearchError> {
        self.reader.search(search)
    }

    /// See [`PartitionReader::suggest`].
    ///
    /// # Errors
    /// The same.
    pub fn suggest(&self, typed: &str, limit: usize) -> Result<Vec<Suggestion>, SearchError> {
        self.reader.suggest(typed, limit)
    }

    /// Gives the folder free, with a checkpoint if there can be one. What was not committed is lost, and so are merges under
    /// way: the next writer begins them again.
    ///
    /// # Errors
    /// [`PartitionError::Write`]; the last commit is not touched by that.
    pub fn close(mut self) -> Result<(), PartitionError> {
        match self.writer.take() {
            Some(mut writer) => {
                // Without it, the workers would first write what is never going to be committed.
                writer.rollback().map_err(PartitionError::Write)?;
                writer.wait_merging_threads().map_err(PartitionError::Write)?;
            }
            // After a failure nobody knows what there is.
            None if self.copying.is_none() => return Ok(()),
            None => {}
        }
        if let Err(error) = self.checkpoints.take() {
            warn!(index.dir = %self.dir.display(), %error, "an index is closed without a checkpoint");
        }
        Ok(())
    }

    /// No merge begins any more, until there is another writer: what a crash in the middle of one leaves is then the same
    /// every time.
    #[cfg(test)]
    pub(super) fn hold_merges(&self) {
        if let Some(writer) = &self.writer {
            writer.set_merge_policy(Box::new(tantivy::merge_policy::NoMergePolicy));
        }
    }

    /// Documents that are noted until the next commit.
    #[cfg(test)]
    pub(super) fn noted(&self) -> usize {
        self.uncommitted.len()
    }

    /// Waits until nothing is left to merge; what is not committed goes.
    #[cfg(test)]
    pub(super) fn settle(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wait_merging_threads().expect("merges end well");
        }
        self.recover().expect("the folder is free again");
    }

    fn try_apply(&mut self, batch: &[(u64, Document)]) -> Result<(), PartitionError> {
        let writer = self.writer.as_mut().ok_or(PartitionError::Failed)?;
        for (seq, document) in newest(batch) {
            let once = self.resetting && *seq <= self.once_until;
            let known = match self.uncommitted.get(&(document.kind, document.id)) {
                Some(version) => Some(*version),
                None if once => None,
                // An older version may have come, of which nothing is noted.
                None if self.resetting => (self.once_until > 0).then_some(0),
                // Most are new. To look for one costs a search of every segment's dictionary.
                None if document.id.as_u64_pair().0 > self.youngest => None,
                None => self.reader.version(document.kind, document.id).map_err(PartitionError::Write)?,
            };
            // The same version again comes from a later row, so it is at least as good.
            if known.is_some_and(|known| known > document.version) {
                continue;
            }
            // Not for what is new: every deletion is looked up in every segment.
            if known.is_some() {
                writer.delete_term(self.reader.layout.labelled(&label::key(document.kind, document.id)));
            }
            if document.deleted && document.kind == Kind::Post {
                writer.delete_term(self.reader.layout.labelled(&label::post(document.id)));
            }
            if !document.deleted {
                let entry = self.reader.layout.entry(document).map_err(|error| PartitionError::Write(error.into()))?;
                writer.add_document(entry).map_err(PartitionError::Write)?;
            }
            if !once {
                self.uncommitted.insert((document.kind, document.id), document.version);
            }
            self.youngest_uncommitted = self.youngest_uncommitted.max(document.id.as_u64_pair().0);
        }
        Ok(())
    }

    fn try_commit(&mut self, position: &Position) -> Result<(), PartitionError> {
        let writer = self.writer.as_mut().ok_or(PartitionError::Failed)?;
        let commit = |writer: &mut IndexWriter, reader: &PartitionReader| {
            let mut prepared = writer.prepare_commit()?;
            prepared.set_payload(&payload(reader.layout.format, position)?);
            prepared.commit()?;
            reader.reload()
        };
        commit(writer, &self.reader).map_err(PartitionError::Write)
    }

    fn try_reset(&mut self) -> Result<(), PartitionError> {
        let layout = Arc::clone(&self.reader.layout);
        let writer = self.writer.as_mut().ok_or(PartitionError::Failed)?;
        // Not `delete_all_documents`: it takes the segments out of the writer's books at once, and a merge that ends
        // before our commit would make that durable.
        for kind in Kind::ALL {
            writer.delete_term(layout.labelled(&label::kind(kind)));
        }
        Ok(())
    }

    /// A writer that failed once is of no use any more; without it, nothing can be applied by accident.
    fn note_failure<T>(&mut self, result: Result<T, PartitionError>) -> Result<T, PartitionError> {
        if result.is_err() {
            self.writer = None;
        }
        result
    }

    fn new_writer(&self) -> Result<IndexWriter, PartitionError> {
        let options = IndexWriterOptions::builder()
            .num_worker_threads(1)
            .num_merge_threads(1)
            .memory_budget_per_thread(self.settings.writer_memory_bytes)
            .build();
        let writer = retry_locked(&self.dir, self.settings.lock_wait, || self.index.writer_with_options(options.clone()))?;
        writer.set_merge_policy(Box::new(Merging));
        // A writer's first stamp would be that of the last commit, up to which tantivy holds every deletion to be done where
        // that commit deleted something: a merge of what it left would lose one. Doing nothing takes that stamp.
        writer.run([]).map_err(PartitionError::Write)?;
        // Stamps are used again after a crash, and with them the names of the files that say what is deleted.
        writer.garbage_collect_files().wait().map_err(PartitionError::Write)?;
        Ok(writer)
    }
}

/// The newest version of each document, of equal ones the later row, in the order of their last rows.
fn newest(batch: &[(u64, Document)]) -> Vec<&(u64, Document)> {
    let mut newest: HashMap<(Kind, Uuid), &(u64, Document)> = HashMap::with_capacity(batch.len());
    for row in batch {
        let (seq, document) = row;
        let kept = newest.entry((document.kind, document.id)).or_insert(row);
        if (document.version, *seq) >= (kept.1.version, kept.0) {
            *kept = row;
        }
    }
    let mut rows: Vec<_> = newest.into_values().collect();
    rows.sort_unstable_by_key(|(seq, document)| (*seq, document.kind, document.id));
    rows
}

/// What a commit says about itself.
#[derive(Serialize, Deserialize)]
struct Payload {
    format: u32,
    #[serde(flatten)]
    position: Position,
}

fn payload(format: u32, position: &Position) -> Result<String, TantivyError> {
    Ok(serde_json::to_string(&Payload { format, position: position.clone() })?)
}

fn read_payload(payload: &str, ours: u32) -> Result<Position, String> {
    let payload: Payload = serde_json::from_str(payload).map_err(|error| format!("its payload is unreadable: {error}"))?;
    match payload.format {
        format if format == ours => Ok(payload.position),
        other => Err(format!("its format is {other}, ours {ours}")),
    }
}

/// Opens what is in the folder: none if nothing is, an error with the reason if it is of no use to us.
fn open_existing(directory: &Folder, layout: &Layout) -> Result<Option<(Index, IndexReader)>, String> {
    if !Index::exists(directory).map_err(|error| error.to_string())? {
        return Ok(None);
    }
    let index = Index::open(directory.clone()).map_err(|error| error.to_string())?;
    if index.schema() != layout.schema {
        return Err("its fields are not ours".to_owned());
    }
    schema::register_tokenizers(&index);
    let payload = index.load_metas().map_err(|error| error.to_string())?.payload;
    // An index without a payload was never committed, so it is as good as new.
    payload.as_deref().map(|payload| read_payload(payload, layout.format)).transpose()?;
    let reader = new_reader(&index).map_err(|error| error.to_string())?;
    Ok(Some((index, reader)))
}

fn create(directory: Folder, layout: &Layout) -> tantivy::Result<(Folder, Index, IndexReader)> {
    // A thread of its own for the compression of each segment costs more than it spares.
    let settings = IndexSettings {
        docstore_compress_dedicated_thread: false,
        docstore_blocksize: STORE_BLOCK_BYTES,
        ..IndexSettings::default()
    };
    let index = Index::builder().schema(layout.schema.clone()).settings(settings).open_or_create(directory.clone())?;
    schema::register_tokenizers(&index);
    let reader = new_reader(&index)?;
    Ok((directory, index, reader))
}

fn new_reader(index: &Index) -> tantivy::Result<IndexReader> {
    // We reload right after each commit; the policy on commit polls every 500 ms.
    index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()
}

fn lock_writer(directory: &Folder) -> tantivy::Result<DirectoryLock> {
    Ok(directory.acquire_lock(&INDEX_WRITER_LOCK)?)
}

/// Empties the folder, but for what is to be kept, and the lock files: whoever deletes a lock takes it from its owner.
pub(super) fn empty(dir: &Path, keep: &[OsString]) -> io::Result<()> {
    let locks = [INDEX_WRITER_LOCK.filepath.as_path(), META_LOCK.filepath.as_path()];
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if keep.contains(&entry.file_name()) || locks.contains(&Path::new(&entry.file_name())) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Tries again while the lock is taken: on a rolling restart, the former process needs a moment to end.
fn retry_locked<T>(dir: &Path, wait: Duration, mut attempt: impl FnMut() -> tantivy::Result<T>) -> Result<T, PartitionError> {
    let deadline = Instant::now() + wait;
    let mut pause = Duration::from_millis(5);
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(TantivyError::LockFailure(LockError::LockBusy, _)) => {
                if Instant::now() >= deadline {
                    return Err(PartitionError::Locked { dir: dir.to_owned() });
                }
                thread::sleep(pause);
                pause = (2 * pause).min(LOCK_PAUSE_MAX);
            }
            Err(error) => return Err(PartitionError::Write(error)),
        }
    }
}
