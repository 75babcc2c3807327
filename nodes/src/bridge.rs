//! A bridge: from one service's log into another's shards, in order, each record applied exactly once.
//!
//! The bridge itself may repeat anything: the target shards keep the positions and drop what they have (rule 16).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all};
use rookery_actors::{
    entity::Failure,
    episodes,
    event::{EventLog, Fetched, LogError, Record, Source, Topic},
    ids::{Epoch, Seq, ShardId, shard_of},
    runtime::{Carried, DeadLetter, ProjectError, Runtime, Slice, SlicePart, Waiting},
    service::{Foreign, Service},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};
use uuid::Uuid;

pub use crate::readers::Outside;
use crate::readers::{Marks, Reader, Readers, changed};

/// Between two notes of how far we came; whoever goes on from there repeats at most this much, harmlessly.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// Before an outage is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// Tries of a record before it is buried (rule 18).
const TRIES: usize = 3;

/// The histories of a log at some places in it.
pub type Histories = HashMap<(ShardId, Seq), Uuid>;

/// Where a bridge keeps its place: the publishing service's register of consumers.
pub trait Places: Send + Sync + 'static {
    /// The places of a consumer, for all source shards that it has ever read.
    fn places(&self, consumer: &'static str) -> BoxFuture<'_, Result<Vec<(ShardId, Seq)>, Failure>>;
    /// Moves places forward.
    fn note<'a>(&'a self, consumer: &'static str, places: &'a [(ShardId, Seq)]) -> BoxFuture<'a, Result<(), Failure>>;
    /// The histories of the publisher's log at these places, as far as it reaches them (see [`Runtime::histories`]).
    fn histories(&self, places: Vec<(ShardId, Seq)>) -> BoxFuture<'_, Result<Histories, Failure>>;
    /// The oldest record of the publisher after these places, by its own outbox.
    fn oldest_after(&self, places: Vec<(ShardId, Seq)>) -> BoxFuture<'_, Result<Option<Waiting>, Failure>>;
}

impl<S: Service> Places for Runtime<S> {
    fn places(&self, consumer: &'static str) -> BoxFuture<'_, Result<Vec<(ShardId, Seq)>, Failure>> {
        Box::pin(Runtime::consumer_places(self, consumer))
    }

    fn note<'a>(&'a self, consumer: &'static str, places: &'a [(ShardId, Seq)]) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(Runtime::note_consumer(self, consumer, places))
    }

    fn histories(&self, places: Vec<(ShardId, Seq)>) -> BoxFuture<'_, Result<Histories, Failure>> {
        Box::pin(async move { Runtime::histories(self, &places).await })
    }

    fn oldest_after(&self, places: Vec<(ShardId, Seq)>) -> BoxFuture<'_, Result<Option<Waiting>, Failure>> {
        Box::pin(async move { Runtime::oldest_after(self, &places).await })
    }
}

/// One topic on its way into one service, as far as this node carries it: from those shards of the publisher whose number
/// the consumer serves here. With that shard they come and go.
pub struct Bridge<S: Service> {
    consumer: Runtime<S>,
    places: Arc<dyn Places>,
    topic: Topic,
    source_shards: u16,
    marks: Marks,
    noted: BTreeMap<ShardId, Carried>,
    readers: Readers<Carrier<S>>,
    /// Of who serves what.
    news: Vec<watch::Receiver<u64>>,
}

/// Takes records to the shards that they concern.
struct Carrier<S: Service> {
    consumer: Runtime<S>,
    topic: Topic,
}

/// A bridge at work.
pub struct RunningBridge {
    task: JoinHandle<()>,
    marks: Marks,
    places: Arc<dyn Places>,
}

impl RunningBridge {
    /// Up to when everything that was committed has been applied, as far as this node carries it and knows.
    pub fn caught_up_at(&self) -> Instant {
        self.marks.caught_up()
    }

    /// The oldest event that is not applied, of the shards that this node carries: by the publisher's outbox, for a log between
    /// may have lost it.
    ///
    /// # Errors
    /// When the publisher's database does not answer.
    pub async fn oldest_unapplied(&self) -> Result<Option<Waiting>, Failure> {
        self.places.oldest_after(self.marks.all()).await
    }

    /// The shards of the publisher that are carried by this node now.
    pub fn carries(&self) -> Vec<ShardId> {
        self.marks.all().into_iter().map(|(shard, _)| shard).collect()
    }

    /// The places of its that lie outside of the log: it waits there until it is told to go on.
    pub fn outside(&self) -> Vec<Outside> {
        self.marks.outside()
    }

