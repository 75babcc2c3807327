//! Rule 10: a statement that is never answered. Of each kind one: it costs some seconds, then the write is resolved, the lease
//! ends, or somebody else is asked, and reads move.

use std::time::Duration;

use futures_util::future::join_all;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rookery::testing::LEASE;
use rookery_actors::{
    entity::{AskError, Failure},
    ids::{ShardId, UserId},
    posts::{PostService, Rejection},
    runtime::{Context, Database, NewRecord, PoolSize, Unit},
};
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    cluster::*,
    proxy::{BATCH, Fate, GRANT, LANE, LIKED, LOAD, LOOK, MARK, Proxy, RESOLUTION},
    support::*,
};

/// What anything may take that hears nothing once.
const IN_TIME: Duration = Duration::from_secs(20);

/// Whether nothing happened, and why is told.
fn is_unavailable<T>(answer: &Result<T, AskError<Rejection>>) -> bool {
    matches!(answer, Err(AskError::Failed(Failure::Unavailable(_))))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_nobody_answers_is_a_doubt() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, _) = still_node(&proxy.config()).await;
    let claim = || {
        let mut unit = Unit::<PostService>::of(SHARDS);
        unit.records.push(NewRecord { key: Uuid::from_u128(7), kind: "post.updated", payload: "{}".into(), traceparent: None });
        unit.alone = true;
        unit
    };
    proxy.once(BATCH, Fate::Vanishes);
    let committed = timeout(IN_TIME, service.runtime.commit(ShardId(1), claim())).await;
    assert!(matches!(committed, Ok(Ok(_))), "{committed:?}");
    assert!(service.runtime.commit(ShardId(1), claim()).await.is_ok());
    assert_gap_free(&sql(&config).await).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_doubt_that_nobody_answers_is_resolved_over_another_connection() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = still_node(&proxy.config()).await;
    let post = published(&posts, ShardId(2), "v1").await;
    proxy.once(BATCH, Fate::NeverArrives);
    proxy.once(RESOLUTION, Fate::Vanishes);
    assert_eq!(retitle(&posts, post.id, "v2").await.unwrap().reply.post.unwrap().version, 2);
    assert_gap_free(&sql(&config).await).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_doubt_hears_nothing_stops_renewing_until_it_does() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = node(&proxy.config(), "n1", SHORT_LEASE).await;
    proxy.always(RESOLUTION, Fate::Vanishes);
    proxy.once(BATCH, Fate::NeverArrives);
    let write = publishing(&posts, ShardId(1), "late");
    eventually("the lease has ended", async || !service.runtime.lease().is_valid()).await;
    proxy.heal();
    assert!(write.await.unwrap().is_ok());
    eventually("it renews again", async || service.runtime.lease().is_valid()).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_never_opened_is_given_up() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = still_node(&proxy.config()).await;
    let post = published(&posts, ShardId(2), "v1").await;
    proxy.once(LANE, Fate::Vanishes);
    proxy.once(BATCH, Fate::NeverArrives);
    assert!(is_unavailable(&retitle(&posts, post.id, "v2").await));
    assert_eq!(retitle(&posts, post.id, "v2").await.unwrap().reply.post.unwrap().version, 2);
    service.stop().await;
}

/// What was broken: the loads of a service have four slots, and each was taken for ever.
#[tokio::test(flavor = "multi_thread")]
async fn loads_that_nobody_answers_keep_no_others_from_loading() {
    let config = database().await;
    let (former, posts) = still_node(&config).await;
    let mut ids = Vec::new();
    for shard in 0..5 {
        ids.push(published(&posts, ShardId(shard), "to be loaded").await.id);
    }
    former.stop().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = still_node(&proxy.config()).await;
    let mut hung = Vec::new();
    for id in &ids[..4] {
        let held = proxy.hold(LOAD);
        hung.push(tokio::spawn({
            let (posts, id) = (posts.clone(), *id);
            async move { posts.get(id, deadline()).await }
        }));
        held.await.release(Fate::Vanishes);
    }
    let read = timeout(IN_TIME, posts.get(ids[4], deadline())).await;
    assert!(matches!(read, Ok(Ok(Some(_)))), "{read:?}");
    for read in hung {
        let read = read.await.unwrap();
        assert!(matches!(read, Err(Failure::Unavailable(_))), "{read:?}");
    }
    for id in ids {
        assert!(posts.get(id, deadline()).await.unwrap().is_some());
    }
    service.stop().await;
}

/// What was broken: the actor waited for ever, and what came for it stayed in its mailbox.
#[tokio::test(flavor = "multi_thread")]
async fn an_entity_that_waits_for_an_answer_takes_only_so_many_commands_and_goes_on_without_it() {
    const CROWD: u128 = 1_500;
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = still_node(&proxy.config()).await;
    let post = published(&posts, ShardId(2), "popular").await.id;
    posts.like(post, ADA, true, soon()).await.unwrap();
    let held = proxy.hold(LIKED);
    let waits = tokio::spawn({
        let posts = posts.clone();
        async move { posts.like(post, BOB, true, soon()).await }
    });
    held.await.release(Fate::Vanishes);
    let crowd = (0..CROWD).map(|n| {
        let posts = posts.clone();
        let user = UserId(Uuid::from_u128(1_000 + n));
        tokio::spawn(async move { posts.like(post, user, true, Context::within(Duration::from_secs(3))).await })
    });
    let answers: Vec<_> = join_all(crowd).await.into_iter().map(Result::unwrap).collect();
    let count = |failure: fn(&Failure) -> bool| {
        answers.iter().filter(|answer| matches!(answer, Err(AskError::Failed(why)) if failure(why))).count()
    };
    let (waited, refused) = (count(|why| matches!(why, Failure::Expired)), count(|why| matches!(why, Failure::Overloaded(_))));
    assert!((1_000..=1_024).contains(&waited), "{waited} waited in the mailbox");
    assert_eq!(waited + refused, CROWD as usize, "the others heard that it is full");
    let waited = waits.await.unwrap();
    assert!(is_unavailable(&waited), "{waited:?}");
    assert_eq!(posts.like(post, BOB, true, soon()).await.unwrap().reply.post.unwrap().like_count, 2);
    service.stop().await;
}

