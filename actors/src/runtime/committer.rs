//! Group commit: takes all that waits into one statement; while it is in flight the next batch gathers.
//!
//! Two lanes, each with a session of its own: one for batches, one for units that claim unique names and
//! therefore commit alone. A shard is in at most one lane at a time, for the lane counts its positions.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, Either, FutureExt, Ready, ready};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{sleep, timeout},
};
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::{
    BootTime, Inner,
    commit_batch::{Batch, CommitError, Committed, Positioned, Unit},
    commit_queue::{AtWork, Landed, Queue, Queued, UnderWay},
    connection::STATEMENT_WITHIN,
    copies, describe,
    directory::SessionTag,
    doubt, is_own_fault, now,
    session::Session,
    shard::{Begun, LogEnd},
    transfer::outcome_is_open,
};
use crate::{
    entity::Failure,
    episodes,
    fail_point::{self, Point},
    ids::{Epoch, Seq, ShardId},
    service::Service,
    supervisor::{self, Cause, Lifetime, RestartPolicy, Restarts},
};

pub(crate) struct Committer<S: Service> {
    pub(super) queue: Mutex<Queue<S>>,
    /// Work for the lane of batches.
    batches: Notify,
    /// Work for the lane of claims.
    claims: Notify,
    pub(super) drained: Notify,
    queue_max: usize,
    closed: AtomicBool,
    sessions: watch::Sender<Sessions>,
    /// A stop waits no longer for outcomes that stay open.
    given_up: watch::Sender<bool>,
}

/// What is logged while the database takes nothing.
const NO_WRITES: &str = "the database takes no writes";
/// What is logged while the database gives a lane no session.
const NO_SESSION: &str = "the database gives no session for commits";

/// The sessions of the lanes, by lane.
#[derive(Clone, Debug, Default)]
struct Sessions {
    /// Also while nothing is to be committed: the service has a membership here.
    are_kept: bool,
    of: [LaneSession; 2],
}

/// What a lane has of the database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum LaneSession {
    #[default]
    Unopened,
    Open,
    Refused(String),
}

impl Sessions {
    fn lacking(&self) -> Option<&str> {
        let refused = self.of.iter().find_map(|session| match session {
            LaneSession::Refused(reason) => Some(reason.as_str()),
            _ => None,
        });
        let unopened = self.of.contains(&LaneSession::Unopened).then_some("it is not open yet");
        refused.or(unopened).filter(|_| self.are_kept)
    }
}

/// Whether commits work: since when they have failed, and what is under way.
#[derive(Debug, Default)]
pub(crate) struct Health {
    state: Mutex<HealthState>,
    pub(crate) batches: AtomicU64,
    pub(crate) units: AtomicU64,
}

#[derive(Debug, Default)]
struct HealthState {
    failing: Option<Failing>,
    /// Since when each of the outcomes is open that somebody waits for.
    unresolved: BTreeMap<u64, Instant>,
    next: u64,
}

#[derive(Clone, Copy, Debug)]
struct Failing {
    since: Instant,
    last: Instant,
}

impl HealthState {
    fn oldest(&self, now: Instant) -> Duration {
        self.unresolved.values().next().map(|since| now.saturating_duration_since(*since)).unwrap_or_default()
    }

    fn fail(&mut self, now: Instant) {
        // Nothing has worked since what fails now was begun.
        let since = self.unresolved.values().next().copied().unwrap_or(now);
        self.failing.get_or_insert(Failing { since, last: now }).last = now;
    }

    fn is_working(&mut self, within: Duration, now: Instant) -> bool {
        // What is under way is being tried, however long it takes.
        if self.unresolved.is_empty() && self.failing.is_some_and(|failing| now - failing.last >= within) {
            self.failing = None;
        }
        self.oldest(now) < within && self.failing.is_none_or(|failing| now - failing.since < within)
    }
}

