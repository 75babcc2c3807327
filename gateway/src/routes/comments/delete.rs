use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rookery_actors::ids::{CommentId, PostId, UserId};
use uuid::Uuid;

use super::written;
use crate::call::Service;
use crate::context::Context;
use crate::extract::{CurrentUser, IfMatch, Path};
use crate::problem::Problem;
use crate::routes::ask::{Twice, along};
use crate::routes::{SEARCH_TOKEN, SharedApi, is_moderator, now};

/// Delete a comment
///
/// With replies it stays as a tombstone. A moderator may delete what others wrote.
#[utoipa::path(
    delete,
    path = "/api/v1/posts/{id}/comments/{comment_id}",
    tag = "Comments",
    operation_id = "delete_comment",
    params(
        ("id" = Uuid, Path, description = "The post."),
        ("comment_id" = Uuid, Path, description = "The comment."),
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
    Path((post, comment)): Path<(Uuid, Uuid)>,
    CurrentUser(user): CurrentUser,
    if_match: IfMatch,
) -> Result<Response, Problem> {
    let (post, comment) = (PostId(post), CommentId(comment));
    let (by, moderator, seen) = (UserId(user.sub), is_moderator(&user), if_match.version());
    let (along, at) = (along(&context, None), now());
    // The thread hears of the end of its post by the log, which may take its time.
    api.post(&context, post).await?;
    let accepted = api
        .write(Service::Comments, &context, Twice::Unsafe, || {
            api.comments.delete(post, comment, by, moderator, seen, at, along.clone())
        })
        .await?;
    let token = [(SEARCH_TOKEN, api.search_token(&written(&accepted, post)))];
    Ok((StatusCode::NO_CONTENT, token).into_response())
}
