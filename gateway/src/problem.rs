//! Errors as RFC 9457 problems: one table of kinds, one way to render them.
//!
//! A [`Problem`] travels in the response's extensions; the chain around every route adds the request's id and path and
//! writes the body. Without the chain it is still a complete problem, only without these two.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// The media type of every error.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// A kind of problem: what `type` points to.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Last segment of `/problems/{slug}`.
    pub slug: &'static str,
    /// Short summary, the same for every occurrence.
    pub title: &'static str,
    /// The response's status.
    pub status: StatusCode,
    /// What the client can do about it, for the page behind `type`.
    pub advice: &'static str,
}

macro_rules! kinds {
    ($($(#[$meta:meta])* $name:ident = $slug:literal, $title:literal, $status:ident, $advice:literal;)+) => {
        $($(#[$meta])* pub static $name: Kind =
            Kind { slug: $slug, title: $title, status: StatusCode::$status, advice: $advice };)+
        /// Every kind there is.
        pub static KINDS: &[&Kind] = &[$(&$name),+];
    };
}

kinds! {
    /// The request line, headers or query could not be understood.
    BAD_REQUEST = "bad-request", "The request is malformed", BAD_REQUEST,
        "Correct the part of the request that the detail names.";
    /// The body is not JSON.
    MALFORMED_JSON = "malformed-json", "The body is not valid JSON", BAD_REQUEST,
        "Send one JSON document in UTF-8. The detail names line and column of the first error.";
    /// The body nests deeper than we read.
    TOO_DEEP = "nested-too-deeply", "The body is nested too deeply", BAD_REQUEST,
        "Objects and arrays may be nested at most 16 levels deep.";
    /// A query parameter is missing, unknown or wrong.
    INVALID_QUERY = "invalid-query", "A query parameter is invalid", BAD_REQUEST,
        "The detail names the parameter and what it may be.";
    /// A cursor that we did not hand out.
    INVALID_CURSOR = "invalid-cursor", "The cursor is invalid", BAD_REQUEST,
        "Use next_cursor exactly as a list gave it, or start again without one.";
    /// No token, or none that is valid.
    UNAUTHENTICATED = "unauthenticated", "A valid access token is needed", UNAUTHORIZED,
        "Send Authorization: Bearer with an access token; get a new one from /api/v1/auth/refresh when it has expired.";
    /// The wrong name or password.
    INVALID_CREDENTIALS = "invalid-credentials", "The name or the password is wrong", UNAUTHORIZED,
        "Check both. Which of them is wrong is not said.";
    /// Known, but not allowed.
    FORBIDDEN = "forbidden", "This is not yours to do", FORBIDDEN,
        "Only the author, or who has the role for it, may do this.";
    /// There is nothing of that id or name.
    NOT_FOUND = "not-found", "There is no such thing", NOT_FOUND,
        "It was deleted, never existed, or the id is mistyped.";
    /// There is no such route.
    NO_ROUTE = "no-such-route", "There is no such route", NOT_FOUND,
        "See /docs for the routes there are.";
    /// The route exists, not with this method.
    METHOD_NOT_ALLOWED = "method-not-allowed", "The method is not allowed here", METHOD_NOT_ALLOWED,
        "The Allow header lists the methods of this route.";
    /// The client took too long to send its body.
    TOO_SLOW = "request-too-slow", "The request arrived too slowly", REQUEST_TIMEOUT,
        "Send the whole body without long pauses.";
    /// Somebody else has that name already.
    CONFLICT = "conflict", "It is taken already", CONFLICT,
        "Choose another value for the field that the detail names.";
    /// An idempotency key was reused for something else.
    IDEMPOTENCY_CONFLICT = "idempotency-key-reused", "The idempotency key belongs to another request", CONFLICT,
        "Use a new Idempotency-Key for every new request; the same one only to repeat the same body.";
    /// `If-Match` did not match.
    PRECONDITION_FAILED = "precondition-failed", "It has changed since you read it", PRECONDITION_FAILED,
        "Read it again and apply your change to what it is now.";
    /// The body is larger than we read.
    TOO_LARGE = "too-large", "The body is too large", PAYLOAD_TOO_LARGE,
        "Send less at once; the detail names the most bytes that a body may have here, 524,288 unless configured otherwise.";
    /// The body is not declared as JSON.
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type", "The content type is not supported", UNSUPPORTED_MEDIA_TYPE,
        "Send Content-Type: application/json.";
    /// Well-formed, but not acceptable.
    INVALID = "invalid", "The content is invalid", UNPROCESSABLE_ENTITY,
        "The errors list names every field and what is wrong with it.";
    /// Too many requests from this user or address.
    RATE_LIMITED = "rate-limited", "Too many requests", TOO_MANY_REQUESTS,
        "Wait as long as Retry-After says. RateLimit tells how much is left before it happens.";
    /// Our fault.
    INTERNAL = "internal", "Something went wrong on our side", INTERNAL_SERVER_ERROR,
        "Repeating the request may help. If not, report it with the request_id.";
    /// A part that is needed does not answer, or we are full.
    UNAVAILABLE = "unavailable", "The service is unavailable", SERVICE_UNAVAILABLE,
        "Try again after the time that Retry-After gives.";
    /// The deadline has passed. A write may have happened or not.
    DEADLINE = "deadline-exceeded", "The request took too long", SERVICE_UNAVAILABLE,
        "Try again after the time that Retry-After gives, a write with the same Idempotency-Key.";
}

/// One field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FieldError {
    /// Path of the field, as in `tags[2]`; empty for the whole body.
    pub field: String,
    /// What is wrong with it, for programs.
    pub code: Cow<'static, str>,
    /// What is wrong with it, for people.
    pub message: String,
}

/// An occurrence of a [`Kind`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What it is an occurrence of.
    pub kind: &'static Kind,
    /// What is wrong this time.
    pub detail: Cow<'static, str>,
    /// The fields that are wrong, on 422.
    pub errors: Vec<FieldError>,
    /// When to try again.
    pub retry_after_s: Option<u32>,
}

/// Wire form of a problem.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Problem)]
pub struct Document<'a> {
    /// `/problems/{slug}`
    #[serde(rename = "type")]
    kind: &'a str,
    title: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
    /// Path of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a str>,
    /// The same as the header `x-request-id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
}

