//! Keeps one index partition behind the documents by a fraction of a second.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use futures_util::future::try_join;
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};
use uuid::Uuid;

use super::{
    Answer, Query, SearchService,
    copying::{Bytes, Offered, Piece},
    index::{CheckpointError, Commit, Document, Partition, PartitionError, Position},
    signals::Signals,
};
use crate::{
    entity::Failure,
    episodes,
    event::Source,
    ids::{Seq, ShardId},
    runtime::{NodeName, Runtime, strange_answer},
};

/// Between two commits of an index that has little to do: a write is found soon.
const COMMIT_EVERY: Duration = Duration::from_millis(150);
/// The same under load. A commit makes a segment, which costs as much as hundreds of documents: to write, to merge.
const COMMIT_EVERY_BUSY: Duration = Duration::from_millis(500);
/// Documents in one commit from which on an index is busy.
const BUSY: usize = 20;
/// The longest wait for news; an index looks around at least this often.
const NEWS_WITHIN: Duration = Duration::from_millis(500);
/// What another replica may take beyond that to say what it has.
const COPY_ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How far a copy may fall behind while that other does not answer.
const COPY_LAG_MAX: Duration = Duration::from_secs(1);
/// Before it is asked again meanwhile.
const COPY_RETRY_AFTER: Duration = Duration::from_millis(100);
/// How long an index then goes on alone.
const OWN_AFTER_FAILURE: Duration = Duration::from_secs(3);
/// The same after it was built anew: longer than the other replica takes to be.
const OWN_AFTER_REBUILD: Duration = Duration::from_secs(60);
/// What the owner of the shard may take beyond that to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long a log that brings nothing is taken to be the one that it was: it may have been put back, and be as long again.
const KNOWN_FOR: Duration = Duration::from_secs(5);
/// After a failure.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Between two checkpoints: what is read again, at most, after the machine went down.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);
/// Between two purges: a deleted text is in the files of an index for that long at most, and a merge.
const PURGE_EVERY: Duration = Duration::from_mins(30);
/// After an index was opened, before the first one: a node may be started again and again.
const PURGE_FIRST: Duration = Duration::from_mins(5);
/// The longest that such merges take, about.
const MERGES_WITHIN: Duration = Duration::from_mins(2);
/// How long an index has nothing to do until its small segments are merged.
const TIDY_AFTER: Duration = Duration::from_secs(30);
/// Documents in one commit, about; the rest follows in the next, at once.
const DOCUMENTS_MAX: i64 = 5_000;
/// The same in bytes, unless the indexes of a node may hold less together: some are a hundred thousand times as long as others,
/// and a page of them is in memory as a whole.
const DOCUMENTS_BYTES_MAX: i64 = 8 << 20;

/// What an index reads: the documents of a shard after a seq, up to another.
///
/// A comment that was on its way when its post went is never to be found; those before it go with their post. Each post is
/// looked up by its key: for a NOT EXISTS, Postgres would read all documents there are and hash those of deleted posts.
pub const DOCUMENTS_AFTER: &str = "SELECT seq, doc FROM documents d
     WHERE shard = $1 AND seq > $2 AND seq <= $3 AND (type <> 'comment' OR (
         SELECT p.doc::json->>'deleted' FROM documents p
         WHERE p.type = 'post' AND p.id = (d.doc::json->>'post_id')::uuid) IS DISTINCT FROM 'true')
     ORDER BY seq";

/// How long they are: what tells where a page ends.
const SIZES_AFTER: &str =
    "SELECT seq, octet_length(doc)::int8 FROM documents WHERE shard = $1 AND seq > $2 ORDER BY seq LIMIT $3";

/// Where the log of a shard ends, and by which history it is at a place (rule 5).
const END_AND_HISTORY: &str = "SELECT COALESCE((SELECT max(seq) FROM outbox WHERE shard = $1), 0),
     (SELECT batch FROM outbox WHERE shard = $1 AND seq <= $2 AND type = 'epoch' ORDER BY seq DESC LIMIT 1)";

