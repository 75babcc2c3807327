//! Pure. The public events: what other services and Kafka's readers see of a resource.
//!
//! Full state after the event, never an e-mail address. Adding a field is free, changing one is a v2.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    ids::{CommentId, PostId, SessionId, UserId},
    posts::Post,
    users::Profile,
};

/// A record as it goes into the log.
pub(crate) fn json(record: &impl Serialize) -> Arc<str> {
    text(record).into()
}

/// Plain data as JSON. Most of it is a post or a comment of some hundred bytes: a buffer that begins small would be copied
/// three times over while it grows.
pub(crate) fn text(data: &impl Serialize) -> String {
    let mut json = Vec::with_capacity(1 << 10);
    serde_json::to_writer(&mut json, data).expect("plain data becomes JSON");
    String::from_utf8(json).expect("JSON is text")
}

/// Whether what a record of this kind says can be searched for.
pub(crate) fn is_searchable(kind: &str) -> bool {
    matches!(kind.split_once('.'), Some(("user" | "post" | "comment", "created" | "updated" | "deleted")))
}

/// `user.created`, `user.updated`, `user.deleted`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserRecord {
    /// The user.
    pub id: UserId,
    /// Grows with every change of the profile.
    pub version: i64,
    /// The handle; empty when deleted, like all that follows.
    pub username: String,
    /// The name to show.
    pub display_name: String,
    /// A few words.
    pub bio: String,
    /// The picture.
    pub avatar_url: Option<String>,
    /// When the account was made.
    pub created_at: Timestamp,
    /// The account is gone.
    pub deleted: bool,
}

impl UserRecord {
    /// A user as everybody may see them.
    pub fn of(user: &Profile) -> Self {
        Self {
            id: user.id,
            version: user.version,
            username: user.username.as_str().to_owned(),
            display_name: user.display_name.as_str().to_owned(),
            bio: user.bio.as_str().to_owned(),
            avatar_url: user.avatar_url.as_ref().map(|url| url.as_str().to_owned()),
            created_at: user.created_at,
            deleted: false,
        }
    }

    /// A user who is gone: newer than every version of theirs, and without anything about them.
    pub fn gone(id: UserId, version: i64, created_at: Timestamp) -> Self {
        let nothing = String::new;
        Self {
            id,
            version,
            username: nothing(),
            display_name: nothing(),
            bio: nothing(),
            avatar_url: None,
            created_at,
            deleted: true,
        }
    }
}

/// `session.closed`; key: the user. The access tokens of the session are no longer good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// The session.
    pub id: SessionId,
    /// Whose it was.
    pub user: UserId,
}

/// `user.followed`, `user.unfollowed`; key: the follower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FollowRecord {
    /// Who follows.
    pub follower: UserId,
    /// Whom.
    pub followee: UserId,
    /// When.
    pub at: Timestamp,
}

/// `post.created`, `post.updated`, `post.deleted`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PostRecord {
    /// The post.
    pub id: PostId,
    /// Who wrote it.
    pub author: UserId,
    /// Empty when deleted.
    pub title: String,
    /// Empty when deleted.
    pub body: String,
    /// Empty when deleted.
    pub tags: Vec<String>,
    /// When it was published.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Grows with every edit.
    pub version: i64,
    /// At the time.
    pub like_count: i64,
    /// It is gone.
    pub deleted: bool,
}

impl PostRecord {
    /// A post as it is.
    pub fn of(post: &Post) -> Self {
        Self {
            id: post.id,
            author: post.author,
            title: post.title.as_str().to_owned(),
            body: post.body.as_str().to_owned(),
            tags: post.tags.as_slice().iter().map(|tag| tag.as_str().to_owned()).collect(),
            created_at: post.created_at,
            updated_at: post.updated_at,
            version: post.version,
            like_count: post.like_count,
            deleted: false,
        }
    }

    /// A post that was deleted: newer than every version of it, and without its texts.
    pub fn gone(post: &Post) -> Self {
        Self {
            title: String::new(),
            body: String::new(),
            tags: Vec::new(),
            version: post.version + 1,
            deleted: true,
            ..Self::of(post)
        }
    }
}

/// `post.liked`, `post.unliked`, `comment.liked`, `comment.unliked`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LikeRecord {
    /// What is liked: a post or a comment.
    pub id: Uuid,
    /// The post, or the post of the comment.
    pub post_id: PostId,
    /// Who likes it.
    pub user: UserId,
    /// How many do now.
    pub like_count: i64,
}

/// `comment.created`, `comment.updated`, `comment.deleted`; key: the post.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommentRecord {
    /// The comment.
    pub id: CommentId,
    /// Its post.
    pub post_id: PostId,
    /// The comment that it answers.
    pub parent_id: Option<CommentId>,
    /// 0 at the top.
    pub depth: u16,
    /// Who wrote it.
    pub author: UserId,
    /// Empty when deleted.
    pub body: String,
    /// When it was written.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Grows with every edit.
    pub version: i64,
    /// It is gone, or a tombstone.
    pub deleted: bool,
}
