//! One shard on this node: whether we own it, which entities are loaded, what is on its way to the database.

use std::{
    collections::{BTreeSet, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use ractor::{ActorCell, ActorId};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use uuid::Uuid;

use super::{
    BootTime, Inner, activation,
    cell::{Cell, Readiness},
    commit_batch::{Positioned, Unit},
    copies::{Kept, Lender, Lent, Session},
    tail::Tail,
};
use crate::{
    entity::Entity,
    event::Source,
    ids::{Epoch, Seq, ShardId},
    service::Service,
    supervisor::Restarts,
};

pub(crate) struct Shard<S: Service> {
    pub(crate) id: ShardId,
    /// Counts the changes of what is admitted, of all shards.
    tenures: watch::Sender<u64>,
    /// The epoch under which commands, reads and slices are admitted; zero: none are.
    epoch: AtomicI64,
    /// The epoch under which what was admitted is committed; zero: it is not ours, or a doubt is open.
    writing: AtomicI64,
    /// The epoch at which memory began: what was decided since then stands on committed state.
    since: AtomicI64,
    /// The latest epoch that was ever served here: under a later one nothing of ours can be on its way.
    latest: AtomicI64,
    /// The outcome of a batch is open.
    suspended: AtomicBool,
    /// It is being handed off: what was admitted goes on, and nothing more is.
    closing: AtomicBool,
    /// Until then, in nanoseconds since boot, readers may show copies that a former owner lent and nobody calls back.
    quiet_until: AtomicU64,
    head: AtomicI64,
    /// Copies of what others serve.
    pub(crate) kept: RwLock<Kept<Arc<Lender>, S::Answer>>,
    pub(crate) entities: RwLock<Entities<S>>,
    pub(crate) in_flight: Mutex<InFlight>,
    folded: Notify,
    pub(crate) tail: Mutex<Tail>,
    pub(crate) inbox: Mutex<HashMap<Source, Seq>>,
    /// Idempotency keys whose first request is still under way.
    keys: Mutex<HashMap<Arc<str>, Arc<Notify>>>,
    /// Held by whoever applies foreign records, until they are in memory.
    applying: Arc<tokio::sync::Mutex<()>>,
}

pub(crate) struct Entities<S: Service> {
    pub(crate) live: HashMap<Uuid, Arc<Cell<S>>>,
    pub(crate) by_actor: HashMap<ActorId, Uuid>,
    /// Of those that crashed lately.
    pub(crate) crashes: HashMap<Uuid, Crashes>,
    pub(crate) supervisor: Option<ActorCell>,
}

/// The restart history of an entity, and when it may live again.
pub(crate) struct Crashes {
    pub(crate) history: Restarts,
    pub(crate) until: Instant,
    pub(crate) isolated: bool,
}

/// The right to apply foreign records to a shard, until they are in memory or will never be.
pub(crate) type ApplyTurn = tokio::sync::OwnedMutexGuard<()>;

/// What the database is being told about this shard.
pub(crate) struct InFlight {
    next_ticket: u64,
    tickets: BTreeSet<u64>,
    /// Units under way per entity; an entity does not load meanwhile (rule 9).
    touched: HashMap<Uuid, u32>,
    /// Units under way that end an entity for all commands.
    ending: HashMap<Uuid, u32>,
    /// Entities that are being loaded, and whether a unit folded meanwhile so that the read is stale.
    loading: HashMap<Uuid, bool>,
    /// Of what other nodes may have copies: no unit under way contains any of it.
    pub(crate) lent: Lent<Arc<Session>>,
}

impl InFlight {
    fn new(lent_max: usize) -> Self {
        Self {
            next_ticket: 0,
            tickets: BTreeSet::new(),
            touched: HashMap::new(),
            ending: HashMap::new(),
            loading: HashMap::new(),
            lent: Lent::new(lent_max),
        }
    }
}

/// Where the log of a shard ends, as of one moment.
pub(crate) struct LogEnd {
    /// What was decided under this epoch or a later one may follow.
    pub(crate) since: Epoch,
    /// The epoch under which it follows.
    pub(crate) epoch: Epoch,
    pub(crate) head: Seq,
}

/// Whether a unit may be queued.
pub(crate) enum Begun {
    /// Under this epoch, with this ticket.
    UnderWay(Epoch, u64),
    /// What it was decided on no longer stands.
    Fenced,
    /// A unit that ends its entity came first.
    Ended,
    /// Others may have copies of what it changes.
    Lent,
}

impl<S: Service> Shard<S> {
    /// `lent_max`: copies of its entities with others, at most.
    pub(crate) fn new(id: ShardId, tenures: watch::Sender<u64>, lent_max: usize) -> Self {
        Self {
            id,
            tenures,
            epoch: AtomicI64::new(0),
            writing: AtomicI64::new(0),
            since: AtomicI64::new(0),
            latest: AtomicI64::new(0),
            suspended: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            quiet_until: AtomicU64::new(0),
            head: AtomicI64::new(0),
            kept: RwLock::default(),
            entities: RwLock::new(Entities {
                live: HashMap::new(),
                by_actor: HashMap::new(),
                crashes: HashMap::new(),
                supervisor: None,
            }),
            in_flight: Mutex::new(InFlight::new(lent_max)),
            folded: Notify::new(),
            tail: Mutex::new(Tail::default()),
            inbox: Mutex::default(),
            keys: Mutex::default(),
            applying: Arc::default(),
        }
    }

    /// The epoch under which we serve it, if we do.
    pub(crate) fn tenure(&self) -> Option<Epoch> {
        Some(self.epoch.load(Ordering::Acquire)).filter(|epoch| *epoch != 0)
    }

    /// The epoch now, if what was decided under `epoch` still stands and is admitted.
    pub(crate) fn tenure_since(&self, epoch: Epoch) -> Option<Epoch> {
        self.tenure().filter(|_| self.remembers(epoch))
    }

    /// The epoch under which what was admitted under `epoch` is committed now: also while the shard is being handed off.
    pub(crate) fn writes_since(&self, epoch: Epoch) -> Option<Epoch> {
        Some(self.writing.load(Ordering::Acquire)).filter(|now| *now != 0 && self.remembers(epoch))
    }

    /// Where its log ends, to be gone on with; none: nothing is written now.
    pub(crate) fn log_end(&self) -> Option<LogEnd> {
        // A head that belongs to another tenure than the epoch would let pass what the fence is there for.
        let _transition = self.entities.read().expect("no panic under this lock");
        let epoch = self.writing.load(Ordering::Acquire);
        (epoch != 0).then(|| LogEnd { since: self.since.load(Ordering::Acquire), epoch, head: self.head() })
    }

    /// The latest epoch that was ever served here.
    pub(crate) fn latest(&self) -> Epoch {
        self.latest.load(Ordering::Acquire)
    }

    pub(crate) fn head(&self) -> Seq {
        self.head.load(Ordering::Acquire)
    }

    /// Begins a tenure; [`Shard::close`] has ended the one before.
    pub(crate) fn open(&self, epoch: Epoch, seq: Seq, inbox: Vec<(Source, Seq)>, supervisor: ActorCell) {
        // Transitions of a tenure happen under this lock, so that none meets another half done.
        let mut entities = self.entities.write().expect("no panic under this lock");
        // What an earlier tenure still folds finds that it is old under this one.
        let tail = self.tail.lock().expect("no panic under this lock");
        *self.inbox.lock().expect("no panic under this lock") = inbox.into_iter().collect();
        entities.supervisor = Some(supervisor);
        self.since.store(epoch, Ordering::Release);
        self.begin_epoch(epoch, seq, tail);
    }

    /// Goes on under this epoch, whose record at `seq` is the last of the log.
    fn begin_epoch(&self, epoch: Epoch, seq: Seq, mut tail: MutexGuard<'_, Tail>) {
        tail.begin(epoch, seq);
        self.latest.fetch_max(epoch, Ordering::AcqRel);
        self.head.store(seq, Ordering::Release);
        self.writing.store(epoch, Ordering::Release);
        // A doubt that is resolved in the middle of a hand-off leaves admission closed.
        if !self.closing.load(Ordering::Acquire) {
            self.epoch.store(epoch, Ordering::Release);
        }
        self.admission_changed();
    }

    /// After what is admitted has changed: who looked before that sees that the number is another.
    fn admission_changed(&self) {
        self.tenures.send_modify(|count| *count += 1);
    }

    /// Stops answering without forgetting: a doubt about a batch of `epoch` is being resolved.
    ///
    /// False: what was decided then no longer stands here, so there is nothing to suspend.
    pub(crate) fn suspend(&self, epoch: Epoch) -> bool {
        let _transition = self.entities.write().expect("no panic under this lock");
        let stands = self.writes_since(epoch).is_some();
        if stands {
            self.suspended.store(true, Ordering::Release);
            self.epoch.store(0, Ordering::Release);
            self.writing.store(0, Ordering::Release);
        }
        stands
    }

    /// Whether a doubt keeps it from answering.
    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Acquire)
    }

    /// Whether it is ours as far as we know: open, suspended by a doubt, or being handed off.
    pub(crate) fn is_held(&self) -> bool {
        let _transition = self.entities.read().expect("no panic under this lock");
        self.writing.load(Ordering::Acquire) != 0 || self.is_suspended()
    }

    /// Goes on after a doubt: same owner, new epoch. The cells stay, for the caller has proved them right.
    ///
    /// Does nothing if the shard was closed meanwhile: the doubt outlived the tenure.
    pub(crate) fn resume(&self, epoch: Epoch, seq: Seq) {
        let _transition = self.entities.write().expect("no panic under this lock");
        if self.suspended.swap(false, Ordering::AcqRel) {
            self.begin_epoch(epoch, seq, self.tail.lock().expect("no panic under this lock"));
            self.folded.notify_waiters();
        }
    }

    /// Closes admission for a hand-off: whoever comes is sent away, what was submitted still commits.
    ///
    /// False: it is not open.
    pub(crate) fn close_admission(&self) -> bool {
        let _transition = self.entities.write().expect("no panic under this lock");
        // Under this lock units register: none can slip in behind the decision.
        let _flight = self.in_flight.lock().expect("no panic under this lock");
        let open = self.epoch.swap(0, Ordering::AcqRel) != 0;
        if open {
            self.closing.store(true, Ordering::Release);
            self.admission_changed();
        }
        open
    }

    /// Waits until nothing of a shard whose admission is closed is on its way any more, nor in doubt; the epoch under which
    /// it may be granted. `None`: it was lost meanwhile.
    pub(crate) async fn drained(&self) -> Option<Epoch> {
        self.until(|flight| flight.tickets.is_empty() && !self.is_suspended()).await;
        let _transition = self.entities.read().expect("no panic under this lock");
        let closing = self.closing.load(Ordering::Acquire);
        Some(self.writing.load(Ordering::Acquire)).filter(|epoch| closing && *epoch != 0)
    }

    /// Admits again: the hand-off did not come about, and nothing of it will.
    pub(crate) fn reopen(&self) {
        let _transition = self.entities.write().expect("no panic under this lock");
        // While a doubt is open there is no epoch to serve under; its end admits.
        if self.closing.swap(false, Ordering::AcqRel) {
            self.epoch.store(self.writing.load(Ordering::Acquire), Ordering::Release);
            self.admission_changed();
        }
    }

    /// Admits again under a new epoch: a hand-off whose outcome was open is proved not to have been.
    pub(crate) fn take_back(&self, epoch: Epoch, seq: Seq) {
        let _transition = self.entities.write().expect("no panic under this lock");
        if self.closing.swap(false, Ordering::AcqRel) {
            self.begin_epoch(epoch, seq, self.tail.lock().expect("no panic under this lock"));
        }
    }

    /// Gives it up; the weight in bytes of the entities that went, and how many.
    pub(crate) fn close(&self) -> (usize, usize) {
        self.end_tenure(&mut self.entities.write().expect("no panic under this lock"))
    }

    /// Gives it up if the doubt that suspended it still does; otherwise it was closed, and perhaps opened anew.
    pub(crate) fn close_suspended(&self) -> (usize, usize) {
        let mut entities = self.entities.write().expect("no panic under this lock");
        if self.is_suspended() { self.end_tenure(&mut entities) } else { (0, 0) }
    }

    /// Gives it up if what was decided under `epoch` still stands here: a write of it was left half done, and memory may be
    /// behind the database.
    pub(crate) fn close_abandoned(&self, epoch: Epoch) -> (usize, usize) {
        let mut entities = self.entities.write().expect("no panic under this lock");
        let is_held = self.writing.load(Ordering::Acquire) != 0 || self.is_suspended();
        if is_held && self.remembers(epoch) { self.end_tenure(&mut entities) } else { (0, 0) }
    }

    /// The same for a hand-off.
    pub(crate) fn close_granted(&self) -> (usize, usize) {
        let mut entities = self.entities.write().expect("no panic under this lock");
        if self.closing.load(Ordering::Acquire) { self.end_granted(&mut entities) } else { (0, 0) }
    }

    /// The same when its supervisor has ended; none: that was another tenure's.
    pub(crate) fn close_headless(&self, supervisor: ActorId) -> Option<(usize, usize)> {
        let mut entities = self.entities.write().expect("no panic under this lock");
        let mine = entities.supervisor.as_ref().is_some_and(|current| current.get_id() == supervisor);
        mine.then(|| self.end_tenure(&mut entities))
    }

    /// Ends it without a grant, so what is lent of it was not called back: whoever serves it next waits until these sessions
    /// are over, and they are extended no more.
    fn end_tenure(&self, entities: &mut Entities<S>) -> (usize, usize) {
        let gone = self.end_granted(entities);
        // After admission is closed: what is lent from here on is not.
        let readers = self.in_flight.lock().expect("no panic under this lock").lent.readers();
        readers.iter().for_each(|session| session.retire());
        gone
    }

    fn end_granted(&self, entities: &mut Entities<S>) -> (usize, usize) {
        self.epoch.store(0, Ordering::Release);
        self.writing.store(0, Ordering::Release);
        self.suspended.store(false, Ordering::Release);
        self.closing.store(false, Ordering::Release);
        self.admission_changed();
        self.folded.notify_waiters();
        if let Some(supervisor) = entities.supervisor.take() {
            // The end of a supervisor kills its children, and one that waits for a commit must still hear its outcome.
            tokio::spawn(async move {
                supervisor.stop_children_and_wait(Some("the shard moved".to_owned()), None).await;
                supervisor.stop(Some("the shard moved".to_owned()));
            });
        }
        entities.by_actor.clear();
        entities.crashes.clear();
        entities.live.drain().fold((0, 0), |gone, (_, cell)| (gone.0 + 1, gone.1 + cell.write_off()))
    }

    /// Whether memory began at or before this epoch, so that a commit of it is news.
    pub(crate) fn remembers(&self, epoch: Epoch) -> bool {
        epoch >= self.since.load(Ordering::Acquire)
    }

    /// Moves the head over records committed under `epoch`, with the positions that they reached in foreign logs.
    ///
    /// A tenure that began later has read all of it from SQL: to it this is old.
    pub(crate) fn advance(&self, epoch: Epoch, records: Positioned, inbox: &[(Source, Seq)], tail_bytes: usize) {
        let mut tail = self.tail.lock().expect("no panic under this lock");
        if !self.remembers(epoch) {
            return;
        }
        let seq = records.last().expect("every unit has a record").seq;
        // The positions before the head: who reads both takes the head first.
        self.inbox.lock().expect("no panic under this lock").extend(inbox.iter().copied());
        tail.append(records, tail_bytes);
        self.head.store(seq, Ordering::Release);
    }

    pub(crate) fn cell(&self, id: Uuid) -> Option<Arc<Cell<S>>> {
        self.entities.read().expect("no panic under this lock").live.get(&id).cloned()
    }

    /// Registers a unit that is about to be queued, if what it stands on still does, and nothing that it contains is lent.
    pub(crate) fn begin(&self, decided: Epoch, unit: &Unit<S>) -> Begun {
        let mut flight = self.in_flight.lock().expect("no panic under this lock");
        let Some(epoch) = self.tenure_since(decided) else { return Begun::Fenced };
        // A unit that ends the entity is under way, or was, and then the cell says so: it did before that unit left the books.
        if unit.stands_on.as_ref().is_some_and(|cell| flight.ending.contains_key(&cell.id) || cell.has_ended()) {
            return Begun::Ended;
        }
        let touches = &unit.touches;
        if flight.lent.is_any_lent(touches) {
            return Begun::Lent;
        }
        let ticket = flight.next_ticket;
        flight.next_ticket += 1;
        flight.tickets.insert(ticket);
        for id in touches {
            *flight.touched.entry(*id).or_default() += 1;
        }
        for id in &unit.ends {
            *flight.ending.entry(*id).or_default() += 1;
        }
        Begun::UnderWay(epoch, ticket)
    }

    /// Notes that a reader is about to get a copy of an entity, before it is read; the number of the loan. None: it must not
    /// keep what it gets.
    ///
    /// Under the lock under which units register: a unit is under way, or it finds this entry.
    pub(crate) fn lend(&self, id: Uuid, session: &Arc<Session>) -> Option<u64> {
        let mut flight = self.in_flight.lock().expect("no panic under this lock");
        let may = self.tenure().is_some() && !flight.touched.contains_key(&id);
        if may { flight.lent.lend(id, session) } else { None }
    }

    /// Sends no change of an entity to the database for so long: a former owner may have lent copies that nobody calls back.
    pub(crate) fn keep_quiet(&self, time: Duration) {
        let until = BootTime::now().plus(time).since_boot();
        self.quiet_until.fetch_max(until.as_nanos() as u64, Ordering::AcqRel);
    }

    pub(crate) fn is_quiet(&self) -> bool {
        !self.quiet_left().is_zero()
    }

    /// Waits until what a former owner lent is over.
    pub(crate) async fn quiet_is_over(&self) {
        while self.is_quiet() {
            tokio::time::sleep(self.quiet_left()).await;
        }
    }

    fn quiet_left(&self) -> Duration {
        match self.quiet_until.load(Ordering::Acquire) {
            // As of every shard that was never taken over early.
            0 => Duration::ZERO,
            until => BootTime::after_boot(Duration::from_nanos(until)).since(BootTime::now()),
        }
    }

    /// The unit is in memory, or will never be in the database; or, if `unfolded`, it is there and memory does not know.
    pub(crate) fn end(&self, ticket: u64, touches: &[Uuid], ends: &[Uuid], unfolded: bool) {
        let mut flight = self.in_flight.lock().expect("no panic under this lock");
        if unfolded {
            flight.lent.doubt(touches);
        }
        flight.tickets.remove(&ticket);
        for id in touches {
            if let Some(stale) = flight.loading.get_mut(id) {
                *stale = true;
            }
            count_down(&mut flight.touched, id);
        }
        for id in ends {
            count_down(&mut flight.ending, id);
        }
        drop(flight);
        self.folded.notify_waiters();
    }

    /// Whether a unit under way contains the entity.
    pub(crate) fn is_touched(&self, id: Uuid) -> bool {
        self.in_flight.lock().expect("no panic under this lock").touched.contains_key(&id)
    }

    /// Waits until no unit under way contains the entity.
    pub(crate) async fn untouched(&self, id: Uuid) {
        self.until(|flight| !flight.touched.contains_key(&id)).await;
    }

    pub(crate) async fn settled(&self) {
        let limit = self.in_flight.lock().expect("no panic under this lock").next_ticket;
        self.until(|flight| flight.tickets.first().is_none_or(|first| *first >= limit)).await;
    }

    /// Waits until no unit under way contains the entity, then notes that it is being loaded.
    pub(crate) async fn begin_load(&self, id: Uuid) {
        self.until(|flight| {
            let free = !flight.touched.contains_key(&id);
            if free {
                flight.loading.insert(id, false);
            }
            free
        })
        .await;
    }

    /// Publishes what was loaded if it is still the committed state; otherwise it must be loaded again.
    ///
    /// Under the lock, so that no unit can begin between the check and the publication and miss the entity.
    pub(crate) fn end_load(&self, id: Uuid, publish: impl FnOnce()) -> bool {
        let mut flight = self.in_flight.lock().expect("no panic under this lock");
        let stale = flight.loading.remove(&id).unwrap_or(true) || flight.touched.contains_key(&id);
        if !stale {
            flight.lent.trust(id);
            publish();
        }
        !stale
    }

    async fn until(&self, mut condition: impl FnMut(&mut InFlight) -> bool) {
        loop {
            let folded = self.folded.notified();
            tokio::pin!(folded);
            folded.as_mut().enable();
            if condition(&mut self.in_flight.lock().expect("no panic under this lock")) {
                return;
            }
            folded.await;
        }
    }

    /// Applies the effects of a unit to the entities that are loaded.
    pub(crate) fn fold(&self, inner: &Inner<S>, effects: &[(Uuid, <S::Entity as Entity>::Event)]) {
        for (id, event) in effects {
            let Some(cell) = self.cell(*id).filter(|cell| *cell.ready.borrow() == Readiness::Ready) else {
                continue;
            };
            if S::is_final(event) {
                cell.end();
            }
            let fold = || cell.evolve(&inner.service, self.id, std::slice::from_ref(event));
            // A rule that panics costs its entity, which reloads, and never the committer.
            if catch_unwind(AssertUnwindSafe(fold)).is_err() {
                match cell.actor.get() {
                    Some(actor) => actor.kill(),
                    None => activation::forget(inner, self, &cell),
                }
                continue;
            }
            // Here, and not where the answer is waited for: who asked may have gone.
            inner.weigh(&cell);
        }
    }

    /// Waits for the turn to apply foreign records. The turn goes with the unit, not with whoever asked: a bridge that
    /// was stopped while its slice is on the way must not meet positions that the slice is about to move (rule 16).
    pub(crate) async fn turn_to_apply(&self) -> ApplyTurn {
        Arc::clone(&self.applying).lock_owned().await
    }

    /// Waits for the turn of this idempotency key; the turn ends when the guard is dropped.
    pub(crate) async fn claim_key(&self, key: &Arc<str>) -> KeyGuard<'_, S> {
        loop {
            let other = {
                let mut keys = self.keys.lock().expect("no panic under this lock");
                match keys.get(key) {
                    Some(other) => Arc::clone(other),
                    None => {
                        keys.insert(Arc::clone(key), Arc::new(Notify::new()));
                        return KeyGuard { shard: self, key: Arc::clone(key) };
                    }
                }
            };
            let released = other.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            let still_the_same =
                |keys: &HashMap<Arc<str>, Arc<Notify>>| keys.get(key).is_some_and(|now| Arc::ptr_eq(now, &other));
            if still_the_same(&self.keys.lock().expect("no panic under this lock")) {
                released.await;
            }
        }
    }
}

fn count_down(counts: &mut HashMap<Uuid, u32>, id: &Uuid) {
    if let Some(count) = counts.get_mut(id) {
        *count -= 1;
        if *count == 0 {
            counts.remove(id);
        }
    }
}

pub(crate) struct KeyGuard<'a, S: Service> {
    shard: &'a Shard<S>,
    key: Arc<str>,
}

impl<S: Service> Drop for KeyGuard<'_, S> {
    fn drop(&mut self) {
        let released = self.shard.keys.lock().expect("no panic under this lock").remove(&self.key);
        if let Some(released) = released {
            released.notify_waiters();
        }
    }
}
