use axum::extract::State;
use axum::http::StatusCode;
use rookery_actors::ids::{CommentId, PostId, UserId};
use uuid::Uuid;

use crate::call::Service;
use crate::context::Context;
use crate::extract::{CurrentUser, Path};
use crate::problem::Problem;
use crate::routes::SharedApi;
use crate::routes::ask::{Twice, along};

/// Like a comment
#[utoipa::path(
    put,
    path = "/api/v1/posts/{id}/comments/{comment_id}/like",
    tag = "Comments",
    operation_id = "like_comment",
    params(("id" = Uuid, Path, description = "The post."), ("comment_id" = Uuid, Path, description = "The comment.")),
    responses((status = 204, description = "You like it, if not already before.")),
    security(("bearer" = []))
)]
pub(crate) async fn set(
    api: State<SharedApi>,
    context: Context,
    ids: Path<(Uuid, Uuid)>,
    user: CurrentUser,
) -> Result<StatusCode, Problem> {
    like(api, context, ids, user, true).await
}

/// No longer like a comment
#[utoipa::path(
    delete,
    path = "/api/v1/posts/{id}/comments/{comment_id}/like",
    tag = "Comments",
    operation_id = "unlike_comment",
    params(("id" = Uuid, Path, description = "The post."), ("comment_id" = Uuid, Path, description = "The comment.")),
    responses((status = 204, description = "You do not like it (any more).")),
    security(("bearer" = []))
)]
pub(crate) async fn take_back(
    api: State<SharedApi>,
    context: Context,
    ids: Path<(Uuid, Uuid)>,
    user: CurrentUser,
) -> Result<StatusCode, Problem> {
    like(api, context, ids, user, false).await
}

async fn like(
    State(api): State<SharedApi>,
    context: Context,
    Path((post, comment)): Path<(Uuid, Uuid)>,
    CurrentUser(user): CurrentUser,
    on: bool,
) -> Result<StatusCode, Problem> {
    let along = along(&context, None);
    let (post, comment) = (PostId(post), CommentId(comment));
    // The thread hears of the end of its post by the log, which may take its time.
    api.post(&context, post).await?;
    api.write(Service::Comments, &context, Twice::Safe, || api.comments.like(post, comment, UserId(user.sub), on, along.clone()))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
