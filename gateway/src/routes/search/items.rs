//! What was found, as it is now: a hit is shown with the resource's own summary, and left out if that is gone.

use std::collections::HashMap;

use futures_util::future::try_join3;
use jiff::Timestamp;
use rookery_actors::authors::Author;
use rookery_actors::comments::Comment;
use rookery_actors::ids::{CommentId, PostId, UserId};
use rookery_actors::posts::Post;
use rookery_actors::search::index::{Highlight, Hit, Kind};
use rookery_actors::users::Profile;
use serde::Serialize;
use uuid::Uuid;

use crate::call::Service;
use crate::context::Context;
use crate::problem::Problem;
use crate::routes::Api;
use crate::routes::authors::{AuthorName, Known};

/// Something found.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Found)]
pub(crate) struct FoundView {
    /// `post`, `user` or `comment`.
    #[serde(rename = "type")]
    #[schema(value_type = String, pattern = "^(post|user|comment)$", example = "post")]
    kind: Kind,
    id: Uuid,
    /// How well it matches; comparable within one search only.
    score: f32,
    /// Of a post.
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    /// Where the words stand, by field, as safe HTML.
    #[schema(value_type = std::collections::HashMap<String, String>, example = json!({"body": "the <mark>engine</mark> weaves"}))]
    highlight: HighlightView,
    created_at: Timestamp,
    #[serde(flatten)]
    summary: Summary,
}

/// Fragments by field; a field without a match has none.
#[derive(Debug, Serialize)]
pub(crate) struct HighlightView {
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

impl From<Highlight> for HighlightView {
    fn from(Highlight { title, body }: Highlight) -> Self {
        Self { title, body }
    }
}

/// The resource's own summary.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
#[schema(as = FoundSummary)]
pub(crate) enum Summary {
    /// Of a post.
    Post { author: Option<AuthorName>, excerpt: String, tags: Vec<String>, like_count: i64, comment_count: i64 },
    /// Of a comment.
    Comment { post_id: Uuid, author: Option<AuthorName>, excerpt: String, like_count: i64, reply_count: i64 },
    /// Of a user.
    User { username: String, display_name: String, avatar_url: Option<String>, excerpt: String },
}

impl Api {
    /// Hits as they are shown.
    pub(crate) async fn found(&self, context: &Context, hits: Vec<Hit>) -> Result<Vec<FoundView>, Problem> {
        let of = |kind: Kind| hits.iter().filter(move |hit| hit.kind == kind);
        let (posts, comments, users) = try_join3(
            self.found_posts(context, of(Kind::Post).map(|hit| PostId(hit.id)).collect()),
            self.found_comments(
                context,
                of(Kind::Comment).filter_map(|hit| Some((PostId(hit.summary.post_id?), CommentId(hit.id)))).collect(),
            ),
            self.found_users(context, of(Kind::User).map(|hit| UserId(hit.id)).collect()),
        )
        .await?;
        let show = |hit: Hit| {
            let (title, summary) = match hit.kind {
                Kind::Post => {
                    let post = posts.things.get(&hit.id)?;
                    let author = name(posts.authors.get(post.author).map(AsRef::as_ref));
                    (Some(post.title.as_str().to_owned()), of_post(post, author, hit.summary.excerpt))
                }
                Kind::Comment => {
                    let comment = comments.things.get(&hit.id).filter(|comment| !comment.deleted)?;
                    let author = comment.author.and_then(|author| comments.authors.get(author));
                    (None, of_comment(comment, name(author.map(AsRef::as_ref)), hit.summary.excerpt))
                }
                Kind::User => (None, of_user(users.things.get(&hit.id)?, hit.summary.excerpt)),
            };
            Some(FoundView {
                kind: hit.kind,
                id: hit.id,
                score: hit.score,
                title,
                highlight: hit.highlight.into(),
                created_at: hit.created_at,
                summary,
            })
        };
        Ok(hits.into_iter().filter_map(show).collect())
    }

    async fn found_posts(&self, context: &Context, ids: Vec<PostId>) -> Result<Things<Post>, Problem> {
        if ids.is_empty() {
            return Ok(Things::default());
        }
        let posts = self.read(Service::Posts, context, |deadline| self.posts.get_many(ids.iter().copied(), deadline)).await?;
        let authors = self.post_authors(context, &posts).await?;
        let things = posts.into_iter().map(|post| (post.id.0, post)).collect();
        Ok(Things { things, authors })
    }

    async fn found_comments(&self, context: &Context, ids: Vec<(PostId, CommentId)>) -> Result<Things<Comment>, Problem> {
        if ids.is_empty() {
            return Ok(Things::default());
        }
        let comments = self.read(Service::Comments, context, |deadline| self.comments.get_many(ids.clone(), deadline)).await?;
        let authors = self.authors(Service::Comments, context, comments.iter().filter_map(|comment| comment.author)).await?;
        let things = comments.into_iter().map(|comment| (comment.id.0, comment)).collect();
        Ok(Things { things, authors })
    }

    async fn found_users(&self, context: &Context, ids: Vec<UserId>) -> Result<Things<Profile>, Problem> {
        let profiles = self.read(Service::Users, context, |deadline| self.users.get_many(ids.clone(), deadline)).await?;
        let things = profiles.into_iter().map(|profile| (profile.id.0, profile)).collect();
        Ok(Things { things, authors: Known::default() })
    }
}

/// Resources of one kind, by id, with their authors.
struct Things<T> {
    things: HashMap<Uuid, T>,
    authors: Known,
}

impl<T> Default for Things<T> {
    fn default() -> Self {
        Self { things: HashMap::new(), authors: Known::default() }
    }
}

fn name(author: Option<&Author>) -> Option<AuthorName> {
    author.map(AuthorName::from)
}

fn of_post(post: &Post, author: Option<AuthorName>, excerpt: String) -> Summary {
    Summary::Post {
        author,
        excerpt,
        tags: post.tags.as_slice().iter().map(|tag| tag.as_str().to_owned()).collect(),
        like_count: post.like_count,
        comment_count: post.comment_count,
    }
}

fn of_comment(comment: &Comment, author: Option<AuthorName>, excerpt: String) -> Summary {
    Summary::Comment {
        post_id: comment.post_id.0,
        author,
        excerpt,
        like_count: comment.like_count,
        reply_count: comment.reply_count,
    }
}

fn of_user(profile: &Profile, excerpt: String) -> Summary {
    Summary::User {
        username: profile.username.as_str().to_owned(),
        display_name: profile.display_name.as_str().to_owned(),
        avatar_url: profile.avatar_url.as_ref().map(|url| url.as_str().to_owned()),
        excerpt,
    }
}
