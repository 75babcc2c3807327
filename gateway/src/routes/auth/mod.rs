//! Coming in, staying in, going out.

mod login;
mod logout;
mod refresh;
mod register;
mod sessions;

pub(crate) use self::sessions::SessionView;

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rookery_actors::ids::{SessionId, UserId};
use rookery_actors::users::LoggedIn;
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::users::UserView;
use super::{Api, SharedApi};
use crate::auth;
use crate::call::Service;
use crate::context::{self, Context};
use crate::problem::{self, Problem};

pub(super) fn routes() -> OpenApiRouter<SharedApi> {
    OpenApiRouter::new()
        .routes(routes!(register::handle))
        .routes(routes!(login::handle))
        .routes(routes!(refresh::handle))
        .routes(routes!(logout::one))
        .routes(routes!(logout::all))
        .routes(routes!(sessions::list))
        .routes(routes!(sessions::end))
}

/// Who came in, and the tokens that prove it.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct Tokens<'a> {
    user: UserView<'a>,
    /// For `Authorization: Bearer`.
    access_token: String,
    /// For `/api/v1/auth/refresh`, once. Keep it secret.
    refresh_token: &'a str,
    #[schema(example = "Bearer")]
    token_type: &'static str,
    /// How long the access token is valid, in seconds.
    #[schema(example = 900)]
    expires_in: u32,
}

impl Api {
    /// The answer to who has just proved who they are.
    fn tokens(&self, status: StatusCode, who: &LoggedIn) -> Result<Response, Problem> {
        let issued = self.issuer.issue(&who.account, who.session, auth::now_s());
        let access_token = issued.map_err(|error| {
            tracing::error!(%error, "an access token could not be signed");
            Problem::new(&problem::INTERNAL, "the access token could not be signed")
        })?;
        let tokens = Tokens {
            user: UserView::own(&who.account),
            access_token,
            refresh_token: who.refresh_token.expose(),
            token_type: "Bearer",
            expires_in: self.issuer.life_s(),
        };
        // RFC 6749, 5.1: no cache keeps tokens.
        let headers = [(header::CACHE_CONTROL, "no-store")];
        Ok((status, headers, axum::Json(tokens)).into_response())
    }

    /// The sessions of a user, so that this gateway can refuse them the moment they have ended; the others hear of it by
    /// the log.
    pub(crate) async fn session_ids(&self, context: &Context, user: UserId) -> Result<Vec<SessionId>, Problem> {
        let sessions = self.read(Service::Users, context, |deadline| self.users.sessions(user, deadline)).await?;
        Ok(sessions.into_iter().map(|session| session.id).collect())
    }
}

/// Refuses the access tokens of sessions from now on.
pub(crate) fn revoke(context: &Context, sessions: impl IntoIterator<Item = SessionId>) {
    for session in sessions {
        context.edge.verifier.revoked().revoke(session.0, auth::now_s());
    }
}

/// What a client calls itself.
fn user_agent(headers: &HeaderMap) -> Option<&str> {
    context::only(headers, &header::USER_AGENT)?.to_str().ok()
}
