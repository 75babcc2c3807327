use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rookery_actors::comments::{Change, CommentBody};
use rookery_actors::ids::{CommentId, PostId, UserId};
use serde::Deserialize;
use uuid::Uuid;

use super::{CommentView, no_such_comment, written};
use crate::call::Service;
use crate::context::Context;
use crate::extract::{CurrentUser, IfMatch, Json, Path};
use crate::problem::Problem;
use crate::routes::ask::{Twice, along};
use crate::routes::{SEARCH_TOKEN, SharedApi, now, render};

/// The new text.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"body": "It originates nothing, so far."}))]
pub(crate) struct CommentChange {
    /// 1–10,000 characters.
    #[schema(min_length = 1, max_length = 10_000)]
    body: String,
}

/// Edit a comment
#[utoipa::path(
    patch,
    path = "/api/v1/posts/{id}/comments/{comment_id}",
    tag = "Comments",
    operation_id = "edit_comment",
    request_body = CommentChange,
    params(
        ("id" = Uuid, Path, description = "The post."),
        ("comment_id" = Uuid, Path, description = "The comment."),
        ("if-match" = Option<String>, Header, description = "The entity tag of what you saw; only its version counts."),
    ),
    responses(
        (status = 200, description = "The comment now.", body = CommentView, headers(
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
    Path((post, comment)): Path<(Uuid, Uuid)>,
    CurrentUser(user): CurrentUser,
    if_match: IfMatch,
    Json(body): Json<CommentChange>,
) -> Result<Response, Problem> {
    let (post, comment) = (PostId(post), CommentId(comment));
    let change = Change { body: CommentBody::parse(body.body.as_str())?, if_version: if_match.version() };
    let (along, at) = (along(&context, None), now());
    // The thread hears of the end of its post by the log, which may take its time.
    api.post(&context, post).await?;
    let accepted = api
        .write(Service::Comments, &context, Twice::Unsafe, || {
            api.comments.edit(post, comment, UserId(user.sub), change.clone(), at, along.clone())
        })
        .await?;
    let comment = accepted.reply.comment.as_ref().ok_or_else(no_such_comment)?;
    let author = api.writer(Service::Comments, &context, &user).await;
    let item = api.comment_item(comment, author.as_deref());
    // It is committed: what cannot be looked up now is left out.
    let liked = api.liked_comments(&context.committed(), Some(&user), std::slice::from_ref(comment)).await.ok().flatten();
    let liked = liked.map(|liked| liked.contains(&comment.id));
    let token = [(SEARCH_TOKEN, api.search_token(&written(&accepted, post)))];
    let answer = render::answer(StatusCode::OK, item.json(liked), Some(item.stamp.etag(liked)));
    Ok((token, answer).into_response())
}
