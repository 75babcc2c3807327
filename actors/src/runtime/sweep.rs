//! Bounded steps that finish what a committed change has left to do: rows by the thousand that it has made void
//! ([0016](../../../docs/adr/0016-cascades-leave-in-slices.md)).

use super::{Committed, Runtime, Unit, committer, project, shard::ApplyTurn};
use crate::{
    entity::Failure,
    ids::{Epoch, ShardId},
    service::Service,
};

/// The turn to look at the committed rows of a shard and to write what follows from them.
///
/// What SQL shows from now on is what the shard's own writes have made of it, and stays so but for what commands of entities
/// change: no foreign record is applied meanwhile, and no other step looks.
pub struct Sweep {
    shard: ShardId,
    epoch: Epoch,
    turn: ApplyTurn,
}

impl<S: Service> Runtime<S> {
    /// Waits for the turn to sweep a shard that is served here. Rows are to be read after it, never before: a step whose
    /// outcome was open when its caller went away is resolved by then, so no row is taken for what it was before that step.
    ///
    /// # Errors
    /// [`Failure::Moved`]: the shard is not served here.
    pub async fn sweep(&self, shard: ShardId) -> Result<Sweep, Failure> {
        let state = &self.inner.shards[shard.index()];
        let turn = state.turn_to_apply().await;
        // Before SQL is asked: rows that were read under one tenure decide nothing under another.
        let epoch = project::serving(&self.inner, shard)?;
        state.settled().await;
        Ok(Sweep { shard, epoch, turn })
    }

    /// Commits what a look at the rows has found, as one write of the shard. The turn goes with the unit: it ends when the
    /// outcome is known, also if nobody waits for it.
    ///
    /// # Errors
    /// Why it was not committed.
    pub async fn commit_sweep(&self, sweep: Sweep, unit: Unit<S>) -> Result<Committed, Failure> {
        let Sweep { shard, epoch, turn } = sweep;
        let unit = Unit { turn: Some(turn), ..unit };
        let submitted = committer::submit(&self.inner, shard, epoch, unit).await.map_err(Failure::from)?;
        Ok(committer::landed(submitted).await?)
    }
}
