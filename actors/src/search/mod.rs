//! Search: documents made from the other services' events, and the indexes that find them.

mod follower;
pub mod index;
pub mod service;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{join_all, try_join_all};
use serde::{Deserialize, Serialize};
use tokio::task::{JoinHandle, spawn_blocking};
use uuid::Uuid;

pub use self::service::{SearchService, comment as comment_document, post as post_document, user as user_document};
use self::{
    follower::{Follower, Obstacle, Rebuilds, Visible},
    index::{
        Hits, Partition, PartitionError, PartitionReader, Search, SearchError, Settings, Suggestion, merge, merge_suggestions,
    },
    service::home,
};
use crate::{
    entity::Failure,
    event::{Source, Topic},
    ids::{Seq, ShardId, shard_of},
    runtime::{Runtime, Unit},
    service::Poison,
};

/// How long a stop waits for the indexes: longer than a merge, shorter than an operator's patience.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// The public face of the search service: this node's replicas of the index, and the way to the documents.
#[derive(Clone)]
pub struct SearchFace {
    runtime: Runtime<SearchService>,
    replicas: Arc<Vec<Replica>>,
}

struct Replica {
    reader: PartitionReader,
    visible: Visible,
    rebuilds: Rebuilds,
    obstacle: Obstacle,
    follower: JoinHandle<()>,
}

/// An answer to a search.
#[derive(Debug)]
pub struct Answer {
    /// What was found.
    pub hits: Hits,
    /// A part of the index could not answer in time.
    pub partial: bool,
    /// How long it took.
    pub took: Duration,
}

/// Names a write, so that a search can wait until it is found (rule 21).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchToken {
    /// The log of the write.
    pub topic: Topic,
    /// Its shard there.
    pub shard: ShardId,
    /// Its record.
    pub seq: Seq,
    /// The record's key, which tells the partition.
    pub key: Uuid,
}

impl SearchFace {
    /// Opens the replicas of all partitions below `folder` and lets them follow the documents.
    ///
    /// # Errors
    /// When an index folder cannot be used.
    pub async fn open(runtime: Runtime<SearchService>, folder: &Path) -> Result<Self, PartitionError> {
        let mut replicas = Vec::new();
        for shard in (0..runtime.shards()).map(ShardId) {
            let dir = folder.join(shard.to_string());
            let partition =
                spawn_blocking(move || Partition::open(&dir, Settings::default())).await.expect("opening does not panic")?;
            let visible = Visible::default();
            let reader = partition.reader();
            let rebuilds = Rebuilds::default();
            let obstacle = Obstacle::default();
            let follower = Follower {
                runtime: runtime.clone(),
                shard,
                partition: Some(partition),
                visible: visible.clone(),
                rebuilds: rebuilds.clone(),
                obstacle: obstacle.clone(),
            };
            replicas.push(Replica { reader, visible, rebuilds, obstacle, follower: tokio::spawn(follower.run()) });
        }
        Ok(Self { runtime, replicas: Arc::new(replicas) })
    }

    /// A face on a node that holds no replicas: whatever it is asked, its answer is partial.
    pub fn without_replicas(runtime: Runtime<SearchService>) -> Self {
        Self { runtime, replicas: Arc::default() }
    }

    /// The runtime behind it.
    pub fn runtime(&self) -> &Runtime<SearchService> {
        &self.runtime
    }

    /// Waits until the followers have closed their indexes; the runtime must have stopped.
    pub async fn closed(&self) {
        let deadline = Instant::now() + CLOSE_PATIENCE;
        for replica in self.replicas.iter() {
            while !replica.follower.is_finished() && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // One that waits for a database which says nothing: its index is as of its last commit.
            replica.follower.abort();
        }
    }

    /// Asks every partition, merges the best. What does not answer by `deadline` makes the answer partial.
    ///
    /// # Errors
    /// When no partition could answer.
    pub async fn search(&self, search: Search, deadline: tokio::time::Instant) -> Result<Answer, SearchError> {
        let began = Instant::now();
        let search = Arc::new(search);
        let asked = self.replicas.iter().map(|replica| {
            let (reader, search) = (replica.reader.clone(), Arc::clone(&search));
            tokio::time::timeout_at(deadline, spawn_blocking(move || reader.search(&search)))
        });
        let (mut parts, mut partial, mut failed) = (Vec::new(), self.replicas.is_empty(), None);
        for answer in join_all(asked).await {
            match answer {
                Ok(Ok(Ok(hits))) => parts.push(hits),
                Ok(Ok(Err(error))) => {
                    tracing::warn!(%error, "an index partition could not answer");
                    (partial, failed) = (true, Some(error));
                }
                Ok(Err(_)) | Err(_) => partial = true,
            }
        }
        match failed {
            Some(error) if parts.is_empty() => Err(error),
            _ => Ok(Answer { hits: merge(parts, search.limit), partial, took: began.elapsed() }),
        }
    }

