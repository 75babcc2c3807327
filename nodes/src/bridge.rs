//! A bridge: from one service's log into another's shards, in order, each record applied exactly once.
//!
//! The bridge itself may repeat anything: the target shards keep the positions and drop what they have (rule 16).

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, join_all};
use jiff::Timestamp;
use rookery_actors::{
    entity::Failure,
    event::{EventLog, Fetched, LogError, Record, Source, Topic},
    ids::{Seq, ShardId, shard_of},
    runtime::{DeadLetter, ProjectError, Runtime, Slice, SlicePart},
    service::{Foreign, Service},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

/// Payload asked for at a time, in bytes: what is applied together.
const FETCH_BYTES: usize = 4 << 20;
/// After news were carried: more gather meanwhile, and share their commits. A tenth of what search may take.
const LINGER: Duration = Duration::from_millis(50);
/// Longest wait for news; the bridge looks around at least this often.
const FETCH_WAIT: Duration = Duration::from_secs(1);
/// Between two notes of how far we came; a restart repeats at most this much, harmlessly.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// Before an outage is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// Tries of a record before it is buried (rule 18).
const TRIES: usize = 3;

/// Where a bridge keeps its place: the publishing service's register of consumers.
pub trait Places: Send + Sync + 'static {
    /// The places of a consumer, for all source shards that it has ever read.
    fn places(&self, consumer: &'static str) -> BoxFuture<'_, Result<Vec<(ShardId, Seq)>, Failure>>;
    /// Moves places forward.
    fn note<'a>(&'a self, consumer: &'static str, places: &'a [(ShardId, Seq)]) -> BoxFuture<'a, Result<(), Failure>>;
}

impl<S: Service> Places for Runtime<S> {
    fn places(&self, consumer: &'static str) -> BoxFuture<'_, Result<Vec<(ShardId, Seq)>, Failure>> {
        Box::pin(Runtime::consumer_places(self, consumer))
    }

    fn note<'a>(&'a self, consumer: &'static str, places: &'a [(ShardId, Seq)]) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(Runtime::note_consumer(self, consumer, places))
    }
}

/// One topic on its way into one service.
pub struct Bridge<S: Service> {
    consumer: Runtime<S>,
    log: Arc<dyn EventLog>,
    places: Arc<dyn Places>,
    topic: Topic,
    positions: Vec<(ShardId, Seq)>,
    noted: Vec<(ShardId, Seq)>,
}

/// The moment up to which everything that was committed is in what was fetched.
fn up_to(fetched: &[Fetched]) -> Instant {
    let last = fetched.iter().filter_map(|fetched| fetched.records.last()).map(|record| record.at).min();
    let age = last.map(|at| Timestamp::now().duration_since(at)).and_then(|age| Duration::try_from(age).ok());
    let now = Instant::now();
    now.checked_sub(age.unwrap_or_default()).unwrap_or(now)
}

/// A bridge at work.
pub struct RunningBridge {
    task: JoinHandle<()>,
    lag: watch::Receiver<Instant>,
}

impl RunningBridge {
    /// Up to when everything that was committed has been applied, as far as the bridge knows.
    pub fn caught_up_at(&self) -> Instant {
        *self.lag.borrow()
    }

    /// Ends it, wherever it is: what it was about to do comes again at the next start.
    pub fn stop(&self) {
        self.task.abort();
    }
}

impl<S: Service> Bridge<S> {
    /// Starts a bridge for all `source_shards` of a topic.
    pub fn start(
        consumer: Runtime<S>,
        log: Arc<dyn EventLog>,
        places: Arc<dyn Places>,
        topic: Topic,
        source_shards: u16,
    ) -> RunningBridge {
        let positions: Vec<_> = (0..source_shards).map(|shard| (ShardId(shard), 0)).collect();
        let (caught_up, lag) = watch::channel(Instant::now());
        let bridge = Self { consumer, log, places, topic, noted: positions.clone(), positions };
        RunningBridge { task: tokio::spawn(bridge.run(caught_up)), lag }
    }

    async fn run(mut self, caught_up: watch::Sender<Instant>) {
        self.find_place().await;
        let mut noted_at = Instant::now();
        loop {
            match self.log.fetch(self.topic, &self.positions, FETCH_BYTES, FETCH_WAIT).await {
                Ok(fetched) if fetched.is_empty() => drop(caught_up.send_replace(Instant::now())),
                Ok(fetched) => {
                    let applied_up_to = up_to(&fetched);
                    self.carry(fetched).await;
                    caught_up.send_replace(applied_up_to);
                    sleep(LINGER).await;
                }
                Err(error @ LogError::OutOfRange { .. }) => {
                    tracing::error!(consumer = S::NAME, %error, "a bridge is outside of the log: rebuild from state with `rookery reindex`");
                    sleep(Duration::from_secs(10)).await;
                }
                Err(error) => {
                    tracing::debug!(consumer = S::NAME, %error, "a log is unavailable");
                    sleep(RETRY_AFTER).await;
                }
            }
            if noted_at.elapsed() >= NOTE_EVERY {
                self.note().await;
                noted_at = Instant::now();
            }
        }
    }

