//! Pure. The rules of a post.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::rules::{Body, Tags, Title};
use crate::{
    entity::Entity,
    ids::{PostId, UserId},
};

/// A post as it was last committed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Post {
    /// Its id.
    pub id: PostId,
    /// Who wrote it; names come from a projection.
    pub author: UserId,
    /// 1 to 200 characters.
    pub title: Title,
    /// Markdown, up to 40,000 characters.
    pub body: Body,
    /// Up to five.
    pub tags: Tags,
    /// When it was published.
    pub created_at: Timestamp,
    /// When title, body or tags last changed.
    pub updated_at: Timestamp,
    /// Grows with every edit, from 1.
    pub version: i64,
    /// How many users like it.
    pub like_count: i64,
    /// Comments that are not deleted, as far as the comments' log has been applied.
    pub comment_count: i64,
}

impl Post {
    /// Whether it was changed after it was published.
    pub fn edited(&self) -> bool {
        self.version > 1
    }
}

/// What a post can be asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Begins the life of a post.
    Publish {
        /// The new id.
        id: PostId,
        /// Who writes.
        author: UserId,
        /// The title.
        title: Title,
        /// The body.
        body: Body,
        /// The tags.
        tags: Tags,
        /// When.
        at: Timestamp,
        /// The id was minted for this command, so that nothing can be there yet.
        minted: bool,
    },
    /// Changes what is given.
    Edit {
        /// Who asks.
        editor: UserId,
        /// A new title.
        title: Option<Title>,
        /// A new body.
        body: Option<Body>,
        /// New tags.
        tags: Option<Tags>,
        /// The version that the editor saw.
        if_version: Option<i64>,
        /// When.
        at: Timestamp,
    },
    /// Ends its life.
    Delete {
        /// Who asks.
        by: UserId,
        /// Whether they may delete what others wrote.
        moderator: bool,
        /// The version that they saw.
        if_version: Option<i64>,
    },
    /// Sets or takes back a user's like.
    Like {
        /// Whose.
        user: UserId,
        /// Set, or take back.
        on: bool,
    },
}

/// What happened to a post.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It was published.
    Published(Post),
    /// It was edited; `before` is what read models must forget.
    Edited {
        /// After.
        after: Post,
        /// Before.
        before: Post,
    },
    /// It was deleted.
    Deleted(Post),
    /// A user began to like it.
    Liked(UserId),
    /// A user no longer likes it.
    Unliked(UserId),
    /// Comments came or went, says the comments' log.
    CommentsCounted(i64),
}

/// A business no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    /// There is no such post (any more).
    #[error("no such post")]
    NotFound,
    /// It exists already.
    #[error("the id is taken")]
    Exists,
    /// It was deleted: its id is not used again.
    #[error("the post was deleted")]
    Deleted,
    /// Only the author may do this.
    #[error("only the author may do this")]
    NotAuthor,
    /// It was edited since the caller read it.
    #[error("the post is at version {version} by now")]
    VersionMismatch {
        /// The version now.
        version: i64,
    },
}

/// What `decide` cannot know from memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether the command's user likes the post.
    pub liked: bool,
    /// Whether there was a post of this id, which was deleted.
    pub deleted: bool,
}

impl Entity for Post {
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;
    type Facts = Facts;

    fn decide(state: Option<&Self>, command: &Command, facts: &Facts) -> Result<Vec<Event>, Rejection> {
        match (command, state) {
            (Command::Publish { .. }, Some(_)) => Err(Rejection::Exists),
            (Command::Publish { .. }, None) if facts.deleted => Err(Rejection::Deleted),
            (Command::Publish { id, author, title, body, tags, at, .. }, None) => Ok(vec![Event::Published(Post {
                id: *id,
                author: *author,
                title: title.clone(),
                body: body.clone(),
                tags: tags.clone(),
                created_at: *at,
                updated_at: *at,
                version: 1,
                like_count: 0,
                comment_count: 0,
            })]),
            (_, None) => Err(Rejection::NotFound),
            (Command::Edit { editor, title, body, tags, if_version, at }, Some(post)) => {
                post.may_change(*editor, false, *if_version)?;
                let after = Post {
                    title: title.clone().unwrap_or_else(|| post.title.clone()),
                    body: body.clone().unwrap_or_else(|| post.body.clone()),
                    tags: tags.clone().unwrap_or_else(|| post.tags.clone()),
                    updated_at: *at,
                    version: post.version + 1,
                    ..post.clone()
                };
                let unchanged = (&after.title, &after.body, &after.tags) == (&post.title, &post.body, &post.tags);
                Ok(if unchanged { vec![] } else { vec![Event::Edited { after, before: post.clone() }] })
            }
            (Command::Delete { by, moderator, if_version }, Some(post)) => {
                post.may_change(*by, *moderator, *if_version)?;
                Ok(vec![Event::Deleted(post.clone())])
            }
            (Command::Like { user, on, .. }, Some(_)) => Ok(match (on, facts.liked) {
                (true, false) => vec![Event::Liked(*user)],
                (false, true) => vec![Event::Unliked(*user)],
                _ => vec![],
            }),
        }
    }

