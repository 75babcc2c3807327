//! Search: documents made from the other services' events, and the indexes that find them.

mod copying;
mod follower;
mod here;
pub mod index;
mod placing;
mod replicas;
pub mod service;
mod signals;

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::{join, join_all};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::{
    follower::DOCUMENTS_AFTER,
    here::{Answer, Query},
    service::{SearchService, comment as comment_document, post as post_document, user as user_document},
};
use self::{
    here::Asked,
    index::{Hits, PartitionError, Search, SearchError, Suggestion, merge, merge_suggestions},
    placing::{Plan, plan},
    replicas::{Build, Home},
    service::{ForgottenRow, home},
};
use crate::{
    entity::Failure,
    event::{Source, Topic},
    ids::{Seq, ShardId, shard_of},
    runtime::{Runtime, strange_answer},
    service::Service,
};

/// How often a search is put to other nodes: once, to those that make up for the ones that did not answer, and to those
/// that have got a replica since they were last asked what they have.
const ROUNDS: usize = 3;
/// Text of documents that are stored together, in bytes, about.
const PUT_BYTES_MAX: usize = 1 << 20;
/// How long they may take.
const PUT_WITHIN: Duration = Duration::from_secs(10);
/// How long a node may take to say whether its indexes are built.
const REBUILD_ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Before it is asked again.
const REBUILD_PAUSE: Duration = Duration::from_millis(50);

/// The public face of the search service: the index, wherever its partitions lie, and the way to the documents.
#[derive(Clone)]
pub struct SearchFace {
    runtime: Runtime<SearchService>,
    /// So that nodes that are equally good share the work.
    turn: Arc<AtomicUsize>,
}

/// An answer to a search.
#[derive(Debug)]
pub struct Found {
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
    /// Opens the replicas that belong on this node below `folder` and lets them follow the documents; from then on opens
    /// and closes what comes and goes with the other nodes.
    ///
    /// # Errors
    /// When an index folder cannot be used.
    pub async fn open(runtime: Runtime<SearchService>, node: &str, folder: &Path) -> Result<Self, PartitionError> {
        replicas::keep(&runtime, Some(Home { node: node.into(), folder: folder.to_owned() })).await?;
        Ok(Self { runtime, turn: Arc::default() })
    }

    /// A face on a node that holds no replicas: it asks those that do.
    ///
    /// # Errors
    /// None; as [`SearchFace::open`].
    pub async fn without_replicas(runtime: Runtime<SearchService>) -> Result<Self, PartitionError> {
        replicas::keep(&runtime, None).await?;
        Ok(Self { runtime, turn: Arc::default() })
    }

    /// The runtime behind it.
    pub fn runtime(&self) -> &Runtime<SearchService> {
        &self.runtime
    }

    /// The partitions of which this node has a replica, and whether it has caught up since it was opened.
    pub fn replicas(&self) -> Vec<(ShardId, bool)> {
        self.runtime.service().replicas.holdings()
    }

    /// How many documents the replicas of this node have indexed themselves, since they were opened; the others were copied.
    pub fn indexed(&self) -> u64 {
        self.runtime.service().replicas.indexed()
    }

    /// Closes the indexes of this node and waits until they are.
    pub async fn closed(&self) {
        self.runtime.service().replicas.close().await;
    }

    /// Searches a replica of every partition and merges the best; each node is asked once, unless another failed. What
    /// does not answer by `deadline` makes the answer partial.
    ///
    /// With a token, the replica of its partition waits up to that long until the write can be found there (rule 21).
    ///
    /// # Errors
    /// [`SearchError::Cursor`]; [`SearchError::Nobody`] when no partition answered.
    pub async fn search(
        &self,
        search: Search,
        after: Option<(SearchToken, Duration)>,
        deadline: tokio::time::Instant,
    ) -> Result<Found, SearchError> {
        let began = Instant::now();
        search.check()?;
        let after = after.map(|(token, wait)| (shard_of(token.key, self.runtime.shards()), token, wait));
        let limit = search.limit;
        let query = |partitions| Query::Search(Box::new(Asked { partitions, search: search.clone(), after }));
        let answers = self.scatter(query, deadline).await;
        let mut answered = HashSet::new();
        let mut parts = Vec::new();
        for answer in answers {
            if let Answer::Found(hits, partitions) = answer {
                answered.extend(partitions);
                parts.push(hits);
            }
        }
        if answered.is_empty() {
            return Err(SearchError::Nobody);
        }
        let partial = answered.len() < usize::from(self.runtime.shards());
        Ok(Found { hits: merge(parts, limit), partial, took: began.elapsed() })
    }

