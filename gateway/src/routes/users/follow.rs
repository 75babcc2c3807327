use axum::extract::State;
use axum::http::StatusCode;
use rookery_actors::ids::UserId;

use super::username;
use crate::call::Service;
use crate::context::Context;
use crate::extract::{CurrentUser, Path};
use crate::problem::Problem;
use crate::routes::SharedApi;
use crate::routes::ask::{Twice, along};

/// Follow somebody
#[utoipa::path(
    put,
    path = "/api/v1/users/{username}/follow",
    tag = "Users",
    operation_id = "follow",
    params(("username" = String, Path, description = "Whom.", example = "ada")),
    responses(
        (status = 204, description = "You follow them, if not already before."),
        (status = 422, description = "It is yourself."),
    ),
    security(("bearer" = []))
)]
pub(crate) async fn begin(
    api: State<SharedApi>,
    context: Context,
    name: Path<String>,
    user: CurrentUser,
) -> Result<StatusCode, Problem> {
    follow(api, context, name, user, true).await
}

/// No longer follow somebody
#[utoipa::path(
    delete,
    path = "/api/v1/users/{username}/follow",
    tag = "Users",
    operation_id = "unfollow",
    params(("username" = String, Path, description = "Whom.", example = "ada")),
    responses(
        (status = 204, description = "You do not follow them (any more)."),
        (status = 422, description = "It is yourself."),
    ),
    security(("bearer" = []))
)]
pub(crate) async fn end(
    api: State<SharedApi>,
    context: Context,
    name: Path<String>,
    user: CurrentUser,
) -> Result<StatusCode, Problem> {
    follow(api, context, name, user, false).await
}

async fn follow(
    State(api): State<SharedApi>,
    context: Context,
    Path(name): Path<String>,
    CurrentUser(user): CurrentUser,
    on: bool,
) -> Result<StatusCode, Problem> {
    let name = username(&name)?;
    let along = along(&context, None);
    api.write(Service::Users, &context, Twice::Safe, || api.users.follow(UserId(user.sub), &name, on, along.clone())).await?;
    Ok(StatusCode::NO_CONTENT)
}
