use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use rookery_actors::users::Rejection;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::Tokens;
use crate::call::Service;
use crate::context::Context;
use crate::problem::Problem;
use crate::routes::ask::{Twice, along};
use crate::routes::keyed::{Keyed, Scope, Scoped};
use crate::routes::{Api, SharedApi};

/// The token to be spent.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
pub(crate) struct Refresh {
    #[schema(value_type = String)]
    refresh_token: SecretString,
}

impl Scoped for Refresh {
    fn scope(&self, api: &Api) -> Scope {
        // What is no token of ours is refused before any key is looked at.
        api.users.session_of(self.refresh_token.expose_secret()).map_or(Scope::Route, Scope::Session)
    }
}

/// Refresh the tokens
///
/// The refresh token is spent. Using a spent one again ends the whole session, since one of the two who have it is a thief.
/// A retry under its key is no reuse, whatever bearer comes with it; the refresh token of the first answer is spent then.
#[utoipa::path(
    post,
    path = "/api/v1/auth/refresh",
    tag = "Auth",
    operation_id = "refresh",
    request_body = Refresh,
    params(("idempotency-key" = Option<String>, Header, description = "Send the same key with a retry: then it is no reuse.")),
    responses(
        (status = 200, description = "A new pair.", body = Tokens),
        (status = 401, description = "The token is invalid, expired or spent."),
        (status = 409, description = "The idempotency key belongs to another request."),
    )
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    Keyed { body, key }: Keyed<Refresh>,
) -> Result<Response, Problem> {
    let along = along(&context, key);
    let refreshed = api
        .ask(Service::Users, &context, Twice::keyed(&along), || {
            api.users.refresh(body.refresh_token.expose_secret(), along.clone())
        })
        .await?;
    let accepted = refreshed.map_err(|rejection| match rejection {
        // A token of a session that has ended is no longer one.
        Rejection::NoSuchSession | Rejection::NotFound => Rejection::InvalidToken,
        rejection => rejection,
    })?;
    api.tokens(StatusCode::OK, &accepted.reply)
}
