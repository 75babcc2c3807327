//! Foreign records become writes of our shards: in order, with the position, once (rule 16).

use std::{pin::pin, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    CommitError, DeadLetter, Inner, Runtime, Unit, activation, committer, dead_letters,
    route::{Place, strange_answer},
    shard::Shard,
    wire::{Answer, Question},
};
use crate::{
    entity::Failure,
    event::{Record, Source},
    fail_point::{self, Point},
    ids::{Epoch, Seq, ShardId, shard_of},
    service::{Foreign, Poison, Service},
};

/// Consecutive news of several sources for one shard.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Slice {
    /// Per source: the position that applying it reaches, and the records that concern the shard.
    pub parts: Vec<SlicePart>,
}

/// The part of a slice that comes from one source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SlicePart {
    /// The log and shard.
    pub source: Source,
    /// How far the source has been read once this is applied.
    pub position: Seq,
    /// In order.
    pub records: Vec<Arc<Record>>,
}

/// Why a slice was not applied.
#[derive(Clone, Debug, thiserror::Error, Serialize, Deserialize)]
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

/// The longest that another node is given to commit what it is told.
const APPLY_WITHIN: Duration = Duration::from_secs(10);

impl<S: Service> Runtime<S> {
    /// Applies a slice of a foreign log to a shard, once (rule 16): here or where it is served.
    ///
    /// # Errors
    /// [`ProjectError`]: an outage is to be repeated, a poison record comes back for its three tries.
    pub async fn apply(&self, shard: ShardId, slice: &Slice) -> Result<(), ProjectError> {
        match self.place(shard) {
            Some(place @ Place::There(_)) => match self.tell(shard, &place, &Question::Apply(shard, slice)).await? {
                Answer::Applied(answer) => answer,
                _ => Err(strange_answer().into()),
            },
            _ => self.apply_here(shard, slice).await,
        }
    }

    /// Skips a poison record: the dead letter and the position go in one transaction (rule 18).
    ///
    /// # Errors
    /// [`ProjectError::Failed`] when it could not be committed.
    pub async fn bury(&self, shard: ShardId, letter: DeadLetter) -> Result<(), ProjectError> {
        match self.place(shard) {
            Some(place @ Place::There(_)) => match self.tell(shard, &place, &Question::Bury(shard, &letter)).await? {
                Answer::Applied(answer) => answer,
                _ => Err(strange_answer().into()),
            },
            _ => self.bury_here(shard, letter).await,
        }
    }

    /// Applies a dead letter after all and takes it away, in one transaction. False: it is gone already.
    ///
    /// # Errors
    /// As [`Runtime::apply`]; the letter stays.
    pub async fn replay(&self, shard: ShardId, source: Source, seq: Seq) -> Result<bool, ProjectError> {
        match self.place(shard) {
            Some(place @ Place::There(_)) => match self.tell(shard, &place, &Question::Replay(shard, source, seq)).await? {
                Answer::Replayed(answer) => answer,
                _ => Err(strange_answer().into()),
            },
            _ => self.replay_here(shard, source, seq).await,
        }
    }

    async fn tell(&self, shard: ShardId, place: &Place, question: &Question<'_, S>) -> Result<Answer<S>, Failure> {
        let Place::There(node) = place else { unreachable!("what is served here is told here") };
        // What was applied is known by its position, so it may be told twice.
        let told = pin!(self.send(Arc::clone(node), question, Instant::now() + APPLY_WITHIN));
        Ok(self.unless_moved(shard, place, told).await.flatten()?)
    }

    pub(crate) async fn apply_here(&self, shard: ShardId, slice: &Slice) -> Result<(), ProjectError> {
        apply(&self.inner, shard, slice).await
    }

    pub(crate) async fn bury_here(&self, shard: ShardId, letter: DeadLetter) -> Result<(), ProjectError> {
        bury(&self.inner, shard, letter).await
    }

    pub(crate) async fn replay_here(&self, shard: ShardId, source: Source, seq: Seq) -> Result<bool, ProjectError> {
        dead_letters::replay(self, shard, source, seq).await
    }

    /// Gives a dead letter to the shard that it concerns, unless it has it.
    pub(crate) async fn readdress(&self, shard: ShardId, letter: &DeadLetter) -> Result<(), ProjectError> {
        match self.place(shard) {
            Some(place @ Place::There(_)) => match self.tell(shard, &place, &Question::Readdress(shard, letter)).await? {
                Answer::Applied(answer) => answer,
                _ => Err(strange_answer().into()),
            },
            _ => self.readdress_here(shard, letter.clone()).await,
        }
    }

