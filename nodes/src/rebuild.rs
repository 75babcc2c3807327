//! Makes projections anew from the publishers' state when a bridge has missed records for good: its place lies below the floor
//! of a log, or the log went back to an older state (rule 5).
//!
//! The bridge's node asks for it in the consumer's database; the owners of the consumer's shards find that there, and each makes
//! its own anew. When all have, the bridge goes on after what the log's end was before anybody began.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use futures_util::future::{BoxFuture, FutureExt};
use rookery_actors::{
    entity::Failure,
    episodes,
    event::Topic,
    ids::{Seq, ShardId},
    runtime::{Runtime, WantedRebuild},
    search::SearchService,
    service::Service,
};

use crate::{
    bridge::Outside,
    node::{Faces, NamedBridge},
};

/// Shards that are made anew together: as much as is held in memory at a time.
const TOGETHER: usize = 32;
/// What is logged when records were missed.
const MISSED: &str = "events were missed for good, what follows from them is built anew";

/// What makes the search documents anew from the services' exports, and the indexes from them.
pub type Reindex = Box<dyn Fn() -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

/// Looks after the bridges of a node, and the shards that it serves.
pub struct Rebuilder {
    faces: Faces,
    bridges: Arc<Vec<NamedBridge>>,
    reindex: Reindex,
    pending: HashMap<(&'static str, Topic), Pending>,
}

/// A rebuild that a bridge of this node waits for.
struct Pending {
    /// Where the publisher's log ended before it was asked for.
    heads: HashMap<ShardId, Seq>,
    /// The places that lay outside of the log.
    outside: BTreeSet<ShardId>,
}

/// A service as a consumer.
trait Consumer: Send + Sync {
    fn want(&self, topic: Topic, restored: bool) -> BoxFuture<'_, Result<(), Failure>>;
    fn wanted(&self) -> BoxFuture<'_, Result<Vec<WantedRebuild>, Failure>>;
    fn serves(&self, shard: ShardId) -> bool;
    fn serves_any(&self) -> bool;
}

impl<S: Service> Consumer for Runtime<S> {
    fn want(&self, topic: Topic, restored: bool) -> BoxFuture<'_, Result<(), Failure>> {
        self.want_rebuild(topic, restored).boxed()
    }

    fn wanted(&self) -> BoxFuture<'_, Result<Vec<WantedRebuild>, Failure>> {
        self.wanted_rebuilds().boxed()
    }

    fn serves(&self, shard: ShardId) -> bool {
        self.head(shard).is_some()
    }

    fn serves_any(&self) -> bool {
        (0..self.shards()).any(|shard| self.head(ShardId(shard)).is_some())
    }
}

/// Who reads whom: what a restored database concerns.
const READERS: [(&str, &[Topic]); 4] = [
    ("users", &Topic::ALL),
    ("posts", &[Topic::Users, Topic::Comments]),
    ("comments", &[Topic::Users, Topic::Posts]),
    ("search", &Topic::ALL),
];

impl Rebuilder {
    /// For these bridges, and for what is served beside them.
    pub fn new(faces: Faces, bridges: Arc<Vec<NamedBridge>>, reindex: Reindex) -> Self {
        Self { faces, bridges, reindex, pending: HashMap::new() }
    }

    /// Asks for what bridges have missed, does what is asked for of the shards that are served here, and lets bridges go on
    /// that waited for it.
    ///
    /// # Errors
    /// The first thing that could not be done. The others were, and the next look begins with what is left.
    pub async fn look(&mut self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        let bridges = Arc::clone(&self.bridges);
        for bridge in bridges.iter() {
            outcome = outcome.and(self.ask(bridge).await);
        }
        for (consumer, _) in READERS {
            outcome = outcome.and(self.work(consumer).await);
        }
        for bridge in bridges.iter() {
            outcome = outcome.and(self.go_on(bridge).await);
        }
        outcome
    }

    async fn ask(&mut self, NamedBridge { topic, consumer, bridge }: &NamedBridge) -> Result<(), Failure> {
        let mut outside = bridge.outside();
        if outside.is_empty() {
            return Ok(());
        }
        if let Some(pending) = self.pending.get_mut(&(*consumer, *topic)) {
            pending.outside.extend(outside.iter().map(|outside| outside.shard));
            return Ok(());
        }
        // Before anybody reads what the publisher has: each shard that is made anew has come at least so far.
        let heads: HashMap<ShardId, Seq> = heads(&self.faces, *topic).await?.into_iter().collect();
        // An owner that does not know yet that it is none may be behind the log.
        let is_so = |outside: &Outside| match outside.head < outside.position {
            true => heads.get(&outside.shard).is_some_and(|head| *head < outside.position),
            false => true,
        };
        outside.retain(is_so);
        let Some(first) = outside.first() else { return Ok(()) };
        metrics::counter!("rookery_rebuilds_total", "consumer" => *consumer, "topic" => topic.service()).increment(1);
        episodes::error(MISSED, consumer, &first.reason);
        let restored = outside.iter().any(|outside| outside.is_other_history || outside.head < outside.position);
        self.consumer(consumer).want(*topic, restored).await?;
        let outside = outside.iter().map(|outside| outside.shard).collect();
        self.pending.insert((*consumer, *topic), Pending { heads, outside });
        Ok(())
    }

