//! An owner gives shards away: admission closes, what is on its way lands, and one statement releases and grants.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    ConnectError, Directory, Granted, Inner, ShardRow,
    connection::STATEMENT_WITHIN,
    copies, describe, doubt,
    shard::Shard,
    transfer::{grant, outcome_is_open, take_over},
};
use crate::{
    episodes,
    ids::{Epoch, Incarnation, ShardId},
    service::Service,
};

/// How a hand-off went.
#[derive(Clone, Debug, Default)]
pub struct HandedOff {
    /// What left, with the epochs under which the new owner may serve it.
    pub granted: Vec<(ShardId, Epoch)>,
    /// How long those were closed here, at the longest.
    pub pause: Duration,
}

/// Hands shards to another member; those that are not granted are served here again, unless they are lost.
///
/// `patience`: how long commits that are on their way are waited for, with the door closed.
pub(crate) async fn hand_off<S: Service>(
    inner: &Arc<Inner<S>>,
    directory: &Directory,
    shards: &[ShardId],
    to: Incarnation,
    patience: Duration,
) -> HandedOff {
    let me = directory.tag.incarnation;
    if let Err(error) = directory.mark(shards, me, Some(to)).await {
        tracing::debug!(service.name = S::NAME, %error, "a hand-off cannot begin");
        return HandedOff::default();
    }
    let closed_at = Instant::now();
    let closing: Vec<&Shard<S>> = shards.iter().map(|shard| &inner.shards[shard.index()]).collect();
    let closing: Vec<&Shard<S>> = closing.into_iter().filter(|shard| shard.close_admission()).collect();
    let mut doors = Doors { inner, shards: closing.clone(), granting: false };
    let all = join_all(closing.iter().map(|shard| timeout_at(closed_at + patience, shard.drained())));
    // Nothing more is lent, so what is called back stays so: the new owner knows nothing of it.
    let lent: Vec<ShardId> = closing.iter().map(|shard| shard.id).collect();
    let called_back = copies::call_back_shards(inner, &lent);
    // Nor of what we were to wait for ourselves.
    let quiet = join_all(closing.iter().map(|shard| shard.quiet_is_over()));
    let (all, ..) = tokio::join!(all, called_back, quiet);
    let mut seen = Vec::new();
    for (shard, drained) in closing.iter().zip(all) {
        match drained {
            Ok(Some(epoch)) => seen.push(ShardRow { id: shard.id, epoch, owner: Some(me), target: Some(to) }),
            // Lost meanwhile, and closed.
            Ok(None) => {}
            Err(_) => {
                episodes::note("hand-offs of shards were put off, for commits take too long", S::NAME, 1);
                shard.reopen();
            }
        }
    }
    doors.granting = true;
    let granted = if seen.is_empty() { Vec::new() } else { granted(inner, directory, &seen, to).await };
    doors.granting = false;
    drop(doors);
    if granted.len() < shards.len()
        && let Err(error) = directory.mark(shards, me, None).await
    {
        tracing::debug!(service.name = S::NAME, %error, "the target of a hand-off stays written down");
    }
    HandedOff { granted, pause: closed_at.elapsed() }
}

/// The doors of shards that are handed over. Whatever becomes of that, also if it is given up in the middle, none stays closed: what
/// was not granted is served again. While the outcome of a grant is open nobody can say which that is: then all of it is given up
/// here, and its next owner, who may be us, finds it.
struct Doors<'a, S: Service> {
    inner: &'a Inner<S>,
    shards: Vec<&'a Shard<S>>,
    granting: bool,
}

impl<S: Service> Drop for Doors<'_, S> {
    fn drop(&mut self) {
        for shard in &self.shards {
            match self.granting {
                true => self.inner.memory.forget(shard.close_granted()),
                false => shard.reopen(),
            }
        }
    }
}

/// Grants what is closed, and gives it up here; what was not granted is ours still, or lost.
async fn granted<S: Service>(
    inner: &Arc<Inner<S>>,
    directory: &Directory,
    seen: &[ShardRow],
    to: Incarnation,
) -> Vec<(ShardId, Epoch)> {
    let me = directory.tag.incarnation;
    // A member that does not hear what became of a grant counts as one whose commits do not work (rule 10).
    let _unresolved = inner.commits.begin();
    let error = match grant(directory, seen, me, to).await {
        Ok(granted) => {
            let granted = granted.iter().map(|granted| (granted.shard, granted.epoch)).collect();
            return give_up(inner, granted);
        }
        Err(error) if !outcome_is_open(&error) => {
            episodes::warn("grants of shards are refused", S::NAME, describe(&error));
            return Vec::new();
        }
        Err(error) => error,
    };
    episodes::warn("the outcome of a hand-off is open, resolving it", S::NAME, describe(&error));
    let ours = taken_back(inner, directory, seen).await;
    for granted in &ours {
        inner.shards[granted.shard.index()].take_back(granted.epoch, granted.seq);
    }
    inner.batches.send_modify(|count| *count += 1);
    let left = |row: &&ShardRow| !ours.iter().any(|granted| granted.shard == row.id);
    give_up(inner, seen.iter().filter(left).map(|row| (row.id, row.epoch + 1)).collect())
}

/// What can be taken from ourselves was not granted and never will be; what cannot has gone (rule 3).
///
/// By the epochs that we know and no others: a shard that is ours under a later one may have been granted, written by its
/// new owner and granted back, and what we remember of it is old. Such a one is given up, and then opened anew.
async fn taken_back<S: Service>(inner: &Inner<S>, directory: &Directory, seen: &[ShardRow]) -> Vec<Granted> {
    let me = directory.tag.incarnation;
    let attempt = async || {
        let client = doubt::successor(inner, directory.tag).await?;
        Ok::<_, ConnectError>(take_over(&client, seen, Some(me), me).await?)
    };
    loop {
        match timeout(STATEMENT_WITHIN, attempt()).await {
            Ok(Ok(ours)) => return ours,
            Ok(Err(error)) => doubt::wait_for_the_database(inner, &error.describe()).await,
            Err(_) => doubt::wait_for_the_database(inner, "no answer").await,
        }
    }
}

fn give_up<S: Service>(inner: &Inner<S>, granted: Vec<(ShardId, Epoch)>) -> Vec<(ShardId, Epoch)> {
    for (shard, _) in &granted {
        inner.memory.forget(inner.shards[shard.index()].close_granted());
    }
    granted
}
