//! Several owners of one service in one process: what the links are between nodes, direct calls are here.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use rookery::{
    ownership::{Announce, Contact, LeaseSettings, Membership, View},
    testing::TestService,
};
use rookery_actors::{
    ids::{Epoch, Incarnation, PostId, ShardId, mint},
    posts::{PostService, Posts},
    runtime::{Database, Directory, NodeName, Router, Runtime, SendError, Settings},
};
use tokio::{sync::watch, time::Instant};
use tokio_postgres::Config;
use uuid::Uuid;

use crate::support::*;

/// Enough that groups and caps are seen.
pub(crate) const MANY_SHARDS: u16 = 64;

/// Polls often, and forgives a busy machine.
pub(crate) const QUICK: LeaseSettings = LeaseSettings { ttl: Duration::from_secs(20), renew_every: Duration::from_millis(50) };

/// The nodes of a story, and the ways between them.
#[derive(Clone, Default)]
pub(crate) struct Hub(Arc<Ways>);

#[derive(Default)]
struct Ways {
    nodes: Mutex<HashMap<String, (Runtime<PostService>, Contact)>>,
    deaf: AtomicBool,
    /// Nodes that reach nobody and are reached by nobody.
    cut_off: Mutex<HashSet<String>>,
    announced: AtomicUsize,
}

/// One node of the story.
pub(crate) struct Peer {
    pub(crate) service: TestService<PostService>,
    pub(crate) posts: Posts,
    hub: Hub,
    name: String,
}

impl Hub {
    /// Starts a node whose membership goes by this lease.
    pub(crate) async fn join(&self, config: &Config, name: &str, lease: LeaseSettings) -> Peer {
        let membership = Membership {
            address: Some(format!("{name}.example:4000")),
            announce: Arc::new(Voice { hub: self.clone(), name: name.to_owned() }),
            ..Membership::new(name, lease)
        };
        let settings = Settings { shards: MANY_SHARDS, ..Settings::default() };
        let service = TestService::join(PostService::default(), config.clone(), membership, settings).await;
        let contact = service.ownership().contact();
        service.runtime.connect(Arc::new(Way::new(self.clone(), name, contact.clone())));
        self.0.nodes.lock().unwrap().insert(name.to_owned(), (service.runtime.clone(), contact));
        Peer { posts: Posts::new(service.runtime.clone()), service, hub: self.clone(), name: name.to_owned() }
    }

    /// Announcements get lost from now on, or no longer.
    pub(crate) fn deafen(&self, deaf: bool) {
        self.0.deaf.store(deaf, Ordering::SeqCst);
    }

    /// A node reaches nobody any more, and nobody it.
    pub(crate) fn cut_off(&self, name: &str) {
        self.0.cut_off.lock().unwrap().insert(name.to_owned());
    }

    /// Everybody reaches everybody again.
    pub(crate) fn mend(&self) {
        self.0.cut_off.lock().unwrap().clear();
    }

    /// How many announcements were heard.
    pub(crate) fn announced(&self) -> usize {
        self.0.announced.load(Ordering::SeqCst)
    }

    fn node(&self, name: &str) -> Option<(Runtime<PostService>, Contact)> {
        self.0.nodes.lock().unwrap().get(name).cloned()
    }
}

/// How one node reaches the others.
struct Voice {
    hub: Hub,
    name: String,
}

impl Announce for Voice {
    fn granted<'a>(&'a self, _: &'static str, shards: &'a [(ShardId, Epoch)], to: &'a str) -> BoxFuture<'a, bool> {
        async move {
            let ways = &self.hub.0;
            let deaf = ways.deaf.load(Ordering::SeqCst) || !self.reaches(to);
            let Some((_, contact)) = self.hub.node(to).filter(|_| !deaf) else { return false };
            ways.announced.fetch_add(1, Ordering::SeqCst);
            contact.take_up(shards, Duration::from_secs(5)).await
        }
        .boxed()
    }

    fn reaches(&self, node: &str) -> bool {
        let cut_off = self.hub.0.cut_off.lock().unwrap();
        !cut_off.contains(node) && !cut_off.contains(&self.name)
    }
}

impl Peer {
    pub(crate) fn contact(&self) -> Contact {
        self.service.ownership().contact()
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.contact().view().borrow().clone()
    }

