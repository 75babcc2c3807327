//! Nodes of all four services in one process, on one set of databases. Nothing moves unless a test moves it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use rookery::{
    bridge::{Bridge, RunningBridge},
    event_log::EmbeddedLog,
    migrate::Database,
    testing::{self, TestNetwork, TestPostgres, backup},
};
use rookery_actors::{
    comments::service::CommentService,
    event::Topic,
    ids::{Incarnation, PostId, ShardId, UserId, mint},
    posts::{
        Draft, Post, PostService, Posts,
        rules::{Body, Tags, Title},
    },
    runtime::{BootTime, Context, Directory, Granted, PoolSize, Runtime, Settings},
    search::{SearchFace, SearchService},
    secret::ClusterSecret,
    service::Service,
    supervisor::SupervisorRef,
    users::{
        UserService, Users,
        erased::NameHasher,
        names::Username,
        password::{Hasher, HasherConfig},
        session::Lifetime,
        token::RefreshTokens,
    },
};
use tokio::time::Instant;
use tokio_postgres::Config;
use uuid::Uuid;

pub(crate) const ADA: UserId = UserId(Uuid::from_u128(1));

/// Few, so that batches meet.
pub(crate) const SHARDS: u16 = 8;
/// Of the index.
pub(crate) const PARTITIONS: u16 = 4;

/// Longer than any story.
const LEASE: Duration = Duration::from_secs(3600);

/// The nodes, and the way between them.
pub(crate) struct World {
    pub(crate) network: TestNetwork,
    pub(crate) nodes: Vec<Node>,
    databases: [Config; 4],
    searching: bool,
}

/// A node with all services.
pub(crate) struct Node {
    pub(crate) users: Users,
    pub(crate) posts: Posts,
    pub(crate) comments: Runtime<CommentService>,
    pub(crate) log: Arc<EmbeddedLog>,
    indexes: Option<(SearchFace, tempfile::TempDir)>,
}

impl World {
    /// So many nodes, `n1` first. Shard `s` of every service is served by the node at `s % nodes`.
    pub(crate) async fn of(nodes: usize) -> Self {
        Self::start(nodes, false).await
    }

    /// The same with indexes, which ask each other of their own accord.
    pub(crate) async fn with_search(nodes: usize) -> Self {
        Self::start(nodes, true).await
    }

    async fn start(nodes: usize, searching: bool) -> Self {
        // A story that fails tells what the services thought of it.
        let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_test_writer().try_init();
        let postgres = TestPostgres::shared();
        let databases = [Database::Users, Database::Posts, Database::Comments, Database::Search];
        let databases = futures_util::future::join_all(databases.map(|one| postgres.fresh_database(one))).await;
        let databases = databases.try_into().expect("one for each");
        let mut world = Self { network: TestNetwork::default(), nodes: Vec::new(), databases, searching };
        for _ in 0..nodes {
            world.join(nodes).await;
        }
        world
    }

    /// One more node, which is given its shards as one of `of`; none if there are that many already.
    pub(crate) async fn join(&mut self, of: usize) {
        let n = self.nodes.len();
        let name = format!("n{}", n + 1);
        let ours = |count: u16| (0..count).map(ShardId).filter(|shard| shard.index() % of == n).collect::<Vec<_>>();
        let [users, posts, comments, search] = &self.databases;
        let users = seat(UserService::default(), users, &name, SHARDS, &ours(SHARDS)).await;
        let posts = seat(PostService::default(), posts, &name, SHARDS, &ours(SHARDS)).await;
        let comments = seat(CommentService::default(), comments, &name, SHARDS, &ours(SHARDS)).await;
        let search = seat(SearchService::default(), search, &name, PARTITIONS, &ours(PARTITIONS)).await;
        self.network.join(&name, &users);
        self.network.join(&name, &posts);
        self.network.join(&name, &comments);
        self.network.join(&name, &search);
        let mut indexes = None;
        if self.searching {
            let folder = tempfile::tempdir().unwrap();
            indexes = Some((SearchFace::open(search, &name, folder.path()).await.unwrap(), folder));
        }
        let log = Arc::new(EmbeddedLog::new(Arc::new(users.clone()), Arc::new(posts.clone()), Arc::new(comments.clone())));
        let hasher = Hasher::start(HasherConfig::default()).unwrap();
        let tokens = RefreshTokens::new(&ClusterSecret::from_bytes(&[7; 32]).unwrap().into());
        let users = Users::new(users, hasher, tokens, NameHasher::new("the cluster"), Lifetime::default());
        self.nodes.push(Node { users, posts: Posts::new(posts), comments, log, indexes });
    }

    /// Keeps what the database of a service holds now, for [`World::put_back`].
    pub(crate) async fn back_up(&self, service: usize) {
        backup::back_up(&self.sql(service).await).await.unwrap();
    }

