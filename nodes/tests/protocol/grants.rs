//! One hand-off, and what can become of it: rules 3 and 8.

use std::time::Duration;

use rookery::{ownership::LeaseSettings, testing};
use rookery_actors::{ids::ShardId, runtime::Context};

use crate::{
    cluster::*,
    proxy::{BATCH, Fate, GRANT, LIKED, Proxy, RESOLUTION},
    support::*,
    writers::*,
};

/// A grant whose outcome is open is resolved, and the shards are served somewhere in the end, once.
async fn a_grant_meets(fate: Fate) {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let hub = Hub::default();
    let one = hub.join(&proxy.config(), "n1", QUICK).await;
    let writers = Writers::start("some", &[&one.posts]);
    writers.more().await;
    proxy.once(GRANT, fate);
    let two = hub.join(&config, "n2", QUICK).await;
    at_rest(&[&one, &two]).await;
    writers.more().await;
    let written = writers.stop().await;
    let client = sql(&config).await;
    assert_exactly(&written, &client).await;
    assert_memory_is_sql(&one.posts, &client).await;
    assert_memory_is_sql(&two.posts, &client).await;
    two.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_never_arrived_is_taken_back_and_made_again() {
    a_grant_meets(Fate::NeverArrives).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_whose_answer_was_lost_is_found_to_have_been() {
    a_grant_meets(Fate::AnswerLost).await;
}

/// What was broken, and found by the model: the owner in doubt took the shard for its own all along, and served what it
/// remembered.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_granted_written_and_granted_back_during_a_doubt_is_read_anew() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let hub = Hub::default();
    let one = hub.join(&proxy.config(), "n1", QUICK).await;
    settled(&one).await;
    let post = published_in(&one.posts, ShardId(3), "v1").await;
    let rival = RivalIn64::join(&config).await;
    let resolving = proxy.hold(RESOLUTION);
    proxy.once(GRANT, Fate::AnswerLost);
    let handing = tokio::spawn({
        let (runtime, to) = (one.service.runtime.clone(), rival.incarnation);
        let directory = directory_of(&one).await;
        async move { runtime.hand_off(&directory, &[ShardId(3)], to, Duration::from_secs(5)).await }
    });
    let resolving = resolving.await;

    let row = rival.directory.shards().await.unwrap()[3];
    assert_eq!(row.owner, Some(rival.incarnation));
    let client = sql(&config).await;
    let write = "WITH edited AS (UPDATE post SET title = 'v2', version = 2 WHERE id = $1)
                 INSERT INTO outbox (shard, seq, epoch, key, type) SELECT 3, max(seq) + 1, $2, $1, 'post.updated' FROM outbox WHERE shard = 3";
    client.execute(write, &[&post.0, &row.epoch]).await.unwrap();
    testing::rob(&config, ShardId(3), one.service.runtime.incarnation()).await;

    resolving.release(Fate::Passes);
    handing.await.unwrap();
    assert_eq!(one.posts.get(post, deadline()).await.unwrap().unwrap().version, 2);
    assert_eq!(retitle(&one.posts, post, "v3").await.unwrap().reply.post.unwrap().version, 3);
    assert_gap_free(&client).await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_granted_to_a_member_that_died_meanwhile_and_the_door_opens_again() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let hub = Hub::default();
    let one = hub.join(&proxy.config(), "n1", QUICK).await;
    settled(&one).await;
    let post = published_in(&one.posts, ShardId(3), "v1").await;
    let held = proxy.hold(GRANT);
    let rival = RivalIn64::join(&config).await;
    let shards: Vec<ShardId> = (0..MANY_SHARDS).map(ShardId).collect();
    let handing = tokio::spawn({
        let (runtime, to) = (one.service.runtime.clone(), rival.incarnation);
        let directory = directory_of(&one).await;
        async move { runtime.hand_off(&directory, &shards, to, Duration::from_secs(5)).await }
    });
    let held = held.await;
    assert!(one.owned().is_empty(), "the door is closed before the grant is sent");
    assert!(rival.directory.declare_dead(rival.incarnation, None).await.unwrap());
    held.release(Fate::Passes);
    assert!(handing.await.unwrap().granted.is_empty());
    assert_eq!(one.owned().len(), usize::from(MANY_SHARDS));
    assert_eq!(retitle(&one.posts, post, "v2").await.unwrap().reply.post.unwrap().version, 2);
    let marked = "SELECT count(*) FROM shard WHERE target IS NOT NULL";
    assert_eq!(sql(&config).await.query_one(marked, &[]).await.unwrap().get::<_, i64>(0), 0, "nobody is to have them");
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_granted_to_a_member_that_dies_comes_back() {
    let config = database().await;
    let hub = Hub::default();
    let lease = LeaseSettings { ttl: Duration::from_secs(1), renew_every: Duration::from_millis(50) };
    let one = hub.join(&config, "n1", lease).await;
    settled(&one).await;
    let post = published_in(&one.posts, ShardId(3), "v1").await;
    // It never renews, so it will be found dead.
    let rival = RivalIn64::join(&config).await;
    let directory = directory_of(&one).await;
    let handed = one.service.runtime.hand_off(&directory, &[ShardId(3)], rival.incarnation, Duration::from_secs(5)).await;
    assert_eq!(handed.granted.len(), 1);
    eventually("it is back", async || one.owned().len() == usize::from(MANY_SHARDS)).await;
    assert_eq!(one.posts.get(post, deadline()).await.unwrap().unwrap().version, 1);
    assert!(retitle(&one.posts, post, "v2").await.is_ok());
    assert_gap_free(&sql(&config).await).await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_doubt_in_the_middle_of_a_hand_off_is_resolved_first() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let hub = Hub::default();
    let one = hub.join(&proxy.config(), "n1", QUICK).await;
    settled(&one).await;
    let post = published_in(&one.posts, ShardId(3), "v1").await;
    let rival = RivalIn64::join(&config).await;
    let held = proxy.hold(BATCH);
    let write = tokio::spawn({
        let posts = one.posts.clone();
        async move { retitle(&posts, post, "v2").await }
    });
    let held = held.await;
    let handing = tokio::spawn({
        let (runtime, to) = (one.service.runtime.clone(), rival.incarnation);
        let directory = directory_of(&one).await;
        async move { runtime.hand_off(&directory, &[ShardId(3)], to, Duration::from_secs(10)).await }
    });
    eventually("the door is closed", async || one.service.runtime.head(ShardId(3)).is_none()).await;
    assert!(one.service.runtime.is_held(ShardId(3)));
    held.release(Fate::NeverArrives);
    assert_eq!(write.await.unwrap().unwrap().reply.post.unwrap().version, 2, "it was admitted, so it is committed");
    let granted = handing.await.unwrap().granted;
    assert_eq!(granted.len(), 1);
    let row = rival.directory.shards().await.unwrap()[3];
    assert_eq!((row.owner, row.epoch), (Some(rival.incarnation), granted[0].1));
    assert_gap_free(&sql(&config).await).await;
    one.stop().await;
}

/// What was broken: a command that changes nothing was answered from the memory of a former owner.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_commit_is_checked_like_a_read() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let hub = Hub::default();
    let one = hub.join(&proxy.config(), "n1", QUICK).await;
    settled(&one).await;
    let post = published_in(&one.posts, ShardId(3), "v1").await;
    one.posts.like(post, BOB, true, soon()).await.unwrap();
    let held = proxy.hold(LIKED);
    let again = tokio::spawn({
        let posts = one.posts.clone();
        async move { posts.like(post, BOB, true, Context::within(Duration::from_secs(1))).await }
    });
    let held = held.await;
    let rival = RivalIn64::join(&config).await;
    let directory = directory_of(&one).await;
    let handed = one.service.runtime.hand_off(&directory, &[ShardId(3)], rival.incarnation, Duration::from_secs(5)).await;
    assert_eq!(handed.granted.len(), 1);
    held.release(Fate::Passes);
    assert!(again.await.unwrap().is_err(), "nobody knows what the new owner has made of it");
    one.stop().await;
}
