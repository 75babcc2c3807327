//! The way to a shard, wherever it is served: here by a direct call, elsewhere through the [`Router`].
//!
//! While a shard is on its way from one node to another nobody serves it. Whoever asks then waits, within bounds, and
//! asks again: a move is a pause, not a failure. Only when the service has had no live member for longer than a move or a
//! restart takes, an ask fails at once.

use std::{
    collections::HashMap,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join, join_all};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::Instant,
};
use uuid::Uuid;

use super::{AskResult, Context, Runtime, activation, wire};
use crate::{
    entity::{AskError, Entity, Failure},
    ids::ShardId,
    service::Service,
};

/// Asks that wait for an owner at a time, per service and node; more are refused as overload.
const WAITING_MAX: usize = 4_096;
/// The longest wait for an owner: longer than a takeover, shorter than a reader's patience.
const OWNER_WITHIN: Duration = Duration::from_secs(8);
/// Before the same way is tried again although nothing has changed, doubled each time.
const RETRY_AFTER: Duration = Duration::from_millis(5);
/// The longest of these pauses.
const RETRY_AFTER_MAX: Duration = Duration::from_millis(160);

/// How long whoever serves a shard is given before anybody looks whether it still does. An answer takes less, and an owner
/// that hands a shard over in order gives its answers before it does.
const ANSWER_WITHIN: Duration = Duration::from_millis(250);

type Command<S> = <<S as Service>::Entity as Entity>::Command;

/// The name of a node, unique in the cluster.
pub type NodeName = Arc<str>;

/// Knows who serves a shard, and carries questions there. One per node; `nodes` implements it over its links.
pub trait Router: Send + Sync + 'static {
    /// The name of this node.
    fn me(&self) -> NodeName;

    /// The node that serves a shard, as far as is known: a hint, for whoever is asked looks for itself.
    fn owner(&self, service: &'static str, shard: ShardId) -> Option<NodeName>;

    /// The other nodes that may serve shards of a service now.
    fn peers(&self, service: &'static str) -> Vec<NodeName>;

    /// Whether no member of a service has lived for so long that waiting for an owner is of no use.
    fn is_unserved(&self, service: &'static str) -> bool;

    /// Wakes when somebody, this node included, became an owner, or a node can be reached again.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Puts a question to another node: what [`Runtime::serve`] there makes of it.
    ///
    /// # Errors
    /// [`SendError`], which tells whether it may have been heard.
    fn send(
        &self,
        node: NodeName,
        service: &'static str,
        question: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Bytes, SendError>>;
}

/// Why a question came back without an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum SendError {
    /// It was not heard; nothing happened.
    #[error("not delivered: {0}")]
    Undelivered(String),
    /// It may have been heard; its outcome is open.
    #[error("the answer was lost: {0}")]
    Lost(String),
    /// Too many questions are under way to that node; nothing happened.
    #[error("too much is under way to that node")]
    Overloaded,
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Undelivered(_) => Self::Unavailable(error.to_string()),
            SendError::Lost(_) => Self::Unknown(error.to_string()),
            SendError::Overloaded => Self::Overloaded(error.to_string()),
        }
    }
}

/// Where a shard is served.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    Here,
    There(NodeName),
}

/// What may wait for an owner.
pub(crate) struct WaitingRoom(Semaphore);

impl Default for WaitingRoom {
    fn default() -> Self {
        Self(Semaphore::new(WAITING_MAX))
    }
}

impl<S: Service> Runtime<S> {
    /// Gives it the way to other nodes. Without one it is alone, and a shard that is not served here is served nowhere.
    pub fn connect(&self, router: Arc<dyn Router>) {
        assert!(self.inner.router.set(router).is_ok(), "a runtime is connected once");
    }

    /// The way to other nodes, if there are any.
    pub fn router(&self) -> Option<&Arc<dyn Router>> {
        self.inner.router.get()
    }

    /// Whether no node has served this service for so long that asks are not held any more.
    pub fn is_unserved(&self) -> bool {
        self.router().is_some_and(|router| router.is_unserved(S::NAME))
    }

    /// Asks an entity to do something, wherever it lives, and waits until that is committed or refused.
    ///
    /// # Errors
    /// The entity's rejection, or why it could not be asked.
    pub async fn ask(&self, id: Uuid, command: Command<S>, context: Context) -> AskResult<S> {
        let alternatives = context.idempotency.as_ref().map(|key| Arc::clone(&key.also_hashed)).unwrap_or_default();
        if alternatives.is_empty() {
            return self.ask_hashed(id, command, context).await;
        }
        let mut answer = self.ask_hashed(id, command.clone(), context.clone()).await;
        // A first answer may be kept under a hash that a former secret made. A key that is reused has done nothing, so asking
        // once more is harmless.
        for request_hash in alternatives.iter() {
            if !matches!(answer, Err(AskError::Failed(Failure::KeyReused))) {
                break;
            }
            let mut context = context.clone();
            if let Some(key) = &mut context.idempotency {
                key.request_hash = *request_hash;
            }
            answer = self.ask_hashed(id, command.clone(), context).await;
        }
        answer
    }

