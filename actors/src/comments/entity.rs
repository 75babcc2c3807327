//! Pure. The rules of a thread: all comments of one post.
//!
//! In memory a thread is its skeleton; what is written in a comment comes as a fact where a rule asks for it. A
//! thread of 100,000 comments is never copied: events say what changes.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    rules::CommentBody,
    tree::{self, DEPTH_MAX, Deletion, Info, Tree},
};
use crate::{
    entity::Entity,
    ids::{CommentId, UserId},
};

/// The comments of a post. One that nobody has commented on needs no creation: it is an open thread without comments.
#[derive(Debug)]
pub enum Thread {
    /// Of a post that exists, as far as the posts' log has been applied.
    Open(Tree),
    /// Of a post that is gone. It stays closed for ever, so that a comment on its way finds no open thread (rule 19).
    Closed,
}

impl Default for Thread {
    fn default() -> Self {
        Self::Open(Tree::default())
    }
}

impl Thread {
    /// The skeleton; none when the post is gone.
    pub fn tree(&self) -> Option<&Tree> {
        match self {
            Self::Open(tree) => Some(tree),
            Self::Closed => None,
        }
    }
}

/// What is written in a comment, as of one version of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// Who wrote it.
    pub author: UserId,
    /// 1 to 10,000 characters.
    pub body: CommentBody,
    /// When it was written.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// A comment from elsewhere, to be taken over with its likes left behind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Imported {
    /// Its id.
    pub id: CommentId,
    /// Who wrote it.
    pub author: UserId,
    /// The text.
    pub body: CommentBody,
    /// The comment that it answers.
    pub parent: Option<CommentId>,
    /// When it was written.
    pub at: Timestamp,
}

/// What a thread can be asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Adds a comment.
    Add {
        /// The new id.
        id: CommentId,
        /// Who writes.
        author: UserId,
        /// The text.
        body: CommentBody,
        /// The comment that it answers.
        parent: Option<CommentId>,
        /// When.
        at: Timestamp,
    },
    /// Changes what is written in a comment.
    Edit {
        /// Which.
        comment: CommentId,
        /// Who asks.
        editor: UserId,
        /// The new text.
        body: CommentBody,
        /// The version that the editor saw.
        if_version: Option<i64>,
        /// When.
        at: Timestamp,
    },
    /// Deletes a comment; with replies it stays as a tombstone.
    Delete {
        /// Which.
        comment: CommentId,
        /// Who asks.
        by: UserId,
        /// Whether they may delete what others wrote.
        moderator: bool,
        /// The version that they saw.
        if_version: Option<i64>,
        /// When.
        at: Timestamp,
    },
    /// Sets or takes back a user's like.
    Like {
        /// Of which comment.
        comment: CommentId,
        /// Whose.
        user: UserId,
        /// Set, or take back.
        on: bool,
    },
    /// Takes over comments, parents before their replies; those that are there already are left as they are, and those that
    /// were deleted stay deleted.
    Import {
        /// All or none of them.
        comments: Vec<Imported>,
    },
}

/// What happened in a thread.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A comment was written.
    Added {
        /// Its id.
        id: CommentId,
        /// The comment that it answers.
        parent: Option<CommentId>,
        /// 0 at the top.
        depth: u8,
        /// What is written in it.
        text: Text,
    },
    /// A comment was edited.
    Edited {
        /// Which.
        id: CommentId,
        /// What is written in it now.
        text: Text,
    },
    /// A comment was deleted.
    Deleted {
        /// Which.
        id: CommentId,
        /// What was written in it.
        text: Text,
        /// When.
        at: Timestamp,
        /// What stays of it.
        left: Deletion,
    },
    /// A user began to like a comment.
    Liked {
        /// Which.
        id: CommentId,
        /// Who.
        user: UserId,
    },
    /// A user no longer likes a comment.
    Unliked {
        /// Which.
        id: CommentId,
        /// Who.
        user: UserId,
    },
    /// The post is gone, says the posts' log.
    Closed,
}

/// A business no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    /// The post is gone, and its comments with it.
    #[error("the post is gone")]
    Closed,
    /// There is no such comment in this thread (any more).
    #[error("no such comment")]
    NoSuchComment,
    /// The comment to be answered is not in this thread (any more).
    #[error("the comment to be answered is not in this thread")]
    NoSuchParent,
    /// A tombstone is neither answered nor liked, edited or deleted again.
    #[error("the comment is deleted")]
    Deleted,
    /// The comment to be answered is as deep as comments go.
    #[error("a comment at depth {DEPTH_MAX} takes no replies")]
    TooDeep,
    /// It exists already.
    #[error("the id is taken")]
    Exists,
    /// Only the author may do this.
    #[error("only the author may do this")]
    NotAuthor,
    /// It was edited since the caller read it.
    #[error("the comment is at version {version} by now")]
    VersionMismatch {
        /// The version now.
        version: i64,
    },
}

/// What `decide` cannot know from the skeleton.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// What is written in the comment that is to be edited or deleted.
    pub text: Option<Text>,
    /// Whether the command's user likes the comment.
    pub liked: bool,
    /// Those of the comments to be taken over that were there once, and were deleted.
    pub deleted: HashSet<CommentId>,
}

impl Entity for Thread {
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;
    type Facts = Facts;

