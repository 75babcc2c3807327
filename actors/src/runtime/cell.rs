//! One loaded entity on this node: its committed state, its actor, and what it weighs.

use std::sync::{
    Arc, OnceLock, RwLock,
    atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use ractor::ActorRef;
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    entity_actor::EntityMessage,
    memory::{ACTOR_BYTES, CELL_BYTES},
};
use crate::{
    entity::{Entity, Failure},
    ids::{Epoch, Seq, ShardId},
    service::Service,
};

/// Numbers every committed state of every entity of this process, so that no two ever share one: whoever keeps something
/// that was made from a state knows by its number whether it still holds, also after the entity was away.
static REVISIONS: AtomicU64 = AtomicU64::new(1);

/// One loaded entity: its committed state and its actor, if it has one yet.
pub(crate) struct Cell<S: Service> {
    pub(crate) id: Uuid,
    /// The tenure under which it was loaded: what it decides is good for that one only.
    pub(crate) epoch: Epoch,
    pub(crate) state: RwLock<Option<S::Entity>>,
    /// Comes to life with the first command that needs one.
    pub(crate) actor: OnceLock<ActorRef<EntityMessage<S>>>,
    pub(crate) ready: watch::Sender<Readiness>,
    pub(crate) mailbox: Mailbox,
    pub(crate) used_s: AtomicU32,
    revision: AtomicU64,
    /// Its last record that a search can wait for; 0: none since it was loaded.
    told: AtomicI64,
    weight: AtomicUsize,
    /// An event that ends it for all commands is in its state.
    ended: AtomicBool,
    /// Out of the map, and off the books: what its actor still finishes weighs nothing any more.
    gone: AtomicBool,
}

/// Commands in the mailbox of an entity at a time; more are refused as overload. Those whose senders have gone away count as
/// long as they take memory.
const MAILBOX_MAX: usize = 1_024;

/// How many commands are in the mailbox of an entity.
#[derive(Default)]
pub(crate) struct Mailbox(Arc<AtomicUsize>);

/// A place in a mailbox, until it is dropped. It does not hold the entity: a message that its actor's end has forgotten in the
/// channel would keep both for ever.
pub(crate) struct MailboxPlace(Arc<AtomicUsize>);

impl Mailbox {
    /// None: it is full.
    pub(crate) fn enter(&self) -> Option<MailboxPlace> {
        let place = MailboxPlace(Arc::clone(&self.0));
        (self.0.fetch_add(1, Ordering::Relaxed) < MAILBOX_MAX).then_some(place)
    }
}

impl Drop for MailboxPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Readiness {
    Loading,
    Ready,
    Failed(Failure),
}

impl<S: Service> Cell<S> {
    pub(crate) fn new(id: Uuid, epoch: Epoch, ready: Readiness) -> Self {
        Self {
            id,
            epoch,
            state: RwLock::new(None),
            actor: OnceLock::new(),
            ready: watch::Sender::new(ready),
            mailbox: Mailbox::default(),
            used_s: AtomicU32::new(0),
            revision: AtomicU64::new(REVISIONS.fetch_add(1, Ordering::Relaxed)),
            told: AtomicI64::new(0),
            weight: AtomicUsize::new(CELL_BYTES),
            ended: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        }
    }

    pub(crate) fn weight(&self) -> usize {
        self.weight.load(Ordering::Relaxed)
    }

    /// The number of its committed state.
    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Numbers a new state; while it is locked for writing.
    pub(crate) fn revised(&self) {
        self.revision.store(REVISIONS.fetch_add(1, Ordering::Relaxed), Ordering::Release);
    }

    /// Its last record that a search can wait for; 0: what there was before it was loaded has been found, or will be without
    /// anybody who waits.
    pub(crate) fn told(&self) -> Seq {
        self.told.load(Ordering::Relaxed)
    }

    /// Notes a record that was committed.
    pub(crate) fn tell(&self, seq: Seq) {
        self.told.store(seq, Ordering::Relaxed);
    }

    /// Notes that what was decided on its state so far no longer stands; before the unit that ends it counts as folded.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Whether it was ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// What it takes in memory now, in bytes, roughly.
    pub(crate) fn measure(&self) -> usize {
        let actor = if self.actor.get().is_some() { ACTOR_BYTES } else { 0 };
        CELL_BYTES + actor + self.state.read().map_or(0, |state| S::weight(state.as_ref()))
    }

    /// Notes a new weight; the one before, unless the cell is off the books.
    pub(crate) fn reweigh(&self, weight: usize) -> Option<usize> {
        let before = self.weight.swap(weight, Ordering::Relaxed);
        (!self.gone.load(Ordering::Relaxed)).then_some(before)
    }

    /// Takes it off the books; its last weight.
    pub(crate) fn write_off(&self) -> usize {
        self.gone.store(true, Ordering::Relaxed);
        self.weight()
    }

    /// Applies committed events and tells the node's read models.
    ///
    /// A panic in a rule poisons the lock: the cell answers nothing any more and leaves with its actor.
    pub(crate) fn evolve(&self, service: &S, shard: ShardId, events: &[<S::Entity as Entity>::Event]) {
        let Ok(mut state) = self.state.write() else {
            return;
        };
        for event in events {
            S::Entity::evolve(&mut state, event);
        }
        self.revised();
        service.committed(shard, self.id, state.as_ref(), events);
    }
}
