//! What the machinery around the rules costs: reading and asking a loaded entity, and the committer under load.
//!
//! Against a real Postgres of its own, with `fsync` on as in production.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use rookery::{
    migrate::{self, Database},
    postgres::{DataDir, EmbeddedPostgres},
    testing::TestService,
};
use rookery_actors::{
    ids::{PostId, UserId},
    posts::{
        Draft, Filter, PostService, Posts, Sort,
        rules::{Body, Tags, Title},
    },
    runtime::{Context, Settings},
};
use tokio::runtime::Runtime;
use uuid::Uuid;

/// A service over a server of its own; both end with it.
struct Bench {
    posts: Posts,
    _service: TestService<PostService>,
    _postgres: EmbeddedPostgres,
    _data: DataDir,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = DataDir::lock(folder.path().join("data")).expect("the folder is new");
        let postgres = EmbeddedPostgres::start(&data, &["posts"]).await.expect("Postgres starts");
        let config = postgres.config("posts");
        let (mut client, connection) = config.connect(tokio_postgres::NoTls).await.expect("Postgres answers");
        tokio::spawn(connection);
        migrate::run(&mut client, Database::Posts).await.expect("the migrations apply");
        let service = TestService::start(PostService::default(), config, "bench", Settings::default()).await;
        let posts = Posts::new(service.runtime.clone());
        Self { posts, _service: service, _postgres: postgres, _data: data, _folder: folder }
    }
}

fn draft(n: u64) -> Draft {
    Draft {
        author: UserId(Uuid::from_u128(u128::from(n % 64))),
        title: Title::parse(&format!("Post number {n}")).expect("a title"),
        body: Body::parse(&"It weaves algebraic patterns. ".repeat(20)).expect("a body"),
        tags: Tags::parse(&["engines"]).expect("tags"),
        at: Timestamp::now(),
    }
}

fn soon() -> Context {
    Context::within(Duration::from_secs(30))
}

fn deadline() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(30)
}

async fn publish(posts: &Posts, n: u64) -> PostId {
    posts.publish(draft(n), soon()).await.expect("it is published").reply.post.expect("it is there").id
}

/// Publishes `count` posts, `at_once` of them under way at any time; how long it took.
async fn publish_many(posts: &Posts, count: u64, at_once: usize) -> Duration {
    let began = Instant::now();
    stream::iter(0..count).map(|n| publish(posts, n)).buffer_unordered(at_once).for_each(async |_| {}).await;
    began.elapsed()
}

fn machinery(c: &mut Criterion) {
    let tokio = Runtime::new().expect("a runtime");
    let bench = tokio.block_on(Bench::start());
    let posts = &bench.posts;
    let id = tokio.block_on(publish(posts, 0));

    let mut group = c.benchmark_group("entity");
    group.bench_function("read a loaded post", |b| {
        b.to_async(&tokio).iter(|| async { posts.get(id, deadline()).await.expect("it is readable") });
    });
    let user = UserId(Uuid::from_u128(9));
    group.bench_function("ask, and nothing to do", |b| {
        // Taking back a like that is not there: a full round through the mailbox and no commit.
        b.to_async(&tokio).iter(|| async { posts.like(id, user, false, soon()).await.expect("nothing happens") });
    });
    group.finish();

    let mut group = c.benchmark_group("committer");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for at_once in [1, 64, 256] {
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("publish, {at_once} at once"), |b| {
            b.to_async(&tokio).iter_custom(|count| publish_many(posts, count, at_once));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("lists");
    for (name, sort) in [("new", Sort::New), ("hot", Sort::Hot)] {
        group.bench_function(format!("20 posts, {name}"), |b| {
            b.to_async(&tokio).iter(|| async { posts.list(sort, &Filter::All, None, 20, deadline()).await.expect("a page") });
        });
    }
    group.finish();
}

criterion_group!(benches, machinery);
criterion_main!(benches);
