//! What waits to be sent over one link, and how it is put into batches.
//!
//! An idle link sends what it is given at once. While the other side has not confirmed what it was sent, the next
//! batch gathers: so a slow link carries few large messages, and never more than a window of bytes lies in the queues
//! beneath us, which have no bound of their own.

use std::{collections::VecDeque, time::Instant};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    calls::Calls,
    envelope::{Body, CHUNK_BYTES, Header, Layout, Outcome, Part, RequestHead, Writer},
    error::LinkError,
};

/// Envelopes of a batch: beyond that nothing is gained, and the first one waits for the last.
const ENVELOPES_MAX: usize = 64;

/// A batch is full at this size, in bytes; one chunk of a large body may follow.
const FULL_BYTES: usize = 256 << 10;

/// Sent and not confirmed at most, in bytes: a third of a second at 100 Mbit/s, so that a heartbeat behind it is in time.
const WINDOW_BYTES: u64 = 4 << 20;

/// The other side is told at least this often, in bytes, how much has arrived.
const CONFIRM_BYTES: u64 = WINDOW_BYTES / 4;

/// Bodies that may wait, in bytes. Beyond it requests are refused, and handlers wait with their answers.
const QUEUED_BYTES_MAX: usize = 64 << 20;

/// Something to send.
pub(super) enum Parcel {
    Request {
        id: u64,
        /// When it is pointless; what is left of it is counted when it leaves.
        deadline: Instant,
        head: RequestHead,
        body: Bytes,
    },
    Reply {
        id: u64,
        outcome: Outcome,
        /// The work is over only once its answer has left.
        _permit: Option<OwnedSemaphorePermit>,
    },
}

/// The queues of one link.
pub(super) struct Outbox {
    link: u64,
    layout: Layout,
    small: VecDeque<Parcel>,
    /// Bodies that travel in chunks, one after the other; the first may be on its way.
    large: VecDeque<Transfer>,
    queued_bytes: usize,
    /// Sent, and of that confirmed by the other side, in bytes since the link began.
    sent: u64,
    confirmed: u64,
    /// Taken in, and of that told to the other side.
    received: u64,
    told: u64,
    ping: Option<u64>,
    pong: Option<u64>,
}

struct Transfer {
    parcel: Parcel,
    body: Bytes,
    /// How much of the body has left; none: not even the envelope.
    at: Option<usize>,
}

impl Outbox {
    pub(super) fn new(link: u64, layout: Layout) -> Self {
        Self {
            link,
            layout,
            small: VecDeque::new(),
            large: VecDeque::new(),
            queued_bytes: 0,
            sent: 0,
            confirmed: 0,
            received: 0,
            told: 0,
            ping: None,
            pong: None,
        }
    }

    /// Whether another body may wait.
    pub(super) fn has_room(&self) -> bool {
        self.queued_bytes < QUEUED_BYTES_MAX
    }

    /// Whether nothing waits here and everything has arrived over there.
    pub(super) fn is_settled(&self) -> bool {
        self.small.is_empty() && self.large.is_empty() && self.sent == self.confirmed
    }

    pub(super) fn push(&mut self, parcel: Parcel) {
        let body = parcel.body();
        self.queued_bytes += body.len();
        if body.len() > CHUNK_BYTES {
            let body = body.clone();
            self.large.push_back(Transfer { parcel, body, at: None });
        } else {
            self.small.push_back(parcel);
        }
    }

    pub(super) fn ping(&mut self, number: u64) {
        self.ping = Some(number);
    }

    pub(super) fn pong(&mut self, number: u64) {
        self.pong = Some(number);
    }

    /// Notes a batch that came; true if the other side should hear of it even if we have nothing else to say.
    pub(super) fn received(&mut self, bytes: u64) -> bool {
        self.received += bytes;
        self.must_confirm()
    }

    /// Notes how much the other side has; whether that is news.
    pub(super) fn confirmed(&mut self, bytes: u64) -> bool {
        // Nobody can have received what was not sent.
        let news = bytes > self.confirmed && bytes <= self.sent;
        if news {
            self.confirmed = bytes;
        }
        news
    }

