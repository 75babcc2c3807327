//! Rules 5, 14, 16 and 18: foreign records, applied once each, in order, whatever stops in between.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use rookery::{bridge::Bridge, testing::TestService};
use rookery_actors::{
    event::{EventLog, Fetched, LogError, Record, Source, Topic},
    ids::{Seq, ShardId, mint},
    runtime::{LetterFilter, Slice, SlicePart},
};
use uuid::Uuid;

use crate::{
    proxy::{BATCH, Fate, Proxy},
    support::*,
    tally::{Command, TallyService},
};

const SOURCE: Source = Source { topic: Topic::Comments, shard: ShardId(0) };

/// A log of one shard that is written by hand.
struct Script(Vec<Arc<Record>>);

impl EventLog for Script {
    fn fetch<'a>(
        &'a self,
        _: Topic,
        positions: &'a [(ShardId, Seq)],
        _: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Fetched>, LogError>> {
        Box::pin(async move {
            let (shard, position) = positions[0];
            let records: Vec<_> = self.0.iter().filter(|record| record.seq > position).take(5).cloned().collect();
            if records.is_empty() {
                tokio::time::sleep(wait).await;
                return Ok(Vec::new());
            }
            Ok(vec![Fetched { shard, records }])
        })
    }
}

/// The same of two shards, the first of which begins late: what is before its first record was trimmed.
struct Trimmed(Script, Script);

impl EventLog for Trimmed {
    fn fetch<'a>(
        &'a self,
        topic: Topic,
        positions: &'a [(ShardId, Seq)],
        bytes_max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Fetched>, LogError>> {
        Box::pin(async move {
            let (floor, head) = (self.0.0.first().unwrap().seq, self.0.0.last().unwrap().seq);
            let mut fetched = Vec::new();
            for (shard, position) in positions {
                if *shard == ShardId(0) && position + 1 < floor {
                    let source_shard = Source { topic, shard: *shard };
                    return Err(LogError::OutOfRange { source_shard, position: *position, floor, head });
                }
                let script = if *shard == ShardId(0) { &self.0 } else { &self.1 };
                fetched.extend(script.fetch(topic, &[(*shard, *position)], bytes_max, wait / 4).await?);
            }
            Ok(fetched)
        })
    }
}

fn record(seq: Seq, key: Uuid, kind: &str) -> Arc<Record> {
    Arc::new(Record {
        seq,
        epoch: 1,
        key,
        kind: kind.into(),
        payload: Some("{}".into()),
        traceparent: None,
        at: Timestamp::now(),
    })
}

fn key() -> Uuid {
    mint(Timestamp::now(), SHARDS, Some(ShardId(1)))
}

fn slice(records: &[Arc<Record>]) -> Slice {
    let position = records.last().unwrap().seq;
    Slice { parts: vec![SlicePart { source: SOURCE, position, records: records.to_vec() }] }
}

async fn tallies(config: &tokio_postgres::Config) -> TestService<TallyService> {
    TestService::start_with(TallyService::default(), config.clone(), "n1", settings(), LONG_LEASE).await
}

