//! People: profiles, one's own account, who follows whom.

mod account;
mod delete;
mod edit;
mod export;
mod follow;
mod followers;
mod get;
mod password;
mod works;

use axum::http::HeaderValue;
use jiff::Timestamp;
use rookery_actors::event::Topic;
use rookery_actors::ids::UserId;
use rookery_actors::runtime::Accepted;
use rookery_actors::search::SearchToken;
use rookery_actors::users::names::Username;
use rookery_actors::users::{Account, Profile, Rejection};
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::render::etag;
use super::{Api, SharedApi};
use crate::call::Service;
use crate::context::Context;
use crate::problem::{self, Problem};

pub(super) fn routes() -> OpenApiRouter<SharedApi> {
    OpenApiRouter::new()
        .routes(routes!(account::handle, edit::handle, delete::handle))
        .routes(routes!(password::handle))
        .routes(routes!(export::handle))
        .routes(routes!(get::handle))
        .routes(routes!(works::posts))
        .routes(routes!(works::comments))
        .routes(routes!(follow::begin, follow::end))
        .routes(routes!(followers::of))
        .routes(routes!(followers::by))
}

/// A user.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = User)]
pub(crate) struct UserView<'a> {
    id: Uuid,
    #[schema(example = "ada")]
    username: &'a str,
    #[schema(example = "Ada Lovelace")]
    display_name: &'a str,
    #[schema(example = "Notes on the Analytical Engine.")]
    bio: &'a str,
    avatar_url: Option<&'a str>,
    created_at: Timestamp,
    post_count: i64,
    comment_count: i64,
    follower_count: i64,
    following_count: i64,
    /// To yourself only.
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<&'a str>,
    /// To yourself only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, example = json!(["moderator"]))]
    roles: Option<Vec<&'static str>>,
}

/// A page of users.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = UserList)]
pub(crate) struct UserList<'a> {
    pub(crate) items: Vec<UserView<'a>>,
    /// Ask with it for the next page; none: this was the last.
    pub(crate) next_cursor: Option<String>,
}

impl<'a> UserView<'a> {
    /// What everybody sees.
    pub(crate) fn of(profile: &'a Profile) -> Self {
        Self {
            id: profile.id.0,
            username: profile.username.as_str(),
            display_name: profile.display_name.as_str(),
            bio: profile.bio.as_str(),
            avatar_url: profile.avatar_url.as_ref().map(|url| url.as_str()),
            created_at: profile.created_at,
            post_count: profile.post_count,
            comment_count: profile.comment_count,
            follower_count: profile.follower_count,
            following_count: profile.following_count,
            email: None,
            roles: None,
        }
    }

    /// What users see of themselves.
    pub(crate) fn own(account: &'a Account) -> Self {
        Self {
            email: account.email.as_ref().map(|email| email.as_str()),
            roles: Some(account.roles.iter().map(|role| role.as_str()).collect()),
            ..Self::of(&account.profile)
        }
    }
}

/// What the answer about a profile depends on besides its version: whose it is, since a name may go to another account, and
/// the counts.
fn besides(profile: &Profile) -> [i64; 6] {
    let (first, second) = profile.id.0.as_u64_pair();
    let Profile { post_count, comment_count, follower_count, following_count, .. } = *profile;
    [first.cast_signed(), second.cast_signed(), post_count, comment_count, follower_count, following_count]
}

fn profile_etag(profile: &Profile) -> HeaderValue {
    etag(profile.version, &besides(profile))
}

fn account_etag(account: &Account) -> HeaderValue {
    // Roles change without the profile's version; an address never does.
    let roles = account.roles.iter().fold(0, |set, role| set | 1 << (*role as i64));
    etag(account.profile.version, &[&besides(&account.profile)[..], &[roles]].concat())
}

impl Api {
    /// The user of a name in a path.
    pub(crate) async fn profile(&self, context: &Context, name: &str) -> Result<Profile, Problem> {
        let name = username(name)?;
        let found = self.read(Service::Users, context, |deadline| self.users.by_username(&name, deadline)).await?;
        found.ok_or_else(no_such_user)
    }
}

/// A name in a path; what cannot be one is nobody's.
fn username(name: &str) -> Result<Username, Problem> {
    Username::parse(name).map_err(|_| no_such_user())
}

fn no_such_user() -> Problem {
    Problem::new(&problem::NOT_FOUND, "no such user")
}

/// The no to a password that has to prove who a known user is: unlike at a login, nothing else can be wrong.
fn wrong_password(rejection: Rejection) -> Problem {
    match rejection {
        Rejection::WrongCredentials => Problem::new(&problem::INVALID_CREDENTIALS, "the password is not your current one"),
        other => other.into(),
    }
}

/// What names a write to a user for search.
fn written<T>(accepted: &Accepted<T>, user: UserId) -> SearchToken {
    SearchToken { topic: Topic::Users, shard: accepted.shard, seq: accepted.seq, key: user.0 }
}
