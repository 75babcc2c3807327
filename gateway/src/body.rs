//! JSON bodies: read within limits, parsed, validated, or refused with what is wrong and where.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::FromRequest;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Request, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use garde::Validate;
use http_body_util::BodyExt;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use crate::context;
use crate::problem::{self, FieldError, Problem};
use crate::wording::{self, Wording};

/// Deepest nesting of a body.
const DEPTH_MAX: usize = 16;
/// What is read of a body that is too large before the connection is given up: closing with unread bytes makes the
/// kernel reset the connection, and the client never sees the 413.
const DRAIN_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How long that may take.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);
/// A JSON body, parsed and validated; as a response, JSON.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<T, S> FromRequest<S> for Json<T>
where
    T: DeserializeOwned + Validate<Context: Default>,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request(request: Request<Body>, _: &S) -> Result<Self, Problem> {
        let (_, bytes) = receive(request).await?;
        parse(&bytes).map(Self)
    }
}

/// Reads a body that has to be JSON, within the limits of size and time.
pub(crate) async fn receive(request: Request<Body>) -> Result<(Parts, Bytes), Problem> {
    let (parts, body) = request.into_parts();
    let config = &context::of(&parts)?.edge.config;
    if !is_json(&parts.headers) {
        return Err(Problem::new(&problem::UNSUPPORTED_MEDIA_TYPE, "the body has to be application/json"));
    }
    let read = read(body, config.body_limit_bytes, declared_length(&parts.headers));
    let bytes = tokio::time::timeout(Duration::from_millis(config.body_timeout_ms), read)
        .await
        .map_err(|_| Problem::new(&problem::TOO_SLOW, "the body did not arrive in time"))??;
    Ok((parts, bytes))
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// Parses and validates a body.
pub(crate) fn parse<T: DeserializeOwned + Validate<Context: Default>>(bytes: &[u8]) -> Result<T, Problem> {
    let text = str::from_utf8(bytes)
        .map_err(|error| malformed(format!("the body is not UTF-8 from byte {} on", error.valid_up_to())))?;
    let shape = Shape::of(bytes);
    if shape.depth > DEPTH_MAX {
        return Err(Problem::new(&problem::TOO_DEEP, format!("the body is nested {} levels deep", shape.depth)));
    }
    if !text.trim_ascii_start().starts_with('{') {
        // Serde would read the fields of a struct from an array, by their order.
        return Err(no_object(text));
    }
    let value: T = serde_json::from_str(text).map_err(|_| explain::<T>(text))?;
    if shape.has_nul {
        // Postgres cannot store it, and nobody means it.
        return Err(nuls(text));
    }
    value.validate().map_err(|report| {
        let wrong = report.iter().map(|(path, error)| FieldError {
            field: path.to_string(),
            code: "invalid".into(),
            message: error.message().to_owned(),
        });
        let mut wrong: Vec<_> = wrong.collect();
        // The report's own order is not that of the fields.
        wrong.sort_by(|a, b| a.field.cmp(&b.field));
        Problem::fields(wrong)
    })?;
    Ok(value)
}

/// What is wrong with a body that is not an object.
fn no_object(text: &str) -> Problem {
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => Problem::field("", "invalid_type", "the body has to be a JSON object"),
        Err(error) => malformed(wording::of_syntax(&error)),
    }
}

fn malformed(detail: impl Into<Cow<'static, str>>) -> Problem {
    Problem::new(&problem::MALFORMED_JSON, detail)
}

/// Names the fields that hold a NUL: like [`explain`], at the cost of who erred.
fn nuls(text: &str) -> Problem {
    let mut errors = Vec::new();
    let body = serde_json::from_str(text).expect("it was parsed before");
    find_nuls(&body, String::new(), &mut errors);
    Problem::fields(errors)
}

fn find_nuls(value: &Value, path: String, errors: &mut Vec<FieldError>) {
    match value {
        Value::String(text) if text.contains('\0') => {
            let message = "text must not contain NUL (\\u0000)".to_owned();
            errors.push(FieldError { field: path, code: "nul_byte".into(), message });
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| find_nuls(item, format!("{path}[{index}]"), errors));
        }
        Value::Object(fields) => fields.iter().for_each(|(name, field)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            find_nuls(field, path, errors);
        }),
        _ => {}
    }
}

