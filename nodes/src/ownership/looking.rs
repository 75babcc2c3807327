//! One look at the directory: what members and observers do alike.

use std::sync::Arc;

use rookery_actors::{
    ids::Incarnation,
    runtime::{Directory, DirectoryError, MemberRow, ShardRow},
};
use tokio::time::Instant;

use super::{
    LeaseSettings,
    sightings::Sightings,
    view::{Board, View},
};
use crate::placement::Placement;

pub(super) struct Looking {
    sightings: Sightings,
    placement: Arc<Placement>,
    board: Arc<Board>,
    /// Who looks, if it is a member.
    pub(super) me: Option<Incarnation>,
    began: Instant,
    asked: Instant,
}

impl Looking {
    pub(super) fn new(lease: LeaseSettings, board: Arc<Board>, me: Option<Incarnation>) -> Self {
        let now = Instant::now();
        Self { sightings: Sightings::new(lease), placement: Arc::default(), board, me, began: now, asked: now }
    }

    /// Asks the directory who is there and who owns what.
    pub(super) async fn ask(&mut self, directory: &Directory) -> Result<(Vec<MemberRow>, Vec<ShardRow>), DirectoryError> {
        self.asked = Instant::now();
        // In this order: whoever owned a shard is among the members then, or dead. The other way round an owner that has joined in
        // between looks like nobody.
        let shards = directory.shards().await?;
        let members = directory.members().await?;
        self.sightings.look(&members, self.began.elapsed());
        Ok((members, shards))
    }

    /// An answer did not come.
    pub(super) fn blink(&mut self) {
        self.sightings.blink(self.began.elapsed());
    }

    /// The members, other than who looks, of whom nothing was heard for longer than their lease.
    pub(super) fn silent<'a>(&self, members: &'a [MemberRow]) -> Vec<&'a MemberRow> {
        let silent = |member: &&MemberRow| Some(member.incarnation) != self.me && self.sightings.is_silent(member.incarnation);
        members.iter().filter(silent).collect()
    }

    /// Whether who looks has looked for long enough to hand anything over.
    pub(super) fn is_acquainted(&self) -> bool {
        self.me.is_some_and(|me| self.sightings.is_acquainted(me))
    }

    /// Whether a member has renewed lately, so that it will take up what it is given.
    pub(super) fn is_awake(&self, member: &MemberRow) -> bool {
        self.sightings.is_awake(member.incarnation)
    }

    /// The members that may be given shards, one per node, sorted by it.
    pub(super) fn eligible<'a>(&self, members: &'a [MemberRow]) -> Vec<&'a MemberRow> {
        self.sightings.eligible(members, self.me)
    }

    /// Tells everybody who watches, with where the shards should be.
    pub(super) fn publish(&mut self, members: Vec<MemberRow>, shards: Vec<ShardRow>) -> Arc<View> {
        let eligible: Vec<&str> = self.eligible(&members).into_iter().map(|member| member.node.as_str()).collect();
        // Who comes and goes is rare, and to place them all is not free.
        if eligible != self.placement.members() || self.placement.shards() != shards.len() {
            let count = u16::try_from(shards.len()).expect("shards are numbered by u16");
            self.placement = Arc::new(Placement::new(eligible, count));
        }
        let view = Arc::new(View {
            members,
            shards,
            placement: Arc::clone(&self.placement),
            asked: self.asked,
            unserved: self.sightings.is_unserved(),
        });
        self.board.view.send_replace(Arc::clone(&view));
        view
    }
}
