//! Pure. What an importer sends to a node, and what the node makes of it: the wire format of the import.

use jiff::Timestamp;
use rookery_actors::ids::{CommentId, PostId, UserId};
use serde::{Deserialize, Serialize};

/// One thing to import, with the number of its line in the importer's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numbered {
    /// Counted from 1.
    pub line: u64,
    /// What it holds.
    pub item: Item,
}

/// A user, post or comment under an id that is made from where it comes from, so that a second import finds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Item {
    /// A user without a password.
    User(User),
    /// A post.
    Post(Post),
    /// A comment.
    Comment(Comment),
}

/// A user without a password: nobody can log in until it gets one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// The id.
    pub id: UserId,
    /// The handle.
    pub username: String,
    /// The name to show, possibly empty.
    pub display_name: String,
    /// A few words, possibly none.
    pub bio: String,
    /// The picture.
    pub avatar_url: Option<String>,
    /// Since when.
    pub created_at: Timestamp,
}

/// A post.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Post {
    /// The id.
    pub id: PostId,
    /// Who wrote it.
    pub author: Author,
    /// The title.
    pub title: String,
    /// The Markdown.
    pub body: String,
    /// The tags.
    pub tags: Vec<String>,
    /// When it was written.
    pub created_at: Timestamp,
}

/// A comment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comment {
    /// The id.
    pub id: CommentId,
    /// Its post.
    pub post: PostId,
    /// The comment that it answers.
    pub parent: Option<CommentId>,
    /// Who wrote it.
    pub author: Author,
    /// The Markdown.
    pub body: String,
    /// When it was written.
    pub created_at: Timestamp,
}

/// Who wrote something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Author {
    /// A user who exists.
    Named(String),
    /// One who is made for the import, where the source names none.
    Made {
        /// The id.
        id: UserId,
        /// The handle.
        username: String,
        /// Since when.
        since: Timestamp,
    },
}

/// What became of a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The line; none: it is about the whole import, which ends with it.
    pub line: Option<u64>,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What became of an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    /// It is in.
    Imported,
    /// It was in already.
    Present,
    /// It can never be.
    Refused {
        /// Why.
        reason: String,
    },
    /// It could be, but not now: import the file again.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Something that an item makes, or needs to be there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Thing {
    /// A user, by the handle in small letters.
    User(String),
    /// A post.
    Post(PostId),
    /// A comment.
    Comment(CommentId),
}

impl Item {
    /// What there is when it is in.
    pub fn makes(&self) -> Thing {
        match self {
            Self::User(user) => Thing::User(user.username.to_ascii_lowercase()),
            Self::Post(post) => Thing::Post(post.id),
            Self::Comment(comment) => Thing::Comment(comment.id),
        }
    }

    /// What must be in before it.
    pub fn needs(&self) -> Vec<Thing> {
        let author = |author: &Author| match author {
            Author::Named(username) => Some(Thing::User(username.to_ascii_lowercase())),
            Author::Made { .. } => None,
        };
        match self {
            Self::User(_) => Vec::new(),
            Self::Post(post) => author(&post.author).into_iter().collect(),
            Self::Comment(comment) => {
                let parent = comment.parent.map(Thing::Comment);
                author(&comment.author).into_iter().chain(parent).chain([Thing::Post(comment.post)]).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_reply_waits_for_its_author_its_parent_and_its_post() {
        let comment = Item::Comment(Comment {
            id: CommentId(Uuid::from_u128(3)),
            post: PostId(Uuid::from_u128(1)),
            parent: Some(CommentId(Uuid::from_u128(2))),
            author: Author::Named("Ada".to_owned()),
            body: "hello".to_owned(),
            created_at: Timestamp::UNIX_EPOCH,
        });
        let needs = [
            Thing::User("ada".to_owned()),
            Thing::Comment(CommentId(Uuid::from_u128(2))),
            Thing::Post(PostId(Uuid::from_u128(1))),
        ];
        assert_eq!(comment.needs(), needs);
    }

    #[test]
    fn an_answer_is_one_flat_object() {
        let answer = Answer { line: Some(7), outcome: Outcome::Refused { reason: "no".to_owned() } };
        let json = serde_json::to_string(&answer).unwrap();
        assert_eq!(json, r#"{"line":7,"outcome":"refused","reason":"no"}"#);
        assert_eq!(serde_json::from_str::<Answer>(&json).unwrap(), answer);
    }
}
