//! The reader's side: what was asked for is kept, and shown as long as it may be.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::Instant;
use uuid::Uuid;

use super::{BootTime, Copies, Evicted, Loan, Reader, SESSION, recall::Recall};
use crate::{
    entity::Failure,
    ids::ShardId,
    runtime::{
        Inner, NodeName, Runtime,
        route::{Place, Way},
        strange_answer,
        wire::{Answer, Question},
    },
    service::Service,
};

/// The part of a session after which its next use extends it: early enough that three of these can be late.
const EXTEND_AFTER: Duration = Duration::from_nanos(SESSION.as_nanos() as u64 / 6);

/// A session with an owner, as far as it was told us.
#[derive(Debug)]
pub(crate) struct Lender {
    node: NodeName,
    session: u64,
    /// In nanoseconds since boot.
    until: AtomicU64,
    /// When it was last asked for.
    asked: AtomicU64,
    extending: AtomicBool,
}

impl PartialEq for Lender {
    fn eq(&self, other: &Self) -> bool {
        (&self.node, self.session) == (&other.node, other.session)
    }
}

impl Lender {
    fn new(node: NodeName, session: u64) -> Self {
        Self { node, session, until: AtomicU64::new(0), asked: AtomicU64::new(0), extending: AtomicBool::new(false) }
    }

    /// What was asked for then lasts for so long by the owner's clock: nine tenths of it by ours.
    fn told(&self, asked: BootTime, lasts: Duration) {
        let until = asked.plus(lasts / 10 * 9).since_boot();
        self.until.fetch_max(until.as_nanos() as u64, Ordering::AcqRel);
        self.asked.fetch_max(asked.since_boot().as_nanos() as u64, Ordering::Relaxed);
    }

    /// Whether its copies may not be shown.
    pub(crate) fn is_over(&self, now: BootTime) -> bool {
        now >= BootTime::after_boot(Duration::from_nanos(self.until.load(Ordering::Acquire)))
    }

    /// Whether whoever finds out should ask for more time now.
    fn is_to_be_extended(&self, now: BootTime) -> bool {
        let asked = BootTime::after_boot(Duration::from_nanos(self.asked.load(Ordering::Relaxed)));
        now.since(asked) > EXTEND_AFTER && !self.extending.swap(true, Ordering::Relaxed)
    }
}

impl Copies {
    /// The session that a copy came with; none: it is over already.
    fn lender(&self, node: &NodeName, loan: Loan, asked: BootTime) -> Option<Arc<Lender>> {
        let told = |lender: &Lender| {
            lender.told(asked, loan.lasts);
            !lender.is_over(BootTime::now())
        };
        let mut lenders = self.lenders.lock().expect("no panic under this lock");
        if let Some(lender) = lenders.get(node).filter(|lender| lender.session == loan.session) {
            return told(lender).then(|| Arc::clone(lender));
        }
        let lender = Arc::new(Lender::new(Arc::clone(node), loan.session));
        if !told(&lender) {
            return None;
        }
        // What was kept under the former one is shown until that is over.
        lenders.insert(Arc::clone(node), Arc::clone(&lender));
        Some(lender)
    }
}

impl<S: Service> Runtime<S> {
    /// Shows a copy that is kept here of what another node serves; none: it must be asked.
    pub fn copied<T>(&self, id: Uuid, view: impl FnOnce(&S::Answer) -> T) -> Option<T> {
        let copies = &self.inner.copies;
        if copies.bytes.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let kept = self.inner.shard(id).kept.read().expect("no panic under this lock");
        let copy = kept.get(id)?;
        let value = view(&copy.value);
        // The clock after the value: who slept in between has looked at what is no longer so.
        let now = BootTime::now();
        if copy.lender.is_over(now) {
            return None;
        }
        copy.is_used();
        copies.counts.shown.fetch_add(1, Ordering::Relaxed);
        if copy.lender.is_to_be_extended(now) {
            tokio::spawn(self.clone().ask_for_time(Arc::clone(&copy.lender)));
        }
        Some(value)
    }

    /// Asks the owner of an entity something that shows its state alone, unless a copy of the answer is kept here.
    ///
    /// One query per entity is ever asked so: a copy is known by the id.
    ///
    /// # Errors
    /// Why it could not be asked.
    pub async fn query_copied<T>(
        &self,
        id: Uuid,
        query: &S::Query,
        deadline: Instant,
        view: impl Fn(&S::Answer) -> T,
    ) -> Result<T, Failure> {
        if let Some(value) = self.copied(id, &view) {
            return Ok(value);
        }
        let mut way = Way::to(self, self.shard_of(id), deadline);
        loop {
            let place = way.next().await?;
            let asked = pin!(async {
                match &place {
                    Place::Here => S::answer(self, query, deadline).await.map(Arc::new),
                    Place::There(node) => self.borrow(node, id, query, deadline).await,
                }
            });
            let answer = self.unless_moved(self.shard_of(id), &place, asked).await.unwrap_or_else(|lost| Err(lost.into()));
            if let Some(answer) = way.arrived(&place, answer)? {
                return Ok(view(&answer));
            }
        }
    }

