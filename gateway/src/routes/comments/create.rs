use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rookery_actors::comments::{CommentBody, Draft, Rejection};
use rookery_actors::ids::{CommentId, PostId, UserId};
use serde::Deserialize;
use uuid::Uuid;

use super::{CommentView, no_such_comment, written};
use crate::call::Service;
use crate::context::Context;
use crate::extract::{CurrentUser, Path};
use crate::problem::Problem;
use crate::routes::ask::{Twice, along};
use crate::routes::keyed::{Keyed, Scoped};
use crate::routes::{SEARCH_TOKEN, SharedApi, now, render};

/// What a new comment is made of.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"body": "It originates nothing.", "parent_id": null}))]
pub(crate) struct NewComment {
    /// 1–10,000 characters.
    #[schema(min_length = 1, max_length = 10_000)]
    body: String,
    /// The comment that it answers; none: the post.
    parent_id: Option<Uuid>,
}

impl Scoped for NewComment {}

/// Write a comment
#[utoipa::path(
    post,
    path = "/api/v1/posts/{id}/comments",
    tag = "Comments",
    operation_id = "write_comment",
    request_body = NewComment,
    params(
        ("id" = Uuid, Path, description = "The post."),
        ("idempotency-key" = Option<String>, Header, description = "Send the same key with a retry."),
    ),
    responses(
        (status = 201, description = "It stands.", body = CommentView, headers(
            ("location" = String, description = "Where it is."),
            ("etag" = String, description = "Its version."),
            ("x-search-token" = String, description = "For `x-search-after`: finds it."),
        )),
        (status = 409, description = "The idempotency key belongs to another request."),
    ),
    security(("bearer" = []))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    Path(post): Path<Uuid>,
    CurrentUser(user): CurrentUser,
    Keyed { body, key }: Keyed<NewComment>,
) -> Result<Response, Problem> {
    let post = PostId(post);
    let text = CommentBody::parse(body.body.as_str())?;
    // A thread knows only that its post is gone, not that it never was.
    api.post(&context, post).await?;
    let draft = Draft { post, author: UserId(user.sub), body: text, parent: body.parent_id.map(CommentId), at: now() };
    let along = along(&context, key);
    let added =
        api.ask(Service::Comments, &context, Twice::keyed(&along), || api.comments.add(draft.clone(), along.clone())).await?;
    let accepted = added.map_err(refused)?;
    let comment = accepted.reply.comment.as_ref().ok_or_else(no_such_comment)?;
    let author = api.writer(Service::Comments, &context, &user).await;
    let item = api.comment_item(comment, author.as_deref());
    let place = format!("/api/v1/posts/{post}/comments/{}", comment.id);
    let headers = [
        (header::LOCATION, HeaderValue::try_from(place).expect("ids are a header value")),
        (SEARCH_TOKEN, api.search_token(&written(&accepted, post))),
    ];
    // Nobody has liked it yet.
    let liked = Some(false);
    let answer = render::answer(StatusCode::CREATED, item.json(liked), Some(item.stamp.etag(liked)));
    Ok((headers, answer).into_response())
}

/// Here the deleted comment is the one to be answered: the body names it, not the path.
fn refused(rejection: Rejection) -> Problem {
    match rejection {
        Rejection::Deleted => Problem::field("parent_id", "deleted", "the comment to be answered is deleted"),
        rejection => rejection.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem;

    #[test]
    fn a_deleted_parent_is_a_wrong_field_and_a_closed_thread_a_404() {
        assert_eq!(refused(Rejection::Deleted).kind, &problem::INVALID);
        assert_eq!(refused(Rejection::Closed).kind, &problem::NOT_FOUND);
    }
}
