//! The services as an administrator sees them, whatever their entities are.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use rookery_actors::{
    entity::Failure,
    event::Source,
    ids::{Epoch, Seq, ShardId},
    runtime::{ProjectError, Runtime},
    service::Service,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A database that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(1);

/// How one service is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// `users`, `posts`, `comments`, `search`.
    pub service: String,
    /// Shards that it has.
    pub shards: u16,
    /// Shards that this node serves.
    pub shards_owned: usize,
    /// Whether the lease holds.
    pub serving: bool,
    /// Records in the logs of the owned shards.
    pub head: Seq,
    /// Records that its slowest consumer has not applied yet; none: nobody reads it, or the database does not answer.
    pub lag: Option<Seq>,
    /// Entities in memory.
    pub entities: usize,
    /// What they take, in bytes.
    pub bytes: usize,
    /// How long the database takes to answer; none: it does not.
    pub database_ms: Option<f64>,
    /// Records in the dead letters; none: the database does not answer.
    pub dead_letters: Option<u64>,
}

/// One shard that this node serves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Whose.
    pub service: String,
    /// Its number.
    pub shard: ShardId,
    /// The name of the node.
    pub owner: String,
    /// Under which it is served.
    pub epoch: Epoch,
    /// Records that its slowest consumer has not applied yet.
    pub lag: Option<Seq>,
}

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
    fn status<'a>(&'a self, node: &'a str) -> BoxFuture<'a, (ServiceStatus, Vec<ShardStatus>)>;
    fn letters(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Letter>, Failure>>;
    fn replay(&self, shard: ShardId, source: Source, seq: Seq) -> BoxFuture<'_, Result<bool, ProjectError>>;
}

impl<S: Service> Administered for Runtime<S> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn status<'a>(&'a self, node: &'a str) -> BoxFuture<'a, (ServiceStatus, Vec<ShardStatus>)> {
        status(self, node).boxed()
    }

    fn letters(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Letter>, Failure>> {
        async move {
            let letters = self.dead_letters(limit).await?;
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

async fn status<S: Service>(runtime: &Runtime<S>, node: &str) -> (ServiceStatus, Vec<ShardStatus>) {
    let began = Instant::now();
    let ask = async {
        // The places first: heads that are read later can only make the lag look larger.
        let places: HashMap<ShardId, Seq> = runtime.slowest_places().await?.into_iter().collect();
        let answered = began.elapsed();
        let client = runtime.database().get().await?;
        let letters: i64 = client.query_one("SELECT count(*) FROM dead_letter", &[]).await?.get(0);
        Ok::<_, Failure>((places, answered, letters.unsigned_abs()))
    };
    let (places, database_ms, dead_letters) = match tokio::time::timeout(PATIENCE, ask).await {
        Ok(Ok((places, answered, letters))) => (places, Some(answered.as_secs_f64() * 1e3), Some(letters)),
        Ok(Err(_)) | Err(_) => (HashMap::new(), None, None),
    };
    // Nobody reads the search service's log; and of what we cannot ask we know nothing.
    let is_read = !places.is_empty();
    let lag = |shard: ShardId, head: Seq| is_read.then(|| (head - places.get(&shard).copied().unwrap_or(0)).max(0));
    let owned = runtime.owned();
    let shards: Vec<ShardStatus> = owned
        .iter()
        .map(|(shard, epoch, head)| ShardStatus {
            service: S::NAME.to_owned(),
            shard: *shard,
            owner: node.to_owned(),
            epoch: *epoch,
            lag: lag(*shard, *head),
        })
        .collect();
    let (entities, bytes) = runtime.loaded();
    let service = ServiceStatus {
        service: S::NAME.to_owned(),
        shards: runtime.shards(),
        shards_owned: owned.len(),
        serving: runtime.lease().is_valid(),
        head: owned.iter().map(|(.., head)| head).sum(),
        lag: shards.iter().map(|shard| shard.lag).sum(),
        entities,
        bytes,
        database_ms,
        dead_letters,
    };
    (service, shards)
}