    pub(crate) async fn readdress_here(&self, shard: ShardId, letter: DeadLetter) -> Result<(), ProjectError> {
        let epoch = serving(&self.inner, shard)?;
        let unit = Unit { dead: vec![letter], ..Unit::of(self.inner.settings.shards) };
        commit(&self.inner, shard, epoch, unit).await
    }
}

async fn apply<S: Service>(inner: &Arc<Inner<S>>, shard: ShardId, slice: &Slice) -> Result<(), ProjectError> {
    let state = &inner.shards[shard.index()];
    let turn = state.turn_to_apply().await;
    let epoch = serving(inner, shard)?;
    let mut unit = Unit { turn: Some(turn), ..Unit::of(inner.settings.shards) };
    for part in &slice.parts {
        let applied = state.inbox.lock().expect("no panic under this lock").get(&part.source).copied().unwrap_or(0);
        if part.position <= applied {
            continue;
        }
        // What was applied before is dropped, so asking twice is harmless.
        for record in part.records.iter().filter(|record| record.seq > applied) {
            let passed = fail_point::pass(Point::Projection, record.key).await;
            passed.map_err(|refused| ProjectError::Poison {
                source_shard: part.source,
                seq: record.seq,
                reason: refused.to_string(),
            })?;
            project(inner, shard, &Foreign { source: part.source, record, replayed: false }, &mut unit)?;
        }
        unit.inbox.push((part.source, part.position));
    }
    if unit.inbox.is_empty() {
        return Ok(());
    }
    commit(inner, shard, epoch, unit).await
}

async fn bury<S: Service>(inner: &Arc<Inner<S>>, shard: ShardId, letter: DeadLetter) -> Result<(), ProjectError> {
    let turn = inner.shards[shard.index()].turn_to_apply().await;
    let epoch = serving(inner, shard)?;
    let at = (letter.source, letter.record.seq);
    let applied = inner.shards[shard.index()].inbox.lock().expect("no panic under this lock").get(&at.0).copied();
    if applied.is_some_and(|applied| applied >= at.1) {
        // Buried before, by a bridge that did not live to hear of it.
        return Ok(());
    }
    let unit = Unit { turn: Some(turn), inbox: vec![at], dead: vec![letter], ..Unit::of(inner.settings.shards) };
    commit(inner, shard, epoch, unit).await
}

/// The epoch under which the shard is ours.
pub(crate) fn serving<S: Service>(inner: &Inner<S>, shard: ShardId) -> Result<Epoch, Failure> {
    inner.shards.get(shard.index()).and_then(Shard::tenure).ok_or_else(|| activation::moved::<S>(shard))
}

pub(crate) fn project<S: Service>(
    inner: &Inner<S>,
    shard: ShardId,
    foreign: &Foreign<'_>,
    unit: &mut Unit<S>,
) -> Result<(), ProjectError> {
    for id in inner.service.concerns(foreign).map_err(|poison| poisoned(foreign, poison))? {
        if shard_of(id, inner.settings.shards) == shard {
            inner.service.project(foreign, id, unit).map_err(|poison| poisoned(foreign, poison))?;
        }
    }
    Ok(())
}

/// The shards that a record concerns.
pub(crate) fn concerned<S: Service>(inner: &Inner<S>, foreign: &Foreign<'_>) -> Result<Vec<ShardId>, ProjectError> {
    let ids = inner.service.concerns(foreign).map_err(|poison| poisoned(foreign, poison))?;
    let mut shards: Vec<ShardId> = ids.into_iter().map(|id| shard_of(id, inner.settings.shards)).collect();
    shards.sort_unstable();
    shards.dedup();
    Ok(shards)
}

fn poisoned(foreign: &Foreign<'_>, poison: Poison) -> ProjectError {
    ProjectError::Poison { source_shard: foreign.source, seq: foreign.record.seq, reason: poison.0 }
}

/// Says which entities a unit touches, and which it ends.
pub(crate) fn prepare<S: Service>(unit: &mut Unit<S>) {
    unit.ends = unit.effects.iter().filter(|(_, event)| S::is_final(event)).map(|(id, _)| *id).collect();
    unit.touches = unit.effects.iter().map(|(id, _)| *id).collect();
    unit.touches.sort_unstable();
    unit.touches.dedup();
}

/// Commits what was projected; the entities that it changes do not load meanwhile.
pub(crate) async fn commit<S: Service>(
    inner: &Arc<Inner<S>>,
    shard: ShardId,
    epoch: Epoch,
    mut unit: Unit<S>,
) -> Result<(), ProjectError> {
    prepare(&mut unit);
    let submitted = committer::submit(inner, shard, epoch, unit).await.map_err(Failure::from)?;
    match committer::landed(submitted).await {
        Ok(_) => Ok(()),
        Err(CommitError::Refused { message, .. }) => Err(ProjectError::Refused(message)),
        Err(error) => Err(Failure::from(error).into()),
    }
}