    /// Completes what is being typed.
    ///
    /// # Errors
    /// [`SearchError::Nobody`] when no partition answered.
    pub async fn suggest(
        &self,
        typed: &str,
        limit: usize,
        deadline: tokio::time::Instant,
    ) -> Result<Vec<Suggestion>, SearchError> {
        let query = |partitions| Query::Suggest { partitions, typed: typed.to_owned(), limit };
        let (mut suggestions, mut answered) = (Vec::new(), false);
        for answer in self.scatter(query, deadline).await {
            if let Answer::Suggested(found, partitions) = answer {
                answered |= !partitions.is_empty();
                suggestions.extend(found);
            }
        }
        if !answered {
            return Err(SearchError::Nobody);
        }
        Ok(merge_suggestions(suggestions, limit))
    }

    /// How many documents can be found, as far as the nodes that have them answer.
    pub async fn document_count(&self, deadline: tokio::time::Instant) -> u64 {
        let answers = self.scatter(Query::Count, deadline).await.into_iter();
        answers.map(|answer| if let Answer::Counted(count, _) = answer { count } else { 0 }).sum()
    }

    /// Waits until a write can be found in this node's replica; whether it can.
    pub async fn visible(&self, token: SearchToken, within: Duration) -> bool {
        let shard = shard_of(token.key, self.runtime.shards());
        let source = Source { topic: token.topic, shard: token.shard };
        match self.runtime.service().replicas.get(shard) {
            Some(replica) => tokio::time::timeout(within, replica.signals.visible.reaches(source, token.seq)).await.is_ok(),
            None => false,
        }
    }

    /// Stores documents by version, through the shards' owners like everything else (rule 20): for rebuilding.
    ///
    /// # Errors
    /// When a shard could not commit.
    pub async fn put(&self, documents: Vec<index::Document>) -> Result<(), Failure> {
        let mut of: BTreeMap<ShardId, Vec<index::Document>> = BTreeMap::new();
        for document in documents {
            of.entry(shard_of(home(&document), self.runtime.shards())).or_default().push(document);
        }
        for (shard, documents) in of {
            for part in in_parts(documents) {
                let deadline = tokio::time::Instant::now() + PUT_WITHIN;
                match self.runtime.query(shard, &Query::Put(shard, part), deadline).await? {
                    Answer::Stored => {}
                    _ => return Err(strange_answer()),
                }
            }
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
                .map_err(|error| Failure::Refused(format!("a stored document does not parse: {error}")))
        };
        rows.iter().map(parse).collect()
    }

    /// Prepares these shards for documents that are about to be made anew from what a publisher has: what its log says from now
    /// on is applied, wherever that log was before, and if it went back, its documents are forgotten. The indexes have them
    /// until they are built anew.
    ///
    /// # Errors
    /// When a database does not answer, or a shard could not be written.
    pub async fn begin_rebuild<P: Service>(
        &self,
        publisher: &Runtime<P>,
        topic: Topic,
        shards: &[ShardId],
        restored: bool,
    ) -> Result<(), Failure> {
        let mut rebuild = self.runtime.begin_rebuild(publisher, topic, shards).await?;
        let kind = match topic {
            Topic::Users => index::Kind::User,
            Topic::Posts => index::Kind::Post,
            Topic::Comments => index::Kind::Comment,
        };
        for (shard, unit) in rebuild.units().filter(|_| restored) {
            unit.writes.forgotten.push(ForgottenRow { shard: shard.as_i16(), kind: kind.as_str().to_owned() });
        }
        rebuild.commit(false).await
    }

    /// The documents of these shards were made anew, and the indexes from them.
    ///
    /// # Errors
    /// When that could not be noted.
    pub async fn end_rebuild(&self, topic: Topic, shards: &[ShardId]) -> Result<(), Failure> {
        self.runtime.done_rebuilding(topic, shards).await
    }