/// Parses again, keeping the path, to say what was wrong and where: only who erred pays for it.
fn explain<T: DeserializeOwned>(text: &str) -> Problem {
    let mut parser = serde_json::Deserializer::from_str(text);
    let result: Result<T, _> = serde_path_to_error::deserialize(&mut parser);
    let error = match result {
        Err(error) if error.inner().is_data() => error,
        Err(error) => return malformed(wording::of_syntax(error.inner())),
        // What is wrong stands behind it.
        Ok(_) => return parser.end().map_or_else(|error| malformed(wording::of_syntax(&error)), |()| malformed("")),
    };
    let path = error.path().to_string();
    let said = error.into_inner().to_string();
    let Wording { code, named, message } = wording::of_value(&said, "fields");
    let field = match (path.as_str(), named) {
        (".", named) => named.unwrap_or_default().to_owned(),
        // For an unknown field serde's path already ends with it.
        (path, Some(named)) if path == named || path.ends_with(&format!(".{named}")) => path.to_owned(),
        (path, Some(named)) => format!("{path}.{named}"),
        (path, None) => path.to_owned(),
    };
    Problem::field(field, code, message)
}

/// What one pass over the bytes tells before anything is parsed.
struct Shape {
    depth: usize,
    has_nul: bool,
}

impl Shape {
    fn of(bytes: &[u8]) -> Self {
        let (mut open, mut depth, mut in_string, mut has_nul) = (0usize, 0, false, false);
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            match (in_string, byte) {
                (true, b'\\') => {
                    has_nul |= bytes[at..].starts_with(b"\\u0000");
                    at += 1; // whatever is escaped ends no string
                }
                (_, b'"') => in_string = !in_string,
                (false, b'{' | b'[') => {
                    open += 1;
                    depth = depth.max(open);
                }
                (false, b'}' | b']') => open = open.saturating_sub(1),
                _ => {}
            }
            at += 1;
        }
        Self { depth, has_nul }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim();
    let Some(subtype) = media.get(..12).filter(|start| start.eq_ignore_ascii_case("application/")).map(|_| &media[12..]) else {
        return false;
    };
    subtype.eq_ignore_ascii_case("json") || subtype.to_ascii_lowercase().ends_with("+json")
}

/// `Content-Length`, 0 if there is none: a chunked body is counted while it arrives.
pub(crate) fn declared_length(headers: &HeaderMap) -> u64 {
    headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0)
}

async fn read(mut body: Body, limit: usize, declared: u64) -> Result<Bytes, Problem> {
    let mut whole: Option<Bytes> = None;
    let mut parts = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::new(&problem::BAD_REQUEST, "the body was cut off or is malformed"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let length = data.len() + parts.len() + whole.as_ref().map_or(0, Bytes::len);
        if length > limit {
            drain(body).await;
            return Err(too_large(limit));
        }
        // A body that comes in one piece is not copied.
        match whole.take() {
            None if parts.is_empty() => whole = Some(data),
            first => {
                parts.reserve(usize::try_from(declared).unwrap_or(0).min(limit).saturating_sub(parts.len()));
                parts.extend_from_slice(&first.unwrap_or_default());
                parts.extend_from_slice(&data);
            }
        }
    }
    Ok(whole.unwrap_or_else(|| parts.freeze()))
}

fn too_large(limit: usize) -> Problem {
    Problem::new(&problem::TOO_LARGE, format!("the body is larger than {limit} bytes"))
}

/// Reads a body that nobody wants, so that the refusal arrives.
async fn drain(mut body: Body) {
    let read = async {
        let mut left = DRAIN_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let read = frame.data_ref().map_or(0, |data| data.len() as u64);
            let Some(rest) = left.checked_sub(read) else {
                return;
            };
            left = rest;
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME_MAX, read).await;
}

