use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use rookery_actors::ids::UserId;
use rookery_actors::users::PersonalData;
use serde::Serialize;
use uuid::Uuid;

use super::UserView;
use crate::call::Service;
use crate::context::Context;
use crate::extract::CurrentUser;
use crate::problem::Problem;
use crate::routes::SharedApi;
use crate::routes::ask::Twice;
use crate::routes::auth::SessionView;
use crate::routes::render::{answer, json};

/// A copy of your personal data. What you have written is public and in the lists of your posts and comments.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = PersonalData)]
pub(crate) struct ExportView<'a> {
    user: UserView<'a>,
    /// When the profile last changed.
    updated_at: Timestamp,
    /// Where you are logged in.
    sessions: Vec<SessionView>,
    /// Whom you follow; beyond 10,000 see the list of `following`.
    following: Vec<FollowedView>,
    /// Where your posts are.
    posts_url: String,
    /// Where your comments are.
    comments_url: String,
}

/// Somebody whom you follow.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Followed)]
pub(crate) struct FollowedView {
    user_id: Uuid,
    since: Timestamp,
}

/// Take a copy of my personal data
#[utoipa::path(
    get,
    path = "/api/v1/users/me/export",
    tag = "Users",
    operation_id = "export_me",
    responses((status = 200, description = "What is stored about you.", body = ExportView)),
    security(("bearer" = []))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    CurrentUser(user): CurrentUser,
) -> Result<Response, Problem> {
    let id = UserId(user.sub);
    let data = api.write(Service::Users, &context, Twice::Safe, || api.users.personal_data(id, context.deadline.into())).await?;
    let PersonalData { account, sessions, following } = data;
    let name = &account.profile.username;
    let copy = ExportView {
        user: UserView::own(&account),
        updated_at: account.profile.updated_at,
        sessions: sessions.into_iter().map(|session| SessionView::of(session, user.sid)).collect(),
        following: following.into_iter().map(|edge| FollowedView { user_id: edge.user.0, since: edge.at }).collect(),
        posts_url: format!("/api/v1/users/{name}/posts"),
        comments_url: format!("/api/v1/users/{name}/comments"),
    };
    let headers =
        [(header::CONTENT_DISPOSITION, "attachment; filename=\"rookery-export.json\""), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, answer(StatusCode::OK, json(&copy), None)).into_response())
}
