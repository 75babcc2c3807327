use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rookery_actors::ids::{PostId, UserId};
use uuid::Uuid;

use crate::call::Service;
use crate::context::Context;
use crate::extract::{CurrentUser, IfMatch, Path};
use crate::problem::Problem;
use crate::routes::ask::{Twice, along};
use crate::routes::{SEARCH_TOKEN, SharedApi, is_moderator};

/// Delete a post
///
/// Its comments go with it. A moderator may delete what others wrote.
#[utoipa::path(
    delete,
    path = "/api/v1/posts/{id}",
    tag = "Posts",
    operation_id = "delete_post",
    params(
        ("id" = Uuid, Path, description = "The post."),
        ("if-match" = Option<String>, Header, description = "The entity tag of what you saw; only its version counts."),
    ),
    responses(
        (status = 204, description = "It is gone.", headers(("x-search-token" = String, description = "For `x-search-after`."))),
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
) -> Result<Response, Problem> {
    let (id, by, moderator) = (PostId(id), UserId(user.sub), is_moderator(&user));
    let along = along(&context, None);
    let accepted = api
        .write(Service::Posts, &context, Twice::Unsafe, || api.posts.delete(id, by, moderator, if_match.version(), along.clone()))
        .await?;
    let token = [(SEARCH_TOKEN, api.search_token(&super::written(&accepted, id)))];
    Ok((StatusCode::NO_CONTENT, token).into_response())
}
