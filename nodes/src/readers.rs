//! Reads the shards of a log wherever they are served: those of each owner by themselves, so that the wait for one
//! owner's news is not cut short by another's.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::{FutureExt, select_all};
use jiff::Timestamp;
use rookery_actors::{
    event::{EventLog, Fetched, LogError, Topic},
    ids::{Epoch, Seq, ShardId},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// Payload asked for at a time, in bytes: what is taken together.
const FETCH_BYTES: usize = 4 << 20;
/// After news were taken: more gather meanwhile, and share what they cost. A tenth of what search may take.
const LINGER: Duration = Duration::from_millis(50);
/// The same after much news: a round costs every target a record and its positions, however little it brings.
const LINGER_BUSY: Duration = Duration::from_millis(150);
/// Records in one round from which on a reader is busy.
const BUSY: usize = 50;
/// Longest wait for news; a reader looks around at least this often.
const FETCH_WAIT: Duration = Duration::from_secs(1);
/// Before an outage is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// Before a position outside of the log is tried again, if there is nowhere else to go on.
const OUTSIDE_AFTER: Duration = Duration::from_secs(10);

/// What is made of the records.
pub(crate) trait Reader: Send + Sync + 'static {
    /// Takes records, however long that takes: their positions move when it has.
    fn take(&self, fetched: &[Fetched]) -> impl Future<Output = ()> + Send;

    /// Under which epoch what is made of a shard is served here: what was read for another is not taken.
    fn epoch(&self, _shard: ShardId) -> Epoch {
        0
    }

    /// A position lies outside of the log; where to go on instead, if anywhere.
    fn outside(&self, error: &LogError) -> Option<(ShardId, Seq)>;
}

/// How far each shard has been read; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Marks(Arc<Mutex<BTreeMap<ShardId, Mark>>>);

struct Mark {
    position: Seq,
    /// Up to when everything that was committed has been taken.
    caught_up: Instant,
    /// The position lies outside of the log, as it was last asked.
    outside: Option<(Instant, Outside)>,
    /// It was begun after a rebuild, and nothing before it counts.
    is_rebuilt: bool,
    /// Under which epoch of the reader's it was begun.
    epoch: Epoch,
}

/// A position that lies outside of its log: what it followed is gone, or was never there.
#[derive(Clone, Debug)]
pub struct Outside {
    /// Whose log.
    pub shard: ShardId,
    /// Where the reader is.
    pub position: Seq,
    /// The last record that was written.
    pub head: Seq,
    /// What the log said.
    pub reason: String,
    /// The log has another history than the one that was read: it went back to an older state.
    pub is_other_history: bool,
}

impl Marks {
    /// The shards that are read, and how far they have been.
    pub(crate) fn all(&self) -> Vec<(ShardId, Seq)> {
        self.with(|marks| marks.iter().map(|(shard, mark)| (*shard, mark.position)).collect())
    }

    /// Up to when everything that was committed in any of the shards has been taken, as far as is known.
    pub(crate) fn caught_up(&self) -> Instant {
        self.with(|marks| marks.values().map(|mark| mark.caught_up).min()).unwrap_or_else(Instant::now)
    }

    /// Begins a shard after a position.
    pub(crate) fn begin(&self, shard: ShardId, position: Seq) {
        self.begin_under(shard, position, 0);
    }

    /// The same for a reader that serves what it makes of it.
    pub(crate) fn begin_under(&self, shard: ShardId, position: Seq, epoch: Epoch) {
        let mark = Mark { position, caught_up: Instant::now(), outside: None, is_rebuilt: false, epoch };
        self.with(|marks| marks.insert(shard, mark));
    }

    /// Under which epoch a shard was begun.
    pub(crate) fn epoch(&self, shard: ShardId) -> Option<Epoch> {
        self.with(|marks| marks.get(&shard).map(|mark| mark.epoch))
    }

    /// Begins a shard that is read here anew, after what a rebuild knows.
    pub(crate) fn rebuilt(&self, shard: ShardId, position: Seq) {
        self.with(|marks| {
            if let Some(mark) = marks.get_mut(&shard) {
                *mark = Mark { position, caught_up: Instant::now(), outside: None, is_rebuilt: true, epoch: mark.epoch };
            }
        });
    }

    /// The shards that were begun after a rebuild, where nobody has noted that yet.
    pub(crate) fn all_rebuilt(&self) -> Vec<ShardId> {
        self.with(|marks| marks.iter().filter(|(_, mark)| mark.is_rebuilt).map(|(shard, _)| *shard).collect())
    }

    /// That is noted now.
    pub(crate) fn rebuilt_is_noted(&self, shards: &[ShardId]) {
        self.with(|marks| {
            for shard in shards {
                if let Some(mark) = marks.get_mut(shard) {
                    mark.is_rebuilt = false;
                }
            }
        });
    }

    /// Those that lie outside of their logs.
    pub(crate) fn outside(&self) -> Vec<Outside> {
        self.with(|marks| marks.values().filter_map(|mark| Some(mark.outside.as_ref()?.1.clone())).collect())
    }

    /// A position is found to lie outside.
    pub(crate) fn is_outside(&self, outside: Outside) {
        self.with(|marks| {
            if let Some(mark) = marks.get_mut(&outside.shard) {
                mark.outside = Some((Instant::now(), outside));
            }
        });
    }

    /// Forgets a shard; how far it was read.
    pub(crate) fn end(&self, shard: ShardId) -> Option<Seq> {
        self.with(|marks| marks.remove(&shard)).map(|mark| mark.position)
    }

