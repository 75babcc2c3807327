//! One service on one node: its shards, their entities, the committer and the lease.

mod activation;
mod birth;
mod cell;
mod commit_batch;
mod commit_queue;
mod committer;
mod connection;
mod copies;
mod database;
mod dead_letters;
mod directory;
mod doubt;
mod entity_actor;
mod hand_off;
mod history;
mod lease;
mod loader;
mod log;
mod memory;
mod ping;
mod project;
pub(crate) mod rebuild;
mod route;
mod serve;
mod session;
mod shard;
mod shard_actor;
mod sweep;
mod tail;
mod transfer;
mod trim;
mod vital;
mod waiting;
mod wire;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use ractor::ActorCell;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_postgres::Config;
use uuid::Uuid;

use self::{cell::Cell, committer::Committer, copies::Copies, loader::Loader, memory::Memory, shard::Shard};
pub use self::{
    commit_batch::{CommitError, Committed, DeadLetter, KeptReply, NewRecord, Unit},
    connection::{ConnectError, Connection, Transaction},
    database::{Database, NOT_ON_THE_DISK_YET, PoolSize, Pooled},
    dead_letters::{LetterFilter, StoredLetter},
    directory::{Directory, DirectoryError, Granted, MemberRow, MemberState, ShardRow},
    hand_off::HandedOff,
    history::Carried,
    lease::{BootTime, Lease},
    ping::Ping,
    project::{ProjectError, Slice, SlicePart},
    rebuild::WantedRebuild,
    route::{NodeName, Router, SendError},
    sweep::Sweep,
    trim::Retention,
    waiting::Waiting,
};
pub(crate) use self::{
    database::{describe, is_own_fault},
    route::{strange_answer, unserved},
};
use crate::{
    entity::{AskError, Entity, Failure},
    event::Source,
    ids::{Epoch, Incarnation, Seq, ShardId, shard_of},
    service::Service,
    supervisor::{Lifetime, RestartPolicy, Restarts},
};

/// How long what an answer tells besides may be looked up once the work is committed.
const LOOK_UP_MAX: Duration = Duration::from_secs(1);

/// How long a stop waits for the outcome of a commit: longer than a restart of Postgres, a third of a whole stop.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// The knobs of a service on a node.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Shards of the service; fixed for the life of its database.
    pub shards: u16,
    /// Memory that loaded entities may take, in bytes; of search, documents on their way into its indexes.
    pub cache_bytes: usize,
    /// Idle time after which an entity is passivated.
    pub passivate_after: Duration,
    /// Commands in one statement at most.
    pub batch_units_max: usize,
    /// Payload of one statement at most, in bytes, roughly.
    pub batch_bytes_max: usize,
    /// Units that may wait for the committer; more are refused as overload.
    pub queue_max: usize,
    /// Ids in one loading statement at most.
    pub load_batch_max: usize,
    /// Loading statements under way at most.
    pub loads_max: usize,
    /// Memory that copies of what other nodes serve may take, in bytes; 0: there are none.
    pub copies_bytes: usize,
    /// Copies of a shard's entities on other nodes at most: beyond them all of the shard's are called back.
    pub lent_max: usize,
    /// Records of recent commits kept in memory per shard, in bytes.
    pub tail_bytes: usize,
    /// Connections for reads.
    pub pool: PoolSize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            shards: 256,
            cache_bytes: 256 << 20,
            passivate_after: Duration::from_secs(300),
            batch_units_max: 512,
            batch_bytes_max: 4 << 20,
            queue_max: 16_384,
            load_batch_max: 256,
            loads_max: 4,
            copies_bytes: 64 << 20,
            lent_max: 4_096,
            tail_bytes: 256 << 10,
            pool: PoolSize::default(),
        }
    }
}

/// What travels with a command.
#[derive(Clone, Debug)]
pub struct Context {
    /// After it the work is dropped, with an answer.
    pub deadline: Instant,
    /// The trace that caused it.
    pub traceparent: Option<Arc<str>>,
    /// The retry key and the hash of the request it belongs to.
    pub idempotency: Option<IdempotencyKey>,
}

