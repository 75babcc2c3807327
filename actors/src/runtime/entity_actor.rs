//! The actor around every entity, written once: decide, commit, publish the committed view, reply.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::{sync::oneshot, time::Instant};

use super::{
    Accepted, AskResult, CommitError, Context, IdempotencyKey, Inner, KeptReply, Unit, activation,
    cell::{Cell, MailboxPlace, Readiness},
    committer,
    shard::Shard,
};
use crate::{
    entity::{AskError, Entity, Failure},
    episodes,
    fail_point::{self, Point},
    ids::Seq,
    service::Service,
};

/// What an entity's mailbox takes.
pub(crate) enum EntityMessage<S: Service> {
    Command(Envelope<S>),
    Passivate,
}

impl<S: Service> ractor::Message for EntityMessage<S> {}

/// A command with its way back. One that is dropped unopened, because the actor stopped, returns to the sender.
pub(crate) struct Envelope<S: Service> {
    slot: Arc<Slot<S>>,
    #[expect(dead_code, reason = "held, not read: it ends with the envelope")]
    place: MailboxPlace,
}

/// The sender's end of an [`Envelope`].
pub(crate) struct Sent<S: Service> {
    slot: Arc<Slot<S>>,
    outcome: oneshot::Receiver<Outcome<S>>,
}

/// The command until somebody takes it out: the actor to execute it, or its sender to ask another one.
struct Slot<S: Service> {
    sealed: Mutex<Option<Sealed<S>>>,
    /// What it changes was given to the committer.
    submitted: AtomicBool,
}

type Sealed<S> = (<<S as Service>::Entity as Entity>::Command, Context, oneshot::Sender<Outcome<S>>);

pub(crate) enum Outcome<S: Service> {
    Answered(AskResult<S>),
    /// Nobody looked at it: it may be sent again.
    Undelivered(<S::Entity as Entity>::Command, Context),
}

/// Why a sender heard nothing.
pub(crate) enum Silence {
    /// The actor ended in the middle of the command. `submitted`: nobody here knows whether it is committed.
    Ended { submitted: bool },
    /// The deadline passed in the middle of the command.
    Overdue,
    /// The deadline passed before the actor came to the command, and now it never will.
    Expired,
}

/// How often a sender looks whether the actor still lives.
///
/// A channel's receiver that is dropped drops what was sent, but for a message whose sender has counted it and not yet
/// linked it in: that one stays in the channel for as long as anybody holds a sender, as whoever waits for its answer
/// does. It takes a thread that loses its processor between two instructions, which happens on a busy machine.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl<S: Service> Slot<S> {
    fn take(&self) -> Option<Sealed<S>> {
        self.sealed.lock().expect("no panic under this lock").take()
    }
}

impl<S: Service> Envelope<S> {
    pub(crate) fn seal(command: <S::Entity as Entity>::Command, context: Context, place: MailboxPlace) -> (Self, Sent<S>) {
        let (reply, outcome) = oneshot::channel();
        let sealed = Mutex::new(Some((command, context, reply)));
        let slot = Arc::new(Slot { sealed, submitted: AtomicBool::new(false) });
        (Self { slot: Arc::clone(&slot), place }, Sent { slot, outcome })
    }

    /// None: its sender has taken it back.
    fn open(self) -> Option<Sealed<S>> {
        self.slot.take()
    }
}

impl<S: Service> Drop for Envelope<S> {
    fn drop(&mut self) {
        if let Some((command, context, reply)) = self.slot.take() {
            let _ = reply.send(Outcome::Undelivered(command, context));
        }
    }
}

impl<S: Service> Sent<S> {
    /// How the command ended; `has_ended` tells whether the actor has.
    pub(crate) async fn outcome(mut self, deadline: Instant, has_ended: impl Fn() -> bool) -> Result<Outcome<S>, Silence> {
        loop {
            let look_at = deadline.min(Instant::now() + LOOK_EVERY);
            if let Ok(outcome) = tokio::time::timeout_at(look_at, &mut self.outcome).await {
                return outcome.map_err(|_| Silence::Ended { submitted: self.slot.submitted.load(Ordering::Acquire) });
            }
            let is_over = Instant::now() >= deadline;
            if (is_over || has_ended())
                && let Some((command, context, _)) = self.slot.take()
            {
                return if is_over { Err(Silence::Expired) } else { Ok(Outcome::Undelivered(command, context)) };
            }
            if is_over {
                return Err(Silence::Overdue);
            }
        }
    }
}