    /// What to ask for: one that is outside holds up nobody, and is tried again now and then; in another history, never.
    fn of(&self, shards: &[ShardId]) -> Vec<(ShardId, Seq)> {
        let tries_again = |(asked, outside): &(Instant, Outside)| !outside.is_other_history && asked.elapsed() >= OUTSIDE_AFTER;
        let may_ask = |mark: &&Mark| mark.outside.as_ref().is_none_or(tries_again);
        self.with(|marks| shards.iter().filter_map(|shard| Some((*shard, marks.get(shard).filter(may_ask)?.position))).collect())
    }

    /// Moves on; never back, for a loop that was ended may still be about to say how far it came.
    fn advance(&self, fetched: &[Fetched]) {
        self.with(|marks| {
            for Fetched { shard, records } in fetched {
                if let (Some(mark), Some(last)) = (marks.get_mut(shard), records.last())
                    && !mark.outside.as_ref().is_some_and(|(_, outside)| outside.is_other_history)
                {
                    mark.position = mark.position.max(last.seq);
                    mark.outside = None;
                }
            }
        });
    }

    fn caught_up_at(&self, shards: &[ShardId], at: Instant) {
        self.with(|marks| {
            for shard in shards {
                if let Some(mark) = marks.get_mut(shard).filter(|mark| mark.outside.is_none()) {
                    mark.caught_up = at;
                }
            }
        });
    }

    fn with<T>(&self, view: impl FnOnce(&mut BTreeMap<ShardId, Mark>) -> T) -> T {
        view(&mut self.0.lock().expect("no panic under this lock"))
    }
}

/// The loops that read, one for the shards of each owner. They end with it, wherever they are.
pub(crate) struct Readers<R> {
    reader: Arc<R>,
    log: Arc<dyn EventLog>,
    topic: Topic,
    marks: Marks,
    loops: Vec<(Vec<ShardId>, Running)>,
}

impl<R: Reader> Readers<R> {
    pub(crate) fn new(reader: Arc<R>, log: Arc<dyn EventLog>, topic: Topic, marks: Marks) -> Self {
        Self { reader, log, topic, marks, loops: Vec::new() }
    }

    /// Reads these shards, which have marks, from now on and no others. The loop of a group that is as it was goes on.
    pub(crate) fn read(&mut self, shards: Vec<ShardId>) {
        let groups = self.log.groups(self.topic, shards);
        self.loops.retain(|(group, _)| groups.contains(group));
        for group in groups {
            if group.is_empty() || self.loops.iter().any(|(running, _)| *running == group) {
                continue;
            }
            let reading = read(Arc::clone(&self.reader), Arc::clone(&self.log), self.topic, self.marks.clone(), group.clone());
            self.loops.push((group, Running(tokio::spawn(reading))));
        }
    }
}

/// A task that ends with this.
struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn read<R: Reader>(reader: Arc<R>, log: Arc<dyn EventLog>, topic: Topic, marks: Marks, shards: Vec<ShardId>) {
    loop {
        let asked = Instant::now();
        match log.fetch(topic, &marks.of(&shards), FETCH_BYTES, FETCH_WAIT).await {
            // Too early: whoever was asked does not serve them, or not any more.
            Ok(fetched) if fetched.is_empty() && asked.elapsed() < FETCH_WAIT / 2 => sleep(LINGER).await,
            Ok(fetched) if fetched.is_empty() => marks.caught_up_at(&shards, Instant::now()),
            Ok(mut fetched) => {
                fetched.retain(|fetched| marks.epoch(fetched.shard) == Some(reader.epoch(fetched.shard)));
                if fetched.is_empty() {
                    sleep(LINGER).await;
                    continue;
                }
                let up_to = up_to(&fetched);
                reader.take(&fetched).await;
                marks.advance(&fetched);
                marks.caught_up_at(&shards, up_to);
                let records: usize = fetched.iter().map(|fetched| fetched.records.len()).sum();
                sleep(if records < BUSY { LINGER } else { LINGER_BUSY }).await;
            }
            Err(error @ LogError::OutOfRange { source_shard, position, head, .. }) => {
                let (shard, reason) = (source_shard.shard, error.to_string());
                marks.is_outside(Outside { shard, position, head, reason, is_other_history: false });
                if let Some((shard, position)) = reader.outside(&error) {
                    marks.begin(shard, position);
                }
            }
            Err(error) => {
                tracing::debug!(?topic, %error, "a log is unavailable");
                sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// The moment up to which everything that was committed is in what was fetched.
fn up_to(fetched: &[Fetched]) -> Instant {
    let last = fetched.iter().filter_map(|fetched| fetched.records.last()).map(|record| record.at).min();
    let age = last.map(|at| Timestamp::now().duration_since(at)).and_then(|age| Duration::try_from(age).ok());
    let now = Instant::now();
    now.checked_sub(age.unwrap_or_default()).unwrap_or(now)
}

/// Waits until one of these has news, or for long enough.
pub(crate) async fn changed(news: &mut [watch::Receiver<u64>], within: Duration) {
    let one = news.iter_mut().map(|news| {
        async {
            // Who has ended has no more news.
            if news.changed().await.is_err() {
                std::future::pending().await
            }
        }
        .boxed()
    });
    let any = async {
        match one.len() {
            0 => std::future::pending().await,
            _ => drop(select_all(one).await),
        }
    };
    let _ = timeout(within, any).await;
}
