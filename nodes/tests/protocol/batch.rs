//! Rules 11 to 15.

use rookery_actors::{
    ids::ShardId,
    posts::PostService,
    runtime::{CommitError, NewRecord, Unit},
};
use uuid::Uuid;

use crate::{
    proxy::{BATCH, Fate, Proxy},
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

#[tokio::test(flavor = "multi_thread")]
async fn two_effects_on_the_same_key_count_both() {
    let config = database().await;
    let (service, posts) = still_node(&config).await;
    let post = published(&posts, ShardId(1), "liked").await;
    let like = |on| posts.like(post.id, BOB, on, soon());
    let (a, b, c) = tokio::join!(like(true), like(false), like(true));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    let client = sql(&config).await;
    assert_eq!(client.query_one("SELECT count(*) FROM post_like", &[]).await.unwrap().get::<_, i64>(0), 1);
    assert_memory_is_sql(&posts, &client).await;
    assert_gap_free(&client).await;
    service.stop().await;
}
