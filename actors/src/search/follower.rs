//! Keeps one index partition behind the documents by a fraction of a second.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{sync::watch, task::spawn_blocking, time::Instant};

use super::{
    SearchService,
    index::{Document, Partition, PartitionError, Position},
};
use crate::{
    entity::Failure,
    event::Source,
    ids::{Seq, ShardId},
    runtime::Runtime,
};

/// Between two commits of an index that has little to do: a write is found soon.
const COMMIT_EVERY: Duration = Duration::from_millis(150);
/// The same under load. A commit makes a segment, which costs as much as hundreds of documents: to write, to merge.
const COMMIT_EVERY_BUSY: Duration = Duration::from_millis(500);
/// Documents in one commit from which on an index is busy.
const BUSY: usize = 20;
/// Documents in one commit, about; the rest follows in the next, at once.
const DOCUMENTS_MAX: i64 = 5_000;

/// How far each source can be found in an index.
#[derive(Clone)]
pub(crate) struct Visible(Arc<watch::Sender<HashMap<Source, Seq>>>);

impl Default for Visible {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(HashMap::new())))
    }
}

impl Visible {
    fn publish(&self, positions: HashMap<Source, Seq>) {
        self.0.send_replace(positions);
    }

    /// Ends when the index contains the source up to `seq`.
    pub(crate) async fn reaches(&self, source: Source, seq: Seq) {
        let mut positions = self.0.subscribe();
        // The sender lives as long as we do.
        let _ = positions.wait_for(|positions| positions.get(&source).is_some_and(|reached| *reached >= seq)).await;
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
        self.0.done.send_replace(number);
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
    pub(crate) runtime: Runtime<SearchService>,
    pub(crate) shard: ShardId,
    /// None while it is being written to.
    pub(crate) partition: Option<Partition>,
    pub(crate) visible: Visible,
    pub(crate) rebuilds: Rebuilds,
    pub(crate) obstacle: Obstacle,
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
    /// Follows until the runtime stops, then closes the index.
    pub(crate) async fn run(mut self) {
        let mut batches = self.runtime.batches();
        while !self.runtime.is_stopped() {
            let began = Instant::now();
            let step = self.step().await;
            self.obstacle.is(match &step {
                Ok(Step::NotServed) => Some(format!("search shard {} is not served here", self.shard)),
                Ok(_) => None,
                Err(error) => Some(format!("the index of search shard {} cannot be written: {error}", self.shard)),
            });
            match step {
                Ok(Step::More) => continue,
                Ok(step) => {
                    let busy = matches!(step, Step::CaughtUp { documents } if documents >= BUSY);
                    let pause = if busy { COMMIT_EVERY_BUSY } else { COMMIT_EVERY };
                    tokio::time::sleep_until(began + pause).await;
                    // A tick even without news: the shard may have opened, or the stop may have come.
                    let news = async {
                        tokio::select! {
                            _ = batches.changed() => {}
                            () = self.rebuilds.asked() => {}
                        }
                    };
                    let _ = tokio::time::timeout(Duration::from_millis(500), news).await;
                }
                Err(error) => {
                    tracing::warn!(shard.id = %self.shard, %error, "an index cannot follow, it tries again");
                    self.recover().await;
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
        if let Some(partition) = self.partition.take() {
            let _ = spawn_blocking(move || partition.close()).await;
        }
    }

    async fn step(&mut self) -> Result<Step, FollowError> {
        // First how far the shard has come, then its documents: so they contain all that the positions promise.
        let Some((head, positions)) = self.runtime.reached(self.shard) else {
            return Ok(Step::NotServed);
        };
        if let Some(number) = self.rebuilds.wanted() {
            self.rebuild(head, &positions).await?;
            self.visible.publish(positions);
            self.rebuilds.done(number);
            return Ok(Step::CaughtUp { documents: 0 });
        }
        let applied = self.partition.as_ref().ok_or(FollowError::Panicked)?.position().applied_seq;
        let applied = Seq::try_from(applied).unwrap_or(Seq::MAX);
        let documents = if head > applied { self.documents(applied).await? } else { Vec::new() };
        let count = documents.len();
        let more = count as i64 >= DOCUMENTS_MAX;
        if !documents.is_empty() {
            let last = documents.last().map_or(0, |(seq, _)| *seq);
            let applied_seq = if more { last } else { last.max(head.unsigned_abs()) };
            self.index(documents, position(applied_seq, &positions)).await?;
        }
        if !more {
            self.visible.publish(positions);
        }
        Ok(if more { Step::More } else { Step::CaughtUp { documents: count } })
    }

    async fn documents(&self, applied: Seq) -> Result<Vec<(u64, Document)>, Failure> {
        let client = self.runtime.database().get().await?;
        let rows = client
            .query(
                // A comment that was on its way when its post went is never to be found; those before it go with their post.
                // With ties: a page ends with a whole record, however many documents came with it.
                "SELECT seq, doc FROM documents d
                 WHERE shard = $1 AND seq > $2 AND NOT (type = 'comment' AND EXISTS (
                     SELECT FROM documents p WHERE p.type = 'post' AND p.id = (d.doc::json->>'post_id')::uuid
                     AND p.doc::json->>'deleted' = 'true'))
                 ORDER BY seq FETCH FIRST ($3) ROWS WITH TIES",
                &[&self.shard.as_i16(), &applied, &DOCUMENTS_MAX],
            )
            .await?;
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
            let result = write(&mut partition);
            (partition, result)
        })
        .await
        .map_err(|_| FollowError::Panicked)?;
        self.partition = Some(partition);
        Ok(result?)
    }

    async fn recover(&mut self) {
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
    /// Somebody else has the shard, or nobody.
    NotServed,
    /// There are more documents than one commit takes.
    More,
    /// The index contains everything; how much of it came with this step.
    CaughtUp { documents: usize },
}