    async fn ask_hashed(&self, id: Uuid, command: Command<S>, context: Context) -> AskResult<S> {
        let mut pending = (command, context);
        let mut way = Way::to(self, self.shard_of(id), pending.1.deadline);
        loop {
            match way.next().await? {
                Place::Here => match self.ask_here(id, pending.0, pending.1).await {
                    activation::Asked::Answered(answer) => return answer,
                    activation::Asked::NotHere(failure, command, context) => {
                        way.missed(failure)?;
                        pending = (command, context);
                    }
                },
                place => {
                    let (command, context) = &pending;
                    match self.send_command(&place, id, command, context).await {
                        Ok(answer) => return answer,
                        Err(Missed { failure, repeatable: true }) => way.missed(failure)?,
                        Err(Missed { failure, .. }) => return Err(failure.into()),
                    }
                }
            }
        }
    }

    /// Asks an entity that lives here. Under its key a command may be asked again wherever it lives by then: it is carried
    /// out once, and answered as it was the first time (rule 15).
    async fn ask_here(&self, id: Uuid, command: Command<S>, context: Context) -> activation::Asked<S> {
        let is_keyed = context.idempotency.is_some() && self.router().is_some();
        let again = is_keyed.then(|| (command.clone(), context.clone()));
        let asked = pin!(activation::ask(&self.inner, id, command, context));
        let Some((command, context)) = again else { return asked.await };
        let asked = self.unless_moved(self.shard_of(id), &Place::Here, asked).await;
        asked.unwrap_or_else(|lost| activation::Asked::NotHere(lost.into(), command, context))
    }

    async fn send_command(
        &self,
        place: &Place,
        id: Uuid,
        command: &Command<S>,
        context: &Context,
    ) -> Result<AskResult<S>, Missed> {
        let Place::There(node) = place else { unreachable!("what lives here is asked here") };
        // Under its key a command that was heard is answered as it was the first time (rule 15).
        let once_more = context.idempotency.is_some();
        let question = wire::Question::Ask(wire::Ask::<S> { id, command, context });
        let sent = pin!(self.send(Arc::clone(node), &question, context.deadline));
        let answer = match once_more {
            true => self.unless_moved(self.shard_of(id), place, sent).await.flatten(),
            false => sent.await,
        };
        match answer {
            Ok(wire::Answer::Asked(answer)) => match answer {
                Err(AskError::Failed(failure @ Failure::Moved(_))) => Err(Missed { failure, repeatable: true }),
                answer => Ok(answer),
            },
            Ok(_) => Err(Missed { failure: strange_answer(), repeatable: false }),
            Err(error @ (SendError::Undelivered(_) | SendError::Overloaded)) => {
                Err(Missed { repeatable: error != SendError::Overloaded, failure: error.into() })
            }
            Err(error @ SendError::Lost(_)) => Err(Missed { failure: error.into(), repeatable: once_more }),
        }
    }

    /// Asks the owner of a shard something that changes nothing.
    ///
    /// # Errors
    /// Why it could not be asked.
    pub async fn query(&self, shard: ShardId, query: &S::Query, deadline: Instant) -> Result<S::Answer, Failure> {
        let mut way = Way::to(self, shard, deadline);
        loop {
            let place = way.next().await?;
            let asked = pin!(self.query_at(&place, query, deadline));
            let answer = self.unless_moved(shard, &place, asked).await.unwrap_or_else(|lost| Err(lost.into()));
            if let Some(answer) = way.arrived(&place, answer)? {
                return Ok(answer);
            }
        }
    }

