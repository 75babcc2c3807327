//! Units on their way to the database: who waits for which, and which shards a lane is at.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    Inner,
    commit_batch::{CommitError, Committed, Unit},
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
    /// Shards of the units that a lane is at, and since when it is.
    pub(super) busy: HashMap<ShardId, Instant>,
}

/// A unit on its way, with whoever waits for it. One that is dropped ends as unknown.
pub(crate) struct Queued<S: Service> {
    pub(crate) shard: ShardId,
    pub(crate) epoch: Epoch,
    /// Boxed: it is some 2 KB of mostly empty columns, and changes hands half a dozen times.
    pub(crate) unit: Box<Unit<S>>,
    pub(super) under_way: UnderWay<S>,
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
        self.under_way.unfolded = false;
    }
}

/// A unit counts as under way while this lives.
pub(super) struct UnderWay<S: Service> {
    pub(super) inner: Arc<Inner<S>>,
    pub(super) shard: ShardId,
    pub(super) ticket: u64,
    pub(super) touches: Vec<Uuid>,
    /// It is in the database, and whoever asked for it has not yet made memory follow.
    pub(super) unfolded: bool,
}

impl<S: Service> Drop for UnderWay<S> {
    fn drop(&mut self) {
        self.inner.shards[self.shard.index()].end(self.ticket, &self.touches, self.unfolded);
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
            if self.busy.contains_key(&queued.shard) {
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
        let now = Instant::now();
        self.busy.extend(taken.iter().map(|queued: &Queued<S>| (queued.shard, now)));
        taken
    }

    pub(super) fn take_claim(&mut self) -> Vec<Queued<S>> {
        let Some(n) = self.claims.iter().position(|queued| !self.busy.contains_key(&queued.shard)) else {
            return Vec::new();
        };
        let claim = self.claims.remove(n).expect("the position was just found");
        self.busy.insert(claim.shard, Instant::now());
        vec![claim]
    }
}

impl<S: Service> Queued<S> {
    pub(crate) fn finish(mut self, result: Result<Committed, CommitError>) {
        // What has no effects of its own, its actor folds. Nobody waiting is fine: what was to be folded is dropped with the
        // entity, which loads anew, and is lent to nobody before.
        self.under_way.unfolded = result.is_ok() && self.unit.effects.is_empty();
        let _ = self.done.send(Landed { result, under_way: self.under_way });
    }
}
