//! From an id to its live actor: finds it, or brings it to life, or says why not.

use std::sync::{Arc, atomic::Ordering};

use ractor::{ActorRef, ActorRuntime, ActorStatus};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    AskResult, Context, Inner, birth,
    cell::{Cell, Readiness},
    committer,
    entity_actor::{EntityActor, EntityMessage, Envelope, Outcome, Silence},
    memory::coarse_now,
    shard::{Entities, Shard},
};
use crate::{
    entity::{AskError, Entity, Failure},
    ids::{Epoch, ShardId},
    service::Service,
};

/// How an ask ends on this node.
pub(crate) enum Asked<S: Service> {
    Answered(AskResult<S>),
    /// The shard is not served here; nobody looked at the command.
    NotHere(Failure, <S::Entity as Entity>::Command, Context),
}

pub(crate) async fn ask<S: Service>(
    inner: &Arc<Inner<S>>,
    id: Uuid,
    command: <S::Entity as Entity>::Command,
    context: Context,
) -> Asked<S> {
    // Under a key it may be the second time, at the owner after the one that died with its commit.
    let fresh = context.idempotency.is_none() && S::creates(&command);
    if fresh && let Some(cell) = settle(inner, id) {
        return match birth::create(inner, &cell, &command, &context).await {
            Err(AskError::Failed(failure @ Failure::Moved(_))) => Asked::NotHere(failure, command, context),
            answer => Asked::Answered(answer),
        };
    }
    let deadline = context.deadline;
    let failed = |failure: Failure| Asked::Answered(Err(failure.into()));
    let mut pending = (command, context);
    loop {
        if Instant::now() >= deadline {
            return failed(Failure::Expired);
        }
        let cell = match activate(inner, id, fresh).await {
            Ok(cell) => cell,
            Err(failure @ Failure::Moved(_)) => return Asked::NotHere(failure, pending.0, pending.1),
            Err(failure) => return failed(failure),
        };
        let actor = match tokio::time::timeout_at(deadline, animated(inner, &cell)).await {
            Ok(Ok(Some(actor))) => actor,
            Ok(Ok(None)) => continue,
            Ok(Err(failure @ Failure::Moved(_))) => return Asked::NotHere(failure, pending.0, pending.1),
            Ok(Err(failure)) => return failed(failure),
            Err(_) => return failed(Failure::Expired),
        };
        let Some(place) = cell.mailbox.enter() else {
            return failed(Failure::Overloaded("too many commands wait for the same entity".to_owned()));
        };
        let (envelope, sent) = Envelope::seal(pending.0, pending.1, place);
        // A refused message hands its command back through the envelope's drop, as a stop does.
        drop(actor.send_message(EntityMessage::Command(envelope)));
        match sent.outcome(deadline, || actor.get_status() >= ActorStatus::Stopping).await {
            Ok(Outcome::Answered(answer)) => return Asked::Answered(answer),
            Ok(Outcome::Undelivered(command, context)) => {
                // It stopped before it came to this one: passivated, moved or restarted. Ask its successor.
                pending = (command, context);
                tokio::task::yield_now().await;
            }
            // Ended with its shard, in the middle of this: nobody can say how far it came.
            Err(Silence::Ended { .. }) if inner.shard(id).tenure_since(cell.epoch).is_none() => {
                return failed(Failure::Unknown("the shard moved while the command was under way".to_owned()));
            }
            Err(Silence::Ended { submitted: true }) => return failed(fell_under_way()),
            Err(Silence::Ended { submitted: false }) => return failed(Failure::Crashed),
            Err(Silence::Overdue) => return failed(committer::overdue(inner)),
            Err(Silence::Expired) => return failed(Failure::Expired),
        }
    }
}

/// What those hear whose entity fell after its change was given to the committer: it may be committed, and twice is not once.
pub(crate) fn fell_under_way() -> Failure {
    Failure::Unknown("the entity failed while the command was under way".to_owned())
}

pub(crate) async fn read<S: Service, T>(
    inner: &Arc<Inner<S>>,
    id: Uuid,
    deadline: Instant,
    view: impl FnOnce(Option<&S::Entity>) -> T,
) -> Result<T, Failure> {
    let shard = inner.shard(id);
    let epoch = serving(inner, shard)?;
    let cell = activate(inner, id, false).await?;
    let ready = async {
        let mut readiness = cell.ready.subscribe();
        let seen = readiness.wait_for(|readiness| *readiness != Readiness::Loading).await;
        seen.map_or(Readiness::Failed(Failure::Crashed), |readiness| readiness.clone())
    };
    match tokio::time::timeout_at(deadline, ready).await {
        Ok(Readiness::Failed(failure)) => return Err(failure),
        Ok(_) => {}
        Err(_) => return Err(Failure::Expired),
    }
    take(inner, shard, epoch, &cell, view)
}