    /// Asks the owners of these things, each node once, and those of what moved meanwhile again.
    ///
    /// # Errors
    /// When one of them could not be asked.
    pub async fn query_each<T: Clone>(
        &self,
        things: Vec<T>,
        id: impl Fn(&T) -> Uuid,
        query: impl Fn(Vec<T>) -> S::Query,
        deadline: Instant,
    ) -> Result<Vec<S::Answer>, Failure> {
        let (mut answers, mut left) = (Vec::new(), things);
        let mut way = None;
        while !left.is_empty() {
            let mut groups: HashMap<Place, Vec<T>> = HashMap::new();
            let mut missing = Vec::new();
            for thing in left {
                match self.place(self.shard_of(id(&thing))) {
                    Some(place) => groups.entry(place).or_default().push(thing),
                    None => missing.push(thing),
                }
            }
            let asked = groups.into_iter().map(async |(place, things)| {
                let query = query(things.clone());
                let one_of_them = self.shard_of(id(things.first().expect("a group has a member")));
                let answer = {
                    let asked = pin!(self.query_at(&place, &query, deadline));
                    self.unless_moved(one_of_them, &place, asked).await.unwrap_or_else(|lost| Err(lost.into()))
                };
                (answer, place, things)
            });
            let mut missed = Failure::Moved(format!("nobody serves some shards of {}", S::NAME));
            for (answer, place, things) in join_all(asked).await {
                match answer {
                    Ok(answer) => answers.push(answer),
                    Err(failure @ (Failure::Moved(_) | Failure::Unknown(_))) => {
                        missed = failure;
                        missing.extend(things);
                    }
                    Err(failure @ Failure::Unavailable(_)) if place != Place::Here => {
                        missed = failure;
                        missing.extend(things);
                    }
                    Err(failure) => return Err(failure),
                }
            }
            if let Some(first) = missing.first() {
                let way = way.get_or_insert_with(|| Way::to(self, self.shard_of(id(first)), deadline));
                way.missed(missed)?;
                way.pause().await?;
            }
            left = missing;
        }
        Ok(answers)
    }

    /// Asks every node that may serve shards of the service, this one included.
    pub async fn query_all(&self, query: &S::Query, deadline: Instant) -> Vec<(Option<NodeName>, Result<S::Answer, Failure>)> {
        let others = self.query_others(query, deadline);
        let (here, others) = join(self.query_at(&Place::Here, query, deadline), others).await;
        std::iter::once((None, here)).chain(others.into_iter().map(|(node, answer)| (Some(node), answer))).collect()
    }

    /// Asks one other node.
    ///
    /// # Errors
    /// Why it did not answer.
    pub async fn query_node(&self, node: &NodeName, query: &S::Query, deadline: Instant) -> Result<S::Answer, Failure> {
        self.query_at(&Place::There(Arc::clone(node)), query, deadline).await
    }

    /// Asks every other node that may serve shards of the service.
    pub async fn query_others(&self, query: &S::Query, deadline: Instant) -> Vec<(NodeName, Result<S::Answer, Failure>)> {
        let peers = self.router().map(|router| router.peers(S::NAME)).unwrap_or_default();
        let asked = peers.into_iter().map(async |node| {
            let answer = self.query_at(&Place::There(Arc::clone(&node)), query, deadline).await;
            (node, answer)
        });
        join_all(asked).await
    }

    pub(crate) async fn query_at(&self, place: &Place, query: &S::Query, deadline: Instant) -> Result<S::Answer, Failure> {
        match place {
            Place::Here => S::answer(self, query, deadline).await,
            Place::There(node) => match self.send(Arc::clone(node), &wire::Question::Query(query), deadline).await? {
                wire::Answer::Queried(answer) => answer,
                _ => Err(strange_answer()),
            },
        }
    }

    /// Asks a node, and reads its answer.
    pub(crate) async fn send(
        &self,
        node: NodeName,
        question: &wire::Question<'_, S>,
        deadline: Instant,
    ) -> Result<wire::Answer<S>, SendError> {
        Ok(self.send_measured(node, question, deadline).await?.0)
    }

    /// The same with the size of the answer, in bytes.
    pub(crate) async fn send_measured(
        &self,
        node: NodeName,
        question: &wire::Question<'_, S>,
        deadline: Instant,
    ) -> Result<(wire::Answer<S>, usize), SendError> {
        let router = self.router().ok_or_else(|| SendError::Undelivered("there are no other nodes".to_owned()))?;
        let question = wire::encode(question, deadline).map_err(|error| SendError::Undelivered(error.to_string()))?;
        let answer = router.send(node, S::NAME, question, deadline).await?;
        let read = wire::decode(&answer).map_err(|error| SendError::Lost(error.to_string()))?;
        Ok((read, answer.len()))
    }

    /// Where a shard is served, as far as is known.
    pub(crate) fn place(&self, shard: ShardId) -> Option<Place> {
        let here = self.inner.shards[shard.index()].tenure().map(|_| Place::Here);
        let Some(router) = self.router() else { return here };
        if here.is_some() && self.inner.lease.is_valid() {
            return here;
        }
        // Without a lease somebody else may serve it, and we be the last to hear of that from the directory.
        router.owner(S::NAME, shard).map(Place::There).or(here)
    }

