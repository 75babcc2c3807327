//! The services as an administrator sees them, whatever their entities are.

use futures_util::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use rookery_actors::{
    entity::Failure,
    event::Source,
    ids::{Epoch, Seq, ShardId},
    runtime::{Database, LetterFilter, ProjectError, Runtime},
    service::Service,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A dead letter, as it is shown and named.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Letter {
    /// The service that could not apply it.
    pub service: String,
    /// The shard of that service.
    pub shard: ShardId,
    /// `posts/17`: the log that it came from.
    pub source: String,
    /// Its position there.
    pub seq: Seq,
    /// `post.created`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The entity.
    pub key: Uuid,
    /// Why it could not be applied.
    pub reason: String,
    /// When it was given up.
    pub at: Timestamp,
}

/// A service on this node.
pub(super) trait Administered: Send + Sync {
    fn name(&self) -> &'static str;
    fn database(&self) -> &Database;
    /// How many shards the service has.
    fn shards(&self) -> u16;
    /// The shards that this node serves.
    fn owned(&self) -> Vec<(ShardId, Epoch, Seq)>;
    fn letters(&self, filter: LetterFilter, limit: usize) -> BoxFuture<'_, Result<Vec<Letter>, Failure>>;
    fn replay(&self, shard: ShardId, source: Source, seq: Seq) -> BoxFuture<'_, Result<bool, ProjectError>>;
}

impl<S: Service> Administered for Runtime<S> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn database(&self) -> &Database {
        Runtime::database(self)
    }

    fn shards(&self) -> u16 {
        Runtime::shards(self)
    }

    fn owned(&self) -> Vec<(ShardId, Epoch, Seq)> {
        Runtime::owned(self)
    }

    fn letters(&self, filter: LetterFilter, limit: usize) -> BoxFuture<'_, Result<Vec<Letter>, Failure>> {
        async move {
            let letters = self.dead_letters(&filter, limit).await?;
            let show = |letter: rookery_actors::runtime::StoredLetter| Letter {
                service: S::NAME.to_owned(),
                shard: letter.shard,
                source: letter.source.to_string(),
                seq: letter.seq,
                kind: letter.kind.to_string(),
                key: letter.key,
                reason: letter.reason,
                at: letter.at,
            };
            Ok(letters.into_iter().map(show).collect())
        }
        .boxed()
    }

    fn replay(&self, shard: ShardId, source: Source, seq: Seq) -> BoxFuture<'_, Result<bool, ProjectError>> {
        Runtime::replay(self, shard, source, seq).boxed()
    }
}
