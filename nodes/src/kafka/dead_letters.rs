//! Dead letters on their way to the dead-letter topics (rule 18): rows first, so that none depends on Kafka being there.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use jiff::Timestamp;
use rdkafka::{
    error::{KafkaError, KafkaResult},
    producer::{FutureProducer, FutureRecord},
};
use rookery_actors::{
    entity::Failure,
    episodes,
    event::{Source, UnknownSource},
    ids::Seq,
    runtime::Database,
};
use tokio::{task::JoinHandle, time::sleep};
use uuid::Uuid;

use super::{client::client_config, message, topics};
use crate::{config::Kafka, event_log::LogSource};

/// Dead letters are rare and nobody waits for them.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Letters taken at a time.
const PAGE: i64 = 100;
/// Longest time that the client tries to deliver a letter before it is tried anew.
const DELIVERY_TIMEOUT_MS: &str = "30000";

/// The dead letters of a consuming service, sent to the topics that they come from, at least once.
pub struct DeadLetters {
    kafka: Kafka,
    consumer: &'static str,
    source: Arc<dyn LogSource>,
    database: Database,
}

/// It at work; dropped, it stops.
pub struct RunningDeadLetters {
    task: JoinHandle<()>,
}

impl Drop for RunningDeadLetters {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, thiserror::Error)]
enum Undelivered {
    #[error(transparent)]
    Database(#[from] Failure),
    #[error("Kafka did not take a dead letter")]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Source(#[from] UnknownSource),
}

struct Letter {
    shard: i16,
    source: String,
    seq: Seq,
    kind: String,
    key: Uuid,
    payload: Option<String>,
    reason: String,
    at: Timestamp,
}

impl DeadLetters {
    /// Starts to send the letters of the shards that `source`, the service `consumer`, serves here.
    ///
    /// # Errors
    /// When the configuration makes no producer.
    pub fn start(
        kafka: Kafka,
        consumer: &'static str,
        source: Arc<dyn LogSource>,
        database: Database,
    ) -> KafkaResult<RunningDeadLetters> {
        let producer: FutureProducer = client_config(&kafka, &format!("dead-letters-{consumer}"))
            .set("statistics.interval.ms", "0")
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", DELIVERY_TIMEOUT_MS)
            .create()?;
        let letters = Self { kafka, consumer, source, database };
        Ok(RunningDeadLetters { task: tokio::spawn(async move { letters.run(&producer).await }) })
    }

    async fn run(&self, producer: &FutureProducer) {
        loop {
            match self.send_page(producer).await {
                Ok(count) if count == PAGE as usize => continue,
                Ok(_) => {}
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    episodes::warn("dead letters wait", self.consumer, format_args!("{error:#}"));
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn send_page(&self, producer: &FutureProducer) -> Result<usize, Undelivered> {
        let letters = self.unsent().await?;
        let sent = join_all(letters.iter().map(|letter| self.send(producer, letter))).await;
        sent.into_iter().collect::<Result<(), Undelivered>>()?;
        self.note(&letters).await?;
        metrics::counter!("rookery_dead_letters_total", "consumer" => self.consumer).increment(letters.len() as u64);
        Ok(letters.len())
    }

    async fn unsent(&self) -> Result<Vec<Letter>, Failure> {
        let shards: Vec<i16> = self.source.owned().iter().map(|(shard, ..)| shard.as_i16()).collect();
        let client = self.database.get().await?;
        let rows = client
            .query(
                "SELECT shard, source, seq, type, key, payload, reason, at FROM dead_letter
                 WHERE NOT relayed AND shard = ANY($1) ORDER BY shard, source, seq LIMIT $2",
                &[&shards, &PAGE],
            )
            .await?;
        Ok(rows
            .into_iter()
            .map(|row| Letter {
                shard: row.get(0),
                source: row.get(1),
                seq: row.get(2),
                kind: row.get(3),
                key: row.get(4),
                payload: row.get(5),
                reason: row.get(6),
                at: row.get(7),
            })
            .collect())
    }

    async fn send(&self, producer: &FutureProducer, letter: &Letter) -> Result<(), Undelivered> {
        let source: Source = letter.source.parse()?;
        let id = format!("{source}/{}", letter.seq);
        let headers = message::cloud_event(&id, &letter.kind, source.topic.service(), letter.at);
        let headers = message::with(headers, message::SHARD, &source.shard);
        let headers = message::with(headers, message::SEQ, &letter.seq);
        let headers = message::with(headers, "rookery-consumer", &format!("{}/{}", self.consumer, letter.shard));
        let headers = message::with(headers, "rookery-reason", &letter.reason);
        let (topic, key) = (topics::dead_letters(source.topic), letter.key.to_string());
        let mut record: FutureRecord<'_, str, str> = FutureRecord::to(&topic)
            .partition(i32::from(source.shard.0 % self.kafka.partitions))
            .key(key.as_str())
            .headers(headers);
        record.payload = letter.payload.as_deref();
        producer.send(record, Duration::from_secs(1)).await.map_err(|(error, _)| error)?;
        Ok(())
    }

    async fn note(&self, letters: &[Letter]) -> Result<(), Failure> {
        if letters.is_empty() {
            return Ok(());
        }
        let shards: Vec<i16> = letters.iter().map(|letter| letter.shard).collect();
        let sources: Vec<&str> = letters.iter().map(|letter| letter.source.as_str()).collect();
        let seqs: Vec<Seq> = letters.iter().map(|letter| letter.seq).collect();
        let client = self.database.get().await?;
        client
            .execute(
                "UPDATE dead_letter d SET relayed = true FROM UNNEST($1::int2[], $2::text[], $3::int8[]) AS r(shard, source, seq)
                 WHERE d.shard = r.shard AND d.source = r.source AND d.seq = r.seq",
                &[&shards, &sources, &seqs],
            )
            .await?;
        Ok(())
    }
}