/// A retry key, made unique by its scope (user and route).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyKey {
    /// The scoped key.
    pub key: Arc<str>,
    /// Of the request, so that another request with the same key is refused.
    pub request_hash: [u8; 32],
    /// The hashes of the same request that other nodes may have kept: with the cluster's former secret, say. They are for
    /// the asking node alone, which asks again with each of them before it takes a key for reused.
    #[serde(skip)]
    pub also_hashed: Arc<[[u8; 32]]>,
}

impl IdempotencyKey {
    /// A key of a request that has one hash.
    pub fn new(key: impl Into<Arc<str>>, request_hash: [u8; 32]) -> Self {
        Self { key: key.into(), request_hash, also_hashed: Arc::default() }
    }

    /// The shard into which ids minted for this key must fall.
    pub fn shard(&self, shards: u16) -> ShardId {
        ShardId((xxhash_rust::xxh3::xxh3_64(self.key.as_bytes()) % u64::from(shards)) as u16)
    }
}

impl Context {
    /// A context with nothing but a deadline.
    pub fn within(timeout: Duration) -> Self {
        Self { deadline: Instant::now() + timeout, traceparent: None, idempotency: None }
    }
}

/// A reply, and where the write stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted<T> {
    /// The answer.
    pub reply: T,
    /// The entity's shard.
    pub shard: ShardId,
    /// The last record of the write. When there was nothing to write, the last one of the entity that a search can wait for, as
    /// far as this node knows; 0: of none.
    pub seq: Seq,
}

/// How an ask ends.
pub type AskResult<S> = Result<Accepted<<S as Service>::Reply>, AskError<<<S as Service>::Entity as Entity>::Rejection>>;

/// A service on this node.
pub struct Runtime<S: Service> {
    pub(crate) inner: Arc<Inner<S>>,
}

impl<S: Service> Clone for Runtime<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

pub(crate) struct Inner<S: Service> {
    pub(crate) service: S,
    pub(crate) settings: Settings,
    incarnation: RwLock<Incarnation>,
    pub(crate) database: Database,
    pub(crate) shards: Vec<Shard<S>>,
    pub(crate) lease: Lease,
    pub(crate) memory: Memory,
    pub(crate) copies: Copies,
    pub(crate) committer: Committer<S>,
    pub(crate) loader: Loader<S::Entity>,
    /// Counts batches, so that readers of the log wake up.
    pub(crate) batches: watch::Sender<u64>,
    /// Counts the beginnings and ends of tenures.
    tenures: watch::Sender<u64>,
    pub(crate) supervisor: OnceLock<ActorCell>,
    /// When a commit last worked: a member whose commits fail stops renewing (rule 10).
    pub(crate) commits: committer::Health,
    /// The way to other nodes, if there are any.
    router: OnceLock<Arc<dyn Router>>,
    waiting: route::WaitingRoom,
    /// Entities and shards that failed and live again.
    pub(crate) restarts: AtomicU64,
    /// When shards failed: beyond their restart intensity the service gives up here.
    pub(crate) shard_failures: Mutex<Restarts>,
    pub(crate) failed: watch::Sender<bool>,
    /// Held while a dead letter is replayed.
    pub(crate) replaying: tokio::sync::Mutex<()>,
}

