//! What this node answers of the search service: from its replicas, and for the shards that it serves.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};
use uuid::Uuid;

use super::{
    SearchService, SearchToken,
    copying::{Offer, Offered, Piece},
    index::{Document, Hits, Search, Suggestion, merge, merge_suggestions},
    placing::Holdings,
    replicas::Build,
};
use crate::{
    entity::Failure,
    episodes,
    event::Source,
    ids::{Seq, ShardId},
    runtime::{CommitError, Runtime, Unit},
    service::Poison,
};

/// Until another node hears that an index is still being built.
const REBUILD_WAIT: Duration = Duration::from_secs(1);

/// What the search nodes are asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Query {
    /// Searches these partitions.
    Search(Box<Asked>),
    /// Completes what is being typed, from these partitions.
    Suggest {
        /// Where.
        partitions: Vec<ShardId>,
        /// What.
        typed: String,
        /// How many at most.
        limit: usize,
    },
    /// How many documents these partitions have.
    Count(Vec<ShardId>),
    /// Which partitions a node has.
    Holdings,
    /// Builds all indexes of a node anew, once for this id, unless something keeps one from it for so long.
    Rebuild(Uuid, Duration),
    /// How far a shard has come; waits a while for more than that. For its owner.
    Reached {
        /// Which.
        shard: ShardId,
        /// What is known already.
        after: Seq,
        /// How long to wait for more.
        wait: Duration,
    },
    /// Stores documents of a shard by version, so that once more changes nothing. For its owner.
    Put(ShardId, Vec<Document>),
    /// Which commit of a partition can be copied from here; waits a while for news.
    Offered {
        /// Which partition.
        shard: ShardId,
        /// The news that is known already.
        seen: u64,
        /// The commit that was copied.
        known: Option<Uuid>,
        /// How long to wait for more.
        wait: Duration,
    },
    /// Parts of files of a commit.
    Pieces {
        /// Of which partition.
        shard: ShardId,
        /// Which commit.
        commit: Uuid,
        /// Files, by number, and where to begin.
        wanted: Vec<(usize, u64)>,
    },
}

/// A search of some partitions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Asked {
    pub(crate) partitions: Vec<ShardId>,
    pub(crate) search: Search,
    /// The partition of a write, and how long to wait until that can be found there (rule 21).
    pub(crate) after: Option<(ShardId, SearchToken, Duration)>,
}

/// What they answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The best of the partitions that answered, which are named.
    Found(Hits, Vec<ShardId>),
    /// Completions from those partitions.
    Suggested(Vec<Suggestion>, Vec<ShardId>),
    /// Documents of those partitions.
    Counted(u64, Vec<ShardId>),
    /// Partitions, and whether they have caught up.
    Holds(Holdings),
    /// How far the indexes are built.
    Rebuild(Build),
    /// The shard's last record, and what it has applied of other logs.
    Reached(Seq, Vec<(Source, Seq)>),
    /// It is stored.
    Stored,
    /// What can be copied.
    Offered(Offered),
    /// Parts of files, as much as travels well.
    Pieces(Vec<Piece>),
}

impl Answer {
    /// The partitions of which it tells.
    pub(super) fn partitions(&self) -> &[ShardId] {
        match self {
            Self::Found(_, partitions) | Self::Suggested(_, partitions) | Self::Counted(_, partitions) => partitions,
            Self::Holds(_) | Self::Rebuild(_) | Self::Reached(..) | Self::Stored | Self::Offered(_) | Self::Pieces(_) => &[],
        }
    }
}

