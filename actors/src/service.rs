//! What one service supplies to the machinery that all of them share.

use std::{collections::HashMap, future::Future, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    entity::{Entity, Failure},
    event::Record,
    ids::ShardId,
    runtime::{Connection, Pooled, Runtime, Unit, is_own_fault},
    table::Tables,
};

/// An id and its entity's event.
pub type Effect<S> = (Uuid, <<S as Service>::Entity as Entity>::Event);

/// A service: its entity, its tables, its topic and what it makes of others' topics.
pub trait Service: Send + Sync + 'static + Sized {
    /// `users`, `posts`, `comments`, `search`: also its database and its role.
    const NAME: &'static str;
    /// The one kind of entity it has.
    type Entity: Entity;
    /// The tables that its batches write, besides those of the log.
    type Writes: Tables;
    /// What a command is answered with, taken from memory after the commit; kept with an idempotency key.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// What a committed projection tells this node's read models, besides its effects on entities.
    type Note: Send + Sync + 'static;
    /// What only the owner of a shard, or the holder of an index, can answer; asked from any node.
    type Query: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// Its answers.
    type Answer: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What must be asked of SQL before a command can be decided.
    type Need: Send;

    /// The committed states of these entities; absent ones are left out.
    fn load(
        &self,
        client: &Connection,
        ids: &[Uuid],
    ) -> impl Future<Output = Result<HashMap<Uuid, Self::Entity>, LoadError>> + Send;

    /// What `decide` needs beyond the state, if anything.
    fn need(&self, id: Uuid, state: Option<&Self::Entity>, command: &<Self::Entity as Entity>::Command) -> Option<Self::Need>;

    /// Asks SQL for it.
    fn look_up(
        &self,
        client: Pooled,
        id: Uuid,
        need: Self::Need,
    ) -> impl Future<Output = Result<<Self::Entity as Entity>::Facts, LoadError>> + Send;

    /// Whether the command begins the life of an id that was minted for it, so that there is nothing to load.
    fn creates(command: &<Self::Entity as Entity>::Command) -> bool;

    /// Turns events into rows and records.
    fn write(
        &self,
        shard: ShardId,
        id: Uuid,
        state: Option<&Self::Entity>,
        events: &[<Self::Entity as Entity>::Event],
        unit: &mut Unit<Self>,
    );

    /// The answer, from the state after the events and the events themselves.
    fn reply(id: Uuid, state: Option<&Self::Entity>, events: &[<Self::Entity as Entity>::Event]) -> Self::Reply;

    /// A rejection for a row that another's unique row kept out, named by its constraint.
    fn refused(constraint: &str) -> Option<<Self::Entity as Entity>::Rejection>;

    /// The memory that the entity takes, in bytes, roughly.
    fn weight(state: Option<&Self::Entity>) -> usize;

    /// Called after every committed change of a loaded or new entity, in order: for read models of this node.
    fn committed(&self, _shard: ShardId, _id: Uuid, _state: Option<&Self::Entity>, _events: &[<Self::Entity as Entity>::Event]) {}

    /// Whether an event that another log caused ends the entity for all commands: none that was decided before it is committed
    /// after it, but is decided again.
    fn is_final(_event: &<Self::Entity as Entity>::Event) -> bool {
        false
    }

    /// Shards came or went on this node: read models that span shards begin anew.
    fn shards_changed(&self) {}

    /// Takes a projection's note after its commit.
    fn noted(&self, _note: Self::Note) {}

    /// The ids whose shards a foreign record concerns; none: nobody here.
    fn concerns(&self, record: &Foreign<'_>) -> Result<Vec<Uuid>, Poison>;

    /// Answers a query from what is served here; [`Failure::Moved`]: not (all of it) any more.
    fn answer(
        runtime: &Runtime<Self>,
        query: &Self::Query,
        deadline: Instant,
    ) -> impl Future<Output = Result<Self::Answer, Failure>> + Send;

    /// Whether whoever asked may keep an answer: it shows the state of the one entity that was asked for, which is there,
    /// and nothing else of its owner's memory. Such an answer is called back before the entity changes.
    fn is_lendable(_answer: &Self::Answer) -> bool {
        false
    }

    /// Adds to `unit` what a foreign record means for the shard of `id`.
    fn project(&self, record: &Foreign<'_>, id: Uuid, unit: &mut Unit<Self>) -> Result<(), Poison>;
}

/// A record with the log that it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Foreign<'a> {
    /// The log and shard.
    pub source: crate::event::Source,
    /// The record.
    pub record: &'a Arc<Record>,
    /// It was a dead letter: later ones were applied before it.
    pub replayed: bool,
}

impl Foreign<'_> {
    /// The payload as the consumer's type.
    ///
    /// # Errors
    /// [`Poison`] when it does not parse: it never will.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Poison> {
        let payload = self.record.payload.as_deref().ok_or_else(|| Poison("the record has no payload".to_owned()))?;
        serde_json::from_str(payload).map_err(|error| Poison(format!("the payload does not parse: {error}")))
    }
}

/// A record that can never be applied; the reason goes with it to the dead letters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Poison(pub String);

/// Committed state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The database said no or did not answer.
    #[error("the database did not answer")]
    Database(#[from] tokio_postgres::Error),
    /// A row holds what this version does not understand.
    #[error("a stored row does not parse: {0}")]
    Corrupt(String),
}

impl LoadError {
    /// Whether it says something of the rows that were asked for, and others can be read.
    pub(crate) fn is_own_fault(&self) -> bool {
        match self {
            Self::Database(error) => is_own_fault(error),
            Self::Corrupt(_) => true,
        }
    }
}

impl From<LoadError> for crate::entity::Failure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Database(error) => error.into(),
            LoadError::Corrupt(reason) => Self::Refused(format!("a stored row does not parse: {reason}")),
        }
    }
}

/// A checked value as it was stored; what was stored is trusted.
pub(crate) fn stored<T: DeserializeOwned>(value: impl Into<serde_json::Value>) -> Result<T, LoadError> {
    serde_json::from_value(value.into()).map_err(|error| LoadError::Corrupt(error.to_string()))
}
