//! Where requests from one other node are worked on: each in a task of its own, so many at a time.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::{sync::Semaphore, time::timeout_at};

use super::{
    Handler, Meta, Request,
    envelope::{BODY_BYTES_MAX, Body, Outcome, RequestHead},
    link::Link,
};

/// Nobody waits longer than this, whatever an envelope says.
const REMAINING_MAX: Duration = Duration::from_secs(3600);

/// The work of one peer. It outlives the link: a peer that comes back does not get its share twice.
pub(super) struct Desk {
    peer: Arc<str>,
    handler: Arc<dyn Handler>,
    permits: Arc<Semaphore>,
    permits_max: usize,
    stopping: Arc<AtomicBool>,
}

impl Desk {
    pub(super) fn new(peer: Arc<str>, handler: Arc<dyn Handler>, permits_max: usize, stopping: Arc<AtomicBool>) -> Self {
        Self { peer, handler, permits: Arc::new(Semaphore::new(permits_max)), permits_max, stopping }
    }

    /// Whether nothing is in work and every answer has left.
    pub(super) fn is_idle(&self) -> bool {
        self.permits.available_permits() == self.permits_max
    }

    /// Works on a request and answers it, whatever happens.
    pub(super) fn serve(&self, link: Arc<Link>, id: u64, head: RequestHead, body: Bytes) {
        if self.stopping.load(Ordering::Relaxed) {
            return link.reply(id, Outcome::Stopping);
        }
        if head.remaining_us == 0 {
            return link.reply(id, Outcome::Expired);
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return link.reply(id, Outcome::Overloaded);
        };
        let deadline = Instant::now() + Duration::from_micros(head.remaining_us).min(REMAINING_MAX);
        let RequestHead { service, hops, epoch, request_id, traceparent, .. } = head;
        let meta = Meta { deadline, hops, epoch, request_id, traceparent };
        let request = Request { peer: Arc::clone(&self.peer), service, body, meta };
        let handler = Arc::clone(&self.handler);
        tokio::spawn(async move {
            // It waited for its turn in the runtime.
            let outcome = if deadline <= Instant::now() { Outcome::Expired } else { work(&*handler, request, deadline).await };
            link.deliver(id, outcome, permit).await;
        });
    }
}

async fn work(handler: &dyn Handler, request: Request, deadline: Instant) -> Outcome {
    let work = AssertUnwindSafe(async { handler.handle(request).await }).catch_unwind();
    match timeout_at(deadline.into(), work).await {
        Ok(Ok(Ok(body))) if body.len() > BODY_BYTES_MAX => Outcome::TooLarge(body.len() as u64),
        Ok(Ok(Ok(body))) => Outcome::Done(Body::Whole(body)),
        Ok(Ok(Err(refusal))) => Outcome::Refused(refusal),
        // The panic hook has logged it.
        Ok(Err(_)) => Outcome::Crashed,
        Err(_) => Outcome::TimedOut,
    }
}
