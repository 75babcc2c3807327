use axum::extract::State;
use axum::response::Response;

use super::{UserView, profile_etag};
use crate::context::Context;
use crate::extract::{IfNoneMatch, Path};
use crate::problem::Problem;
use crate::routes::SharedApi;
use crate::routes::render::{json, single};

/// Read a profile
#[utoipa::path(
    get,
    path = "/api/v1/users/{username}",
    tag = "Users",
    operation_id = "get_user",
    params(
        ("username" = String, Path, description = "In any case.", example = "ada"),
        ("if-none-match" = Option<String>, Header, description = "The entity tag that you have."),
    ),
    responses(
        (status = 200, description = "The profile.", body = UserView,
            headers(("etag" = String, description = "Version, a dot, and a hash of what else the answer depends on."))),
        (status = 304, description = "You have it already."),
    )
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    Path(name): Path<String>,
    have: IfNoneMatch,
) -> Result<Response, Problem> {
    let profile = api.profile(&context, &name).await?;
    Ok(single(&have, profile_etag(&profile), || json(&UserView::of(&profile))))
}
