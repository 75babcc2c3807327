//! The log of events: records, and the seam behind which they travel.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use crate::ids::{Epoch, Seq, ShardId};

/// The event log of one service, `posts` for `post.events.v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    /// `user.events.v1`
    Users,
    /// `post.events.v1`
    Posts,
    /// `comment.events.v1`
    Comments,
}

impl Topic {
    /// Every topic that a service publishes.
    pub const ALL: [Topic; 3] = [Topic::Users, Topic::Posts, Topic::Comments];

    /// The service that publishes it; also the name in positions (`posts/17`).
    pub fn service(self) -> &'static str {
        match self {
            Topic::Users => "users",
            Topic::Posts => "posts",
            Topic::Comments => "comments",
        }
    }

    /// Its name in Kafka.
    pub fn kafka_name(self) -> &'static str {
        match self {
            Topic::Users => "user.events.v1",
            Topic::Posts => "post.events.v1",
            Topic::Comments => "comment.events.v1",
        }
    }
}

/// One shard of a foreign log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Source {
    /// The log.
    pub topic: Topic,
    /// The publishing service's shard.
    pub shard: ShardId,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic.service(), self.shard)
    }
}

impl std::str::FromStr for Source {
    type Err = UnknownSource;

    fn from_str(text: &str) -> Result<Self, UnknownSource> {
        let unknown = || UnknownSource(text.to_owned());
        let (service, shard) = text.split_once('/').ok_or_else(unknown)?;
        let topic = Topic::ALL.into_iter().find(|topic| topic.service() == service).ok_or_else(unknown)?;
        Ok(Self { topic, shard: ShardId(shard.parse().map_err(|_| unknown())?) })
    }
}

/// A position names a source that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("there is no log {0:?}: a service and the number of a shard are, such as users/3, posts/17 or comments/0")]
pub struct UnknownSource(String);

/// The type of a record that marks a change of ownership; it carries nothing else.
pub const EPOCH: &str = "epoch";
/// The type of a record by which a projection's write passes the fence; nobody else is concerned.
pub const APPLIED: &str = "applied";

/// One row of an outbox, as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Gap-free within the shard.
    pub seq: Seq,
    /// The epoch under which it was committed.
    pub epoch: Epoch,
    /// The entity; nil for epoch records.
    pub key: Uuid,
    /// `post.created`, …
    pub kind: Arc<str>,
    /// The resource's full state after the event as JSON; none for epoch records.
    pub payload: Option<Arc<str>>,
    /// The trace that caused it.
    pub traceparent: Option<Arc<str>>,
    /// When it was committed, by the database's clock as the committer saw it.
    pub at: Timestamp,
}

impl Record {
    /// The memory it takes, in bytes, roughly.
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.payload.as_ref().map_or(0, |payload| payload.len())
    }

    /// Whether any consumer could be concerned.
    pub fn is_internal(&self) -> bool {
        matches!(&*self.kind, EPOCH | APPLIED)
    }
}

/// Records of one source, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fetched {
    /// The shard of the publishing service.
    pub shard: ShardId,
    /// Consecutive records after the position that was asked for; never empty.
    pub records: Vec<Arc<Record>>,
}

/// Why the log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It will come back; ask again.
    #[error("the log of {topic:?} is unavailable: {reason}")]
    Unavailable {
        /// Which log.
        topic: Topic,
        /// What failed.
        reason: String,
    },
    /// The position lies below what is kept, or beyond what was written: rebuild from state.
    #[error("position {position} of {source_shard} is outside of the log ({floor}..={head})")]
    OutOfRange {
        /// Whose log.
        source_shard: Source,
        /// What was asked for.
        position: Seq,
        /// The first seq that is kept.
        floor: Seq,
        /// The last seq that was written.
        head: Seq,
    },
}

/// A durable log per shard that is read from a position on; the outboxes themselves, or Kafka.
pub trait EventLog: Send + Sync + 'static {
    /// The records that follow the given positions, at most about `bytes_max` of them, waiting up to `wait`
    /// for the first. Shards without news are left out; an empty answer means the wait is over.
    ///
    /// # Errors
    /// [`LogError`]; the positions stay good.
    fn fetch<'a>(
        &'a self,
        topic: Topic,
        positions: &'a [(ShardId, Seq)],
        bytes_max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Fetched>, LogError>>;

    /// These shards in groups that are best asked for separately; all together unless the log is spread.
    fn groups(&self, _: Topic, shards: Vec<ShardId>) -> Vec<Vec<ShardId>> {
        vec![shards]
    }

    /// Wakes when this node serves other shards of the publisher than before, if that changes the groups.
    fn regroups(&self, _: Topic) -> Option<watch::Receiver<u64>> {
        None
    }
}