    fn evolve(state: &mut Option<Self>, event: &Event) {
        match (event, state.as_mut()) {
            // Counters are told by other logs and may be ahead of the post; they survive an edit.
            (Event::Published(post), _) => *state = Some(post.clone()),
            (Event::Edited { after, .. }, Some(post)) => {
                let (like_count, comment_count) = (post.like_count, post.comment_count);
                *post = Post { like_count, comment_count, ..after.clone() };
            }
            (Event::Deleted(_), _) => *state = None,
            (Event::Liked(_), Some(post)) => post.like_count += 1,
            (Event::Unliked(_), Some(post)) => post.like_count -= 1,
            (Event::CommentsCounted(change), Some(post)) => post.comment_count += change,
            (_, None) => {}
        }
    }
}

impl Post {
    fn may_change(&self, who: UserId, moderator: bool, if_version: Option<i64>) -> Result<(), Rejection> {
        if who != self.author && !moderator {
            return Err(Rejection::NotAuthor);
        }
        match if_version {
            Some(seen) if seen != self.version => Err(Rejection::VersionMismatch { version: self.version }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const ADA: UserId = UserId(Uuid::from_u128(1));
    const BOB: UserId = UserId(Uuid::from_u128(2));

    fn given(events: &[Event]) -> Option<Post> {
        let mut state = None;
        for event in events {
            Post::evolve(&mut state, event);
        }
        state
    }

    fn publish() -> Command {
        Command::Publish {
            id: PostId(Uuid::from_u128(7)),
            author: ADA,
            title: Title::parse("On the Analytical Engine").unwrap(),
            body: Body::parse("Notes").unwrap(),
            tags: Tags::default(),
            at: Timestamp::UNIX_EPOCH,
            minted: true,
        }
    }

    fn published() -> Vec<Event> {
        Post::decide(None, &publish(), &Facts::default()).unwrap()
    }

    fn edit_by(editor: UserId) -> Command {
        Command::Edit {
            editor,
            title: Some(Title::parse("Changed").unwrap()),
            body: None,
            tags: None,
            if_version: None,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    fn reject(state: Option<Post>, command: &Command) -> Rejection {
        Post::decide(state.as_ref(), command, &Facts::default()).unwrap_err()
    }

    #[test]
    fn only_the_author_may_edit() {
        assert_eq!(reject(given(&published()), &edit_by(BOB)), Rejection::NotAuthor);
    }

    #[test]
    fn an_edit_of_what_has_changed_meanwhile_is_refused() {
        let post = given(&published());
        let Command::Edit { editor, title, body, tags, at, .. } = edit_by(ADA) else { unreachable!() };
        let stale = Command::Edit { editor, title, body, tags, at, if_version: Some(9) };
        assert_eq!(reject(post, &stale), Rejection::VersionMismatch { version: 1 });
    }

    #[test]
    fn an_edit_that_changes_nothing_is_no_event() {
        let post = given(&published());
        let same = Command::Edit {
            editor: ADA,
            title: post.as_ref().map(|post| post.title.clone()),
            body: None,
            tags: None,
            if_version: None,
            at: Timestamp::UNIX_EPOCH,
        };
        assert_eq!(Post::decide(post.as_ref(), &same, &Facts::default()), Ok(vec![]));
    }

    #[test]
    fn a_second_like_of_the_same_user_counts_nothing() {
        let post = given(&published());
        let like = Command::Like { user: BOB, on: true };
        assert_eq!(Post::decide(post.as_ref(), &like, &Facts { liked: true, ..Facts::default() }), Ok(vec![]));
        assert_eq!(Post::decide(post.as_ref(), &like, &Facts::default()), Ok(vec![Event::Liked(BOB)]));
    }

    #[test]
    fn an_edit_keeps_the_counters_of_other_logs() {
        let mut events = published();
        events.extend([Event::Liked(BOB), Event::CommentsCounted(3)]);
        let before = given(&events);
        let edited = Post::decide(given(&published()).as_ref(), &edit_by(ADA), &Facts::default()).unwrap();
        let mut state = before;
        for event in &edited {
            Post::evolve(&mut state, event);
        }
        let post = state.unwrap();
        assert_eq!((post.like_count, post.comment_count, post.version), (1, 3, 2));
    }

    #[test]
    fn a_moderator_may_delete_but_not_edit() {
        let post = given(&published());
        let delete = Command::Delete { by: BOB, moderator: true, if_version: None };
        assert!(Post::decide(post.as_ref(), &delete, &Facts::default()).is_ok());
        assert_eq!(
            reject(given(&published()), &Command::Delete { by: BOB, moderator: false, if_version: None }),
            Rejection::NotAuthor
        );
    }

    #[test]
    fn the_id_of_a_deleted_post_is_not_used_again() {
        let facts = Facts { deleted: true, ..Facts::default() };
        assert_eq!(Post::decide(None, &publish(), &facts), Err(Rejection::Deleted));
    }

    #[test]
    fn a_deleted_post_takes_no_commands() {
        let mut events = published();
        let Event::Published(post) = events[0].clone() else { unreachable!() };
        events.push(Event::Deleted(post));
        assert_eq!(reject(given(&events), &edit_by(ADA)), Rejection::NotFound);
    }
}
