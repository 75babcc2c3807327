//! Entities fall and come back; memory stays bounded.

use std::time::Duration;

use jiff::Timestamp;
use rookery::testing::TestService;
use rookery_actors::{
    entity::{AskError, Failure},
    ids::{ShardId, mint},
    posts::{PostService, Posts},
    runtime::Settings,
};

use crate::{
    proxy::{BATCH, Fate, Proxy},
    support::*,
    tally::{Command, TallyService},
};

async fn tallies(config: &tokio_postgres::Config) -> TestService<TallyService> {
    TestService::start_with(TallyService::default(), config.clone(), "n1", settings(), LONG_LEASE).await
}

fn failed<T: std::fmt::Debug>(result: Result<T, AskError<()>>) -> Failure {
    match result.unwrap_err() {
        AskError::Failed(failure) => failure,
        AskError::Rejected(()) => panic!("nothing is rejected here"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_that_panics_is_back_with_its_committed_state_and_its_queue_is_delivered() {
    let config = database().await;
    let service = tallies(&config).await;
    let id = mint(Timestamp::now(), SHARDS, None);
    let ask = |command| service.runtime.ask(id, command, soon());
    assert_eq!(ask(Command::Add).await.unwrap().reply, 1);
    let (trip, next, last) = tokio::join!(ask(Command::Trip), ask(Command::Add), ask(Command::Add));
    assert_eq!(failed(trip), Failure::Crashed);
    let mut counts = [next.unwrap().reply, last.unwrap().reply];
    counts.sort_unstable();
    assert_eq!(counts, [2, 3], "queued behind the panic, delivered after it");
    assert_eq!(service.runtime.restarts(), 1);
    service.stop().await;
}

/// What was broken: its client heard that it had failed and might be tried again, and did it twice.
#[tokio::test(flavor = "multi_thread")]
async fn an_entity_that_falls_after_its_commit_remembers_the_commit_and_its_client_hears_that_it_is_unknown() {
    let config = database().await;
    let service = tallies(&config).await;
    let id = mint(Timestamp::now(), SHARDS, None);
    let fallen = failed(service.runtime.ask(id, Command::AddAndTrip, soon()).await);
    assert!(matches!(fallen, Failure::Unknown(_)), "{fallen:?}");
    assert_eq!(service.runtime.ask(id, Command::Add, soon()).await.unwrap().reply, 2);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_its_restart_intensity_an_entity_is_isolated_and_its_neighbours_go_on() {
    let config = database().await;
    let service = tallies(&config).await;
    let [bad, good] = [(); 2].map(|()| mint(Timestamp::now(), SHARDS, Some(ShardId(1))));
    eventually("it is isolated", async || failed(service.runtime.ask(bad, Command::Trip, soon()).await) == Failure::Isolated)
        .await;
    assert_eq!(service.runtime.ask(good, Command::Add, soon()).await.unwrap().reply, 1);
    service.stop().await;
}

/// The supervisor of the only shard with an entity in memory.
fn the_supervisor(service: &TestService<PostService>) -> ractor::ActorCell {
    let mut busy = service.shard_supervisors().into_iter().filter(|supervisor| !supervisor.get_children().is_empty());
    busy.next().expect("a post is loaded")
}

/// What was broken: nobody restarted it, and whoever asked the shard asked for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_whose_supervisor_falls_opens_anew_with_its_committed_state() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = lively_node(&proxy.config(), "n1").await;
    let post = published(&posts, ShardId(1), "v1").await;
    let held = proxy.hold(BATCH);
    let edit = tokio::spawn({
        let posts = posts.clone();
        async move { retitle(&posts, post.id, "v2").await }
    });
    let held = held.await;
    let before = service.runtime.latest_epoch(ShardId(1));
    the_supervisor(&service).kill();
    // In the middle of a write: nobody can say any more what became of it.
    assert!(edit.await.unwrap().is_err());
    held.release(Fate::Passes);
    // Not before: until its fall is noticed, reads are still answered from the memory of the tenure that ends.
    eventually("the shard opens anew", async || service.runtime.latest_epoch(ShardId(1)) > before).await;
    let mut last = None;
    eventually("the shard serves again", async || {
        last = posts.get(post.id, deadline()).await.ok().flatten();
        last.is_some()
    })
    .await;
    assert_eq!(service.runtime.restarts(), 1, "the shard, for nobody");
    let version = last.unwrap().version;
    assert_eq!(retitle(&posts, post.id, "v3").await.unwrap().reply.post.unwrap().version, version + 1);
    let client = sql(&config).await;
    assert_gap_free(&client).await;
    assert_memory_is_sql(&posts, &client).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_that_fail_beyond_their_restart_intensity_are_told_to_whoever_runs_the_service() {
    let config = database().await;
    let (service, posts) = lively_node(&config, "n1").await;
    published(&posts, ShardId(1), "v1").await;
    for supervisor in service.shard_supervisors().into_iter().take(3) {
        supervisor.kill();
    }
    eventually("all are served again", async || service.runtime.owned().len() == usize::from(SHARDS)).await;
    assert!(futures_util::FutureExt::now_or_never(service.runtime.failed()).is_none(), "three are forgiven");
    for supervisor in service.shard_supervisors() {
        supervisor.kill();
    }
    tokio::time::timeout(Duration::from_secs(20), service.runtime.failed()).await.unwrap();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_near_its_cap_over_many_entities_and_every_one_still_reads_right() {
    let config = database().await;
    let cap = 3 << 20;
    let settings = Settings { cache_bytes: cap, ..settings() };
    let service = TestService::start_with(PostService::default(), config.clone(), "n1", settings, LONG_LEASE).await;
    let posts = Posts::new(service.runtime.clone());
    let mut written = Vec::new();
    for round in 0..20 {
        let many = (0..100).map(|n| {
            let posts = &posts;
            async move { published(posts, ShardId(n % SHARDS), &format!("{round}/{n}")).await }
        });
        written.extend(futures_util::future::join_all(many).await);
        eventually("the sweep has made room", async || service.runtime.loaded().1 <= cap).await;
    }
    for hundred in written.chunks(100) {
        let read = posts.get_many(hundred.iter().map(|post| post.id), deadline()).await.unwrap();
        assert!(read.iter().map(|post| &post.title).eq(hundred.iter().map(|post| &post.title)));
        eventually("the sweep has made room", async || service.runtime.loaded().1 <= cap).await;
    }
    service.stop().await;
}
