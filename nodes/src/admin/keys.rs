//! `GET /keys`, `POST /keys/rotate`, `POST /grant`, `POST /password`: what signs tokens, and who gets which.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State, http::StatusCode};
use jiff::Timestamp;
use rookery_actors::{
    entity::AskError,
    runtime::Context,
    users::{Rejection, Role, keys::SigningKeys, names::Username, password::Password},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{Admin, Refusal};

const PATIENCE: Duration = Duration::from_secs(10);

/// A key that is published.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Key {
    /// Its name in the headers of tokens.
    pub kid: String,
    /// `waiting`, `signing` or `verifying`.
    pub state: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// From here on it signs.
    pub not_before: Timestamp,
    /// From here on nobody knows it any more.
    pub retired_at: Option<Timestamp>,
}

/// Who gets which role, or loses it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The handle.
    pub username: String,
    /// `admin` or `moderator`.
    pub role: String,
    /// Take it back instead.
    #[serde(default)]
    pub revoke: bool,
}

/// Who gets which password.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPassword {
    /// The handle.
    pub username: String,
    /// In the clear, on its way to who hashes it.
    #[serde(serialize_with = "expose")]
    pub password: SecretString,
}

fn expose<S: serde::Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Result<Json<Vec<Key>>, Refusal> {
    let keys = SigningKeys::load_or_create(admin.faces.users.runtime().database(), &admin.secrets).await?;
    Ok(Json(shown(&keys)))
}

pub(super) async fn rotate(State(admin): State<Arc<Admin>>) -> Result<Json<Vec<Key>>, Refusal> {
    let keys = SigningKeys::rotate(admin.faces.users.runtime().database(), &admin.secrets, admin.overlap).await?;
    (admin.keys_changed)(&keys);
    Ok(Json(shown(&keys)))
}

pub(super) async fn grant(State(admin): State<Arc<Admin>>, Json(grant): Json<Grant>) -> Result<StatusCode, Refusal> {
    let username = named(&grant.username)?;
    let role: Role = grant.role.parse().map_err(|error| Refusal::unfit(format!("{error}")))?;
    done(&username, admin.faces.users.set_role(&username, role, !grant.revoke, Context::within(PATIENCE)).await)
}

pub(super) async fn password(State(admin): State<Arc<Admin>>, Json(new): Json<NewPassword>) -> Result<StatusCode, Refusal> {
    let username = named(&new.username)?;
    let password = Password::parse(new.password).map_err(|error| Refusal::unfit(format!("password: {error}")))?;
    done(&username, admin.faces.users.set_password(&username, password, Context::within(PATIENCE)).await)
}

fn named(username: &str) -> Result<Username, Refusal> {
    Username::parse(username).map_err(|error| Refusal::unfit(format!("username: {error}")))
}

fn done<T>(username: &Username, asked: Result<T, AskError<Rejection>>) -> Result<StatusCode, Refusal> {
    match asked {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(AskError::Rejected(Rejection::NotFound)) => {
            Err(Refusal::absent(format!("there is no user {username}: register first, then ask again")))
        }
        Err(AskError::Rejected(rejection)) => Err(Refusal::unfit(rejection.to_string())),
        Err(AskError::Failed(failure)) => Err(failure.into()),
    }
}

fn shown(keys: &SigningKeys) -> Vec<Key> {
    let now = Timestamp::now();
    let signing = keys.signing(now).map(|key| key.kid.as_str());
    let state = |key: &rookery_actors::users::keys::SigningKey| match () {
        () if key.not_before > now => "waiting",
        () if signing == Some(key.kid.as_str()) => "signing",
        () => "verifying",
    };
    let show = |key| Key {
        state: state(key).to_owned(),
        kid: key.kid.clone(),
        created_at: key.created_at,
        not_before: key.not_before,
        retired_at: key.retired_at,
    };
    keys.published(now).map(show).collect()
}
