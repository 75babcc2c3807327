//! A partition whose commits come from another replica (ADR 0014).

use std::path::Path;

use tantivy::{
    Index,
    directory::{Directory, DirectoryLock},
};

use super::{Partition, PartitionError, lock_writer, new_reader, read_payload, retry_locked};
use crate::search::index::{
    checkpoint::META,
    schema,
    segments::{Commit, Incoming, Segments, forget_incomplete},
};

/// What it takes to be a copy.
pub(super) struct Copying {
    /// Of the writer: there is none beside it.
    _lock: DirectoryLock,
    incoming: Incoming,
}

impl Partition {
    /// Where others can have its segments.
    pub fn segments(&self) -> Segments {
        Segments { index: self.index.clone(), folder: self.folder.clone(), format: self.reader.layout.format }
    }

    /// Writes no more itself: its commits come from another, until it [recovers](Self::recover). What was not committed is
    /// lost.
    ///
    /// # Errors
    /// As [`close`](Self::close) and [`open`](Self::open).
    pub fn begin_copying(&mut self) -> Result<(), PartitionError> {
        if self.copying.is_some() {
            return Ok(());
        }
        if let Some(mut writer) = self.writer.take() {
            // As in closing: nothing of it may still be at work here.
            writer.rollback().map_err(PartitionError::Write)?;
            writer.wait_merging_threads().map_err(PartitionError::Write)?;
        }
        let lock = retry_locked(&self.dir, self.settings.lock_wait, || lock_writer(&self.folder))?;
        self.copying = Some(Copying { _lock: lock, incoming: Incoming::default() });
        Ok(())
    }

    /// Whether its commits come from another.
    pub fn is_copying(&self) -> bool {
        self.copying.is_some()
    }

    /// The files of a commit of another replica that are not here, by number.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn missing(&mut self, commit: &Commit) -> Result<Vec<usize>, PartitionError> {
        if let Some(copying) = &mut self.copying {
            copying.incoming = Incoming::default();
        }
        self.forget_incomplete()?;
        commit.missing(&self.folder).map_err(PartitionError::Write)
    }

    /// Adds to a file that was missing what comes next of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn receive(&mut self, commit: &Commit, file: usize, bytes: &[u8]) -> Result<(), PartitionError> {
        let copying = self.copying.as_mut().ok_or(PartitionError::Failed)?;
        copying.incoming.add(commit, &self.folder, file, bytes).map_err(|error| PartitionError::Write(error.into()))
    }

    /// Makes a commit ours, of which these files were missing and have come.
    ///
    /// # Errors
    /// When it cannot be written. When it cannot be read afterwards nobody knows what there is, and this is no longer
    /// [copying](Self::is_copying).
    pub fn install(&mut self, commit: &Commit, files: &[usize]) -> Result<(), PartitionError> {
        let incoming = std::mem::take(&mut self.copying.as_mut().ok_or(PartitionError::Failed)?.incoming);
        let put = commit.put_in_place(&self.folder, incoming, files).and_then(|replaced| {
            self.folder.atomic_write(Path::new(META), commit.meta.as_bytes())?;
            Ok(replaced)
        });
        let replaced = put.map_err(|error| PartitionError::Write(error.into()))?;
        self.turn_to(commit, replaced).map_err(|error| {
            self.copying = None;
            PartitionError::Write(error)
        })
    }

    fn turn_to(&mut self, commit: &Commit, replaced: bool) -> tantivy::Result<()> {
        // A folder remembers what it has mapped by name.
        if replaced {
            self.reopen()?
        } else {
            self.reader.reload()?
        }
        commit.clear(&self.index, &self.folder)?;
        let payload = self.index.load_metas()?.payload;
        let format = self.reader.layout.format;
        let read = payload.as_deref().map(|payload| read_payload(payload, format)).transpose();
        self.position = read.ok().flatten().unwrap_or_default();
        Ok(())
    }

    /// Opens what is in the folder with new handles.
    pub(super) fn reopen(&mut self) -> tantivy::Result<()> {
        self.folder = self.folder.reopen()?;
        self.index = Index::open(self.folder.clone())?;
        schema::register_tokenizers(&self.index);
        self.checkpoints = self.checkpoints.of_reopened(self.index.clone(), self.folder.clone());
        self.reader.replace(new_reader(&self.index)?);
        Ok(())
    }

    fn forget_incomplete(&self) -> Result<(), PartitionError> {
        forget_incomplete(&self.folder).map_err(|source| PartitionError::Folder { dir: self.dir.clone(), source })
    }
}