/// A place in the log of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    seq: Seq,
    /// By which history of the log; none: not known.
    history: Option<Uuid>,
}

/// Documents that are read together.
struct Page {
    documents: Vec<(u64, Document)>,
    /// The last record that is in it with all of its documents, or the end of what was asked for.
    end: Place,
    /// There are others behind it.
    more: bool,
}

pub(crate) struct Follower {
    runtime: Runtime<SearchService>,
    shard: ShardId,
    partition: Option<Partition>,
    signals: Signals,
    /// Ends with the replica.
    held: watch::Receiver<()>,
    /// Up to here there is nothing more to read, whatever the index says of itself.
    caught_up: Place,
    /// When the log was last seen to be the one from which the index was made; none: not yet.
    known_at: Option<Instant>,
    /// A write has failed: the index is to be built anew.
    doubtful: bool,
    /// When the next purge begins.
    purge_at: Instant,
    /// Until then merges are looked for that nobody has asked for with a commit.
    merging_until: Option<Instant>,
    /// When something was last indexed; none: its small segments have been merged since.
    busy_at: Option<Instant>,
    /// When the last checkpoint began.
    checkpoint_at: Instant,
    /// One that is on its way to the disk.
    checkpoint: Option<JoinHandle<Result<(), CheckpointError>>>,
    /// While segments come from another replica.
    copy: Option<Copied>,
    /// Until then they do not, whoever makes them.
    own_until: Instant,
}

/// What was copied last.
#[derive(Clone, Copy)]
struct Copied {
    news: u64,
    commit: Uuid,
    at: Instant,
}

/// Why a step of following failed.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Index(#[from] PartitionError),
    #[error(transparent)]
    Documents(#[from] Failure),
    #[error("the indexing task panicked")]
    Panicked,
    #[error("the other replica is of another format")]
    OtherFormat,
    #[error("the replica is dropped")]
    Dropped,
    #[error(
        "the log goes on differently before {0}, up to where the index was made: the database was put back to an older state"
    )]
    OtherHistory(Seq),
}

impl Follower {
    pub(crate) fn new(
        runtime: Runtime<SearchService>,
        shard: ShardId,
        partition: Partition,
        signals: Signals,
        held: watch::Receiver<()>,
    ) -> Self {
        Self {
            runtime,
            shard,
            partition: Some(partition),
            signals,
            held,
            caught_up: Place::default(),
            known_at: None,
            doubtful: false,
            purge_at: Instant::now() + PURGE_FIRST,
            merging_until: None,
            busy_at: Some(Instant::now()),
            checkpoint_at: Instant::now(),
            checkpoint: None,
            copy: None,
            own_until: Instant::now(),
        }
    }

