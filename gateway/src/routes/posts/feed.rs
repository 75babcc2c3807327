use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use rookery_actors::ids::{PostId, UserId};

use super::PostList;
use crate::call::Service;
use crate::context::Context;
use crate::extract::{CurrentUser, Query};
use crate::problem::Problem;
use crate::routes::page::PageQuery;
use crate::routes::{SharedApi, render};

/// Read my feed
///
/// The newest posts of whom I follow.
#[utoipa::path(
    get,
    path = "/api/v1/feed",
    tag = "Posts",
    operation_id = "get_feed",
    params(PageQuery),
    responses((status = 200, description = "A page of posts.", body = PostList)),
    security(("bearer" = []))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    CurrentUser(user): CurrentUser,
    Query(asked): Query<PageQuery>,
) -> Result<Response, Problem> {
    let reader = UserId(user.sub);
    let scope = format!("feed {reader}");
    let after: Option<PostId> = asked.after(&api.cursors, &scope)?;
    let (seen, next) =
        api.read(Service::Posts, &context, |deadline| api.posts.feed(reader, after, asked.size(), deadline)).await?;
    let next = next.map(|id| api.cursors.seal(&scope, &id));
    let json = api.post_list(&context, &seen.posts, Some(seen.liked), next).await?;
    Ok(render::answer(StatusCode::OK, json, None))
}