    /// Puts the database of a service back to what was kept, as from a backup; its shards are taken over anew. As its nodes would
    /// be, the bridges into the service are to be stopped before and started after.
    pub(crate) async fn put_back<S: Service>(&self, service: usize, of: impl Fn(&Node) -> &Runtime<S>) {
        for node in &self.nodes {
            (0..of(node).shards()).for_each(|shard| of(node).close(ShardId(shard)));
        }
        backup::put_back(&self.sql(service).await).await.unwrap();
        for (n, node) in self.nodes.iter().enumerate() {
            let (runtime, me) = (of(node), of(node).incarnation());
            let mut rows = directory(runtime).await.shards().await.unwrap();
            rows.retain(|row| row.id.index() % self.nodes.len() == n);
            open(runtime, directory(runtime).await.take_over(&rows, Some(me), me).await.unwrap()).await;
        }
        self.network.changed();
    }

    async fn sql(&self, service: usize) -> tokio_postgres::Client {
        let (client, connection) = self.databases[service].connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Moves a shard of a service from the node that serves it to another.
    pub(crate) async fn hand_over<S: Service>(&self, of: impl Fn(&Node) -> &Runtime<S>, shard: ShardId, to: usize) {
        let from = self.nodes.iter().map(&of).find(|runtime| runtime.head(shard).is_some()).unwrap();
        let to = of(&self.nodes[to]);
        let handed = from.hand_off(&directory(from).await, &[shard], to.incarnation(), Duration::from_secs(20)).await;
        assert_eq!(handed.granted.len(), 1);
        from.service().shards_changed();
        let granted = directory(to).await.untouched(&[shard], to.incarnation()).await.unwrap();
        open(to, granted).await;
        self.network.changed();
    }
}

impl Node {
    /// Carries one topic into one service, as far as that is this node's to do.
    pub(crate) fn bridge<F: Service, T: Service>(&self, topic: Topic, from: &Runtime<F>, to: &Runtime<T>) -> RunningBridge {
        Bridge::start(to.clone(), self.log.clone(), Arc::new(from.clone()), topic, SHARDS)
    }

    pub(crate) fn search(&self) -> &SearchFace {
        &self.indexes.as_ref().expect("the world has indexes").0
    }

    pub(crate) async fn publish(&self, title: &str) -> Post {
        self.posts.publish(draft(title), soon()).await.unwrap().reply.post.unwrap()
    }

    pub(crate) async fn publish_in(&self, shard: ShardId, title: &str) -> Post {
        let id = PostId(mint(Timestamp::now(), SHARDS, Some(shard)));
        self.posts.publish_as(id, draft(title), soon()).await.unwrap().reply.post.unwrap()
    }

    pub(crate) async fn sign_up(&self, name: &str) -> UserId {
        let id = UserId(mint(Timestamp::now(), SHARDS, None));
        self.users.ensure_author(id, Username::parse(name).unwrap(), Timestamp::now(), soon()).await.unwrap();
        id
    }
}

/// A runtime that serves these shards and does nothing of its own accord.
async fn seat<S: Service>(service: S, config: &Config, node: &str, count: u16, shards: &[ShardId]) -> Runtime<S> {
    let pool = PoolSize { connections_max: 4, ..PoolSize::default() };
    let settings = Settings { shards: count, pool, ..Settings::default() };
    let runtime = Runtime::new(service, config.clone(), Incarnation(Uuid::new_v4()), settings);
    runtime.start(SupervisorRef::spawn("node", Vec::new()).await.unwrap().0.cell());
    let directory = directory(&runtime).await;
    directory.prepare(count).await.unwrap();
    directory.join(runtime.incarnation(), node, None, None).await.unwrap();
    runtime.lease().renewed(BootTime::now(), LEASE);
    let rows = directory.shards().await.unwrap();
    let rows: Vec<_> = rows.into_iter().filter(|row| shards.contains(&row.id)).collect();
    open(&runtime, directory.take_over(&rows, None, runtime.incarnation()).await.unwrap()).await;
    runtime
}

async fn directory<S: Service>(runtime: &Runtime<S>) -> Directory {
    Directory::open(runtime.database(), S::NAME, runtime.incarnation()).await.unwrap()
}

async fn open<S: Service>(runtime: &Runtime<S>, granted: Vec<Granted>) {
    let shards: Vec<ShardId> = granted.iter().map(|granted| granted.shard).collect();
    let inbox = directory(runtime).await.inbox(&shards).await.unwrap();
    for granted in granted {
        let positions = inbox.iter().filter(|(shard, ..)| *shard == granted.shard);
        runtime.open(granted, positions.map(|(_, source, position)| (*source, *position)).collect()).await.unwrap();
    }
    runtime.service().shards_changed();
}

pub(crate) fn user_id(n: usize) -> UserId {
    UserId(Uuid::from_u128(1_000 + n as u128))
}

pub(crate) fn soon() -> Context {
    Context::within(Duration::from_secs(20))
}

pub(crate) fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(crate) fn draft(title: &str) -> Draft {
    Draft {
        author: ADA,
        title: Title::parse(title).unwrap(),
        body: Body::parse("A body.").unwrap(),
        tags: Tags::parse(&["rust"]).unwrap(),
        at: Timestamp::now(),
    }
}

/// As everybody waits, for this long at most.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    testing::eventually(Duration::from_secs(60), what, condition).await;
}
