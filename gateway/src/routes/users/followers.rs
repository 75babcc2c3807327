use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use rookery_actors::ids::UserId;
use rookery_actors::posts;
use rookery_actors::users::{Edges, Profile};

use super::{UserList, UserView};
use crate::call::Service;
use crate::context::Context;
use crate::extract::{Path, Query};
use crate::problem::Problem;
use crate::routes::SharedApi;
use crate::routes::page::PageQuery;
use crate::routes::render::{answer, json};

/// List who follows a user
#[utoipa::path(
    get,
    path = "/api/v1/users/{username}/followers",
    tag = "Users",
    operation_id = "list_followers",
    params(("username" = String, Path, description = "Whose.", example = "ada"), PageQuery),
    responses((status = 200, description = "A page of users, the newest accounts first.", body = UserList))
)]
pub(crate) async fn of(
    api: State<SharedApi>,
    context: Context,
    name: Path<String>,
    asked: Query<PageQuery>,
) -> Result<Response, Problem> {
    list(api, context, name, asked, Edges::Followers).await
}

/// List whom a user follows
#[utoipa::path(
    get,
    path = "/api/v1/users/{username}/following",
    tag = "Users",
    operation_id = "list_following",
    params(("username" = String, Path, description = "Whose.", example = "ada"), PageQuery),
    responses((status = 200, description = "A page of users, the newest accounts first.", body = UserList))
)]
pub(crate) async fn by(
    api: State<SharedApi>,
    context: Context,
    name: Path<String>,
    asked: Query<PageQuery>,
) -> Result<Response, Problem> {
    list(api, context, name, asked, Edges::Following).await
}

async fn list(
    State(api): State<SharedApi>,
    context: Context,
    Path(name): Path<String>,
    Query(asked): Query<PageQuery>,
    edges: Edges,
) -> Result<Response, Problem> {
    let user = api.profile(&context, &name).await?.id;
    let scope = format!("{edges:?} {user}");
    let after: Option<UserId> = asked.after(&api.cursors, &scope)?;
    let (limit, users) = (asked.size(), &api.users);
    let page: posts::Page<Profile, UserId> = api
        .read(Service::Users, &context, |deadline| async move {
            match edges {
                Edges::Followers => users.followers(user, after, limit, deadline).await,
                Edges::Following => users.following(user, after, limit, deadline).await,
            }
        })
        .await?;
    let list = UserList {
        items: page.items.iter().map(UserView::of).collect(),
        next_cursor: page.next.map(|id| api.cursors.seal(&scope, &id)),
    };
    Ok(answer(StatusCode::OK, json(&list), None))
}
