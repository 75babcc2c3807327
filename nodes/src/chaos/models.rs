//! Pure. What a post and a thread promise, without the machinery that keeps the promise.

mod like;
mod post;
mod thread;

pub use self::{
    like::{Bounds, LikeModel, LikeOp},
    post::{Post, PostModel, PostOp, Seen},
    thread::{Thread, ThreadModel, ThreadOp},
};

/// How a write ended, as its client knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End<T = ()> {
    /// Done.
    Done(T),
    /// Refused: there is no such thing.
    Gone,
    /// Refused: it is not at the version that was asked for.
    Changed,
    /// Nobody knows: a timeout, a 503, a connection that broke.
    Open,
}

impl<T> End<T> {
    /// Whether it was refused, and so changed nothing.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Gone | Self::Changed)
    }
}