    /// The next batch, none if there is nothing to say or the window is full.
    ///
    /// Requests that nobody waits for any more, or whose deadline has passed, do not leave.
    pub(super) fn next_batch(&mut self, calls: &mut Calls, now: Instant) -> Option<Vec<u8>> {
        let window_open = self.sent - self.confirmed < WINDOW_BYTES;
        let waiting = !(self.small.is_empty() && self.large.is_empty());
        let urgent = self.ping.is_some() || self.pong.is_some() || self.must_confirm();
        if !(urgent || waiting && window_open) {
            return None;
        }
        let mut writer = Writer::new(Header { link: self.link, received: self.received }, self.layout);
        if let Some(number) = self.ping.take() {
            writer.ping(number);
        }
        if let Some(number) = self.pong.take() {
            writer.pong(number);
        }
        if window_open {
            self.write_small(&mut writer, calls, now);
            self.write_large(&mut writer, calls, now);
        }
        if writer.envelopes() > 0 {
            self.sent += writer.len() as u64;
        } else if !urgent {
            return None;
        }
        self.told = self.received;
        Some(writer.finish())
    }

    /// Forgets everything: the link has ended.
    pub(super) fn clear(&mut self) {
        self.small.clear();
        self.large.clear();
        self.queued_bytes = 0;
    }

    fn must_confirm(&self) -> bool {
        self.received - self.told >= CONFIRM_BYTES
    }

    fn write_small(&mut self, writer: &mut Writer, calls: &mut Calls, now: Instant) {
        while writer.envelopes() < ENVELOPES_MAX && writer.len() < FULL_BYTES {
            let Some(parcel) = self.small.pop_front() else { break };
            let size = parcel.body().len();
            self.queued_bytes -= size;
            if parcel.may_leave(calls, now) {
                parcel.write(writer, now, None);
            }
        }
    }

    fn write_large(&mut self, writer: &mut Writer, calls: &mut Calls, now: Instant) {
        while let Some(transfer) = self.large.front_mut() {
            let at = match transfer.at {
                Some(at) => at,
                None if !transfer.parcel.may_leave(calls, now) => {
                    self.queued_bytes -= transfer.body.len();
                    self.large.pop_front();
                    continue;
                }
                None => {
                    let total = u32::try_from(transfer.body.len()).expect("the largest body is far below 4 GiB");
                    transfer.parcel.write(writer, now, Some(total));
                    0
                }
            };
            let end = (at + CHUNK_BYTES).min(transfer.body.len());
            writer.chunk(transfer.parcel.part(), transfer.parcel.id(), &transfer.body[at..end]);
            self.queued_bytes -= end - at;
            transfer.at = Some(end);
            if end == transfer.body.len() {
                self.large.pop_front();
            }
            break;
        }
    }
}

impl Parcel {
    fn id(&self) -> u64 {
        match self {
            Self::Request { id, .. } | Self::Reply { id, .. } => *id,
        }
    }

    fn part(&self) -> Part {
        match self {
            Self::Request { .. } => Part::Request,
            Self::Reply { .. } => Part::Reply,
        }
    }

    fn body(&self) -> &Bytes {
        static NONE: Bytes = Bytes::new();
        match self {
            Self::Request { body, .. } | Self::Reply { outcome: Outcome::Done(Body::Whole(body)), .. } => body,
            Self::Reply { .. } => &NONE,
        }
    }

    /// Whether somebody waits for it and there is time left; if only the latter fails, whoever waits is told.
    fn may_leave(&self, calls: &mut Calls, now: Instant) -> bool {
        match self {
            Self::Request { id, deadline, .. } if *deadline <= now => {
                calls.complete(*id, Err(LinkError::Expired));
                false
            }
            Self::Request { id, .. } => calls.sent(*id),
            Self::Reply { .. } => true,
        }
    }

    /// `split`: its body follows in chunks and has this many bytes.
    fn write(&self, writer: &mut Writer, now: Instant, split: Option<u32>) {
        let sent_as = |body: &Bytes| split.map_or_else(|| Body::Whole(body.clone()), Body::Split);
        match self {
            Self::Request { id, deadline, head, body } => {
                let remaining = deadline.saturating_duration_since(now).as_micros();
                // Less than a microsecond is left, not nothing: `Expired` over there would be news to us.
                let remaining_us = u64::try_from(remaining).unwrap_or(u64::MAX).max(1);
                writer.request(*id, &RequestHead { remaining_us, ..head.clone() }, &sent_as(body));
            }
            Self::Reply { id, outcome: Outcome::Done(Body::Whole(body)), .. } => {
                writer.reply(*id, &Outcome::Done(sent_as(body)));
            }
            Self::Reply { id, outcome, .. } => writer.reply(*id, outcome),
        }
    }
}

#[cfg(test)]
mod tests;
