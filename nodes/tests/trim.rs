//! Trimming keeps the promises of rules 5 and 15.

use std::time::Duration;

use jiff::Timestamp;
use rookery::{
    migrate::Database,
    testing::{TestPostgres, TestService},
};
use rookery_actors::{
    entity::{AskError, Failure},
    ids::{PostId, Seq, ShardId, UserId, mint},
    posts::{
        Draft, PostService, Posts,
        rules::{Body, Tags, Title},
    },
    runtime::{Context, IdempotencyKey, Retention, Settings},
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

fn soon() -> Context {
    Context::within(Duration::from_secs(10))
}

fn draft(title: &str) -> Draft {
    Draft {
        author: UserId(Uuid::from_u128(1)),
        title: Title::parse(title).unwrap(),
        body: Body::parse("").unwrap(),
        tags: Tags::default(),
        at: Timestamp::now(),
    }
}

async fn filled(config: &tokio_postgres::Config) -> (TestService<PostService>, Vec<(ShardId, Seq)>) {
    let settings = Settings { shards: 4, ..Settings::default() };
    let service = TestService::start(PostService::default(), config.clone(), "n1", settings).await;
    let posts = Posts::new(service.runtime.clone());
    for n in 0..40 {
        // Ten in each shard.
        let id = PostId(mint(Timestamp::now(), 4, Some(ShardId(n % 4))));
        posts.publish_as(id, draft(&format!("p{n}")), soon()).await.unwrap();
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
    let told = client.query_one("SELECT count(*) FROM outbox WHERE payload IS NOT NULL", &[]).await.unwrap();
    assert_eq!(told.get::<_, i64>(0), 0, "the last rows are about nobody");

    let settings = Settings { shards: 4, ..Settings::default() };
    let service = TestService::start(PostService::default(), config.clone(), "n2", settings).await;
    for ((shard, _, head), (before, old_head)) in service.runtime.owned().into_iter().zip(heads) {
        assert_eq!((shard, head), (before, old_head + 2), "an empty record and the epoch record follow what was there");
    }
    service.stop().await;
}

/// In a quiet shard each pass finds the empty record of the one before, and leaves it at that.
#[tokio::test]
async fn the_log_of_a_quiet_shard_does_not_grow_by_being_trimmed() {
    let config = TestPostgres::shared().fresh_database(Database::Posts).await;
    let (service, heads) = filled(&config).await;
    service.runtime.note_consumer("search", &heads).await.unwrap();
    service.runtime.trim(&retention(&["search"])).await.unwrap();
    let after: Vec<_> = service.runtime.owned().into_iter().map(|(shard, _, head)| (shard, head)).collect();
    assert_eq!(after, heads.iter().map(|(shard, head)| (*shard, head + 1)).collect::<Vec<_>>());
    service.runtime.note_consumer("search", &after).await.unwrap();
    assert_eq!(service.runtime.trim(&retention(&["search"])).await.unwrap(), 0);
    let last: Vec<_> = service.runtime.owned().into_iter().map(|(shard, _, head)| (shard, head)).collect();
    assert_eq!(last, after);
    service.stop().await;
}

#[tokio::test]
async fn what_kafka_does_not_have_yet_stays() {
    let config = TestPostgres::shared().fresh_database(Database::Posts).await;
    let (service, heads) = filled(&config).await;
    let retention = Retention { relayed: true, ..retention(&[]) };
    assert_eq!(service.runtime.trim(&retention).await.unwrap(), 0, "nothing has been relayed");

    let client = sql(&config).await;
    let relayed: Seq = 4;
    for (shard, head) in &heads {
        assert!(*head > relayed + 1, "there is more in each shard");
        let shard = i16::try_from(shard.index()).unwrap();
        client.execute("INSERT INTO relayed (shard, seq) VALUES ($1, $2)", &[&shard, &relayed]).await.unwrap();
    }
    assert!(service.runtime.trim(&retention).await.unwrap() > 0);
    let left = client
        .query("SELECT shard, min(seq) FROM outbox WHERE type <> 'epoch' GROUP BY shard ORDER BY shard", &[])
        .await
        .unwrap();
    let left: Vec<(i16, Seq)> = left.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(left, [0, 1, 2, 3].map(|shard| (shard, relayed + 1)), "from the first that Kafka does not have on");
    service.stop().await;
}

#[tokio::test]
async fn a_key_is_kept_for_24_hours_and_forgotten_after_them() {
    let config = TestPostgres::shared().fresh_database(Database::Posts).await;
    let settings = Settings { shards: 4, ..Settings::default() };
    let service = TestService::start(PostService::default(), config.clone(), "n1", settings).await;
    let posts = Posts::new(service.runtime.clone());
    let publish = async |hash: u8| -> Result<PostId, AskError<_>> {
        let key = IdempotencyKey::new("ada:/posts:1", [hash; 32]);
        let asked = posts.publish(draft("once"), Context { idempotency: Some(key), ..soon() }).await?;
        Ok(asked.reply.post.expect("it was published").id)
    };
    let client = sql(&config).await;
    let aged = async |age: &str| {
        let sql = format!("UPDATE idempotency SET at = now() - interval '{age}'");
        assert_eq!(client.execute(&sql, &[]).await.unwrap(), 1);
        let day = Duration::from_secs(24 * 3600);
        service.runtime.trim(&Retention { idempotency: day, ..retention(&["nobody"]) }).await.unwrap();
    };
    let first = publish(1).await.unwrap();
    aged("23 hours 50 minutes").await;
    assert_eq!(publish(1).await.unwrap(), first);
    assert_eq!(publish(2).await.unwrap_err(), AskError::Failed(Failure::KeyReused));
    aged("24 hours 10 minutes").await;
    assert_ne!(publish(2).await.unwrap(), first, "the key is free for another request");
    service.stop().await;
}
