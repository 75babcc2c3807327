use axum::extract::State;
use axum::http::StatusCode;
use jiff::Timestamp;
use rookery_actors::ids::{SessionId, UserId};
use rookery_actors::users::SessionData;
use serde::Serialize;
use uuid::Uuid;

use super::revoke;
use crate::call::Service;
use crate::context::Context;
use crate::extract::{CurrentUser, Json, Path};
use crate::problem::Problem;
use crate::routes::SharedApi;
use crate::routes::ask::{Twice, along};

/// A place where you are logged in.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Session)]
pub(crate) struct SessionView {
    id: Uuid,
    /// The login.
    created_at: Timestamp,
    /// The last refresh, or the login.
    last_used_at: Timestamp,
    /// From here on it needs a new login.
    expires_at: Timestamp,
    /// What the client called itself.
    user_agent: Option<String>,
    /// Whether it is the one that asks.
    current: bool,
}

/// Where you are logged in.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct SessionList {
    items: Vec<SessionView>,
    /// Always none: all of them are here.
    next_cursor: Option<String>,
}

impl SessionView {
    pub(crate) fn of(session: SessionData, asking: Uuid) -> Self {
        let SessionData { id, created_at, last_used_at, expires_at, user_agent } = session;
        Self { id: id.0, created_at, last_used_at, expires_at, user_agent, current: id.0 == asking }
    }
}

/// List my sessions
#[utoipa::path(
    get,
    path = "/api/v1/auth/sessions",
    tag = "Auth",
    operation_id = "list_sessions",
    responses((status = 200, description = "The last used first.", body = SessionList)),
    security(("bearer" = []))
)]
pub(crate) async fn list(
    State(api): State<SharedApi>,
    context: Context,
    CurrentUser(user): CurrentUser,
) -> Result<Json<SessionList>, Problem> {
    let sessions = api.read(Service::Users, &context, |deadline| api.users.sessions(UserId(user.sub), deadline)).await?;
    let items = sessions.into_iter().map(|session| SessionView::of(session, user.sid)).collect();
    Ok(Json(SessionList { items, next_cursor: None }))
}

/// End one of my sessions
#[utoipa::path(
    delete,
    path = "/api/v1/auth/sessions/{id}",
    tag = "Auth",
    operation_id = "end_session",
    params(("id" = Uuid, Path, description = "The session.")),
    responses((status = 204, description = "Its tokens are no longer good.")),
    security(("bearer" = []))
)]
pub(crate) async fn end(
    State(api): State<SharedApi>,
    context: Context,
    Path(id): Path<Uuid>,
    CurrentUser(user): CurrentUser,
) -> Result<StatusCode, Problem> {
    let session = SessionId(id);
    let along = along(&context, None);
    api.write(Service::Users, &context, Twice::Unsafe, || api.users.close_session(UserId(user.sub), session, along.clone()))
        .await?;
    revoke(&context, [session]);
    Ok(StatusCode::NO_CONTENT)
}