impl Health {
    fn state(&self) -> MutexGuard<'_, HealthState> {
        self.state.lock().expect("no panic under this lock")
    }

    fn worked(&self) {
        self.state().failing = None;
    }

    pub(crate) fn failed(&self) {
        self.state().fail(Instant::now());
    }

    /// Begins something that is under way until its outcome is known: a batch, a claim, a hand-off, and the doubt about it.
    pub(crate) fn begin(&self) -> Unresolved<'_> {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.unresolved.insert(number, Instant::now());
        Unresolved { health: self, number }
    }

    /// How long the oldest of what is under way has been.
    pub(crate) fn oldest(&self) -> Duration {
        self.state().oldest(Instant::now())
    }

    /// False once commits have failed for this long, or an outcome has been open for as long. True again when none was tried
    /// for as long: without a lease nobody asks for commits, so waiting for one that works would be waiting for ever.
    pub(crate) fn working(&self, within: Duration) -> bool {
        self.state().is_working(within, Instant::now())
    }
}

/// Something whose outcome is open until this is dropped.
pub(crate) struct Unresolved<'a> {
    health: &'a Health,
    number: u64,
}

impl Drop for Unresolved<'_> {
    fn drop(&mut self) {
        self.health.state().unresolved.remove(&self.number);
    }
}

impl<S: Service> Committer<S> {
    pub(crate) fn new(queue_max: usize) -> Self {
        let queue = Queue { waiting: VecDeque::new(), claims: VecDeque::new(), busy: HashSet::new() };
        Self {
            queue: Mutex::new(queue),
            batches: Notify::new(),
            claims: Notify::new(),
            drained: Notify::new(),
            queue_max,
            closed: AtomicBool::new(false),
            sessions: watch::Sender::default(),
            given_up: watch::Sender::new(false),
        }
    }

    fn lane(&self, lane: Lane) -> &Notify {
        match lane {
            Lane::Batches => &self.batches,
            Lane::Claims => &self.claims,
        }
    }

    /// Has both lanes look for work.
    pub(super) fn wake(&self) {
        self.batches.notify_one();
        self.claims.notify_one();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Has the lanes keep sessions from now on, and waits until they have them.
    pub(super) async fn keep_sessions(&self, within: Duration) -> Result<(), String> {
        self.sessions.send_modify(|sessions| sessions.are_kept = true);
        let mut sessions = self.sessions.subscribe();
        let open = timeout(within, sessions.wait_for(|sessions| sessions.lacking().is_none())).await.is_ok();
        if open { Ok(()) } else { Err(self.lacks_session().unwrap_or_else(|| "no answer".to_owned())) }
    }

    /// Why a lane has no session that is to keep one.
    pub(super) fn lacks_session(&self) -> Option<String> {
        self.sessions.borrow().lacking().map(str::to_owned)
    }

    fn note_session(&self, lane: Lane, now: LaneSession) {
        self.sessions.send_if_modified(|sessions| {
            let noted = &mut sessions.of[lane as usize];
            let differs = *noted != now;
            *noted = now;
            differs
        });
    }

    /// Refuses what comes, and waits until what is there has been answered.
    ///
    /// An outcome that stays open for so long, for the database is away, is not waited for: its callers hear that it is
    /// unknown, and whoever takes the shards over finds out.
    pub(crate) async fn close(&self, patience: Duration) {
        self.closed.store(true, Ordering::Release);
        self.wake();
        if tokio::time::timeout(patience, self.drained()).await.is_ok() {
            return;
        }
        tracing::warn!("commits whose outcome is open keep us from stopping, leaving them unresolved");
        let unsent: Vec<Queued<S>> = {
            let mut queue = self.queue.lock().expect("no panic under this lock");
            let Queue { waiting, claims, .. } = &mut *queue;
            waiting.drain(..).chain(claims.drain(..)).collect()
        };
        for queued in unsent {
            queued.finish(Err(CommitError::Unavailable("shutting down".to_owned())));
        }
        self.given_up.send_replace(true);
        self.drained().await;
    }

    async fn drained(&self) {
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            if self.queue.lock().expect("no panic under this lock").is_idle() {
                return;
            }
            drained.await;
        }
    }
}

