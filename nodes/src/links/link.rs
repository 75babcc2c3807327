//! One link to one other node, from the moment it is ready until it ends: what is asked, what is answered, and its pulse.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use ractor::ActorRef;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit},
    time::{MissedTickBehavior, interval_at, timeout_at},
};

use super::{
    Meta,
    assembly::Assembly,
    calls::{Answer, Calls},
    desk::Desk,
    envelope::{BODY_BYTES_MAX, Body, Entry, Header, Layout, Malformed, Outcome, Part, Reader, RequestHead},
    error::{LinkError, Lost, Undelivered},
    greeting::Instance,
    meters::Meters,
    outbox::{Outbox, Parcel},
    region::Batch,
};

/// A link that is ready.
pub(super) struct Link {
    /// Who is at the other end.
    pub(super) peer: Instance,
    pub(super) meters: Meters,
    layout: Layout,
    desk: Arc<Desk>,
    state: Mutex<State>,
    /// There is something to send, or the link has ended.
    wake: Notify,
    /// There is room for answers again, or the link has ended.
    room: Notify,
    round_trip_us: AtomicU64,
}

struct State {
    calls: Calls,
    outbox: Outbox,
    requests: Assembly<RequestHead>,
    replies: Assembly<()>,
    pulse: Pulse,
    ended: bool,
}

#[derive(Default)]
struct Pulse {
    /// The number of the last heartbeat, and when it was sent if it has not come back.
    number: u64,
    sent: Option<Instant>,
    /// Heartbeats in a row after which nothing had come by the next one.
    missed: u32,
}

