use std::time::Duration;

use super::*;
use crate::links::{
    calls::Answer,
    envelope::{BATCH_BYTES_MAX, BODY_BYTES_MAX, Entry, Reader},
    error::LinkError,
};

/// An outbox with its calls, and a clock that stands still.
struct Desk {
    outbox: Outbox,
    calls: Calls,
    now: Instant,
}

impl Desk {
    fn new() -> Self {
        Self { outbox: Outbox::new(1, Layout::Framed), calls: Calls::new(1_000), now: Instant::now() }
    }

    fn ask(&mut self, bytes: usize) -> (u64, tokio::sync::oneshot::Receiver<Answer>) {
        let (id, answer) = self.calls.open().unwrap();
        let deadline = self.now + Duration::from_secs(1);
        let body = Bytes::from(vec![7; bytes]);
        self.outbox.push(Parcel::Request { id, deadline, head: RequestHead::default(), body });
        (id, answer)
    }

    fn answer(&mut self, id: u64, bytes: usize) {
        let outcome = Outcome::Done(Body::Whole(vec![7; bytes].into()));
        self.outbox.push(Parcel::Reply { id, outcome, _permit: None });
    }

    fn next(&mut self) -> Option<Vec<Entry>> {
        let batch = self.outbox.next_batch(&mut self.calls, self.now)?;
        assert!(batch.len() <= BATCH_BYTES_MAX);
        let (header, entries) = Reader::new(batch.into()).unwrap();
        assert_eq!(header.link, 1);
        Some(entries.in_layout(Layout::Framed).map(Result::unwrap).collect())
    }

    /// All batches until the window is full or nothing is left.
    fn all(&mut self) -> Vec<Vec<Entry>> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn confirm_all(&mut self) {
        let sent = self.outbox.sent;
        self.outbox.confirmed(sent);
    }
}

#[test]
fn an_empty_outbox_says_nothing() {
    assert_eq!(Desk::new().next(), None);
}

#[test]
fn what_waits_leaves_together() {
    let mut desk = Desk::new();
    let answers: Vec<_> = (0..3).map(|_| desk.ask(10)).collect();
    assert_eq!(desk.next().unwrap().len(), answers.len());
    assert_eq!(desk.next(), None);
}

#[test]
fn a_batch_has_64_envelopes_at_most() {
    let mut desk = Desk::new();
    let _answers: Vec<_> = (0..100).map(|_| desk.ask(10)).collect();
    assert_eq!(desk.all().iter().map(Vec::len).collect::<Vec<_>>(), [64, 36]);
}

#[test]
fn a_large_body_travels_in_chunks_and_small_ones_pass_it() {
    let mut desk = Desk::new();
    desk.answer(1, 3 * CHUNK_BYTES - 5);
    desk.answer(2, 10);
    let first = desk.next().unwrap();
    let [Entry::Reply { id: 2, .. }, Entry::Reply { id: 1, outcome }, Entry::Chunk { id: 1, bytes, .. }] = &first[..] else {
        panic!("{first:?}")
    };
    assert_eq!(*outcome, Outcome::Done(Body::Split(u32::try_from(3 * CHUNK_BYTES - 5).unwrap())));
    assert_eq!(bytes.len(), CHUNK_BYTES);
    let rest: usize = desk.all().iter().flatten().map(chunk).sum();
    assert_eq!(rest, 2 * CHUNK_BYTES - 5);
}

fn chunk(entry: &Entry) -> usize {
    match entry {
        Entry::Chunk { bytes, .. } => bytes.len(),
        _ => 0,
    }
}

#[test]
fn no_more_than_a_window_is_under_way() {
    let mut desk = Desk::new();
    desk.answer(1, BODY_BYTES_MAX);
    let first: usize = desk.all().iter().flatten().map(chunk).sum();
    assert!(first as u64 <= WINDOW_BYTES + CHUNK_BYTES as u64, "{first}");
    desk.confirm_all();
    let second: usize = desk.all().iter().flatten().map(chunk).sum();
    assert!(second > 0);
}

#[test]
fn heartbeats_and_confirmations_pass_a_full_window() {
    let mut desk = Desk::new();
    desk.answer(1, BODY_BYTES_MAX);
    desk.all();
    desk.outbox.ping(5);
    assert_eq!(desk.next().unwrap(), [Entry::Ping(5)]);
    assert!(desk.outbox.received(CONFIRM_BYTES));
    assert_eq!(desk.next().unwrap(), []);
    assert_eq!(desk.next(), None);
}

#[test]
fn a_request_that_was_given_up_does_not_leave() {
    let mut desk = Desk::new();
    let (id, _) = desk.ask(10);
    let (large, _) = desk.ask(2 * CHUNK_BYTES);
    desk.calls.forget(id);
    desk.calls.forget(large);
    assert_eq!(desk.next(), None);
    assert_eq!(desk.outbox.queued_bytes, 0);
}

#[test]
fn a_request_that_is_late_is_told_so_and_does_not_leave() {
    let mut desk = Desk::new();
    let (_, mut answer) = desk.ask(10);
    desk.now += Duration::from_secs(2);
    assert_eq!(desk.next(), None);
    assert_eq!(answer.try_recv().unwrap(), Err(LinkError::Expired));
}

#[test]
fn what_is_left_of_the_time_is_counted_when_it_leaves() {
    let mut desk = Desk::new();
    let _answer = desk.ask(10);
    desk.now += Duration::from_millis(400);
    let entries = desk.next().unwrap();
    let [Entry::Request { head, .. }] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!(head.remaining_us, 600_000);
}

#[test]
fn a_confirmation_of_what_was_never_sent_is_no_news() {
    let mut desk = Desk::new();
    desk.answer(1, 10);
    desk.next();
    assert!(!desk.outbox.confirmed(u64::MAX));
    assert!(!desk.outbox.is_settled());
    desk.confirm_all();
    assert!(desk.outbox.is_settled());
}

#[test]
fn bodies_take_room_until_they_have_left() {
    let mut desk = Desk::new();
    for id in 0..4 {
        desk.answer(id, BODY_BYTES_MAX);
    }
    assert!(!desk.outbox.has_room());
    while !desk.outbox.is_settled() {
        desk.next();
        desk.confirm_all();
    }
    assert!(desk.outbox.has_room());
    assert_eq!(desk.outbox.queued_bytes, 0);
}