/// What those hear whose deadline passes while they wait for a commit: what keeps it is for whoever reads the log.
pub(crate) fn overdue<S: Service>(inner: &Inner<S>) -> Failure {
    let waiting = inner.committer.queue.lock().expect("no panic under this lock").len();
    Failure::Unknown(format!(
        "the deadline passed while the command was under way; {waiting} wait to be committed, and the database has had the batch \
         before them for {} ms",
        inner.commits.oldest().as_millis()
    ))
}

/// Why a unit was not queued.
enum NotQueued<S: Service> {
    Refused(CommitError),
    /// Others may have copies of what it changes.
    Lent(Box<Unit<S>>),
}

impl<S: Service> From<CommitError> for NotQueued<S> {
    fn from(error: CommitError) -> Self {
        Self::Refused(error)
    }
}

/// How a unit was taken in.
type Submitted<S> = Result<oneshot::Receiver<Landed<S>>, CommitError>;

/// Queues a unit that was decided under an epoch, once nobody has copies of what it changes; the receiver hears how it
/// ended. The commit goes on if the receiver is dropped.
///
/// Mostly nobody has, and it is done on return: an actor's future need not have room for a unit.
pub(crate) fn submit<S: Service>(
    inner: &Arc<Inner<S>>,
    shard: ShardId,
    decided: Epoch,
    unit: Unit<S>,
) -> Either<Ready<Submitted<S>>, BoxFuture<'static, Submitted<S>>> {
    let changes = !unit.begins && !unit.touches.is_empty();
    let unit = match changes && inner.shards[shard.index()].is_quiet() {
        true => Box::new(unit),
        false => match queue(inner, shard, decided, unit) {
            Ok(submitted) => return Either::Left(ready(Ok(submitted))),
            Err(NotQueued::Refused(error)) => return Either::Left(ready(Err(error))),
            Err(NotQueued::Lent(unit)) => unit,
        },
    };
    Either::Right(queue_when_called_back(Arc::clone(inner), shard, decided, unit).boxed())
}

async fn queue_when_called_back<S: Service>(
    inner: Arc<Inner<S>>,
    shard: ShardId,
    decided: Epoch,
    unit: Box<Unit<S>>,
) -> Submitted<S> {
    let state = &inner.shards[shard.index()];
    // A former owner's copies, then ours.
    state.quiet_is_over().await;
    let touches = unit.touches.clone();
    let _recalling = copies::call_back(&inner, state, &touches).await;
    queue(&inner, shard, decided, *unit).map_err(|error| match error {
        NotQueued::Refused(error) => error,
        NotQueued::Lent(_) => unreachable!("nothing is lent of what is called back"),
    })
}

/// Queues a unit that contains nothing of which others may have copies, or says that they may.
fn queue<S: Service>(
    inner: &Arc<Inner<S>>,
    shard: ShardId,
    decided: Epoch,
    mut unit: Unit<S>,
) -> Result<oneshot::Receiver<Landed<S>>, NotQueued<S>> {
    let committer = &inner.committer;
    let (done, outcome) = oneshot::channel();
    let lane = if unit.alone { Lane::Claims } else { Lane::Batches };
    {
        let mut queue = committer.queue.lock().expect("no panic under this lock");
        // Under the lock: a lane looks for the last time under it, too, and then nobody answers any more.
        if committer.closed.load(Ordering::Acquire) {
            return Err(CommitError::Unavailable("shutting down".to_owned()).into());
        }
        if queue.len() >= committer.queue_max {
            return Err(CommitError::Overloaded.into());
        }
        let (epoch, ticket) = match inner.shards[shard.index()].begin(decided, &unit) {
            Begun::UnderWay(epoch, ticket) => (epoch, ticket),
            Begun::Fenced => return Err(CommitError::Fenced.into()),
            Begun::Ended => return Err(CommitError::Ended.into()),
            Begun::Lent => return Err(NotQueued::Lent(Box::new(unit))),
        };
        let under_way = UnderWay::new(inner, shard, epoch, ticket, &mut unit);
        unit.stands_on = None;
        let queued = Queued { shard, epoch, under_way, unit: Box::new(unit), done };
        match lane {
            Lane::Batches => queue.waiting.push_back(queued),
            Lane::Claims => queue.claims.push_back(queued),
        }
    }
    committer.lane(lane).notify_one();
    Ok(outcome)
}

