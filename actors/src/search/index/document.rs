//! What can be found: one post, user or comment as the search service keeps it.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a document is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A post.
    Post,
    /// A user.
    User,
    /// A comment.
    Comment,
}

impl Kind {
    /// Every kind there is.
    pub const ALL: [Kind; 3] = [Kind::Post, Kind::User, Kind::Comment];

    /// The name that the API and the index use.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Post => "post",
            Kind::User => "user",
            Kind::Comment => "comment",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One searchable thing: the JSON in `documents.doc` of the search database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// What it is about.
    pub kind: Kind,
    /// The id of the post, user or comment.
    pub id: Uuid,
    /// Grows with every change of the thing; an older version never replaces a newer one.
    pub version: u64,
    /// Who wrote it; none for users themselves and for the posts of deleted accounts.
    pub author: Option<Uuid>,
    /// A post's tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// A post's title; of a user, the username, a space and the display name.
    pub title: Option<String>,
    /// The text; of a user, the bio.
    pub body: String,
    /// When the thing itself was created.
    pub created_at: Timestamp,
    /// Which post a comment belongs to.
    pub post_id: Option<Uuid>,
    /// Gone: the document only says so, and takes the thing out of the index.
    #[serde(default)]
    pub deleted: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_survives_its_json() {
        let document = Document {
            kind: Kind::Comment,
            id: Uuid::from_u128(1),
            version: 3,
            author: Some(Uuid::from_u128(2)),
            tags: vec!["rust".into()],
            title: None,
            body: "héllo".into(),
            created_at: "2013-08-01T12:00:00.123456Z".parse().unwrap(),
            post_id: Some(Uuid::from_u128(4)),
            deleted: false,
        };
        let json = serde_json::to_string(&document).unwrap();
        assert_eq!(serde_json::from_str::<Document>(&json).unwrap(), document);
    }
}
