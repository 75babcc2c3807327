//! The supervisor of every level: node, service, shard.
//!
//! ractor has no restart strategy of its own; its default stops the supervisor when *any* child exits. This one is
//! one-for-one: a failed child is started again after a back-off, its siblings do not notice, and a child that fails
//! beyond its restart intensity is either [isolated](OnGiveUp::Isolate) or takes the supervisor down with it, so that
//! the level above decides ([escalation](OnGiveUp::Escalate)).
//!
//! Entities are too many for a [`ChildSpec`] each: their shard uses [`Restarts`] directly.

mod child;
mod restarts;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ractor::{
    Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, Message, RpcReplyPort, Signal, SpawnErr, SupervisionEvent, call,
    concurrency::JoinHandle,
};
use thiserror::Error;
use tracing::{error, info, warn};

pub use child::{ChildSpec, ChildState, ChildStatus, OnGiveUp};
pub use restarts::{Cause, Lifetime, RestartPolicy, Restarts, Verdict};

/// A child may take this long to start before that counts as a failure: longer than a cold database connection.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A child may take this long to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a supervisor did not do what it was asked.
#[derive(Debug, Error)]
pub enum SupervisorError {
    /// The name belongs to another child.
    #[error("a child named {name} exists already")]
    NameTaken {
        /// The name asked for.
        name: Arc<str>,
    },
    /// There is no such child (any more).
    #[error("no child is named {name}")]
    Unknown {
        /// The name asked for.
        name: Arc<str>,
    },
    /// The child did not come up; it is not kept.
    #[error("child {name} did not start")]
    NotStarted {
        /// The child's name.
        name: Arc<str>,
        /// What its start returned.
        source: StartError,
    },
    /// The supervisor is gone or about to be.
    #[error("the supervisor has stopped")]
    Stopped,
}

/// Why a child did not come up.
#[derive(Debug, Error)]
pub enum StartError {
    /// Its `pre_start` failed.
    #[error(transparent)]
    Spawn(#[from] SpawnErr),
    /// Its `pre_start` did not end in time.
    #[error("it took longer than {} s", .0.as_secs())]
    Slow(Duration),
}

/// A child failed beyond its restart intensity and takes its supervisor with it.
#[derive(Debug, Error)]
#[error("child {child} of supervisor {supervisor} failed beyond its restart intensity")]
pub struct Escalation {
    /// The supervisor that gives up.
    pub supervisor: Arc<str>,
    /// The child at fault.
    pub child: Arc<str>,
}

/// A running supervisor.
#[derive(Debug, Clone)]
pub struct SupervisorRef(ActorRef<Ask>);

impl SupervisorRef {
    /// Starts a root supervisor and then its children, in order.
    ///
    /// # Errors
    /// The first child that does not start; those before it are stopped again.
    pub async fn spawn(name: impl Into<Arc<str>>, children: Vec<ChildSpec>) -> Result<(Self, JoinHandle<()>), SpawnErr> {
        let (actor, join) = Actor::spawn(None, Supervisor, (name.into(), children)).await?;
        Ok((Self(actor), join))
    }

    /// As [`spawn`](Self::spawn), below `parent`.
    ///
    /// # Errors
    /// The first child that does not start; those before it are stopped again.
    pub async fn spawn_linked(
        name: impl Into<Arc<str>>,
        children: Vec<ChildSpec>,
        parent: ActorCell,
    ) -> Result<(Self, JoinHandle<()>), SpawnErr> {
        let (actor, join) = Actor::spawn_linked(None, Supervisor, (name.into(), children), parent).await?;
        Ok((Self(actor), join))
    }

    /// Starts another child.
    ///
    /// # Errors
    /// `NameTaken`, `NotStarted` or `Stopped`.
    pub async fn start_child(&self, spec: ChildSpec) -> Result<ActorCell, SupervisorError> {
        call!(self.0, Ask::Start, Box::new(spec)).unwrap_or(Err(SupervisorError::Stopped))
    }

    /// Stops a child and forgets it.
    ///
    /// # Errors
    /// `Unknown` or `Stopped`.
    pub async fn stop_child(&self, name: impl Into<Arc<str>>) -> Result<(), SupervisorError> {
        call!(self.0, Ask::Stop, name.into()).unwrap_or(Err(SupervisorError::Stopped))
    }

    /// Starts an isolated child now, with a clean history; a running one is left alone.
    ///
    /// # Errors
    /// `Unknown` or `Stopped`.
    pub async fn revive(&self, name: impl Into<Arc<str>>) -> Result<(), SupervisorError> {
        call!(self.0, Ask::Revive, name.into()).unwrap_or(Err(SupervisorError::Stopped))
    }

    /// The children in the order in which they were started. A child that stopped cleanly is no longer among them.
    ///
    /// # Errors
    /// `Stopped`.
    pub async fn children(&self) -> Result<Vec<ChildStatus>, SupervisorError> {
        call!(self.0, Ask::Children).map_err(|_| SupervisorError::Stopped)
    }