    async fn find_place(&mut self) {
        let places = loop {
            match self.places.places(S::NAME).await {
                Ok(places) => break places,
                Err(error) => {
                    tracing::debug!(consumer = S::NAME, %error, "cannot read the place of a bridge yet");
                    sleep(RETRY_AFTER).await;
                }
            }
        };
        for (shard, place) in places {
            if let Some((_, position)) = self.positions.get_mut(shard.index()) {
                *position = place;
            }
        }
        self.noted.clone_from(&self.positions);
    }

    async fn note(&mut self) {
        let moved: Vec<_> =
            self.positions.iter().zip(&self.noted).filter(|(now, noted)| now != noted).map(|(now, _)| *now).collect();
        if !moved.is_empty() && self.places.note(S::NAME, &moved).await.is_ok() {
            self.noted.clone_from(&self.positions);
        }
    }

    /// Takes what was fetched to its targets; the place moves when all of them have answered.
    async fn carry(&mut self, fetched: Vec<Fetched>) {
        let mut slices: HashMap<ShardId, Slice> = HashMap::new();
        for Fetched { shard, records } in &fetched {
            for (target, part) in self.slice(*shard, records) {
                slices.entry(target).or_default().parts.push(part);
            }
        }
        join_all(slices.iter().map(|(target, slice)| self.deliver(*target, slice))).await;
        for Fetched { shard, records } in fetched {
            if let Some(last) = records.last() {
                self.positions[shard.index()].1 = last.seq;
            }
        }
    }

    /// What the records of one source mean to each target.
    fn slice(&self, shard: ShardId, records: &[Arc<Record>]) -> HashMap<ShardId, SlicePart> {
        let source = Source { topic: self.topic, shard };
        let position = records.last().map_or(0, |last| last.seq);
        let mut parts: HashMap<ShardId, SlicePart> = HashMap::new();
        for record in records.iter().filter(|record| !record.is_internal()) {
            let targets = match self.consumer.service().concerns(&Foreign { source, record }) {
                Ok(ids) => ids.into_iter().map(|id| shard_of(id, self.consumer.shards())).collect(),
                // Nobody can say whom it concerns: the shard of its key buries it.
                Err(_) => vec![shard_of(record.key, self.consumer.shards())],
            };
            for target in targets {
                let part = parts.entry(target).or_insert_with(|| SlicePart { source, position, records: Vec::new() });
                if part.records.last().is_none_or(|last| last.seq != record.seq) {
                    part.records.push(Arc::clone(record));
                }
            }
        }
        parts
    }

    /// Applies a slice, however long it takes; what is poisonous is buried.
    async fn deliver(&self, target: ShardId, slice: &Slice) {
        loop {
            match self.consumer.apply(target, slice).await {
                Ok(()) => return,
                Err(ProjectError::Failed(failure)) => {
                    tracing::debug!(consumer = S::NAME, shard.id = %target, %failure, "a slice must wait");
                    sleep(RETRY_AFTER).await;
                }
                Err(error @ (ProjectError::Poison { .. } | ProjectError::Refused(_))) => {
                    tracing::warn!(consumer = S::NAME, shard.id = %target, %error, "a slice was refused, going record by record");
                    for part in &slice.parts {
                        self.deliver_singly(target, part).await;
                    }
                    return;
                }
            }
        }
    }

    async fn deliver_singly(&self, target: ShardId, part: &SlicePart) {
        for record in &part.records {
            let single = SlicePart { source: part.source, position: record.seq, records: vec![Arc::clone(record)] };
            let slice = Slice { parts: vec![single] };
            let mut tries = 0;
            loop {
                let reason = match self.consumer.apply(target, &slice).await {
                    Ok(()) => break,
                    // An outage says nothing about the record.
                    Err(ProjectError::Failed(_)) => {
                        sleep(RETRY_AFTER).await;
                        continue;
                    }
                    Err(error) => error.to_string(),
                };
                tries += 1;
                if tries < TRIES {
                    continue;
                }
                tracing::error!(consumer = S::NAME, source = %part.source, seq = record.seq, reason, "a record goes to the dead letters");
                let letter = DeadLetter { source: part.source, record: Arc::clone(record), reason };
                while let Err(error) = self.consumer.bury(target, letter.clone()).await {
                    tracing::warn!(consumer = S::NAME, %error, "a dead letter must wait");
                    sleep(RETRY_AFTER).await;
                }
                break;
            }
        }
    }
}
