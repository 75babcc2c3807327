//! Foreign records become writes of our shards: in order, with the position, once (rule 16).

use std::sync::Arc;

use super::{CommitError, DeadLetter, Inner, Unit, committer};
use crate::{
    entity::Failure,
    event::{Record, Source},
    ids::{Seq, ShardId, shard_of},
    service::{Foreign, Poison, Service},
};

/// Consecutive news of several sources for one shard.
#[derive(Clone, Debug, Default)]
pub struct Slice {
    /// Per source: the position that applying it reaches, and the records that concern the shard.
    pub parts: Vec<SlicePart>,
}

/// The part of a slice that comes from one source.
#[derive(Clone, Debug)]
pub struct SlicePart {
    /// The log and shard.
    pub source: Source,
    /// How far the source has been read once this is applied.
    pub position: Seq,
    /// In order.
    pub records: Vec<Arc<Record>>,
}

/// Why a slice was not applied.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProjectError {
    /// This record can never be applied, as far as is known; nothing of the slice is in.
    #[error("record {seq} of {source_shard} cannot be applied: {reason}")]
    Poison {
        /// The log and shard.
        source_shard: Source,
        /// Which record.
        seq: Seq,
        /// Why.
        reason: String,
    },
    /// The database refused the slice as a whole: apply its records one by one to find the one at fault.
    #[error("the slice was refused: {0}")]
    Refused(String),
    /// An outage; try again.
    #[error(transparent)]
    Failed(#[from] Failure),
}

pub(crate) async fn apply<S: Service>(inner: &Arc<Inner<S>>, shard: ShardId, slice: &Slice) -> Result<(), ProjectError> {
    let state = &inner.shards[shard.index()];
    let not_ours = || Failure::Unavailable(format!("{} shard {shard} is not served here", S::NAME));
    let epoch = state.tenure().ok_or_else(not_ours)?;
    let mut unit = Unit::of(inner.settings.shards);
    for part in &slice.parts {
        let applied = state.inbox.lock().expect("no panic under this lock").get(&part.source).copied().unwrap_or(0);
        if part.position <= applied {
            continue;
        }
        // What was applied before is dropped, so asking twice is harmless.
        for record in part.records.iter().filter(|record| record.seq > applied) {
            project(inner, shard, part.source, record, &mut unit)?;
        }
        unit.inbox.push((part.source, part.position));
    }
    if unit.inbox.is_empty() {
        return Ok(());
    }
    unit.touches = unit.effects.iter().map(|(id, _)| *id).collect();
    unit.touches.sort_unstable();
    unit.touches.dedup();
    commit(inner, shard, epoch, unit).await
}

pub(crate) async fn bury<S: Service>(inner: &Arc<Inner<S>>, shard: ShardId, letter: DeadLetter) -> Result<(), ProjectError> {
    let state = &inner.shards[shard.index()];
    let epoch = state.tenure().ok_or_else(|| Failure::Unavailable(format!("{} shard {shard} is not served here", S::NAME)))?;
    let unit = Unit { inbox: vec![(letter.source, letter.record.seq)], dead: vec![letter], ..Unit::of(inner.settings.shards) };
    commit(inner, shard, epoch, unit).await
}

fn project<S: Service>(
    inner: &Inner<S>,
    shard: ShardId,
    source: Source,
    record: &Arc<Record>,
    unit: &mut Unit<S>,
) -> Result<(), ProjectError> {
    let foreign = Foreign { source, record };
    let poison = |poison: Poison| ProjectError::Poison { source_shard: source, seq: record.seq, reason: poison.0 };
    for id in inner.service.concerns(&foreign).map_err(poison)? {
        if shard_of(id, inner.settings.shards) == shard {
            inner.service.project(&foreign, id, unit).map_err(poison)?;
        }
    }
    Ok(())
}

async fn commit<S: Service>(inner: &Arc<Inner<S>>, shard: ShardId, epoch: i64, unit: Unit<S>) -> Result<(), ProjectError> {
    let submitted = committer::submit(inner, shard, epoch, unit).map_err(Failure::from)?;
    match submitted.await.unwrap_or(Err(CommitError::Unknown)) {
        Ok(_) => Ok(()),
        Err(CommitError::Refused { message, .. }) => Err(ProjectError::Refused(message)),
        Err(error) => Err(Failure::from(error).into()),
    }
}
