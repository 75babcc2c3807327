//! Extractors that turn a request's head into types that cannot be wrong, or into the problem that says why not.

use std::borrow::Cow;
use std::fmt::Display;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{Uri, header};
use garde::Validate;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::auth::Claims;
pub use crate::body::Json;
use crate::context::{self, Identity};
use crate::problem::{self, Problem};
use crate::wording::{self, Wording};

/// Longest list page.
const LIMIT_MAX: u32 = 100;
/// List page unless asked otherwise.
const LIMIT_DEFAULT: u32 = 20;

/// A query string; a bad one is 400.
#[derive(Debug, Clone, Copy)]
pub struct Query<T>(pub T);

impl<T, S> FromRequestParts<S> for Query<T>
where
    T: DeserializeOwned + Validate<Context: Default>,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let value: T = parse_query(&parts.uri)?;
        value.validate().map_err(|report| bad_query(report.to_string().trim_end().to_owned()))?;
        Ok(Self(value))
    }
}

/// Reads a query string. What is no UTF-8 is refused: taken as U+FFFD, it would quietly ask for something else.
fn parse_query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    if percent_decode_str(uri.query().unwrap_or_default()).decode_utf8().is_err() {
        return Err(bad_query("the query string is not UTF-8"));
    }
    let pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs)).map_err(|error| {
        let path = error.path().to_string();
        let said = error.into_inner().to_string();
        let Wording { named, message, .. } = wording::of_value(&said, "parameters");
        bad_query(format!("{} {message}", named.unwrap_or(&path)))
    })
}

fn bad_query(detail: impl Into<Cow<'static, str>>) -> Problem {
    Problem::new(&problem::INVALID_QUERY, detail)
}

/// Parameters of the path; what is no id is no resource: 404.
#[derive(Debug, Clone, Copy)]
pub struct Path<T>(pub T);

impl<T, S> FromRequestParts<S> for Path<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(_) => Err(Problem::new(&problem::NOT_FOUND, "the path names nothing that can exist")),
        }
    }
}

/// The page of a list that a client asks for, `?limit=&cursor=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Items on the page, 1–100.
    pub limit: u32,
    /// Where it begins; open it with [`crate::cursor::Cursors::open`].
    pub cursor: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Page {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        #[derive(Deserialize)]
        struct Asked {
            limit: Option<u32>,
            cursor: Option<String>,
        }
        let asked: Asked = parse_query(&parts.uri)?;
        let limit = asked.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(bad_query(format!("limit is {limit} and may be 1 to {LIMIT_MAX}")));
        }
        Ok(Self { limit, cursor: asked.cursor })
    }
}

/// The user whose token came with the request; without a valid one the request is refused with 401.
#[derive(Debug, Clone)]
pub struct CurrentUser(pub Arc<Claims>);

impl CurrentUser {
    /// # Errors
    /// A 403 without the role.
    pub fn require_role(&self, role: &'static str) -> Result<(), Problem> {
        if self.0.has_role(role) {
            return Ok(());
        }
        Err(Problem::new(&problem::FORBIDDEN, format!("this needs the role {role}")))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for CurrentUser {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let MaybeUser(user) = MaybeUser::from_request_parts(parts, state).await?;
        user.map(Self).ok_or_else(|| unauthenticated("there is no access token in the request"))
    }
}

/// The user whose token came with the request, if one did; a token that is refused is a 401 here too, so that a client
/// notices that it has expired.
#[derive(Debug, Clone)]
pub struct MaybeUser(pub Option<Arc<Claims>>);

impl<S: Send + Sync> FromRequestParts<S> for MaybeUser {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match &context::of(parts)?.identity {
            Identity::Anonymous => Ok(Self(None)),
            Identity::Known(claims) => Ok(Self(Some(claims.clone()))),
            Identity::Refused(error) => Err(unauthenticated(error)),
        }
    }
}

fn unauthenticated(why: impl Display) -> Problem {
    Problem::new(&problem::UNAUTHENTICATED, why.to_string())
}

/// `If-Match`: the version that a change is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfMatch {
    /// No such header, or `*`.
    Any,
    /// This version. What stands behind the dot of an entity tag is not compared: a like meanwhile is no conflict.
    Version(u64),
}

