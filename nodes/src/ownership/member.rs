//! The loop of a member: renew, look, and do what follows from it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rookery_actors::{
    episodes::{self, with_causes},
    ids::{Incarnation, ShardId},
    runtime::{Directory, DirectoryError, Granted, MemberRow, Runtime, ShardRow},
    service::Service,
};
use tokio::{sync::watch, time::MissedTickBehavior};
use uuid::Uuid;

use super::{
    Membership, close_all, former,
    looking::Looking,
    moves::Moves,
    reach::Reach,
    view::{Board, Draining, View},
};

/// What is logged while the directory does not answer.
const NOT_RENEWED: &str = "the membership cannot be renewed";
/// How long a start waits for the sessions of the committer before it says what keeps them.
const SESSIONS_WITHIN: Duration = Duration::from_secs(5);
/// Shards opened at a time: a takeover must not starve what already runs.
const OPEN_GROUP: usize = 64;

pub(super) struct Member<S: Service> {
    runtime: Runtime<S>,
    membership: Membership,
    directory: Directory,
    looking: Looking,
    moves: Moves<S>,
    reach: Reach,
    board: Arc<Board>,
    /// The directory knows that we want no more shards.
    draining: bool,
}

async fn open<S: Service>(runtime: &Runtime<S>) -> Result<Directory, DirectoryError> {
    Directory::open(runtime.database(), S::NAME, runtime.incarnation()).await
}

impl<S: Service> Member<S> {
    /// Enters the directory and takes what it should.
    pub(super) async fn join(runtime: Runtime<S>, membership: Membership, board: Arc<Board>) -> Result<Self, DirectoryError> {
        let mut member = Self {
            directory: open(&runtime).await?,
            looking: Looking::new(membership.lease, Arc::clone(&board), Some(runtime.incarnation())),
            moves: Moves::new(runtime.clone(), membership.clone(), Arc::clone(&board)),
            reach: Reach::default(),
            runtime,
            membership,
            board,
            draining: false,
        };
        member.directory.prepare(member.runtime.shards()).await?;
        former::make_way(&member.directory, &member.membership, S::NAME).await?;
        // Before anything is served: who cannot commit is of no use as an owner.
        let sessions = member.runtime.keep_sessions(SESSIONS_WITHIN).await;
        sessions.map_err(|failure| DirectoryError::Sessions(failure.to_string()))?;
        member.enter().await?;
        member.renew().await?;
        member.look().await?;
        member.tell();
        Ok(member)
    }

    /// Renews and looks until it is stopped, then gives everything up.
    pub(super) async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let lease = self.membership.lease;
        let mut tick = tokio::time::interval(lease.renew_every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let board = Arc::clone(&self.board);
        loop {
            let renew = tokio::select! {
                _ = tick.tick() => true,
                () = board.poked() => false,
                // A group has landed, and whoever is there by now gets the next one; or shards may go on that had just come.
                () = self.moves.landed() => false,
                _ = stopped.changed() => break,
            };
            // A session that went silent would hold us for ever. What the step was about to do, the next one finds.
            let patience = lease.ttl * 4;
            let step = tokio::select! {
                step = tokio::time::timeout(patience, self.step(renew)) => step,
                _ = stopped.changed() => break,
            };
            let step = step.unwrap_or(Err(DirectoryError::Timeout(patience)));
            if step.is_ok() {
                episodes::over(NOT_RENEWED, S::NAME);
            }
            if let Err(error) = step {
                if let DirectoryError::Database(error) = &error {
                    self.runtime.database().note(error);
                }
                episodes::warn(NOT_RENEWED, S::NAME, with_causes(&error));
                self.looking.blink();
                let silent = matches!(error, DirectoryError::Timeout(_));
                if (silent || self.directory.is_closed())
                    && let Ok(Ok(directory)) = tokio::time::timeout(patience, open(&self.runtime)).await
                {
                    self.directory = directory;
                }
            }
            self.tell();
        }
        self.moves.settle(lease.ttl).await;
        self.runtime.lease().revoke();
        close_all(&self.runtime);
        self.tell();
        let sign_off = self.directory.declare_dead(self.runtime.incarnation(), None);
        let signed_off = tokio::time::timeout(lease.ttl, sign_off).await;
        if let Err(error) = signed_off.unwrap_or(Err(DirectoryError::Timeout(lease.ttl))) {
            tracing::debug!(service.name = S::NAME, %error, "could not sign off; the lease runs out by itself");
        }
    }

    async fn step(&mut self, renew: bool) -> Result<(), DirectoryError> {
        if renew {
            match self.renew().await {
                Err(DirectoryError::Dead) => self.rejoin().await?,
                other => other?,
            }
        }
        self.look().await
    }