/// The actor of one entity of service `S`.
pub(crate) struct EntityActor<S: Service> {
    inner: Arc<Inner<S>>,
    cell: Arc<Cell<S>>,
}

impl<S: Service> EntityActor<S> {
    pub(crate) fn new(inner: Arc<Inner<S>>, cell: Arc<Cell<S>>) -> Self {
        Self { inner, cell }
    }

    fn shard(&self) -> &Shard<S> {
        self.inner.shard(self.cell.id)
    }

    /// Leaves; what is still in the mailbox goes back to its senders.
    fn leave(&self, myself: &ActorRef<EntityMessage<S>>) {
        activation::remove(&self.inner, self.shard(), &self.cell);
        myself.stop(None);
    }
}

impl<S: Service> Actor for EntityActor<S> {
    type Msg = EntityMessage<S>;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Self::Msg>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    // Loading happens here, not in pre_start: from here on a panic reaches the shard's supervisor.
    async fn post_start(&self, myself: ActorRef<Self::Msg>, (): &mut ()) -> Result<(), ActorProcessingErr> {
        if *self.cell.ready.borrow() == Readiness::Ready {
            return Ok(());
        }
        // In a box, as below: the task of an actor has room for the largest of its futures as long as it lives, and most of its life
        // it waits.
        if let Err(failure) = Box::pin(self.load()).await {
            // An outage is no crash: the callers hear of it, and the next one tries again.
            self.cell.ready.send_replace(Readiness::Failed(failure));
            self.leave(&myself);
        }
        Ok(())
    }

    async fn handle(&self, myself: ActorRef<Self::Msg>, message: Self::Msg, (): &mut ()) -> Result<(), ActorProcessingErr> {
        match message {
            EntityMessage::Command(envelope) => {
                let slot = Arc::clone(&envelope.slot);
                let Some((command, context, reply)) = envelope.open() else { return Ok(()) };
                if let Readiness::Failed(failure) = &*self.cell.ready.borrow() {
                    let _ = reply.send(Outcome::Answered(Err(failure.clone().into())));
                    return Ok(());
                }
                let executed = Box::pin(self.execute(&command, &context, &slot.submitted)).await;
                let reload = matches!(executed, Err(Fault { reload: true, .. }));
                let outcome = match executed.map_err(|fault| fault.error) {
                    // Nothing happened: it goes on to whoever serves the shard by now.
                    Err(AskError::Failed(Failure::Moved(_))) => Outcome::Undelivered(command, context),
                    answer => Outcome::Answered(answer),
                };
                // Nobody waiting is fine: the deadline may have passed.
                let _ = reply.send(outcome);
                if reload {
                    self.leave(&myself);
                }
            }
            EntityMessage::Passivate => self.leave(&myself),
        }
        Ok(())
    }
}

/// Why a command was not executed, and whether memory can still be trusted.
pub(crate) struct Fault<R> {
    pub(crate) error: AskError<R>,
    /// No repair of memory by hand: what the database thinks of it is loaded anew.
    reload: bool,
}

impl<R, E: Into<AskError<R>>> From<E> for Fault<R> {
    fn from(error: E) -> Self {
        Self { error: error.into(), reload: false }
    }
}

/// What the rules have chosen for a command, and what of it is to be committed.
struct Decided<S: Service> {
    reply: S::Reply,
    events: Vec<<S::Entity as Entity>::Event>,
    /// None: nothing.
    unit: Option<Unit<S>>,
}

type Rejection<S> = <<S as Service>::Entity as Entity>::Rejection;

impl<S: Service> EntityActor<S> {
    async fn load(&self) -> Result<(), Failure> {
        let (shard, cell) = (self.shard(), &self.cell);
        loop {
            shard.begin_load(cell.id).await;
            let loaded = self.inner.loader.load(cell.id).await;
            let (loaded, failure) = match loaded {
                Ok(loaded) => (loaded, None),
                Err(failure) => (None, Some(failure)),
            };
            let absent = loaded.is_none();
            let published = shard.end_load(cell.id, || {
                if failure.is_none() {
                    *cell.state.write().expect("nobody has used the state before it is ready") = loaded;
                    cell.revised();
                    cell.ready.send_replace(Readiness::Ready);
                }
            });
            if let Some(failure) = failure {
                return Err(failure);
            }
            if published {
                self.inner.weigh(cell);
                if absent && let Some(actor) = cell.actor.get() {
                    // Ids that do not exist are not worth an actor: it goes when it has answered who asked.
                    let _ = actor.send_message(EntityMessage::Passivate);
                }
                return Ok(());
            }
        }
    }

