//! Our engine, as one node holds it: all that the benches use of its API is here.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use rookery_actors::{
    ids::shard_of,
    search::index::{Document, Hits, LIMIT_MAX, Partition, Position, Query, Search, Settings, Sort, Spelling, View, Views},
};
use uuid::Uuid;

use super::ask::Ask;

/// As many as `search_partitions` of a cluster that nobody has configured.
const PARTITIONS: u16 = 4;
/// Documents that a node commits at once when it is far behind are some 500 to 1,000 for each partition.
pub const BATCH_DOCUMENTS: usize = 750 * PARTITIONS as usize;
/// Merges have ended when nothing has changed for so long.
const QUIET: Duration = Duration::from_secs(3);

/// All partitions of an index.
pub struct Engine {
    partitions: Vec<Partition>,
    spelling: Spelling,
}

impl Engine {
    /// Opens the index in a folder, or makes one.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let open = |number| Partition::open(&dir.join(format!("partition-{number}")), Settings::default());
        Ok(Self { partitions: (0..PARTITIONS).map(open).collect::<Result<_, _>>()?, spelling: Spelling::default() })
    }

    /// Applies documents with growing numbers and commits them.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn apply(&mut self, batch: &[(u64, Document)]) -> anyhow::Result<()> {
        let mut parts = vec![Vec::new(); self.partitions.len()];
        for (seq, document) in batch {
            // A comment lies with its post.
            let home = document.post_id.unwrap_or(document.id);
            parts[shard_of(home, PARTITIONS).index()].push((*seq, document.clone()));
        }
        let applied_seq = batch.last().map_or(0, |(seq, _)| *seq);
        for (partition, part) in self.partitions.iter_mut().zip(parts) {
            partition.apply(&part)?;
            partition.commit(Position { applied_seq, ..Position::default() })?;
        }
        Ok(())
    }

    /// Waits until the merges that writing has set off have ended.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn settle(&self) -> anyhow::Result<()> {
        let mut known = self.segments()?;
        let mut since = Instant::now();
        while since.elapsed() < QUIET {
            std::thread::sleep(QUIET / 10);
            let now = self.segments()?;
            if now != known {
                (known, since) = (now, Instant::now());
            }
        }
        // As a node does now and then, beside its searches.
        Ok(self.spelling.gather_now(&self.views())?)
    }

    /// What the engine is asked for a question; pages that come before it are walked through.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn prepare(&self, ask: &Ask) -> anyhow::Result<Search> {
        let mut search = Search {
            query: Query::parse(&ask.text)?,
            kinds: ask.kind.into_iter().collect(),
            author: ask.author,
            tag: ask.tag.clone(),
            from: ask.from,
            to: ask.to,
            sort: if ask.new { Sort::New } else { Sort::Relevance },
            limit: ask.limit,
            after: None,
        };
        let mut behind = ask.behind;
        while behind > 0 {
            search.limit = behind.min(LIMIT_MAX);
            behind -= search.limit;
            search.after = self.hits(&search)?.items.last().map(|hit| hit.cursor).or(search.after);
        }
        search.limit = ask.limit;
        Ok(search)
    }

    /// The answer as JSON, and how many match.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn search(&self, search: &Search) -> anyhow::Result<(Vec<u8>, u64)> {
        let hits = self.hits(search)?;
        Ok((serde_json::to_vec(&hits)?, hits.total))
    }

    /// What was found, best first.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn best(&self, ask: &Ask) -> anyhow::Result<Vec<Uuid>> {
        Ok(self.hits(&self.prepare(ask)?)?.items.iter().map(|hit| hit.id).collect())
    }

    /// How many segments each partition has.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn segments(&self) -> anyhow::Result<Vec<usize>> {
        let count = |commit: serde_json::Value| {
            let meta: serde_json::Value = serde_json::from_str(commit["meta"].as_str().context("a commit without a list")?)?;
            Ok(meta["segments"].as_array().context("a list without segments")?.len())
        };
        self.commits()?.into_iter().map(count).collect()
    }

    /// What the last commits have on the disk.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn bytes_on_disk(&self) -> anyhow::Result<u64> {
        let files = |commit: &serde_json::Value| commit["files"].as_array().cloned().unwrap_or_default();
        let commits = self.commits()?;
        Ok(commits.iter().flat_map(files).filter_map(|file| file["length"].as_u64()).sum())
    }

    /// What a replica would copy, in the form in which it travels: nothing else tells it from outside.
    fn commits(&self) -> anyhow::Result<Vec<serde_json::Value>> {
        let commit = |partition: &Partition| Ok(serde_json::to_value(partition.segments().snapshot()?.commit())?);
        self.partitions.iter().map(commit).collect()
    }

    fn hits(&self, search: &Search) -> anyhow::Result<Hits> {
        let views = Views::with(self.views(), self.spelling.clone(), self.views());
        Ok(views.search(search, &views.plan(search), None)?.0)
    }

    fn views(&self) -> Vec<View> {
        self.partitions.iter().map(|partition| partition.reader().view()).collect()
    }
}