    async fn enter(&mut self) -> Result<(), DirectoryError> {
        let Membership { node, address, former, lease, .. } = &self.membership;
        former.begin(S::NAME, self.runtime.incarnation());
        self.draining = false;
        self.directory.join(self.runtime.incarnation(), node, address.as_deref(), Some(lease.ttl)).await
    }

    /// Dead in this database, alive as a process: comes back as somebody else (rule 7), unless another node has the name by now.
    async fn rejoin(&mut self) -> Result<(), DirectoryError> {
        close_all(&self.runtime);
        former::make_way(&self.directory, &self.membership, S::NAME).await?;
        tracing::warn!(service.name = S::NAME, "declared dead, rejoining under a new incarnation");
        self.runtime.reincarnate(Incarnation(Uuid::new_v4()));
        self.looking.me = Some(self.runtime.incarnation());
        self.directory = open(&self.runtime).await?;
        self.enter().await?;
        self.renew().await
    }

    async fn renew(&mut self) -> Result<(), DirectoryError> {
        let ttl = self.membership.lease.ttl;
        // A member that cannot commit must not keep others from serving (rule 10).
        if !self.runtime.commits_work(ttl * 2) {
            episodes::warn("commits have not worked for two leases, not renewing", S::NAME, "");
            return Ok(());
        }
        let sent = self.directory.renew(self.runtime.incarnation(), ttl).await?;
        self.runtime.lease().renewed(sent, ttl);
        Ok(())
    }

    /// Declares the silent dead, gives up what is no longer ours, takes what is and what nobody has, and hands over
    /// what others should have.
    async fn look(&mut self) -> Result<(), DirectoryError> {
        self.take_up_granted().await?;
        let leaves = *self.board.draining.borrow() != Draining::No;
        let drains = leaves || self.reach.is_cut_off();
        if drains != self.draining {
            self.directory.set_draining(self.runtime.incarnation(), drains).await?;
            self.draining = drains;
        }
        let (members, shards) = self.looking.ask(&self.directory).await?;
        self.look_around(&members);
        let (living, buried) = self.bury_the_silent(members).await?;
        let view = self.looking.publish(living, shards);
        self.drop_lost(&view.shards);
        if self.runtime.lease().is_valid() {
            let taken = self.take_ours(&view).await? + self.take_orphans(&view, &buried).await?;
            if taken > 0 {
                // What we have done others here should see.
                self.board.poke();
            }
            let eligible = self.looking.eligible(&view.members);
            if self.draining || self.looking.is_acquainted() {
                let awake: Vec<&MemberRow> = eligible.iter().copied().filter(|member| self.looking.is_awake(member)).collect();
                self.moves.begin(&view, &awake).await?;
            }
            if leaves && self.draining && (eligible.is_empty() || (self.runtime.owned().is_empty() && self.moves.is_idle())) {
                self.board.draining.send_replace(Draining::Done);
            }
        }
        Ok(())
    }

    /// Whether we are of use where we are: shards that most of the others cannot ask for should be with them.
    fn look_around(&mut self, members: &[MemberRow]) {
        let others = members.iter().filter(|member| member.node != self.membership.node);
        self.reach.look(others.map(|member| (member, self.membership.announce.reaches(&member.node))));
        let cut_off = self.reach.is_cut_off();
        if self.board.cut_off.swap(cut_off, Ordering::Relaxed) != cut_off {
            match cut_off {
                true => tracing::warn!(service.name = S::NAME, "cut off from most of the others, handing over to them"),
                false => tracing::info!(service.name = S::NAME, "most of the others are in reach again"),
            }
            self.board.poke();
        }
    }

    /// Publishes what is served here.
    fn tell(&self) {
        let mut served = vec![0; usize::from(self.runtime.shards())];
        for (shard, epoch, _) in self.runtime.owned() {
            served[shard.index()] = epoch;
        }
        self.board.served.send_if_modified(|before| {
            let differs = *before != served;
            *before = served;
            differs
        });
    }

    /// The living, and those that died by our hand just now.
    async fn bury_the_silent(
        &mut self,
        members: Vec<MemberRow>,
    ) -> Result<(Vec<MemberRow>, HashSet<Incarnation>), DirectoryError> {
        let mut buried = HashSet::new();
        for silent in self.looking.silent(&members) {
            if self.directory.declare_dead(silent.incarnation, Some(silent.renewed)).await? {
                tracing::warn!(service.name = S::NAME, node.id = silent.node, "a member fell silent, it is dead");
                buried.insert(silent.incarnation);
            }
        }
        let living = members.into_iter().filter(|member| !buried.contains(&member.incarnation)).collect();
        Ok((living, buried))
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
        if lost.is_empty() {
            return;
        }
        episodes::warn("shards were lost to other owners", S::NAME, format_args!("{} shards", lost.len()));
        lost.into_iter().for_each(|shard| self.runtime.close(shard));
        (self.membership.changed)();
    }