/// Waits for a unit whose effects the committer itself folds.
pub(crate) async fn landed<S: Service>(submitted: oneshot::Receiver<Landed<S>>) -> Result<Committed, CommitError> {
    submitted.await.map_or(Err(CommitError::Unknown), |landed| landed.result.clone())
}

pub(crate) fn start<S: Service>(inner: &Arc<Inner<S>>) {
    for lane in [Lane::Batches, Lane::Claims] {
        tokio::spawn(supervise(Arc::clone(inner), lane));
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Lane {
    Batches,
    Claims,
}

/// Runs a lane until the committer is closed. One that panics begins anew, after a back-off; beyond its restart intensity
/// the service gives up on this node.
///
/// What it was at has closed its shards by then (`UnderWay`, `AtWork`): its callers hear that the outcome is unknown, and the
/// membership takes the shards over from ourselves, behind a statement that may still be under way.
async fn supervise<S: Service>(inner: Arc<Inner<S>>, lane: Lane) {
    let policy = RestartPolicy::default();
    let mut restarts = Restarts::new(policy, Lifetime::Permanent);
    while AssertUnwindSafe(run(&inner, lane)).catch_unwind().await.is_err() {
        metrics::counter!("rookery_committer_failures_total", "service" => S::NAME).increment(1);
        let pause = match restarts.decide(BootTime::now().since_boot(), Cause::Failed, rand::random()) {
            supervisor::Verdict::Restart { after } => {
                tracing::warn!(
                    service.name = S::NAME,
                    ?lane,
                    "a lane of the committer failed, it begins anew and its shards open anew"
                );
                inner.restarts.fetch_add(1, Ordering::Relaxed);
                after
            }
            supervisor::Verdict::GiveUp | supervisor::Verdict::Leave => {
                tracing::error!(
                    service.name = S::NAME,
                    ?lane,
                    "the committer failed too often, the service gives up on this node"
                );
                inner.failed.send_replace(true);
                policy.backoff_max
            }
        };
        inner.batches.send_modify(|count| *count += 1);
        tokio::time::sleep(pause).await;
    }
}

async fn run<S: Service>(inner: &Arc<Inner<S>>, lane: Lane) {
    let mut session = None;
    let mut given_up = inner.committer.given_up.subscribe();
    while let Some(units) = next(inner, lane, &mut session).await {
        let _at_work = AtWork::on(inner, &units);
        tokio::select! {
            biased;
            () = commit(inner, lane, &mut session, units) => {}
            // The only way in which a commit is dropped: unresolved, and told so.
            _ = given_up.wait_for(|given_up| *given_up) => {}
        }
    }
}

/// Waits for work and marks its shards busy. `None`: closed, and nothing is left.
async fn next<S: Service>(inner: &Inner<S>, lane: Lane, session: &mut Option<Session>) -> Option<Vec<Queued<S>>> {
    let committer = &inner.committer;
    // Once, and not anew for each wake: every batch of the other lane wakes this one, and a session takes longer than a batch.
    let mut keeping = pin!(keep_session(inner, lane, session));
    loop {
        {
            let mut queue = committer.queue.lock().expect("no panic under this lock");
            let units = match lane {
                Lane::Batches => queue.take(inner.settings.batch_units_max, inner.settings.batch_bytes_max),
                Lane::Claims => queue.take_claim(),
            };
            if !units.is_empty() {
                return Some(units);
            }
            if committer.closed.load(Ordering::Acquire) && queue.len() == 0 {
                committer.drained.notify_waiters();
                return None;
            }
        }
        tokio::select! {
            () = committer.lane(lane).notified() => {}
            never = keeping.as_mut() => match never {},
        }
    }
}

/// Between two looks at a session that nothing is sent through.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Opens a session if there is none, once they are to be kept.
async fn keep_session<S: Service>(inner: &Inner<S>, lane: Lane, session: &mut Option<Session>) -> Infallible {
    // The sender is the committer's own.
    let _ = inner.committer.sessions.subscribe().wait_for(|sessions| sessions.are_kept).await;
    loop {
        let pause = match is_stale(inner, session.as_ref()) && open(inner, lane, session).await.is_err() {
            true => LOOK_EVERY / 4,
            false => LOOK_EVERY,
        };
        sleep(pause).await;
    }
}

/// Whether a lane needs another session: under a former name whoever takes over from us would not find it (rule 4).
fn is_stale<S: Service>(inner: &Inner<S>, session: Option<&Session>) -> bool {
    session.is_none_or(|session| session.client.is_closed() || session.tag.incarnation != inner.incarnation())
}

/// Tries once to open a session; why there is none.
async fn open<S: Service>(inner: &Inner<S>, lane: Lane, session: &mut Option<Session>) -> Result<(), String> {
    let refused = match timeout(STATEMENT_WITHIN, Session::open(inner)).await {
        Ok(Ok(opened)) => {
            *session = Some(opened);
            inner.committer.note_session(lane, LaneSession::Open);
            episodes::over(NO_SESSION, S::NAME);
            return Ok(());
        }
        Ok(Err(error)) => {
            let refused = error.describe();
            // A server that is away is told of by the membership.
            if error.is_by_choice() {
                episodes::warn(NO_SESSION, S::NAME, &refused);
            }
            refused
        }
        Err(_) => "no answer".to_owned(),
    };
    *session = None;
    inner.committer.note_session(lane, LaneSession::Refused(refused.clone()));
    Err(refused)
}

/// Commits these units, in as many statements as it takes to keep one's fault from the others.
async fn commit<S: Service>(inner: &Arc<Inner<S>>, lane: Lane, session: &mut Option<Session>, units: Vec<Queued<S>>) {
    let mut groups = vec![units];
    while let Some(units) = groups.pop() {
        let units = admit(inner, units);
        if units.is_empty() {
            continue;
        }
        let opened = connected(inner, lane, session).await;
        // After the last wait before it is sent: the shard may have gone and come back meanwhile (rule 15a).
        let (batch, placed) = number(inner, units);
        let open = match opened {
            Ok(open) => open,
            Err(error) => {
                inner.commits.failed();
                for Placed { queued, .. } in placed {
                    queued.finish(Err(CommitError::Unavailable(error.clone())));
                }
                continue;
            }
        };
        if placed.is_empty() {
            continue;
        }
        let tag = open.tag;
        match open.execute(&batch).await {
            Ok(_) => {
                // Here a crash means something, of the process or of the lane; nothing is there to be refused.
                let _ = fail_point::pass(Point::BeforeFold, Uuid::nil()).await;
                fold(inner, placed);
            }
            Err(error) => groups.extend(recover(inner, session, tag, &batch, placed, &error).await.into_iter().rev()),
        }
    }
}

/// Answers the units whose shard we have lost since they were queued: they need no connection.
fn admit<S: Service>(inner: &Inner<S>, units: Vec<Queued<S>>) -> Vec<Queued<S>> {
    let is_ours = |queued: &Queued<S>| inner.shards[queued.shard.index()].writes_since(queued.epoch).is_some();
    let (ours, lost): (Vec<_>, Vec<_>) = units.into_iter().partition(is_ours);
    for queued in lost {
        queued.finish(Err(CommitError::Fenced));
    }
    ours
}

/// A server that is started anew takes no connections for a second or two. What waits for a commit waits for that as well.
const RECONNECT_WITHIN: Duration = Duration::from_secs(3);

/// Between two tries of it.
const RECONNECT_EVERY: Duration = Duration::from_millis(50);

async fn connected<'a, S: Service>(
    inner: &Inner<S>,
    lane: Lane,
    session: &'a mut Option<Session>,
) -> Result<&'a mut Session, String> {
    if is_stale(inner, session.as_ref()) {
        let patience = Instant::now() + RECONNECT_WITHIN;
        while let Err(refused) = open(inner, lane, session).await {
            if Instant::now() >= patience {
                return Err(refused);
            }
            sleep(RECONNECT_EVERY).await;
        }
    }
    Ok(session.as_mut().expect("a session was just opened"))
}