    /// Completes what is being typed.
    pub async fn suggest(&self, typed: &str, limit: usize) -> Vec<Suggestion> {
        let asked = self.replicas.iter().map(|replica| {
            let (reader, typed) = (replica.reader.clone(), typed.to_owned());
            spawn_blocking(move || reader.suggest(&typed, limit))
        });
        let parts = join_all(asked).await.into_iter().flatten().flatten().flatten().collect();
        merge_suggestions(parts, limit)
    }

    /// Waits until a write can be found; whether it can.
    pub async fn visible(&self, token: SearchToken, within: Duration) -> bool {
        let shard = shard_of(token.key, self.runtime.shards());
        let source = Source { topic: token.topic, shard: token.shard };
        match self.replicas.get(shard.index()) {
            Some(replica) => tokio::time::timeout(within, replica.visible.reaches(source, token.seq)).await.is_ok(),
            None => false,
        }
    }

    /// Stores documents by version, through the shards' owner like everything else (rule 20): for rebuilding.
    ///
    /// # Errors
    /// When a shard could not commit.
    pub async fn put(&self, documents: Vec<index::Document>) -> Result<(), Failure> {
        let shards = self.runtime.shards();
        let mut units: Vec<Unit<SearchService>> = (0..shards).map(|_| Unit::of(shards)).collect();
        let mut count = vec![0; usize::from(shards)];
        for document in &documents {
            let shard = shard_of(home(document), shards);
            count[shard.index()] += 1;
            units[shard.index()].writes.put(shard, document).map_err(|Poison(reason)| Failure::Unavailable(reason))?;
        }
        for (n, unit) in units.into_iter().enumerate().filter(|(n, _)| count[*n] > 0) {
            let shard = ShardId(u16::try_from(n).expect("shards are few"));
            let named = |error| Failure::Unavailable(format!("search shard {shard}: {error}"));
            self.runtime.commit(shard, unit).await.map_err(named)?;
        }
        Ok(())
    }

    /// The documents of one kind after an id, in the order of ids, those that only say that a thing is gone included: for
    /// whoever looks for what should not be there.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn documents(&self, kind: index::Kind, after: Option<Uuid>, limit: usize) -> Result<Vec<index::Document>, Failure> {
        let after = after.unwrap_or_else(Uuid::nil);
        let count = i64::try_from(limit).expect("a page is short");
        let client = self.runtime.database().get().await?;
        let rows = client
            .query(
                "SELECT doc FROM documents WHERE type = $1 AND id > $2 ORDER BY id LIMIT $3",
                &[&kind.as_str(), &after, &count],
            )
            .await?;
        let parse = |row: &tokio_postgres::Row| {
            serde_json::from_str(row.get(0))
                .map_err(|error| Failure::Unavailable(format!("a stored document does not parse: {error}")))
        };
        rows.iter().map(parse).collect()
    }

    /// Builds this node's indexes anew from the documents, and waits until they are. The old ones serve meanwhile; what is
    /// written meanwhile is found afterwards.
    ///
    /// # Errors
    /// When an index cannot be built for so long: its shard is not served here, or its documents cannot be read. It will be
    /// as soon as that has passed.
    pub async fn rebuild(&self, patience: Duration) -> Result<(), Failure> {
        try_join_all(self.replicas.iter().map(async |replica| {
            tokio::select! {
                () = replica.rebuilds.one() => Ok(()),
                reason = replica.obstacle.lasts(patience) => Err(Failure::Unavailable(reason)),
            }
        }))
        .await
        .map(drop)
    }

    /// How many documents can be found here.
    pub fn document_count(&self) -> u64 {
        self.replicas.iter().map(|replica| replica.reader.document_count()).sum()
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::Config;

    use super::*;
    use crate::{ids::Incarnation, runtime};

    /// What was broken: it waited for ever, and the command with it.
    #[tokio::test]
    async fn a_rebuild_of_an_index_whose_shard_is_not_served_ends_and_names_it() {
        let settings = runtime::Settings { shards: 1, ..runtime::Settings::default() };
        let runtime = Runtime::new(SearchService, Config::new(), Incarnation(Uuid::from_u128(1)), settings);
        let folder = tempfile::tempdir().unwrap();
        let search = SearchFace::open(runtime, folder.path()).await.unwrap();
        let ended = search.rebuild(Duration::from_millis(100)).await;
        assert!(matches!(&ended, Err(Failure::Unavailable(reason)) if reason.contains("search shard 0")), "{ended:?}");
    }
}