    async fn work(&self, name: &str) -> Result<(), Failure> {
        let consumer = self.consumer(name);
        if !consumer.serves_any() {
            return Ok(());
        }
        let mut wanted: BTreeMap<Topic, (Vec<ShardId>, bool)> = BTreeMap::new();
        for WantedRebuild { shard, topic, restored } in consumer.wanted().await? {
            if consumer.serves(shard) {
                let (shards, any_restored) = wanted.entry(topic).or_default();
                shards.push(shard);
                *any_restored |= restored;
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        if name == SearchService::NAME {
            return self.documents(&wanted).await;
        }
        let Faces { users, posts, comments, .. } = &self.faces;
        for (topic, (shards, _)) in wanted {
            for shards in shards.chunks(TOGETHER) {
                match (name, topic) {
                    ("users", Topic::Users) => users.rebuild_from_users(shards).await?,
                    ("users", Topic::Posts) => users.rebuild_from_posts(posts.runtime(), shards).await?,
                    ("users", Topic::Comments) => users.rebuild_from_comments(comments.runtime(), shards).await?,
                    ("posts", Topic::Users) => posts.rebuild_from_users(users.runtime(), shards).await?,
                    ("posts", Topic::Comments) => posts.rebuild_from_comments(comments.runtime(), shards).await?,
                    ("comments", Topic::Users) => comments.rebuild_from_users(users.runtime(), shards).await?,
                    ("comments", Topic::Posts) => comments.rebuild_from_posts(posts.runtime(), shards).await?,
                    (name, topic) => tracing::error!("{name} does not read {topic:?}"),
                }
            }
            tracing::warn!(consumer = name, ?topic, shards = shards.len(), "built anew from the publisher's state");
        }
        Ok(())
    }

    async fn documents(&self, wanted: &BTreeMap<Topic, (Vec<ShardId>, bool)>) -> Result<(), Failure> {
        let Faces { users, posts, comments, search } = &self.faces;
        for (topic, (shards, restored)) in wanted {
            match topic {
                Topic::Users => search.begin_rebuild(users.runtime(), *topic, shards, *restored).await?,
                Topic::Posts => search.begin_rebuild(posts.runtime(), *topic, shards, *restored).await?,
                Topic::Comments => search.begin_rebuild(comments.runtime(), *topic, shards, *restored).await?,
            }
        }
        (self.reindex)().await?;
        for (topic, (shards, _)) in wanted {
            search.end_rebuild(*topic, shards).await?;
            tracing::warn!(
                consumer = SearchService::NAME,
                ?topic,
                shards = shards.len(),
                "built anew from the publisher's state"
            );
        }
        Ok(())
    }

    async fn go_on(&mut self, NamedBridge { topic, consumer, bridge }: &NamedBridge) -> Result<(), Failure> {
        let key = (*consumer, *topic);
        if !self.pending.contains_key(&key) || self.consumer(consumer).wanted().await?.iter().any(|wanted| wanted.topic == *topic)
        {
            return Ok(());
        }
        if let Some(Pending { heads, outside }) = self.pending.remove(&key) {
            for shard in outside {
                bridge.rebuilt(shard, heads.get(&shard).copied().unwrap_or(0));
            }
        }
        episodes::over(MISSED, consumer);
        Ok(())
    }

    fn consumer(&self, name: &str) -> &dyn Consumer {
        consumer(&self.faces, name)
    }
}

fn consumer<'a>(faces: &'a Faces, name: &str) -> &'a dyn Consumer {
    match name {
        "users" => faces.users.runtime(),
        "posts" => faces.posts.runtime(),
        "comments" => faces.comments.runtime(),
        _ => faces.search.runtime(),
    }
}

/// Asks for all that follows from a service whose database was put back to an older state: what others made of its log, and
/// what it has made of theirs.
///
/// # Errors
/// When a database does not answer; asking again is harmless.
pub async fn restored(faces: &Faces, service: &str) -> Result<(), Failure> {
    for (name, topics) in READERS {
        for topic in topics.iter().filter(|topic| name == service || topic.service() == service) {
            consumer(faces, name).want(*topic, topic.service() == service).await?;
        }
    }
    Ok(())
}

async fn heads(faces: &Faces, topic: Topic) -> Result<Vec<(ShardId, Seq)>, Failure> {
    match topic {
        Topic::Users => faces.users.runtime().heads().await,
        Topic::Posts => faces.posts.runtime().heads().await,
        Topic::Comments => faces.comments.runtime().heads().await,
    }
}
