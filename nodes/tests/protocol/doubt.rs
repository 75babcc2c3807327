//! Rule 3: the connection dies at COMMIT.

use std::time::Duration;

use rookery_actors::{
    entity::{AskError, Failure},
    ids::ShardId,
    runtime::{Context, IdempotencyKey},
};

use crate::{
    proxy::{BATCH, Fate, Proxy, RENEWAL},
    support::*,
};

/// A write whose commit met this fate ends as if nothing had been, and so does everything after it.
async fn one_write_is_answered_once(fate: Fate) {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = still_node(&proxy.config()).await;
    let post = published(&posts, ShardId(2), "v1").await;

    proxy.once(BATCH, fate);
    let edited = retitle(&posts, post.id, "v2").await.unwrap();
    assert_eq!(edited.reply.post.unwrap().version, 2);

    let client = sql(&config).await;
    let count = "SELECT count(*) FROM outbox WHERE type = 'post.updated'";
    assert_eq!(client.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 1, "once, not twice");
    assert_eq!(retitle(&posts, post.id, "v3").await.unwrap().reply.post.unwrap().version, 3);
    published(&posts, ShardId(2), "another").await;
    assert_gap_free(&client).await;
    assert_memory_is_sql(&posts, &client).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_never_arrived_is_proved_absent_and_made_again() {
    one_write_is_answered_once(Fate::NeverArrives).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_was_lost_is_found_and_not_repeated() {
    one_write_is_answered_once(Fate::AnswerLost).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_doubt_of_a_doubt_is_resolved_as_well() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = still_node(&proxy.config()).await;
    for fate in [Fate::NeverArrives, Fate::AnswerLost] {
        proxy.once(BATCH, fate);
    }
    published(&posts, ShardId(1), "at last").await;
    let client = sql(&config).await;
    assert_eq!(titles(&client).await, ["at last"]);
    assert_gap_free(&client).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fenced_with_the_doubt_open_the_caller_hears_unknown() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = still_node(&proxy.config()).await;
    let held = proxy.hold(BATCH);
    let write = publishing(&posts, ShardId(6), "lost");
    let held = held.await;
    Rival::join(&config).await.take(ShardId(6)).await;
    held.release(Fate::NeverArrives);
    let answer = write.await.unwrap();
    assert!(matches!(answer, Err(AskError::Failed(Failure::Unknown(_)))), "{answer:?}");
    let client = sql(&config).await;
    assert!(titles(&client).await.is_empty());
    published(&posts, ShardId(0), "others go on").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_with_its_key_at_the_next_owner_finds_what_the_first_one_committed() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = still_node(&proxy.config()).await;
    let key = || IdempotencyKey::new("ada:/posts:7", [7; 32]);
    let context = || Context { idempotency: Some(key()), ..soon() };
    let lost = proxy.hold(BATCH);
    let write = tokio::spawn({
        let (posts, context) = (posts.clone(), context());
        async move { posts.publish(draft("once"), context).await }
    });
    let lost = lost.await;
    // The answer is lost, and the server with it: the owner cannot resolve its doubt before it is dead.
    lost.release(Fate::AnswerLost);
    let client = sql(&config).await;
    eventually("the post is committed", async || titles(&client).await == ["once"]).await;
    proxy.take_down();
    let former = service.runtime.incarnation();
    let heir = rookery_actors::ids::Incarnation(former.0);
    assert!(Rival::join(&config).await.directory().declare_dead(heir, None).await.unwrap());

    let (second, retrying) = lively_node(&config, "n2").await;
    eventually("the key's shard has moved", async || second.runtime.head(key().shard(SHARDS)).is_some()).await;
    let found = retrying.publish(draft("once"), context()).await.unwrap().reply.post.unwrap();
    assert_eq!(titles(&client).await, ["once"]);
    proxy.heal();
    // Found through the log, or unknown: but never "no".
    match write.await.unwrap() {
        Ok(accepted) => assert_eq!(accepted.reply.post.unwrap().id, found.id),
        Err(error) => assert!(matches!(error, AskError::Failed(Failure::Unknown(_))), "{error:?}"),
    }
    second.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_read_or_loaded_while_a_commit_is_in_doubt() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = still_node(&proxy.config()).await;
    let post = published(&posts, ShardId(2), "v1").await;
    let held = proxy.hold(BATCH);
    let write = tokio::spawn({
        let posts = posts.clone();
        async move { retitle(&posts, post.id, "v2").await }
    });
    let held = held.await;
    assert_eq!(posts.get(post.id, deadline()).await.unwrap().unwrap().version, 1, "not committed, so not seen");
    proxy.take_down();
    drop(held);
    eventually("the doubt is open", async || matches!(posts.get(post.id, deadline()).await, Err(Failure::Moved(_)))).await;
    assert!(service.runtime.is_held(ShardId(2)));
    proxy.heal();
    assert_eq!(write.await.unwrap().unwrap().reply.post.unwrap().version, 2);
    assert_eq!(posts.get(post.id, deadline()).await.unwrap().unwrap().version, 2);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_longer_than_two_leases_writes_and_reads_go_on() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = node(&proxy.config(), "n1", SHORT_LEASE).await;
    let post = published(&posts, ShardId(2), "v1").await;
    let held = proxy.hold(BATCH);
    let patience = Context::within(Duration::from_millis(100));
    let like = tokio::spawn({
        let posts = posts.clone();
        async move { posts.like(post.id, BOB, true, patience).await }
    });
    let held = held.await;
    proxy.take_down();
    drop(held);
    assert!(like.await.unwrap().is_err());
    eventually("commits have failed for two leases", async || !service.runtime.commits_work(SHORT_LEASE.ttl * 2)).await;
    proxy.heal();
    eventually("the node serves again", async || retitle(&posts, post.id, "v2").await.is_ok()).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_commits_do_not_work_stops_renewing_until_they_do() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = node(&proxy.config(), "n1", SHORT_LEASE).await;
    proxy.always(BATCH, Fate::NeverArrives);
    let write = publishing(&posts, ShardId(1), "late");
    eventually("the lease has ended", async || !service.runtime.lease().is_valid()).await;
    proxy.heal();
    eventually("it renews again", async || service.runtime.lease().is_valid()).await;
    assert!(write.await.unwrap().is_ok());
    service.stop().await;
}

/// What was broken: it waited for as long as the kernel did, a quarter of an hour.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_nobody_answers_is_a_doubt() {
    one_write_is_answered_once(Fate::Vanishes).await;
}

/// What was broken: only a commit that failed told that commits did not work.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_batch_hears_nothing_stops_renewing_until_it_does() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = node(&proxy.config(), "n1", SHORT_LEASE).await;
    let held = proxy.hold(BATCH);
    let write = publishing(&posts, ShardId(1), "late");
    let held = held.await;
    eventually("the lease has ended", async || !service.runtime.lease().is_valid()).await;
    assert!(!service.runtime.commits_work(SHORT_LEASE.ttl * 2));
    held.release(Fate::Passes);
    assert!(write.await.unwrap().is_ok());
    eventually("it renews again", async || service.runtime.lease().is_valid()).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_though_the_database_is_away_and_guesses_no_outcome() {
    for fate in [Fate::NeverArrives, Fate::Vanishes] {
        let config = database().await;
        let proxy = Proxy::start(&config);
        let (service, posts) = lively_node(&proxy.config(), "n1").await;
        let held = proxy.hold(BATCH);
        let open = publishing(&posts, ShardId(2), "open");
        let held = held.await;
        // One more in the same lane, which nobody comes to send.
        let unsent = publishing(&posts, ShardId(3), "unsent");
        // Gone at once, or silent.
        match fate {
            Fate::NeverArrives => proxy.take_down(),
            _ => proxy.always(RENEWAL, fate),
        }
        held.release(fate);
        let stopped = tokio::time::timeout(Duration::from_secs(30), service.stop()).await;
        assert!(stopped.is_ok(), "{fate:?}: the stop has an end");
        let answer = open.await.unwrap();
        assert!(matches!(answer, Err(AskError::Failed(Failure::Unknown(_)))), "{fate:?}: {answer:?}");
        let answer = unsent.await.unwrap();
        assert!(matches!(answer, Err(AskError::Failed(Failure::Unavailable(_) | Failure::Moved(_)))), "{fate:?}: {answer:?}");
    }
}
