//! What the directory of a service said when it was last asked: for routing, and for status.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rookery_actors::{
    ids::{Epoch, Incarnation, ShardId},
    runtime::{MemberRow, ShardRow},
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::placement::Placement;

/// Who is there, who owns what, and who should.
#[derive(Clone, Debug)]
pub struct View {
    /// Everybody who is not dead, sorted by node.
    pub members: Vec<MemberRow>,
    /// All shards; none before the first answer.
    pub shards: Vec<ShardRow>,
    /// Where they should be, by the members that may be given shards.
    pub placement: Arc<Placement>,
    /// Before the directory was asked.
    pub asked: Instant,
    /// No member has shown a sign of life for two leases: whoever asks waits for nobody.
    pub unserved: bool,
}

/// A shard that is not where it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move<'a> {
    /// Which.
    pub shard: ShardId,
    /// The node that owns it; none: nobody who lives does.
    pub from: Option<&'a str>,
    /// The node that should.
    pub to: &'a str,
    /// Its owner is about to hand it over.
    pub is_marked: bool,
}

impl View {
    pub(super) fn nothing() -> Self {
        let asked = Instant::now();
        Self { members: Vec::new(), shards: Vec::new(), placement: Arc::default(), asked, unserved: false }
    }

    /// A member that is not dead.
    pub fn member(&self, incarnation: Incarnation) -> Option<&MemberRow> {
        self.members.iter().find(|member| member.incarnation == incarnation)
    }

    /// The member that owns a shard; `None`: nobody who lives does, as far as is known.
    pub fn owner(&self, shard: ShardId) -> Option<&MemberRow> {
        self.member(self.shards.get(shard.index())?.owner?)
    }

    /// The epoch of a shard; 0 before the first answer.
    pub fn epoch(&self, shard: ShardId) -> Epoch {
        self.shards.get(shard.index()).map_or(0, |row| row.epoch)
    }

    /// The shards that are not where they should be.
    pub fn moves(&self) -> impl Iterator<Item = Move<'_>> {
        self.shards.iter().filter_map(|row| {
            let from = self.owner(row.id).map(|member| member.node.as_str());
            let to = self.placement.owner(row.id)?;
            (from != Some(to)).then_some(Move { shard: row.id, from, to, is_marked: row.target.is_some() })
        })
    }
}

/// The way to a membership at work: what it sees, and how to make it look now. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Contact(Arc<Board>);

/// Between a membership and those who watch it.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) view: watch::Sender<Arc<View>>,
    /// The epochs under which shards are served here; 0: not.
    pub(super) served: watch::Sender<Vec<Epoch>>,
    pub(super) draining: watch::Sender<Draining>,
    /// Most of the other members are alive and out of reach.
    pub(super) cut_off: AtomicBool,
    news: Notify,
    granted: Mutex<Vec<ShardId>>,
}

/// How far a drain has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Draining {
    No,
    Asked,
    /// Nothing is owned any more, or nobody is there who could be given it.
    Done,
}

impl Board {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            view: watch::Sender::new(Arc::new(View::nothing())),
            served: watch::Sender::default(),
            draining: watch::Sender::new(Draining::No),
            cut_off: AtomicBool::new(false),
            news: Notify::new(),
            granted: Mutex::default(),
        })
    }

    pub(super) fn contact(self: &Arc<Self>) -> Contact {
        Contact(Arc::clone(self))
    }

    /// Makes the membership look now.
    pub(super) fn poke(&self) {
        self.news.notify_one();
    }

    /// Waits for a poke.
    pub(super) async fn poked(&self) {
        self.news.notified().await;
    }

    /// What we were told that we were granted.
    pub(super) fn take_granted(&self) -> Vec<ShardId> {
        std::mem::take(&mut *self.granted.lock().expect("no panic under this lock"))
    }
}

impl Contact {
    /// What the directory says; changes with every poll.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.0.view.subscribe()
    }

    /// The epochs under which shards are served here, by shard; 0: not.
    pub fn served(&self) -> watch::Receiver<Vec<Epoch>> {
        self.0.served.subscribe()
    }

    /// Whether this node reaches too few of the other members to be of use to them.
    pub fn is_cut_off(&self) -> bool {
        self.0.cut_off.load(Ordering::Relaxed)
    }

    /// Has the directory asked now rather than with the next poll: a peer's link died, say, or nobody serves a shard.
    pub fn poke(&self) {
        self.0.poke();
    }

    /// Takes up what another member says it has granted to us; true once all of it is served here.
    ///
    /// Harmless if it is not true: the directory says what is ours.
    pub async fn take_up(&self, granted: &[(ShardId, Epoch)], within: Duration) -> bool {
        self.0.granted.lock().expect("no panic under this lock").extend(granted.iter().map(|(shard, _)| *shard));
        self.0.poke();
        let mut served = self.0.served.subscribe();
        let all = served
            .wait_for(|served| granted.iter().all(|(shard, epoch)| served.get(shard.index()).is_some_and(|now| now >= epoch)));
        tokio::time::timeout(within, all).await.is_ok_and(|served| served.is_ok())
    }
}
