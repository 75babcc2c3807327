//! Pure. Envelopes as bytes: what a batch between two regions looks like.
//!
//! A batch is a header and entries, all integers little-endian. Fixed layouts rather than a general format: bodies are
//! opaque and already encoded, so all there is to gain is not to touch them twice. Both ends have agreed on the version
//! of this layout in their greeting.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};

use super::error::Refusal;

/// The largest body that a link carries, in bytes: a page of a log or a list is a few megabytes.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// What a batch may weigh, in bytes. ractor_cluster ends the link of a frame that is too large, so we keep far below.
pub(super) const BATCH_BYTES_MAX: usize = 1 << 20;

/// Bodies beyond this travel in chunks of this size, in bytes, so that small ones need not wait for them.
pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// What every batch begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Which link it belongs to, as agreed in the greeting.
    pub(super) link: u64,
    /// How many bytes of the other side's batches have been taken in so far.
    pub(super) received: u64,
}

/// What a request says about itself besides its body.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct RequestHead {
    pub(super) service: u8,
    pub(super) hops: u8,
    /// Time that is left, in microseconds: clocks differ between machines, durations hardly.
    pub(super) remaining_us: u64,
    pub(super) epoch: u64,
    pub(super) request_id: Arc<str>,
    pub(super) traceparent: Arc<str>,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The handler's answer.
    Done(Body),
    /// The handler's no.
    Refused(Refusal),
    /// Too much in work there; nothing was done.
    Overloaded,
    /// It came too late; nothing was done.
    Expired,
    /// That node is about to stop; nothing was done.
    Stopping,
    /// The handler was not done by the deadline; what it did is unknown.
    TimedOut,
    /// The handler panicked; what it did is unknown.
    Crashed,
    /// Done, but the answer has this many bytes, more than a link carries.
    TooLarge(u64),
}

/// A body, or the promise of one in chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body {
    Whole(Bytes),
    /// This many bytes follow.
    Split(u32),
}

/// Whose body a chunk belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Request,
    Reply,
}

/// One thing in a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Request {
        id: u64,
        head: RequestHead,
        body: Body,
    },
    Reply {
        id: u64,
        outcome: Outcome,
    },
    Chunk {
        of: Part,
        id: u64,
        bytes: Bytes,
    },
    /// A heartbeat: the other side sends the number back.
    Ping(u64),
    Pong(u64),
}

/// A batch that no writer of ours made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a batch that cannot be read: {0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// Writes one batch.
pub(super) struct Writer {
    bytes: Vec<u8>,
    envelopes: usize,
}

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const CHUNK: u8 = 3;
const PING: u8 = 4;
const PONG: u8 = 5;

/// Stands in a length for "in chunks".
const SPLIT: u32 = 1 << 31;

impl Writer {
    pub(super) fn new(Header { link, received }: Header) -> Self {
        let mut bytes = Vec::with_capacity(1024);
        bytes.put_u64_le(link);
        bytes.put_u64_le(received);
        Self { bytes, envelopes: 0 }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Requests, replies and chunks so far.
    pub(super) fn envelopes(&self) -> usize {
        self.envelopes
    }

    pub(super) fn finish(self) -> Vec<u8> {
        debug_assert!(self.bytes.len() <= BATCH_BYTES_MAX, "a batch stays below what ends a link");
        self.bytes
    }

    pub(super) fn request(&mut self, id: u64, head: &RequestHead, body: &Body) {
        self.envelopes += 1;
        self.bytes.put_u8(REQUEST);
        self.bytes.put_u64_le(id);
        self.bytes.put_u8(head.service);
        self.bytes.put_u8(head.hops);
        self.bytes.put_u64_le(head.remaining_us);
        self.bytes.put_u64_le(head.epoch);
        self.word(&head.request_id);
        self.word(&head.traceparent);
        self.body(body);
    }

    pub(super) fn reply(&mut self, id: u64, outcome: &Outcome) {
        self.envelopes += 1;
        self.bytes.put_u8(REPLY);
        self.bytes.put_u64_le(id);
        match outcome {
            Outcome::Done(body) => {
                self.bytes.put_u8(0);
                self.body(body);
            }
            Outcome::Refused(Refusal::UnknownService) => self.bytes.put_u8(1),
            Outcome::Refused(Refusal::Overloaded) | Outcome::Overloaded => self.bytes.put_u8(2),
            Outcome::Refused(Refusal::Declined(words)) => {
                self.bytes.put_u8(3);
                // A no is no place for a page: what does not fit into a chunk is cut.
                self.body(&Body::Whole(words.slice(..words.len().min(CHUNK_BYTES))));
            }
            Outcome::Expired => self.bytes.put_u8(4),
            Outcome::Stopping => self.bytes.put_u8(5),
            Outcome::TimedOut => self.bytes.put_u8(6),
            Outcome::Crashed => self.bytes.put_u8(7),
            Outcome::TooLarge(length) => {
                self.bytes.put_u8(8);
                self.bytes.put_u64_le(*length);
            }
        }
    }

    pub(super) fn chunk(&mut self, of: Part, id: u64, bytes: &[u8]) {
        self.envelopes += 1;
        self.bytes.put_u8(CHUNK);
        self.bytes.put_u8(match of {
            Part::Request => REQUEST,
            Part::Reply => REPLY,
        });
        self.bytes.put_u64_le(id);
        self.blob(bytes);
    }

    pub(super) fn ping(&mut self, number: u64) {
        self.bytes.put_u8(PING);
        self.bytes.put_u64_le(number);
    }

    pub(super) fn pong(&mut self, number: u64) {
        self.bytes.put_u8(PONG);
        self.bytes.put_u64_le(number);
    }

    /// At most 255 bytes; what is longer is cut, since it only labels.
    fn word(&mut self, word: &str) {
        let word = &word[..word.floor_char_boundary(usize::from(u8::MAX))];
        self.bytes.put_u8(u8::try_from(word.len()).expect("it was cut to 255"));
        self.bytes.put_slice(word.as_bytes());
    }

    fn body(&mut self, body: &Body) {
        match body {
            Body::Whole(bytes) => self.blob(bytes),
            Body::Split(total) => self.bytes.put_u32_le(total | SPLIT),
        }
    }

    fn blob(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= CHUNK_BYTES, "what is larger travels in chunks");
        self.bytes.put_u32_le(u32::try_from(bytes.len()).expect("a chunk is far below 4 GiB"));
        self.bytes.put_slice(bytes);
    }
}

