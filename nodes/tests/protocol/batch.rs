//! Rules 11 to 15.

use futures_util::future::join_all;
use rookery::testing::TestService;
use rookery_actors::{
    entity::Failure,
    ids::ShardId,
    posts::{PostService, Posts},
    runtime::{CommitError, Context, IdempotencyKey, NewRecord, Settings, Unit},
};
use uuid::Uuid;

use crate::{
    proxy::{BATCH, Fate, LOAD, Proxy},
    support::*,
};

fn unit(payload: &str) -> Unit<PostService> {
    let mut unit = Unit::of(SHARDS);
    unit.records.push(NewRecord { key: Uuid::from_u128(7), kind: "post.updated", payload: payload.into(), traceparent: None });
    unit
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_the_database_refuses_stands_alone_and_its_neighbours_are_committed() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, _) = still_node(&proxy.config()).await;
    let held = proxy.hold(BATCH);
    let runtime = &service.runtime;
    let story = async {
        let (first, a, bad, b, c) = tokio::join!(
            runtime.commit(ShardId(0), unit("{}")),
            runtime.commit(ShardId(1), unit("{}")),
            runtime.commit(ShardId(1), unit("\0")),
            runtime.commit(ShardId(1), unit("{}")),
            runtime.commit(ShardId(2), unit("{}")),
        );
        assert!(first.is_ok() && a.is_ok() && b.is_ok() && c.is_ok());
        assert!(matches!(bad, Err(CommitError::Refused { .. })), "{bad:?}");
    };
    tokio::join!(story, async { held.await.release(Fate::Passes) });
    assert_gap_free(&sql(&config).await).await;
    service.stop().await;
}

