//! Search: documents made from the other services' events, and the indexes that find them.

mod copying;
mod follower;
mod here;
pub mod index;
mod placing;
mod pool;
mod replicas;
pub mod service;
mod signals;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
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
    here::{Asked, Stage},
    index::{
        Cursor, Hit, Hits, PartitionError, Plan, Planning, Ranked, Search, SearchError, Statistics, Suggestion, Wishes,
        merge_suggestions,
    },
    placing::plan,
    replicas::{Build, Home},
    service::{ForgottenRow, home},
};
use crate::{
    entity::Failure,
    event::{Source, Topic},
    ids::{Seq, ShardId, shard_of},
    runtime::{NodeName, Runtime, strange_answer},
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

/// A search, for whom, and how.
#[derive(Clone, Debug, Default)]
pub struct SearchRequest {
    /// What for.
    pub search: Search,
    /// The plan of the page before: scores are as they were there.
    pub plan: Option<Plan>,
    /// A write that is to be found, and how long its partition waits until it can be (rule 21).
    pub after: Option<(SearchToken, Duration)>,
    /// Names the client: clients take turns.
    pub client: u64,
}

impl From<Search> for SearchRequest {
    fn from(search: Search) -> Self {
        Self { search, ..Self::default() }
    }
}

/// An answer to a search.
#[derive(Debug)]
pub struct Found {
    /// What was found.
    pub hits: Hits,
    /// A part of the index could not answer in time.
    pub partial: bool,
    /// More match than were counted.
    pub is_cut: bool,
    /// How it was carried out: the next page begins with it.
    pub plan: Plan,
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

    /// Searches a replica of every partition and merges the best. What does not answer by `deadline` makes the answer partial.
    ///
    /// # Errors
    /// [`SearchError::Cursor`]; [`SearchError::Busy`] when too many searches wait; [`SearchError::Nobody`] when no partition
    /// answered.
    pub async fn search(&self, request: impl Into<SearchRequest>, deadline: tokio::time::Instant) -> Result<Found, SearchError> {
        let SearchRequest { search, plan: pinned, after, client } = request.into();
        let began = Instant::now();
        search.check()?;
        let after = after.map(|(token, wait)| (shard_of(token.key, self.runtime.shards()), token, wait));
        let asked = Asked { partitions: Vec::new(), search, after, stage: None, client };
        let found = if self.runtime.service().replicas.holdings().iter().filter(|(_, caught_up)| *caught_up).count()
            == usize::from(self.runtime.shards())
        {
            self.search_here(asked, pinned, deadline).await
        } else {
            self.search_everywhere(asked, pinned, began, deadline).await
        };
        found.map(|found| Found { took: began.elapsed(), ..found })
    }

    /// All partitions are here: one after the other on one thread.
    async fn search_here(
        &self,
        asked: Asked,
        pinned: Option<Plan>,
        deadline: tokio::time::Instant,
    ) -> Result<Found, SearchError> {
        let asked = Asked { partitions: (0..self.runtime.shards()).map(ShardId).collect(), ..asked };
        let (search, until) = (asked.search.clone(), deadline.into_std());
        let ((hits, is_cut, plan), answered) = here::with_views(&self.runtime, &asked, deadline, move |views| {
            let plan = pinned.unwrap_or_else(|| views.plan(&search));
            let (hits, is_cut) = views.search(&search, &plan, Some(until))?;
            Ok((hits, is_cut, plan))
        })
        .await?;
        let partial = answered.len() < usize::from(self.runtime.shards());
        Ok(Found { hits, partial, is_cut, plan, took: Duration::ZERO })
    }

    /// Asks the words first, then for the places, then for what is shown of those that made it onto the page.
    async fn search_everywhere(
        &self,
        asked: Asked,
        pinned: Option<Plan>,
        began: Instant,
        deadline: tokio::time::Instant,
    ) -> Result<Found, SearchError> {
        let plan = match pinned {
            Some(plan) => plan,
            None => self.plan(&asked, began, deadline).await?,
        };
        let stage = Some(Stage::Rank(plan.clone()));
        let answers = self.ask(&Asked { stage, ..asked.clone() }, began, deadline).await?;
        let limit = asked.search.limit;
        let (mut answered, mut parts, mut shown) = (HashSet::new(), Vec::new(), HashMap::new());
        let mut homes: HashMap<Cursor, Option<NodeName>> = HashMap::new();
        for (node, answer) in answers {
            match answer {
                Answer::Ranked(ranked, partitions) => {
                    answered.extend(partitions);
                    homes.extend(ranked.places.iter().map(|place| (*place, node.clone())));
                    parts.push(ranked);
                }
                // A node of 0.2 does all of it at once.
                Answer::Found(hits, partitions) => {
                    answered.extend(partitions);
                    let Hits { total, items, more } = hits;
                    parts.push(Ranked { total, more, is_cut: false, places: items.iter().map(|hit| hit.cursor).collect() });
                    shown.extend(items.into_iter().map(|hit| (hit.cursor, hit)));
                }
                _ => {}
            }
        }
        if answered.is_empty() {
            return Err(SearchError::Nobody);
        }
        let mut partial = answered.len() < usize::from(self.runtime.shards());
        let Ranked { total, is_cut, more, places } = Ranked::merge(parts, limit);
        let mut wanted: HashMap<Option<NodeName>, Vec<Cursor>> = HashMap::new();
        for place in places.iter().filter(|place| !shown.contains_key(place)) {
            if let Some(node) = homes.get(place) {
                wanted.entry(node.clone()).or_default().push(*place);
            }
        }
        let all: Vec<ShardId> = (0..self.runtime.shards()).map(ShardId).collect();
        let shows = wanted.into_iter().map(async |(node, places)| {
            let stage = Some(Stage::Show(plan.clone(), places));
            let query = Query::Search(Box::new(Asked { stage, partitions: all.clone(), ..asked.clone() }));
            match &node {
                Some(node) => self.runtime.query_node(node, &query, deadline).await,
                None => here::answer(&self.runtime, &query, deadline).await,
            }
        });
        for answer in join_all(shows).await {
            match answer {
                Ok(Answer::Shown(hits)) => shown.extend(hits.into_iter().map(|hit| (hit.cursor, hit))),
                // Its part of the page is missing.
                _ => partial = true,
            }
        }
        let items: Vec<Hit> = places.iter().filter_map(|place| shown.remove(place)).collect();
        Ok(Found { hits: Hits { total, items, more }, partial, is_cut, plan, took: Duration::ZERO })
    }

    async fn plan(&self, asked: &Asked, began: Instant, deadline: tokio::time::Instant) -> Result<Plan, SearchError> {
        let planning = Planning::of(&asked.search);
        let said = async |wishes: Wishes| -> Result<Statistics, SearchError> {
            let mut sum = Statistics::default();
            let asked = Asked { stage: Some(Stage::Words(wishes)), ..asked.clone() };
            for (_, answer) in self.ask(&asked, began, deadline).await? {
                // A node of 0.2 says nothing of words.
                if let Answer::Said(statistics, _) = answer {
                    sum.add(statistics);
                }
            }
            Ok(sum)
        };
        let statistics = said(planning.wishes().clone()).await?;
        let spelling = match planning.spelling(&statistics).filter(|_| statistics.tells()) {
            Some(wishes) => Some((wishes.clone(), said(wishes).await?)),
            None => None,
        };
        Ok(planning.plan(&statistics, spelling.as_ref().map(|(wishes, said)| (wishes, said))))
    }

    async fn ask(
        &self,
        asked: &Asked,
        began: Instant,
        deadline: tokio::time::Instant,
    ) -> Result<Vec<(Option<NodeName>, Answer)>, SearchError> {
        // A write is waited for once, whatever the number of stages.
        let after = asked.after.map(|(home, token, wait)| (home, token, wait.saturating_sub(began.elapsed())));
        let asked = &Asked { after, ..asked.clone() };
        let query = |partitions| Query::Search(Box::new(Asked { partitions, ..asked.clone() }));
        let Scattered { answers, busy } = self.scatter(query, deadline).await;
        if answers.is_empty() && busy { Err(SearchError::Busy) } else { Ok(answers) }
    }

    /// Completes what is being typed.
    ///
    /// # Errors
    /// [`SearchError::Nobody`] when no partition answered.
    pub async fn suggest(
        &self,
        typed: &str,
        limit: usize,
        client: u64,
        deadline: tokio::time::Instant,
    ) -> Result<Vec<Suggestion>, SearchError> {
        let query = |partitions| Query::Suggest { partitions, typed: typed.to_owned(), limit, client };
        let (mut suggestions, mut answered) = (Vec::new(), false);
        for (_, answer) in self.scatter(query, deadline).await.answers {
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
        let answers = self.scatter(Query::Count, deadline).await.answers.into_iter();
        answers.map(|(_, answer)| if let Answer::Counted(count, _) = answer { count } else { 0 }).sum()
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
    async fn scatter(&self, query: impl Fn(Vec<ShardId>) -> Query, deadline: tokio::time::Instant) -> Scattered {
        let replicas = &self.runtime.service().replicas;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut left: Vec<ShardId> = (0..self.runtime.shards()).map(ShardId).collect();
        let (mut answers, mut busy) = (Vec::new(), false);
        // Those that are here and could not be read.
        let mut broken: Vec<ShardId> = Vec::new();
        for _ in 0..ROUNDS {
            if tokio::time::Instant::now() >= deadline {
                break;
            }
            let planned = || {
                let here = replicas.holdings().into_iter().filter(|(partition, _)| !broken.contains(partition)).collect();
                plan(&left, &here, &replicas.others(), turn)
            };
            let mut plan = planned();
            if !plan.nowhere.is_empty() {
                // Somebody may have them by now.
                replicas::look_again(&self.runtime).await;
                plan = planned();
            }
            let placing::Plan { here, there, nowhere } = plan;
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
                let is_full = matches!(answer, Err(Failure::Overloaded(_)));
                busy |= is_full;
                // Who is busy has what it was asked for, and is not asked again.
                if is_full {
                    missing.clear();
                }
                match &node {
                    Some(node) => replicas.forget(node, &missing),
                    None => broken.extend(&missing),
                }
                answers.extend(answer.ok().map(|answer| (node, answer)));
                left.extend(missing);
            }
            if left.is_empty() {
                break;
            }
        }
        Scattered { answers, busy }
    }
}

/// What the nodes answered.
struct Scattered {
    /// None: this one.
    answers: Vec<(Option<NodeName>, Answer)>,
    /// At least one had too much to do.
    busy: bool,
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
        assert!(matches!(search.suggest("a", 5, 0, deadline).await, Err(SearchError::Nobody)));
        assert!(matches!(search.search(Search::default(), deadline).await, Err(SearchError::Nobody)));
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
