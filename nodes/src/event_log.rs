//! The embedded event log: the outboxes themselves, asked of the shards' owner.

use std::{sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, FutureExt, join_all, select_all};
use rookery_actors::{
    entity::Failure,
    event::{EventLog, Fetched, LogError, Record, Source, Topic},
    ids::{Epoch, Seq, ShardId},
    runtime::Runtime,
    service::Service,
};
use tokio::{sync::watch, time::Instant};

/// A service on this node as a publisher.
pub trait LogSource: Send + Sync + 'static {
    /// The shards that are served here, with their epochs and the last committed position.
    fn owned(&self) -> Vec<(ShardId, Epoch, Seq)>;
    /// The last committed position of a shard that is served here.
    fn head(&self, shard: ShardId) -> Option<Seq>;
    /// The records of a shard after a position.
    fn log_after(&self, shard: ShardId, position: Seq, bytes_max: usize) -> BoxFuture<'_, Result<Vec<Arc<Record>>, Failure>>;
    /// Wakes whenever a batch was committed.
    fn batches(&self) -> watch::Receiver<u64>;
}

impl<S: Service> LogSource for Runtime<S> {
    fn owned(&self) -> Vec<(ShardId, Epoch, Seq)> {
        Runtime::owned(self)
    }

    fn head(&self, shard: ShardId) -> Option<Seq> {
        Runtime::head(self, shard)
    }

    fn log_after(&self, shard: ShardId, position: Seq, bytes_max: usize) -> BoxFuture<'_, Result<Vec<Arc<Record>>, Failure>> {
        Runtime::log_after(self, shard, position, bytes_max).boxed()
    }

    fn batches(&self) -> watch::Receiver<u64> {
        Runtime::batches(self)
    }
}

/// The services of this node as one log.
pub struct EmbeddedLog {
    users: Arc<dyn LogSource>,
    posts: Arc<dyn LogSource>,
    comments: Arc<dyn LogSource>,
}

impl EmbeddedLog {
    /// A log over the three services that publish.
    pub fn new(users: Arc<dyn LogSource>, posts: Arc<dyn LogSource>, comments: Arc<dyn LogSource>) -> Self {
        Self { users, posts, comments }
    }

    fn source(&self, topic: Topic) -> &dyn LogSource {
        match topic {
            Topic::Users => &*self.users,
            Topic::Posts => &*self.posts,
            Topic::Comments => &*self.comments,
        }
    }

    async fn read(&self, topic: Topic, positions: &[(ShardId, Seq)], bytes_max: usize) -> Result<Vec<Fetched>, LogError> {
        let source = self.source(topic);
        let unavailable = |failure: Failure| LogError::Unavailable { topic, reason: failure.to_string() };
        let ahead = positions.iter().find_map(|(shard, position)| {
            let head = source.head(*shard).filter(|head| head < position)?;
            Some(LogError::OutOfRange { source_shard: Source { topic, shard: *shard }, position: *position, floor: 0, head })
        });
        // Somebody read what this log no longer has: it was restored from an older copy, say.
        if let Some(ahead) = ahead {
            return Err(ahead);
        }
        let behind: Vec<(ShardId, Seq)> = positions
            .iter()
            .copied()
            .filter(|(shard, position)| source.head(*shard).is_some_and(|head| head > *position))
            .collect();
        if behind.is_empty() {
            return Ok(Vec::new());
        }
        let share = (bytes_max / behind.len()).max(1);
        let reads = behind.into_iter().map(|(shard, position)| async move {
            let records = source.log_after(shard, position, share).await.map_err(unavailable)?;
            // Trimming leaves holes; whoever stands before one would miss what was there (rule 5).
            let gap = records.iter().zip(position + 1..).find(|(record, expected)| record.seq != *expected);
            if let Some((record, _)) = gap {
                let head = source.head(shard).unwrap_or(record.seq);
                return Err(LogError::OutOfRange { source_shard: Source { topic, shard }, position, floor: record.seq, head });
            }
            Ok(Fetched { shard, records })
        });
        let mut fetched = Vec::new();
        for read in join_all(reads).await {
            let read: Fetched = read?;
            if !read.records.is_empty() {
                fetched.push(read);
            }
        }
        Ok(fetched)
    }
}

impl EventLog for EmbeddedLog {
    fn fetch<'a>(
        &'a self,
        topic: Topic,
        positions: &'a [(ShardId, Seq)],
        bytes_max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Fetched>, LogError>> {
        async move {
            let deadline = Instant::now() + wait;
            let mut batches = self.source(topic).batches();
            loop {
                batches.mark_unchanged();
                let fetched = self.read(topic, positions, bytes_max).await?;
                if !fetched.is_empty() {
                    return Ok(fetched);
                }
                let timeout = tokio::time::sleep_until(deadline).boxed();
                let (news, ..) =
                    select_all([timeout.map(|()| false).boxed(), batches.changed().map(|woken| woken.is_ok()).boxed()]).await;
                if !news {
                    return Ok(Vec::new());
                }
            }
        }
        .boxed()
    }
}