pub(crate) fn read_loaded<S: Service, T>(
    inner: &Inner<S>,
    id: Uuid,
    view: impl FnOnce(Option<&S::Entity>) -> T,
) -> Option<Result<T, Failure>> {
    let shard = inner.shard(id);
    let epoch = match serving(inner, shard) {
        Ok(epoch) => epoch,
        Err(failure) => return Some(Err(failure)),
    };
    let cell = shard.cell(id)?;
    if *cell.ready.borrow() != Readiness::Ready {
        return None;
    }
    Some(take(inner, shard, epoch, &cell, view))
}

/// The number of an entity's committed state, if it is loaded and may be read here.
pub(crate) fn revision<S: Service>(inner: &Inner<S>, id: Uuid) -> Option<u64> {
    let shard = inner.shard(id);
    let epoch = serving(inner, shard).ok()?;
    let cell = shard.cell(id).filter(|cell| *cell.ready.borrow() == Readiness::Ready)?;
    take(inner, shard, epoch, &cell, |_| cell.revision()).ok()
}

/// Takes the value, *then* checks lease and shard (rule 8): a check before it could be stale by the time of the value.
fn take<S: Service, T>(
    inner: &Inner<S>,
    shard: &Shard<S>,
    epoch: Epoch,
    cell: &Cell<S>,
    view: impl FnOnce(Option<&S::Entity>) -> T,
) -> Result<T, Failure> {
    let value = {
        let state = cell.state.read().map_err(|_| Failure::Crashed)?;
        view(state.as_ref())
    };
    cell.used_s.store(coarse_now(), Ordering::Relaxed);
    may_answer(inner, shard, epoch)?;
    Ok(value)
}

/// Whether what was taken from memory under this epoch may be told: checked after it was taken (rule 8).
pub(crate) fn may_answer<S: Service>(inner: &Inner<S>, shard: &Shard<S>, epoch: Epoch) -> Result<(), Failure> {
    if shard.tenure_since(epoch).is_none() {
        return Err(moved::<S>(shard.id));
    }
    if !inner.lease.is_valid() {
        return Err(Failure::Moved(format!("the lease of {} on this node has ended", S::NAME)));
    }
    Ok(())
}

/// What those hear who ask for a shard that is elsewhere, or on its way there.
pub(crate) fn moved<S: Service>(shard: ShardId) -> Failure {
    Failure::Moved(format!("{} shard {shard}", S::NAME))
}

fn serving<S: Service>(inner: &Inner<S>, shard: &Shard<S>) -> Result<Epoch, Failure> {
    let epoch = shard.tenure().ok_or_else(|| moved::<S>(shard.id))?;
    may_answer(inner, shard, epoch)?;
    Ok(epoch)
}

/// The live cell of an entity. `fresh`: it was just minted, so there is nothing to load.
pub(crate) async fn activate<S: Service>(inner: &Arc<Inner<S>>, id: Uuid, fresh: bool) -> Result<Arc<Cell<S>>, Failure> {
    let shard = inner.shard(id);
    loop {
        let epoch = serving(inner, shard)?;
        if let Some(cell) = shard.cell(id) {
            cell.used_s.store(coarse_now(), Ordering::Relaxed);
            return Ok(cell);
        }
        match revive(inner, shard, id, epoch, fresh)? {
            Revived::Live(cell) => return Ok(cell),
            // It crashed a moment ago: its back-off is short, and bounded by the restart intensity.
            Revived::BackingOff(until) => tokio::time::sleep_until(until).await,
        }
    }
}

enum Revived<S: Service> {
    Live(Arc<Cell<S>>),
    BackingOff(Instant),
}

fn revive<S: Service>(
    inner: &Arc<Inner<S>>,
    shard: &Shard<S>,
    id: Uuid,
    epoch: Epoch,
    fresh: bool,
) -> Result<Revived<S>, Failure> {
    let mut entities = shard.entities.write().expect("no panic under this lock");
    if let Some(cell) = entities.live.get(&id) {
        return Ok(Revived::Live(Arc::clone(cell)));
    }
    if let Some(crashes) = entities.crashes.get(&id) {
        if Instant::now() < crashes.until {
            return if crashes.isolated { Err(Failure::Isolated) } else { Ok(Revived::BackingOff(crashes.until)) };
        }
        if crashes.isolated {
            entities.crashes.remove(&id);
        }
    }
    let readiness = if fresh { Readiness::Ready } else { Readiness::Loading };
    let cell = Arc::new(Cell::new(id, epoch, readiness));
    animate(inner, &mut entities, &cell)?;
    cell.reweigh(cell.measure());
    insert(inner, &mut entities, &cell);
    Ok(Revived::Live(cell))
}