    /// Waits for what was asked of a shard that was served at this place; no longer once it is served elsewhere.
    ///
    /// Only for what may be asked twice. A node that is cut off from its database keeps what it was asked until it reaches
    /// it again, while another has taken its shards over and could answer.
    ///
    /// # Errors
    /// [`SendError::Lost`], when it is served elsewhere.
    pub(crate) async fn unless_moved<T>(
        &self,
        shard: ShardId,
        place: &Place,
        mut asked: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, SendError> {
        let Some(router) = self.router() else { return Ok(asked.await) };
        if let Ok(answer) = tokio::time::timeout(ANSWER_WITHIN, asked.as_mut()).await {
            return Ok(answer);
        }
        let mut changes = router.changes();
        loop {
            if self.place(shard).is_some_and(|now| now != *place) {
                return Err(SendError::Lost(format!("{} shard {shard} is served elsewhere by now", S::NAME)));
            }
            tokio::select! {
                biased;
                answer = asked.as_mut() => return Ok(answer),
                changed = changes.changed() => if changed.is_err() {
                    return Ok(asked.await);
                }
            }
        }
    }
}

/// A try that did not reach the owner, and whether the next one may be made.
struct Missed {
    failure: Failure,
    repeatable: bool,
}

/// No node serves a service: nothing happened, and nobody is waited for.
pub(crate) fn unserved<S: Service>() -> Failure {
    Failure::Unavailable(format!("no node serves {}", S::NAME))
}

pub(crate) fn strange_answer() -> Failure {
    Failure::Unknown("a node answered something else than what it was asked".to_owned())
}

/// The tries to reach the owner of a shard, until one does or the time is up.
pub(crate) struct Way<'a, S: Service> {
    runtime: &'a Runtime<S>,
    shard: ShardId,
    deadline: Instant,
    changes: Option<watch::Receiver<u64>>,
    permit: Option<SemaphorePermit<'a>>,
    pause: Duration,
    missed: Option<Failure>,
}

impl<'a, S: Service> Way<'a, S> {
    pub(crate) fn to(runtime: &'a Runtime<S>, shard: ShardId, deadline: Instant) -> Self {
        let deadline = deadline.min(Instant::now() + OWNER_WITHIN);
        Self { runtime, shard, deadline, changes: None, permit: None, pause: RETRY_AFTER, missed: None }
    }

    /// Where to ask next; after a miss or without an owner only when there is news, or after a pause.
    pub(crate) async fn next(&mut self) -> Result<Place, Failure> {
        if self.missed.is_some() {
            self.pause().await?;
        }
        loop {
            if let Some(place) = self.runtime.place(self.shard) {
                return Ok(place);
            }
            self.missed(Failure::Moved(format!("nobody serves {} shard {}", S::NAME, self.shard)))?;
            self.pause().await?;
        }
    }

    /// Sorts what came of a question that changes nothing: the answer, or none if it is to be asked again.
    ///
    /// # Errors
    /// What is final.
    pub(crate) fn arrived<T>(&mut self, place: &Place, answer: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match answer {
            Err(failure @ (Failure::Moved(_) | Failure::Unknown(_))) => self.missed(failure).map(|()| None),
            Err(failure @ Failure::Unavailable(_)) if *place != Place::Here => self.missed(failure).map(|()| None),
            answer => answer.map(Some),
        }
    }

    /// Notes a try that did not reach the owner.
    ///
    /// # Errors
    /// The failure itself, when there is no other way.
    pub(crate) fn missed(&mut self, failure: Failure) -> Result<(), Failure> {
        if self.runtime.router().is_none() {
            return Err(failure);
        }
        self.missed = Some(failure);
        Ok(())
    }

    pub(crate) async fn pause(&mut self) -> Result<(), Failure> {
        let runtime = self.runtime;
        let router = runtime.router().expect("a lone runtime has failed before");
        if router.is_unserved(S::NAME) {
            return Err(match self.missed.take() {
                // An earlier try may have been heard.
                Some(open @ Failure::Unknown(_)) => open,
                _ => unserved::<S>(),
            });
        }
        if self.permit.is_none() {
            let room = runtime.inner.waiting.0.try_acquire();
            self.permit =
                Some(room.map_err(|_| Failure::Overloaded(format!("too many wait for shards of {} to move", S::NAME)))?);
        }
        let changes = self.changes.get_or_insert_with(|| router.changes());
        let until = Instant::now() + self.pause;
        if until >= self.deadline {
            let missed = self.missed.take();
            return Err(missed.unwrap_or_else(|| Failure::Moved(format!("{} shard {} moves", S::NAME, self.shard))));
        }
        // News about another shard wakes us as well; the way is then tried a little too early, which does no harm.
        let _ = tokio::time::timeout_at(until, changes.changed()).await;
        self.pause = (self.pause * 2).min(RETRY_AFTER_MAX);
        Ok(())
    }
}