/// Reads a batch: its header, then one entry after the other. Bodies are slices of it, not copies.
pub(super) struct Reader {
    rest: Bytes,
}

impl Reader {
    pub(super) fn new(mut batch: Bytes) -> Result<(Header, Self), Malformed> {
        let header = Header { link: number(&mut batch)?, received: number(&mut batch)? };
        Ok((header, Self { rest: batch }))
    }

    fn entry(&mut self) -> Result<Entry, Malformed> {
        let rest = &mut self.rest;
        match byte(rest)? {
            REQUEST => {
                let id = number(rest)?;
                let head = RequestHead {
                    service: byte(rest)?,
                    hops: byte(rest)?,
                    remaining_us: number(rest)?,
                    epoch: number(rest)?,
                    request_id: word(rest)?,
                    traceparent: word(rest)?,
                };
                Ok(Entry::Request { id, head, body: body(rest)? })
            }
            REPLY => Ok(Entry::Reply { id: number(rest)?, outcome: outcome(rest)? }),
            CHUNK => {
                let of = match byte(rest)? {
                    REQUEST => Part::Request,
                    REPLY => Part::Reply,
                    _ => return Err(Malformed("a chunk of nothing we know")),
                };
                Ok(Entry::Chunk { of, id: number(rest)?, bytes: blob(rest)? })
            }
            PING => Ok(Entry::Ping(number(rest)?)),
            PONG => Ok(Entry::Pong(number(rest)?)),
            _ => Err(Malformed("an entry of no kind we know")),
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Entry, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let entry = self.entry();
        if entry.is_err() {
            // What follows a broken entry has no beginning.
            self.rest.clear();
        }
        Some(entry)
    }
}

fn outcome(rest: &mut Bytes) -> Result<Outcome, Malformed> {
    Ok(match byte(rest)? {
        0 => Outcome::Done(body(rest)?),
        1 => Outcome::Refused(Refusal::UnknownService),
        2 => Outcome::Overloaded,
        3 => Outcome::Refused(Refusal::Declined(blob(rest)?)),
        4 => Outcome::Expired,
        5 => Outcome::Stopping,
        6 => Outcome::TimedOut,
        7 => Outcome::Crashed,
        8 => Outcome::TooLarge(number(rest)?),
        _ => return Err(Malformed("an outcome of no kind we know")),
    })
}

fn body(rest: &mut Bytes) -> Result<Body, Malformed> {
    let split = rest.get(..4).is_some_and(|length| length[3] & 0x80 != 0);
    if !split {
        return Ok(Body::Whole(blob(rest)?));
    }
    let total = rest.get_u32_le() & !SPLIT;
    if total as usize > BODY_BYTES_MAX {
        return Err(Malformed("a body beyond what a link carries"));
    }
    Ok(Body::Split(total))
}

fn blob(rest: &mut Bytes) -> Result<Bytes, Malformed> {
    let length = rest.try_get_u32_le().map_err(|_| SHORT)? as usize;
    take(rest, length)
}

fn word(rest: &mut Bytes) -> Result<Arc<str>, Malformed> {
    let length = usize::from(byte(rest)?);
    if length == 0 {
        // This one costs no memory.
        return Ok(Arc::default());
    }
    let bytes = take(rest, length)?;
    std::str::from_utf8(&bytes).map(Arc::from).map_err(|_| Malformed("a word that is no UTF-8"))
}

fn take(rest: &mut Bytes, length: usize) -> Result<Bytes, Malformed> {
    if rest.len() < length {
        return Err(SHORT);
    }
    Ok(rest.split_to(length))
}

fn number(rest: &mut Bytes) -> Result<u64, Malformed> {
    rest.try_get_u64_le().map_err(|_| SHORT)
}

fn byte(rest: &mut Bytes) -> Result<u8, Malformed> {
    rest.try_get_u8().map_err(|_| SHORT)
}

const SHORT: Malformed = Malformed("it ends within an entry");

#[cfg(test)]
mod tests;