/// A hand-off of which this statement meets this fate comes about in the end.
async fn a_hand_off_meets(text: &'static str, fate: Fate) {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let hub = Hub::default();
    let one = hub.join(&proxy.config(), "n1", QUICK).await;
    let post = published_in(&one.posts, ShardId(3), "v1").await;
    proxy.once(text, fate);
    let two = hub.join(&config, "n2", QUICK).await;
    eventually("it has met its fate", async || proxy.waiting() == 0).await;
    at_rest(&[&one, &two]).await;
    for (peer, version) in [(&one, 2), (&two, 3)] {
        assert_eq!(retitle(&peer.posts, post, &format!("v{version}")).await.unwrap().reply.post.unwrap().version, version);
    }
    assert_gap_free(&sql(&config).await).await;
    two.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_off_whose_target_cannot_be_written_down_is_begun_again() {
    a_hand_off_meets(MARK, Fate::Vanishes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_nobody_answers_is_taken_back_and_made_again() {
    a_hand_off_meets(GRANT, Fate::Vanishes).await;
}

/// What was broken: the shards gave no answers, for as long as the silence lasted, and the lease went on.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_hand_off_hears_nothing_stops_renewing_until_it_does() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let hub = Hub::default();
    let one = hub.join(&proxy.config(), "n1", SHORT_LEASE).await;
    let post = published_in(&one.posts, ShardId(3), "v1").await;
    let rival = RivalIn64::join(&config).await;
    let held = proxy.hold(GRANT);
    let handing = tokio::spawn({
        let (runtime, to) = (one.service.runtime.clone(), rival.incarnation);
        let directory = directory_of(&one).await;
        async move { runtime.hand_off(&directory, &[ShardId(3)], to, Duration::from_secs(5)).await }
    });
    let held = held.await;
    eventually("the lease has ended", async || !one.service.runtime.lease().is_valid()).await;
    held.release(Fate::Vanishes);
    assert!(handing.await.unwrap().granted.is_empty(), "it never arrived");
    eventually("it serves again", async || one.posts.get(post, deadline()).await.is_ok_and(|post| post.is_some())).await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_nobody_answers_costs_the_lease_and_is_repeated() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = lively_node(&proxy.config(), "n1").await;
    let post = published(&posts, ShardId(2), "v1").await;
    proxy.once(LOOK, Fate::Vanishes);
    eventually("the lease has ended", async || !service.runtime.lease().is_valid()).await;
    eventually("it serves again", async || retitle(&posts, post.id, "v2").await.is_ok()).await;
    service.stop().await;
}

/// Postgres, but for one of its processes, which is as if it were not.
struct Frozen(Pid);

impl Frozen {
    /// Stops the process in which the batches of a service are carried out; between two of them.
    async fn lane(client: &tokio_postgres::Client, incarnation: &str) -> Self {
        let lane = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'
                        AND application_name = $1 AND query LIKE 'WITH t0 AS (INSERT%'";
        let pid: i32 = client.query_one(lane, &[&format!("posts:{incarnation}")]).await.unwrap().get(0);
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        Self(Pid::from_raw(pid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// What was broken: every write of the service failed for as long as it stood still, under a lease that went on.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_stands_still_between_two_batches_costs_some_seconds() {
    let config = database().await;
    let (service, posts) = lively_node(&config, "n1").await;
    let post = published(&posts, ShardId(2), "v1").await;
    let client = sql(&config).await;
    let frozen = Frozen::lane(&client, &service.runtime.incarnation().to_string()).await;
    let edited = timeout(LEASE.ttl * 5, retitle(&posts, post.id, "v2")).await;
    assert!(matches!(edited, Ok(Ok(_))), "{edited:?}");
    assert_eq!(retitle(&posts, post.id, "v3").await.unwrap().reply.post.unwrap().version, 3);
    drop(frozen);
    // It wakes with the batch that it had been sent.
    assert_eq!(retitle(&posts, post.id, "v4").await.unwrap().reply.post.unwrap().version, 4);
    assert_memory_is_sql(&posts, &client).await;
    assert_gap_free(&client).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_caller_went_away_is_given_to_nobody_before_the_server_has_let_go_of_it() {
    let proxy = Proxy::start(&database().await);
    let size = PoolSize { connections_max: 1, wait_max: Duration::from_millis(500) };
    let database = Database::new(proxy.config(), "a test", size);
    let read = async || database.get().await?.query_one("SELECT 7", &[]).await.map_err(Failure::from);
    proxy.once("SELECT 7", Fate::Vanishes);
    assert!(timeout(Duration::from_millis(100), read()).await.is_err(), "its caller goes away");
    assert!(database.get().await.is_err(), "the server has said nothing");
    eventually("there is another connection", async || read().await.is_ok()).await;
    let slow = async { database.get().await.unwrap().query("SELECT pg_sleep(600)", &[]).await };
    assert!(timeout(Duration::from_millis(100), slow).await.is_err(), "its caller goes away");
    eventually("the server has let go of it", async || read().await.is_ok()).await;
}