/// Why a link is given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("nothing has come for {missed} heartbeats in a row")]
    Silent { missed: u32 },
    #[error("the region of the other node is gone")]
    NoRegion,
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Link {
    pub(super) fn new(peer: Instance, token: u64, layout: Layout, desk: Arc<Desk>, credits: usize) -> Self {
        Self {
            layout,
            meters: Meters::of(&peer.name),
            desk,
            state: Mutex::new(State {
                calls: Calls::new(credits),
                outbox: Outbox::new(token, layout),
                requests: Assembly::default(),
                replies: Assembly::default(),
                pulse: Pulse::default(),
                ended: false,
            }),
            wake: Notify::new(),
            room: Notify::new(),
            round_trip_us: AtomicU64::new(0),
            peer,
        }
    }

    /// Asks the other node, and waits for its answer or the deadline.
    pub(super) async fn request(&self, service: u8, body: Bytes, meta: Meta) -> Answer {
        if body.len() > BODY_BYTES_MAX {
            return Err(LinkError::Undelivered(Undelivered::TooLarge { bytes: body.len() }));
        }
        let Meta { deadline, hops, epoch, request_id, traceparent } = meta;
        let (id, answer) = {
            let mut state = self.state();
            if state.ended {
                return Err(LinkError::Undelivered(Undelivered::NotLinked));
            }
            if deadline <= Instant::now() {
                return Err(LinkError::Expired);
            }
            let room = state.outbox.has_room();
            let (id, answer) = room.then(|| state.calls.open()).flatten().ok_or(LinkError::Overloaded)?;
            let head = RequestHead { service, hops, remaining_us: 0, epoch, request_id, traceparent };
            state.outbox.push(Parcel::Request { id, deadline, head, body });
            (id, answer)
        };
        self.wake.notify_one();
        let waiting = Waiting { link: self, id };
        match timeout_at(deadline.into(), answer).await {
            Ok(answer) => {
                // Its credit is back already.
                std::mem::forget(waiting);
                answer.unwrap_or(Err(LinkError::Lost(Lost::LinkEnded)))
            }
            Err(_) => match waiting.give_up() {
                Some(false) => Err(LinkError::Expired),
                _ => Err(LinkError::Lost(Lost::TimedOut)),
            },
        }
    }

    /// Takes a batch from the other node in.
    pub(super) fn receive(self: &Arc<Self>, header: Header, entries: Reader, bytes: u64) -> Result<(), Malformed> {
        let mut asked = Vec::new();
        let mut envelopes = 0;
        {
            let mut state = self.state();
            // Whatever arrives is a sign of life: behind large bodies an echo takes its time. That the other direction
            // works as well, the other side looks after.
            state.pulse.missed = 0;
            if state.outbox.confirmed(header.received) {
                // The window may have opened.
                self.wake.notify_one();
            }
            for entry in entries.in_layout(self.layout) {
                let entry = entry?;
                envelopes += u64::from(!matches!(entry, Entry::Ping(_) | Entry::Pong(_)));
                if let Some(request) = self.take(&mut state, entry)? {
                    asked.push(request);
                }
            }
            if envelopes > 0 && state.outbox.received(bytes) {
                self.wake.notify_one();
            }
        }
        self.meters.received(bytes, envelopes);
        for (id, head, body) in asked {
            self.desk.serve(Arc::clone(self), id, head, body);
        }
        Ok(())
    }

    /// Sends what became of a request at once, whatever else waits.
    pub(super) fn reply(&self, id: u64, outcome: Outcome) {
        self.state().outbox.push(Parcel::Reply { id, outcome, _permit: None });
        self.wake.notify_one();
    }

    /// Sends the answer of a handler as soon as there is room for it; the permit of its work goes with it.
    pub(super) async fn deliver(&self, id: u64, outcome: Outcome, permit: OwnedSemaphorePermit) {
        loop {
            let room = self.room.notified();
            {
                let mut state = self.state();
                if state.ended {
                    return;
                }
                if state.outbox.has_room() {
                    state.outbox.push(Parcel::Reply { id, outcome, _permit: Some(permit) });
                    break;
                }
            }
            room.await;
        }
        self.wake.notify_one();
    }

    /// Sends what there is to send, and feels the pulse, until the link has ended or has to be given up.
    pub(super) async fn pump(&self, region: ActorRef<Batch>, every: Duration, missed_max: u32) -> Result<(), Fault> {
        let mut beats = interval_at((Instant::now() + every).into(), every);
        // After we were stopped ourselves, the heartbeats that we did not send prove nothing.
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first shows at once that the other region answers, and how far away it is.
        self.beat(missed_max)?;
        loop {
            tokio::select! {
                // Whoever else is about to ask or answer gets into the same batch: tokio runs a task that was just
                // woken before all others, so that every envelope would leave alone.
                () = self.wake.notified() => tokio::task::yield_now().await,
                _ = beats.tick() => self.beat(missed_max)?,
            }
            loop {
                let batch = {
                    let mut state = self.state();
                    if state.ended {
                        return Ok(());
                    }
                    let State { outbox, calls, .. } = &mut *state;
                    let was_full = !outbox.has_room();
                    let batch = outbox.next_batch(calls, Instant::now());
                    if was_full && outbox.has_room() {
                        self.room.notify_waiters();
                    }
                    batch
                };
                let Some(batch) = batch else { break };
                self.meters.sent(batch.len() as u64);
                region.cast(Batch(batch)).map_err(|_| Fault::NoRegion)?;
            }
        }
    }

    /// Ends the link: whoever waits is told at once.
    pub(super) fn end(&self) {
        {
            let mut state = self.state();
            state.ended = true;
            state.outbox.clear();
            state.calls.end();
        }
        self.wake.notify_one();
        self.room.notify_waiters();
        self.meters.ended();
    }

    /// Requests of ours that wait for their answers.
    pub(super) fn in_flight(&self) -> usize {
        self.state().calls.len()
    }

    /// Whether nothing is under way in either direction.
    pub(super) fn is_settled(&self) -> bool {
        let state = self.state();
        state.ended || (state.calls.len() == 0 && state.outbox.is_settled() && self.desk.is_idle())
    }

    /// Asks the other side to say how much it has received.
    pub(super) fn ask_for_confirmation(&self) {
        let mut state = self.state();
        let number = state.pulse.number;
        state.outbox.ping(number);
        drop(state);
        self.wake.notify_one();
    }

    /// Between the last heartbeat and its echo; none before the first one.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        Some(self.round_trip_us.load(Ordering::Relaxed)).filter(|us| *us > 0).map(Duration::from_micros)
    }

    fn take(&self, state: &mut State, entry: Entry) -> Result<Option<(u64, RequestHead, Bytes)>, Malformed> {
        match entry {
            Entry::Request { id, head, body: Body::Whole(body) } => return Ok(Some((id, head, body))),
            Entry::Request { id, head, body: Body::Split(total) } => state.requests.begin(id, head, total)?,
            Entry::Reply { id, outcome: Outcome::Done(Body::Split(total)) } => state.replies.begin(id, (), total)?,
            Entry::Reply { id, outcome } => state.calls.complete(id, answer(outcome)),
            Entry::Chunk { of: Part::Request, id, bytes } => {
                let request = state.requests.add(id, &bytes)?;
                return Ok(request.map(|(head, body)| (id, head, body)));
            }
            Entry::Chunk { of: Part::Reply, id, bytes } => {
                if let Some(((), body)) = state.replies.add(id, &bytes)? {
                    state.calls.complete(id, Ok(body));
                }
            }
            Entry::Ping(number) => {
                state.outbox.pong(number);
                self.wake.notify_one();
            }
            Entry::Pong(number) => {
                if let Some(sent) = state.pulse.sent.take_if(|_| number == state.pulse.number) {
                    self.measured(sent.elapsed());
                }
            }
        }
        Ok(None)
    }

    fn measured(&self, round_trip: Duration) {
        let us = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX).max(1);
        self.round_trip_us.store(us, Ordering::Relaxed);
        self.meters.measured(round_trip);
    }

    fn beat(&self, missed_max: u32) -> Result<(), Fault> {
        let mut state = self.state();
        let State { pulse, outbox, calls, .. } = &mut *state;
        if pulse.sent.is_some() {
            pulse.missed += 1;
            if pulse.missed >= missed_max {
                return Err(Fault::Silent { missed: pulse.missed });
            }
        }
        pulse.number += 1;
        pulse.sent = Some(Instant::now());
        outbox.ping(pulse.number);
        self.meters.in_flight(calls.len());
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the state of a link")
    }
}

/// A request on its way. Dropped, it gives its credit back.
struct Waiting<'a> {
    link: &'a Link,
    id: u64,
}

impl Waiting<'_> {
    /// Whether it may have reached the other node; none if it was answered meanwhile.
    fn give_up(&self) -> Option<bool> {
        self.link.state().calls.forget(self.id)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.give_up();
    }
}

fn answer(outcome: Outcome) -> Answer {
    Err(match outcome {
        Outcome::Done(Body::Whole(body)) => return Ok(body),
        Outcome::Done(Body::Split(_)) => unreachable!("a body in chunks is put together first"),
        Outcome::Refused(refusal) => LinkError::Refused(refusal),
        Outcome::Overloaded => LinkError::Overloaded,
        Outcome::Expired => LinkError::Expired,
        Outcome::Stopping => LinkError::Undelivered(Undelivered::Stopping),
        Outcome::TimedOut => LinkError::Lost(Lost::TimedOut),
        Outcome::Crashed => LinkError::Lost(Lost::Crashed),
        Outcome::TooLarge(bytes) => LinkError::Lost(Lost::TooLarge { bytes }),
    })
}
