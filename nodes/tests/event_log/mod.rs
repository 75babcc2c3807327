//! A posts service that publishes, a Kafka that relays it, and a reader that follows: for the tests of event logs.
#![allow(dead_code, unreachable_pub, reason = "every test file uses its own part of this")]

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use jiff::Timestamp;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};
use rookery::{
    config,
    event_log::LogSource,
    kafka::{KafkaLog, Relay, relay::RunningRelay, topics},
    migrate::Database,
    testing::{Patience, TestKafka, TestPostgres, TestService},
};
use rookery_actors::{
    event::{EventLog, Fetched, LogError, Topic},
    ids::{Epoch, Seq, ShardId, UserId},
    posts::{
        Draft, PostService, Posts,
        rules::{Body, Tags, Title},
    },
    runtime::{Context, Settings},
};
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

pub const TOPIC: Topic = Topic::Posts;
pub const SHARDS: u16 = 8;
/// Fewer than shards, so that some share one.
pub const PARTITIONS: u16 = 3;
/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A record as it is told apart: shard, seq, epoch, kind, payload.
pub type Told = (ShardId, Seq, Epoch, String, Option<String>);

/// The posts service, alone.
pub struct Publisher {
    pub config: tokio_postgres::Config,
    pub service: TestService<PostService>,
}

impl Publisher {
    pub async fn start() -> Self {
        let config = TestPostgres::shared().fresh_database(Database::Posts).await;
        Self::open(config).await
    }

    pub async fn open(config: tokio_postgres::Config) -> Self {
        let settings = Settings { shards: SHARDS, ..Settings::default() };
        let service = TestService::start(PostService::default(), config.clone(), "n1", settings).await;
        Self { config, service }
    }

    /// Gives everything up; another incarnation takes over, with higher epochs.
    pub async fn restart(self) -> Self {
        self.service.stop().await;
        Self::open(self.config).await
    }

    pub fn source(&self) -> Arc<dyn LogSource> {
        Arc::new(self.service.runtime.clone())
    }

    pub async fn publish(&self, count: usize) {
        join_all((0..count).map(|_| self.publish_one())).await;
    }

    pub async fn publish_one(&self) -> (ShardId, Seq) {
        let draft = Draft {
            author: UserId(Uuid::from_u128(1)),
            title: Title::parse("hello").unwrap(),
            body: Body::parse("A body.").unwrap(),
            tags: Tags::parse(&["rust"]).unwrap(),
            at: Timestamp::now(),
        };
        let posts = Posts::new(self.service.runtime.clone());
        let accepted = posts.publish(draft, Context::within(PATIENCE)).await.unwrap();
        (accepted.shard, accepted.seq)
    }

    pub fn heads(&self) -> BTreeMap<ShardId, Seq> {
        self.service.runtime.owned().into_iter().map(|(shard, _, head)| (shard, head)).collect()
    }

    /// The truth.
    pub async fn outbox(&self) -> BTreeMap<ShardId, Vec<Told>> {
        let client = self.service.runtime.database().get().await.unwrap();
        let rows = client.query("SELECT shard, seq, epoch, type, payload FROM outbox ORDER BY shard, seq", &[]).await.unwrap();
        let mut records: BTreeMap<ShardId, Vec<Told>> = BTreeMap::new();
        for row in rows {
            let shard = ShardId(row.get::<_, i16>(0) as u16);
            records.entry(shard).or_default().push((shard, row.get(1), row.get(2), row.get(3), row.get(4)));
        }
        records
    }