impl Problem {
    /// A problem with what is wrong this time.
    pub fn new(kind: &'static Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), errors: Vec::new(), retry_after_s: None }
    }

    /// A 422 that names one field.
    pub fn field(field: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self::fields(vec![FieldError { field: field.into(), code: code.into(), message: message.into() }])
    }

    /// A 422 that names every wrong field.
    pub fn fields(errors: Vec<FieldError>) -> Self {
        Self { errors, ..Self::new(&INVALID, "one or more fields are invalid") }
    }

    /// A 503 that says when to come back.
    pub fn unavailable(detail: impl Into<Cow<'static, str>>, retry_after_s: u32) -> Self {
        Self::new(&UNAVAILABLE, detail).retry_after_s(retry_after_s)
    }

    /// Says when to come back.
    #[must_use]
    pub fn retry_after_s(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The problem that a bare error status stands for, if it is an error.
    pub(crate) fn of_status(status: StatusCode) -> Option<Self> {
        if !status.is_client_error() && !status.is_server_error() {
            return None;
        }
        // The first kind of a status is its most general one.
        let kind = KINDS.iter().find(|kind| kind.status == status).copied();
        Some(Self::new(kind.unwrap_or(if status.is_server_error() { &INTERNAL } else { &BAD_REQUEST }), ""))
    }

    /// Writes it into `response`: status, body, and the headers that its kind asks for; other headers stay.
    pub(crate) fn write(&self, response: &mut Response, instance: Option<&str>, request_id: Option<&str>) {
        let kind = format!("/problems/{}", self.kind.slug);
        let document = Document {
            kind: &kind,
            title: self.kind.title,
            status: self.kind.status.as_u16(),
            detail: &self.detail,
            instance,
            request_id,
            errors: &self.errors,
        };
        let body = serde_json::to_vec(&document).expect("a problem holds only text and numbers");
        *response.status_mut() = self.kind.status;
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::TRANSFER_ENCODING);
        headers.remove(header::CONTENT_ENCODING);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.kind.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        let retry_after_s = self.retry_after_s.or((self.kind.status == StatusCode::SERVICE_UNAVAILABLE).then_some(1));
        if let Some(seconds) = retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        *response.body_mut() = Body::from(body);
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        self.write(&mut response, None, None);
        response.extensions_mut().insert(self);
        response
    }
}

/// The fallback of the router.
pub(crate) async fn no_route() -> Problem {
    Problem::new(&NO_ROUTE, "no route has this path")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_kind_has_its_own_slug() {
        let slugs: HashSet<_> = KINDS.iter().map(|kind| kind.slug).collect();
        assert_eq!(slugs.len(), KINDS.len());
    }

    #[test]
    fn a_bare_405_becomes_the_405_of_the_table() {
        let problem = Problem::of_status(StatusCode::METHOD_NOT_ALLOWED).expect("an error status");
        assert_eq!(problem.kind, &METHOD_NOT_ALLOWED);
    }

    #[test]
    fn a_503_always_says_when_to_come_back() {
        let response = Problem::new(&DEADLINE, "").into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
