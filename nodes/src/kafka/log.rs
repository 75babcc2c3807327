//! Kafka as the event log: every shard's records in order, from any position, out of topics that repeat and reorder.
//!
//! There are no consumer groups and no committed offsets: the reader's positions are seqs of the source shards, and a
//! thread per topic reads its partitions with `assign()` from where those positions may begin.

mod hints;
mod reader;
mod state;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt};
use rookery_actors::{
    event::{EventLog, Fetched, LogError, Topic},
    ids::{Seq, ShardId},
};
use tokio::time::{Instant, timeout_at};

pub use self::hints::Hints;
use self::{reader::Reader, state::State};
use crate::config::Kafka;

/// How long a hole may last before it is one: a relay that starts anew fills it long before.
const GAP_PATIENCE: Duration = Duration::from_secs(10);

/// The three topics, for one consumer.
///
/// Several consumers have a log each: two readers of one shard that share a log get what they ask for, but take turns in
/// rewinding it.
pub struct KafkaLog {
    kafka: Kafka,
    consumer: String,
    gap_patience: Duration,
    hints: Option<Hints>,
    outbox: Option<Arc<dyn EventLog>>,
    readers: [OnceLock<Reader>; Topic::ALL.len()],
}

impl KafkaLog {
    /// A log for `consumer`, a service's name. It connects when a topic is first read.
    ///
    /// The topics must be there: see [`super::topics::ensure`].
    pub fn new(kafka: Kafka, consumer: &str) -> Self {
        Self {
            kafka,
            consumer: consumer.to_owned(),
            gap_patience: GAP_PATIENCE,
            hints: None,
            outbox: None,
            readers: Default::default(),
        }
    }

    /// The same with the outboxes to read what Kafka has lost and they still have (rule 5).
    #[must_use]
    pub fn with_outbox(mut self, outbox: Arc<dyn EventLog>) -> Self {
        self.outbox = Some(outbox);
        self
    }

    /// The same with hints that outlive it.
    #[must_use]
    pub fn with_hints(mut self, hints: Hints) -> Self {
        self.hints = Some(hints);
        self
    }

    /// The same with another patience for holes.
    #[must_use]
    pub fn with_gap_patience(mut self, patience: Duration) -> Self {
        self.gap_patience = patience;
        self
    }

    fn reader(&self, topic: Topic) -> &Reader {
        let place = Topic::ALL.iter().position(|other| *other == topic).expect("ALL holds every topic");
        self.readers[place].get_or_init(|| {
            let state = State::new(topic, self.kafka.partitions, self.gap_patience);
            let state = if self.outbox.is_some() { state.with_outbox() } else { state };
            Reader::start(self.kafka.clone(), topic, &self.consumer, state)
        })
    }

    /// What Kafka does not have, if the outbox does: for all that is read, since what one shard lacks its neighbours mostly
    /// lack as well.
    async fn read_outbox(
        &self,
        topic: Topic,
        missing: LogError,
        positions: &[(ShardId, Seq)],
        bytes_max: usize,
    ) -> Result<Vec<Fetched>, LogError> {
        let Some(outbox) = &self.outbox else { return Err(missing) };
        let fetched = outbox.fetch(topic, positions, bytes_max, Duration::ZERO).await?;
        let records = fetched.iter().map(|fetched| fetched.records.len()).sum::<usize>();
        metrics::counter!("rookery_log_outbox_records_total", "topic" => topic.kafka_name()).increment(records as u64);
        Ok(fetched)
    }
}

impl EventLog for KafkaLog {
    fn fetch<'a>(
        &'a self,
        topic: Topic,
        positions: &'a [(ShardId, Seq)],
        bytes_max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Vec<Fetched>, LogError>> {
        async move {
            let deadline = Instant::now() + wait;
            let reader = self.reader(topic);
            if let Some(hints) = &self.hints {
                reader.hint(hints.unknown(topic, positions).await);
                hints.note(topic, || reader.offsets(positions));
            }
            loop {
                // Created before the look: news between the two is not missed.
                let news = reader.news();
                match reader.look(positions, bytes_max) {
                    Ok(fetched) if fetched.is_empty() => {}
                    Ok(fetched) => return Ok(fetched),
                    Err(missing) => return self.read_outbox(topic, missing, positions, bytes_max).await,
                }
                if let Some(hints) = &self.hints
                    && let Some(relayed) = hints.relayed(topic, positions).await
                {
                    reader.relayed(&relayed);
                }
                if timeout_at(deadline, news).await.is_err() {
                    return match reader.outage() {
                        Some(reason) => Err(LogError::Unavailable { topic, reason }),
                        None => Ok(Vec::new()),
                    };
                }
            }
        }
        .boxed()
    }
}
