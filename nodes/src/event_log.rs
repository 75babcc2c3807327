//! The embedded event log: the outboxes themselves, asked of the shards' owner.

use std::{sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, FutureExt};
use rookery_actors::{
    entity::Failure,
    event::{EventLog, Fetched, LogError, Record, Topic},
    ids::{Epoch, Seq, ShardId},
    runtime::Runtime,
    service::Service,
};
use tokio::sync::watch;

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
    /// The records after these positions, wherever their shards are served.
    fn fetch<'a>(
        &'a self,
        topic: Topic,
        positions: &'a [(ShardId, Seq)],
        bytes_max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Fetched>, LogError>>;
    /// Wakes whenever a shard begins or ends to be served here.
    fn tenures(&self) -> watch::Receiver<u64>;
    /// These shards by who serves them now.
    fn by_owner(&self, shards: Vec<ShardId>) -> Vec<Vec<ShardId>>;
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

    fn fetch<'a>(
        &'a self,
        topic: Topic,
        positions: &'a [(ShardId, Seq)],
        bytes_max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Fetched>, LogError>> {
        Runtime::fetch_log(self, topic, positions, bytes_max, wait).boxed()
    }

    fn tenures(&self) -> watch::Receiver<u64> {
        Runtime::tenures(self)
    }

    fn by_owner(&self, shards: Vec<ShardId>) -> Vec<Vec<ShardId>> {
        Runtime::by_owner(self, shards)
    }
}

/// The services as one log, each read where its shards are served.
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
}

impl EventLog for EmbeddedLog {
    fn fetch<'a>(
        &'a self,
        topic: Topic,
        positions: &'a [(ShardId, Seq)],
        bytes_max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Fetched>, LogError>> {
        self.source(topic).fetch(topic, positions, bytes_max, wait)
    }

    fn groups(&self, topic: Topic, shards: Vec<ShardId>) -> Vec<Vec<ShardId>> {
        self.source(topic).by_owner(shards)
    }

    fn regroups(&self, topic: Topic) -> Option<watch::Receiver<u64>> {
        Some(self.source(topic).tenures())
    }
}
