//! The replicas of index partitions that this node holds, and what the others are known to.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

use super::{
    Answer, Query, SearchService,
    follower::Follower,
    index::{Partition, PartitionError, PartitionReader, Settings, View},
    placing::{Holdings, maker, placement},
    signals::Signals,
};
use crate::{
    episodes,
    ids::ShardId,
    runtime::{NodeName, Runtime},
    service::Service,
};

/// Between two looks at what the others have, and at what we should.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Between two such looks because something was not found where it was.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How long who should hold what must stay the same before a replica is built of what others have: a node that restarts is
/// back before.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// How long another node may take to say what it has.
const HOLDINGS_WITHIN: Duration = Duration::from_millis(500);

/// How long a stop waits for the indexes: longer than a merge, shorter than an operator's patience.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Behind the number of a partition, in the name of its folder: what the layout before has is left alone beside it.
const OURS: &str = ".v4";

/// An index partition on this node. Its follower closes the index when it is dropped.
pub(crate) struct Replica {
    pub(crate) reader: PartitionReader,
    pub(crate) signals: Signals,
    /// What takes its place as soon as it has caught up.
    next: Mutex<Option<Arc<Replica>>>,
    closed: Closed,
    /// Tells the follower by its end.
    _held: watch::Sender<()>,
}

/// Whether an index was closed.
#[derive(Clone)]
struct Closed(Arc<watch::Sender<bool>>);

impl Default for Closed {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Closed {
    async fn wait(&self) {
        // The sender lives as long as we do.
        let _ = self.0.subscribe().wait_for(|closed| *closed).await;
    }
}

/// What this node holds and knows.
#[derive(Default)]
pub(crate) struct Replicas {
    held: RwLock<BTreeMap<ShardId, Arc<Replica>>>,
    others: RwLock<Arc<BTreeMap<NodeName, Holdings>>>,
    /// Our name, and who should hold what.
    placed: RwLock<Option<(NodeName, Vec<Vec<NodeName>>)>>,
    followers: Mutex<Vec<JoinHandle<()>>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    runs: Mutex<Runs>,
    /// When we last looked for what was not where it was thought to be.
    looked: tokio::sync::Mutex<Option<Instant>>,
}

/// How far a node has come with building its indexes anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Build {
    /// The old ones serve.
    Building,
    /// The new ones do.
    Built,
    /// One of them could not be built for so long; why. It will be as soon as that has passed.
    Kept(String),
}

/// The latest runs of building all indexes anew: each node may ask for one, and asks again and again how far it is.
#[derive(Default)]
struct Runs(VecDeque<(Uuid, watch::Receiver<Build>)>);

/// So many are remembered. One that is forgotten begins again when it is asked for.
const RUNS_MAX: usize = 32;

impl Runs {
    fn of(&mut self, run: Uuid, begin: impl FnOnce() -> watch::Receiver<Build>) -> watch::Receiver<Build> {
        if let Some((_, build)) = self.0.iter().find(|(known, _)| *known == run) {
            return build.clone();
        }
        let build = begin();
        self.0.push_back((run, build.clone()));
        if self.0.len() > RUNS_MAX {
            self.0.pop_front();
        }
        build
    }
}

/// Where a node keeps its replicas.
pub(crate) struct Home {
    /// The node's name.
    pub(crate) node: NodeName,
    pub(crate) folder: PathBuf,
}

impl Replicas {
    pub(crate) fn get(&self, partition: ShardId) -> Option<Arc<Replica>> {
        self.held.read().expect("no panic under this lock").get(&partition).cloned()
    }

    /// Lets one replica take the place of another, if that is still held.
    fn replace(&self, partition: ShardId, former: &Arc<Replica>, next: Arc<Replica>) {
        let mut held = self.held.write().expect("no panic under this lock");
        if let Some(replica) = held.get_mut(&partition)
            && Arc::ptr_eq(replica, former)
        {
            *replica = next;
        }
    }