    /// One child.
    ///
    /// # Errors
    /// `Unknown` or `Stopped`.
    pub async fn child(&self, name: &str) -> Result<ChildStatus, SupervisorError> {
        self.children()
            .await?
            .into_iter()
            .find(|child| &*child.name == name)
            .ok_or_else(|| SupervisorError::Unknown { name: name.into() })
    }

    /// Stops the children in the reverse order of their start, then the supervisor.
    pub async fn stop(&self) {
        // An error here means that it has stopped already.
        let _ = self.0.get_cell().stop_and_wait(None, None).await;
    }

    /// The supervisor's own cell, to link it or to wait for it.
    #[must_use]
    pub fn cell(&self) -> ActorCell {
        self.0.get_cell()
    }
}

enum Ask {
    Start(Box<ChildSpec>, RpcReplyPort<Result<ActorCell, SupervisorError>>),
    Stop(Arc<str>, RpcReplyPort<Result<(), SupervisorError>>),
    Revive(Arc<str>, RpcReplyPort<Result<(), SupervisorError>>),
    Children(RpcReplyPort<Vec<ChildStatus>>),
    /// A back-off or a cool-down has passed.
    Due {
        name: Arc<str>,
        wait: u64,
    },
}

impl Message for Ask {}

struct Supervisor;

struct Tree {
    name: Arc<str>,
    children: Vec<Child>,
    /// Zero of the clock that [`Restarts`] sees.
    began: Instant,
    /// Numbers the waits, so that a timer that was overtaken by a revival is recognised.
    waits: u64,
}

struct Child {
    spec: ChildSpec,
    restarts: Restarts,
    now: Now,
}

enum Now {
    Running(ActorCell),
    Restarting { wait: u64 },
    Isolated { wait: u64 },
}

impl Actor for Supervisor {
    type Msg = Ask;
    type State = Tree;
    type Arguments = (Arc<str>, Vec<ChildSpec>);

    async fn pre_start(&self, myself: ActorRef<Ask>, (name, specs): Self::Arguments) -> Result<Tree, ActorProcessingErr> {
        let mut tree = Tree { name, children: Vec::with_capacity(specs.len()), began: Instant::now(), waits: 0 };
        // As in OTP, no second try here: what cannot come up at all is a fault of the set-up, and whoever starts us
        // shall hear of it.
        for spec in specs {
            tree.add(&myself, spec).await?;
        }
        Ok(tree)
    }

