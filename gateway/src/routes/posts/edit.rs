use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rookery_actors::ids::{PostId, UserId};
use rookery_actors::posts::Changes;
use rookery_actors::posts::rules::{Body, Title};
use serde::Deserialize;
use uuid::Uuid;

use super::PostView;
use crate::call::Service;
use crate::context::Context;
use crate::extract::{CurrentUser, IfMatch, Json, Path};
use crate::problem::Problem;
use crate::routes::ask::{Twice, along};
use crate::routes::fields::{Fields, given};
use crate::routes::{SEARCH_TOKEN, SharedApi, now, render};

/// What changes; what is left out stays.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"title": "On the Difference Engine"}))]
pub(crate) struct PostChanges {
    /// 1–200 characters on one line.
    #[serde(default, deserialize_with = "given")]
    #[schema(min_length = 1, max_length = 200, nullable = false)]
    title: Option<String>,
    /// Markdown, up to 40,000 characters.
    #[serde(default, deserialize_with = "given")]
    #[schema(max_length = 40_000, nullable = false)]
    body: Option<String>,
    /// Up to five of `[a-z0-9-]{1,30}`; all of them, not only the new ones.
    #[serde(default, deserialize_with = "given")]
    #[schema(max_items = 5, nullable = false)]
    tags: Option<Vec<String>>,
}

impl PostChanges {
    fn changes(&self, if_match: IfMatch) -> Result<Changes, Problem> {
        let mut fields = Fields::default();
        let title = fields.take_if("title", self.title.as_deref().map(Title::parse));
        let body = fields.take_if("body", self.body.as_deref().map(Body::parse));
        let tags = self.tags.as_deref().and_then(|tags| fields.take_tags(tags));
        fields.check()?;
        Ok(Changes { title, body, tags, if_version: if_match.version() })
    }
}

/// Edit a post
#[utoipa::path(
    patch,
    path = "/api/v1/posts/{id}",
    tag = "Posts",
    operation_id = "edit_post",
    request_body = PostChanges,
    params(
        ("id" = Uuid, Path, description = "The post."),
        ("if-match" = Option<String>, Header, description = "The entity tag of what you saw; only its version counts."),
    ),
    responses(
        (status = 200, description = "The post now.", body = PostView, headers(
            ("etag" = String, description = "Its version."),
            ("x-search-token" = String, description = "For `x-search-after`."),
        )),
        (status = 403, description = "It is another's."),
        (status = 412, description = "It has changed since."),
    ),
    security(("bearer" = []))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    Path(id): Path<Uuid>,
    CurrentUser(user): CurrentUser,
    if_match: IfMatch,
    Json(body): Json<PostChanges>,
) -> Result<Response, Problem> {
    let (id, editor) = (PostId(id), UserId(user.sub));
    let changes = body.changes(if_match)?;
    let (along, at) = (along(&context, None), now());
    let accepted = api
        .write(Service::Posts, &context, Twice::Unsafe, || api.posts.edit(id, editor, changes.clone(), at, along.clone()))
        .await?;
    let post = accepted.reply.post.as_ref().ok_or_else(super::no_such_post)?;
    let author = api.writer(Service::Posts, &context, &user).await;
    // It is committed: what cannot be looked up now is left out.
    let liked = api.liked_post(&context.committed(), &user, post).await.ok();
    let item = api.post_item(post, author.as_deref());
    let token = [(SEARCH_TOKEN, api.search_token(&super::written(&accepted, id)))];
    let answer = render::answer(StatusCode::OK, item.json(liked), Some(item.stamp.etag(liked)));
    Ok((token, answer).into_response())
}
