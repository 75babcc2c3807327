//! Kafka as the event log: every shard's records in order, from any position, out of topics that repeat and reorder.
//!
//! There are no consumer groups and no committed offsets: the reader's positions are seqs of the source shards, and a
//! thread per topic reads its partitions with `assign()` from where those positions may begin.

mod hints;
mod reader;
mod state;

use std::{sync::OnceLock, time::Duration};

use futures_util::future::{BoxFuture, FutureExt};
use rookery_actors::{
    event::{EventLog, Fetched, LogError, Topic},
    ids::{Seq, ShardId},
};
use tokio::time::{Instant, timeout_at};

pub use self::hints::Hints;
use self::reader::Reader;
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
    readers: [OnceLock<Reader>; Topic::ALL.len()],
}

impl KafkaLog {
    /// A log for `consumer`, a service's name. It connects when a topic is first read.
    ///
    /// The topics must be there: see [`super::topics::ensure`].
    pub fn new(kafka: Kafka, consumer: &str) -> Self {
        Self { kafka, consumer: consumer.to_owned(), gap_patience: GAP_PATIENCE, hints: None, readers: Default::default() }
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
        self.readers[place].get_or_init(|| Reader::start(self.kafka.clone(), topic, &self.consumer, self.gap_patience))
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
                let fetched = reader.look(positions, bytes_max)?;
                if !fetched.is_empty() {
                    return Ok(fetched);
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
