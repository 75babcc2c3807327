//! The relay: a service's outbox on its way to Kafka, shard by shard, in order, at least once (rule 17).
//!
//! How far Kafka has each log stands in `relayed`, which only rises while a topic stays the same. When a topic has lost its
//! records it is put back (see [`super::keeper`]), and the relay goes on from there, wherever it had come.

mod line;
mod progress;

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use metrics::{counter, gauge, histogram};
use rdkafka::{
    ClientContext, Message, Statistics,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, KafkaResult},
    producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer},
};
use rookery_actors::{
    entity::Failure,
    episodes,
    event::{Record, Topic},
    ids::{Seq, ShardId},
    runtime::Database,
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
    time::{sleep, timeout},
};

use self::{
    line::Line,
    progress::{NOTE_EVERY, Progress, note_progress, places},
};
use super::{
    client::{Reports, client_config},
    keeper::forget_relayed,
    message,
};
use crate::{config::Kafka, event_log::LogSource};

/// Records that a relay has under way at most, all shards together.
const IN_FLIGHT_RECORDS_MAX: usize = 10_000;
/// The same in bytes of payload.
const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// Taken from one shard before the next has its turn, in bytes.
const TURN_BYTES: usize = 256 << 10;
/// Shards come and go without a batch: the relay looks around at least this often.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Before a failed producer is replaced, or a database that does not answer is asked again.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// Longest time that the client tries to deliver a record: a broker that restarts is back long before.
const DELIVERY_TIMEOUT_MS: &str = "30000";

/// What is logged while Kafka takes nothing.
const UNDELIVERED: &str = "records are not delivered, sending again what is not confirmed";

/// A service's outbox on its way to Kafka.
pub struct Relay {
    kafka: Kafka,
    topic: Topic,
    source: Arc<dyn LogSource>,
    database: Database,
    progress: Arc<Progress>,
}

/// A relay at work; dropped, it stops. What was not noted yet is sent again by whoever goes on.
pub struct RunningRelay {
    task: JoinHandle<()>,
    source: Arc<dyn LogSource>,
    database: Database,
}

impl RunningRelay {
    /// Waits until Kafka has what is committed now in the shards that are served here, and that is noted, so that their
    /// next owner sends nothing twice.
    ///
    /// # Errors
    /// How many records were not there in time, or what the database said: whoever goes on sends them.
    pub async fn flush(&self, within: Duration) -> anyhow::Result<()> {
        let heads = self.source.owned();
        let shards: Vec<ShardId> = heads.iter().map(|(shard, ..)| *shard).collect();
        let mut missing = 0;
        let flushed = async {
            loop {
                let places = places(&self.database, &shards).await?;
                let place = |shard: &ShardId| places.get(shard).copied().unwrap_or(0);
                missing = heads.iter().map(|(shard, _, head)| (head - place(shard)).max(0)).sum();
                if missing == 0 {
                    return Ok::<_, Failure>(());
                }
                sleep(NOTE_EVERY / 4).await;
            }
        };
        match timeout(within, flushed).await {
            Ok(flushed) => flushed.map_err(|failure| anyhow::anyhow!("{failure}")),
            Err(_) => anyhow::bail!("{missing} records are not confirmed after {} ms", within.as_millis()),
        }
    }

    /// Ends it and waits for its end.
    pub async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for RunningRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a producer is of no use any more.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error("a record of {service} shard {shard} was not delivered")]
    Undelivered {
        service: &'static str,
        shard: ShardId,
        #[source]
        error: KafkaError,
    },
    #[error("a record was not taken")]
    Refused(#[source] KafkaError),
    #[error("the topic takes records before those that it had")]
    Remade,
    #[error("the table of what Kafka has was put back")]
    PutBack,
    #[error("the service has stopped")]
    SourceGone,
}

impl Relay {
    /// Starts to relay the shards that `source` serves, whichever those are, from where `database` says Kafka has them.
    ///
    /// The topic must be there: see [`super::topics::ensure`].
    pub fn start(kafka: Kafka, topic: Topic, source: Arc<dyn LogSource>, database: Database) -> RunningRelay {
        let relay = Self { kafka, topic, source: Arc::clone(&source), database: database.clone(), progress: Arc::default() };
        RunningRelay { task: tokio::spawn(relay.run()), source, database }
    }

    async fn run(self) {
        let noting = note_progress(self.topic, self.database.clone(), &self.progress);
        tokio::select! {
            () = self.relay() => {}
            () = noting => {}
        }
    }

    async fn relay(&self) {
        let mut lines = HashMap::new();
        let mut ends = HashMap::new();
        loop {
            let (producer, mut reports) = match Producer::new(&self.kafka, self.topic) {
                Ok(made) => made,
                Err(error) => {
                    episodes::error("no Kafka producer can be made of this configuration", "", &error);
                    sleep(LOOK_EVERY).await;
                    continue;
                }
            };
            let interruption = self.publish(&producer, &mut reports, &mut lines, &mut ends).await;
            if matches!(interruption, Interruption::SourceGone) {
                return;
            }
            counter!("rookery_relay_interruptions_total", "topic" => self.topic.kafka_name()).increment(1);
            // With the producer goes all that it has queued or in flight; only then may the same records go out again.
            producer.purge().await;
            lines.values_mut().for_each(Line::rewind);
            self.recover(interruption, &mut lines, &mut ends).await;
            sleep(RETRY_AFTER).await;
        }
    }

