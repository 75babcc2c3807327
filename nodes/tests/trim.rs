//! Trimming keeps the promises of rule 5.

use std::time::Duration;

use jiff::Timestamp;
use rookery::{
    migrate::Database,
    testing::{TestPostgres, TestService},
};
use rookery_actors::{
    ids::{Seq, ShardId, UserId},
    posts::{
        Draft, PostService, Posts,
        rules::{Body, Tags, Title},
    },
    runtime::{Context, Retention, Settings},
};
use uuid::Uuid;

fn retention(consumers: &[&'static str]) -> Retention {
    Retention { consumers: consumers.to_vec(), relayed: false, records: Duration::ZERO, idempotency: Duration::ZERO }
}

async fn sql(config: &tokio_postgres::Config) -> tokio_postgres::Client {
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn filled(config: &tokio_postgres::Config) -> (TestService<PostService>, Vec<(ShardId, Seq)>) {
    let settings = Settings { shards: 4, ..Settings::default() };
    let service = TestService::start(PostService::default(), config.clone(), "n1", settings).await;
    let posts = Posts::new(service.runtime.clone());
    for n in 0..40 {
        let draft = Draft {
            author: UserId(Uuid::from_u128(1)),
            title: Title::parse(&format!("p{n}")).unwrap(),
            body: Body::parse("").unwrap(),
            tags: Tags::default(),
            at: Timestamp::now(),
        };
        posts.publish(draft, Context::within(Duration::from_secs(10))).await.unwrap();
    }
    let heads = service.runtime.owned().into_iter().map(|(shard, _, head)| (shard, head)).collect();
    (service, heads)
}

#[tokio::test]
async fn nothing_goes_while_a_reader_has_not_come() {
    let config = TestPostgres::shared().fresh_database(Database::Posts).await;
    let (service, heads) = filled(&config).await;
    service.runtime.note_consumer("search", &heads).await.unwrap();
    assert_eq!(service.runtime.trim(&retention(&["search", "users"])).await.unwrap(), 0);
    service.stop().await;
}

#[tokio::test]
async fn what_all_have_read_goes_but_epoch_records_and_last_rows_stay_and_the_count_goes_on() {
    let config = TestPostgres::shared().fresh_database(Database::Posts).await;
    let (service, heads) = filled(&config).await;
    service.runtime.note_consumer("search", &heads).await.unwrap();
    assert!(service.runtime.trim(&retention(&["search"])).await.unwrap() > 0);
    service.stop().await;

    let client = sql(&config).await;
    let row = client.query_one("SELECT count(*) FILTER (WHERE type = 'epoch'), count(*) FROM outbox", &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (4, 8), "four shards: an epoch record and a last row each");

    let settings = Settings { shards: 4, ..Settings::default() };
    let service = TestService::start(PostService::default(), config.clone(), "n2", settings).await;
    for ((shard, _, head), (before, old_head)) in service.runtime.owned().into_iter().zip(heads) {
        assert_eq!((shard, head), (before, old_head + 1), "the epoch record follows what was there");
    }
    service.stop().await;
}
