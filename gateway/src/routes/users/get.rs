use axum::extract::State;
use axum::response::Response;

use super::{UserView, profile_etag};
use crate::context::Context;
use crate::extract::{IfNoneMatch, MaybeUser, Path};
use crate::problem::Problem;
use crate::routes::SharedApi;
use crate::routes::render::{json, single};

/// Read a profile
///
/// With your token your own also says `email` and `roles`.
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
    ),
    security((), ("bearer" = []))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    Path(name): Path<String>,
    MaybeUser(user): MaybeUser,
    have: IfNoneMatch,
) -> Result<Response, Problem> {
    let profile = api.profile(&context, &name).await?;
    if user.is_some_and(|user| user.sub == profile.id.0) {
        return api.own_account(&context, profile.id, &have).await;
    }
    Ok(single(&have, profile_etag(&profile), || json(&UserView::of(&profile))))
}