    pub(crate) fn owned(&self) -> Vec<(ShardId, Epoch)> {
        self.service.runtime.owned().into_iter().map(|(shard, epoch, _)| (shard, epoch)).collect()
    }

    /// Hands everything over, and leaves.
    pub(crate) async fn drain(self) {
        assert!(self.service.ownership().drain(Duration::from_secs(20)).await, "{} has handed everything over", self.name);
        self.stop().await;
    }

    /// Leaves without handing anything over.
    pub(crate) async fn stop(self) {
        self.hub.0.nodes.lock().unwrap().remove(&self.name);
        self.service.stop().await;
    }
}

/// Every shard is served by exactly one of these, and nothing should move any more.
pub(crate) async fn at_rest(peers: &[&Peer]) {
    eventually("every shard is where it should be, and served once", async || {
        let mut served: Vec<ShardId> = peers.iter().flat_map(|peer| peer.owned()).map(|(shard, _)| shard).collect();
        served.sort_unstable();
        let views: Vec<Arc<View>> = peers.iter().map(|peer| peer.view()).collect();
        let all_there = views.iter().all(|view| view.placement.members().len() == peers.len() && view.moves().next().is_none());
        served == (0..MANY_SHARDS).map(ShardId).collect::<Vec<_>>() && all_there
    })
    .await;
}

/// The way of one node to the others.
struct Way {
    hub: Hub,
    me: NodeName,
    contact: Contact,
    changes: watch::Sender<u64>,
}

impl Way {
    fn new(hub: Hub, me: &str, contact: Contact) -> Self {
        let changes = watch::Sender::new(0);
        let (told, mut view) = (changes.clone(), contact.view());
        tokio::spawn(async move {
            while view.changed().await.is_ok() {
                told.send_modify(|count| *count += 1);
            }
        });
        Self { hub, me: me.into(), contact, changes }
    }
}

impl Router for Way {
    fn me(&self) -> NodeName {
        Arc::clone(&self.me)
    }

    fn owner(&self, _: &'static str, shard: ShardId) -> Option<NodeName> {
        self.contact.view().borrow().owner(shard).map(|member| member.node.as_str().into())
    }

    fn peers(&self, _: &'static str) -> Vec<NodeName> {
        self.hub.0.nodes.lock().unwrap().keys().map(|name| name.as_str().into()).collect()
    }

    fn is_unserved(&self, _: &'static str) -> bool {
        self.contact.view().borrow().unserved
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn send(&self, node: NodeName, _: &'static str, question: Bytes, _: Instant) -> BoxFuture<'_, Result<Bytes, SendError>> {
        let there = self.hub.node(&node);
        async move {
            match there {
                Some((runtime, _)) => Ok(runtime.serve(&question).await),
                None => Err(SendError::Undelivered("nobody of that name is here".to_owned())),
            }
        }
        .boxed()
    }
}

pub(crate) async fn published_in(posts: &Posts, shard: ShardId, title: &str) -> PostId {
    let id = PostId(mint(Timestamp::now(), MANY_SHARDS, Some(shard)));
    posts.publish_as(id, draft(title), soon()).await.unwrap().reply.post.unwrap().id
}

/// It has been there long enough to be given shards, so whoever is not is given none.
pub(crate) async fn settled(peer: &Peer) {
    let me = peer.service.runtime.incarnation();
    eventually("it has renewed", async || peer.view().member(me).is_some_and(|member| member.renewed >= 3)).await;
}

/// A member that is played by hand, in the cluster of more shards.
pub(crate) struct RivalIn64 {
    pub(crate) incarnation: Incarnation,
    pub(crate) directory: Directory,
}

impl RivalIn64 {
    pub(crate) async fn join(config: &tokio_postgres::Config) -> Self {
        let incarnation = Incarnation(Uuid::new_v4());
        let database = Database::new(config.clone(), "rival", Default::default());
        let directory = Directory::open(&database, "posts", incarnation).await.unwrap();
        directory.join(incarnation, "rival", None, None).await.unwrap();
        Self { incarnation, directory }
    }
}

pub(crate) async fn directory_of(peer: &Peer) -> Directory {
    let runtime = &peer.service.runtime;
    Directory::open(runtime.database(), "posts", runtime.incarnation()).await.unwrap()
}
