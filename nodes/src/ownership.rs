//! Membership of one service on this node: renews the lease, watches the others, takes what nobody serves.
//!
//! Postgres arbitrates; everything here is a loop that may die at any line and begin again.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use rookery_actors::{
    ids::{Incarnation, ShardId},
    runtime::{Directory, DirectoryError, Granted, MemberRow, Runtime, ShardRow},
    service::Service,
};
use tokio::{sync::watch, task::JoinHandle, time::MissedTickBehavior};
use uuid::Uuid;

use crate::placement;

/// Shards opened at a time: a takeover must not starve what already runs.
const OPEN_GROUP: usize = 64;

/// How long a silent member keeps what it owns.
#[derive(Clone, Copy, Debug)]
pub struct LeaseSettings {
    /// The lease's length.
    pub ttl: Duration,
    /// Between two renewals.
    pub renew_every: Duration,
}

/// A member at work; ends with [`Ownership::leave`].
pub struct Ownership {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    owned: watch::Receiver<usize>,
}

impl Ownership {
    /// Prepares the directory, joins it and begins to serve.
    ///
    /// `alone`: the caller holds the lock of the data folder, so whoever was a member under this name is dead.
    /// `changed` is called when shards came or went, before they answer.
    ///
    /// # Errors
    /// When the directory does not answer, or belongs to another number of shards.
    pub async fn start<S: Service>(
        runtime: Runtime<S>,
        node: &str,
        lease: LeaseSettings,
        alone: bool,
        changed: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<Self, DirectoryError> {
        let mut member = Member {
            node: node.to_owned(),
            lease,
            directory: open(&runtime).await?,
            runtime,
            changed,
            seen: HashMap::new(),
            renewed: Instant::now(),
        };
        member.directory.prepare(member.runtime.shards()).await?;
        if alone {
            for former in member.directory.members().await?.into_iter().filter(|former| former.node == node) {
                member.directory.declare_dead(former.incarnation, None).await?;
            }
        }
        member.join().await?;
        member.renew().await?;
        member.reconcile().await?;
        let (stop, stopped) = watch::channel(false);
        let (count, owned) = watch::channel(member.runtime.owned().len());
        let task = tokio::spawn(member.run(stopped, count));
        Ok(Self { stop, task, owned })
    }

    /// How many shards are served here.
    pub fn owned(&self) -> usize {
        *self.owned.borrow()
    }

    /// Stops renewing and gives everything up. The runtime must have answered what waited for commits.
    pub async fn leave(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the membership ended badly");
        }
    }
}

struct Member<S: Service> {
    runtime: Runtime<S>,
    node: String,
    lease: LeaseSettings,
    directory: Directory,
    changed: Arc<dyn Fn() + Send + Sync>,
    seen: HashMap<Incarnation, Sighting>,
    renewed: Instant,
}

/// How a member's renewals look from here.
struct Sighting {
    renewed: i64,
    /// For how long we have looked and seen no renewal; only time in which our own polls worked counts.
    silent: Duration,
    last_look: Instant,
}

async fn open<S: Service>(runtime: &Runtime<S>) -> Result<Directory, DirectoryError> {
    Directory::open(runtime.database(), S::NAME, runtime.incarnation()).await
}