/// A unit with the records that it has become.
pub(crate) struct Placed<S: Service> {
    pub(crate) queued: Queued<S>,
    pub(crate) records: Positioned,
}

/// Makes a batch of the units, and answers those whose tenure has ended: under another one the number after its head is free,
/// and no fence would be met (rule 15a).
fn number<S: Service>(inner: &Inner<S>, mut units: Vec<Queued<S>>) -> (Batch<S>, Vec<Placed<S>>) {
    // Rows go in in (shard, seq) order, as a takeover's do: other orders deadlock (rule 11).
    units.sort_by_key(|queued| queued.shard);
    let mut batch = Batch::new(now());
    let mut logs: HashMap<ShardId, Option<LogEnd>> = HashMap::new();
    let mut placed = Vec::with_capacity(units.len());
    for mut queued in units {
        let end = logs.entry(queued.shard).or_insert_with(|| inner.shards[queued.shard.index()].log_end());
        let Some(end) = end.as_mut().filter(|end| end.since <= queued.epoch) else {
            queued.finish(Err(CommitError::Fenced));
            continue;
        };
        queued.epoch = end.epoch;
        let records = batch.add(queued.shard, end.epoch, end.head, &queued.unit);
        end.head += records.len() as Seq;
        placed.push(Placed { queued, records });
    }
    (batch, placed)
}

