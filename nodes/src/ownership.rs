//! Membership of one service on this node: renews the lease, watches the others, takes what nobody serves, hands over
//! what others should have.
//!
//! Postgres arbitrates; everything here is a loop that may die at any line and begin again.

mod announce;
mod former;
mod looking;
mod member;
mod moves;
mod observer;
mod reach;
mod sightings;
mod view;

use std::{sync::Arc, time::Duration};

use rookery_actors::{
    ids::{Incarnation, ShardId},
    runtime::{Database, Directory, DirectoryError, PoolSize, Runtime},
    service::Service,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
};
use uuid::Uuid;

pub use self::{
    announce::{Announce, Untold},
    former::{Former, LastLife},
    observer::Observer,
    view::{Contact, Move, View},
};
use self::{
    member::Member,
    view::{Board, Draining},
};

/// Groups of shards that a node hands over at a time, whatever their service. With two the same takes as long, and each waits
/// for the other.
const HAND_OFFS_MAX: usize = 1;

/// How long a silent member keeps what it owns.
#[derive(Clone, Copy, Debug)]
pub struct LeaseSettings {
    /// The lease's length.
    pub ttl: Duration,
    /// Between two renewals.
    pub renew_every: Duration,
}

/// Who joins, and how it hears and tells of changes.
#[derive(Clone)]
pub struct Membership {
    /// The node's name.
    pub node: String,
    /// Where the node's link listens; none on a lone node.
    pub address: Option<String>,
    /// The lease.
    pub lease: LeaseSettings,
    /// What the caller knows of those who were members under this name.
    pub former: Former,
    /// Called when shards came or went, before they answer.
    pub changed: Arc<dyn Fn() + Send + Sync>,
    /// Tells others what they were granted.
    pub announce: Arc<dyn Announce>,
    /// Who hands a group over has one of these, and all services of a node share them.
    pub hand_offs: Arc<Semaphore>,
}

impl Membership {
    /// A node that tells nobody anything.
    pub fn new(node: impl Into<String>, lease: LeaseSettings) -> Self {
        Self {
            node: node.into(),
            address: None,
            lease,
            former: Former::Ignored,
            changed: Arc::new(|| {}),
            announce: Arc::new(Untold),
            hand_offs: hand_offs(),
        }
    }
}

/// The turn of a node's services at handing a group of shards over. While everything moves at once, everything that
/// moves waits for the same processors and the same disk.
pub fn hand_offs() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(HAND_OFFS_MAX))
}

/// A member at work; ends with [`Ownership::leave`].
pub struct Ownership {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    board: Arc<Board>,
}

impl Ownership {
    /// Prepares the directory, joins it and begins to serve.
    ///
    /// # Errors
    /// When the directory does not answer, or belongs to another number of shards; when another node of the name is alive.
    pub async fn start<S: Service>(runtime: Runtime<S>, membership: Membership) -> Result<Self, DirectoryError> {
        let board = Board::new();
        let member = Member::join(runtime.clone(), membership, Arc::clone(&board)).await.inspect_err(|_| {
            // Whoever tries again is somebody else: the database may know of this one, and what it began ends with it.
            runtime.lease().revoke();
            close_all(&runtime);
            runtime.reincarnate(Incarnation(Uuid::new_v4()));
        })?;
        let (stop, stopped) = watch::channel(false);
        let task = runtime.spawn_vital("the membership", member.run(stopped));
        Ok(Self { stop, task, board })
    }

    /// How many shards are served here.
    pub fn owned(&self) -> usize {
        self.board.served.borrow().iter().filter(|epoch| **epoch != 0).count()
    }

    /// What this member sees, and how to make it look now.
    pub fn contact(&self) -> Contact {
        self.board.contact()
    }

    /// Wants no more shards and hands over what it has, to whom the placement gives it; true once nothing is left, or
    /// nobody is there to hand it to.
    ///
    /// It goes on serving what is left, until [`Ownership::leave`].
    pub async fn drain(&self, within: Duration) -> bool {
        self.board.draining.send_if_modified(|draining| {
            let begins = *draining == Draining::No;
            if begins {
                *draining = Draining::Asked;
            }
            begins
        });
        self.board.poke();
        let mut draining = self.board.draining.subscribe();
        let done = draining.wait_for(|draining| *draining == Draining::Done);
        tokio::time::timeout(within, done).await.is_ok_and(|done| done.is_ok())
    }

    /// Stops renewing and gives everything up. The runtime must have answered what waited for commits.
    pub async fn leave(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the membership ended badly");
        }
    }
}

/// All of them: one whose last commit is in doubt is not served, and must not come back under another name.
fn close_all<S: Service>(runtime: &Runtime<S>) {
    for shard in (0..runtime.shards()).map(ShardId) {
        runtime.close(shard);
    }
}

/// Declares dead who is for certain of those who are members of a service under a node's name, for a parent process that has
/// reaped it and not yet started another; how many there were.
///
/// # Errors
/// When the database does not answer.
pub async fn bury(
    database: &tokio_postgres::Config,
    service: &'static str,
    node: &str,
    former: &Former,
) -> Result<usize, DirectoryError> {
    let database = Database::new(database.clone(), "rookery-parent", PoolSize::default());
    let directory = Directory::open(&database, service, Incarnation(Uuid::new_v4())).await?;
    let mut buried = 0;
    for member in directory.members().await?.into_iter().filter(|member| member.node == node && former.is_dead(member)) {
        buried += usize::from(directory.declare_dead(member.incarnation, None).await?);
    }
    Ok(buried)
}