impl<S: Service> Member<S> {
    async fn run(mut self, mut stopped: watch::Receiver<bool>, count: watch::Sender<usize>) {
        let mut tick = tokio::time::interval(self.lease.renew_every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = stopped.changed() => break,
            }
            if let Err(error) = self.step().await {
                tracing::warn!(service.name = S::NAME, %error, "the membership could not be renewed");
                self.seen.clear();
                if self.directory.is_closed()
                    && let Ok(directory) = open(&self.runtime).await
                {
                    self.directory = directory;
                }
            }
            count.send_replace(self.runtime.owned().len());
        }
        self.runtime.lease().revoke();
        for (shard, ..) in self.runtime.owned() {
            self.runtime.close(shard);
        }
        if let Err(error) = self.directory.declare_dead(self.runtime.incarnation(), None).await {
            tracing::debug!(service.name = S::NAME, %error, "could not sign off; the lease runs out by itself");
        }
    }

    async fn step(&mut self) -> Result<(), DirectoryError> {
        match self.renew().await {
            Err(DirectoryError::Dead) => self.rejoin().await?,
            other => other?,
        }
        self.reconcile().await
    }

    async fn join(&mut self) -> Result<(), DirectoryError> {
        self.directory.join(self.runtime.incarnation(), &self.node).await
    }

    /// Dead in this database, alive as a process: comes back as somebody else (rule 7).
    async fn rejoin(&mut self) -> Result<(), DirectoryError> {
        tracing::warn!(service.name = S::NAME, "declared dead, rejoining under a new incarnation");
        // All of them: one whose last commit is in doubt is not served, and must not come back under the new name.
        for shard in (0..self.runtime.shards()).map(ShardId) {
            self.runtime.close(shard);
        }
        self.runtime.reincarnate(Incarnation(Uuid::new_v4()));
        self.directory = open(&self.runtime).await?;
        self.join().await?;
        self.renew().await
    }

    async fn renew(&mut self) -> Result<(), DirectoryError> {
        // A member that cannot commit must not keep others from serving (rule 10).
        if !self.runtime.commits_work(self.lease.ttl * 2) {
            tracing::warn!(service.name = S::NAME, "commits have not worked for two leases, not renewing");
            return Ok(());
        }
        let sent = self.directory.renew(self.runtime.incarnation(), self.lease.ttl).await?;
        self.runtime.lease().renewed(sent, self.lease.ttl);
        self.renewed = Instant::now();
        Ok(())
    }

    /// Declares the silent dead, gives up what is no longer ours, takes what nobody has.
    async fn reconcile(&mut self) -> Result<(), DirectoryError> {
        let members = self.directory.members().await?;
        let living = self.bury_the_silent(members).await?;
        let shards = self.directory.shards().await?;
        self.drop_lost(&shards);
        if self.runtime.lease().is_valid() {
            self.take_orphans(&living, &shards).await?;
        }
        Ok(())
    }

    async fn bury_the_silent(&mut self, members: Vec<MemberRow>) -> Result<Vec<MemberRow>, DirectoryError> {
        let patience = self.lease.ttl.mul_f64(1.1);
        // A poll that came late tells nothing about the time before it.
        let gap_max = self.lease.renew_every * 2;
        let now = Instant::now();
        let mut living = Vec::new();
        for member in members {
            let sighting = self.seen.entry(member.incarnation).or_insert(Sighting {
                renewed: member.renewed,
                silent: Duration::ZERO,
                last_look: now,
            });
            if sighting.renewed == member.renewed {
                sighting.silent += now.duration_since(sighting.last_look).min(gap_max);
            } else {
                (sighting.renewed, sighting.silent) = (member.renewed, Duration::ZERO);
            }
            sighting.last_look = now;
            let silent = sighting.silent >= patience && member.incarnation != self.runtime.incarnation();
            if silent && self.directory.declare_dead(member.incarnation, Some(member.renewed)).await? {
                tracing::warn!(service.name = S::NAME, node.id = member.node, "a member fell silent, it is dead");
                continue;
            }
            living.push(member);
        }
        let known: HashSet<Incarnation> = living.iter().map(|member| member.incarnation).collect();
        self.seen.retain(|incarnation, _| known.contains(incarnation));
        Ok(living)
    }

    fn drop_lost(&self, shards: &[ShardRow]) {
        let me = self.runtime.incarnation();
        let lost: Vec<ShardId> = self
            .runtime
            .owned()
            .into_iter()
            .filter(|(shard, epoch, _)| {
                let row = &shards[shard.index()];
                // A lower epoch in the directory is only older news than our own takeover from ourselves.
                row.epoch > *epoch || (row.epoch == *epoch && row.owner != Some(me))
            })
            .map(|(shard, ..)| shard)
            .collect();
        for shard in &lost {
            tracing::warn!(service.name = S::NAME, shard.id = %shard, "lost a shard to another owner");
            self.runtime.close(*shard);
        }
        if !lost.is_empty() {
            (self.changed)();
        }
    }

    async fn take_orphans(&mut self, living: &[MemberRow], shards: &[ShardRow]) -> Result<(), DirectoryError> {
        let me = self.runtime.incarnation();
        let alive: HashSet<Incarnation> = living.iter().map(|member| member.incarnation).collect();
        let mine = |row: &&ShardRow| {
            placement::owner(row.id, living.iter().map(|member| member.node.as_str())) == Some(self.node.as_str())
        };
        let orphaned = |row: &&ShardRow| match row.owner {
            None => true,
            // Ours, but not served: a start that died between the takeover and the opening.
            Some(owner) if owner == me => !self.runtime.is_held(row.id),
            Some(owner) => !alive.contains(&owner),
        };
        let mut by_owner: HashMap<Option<Incarnation>, Vec<ShardRow>> = HashMap::new();
        for row in shards.iter().filter(orphaned).filter(mine) {
            by_owner.entry(row.owner).or_default().push(*row);
        }
        for (owner, rows) in by_owner {
            if let Some(dead) = owner.filter(|owner| *owner != me) {
                self.directory.end_sessions(dead).await?;
            }
            let granted = self.directory.take_over(&rows, owner, me).await?;
            self.serve(granted).await?;
        }
        Ok(())
    }

    async fn serve(&self, granted: Vec<Granted>) -> Result<(), DirectoryError> {
        if granted.is_empty() {
            return Ok(());
        }
        let ids: Vec<ShardId> = granted.iter().map(|granted| granted.shard).collect();
        let mut inbox: HashMap<ShardId, Vec<_>> = HashMap::new();
        for (shard, source, position) in self.directory.inbox(&ids).await? {
            inbox.entry(shard).or_default().push((source, position));
        }
        (self.changed)();
        for group in granted.chunks(OPEN_GROUP) {
            for granted in group {
                let positions = inbox.remove(&granted.shard).unwrap_or_default();
                if let Err(error) = self.runtime.open(*granted, positions).await {
                    tracing::error!(service.name = S::NAME, shard.id = %granted.shard, %error, "a shard could not be opened");
                }
            }
            tokio::task::yield_now().await;
        }
        // Heads of lists may have been read while shards were missing.
        (self.changed)();
        tracing::info!(service.name = S::NAME, shards = granted.len(), "serving {} more shards of {}", granted.len(), S::NAME);
        Ok(())
    }
}