/// The 413 for a request that declares a body larger than we read.
pub(crate) async fn drain_too_large(request: Request<Body>, limit: usize) -> Problem {
    let asks_first = request.headers().contains_key(header::EXPECT);
    let body = request.into_body();
    // Who asks first has sent nothing yet, and will not after a refusal.
    if !asks_first && !body.is_end_stream() {
        drain(body).await;
    }
    too_large(limit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, garde::Validate)]
    #[serde(deny_unknown_fields)]
    struct Draft {
        #[garde(length(chars, min = 1, max = 5))]
        title: String,
        #[garde(dive)]
        #[serde(default)]
        tags: Vec<Tag>,
    }

    #[derive(Debug, Deserialize, garde::Validate)]
    #[serde(deny_unknown_fields)]
    struct Tag {
        #[garde(length(max = 3))]
        name: String,
    }

    fn refused(body: &[u8]) -> Problem {
        parse::<Draft>(body).unwrap_err()
    }

    #[test]
    fn a_good_body_is_parsed() {
        let draft: Draft = parse(br#"{"title":"hi","tags":[{"name":"a"}]}"#).unwrap();
        assert_eq!((draft.title.as_str(), draft.tags[0].name.as_str()), ("hi", "a"));
    }

    #[test]
    fn a_body_that_is_no_json_is_malformed() {
        assert_eq!(refused(b"{\"title\":").kind, &problem::MALFORMED_JSON);
    }

    #[test]
    fn two_documents_are_malformed() {
        assert_eq!(refused(b"{\"title\":\"a\"} {}").kind, &problem::MALFORMED_JSON);
    }

    #[test]
    fn broken_utf_8_is_malformed() {
        assert_eq!(refused(b"{\"title\":\"\xff\"}").kind, &problem::MALFORMED_JSON);
    }

    #[test]
    fn an_unknown_field_is_named_with_its_path() {
        let problem = refused(br#"{"title":"a","tags":[{"name":"a","colour":1}]}"#);
        assert_eq!((&*problem.errors[0].field, &*problem.errors[0].code), ("tags[0].colour", "unknown_field"));
    }

    #[test]
    fn a_missing_field_is_named() {
        let problem = refused(b"{}");
        assert_eq!((&*problem.errors[0].field, &*problem.errors[0].code), ("title", "missing_field"));
    }

    #[test]
    fn a_wrong_type_is_named() {
        let problem = refused(br#"{"title":7}"#);
        assert_eq!((&*problem.errors[0].field, &*problem.errors[0].code), ("title", "invalid_type"));
    }

    #[test]
    fn every_invalid_field_is_named() {
        let problem = refused(br#"{"title":"","tags":[{"name":"long"}]}"#);
        let fields: Vec<_> = problem.errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["tags[0].name", "title"]);
    }

    #[test]
    fn a_body_that_is_no_object_is_wrong_also_where_its_items_would_fit() {
        for body in [&br#"["hi",[]]"#[..], b" []", b"\"hi\"", b"1", b"null"] {
            let problem = refused(body);
            assert_eq!((&*problem.errors[0].field, &*problem.errors[0].code), ("", "invalid_type"));
        }
        assert_eq!(refused(b"[\"hi\"").kind, &problem::MALFORMED_JSON);
        assert_eq!(refused(b"[] {}").kind, &problem::MALFORMED_JSON);
    }

    #[test]
    fn every_field_with_a_nul_character_is_named() {
        let problem = refused(br#"{"title":"a\u0000","tags":[{"name":"a"},{"name":"\u0000"}]}"#);
        let mut wrong: Vec<_> = problem.errors.iter().map(|error| (error.field.as_str(), &*error.code)).collect();
        wrong.sort_unstable();
        assert_eq!(wrong, [("tags[1].name", "nul_byte"), ("title", "nul_byte")]);
    }

    #[test]
    fn a_backslash_before_u0000_is_no_nul() {
        assert!(!Shape::of(br#""\\u0000""#).has_nul);
    }

    #[test]
    fn brackets_inside_text_do_not_nest() {
        assert_eq!(Shape::of(br#"{"a":"[[[[\"[[[["}"#).depth, 1);
    }

    #[test]
    fn twenty_levels_are_too_deep() {
        assert_eq!(refused("[".repeat(20).as_bytes()).kind, &problem::TOO_DEEP);
    }

    proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse::<Draft>(&body);
        }
    }
}
