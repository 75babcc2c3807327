//! A body that begins something, with the key under which it may be sent again.

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts};
use axum::http::Request;
use axum::http::request::Parts;
use garde::Validate;
use rookery_actors::ids::SessionId;
use rookery_actors::runtime;
use serde::de::DeserializeOwned;

use super::{Api, SharedApi};
use crate::body;
use crate::context::{self, Identity};
use crate::extract::IdempotencyKey;
use crate::problem::Problem;

/// Whose the keys of a route are. None but [`Scope::User`] depends on the bearer: an access token expires between a request and
/// its retry, and another session's may come with that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The user's who asks.
    User,
    /// Everybody's who asks.
    Route,
    /// The session's whose token is in the body.
    Session(SessionId),
}

/// A body that may come with an `Idempotency-Key`.
pub(crate) trait Scoped {
    /// Whose its key is.
    fn scope(&self, _: &Api) -> Scope {
        Scope::User
    }
}

/// A JSON body, and its `Idempotency-Key` made unique by its scope and the route with its path.
#[derive(Debug)]
pub(crate) struct Keyed<T> {
    pub(crate) body: T,
    pub(crate) key: Option<runtime::IdempotencyKey>,
}

impl<T> FromRequest<SharedApi> for Keyed<T>
where
    T: DeserializeOwned + Validate<Context: Default> + Scoped,
{
    type Rejection = Problem;

    async fn from_request(request: Request<Body>, api: &SharedApi) -> Result<Self, Problem> {
        let (mut parts, bytes) = body::receive(request).await?;
        let IdempotencyKey(sent) = IdempotencyKey::from_request_parts(&mut parts, api).await?;
        let body: T = body::parse(&bytes)?;
        let key = sent.map(|sent| scoped(api, body.scope(api), &parts, &bytes, &sent)).transpose()?;
        Ok(Self { body, key })
    }
}

fn scoped(api: &Api, scope: Scope, parts: &Parts, body: &[u8], sent: &str) -> Result<runtime::IdempotencyKey, Problem> {
    let whose = match (scope, &context::of(parts)?.identity) {
        (Scope::Session(session), _) => session.to_string(),
        (Scope::User, Identity::Known(claims)) => claims.sub.to_string(),
        (Scope::User | Scope::Route, _) => String::new(),
    };
    let (method, path) = (&parts.method, parts.uri.path());
    // Neither method nor path holds a line end, so the three cannot run into each other.
    let head = format!("{method}\n{path}\n");
    let parts = [head.as_bytes(), body];
    let mut hashes = api.request_hash.hashes(&parts);
    let request_hash = hashes.next().expect("there is a secret that makes");
    let key = format!("{whose} {method} {path} {sent}").into();
    Ok(runtime::IdempotencyKey { key, request_hash, also_hashed: hashes.collect() })
}
