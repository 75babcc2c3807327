use axum::extract::State;
use axum::http::StatusCode;
use rookery_actors::ids::{SessionId, UserId};

use super::revoke;
use crate::call::Service;
use crate::context::Context;
use crate::extract::CurrentUser;
use crate::problem::Problem;
use crate::routes::SharedApi;
use crate::routes::ask::{Twice, along};

/// Log out
///
/// Ends the session of the access token, and so the token itself: a retry is answered with 401, also under an
/// `Idempotency-Key`, and that says that it is done.
#[utoipa::path(
    post,
    path = "/api/v1/auth/logout",
    tag = "Auth",
    operation_id = "logout",
    responses((status = 204, description = "The session's tokens are no longer good, on any node.")),
    security(("bearer" = []))
)]
pub(crate) async fn one(
    State(api): State<SharedApi>,
    context: Context,
    CurrentUser(user): CurrentUser,
) -> Result<StatusCode, Problem> {
    let session = SessionId(user.sid);
    let along = along(&context, None);
    api.write(Service::Users, &context, Twice::Safe, || api.users.logout(UserId(user.sub), session, along.clone())).await?;
    revoke(&context, [session]);
    Ok(StatusCode::NO_CONTENT)
}

/// Log out everywhere
///
/// Ends all sessions of the user, that of the access token included: a retry is answered with 401, also under an
/// `Idempotency-Key`, and that says that it is done.
#[utoipa::path(
    post,
    path = "/api/v1/auth/logout-all",
    tag = "Auth",
    operation_id = "logout_all",
    responses((status = 204, description = "No session's tokens are good any longer.")),
    security(("bearer" = []))
)]
pub(crate) async fn all(
    State(api): State<SharedApi>,
    context: Context,
    CurrentUser(user): CurrentUser,
) -> Result<StatusCode, Problem> {
    let id = UserId(user.sub);
    let sessions = api.session_ids(&context, id).await?;
    let along = along(&context, None);
    api.write(Service::Users, &context, Twice::Safe, || api.users.logout_all(id, along.clone())).await?;
    revoke(&context, sessions.into_iter().chain([SessionId(user.sid)]));
    Ok(StatusCode::NO_CONTENT)
}
