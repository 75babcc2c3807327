use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rookery_actors::ids::UserId;
use rookery_actors::users::names::{AvatarUrl, Bio, DisplayName};
use rookery_actors::users::{Changes, Edited};
use serde::Deserialize;

use super::{UserView, account_etag, written};
use crate::call::Service;
use crate::context::Context;
use crate::extract::{CurrentUser, IfMatch, Json};
use crate::problem::Problem;
use crate::routes::ask::{Twice, along};
use crate::routes::fields::{Fields, given, nullable};
use crate::routes::render::{answer, json};
use crate::routes::{SEARCH_TOKEN, SharedApi};

/// What changes; what is left out stays.
#[derive(Debug, Deserialize, garde::Validate, utoipa::ToSchema)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"display_name": "Ada Lovelace", "avatar_url": null}))]
pub(crate) struct ProfileChanges {
    /// Up to 50 characters on one line.
    #[serde(default, deserialize_with = "given")]
    #[schema(max_length = 50, nullable = false)]
    display_name: Option<String>,
    /// Up to 500 characters.
    #[serde(default, deserialize_with = "given")]
    #[schema(max_length = 500, nullable = false)]
    bio: Option<String>,
    /// An `http` or `https` URL; null takes the picture away.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, max_length = 500)]
    avatar_url: Option<Option<String>>,
}

impl ProfileChanges {
    fn changes(&self, if_match: IfMatch) -> Result<Changes, Problem> {
        let mut fields = Fields::default();
        let display_name = fields.take_if("display_name", self.display_name.as_deref().map(DisplayName::parse));
        let bio = fields.take_if("bio", self.bio.as_deref().map(Bio::parse));
        let avatar_url = self.avatar_url.as_ref().map(|url| url.as_deref().map(AvatarUrl::parse).transpose());
        let avatar_url = fields.take_if("avatar_url", avatar_url);
        fields.check()?;
        Ok(Changes { display_name, bio, avatar_url, if_version: if_match.version() })
    }
}

/// Edit my profile
#[utoipa::path(
    patch,
    path = "/api/v1/users/me",
    tag = "Users",
    operation_id = "edit_me",
    request_body = ProfileChanges,
    params(("if-match" = Option<String>, Header, description = "The entity tag of what you saw; only its version counts.")),
    responses(
        (status = 200, description = "Your account now.", body = UserView, headers(
            ("etag" = String, description = "Its version; left out if it could not be read after the change."),
            ("x-search-token" = String, description = "For `x-search-after`."),
        )),
        (status = 412, description = "It has changed since."),
    ),
    security(("bearer" = []))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    CurrentUser(user): CurrentUser,
    if_match: IfMatch,
    Json(body): Json<ProfileChanges>,
) -> Result<Response, Problem> {
    let id = UserId(user.sub);
    let changes = body.changes(if_match)?;
    let along = along(&context, None);
    let accepted =
        api.write(Service::Users, &context, Twice::Unsafe, || api.users.edit(id, changes.clone(), along.clone())).await?;
    let Edited { account, is_current } = &accepted.reply;
    let token = [(SEARCH_TOKEN, api.search_token(&written(&accepted, id)))];
    // A version that is not known matches no later edit.
    let etag = is_current.then(|| account_etag(account));
    let answer = answer(StatusCode::OK, json(&UserView::own(account)), etag);
    Ok((token, answer).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(body: &str) -> Changes {
        serde_json::from_str::<ProfileChanges>(body).unwrap().changes(IfMatch::Any).unwrap()
    }

    #[test]
    fn null_takes_the_picture_away_and_absence_leaves_it() {
        assert_eq!(changes(r#"{"avatar_url": null}"#).avatar_url, Some(None));
        assert_eq!(changes("{}").avatar_url, None);
        let set = changes(r#"{"avatar_url": "https://example.org/a.png"}"#).avatar_url;
        assert!(matches!(set, Some(Some(_))));
    }
}
