use axum::extract::State;
use axum::http::StatusCode;
use rookery_actors::ids::{SessionId, UserId};
use rookery_actors::users::Rejection;
use rookery_actors::users::password::Password;
use secrecy::SecretString;
use serde::Deserialize;

use super::wrong_password;
use crate::call::Service;
use crate::context::Context;
use crate::extract::CurrentUser;
use crate::problem::Problem;
use crate::routes::SharedApi;
use crate::routes::ask::{Twice, along};
use crate::routes::auth::revoke;
use crate::routes::fields::Fields;
use crate::routes::keyed::{Keyed, Scoped};

/// The old password and the new one.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
pub(crate) struct PasswordChange {
    #[schema(value_type = String, format = Password)]
    current_password: SecretString,
    /// 10–128 bytes.
    #[schema(value_type = String, format = Password)]
    new_password: SecretString,
}

impl Scoped for PasswordChange {}

/// Change my password
///
/// Ends all other sessions.
#[utoipa::path(
    post,
    path = "/api/v1/users/me/password",
    tag = "Users",
    operation_id = "change_password",
    request_body = PasswordChange,
    params(("idempotency-key" = Option<String>, Header, description = "Send the same key with a retry.")),
    responses(
        (status = 204, description = "It is changed."),
        (status = 401, description = "There is no valid access token, or the password is not your current one."),
        (status = 409, description = "The idempotency key belongs to another request."),
    ),
    security(("bearer" = []))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    CurrentUser(user): CurrentUser,
    Keyed { body, key }: Keyed<PasswordChange>,
) -> Result<StatusCode, Problem> {
    let (id, this) = (UserId(user.sub), SessionId(user.sid));
    let mut fields = Fields::default();
    let new = fields.take("new_password", Password::parse(body.new_password));
    fields.check()?;
    let new = new.expect("fields without errors have values");
    let current = Password::parse(body.current_password).map_err(|_| wrong_password(Rejection::WrongCredentials))?;
    let sessions = api.session_ids(&context, id).await?;
    let along = along(&context, key);
    api.ask(Service::Users, &context, Twice::keyed(&along), || {
        api.users.change_password(id, current.again(), new.again(), Some(this), along.clone())
    })
    .await?
    .map_err(wrong_password)?;
    // A retry ended none: those of today were opened with the new password. Where they cannot be read, the log tells.
    let open = api.session_ids(&context.committed(), id).await.unwrap_or_else(|_| sessions.clone());
    revoke(&context, sessions.into_iter().filter(|session| !open.contains(session)));
    Ok(StatusCode::NO_CONTENT)
}