    async fn execute(
        &self,
        command: &<S::Entity as Entity>::Command,
        context: &Context,
        under_way: &AtomicBool,
    ) -> Result<Accepted<S::Reply>, Fault<Rejection<S>>> {
        if context.deadline <= Instant::now() {
            return Err(Failure::Expired.into());
        }
        let (inner, shard, cell) = (&self.inner, self.shard(), &self.cell);
        let _turn = match &context.idempotency {
            None => None,
            Some(key) => {
                let turn = shard.claim_key(&key.key).await;
                if let Some((reply, seq)) = self.kept(key).await? {
                    return Ok(Accepted { reply, shard: shard.id, seq });
                }
                Some(turn)
            }
        };
        let (reply, events, after_searchable, submitted) = loop {
            let facts = self.look_up(command).await?;
            let Decided { reply, events, unit } = self.decide(command, &facts)?;
            let Some(unit) = unit else {
                return Ok(Accepted { reply, shard: shard.id, seq: cell.told() });
            };
            let unit = seal(unit, context, &reply);
            let after_searchable = unit.after_searchable();
            let passed = fail_point::pass(Point::BeforeCommit, cell.id).await;
            passed.map_err(|refused| Failure::Unavailable(refused.to_string()))?;
            // From here on a fall of ours says nothing about the command.
            under_way.store(true, Ordering::Release);
            let submitted = committer::submit(inner, shard.id, cell.epoch, unit).await;
            under_way.store(submitted.is_ok(), Ordering::Release);
            match submitted {
                // Another log has ended the entity meanwhile: once memory says so, the rules have the last word.
                Err(CommitError::Ended) => shard.untouched(cell.id).await,
                submitted => break (reply, events, after_searchable, submitted.map_err(refusal::<S>)?),
            }
        };
        let landed = submitted.await.map_err(|_| refusal::<S>(CommitError::Unknown))?;
        let committed = landed.result.clone().map_err(refusal::<S>)?;
        // What is committed cannot be refused any more.
        let _ = fail_point::pass(Point::AfterCommit, cell.id).await;
        cell.evolve(&inner.service, shard.id, &events);
        if let Some(after) = after_searchable {
            cell.tell(committed.seq - after);
        }
        // In memory: from here on others may read beside it.
        landed.folded();
        inner.weigh(cell);
        Ok(Accepted { reply, shard: shard.id, seq: committed.seq })
    }

    fn decide(
        &self,
        command: &<S::Entity as Entity>::Command,
        facts: &<S::Entity as Entity>::Facts,
    ) -> Result<Decided<S>, Fault<Rejection<S>>> {
        let (inner, shard, cell) = (&self.inner, self.shard(), &self.cell);
        let state = cell.state.read().map_err(|_| Failure::Crashed)?;
        let decided = S::Entity::decide(state.as_ref(), command, facts);
        if decided.as_ref().map_or(true, Vec::is_empty) {
            // Nothing is committed, so no fence is met: this answer is a read, and may be as stale as one (rule 8).
            activation::may_answer(inner, shard, cell.epoch)?;
        }
        let events = decided.map_err(AskError::Rejected)?;
        let reply = S::reply(cell.id, state.as_ref(), &events);
        if events.is_empty() {
            return Ok(Decided { reply, events, unit: None });
        }
        let stands_on = Some(Arc::clone(cell));
        let mut unit = Unit { touches: vec![cell.id], stands_on, begins: S::creates(command), ..Unit::of(inner.settings.shards) };
        inner.service.write(shard.id, cell.id, state.as_ref(), &events, &mut unit);
        Ok(Decided { reply, events, unit: Some(unit) })
    }

    async fn look_up(&self, command: &<S::Entity as Entity>::Command) -> Result<<S::Entity as Entity>::Facts, Failure> {
        let (inner, cell) = (&self.inner, &self.cell);
        let need = {
            let state = cell.state.read().map_err(|_| Failure::Crashed)?;
            inner.service.need(cell.id, state.as_ref(), command)
        };
        match need {
            None => Ok(Default::default()),
            Some(need) => {
                let client = inner.database.get().await?;
                Ok(inner.service.look_up(client, cell.id, need).await?)
            }
        }
    }

