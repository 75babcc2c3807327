//! The replicas of index partitions that this node holds, and what the others are known to.

use std::{
    collections::BTreeMap,
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
    index::{Partition, PartitionError, PartitionReader, Settings},
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

/// An index partition on this node. Its follower closes the index when it is dropped.
pub(crate) struct Replica {
    pub(crate) reader: PartitionReader,
    pub(crate) signals: Signals,
    /// Tells the follower by its end.
    _held: watch::Sender<()>,
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
    rebuild: Mutex<Option<(Uuid, watch::Receiver<Build>)>>,
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

    pub(crate) fn all(&self) -> Vec<Arc<Replica>> {
        self.held.read().expect("no panic under this lock").values().cloned().collect()
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
        let mut build = {
            let mut rebuild = self.rebuild.lock().expect("no panic under this lock");
            match &*rebuild {
                Some((last, build)) if *last == run => build.clone(),
                _ => {
                    let (tell, build) = watch::channel(Build::Building);
                    let replicas = self.all();
                    tokio::spawn(async move { tell.send_replace(rebuild_all(&replicas, patience).await) });
                    *rebuild = Some((run, build.clone()));
                    build
                }
            }
        };
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

async fn open(runtime: &Runtime<SearchService>, partition: ShardId, folder: &Path) -> Result<(), PartitionError> {
    let dir = folder.join(partition.to_string());
    let index = spawn_blocking(move || Partition::open(&dir, Settings::default())).await.expect("opening does not panic")?;
    let (held, dropped) = watch::channel(());
    let signals = Signals::default();
    let replica = Replica { reader: index.reader(), signals: signals.clone(), _held: held };
    let follower = Follower::new(runtime.clone(), partition, index, signals, dropped);
    let replicas = &runtime.service().replicas;
    let mut followers = replicas.followers.lock().expect("no panic under this lock");
    followers.retain(|follower| !follower.is_finished());
    followers.push(tokio::spawn(follower.run()));
    replicas.held.write().expect("no panic under this lock").insert(partition, Arc::new(replica));
    Ok(())
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
