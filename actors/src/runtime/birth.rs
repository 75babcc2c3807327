//! The first command of an entity whose id was minted for it: carried out by whoever asks, without an actor.
//!
//! Most posts are written once and from then on only read. Until the answer is out nobody else knows the id, so there is
//! nothing for an actor to keep apart; it comes to life with the next command, after this one has landed
//! ([`super::activation`]). With an idempotency key the id is not the only thing to be kept apart: that is an actor's work.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::FutureExt;
use tokio::time::Instant;

use super::{Accepted, AskResult, Context, Inner, Unit, activation, cell::Cell, committer, entity_actor};
use crate::{
    entity::{AskError, Entity, Failure},
    fail_point::{self, Point},
    service::Service,
};

type Command<S> = <<S as Service>::Entity as Entity>::Command;

/// Decides, commits and answers for an entity that has just been given its (empty) cell.
///
/// The committer folds the state in, so it gets there also when nobody waits for the answer any more.
pub(crate) async fn create<S: Service>(
    inner: &Arc<Inner<S>>,
    cell: &Arc<Cell<S>>,
    command: &Command<S>,
    context: &Context,
) -> AskResult<S> {
    // A rule that panics costs this command, as it would cost an actor; whoever asks goes on.
    let submitted = AtomicBool::new(false);
    let created = AssertUnwindSafe(carry_out(inner, cell, command, context, &submitted)).catch_unwind().await;
    let answer = created.unwrap_or_else(|_| {
        tracing::warn!(service.name = S::NAME, entity.id = %cell.id, "an entity failed as it was made");
        metrics::counter!("rookery_entity_failures_total", "service" => S::NAME).increment(1);
        let failure = if submitted.load(Ordering::Acquire) { activation::fell_under_way() } else { Failure::Crashed };
        Err(failure.into())
    });
    match &answer {
        // The committer still folds into it what may land.
        Ok(_) | Err(AskError::Failed(Failure::Unknown(_))) => {}
        // No repair of memory by hand: what the database thinks of it is loaded anew.
        Err(_) => activation::forget(inner, inner.shard(cell.id), cell),
    }
    answer
}

async fn carry_out<S: Service>(
    inner: &Arc<Inner<S>>,
    cell: &Arc<Cell<S>>,
    command: &Command<S>,
    context: &Context,
    under_way: &AtomicBool,
) -> AskResult<S> {
    if context.deadline <= Instant::now() {
        return Err(Failure::Expired.into());
    }
    let shard = inner.shard(cell.id);
    let events = S::Entity::decide(None, command, &Default::default()).map_err(AskError::Rejected)?;
    let reply = S::reply(cell.id, None, &events);
    let mut unit = Unit { touches: vec![cell.id], begins: true, ..Unit::of(inner.settings.shards) };
    inner.service.write(shard.id, cell.id, None, &events, &mut unit);
    unit.effects = events.into_iter().map(|event| (cell.id, event)).collect();
    let unit = entity_actor::seal(unit, context, &reply);
    let after_searchable = unit.after_searchable();
    let passed = fail_point::pass(Point::BeforeCommit, cell.id).await;
    passed.map_err(|refused| Failure::Unavailable(refused.to_string()))?;
    let refused = |error| entity_actor::refusal::<S>(error).error;
    under_way.store(true, Ordering::Release);
    let submitted = committer::submit(inner, shard.id, cell.epoch, unit).await;
    under_way.store(submitted.is_ok(), Ordering::Release);
    let submitted = submitted.map_err(refused)?;
    match tokio::time::timeout_at(context.deadline, committer::landed(submitted)).await {
        Ok(landed) => {
            let committed = landed.map_err(refused)?;
            let _ = fail_point::pass(Point::AfterCommit, cell.id).await;
            if let Some(after) = after_searchable {
                cell.tell(committed.seq - after);
            }
            Ok(Accepted { reply, shard: shard.id, seq: committed.seq })
        }
        Err(_) => Err(committer::overdue(inner).into()),
    }
}