    /// Builds the indexes of all nodes anew from the documents, and waits until they are. The old ones serve meanwhile;
    /// what is written meanwhile is found afterwards.
    ///
    /// # Errors
    /// When an index cannot be built for so long: nobody serves its shard, its documents cannot be read, or its node does
    /// not answer. It will be as soon as that has passed, unless it was the node.
    pub async fn rebuild(&self, patience: Duration) -> Result<(), Failure> {
        let query = Query::Rebuild(Uuid::new_v4(), patience);
        let mut answered = Instant::now();
        loop {
            let answers = self.runtime.query_all(&query, tokio::time::Instant::now() + REBUILD_ANSWER_WITHIN).await;
            let mut built = true;
            for (_, answer) in answers {
                match answer {
                    Ok(Answer::Rebuild(Build::Built)) => {}
                    Ok(Answer::Rebuild(Build::Building)) => (built, answered) = (false, Instant::now()),
                    Ok(Answer::Rebuild(Build::Kept(reason))) => return Err(Failure::Unavailable(reason)),
                    Ok(_) => return Err(strange_answer()),
                    Err(failure) if answered.elapsed() > patience => return Err(failure),
                    // Who has left is not asked again, and who comes back goes on where it was, or begins.
                    Err(_) => built = false,
                }
            }
            if built {
                return Ok(());
            }
            tokio::time::sleep(REBUILD_PAUSE).await;
        }
    }

    /// Asks as few nodes as have all partitions, each once; those that did not have what they were thought to have are
    /// made up for by others.
    async fn scatter(&self, query: impl Fn(Vec<ShardId>) -> Query, deadline: tokio::time::Instant) -> Vec<Answer> {
        let replicas = &self.runtime.service().replicas;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut left: Vec<ShardId> = (0..self.runtime.shards()).map(ShardId).collect();
        let mut answers = Vec::new();
        for _ in 0..ROUNDS {
            let planned = || plan(&left, &replicas.holdings(), &replicas.others(), turn);
            let mut plan = planned();
            if !plan.nowhere.is_empty() {
                // Somebody may have them by now.
                replicas::look_again(&self.runtime).await;
                plan = planned();
            }
            let Plan { here, there, nowhere } = plan;
            let there = there.into_iter().map(async |(node, partitions)| {
                let answer = self.runtime.query_node(&node, &query(partitions.clone()), deadline).await;
                (Some(node), partitions, answer)
            });
            let here = async {
                if here.is_empty() {
                    return None;
                }
                let answer = here::answer(&self.runtime, &query(here.clone()), deadline).await;
                Some((None, here, answer))
            };
            let (here, there) = join(here, join_all(there)).await;
            left = nowhere;
            for (node, mut missing, answer) in here.into_iter().chain(there) {
                if let Ok(answer) = &answer {
                    missing.retain(|partition| !answer.partitions().contains(partition));
                }
                answers.extend(answer);
                if let Some(node) = node {
                    replicas.forget(&node, &missing);
                }
                left.extend(missing);
            }
            if left.is_empty() {
                break;
            }
        }
        answers
    }
}

/// Documents in parts of a size that travels well.
fn in_parts(documents: Vec<index::Document>) -> Vec<Vec<index::Document>> {
    let mut parts: Vec<Vec<index::Document>> = Vec::new();
    let mut bytes = PUT_BYTES_MAX;
    for document in documents {
        let weight = document.body.len() + 500;
        if bytes + weight > PUT_BYTES_MAX {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += weight;
        parts.last_mut().expect("there is a first part").push(document);
    }
    parts
}

#[cfg(test)]
mod tests {
    use tokio_postgres::Config;

    use super::*;
    use crate::{ids::Incarnation, runtime};

    #[tokio::test]
    async fn where_nobody_has_a_part_of_the_index_nothing_is_found_or_completed_and_that_is_a_failure() {
        let runtime = Runtime::new(SearchService::default(), Config::new(), Incarnation(Uuid::from_u128(1)), Default::default());
        let search = SearchFace::without_replicas(runtime).await.unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
        assert!(matches!(search.suggest("a", 5, deadline).await, Err(SearchError::Nobody)));
        assert!(matches!(search.search(Search::default(), None, deadline).await, Err(SearchError::Nobody)));
    }

    /// What was broken: it waited for ever, and the command with it.
    #[tokio::test]
    async fn a_rebuild_of_an_index_whose_shard_is_not_served_ends_and_names_it() {
        let settings = runtime::Settings { shards: 1, ..runtime::Settings::default() };
        let runtime = Runtime::new(SearchService::default(), Config::new(), Incarnation(Uuid::from_u128(1)), settings);
        let folder = tempfile::tempdir().unwrap();
        let search = SearchFace::open(runtime, "n1", folder.path()).await.unwrap();
        let ended = search.rebuild(Duration::from_millis(100)).await;
        assert!(matches!(&ended, Err(Failure::Unavailable(reason)) if reason.contains("search shard 0")), "{ended:?}");
    }
}