    /// Follows until the replica is dropped or the runtime stops, then closes the index.
    pub(crate) async fn run(mut self) {
        let mut held = self.held.clone();
        while !self.runtime.is_stopped() {
            let began = Instant::now();
            if let Some(maker) = self.maker() {
                let offered = tokio::select! {
                    offered = self.offered(&maker) => offered,
                    () = self.signals.rebuilds.asked() => continue,
                    _ = held.changed() => break,
                };
                let copied = match offered {
                    Ok(offered) => self.copy(&maker, offered).await,
                    Err(failure) => Err(failure.into()),
                };
                self.look_after_checkpoints().await;
                match copied {
                    Ok(()) => self.signals.obstacle.is(None),
                    Err(error) => self.cannot_copy(&maker, &error).await,
                }
                continue;
            }
            if self.copy.take().is_some() {
                // From the last commit that was copied it goes on by itself.
                self.recover().await;
            }
            let reached = tokio::select! {
                reached = self.reached(self.caught_up.seq, NEWS_WITHIN) => reached,
                // How far it is by now, news or not.
                () = self.signals.rebuilds.asked() => self.reached(0, Duration::ZERO).await,
                _ = held.changed() => break,
            };
            let step = match reached {
                Ok((head, positions)) => self.step(head, positions).await,
                Err(failure) => {
                    // The shard is on its way, or the node that serves it cannot be reached.
                    self.signals
                        .obstacle
                        .is(Some(format!("nobody says how far search shard {} has come: {failure}", self.shard)));
                    tokio::time::sleep_until(began + RETRY_AFTER).await;
                    continue;
                }
            };
            let obstacle = |error| format!("the index of search shard {} cannot be written: {error}", self.shard);
            self.signals.obstacle.is(step.as_ref().err().map(obstacle));
            self.look_after_checkpoints().await;
            match step {
                Ok(Step::More) => {
                    // Who copies need not wait until there is no more.
                    if let Some(positions) = self.signals.visible.positions() {
                        self.offer(&positions, true);
                    }
                }
                Ok(Step::CaughtUp { documents }) => {
                    let pause = if documents < BUSY { COMMIT_EVERY } else { COMMIT_EVERY_BUSY };
                    tokio::time::sleep_until(began + pause).await;
                }
                Err(error) => {
                    episodes::warn("indexes cannot follow, they try again", "search", &error);
                    // Nobody can tell what a write that failed has left behind, on a full disk say; the index is disposable.
                    self.doubtful |= !matches!(error, FollowError::Documents(_));
                    self.recover().await;
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
        // Whoever waits for this index to be built anew waits no longer.
        self.signals.rebuilds.done(u64::MAX);
        if let Some(checkpoint) = self.checkpoint.take() {
            let _ = checkpoint.await;
        }
        if let Some(partition) = self.partition.take() {
            let _ = spawn_blocking(move || partition.close()).await;
        }
    }

    /// How far the shard has come, as its owner says, wherever that is: waits a while for more than `after`.
    async fn reached(&self, after: Seq, wait: Duration) -> Result<(Seq, HashMap<Source, Seq>), Failure> {
        let query = Query::Reached { shard: self.shard, after, wait };
        match self.runtime.query(self.shard, &query, Instant::now() + wait + ANSWER_WITHIN).await? {
            Answer::Reached(head, positions) => Ok((head, positions.into_iter().collect())),
            _ => Err(strange_answer()),
        }
    }

    /// Takes in what the shard has committed. First how far it has come was asked, now its documents are read: so they
    /// contain all that the positions promise.
    async fn step(&mut self, head: Seq, positions: HashMap<Source, Seq>) -> Result<Step, FollowError> {
        let wanted = self.signals.rebuilds.wanted();
        if wanted.is_some() || self.doubtful {
            self.rebuild(head, &positions).await?;
            self.doubtful = false;
            self.publish(positions, true);
            // The other replica may still have what this is to replace.
            self.own_until = Instant::now() + OWN_AFTER_REBUILD;
            if let Some(number) = wanted {
                self.signals.rebuilds.done(number);
            }
            return Ok(Step::CaughtUp { documents: 0 });
        }
        let place = self.place()?;
        if head == place.seq && self.known_at.is_some_and(|known| known.elapsed() < KNOWN_FOR) {
            self.publish(positions, false);
            return Ok(Step::CaughtUp { documents: 0 });
        }
        let Page { documents, end, more } = self.documents(place, head).await?;
        self.known_at = Some(Instant::now());
        let count = documents.len();
        if count > 0 {
            self.index(documents, position(end, &positions)).await?;
        }
        self.caught_up = end;
        if more {
            return Ok(Step::More);
        }
        self.publish(positions, count > 0);
        Ok(Step::CaughtUp { documents: count })
    }

    /// Up to where everything was read.
    fn place(&self) -> Result<Place, FollowError> {
        let Position { applied_seq, history, .. } = self.partition.as_ref().ok_or(FollowError::Panicked)?.position();
        let indexed = Place { seq: Seq::try_from(*applied_seq).unwrap_or(Seq::MAX), history: *history };
        Ok(if indexed.seq > self.caught_up.seq { indexed } else { self.caught_up })
    }

    /// Tells who waits for these positions, and who copies this index, `changed` or not.
    fn publish(&self, positions: HashMap<Source, Seq>, changed: bool) {
        self.offer(&positions, changed);
        self.signals.visible.publish(positions);
    }

    fn offer(&self, positions: &HashMap<Source, Seq>, changed: bool) {
        if let Some(partition) = &self.partition {
            self.signals.offer.publish(partition.segments(), positions, changed);
        }
    }

    /// What came after a place, up to the end of the log, or as much of it as a page holds.
    async fn documents(&self, after: Place, head: Seq) -> Result<Page, FollowError> {
        let _place = self.runtime.inner.loader.place().await;
        let client = self.runtime.database().get().await?;
        let shard = self.shard.as_i16();
        // In one go: each is a round trip to the server.
        let (now, sizes) = try_join(
            client.query_one(END_AND_HISTORY, &[&shard, &after.seq]),
            client.query(SIZES_AFTER, &[&shard, &after.seq, &DOCUMENTS_MAX]),
        )
        .await
        .map_err(Failure::from)?;
        let (last, history): (Seq, Option<Uuid>) = (now.get(0), now.get(1));
        if last < after.seq || after.history.zip(history).is_some_and(|(made, found)| made != found) {
            return Err(FollowError::OtherHistory(after.seq));
        }
        let sizes: Vec<(Seq, i64)> = sizes.iter().map(|row| (row.get(0), row.get(1))).collect();
        let (end, more) = page_end(&sizes, page_bytes_max(&self.runtime));
        let end = if more { end } else { end.max(head).max(after.seq) };
        let (history, rows) = try_join(
            client.query_one(END_AND_HISTORY, &[&shard, &end]),
            client.query(DOCUMENTS_AFTER, &[&shard, &after.seq, &end]),
        )
        .await
        .map_err(Failure::from)?;
        if !rows.is_empty() {
            let bytes: usize = rows.iter().map(|row| row.get::<_, &str>(1).len()).sum();
            metrics::histogram!("rookery_search_page_bytes").record(bytes as f64);
        }
        let parse = |row: &tokio_postgres::Row| {
            let document = serde_json::from_str(row.get(1))
                .map_err(|error| Failure::Unavailable(format!("a stored document does not parse: {error}")))?;
            Ok((row.get::<_, i64>(0).unsigned_abs(), document))
        };
        let documents = rows.iter().map(parse).collect::<Result<_, Failure>>()?;
        Ok(Page { documents, end: Place { seq: end, history: history.get(1) }, more })
    }

    /// Builds the index from nothing and commits it in one piece, so that nobody ever finds half of it.
    async fn rebuild(&mut self, head: Seq, positions: &HashMap<Source, Seq>) -> Result<(), FollowError> {
        episodes::note("indexes are built anew", "search", 1);
        // A row that is stored anew meanwhile comes behind the head.
        let once_until = head.unsigned_abs();
        self.with_partition(move |partition| partition.reset_once_until(once_until)).await?;
        let mut read = Place::default();
        loop {
            let Page { documents, end, more } = self.documents(read, head).await?;
            self.signals.indexed.add(documents.len());
            self.with_partition(move |partition| partition.apply(&documents)).await?;
            read = end;
            if !more {
                let position = position(read, positions);
                self.with_partition(move |partition| partition.commit(position)).await?;
                (self.caught_up, self.known_at) = (read, Some(Instant::now()));
                return Ok(());
            }
        }
    }

    async fn index(&mut self, documents: Vec<(u64, Document)>, position: Position) -> Result<(), FollowError> {
        self.busy_at = Some(Instant::now());
        self.signals.indexed.add(documents.len());
        self.with_partition(move |partition| partition.apply(&documents).and_then(|()| partition.commit(position))).await
    }

    /// Writes on a thread that may block.
    async fn with_partition<T: Send + 'static>(
        &mut self,
        write: impl FnOnce(&mut Partition) -> Result<T, PartitionError> + Send + 'static,
    ) -> Result<T, FollowError> {
        let mut partition = self.partition.take().ok_or(FollowError::Panicked)?;
        let (partition, result) = spawn_blocking(move || {
            // Caught here, so that there is a partition to recover: its lock and its readers would be lost with it.
            let result = catch_unwind(AssertUnwindSafe(|| write(&mut partition)));
            (partition, result)
        })
        .await
        .map_err(|_| FollowError::Panicked)?;
        self.partition = Some(partition);
        Ok(result.map_err(|_| FollowError::Panicked)??)
    }

    /// The other replica whose segments are to be copied, if there is one: as long as that goes well, and nothing is to be
    /// built anew here.
    fn maker(&self) -> Option<NodeName> {
        let alone = self.doubtful || self.signals.rebuilds.wanted().is_some() || Instant::now() < self.own_until;
        if alone { None } else { self.runtime.service().replicas.maker(self.shard) }
    }

    /// What it has; waits a while for more than that was copied.
    async fn offered(&self, maker: &NodeName) -> Result<Offered, Failure> {
        let (seen, known) = self.copy.map_or((0, None), |copied| (copied.news, Some(copied.commit)));
        // The first answer comes at once.
        let query = Query::Offered { shard: self.shard, seen, known, wait: NEWS_WITHIN };
        match self.runtime.query_node(maker, &query, Instant::now() + NEWS_WITHIN + COPY_ANSWER_WITHIN).await? {
            Answer::Offered(offered) => Ok(offered),
            _ => Err(strange_answer()),
        }
    }

    /// Makes what another replica has ours.
    async fn copy(&mut self, maker: &NodeName, offered: Offered) -> Result<(), FollowError> {
        if let Some(commit) = offered.files {
            self.copy_commit(maker, offered.commit, Arc::new(commit)).await?;
        }
        self.copy = Some(Copied { news: offered.news, commit: offered.commit, at: Instant::now() });
        self.signals.visible.publish(offered.positions.into_iter().collect());
        Ok(())
    }

    async fn copy_commit(&mut self, maker: &NodeName, id: Uuid, commit: Arc<Commit>) -> Result<(), FollowError> {
        if !self.partition.as_ref().is_some_and(|partition| commit.is_of(partition.format())) {
            return Err(FollowError::OtherFormat);
        }
        self.signals.offer.withdraw();
        let lacking = Arc::clone(&commit);
        let missing = self
            .with_partition(move |partition| {
                partition.begin_copying()?;
                partition.missing(&lacking)
            })
            .await?;
        let mut wanted: Vec<(usize, u64)> = missing.iter().map(|file| (*file, 0)).collect();
        while !wanted.is_empty() {
            if self.held.has_changed().is_err() {
                return Err(FollowError::Dropped);
            }
            let query = Query::Pieces { shard: self.shard, commit: id, wanted: wanted.clone() };
            let pieces = match self.runtime.query_node(maker, &query, Instant::now() + ANSWER_WITHIN).await? {
                // An answer without anything new would be asked for for ever.
                Answer::Pieces(pieces) if pieces.iter().any(|piece| !piece.bytes.0.is_empty()) => pieces,
                _ => return Err(strange_answer().into()),
            };
            for Piece { file, offset, bytes: Bytes(bytes) } in pieces {
                let place = wanted.iter_mut().find(|place| **place == (file, offset));
                let place = place.ok_or_else(strange_answer)?;
                place.1 += bytes.len() as u64;
                let of = Arc::clone(&commit);
                self.with_partition(move |partition| partition.receive(&of, file, &bytes)).await?;
            }
            wanted.retain(|(file, offset)| *offset < commit.length(*file));
        }
        let installed = self.with_partition(move |partition| partition.install(&commit, &missing)).await;
        self.doubtful |= installed.is_err() && !self.partition.as_ref().is_some_and(Partition::is_copying);
        installed
    }

    /// Tries again for a moment, then goes on alone for a while.
    async fn cannot_copy(&mut self, maker: &NodeName, error: &FollowError) {
        if self.copy.is_some_and(|copied| copied.at.elapsed() < COPY_LAG_MAX) && !self.doubtful {
            tokio::time::sleep(COPY_RETRY_AFTER).await;
            return;
        }
        tracing::debug!(shard.id = %self.shard, node.id = %maker, %error, "an index cannot be copied, its documents are indexed here");
        episodes::note("indexes could not be copied, their documents are indexed here", "search", 1);
        self.own_until = Instant::now() + OWN_AFTER_FAILURE;
        self.copy = None;
        if self.partition.as_ref().is_some_and(Partition::is_copying) {
            self.recover().await;
        }
    }

    /// Hears how the last checkpoint ended and begins the next when it is time. Its way to the disk is not waited for.
    async fn look_after_checkpoints(&mut self) {
        if self.checkpoint.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(ended) = self.checkpoint.take()
            && let Ok(Err(error)) = ended.await
        {
            self.doubtful |= matches!(error, CheckpointError::Lost(..));
            episodes::warn("indexes keep their last checkpoint", "search", &error);
        }
        if self.merging_until.is_some() {
            self.look_for_merges().await;
        }
        let merged = if Instant::now() >= self.purge_at {
            self.purge_at = Instant::now() + PURGE_EVERY;
            self.merging_until = Some(Instant::now() + MERGES_WITHIN);
            self.with_partition(Partition::purge).await
        } else if self.busy_at.is_some_and(|busy| busy.elapsed() >= TIDY_AFTER) {
            self.busy_at = None;
            self.merging_until = Some(Instant::now() + MERGES_WITHIN);
            self.with_partition(Partition::tidy).await
        } else {
            Ok(())
        };
        if let Err(error) = merged {
            episodes::warn("segments of indexes cannot be merged", "search", &error);
        }
        if self.checkpoint.is_some() || self.doubtful || self.checkpoint_at.elapsed() < CHECKPOINT_EVERY {
            return;
        }
        if let Some(partition) = &self.partition {
            let checkpoints = partition.checkpoints();
            self.checkpoint_at = Instant::now();
            self.checkpoint = Some(spawn_blocking(move || checkpoints.take()));
        }
    }

    /// What a purge has made is searched from now on, and copied: the next commit may be long in coming.
    async fn look_for_merges(&mut self) {
        self.merging_until = self.merging_until.filter(|until| Instant::now() < *until);
        match self.with_partition(Partition::refresh).await {
            Ok(true) => {
                if let Some(positions) = self.signals.visible.positions() {
                    self.offer(&positions, true);
                }
            }
            Ok(false) => {}
            Err(error) => episodes::warn("segments of indexes cannot be merged", "search", &error),
        }
    }

    async fn recover(&mut self) {
        (self.caught_up, self.known_at) = (Place::default(), None);
        let Some(mut partition) = self.partition.take() else {
            return;
        };
        if let Ok((partition, _)) = spawn_blocking(move || {
            let recovered = partition.recover().map(drop);
            (partition, recovered)
        })
        .await
        {
            self.partition = Some(partition);
        }
    }
}

/// What a page may hold, so that all indexes of a node together hold no more than they may.
fn page_bytes_max(runtime: &Runtime<SearchService>) -> i64 {
    let share = runtime.inner.settings.cache_bytes / usize::from(runtime.shards());
    i64::try_from(share).unwrap_or(i64::MAX).min(DOCUMENTS_BYTES_MAX)
}

/// Where a page ends of documents that are so long, and whether others follow: whole records, as many as have room.
fn page_end(sizes: &[(Seq, i64)], bytes_max: i64) -> (Seq, bool) {
    let (mut bytes, mut end) = (0, 0);
    for record in sizes.chunk_by(|one, other| one.0 == other.0) {
        bytes += record.iter().map(|(_, bytes)| bytes).sum::<i64>();
        // One that is too long by itself is a page.
        if bytes > bytes_max && end > 0 {
            return (end, true);
        }
        end = record[0].0;
    }
    (end, sizes.len() as i64 >= DOCUMENTS_MAX)
}

fn position(place: Place, positions: &HashMap<Source, Seq>) -> Position {
    let sources = positions.iter().map(|(source, seq)| (source.to_string(), seq.unsigned_abs())).collect();
    Position { applied_seq: place.seq.unsigned_abs(), history: place.history, sources }
}

enum Step {
    /// There are more documents than one commit takes.
    More,
    /// The index contains everything; how much of it came with this step.
    CaughtUp { documents: usize },
}

#[cfg(test)]
mod tests {
    use tokio_postgres::Config;

    use super::*;
    use crate::{
        ids::Incarnation,
        runtime,
        search::index::{Kind, Search, Settings},
    };

    fn post(n: u128) -> Document {
        Document {
            kind: Kind::Post,
            id: Uuid::from_u128(n),
            version: 1,
            author: None,
            tags: Vec::new(),
            title: None,
            body: "rust".to_owned(),
            created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            post_id: None,
            deleted: false,
        }
    }

    /// What was broken: a page was 5,000 documents, however long they were.
    #[test]
    fn a_page_holds_as_many_records_as_have_room() {
        let page_end = |sizes: &[(Seq, i64)]| page_end(sizes, DOCUMENTS_BYTES_MAX);
        let long = DOCUMENTS_BYTES_MAX / 2;
        assert_eq!(page_end(&[]), (0, false));
        assert_eq!(page_end(&[(3, 10), (7, 10)]), (7, false));
        assert_eq!(page_end(&[(3, long), (4, long), (5, 1), (6, 1)]), (4, true), "what has no room comes with the next");
        assert_eq!(page_end(&[(3, 1), (4, long), (4, long), (5, 1)]), (3, true), "a record is not torn apart");
        assert_eq!(
            page_end(&[(4, long), (4, long), (4, long), (5, 1)]),
            (4, true),
            "one alone is a page, or nothing would go on"
        );
        let many: Vec<(Seq, i64)> = (1..=DOCUMENTS_MAX).map(|seq| (seq, 1)).collect();
        assert_eq!(page_end(&many), (DOCUMENTS_MAX, true));
    }

    /// What was broken: the memory that the configuration allows was nobody's business.
    #[tokio::test]
    async fn a_page_is_no_larger_than_the_share_of_its_index() {
        let runtime = |cache_bytes: usize, shards: u16| {
            let settings = runtime::Settings { shards, cache_bytes, ..runtime::Settings::default() };
            Runtime::new(SearchService::default(), Config::new(), Incarnation(Uuid::from_u128(1)), settings)
        };
        assert_eq!(page_bytes_max(&runtime(256 << 20, 4)), DOCUMENTS_BYTES_MAX);
        assert_eq!(page_bytes_max(&runtime(64 << 20, 16)), 4 << 20);
        assert_eq!(page_end(&[(3, 10), (7, 10), (8, 10)], 20), (7, true));
    }

    /// What was broken: the index was gone with the panic, and its replica never followed again.
    #[tokio::test]
    async fn an_index_follows_again_after_a_panic() {
        let settings = runtime::Settings { shards: 1, ..runtime::Settings::default() };
        let runtime = Runtime::new(SearchService::default(), Config::new(), Incarnation(Uuid::from_u128(1)), settings);
        let folder = tempfile::tempdir().unwrap();
        let partition = Partition::open(folder.path(), Settings::default()).unwrap();
        let (reader, (_held, held)) = (partition.reader(), watch::channel(()));
        let mut follower = Follower::new(runtime, ShardId(0), partition, Signals::default(), held);
        let panicked = follower.with_partition::<()>(|_| panic!("an index panics")).await;
        assert!(matches!(panicked, Err(FollowError::Panicked)), "{panicked:?}");
        follower.recover().await;
        follower.index(vec![(1, post(1))], Position::default()).await.unwrap();
        assert_eq!(reader.search(&Search::default()).unwrap().total, 1);
    }
}
