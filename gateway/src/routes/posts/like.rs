use axum::extract::State;
use axum::http::StatusCode;
use rookery_actors::ids::{PostId, UserId};
use uuid::Uuid;

use crate::call::Service;
use crate::context::Context;
use crate::extract::{CurrentUser, Path};
use crate::problem::Problem;
use crate::routes::SharedApi;
use crate::routes::ask::{Twice, along};

/// Like a post
#[utoipa::path(
    put,
    path = "/api/v1/posts/{id}/like",
    tag = "Posts",
    operation_id = "like_post",
    params(("id" = Uuid, Path, description = "The post.")),
    responses((status = 204, description = "You like it, if not already before.")),
    security(("bearer" = []))
)]
pub(crate) async fn set(
    api: State<SharedApi>,
    context: Context,
    id: Path<Uuid>,
    user: CurrentUser,
) -> Result<StatusCode, Problem> {
    like(api, context, id, user, true).await
}

/// No longer like a post
#[utoipa::path(
    delete,
    path = "/api/v1/posts/{id}/like",
    tag = "Posts",
    operation_id = "unlike_post",
    params(("id" = Uuid, Path, description = "The post.")),
    responses((status = 204, description = "You do not like it (any more).")),
    security(("bearer" = []))
)]
pub(crate) async fn take_back(
    api: State<SharedApi>,
    context: Context,
    id: Path<Uuid>,
    user: CurrentUser,
) -> Result<StatusCode, Problem> {
    like(api, context, id, user, false).await
}

async fn like(
    State(api): State<SharedApi>,
    context: Context,
    Path(id): Path<Uuid>,
    CurrentUser(user): CurrentUser,
    on: bool,
) -> Result<StatusCode, Problem> {
    let along = along(&context, None);
    api.write(Service::Posts, &context, Twice::Safe, || api.posts.like(PostId(id), UserId(user.sub), on, along.clone())).await?;
    Ok(StatusCode::NO_CONTENT)
}
