use axum::extract::State;
use axum::response::Response;
use rookery_actors::ids::UserId;

use super::{UserView, account_etag, no_such_user};
use crate::call::Service;
use crate::context::Context;
use crate::extract::{CurrentUser, IfNoneMatch};
use crate::problem::Problem;
use crate::routes::render::{json, single};
use crate::routes::{Api, SharedApi};

/// Read my account
#[utoipa::path(
    get,
    path = "/api/v1/users/me",
    tag = "Users",
    operation_id = "get_me",
    params(("if-none-match" = Option<String>, Header, description = "The entity tag that you have.")),
    responses(
        (status = 200, description = "Your account, `email` and `roles` included.", body = UserView,
            headers(("etag" = String, description = "Version, a dot, and a hash of what else the answer depends on."))),
        (status = 304, description = "You have it already."),
    ),
    security(("bearer" = []))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    CurrentUser(user): CurrentUser,
    have: IfNoneMatch,
) -> Result<Response, Problem> {
    api.own_account(&context, UserId(user.sub), &have).await
}

impl Api {
    /// A user's account, as an answer to themselves.
    pub(super) async fn own_account(&self, context: &Context, user: UserId, have: &IfNoneMatch) -> Result<Response, Problem> {
        let account = self.read(Service::Users, context, |deadline| self.users.account(user, deadline)).await?;
        let account = account.ok_or_else(no_such_user)?;
        Ok(single(have, account_etag(&account), || json(&UserView::own(&account))))
    }
}