pub(super) async fn answer(runtime: &Runtime<SearchService>, query: &Query, deadline: Instant) -> Result<Answer, Failure> {
    let replicas = &runtime.service().replicas;
    Ok(match query {
        Query::Search(asked) => {
            let (hits, answered) = search(runtime, asked, deadline).await;
            Answer::Found(hits, answered)
        }
        Query::Suggest { partitions, typed, limit } => {
            let (suggestions, answered) = suggest(runtime, partitions, typed, *limit).await;
            Answer::Suggested(suggestions, answered)
        }
        Query::Count(partitions) => {
            let held = partitions.iter().filter_map(|partition| Some((*partition, replicas.get(*partition)?)));
            let counted = held.map(|(partition, replica)| (partition, replica.reader.document_count()));
            let (answered, counts): (Vec<_>, Vec<u64>) = counted.unzip();
            Answer::Counted(counts.into_iter().sum(), answered)
        }
        Query::Holdings => Answer::Holds(replicas.holdings()),
        Query::Rebuild(run, patience) => Answer::Rebuild(replicas.rebuild(*run, *patience, REBUILD_WAIT).await),
        Query::Reached { shard, after, wait } => reached(runtime, *shard, *after, *wait).await?,
        Query::Put(shard, documents) => {
            let mut unit = Unit::<SearchService>::of(runtime.shards());
            for document in documents {
                unit.writes.put(*shard, document).map_err(|Poison(reason)| Failure::Refused(reason))?;
            }
            let named = |error: CommitError| match Failure::from(error) {
                Failure::Unavailable(reason) => Failure::Unavailable(format!("search shard {shard}: {reason}")),
                Failure::Refused(reason) => Failure::Refused(format!("search shard {shard}: {reason}")),
                failure => failure,
            };
            runtime.commit(*shard, unit).await.map_err(named)?;
            Answer::Stored
        }
        Query::Offered { shard, seen, known, wait } => offer(runtime, *shard)?.news(*shard, *seen, *known, *wait).await?,
        Query::Pieces { shard, commit, wanted } => offer(runtime, *shard)?.pieces(*commit, wanted.clone()).await?,
    })
}

fn offer(runtime: &Runtime<SearchService>, partition: ShardId) -> Result<Offer, Failure> {
    let replica = runtime.service().replicas.get(partition);
    let none = || Failure::Moved(format!("there is no index of search shard {partition} here"));
    Ok(replica.ok_or_else(none)?.signals.offer.clone())
}

/// Searches the partitions that are here; the best of them, and which they are.
async fn search(runtime: &Runtime<SearchService>, asked: &Asked, deadline: Instant) -> (Hits, Vec<ShardId>) {
    let search = Arc::new(asked.search.clone());
    let parts = asked.partitions.iter().map(async |partition| {
        let replica = runtime.service().replicas.get(*partition)?;
        if let Some((_, token, wait)) = asked.after.filter(|(home, ..)| home == partition) {
            // Not in time is no error: the answer is what can be found by now.
            let source = Source { topic: token.topic, shard: token.shard };
            let _ = timeout(wait, replica.signals.visible.reaches(source, token.seq)).await;
        }
        let (reader, search) = (replica.reader.clone(), Arc::clone(&search));
        let found = timeout_at(deadline, spawn_blocking(move || reader.search(&search))).await.ok()?.ok()?;
        let found = found.inspect_err(|error| episodes::warn("index partitions cannot answer", "search", error));
        Some((*partition, found.ok()?))
    });
    let (answered, hits) = join_all(parts).await.into_iter().flatten().unzip();
    (merge(hits, asked.search.limit), answered)
}

async fn suggest(
    runtime: &Runtime<SearchService>,
    partitions: &[ShardId],
    typed: &str,
    limit: usize,
) -> (Vec<Suggestion>, Vec<ShardId>) {
    let parts = partitions.iter().map(async |partition| {
        let replica = runtime.service().replicas.get(*partition)?;
        let (reader, typed) = (replica.reader.clone(), typed.to_owned());
        Some((*partition, spawn_blocking(move || reader.suggest(&typed, limit)).await.ok()?.ok()?))
    });
    let (answered, found): (Vec<_>, Vec<_>) = join_all(parts).await.into_iter().flatten().unzip();
    (merge_suggestions(found.concat(), limit), answered)
}

async fn reached(runtime: &Runtime<SearchService>, shard: ShardId, after: Seq, wait: Duration) -> Result<Answer, Failure> {
    let until = Instant::now() + wait;
    let mut batches = runtime.batches();
    loop {
        batches.mark_unchanged();
        let not_ours = || Failure::Moved(format!("search shard {shard} is not served here"));
        let (head, positions) = runtime.reached(shard).ok_or_else(not_ours)?;
        let news = head > after || !matches!(timeout_at(until, batches.changed()).await, Ok(Ok(())));
        if news {
            return Ok(Answer::Reached(head, positions.into_iter().collect()));
        }
    }
}