    /// Goes on after this place of a shard: the consumer was rebuilt from the publisher's state since.
    pub fn rebuilt(&self, shard: ShardId, place: Seq) {
        self.marks.rebuilt(shard, place);
    }

    /// Ends it, wherever it is: what it was about to do comes again at the next start.
    pub fn stop(&self) {
        self.task.abort();
    }
}

impl<S: Service> Bridge<S> {
    /// Starts a bridge for a topic of `source_shards`.
    pub fn start(
        consumer: Runtime<S>,
        log: Arc<dyn EventLog>,
        places: Arc<dyn Places>,
        topic: Topic,
        source_shards: u16,
    ) -> RunningBridge {
        let marks = Marks::default();
        let mut news = vec![consumer.tenures()];
        news.extend(log.regroups(topic));
        news.extend(consumer.router().map(|router| router.changes()));
        let carrier = Arc::new(Carrier { consumer: consumer.clone(), topic });
        let readers = Readers::new(carrier, log, topic, marks.clone());
        let bridge = Self {
            consumer,
            places: Arc::clone(&places),
            topic,
            source_shards,
            marks: marks.clone(),
            noted: BTreeMap::new(),
            readers,
            news,
        };
        RunningBridge { task: tokio::spawn(bridge.run()), marks, places }
    }

    async fn run(mut self) {
        loop {
            let pause = match self.look_around().await {
                Ok(()) => NOTE_EVERY,
                Err(failure) => {
                    tracing::debug!(consumer = S::NAME, %failure, "the place of a bridge cannot be read or noted");
                    RETRY_AFTER
                }
            };
            changed(&mut self.news, pause).await;
        }
    }

    /// Carries what this node should, and notes how far it came.
    async fn look_around(&mut self) -> Result<(), Failure> {
        let held = |shard: &ShardId| self.consumer.is_held(ShardId(shard.0 % self.consumer.shards()));
        let ours: Vec<ShardId> = (0..self.source_shards).map(ShardId).filter(held).collect();
        let known: Vec<(ShardId, Seq)> = self.marks.all();
        // Under another tenure the consumer's shard may know less than it did: its database went back to an older state.
        let is_new = |shard: &ShardId| {
            known.iter().all(|(known, _)| known != shard) || self.marks.epoch(*shard) != Some(epoch(&self.consumer, *shard))
        };
        let new: Vec<ShardId> = ours.iter().copied().filter(is_new).collect();
        if !new.is_empty() {
            self.begin(new).await?;
        }
        self.readers.read(ours.clone());
        let noted = self.note(&ours).await;
        for (shard, _) in known.into_iter().filter(|(shard, _)| !ours.contains(shard)) {
            self.marks.end(shard);
            self.noted.remove(&shard);
        }
        noted
    }

    /// Begins where whoever carried these shards before noted how far it came. The consumer's own database says so: if it went
    /// back to an older state, its place did with it. One that knows none yet is told by the publisher.
    async fn begin(&mut self, shards: Vec<ShardId>) -> Result<(), Failure> {
        let epochs: HashMap<ShardId, Epoch> = shards.iter().map(|shard| (*shard, epoch(&self.consumer, *shard))).collect();
        let carried = self.consumer.carried(self.topic).await?.into_iter().map(|carried| (carried.shard, carried));
        let mut carried: HashMap<ShardId, Carried> = carried.collect();
        let places: HashMap<ShardId, Seq> = self.places.places(S::NAME).await?.into_iter().collect();
        let place = |shard| Carried { shard, position: places.get(&shard).copied().unwrap_or(0), history: None };
        let begins: Vec<Carried> =
            shards.into_iter().map(|shard| carried.remove(&shard).unwrap_or_else(|| place(shard))).collect();
        let histories = self.places.histories(begins.iter().map(|begin| (begin.shard, begin.position)).collect()).await?;
        for begin in begins {
            let Carried { shard, position, .. } = begin;
            let found = histories.get(&(shard, position)).copied();
            self.marks.begin_under(shard, position, epochs.get(&shard).copied().unwrap_or_default());
            self.noted.insert(shard, Carried { history: begin.history.or(found), ..begin });
            if begin.is_of_another(found) {
                self.is_of_another(shard, position);
            }
        }
        Ok(())
    }

