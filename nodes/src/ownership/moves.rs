//! Hand-offs under way: small groups, few at a time, so that a member that joins is not trampled.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rookery_actors::{
    episodes,
    ids::{Incarnation, ShardId},
    runtime::{Directory, DirectoryError, MemberRow, Runtime},
    service::Service,
};
use tokio::{
    task::{Id, JoinSet},
    time::{Instant, sleep_until, timeout},
};

use super::{
    Membership,
    view::{Board, View},
};

/// Shards in one grant: closed together, so as many as are drained and taken up within a few milliseconds.
const GROUP: usize = 16;
/// Groups under way, each to another member; the next one to the same member goes when it serves the former.
const GROUPS_MAX: usize = 4;
/// How long commits under way are waited for with the door closed. Longer than any batch on a healthy database.
const CLOSED_MAX: Duration = Duration::from_secs(1);
/// Whoever has a turn for longer may wait for a database that does not answer, which is no reason to wait for another's.
const TURN_WITHIN: Duration = Duration::from_secs(1);
/// A shard that has come stays for so long: who waited for it gets through before it goes on, and two moves are two short
/// pauses instead of a long one.
const STAY: Duration = Duration::from_millis(250);

pub(super) struct Moves<S: Service> {
    runtime: Runtime<S>,
    membership: Membership,
    board: Arc<Board>,
    /// A session of their own: a grant that waits for a lock must not keep the lease from being renewed.
    session: Option<Arc<Directory>>,
    tasks: JoinSet<bool>,
    going: HashMap<Id, Group>,
    /// Members to whom the last group did not go; not before this time again.
    resting: HashMap<Incarnation, Instant>,
    /// Until when shards stay that have come lately.
    staying: HashMap<ShardId, Instant>,
}

struct Group {
    to: Incarnation,
    shards: Vec<ShardId>,
}

impl<S: Service> Moves<S> {
    pub(super) fn new(runtime: Runtime<S>, membership: Membership, board: Arc<Board>) -> Self {
        Self {
            runtime,
            membership,
            board,
            session: None,
            tasks: JoinSet::new(),
            going: HashMap::new(),
            resting: HashMap::new(),
            staying: HashMap::new(),
        }
    }

    /// These shards are served here from now on.
    pub(super) fn came(&mut self, shards: impl IntoIterator<Item = ShardId>) {
        let until = Instant::now() + STAY;
        self.staying.extend(shards.into_iter().map(|shard| (shard, until)));
    }

    pub(super) fn is_idle(&self) -> bool {
        self.going.is_empty()
    }

    /// Waits until a group is through, or what came lately may go on; for ever if there is neither.
    pub(super) async fn landed(&mut self) {
        let stay = self.staying.values().max().copied();
        let landed = tokio::select! {
            Some(landed) = self.tasks.join_next_with_id() => landed,
            () = sleep_until(stay.unwrap_or_else(Instant::now)), if stay.is_some() => return self.staying.clear(),
            else => return std::future::pending().await,
        };
        let (id, went) = match landed {
            Ok((id, went)) => (id, went),
            Err(error) => {
                tracing::error!(service.name = S::NAME, %error, "a hand-off ended badly");
                (error.id(), false)
            }
        };
        if let Some(group) = self.going.remove(&id)
            && !went
        {
            self.resting.insert(group.to, Instant::now() + self.membership.lease.renew_every * 2);
        }
    }

    /// Waits for what is under way, so that its outcome is known.
    pub(super) async fn settle(&mut self, within: Duration) {
        let all = async {
            while !self.is_idle() {
                self.landed().await;
            }
        };
        let _ = timeout(within, all).await;
    }

