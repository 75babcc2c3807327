//! Pure. A post: a register with a version, which edits compare and set, until it is deleted.

use std::sync::Arc;

use super::End;
use crate::chaos::linearizable::Model;

/// What is done to a post, or seen of it, with how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostOp {
    /// It is published: done, or open. A retry with the same idempotency key is the same operation.
    Publish {
        /// Names this state of it; no two writes of a run have the same.
        text: Arc<str>,
        /// How it ended.
        end: End,
    },
    /// Its text is replaced.
    Edit {
        /// The version that it must have, if any.
        if_version: Option<i64>,
        /// The new text.
        text: Arc<str>,
        /// The post as the answer has it.
        end: End<Seen>,
    },
    /// It is deleted.
    Delete {
        /// The version that it must have, if any.
        if_version: Option<i64>,
        /// How it ended.
        end: End,
    },
    /// A user begins to like it, or ends to. Who likes it is another matter ([`super::LikeModel`]); here it has to be there.
    Like {
        /// Who.
        user: usize,
        /// Begin, or end.
        on: bool,
        /// How it ended.
        end: End,
    },
    /// It is read; none: it is not there.
    Read(Option<Seen>),
    /// A user is told whether they like it.
    Liked {
        /// Who.
        user: usize,
        /// What they are told.
        liked: bool,
    },
}

/// What a reader sees at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The version, from 1.
    pub version: i64,
    /// The text.
    pub text: Arc<str>,
    /// How many like it: see [`super::Bounds`].
    pub likes: i64,
}

impl PostOp {
    /// What is seen of the post, if anything is.
    pub fn seen(&self) -> Option<&Seen> {
        match self {
            Self::Read(seen) => seen.as_ref(),
            Self::Edit { end: End::Done(seen), .. } => Some(seen),
            _ => None,
        }
    }
}

/// The life of a post.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Post {
    /// Not yet published.
    Unborn,
    /// There.
    Live {
        /// From 1.
        version: i64,
        /// As last written.
        text: Arc<str>,
    },
    /// Deleted, for ever.
    Gone,
}

/// A post as the REST contract describes it.
#[derive(Clone, Copy, Debug)]
pub struct PostModel;

impl Model for PostModel {
    type State = Post;
    type Op = PostOp;

    fn initial(&self) -> Post {
        Post::Unborn
    }

    fn step(&self, state: &Post, op: &PostOp) -> Option<Post> {
        let Post::Live { version, text } = state else { return step_absent(state, op) };
        let fits = |if_version: &Option<i64>| if_version.is_none_or(|wanted| wanted == *version);
        match op {
            PostOp::Publish { .. } | PostOp::Read(None) => None,
            PostOp::Read(Some(seen)) => (seen.version == *version && seen.text == *text).then(|| state.clone()),
            PostOp::Like { end, .. } => (!end.is_refusal()).then(|| state.clone()),
            PostOp::Liked { .. } => Some(state.clone()),
            PostOp::Edit { if_version, text, end } => match (fits(if_version), end) {
                (true, End::Done(seen)) if seen.version != version + 1 || seen.text != *text => None,
                (true, End::Done(_) | End::Open) => Some(Post::Live { version: version + 1, text: text.clone() }),
                (false, End::Changed | End::Open) => Some(state.clone()),
                _ => None,
            },
            PostOp::Delete { if_version, end } => match (fits(if_version), end) {
                (true, End::Done(()) | End::Open) => Some(Post::Gone),
                (false, End::Changed | End::Open) => Some(state.clone()),
                _ => None,
            },
        }
    }

    fn only_reads(&self, op: &PostOp) -> bool {
        match op {
            PostOp::Read(_) | PostOp::Liked { .. } | PostOp::Like { .. } => true,
            PostOp::Publish { end, .. } | PostOp::Delete { end, .. } => end.is_refusal(),
            PostOp::Edit { end, .. } => end.is_refusal(),
        }
    }
}

/// What is not there changes by being published only.
fn step_absent(state: &Post, op: &PostOp) -> Option<Post> {
    let fits = match op {
        PostOp::Publish { text, .. } => {
            return (*state == Post::Unborn).then(|| Post::Live { version: 1, text: text.clone() });
        }
        PostOp::Read(seen) => seen.is_none(),
        // The answer was read when it was still there: a like is looked up after the post.
        PostOp::Liked { .. } => true,
        PostOp::Edit { end, .. } => matches!(end, End::Gone | End::Open),
        PostOp::Delete { end, .. } | PostOp::Like { end, .. } => matches!(end, End::Gone | End::Open),
    };
    fits.then(|| state.clone())
}
