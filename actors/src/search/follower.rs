//! Keeps one index partition behind the documents by a fraction of a second.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};

use super::{
    Answer, Query, SearchService,
    index::{CheckpointError, Document, Partition, PartitionError, Position},
};
use crate::{
    entity::Failure,
    event::Source,
    ids::{Seq, ShardId},
    runtime::{Runtime, strange_answer},
};

/// Between two commits of an index that has little to do: a write is found soon.
const COMMIT_EVERY: Duration = Duration::from_millis(150);
/// The same under load. A commit makes a segment, which costs as much as hundreds of documents: to write, to merge.
const COMMIT_EVERY_BUSY: Duration = Duration::from_millis(500);
/// Documents in one commit from which on an index is busy.
const BUSY: usize = 20;
/// The longest wait for news; an index looks around at least this often.
const NEWS_WITHIN: Duration = Duration::from_millis(500);
/// What the owner of the shard may take beyond that to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// After a failure.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Between two checkpoints: what is read again, at most, after the machine went down.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);
/// Documents in one commit, about; the rest follows in the next, at once.
const DOCUMENTS_MAX: i64 = 5_000;

/// What an index reads: the documents of a shard after a seq, about so many.
///
/// A comment that was on its way when its post went is never to be found; those before it go with their post. Each post is
/// looked up by its key: for a NOT EXISTS, Postgres would read all documents there are and hash those of deleted posts.
/// With ties: a page ends with a whole record, however many documents came with it.
pub const DOCUMENTS_AFTER: &str = "SELECT seq, doc FROM documents d
     WHERE shard = $1 AND seq > $2 AND (type <> 'comment' OR (
         SELECT p.doc::json->>'deleted' FROM documents p
         WHERE p.type = 'post' AND p.id = (d.doc::json->>'post_id')::uuid) IS DISTINCT FROM 'true')
     ORDER BY seq FETCH FIRST ($3) ROWS WITH TIES";

/// How far each source can be found in an index.
#[derive(Clone)]
pub(crate) struct Visible(Arc<watch::Sender<Option<HashMap<Source, Seq>>>>);

impl Default for Visible {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Visible {
    fn publish(&self, positions: HashMap<Source, Seq>) {
        self.0.send_replace(Some(positions));
    }

    /// Whether the index has caught up since it was opened.
    pub(crate) fn is_known(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Ends when the index contains the source up to `seq`.
    pub(crate) async fn reaches(&self, source: Source, seq: Seq) {
        let mut positions = self.0.subscribe();
        // The sender lives as long as we do.
        let reached = |positions: &HashMap<Source, Seq>| positions.get(&source).is_some_and(|reached| *reached >= seq);
        let _ = positions.wait_for(|positions| positions.as_ref().is_some_and(reached)).await;
    }
}

/// How often an index was asked to be built anew, and how often it has been.
#[derive(Clone, Default)]
pub(crate) struct Rebuilds(Arc<Counts>);

#[derive(Default)]
struct Counts {
    wanted: watch::Sender<u64>,
    done: watch::Sender<u64>,
}

impl Rebuilds {
    /// Asks for one and waits for its end; the old index serves meanwhile.
    pub(crate) async fn one(&self) {
        let mut number = 0;
        self.0.wanted.send_modify(|wanted| {
            *wanted += 1;
            number = *wanted;
        });
        // The sender lives as long as we do.
        let _ = self.0.done.subscribe().wait_for(|done| *done >= number).await;
    }

    fn wanted(&self) -> Option<u64> {
        let wanted = *self.0.wanted.borrow();
        (wanted > *self.0.done.borrow()).then_some(wanted)
    }

    fn done(&self, number: u64) {
        self.0.done.send_modify(|done| *done = number.max(*done));
    }

    async fn asked(&self) {
        let done = *self.0.done.borrow();
        let _ = self.0.wanted.subscribe().wait_for(|wanted| *wanted > done).await;
    }
}

/// What keeps an index from following, if anything does.
#[derive(Clone, Default)]
pub(crate) struct Obstacle(Arc<watch::Sender<Option<String>>>);

impl Obstacle {
    fn is(&self, reason: Option<String>) {
        self.0.send_if_modified(|now| {
            let changed = *now != reason;
            *now = reason;
            changed
        });
    }

