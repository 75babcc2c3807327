//! Puts routes and edge together.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use tower::ServiceBuilder;
use tower::util::option_layer;
use tower_http::cors::{AllowOrigin, Any, CorsLayer};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Verifier;
use crate::chain::{ChainLayer, Edge};
use crate::compress::CompressLayer;
use crate::config::GatewayConfig;
use crate::extract::CurrentUser;
use crate::health::Health;
use crate::problem::Problem;
use crate::{docs, health, pages, problem};

/// What a gateway is made of besides its edge.
pub struct Parts {
    /// The API's routes with their documentation, states filled in.
    pub api: OpenApiRouter,
    /// What administers the node: mounted at `/admin/v1`, for tokens with the role `admin` and for nobody else.
    pub admin: Router,
    /// Looks after the node's health.
    pub health: Arc<dyn Health>,
    /// Renders the metrics; see [`health::metrics_handle`].
    pub metrics: PrometheusHandle,
}

/// Why a gateway cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A configured origin cannot be one.
    #[error("cors_origins: {0:?} is not an origin such as https://example.org")]
    Origin(String),
    /// The generated contract cannot be written as JSON.
    #[error("the OpenAPI document cannot be written")]
    Document(#[from] serde_json::Error),
}

/// The whole router: API, administration, health, docs, problems, keys, with the edge around every route.
///
/// # Errors
/// [`BuildError`] if the configuration or the documentation is wrong.
pub fn build(edge: &Arc<Edge>, parts: Parts) -> Result<Router, BuildError> {
    let config = &edge.config;
    let keys = OpenApiRouter::new().routes(routes!(jwks)).with_state(edge.verifier.clone());
    let documented = parts.api.merge(health::documented(parts.health, parts.metrics)).merge(keys);
    let (routes, document) = documented.split_for_parts();
    let around = ServiceBuilder::new()
        .layer(ChainLayer { edge: edge.clone() })
        .layer(option_layer(cors(config)?))
        .layer(CompressLayer { enabled: config.compression });
    Ok(routes
        .merge(docs::router(&document)?)
        .merge(pages::router())
        .nest("/admin/v1", parts.admin.layer(from_fn(only_admins)))
        .fallback(problem::no_route)
        .layer(around))
}

/// The keys that access tokens are signed with
///
/// A JSON Web Key Set (RFC 7517). A new key is in it ten minutes before it signs.
#[utoipa::path(
    get,
    path = "/.well-known/jwks.json",
    tag = "Operations",
    operation_id = "jwks",
    responses((status = 200, description = "The public keys.", body = serde_json::Value, example = json!(
        {"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": "k1", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}
    )))
)]
async fn jwks(State(verifier): State<Arc<Verifier>>) -> impl IntoResponse {
    ([(header::CACHE_CONTROL, "public, max-age=60")], Json(verifier.jwks()))
}

/// Asked for every request: a role that is taken back ends the sessions of its tokens.
async fn only_admins(user: CurrentUser, request: Request, next: Next) -> Result<Response, Problem> {
    user.require_role("admin")?;
    Ok(next.run(request).await)
}

/// No layer at all unless an origin is allowed.
fn cors(config: &GatewayConfig) -> Result<Option<CorsLayer>, BuildError> {
    let origins = match config.cors_origins.as_slice() {
        [] => return Ok(None),
        [any] if any == "*" => AllowOrigin::from(Any),
        some => AllowOrigin::list(some.iter().map(|origin| parse_origin(origin)).collect::<Result<Vec<_>, _>>()?),
    };
    let exposed = ["etag", "location", "ratelimit", "ratelimit-policy", "retry-after", "x-request-id", "x-search-token"];
    Ok(Some(
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
            .allow_headers([
                header::AUTHORIZATION,
                header::CONTENT_TYPE,
                header::IF_MATCH,
                header::IF_NONE_MATCH,
                HeaderName::from_static("idempotency-key"),
                HeaderName::from_static("last-event-id"),
                HeaderName::from_static("traceparent"),
                HeaderName::from_static("x-request-id"),
                HeaderName::from_static("x-search-after"),
            ])
            .expose_headers(exposed.map(HeaderName::from_static))
            .max_age(std::time::Duration::from_secs(3600)),
    ))
}

fn parse_origin(origin: &str) -> Result<HeaderValue, BuildError> {
    let wrong = || BuildError::Origin(origin.to_owned());
    let (scheme, rest) = origin.split_once("://").ok_or_else(wrong)?;
    if !matches!(scheme, "http" | "https") || rest.is_empty() || rest.contains('/') || rest == "*" {
        return Err(wrong());
    }
    HeaderValue::from_str(origin).map_err(|_| wrong())
}
