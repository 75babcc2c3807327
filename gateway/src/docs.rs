//! The contract as generated from the code, and a page to try it.

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Response};
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
    let config = Config::from("/openapi.json").validator_url("none").use_base_layout();
    let page = Router::from(SwaggerUi::new("/docs").config(config));
    Ok(page.layer(from_fn(as_our_page)).route("/openapi.json", get(json)))
}

/// The scripts and styles are Swagger UI's; the page around them is ours, with our name and icon.
const PAGE: &str = "<!doctype html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\"><title>Rookery: the API</title>
<link rel=\"stylesheet\" href=\"/docs/swagger-ui.css\"><link rel=\"stylesheet\" href=\"/docs/index.css\">
<link rel=\"icon\" href=\"/favicon.ico\">
</head>
<body>
<div id=\"swagger-ui\"></div>
<script src=\"/docs/swagger-ui-bundle.js\"></script>
<script src=\"/docs/swagger-ui-standalone-preset.js\"></script>
<script src=\"/docs/swagger-initializer.js\"></script>
</body>
</html>
";

async fn as_our_page(request: Request, next: Next) -> Response {
    let answer = match request.uri().path() {
        "/docs/" | "/docs/index.html" => Html(PAGE).into_response(),
        _ => next.run(request).await,
    };
    ([(header::CONTENT_SECURITY_POLICY, PAGE_POLICY)], answer).into_response()
}
