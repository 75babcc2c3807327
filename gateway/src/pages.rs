//! The few pages for people and their programs: the front page, what problems mean, an icon, a word to crawlers.

use std::fmt::Write;
use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;

use crate::problem::{self, KINDS, Problem};

/// Text, links, one style sheet in the page and our own icon.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// A rook.
static ICON: &[u8] = include_bytes!("../assets/favicon.ico");

/// Crawlers get the pages for people only: an answer of the API must not be found elsewhere once it is deleted here.
const ROBOTS: &str = "User-agent: *\nAllow: /$\nAllow: /docs/\nAllow: /problems/\nDisallow: /\n";

/// `/`, `/problems/`, `/favicon.ico` and `/robots.txt`.
pub(crate) fn router() -> Router {
    Router::new()
        .route("/", get(front))
        .route("/problems", get(problems))
        .route("/problems/", get(problems))
        .route("/problems/{slug}", get(one_problem))
        .route("/favicon.ico", get(icon))
        .route("/robots.txt", get(async || ROBOTS))
}

/// What this is, and where to go from here.
async fn front() -> Response {
    static PAGE: LazyLock<String> = LazyLock::new(|| {
        let version = env!("CARGO_PKG_VERSION");
        let links = [
            ("/docs/", "the API, with a form to try every route"),
            ("/openapi.json", "the same for programs (OpenAPI)"),
            ("/problems/", "what each error means, and what to do about it"),
            (
                "/health",
                "how this node is; <a href=\"/readyz\">/readyz</a> whether it can serve, <a href=\"/livez\">/livez</a> whether it runs",
            ),
            ("/metrics", "numbers for Prometheus"),
        ];
        let mut body =
            String::from("<p>The back end of a social platform: users, posts, comments and search over a REST API.</p>\n<ul>\n");
        for (path, about) in links {
            let _ = writeln!(body, "<li><a href=\"{path}\">{}</a>: {about}</li>", path.trim_end_matches('/'));
        }
        let _ = write!(body, "</ul>\n<p>Version {version}. The routes begin with <code>/api/v1</code>.</p>");
        page("Rookery", &body)
    });
    answer(PAGE.as_str())
}

/// Every kind of problem.
async fn problems() -> Response {
    static PAGE: LazyLock<String> = LazyLock::new(|| {
        let mut body = String::from(
            "<p>Every error is an RFC 9457 problem (<code>application/problem+json</code>); its <code>type</code> is one of these.</p>\n<ul>\n",
        );
        for kind in KINDS {
            let (slug, title, status) = (kind.slug, kind.title, kind.status.as_u16());
            let _ = writeln!(body, "<li>{status} <a href=\"/problems/{slug}\">{slug}</a>: {title}</li>");
        }
        body.push_str("</ul>");
        page("Problems", &body)
    });
    answer(PAGE.as_str())
}

/// What one kind of problem means.
async fn one_problem(Path(slug): Path<String>) -> Result<Response, Problem> {
    let kind = KINDS.iter().find(|kind| kind.slug == slug);
    let kind =
        kind.ok_or_else(|| Problem::new(&problem::NOT_FOUND, "there is no problem of that name; /problems/ lists them"))?;
    let (status, slug, advice) = (kind.status.as_u16(), kind.slug, kind.advice);
    let body = format!(
        "<p>Status {status}, type <code>/problems/{slug}</code>.</p>\n<p>{advice}</p>\n<p><a href=\"/problems/\">All problems</a></p>"
    );
    Ok(answer(page(kind.title, &body)))
}

async fn icon() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "image/x-icon"), (header::CACHE_CONTROL, "public, max-age=86400")], ICON)
}

/// A page of our own words: nothing in it comes from outside.
fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><link rel=\"icon\" href=\"/favicon.ico\">\
         <style>body{{font:1rem/1.5 sans-serif;max-width:40rem;margin:2rem auto;padding:0 1rem}}</style></head>\n\
         <body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )
}

fn answer(page: impl Into<axum::body::Body>) -> Response {
    ([(header::CONTENT_SECURITY_POLICY, PAGE_POLICY)], Html(page.into())).into_response()
}
