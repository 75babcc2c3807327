use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rookery_actors::ids::{SessionId, UserId};
use rookery_actors::users::Rejection;
use rookery_actors::users::password::Password;
use secrecy::SecretString;
use serde::Deserialize;

use super::{written, wrong_password};
use crate::call::Service;
use crate::context::Context;
use crate::extract::{CurrentUser, IfMatch, Json};
use crate::problem::Problem;
use crate::routes::ask::{Twice, along};
use crate::routes::auth::revoke;
use crate::routes::{SEARCH_TOKEN, SharedApi};

/// Proof that it is you who wants to go.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
pub(crate) struct Goodbye {
    #[schema(value_type = String, format = Password)]
    password: SecretString,
}

/// Delete my account
///
/// Your personal data goes everywhere. Posts and comments stay, with `author: null`.
#[utoipa::path(
    delete,
    path = "/api/v1/users/me",
    tag = "Users",
    operation_id = "delete_me",
    request_body = Goodbye,
    params(("if-match" = Option<String>, Header, description = "The entity tag of what you saw; only its version counts.")),
    responses(
        (status = 204, description = "It is gone.", headers(("x-search-token" = String, description = "For `x-search-after`."))),
        (status = 412, description = "It has changed since."),
    ),
    security(("bearer" = []))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    CurrentUser(user): CurrentUser,
    if_match: IfMatch,
    Json(body): Json<Goodbye>,
) -> Result<Response, Problem> {
    let id = UserId(user.sub);
    let password = Password::parse(body.password).map_err(|_| wrong_password(Rejection::WrongCredentials))?;
    let sessions = api.session_ids(&context, id).await?;
    let along = along(&context, None);
    let accepted = api
        .ask(Service::Users, &context, Twice::Unsafe, || {
            api.users.delete_version(id, password.again(), if_match.version(), along.clone())
        })
        .await?
        .map_err(wrong_password)?;
    revoke(&context, sessions.into_iter().chain([SessionId(user.sid)]));
    let token = [(SEARCH_TOKEN, api.search_token(&written(&accepted, id)))];
    Ok((StatusCode::NO_CONTENT, token).into_response())
}
