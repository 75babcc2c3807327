//! What this node answers of the search service: from its replicas, and for the shards that it serves.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::{
    SearchService, SearchToken,
    copying::{Offer, Offered, Piece},
    index::{
        Cursor, Document, Hit, Hits, Plan, Ranked, Search, SearchError, Statistics, Suggestion, Views, Wishes, merge_suggestions,
    },
    placing::Holdings,
    replicas::{Build, Replica},
};
use crate::{
    entity::Failure,
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
        /// For whom: clients take turns.
        client: u64,
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
    /// Which part of the work; none: all of it, as nodes of 0.2 ask, who pass over what follows and do all of it too.
    pub(crate) stage: Option<Stage>,
    /// For whom: clients take turns.
    pub(crate) client: u64,
}

/// A part of a search of partitions that lie on several nodes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// What the partitions say of the words of the query.
    Words(Wishes),
    /// The page, by a plan made of what all partitions said.
    Rank(Plan),
    /// What is shown of those of a page that lie here.
    Show(Plan, Vec<Cursor>),
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
    /// What those partitions say of the words of a query.
    Said(Statistics, Vec<ShardId>),
    /// The best places of those partitions.
    Ranked(Ranked, Vec<ShardId>),
    /// What is shown of places.
    Shown(Vec<Hit>),
}

impl Answer {
    /// The partitions of which it tells.
    pub(super) fn partitions(&self) -> &[ShardId] {
        match self {
            Self::Found(_, partitions)
            | Self::Suggested(_, partitions)
            | Self::Counted(_, partitions)
            | Self::Said(_, partitions)
            | Self::Ranked(_, partitions) => partitions,
            Self::Holds(_)
            | Self::Rebuild(_)
            | Self::Reached(..)
            | Self::Stored
            | Self::Offered(_)
            | Self::Pieces(_)
            | Self::Shown(_) => &[],
        }
    }
}

pub(super) async fn answer(runtime: &Runtime<SearchService>, query: &Query, deadline: Instant) -> Result<Answer, Failure> {
    let replicas = &runtime.service().replicas;
    Ok(match query {
        Query::Search(asked) => stage(runtime, asked, deadline).await.map_err(refused)?,
        Query::Suggest { partitions, typed, limit, client } => {
            let asked = suggest(runtime, partitions, typed, *limit, *client, deadline);
            let (suggestions, answered) = asked.await.map_err(refused)?;
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

/// As another node is told.
fn refused(error: SearchError) -> Failure {
    match error {
        SearchError::Busy => Failure::Overloaded(error.to_string()),
        SearchError::Late => Failure::Expired,
        error => Failure::Unavailable(error.to_string()),
    }
}

/// The partitions of these that are here.
fn held(runtime: &Runtime<SearchService>, partitions: &[ShardId]) -> Vec<(ShardId, Arc<Replica>)> {
    let replicas = &runtime.service().replicas;
    partitions.iter().filter_map(|partition| Some((*partition, replicas.get(*partition)?))).collect()
}

/// Does something with the partitions of these that are here, when it is the client's turn; and which they are.
pub(super) async fn with_views<T: Send + 'static>(
    runtime: &Runtime<SearchService>,
    asked: &Asked,
    deadline: Instant,
    work: impl FnOnce(&Views) -> Result<T, SearchError> + Send + 'static,
) -> Result<(T, Vec<ShardId>), SearchError> {
    let (answered, replicas): (Vec<ShardId>, Vec<Arc<Replica>>) = held(runtime, &asked.partitions).into_iter().unzip();
    if let Some((home, token, wait)) = asked.after
        && let Some(place) = answered.iter().position(|partition| *partition == home)
    {
        // Not in time is no error: the answer is what can be found by now.
        let source = Source { topic: token.topic, shard: token.shard };
        let _ = timeout(wait, replicas[place].signals.visible.reaches(source, token.seq)).await;
    }
    // Words of all that is here, whatever is asked for: it is gathered once for all.
    let (spelling, all) = (runtime.service().spelling.clone(), runtime.service().replicas.views());
    let until = deadline.into_std();
    let work = move || {
        let views = Views::with(replicas.iter().map(|replica| replica.reader.view()).collect(), spelling, all).until(until);
        work(&views).map(|done| (done, views.broken()))
    };
    let done = runtime.service().pool.run(asked.client, deadline.into_std(), work);
    let (done, broken) = timeout_at(deadline, done).await.map_err(|_| SearchError::Late)???;
    let answered = answered.into_iter().enumerate().filter(|(place, _)| !broken.contains(place)).map(|(_, partition)| partition);
    Ok((done, answered.collect()))
}

/// One stage of a search of the partitions that are here.
async fn stage(runtime: &Runtime<SearchService>, asked: &Asked, deadline: Instant) -> Result<Answer, SearchError> {
    let until = Some(deadline.into_std());
    let search = asked.search.clone();
    Ok(match asked.stage.clone() {
        None => {
            let whole = move |views: &Views| Ok(views.search(&search, &views.plan(&search), until)?.0);
            let (hits, answered): (Hits, _) = with_views(runtime, asked, deadline, whole).await?;
            Answer::Found(hits, answered)
        }
        Some(Stage::Words(wishes)) => {
            // What is waited for here too: it may be all that has one of the words.
            let (said, answered) = with_views(runtime, asked, deadline, move |views| Ok(views.statistics(&wishes))).await?;
            Answer::Said(said, answered)
        }
        Some(Stage::Rank(plan)) => {
            let (ranked, answered) = with_views(runtime, asked, deadline, move |views| views.rank(&search, &plan, until)).await?;
            Answer::Ranked(ranked, answered)
        }
        Some(Stage::Show(plan, places)) => {
            let asked = Asked { after: None, ..asked.clone() };
            Answer::Shown(with_views(runtime, &asked, deadline, move |views| Ok(views.show(&search, &plan, &places))).await?.0)
        }
    })
}

async fn suggest(
    runtime: &Runtime<SearchService>,
    partitions: &[ShardId],
    typed: &str,
    limit: usize,
    client: u64,
    deadline: Instant,
) -> Result<(Vec<Suggestion>, Vec<ShardId>), SearchError> {
    let (answered, replicas): (Vec<ShardId>, Vec<Arc<Replica>>) = held(runtime, partitions).into_iter().unzip();
    let typed = typed.to_owned();
    let work = move || -> Result<Vec<Suggestion>, SearchError> {
        let mut found = Vec::new();
        for replica in replicas {
            found.extend(replica.reader.suggest(&typed, limit)?);
        }
        Ok(merge_suggestions(found, limit))
    };
    let done = runtime.service().pool.run(client, deadline.into_std(), work);
    Ok((timeout_at(deadline, done).await.map_err(|_| SearchError::Late)???, answered))
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