    /// Decides where the next producer goes on.
    async fn recover(&self, interruption: Interruption, lines: &mut HashMap<ShardId, Line>, ends: &mut HashMap<i32, i64>) {
        let is_remade = matches!(interruption, Interruption::Remade);
        let begins_anew = is_remade || matches!(interruption, Interruption::PutBack);
        let error = anyhow::Error::from(interruption);
        episodes::warn(UNDELIVERED, self.topic.kafka_name(), format_args!("{error:#}"));
        if !begins_anew {
            return;
        }
        // The places of all lines are read anew.
        lines.clear();
        ends.clear();
        self.progress.forget();
        if !is_remade {
            return;
        }
        while let Err(failure) = forget_relayed(&self.database).await {
            tracing::debug!(kafka.topic = self.topic.kafka_name(), %failure, "cannot put back yet how far Kafka has the log");
            sleep(LOOK_EVERY).await;
        }
    }

    /// Sends until something goes wrong.
    async fn publish(
        &self,
        producer: &Producer,
        reports: &mut UnboundedReceiver<Report>,
        lines: &mut HashMap<ShardId, Line>,
        ends: &mut HashMap<i32, i64>,
    ) -> Interruption {
        let mut batches = self.source.batches();
        let mut window = Window::default();
        loop {
            batches.mark_unchanged();
            let surveyed = self.survey(lines).await;
            // What left with its shard is not in flight here any more.
            window.recount(lines);
            let sent = match self.send(producer, lines, &mut window).await {
                Ok(sent) => sent,
                Err(error) => return Interruption::Refused(error),
            };
            let patience = if surveyed { LOOK_EVERY } else { RETRY_AFTER };
            let report = if sent > 0 && window.is_open() {
                reports.try_recv().ok()
            } else {
                tokio::select! {
                    report = reports.recv() => report,
                    changed = batches.changed(), if window.is_open() => {
                        if changed.is_err() {
                            return Interruption::SourceGone;
                        }
                        None
                    }
                    () = self.progress.put_back() => return Interruption::PutBack,
                    () = sleep(patience) => None,
                }
            };
            let mut next = report;
            while let Some(report) = next {
                if let Err(interruption) = self.take(report, lines, ends, &mut window) {
                    return interruption;
                }
                next = reports.try_recv().ok();
            }
        }
    }

    /// Looks which shards are ours and finds the place of new ones; whether all of them were found.
    async fn survey(&self, lines: &mut HashMap<ShardId, Line>) -> bool {
        let owned = self.source.owned();
        let lag: i64 = owned.iter().filter_map(|(shard, _, head)| Some(head - lines.get(shard)?.confirmed())).sum();
        gauge!("rookery_relay_lag_records", "topic" => self.topic.kafka_name()).set(lag as f64);
        if lines.len() > owned.len() || owned.iter().any(|(shard, ..)| !lines.contains_key(shard)) {
            let ours: HashMap<ShardId, Seq> = owned.iter().map(|(shard, _, head)| (*shard, *head)).collect();
            lines.retain(|shard, _| ours.contains_key(shard));
            let new: Vec<ShardId> = ours.keys().copied().filter(|shard| !lines.contains_key(shard)).collect();
            let places = match places(&self.database, &new).await {
                Ok(places) => places,
                Err(error) => {
                    tracing::debug!(kafka.topic = self.topic.kafka_name(), %error, "cannot read yet how far Kafka has the log");
                    return false;
                }
            };
            let new: Vec<(ShardId, Seq)> =
                new.into_iter().map(|shard| (shard, places.get(&shard).copied().unwrap_or(0))).collect();
            self.progress.follow(|shard| ours.contains_key(&shard), &new);
            lines.extend(new.into_iter().map(|(shard, place)| (shard, Line::after(place))));
        }
        true
    }

    /// Sends a turn of every shard that is behind, as far as the window allows; how many records.
    async fn send(&self, producer: &Producer, lines: &mut HashMap<ShardId, Line>, window: &mut Window) -> KafkaResult<usize> {
        let mut sent = 0;
        let head = |shard: ShardId| self.source.head(shard).unwrap_or(0);
        let mut behind: Vec<ShardId> =
            lines.iter().filter(|(shard, line)| head(**shard) > line.sent()).map(|(shard, _)| *shard).collect();
        // Who has least under way goes first, so that nobody waits for ever behind a busy neighbour.
        behind.sort_unstable_by_key(|shard| lines[shard].in_flight());
        for shard in behind {
            if !window.is_open() {
                break;
            }
            let line = lines.get_mut(&shard).expect("it was just here");
            let records = match self.source.log_after(shard, line.sent(), TURN_BYTES).await {
                Ok(records) => records,
                // Not ours any more, or the database rests: the next look tells.
                Err(failure) => {
                    tracing::debug!(shard.id = %shard, %failure, "cannot read an outbox now");
                    continue;
                }
            };
            for record in records {
                producer.send(&self.kafka, self.topic, shard, &record)?;
                line.send(record.seq, record.weight());
                window.add(record.weight());
                sent += 1;
            }
        }
        Ok(sent)
    }