/// The batch is in: memory follows, in order, then the callers hear.
pub(crate) fn fold<S: Service>(inner: &Arc<Inner<S>>, placed: Vec<Placed<S>>) {
    inner.commits.worked();
    episodes::over(NO_WRITES, S::NAME);
    inner.commits.batches.fetch_add(1, Ordering::Relaxed);
    inner.commits.units.fetch_add(placed.len() as u64, Ordering::Relaxed);
    metrics::histogram!("rookery_commit_units", "service" => S::NAME).record(placed.len() as f64);
    for Placed { mut queued, records } in placed {
        let shard = &inner.shards[queued.shard.index()];
        let seq = records.last().expect("every unit has a record").seq;
        if shard.remembers(queued.epoch) {
            shard.fold(inner, &queued.unit.effects);
        }
        for note in queued.unit.notes.drain(..) {
            inner.service.noted(note);
        }
        shard.advance(queued.epoch, records, &queued.unit.inbox, inner.settings.tail_bytes);
        let epoch = queued.epoch;
        queued.finish(Ok(Committed { seq, epoch }));
    }
    inner.batches.send_modify(|count| *count += 1);
}

/// What to do about a statement that failed; the groups of units to try again.
async fn recover<S: Service>(
    inner: &Arc<Inner<S>>,
    session: &mut Option<Session>,
    tag: SessionTag,
    batch: &Batch<S>,
    placed: Vec<Placed<S>>,
    error: &tokio_postgres::Error,
) -> Vec<Vec<Queued<S>>> {
    match verdict(error) {
        Verdict::Doubt => {
            // Told of when it cannot be resolved.
            tracing::debug!(service.name = S::NAME, error = describe(error), "the outcome of a commit is open, resolving it");
            inner.commits.failed();
            *session = None;
            doubt::resolve(inner, tag, batch.id, placed, CommitError::Unknown).await
        }
        Verdict::Fenced => {
            // Somebody appended where we meant to: either we lost shards, or we must count anew. Taking over
            // from ourselves answers both: what is no longer ours is left out, the rest goes on.
            episodes::warn("a batch met a fence, finding out which shards are still ours", S::NAME, describe(error));
            doubt::resolve(inner, tag, batch.id, placed, CommitError::Fenced).await
        }
        Verdict::Again => vec![placed.into_iter().map(|placed| placed.queued).collect()],
        Verdict::Unavailable => {
            let unavailable = unavailable(inner, error);
            for Placed { queued, .. } in placed {
                queued.finish(Err(unavailable.clone()));
            }
            Vec::new()
        }
        Verdict::AtFault => {
            let mut units: Vec<_> = placed.into_iter().map(|placed| placed.queued).collect();
            if units.len() > 1 {
                // Halve until the one at fault stands alone (rule 14).
                let rest = units.split_off(units.len() / 2);
                return vec![units, rest];
            }
            let constraint = error.as_db_error().and_then(|db| db.constraint()).map(str::to_owned);
            let refused = if is_own_fault(error) {
                CommitError::Refused { constraint, message: describe(error) }
            } else {
                // A damaged table, or a server that gives no more transaction ids: others would fail as well.
                unavailable(inner, error)
            };
            for queued in units {
                queued.finish(Err(refused.clone()));
            }
            Vec::new()
        }
    }
}