    /// What somebody says it has granted to us, before anything else: its callers wait.
    async fn take_up_granted(&mut self) -> Result<(), DirectoryError> {
        let mut granted = self.board.take_granted();
        granted.retain(|shard| shard.0 < self.runtime.shards() && !self.runtime.is_held(*shard));
        if !granted.is_empty() && self.runtime.lease().is_valid() {
            self.take_untouched(&granted).await?;
            self.tell();
        }
        Ok(())
    }

    /// Opens those that were granted to us and never served here since; which they are.
    async fn take_untouched(&mut self, shards: &[ShardId]) -> Result<Vec<ShardId>, DirectoryError> {
        let mut granted = self.directory.untouched(shards, self.runtime.incarnation()).await?;
        // Served under this epoch before: a batch of ours may be on its way, and only a takeover can fence it.
        granted.retain(|granted| granted.epoch > self.runtime.latest_epoch(granted.shard));
        self.serve(&granted).await?;
        Ok(granted.iter().map(|granted| granted.shard).collect())
    }

    /// What belongs to us and is not served: granted by somebody else, or left by a step that died half way. How many of
    /// them others here do not know of yet.
    async fn take_ours(&mut self, view: &View) -> Result<usize, DirectoryError> {
        let me = self.runtime.incarnation();
        let ours = |row: &&ShardRow| row.owner == Some(me) && !self.runtime.is_held(row.id);
        let mut rows: Vec<ShardRow> = view.shards.iter().filter(ours).copied().collect();
        if rows.is_empty() {
            return Ok(0);
        }
        let ids: Vec<ShardId> = rows.iter().map(|row| row.id).collect();
        let opened = self.take_untouched(&ids).await?;
        rows.retain(|row| !opened.contains(&row.id));
        if !rows.is_empty() {
            let granted = self.directory.take_over(&rows, Some(me), me).await?;
            self.serve(&granted).await?;
        }
        // What had to be taken from ourselves is no news: one that does not open is tried again with the next poll.
        Ok(opened.len())
    }

    async fn take_orphans(&mut self, view: &View, buried: &HashSet<Incarnation>) -> Result<usize, DirectoryError> {
        let me = self.runtime.incarnation();
        let alive: HashSet<Incarnation> = view.members.iter().map(|member| member.incarnation).collect();
        let orphaned = |row: &&ShardRow| row.owner.is_none_or(|owner| owner != me && !alive.contains(&owner));
        let mine = |row: &&ShardRow| view.placement.owner(row.id) == Some(self.membership.node.as_str());
        let mut by_owner: HashMap<Option<Incarnation>, Vec<ShardRow>> = HashMap::new();
        for row in view.shards.iter().filter(orphaned).filter(mine) {
            by_owner.entry(row.owner).or_default().push(*row);
        }
        let mut taken = 0;
        for (owner, rows) in by_owner {
            if let Some(dead) = owner.filter(|owner| !buried.contains(owner)) {
                self.directory.end_sessions(dead).await?;
            }
            let mut granted = self.directory.take_over(&rows, owner, me).await?;
            // What nobody had nobody has lent.
            granted.iter_mut().for_each(|granted| granted.called_back = owner.is_none());
            self.serve(&granted).await?;
            taken += granted.len();
        }
        Ok(taken)
    }

    async fn serve(&mut self, granted: &[Granted]) -> Result<(), DirectoryError> {
        if granted.is_empty() {
            return Ok(());
        }
        let ids: Vec<ShardId> = granted.iter().map(|granted| granted.shard).collect();
        self.moves.came(ids.iter().copied());
        let mut inbox: HashMap<ShardId, Vec<_>> = HashMap::new();
        for (shard, source, position) in self.directory.inbox(&ids).await? {
            inbox.entry(shard).or_default().push((source, position));
        }
        (self.membership.changed)();
        for group in granted.chunks(OPEN_GROUP) {
            for granted in group {
                let positions = inbox.remove(&granted.shard).unwrap_or_default();
                if let Err(error) = self.runtime.open(*granted, positions).await {
                    episodes::error("shards cannot be opened", S::NAME, format_args!("{}: {error}", granted.shard));
                }
            }
            tokio::task::yield_now().await;
        }
        metrics::counter!("rookery_shards_taken_up_total", "service" => S::NAME).increment(granted.len() as u64);
        // Heads of lists may have been read while shards were missing.
        (self.membership.changed)();
        episodes::note("shards are served here from now on", S::NAME, granted.len());
        Ok(())
    }
}