    async fn handle(&self, myself: ActorRef<Ask>, ask: Ask, tree: &mut Tree) -> Result<(), ActorProcessingErr> {
        // A reply that nobody waits for any more is no failure of ours.
        match ask {
            Ask::Start(spec, reply) => {
                let _ = reply.send(tree.add(&myself, *spec).await);
            }
            Ask::Stop(name, reply) => {
                let _ = reply.send(tree.remove(name).await);
            }
            Ask::Children(reply) => {
                let _ = reply.send(tree.children.iter().map(Child::status).collect());
            }
            Ask::Revive(name, reply) => {
                let found = tree.position(&name);
                let _ = reply.send(found.map(|_| ()).ok_or(SupervisorError::Unknown { name }));
                if let Some(index) = found.filter(|&index| tree.children[index].is_down()) {
                    tree.children[index].restarts.forgive();
                    tree.restart(&myself, index).await?;
                }
            }
            Ask::Due { name, wait } => {
                let Some(index) = tree.position(&name) else {
                    return Ok(());
                };
                let child = &mut tree.children[index];
                match child.now {
                    Now::Restarting { wait: current } if current == wait => {}
                    Now::Isolated { wait: current } if current == wait => child.restarts.forgive(),
                    _ => return Ok(()),
                }
                tree.restart(&myself, index).await?;
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Ask>,
        event: SupervisionEvent,
        tree: &mut Tree,
    ) -> Result<(), ActorProcessingErr> {
        let (id, cause, reason) = match event {
            SupervisionEvent::ActorTerminated(cell, state, reason) => {
                // A kill looks like a clean stop but for its reason; without the last state the task was cancelled.
                let killed = reason.as_deref() == Some(&*Signal::Kill.to_string());
                let cause = if killed || state.is_none() { Cause::Failed } else { Cause::Stopped };
                (cell.get_id(), cause, reason.unwrap_or_else(|| "stopped".to_owned()))
            }
            SupervisionEvent::ActorFailed(cell, error) => (cell.get_id(), Cause::Failed, error.to_string()),
            _ => return Ok(()),
        };
        // Not found: it was stopped on request and is forgotten already.
        match tree.running(id) {
            Some(index) => tree.ended(&myself, index, cause, &reason),
            None => Ok(()),
        }
    }

    async fn post_stop(&self, _myself: ActorRef<Ask>, tree: &mut Tree) -> Result<(), ActorProcessingErr> {
        // The later ones may lean on the earlier ones.
        for child in tree.children.drain(..).rev() {
            child.stop().await;
        }
        Ok(())
    }
}

impl Tree {
    async fn add(&mut self, myself: &ActorRef<Ask>, spec: ChildSpec) -> Result<ActorCell, SupervisorError> {
        if self.position(&spec.name).is_some() {
            return Err(SupervisorError::NameTaken { name: spec.name });
        }
        let cell =
            start(&spec, myself).await.map_err(|source| SupervisorError::NotStarted { name: spec.name.clone(), source })?;
        self.children.push(Child { restarts: Restarts::new(spec.policy, spec.lifetime), now: Now::Running(cell.clone()), spec });
        Ok(cell)
    }

    async fn remove(&mut self, name: Arc<str>) -> Result<(), SupervisorError> {
        let index = self.position(&name).ok_or(SupervisorError::Unknown { name })?;
        self.children.remove(index).stop().await;
        Ok(())
    }

    async fn restart(&mut self, myself: &ActorRef<Ask>, index: usize) -> Result<(), ActorProcessingErr> {
        let child = &mut self.children[index];
        match start(&child.spec, myself).await {
            Ok(cell) => {
                info!(supervisor.name = %self.name, child.name = %child.spec.name, "child {} is back", child.spec.name);
                child.now = Now::Running(cell);
                Ok(())
            }
            Err(error) => self.ended(myself, index, Cause::Failed, &error.to_string()),
        }
    }

    fn ended(&mut self, myself: &ActorRef<Ask>, index: usize, cause: Cause, reason: &str) -> Result<(), ActorProcessingErr> {
        let child = &mut self.children[index];
        let (supervisor, name) = (&self.name, child.spec.name.clone());
        let verdict = child.restarts.decide(self.began.elapsed(), cause, rand::random());
        let restarts = child.restarts.total();
        match verdict {
            Verdict::Leave => {
                self.children.remove(index);
                Ok(())
            }
            Verdict::Restart { after } => {
                let backoff_ms = after.as_millis();
                warn!(supervisor.name = %supervisor, child.name = %name, restarts, backoff_ms, reason,
                    "child {name} ended ({reason}), restart in {backoff_ms} ms");
                metrics::counter!("rookery_supervisor_restarts_total", "supervisor" => supervisor.to_string()).increment(1);
                let wait = self.wait(myself, name, after);
                self.children[index].now = Now::Restarting { wait };
                Ok(())
            }
            Verdict::GiveUp => {
                error!(supervisor.name = %supervisor, child.name = %name, restarts, reason,
                    "child {name} exhausted its restart intensity ({reason})");
                match child.spec.on_give_up {
                    OnGiveUp::Escalate => Err(Box::new(Escalation { supervisor: supervisor.clone(), child: name })),
                    OnGiveUp::Isolate { cool_down } => {
                        metrics::counter!("rookery_supervisor_isolations_total", "supervisor" => supervisor.to_string())
                            .increment(1);
                        let wait = self.wait(myself, name, cool_down);
                        self.children[index].now = Now::Isolated { wait };
                        Ok(())
                    }
                }
            }
        }
    }

    fn wait(&mut self, myself: &ActorRef<Ask>, name: Arc<str>, time: Duration) -> u64 {
        self.waits += 1;
        let wait = self.waits;
        // The timer ends by itself; when we are gone by then, its message goes nowhere.
        drop(myself.send_after(time, move || Ask::Due { name, wait }));
        wait
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.children.iter().position(|child| &*child.spec.name == name)
    }

    fn running(&self, id: ActorId) -> Option<usize> {
        self.children.iter().position(|child| matches!(&child.now, Now::Running(cell) if cell.get_id() == id))
    }
}

impl Child {
    fn is_down(&self) -> bool {
        !matches!(self.now, Now::Running(_))
    }

    fn status(&self) -> ChildStatus {
        ChildStatus {
            name: self.spec.name.clone(),
            state: match &self.now {
                Now::Running(cell) => ChildState::Running(cell.clone()),
                Now::Restarting { .. } => ChildState::Restarting,
                Now::Isolated { .. } => ChildState::Isolated,
            },
            restarts: self.restarts.total(),
        }
    }

    /// It is off the list by now, so the event of its end finds nothing to restart.
    async fn stop(self) {
        if let Now::Running(cell) = self.now
            && cell.stop_and_wait(None, Some(STOP_TIMEOUT)).await.is_err()
        {
            cell.kill();
        }
    }
}

async fn start(spec: &ChildSpec, myself: &ActorRef<Ask>) -> Result<ActorCell, StartError> {
    match tokio::time::timeout(START_TIMEOUT, (spec.start)(myself.get_cell())).await {
        Ok(started) => Ok(started?),
        // Dropping the start has ended the child.
        Err(_) => Err(StartError::Slow(START_TIMEOUT)),
    }
}

#[cfg(test)]
mod tests;
