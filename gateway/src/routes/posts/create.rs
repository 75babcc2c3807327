use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use rookery_actors::ids::UserId;
use rookery_actors::posts::Draft;
use rookery_actors::posts::rules::{Body, Title};
use serde::Deserialize;

use super::PostView;
use crate::call::Service;
use crate::context::Context;
use crate::extract::CurrentUser;
use crate::problem::{self, Problem};
use crate::routes::ask::{Twice, along};
use crate::routes::fields::Fields;
use crate::routes::keyed::{Keyed, Scoped};
use crate::routes::{SEARCH_TOKEN, SharedApi, now, render};

/// What a new post is made of.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"title": "On the Analytical Engine", "body": "It weaves *algebraic* patterns.", "tags": ["engines"]}))]
pub(crate) struct NewPost {
    /// 1–200 characters on one line.
    #[schema(min_length = 1, max_length = 200)]
    title: String,
    /// Markdown, up to 40,000 characters.
    #[serde(default)]
    #[schema(max_length = 40_000)]
    body: String,
    /// Up to five of `[a-z0-9-]{1,30}`.
    #[serde(default)]
    #[schema(max_items = 5)]
    tags: Vec<String>,
}

impl Scoped for NewPost {}

impl NewPost {
    fn draft(&self, author: UserId, at: Timestamp) -> Result<Draft, Problem> {
        let mut fields = Fields::default();
        let title = fields.take("title", Title::parse(&self.title));
        let body = fields.take("body", Body::parse(&self.body));
        let tags = fields.take_tags(&self.tags);
        fields.check()?;
        let all = title.zip(body).zip(tags);
        let ((title, body), tags) = all.expect("fields without errors have values");
        Ok(Draft { author, title, body, tags, at })
    }
}

/// Publish a post
#[utoipa::path(
    post,
    path = "/api/v1/posts",
    tag = "Posts",
    operation_id = "publish_post",
    request_body = NewPost,
    params(("idempotency-key" = Option<String>, Header, description = "Send the same key with a retry.")),
    responses((status = 201, description = "It is published.", body = PostView, headers(
        ("location" = String, description = "Where it is."),
        ("etag" = String, description = "Its version."),
        ("x-search-token" = String, description = "For `x-search-after`: finds it."),
    )), (status = 409, description = "The idempotency key belongs to another request.")),
    security(("bearer" = []))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    CurrentUser(user): CurrentUser,
    Keyed { body, key }: Keyed<NewPost>,
) -> Result<Response, Problem> {
    let draft = body.draft(UserId(user.sub), now())?;
    let along = along(&context, key);
    let accepted =
        api.write(Service::Posts, &context, Twice::keyed(&along), || api.posts.publish(draft.clone(), along.clone())).await?;
    let post = accepted.reply.post.as_ref().ok_or_else(|| Problem::new(&problem::INTERNAL, "the post is gone already"))?;
    let author = api.writer(Service::Posts, &context, &user).await;
    // Not kept: it is rendered again when somebody reads it, and most are not read at once.
    let item = super::item(post, author.as_deref());
    let headers =
        [(header::LOCATION, super::location(post.id)), (SEARCH_TOKEN, api.search_token(&super::written(&accepted, post.id)))];
    // Nobody has liked it yet: a retry after somebody did gets the first answer again.
    let answer = render::answer(StatusCode::CREATED, item.json(Some(false)), Some(item.stamp.etag(Some(false))));
    Ok((headers, answer).into_response())
}
