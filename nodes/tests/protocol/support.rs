//! What the stories share: a database, posts, and the eyes of SQL.

use std::time::Duration;

use jiff::Timestamp;
use rookery::{
    migrate::Database,
    ownership::LeaseSettings,
    testing::{self, LEASE, TestPostgres, TestService},
};
use rookery_actors::{
    ids::{Epoch, Incarnation, PostId, Seq, ShardId, UserId, mint},
    posts::{
        Changes, Draft, Post, PostService, Posts,
        rules::{Body, Tags, Title},
    },
    runtime::{AskResult, Context, Directory, Granted, Settings, ShardRow},
};
use tokio::time::Instant;
use tokio_postgres::{Client, Config};
use uuid::Uuid;

pub(crate) const ADA: UserId = UserId(Uuid::from_u128(1));
pub(crate) const BOB: UserId = UserId(Uuid::from_u128(2));

/// Few, so that batches meet.
pub(crate) const SHARDS: u16 = 8;

/// Long enough that nothing moves by itself while a story is told.
pub(crate) const LONG_LEASE: LeaseSettings = LeaseSettings { ttl: Duration::from_secs(60), renew_every: Duration::from_secs(20) };

/// Short, for stories about its end.
pub(crate) const SHORT_LEASE: LeaseSettings =
    LeaseSettings { ttl: Duration::from_millis(600), renew_every: Duration::from_millis(100) };

pub(crate) fn settings() -> Settings {
    Settings { shards: SHARDS, ..Settings::default() }
}

pub(crate) fn soon() -> Context {
    Context::within(Duration::from_secs(20))
}

pub(crate) fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(crate) async fn database() -> Config {
    // A story that fails tells what the service thought of it.
    let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_test_writer().try_init();
    TestPostgres::shared().fresh_database(Database::Posts).await
}

pub(crate) async fn sql(config: &Config) -> Client {
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) async fn node(config: &Config, name: &str, lease: LeaseSettings) -> (TestService<PostService>, Posts) {
    let service = TestService::start_with(PostService::default(), config.clone(), name, settings(), lease).await;
    let posts = Posts::new(service.runtime.clone());
    (service, posts)
}

/// A node that does nothing of its own accord while a story is told.
pub(crate) async fn still_node(config: &Config) -> (TestService<PostService>, Posts) {
    node(config, "n1", LONG_LEASE).await
}

pub(crate) async fn lively_node(config: &Config, name: &str) -> (TestService<PostService>, Posts) {
    node(config, name, LEASE).await
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

pub(crate) async fn publish_in(posts: &Posts, shard: ShardId, title: &str) -> AskResult<PostService> {
    let id = PostId(mint(Timestamp::now(), SHARDS, Some(shard)));
    posts.publish_as(id, draft(title), soon()).await
}

/// The same, for another task.
pub(crate) fn publishing(posts: &Posts, shard: ShardId, title: &'static str) -> tokio::task::JoinHandle<AskResult<PostService>> {
    let posts = posts.clone();
    tokio::spawn(async move { publish_in(&posts, shard, title).await })
}

pub(crate) async fn published(posts: &Posts, shard: ShardId, title: &str) -> Post {
    publish_in(posts, shard, title).await.unwrap().reply.post.unwrap()
}

pub(crate) async fn retitle(posts: &Posts, id: PostId, title: &str) -> AskResult<PostService> {
    let changes = Changes { title: Some(Title::parse(title).unwrap()), ..Changes::default() };
    posts.edit(id, ADA, changes, Timestamp::now(), soon()).await
}

/// The titles of all posts in SQL, sorted.
pub(crate) async fn titles(client: &Client) -> Vec<String> {
    let rows = client.query("SELECT title FROM post ORDER BY title", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Every shard's log runs from 1 to its head, and its epochs never fall.
pub(crate) async fn assert_gap_free(client: &Client) {
    let rows = client
        .query(
            "SELECT shard, seq FROM (SELECT shard, seq, row_number() OVER w AS nr, epoch, lag(epoch) OVER w AS before FROM outbox
             WINDOW w AS (PARTITION BY shard ORDER BY seq)) o WHERE seq <> nr OR epoch < before",
            &[],
        )
        .await
        .unwrap();
    let holes: Vec<(i16, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert!(holes.is_empty(), "gaps or falling epochs at {holes:?}");
}

/// Memory says what SQL says, post by post.
pub(crate) async fn assert_memory_is_sql(posts: &Posts, client: &Client) {
    for row in client.query("SELECT id, title, version, like_count FROM post", &[]).await.unwrap() {
        let post = posts.get(PostId(row.get(0)), deadline()).await.unwrap().unwrap();
        assert_eq!((post.title.as_str(), post.version, post.like_count), (row.get(1), row.get(2), row.get(3)));
    }
}

/// Somebody else, played by hand: a member that never renews.
pub(crate) struct Rival {
    pub(crate) incarnation: Incarnation,
    directory: Directory,
    config: Config,
}

impl Rival {
    pub(crate) async fn join(config: &Config) -> Self {
        let incarnation = Incarnation(Uuid::new_v4());
        let database = rookery_actors::runtime::Database::new(config.clone(), "rival", Default::default());
        let directory = Directory::open(&database, "posts", incarnation).await.unwrap();
        directory.join(incarnation, "rival", None, None).await.unwrap();
        Self { incarnation, directory, config: config.clone() }
    }

    pub(crate) async fn row(&self, shard: ShardId) -> ShardRow {
        self.directory.shards().await.unwrap()[shard.index()]
    }

    /// Takes a shard over, from an owner that is dead in the directory and does not know.
    pub(crate) async fn seize(&self, seen: ShardRow) -> Vec<Granted> {
        let die = "UPDATE member SET state = 'dead' WHERE incarnation = $1";
        sql(&self.config).await.execute(die, &[&seen.owner.map(|owner| owner.0)]).await.unwrap();
        self.directory.take_over(&[seen], seen.owner, self.incarnation).await.unwrap()
    }

    /// Takes a shard from whoever has it, and lives on.
    pub(crate) async fn take(&self, shard: ShardId) -> (Seq, Epoch) {
        let granted = testing::rob(&self.config, shard, self.incarnation).await;
        (granted.seq, granted.epoch)
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }
}

/// As everybody waits, for this long at most.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    testing::eventually(Duration::from_secs(20), what, condition).await;
}