    /// Notes how far we came for shards that are ours: of one that is not any more, the database may be another by now. Its next
    /// carrier repeats what was not noted.
    async fn note(&mut self, ours: &[ShardId]) -> Result<(), Failure> {
        let rebuilt = self.marks.all_rebuilt();
        let noted = |shard: &ShardId| self.noted.get(shard).filter(|_| !rebuilt.contains(shard)).copied();
        let moved = |(shard, place): &(ShardId, Seq)| {
            let is_ours = ours.contains(shard) && self.marks.epoch(*shard) == Some(epoch(&self.consumer, *shard));
            is_ours && noted(shard).is_none_or(|noted| noted.position != *place)
        };
        let moved: Vec<(ShardId, Seq)> = self.marks.all().into_iter().filter(moved).collect();
        if moved.is_empty() {
            return Ok(());
        }
        // Where we were, and where we are: what was read in between is of the history that both have.
        let before: Vec<Carried> = moved.iter().filter_map(|(shard, _)| noted(shard)).collect();
        let asked = before.iter().map(|before| (before.shard, before.position)).chain(moved.iter().copied()).collect();
        let histories = self.places.histories(asked).await?;
        let found = |shard, position| histories.get(&(shard, position)).copied();
        let others: Vec<ShardId> = before
            .iter()
            .filter(|before| before.is_of_another(found(before.shard, before.position)))
            .map(|before| before.shard)
            .collect();
        let moved: Vec<(ShardId, Seq)> = moved.into_iter().filter(|(shard, _)| !others.contains(shard)).collect();
        for shard in others {
            let position = self.noted.get(&shard).map_or(0, |noted| noted.position);
            self.is_of_another(shard, position);
        }
        let carried: Vec<Carried> =
            moved.iter().map(|&(shard, position)| Carried { shard, position, history: found(shard, position) }).collect();
        self.consumer.note_carried(self.topic, &carried).await?;
        self.places.note(S::NAME, &moved).await?;
        self.noted.extend(carried.into_iter().map(|carried| (carried.shard, carried)));
        self.marks.rebuilt_is_noted(&rebuilt);
        Ok(())
    }

    /// The log went back to before this place, and went on differently: what follows is not what was to follow.
    fn is_of_another(&self, shard: ShardId, position: Seq) {
        let source = Source { topic: self.topic, shard };
        let reason =
            format!("the log of {source} has another history than the one that was read up to {position}: it was restored");
        if self.marks.outside().iter().all(|outside| outside.shard != shard || !outside.is_other_history) {
            episodes::error("logs of publishers have gone back to an older state", S::NAME, &reason);
        }
        self.marks.is_outside(Outside { shard, position, head: position, reason, is_other_history: true });
    }
}

/// Under which the consumer serves the shard of this number.
fn epoch<S: Service>(consumer: &Runtime<S>, shard: ShardId) -> Epoch {
    consumer.latest_epoch(ShardId(shard.0 % consumer.shards()))
}

impl<S: Service> Reader for Carrier<S> {
    fn epoch(&self, shard: ShardId) -> Epoch {
        epoch(&self.consumer, shard)
    }

    /// Takes what was fetched to its targets and waits until all of them have answered.
    async fn take(&self, fetched: &[Fetched]) {
        let mut slices: HashMap<ShardId, Slice> = HashMap::new();
        for Fetched { shard, records } in fetched {
            for (target, part) in self.slice(*shard, records) {
                slices.entry(target).or_default().parts.push(part);
            }
        }
        join_all(slices.iter().map(|(target, slice)| self.deliver(*target, slice))).await;
    }

    fn outside(&self, error: &LogError) -> Option<(ShardId, Seq)> {
        metrics::counter!("rookery_bridge_outside_total", "consumer" => S::NAME, "topic" => self.topic.service()).increment(1);
        episodes::error("places of bridges are outside of the log", S::NAME, error);
        None
    }
}

impl<S: Service> Carrier<S> {
    /// What the records of one source mean to each target.
    fn slice(&self, shard: ShardId, records: &[Arc<Record>]) -> HashMap<ShardId, SlicePart> {
        let source = Source { topic: self.topic, shard };
        let position = records.last().map_or(0, |last| last.seq);
        let mut parts: HashMap<ShardId, SlicePart> = HashMap::new();
        for record in records.iter().filter(|record| !record.is_internal()) {
            let targets = match self.consumer.service().concerns(&Foreign { source, record, replayed: false }) {
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
                    episodes::warn("slices of events are refused, going record by record", S::NAME, &error);
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
                    episodes::warn("dead letters must wait", S::NAME, &error);
                    sleep(RETRY_AFTER).await;
                }
                break;
            }
        }
    }
}
