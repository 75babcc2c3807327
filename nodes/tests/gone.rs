//! Who asks may go away in the middle: a client hangs up, a deadline passes, a node gives up on another. The future is then dropped
//! where it stands, and what it was in the middle of must not stay so.

use std::time::Duration;

use jiff::Timestamp;
use rookery::{
    migrate::Database,
    testing::{TestPostgres, TestService, eventually},
};
use rookery_actors::{
    ids::{Incarnation, UserId},
    posts::{
        Draft, Filter, PostService, Posts, Sort,
        rules::{Body, Tags, Title},
    },
    runtime::{self, Context, Directory, PoolSize, Settings},
};
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, Config, NoTls};
use uuid::Uuid;

/// Long enough to get to where it is dropped.
const A_MOMENT: Duration = Duration::from_millis(300);

async fn fresh() -> (Config, Client) {
    let config = TestPostgres::shared().fresh_database(Database::Posts).await;
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    (config, client)
}

async fn service(config: &Config) -> (TestService<PostService>, Posts) {
    let service = TestService::start(PostService::default(), config.clone(), "n1", Settings::default()).await;
    let posts = Posts::new(service.runtime.clone());
    (service, posts)
}

fn draft(body: &str) -> Draft {
    Draft {
        author: UserId(Uuid::from_u128(1)),
        title: Title::parse("A title").unwrap(),
        body: Body::parse(body).unwrap(),
        tags: Tags::default(),
        at: Timestamp::now(),
    }
}

fn soon() -> Context {
    Context::within(Duration::from_secs(10))
}

/// Nobody reads or writes posts in SQL meanwhile.
async fn while_locked<T>(client: &mut Client, work: impl Future<Output = T>) -> T {
    let lock = client.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE post IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let done = work.await;
    lock.rollback().await.unwrap();
    done
}

/// What was broken: the list stayed on SQL for as long as the shards stayed where they were, and every change of it in memory.
#[tokio::test]
async fn a_list_whose_first_reader_goes_away_is_soon_in_memory() {
    let (config, mut client) = fresh().await;
    let (service, posts) = service(&config).await;
    posts.publish(draft("hello"), soon()).await.unwrap();
    let first_page = async || {
        let page = posts.list(Sort::New, &Filter::All, None, 3, soon().deadline);
        timeout(A_MOMENT, page).await.is_ok_and(|page| page.unwrap().items.len() == 1)
    };
    assert!(!while_locked(&mut client, first_page()).await, "SQL does not answer");
    eventually(Duration::from_secs(20), "the list is read from memory", async || while_locked(&mut client, first_page()).await)
        .await;
    service.stop().await;
}

/// What was broken: the node did not know of its weight, and held more than it may.
#[tokio::test]
async fn a_post_whose_writer_goes_away_weighs_what_it_weighs() {
    let (config, mut client) = fresh().await;
    let (service, posts) = service(&config).await;
    let body = "x".repeat(20_000);
    let publish = timeout(A_MOMENT, posts.publish(draft(&body), soon()));
    assert!(while_locked(&mut client, publish).await.is_err(), "SQL does not answer");
    eventually(Duration::from_secs(20), "the post is there", async || {
        client.query("SELECT FROM post", &[]).await.unwrap().len() == 1
            && service.runtime.owned().iter().any(|(.., seq)| *seq > 1)
    })
    .await;
    let (entities, bytes) = service.runtime.loaded();
    assert_eq!(entities, 1);
    assert!(bytes > body.len(), "{bytes} bytes by our account");
    service.stop().await;
}

/// What was broken: nobody served the shard any more, for its owner renewed and thought that it was on its way.
#[tokio::test]
async fn a_hand_off_that_is_given_up_leaves_no_shard_closed() {
    let (config, mut client) = fresh().await;
    let (service, posts) = service(&config).await;
    let post = posts.publish(draft("hello"), soon()).await.unwrap().reply.post.unwrap();
    let (runtime, shards) = (&service.runtime, [service.runtime.shard_of(post.id.0)]);
    let directory = Directory::open(runtime.database(), "posts", runtime.incarnation()).await.unwrap();
    let like = posts.like(post.id, UserId(Uuid::from_u128(2)), true, soon());
    // It waits for the like, which waits for the lock.
    let give = timeout(A_MOMENT, runtime.hand_off(&directory, &shards, Incarnation(Uuid::new_v4()), Duration::from_secs(60)));
    let (liked, given) = while_locked(&mut client, async { tokio::join!(timeout(A_MOMENT, like), give) }).await;
    assert!(liked.is_err() && given.is_err(), "both wait");
    let read = posts.get(post.id, soon().deadline).await;
    assert!(read.as_ref().is_ok_and(Option::is_some), "{read:?}");
    posts.like(post.id, UserId(Uuid::from_u128(3)), true, soon()).await.unwrap();
    service.stop().await;
}

/// What was broken: the connection looked free, and the next reader waited behind the statement of the one before.
#[tokio::test]
async fn a_reader_who_goes_away_keeps_no_connection_busy() {
    let (config, client) = fresh().await;
    let pool = PoolSize { connections_max: 1, wait_max: Duration::from_secs(10) };
    let database = runtime::Database::new(config, "a reader", pool);
    let slow = async {
        let client = database.get().await.unwrap();
        client.query("SELECT pg_sleep(600)", &[]).await
    };
    assert!(timeout(A_MOMENT, slow).await.is_err());
    let began = Instant::now();
    let next = async {
        let client = database.get().await.unwrap();
        client.query_one("SELECT 7", &[]).await.unwrap().get::<_, i32>(0)
    };
    assert_eq!(timeout(Duration::from_secs(20), next).await.ok(), Some(7), "after {} s", began.elapsed().as_secs());
    let asleep =
        "SELECT FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()";
    assert!(client.query(asleep, &[]).await.unwrap().is_empty(), "nobody waits for it");
}