    async fn borrow(&self, node: &NodeName, id: Uuid, query: &S::Query, deadline: Instant) -> Result<Arc<S::Answer>, Failure> {
        let (inner, copies) = (&self.inner, &self.inner.copies);
        let kept = &inner.shard(id).kept;
        // Both before it is sent.
        let before = kept.read().expect("no panic under this lock").asked();
        // Without room it is not borrowed: the owner would have it in its books, and nobody here to give it up.
        let has_room = copies.bytes.load(Ordering::Relaxed) + COPY_BYTES <= copies.bytes_max;
        // Looked at after `before`: what is asked for from now on does not count as called back by `return_copies`.
        let keeps = has_room && !copies.returned.load(Ordering::SeqCst);
        let Some(reader) = self.reader().filter(|_| keeps) else {
            return self.query_at(&Place::There(Arc::clone(node)), query, deadline).await.map(Arc::new);
        };
        let asked = BootTime::now();
        let question = Question::Borrow(&reader, id, query);
        let (answer, bytes) = self.send_measured(Arc::clone(node), &question, deadline).await?;
        let (answer, loan) = match answer {
            Answer::Lent(answer, loan) => (Arc::new(answer?), loan),
            Answer::Refused(failure) => return Err(failure),
            _ => return Err(strange_answer()),
        };
        let bytes = bytes * 2 + COPY_BYTES;
        let room = copies.bytes.load(Ordering::Relaxed) + bytes <= copies.bytes_max;
        let loan = loan.filter(|_| room).and_then(|loan| Some((copies.lender(node, loan, asked)?, loan.number)));
        if let Some(loan) = loan {
            let mut kept = kept.write().expect("no panic under this lock");
            copies.resize(kept.keep(id, Arc::clone(&answer), loan, bytes, before));
            copies.counts.borrowed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(answer)
    }

    /// Who we are to those who lend us something; none without other nodes.
    fn reader(&self) -> Option<Reader> {
        Some(Reader { node: self.router()?.me(), life: self.inner.copies.life })
    }

    async fn ask_for_time(self, lender: Arc<Lender>) {
        self.extend_at(&lender, &[]).await;
        lender.extending.store(false, Ordering::Relaxed);
    }

    /// Asks for more time, and says what was evicted.
    async fn extend_at(&self, lender: &Lender, evicted: &[Evicted]) {
        let Some(reader) = self.reader() else { return };
        let asked = BootTime::now();
        let question = Question::Extend(&reader, lender.session, evicted);
        let answer = self.send(Arc::clone(&lender.node), &question, Instant::now() + SESSION).await;
        let lasts = match answer {
            Ok(Answer::Extended(lasts)) => lasts.unwrap_or_default(),
            // It may be so slow that the next one is not.
            _ => Duration::ZERO,
        };
        lender.told(asked, lasts);
    }

    /// Gives everything back and keeps nothing from now on: a node that leaves answers no recalls later, and a change would
    /// wait for the end of its session.
    pub async fn return_copies(&self) {
        let copies = &self.inner.copies;
        // In this order: what is asked for before is not kept, and nobody asks for a copy after.
        copies.returned.store(true, Ordering::SeqCst);
        for shard in &self.inner.shards {
            let freed = shard.kept.write().expect("no panic under this lock").recall_all();
            copies.resize((0, freed));
        }
        let Some(reader) = self.reader() else { return };
        let lenders = std::mem::take(&mut *copies.lenders.lock().expect("no panic under this lock"));
        join_all(lenders.into_values().map(async |lender| {
            let question = Question::Return(&reader, lender.session);
            // Who does not hear of it waits until the session is over.
            let _ = self.send(Arc::clone(&lender.node), &question, Instant::now() + SESSION).await;
        }))
        .await;
    }

    /// Gives up what an owner calls back. False: it is another life of this node that is meant.
    pub(in crate::runtime) fn give_back(&self, life: u64, what: &Recall) -> bool {
        let copies = &self.inner.copies;
        if life != copies.life {
            return false;
        }
        match what {
            Recall::Entities(ids) => ids.iter().for_each(|id| {
                let freed = self.inner.shard(*id).kept.write().expect("no panic under this lock").recall(*id);
                copies.resize((0, freed));
            }),
            Recall::Shards(shards) => shards.iter().for_each(|shard: &ShardId| {
                let Some(shard) = self.inner.shards.get(shard.index()) else { return };
                let freed = shard.kept.write().expect("no panic under this lock").recall_all();
                copies.resize((0, freed));
            }),
        }
        true
    }
}

/// Tells the owners what was evicted, so that their books do not fill up with it: in batches, each owner its own. An entry of
/// which the news is lost lasts until the session is over, or everything is called back.
pub(super) fn tell_evicted<S: Service>(inner: &Arc<Inner<S>>, evictions: Vec<(Arc<Lender>, Uuid, u64)>) {
    let mut by_lender: Vec<(Arc<Lender>, Vec<Evicted>)> = Vec::new();
    for (lender, id, loan) in evictions {
        match by_lender.iter_mut().find(|(known, _)| *known == lender) {
            Some((_, theirs)) => theirs.push((id, loan)),
            None => by_lender.push((lender, vec![(id, loan)])),
        }
    }
    for (lender, evicted) in by_lender {
        let runtime = Runtime { inner: Arc::clone(inner) };
        tokio::spawn(async move {
            for batch in evicted.chunks(EVICTED_BATCH) {
                runtime.extend_at(&lender, batch).await;
            }
        });
    }
}

/// Evictions in one message: some 80 KiB.
const EVICTED_BATCH: usize = 4_096;

/// A copy with its place in the map, in bytes, besides the answer.
const COPY_BYTES: usize = 256;