    fn decide(state: Option<&Self>, command: &Command, facts: &Facts) -> Result<Vec<Event>, Rejection> {
        let empty = Self::default();
        let tree = state.unwrap_or(&empty).tree().ok_or(Rejection::Closed)?;
        match command {
            Command::Add { id, author, body, parent, at } => {
                let depth = tree.place(id.0, parent.map(|parent| parent.0)).map_err(unplaced)?;
                Ok(vec![added(*id, *author, body, *parent, depth, *at)])
            }
            Command::Edit { comment, editor, body, if_version, at } => {
                let info = live(tree, *comment)?;
                let before = may_change(&info, facts, *editor, false, *if_version)?;
                if *body == before.body {
                    return Ok(vec![]);
                }
                let text = Text { body: body.clone(), updated_at: stored(*at), ..before.clone() };
                Ok(vec![Event::Edited { id: *comment, text }])
            }
            Command::Delete { comment, by, moderator, if_version, at } => {
                let info = live(tree, *comment)?;
                let text = may_change(&info, facts, *by, *moderator, *if_version)?.clone();
                let left = tree.deletion(comment.0).map_err(unfound)?;
                Ok(vec![Event::Deleted { id: *comment, text, at: stored(*at), left }])
            }
            Command::Like { comment, user, on } => {
                live(tree, *comment)?;
                let (id, user) = (*comment, *user);
                Ok(match (on, facts.liked) {
                    (true, false) => vec![Event::Liked { id, user }],
                    (false, true) => vec![Event::Unliked { id, user }],
                    _ => vec![],
                })
            }
            Command::Import { comments } => import(tree, comments, &facts.deleted),
        }
    }

    fn evolve(state: &mut Option<Self>, event: &Event) {
        let thread = state.get_or_insert_default();
        let Self::Open(tree) = thread else {
            // The post went while the command was under way: what it changed is not to be seen any more.
            return;
        };
        let changed = match event {
            Event::Added { id, parent, .. } => tree.insert(id.0, parent.map(|parent| parent.0)).map(drop),
            Event::Edited { id, .. } => tree.edit(id.0).map(drop),
            Event::Deleted { id, .. } => tree.delete(id.0).map(drop),
            Event::Liked { id, .. } => tree.like(id.0, 1).map(drop),
            Event::Unliked { id, .. } => tree.like(id.0, -1).map(drop),
            Event::Closed => {
                *thread = Self::Closed;
                Ok(())
            }
        };
        // Only a thread's own commands change its tree, one at a time; a crash reloads it from its rows.
        changed.expect("an event fits the tree on which it was decided");
    }
}

fn live(tree: &Tree, id: CommentId) -> Result<Info, Rejection> {
    match tree.get(id.0) {
        None => Err(Rejection::NoSuchComment),
        Some(info) if info.deleted => Err(Rejection::Deleted),
        Some(info) => Ok(info),
    }
}

fn may_change<'a>(
    info: &Info,
    facts: &'a Facts,
    who: UserId,
    moderator: bool,
    if_version: Option<i64>,
) -> Result<&'a Text, Rejection> {
    let text = facts.text.as_ref().expect("the text of a comment in the tree was looked up");
    if who != text.author && !moderator {
        return Err(Rejection::NotAuthor);
    }
    let version = i64::from(info.version);
    match if_version {
        Some(seen) if seen != version => Err(Rejection::VersionMismatch { version }),
        _ => Ok(text),
    }
}

fn added(id: CommentId, author: UserId, body: &CommentBody, parent: Option<CommentId>, depth: u8, at: Timestamp) -> Event {
    let at = stored(at);
    let text = Text { author, body: body.clone(), created_at: at, updated_at: at };
    Event::Added { id, parent, depth, text }
}

/// To the precision that Postgres keeps, so that a comment reads the same from memory and from its row.
fn stored(at: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(at.as_microsecond()).expect("a timestamp in range stays in range")
}

/// A parent may be in the thread already, or come in the same import.
fn import(tree: &Tree, comments: &[Imported], deleted: &HashSet<CommentId>) -> Result<Vec<Event>, Rejection> {
    let mut fresh = HashMap::new();
    let mut events = Vec::new();
    for Imported { id, author, body, parent, at } in comments {
        if fresh.contains_key(id) || tree.get(id.0).is_some() || deleted.contains(id) {
            continue;
        }
        let depth = match parent.and_then(|parent| fresh.get(&parent)) {
            Some(&depth) if depth >= DEPTH_MAX => return Err(Rejection::TooDeep),
            Some(&depth) => depth + 1,
            None => tree.place(id.0, parent.map(|parent| parent.0)).map_err(unplaced)?,
        };
        fresh.insert(*id, depth);
        events.push(added(*id, *author, body, *parent, depth, *at));
    }
    Ok(events)
}

fn unplaced(rejection: tree::Rejection) -> Rejection {
    match rejection {
        tree::Rejection::Absent { .. } => Rejection::NoSuchParent,
        other => unfound(other),
    }
}

fn unfound(rejection: tree::Rejection) -> Rejection {
    match rejection {
        tree::Rejection::Absent { .. } => Rejection::NoSuchComment,
        tree::Rejection::Deleted { .. } => Rejection::Deleted,
        tree::Rejection::TooDeep { .. } => Rejection::TooDeep,
        tree::Rejection::Taken { .. } => Rejection::Exists,
    }
}

#[cfg(test)]
mod tests;
