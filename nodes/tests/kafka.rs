//! Kafka as the event log, on a real broker: what may go wrong on the way, and what never does.

mod event_log;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::{Header, Headers, OwnedHeaders, OwnedMessage},
    producer::{FutureProducer, FutureRecord},
};
use rookery::{
    config,
    event_log::EmbeddedLog,
    kafka::{
        DeadLetters, Hints, KafkaLog, Keeper,
        client::Probe,
        topics::{self, TopicsError},
    },
};
use rookery_actors::{
    event::{EPOCH, EventLog, Fetched, LogError, Topic},
    ids::{Seq, ShardId},
};
use uuid::Uuid;

use self::event_log::{Follower, KafkaBench, PARTITIONS, Publisher, TOPIC, broker, client, delete_topics, seqs};

const A_LONG_TIME: Duration = Duration::from_secs(60);

fn follower(bench: &KafkaBench) -> Follower {
    Follower::of(Arc::new(bench.opener()()))
}

/// Records in the outbox.
async fn rows(publisher: &Publisher) -> usize {
    publisher.outbox().await.values().map(Vec::len).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_in_the_middle_loses_and_repeats_nothing() {
    let Some(broker) = broker("a_broker_killed_in_the_middle_loses_and_repeats_nothing").await else {
        return;
    };
    let publisher = Publisher::start().await;
    let mut bench = KafkaBench::start(broker, &publisher).await;
    let mut follower = follower(&bench);
    publisher.publish(200).await;
    follower.step().await;
    bench.broker.kill();
    publisher.publish(200).await;
    tokio::task::block_in_place(|| bench.broker.restart()).unwrap();
    publisher.publish(200).await;
    follower.catch_up(&publisher).await;
    assert_eq!(follower.read, publisher.outbox().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_restarted_in_the_middle_sends_again_and_nobody_reads_it_twice() {
    let Some(broker) = broker("a_relay_restarted_in_the_middle_sends_again_and_nobody_reads_it_twice").await else {
        return;
    };
    let publisher = Publisher::start().await;
    let mut bench = KafkaBench::start(broker, &publisher).await;
    let mut follower = follower(&bench);
    publisher.publish(100).await;
    publisher.relayed().await;
    bench.relay.take().expect("it was started").stop().await;
    // It ended before it noted anything.
    let database = publisher.service.runtime.database();
    database.get().await.unwrap().execute("DELETE FROM relayed", &[]).await.unwrap();
    publisher.publish(100).await;
    bench.relay(&publisher);
    publisher.publish(100).await;
    follower.catch_up(&publisher).await;
    assert_eq!(follower.read, publisher.outbox().await);
    publisher.relayed().await;
    assert!(raw(&bench.config, TOPIC.kafka_name()).len() > rows(&publisher).await, "the first records are in the topic twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_goes_on_from_where_kafka_has_the_log() {
    let Some(broker) = broker("a_relay_goes_on_from_where_kafka_has_the_log").await else {
        return;
    };
    let publisher = Publisher::start().await;
    let mut bench = KafkaBench::start(broker, &publisher).await;
    publisher.publish(100).await;
    publisher.relayed().await;
    bench.relay.take().expect("it was started").stop().await;
    publisher.publish(100).await;
    bench.relay(&publisher);
    publisher.relayed().await;
    assert_eq!(raw(&bench.config, TOPIC.kafka_name()).len(), rows(&publisher).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_was_flushed_leaves_nothing_to_send_again() {
    let Some(broker) = broker("a_relay_that_was_flushed_leaves_nothing_to_send_again").await else {
        return;
    };
    let publisher = Publisher::start().await;
    let mut bench = KafkaBench::start(broker, &publisher).await;
    publisher.publish(500).await;
    let relay = bench.relay.take().expect("it was started");
    relay.flush(A_LONG_TIME).await.unwrap();
    relay.stop().await;
    bench.relay(&publisher);
    publisher.publish(100).await;
    publisher.relayed().await;
    assert_eq!(raw(&bench.config, TOPIC.kafka_name()).len(), rows(&publisher).await);

    bench.broker.kill();
    publisher.publish(1).await;
    let refused = bench.relay.as_ref().unwrap().flush(Duration::from_millis(300)).await.unwrap_err();
    assert!(refused.to_string().starts_with("1 records"), "{refused}");
    tokio::task::block_in_place(|| bench.broker.restart()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_goes_on_under_a_higher_epoch_without_a_gap() {
    let Some(broker) = broker("a_takeover_goes_on_under_a_higher_epoch_without_a_gap").await else {
        return;
    };
    let publisher = Publisher::start().await;
    let mut bench = KafkaBench::start(broker, &publisher).await;
    let mut follower = follower(&bench);
    publisher.publish(100).await;
    bench.relay = None;
    let publisher = publisher.restart().await;
    bench.relay(&publisher);
    publisher.publish(100).await;
    follower.catch_up(&publisher).await;
    assert_eq!(follower.read, publisher.outbox().await);
    for records in follower.read.values() {
        assert_eq!(records.iter().filter(|(.., kind, _)| kind == EPOCH).count(), 2, "epoch records are relayed too");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_records_after_new_ones_are_put_right() {
    let Some(broker) = broker("old_records_after_new_ones_are_put_right").await else {
        return;
    };
    let config = broker.config(PARTITIONS);
    topics::ensure(&config).await.unwrap();
    // A producer that slept: what it had in flight comes after what its successor sent.
    append(&config, &[1, 4, 5, 2, 3, 4, 5, 2, 3, 6, 1]).await;
    let log = KafkaLog::new(config, "test");
    let mut read = Vec::new();
    while read.len() < 6 {
        let position = read.last().copied().unwrap_or(0);
        read.extend(seqs(&log, ShardId(0), position).await);
    }
    assert_eq!(read, [1, 2, 3, 4, 5, 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_leaves_hints_for_the_next_one_and_a_wrong_one_loses_nothing() {
    let Some(broker) = broker("a_reader_leaves_hints_for_the_next_one_and_a_wrong_one_loses_nothing").await else {
        return;
    };
    let publisher = Publisher::start().await;
    let bench = KafkaBench::start(broker, &publisher).await;
    let runtime = publisher.service.runtime.clone();
    let log = || {
        let hints = Hints::new([(TOPIC, runtime.database().clone())], "reader").every(Duration::from_millis(50));
        Arc::new(KafkaLog::new(bench.config.clone(), "reader").with_gap_patience(Duration::from_millis(200)).with_hints(hints))
    };
    let mut first = Follower::of(log());
    publisher.publish(100).await;
    first.catch_up(&publisher).await;
    runtime.note_consumer("reader", &first.positions).await.unwrap();

    let client = runtime.database().get().await.unwrap();
    let began = Instant::now();
    // As many records as there are lie before the hints of a partition, to which its last shard has come.
    let sum = "SELECT COALESCE(sum(hint), 0)::int8 FROM (SELECT max(hint) AS hint FROM consumer GROUP BY shard % 3) p";
    let records: i64 = publisher.heads().values().sum();
    while client.query_one(sum, &[]).await.unwrap().get::<_, i64>(0) != records {
        assert!(began.elapsed() < A_LONG_TIME, "the hints are noted");
        first.step().await;
    }
    publisher.publish(100).await;
    let mut second = Follower { positions: first.positions.clone(), ..Follower::of(log()) };
    second.catch_up(&publisher).await;
    for (shard, read) in second.read {
        first.read.entry(shard).or_default().extend(read);
    }
    assert_eq!(first.read, publisher.outbox().await);

    client.execute("UPDATE consumer SET hint = hint + 10", &[]).await.unwrap();
    let mut third = Follower::of(log());
    third.catch_up(&publisher).await;
    assert_eq!(third.read, publisher.outbox().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_that_lasts_is_an_error_and_never_skipped() {
    let Some(broker) = broker("a_hole_that_lasts_is_an_error_and_never_skipped").await else {
        return;
    };
    let config = broker.config(PARTITIONS);
    topics::ensure(&config).await.unwrap();
    append(&config, &[1, 2, 4, 5]).await;
    let log = KafkaLog::new(config, "test").with_gap_patience(Duration::from_millis(200));
    assert_eq!(out_of_range(&log, 0).await, (2, 4, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_retention_ate_is_out_of_range() {
    let Some(broker) = broker("a_position_that_retention_ate_is_out_of_range").await else {
        return;
    };
    let config = broker.config(PARTITIONS);
    topics::ensure(&config).await.unwrap();
    append(&config, &[1, 2, 3, 4, 5]).await;
    let admin: AdminClient<DefaultClientContext> = client(&config).create().unwrap();
    let mut eaten = TopicPartitionList::new();
    eaten.add_partition_offset(TOPIC.kafka_name(), 0, Offset::Offset(3)).unwrap();
    admin.delete_records(&eaten, &AdminOptions::new()).await.unwrap();
    let log = KafkaLog::new(config, "test").with_gap_patience(Duration::from_millis(200));
    assert_eq!(out_of_range(&log, 1).await, (1, 4, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_s_message_is_skipped() {
    let Some(broker) = broker("a_stranger_s_message_is_skipped").await else {
        return;
    };
    let config = broker.config(PARTITIONS);
    topics::ensure(&config).await.unwrap();
    let producer: FutureProducer = client(&config).create().unwrap();
    let stranger = FutureRecord::to(TOPIC.kafka_name()).partition(0).key("me").payload("hello");
    producer.send(stranger, A_LONG_TIME).await.unwrap();
    append(&config, &[1]).await;
    assert_eq!(seqs(&KafkaLog::new(config, "test"), ShardId(0), 0).await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_a_cloud_event_under_its_id_in_its_shard_s_partition() {
    let Some(broker) = broker("a_post_is_a_cloud_event_under_its_id_in_its_shard_s_partition").await else {
        return;
    };
    let publisher = Publisher::start().await;
    let bench = KafkaBench::start(broker, &publisher).await;
    let (shard, seq) = publisher.publish_one().await;
    publisher.relayed().await;
    let messages = raw(&bench.config, TOPIC.kafka_name());
    let message = messages.iter().find(|message| header(message, "ce_type") == "post.created").unwrap();
    let post: serde_json::Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
    assert_eq!(message.partition(), i32::from(shard.0 % PARTITIONS));
    assert_eq!(message.key().unwrap(), post["id"].as_str().unwrap().as_bytes());
    assert_eq!(header(message, "ce_id"), format!("posts/{shard}/{seq}"));
    assert_eq!(header(message, "ce_source"), "/rookery/posts");
    assert_eq!(header(message, "ce_specversion"), "1.0");
    assert_eq!(header(message, "content-type"), "application/json");
    assert_eq!(
        header(message, "ce_time").parse::<jiff::Timestamp>().unwrap().as_millisecond(),
        message.timestamp().to_millis().unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_reaches_its_topic_with_its_reason() {
    let Some(broker) = broker("a_dead_letter_reaches_its_topic_with_its_reason").await else {
        return;
    };
    let publisher = Publisher::start().await;
    let config = broker.config(PARTITIONS);
    topics::ensure(&config).await.unwrap();
    let database = publisher.service.runtime.database().clone();
    let sql = database.get().await.unwrap();
    sql.execute(
        "INSERT INTO dead_letter (shard, source, seq, type, key, payload, reason)
         VALUES (1, 'users/5', 7, 'user.created', $1, '{\"half\":', 'it does not parse')",
        &[&Uuid::from_u128(9)],
    )
    .await
    .unwrap();
    let _letters = DeadLetters::start(config.clone(), "posts", publisher.source(), database.clone()).unwrap();
    while !sql.query_one("SELECT relayed FROM dead_letter", &[]).await.unwrap().get::<_, bool>(0) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let letters = raw(&config, "user.events.v1.dlt");
    let [letter] = letters.as_slice() else { panic!("one letter, not {}", letters.len()) };
    assert_eq!((letter.partition(), letter.payload()), (i32::from(5 % PARTITIONS), Some(&b"{\"half\":"[..])));
    assert_eq!(header(letter, "ce_id"), "users/5/7");
    assert_eq!(header(letter, "rookery-reason"), "it does not parse");
    assert_eq!(header(letter, "rookery-consumer"), "posts/1");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_made_once_and_another_number_of_partitions_is_refused() {
    let Some(broker) = broker("topics_are_made_once_and_another_number_of_partitions_is_refused").await else {
        return;
    };
    topics::ensure(&broker.config(PARTITIONS)).await.unwrap();
    topics::ensure(&broker.config(PARTITIONS)).await.unwrap();
    let error = topics::ensure(&broker.config(PARTITIONS + 1)).await.unwrap_err().to_string();
    assert!(error.contains("has 3 partitions, the configuration says 4"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_is_refused() {
    let Some(broker) = broker("a_compacted_topic_is_refused").await else {
        return;
    };
    let config = broker.config(PARTITIONS);
    let admin: AdminClient<DefaultClientContext> = client(&config).create().unwrap();
    let compacted =
        NewTopic::new(TOPIC.kafka_name(), i32::from(PARTITIONS), TopicReplication::Fixed(1)).set("cleanup.policy", "compact");
    admin.create_topics([&compacted], &AdminOptions::new()).await.unwrap();
    let error = topics::ensure(&config).await.unwrap_err();
    assert!(matches!(&error, TopicsError::Compacted { policy, .. } if policy == "compact"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_away_is_said_to_be() {
    let Some(mut broker) = broker("a_cluster_that_is_away_is_said_to_be").await else {
        return;
    };
    let config = broker.config(PARTITIONS);
    topics::ensure(&config).await.unwrap();
    let probe = Probe::new(&config).unwrap();
    let log = KafkaLog::new(config, "test");
    let reach = || tokio::task::block_in_place(|| probe.latency(Duration::from_secs(2)));
    assert!(reach().is_ok());
    broker.stop();
    assert!(reach().is_err());
    while log.fetch(TOPIC, &[(ShardId(0), 0)], 1, Duration::from_millis(100)).await.is_ok() {}
    tokio::task::block_in_place(|| broker.restart()).unwrap();
    while log.fetch(TOPIC, &[(ShardId(0), 0)], 1, Duration::from_millis(100)).await.is_err() {}
}

/// Every record of the outbox is in the topic, in the order of its shard.
async fn assert_refilled(bench: &KafkaBench, publisher: &Publisher) {
    let began = Instant::now();
    let wanted: BTreeSet<(u16, Seq)> = publisher
        .outbox()
        .await
        .into_iter()
        .flat_map(|(shard, told)| told.into_iter().map(move |told| (shard.0, told.1)))
        .collect();
    loop {
        let messages = raw(&bench.config, TOPIC.kafka_name());
        let there = messages.iter().map(|message| {
            let number = |name: &str| header(message, name).parse::<i64>().unwrap();
            (u16::try_from(number("rookery-shard")).unwrap(), number("rookery-seq"))
        });
        let there: BTreeSet<(u16, Seq)> = there.collect();
        let missing: Vec<_> = wanted.difference(&there).collect();
        if missing.is_empty() {
            return;
        }
        assert!(began.elapsed() < A_LONG_TIME, "{} of {} records are missing in the topic", missing.len(), wanted.len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn keeper(bench: &KafkaBench, publisher: &Publisher) -> Keeper {
    let database = publisher.service.runtime.database().clone();
    Keeper::new(bench.config.clone(), [(TOPIC, database.clone())], vec![database])
}

/// What was broken: it was made again only at the next start, and nothing that had been relayed was ever sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_while_a_relay_runs_is_made_again_and_refilled_from_the_outbox() {
    let Some(broker) = broker("a_topic_that_is_deleted_while_a_relay_runs_is_made_again_and_refilled_from_the_outbox").await
    else {
        return;
    };
    let publisher = Publisher::start().await;
    let bench = KafkaBench::start(broker, &publisher).await;
    let (probe, mut keeper) = (Probe::new(&bench.config).unwrap(), keeper(&bench, &publisher));
    keeper.look().await.unwrap();
    let mut follower = follower(&bench);
    publisher.publish(100).await;
    publisher.relayed().await;
    follower.catch_up(&publisher).await;
    assert_eq!(publisher.service.runtime.oldest_unrelayed().await.unwrap(), None);

    delete_topics(&bench.config).await;
    let missing = tokio::task::block_in_place(|| probe.missing(A_LONG_TIME)).unwrap();
    assert!(missing.contains(&TOPIC.kafka_name().to_owned()), "the probe says so: {missing:?}");
    publisher.publish(20).await;
    let waiting = publisher.service.runtime.oldest_unrelayed().await.unwrap().expect("nothing takes them");
    assert!(waiting.age() < A_LONG_TIME && waiting.seq > 0);

    keeper.look().await.unwrap();
    assert_refilled(&bench, &publisher).await;
    follower.catch_up(&publisher).await;
    assert_eq!(follower.read, publisher.outbox().await);
    publisher.relayed().await;
    assert_eq!(publisher.service.runtime.oldest_unrelayed().await.unwrap(), None);
    // Looking once more changes nothing.
    let records = raw(&bench.config, TOPIC.kafka_name()).len();
    keeper.look().await.unwrap();
    publisher.relayed().await;
    assert_eq!(raw(&bench.config, TOPIC.kafka_name()).len(), records);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_somebody_else_made_anew_is_known_by_its_offsets_and_refilled() {
    let Some(broker) = broker("a_topic_that_somebody_else_made_anew_is_known_by_its_offsets_and_refilled").await else {
        return;
    };
    let publisher = Publisher::start().await;
    let bench = KafkaBench::start(broker, &publisher).await;
    publisher.publish(200).await;
    publisher.relayed().await;
    delete_topics(&bench.config).await;
    topics::ensure(&bench.config).await.unwrap();
    publisher.publish(10).await;
    assert_refilled(&bench, &publisher).await;
    publisher.relayed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_made_anew_while_no_node_ran_is_refilled() {
    let Some(broker) = broker("a_topic_that_was_made_anew_while_no_node_ran_is_refilled").await else {
        return;
    };
    let publisher = Publisher::start().await;
    let mut bench = KafkaBench::start(broker, &publisher).await;
    publisher.publish(100).await;
    publisher.relayed().await;
    bench.relay.take().expect("it was started").stop().await;
    delete_topics(&bench.config).await;
    topics::ensure(&bench.config).await.unwrap();
    keeper(&bench, &publisher).look().await.unwrap();
    bench.relay(&publisher);
    assert_refilled(&bench, &publisher).await;
}

/// What was broken: the reader waited at the end of the topic until the next event came.
#[tokio::test(flavor = "multi_thread")]
async fn a_hint_that_leads_past_the_last_record_is_found_out_without_the_next_one() {
    let Some(broker) = broker("a_hint_that_leads_past_the_last_record_is_found_out_without_the_next_one").await else {
        return;
    };
    let publisher = Publisher::start().await;
    let bench = KafkaBench::start(broker, &publisher).await;
    let runtime = publisher.service.runtime.clone();
    publisher.publish(50).await;
    publisher.relayed().await;
    let places: Vec<(ShardId, Seq)> = (0..event_log::SHARDS).map(|shard| (ShardId(shard), 1)).collect();
    runtime.note_consumer("reader", &places).await.unwrap();
    let ends = raw(&bench.config, TOPIC.kafka_name()).iter().map(|message| message.offset()).max().unwrap();
    let client = runtime.database().get().await.unwrap();
    client.execute("UPDATE consumer SET hint = $1", &[&ends]).await.unwrap();
    for outbox in [None, Some(EmbeddedLog::new(publisher.source(), publisher.source(), publisher.source()))] {
        let log =
            KafkaLog::new(bench.config.clone(), "reader").with_hints(Hints::new([(TOPIC, runtime.database().clone())], "reader"));
        let log = match outbox {
            Some(outbox) => log.with_outbox(Arc::new(outbox)),
            None => log,
        };
        let mut follower = Follower { positions: places.clone(), ..Follower::of(Arc::new(log)) };
        follower.catch_up(&publisher).await;
        let read: usize = follower.read.values().map(Vec::len).sum();
        assert_eq!(read + places.len(), rows(&publisher).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_has_lost_and_the_outbox_still_has_is_read_from_the_outbox() {
    let Some(broker) = broker("what_kafka_has_lost_and_the_outbox_still_has_is_read_from_the_outbox").await else {
        return;
    };
    let publisher = Publisher::start().await;
    let bench = KafkaBench::start(broker, &publisher).await;
    publisher.publish(100).await;
    publisher.relayed().await;
    eat_all(&bench.config).await;
    let outbox = EmbeddedLog::new(publisher.source(), publisher.source(), publisher.source());
    let hints = Hints::new([(TOPIC, publisher.service.runtime.database().clone())], "reader");
    let log = KafkaLog::new(bench.config.clone(), "reader").with_hints(hints).with_outbox(Arc::new(outbox));
    let mut follower = Follower::of(Arc::new(log));
    follower.catch_up(&publisher).await;
    publisher.publish(20).await;
    follower.catch_up(&publisher).await;
    assert_eq!(follower.read, publisher.outbox().await);
}

/// Outboxes that count how often they are asked.
struct Counted(EmbeddedLog, AtomicUsize);

impl EventLog for Counted {
    fn fetch<'a>(
        &'a self,
        topic: Topic,
        positions: &'a [(ShardId, Seq)],
        bytes_max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Fetched>, LogError>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.fetch(topic, positions, bytes_max, wait)
    }
}

/// What was broken: the records that came while the hole was filled were dropped, and found a hole again, without end.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_was_past_retention_comes_back_to_kafka_although_records_never_rest() {
    let Some(broker) = broker("a_reader_that_was_past_retention_comes_back_to_kafka_although_records_never_rest").await else {
        return;
    };
    let publisher = Publisher::start().await;
    let bench = KafkaBench::start(broker, &publisher).await;
    publisher.publish(100).await;
    publisher.relayed().await;
    eat_all(&bench.config).await;
    let outbox = EmbeddedLog::new(publisher.source(), publisher.source(), publisher.source());
    let outbox = Arc::new(Counted(outbox, AtomicUsize::new(0)));
    let log = KafkaLog::new(bench.config.clone(), "reader").with_gap_patience(Duration::from_millis(200));
    let mut follower = Follower::of(Arc::new(log.with_outbox(outbox.clone())));
    let writing = async {
        for _ in 0..150 {
            publisher.publish(8).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let reading = async {
        // As slow as consumers are: meanwhile the topic goes on.
        let mut asked_by_round = Vec::new();
        for _ in 0..150 {
            follower.step().await;
            asked_by_round.push(outbox.1.load(Ordering::Relaxed));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        asked_by_round
    };
    let ((), asked) = tokio::join!(writing, reading);
    assert!(asked[149] > 0, "retention took what it had not read");
    follower.catch_up(&publisher).await;
    assert_eq!(follower.read, publisher.outbox().await);
    // The holes of all shards are known after one patience each; from then on Kafka has everything.
    assert_eq!(asked[149], asked[100], "the outbox was asked to the end: {asked:?}");
}

/// As if retention had taken all that is in the topic.
async fn eat_all(config: &config::Kafka) {
    let admin: AdminClient<DefaultClientContext> = client(config).create().unwrap();
    let mut eaten = TopicPartitionList::new();
    for partition in 0..i32::from(PARTITIONS) {
        eaten.add_partition_offset(TOPIC.kafka_name(), partition, Offset::End).unwrap();
    }
    admin.delete_records(&eaten, &AdminOptions::new()).await.unwrap();
}

/// Appends records of shard 0 as a relay would, in the order given.
async fn append(config: &config::Kafka, seqs: &[Seq]) {
    let producer: FutureProducer = client(config).create().unwrap();
    for seq in seqs {
        let headers = [("ce_type", "x"), ("ce_time", "2026-01-01T00:00:00Z"), ("rookery-shard", "0"), ("rookery-epoch", "1")];
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(*value) }))
            .insert(Header { key: "rookery-seq", value: Some(&seq.to_string()) });
        let (key, payload) = (Uuid::nil().to_string(), "{}");
        let record = FutureRecord::to(TOPIC.kafka_name()).partition(0).key(&key).payload(payload).headers(headers);
        producer.send(record, A_LONG_TIME).await.unwrap();
    }
}

/// Reads shard 0 from a position on until it fails: the last seq that was read, and the log's floor and head.
async fn out_of_range(log: &KafkaLog, position: Seq) -> (Seq, Seq, Seq) {
    let mut position = position;
    loop {
        match log.fetch(TOPIC, &[(ShardId(0), position)], 1 << 20, Duration::from_millis(100)).await {
            Ok(fetched) => position = fetched.last().map_or(position, |fetched| fetched.records.last().unwrap().seq),
            Err(LogError::OutOfRange { position, floor, head, .. }) => return (position, floor, head),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Everything in a topic, as any consumer sees it.
fn raw(config: &config::Kafka, topic: &str) -> Vec<OwnedMessage> {
    let consumer: BaseConsumer = client(config)
        .set("group.id", "stranger")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut all = TopicPartitionList::new();
    all.add_partition_range(topic, 0, i32::from(PARTITIONS) - 1);
    all.set_all_offsets(Offset::Beginning).unwrap();
    consumer.assign(&all).unwrap();
    let (mut messages, mut ends) = (Vec::new(), 0);
    while ends < PARTITIONS {
        match consumer.poll(A_LONG_TIME).expect("the broker answers") {
            Ok(message) => messages.push(message.detach()),
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ends += 1,
            Err(error) => panic!("{error}"),
        }
    }
    messages
}

fn header<'a>(message: &'a OwnedMessage, name: &str) -> &'a str {
    let headers = message.headers().expect("the message has headers");
    let value = headers.iter().find(|header| header.key == name).and_then(|header| header.value);
    std::str::from_utf8(value.unwrap_or_else(|| panic!("no header {name}"))).unwrap()
}
