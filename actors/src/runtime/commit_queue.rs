//! Units on their way to the database: who waits for which, and which shards a lane is at.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use tokio::{runtime::Handle, sync::oneshot};
use uuid::Uuid;

use super::{
    Inner,
    commit_batch::{CommitError, Committed, Unit},
    committer::Unresolved,
};
use crate::{
    ids::{Epoch, ShardId},
    service::Service,
};

pub(super) struct Queue<S: Service> {
    /// For the lane of batches.
    pub(super) waiting: VecDeque<Queued<S>>,
    /// For the lane of claims.
    pub(super) claims: VecDeque<Queued<S>>,
    /// Shards of the units that a lane is at.
    pub(super) busy: HashSet<ShardId>,
}

/// A unit on its way, with whoever waits for it. One that is dropped ends as unknown, and its shard closes.
pub(crate) struct Queued<S: Service> {
    pub(crate) shard: ShardId,
    pub(crate) epoch: Epoch,
    /// Before the unit: if both are dropped, the shard closes before the unit's turn to apply ends.
    pub(super) under_way: UnderWay<S>,
    /// Boxed: it is some 2 KB of mostly empty columns, and changes hands half a dozen times.
    pub(crate) unit: Box<Unit<S>>,
    pub(super) done: oneshot::Sender<Landed<S>>,
}

/// How a unit ended. Until it is dropped the unit counts as under way: whoever folds it into memory holds it meanwhile,
/// so that nobody loads the entity, or answers from SQL beside it, in between (rule 9).
pub(crate) struct Landed<S: Service> {
    pub(crate) result: Result<Committed, CommitError>,
    under_way: UnderWay<S>,
}

impl<S: Service> Landed<S> {
    /// Memory says what was committed.
    pub(crate) fn folded(mut self) {
        self.under_way.state = UnitState::Settled;
    }
}

/// A unit counts as under way while this lives.
pub(super) struct UnderWay<S: Service> {
    inner: Arc<Inner<S>>,
    shard: ShardId,
    /// The epoch under which it was taken in.
    epoch: Epoch,
    ticket: u64,
    touches: Vec<Uuid>,
    ends: Vec<Uuid>,
    state: UnitState,
}

#[derive(Clone, Copy, PartialEq)]
enum UnitState {
    /// The database may have it or not.
    Open,
    /// It is in memory, or will never be in the database.
    Settled,
    /// It is in the database, and whoever asked for it has not yet made memory follow.
    Unfolded,
}

impl<S: Service> UnderWay<S> {
    pub(super) fn new(inner: &Arc<Inner<S>>, shard: ShardId, epoch: Epoch, ticket: u64, unit: &mut Unit<S>) -> Self {
        let (touches, ends) = (std::mem::take(&mut unit.touches), std::mem::take(&mut unit.ends));
        Self { inner: Arc::clone(inner), shard, epoch, ticket, touches, ends, state: UnitState::Open }
    }
}

impl<S: Service> Drop for UnderWay<S> {
    fn drop(&mut self) {
        let shard = &self.inner.shards[self.shard.index()];
        // A lane panicked with it, or left it because the node stops, and nobody finds out any more: memory may be behind
        // the database. So the shard closes before anybody decides on that memory, and opens with what is committed. Without
        // a runtime nobody does anything any more.
        if self.state == UnitState::Open && Handle::try_current().is_ok() {
            self.inner.memory.forget(shard.close_abandoned(self.epoch));
        }
        shard.end(self.ticket, &self.touches, &self.ends, self.state == UnitState::Unfolded);
    }
}

/// The shards that a lane is at: until it is dropped no other lane takes units of them.
pub(super) struct AtWork<'a, S: Service> {
    inner: &'a Inner<S>,
    shards: Vec<ShardId>,
    #[expect(dead_code, reason = "held, not read: it ends with the work")]
    unresolved: Unresolved<'a>,
}

impl<'a, S: Service> AtWork<'a, S> {
    /// The lane that was given these units is at their shards.
    pub(super) fn on(inner: &'a Inner<S>, units: &[Queued<S>]) -> Self {
        Self { inner, shards: units.iter().map(|queued| queued.shard).collect(), unresolved: inner.commits.begin() }
    }
}