impl IfMatch {
    /// The version as services compare it.
    pub fn version(self) -> Option<i64> {
        match self {
            Self::Any => None,
            // One that we never gave matches nothing.
            Self::Version(version) => Some(i64::try_from(version).unwrap_or(i64::MAX)),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        if !parts.headers.contains_key(header::IF_MATCH) {
            return Ok(Self::Any);
        }
        // A change is meant for one version: with several tags, in one line or in several, it is meant for none.
        let value = context::only(&parts.headers, &header::IF_MATCH);
        if value.is_some_and(|value| value == "*") {
            return Ok(Self::Any);
        }
        let version = || {
            let tag = value?.to_str().ok()?.strip_prefix('"')?.strip_suffix('"')?;
            tag.split('.').next()?.parse().ok()
        };
        // A tag that we never gave matches nothing.
        version()
            .map(Self::Version)
            .ok_or_else(|| Problem::new(&problem::PRECONDITION_FAILED, "If-Match is not an entity tag of this resource"))
    }
}

/// `If-None-Match`: the entity tags that the client has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IfNoneMatch(Vec<String>);

impl IfNoneMatch {
    /// Whether the client has `etag`, quotes included, already: then 304. Compared weakly, as RFC 9110 wants it.
    pub fn matches(&self, etag: &str) -> bool {
        let wanted = etag.strip_prefix("W/").unwrap_or(etag);
        let mut tags = self.0.iter().flat_map(|line| line.split(',')).map(str::trim);
        tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == wanted)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IfNoneMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let lines = parts.headers.get_all(header::IF_NONE_MATCH).iter();
        Ok(Self(lines.filter_map(|line| line.to_str().ok().map(str::to_owned)).collect()))
    }
}

/// `Idempotency-Key`, if the client sent one: 1–255 visible ASCII characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdempotencyKey(pub Option<Box<str>>);

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Some(value) = parts.headers.get("idempotency-key") else {
            return Ok(Self(None));
        };
        let visible =
            value.to_str().ok().filter(|key| (1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()));
        visible
            .map(|key| Self(Some(key.into())))
            .ok_or_else(|| Problem::new(&problem::BAD_REQUEST, "Idempotency-Key has to be 1 to 255 visible ASCII characters"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(name: header::HeaderName, lines: &[&'static str]) -> Parts {
        let mut parts = axum::http::Request::new(()).into_parts().0;
        for line in lines {
            parts.headers.append(&name, header::HeaderValue::from_static(line));
        }
        parts
    }

    #[tokio::test]
    async fn a_change_is_meant_for_one_version_whatever_stands_behind_its_dot() {
        let if_match = async |lines: &[&'static str]| {
            IfMatch::from_request_parts(&mut sent(header::IF_MATCH, lines), &()).await.map_err(|problem| problem.kind.slug)
        };
        assert_eq!(if_match(&[]).await, Ok(IfMatch::Any));
        assert_eq!(if_match(&["*"]).await, Ok(IfMatch::Any));
        assert_eq!(if_match(&["\"3.ab\""]).await, Ok(IfMatch::Version(3)));
        for other in [&["\"3.ab\"", "\"4\""][..], &["\"3\", \"4\""], &["*", "\"4\""], &["W/\"3\""], &[""]] {
            assert_eq!(if_match(other).await, Err(problem::PRECONDITION_FAILED.slug), "{other:?}");
        }
    }

    #[tokio::test]
    async fn what_a_client_has_may_be_said_in_several_lines() {
        let mut parts = sent(header::IF_NONE_MATCH, &["\"1.a\"", "\"2.b\", \"3.c\""]);
        let have = IfNoneMatch::from_request_parts(&mut parts, &()).await.unwrap();
        assert!(["\"1.a\"", "\"2.b\"", "\"3.c\""].into_iter().all(|tag| have.matches(tag)) && !have.matches("\"4.d\""));
    }

    #[test]
    fn a_query_that_is_no_utf_8_is_refused_wherever_it_breaks() {
        let parse =
            |query: &str| parse_query::<std::collections::HashMap<String, String>>(&format!("/x?{query}").parse().unwrap());
        for broken in ["q=%ff", "q=a&%c3=b", "q=%c3&x=%a9", "q=%ed%a0%80"] {
            assert_eq!(parse(broken).unwrap_err().kind, &problem::INVALID_QUERY, "{broken}");
        }
        assert_eq!(parse("q=%C3%A9+%25ff&x=%").unwrap()["q"], "é %ff");
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn if_none_match_compares_the_whole_tag() {
        let tags = IfNoneMatch(vec!["\"1.a\", W/\"2.b\"".into()]);
        assert!(tags.matches("\"2.b\"") && !tags.matches("\"2.c\""));
    }
}
