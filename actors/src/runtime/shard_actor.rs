//! The supervisor of a shard's entities: restarts with back-off, isolates who fails too often.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::{task::JoinHandle, time::Instant};

use super::{BootTime, Granted, Inner, activation, copies, shard::Crashes};
use crate::{
    event::Source,
    ids::{Seq, ShardId},
    service::Service,
    supervisor::{Cause, Lifetime, RestartPolicy, Restarts, Verdict},
};

/// How long an entity that failed beyond its restart intensity stays away.
const ISOLATED_FOR: Duration = Duration::from_secs(30);

struct ShardActor<S: Service> {
    inner: Weak<Inner<S>>,
    shard: ShardId,
}

/// Nobody talks to a shard's supervisor; it hears of its entities' ends.
struct Silence;

impl ractor::Message for Silence {}

/// Opens a shard with a fresh supervisor for its entities.
pub(crate) async fn open<S: Service>(
    inner: &Arc<Inner<S>>,
    granted: Granted,
    inbox: Vec<(Source, Seq)>,
) -> Result<(), ractor::SpawnErr> {
    let service = inner.supervisor.get().expect("shards open after the runtime has started").clone();
    let actor = ShardActor { inner: Arc::downgrade(inner), shard: granted.shard };
    let (supervisor, ended) = Actor::spawn_linked(None, actor, (), service).await?;
    let shard = &inner.shards[granted.shard.index()];
    // Whatever an earlier tenure left is not ours to serve.
    inner.memory.forget(shard.close());
    // Without other nodes there are no readers.
    if !granted.called_back && inner.router.get().is_some() {
        shard.keep_quiet(copies::SESSION);
    }
    shard.open(granted.epoch, granted.seq, inbox, supervisor.get_cell());
    tokio::spawn(watch(Arc::downgrade(inner), granted.shard, supervisor.get_id(), ended));
    Ok(())
}

/// The end of a supervisor ends its entities, in the middle of whatever they do. What is committed of it nobody here knows,
/// so the shard is closed; the membership finds that it is ours and not served, and takes it over from ourselves.
async fn watch<S: Service>(inner: Weak<Inner<S>>, shard: ShardId, supervisor: ActorId, ended: JoinHandle<()>) {
    // How it ended does not matter.
    let _ = ended.await;
    let Some(inner) = inner.upgrade() else { return };
    let Some(gone) = inner.shards[shard.index()].close_headless(supervisor) else { return };
    inner.memory.forget(gone);
    metrics::counter!("rookery_shard_failures_total", "service" => S::NAME).increment(1);
    let verdict = {
        let mut failures = inner.shard_failures.lock().expect("no panic under this lock");
        failures.decide(BootTime::now().since_boot(), Cause::Failed, 0.0)
    };
    if verdict == Verdict::GiveUp {
        tracing::error!(service.name = S::NAME, shard.id = %shard, "shards failed too often, the service gives up on this node");
        inner.failed.send_replace(true);
    } else {
        inner.restarts.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(service.name = S::NAME, shard.id = %shard, "a shard's supervisor failed, the shard opens anew");
    }
}

impl<S: Service> Actor for ShardActor<S> {
    type Msg = Silence;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Silence>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Silence>,
        event: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let Some(inner) = self.inner.upgrade() else { return Ok(()) };
        match event {
            SupervisionEvent::ActorFailed(who, error) => failed(&inner, self.shard, &who, &error),
            // One that leaves has taken itself off the books; one that was killed has not, and would be asked for ever.
            SupervisionEvent::ActorTerminated(who, _, reason) => {
                failed(&inner, self.shard, &who, &reason.unwrap_or_else(|| "it ended unasked".to_owned()).into());
            }
            _ => {}
        }
        Ok(())
    }
}

/// The entity comes back when it is next asked for, from its committed state, unless it does this too often.
fn failed<S: Service>(inner: &Inner<S>, shard: ShardId, who: &ActorCell, error: &ActorProcessingErr) {
    let state = &inner.shards[shard.index()];
    let (id, cell) = {
        let entities = state.entities.read().expect("no panic under this lock");
        let Some(id) = entities.by_actor.get(&who.get_id()).copied() else {
            return;
        };
        (id, entities.live.get(&id).cloned())
    };
    if let Some(cell) = cell {
        activation::remove(inner, state, &cell);
    }
    let mut entities = state.entities.write().expect("no panic under this lock");
    let crashes = entities.crashes.entry(id).or_insert_with(|| Crashes {
        history: Restarts::new(RestartPolicy::default(), Lifetime::Transient),
        until: Instant::now(),
        isolated: false,
    });
    metrics::counter!("rookery_entity_failures_total", "service" => S::NAME).increment(1);
    match crashes.history.decide(BootTime::now().since_boot(), Cause::Failed, rand::random()) {
        Verdict::Restart { after } => {
            tracing::warn!(service.name = S::NAME, entity.id = %id, shard.id = %shard, %error, "an entity failed, it restarts");
            inner.restarts.fetch_add(1, Ordering::Relaxed);
            crashes.until = Instant::now() + after;
        }
        Verdict::GiveUp | Verdict::Leave => {
            tracing::error!(service.name = S::NAME, entity.id = %id, shard.id = %shard, %error, "an entity failed too often, it is isolated");
            crashes.until = Instant::now() + ISOLATED_FOR;
            crashes.isolated = true;
        }
    }
}