    /// All of them, those included that will take the place of one.
    pub(crate) fn all(&self) -> Vec<Arc<Replica>> {
        let held = self.held.read().expect("no panic under this lock");
        let next = |replica: &Arc<Replica>| replica.next.lock().expect("no panic under this lock").clone();
        held.values().flat_map(|replica| [Some(Arc::clone(replica)), next(replica)]).flatten().collect()
    }

    /// What can be searched here.
    pub(crate) fn views(&self) -> Vec<View> {
        self.held.read().expect("no panic under this lock").values().map(|replica| replica.reader.view()).collect()
    }

    /// What this node has.
    pub(crate) fn holdings(&self) -> Holdings {
        let held = self.held.read().expect("no panic under this lock");
        held.iter().map(|(partition, replica)| (*partition, replica.signals.visible.is_known())).collect()
    }

    /// What the others have, as of the last look.
    pub(crate) fn others(&self) -> Arc<BTreeMap<NodeName, Holdings>> {
        Arc::clone(&self.others.read().expect("no panic under this lock"))
    }

    /// The other node that makes the segments of a partition which we hold too; none: we make them.
    pub(crate) fn maker(&self, partition: ShardId) -> Option<NodeName> {
        let caught_up = self.get(partition)?.signals.visible.is_known();
        let placed = self.placed.read().expect("no panic under this lock");
        let (me, wanted) = placed.as_ref()?;
        maker(partition, wanted.get(partition.index())?, (me, caught_up), &self.others())
    }

    /// How many documents were indexed here, and not copied.
    pub(crate) fn indexed(&self) -> u64 {
        self.all().iter().map(|replica| replica.signals.indexed.count()).sum()
    }

    /// Another node did not have what it was asked for: it is not asked again before the next look.
    pub(crate) fn forget(&self, node: &NodeName, partitions: &[ShardId]) {
        let mut others = self.others.write().expect("no panic under this lock");
        if let Some(holdings) = Arc::make_mut(&mut *others).get_mut(node) {
            holdings.retain(|(partition, _)| !partitions.contains(partition));
        }
    }

    /// Builds the indexes of this node anew, once for this `run`; how far that is after a while.
    pub(crate) async fn rebuild(&self, run: Uuid, patience: Duration, wait: Duration) -> Build {
        let begin = || {
            let (tell, build) = watch::channel(Build::Building);
            let replicas = self.all();
            tokio::spawn(async move { tell.send_replace(rebuild_all(&replicas, patience).await) });
            build
        };
        let mut build = self.runs.lock().expect("no panic under this lock").of(run, begin);
        let _ = timeout(wait, build.wait_for(|build| *build != Build::Building)).await;
        build.borrow().clone()
    }

    /// Closes all replicas and waits until their indexes are closed.
    pub(crate) async fn close(&self) {
        if let Some(keeper) = self.keeper.lock().expect("no panic under this lock").take() {
            keeper.abort();
        }
        self.held.write().expect("no panic under this lock").clear();
        let followers = std::mem::take(&mut *self.followers.lock().expect("no panic under this lock"));
        let deadline = Instant::now() + CLOSE_PATIENCE;
        for follower in followers {
            while !follower.is_finished() && Instant::now() < deadline {
                sleep(Duration::from_millis(5)).await;
            }
            // One that waits for a database which says nothing: its index is as of its last commit.
            follower.abort();
        }
    }
}

async fn rebuild_all(replicas: &[Arc<Replica>], patience: Duration) -> Build {
    let all = try_join_all(replicas.iter().map(async |replica| {
        tokio::select! {
            () = replica.signals.rebuilds.one() => Ok(()),
            reason = replica.signals.obstacle.lasts(patience) => Err(reason),
        }
    }));
    all.await.map_or_else(Build::Kept, |_| Build::Built)
}

