//! Pure. Whether one user likes one post, and how many can at most and must at least.
//!
//! Apart from the post, because nothing else about it depends on who likes it: a history of each user, however many of
//! their likes are open, is checked at once. All together in one set they would not be: which ones of a dozen open likes
//! took effect is a question with thousands of answers.

use super::End;
use crate::chaos::linearizable::{Call, Model};

/// What a user does about one post, or is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LikeOp {
    /// Begins to like it (true), or ends to.
    Set(bool, End),
    /// Is told whether they like it.
    Told(bool),
}

/// One user and one post: a register.
#[derive(Clone, Copy, Debug)]
pub struct LikeModel;

impl Model for LikeModel {
    type State = bool;
    type Op = LikeOp;

    fn initial(&self) -> bool {
        false
    }

    fn step(&self, state: &bool, op: &LikeOp) -> Option<bool> {
        match op {
            LikeOp::Set(_, end) if end.is_refusal() => Some(*state),
            LikeOp::Set(on, _) => Some(*on),
            LikeOp::Told(liked) => (liked == state).then_some(*state),
        }
    }

    fn only_reads(&self, op: &LikeOp) -> bool {
        match op {
            LikeOp::Set(_, end) => end.is_refusal(),
            LikeOp::Told(_) => true,
        }
    }
}

/// How many users like a post at some moment of an interval: not fewer, not more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// At least.
    pub min: i64,
    /// At most.
    pub max: i64,
}

impl Bounds {
    /// Of the interval in which an answer with the count was given, from what each user did.
    pub fn within<'a>(users: impl Iterator<Item = &'a [Call<LikeOp>]>, invoked: u64, returned: u64) -> Self {
        let mut bounds = Self::default();
        for calls in users {
            bounds.min += i64::from(!can_be(calls, false, invoked, returned));
            bounds.max += i64::from(can_be(calls, true, invoked, returned));
        }
        bounds
    }

    /// Whether it can have been this many.
    pub fn contain(self, count: i64) -> bool {
        (self.min..=self.max).contains(&count)
    }
}

/// Whether a user can be in this state at some moment of the interval: what brings it about has begun by then, and nothing
/// else came after it and was over before.
fn can_be(calls: &[Call<LikeOp>], on: bool, invoked: u64, returned: u64) -> bool {
    let sets = |wanted: bool| {
        calls.iter().filter_map(move |call| match &call.op {
            LikeOp::Set(on, end) if *on == wanted && !end.is_refusal() => Some((call.invoked, call.returned)),
            _ => None,
        })
    };
    // When the last one began that is certain to have undone what was over before.
    let undone = sets(!on).filter(|(_, over)| over.is_some_and(|over| over < invoked)).map(|(begun, _)| begun).max();
    // In the beginning nobody likes it.
    let beginning = !on && undone.is_none();
    beginning
        || sets(on).any(|(begun, over)| begun <= returned && over.is_none_or(|over| undone.is_none_or(|undone| over >= undone)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(on: bool, invoked: u64, returned: Option<u64>) -> Call<LikeOp> {
        let end = if returned.is_some() { End::Done(()) } else { End::Open };
        Call { client: 0, op: LikeOp::Set(on, end), invoked, returned }
    }

    fn bounds(calls: &[Call<LikeOp>], invoked: u64, returned: u64) -> (i64, i64) {
        let Bounds { min, max } = Bounds::within([calls].into_iter(), invoked, returned);
        (min, max)
    }

    #[test]
    fn between_operations_the_count_is_known() {
        let calls = [set(true, 10, Some(20)), set(false, 30, Some(40))];
        assert_eq!(bounds(&calls, 1, 5), (0, 0));
        assert_eq!(bounds(&calls, 22, 25), (1, 1));
        assert_eq!(bounds(&calls, 50, 60), (0, 0));
    }

    #[test]
    fn during_an_operation_it_may_be_either() {
        let calls = [set(true, 10, Some(20)), set(false, 30, Some(40))];
        assert_eq!(bounds(&calls, 12, 15), (0, 1));
        assert_eq!(bounds(&calls, 15, 35), (0, 1));
    }

    #[test]
    fn an_open_like_may_come_at_any_time_or_never() {
        let calls = [set(true, 10, None), set(false, 30, Some(40))];
        assert_eq!(bounds(&calls, 5, 8), (0, 0));
        assert_eq!(bounds(&calls, 500, 600), (0, 1));
    }
}
