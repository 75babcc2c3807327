//! Posts and the lists of them.

mod create;
mod delete;
mod edit;
mod feed;
mod get;
mod like;
mod list;
mod tags;

use std::collections::HashSet;
use std::sync::Arc;

use axum::http::HeaderValue;
use bytes::Bytes;
use jiff::Timestamp;
use rookery_actors::authors::Author;
use rookery_actors::event::Topic;
use rookery_actors::ids::{PostId, UserId};
use rookery_actors::posts::Post;
use rookery_actors::posts::rules::Tag;
use rookery_actors::search::SearchToken;
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::authors::{AuthorView, Known};
use super::render::{self, Item, Stamp};
use super::{Api, SharedApi};
use crate::auth::Claims;
use crate::call::Service;
use crate::context::Context;
use crate::problem::{self, Problem};

pub(crate) use self::list::by_author;

pub(super) fn routes() -> OpenApiRouter<SharedApi> {
    OpenApiRouter::new()
        .routes(routes!(list::handle, create::handle))
        .routes(routes!(get::handle, edit::handle, delete::handle))
        .routes(routes!(like::set, like::take_back))
        .routes(routes!(feed::handle))
        .routes(routes!(tags::handle))
}

/// A post.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Post)]
pub(crate) struct PostView<'a> {
    id: Uuid,
    /// None: the account was deleted.
    author: Option<AuthorView<'a>>,
    /// 1–200 characters on one line.
    #[schema(max_length = 200, min_length = 1, example = "On the Analytical Engine")]
    title: &'a str,
    /// Markdown, up to 40,000 characters.
    #[schema(max_length = 40_000, example = "It weaves *algebraic* patterns.")]
    body: &'a str,
    #[schema(value_type = Vec<String>, max_items = 5, example = json!(["engines", "history"]))]
    tags: &'a [Tag],
    created_at: Timestamp,
    /// When title, body or tags last changed.
    updated_at: Timestamp,
    edited: bool,
    /// Grows with every edit, from 1; what `If-Match` compares.
    version: i64,
    like_count: i64,
    comment_count: i64,
    /// Whether you like it; with an access token only.
    #[serde(skip_serializing_if = "Option::is_none")]
    liked: Option<bool>,
    /// The body as sanitised HTML; on single reads only.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_html: Option<&'a str>,
}

/// A page of posts.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = PostList)]
pub(crate) struct PostList<'a> {
    items: Vec<PostView<'a>>,
    /// Ask with it for the next page; none: this was the last.
    next_cursor: Option<&'a str>,
}

impl<'a> PostView<'a> {
    pub(crate) fn of(post: &'a Post, author: Option<&'a Author>) -> Self {
        Self {
            id: post.id.0,
            author: author.map(AuthorView::from),
            title: post.title.as_str(),
            body: post.body.as_str(),
            tags: post.tags.as_slice(),
            created_at: post.created_at,
            updated_at: post.updated_at,
            edited: post.edited(),
            version: post.version,
            like_count: post.like_count,
            comment_count: post.comment_count,
            liked: None,
            body_html: None,
        }
    }
}

fn stamp(post: &Post, author: Option<&Author>) -> Stamp {
    Stamp {
        version: post.version,
        likes: post.like_count,
        answers: post.comment_count,
        author: author.map(|author| author.version),
    }
}

/// A post as JSON.
fn item(post: &Post, author: Option<&Author>) -> Item {
    Item::new(stamp(post, author), &PostView::of(post, author))
}

impl Api {
    /// A post as JSON, rendered before or now.
    pub(crate) fn post_item(&self, post: &Post, author: Option<&Author>) -> Arc<Item> {
        self.post_items.get(post.id, stamp(post, author), || PostView::of(post, author))
    }

    /// A post that has to exist.
    pub(crate) async fn post(&self, context: &Context, id: PostId) -> Result<Post, Problem> {
        // In most cases it is in memory, where no breaker need be asked.
        let post = match self.posts.at_hand(id) {
            Some(post) => post,
            None => self.read(Service::Posts, context, |deadline| self.posts.get(id, deadline)).await?,
        };
        post.ok_or_else(no_such_post)
    }

    /// A post that has to exist, and whether who asks likes it.
    async fn post_seen(&self, context: &Context, id: PostId, user: Option<&Claims>) -> Result<(Post, Option<bool>), Problem> {
        let Some(user) = user else {
            return Ok((self.post(context, id).await?, None));
        };
        let viewer = UserId(user.sub);
        match self.posts.at_hand(id) {
            Some(post) => {
                let post = post.ok_or_else(no_such_post)?;
                let liked = self.liked_post(context, user, &post).await?;
                Ok((post, Some(liked)))
            }
            // Whoever has it is asked for both at once.
            None => {
                let seen = self.read(Service::Posts, context, |deadline| self.posts.see(id, viewer, deadline)).await?;
                let (post, liked) = seen.ok_or_else(no_such_post)?;
                Ok((post, Some(liked)))
            }
        }
    }

    /// Whether a post is liked by who asks.
    async fn liked_post(&self, context: &Context, user: &Claims, post: &Post) -> Result<bool, Problem> {
        // Nobody likes a post without likes.
        if post.like_count <= 0 {
            return Ok(false);
        }
        let (user, posts) = (UserId(user.sub), [post.id]);
        let liked = self.read(Service::Posts, context, |deadline| self.posts.liked(user, &posts, deadline));
        Ok(liked.await?.contains(&post.id))
    }

    /// A page of posts as JSON; `liked`: those of them that who asks likes, if anybody in particular does.
    pub(crate) async fn post_list(
        &self,
        context: &Context,
        posts: &[Post],
        liked: Option<HashSet<PostId>>,
        next: Option<String>,
    ) -> Result<Bytes, Problem> {
        let authors = self.post_authors(context, posts).await?;
        let items: Vec<Arc<Item>> =
            posts.iter().map(|post| self.post_item(post, authors.get(post.author).map(Arc::as_ref))).collect();
        let mine = posts.iter().map(|post| liked.as_ref().map(|liked| liked.contains(&post.id)));
        Ok(render::list_json(items.iter().map(Arc::as_ref).zip(mine), next.as_deref()))
    }

    pub(crate) async fn post_authors(&self, context: &Context, posts: &[Post]) -> Result<Known, Problem> {
        self.authors(Service::Posts, context, posts.iter().map(|post| post.author)).await
    }
}

/// What names a write to a post for search.
fn written(accepted: &rookery_actors::runtime::Accepted<rookery_actors::posts::Reply>, id: PostId) -> SearchToken {
    SearchToken { topic: Topic::Posts, shard: accepted.shard, seq: accepted.seq, key: id.0 }
}

fn location(id: PostId) -> HeaderValue {
    HeaderValue::try_from(format!("/api/v1/posts/{id}")).expect("an id is a header value")
}

pub(crate) fn no_such_post() -> Problem {
    Problem::new(&problem::NOT_FOUND, "no such post")
}