impl<S: Service> Runtime<S> {
    /// A runtime that owns nothing yet; [`Runtime::start`] brings it to life.
    pub fn new(service: S, config: Config, incarnation: Incarnation, settings: Settings) -> Self {
        let database = Database::new(config, &session_name::<S>(incarnation), settings.pool);
        let tenures = watch::Sender::new(0);
        let shards = (0..settings.shards).map(|id| Shard::new(ShardId(id), tenures.clone(), settings.lent_max)).collect();
        let inner = Inner {
            service,
            incarnation: RwLock::new(incarnation),
            database,
            shards,
            lease: Lease::default(),
            memory: Memory::new(settings.cache_bytes),
            copies: Copies::new(settings.copies_bytes),
            committer: Committer::new(settings.queue_max),
            loader: Loader::new(settings.loads_max),
            batches: watch::Sender::new(0),
            tenures,
            supervisor: OnceLock::new(),
            commits: committer::Health::default(),
            router: OnceLock::new(),
            waiting: route::WaitingRoom::default(),
            shard_failures: Mutex::new(Restarts::new(RestartPolicy::default(), Lifetime::Permanent)),
            restarts: AtomicU64::new(0),
            failed: watch::Sender::new(false),
            replaying: tokio::sync::Mutex::default(),
            settings,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Starts the committer's lanes, the loader and the sweep of idle entities. They end with `stop`.
    pub fn start(&self, supervisor: ActorCell) {
        self.inner.supervisor.set(supervisor).expect("a runtime starts once");
        committer::start(&self.inner);
        loader::start(&self.inner);
        memory::start(&self.inner);
    }

    /// Takes no more work; what waits is answered, within seconds also if the database is away.
    pub async fn stop(&self) {
        self.inner.lease.revoke();
        self.inner.committer.close(STOP_PATIENCE).await;
    }

    /// Ends when the service gives up here: shards or the committer have failed beyond their restart intensity, or a task
    /// that has none. Whoever runs it decides.
    pub async fn failed(&self) {
        // The sender lives as long as we do.
        let _ = self.inner.failed.subscribe().wait_for(|failed| *failed).await;
    }

    /// Rules, tables and read models of the service.
    pub fn service(&self) -> &S {
        &self.inner.service
    }

    /// Its database.
    pub fn database(&self) -> &Database {
        &self.inner.database
    }

    /// The lease under which it serves.
    pub fn lease(&self) -> &Lease {
        &self.inner.lease
    }

    /// Who it is in the database.
    pub fn incarnation(&self) -> Incarnation {
        self.inner.incarnation()
    }

    /// Goes on as somebody else, after all shards were closed: dead is final for the former one (rule 7).
    pub fn reincarnate(&self, incarnation: Incarnation) {
        *self.inner.incarnation.write().expect("no panic under this lock") = incarnation;
        self.inner.database.rename(&session_name::<S>(incarnation));
    }

    /// Whether a shard is ours as far as we know: open, or silent until the outcome of a commit is known.
    pub fn is_held(&self, shard: ShardId) -> bool {
        self.inner.shards[shard.index()].is_held()
    }

    /// The shard of an entity.
    pub fn shard_of(&self, id: Uuid) -> ShardId {
        shard_of(id, self.inner.settings.shards)
    }

    /// How many shards the service has.
    pub fn shards(&self) -> u16 {
        self.inner.settings.shards
    }

    /// Reads an entity's committed state from memory, loading it first if need be.
    ///
    /// `view` runs under the entity's read lock: it copies what it needs and does no work.
    ///
    /// # Errors
    /// When the entity cannot be loaded, or the lease ended before the answer (rule 8).
    pub async fn read<T>(&self, id: Uuid, deadline: Instant, view: impl FnOnce(Option<&S::Entity>) -> T) -> Result<T, Failure> {
        activation::read(&self.inner, id, deadline, view).await
    }

    /// Like [`Runtime::read`], but only if the entity is loaded; `None`: it is not, ask `read`.
    pub fn read_loaded<T>(&self, id: Uuid, view: impl FnOnce(Option<&S::Entity>) -> T) -> Option<Result<T, Failure>> {
        activation::read_loaded(&self.inner, id, view)
    }

    /// The number of an entity's committed state, if it is loaded: what was made from a state holds as long as its number.
    pub fn revision(&self, id: Uuid) -> Option<u64> {
        activation::revision(&self.inner, id)
    }

    /// Waits until everything of this shard that is now on its way to the database is also in memory, so that
    /// a read that used SQL can answer (rule 9).
    pub async fn settled(&self, shard: ShardId) {
        self.inner.shards[shard.index()].settled().await;
    }

    /// Starts to serve a shard that the directory has given us: `seq` is its last record, the epoch record included.
    ///
    /// # Errors
    /// When the shard's supervisor cannot be started.
    pub async fn open(&self, granted: Granted, inbox: Vec<(Source, Seq)>) -> Result<(), ractor::SpawnErr> {
        shard_actor::open(&self.inner, granted, inbox).await
    }

    /// Stops serving a shard: its entities go, what waits for its commits is refused as fenced.
    pub fn close(&self, shard: ShardId) {
        let gone = self.inner.shards[shard.index()].close();
        self.inner.memory.forget(gone);
    }

    /// Hands shards to another member, through a session of our own: what is on its way is committed and answered first,
    /// and whoever comes meanwhile hears [`Failure::Moved`]. Those that are not granted are served here again.
    ///
    /// Runs to its end in a task of its own: the outcome of a grant is resolved, never dropped (rule 3).
    pub async fn hand_off(&self, directory: &Directory, shards: &[ShardId], to: Incarnation, patience: Duration) -> HandedOff {
        hand_off::hand_off(&self.inner, directory, shards, to, patience).await
    }

    /// The latest epoch under which a shard was ever served here; 0: it never was.
    pub fn latest_epoch(&self, shard: ShardId) -> Epoch {
        self.inner.shards[shard.index()].latest()
    }

    /// How many entities and shards have failed here and lived again.
    pub fn restarts(&self) -> u64 {
        self.inner.restarts.load(Ordering::Relaxed)
    }

    /// The shards that are open here, with their epochs and the last committed position.
    pub fn owned(&self) -> Vec<(ShardId, Epoch, Seq)> {
        self.inner.shards.iter().filter_map(|shard| shard.tenure().map(|tenure| (shard.id, tenure, shard.head()))).collect()
    }

    /// Whether commits work, as far as is known: for the lease and for readiness. They do not if one has failed and none
    /// worked since, or if the outcome of a batch, a claim or a hand-off has been open, for so long (rule 10).
    pub fn commits_work(&self, within: Duration) -> bool {
        self.inner.commits.working(within)
    }

    /// Has the committer open its sessions and keep them, also while nothing is written: a server that gives it none is noticed
    /// before somebody's write is refused. Returns when they are open.
    ///
    /// # Errors
    /// [`Failure::Unavailable`], with what the server says; it goes on trying.
    pub async fn keep_sessions(&self, within: Duration) -> Result<(), Failure> {
        self.inner.committer.keep_sessions(within).await.map_err(Failure::Unavailable)
    }

    /// Why the committer has not all the sessions that it is to keep; none: it has.
    pub fn lacks_session(&self) -> Option<String> {
        self.inner.committer.lacks_session()
    }

    /// Entities in memory and the bytes that they take.
    pub fn loaded(&self) -> (usize, usize) {
        self.inner.memory.usage()
    }

    /// Adds a unit to the next batch of a shard, apart from any entity: for projections and repairs.
    ///
    /// # Errors
    /// Why it was not committed.
    pub async fn commit(&self, shard: ShardId, unit: Unit<S>) -> Result<Committed, CommitError> {
        let epoch = self.inner.shards[shard.index()].tenure().ok_or(CommitError::Fenced)?;
        committer::landed(committer::submit(&self.inner, shard, epoch, unit).await?).await
    }

    /// The last committed position of a shard that is open here.
    pub fn head(&self, shard: ShardId) -> Option<Seq> {
        let shard = &self.inner.shards[shard.index()];
        shard.tenure().map(|_| shard.head())
    }

    /// How far a shard that is open here has come: its own last record, and what it has applied of other logs.
    pub fn reached(&self, shard: ShardId) -> Option<(Seq, HashMap<Source, Seq>)> {
        let shard = &self.inner.shards[shard.index()];
        shard.tenure()?;
        // The head first: a batch folds its positions before it moves the head.
        let head = shard.head();
        Some((head, shard.inbox.lock().expect("no panic under this lock").clone()))
    }

    /// The last position of every shard's log, wherever it is served.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn heads(&self) -> Result<Vec<(ShardId, Seq)>, Failure> {
        let client = self.inner.database.get().await?;
        // A look at the end of each log, not a pass over all of them.
        let sql = "SELECT id, COALESCE((SELECT max(seq) FROM outbox o WHERE o.shard = s.id), 0) FROM shard s ORDER BY id";
        let rows = client.query(sql, &[]).await?;
        Ok(rows.iter().map(|row| (ShardId(row.get::<_, i16>(0).unsigned_abs()), row.get(1))).collect())
    }

    /// Whether [`Runtime::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.inner.committer.is_closed()
    }

