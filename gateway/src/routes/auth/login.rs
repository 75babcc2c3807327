use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use rookery_actors::users::Rejection;
use rookery_actors::users::password::Password;
use secrecy::SecretString;
use serde::Deserialize;

use super::{Tokens, user_agent};
use crate::call::Service;
use crate::context::Context;
use crate::extract::Json;
use crate::problem::Problem;
use crate::routes::SharedApi;
use crate::routes::ask::{Twice, along};

/// Who logs in.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"login": "ada", "password": "poetical science"}))]
pub(crate) struct Login {
    /// Username or e-mail address.
    login: String,
    #[schema(value_type = String, format = Password)]
    password: SecretString,
}

/// Log in
///
/// Whether name or password was wrong is not said, and cannot be measured.
#[utoipa::path(
    post,
    path = "/api/v1/auth/login",
    tag = "Auth",
    operation_id = "login",
    request_body = Login,
    responses(
        (status = 200, description = "You are in.", body = Tokens),
        (status = 401, description = "The name or the password is wrong."),
    )
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    headers: HeaderMap,
    Json(body): Json<Login>,
) -> Result<Response, Problem> {
    // What is no password is nobody's password. This tells nothing about the user: none was looked for.
    let password = Password::parse(body.password).map_err(|_| Rejection::WrongCredentials)?;
    let along = along(&context, None);
    let accepted = api
        .write(Service::Users, &context, Twice::Unsafe, || {
            api.users.login(&body.login, password.again(), user_agent(&headers), along.clone())
        })
        .await?;
    api.tokens(StatusCode::OK, &accepted.reply)
}
