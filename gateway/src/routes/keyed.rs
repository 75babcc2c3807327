//! A body that begins something, with the key under which it may be sent again.

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, MatchedPath};
use axum::http::Request;
use axum::http::request::Parts;
use garde::Validate;
use rookery_actors::runtime;
use rookery_actors::secret::Tagger;
use serde::de::DeserializeOwned;

use super::SharedApi;
use crate::body;
use crate::context::{self, Identity};
use crate::extract::IdempotencyKey;
use crate::problem::Problem;

/// A JSON body, and its `Idempotency-Key` made unique by user and route.
#[derive(Debug)]
pub(crate) struct Keyed<T> {
    pub(crate) body: T,
    pub(crate) key: Option<runtime::IdempotencyKey>,
}

impl<T> FromRequest<SharedApi> for Keyed<T>
where
    T: DeserializeOwned + Validate<Context: Default>,
{
    type Rejection = Problem;

    async fn from_request(request: Request<Body>, api: &SharedApi) -> Result<Self, Problem> {
        let (mut parts, bytes) = body::receive(request).await?;
        let IdempotencyKey(sent) = IdempotencyKey::from_request_parts(&mut parts, api).await?;
        let key = sent.map(|sent| scoped(&api.request_hash, &parts, &bytes, &sent)).transpose()?;
        Ok(Self { body: body::parse(&bytes)?, key })
    }
}

fn scoped(hash: &Tagger, parts: &Parts, body: &[u8], sent: &str) -> Result<runtime::IdempotencyKey, Problem> {
    let user = match &context::of(parts)?.identity {
        Identity::Known(claims) => claims.sub.to_string(),
        _ => String::new(),
    };
    let (method, path) = (&parts.method, parts.uri.path());
    let route = parts.extensions.get::<MatchedPath>().map_or(path, MatchedPath::as_str);
    // Neither method nor path holds a line end, so the three cannot run into each other.
    let head = format!("{method}\n{path}\n");
    let parts = [head.as_bytes(), body];
    let mut hashes = hash.hashes(&parts);
    let request_hash = hashes.next().expect("there is a secret that makes");
    let key = format!("{user} {method} {route} {sent}").into();
    Ok(runtime::IdempotencyKey { key, request_hash, also_hashed: hashes.collect() })
}