    /// Wakes whenever a batch was committed.
    pub fn batches(&self) -> watch::Receiver<u64> {
        self.inner.batches.subscribe()
    }

    /// Wakes whenever a shard begins or ends to be served here; what is served may be looked up when its number is seen.
    pub fn tenures(&self) -> watch::Receiver<u64> {
        self.inner.tenures.subscribe()
    }

    /// The shards that are served here now.
    pub(crate) fn served(&self) -> Served {
        loop {
            let number = self.tenure_number();
            let shards = self.inner.shards.iter().filter(|shard| shard.tenure().is_some()).map(|shard| shard.id).collect();
            if self.tenure_number() == number {
                return Served { number, shards };
            }
        }
    }

    /// The number of [`Runtime::served`]: another when it is no longer the same.
    pub(crate) fn tenure_number(&self) -> u64 {
        *self.inner.tenures.borrow()
    }

    /// Forgets records that every reader has, and old idempotency keys; the rows that went.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn trim(&self, retention: &Retention) -> Result<u64, Failure> {
        trim::trim(&self.inner, retention).await
    }

    /// How far a consumer has read the logs of this service.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn consumer_places(&self, consumer: &'static str) -> Result<Vec<(ShardId, Seq)>, Failure> {
        let client = self.inner.database.get().await?;
        let rows = client.query("SELECT shard, position FROM consumer WHERE name = $1", &[&consumer]).await?;
        Ok(rows.iter().map(|row| (ShardId(row.get::<_, i16>(0) as u16), row.get(1))).collect())
    }

    /// Notes how far a consumer has read; places only move forward, whoever notes them. One that is lost with the server
    /// is an earlier one: what lies between is read again and known by its position (rule 16).
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn note_consumer(&self, consumer: &'static str, places: &[(ShardId, Seq)]) -> Result<(), Failure> {
        let (shards, positions): (Vec<i16>, Vec<i64>) = places.iter().map(|(shard, place)| (shard.as_i16(), *place)).unzip();
        let client = self.inner.database.get().await?;
        client
            .execute(
                &format!(
                    "INSERT INTO consumer (name, shard, position)
                     SELECT $1, shard, position
                     FROM UNNEST($2::int2[], $3::int8[]) AS r(shard, position), {NOT_ON_THE_DISK_YET} ORDER BY shard
                     ON CONFLICT (name, shard) DO UPDATE SET position = GREATEST(consumer.position, excluded.position)"
                ),
                &[&consumer, &shards, &positions],
            )
            .await?;
        Ok(())
    }

    /// The dead letters of all shards that pass the filter, the first ones of each source first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn dead_letters(&self, filter: &LetterFilter, limit: usize) -> Result<Vec<StoredLetter>, Failure> {
        dead_letters::list(&self.inner, filter, limit).await
    }
}

