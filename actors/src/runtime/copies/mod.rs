//! Copies of entities on other nodes than their owner's, never stale
//! ([0015](../../../../docs/adr/0015-copies-that-are-called-back.md)).
//!
//! While a reader may show a copy of an entity, no change of that entity is on its way to Postgres. An owner writes down
//! what it lends before it reads it (`lend.rs`), a unit that contains something lent is not queued before it was called
//! back (`recall.rs`), and a reader shows what it keeps as long as its session lasts (`borrow.rs`).

mod borrow;
mod kept;
mod lend;
mod lent;
mod recall;
mod session;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(super) use self::{
    borrow::Lender,
    kept::Kept,
    lent::Lent,
    recall::{Recall, call_back, call_back_shards},
};
use self::{kept::Tidied, session::Term};
use super::{BootTime, Inner, NodeName};
use crate::service::Service;

/// How long a session lasts unless it is extended. No knob: whoever takes over early must wait for as long as others may
/// have lent for, so all nodes have to agree.
pub(crate) const SESSION: Duration = Duration::from_millis(400);

/// Who keeps copies: a node, in one of its lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Reader {
    pub(crate) node: NodeName,
    pub(crate) life: u64,
}

/// What a reader is told with a copy: under which session it may keep it, and how long that lasts, from before it asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Loan {
    pub(crate) session: u64,
    pub(crate) lasts: Duration,
    /// Of the shard's loans; 0: of a build that does not number them.
    pub(crate) number: u64,
}

/// What a reader keeps no more though nobody asked for it: the entity, and the number of the loan.
pub(crate) type Evicted = (Uuid, u64);

/// A session of ours with a reader.
#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    reader: Reader,
    term: Mutex<Term>,
}

impl PartialEq for Session {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Session {
    /// A session that is live, with nobody.
    #[cfg(test)]
    pub(super) fn of_a_test() -> Arc<Self> {
        let lease = BootTime::now().plus(Duration::from_secs(60));
        let term = Term::begin(BootTime::now(), SESSION, lease).expect("the lease is valid").into();
        Arc::new(Self { id: 1, reader: Reader { node: "a reader".into(), life: 1 }, term })
    }

    fn term(&self) -> MutexGuard<'_, Term> {
        self.term.lock().expect("no panic under this lock")
    }

    fn is_live(&self) -> bool {
        self.term().is_live(BootTime::now())
    }

    fn may_grow(&self) -> bool {
        self.term().may_grow(BootTime::now())
    }

    /// Is extended no more: a tenure has ended of which it has copies, and who comes next waits for its end.
    pub(super) fn retire(&self) {
        self.term().retire();
    }
}

/// What a service on this node lends and keeps.
#[derive(Debug)]
pub(crate) struct Copies {
    /// This life of this node, as a reader.
    life: u64,
    /// What is kept may take so much; 0: nothing is.
    bytes_max: usize,
    bytes: AtomicUsize,
    /// Nothing is kept any more: the node leaves.
    returned: AtomicBool,
    /// With those who keep copies of ours.
    sessions: Mutex<HashMap<Reader, Arc<Session>>>,
    /// With those whose copies we keep, as of now.
    lenders: Mutex<HashMap<NodeName, Arc<Lender>>>,
    counts: Counts,
}

/// What has happened so far.
#[derive(Debug, Default)]
struct Counts {
    shown: AtomicU64,
    borrowed: AtomicU64,
    recalled: AtomicU64,
    /// Sessions that ran out while a change waited for an answer.
    awaited: AtomicU64,
    /// Nanoseconds that changes have waited for readers.
    waited_ns: AtomicU64,
}

impl Copies {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            life: rand::random(),
            bytes_max,
            bytes: AtomicUsize::new(0),
            returned: AtomicBool::new(false),
            sessions: Mutex::default(),
            lenders: Mutex::default(),
            counts: Counts::default(),
        }
    }

    fn resize(&self, (grown, shrunk): (usize, usize)) {
        self.bytes.fetch_add(grown, Ordering::Relaxed);
        self.bytes.fetch_sub(shrunk, Ordering::Relaxed);
    }
}

/// Forgets what is over, once in a while, makes room, and says what has happened.
pub(super) fn tidy<S: Service>(inner: &Arc<Inner<S>>) {
    let copies = &inner.copies;
    copies.sessions.lock().expect("no panic under this lock").retain(|_, session| session.is_live());
    let tight = copies.bytes.load(Ordering::Relaxed) > copies.bytes_max / 10 * 9;
    let (mut kept, mut lent, mut evictions) = (0, 0, Vec::new());
    let now = BootTime::now();
    for shard in &inner.shards {
        let mut copied = shard.kept.write().expect("no panic under this lock");
        if copied.len() > 0 {
            let Tidied { bytes, evicted } = copied.tidy(|lender| lender.is_over(now), tight);
            copies.resize((0, bytes));
            kept += copied.len();
            evictions.extend(evicted);
        }
        drop(copied);
        lent += lend::tidy(inner, shard);
    }
    borrow::tell_evicted(inner, evictions);
    let Counts { shown, borrowed, recalled, awaited, waited_ns } = &copies.counts;
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    metrics::gauge!("rookery_copies_kept", "service" => S::NAME).set(kept as f64);
    metrics::gauge!("rookery_copies_kept_bytes", "service" => S::NAME).set(copies.bytes.load(Ordering::Relaxed) as f64);
    metrics::gauge!("rookery_copies_lent", "service" => S::NAME).set(lent as f64);
    metrics::counter!("rookery_copies_shown_total", "service" => S::NAME).absolute(count(shown));
    metrics::counter!("rookery_copies_borrowed_total", "service" => S::NAME).absolute(count(borrowed));
    metrics::counter!("rookery_copies_recalled_total", "service" => S::NAME).absolute(count(recalled));
    metrics::counter!("rookery_copies_awaited_total", "service" => S::NAME).absolute(count(awaited));
    metrics::gauge!("rookery_copies_waited_seconds_total", "service" => S::NAME)
        .set(Duration::from_nanos(count(waited_ns)).as_secs_f64());
}
