//! The thread that reads a topic: it alone touches the consumer, so what it was told is done in order.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use rookery_actors::{
    episodes,
    event::{Fetched, LogError, Topic},
    ids::{Seq, ShardId},
};
use tokio::sync::{Notify, futures::OwnedNotified};

use super::state::{Order, Start, State};
use crate::{
    config::Kafka,
    kafka::{
        client::{Reports, client_config},
        message,
    },
};

/// Longest time in which the thread does not look for orders.
const POLL: Duration = Duration::from_millis(20);
/// Messages taken before waiting readers hear of them.
const RUN_MAX: usize = 500;
/// Before a consumer that failed is tried again, or a cluster that is away is asked for.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// One topic, read by a thread that ends with the value.
pub(super) struct Reader {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    news: Arc<Notify>,
    /// Why nothing can come at the moment.
    outage: Mutex<Option<String>>,
    stopped: AtomicBool,
}

impl Reader {
    pub(super) fn start(kafka: Kafka, topic: Topic, consumer: &str, state: State) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            news: Arc::new(Notify::new()),
            outage: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let worker = Worker { shared: Arc::clone(&shared), topic, name: format!("{consumer}-{}", topic.service()), kafka };
        std::thread::Builder::new()
            .name(format!("kafka-{}", topic.service()))
            .spawn(move || worker.run())
            .expect("the machine has room for one more thread");
        Self { shared }
    }

    /// Ends when something was read after it was created.
    pub(super) fn news(&self) -> OwnedNotified {
        Arc::clone(&self.shared.news).notified_owned()
    }

    pub(super) fn look(&self, positions: &[(ShardId, Seq)], bytes_max: usize) -> Result<Vec<Fetched>, LogError> {
        self.shared.state().look(positions, bytes_max, Instant::now())
    }

    /// Where to begin for shards that nobody has asked for yet.
    pub(super) fn hint(&self, offsets: Vec<(ShardId, i64)>) {
        self.shared.state().hint(offsets);
    }

    /// How far Kafka is known to have the logs of shards.
    pub(super) fn relayed(&self, relayed: &[(ShardId, Seq)]) {
        self.shared.state().relayed(relayed, Instant::now());
    }

    /// Where to begin for these positions.
    pub(super) fn offsets(&self, positions: &[(ShardId, Seq)]) -> HashMap<ShardId, i64> {
        self.shared.state().offsets(positions)
    }

    pub(super) fn outage(&self) -> Option<String> {
        self.shared.outage.lock().expect("no panic under this lock").clone()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    fn set_outage(&self, reason: Option<String>) {
        *self.outage.lock().expect("no panic under this lock") = reason;
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

struct Worker {
    shared: Arc<Shared>,
    topic: Topic,
    name: String,
    kafka: Kafka,
}

impl Worker {
    fn run(&self) {
        while !self.shared.is_stopped() {
            let ended = self.consumer().and_then(|consumer| self.read(&consumer));
            if let Err(error) = ended {
                episodes::error("Kafka consumers fail, making others", self.topic.kafka_name(), &error);
                self.shared.set_outage(Some(error.to_string()));
                self.shared.state().failed_all();
                std::thread::sleep(RETRY_AFTER);
            }
        }
    }

    fn consumer(&self) -> KafkaResult<BaseConsumer<Reports>> {
        let mut config = client_config(&self.kafka, &self.name);
        config
            // librdkafka wants a name to let us assign; nothing joins the group and nothing is committed.
            .set("group.id", format!("rookery-{}", self.name))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // A hint below what is kept: begin with what there is.
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "100")
            // Per partition, beside what we keep ourselves.
            .set("queued.max.messages.kbytes", "512");
        BaseConsumer::from_config_and_context(&config, Reports::of(&self.name))
    }

    /// Reads until the log is dropped.
    fn read(&self, consumer: &BaseConsumer<Reports>) -> KafkaResult<()> {
        let mut asked = Instant::now();
        let mut topic_is_away = false;
        while !self.shared.is_stopped() {
            let orders = self.shared.state().orders(Instant::now());
            for order in orders {
                self.carry_out(consumer, order);
            }
            topic_is_away |= self.take_run(consumer)?;
            if self.shared.outage.lock().expect("no panic under this lock").is_some() && asked.elapsed() > RETRY_AFTER {
                asked = Instant::now();
                // Nothing tells us that a quiet cluster is back but itself.
                if self.has_topic(consumer) {
                    self.shared.set_outage(None);
                    if std::mem::take(&mut topic_is_away) {
                        self.shared.state().remade();
                    }
                }
            }
        }
        Ok(())
    }

    fn has_topic(&self, consumer: &BaseConsumer<Reports>) -> bool {
        let metadata = consumer.fetch_metadata(Some(self.topic.kafka_name()), RETRY_AFTER);
        metadata.is_ok_and(|metadata| metadata.topics().iter().any(|topic| !topic.partitions().is_empty()))
    }

    fn carry_out(&self, consumer: &BaseConsumer<Reports>, order: Order) {
        let (partition, done) = match order {
            Order::Read { partition, start } => (partition, self.assign(consumer, partition, start)),
            Order::Pause { partition } => (partition, consumer.pause(&self.list(partition))),
            Order::Resume { partition } => (partition, consumer.resume(&self.list(partition))),
            // It may never have been assigned.
            Order::Leave { partition } => (partition, consumer.incremental_unassign(&self.list(partition)).or(Ok(()))),
        };
        if let Err(error) = done {
            episodes::warn("Kafka partitions are read anew", self.topic.kafka_name(), format_args!("{partition}: {error}"));
            self.shared.state().failed(partition);
            std::thread::sleep(POLL);
        }
    }

    /// Seeking by assigning anew: librdkafka then drops what it had fetched, and it works in every state of a partition.
    fn assign(&self, consumer: &BaseConsumer<Reports>, partition: u16, start: Start) -> KafkaResult<()> {
        let _ = consumer.incremental_unassign(&self.list(partition));
        let mut list = self.list(partition);
        list.set_all_offsets(match start {
            Start::Beginning => Offset::Beginning,
            Start::At(offset) => Offset::Offset(offset),
        })?;
        consumer.incremental_assign(&list)
    }

    fn list(&self, partition: u16) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition(self.topic.kafka_name(), i32::from(partition));
        list
    }

    /// Takes what there is, then wakes those who wait for it; whether the topic was said to be gone.
    fn take_run(&self, consumer: &BaseConsumer<Reports>) -> KafkaResult<bool> {
        let (mut news, mut topic_is_away) = (false, false);
        let mut patience = POLL;
        for _ in 0..RUN_MAX {
            let Some(polled) = consumer.poll(patience) else {
                break;
            };
            patience = Duration::ZERO;
            match polled {
                Ok(message) => news |= self.take(&message),
                Err(KafkaError::PartitionEOF(partition)) => {
                    if let Ok(partition) = u16::try_from(partition) {
                        self.shared.state().ended(partition, Instant::now());
                    }
                }
                Err(error @ KafkaError::MessageConsumptionFatal(_)) => return Err(error),
                // One connection that broke is not the cluster; it comes back by itself.
                Err(KafkaError::MessageConsumption(RDKafkaErrorCode::BrokerTransportFailure)) => {}
                Err(error) => {
                    topic_is_away |= is_unknown_topic(&error);
                    tracing::debug!(kafka.topic = self.topic.kafka_name(), %error, "a topic cannot be read now");
                    self.shared.set_outage(Some(error.to_string()));
                }
            }
        }
        if news {
            self.shared.news.notify_waiters();
        }
        Ok(topic_is_away)
    }

    fn take(&self, message: &impl Message) -> bool {
        let Ok(partition) = u16::try_from(message.partition()) else {
            return false;
        };
        let read = message::read(message).inspect_err(|error| {
            metrics::counter!("rookery_log_unreadable_total", "topic" => self.topic.kafka_name()).increment(1);
            let place = format_args!("partition {partition}, offset {}: {error}", message.offset()).to_string();
            episodes::error("messages that are not ours are skipped", self.topic.kafka_name(), place);
        });
        self.shared.state().offer(partition, message.offset(), read.ok(), Instant::now())
    }
}

/// Whether the cluster does not know the topic, or knows another one by its name.
fn is_unknown_topic(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{UnknownPartition, UnknownTopic, UnknownTopicOrPartition};

    matches!(error, KafkaError::MessageConsumption(UnknownTopicOrPartition | UnknownTopic | UnknownPartition))
}
