//! The requests of one link that wait for their answers: as many as there are credits.

use bytes::Bytes;
use tokio::sync::oneshot;

use super::error::{LinkError, Lost, Undelivered};

/// What a caller gets.
pub(super) type Answer = Result<Bytes, LinkError>;

/// A slot for each credit. An id is a slot and how often it was used, so that a late answer meets nobody else's call.
pub(super) struct Calls {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    call: Option<Call>,
}

struct Call {
    answer: oneshot::Sender<Answer>,
    /// Whether it may have reached the other side.
    sent: bool,
}

impl Calls {
    /// Room for `credits` calls at a time.
    pub(super) fn new(credits: usize) -> Self {
        let credits = u32::try_from(credits).expect("the configuration allows far fewer credits than that");
        Self { slots: (0..credits).map(|_| Slot::default()).collect(), free: (0..credits).rev().collect() }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// A new call; none if no credit is left.
    pub(super) fn open(&mut self) -> Option<(u64, oneshot::Receiver<Answer>)> {
        let index = self.free.pop()?;
        let slot = &mut self.slots[index as usize];
        let (answer, receiver) = oneshot::channel();
        slot.call = Some(Call { answer, sent: false });
        Some((id(index, slot.generation), receiver))
    }

    /// Notes that a call is about to leave this node; false if nobody waits for it any more.
    pub(super) fn sent(&mut self, id: u64) -> bool {
        match self.slot(id).and_then(|slot| slot.call.as_mut()) {
            Some(call) => {
                call.sent = true;
                true
            }
            None => false,
        }
    }

    /// Answers a call. An answer that nobody waits for is none of anybody's business.
    pub(super) fn complete(&mut self, id: u64, answer: Answer) {
        if let Some(call) = self.close(id) {
            let _ = call.answer.send(answer);
        }
    }

    /// Gives a call up; whether it may have reached the other side, or none if it is over.
    pub(super) fn forget(&mut self, id: u64) -> Option<bool> {
        self.close(id).map(|call| call.sent)
    }

    /// Answers all calls: the link has ended.
    pub(super) fn end(&mut self) {
        for index in 0..self.slots.len() {
            let Some(call) = self.take(index) else { continue };
            let error = match call.sent {
                true => LinkError::Lost(Lost::LinkEnded),
                false => LinkError::Undelivered(Undelivered::LinkEnded),
            };
            let _ = call.answer.send(Err(error));
        }
    }

    fn slot(&mut self, id: u64) -> Option<&mut Slot> {
        let (index, generation) = (id as u32, (id >> 32) as u32);
        self.slots.get_mut(index as usize).filter(|slot| slot.generation == generation)
    }

    fn close(&mut self, id: u64) -> Option<Call> {
        self.slot(id)?;
        self.take(id as u32 as usize)
    }

    fn take(&mut self, index: usize) -> Option<Call> {
        let slot = &mut self.slots[index];
        let call = slot.call.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(u32::try_from(index).expect("there are no more slots than u32 counts"));
        Some(call)
    }
}

fn id(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn there_are_as_many_calls_as_credits() {
        let mut calls = Calls::new(2);
        let (one, _waiting) = calls.open().unwrap();
        let (_two, _waiting) = calls.open().unwrap();
        assert!(calls.open().is_none());
        calls.forget(one);
        assert!(calls.open().is_some());
    }

    #[test]
    fn an_answer_finds_its_call() {
        let mut calls = Calls::new(2);
        let (one, mut first) = calls.open().unwrap();
        let (two, mut second) = calls.open().unwrap();
        calls.complete(two, Ok(bytes("two")));
        calls.complete(one, Ok(bytes("one")));
        assert_eq!((first.try_recv().unwrap(), second.try_recv().unwrap()), (Ok(bytes("one")), Ok(bytes("two"))));
        assert_eq!(calls.len(), 0);
    }

    #[test]
    fn a_late_answer_does_not_meet_the_next_call() {
        let mut calls = Calls::new(1);
        let (given_up, _) = calls.open().unwrap();
        calls.forget(given_up);
        let (next, mut waiting) = calls.open().unwrap();
        calls.complete(given_up, Ok(bytes("late")));
        assert!(waiting.try_recv().is_err());
        assert!(!calls.sent(given_up) && calls.sent(next));
    }

    #[test]
    fn what_was_not_sent_is_undelivered_when_the_link_ends_and_the_rest_is_lost() {
        let mut calls = Calls::new(2);
        let (sent, mut lost) = calls.open().unwrap();
        let (_, mut undelivered) = calls.open().unwrap();
        calls.sent(sent);
        calls.end();
        assert_eq!(lost.try_recv().unwrap(), Err(LinkError::Lost(Lost::LinkEnded)));
        assert_eq!(undelivered.try_recv().unwrap(), Err(LinkError::Undelivered(Undelivered::LinkEnded)));
        assert_eq!(calls.len(), 0);
    }

    #[test]
    fn an_id_that_was_never_given_is_nobodys() {
        let mut calls = Calls::new(1);
        calls.complete(77, Ok(Bytes::new()));
        assert_eq!(calls.forget(u64::MAX), None);
    }
}