/// An empty cell without an actor for an entity that is about to be made; none if there is one, a crash is remembered, or
/// the shard is not served here.
fn settle<S: Service>(inner: &Inner<S>, id: Uuid) -> Option<Arc<Cell<S>>> {
    let shard = inner.shard(id);
    let mut entities = shard.entities.write().expect("no panic under this lock");
    let epoch = serving(inner, shard).ok()?;
    if entities.live.contains_key(&id) || entities.crashes.contains_key(&id) {
        return None;
    }
    let cell = Arc::new(Cell::new(id, epoch, Readiness::Ready));
    insert(inner, &mut entities, &cell);
    Some(cell)
}

fn insert<S: Service>(inner: &Inner<S>, entities: &mut Entities<S>, cell: &Arc<Cell<S>>) {
    cell.used_s.store(coarse_now(), Ordering::Relaxed);
    entities.live.insert(cell.id, Arc::clone(cell));
    inner.memory.add(cell.weight());
}

/// The actor of a cell, brought to life if it has none yet, after what made the entity has landed; none if the cell has left
/// the map meanwhile.
async fn animated<S: Service>(inner: &Arc<Inner<S>>, cell: &Arc<Cell<S>>) -> Result<Option<ActorRef<EntityMessage<S>>>, Failure> {
    if let Some(actor) = cell.actor.get() {
        return Ok(Some(actor.clone()));
    }
    let shard = inner.shard(cell.id);
    shard.untouched(cell.id).await;
    let mut entities = shard.entities.write().expect("no panic under this lock");
    if !entities.live.get(&cell.id).is_some_and(|there| Arc::ptr_eq(there, cell)) {
        return Ok(None);
    }
    if cell.actor.get().is_none() {
        animate(inner, &mut entities, cell)?;
        inner.weigh(cell);
    }
    Ok(cell.actor.get().cloned())
}

fn animate<S: Service>(inner: &Arc<Inner<S>>, entities: &mut Entities<S>, cell: &Arc<Cell<S>>) -> Result<(), Failure> {
    let supervisor = entities.supervisor.clone().ok_or_else(|| moved::<S>(inner.shard(cell.id).id))?;
    let actor = EntityActor::new(Arc::clone(inner), Arc::clone(cell));
    let (actor, _) = ActorRuntime::spawn_linked_instant(None, actor, (), supervisor)
        .map_err(|error| Failure::Unavailable(format!("cannot start an entity: {error}")))?;
    entities.by_actor.insert(actor.get_id(), cell.id);
    cell.actor.set(actor).expect("under the lock of the map nobody else sets it");
    Ok(())
}

/// Asks an idle entity to go; it does when it comes to it, so nothing under way is disturbed.
pub(crate) fn passivate<S: Service>(inner: &Inner<S>, shard: &Shard<S>, id: Uuid) {
    let Some(cell) = shard.cell(id) else { return };
    match cell.actor.get() {
        // Already stopping is as good.
        Some(actor) => drop(actor.send_message(EntityMessage::Passivate)),
        // Whoever makes it holds it until the outcome is known, and the committer folds it in even if they are gone.
        None if Arc::strong_count(&cell) > 2 || shard.is_touched(id) => {}
        None => forget(inner, shard, &cell),
    }
}

/// Takes a cell without an actor out of the map. One that has come to life meanwhile stays: it may be at work, and nobody
/// else may load what it changes.
pub(crate) fn forget<S: Service>(inner: &Inner<S>, shard: &Shard<S>, cell: &Arc<Cell<S>>) {
    let mut entities = shard.entities.write().expect("no panic under this lock");
    if cell.actor.get().is_none() {
        take_out(inner, &mut entities, cell);
    }
}

/// Takes a cell out of the map, if it is still the one there.
pub(crate) fn remove<S: Service>(inner: &Inner<S>, shard: &Shard<S>, cell: &Arc<Cell<S>>) {
    take_out(inner, &mut shard.entities.write().expect("no panic under this lock"), cell);
}

fn take_out<S: Service>(inner: &Inner<S>, entities: &mut Entities<S>, cell: &Arc<Cell<S>>) {
    let Entities { live, by_actor, .. } = entities;
    if live.get(&cell.id).is_some_and(|there| Arc::ptr_eq(there, cell)) {
        live.remove(&cell.id);
        if let Some(actor) = cell.actor.get() {
            by_actor.remove(&actor.get_id());
        }
        inner.memory.forget((1, cell.write_off()));
    }
}
