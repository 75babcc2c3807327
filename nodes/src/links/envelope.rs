//! Pure. Envelopes as bytes: what a batch between two regions looks like.
//!
//! A batch is a header and entries, all integers little-endian. Fixed layouts rather than a general format: bodies are
//! opaque and already encoded, so all there is to gain is not to touch them twice. Both ends have agreed on the version
//! of this layout in their greeting.
//!
//! An entry is its kind, its length (u32) and its fields. So a later build may add fields after those of today, and kinds:
//! a reader passes over what it does not know. Version 2 of the links had no lengths.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};

use super::{error::Refusal, greeting::OLDEST};

/// The largest body that a link carries, in bytes: a page of a log or a list is a few megabytes.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// What a batch may weigh, in bytes. ractor_cluster ends the link of a frame that is too large, so we keep far below.
pub(super) const BATCH_BYTES_MAX: usize = 1 << 20;

/// Bodies beyond this travel in chunks of this size, in bytes, so that small ones need not wait for them.
pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// How entries are laid out on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Kind and fields, as links of version 2 have it.
    Bare,
    /// Kind, length and fields.
    Framed,
}

impl Layout {
    /// That of a version of the links.
    pub(super) fn of(version: u8) -> Self {
        if version > OLDEST { Self::Framed } else { Self::Bare }
    }
}

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
    layout: Layout,
}

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const CHUNK: u8 = 3;
const PING: u8 = 4;
const PONG: u8 = 5;

/// Stands in a length for "in chunks".
const SPLIT: u32 = 1 << 31;

impl Writer {
    pub(super) fn new(Header { link, received }: Header, layout: Layout) -> Self {
        let mut bytes = Vec::with_capacity(1024);
        bytes.put_u64_le(link);
        bytes.put_u64_le(received);
        Self { bytes, envelopes: 0, layout }
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
        self.entry(REQUEST, |writer| {
            writer.bytes.put_u64_le(id);
            writer.bytes.put_u8(head.service);
            writer.bytes.put_u8(head.hops);
            writer.bytes.put_u64_le(head.remaining_us);
            writer.bytes.put_u64_le(head.epoch);
            writer.word(&head.request_id);
            writer.word(&head.traceparent);
            writer.body(body);
        });
    }

    pub(super) fn reply(&mut self, id: u64, outcome: &Outcome) {
        self.envelopes += 1;
        self.entry(REPLY, |writer| {
            writer.bytes.put_u64_le(id);
            writer.outcome(outcome);
        });
    }

    pub(super) fn chunk(&mut self, of: Part, id: u64, bytes: &[u8]) {
        self.envelopes += 1;
        self.entry(CHUNK, |writer| {
            writer.bytes.put_u8(match of {
                Part::Request => REQUEST,
                Part::Reply => REPLY,
            });
            writer.bytes.put_u64_le(id);
            writer.blob(bytes);
        });
    }

    pub(super) fn ping(&mut self, number: u64) {
        self.entry(PING, |writer| writer.bytes.put_u64_le(number));
    }

    pub(super) fn pong(&mut self, number: u64) {
        self.entry(PONG, |writer| writer.bytes.put_u64_le(number));
    }

    fn entry(&mut self, kind: u8, fields: impl FnOnce(&mut Self)) {
        self.bytes.put_u8(kind);
        match self.layout {
            Layout::Bare => fields(self),
            Layout::Framed => {
                let at = self.bytes.len();
                self.bytes.put_u32_le(0);
                fields(self);
                let length = u32::try_from(self.bytes.len() - at - 4).expect("a batch is far below 4 GiB");
                self.bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
            }
        }
    }

    fn outcome(&mut self, outcome: &Outcome) {
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

    /// The entries, laid out as the link of the header has it.
    pub(super) fn in_layout(self, layout: Layout) -> Entries {
        Entries { rest: self.rest, layout }
    }
}

/// The entries of a batch.
pub(super) struct Entries {
    rest: Bytes,
    layout: Layout,
}

impl Entries {
    /// The next entry; none: it is of a kind that a later build has added.
    fn entry(&mut self) -> Result<Option<Entry>, Malformed> {
        let kind = byte(&mut self.rest)?;
        match self.layout {
            Layout::Bare => {
                let entry = entry(kind, &mut self.rest, Err(Malformed("an outcome of no kind we know")))?;
                entry.map(Some).ok_or(Malformed("an entry of no kind we know"))
            }
            // What follows the fields that we know is a later build's.
            Layout::Framed => {
                let mut fields = blob(&mut self.rest)?;
                // That the other node did something, and that we cannot tell what came of it.
                entry(kind, &mut fields, Ok(Outcome::Crashed))
            }
        }
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            match self.entry() {
                Ok(Some(entry)) => return Some(Ok(entry)),
                Ok(None) => {}
                Err(error) => {
                    // What follows a broken entry has no beginning.
                    self.rest.clear();
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

/// The fields of an entry; none: of a kind that is not known. `unknown` stands for an outcome that is not known.
fn entry(kind: u8, rest: &mut Bytes, unknown: Result<Outcome, Malformed>) -> Result<Option<Entry>, Malformed> {
    Ok(Some(match kind {
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
            Entry::Request { id, head, body: body(rest)? }
        }
        REPLY => {
            let id = number(rest)?;
            Entry::Reply { id, outcome: outcome(rest)?.map_or(unknown, Ok)? }
        }
        CHUNK => {
            let of = match byte(rest)? {
                REQUEST => Part::Request,
                REPLY => Part::Reply,
                _ => return Err(Malformed("a chunk of nothing we know")),
            };
            Entry::Chunk { of, id: number(rest)?, bytes: blob(rest)? }
        }
        PING => Entry::Ping(number(rest)?),
        PONG => Entry::Pong(number(rest)?),
        _ => return Ok(None),
    }))
}

/// None: of a kind that is not known.
fn outcome(rest: &mut Bytes) -> Result<Option<Outcome>, Malformed> {
    Ok(Some(match byte(rest)? {
        0 => Outcome::Done(body(rest)?),
        1 => Outcome::Refused(Refusal::UnknownService),
        2 => Outcome::Overloaded,
        3 => Outcome::Refused(Refusal::Declined(blob(rest)?)),
        4 => Outcome::Expired,
        5 => Outcome::Stopping,
        6 => Outcome::TimedOut,
        7 => Outcome::Crashed,
        8 => Outcome::TooLarge(number(rest)?),
        _ => return Ok(None),
    }))
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
