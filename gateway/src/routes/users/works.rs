use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use rookery_actors::ids::CommentId;

use crate::call::Service;
use crate::context::Context;
use crate::extract::{MaybeUser, Path, Query};
use crate::problem::Problem;
use crate::routes::SharedApi;
use crate::routes::comments::CommentList;
use crate::routes::page::PageQuery;
use crate::routes::posts::{PostList, by_author};
use crate::routes::render;

/// List a user's posts
#[utoipa::path(
    get,
    path = "/api/v1/users/{username}/posts",
    tag = "Users",
    operation_id = "list_user_posts",
    params(("username" = String, Path, description = "Whose.", example = "ada"), PageQuery),
    responses((status = 200, description = "A page of posts, the newest first.", body = PostList)),
    security((), ("bearer" = []))
)]
pub(crate) async fn posts(
    State(api): State<SharedApi>,
    context: Context,
    Path(name): Path<String>,
    MaybeUser(user): MaybeUser,
    Query(asked): Query<PageQuery>,
) -> Result<Response, Problem> {
    let author = api.profile(&context, &name).await?.id;
    by_author(&api, &context, user.as_deref(), author, asked.size(), asked.cursor.as_deref()).await
}

/// List a user's comments
#[utoipa::path(
    get,
    path = "/api/v1/users/{username}/comments",
    tag = "Users",
    operation_id = "list_user_comments",
    params(("username" = String, Path, description = "Whose.", example = "ada"), PageQuery),
    responses((status = 200, description = "A page of comments, the newest first.", body = CommentList)),
    security((), ("bearer" = []))
)]
pub(crate) async fn comments(
    State(api): State<SharedApi>,
    context: Context,
    Path(name): Path<String>,
    MaybeUser(user): MaybeUser,
    Query(asked): Query<PageQuery>,
) -> Result<Response, Problem> {
    let author = api.profile(&context, &name).await?.id;
    let scope = format!("comments by {author}");
    let after: Option<CommentId> = asked.after(&api.cursors, &scope)?;
    let page = api.read(Service::Comments, &context, |_| api.comments.by_author(author, after, asked.size())).await?;
    let next = page.next.map(|id| api.cursors.seal(&scope, &id));
    let liked = api.liked_comments(&context, user.as_deref(), &page.items).await?;
    let json = api.comment_list(&context, liked, &page.items, next).await?;
    Ok(render::answer(StatusCode::OK, json, None))
}
