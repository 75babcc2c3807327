//! Copies are called back: before a change is queued, and before a shard is handed over.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{BootTime, Session, session};
use crate::{
    ids::ShardId,
    runtime::{
        Inner, Runtime,
        shard::Shard,
        wire::{Answer, Question},
    },
    service::Service,
};

/// Before a reader that did not answer is asked again, doubled each time.
const AGAIN_AFTER: Duration = Duration::from_millis(10);

/// What a reader is to give up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Recall {
    Entities(Vec<Uuid>),
    Shards(Vec<ShardId>),
}

/// As long as it lives, nothing of these entities is lent.
pub(crate) struct Recalling<'a, S: Service> {
    shard: &'a Shard<S>,
    ids: &'a [Uuid],
}

impl<S: Service> Drop for Recalling<'_, S> {
    fn drop(&mut self) {
        self.shard.in_flight.lock().expect("no panic under this lock").lent.end_recall(self.ids);
    }
}

/// Calls back what is lent of these entities, of a shard: returns when no reader shows any of it any more.
///
/// Dropped on the way it leaves written down what was not given back.
pub(crate) async fn call_back<'a, S: Service>(inner: &Arc<Inner<S>>, shard: &'a Shard<S>, ids: &'a [Uuid]) -> Recalling<'a, S> {
    let readers = shard.in_flight.lock().expect("no panic under this lock").lent.begin_recall(ids);
    let recalling = Recalling { shard, ids };
    join_all(readers.into_iter().map(async |(session, ids)| {
        ask_back(inner, &session, Recall::Entities(ids.clone())).await;
        shard.in_flight.lock().expect("no panic under this lock").lent.returned(&session, &ids);
    }))
    .await;
    recalling
}

/// As long as it lives, nothing of these shards is lent.
struct RecallingAll<'a, S: Service> {
    inner: &'a Inner<S>,
    shards: &'a [ShardId],
}

impl<S: Service> Drop for RecallingAll<'_, S> {
    fn drop(&mut self) {
        for id in self.shards {
            self.inner.shards[id.index()].in_flight.lock().expect("no panic under this lock").lent.end_recall_of_all();
        }
    }
}

/// Calls back everything that is lent of these shards, open or closed. Nothing more of them is lent meanwhile: the answer of a
/// reader erases all that it has in the books.
pub(crate) async fn call_back_shards<S: Service>(inner: &Arc<Inner<S>>, shards: &[ShardId]) {
    let mut by_session: Vec<(Arc<Session>, Vec<ShardId>)> = Vec::new();
    let readers = shards.iter().map(|id| {
        let mut flight = inner.shards[id.index()].in_flight.lock().expect("no panic under this lock");
        (id, flight.lent.begin_recall_of_all())
    });
    let readers: Vec<_> = readers.collect();
    let _recalling = RecallingAll { inner, shards };
    for (id, readers) in readers {
        for session in readers {
            match by_session.iter_mut().find(|(known, _)| *known == session) {
                Some((_, theirs)) => theirs.push(*id),
                None => by_session.push((session, vec![*id])),
            }
        }
    }
    join_all(by_session.into_iter().map(async |(session, shards)| {
        ask_back(inner, &session, Recall::Shards(shards.clone())).await;
        for id in shards {
            let mut flight = inner.shards[id.index()].in_flight.lock().expect("no panic under this lock");
            flight.lent.forget(|holder| *holder == session);
        }
    }))
    .await;
}

/// Asks a reader for what it has, until it says that it has nothing, or its session is over.
async fn ask_back<S: Service>(inner: &Arc<Inner<S>>, session: &Session, what: Recall) {
    let began = BootTime::now();
    let sent = Sent { session, recall: session.term().recall(began) };
    inner.copies.counts.recalled.fetch_add(1, Ordering::Relaxed);
    let runtime = Runtime { inner: Arc::clone(inner) };
    let question = Question::Recall(session.reader.life, &what);
    let mut pause = AGAIN_AFTER;
    loop {
        let left = session.term().left(BootTime::now());
        if left.is_zero() {
            inner.copies.counts.awaited.fetch_add(1, Ordering::Relaxed);
            break;
        }
        let asked = runtime.send(Arc::clone(&session.reader.node), &question, Instant::now() + left);
        // Who says that it never had anything may be another that was started under that name.
        if matches!(timeout(left, asked).await, Ok(Ok(Answer::Recalled(true)))) {
            break;
        }
        tokio::time::sleep(pause.min(left)).await;
        pause *= 2;
    }
    drop(sent);
    let waited_ns = BootTime::now().since(began).as_nanos() as u64;
    inner.copies.counts.waited_ns.fetch_add(waited_ns, Ordering::Relaxed);
}

/// A recall that was not answered yet.
struct Sent<'a> {
    session: &'a Session,
    recall: session::Recall,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        self.session.term().answered(self.recall);
    }
}
