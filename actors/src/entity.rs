//! Pure. What an entity is: rules that choose events and apply them, and nothing else.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The rules of one kind of entity.
///
/// `decide` chooses, `evolve` applies; neither knows a clock, randomness or a database, so time and ids
/// arrive inside the command. An entity that does not exist (yet, or any more) is `None`.
pub trait Entity: Sized + Send + Sync + 'static {
    /// What it can be asked to do, from another node too.
    type Command: Clone + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What happened; its effect on memory and rows is derived from it.
    type Event: Clone + Send + Sync + 'static;
    /// A business no: a value, not an error.
    type Rejection: Serialize + DeserializeOwned + Send + 'static;
    /// What `decide` must know beyond its memory, asked of SQL by key before it is called.
    type Facts: Default + Send + Sync + 'static;

    /// Chooses the events that answer a command. No events: nothing to do, and that is fine.
    ///
    /// # Errors
    /// The rejection, when the rules say no.
    fn decide(state: Option<&Self>, command: &Self::Command, facts: &Self::Facts) -> Result<Vec<Self::Event>, Self::Rejection>;

    /// Applies one committed event.
    fn evolve(state: &mut Option<Self>, event: &Self::Event);
}

/// What was asked cannot be answered, though the rules might have allowed it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Failure {
    /// No live owner, a database that does not answer, a lease that ran out. Nothing happened.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The shard is not served here (any more): the way leads elsewhere. Nothing happened.
    #[error("not served here: {0}")]
    Moved(String),
    /// A bounded queue is full. Nothing happened.
    #[error("overloaded: {0}")]
    Overloaded(String),
    /// The deadline passed before the work began. Nothing happened.
    #[error("the deadline passed")]
    Expired,
    /// The outcome is open: a retry with the same idempotency key finds out.
    #[error("unknown outcome: {0}")]
    Unknown(String),
    /// The entity crashed on this command; it is back with its committed state.
    #[error("the entity failed on this command")]
    Crashed,
    /// Crashed too often: isolated for a while.
    #[error("the entity is isolated after repeated failures")]
    Isolated,
    /// The idempotency key belongs to another request.
    #[error("the idempotency key was used with another request")]
    KeyReused,
    /// The database refuses what this would write or read, and would again: a fault of this command alone. Nothing happened.
    #[error("refused by the database: {0}")]
    Refused(String),
}

/// Why an ask was not answered with a reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum AskError<R> {
    /// The rules say no.
    #[error("rejected")]
    Rejected(R),
    /// It could not be asked.
    #[error(transparent)]
    Failed(#[from] Failure),
}
