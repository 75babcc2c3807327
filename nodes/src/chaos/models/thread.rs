//! Pure. The comments under a post: a set to which comments are added and from which they are deleted, until it closes.

use std::{collections::BTreeSet, sync::Arc};

use super::End;
use crate::chaos::linearizable::Model;

/// What is done to a thread, or seen of it, with how it ended. A comment is named by its text, of which no two are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ThreadOp {
    /// A comment is written. A retry with the same idempotency key is the same operation.
    Add {
        /// Which.
        comment: Arc<str>,
        /// How it ended.
        end: End,
    },
    /// A comment is deleted.
    Delete {
        /// Which.
        comment: Arc<str>,
        /// How it ended; `Gone` when the comment was not there.
        end: End,
    },
    /// All comments are listed, on one page; tombstones are none. As they were listed, sorted: what is there twice is there
    /// twice. None: there is no such thread.
    List(Option<Vec<Arc<str>>>),
    /// The post was deleted, and the news arrives at some time or never: always open.
    Close,
}

/// What is in a thread.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Thread {
    /// The comments.
    pub comments: BTreeSet<Arc<str>>,
    /// Whether its post is gone.
    pub closed: bool,
}

/// A thread as the REST contract describes it.
#[derive(Clone, Copy, Debug)]
pub struct ThreadModel;

impl Model for ThreadModel {
    type State = Thread;
    type Op = ThreadOp;

    fn initial(&self) -> Thread {
        Thread { comments: BTreeSet::new(), closed: false }
    }

    fn step(&self, state: &Thread, op: &ThreadOp) -> Option<Thread> {
        match op {
            ThreadOp::Close => Some(Thread { closed: true, ..state.clone() }),
            ThreadOp::List(listed) => {
                let fits = match listed {
                    Some(listed) => !state.closed && listed.iter().eq(state.comments.iter()),
                    None => state.closed,
                };
                fits.then(|| state.clone())
            }
            ThreadOp::Add { comment, end } => match (state.closed, end) {
                (false, End::Done(()) | End::Open) => {
                    let mut after = state.clone();
                    after.comments.insert(comment.clone()).then_some(after)
                }
                (true, End::Gone | End::Open) => Some(state.clone()),
                _ => None,
            },
            ThreadOp::Delete { comment, end } => match (!state.closed && state.comments.contains(comment), end) {
                (true, End::Done(()) | End::Open) => {
                    let mut after = state.clone();
                    after.comments.remove(comment);
                    Some(after)
                }
                (false, End::Gone | End::Open) => Some(state.clone()),
                _ => None,
            },
        }
    }

    fn only_reads(&self, op: &ThreadOp) -> bool {
        match op {
            ThreadOp::List(_) => true,
            ThreadOp::Add { end, .. } | ThreadOp::Delete { end, .. } => end.is_refusal(),
            ThreadOp::Close => false,
        }
    }
}