/// What was broken: whoever was loaded by the same statement could not be loaded either, and it counted as an outage.
#[tokio::test(flavor = "multi_thread")]
async fn an_entity_that_cannot_be_loaded_harms_none_that_is_loaded_with_it() {
    let config = database().await;
    let (service, posts) = still_node(&config).await;
    let mut ids = Vec::new();
    for n in 0..6 {
        ids.push(published(&posts, ShardId(n), "loaded").await.id);
    }
    service.stop().await;
    let bad = ids[4];
    let trap = format!(
        "INSERT INTO post_counter (post, comment_count) SELECT id, 0 FROM post;
         ALTER TABLE post_counter RENAME TO counted;
         CREATE VIEW post_counter AS SELECT post, comment_count / (post <> '{}')::int AS comment_count FROM counted",
        bad.0
    );
    sql(&config).await.batch_execute(&trap).await.unwrap();

    let proxy = Proxy::start(&config);
    let settings = Settings { loads_max: 1, ..settings() };
    let service = TestService::start_with(PostService::default(), proxy.config(), "n1", settings, LONG_LEASE).await;
    let posts = Posts::new(service.runtime.clone());
    let held = proxy.hold(LOAD);
    // While the first is held, the others gather behind it.
    let story = join_all(ids.iter().map(|id| posts.get(*id, deadline())));
    let (answers, ()) = tokio::join!(story, async { held.await.release(Fate::Passes) });
    for (id, answer) in ids.iter().zip(answers) {
        match *id == bad {
            true => assert!(matches!(answer, Err(Failure::Refused(_))), "{answer:?}"),
            false => assert!(matches!(answer, Ok(Some(_))), "{answer:?}"),
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_effects_on_the_same_key_count_both() {
    let config = database().await;
    let (service, posts) = still_node(&config).await;
    let post = published(&posts, ShardId(1), "liked").await;
    let like = |on| posts.like(post.id, BOB, on, soon());
    // It has come to life before the three: whoever comes while its birth is being folded in waits, and the next may pass.
    like(false).await.unwrap();
    let (a, b, c) = tokio::join!(like(true), like(false), like(true));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    let client = sql(&config).await;
    assert_eq!(client.query_one("SELECT count(*) FROM post_like", &[]).await.unwrap().get::<_, i64>(0), 1);
    assert_memory_is_sql(&posts, &client).await;
    assert_gap_free(&client).await;
    service.stop().await;
}

/// The question for an answer that is kept under a key.
const KEPT: &str = "SELECT request_hash, reply, seq FROM idempotency";

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_flight_waits_for_the_first_answer() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = still_node(&proxy.config()).await;
    let publish = |key: &'static str| {
        let posts = posts.clone();
        let key = IdempotencyKey::new(key, [1; 32]);
        tokio::spawn(async move { posts.publish(draft(&key.key), Context { idempotency: Some(key.clone()), ..soon() }).await })
    };
    let held = proxy.hold(BATCH);
    let first = publish("once");
    let held = held.await;
    // The second comes first and would look; it waits for its turn, and another key does not wait for it.
    proxy.once(KEPT, Fate::Passes);
    proxy.once(KEPT, Fate::Passes);
    let second = publish("once");
    let other = publish("another");
    eventually("the other key is looked up", async || proxy.waiting() <= 1).await;
    assert_eq!(proxy.waiting(), 1, "the second looked for an answer that is not there yet");
    held.release(Fate::Passes);
    let [first, second, other] =
        [first, second, other].map(|asked| async { asked.await.unwrap().unwrap().reply.post.unwrap().id });
    let (first, second, other) = tokio::join!(first, second, other);
    assert!(first == second && second != other);
    assert_eq!(titles(&sql(&config).await).await, ["another", "once"]);
    service.stop().await;
}

fn claim() -> Unit<PostService> {
    let mut claim = unit("{}");
    claim.alone = true;
    claim
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_commits_alone_and_only_its_own_shard_waits_for_it() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, _) = still_node(&proxy.config()).await;
    let held = proxy.hold(BATCH);
    let commit = |shard: u16, unit: Unit<PostService>| {
        let runtime = service.runtime.clone();
        tokio::spawn(async move { runtime.commit(ShardId(shard), unit).await.unwrap() })
    };
    let first = commit(1, claim());
    let held = held.await;
    let behind: Vec<_> = [claim(), unit("{}"), claim()].into_iter().map(|unit| commit(1, unit)).collect();
    let others: Vec<_> = (0..3).map(|n| commit(2, if n == 1 { claim() } else { unit("{}") })).collect();
    commit(3, unit("{}")).await.unwrap();
    assert!(!first.is_finished() && behind.iter().all(|behind| !behind.is_finished()), "one in flight per shard");
    held.release(Fate::Passes);
    for landed in behind.into_iter().chain(others).chain([first]) {
        landed.await.unwrap();
    }
    let client = sql(&config).await;
    // Four claims; of the four others some may share.
    let alone = "SELECT count(*) FROM (SELECT FROM outbox WHERE type = 'post.updated' GROUP BY batch HAVING count(*) = 1) a";
    assert!(client.query_one(alone, &[]).await.unwrap().get::<_, i64>(0) >= 4);
    assert_gap_free(&client).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_meets_a_lock_gives_up_in_time_and_holds_up_no_other_lane() {
    let config = database().await;
    let (service, _) = still_node(&config).await;
    let mut stranger = sql(&config).await;
    let lock = stranger.transaction().await.unwrap();
    let next = service.runtime.head(ShardId(1)).unwrap() + 1;
    lock.execute("INSERT INTO outbox (shard, seq, epoch, type) VALUES (1, $1, 0, 'epoch')", &[&next]).await.unwrap();
    let blocked = tokio::spawn({
        let runtime = service.runtime.clone();
        async move { runtime.commit(ShardId(1), claim()).await }
    });
    let client = sql(&config).await;
    waits_for_a_lock(&client).await;
    service.runtime.commit(ShardId(2), unit("{}")).await.unwrap();
    assert!(!blocked.is_finished());
    let refused = blocked.await.unwrap();
    assert!(matches!(&refused, Err(CommitError::Unavailable(reason)) if reason.starts_with("55P03")), "{refused:?}");
    lock.rollback().await.unwrap();
    service.runtime.commit(ShardId(1), claim()).await.unwrap();
    assert_gap_free(&client).await;
    service.stop().await;
}

async fn waits_for_a_lock(client: &tokio_postgres::Client) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("somebody waits for a lock", async || client.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_falls_to_a_deadlock_is_tried_again() {
    let config = database().await;
    let (service, posts) = still_node(&config).await;
    let post = published(&posts, ShardId(1), "v1").await;
    let mut stranger = sql(&config).await;
    // The batch has its record and wants the post; the stranger has the post and wants the record, and is more patient.
    let knot = stranger.transaction().await.unwrap();
    knot.batch_execute("SET LOCAL deadlock_timeout = '1h'").await.unwrap();
    knot.execute("SELECT FROM post WHERE id = $1 FOR UPDATE", &[&post.id.0]).await.unwrap();
    let next = service.runtime.head(ShardId(1)).unwrap() + 1;
    let edit = tokio::spawn({
        let posts = posts.clone();
        async move { retitle(&posts, post.id, "v2").await }
    });
    let client = sql(&config).await;
    waits_for_a_lock(&client).await;
    knot.execute("INSERT INTO outbox (shard, seq, epoch, type) VALUES (1, $1, 0, 'epoch')", &[&next]).await.unwrap();
    knot.rollback().await.unwrap();
    assert_eq!(edit.await.unwrap().unwrap().reply.post.unwrap().version, 2);
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    // Before the stranger wakes, the second try may have tied the same knot again.
    eventually("it was one", async || client.query_one(deadlocks, &[]).await.unwrap().get::<_, i64>(0) > 0).await;
    assert_gap_free(&client).await;
    assert_memory_is_sql(&posts, &client).await;
    service.stop().await;
}
