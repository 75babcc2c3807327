//! A lane of the committer falls over: its shards open anew with what is committed, and the service goes on.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::{FutureExt, join, join3};
use jiff::Timestamp;
use rookery::testing::TestService;
use rookery_actors::{
    entity::Failure,
    event::{Record, Source, Topic},
    ids::{ShardId, mint},
    runtime::{CommitError, NewRecord, ProjectError, Slice, SlicePart, Unit},
};
use uuid::Uuid;

use crate::{
    proxy::{BATCH, Fate, Proxy},
    support::*,
    tally::{Command, Event, TallyService},
};

const SOURCE: Source = Source { topic: Topic::Comments, shard: ShardId(0) };

/// One whose membership looks for closed shards as often as in production.
async fn tallies(config: &tokio_postgres::Config) -> TestService<TallyService> {
    TestService::start_with(TallyService::default(), config.clone(), "n1", settings(), rookery::testing::LEASE).await
}

/// News for an entity that come with a note.
fn slice(key: Uuid) -> Slice {
    let record =
        Record { seq: 1, epoch: 1, key, kind: "add".into(), payload: Some("{}".into()), traceparent: None, at: Timestamp::now() };
    Slice { parts: vec![SlicePart { source: SOURCE, position: 1, records: vec![Arc::new(record)] }] }
}

fn in_shard(shard: u16) -> Uuid {
    mint(Timestamp::now(), SHARDS, Some(ShardId(shard)))
}

async fn reads(service: &TestService<TallyService>, id: Uuid) -> Option<i64> {
    service.runtime.query(service.runtime.shard_of(id), &id, deadline()).await.ok().flatten()
}

fn unit(id: Uuid) -> Unit<TallyService> {
    let mut unit = Unit::of(SHARDS);
    unit.touches.push(id);
    unit.effects.push((id, Event::Added));
    unit.records.push(NewRecord { key: id, kind: "tally.added", payload: "{}".into(), traceparent: None });
    unit
}

/// Commits something in shard 1, and in one more batch something in shard 0, a slice in shard 2 and something in shard 3,
/// where the slice's note falls over; `fate` is of that batch. Nobody waits for ever, nothing is lost or there twice.
async fn a_lane_falls_over_in_the_middle_of_a_batch(fate: Fate) {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let service = tallies(&proxy.config()).await;
    let runtime = &service.runtime;
    let [first, before, fallen, after] = [1, 0, 2, 3].map(in_shard);
    for id in [before, fallen, after] {
        assert_eq!(runtime.ask(id, Command::Add, soon()).await.unwrap().reply, 1, "it is in memory");
    }
    let epochs = [0, 2, 3].map(|shard| runtime.latest_epoch(ShardId(shard)));
    runtime.service().falls.store(1, Ordering::SeqCst);

    // While the first is held, the others gather behind it.
    let news = slice(fallen);
    let held = proxy.hold(BATCH);
    let story = async {
        let held = held.await;
        let second = proxy.hold(BATCH);
        let gathered = join3(
            runtime.commit(ShardId(0), unit(before)),
            runtime.apply(ShardId(2), &news),
            runtime.commit(ShardId(3), unit(after)),
        );
        let released = async {
            held.release(Fate::Passes);
            second.await.release(fate);
        };
        // In this order: what is polled first is queued first.
        join(gathered, released).await.0
    };
    let (one, (before_it, at_fault, after_it)) = join(runtime.commit(ShardId(1), unit(first)), story).await;
    assert!(one.is_ok() && before_it.is_ok(), "they were through: {one:?} {before_it:?}");
    assert!(matches!(at_fault, Err(ProjectError::Failed(Failure::Unknown(_)))), "{at_fault:?}");
    assert_eq!(after_it, Err(CommitError::Unknown));

    eventually("the shards serve again", async || {
        let [before, fallen, after] =
            [reads(&service, before).await, reads(&service, fallen).await, reads(&service, after).await];
        before.is_some() && fallen.is_some() && after.is_some()
    })
    .await;
    let reopened = [0, 2, 3].map(|shard| runtime.latest_epoch(ShardId(shard)) > epochs[usize::from(shard).saturating_sub(1)]);
    // What was in doubt opens anew, wherever the lane had come to.
    assert_eq!(reopened, [fate != Fate::Passes, true, true]);
    assert_eq!(runtime.restarts(), 1, "the lane, for nobody else");
    // All of it was committed; memory has followed, and what comes twice is known.
    for id in [before, fallen, after] {
        assert_eq!(reads(&service, id).await, Some(2));
    }
    runtime.apply(ShardId(2), &news).await.unwrap();
    for (id, now) in [(first, 2), (before, 3), (fallen, 3), (after, 3)] {
        assert_eq!(runtime.ask(id, Command::Add, soon()).await.unwrap().reply, now);
    }
    assert_gap_free(&sql(&config).await).await;
    service.stop().await;
}

/// What was broken: the lane was gone, and every command of the service waited until its deadline.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_falls_over_begins_anew_and_its_shards_with_what_is_committed() {
    a_lane_falls_over_in_the_middle_of_a_batch(Fate::Passes).await;
}

/// The same while it resolves a doubt: what it had suspended nobody would resume.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_falls_over_with_a_doubt_open_leaves_no_shard_suspended() {
    a_lane_falls_over_in_the_middle_of_a_batch(Fate::AnswerLost).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committer_that_fails_beyond_its_restart_intensity_is_told_to_whoever_runs_the_service() {
    let config = database().await;
    let service = tallies(&config).await;
    let keys: Vec<Uuid> = (0..SHARDS).map(in_shard).collect();
    let falls = &service.runtime.service().falls;
    falls.store(3, Ordering::SeqCst);
    let apply = async |key: Uuid| service.runtime.apply(service.runtime.shard_of(key), &slice(key)).await;
    for key in &keys[..3] {
        assert!(apply(*key).await.is_err());
    }
    assert!(service.runtime.failed().now_or_never().is_none(), "three are forgiven");
    apply(keys[3]).await.expect("and the service goes on");
    falls.store(usize::MAX, Ordering::SeqCst);
    tokio::time::timeout(Duration::from_secs(20), async {
        tokio::join!(service.runtime.failed(), async {
            for key in keys[4..].iter().cycle() {
                if apply(*key).await.is_err() && service.runtime.failed().now_or_never().is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    })
    .await
    .expect("more are not");
    falls.store(0, Ordering::SeqCst);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_without_which_a_service_cannot_go_on_ends_the_service_with_it() {
    let config = database().await;
    let service = tallies(&config).await;
    service.runtime.spawn_vital("a task of a test", async { panic!("it was told to") });
    tokio::time::timeout(Duration::from_secs(20), service.runtime.failed()).await.unwrap();
    service.stop().await;
}