    /// Waits until Kafka is noted to have everything.
    pub async fn relayed(&self) {
        let client = self.service.runtime.database().get().await.unwrap();
        let mut patience = Patience::of(PATIENCE);
        loop {
            let rows = client.query("SELECT shard, seq FROM relayed", &[]).await.unwrap();
            let noted = rows.iter().map(|row| (ShardId(row.get::<_, i16>(0) as u16), row.get(1))).collect::<BTreeMap<_, Seq>>();
            if noted == self.heads() {
                return;
            }
            assert!(!patience.is_over(), "relayed {noted:?} of {:?}", self.heads());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The broker of this test process, for one test at a time, without a topic; `None`: there is none, as was said.
pub async fn broker(test: &str) -> Option<MutexGuard<'static, TestKafka>> {
    static SHARED: OnceLock<Option<Mutex<TestKafka>>> = OnceLock::new();
    let started = tokio::task::block_in_place(|| SHARED.get_or_init(|| TestKafka::start_or_skip(test).map(Mutex::new)));
    let Some(shared) = started else {
        eprintln!("SKIPPED {test}: no Kafka broker");
        return None;
    };
    let mut broker = shared.lock().await;
    if !broker.is_running() {
        // A test failed between a kill and a restart, which is no fault of those that follow.
        tokio::task::block_in_place(|| broker.restart()).unwrap();
    }
    delete_topics(&broker.config(PARTITIONS)).await;
    Some(broker)
}

/// Topic names are fixed, so each test begins by deleting what the last one left.
pub async fn delete_topics(config: &config::Kafka) {
    let admin: AdminClient<DefaultClientContext> = client(config).create().unwrap();
    let names: Vec<String> =
        Topic::ALL.into_iter().flat_map(|topic| [topic.kafka_name().to_owned(), topics::dead_letters(topic)]).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    admin.delete_topics(&names, &options).await.unwrap();
    let mut patience = Patience::of(PATIENCE);
    // A deletion is acknowledged before every trace of it is gone.
    loop {
        let metadata = admin.inner().fetch_metadata(None, PATIENCE).unwrap();
        if !metadata.topics().iter().any(|topic| names.contains(&topic.name())) {
            return;
        }
        assert!(!patience.is_over(), "topics are deleted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A client of our own, as a stranger would have one.
pub fn client(config: &config::Kafka) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", config.brokers[0].as_str());
    if let Some(sasl) = &config.sasl {
        client.set("security.protocol", "sasl_plaintext").set("sasl.mechanism", "SCRAM-SHA-256");
        client.set("sasl.username", &sasl.username).set("sasl.password", sasl.password.expose());
    }
    client
}

/// A broker with its topics, and the relay of a publisher.
pub struct KafkaBench {
    pub broker: MutexGuard<'static, TestKafka>,
    pub config: config::Kafka,
    pub relay: Option<RunningRelay>,
}

impl KafkaBench {
    pub async fn start(broker: MutexGuard<'static, TestKafka>, publisher: &Publisher) -> Self {
        let config = broker.config(PARTITIONS);
        topics::ensure(&config).await.unwrap();
        let mut bench = Self { broker, config, relay: None };
        bench.relay(publisher);
        bench
    }

    pub fn relay(&mut self, publisher: &Publisher) {
        let database = publisher.service.runtime.database().clone();
        self.relay = Some(Relay::start(self.config.clone(), TOPIC, publisher.source(), database));
    }

    pub fn opener(&self) -> impl Fn() -> KafkaLog + 'static {
        let config = self.config.clone();
        move || KafkaLog::new(config.clone(), "test")
    }
}

/// A reader of all shards that remembers what it has read.
pub struct Follower {
    pub log: Arc<dyn EventLog>,
    pub positions: Vec<(ShardId, Seq)>,
    pub read: BTreeMap<ShardId, Vec<Told>>,
}

impl Follower {
    pub fn of(log: Arc<dyn EventLog>) -> Self {
        let mut follower = Self { log, positions: Vec::new(), read: BTreeMap::new() };
        follower.rewind();
        follower
    }

    pub fn rewind(&mut self) {
        self.positions = (0..SHARDS).map(|shard| (ShardId(shard), 0)).collect();
    }

    /// Reads until it has what the publisher has committed by now.
    pub async fn catch_up(&mut self, publisher: &Publisher) {
        let heads = publisher.heads();
        let mut patience = Patience::of(PATIENCE);
        while self.positions.iter().any(|(shard, position)| heads.get(shard).is_some_and(|head| position < head)) {
            assert!(!patience.is_over(), "read {:?} of {heads:?}", self.positions);
            self.step().await;
        }
    }

    pub async fn step(&mut self) {
        match self.log.fetch(TOPIC, &self.positions, 64 << 10, Duration::from_secs(1)).await {
            Ok(fetched) => self.take(fetched),
            Err(LogError::Unavailable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn fetch(&mut self, wait: Duration) -> (Vec<Fetched>, Duration) {
        let began = Instant::now();
        let fetched = self.log.fetch(TOPIC, &self.positions, 1 << 20, wait).await.unwrap();
        (fetched, began.elapsed())
    }

    fn take(&mut self, fetched: Vec<Fetched>) {
        for Fetched { shard, records } in fetched {
            for record in records {
                let position = &mut self.positions[shard.index()].1;
                assert_eq!(record.seq, *position + 1, "shard {shard} is read in order and without gaps");
                *position = record.seq;
                let payload = record.payload.as_deref().map(str::to_owned);
                let told = (shard, record.seq, record.epoch, record.kind.to_string(), payload);
                self.read.entry(shard).or_default().push(told);
            }
        }
    }
}

/// The seqs that one fetch of a shard gives.
pub async fn seqs(log: &dyn EventLog, shard: ShardId, position: Seq) -> Vec<Seq> {
    let fetched = log.fetch(TOPIC, &[(shard, position)], 1 << 20, PATIENCE).await.unwrap();
    fetched.iter().flat_map(|fetched| &fetched.records).map(|record| record.seq).collect()
}