    fn take(
        &self,
        report: Report,
        lines: &mut HashMap<ShardId, Line>,
        ends: &mut HashMap<i32, i64>,
        window: &mut Window,
    ) -> Result<(), Interruption> {
        let Report { shard, seq, at, result } = report;
        let topic = self.topic.kafka_name();
        let (partition, offset) =
            result.map_err(|error| Interruption::Undelivered { service: self.topic.service(), shard, error })?;
        // A repetition that the broker has already has no offset.
        if offset >= 0 {
            let end = ends.entry(partition).or_insert(-1);
            if offset <= *end {
                return Err(Interruption::Remade);
            }
            *end = offset;
        }
        // A shard that left has no line, and what its records became is its new owner's concern.
        if let Some(bytes) = lines.get_mut(&shard).and_then(|line| line.confirm(seq)) {
            window.remove(bytes);
            episodes::over(UNDELIVERED, topic);
            self.progress.reached(shard, seq);
            counter!("rookery_relay_records_total", "topic" => topic).increment(1);
            let age = Timestamp::now().duration_since(at);
            histogram!("rookery_relay_delay_seconds", "topic" => topic).record(age.as_secs_f64().max(0.0));
        }
        Ok(())
    }
}

/// What is in flight, all shards together.
#[derive(Default)]
struct Window {
    records: usize,
    bytes: usize,
}

impl Window {
    fn is_open(&self) -> bool {
        self.records < IN_FLIGHT_RECORDS_MAX && self.bytes < IN_FLIGHT_BYTES_MAX
    }

    fn add(&mut self, bytes: usize) {
        self.records += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.records = self.records.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn recount(&mut self, lines: &HashMap<ShardId, Line>) {
        (self.records, self.bytes) =
            lines.values().map(Line::in_flight).fold((0, 0), |(records, bytes), line| (records + line.0, bytes + line.1));
    }
}

/// What became of a record.
struct Report {
    shard: ShardId,
    seq: Seq,
    at: Timestamp,
    /// Where it is: partition and offset.
    result: Result<(i32, i64), KafkaError>,
}

/// What travels with a record through the client.
struct Ticket {
    shard: ShardId,
    seq: Seq,
    at: Timestamp,
}

/// An idempotent producer with its reports. Reports of a producer that was replaced go nowhere.
struct Producer {
    inner: Option<ThreadedProducer<Courier>>,
}

struct Courier {
    reports: UnboundedSender<Report>,
    telemetry: Reports,
}

impl ClientContext for Courier {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.telemetry.log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.telemetry.stats(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.telemetry.error(error, reason);
    }
}

impl ProducerContext for Courier {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let result = result.as_ref().map(|message| (message.partition(), message.offset())).map_err(|(error, _)| error.clone());
        let Ticket { shard, seq, at } = *ticket;
        // Nobody listens once the producer is being replaced.
        let _ = self.reports.send(Report { shard, seq, at, result });
    }
}

impl Producer {
    fn new(kafka: &Kafka, topic: Topic) -> KafkaResult<(Self, UnboundedReceiver<Report>)> {
        let name = format!("relay-{}", topic.service());
        let mut config = client_config(kafka, &name);
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // A commit is a batch already; a millisecond joins what its shards send.
            .set("linger.ms", "1")
            .set("compression.type", "lz4")
            .set("message.timeout.ms", DELIVERY_TIMEOUT_MS);
        let (sender, reports) = unbounded_channel();
        let courier = Courier { reports: sender, telemetry: Reports::of(&name) };
        let inner = ThreadedProducer::from_config_and_context(&config, courier)?;
        Ok((Self { inner: Some(inner) }, reports))
    }

    fn send(&self, kafka: &Kafka, topic: Topic, shard: ShardId, record: &Record) -> KafkaResult<()> {
        let producer = self.inner.as_ref().expect("a producer sends before it is purged");
        let key = record.key.to_string();
        let ticket = Box::new(Ticket { shard, seq: record.seq, at: record.at });
        let mut message = BaseRecord::<str, str, _>::with_opaque_to(topic.kafka_name(), ticket)
            .partition(i32::from(shard.0 % kafka.partitions))
            .key(&key)
            .timestamp(record.at.as_millisecond())
            .headers(message::headers(topic, shard, record));
        message.payload = record.payload.as_deref();
        producer.send(message).map_err(|(error, _)| error)
    }

    /// Drops what is queued and in flight, and waits until nothing of it can reach the network any more.
    async fn purge(mut self) {
        let inner = self.inner.take();
        // It joins a thread and waits for the last reports: not on a thread of the runtime.
        let _ = tokio::task::spawn_blocking(move || drop(inner)).await;
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            std::thread::spawn(move || drop(inner));
        }
    }
}