    /// Ends when there has been one for so long, with the reason.
    pub(crate) async fn lasts(&self, patience: Duration) -> String {
        let mut obstacle = self.0.subscribe();
        loop {
            // The sender lives as long as we do.
            let _ = obstacle.wait_for(Option::is_some).await;
            if tokio::time::timeout(patience, obstacle.wait_for(Option::is_none)).await.is_err()
                && let Some(reason) = &*obstacle.borrow()
            {
                return reason.clone();
            }
        }
    }
}

pub(crate) struct Follower {
    runtime: Runtime<SearchService>,
    shard: ShardId,
    partition: Option<Partition>,
    visible: Visible,
    rebuilds: Rebuilds,
    obstacle: Obstacle,
    /// Ends with the replica.
    held: watch::Receiver<()>,
    /// Up to here there is nothing more to read, whatever the index says of itself.
    caught_up: Seq,
    /// A write has failed: the index is to be built anew.
    doubtful: bool,
    /// When the last checkpoint began.
    checkpoint_at: Instant,
    /// One that is on its way to the disk.
    checkpoint: Option<JoinHandle<Result<(), CheckpointError>>>,
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
}

impl Follower {
    pub(crate) fn new(
        runtime: Runtime<SearchService>,
        shard: ShardId,
        partition: Partition,
        visible: Visible,
        rebuilds: Rebuilds,
        obstacle: Obstacle,
        held: watch::Receiver<()>,
    ) -> Self {
        Self {
            runtime,
            shard,
            partition: Some(partition),
            visible,
            rebuilds,
            obstacle,
            held,
            caught_up: 0,
            doubtful: false,
            checkpoint_at: Instant::now(),
            checkpoint: None,
        }
    }

