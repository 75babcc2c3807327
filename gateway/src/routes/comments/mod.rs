//! The comments of a post.

mod create;
mod delete;
mod edit;
mod get;
mod like;
mod list;

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use rookery_actors::authors::Author;
use rookery_actors::comments::{Comment, Reply};
use rookery_actors::event::Topic;
use rookery_actors::ids::{CommentId, PostId, UserId};
use rookery_actors::runtime::Accepted;
use rookery_actors::search::SearchToken;
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::authors::AuthorView;
use super::render::{self, Item, Stamp};
use super::{Api, SharedApi};
use crate::auth::Claims;
use crate::call::Service;
use crate::context::Context;
use crate::problem::{self, Problem};

pub(super) fn routes() -> OpenApiRouter<SharedApi> {
    OpenApiRouter::new()
        .routes(routes!(list::handle, create::handle))
        .routes(routes!(get::handle, edit::handle, delete::handle))
        .routes(routes!(like::set, like::take_back))
}

/// A comment, or the tombstone of one.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Comment)]
pub(crate) struct CommentView<'a> {
    id: Uuid,
    post_id: Uuid,
    /// The comment that it answers; none at the top.
    parent_id: Option<Uuid>,
    /// 0 at the top, 50 at most.
    #[schema(maximum = 50)]
    depth: u16,
    /// None: the account or the comment was deleted.
    author: Option<AuthorView<'a>>,
    /// 1–10,000 characters; none: a tombstone.
    #[schema(max_length = 10_000, example = "It originates nothing.")]
    body: Option<&'a str>,
    created_at: Timestamp,
    updated_at: Timestamp,
    edited: bool,
    /// A tombstone: it has replies, so its place stays.
    deleted: bool,
    /// Grows with every edit, from 1; what `If-Match` compares.
    version: i64,
    like_count: i64,
    /// Direct replies, tombstones not counted.
    reply_count: i64,
    /// Whether you like it; with an access token only.
    #[serde(skip_serializing_if = "Option::is_none")]
    liked: Option<bool>,
}

/// A page of comments.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = CommentList)]
pub(crate) struct CommentList<'a> {
    items: Vec<CommentView<'a>>,
    /// Ask with it for the next page; none: this was the last.
    next_cursor: Option<&'a str>,
}

impl<'a> CommentView<'a> {
    fn of(comment: &'a Comment, author: Option<&'a Author>) -> Self {
        Self {
            id: comment.id.0,
            post_id: comment.post_id.0,
            parent_id: comment.parent_id.map(|parent| parent.0),
            depth: comment.depth,
            author: author.map(AuthorView::from),
            body: comment.body.as_ref().map(|body| body.as_str()),
            created_at: comment.created_at,
            updated_at: comment.updated_at,
            edited: comment.edited(),
            deleted: comment.deleted,
            version: comment.version,
            like_count: comment.like_count,
            reply_count: comment.reply_count,
            liked: None,
        }
    }
}

impl Api {
    /// A comment as JSON.
    fn comment_item(&self, comment: &Comment, author: Option<&Author>) -> Arc<Item> {
        let stamp = Stamp {
            version: comment.version,
            likes: comment.like_count,
            answers: comment.reply_count,
            author: author.map(|author| author.version),
        };
        self.comment_items.get(comment.id, stamp, || CommentView::of(comment, author))
    }

    /// A comment as JSON with its author looked up, and whether it is liked by who asks.
    async fn one_comment(
        &self,
        context: &Context,
        user: Option<&Claims>,
        comment: &Comment,
    ) -> Result<(Arc<Item>, Option<bool>), Problem> {
        let authors = self.authors(Service::Comments, context, comment.author).await?;
        let author = comment.author.and_then(|author| authors.get(author));
        let liked = self.liked_comments(context, user, std::slice::from_ref(comment)).await?;
        let liked = liked.map(|liked| liked.contains(&comment.id));
        Ok((self.comment_item(comment, author.map(Arc::as_ref)), liked))
    }

    /// Which of these comments who asks likes; none: nobody in particular asks.
    pub(crate) async fn liked_comments(
        &self,
        context: &Context,
        user: Option<&Claims>,
        comments: &[Comment],
    ) -> Result<Option<HashSet<CommentId>>, Problem> {
        let Some(user) = user else { return Ok(None) };
        let user = UserId(user.sub);
        self.read(Service::Comments, context, |deadline| self.comments.liked(user, comments, deadline)).await.map(Some)
    }

    /// A page of comments as JSON; `liked`: those of them that who asks likes, if anybody in particular does.
    pub(crate) async fn comment_list(
        &self,
        context: &Context,
        liked: Option<HashSet<CommentId>>,
        comments: &[Comment],
        next: Option<String>,
    ) -> Result<Bytes, Problem> {
        let authors = comments.iter().filter_map(|comment| comment.author);
        let authors = self.authors(Service::Comments, context, authors).await?;
        let item = |comment: &Comment| {
            let author = comment.author.and_then(|author| authors.get(author));
            self.comment_item(comment, author.map(Arc::as_ref))
        };
        let items: Vec<Arc<Item>> = comments.iter().map(item).collect();
        let mine = comments.iter().map(|comment| liked.as_ref().map(|liked| liked.contains(&comment.id)));
        Ok(render::list_json(items.iter().map(Arc::as_ref).zip(mine), next.as_deref()))
    }
}

/// What names a write to a comment for search.
fn written(accepted: &Accepted<Reply>, post: PostId) -> SearchToken {
    SearchToken { topic: Topic::Comments, shard: accepted.shard, seq: accepted.seq, key: post.0 }
}

fn no_such_comment() -> Problem {
    Problem::new(&problem::NOT_FOUND, "no such comment")
}