fn applied(service: &TestService<TallyService>) -> Vec<i64> {
    service.runtime.service().applied.lock().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_delivered_twice_are_applied_once_and_in_order() {
    let config = database().await;
    let service = tallies(&config).await;
    let key = key();
    let records: Vec<_> = (1..=10).map(|seq| record(seq, key, "add")).collect();
    service.runtime.apply(ShardId(1), &slice(&records[..6])).await.unwrap();
    service.runtime.apply(ShardId(1), &slice(&records[3..])).await.unwrap();
    service.runtime.apply(ShardId(1), &slice(&records)).await.unwrap();
    assert_eq!(applied(&service), (1..=10).collect::<Vec<_>>());
    assert_eq!(service.runtime.ask(key, Command::Add, soon()).await.unwrap().reply, 11);
    service.stop().await;
}

/// What was broken: the second bridge met the old position, and applied the slice again.
#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_is_replaced_while_its_slice_is_on_the_way_applies_it_once() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let service = tallies(&proxy.config()).await;
    let records = [record(1, key(), "add")];
    let held = proxy.hold(BATCH);
    let first = tokio::spawn({
        let (runtime, slice) = (service.runtime.clone(), slice(&records));
        async move { runtime.apply(ShardId(1), &slice).await }
    });
    let held = held.await;
    first.abort();
    let second = tokio::spawn({
        let (runtime, slice) = (service.runtime.clone(), slice(&records));
        async move { runtime.apply(ShardId(1), &slice).await }
    });
    tokio::task::yield_now().await;
    held.release(Fate::Passes);
    second.await.unwrap().unwrap();
    assert_eq!(applied(&service), [1]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn across_a_lost_commit_a_bridge_restart_and_a_takeover_each_record_is_applied_once() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let keys: Vec<Uuid> = (0..4).map(|shard| mint(Timestamp::now(), SHARDS, Some(ShardId(shard)))).collect();
    let script = Arc::new(Script((1..=40).map(|seq| record(seq, keys[seq as usize % 4], "add")).collect()));
    let start = |service: &TestService<TallyService>| {
        Bridge::start(service.runtime.clone(), script.clone(), Arc::new(service.runtime.clone()), Topic::Comments, 1)
    };

    let service = tallies(&proxy.config()).await;
    proxy.once(BATCH, Fate::AnswerLost);
    proxy.once(BATCH, Fate::NeverArrives);
    let bridge = start(&service);
    eventually("some are applied", async || applied(&service).len() >= 10).await;
    bridge.stop();
    service.stop().await;

    let service = TestService::start_with(TallyService::default(), config.clone(), "n2", settings(), LONG_LEASE).await;
    let bridge = start(&service);
    let client = sql(&config).await;
    let count = "SELECT count(*) FROM outbox WHERE type = 'tally.added'";
    eventually("all are applied", async || client.query_one(count, &[]).await.unwrap().get::<_, i64>(0) >= 40).await;
    for key in keys {
        assert_eq!(service.runtime.ask(key, Command::Add, soon()).await.unwrap().reply, 11);
    }
    assert_gap_free(&client).await;
    bridge.stop();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_record_is_a_dead_letter_after_three_tries_and_comes_back_when_cured() {
    let config = database().await;
    let service = tallies(&config).await;
    let key = key();
    let script = Arc::new(Script(vec![record(1, key, "add"), record(2, key, "poison"), record(3, key, "add")]));
    let bridge = Bridge::start(service.runtime.clone(), script, Arc::new(service.runtime.clone()), Topic::Comments, 1);
    eventually("the others are applied", async || applied(&service) == [1, 3]).await;
    // Once with its slice, and three times alone.
    assert_eq!(service.runtime.service().tried.lock().unwrap()[&2], 4);
    let letters = service.runtime.dead_letters(&LetterFilter::default(), 10).await.unwrap();
    assert_eq!(letters.iter().map(|letter| (letter.source, letter.seq)).collect::<Vec<_>>(), [(SOURCE, 2)]);
    assert!(letters[0].reason.contains("it is poison"));
    service.runtime.service().cured.lock().unwrap().insert(2);
    assert!(service.runtime.replay(ShardId(1), SOURCE, 2).await.unwrap());
    assert!(!service.runtime.replay(ShardId(1), SOURCE, 2).await.unwrap(), "once");
    assert_eq!(applied(&service), [1, 3, 2]);
    bridge.stop();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_sql_refuses_is_singled_out_and_buried_and_its_neighbours_go_in() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let service = tallies(&proxy.config()).await;
    let key = key();
    let kinds = ["add", "add", "nul", "add"];
    let records = (1..).zip(kinds).map(|(seq, kind)| record(seq, key, kind));
    // So that the slice shares its first statement with somebody else's write.
    let held = proxy.hold(BATCH);
    let first = tokio::spawn({
        let (runtime, key) = (service.runtime.clone(), mint(Timestamp::now(), SHARDS, Some(ShardId(2))));
        async move { tokio::join!(runtime.ask(key, Command::Add, soon()), runtime.ask(key, Command::Add, soon())) }
    });
    let held = held.await;
    let script = Arc::new(Script(records.collect()));
    let bridge = Bridge::start(service.runtime.clone(), script, Arc::new(service.runtime.clone()), Topic::Comments, 1);
    eventually("the slice was tried", async || service.runtime.service().tried.lock().unwrap().contains_key(&3)).await;
    held.release(Fate::Passes);
    eventually("the others are applied", async || applied(&service) == [1, 2, 4]).await;
    let (one, two) = first.await.unwrap();
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(service.runtime.service().tried.lock().unwrap()[&3], 4, "once with its slice, and three times alone");
    let letters = service.runtime.dead_letters(&LetterFilter::default(), 10).await.unwrap();
    assert_eq!(letters.iter().map(|letter| (letter.source, letter.seq)).collect::<Vec<_>>(), [(SOURCE, 3)]);
    assert!(letters[0].reason.contains("0x00"), "{}", letters[0].reason);
    assert_eq!(service.runtime.ask(key, Command::Add, soon()).await.unwrap().reply, 4);
    assert_gap_free(&sql(&config).await).await;
    bridge.stop();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_below_the_floor_is_told_and_holds_up_no_other_and_goes_on_after_a_rebuild() {
    let config = database().await;
    let service = tallies(&config).await;
    let (key, other) = (key(), mint(Timestamp::now(), SHARDS, Some(ShardId(2))));
    let late = Script(vec![record(7, key, "add"), record(8, key, "add"), record(9, key, "add")]);
    let log = Arc::new(Trimmed(late, Script(vec![record(1, other, "add")])));
    let bridge = Bridge::start(service.runtime.clone(), log, Arc::new(service.runtime.clone()), Topic::Comments, 2);
    eventually("the other shard goes on", async || applied(&service) == [1]).await;
    let outside = bridge.outside();
    assert_eq!(
        outside.iter().map(|outside| (outside.shard, outside.position, outside.head)).collect::<Vec<_>>(),
        [(ShardId(0), 0, 9)]
    );
    assert!(outside[0].reason.contains("outside of the log"), "{}", outside[0].reason);

    bridge.rebuilt(outside[0].shard, outside[0].head);
    assert!(bridge.outside().is_empty());
    let place = async || service.runtime.consumer_places("posts").await.unwrap();
    eventually("the new place is noted", async || place().await.contains(&(ShardId(0), 9))).await;
    bridge.stop();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_does_not_count_as_a_try() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let service = tallies(&proxy.config()).await;
    let script = Arc::new(Script(vec![record(1, key(), "add")]));
    for _ in 0..5 {
        proxy.once(BATCH, Fate::NeverArrives);
    }
    let bridge = Bridge::start(service.runtime.clone(), script, Arc::new(service.runtime.clone()), Topic::Comments, 1);
    eventually("it is applied", async || applied(&service) == [1]).await;
    assert!(service.runtime.dead_letters(&LetterFilter::default(), 10).await.unwrap().is_empty());
    bridge.stop();
    service.stop().await;
}

/// What was broken: a killed entity stayed in the map, and whoever asked it asked for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_entity_that_a_projection_fells_is_back_with_its_committed_state() {
    let config = database().await;
    let service = tallies(&config).await;
    let key = key();
    assert_eq!(service.runtime.ask(key, Command::Add, soon()).await.unwrap().reply, 1);
    service.runtime.apply(ShardId(1), &slice(&[record(1, key, "trip")])).await.unwrap();
    eventually("it is back", async || service.runtime.ask(key, Command::Add, soon()).await.is_ok_and(|answer| answer.reply == 3))
        .await;
    service.stop().await;
}
