//! What a supervisor is told about a child, and what it tells.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use ractor::{ActorCell, SpawnErr};

use super::{
    SupervisorRef,
    restarts::{Lifetime, RestartPolicy},
};

type Started = Pin<Box<dyn Future<Output = Result<ActorCell, SpawnErr>> + Send>>;

/// How to start one child and what to do when it fails.
#[derive(Clone)]
pub struct ChildSpec {
    pub(super) name: Arc<str>,
    pub(super) start: Arc<dyn Fn(ActorCell) -> Started + Send + Sync>,
    pub(super) policy: RestartPolicy,
    pub(super) lifetime: Lifetime,
    pub(super) on_give_up: OnGiveUp,
}

/// What follows when a child fails beyond its restart intensity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnGiveUp {
    /// The supervisor fails too, and its own supervisor decides.
    Escalate,
    /// The child stays down, its siblings go on; it is tried again after the cool-down.
    Isolate {
        /// Time until the next try, with a clean history.
        cool_down: Duration,
    },
}

impl ChildSpec {
    /// A transient child with the default [`RestartPolicy`] that escalates.
    ///
    /// `start` gets the supervisor's cell and must spawn the child *linked* to it; it runs again for every restart.
    /// ```text
    /// ChildSpec::new("relay", move |supervisor| async move {
    ///     let (relay, _) = Actor::spawn_linked(None, Relay, (), supervisor).await?;
    ///     Ok(relay.get_cell())
    /// })
    /// ```
    pub fn new<F, Fut>(name: impl Into<Arc<str>>, start: F) -> Self
    where
        F: Fn(ActorCell) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<ActorCell, SpawnErr>> + Send + 'static,
    {
        Self {
            name: name.into(),
            start: Arc::new(move |supervisor| Box::pin(start(supervisor))),
            policy: RestartPolicy::default(),
            lifetime: Lifetime::default(),
            on_give_up: OnGiveUp::Escalate,
        }
    }

    /// A supervisor as a child: the next level of the tree. It is permanent and escalates.
    pub fn supervisor(name: impl Into<Arc<str>>, children: Vec<ChildSpec>) -> Self {
        let name = name.into();
        Self::new(name.clone(), move |parent| {
            let (name, children) = (name.clone(), children.clone());
            async move {
                let (supervisor, _) = SupervisorRef::spawn_linked(name, children, parent).await?;
                Ok(supervisor.cell())
            }
        })
        .permanent()
    }

    /// Restarts the child after a clean stop too.
    #[must_use]
    pub fn permanent(mut self) -> Self {
        self.lifetime = Lifetime::Permanent;
        self
    }

    /// Replaces the restart policy.
    #[must_use]
    pub fn policy(mut self, policy: RestartPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Isolates the child when its restart intensity is exhausted, and tries it again after `cool_down`.
    #[must_use]
    pub fn isolated_for(mut self, cool_down: Duration) -> Self {
        self.on_give_up = OnGiveUp::Isolate { cool_down };
        self
    }
}

impl fmt::Debug for ChildSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildSpec")
            .field("name", &self.name)
            .field("policy", &self.policy)
            .field("lifetime", &self.lifetime)
            .field("on_give_up", &self.on_give_up)
            .finish_non_exhaustive()
    }
}

/// One child as its supervisor sees it.
#[derive(Debug, Clone)]
pub struct ChildStatus {
    /// The name in its [`ChildSpec`].
    pub name: Arc<str>,
    /// Whether it can be talked to.
    pub state: ChildState,
    /// Restarts since it was first started.
    pub restarts: u64,
}

/// Whether a child can be talked to.
#[derive(Debug, Clone)]
pub enum ChildState {
    /// It runs; the cell dies with this incarnation.
    Running(ActorCell),
    /// It failed and waits for its back-off to pass.
    Restarting,
    /// It failed beyond its restart intensity and stays down for now.
    Isolated,
}

impl ChildState {
    /// True unless the child can be talked to.
    #[must_use]
    pub fn is_down(&self) -> bool {
        !matches!(self, Self::Running(_))
    }
}