/// What is answered when the database takes nothing from anybody; takes note of it.
fn unavailable<S: Service>(inner: &Inner<S>, error: &tokio_postgres::Error) -> CommitError {
    inner.database.note(error);
    episodes::warn(NO_WRITES, S::NAME, describe(error));
    inner.commits.failed();
    CommitError::Unavailable(describe(error))
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Doubt,
    Fenced,
    Again,
    Unavailable,
    AtFault,
}

fn verdict(error: &tokio_postgres::Error) -> Verdict {
    if outcome_is_open(error) {
        return Verdict::Doubt;
    }
    let Some(db) = error.as_db_error() else {
        return Verdict::AtFault;
    };
    let code = db.code();
    if *code == SqlState::UNIQUE_VIOLATION && db.constraint() == Some("outbox_pkey") {
        return Verdict::Fenced;
    }
    let again = [SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE];
    if again.contains(code) {
        return Verdict::Again;
    }
    // 42: a table or a right that is missing, for the text of the statement is ours; 53: no disk, no memory, too many
    // connections; 57: an operator; 58: the server's own system; 25006: a standby; 55P03: a lock held elsewhere. None of them
    // says anything about the units.
    let unavailable = ["42", "53", "57", "58"].iter().any(|class| code.code().starts_with(class))
        || [SqlState::READ_ONLY_SQL_TRANSACTION, SqlState::LOCK_NOT_AVAILABLE].contains(code);
    if unavailable { Verdict::Unavailable } else { Verdict::AtFault }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL_2: Duration = Duration::from_secs(5);

    /// What was broken: attempts that took two leases or longer each counted as none.
    #[test]
    fn commits_that_fail_slowly_do_not_work_while_they_are_tried() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let mut health = HealthState::default();
        for attempt in 0..4_u64 {
            let start = attempt * 7;
            health.unresolved.insert(attempt, at(start));
            assert_eq!(health.is_working(TTL_2, at(start + 3)), attempt == 0, "attempt {attempt} is under way");
            assert!(!health.is_working(TTL_2, at(start + 6)), "attempt {attempt} takes long");
            health.fail(at(start + 7));
            health.unresolved.remove(&attempt);
            assert!(!health.is_working(TTL_2, at(start + 7)), "attempt {attempt} has failed");
        }
        assert!(health.is_working(TTL_2, at(28 + 5)), "none was tried for two leases");
    }

    #[test]
    fn the_oldest_of_what_is_open_counts() {
        let health = Health::default();
        assert_eq!(health.oldest(), Duration::ZERO);
        let first = health.begin();
        std::thread::sleep(Duration::from_millis(20));
        let second = health.begin();
        assert!(health.oldest() >= Duration::from_millis(20));
        assert!(!health.working(Duration::from_millis(20)) && health.working(TTL_2));
        drop(first);
        assert!(health.oldest() < Duration::from_millis(20));
        drop(second);
        assert_eq!(health.oldest(), Duration::ZERO);
    }
}