impl<S: Service> Drop for AtWork<'_, S> {
    fn drop(&mut self) {
        let Self { inner, shards, .. } = self;
        for shard in shards.iter().map(|shard| &inner.shards[shard.index()]).filter(|shard| shard.is_suspended()) {
            // The lane panicked as it resolved the doubt that suspended them; nobody else does.
            inner.memory.forget(shard.close_suspended());
        }
        // A poisoned queue is met by the lane itself, when it begins anew.
        if let Ok(mut queue) = inner.committer.queue.lock() {
            for shard in shards {
                queue.busy.remove(shard);
            }
            if queue.is_idle() {
                inner.committer.drained.notify_waiters();
            }
        }
        // The other lane may have passed over units of these shards.
        inner.committer.wake();
    }
}

impl<S: Service> Queue<S> {
    /// Units that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.claims.len()
    }

    /// Whether nothing waits and nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.len() == 0 && self.busy.is_empty()
    }

    pub(super) fn take(&mut self, units_max: usize, bytes_max: usize) -> Vec<Queued<S>> {
        let mut taken = Vec::new();
        let (mut bytes, mut kept) = (0, Vec::new());
        while let Some(queued) = self.waiting.pop_front() {
            // Order within a shard: whoever follows a unit that must wait, waits as well.
            if self.busy.contains(&queued.shard) {
                kept.push(queued);
                continue;
            }
            let weight = queued.unit.weight();
            if !taken.is_empty() && (taken.len() >= units_max || bytes + weight > bytes_max) {
                kept.push(queued);
                break;
            }
            bytes += weight;
            taken.push(queued);
        }
        for queued in kept.into_iter().rev() {
            self.waiting.push_front(queued);
        }
        self.busy.extend(taken.iter().map(|queued: &Queued<S>| queued.shard));
        taken
    }

    pub(super) fn take_claim(&mut self) -> Vec<Queued<S>> {
        let Some(n) = self.claims.iter().position(|queued| !self.busy.contains(&queued.shard)) else {
            return Vec::new();
        };
        let claim = self.claims.remove(n).expect("the position was just found");
        self.busy.insert(claim.shard);
        vec![claim]
    }
}

impl<S: Service> Queued<S> {
    pub(crate) fn finish(mut self, result: Result<Committed, CommitError>) {
        // What has no effects of its own, its actor folds. Nobody waiting is fine: what was to be folded is dropped with the
        // entity, which loads anew, and is lent to nobody before.
        let unfolded = result.is_ok() && self.unit.effects.is_empty();
        self.under_way.state = if unfolded { UnitState::Unfolded } else { UnitState::Settled };
        let _ = self.done.send(Landed { result, under_way: self.under_way });
    }
}

#[cfg(test)]
mod tests {
    use ractor::{Actor, ActorProcessingErr, ActorRef};

    use super::{
        super::{Runtime, Settings, committer, copies::Session},
        *,
    };
    use crate::{
        ids::Incarnation,
        posts::{PostService, entity::Event},
    };

    const SHARD: ShardId = ShardId(0);
    const EPOCH: Epoch = 1;
    const POST: Uuid = Uuid::from_u128(7);

    struct Nobody;

    /// Messages that there are none of.
    struct Silence;

    impl ractor::Message for Silence {}

