//! What the edge knows of a request: its id, its trace, its deadline, who sent it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use bytes::Bytes;
use rookery_actors::caller::{Caller, TraceParent};
use rookery_actors::runtime::in_time_to_answer;

use crate::auth::{AuthError, Claims};
use crate::chain::Edge;
use crate::problem::{self, Problem};

/// The header that carries a request's id, both ways.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The header of the W3C trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Longest request id that a client may choose, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// What the chain found out about a request, for handlers and extractors.
#[derive(Clone)]
pub struct Context {
    /// The request's id, valid as a header and as text.
    pub request_id: HeaderValue,
    /// Where the request stands in its trace.
    pub trace: Trace,
    /// When the client gets a 503 instead of an answer; asks to services carry it along.
    pub deadline: Instant,
    /// Address of the client, behind trusted proxies.
    pub client: IpAddr,
    pub(crate) identity: Identity,
    pub(crate) edge: Arc<Edge>,
}

impl Context {
    /// The same request once its work is committed: what is looked up for its answer must not make that come too late.
    pub(crate) fn committed(&self) -> Self {
        Self { deadline: in_time_to_answer(self.deadline.into()).into_std(), ..self.clone() }
    }

    /// For whom other nodes are asked.
    pub(crate) fn caller(&self) -> Caller {
        Caller { request_id: Bytes::copy_from_slice(self.request_id.as_bytes()), trace: self.trace.parent() }
    }
}

/// Who sent a request, as far as its token tells.
#[derive(Clone)]
pub(crate) enum Identity {
    /// No `Authorization` header.
    Anonymous,
    /// A valid token.
    Known(Arc<Claims>),
    /// A token that we refuse.
    Refused(AuthError),
}

impl Context {
    /// The request's id as text.
    pub fn request_id(&self) -> &str {
        self.request_id.to_str().expect("ids are checked or minted as visible ASCII")
    }
}

impl<S: Sync> FromRequestParts<S> for Context {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        of(parts).cloned()
    }
}

/// The context that the chain has put into a request.
pub(crate) fn of(parts: &Parts) -> Result<&Context, Problem> {
    parts.extensions.get::<Context>().ok_or_else(|| Problem::new(&problem::INTERNAL, "the route lies outside the chain"))
}

/// A position in a W3C trace: the trace, and the span that this request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// Id of the whole trace, never zero.
    pub trace_id: u128,
    /// Id of our span, never zero.
    pub span_id: u64,
    /// The span that called us, if the client sent one.
    pub parent_id: Option<u64>,
    /// Whether the caller records this trace.
    pub sampled: bool,
}

impl Trace {
    /// Continues the client's trace, or begins one.
    pub(crate) fn of(headers: &HeaderMap, random: u128, span: u64) -> Self {
        let span_id = span | 1;
        only(headers, &TRACEPARENT)
            .and_then(|value| parse_traceparent(value.as_bytes()))
            .map(|(trace_id, parent, sampled)| Self { trace_id, span_id, parent_id: Some(parent), sampled })
            .unwrap_or(Self { trace_id: random | 1, span_id, parent_id: None, sampled: false })
    }

    /// For whom we ask in turn.
    pub fn parent(&self) -> TraceParent {
        TraceParent { trace_id: self.trace_id, span_id: self.span_id, sampled: self.sampled }
    }
}

/// Reads `version-trace-parent-flags`; a later version may append fields (W3C Trace Context, 3.2).
fn parse_traceparent(value: &[u8]) -> Option<(u128, u64, bool)> {
    let hex = |range: std::ops::Range<usize>| {
        let digits = value.get(range)?;
        let lower = digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        lower.then(|| u128::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()).flatten()
    };
    let dashes = [2, 35, 52].iter().all(|&at| value.get(at) == Some(&b'-'));
    let version = hex(0..2)?;
    let length = value.len() == 55 || (version > 0 && value.get(55) == Some(&b'-'));
    let (trace, parent, flags) = (hex(3..35)?, hex(36..52)?, hex(53..55)?);
    let valid = dashes && length && version != 0xff && trace != 0 && parent != 0;
    valid.then_some((trace, parent as u64, flags & 1 == 1))
}

/// The client's own id if it is one, else a new one made of `random`.
pub(crate) fn request_id(headers: &HeaderMap, random: u128) -> HeaderValue {
    if let Some(id) = only(headers, &X_REQUEST_ID)
        && is_request_id(id.as_bytes())
    {
        return id.clone();
    }
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let id = uuid::Builder::from_random_bytes(random.to_be_bytes()).into_uuid();
    let text: &str = id.hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).expect("hex and dashes are a header value")
}

/// The value of a header that only informs, if it was sent once: of several, none is more to be believed than another.
pub(crate) fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// The headers on which it depends what a request asks for, of which it may have one each. Lists (`If-None-Match`,
/// `X-Forwarded-For`, `Accept-Encoding`) may come in several lines; an `If-Match` in several is one of several tags.
static ONCE: [HeaderName; 6] = [
    header::HOST,
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("x-search-after"),
    header::ORIGIN,
];

/// The first header that was sent more than once and may not be.
pub(crate) fn repeated(headers: &HeaderMap) -> Option<&'static HeaderName> {
    // As many names as lines: what nearly every request has.
    if headers.keys_len() == headers.len() {
        return None;
    }
    ONCE.iter().find(|name| headers.get_all(*name).iter().nth(1).is_some())
}

/// Only what is safe to log and to copy into JSON as it is.
fn is_request_id(id: &[u8]) -> bool {
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte))
}

/// The address of the socket's other end, put in by the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

impl Peer {
    /// What a request without a socket counts as, in tests of a bare router.
    pub(crate) const UNKNOWN: Self = Self(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).expect("a header value"))])
    }

    #[test]
    fn a_trace_is_continued_under_our_own_span() {
        let sent = headers(TRACEPARENT, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let trace = Trace::of(&sent, 1, 2);
        assert_eq!(trace.parent().to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000003-01");
    }

    #[test]
    fn a_trace_of_zeros_is_not_continued() {
        let sent = headers(TRACEPARENT, "00-00000000000000000000000000000000-00f067aa0ba902b7-01");
        assert_eq!(Trace::of(&sent, 4, 2).trace_id, 5);
    }

    /// W3C Trace Context, 3.2: with more than one `traceparent` a trace begins anew.
    #[test]
    fn of_two_traces_or_ids_none_is_taken() {
        let mut sent = headers(TRACEPARENT, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        sent.append(TRACEPARENT, HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b8-01"));
        let trace = Trace::of(&sent, 4, 2);
        assert_eq!((trace.trace_id, trace.parent_id, trace.sampled), (5, None, false));
        sent.append(X_REQUEST_ID, HeaderValue::from_static("a"));
        assert_eq!(request_id(&sent, 7), "a");
        sent.append(X_REQUEST_ID, HeaderValue::from_static("b"));
        assert!(!["a", "b"].contains(&request_id(&sent, 7).to_str().unwrap()));
    }

    #[test]
    fn a_request_id_with_a_quote_is_replaced() {
        assert_ne!(request_id(&headers(X_REQUEST_ID, "a\"b"), 7), "a\"b");
    }

    proptest! {
        #[test]
        fn no_traceparent_panics(value in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse_traceparent(&value);
        }
    }
}