/// The shards that a node serves at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    /// Names the moment.
    pub(crate) number: u64,
    /// In order.
    pub(crate) shards: Vec<ShardId>,
}

impl<S: Service> Inner<S> {
    pub(crate) fn incarnation(&self) -> Incarnation {
        *self.incarnation.read().expect("no panic under this lock")
    }

    /// Books what an entity takes now.
    pub(crate) fn weigh(&self, cell: &Cell<S>) {
        let weight = cell.measure();
        if let Some(before) = cell.reweigh(weight) {
            self.memory.resize(before, weight);
        }
    }

    pub(crate) fn shard(&self, id: Uuid) -> &Shard<S> {
        &self.shards[shard_of(id, self.settings.shards).index()]
    }
}

/// By which whoever takes over finds the sessions of a member (rule 4).
fn session_name<S: Service>(incarnation: Incarnation) -> String {
    format!("{}:{incarnation}", S::NAME)
}

/// Until when something may be looked up for the answer to what is committed: nothing may fail that answer any more, and a look
/// that takes the time which is left would.
pub fn in_time_to_answer(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + (deadline.saturating_duration_since(now) / 2).min(LOOK_UP_MAX)
}

/// The time of day for records, to the precision that Postgres keeps.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).expect("a timestamp in range stays in range")
}