    /// The first answer to this key, if there was one, and where its write stands.
    async fn kept(&self, key: &IdempotencyKey) -> Result<Option<(S::Reply, Seq)>, Failure> {
        let client = self.inner.database.get().await?;
        let shard = self.shard();
        let row = client
            .query_opt(
                "SELECT request_hash, reply, seq FROM idempotency WHERE shard = $1 AND key = $2",
                &[&shard.id.as_i16(), &&*key.key],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        if row.get::<_, &[u8]>(0) != key.request_hash {
            return Err(Failure::KeyReused);
        }
        let reply = serde_json::from_str(row.get(1))
            .map_err(|error| Failure::Refused(format!("a kept reply does not parse: {error}")))?;
        // A node of the release before has not kept where: nowhere later than here.
        Ok(Some((reply, row.get::<_, Option<Seq>>(2).unwrap_or_else(|| shard.head()))))
    }
}

/// Adds to a unit what came with its command.
pub(crate) fn seal<S: Service>(mut unit: Unit<S>, context: &Context, reply: &S::Reply) -> Unit<S> {
    for record in &mut unit.records {
        record.traceparent.clone_from(&context.traceparent);
    }
    if let Some(IdempotencyKey { key, request_hash, .. }) = &context.idempotency {
        let reply = serde_json::to_string(reply).expect("a reply is plain data");
        unit.kept = Some(KeptReply { key: Arc::clone(key), request_hash: *request_hash, reply });
    }
    unit
}

/// A unique row that another has is a business no; anything else means that memory and database disagree.
pub(crate) fn refusal<S: Service>(error: CommitError) -> Fault<Rejection<S>> {
    if let CommitError::Refused { constraint: Some(constraint), .. } = &error
        && let Some(rejection) = S::refused(constraint)
    {
        return Fault { error: AskError::Rejected(rejection), reload: true };
    }
    if let CommitError::Refused { message, .. } = &error {
        episodes::error("the database refuses writes", S::NAME, message);
    }
    Fault { error: Failure::from(error).into(), reload: true }
}

#[cfg(test)]
mod tests {
    use super::{super::cell::Mailbox, *};
    use crate::posts::{Command, PostService};

    fn sealed() -> (Envelope<PostService>, Sent<PostService>) {
        let command = Command::Delete { by: crate::ids::UserId(uuid::Uuid::nil()), moderator: false, if_version: None };
        let place = Mailbox::default().enter().unwrap();
        Envelope::seal(command, Context::within(Duration::from_secs(20)), place)
    }

    fn after(time: Duration) -> Instant {
        Instant::now() + time
    }

    /// What was broken: its sender waited until the deadline.
    #[tokio::test]
    async fn a_command_that_the_mailbox_of_an_actor_that_ended_has_swallowed_returns_to_its_sender() {
        let (swallowed, sent) = sealed();
        let (ends, deadline) = (after(LOOK_EVERY * 2), after(Duration::from_secs(60)));
        let outcome = sent.outcome(deadline, || Instant::now() >= ends).await;
        assert!(matches!(outcome, Ok(Outcome::Undelivered(Command::Delete { .. }, _))));
        assert!(Instant::now() < deadline, "not at the deadline");
        assert!(swallowed.open().is_none(), "and nobody executes it");
    }

    #[tokio::test]
    async fn a_command_that_an_actor_has_opened_does_not_return() {
        let (envelope, sent) = sealed();
        let opened = envelope.open();
        assert!(matches!(sent.outcome(after(LOOK_EVERY * 2), || true).await, Err(Silence::Overdue)));
        drop(opened);
    }

    #[tokio::test]
    async fn a_command_whose_deadline_passes_in_the_mailbox_is_never_executed() {
        let (waiting, sent) = sealed();
        assert!(matches!(sent.outcome(after(LOOK_EVERY * 2), || false).await, Err(Silence::Expired)));
        assert!(waiting.open().is_none());
    }

    #[tokio::test]
    async fn a_command_that_is_dropped_unopened_returns_at_once() {
        let (envelope, sent) = sealed();
        drop(envelope);
        let outcome = futures_util::FutureExt::now_or_never(sent.outcome(after(Duration::from_secs(60)), || false));
        assert!(matches!(outcome, Some(Ok(Outcome::Undelivered(..)))));
    }
}
