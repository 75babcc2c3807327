//! What travels between the runtimes of one service: questions, and the answers to them, as postcard.
//!
//! The two ends may run different builds. So nothing here is ever changed but at its end: a body may gain fields after its
//! last one, and an enum variants after its last one. A reader passes over fields that it does not know, and reads zeros
//! (none, empty, false, 0) for those that the other end does not send.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    AskResult, Context, DeadLetter, IdempotencyKey, ProjectError, Slice,
    copies::{Evicted, Loan, Reader, Recall},
};
use crate::{
    entity::{Entity, Failure},
    event::{Fetched, Source},
    ids::{Seq, ShardId},
    service::Service,
};

/// What one node asks another.
#[derive(Serialize)]
#[serde(bound = "")]
pub(crate) enum Question<'a, S: Service> {
    /// Asks an entity to do something.
    Ask(Ask<'a, S>),
    /// Asks what only the owner of a shard, or the holder of an index, can answer.
    Query(&'a S::Query),
    /// Asks for the log after these positions, waiting for the first news.
    Log(&'a LogAsk),
    /// Applies a slice of a foreign log to a shard.
    Apply(ShardId, &'a Slice),
    /// Buries a poison record of a foreign log.
    Bury(ShardId, &'a DeadLetter),
    /// Applies a dead letter after all.
    Replay(ShardId, Source, Seq),
    /// The same as [`Question::Query`] about one entity, for a reader who would like to keep the answer.
    Borrow(&'a Reader, Uuid, &'a S::Query),
    /// Asks for more time with what was borrowed in a session, and says what of it was evicted.
    Extend(&'a Reader, u64, &'a [Evicted]),
    /// Asks a reader, in one of its lives, to give back what it has borrowed.
    Recall(u64, &'a Recall),
    /// Ends a session: its reader has given everything back.
    Return(&'a Reader, u64),
    /// Gives a dead letter to the shard that it concerns.
    Readdress(ShardId, &'a DeadLetter),
}

/// A command on its way.
pub(crate) struct Ask<'a, S: Service> {
    pub(crate) id: Uuid,
    pub(crate) command: &'a <S::Entity as Entity>::Command,
    pub(crate) context: &'a Context,
}

impl<S: Service> Serialize for Ask<'_, S> {
    fn serialize<T: serde::Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        let Context { traceparent, idempotency, .. } = self.context;
        (self.id, self.command, traceparent, idempotency).serialize(serializer)
    }
}

/// The same as it arrives.
#[derive(Deserialize)]
#[serde(bound = "")]
pub(crate) enum Asked<S: Service> {
    Ask(Uuid, <S::Entity as Entity>::Command, Option<Arc<str>>, Option<IdempotencyKey>),
    Query(S::Query),
    Log(LogAsk),
    Apply(ShardId, Slice),
    Bury(ShardId, DeadLetter),
    Replay(ShardId, Source, Seq),
    Borrow(Reader, Uuid, S::Query),
    Extend(Reader, u64, Vec<Evicted>),
    Recall(u64, Recall),
    Return(Reader, u64),
    Readdress(ShardId, DeadLetter),
}

/// Which records to read.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LogAsk {
    pub(crate) positions: Vec<(ShardId, Seq)>,
    pub(crate) bytes_max: usize,
    pub(crate) wait: Duration,
}

/// What the other node answers; the variants stand in the order of the questions of their time.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) enum Answer<S: Service> {
    Asked(AskResult<S>),
    Queried(Result<S::Answer, Failure>),
    Log(Result<Vec<Fetched>, LogRefusal>),
    Applied(Result<(), ProjectError>),
    Replayed(Result<bool, ProjectError>),
    /// The question came too late, or could not be read.
    Refused(Failure),
    /// To a reader: the answer, and how long it may be kept.
    Lent(Result<S::Answer, Failure>, Option<Loan>),
    /// How long a session lasts now; none: it is over.
    Extended(Option<Duration>),
    /// Nothing of it is shown any more. False: it was another that borrowed it.
    Recalled(bool),
}

/// Why another node could not read its log.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum LogRefusal {
    Unavailable(Failure),
    OutOfRange { shard: ShardId, position: Seq, floor: Seq, head: Seq },
}

/// A question with the time that is left for it; clocks of two nodes have nothing in common.
pub(crate) fn encode<S: Service>(question: &Question<'_, S>, deadline: Instant) -> Result<Bytes, postcard::Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    postcard::to_allocvec(&(left, question)).map(Bytes::from)
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, postcard::Error> {
    match postcard::from_bytes(bytes) {
        // Bodies arrive whole or not at all, so one that ends early is of a build that has fewer fields.
        Err(postcard::Error::DeserializeUnexpectedEnd) => postcard::from_bytes(&[bytes, &[0; ADDED_MAX]].concat()),
        read => read,
    }
}

/// How many bytes the fields may take that were added since the oldest build that this one links to, each of them zero.
const ADDED_MAX: usize = 64;

pub(crate) fn answer<S: Service>(answer: &Answer<S>) -> Bytes {
    postcard::to_allocvec(answer).expect("an answer is plain data").into()
}

#[cfg(test)]
mod tests;
