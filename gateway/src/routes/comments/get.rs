use axum::extract::State;
use axum::response::Response;
use rookery_actors::ids::{CommentId, PostId};
use uuid::Uuid;

use super::{CommentView, no_such_comment};
use crate::call::Service;
use crate::context::Context;
use crate::extract::{IfNoneMatch, MaybeUser, Path};
use crate::problem::Problem;
use crate::routes::{SharedApi, render};

/// Read a comment
#[utoipa::path(
    get,
    path = "/api/v1/posts/{id}/comments/{comment_id}",
    tag = "Comments",
    operation_id = "get_comment",
    params(
        ("id" = Uuid, Path, description = "The post."),
        ("comment_id" = Uuid, Path, description = "The comment."),
        ("if-none-match" = Option<String>, Header, description = "The entity tag that you have."),
    ),
    responses(
        (status = 200, description = "The comment, or its tombstone.", body = CommentView,
            headers(("etag" = String, description = "Version, a dot, and a hash of what else the answer depends on."))),
        (status = 304, description = "You have it already."),
    ),
    security((), ("bearer" = []))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    Path((post, comment)): Path<(Uuid, Uuid)>,
    MaybeUser(user): MaybeUser,
    have: IfNoneMatch,
) -> Result<Response, Problem> {
    let (post, comment) = (PostId(post), CommentId(comment));
    // The thread hears of the end of its post by the log, which may take its time.
    api.post(&context, post).await?;
    let found = api.read(Service::Comments, &context, |deadline| api.comments.get(post, comment, deadline)).await?;
    let comment = found.ok_or_else(no_such_comment)?;
    let (item, liked) = api.one_comment(&context, user.as_deref(), &comment).await?;
    Ok(render::single(&have, item.stamp.etag(liked), || item.json(liked)))
}