    impl Actor for Nobody {
        type Msg = Silence;
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<Silence>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }
    }

    /// A runtime that serves one shard, with a committer whose lanes are played by hand.
    async fn runtime() -> Runtime<PostService> {
        let settings = Settings { shards: 1, ..Settings::default() };
        let config = tokio_postgres::Config::new();
        let runtime = Runtime::new(PostService::default(), config, Incarnation(Uuid::nil()), settings);
        let (supervisor, _) = Actor::spawn(None, Nobody, ()).await.unwrap();
        runtime.inner.shards[0].open(EPOCH, 1, Vec::new(), supervisor.get_cell());
        runtime
    }

    /// Takes in a unit about the post and lets a lane take it, with the receiver of its outcome.
    async fn taken(
        runtime: &Runtime<PostService>,
        effects: Vec<(Uuid, Event)>,
    ) -> (Queued<PostService>, oneshot::Receiver<Landed<PostService>>) {
        let unit = Unit { touches: vec![POST], effects, ..Unit::of(1) };
        let outcome = committer::submit(&runtime.inner, SHARD, EPOCH, unit).await.unwrap();
        let mut taken = runtime.inner.committer.queue.lock().unwrap().take(1, usize::MAX);
        runtime.inner.committer.queue.lock().unwrap().busy.clear();
        (taken.pop().unwrap(), outcome)
    }

    /// Whether the post would be lent to a reader now; nobody has it after that.
    fn is_lent(runtime: &Runtime<PostService>) -> bool {
        let shard = &runtime.inner.shards[0];
        let lent = shard.lend(POST, &Session::of_a_test()).is_some();
        shard.in_flight.lock().unwrap().lent.forget(|_| true);
        lent
    }

    async fn load(runtime: &Runtime<PostService>) {
        runtime.inner.shards[0].begin_load(POST).await;
        assert!(runtime.inner.shards[0].end_load(POST, || {}));
    }

    const COMMITTED: Result<Committed, CommitError> = Ok(Committed { seq: 2, epoch: EPOCH });

    #[tokio::test]
    async fn what_is_committed_and_whose_actor_did_not_live_to_fold_it_in_is_lent_once_it_was_loaded_anew() {
        let runtime = runtime().await;
        assert!(is_lent(&runtime));
        for hears in [true, false] {
            let (queued, outcome) = taken(&runtime, Vec::new()).await;
            assert!(!is_lent(&runtime), "it is under way");
            if hears {
                queued.finish(COMMITTED);
                // The actor ends with this in its hands.
                drop(outcome.await.unwrap());
            } else {
                // It has ended before.
                drop(outcome);
                queued.finish(COMMITTED);
            }
            assert!(!is_lent(&runtime), "memory is old");
            load(&runtime).await;
            assert!(is_lent(&runtime));
        }
    }

    #[tokio::test]
    async fn what_is_in_memory_or_will_never_be_committed_is_lent() {
        let runtime = runtime().await;
        let (queued, outcome) = taken(&runtime, Vec::new()).await;
        queued.finish(COMMITTED);
        outcome.await.unwrap().folded();
        assert!(is_lent(&runtime), "its actor has folded it in");
        let (queued, _) = taken(&runtime, Vec::new()).await;
        queued.finish(Err(CommitError::Fenced));
        assert!(is_lent(&runtime), "nothing of it is in");
        let (queued, _) = taken(&runtime, vec![(POST, Event::CommentsCounted(1))]).await;
        queued.finish(COMMITTED);
        assert!(is_lent(&runtime), "the committer has folded it in");
    }

    #[tokio::test]
    async fn a_unit_that_a_lane_lets_fall_closes_its_shard_before_it_counts_as_landed() {
        let runtime = runtime().await;
        let shard = &runtime.inner.shards[0];
        let (queued, outcome) = taken(&runtime, Vec::new()).await;
        let landing = shard.settled();
        tokio::pin!(landing);
        assert!(futures_util::poll!(landing.as_mut()).is_pending());
        drop(queued);
        landing.await;
        assert_eq!(shard.tenure(), None);
        assert!(outcome.await.is_err(), "whoever waits hears that nobody knows");
        // What was opened since has read its truth from SQL.
        let (supervisor, _) = Actor::spawn(None, Nobody, ()).await.unwrap();
        shard.open(EPOCH, 1, Vec::new(), supervisor.get_cell());
        let (queued, _) = taken(&runtime, Vec::new()).await;
        shard.close();
        let (supervisor, _) = Actor::spawn(None, Nobody, ()).await.unwrap();
        shard.open(EPOCH + 1, 2, Vec::new(), supervisor.get_cell());
        drop(queued);
        assert_eq!(shard.tenure(), Some(EPOCH + 1));
    }
}