    /// Begins to hand over what these members should have.
    pub(super) async fn begin(&mut self, view: &View, takers: &[&MemberRow]) -> Result<(), DirectoryError> {
        let now = Instant::now();
        self.resting.retain(|_, until| *until > now);
        self.staying.retain(|_, until| *until > now);
        for (to, shards) in self.misplaced(view, takers) {
            let busy = self.going.values().any(|group| group.to == to.incarnation);
            if self.going.len() >= GROUPS_MAX || busy || self.resting.contains_key(&to.incarnation) {
                continue;
            }
            let session = self.session().await?;
            // Cut off, nobody there can ask for any of it: nobody is served by waiting, and nobody can be told to hurry.
            let at_once = if self.board.cut_off.load(Ordering::Relaxed) { usize::MAX } else { GROUP };
            let group: Vec<ShardId> = shards.into_iter().take(at_once).collect();
            let give =
                give(self.runtime.clone(), self.membership.clone(), Arc::clone(&self.board), session, group.clone(), to.clone());
            let id = self.tasks.spawn(give).id();
            self.going.insert(id, Group { to: to.incarnation, shards: group });
        }
        Ok(())
    }

    /// What is served here, should be elsewhere, and is not on its way, by who should have it.
    fn misplaced<'a>(&self, view: &View, takers: &[&'a MemberRow]) -> Vec<(&'a MemberRow, Vec<ShardId>)> {
        let me = self.runtime.incarnation();
        let going: HashSet<ShardId> = self.going.values().flat_map(|group| group.shards.iter().copied()).collect();
        let mut by_node: BTreeMap<&str, Vec<ShardId>> = BTreeMap::new();
        for (shard, epoch, _) in self.runtime.owned() {
            let row = &view.shards[shard.index()];
            // What we have done since the directory was asked it does not know.
            if row.owner != Some(me) || row.epoch != epoch || going.contains(&shard) || self.staying.contains_key(&shard) {
                continue;
            }
            match view.placement.owner(shard) {
                Some(node) if node != self.membership.node => by_node.entry(node).or_default().push(shard),
                _ => {}
            }
        }
        takers.iter().filter_map(|member| Some((*member, by_node.remove(member.node.as_str())?))).collect()
    }

    async fn session(&mut self) -> Result<Arc<Directory>, DirectoryError> {
        let me = self.runtime.incarnation();
        if let Some(session) = self.session.as_ref().filter(|session| !session.is_closed() && session.incarnation() == me) {
            return Ok(Arc::clone(session));
        }
        let session = Arc::new(Directory::open(self.runtime.database(), S::NAME, me).await?);
        self.session = Some(Arc::clone(&session));
        Ok(session)
    }
}

/// Hands a group over and returns when its new owner serves it, or would have found it by itself. False: it did not go.
async fn give<S: Service>(
    runtime: Runtime<S>,
    membership: Membership,
    board: Arc<Board>,
    session: Arc<Directory>,
    group: Vec<ShardId>,
    to: MemberRow,
) -> bool {
    let turn = timeout(TURN_WITHIN, membership.hand_offs.acquire()).await;
    let handed = runtime.hand_off(&session, &group, to.incarnation, CLOSED_MAX).await;
    // Others here should see it, also what was lost meanwhile.
    board.poke();
    if handed.granted.is_empty() {
        return false;
    }
    let renew_every = membership.lease.renew_every;
    let told = timeout(renew_every, membership.announce.granted(S::NAME, &handed.granted, &to.node));
    (membership.changed)();
    metrics::counter!("rookery_shards_handed_off_total", "service" => S::NAME).increment(handed.granted.len() as u64);
    metrics::histogram!("rookery_hand_off_pause_seconds", "service" => S::NAME).record(handed.pause.as_secs_f64());
    tracing::debug!(
        service.name = S::NAME,
        node.id = to.node,
        shards = handed.granted.len(),
        pause_ms = handed.pause.as_millis(),
        "handed {} shards of {} to {}",
        handed.granted.len(),
        S::NAME,
        to.node
    );
    episodes::note("shards were handed over", S::NAME, handed.granted.len());
    let told = told.await == Ok(true);
    drop(turn);
    if !told {
        // It was not told: its next poll finds them.
        tokio::time::sleep(renew_every).await;
    }
    handed.granted.len() == group.len()
}