    /// Follows until the replica is dropped or the runtime stops, then closes the index.
    pub(crate) async fn run(mut self) {
        let mut held = self.held.clone();
        while !self.runtime.is_stopped() {
            let began = Instant::now();
            let reached = tokio::select! {
                reached = self.reached(self.caught_up, NEWS_WITHIN) => reached,
                // How far it is by now, news or not.
                () = self.rebuilds.asked() => self.reached(0, Duration::ZERO).await,
                _ = held.changed() => break,
            };
            let step = match reached {
                Ok((head, positions)) => self.step(head, positions).await,
                Err(failure) => {
                    // The shard is on its way, or the node that serves it cannot be reached.
                    self.obstacle.is(Some(format!("nobody says how far search shard {} has come: {failure}", self.shard)));
                    tokio::time::sleep_until(began + RETRY_AFTER).await;
                    continue;
                }
            };
            let obstacle = |error| format!("the index of search shard {} cannot be written: {error}", self.shard);
            self.obstacle.is(step.as_ref().err().map(obstacle));
            self.look_after_checkpoints().await;
            match step {
                Ok(Step::More) => continue,
                Ok(Step::CaughtUp { documents }) => {
                    let pause = if documents < BUSY { COMMIT_EVERY } else { COMMIT_EVERY_BUSY };
                    tokio::time::sleep_until(began + pause).await;
                }
                Err(error) => {
                    tracing::warn!(shard.id = %self.shard, %error, "an index cannot follow, it tries again");
                    // Nobody can tell what a write that failed has left behind, on a full disk say; the index is disposable.
                    self.doubtful |= !matches!(error, FollowError::Documents(_));
                    self.recover().await;
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
        // Whoever waits for this index to be built anew waits no longer.
        self.rebuilds.done(u64::MAX);
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
        let wanted = self.rebuilds.wanted();
        if wanted.is_some() || self.doubtful {
            self.rebuild(head, &positions).await?;
            self.doubtful = false;
            self.caught_up = head;
            self.visible.publish(positions);
            if let Some(number) = wanted {
                self.rebuilds.done(number);
            }
            return Ok(Step::CaughtUp { documents: 0 });
        }
        let applied = self.partition.as_ref().ok_or(FollowError::Panicked)?.position().applied_seq;
        let applied = Seq::try_from(applied).unwrap_or(Seq::MAX).max(self.caught_up);
        let documents = if head > applied { self.documents(applied).await? } else { Vec::new() };
        let count = documents.len();
        let more = count as i64 >= DOCUMENTS_MAX;
        if !documents.is_empty() {
            let last = documents.last().map_or(0, |(seq, _)| *seq);
            let applied_seq = if more { last } else { last.max(head.unsigned_abs()) };
            self.index(documents, position(applied_seq, &positions)).await?;
        }
        if more {
            return Ok(Step::More);
        }
        self.caught_up = head;
        self.visible.publish(positions);
        Ok(Step::CaughtUp { documents: count })
    }

    async fn documents(&self, applied: Seq) -> Result<Vec<(u64, Document)>, Failure> {
        let client = self.runtime.database().get().await?;
        let rows = client.query(DOCUMENTS_AFTER, &[&self.shard.as_i16(), &applied, &DOCUMENTS_MAX]).await?;
        let parse = |row: &tokio_postgres::Row| {
            let document = serde_json::from_str(row.get(1))
                .map_err(|error| Failure::Unavailable(format!("a stored document does not parse: {error}")))?;
            Ok((row.get::<_, i64>(0).unsigned_abs(), document))
        };
        rows.iter().map(parse).collect()
    }

    /// Builds the index from nothing and commits it in one piece, so that nobody ever finds half of it.
    async fn rebuild(&mut self, head: Seq, positions: &HashMap<Source, Seq>) -> Result<(), FollowError> {
        tracing::info!(shard.id = %self.shard, "building an index anew");
        self.with_partition(Partition::reset).await?;
        let mut applied: Seq = 0;
        loop {
            let documents = self.documents(applied).await?;
            let more = documents.len() as i64 >= DOCUMENTS_MAX;
            let last = documents.last().map_or(0, |(seq, _)| seq.cast_signed());
            self.with_partition(move |partition| partition.apply(&documents)).await?;
            if !more {
                let applied_seq = last.max(head).unsigned_abs();
                let position = position(applied_seq, positions);
                return self.with_partition(move |partition| partition.commit(position)).await;
            }
            applied = last;
        }
    }

    async fn index(&mut self, documents: Vec<(u64, Document)>, position: Position) -> Result<(), FollowError> {
        self.with_partition(move |partition| partition.apply(&documents).and_then(|()| partition.commit(position))).await
    }

    /// Writes on a thread that may block.
    async fn with_partition(
        &mut self,
        write: impl FnOnce(&mut Partition) -> Result<(), PartitionError> + Send + 'static,
    ) -> Result<(), FollowError> {
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

    /// Hears how the last checkpoint ended and begins the next when it is time. Its way to the disk is not waited for.
    async fn look_after_checkpoints(&mut self) {
        if self.checkpoint.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(ended) = self.checkpoint.take()
            && let Ok(Err(error)) = ended.await
        {
            self.doubtful |= matches!(error, CheckpointError::Lost(..));
            tracing::warn!(shard.id = %self.shard, %error, "an index keeps its last checkpoint");
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

    async fn recover(&mut self) {
        self.caught_up = 0;
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

fn position(applied_seq: u64, positions: &HashMap<Source, Seq>) -> Position {
    let sources = positions.iter().map(|(source, seq)| (source.to_string(), seq.unsigned_abs())).collect();
    Position { applied_seq, sources }
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
    use uuid::Uuid;

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

    /// What was broken: the index was gone with the panic, and its replica never followed again.
    #[tokio::test]
    async fn an_index_follows_again_after_a_panic() {
        let settings = runtime::Settings { shards: 1, ..runtime::Settings::default() };
        let runtime = Runtime::new(SearchService::default(), Config::new(), Incarnation(Uuid::from_u128(1)), settings);
        let folder = tempfile::tempdir().unwrap();
        let partition = Partition::open(folder.path(), Settings::default()).unwrap();
        let (reader, (_held, held)) = (partition.reader(), watch::channel(()));
        let (visible, rebuilds, obstacle) = (Visible::default(), Rebuilds::default(), Obstacle::default());
        let mut follower = Follower::new(runtime, ShardId(0), partition, visible, rebuilds, obstacle, held);
        let panicked = follower.with_partition(|_| panic!("an index panics")).await;
        assert!(matches!(panicked, Err(FollowError::Panicked)), "{panicked:?}");
        follower.recover().await;
        follower.index(vec![(1, post(1))], Position::default()).await.unwrap();
        assert_eq!(reader.search(&Search::default()).unwrap().total, 1);
    }
}
