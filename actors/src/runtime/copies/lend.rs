//! The owner's side: what is asked for is lent, if it may be, and sessions are kept.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use super::{BootTime, Evicted, Loan, Reader, SESSION, Session, recall, session::Term};
use crate::{
    entity::Failure,
    runtime::{Inner, Runtime, shard::Shard},
    service::Service,
};

impl<S: Service> Runtime<S> {
    /// Answers a reader, with a copy if the answer may be kept.
    pub(in crate::runtime) async fn lend(
        &self,
        reader: &Reader,
        id: Uuid,
        query: &S::Query,
        deadline: Instant,
    ) -> (Result<S::Answer, Failure>, Option<Loan>) {
        let inner = &self.inner;
        // Before anything is read: a write that begins from here on finds the entry, or the entry is not made.
        let lent = session(inner, reader).and_then(|session| Some((inner.shard(id).lend(id, &session)?, session)));
        let answer = S::answer(self, query, deadline).await;
        let lendable = answer.as_ref().is_ok_and(S::is_lendable);
        let loan = lent.filter(|_| lendable).and_then(|(number, session)| {
            // After it was read: if the session ended meanwhile, nobody would call this copy back.
            Some(Loan { session: session.id, lasts: extend(inner, &session)?, number })
        });
        (answer, loan)
    }

    /// Extends a reader's session, and takes off the books what it has evicted; none: it is over, and so is what was lent
    /// under it.
    pub(in crate::runtime) fn extend(&self, reader: &Reader, id: u64, evicted: &[Evicted]) -> Option<Duration> {
        let session = {
            let sessions = self.inner.copies.sessions.lock().expect("no panic under this lock");
            sessions.get(reader).filter(|session| session.id == id).cloned()
        }?;
        for (id, loan) in evicted {
            let mut flight = self.inner.shard(*id).in_flight.lock().expect("no panic under this lock");
            flight.lent.evicted(&session, *id, *loan);
        }
        extend(&self.inner, &session)
    }

    /// A reader has given back what it had under this session.
    pub(in crate::runtime) fn end_session(&self, reader: &Reader, id: u64) {
        let mut sessions = self.inner.copies.sessions.lock().expect("no panic under this lock");
        if sessions.get(reader).is_some_and(|session| session.id == id) {
            let session = sessions.remove(reader).expect("it is there");
            session.term().end(BootTime::now());
        }
    }
}

fn extend<S: Service>(inner: &Inner<S>, session: &Session) -> Option<Duration> {
    // The lease before the time: it is no longer than what is told of it then.
    let lease = inner.lease.until();
    session.term().extend(BootTime::now(), SESSION, lease)
}

/// The session with a reader, begun anew if the former one is over or about to be; none without a lease.
fn session<S: Service>(inner: &Inner<S>, reader: &Reader) -> Option<Arc<Session>> {
    let mut sessions = inner.copies.sessions.lock().expect("no panic under this lock");
    if let Some(session) = sessions.get(reader).filter(|session| session.may_grow()) {
        return Some(Arc::clone(session));
    }
    let term = Term::begin(BootTime::now(), SESSION, inner.lease.until())?;
    let session = Arc::new(Session { id: rand::random(), reader: reader.clone(), term: term.into() });
    sessions.insert(reader.clone(), Arc::clone(&session));
    Some(session)
}

/// Forgets who has nothing of a shard any more, and calls back everything if it is too much; how much is lent.
pub(super) fn tidy<S: Service>(inner: &Arc<Inner<S>>, shard: &Shard<S>) -> usize {
    let (entries, is_full) = {
        let lent = &mut shard.in_flight.lock().expect("no panic under this lock").lent;
        if lent.entries() > 0 {
            lent.forget(|session| !session.is_live());
        }
        (lent.entries(), lent.is_full() && !lent.is_recalled())
    };
    if is_full {
        let (inner, shard) = (Arc::clone(inner), shard.id);
        tokio::spawn(async move { recall::call_back_shards(&inner, &[shard]).await });
    }
    entries
}
