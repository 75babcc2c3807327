//! The contract as generated from the code, and a page to try it.

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerUi};

/// What the page needs and no more: its own scripts, its inline styles, its icons as `data:`.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// `/openapi.json` and `/docs`.
///
/// # Errors
/// If the document cannot be written as JSON.
pub(crate) fn router(document: &OpenApi) -> Result<Router, serde_json::Error> {
    let document = Bytes::from(serde_json::to_vec(document)?);
    let json = move || {
        let body = document.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], body) }
    };
    let page = Router::from(SwaggerUi::new("/docs").config(Config::from("/openapi.json").validator_url("none")));
    Ok(page.layer(axum::middleware::map_response(allow_page)).route("/openapi.json", get(json)))
}

async fn allow_page(response: Response) -> Response {
    ([(header::CONTENT_SECURITY_POLICY, PAGE_POLICY)], response).into_response()
}