/// Keeps the replicas of a node to what they should be, for as long as the runtime lives. `home`: none on a node that holds
/// none and only asks.
///
/// # Errors
/// When a folder cannot be used; later that is logged, and tried again.
pub(crate) async fn keep(runtime: &Runtime<SearchService>, home: Option<Home>) -> Result<(), PartitionError> {
    if let Some(home) = &home {
        open_missing(runtime, home, &placed(runtime, home), true).await?;
    }
    let keeper = tokio::spawn(look_around(runtime.clone(), home));
    *runtime.service().replicas.keeper.lock().expect("no panic under this lock") = Some(keeper);
    Ok(())
}

async fn look_around(runtime: Runtime<SearchService>, home: Option<Home>) {
    let Some(router) = runtime.router().cloned() else {
        // Alone: everything is here, and stays.
        return;
    };
    let mut changes = router.changes();
    let (mut wanted, mut since) = (Vec::new(), Instant::now());
    while !runtime.is_stopped() {
        look_at_others(&runtime).await;
        if let Some(home) = &home {
            let now = placed(&runtime, home);
            if now != wanted {
                (wanted, since) = (now, Instant::now());
                let placed = (Arc::clone(&home.node), wanted.clone());
                *runtime.service().replicas.placed.write().expect("no panic under this lock") = Some(placed);
            }
            if let Err(error) = open_missing(&runtime, home, &wanted, since.elapsed() >= SETTLED_AFTER).await {
                episodes::error("replicas of indexes cannot be opened", SearchService::NAME, &error);
            }
            close_surplus(&runtime, home, &wanted);
        }
        let _ = timeout(LOOK_EVERY, changes.changed()).await;
    }
}

/// Who should hold which partition, as far as we know who there is.
fn placed(runtime: &Runtime<SearchService>, home: &Home) -> Vec<Vec<NodeName>> {
    let mut members = runtime.router().map(|router| router.peers(SearchService::NAME)).unwrap_or_default();
    members.push(Arc::clone(&home.node));
    members.sort_unstable();
    placement(runtime.shards(), &members)
}

/// Opens what should be here and is not; what others have only once it is `settled` that we should have it too.
async fn open_missing(
    runtime: &Runtime<SearchService>,
    home: &Home,
    wanted: &[Vec<NodeName>],
    settled: bool,
) -> Result<(), PartitionError> {
    let replicas = &runtime.service().replicas;
    let others = replicas.others();
    for (partition, holders) in (0..).map(ShardId).zip(wanted) {
        let elsewhere = others.values().flatten().any(|(held, _)| *held == partition);
        if holders.contains(&home.node) && replicas.get(partition).is_none() && (settled || !elsewhere) {
            open(runtime, partition, &home.folder).await?;
        }
    }
    Ok(())
}

/// Opens a partition. Where there is an index of the layout before, that one serves and is kept up until one of ours has
/// been built beside it.
async fn open(runtime: &Runtime<SearchService>, partition: ShardId, folder: &Path) -> Result<(), PartitionError> {
    let (ours, before) = (folder.join(format!("{partition}{OURS}")), folder.join(partition.to_string()));
    let former = before.clone();
    let (index, former) = spawn_blocking(move || {
        let index = Partition::open(&ours, Settings::default())?;
        Ok::<_, PartitionError>((index, Partition::open_former(&former, Settings::default())?))
    })
    .await
    .expect("opening does not panic")?;
    let replicas = &runtime.service().replicas;
    let replica = Arc::new(follow(runtime, partition, index));
    let serves = match former {
        None => {
            remove(&before);
            replica
        }
        Some(former) => {
            episodes::note("indexes of the release before serve until they are built anew", SearchService::NAME, 1);
            let former = Replica { next: Mutex::new(Some(Arc::clone(&replica))), ..follow(runtime, partition, former) };
            let former = Arc::new(former);
            let (runtime, waits) = (runtime.clone(), Arc::downgrade(&former));
            let (signals, ended) = (replica.signals.clone(), replica.closed.clone());
            // Whoever drops the one drops the other.
            drop(replica);
            tokio::spawn(async move {
                tokio::select! {
                    () = signals.visible.known() => {}
                    () = ended.wait() => return,
                }
                let Some(former) = waits.upgrade() else { return };
                let Some(next) = former.next.lock().expect("no panic under this lock").take() else { return };
                runtime.service().replicas.replace(partition, &former, next);
                let closed = former.closed.clone();
                drop(former);
                closed.wait().await;
                let _ = spawn_blocking(move || remove(&before)).await;
            });
            former
        }
    };
    replicas.held.write().expect("no panic under this lock").insert(partition, serves);
    Ok(())
}

/// Lets an index follow the documents, until its replica is dropped.
fn follow(runtime: &Runtime<SearchService>, partition: ShardId, index: Partition) -> Replica {
    let (held, dropped) = watch::channel(());
    let (signals, closed) = (Signals::default(), Closed::default());
    let reader = index.reader();
    let follower = Follower::new(runtime.clone(), partition, index, signals.clone(), dropped);
    let ended = closed.clone();
    let mut followers = runtime.service().replicas.followers.lock().expect("no panic under this lock");
    followers.retain(|follower| !follower.is_finished());
    followers.push(tokio::spawn(async move {
        follower.run().await;
        ended.0.send_replace(true);
    }));
    Replica { reader, signals, next: Mutex::default(), closed, _held: held }
}

/// Takes away an index of the layout before that is of no use any more.
fn remove(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(index.dir = %folder.display(), %error, "an index of the release before cannot be removed");
        }
        _ => {}
    }
}

/// Learns what the others have, unless somebody did just now.
pub(crate) async fn look_again(runtime: &Runtime<SearchService>) {
    let mut looked = runtime.service().replicas.looked.lock().await;
    if looked.is_none_or(|looked| looked.elapsed() >= LOOK_AGAIN_AFTER) {
        look_at_others(runtime).await;
        *looked = Some(Instant::now());
    }
}

/// Learns what the others have.
async fn look_at_others(runtime: &Runtime<SearchService>) {
    let deadline = Instant::now() + HOLDINGS_WITHIN;
    let answers = runtime.query_others(&Query::Holdings, deadline).await;
    let known = answers.into_iter().filter_map(|(node, answer)| match answer {
        Ok(Answer::Holds(holdings)) => Some((node, holdings)),
        _ => None,
    });
    let others = Arc::new(known.collect());
    *runtime.service().replicas.others.write().expect("no panic under this lock") = others;
}

/// Closes what belongs to others by now, once all of them have caught up with it.
fn close_surplus(runtime: &Runtime<SearchService>, home: &Home, wanted: &[Vec<NodeName>]) {
    let replicas = &runtime.service().replicas;
    let others = replicas.others();
    let has = |node: &NodeName, partition| others.get(node).is_some_and(|holdings| holdings.contains(&(partition, true)));
    let mut held = replicas.held.write().expect("no panic under this lock");
    held.retain(|partition, _| {
        let holders = &wanted[partition.index()];
        let surplus = !holders.contains(&home.node) && holders.iter().all(|holder| has(holder, *partition));
        if surplus {
            // Its files stay: should it come back, it goes on from there.
            episodes::note("indexes have moved to other nodes", SearchService::NAME, 1);
        }
        !surplus
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was broken: only the last run was known. Three nodes that each wanted all indexes anew began each other's again with
    /// every question, and none was ever told that it was done.
    #[test]
    fn runs_of_several_nodes_begin_once_each() {
        let (mut runs, mut begun) = (Runs::default(), 0);
        for run in [1, 2, 3, 1, 2, 3, 1].map(Uuid::from_u128) {
            runs.of(run, || {
                begun += 1;
                watch::channel(Build::Building).1
            });
        }
        assert_eq!(begun, 3);
    }
}
