//! The chain around every route, in one pass: id and trace, identity, limits, deadline; then headers, metrics, log.
//!
//! It is one hand-written service rather than a stack of layers, because each boxed layer costs a clone and two
//! allocations per request. It lies inside the router, so it knows the route; what depends on the route alone is found
//! out once per route.

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::extract::MatchedPath;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use bytes::Bytes;
use metrics::{Counter, Histogram};
use pin_project_lite::pin_project;
use rookery_actors::episodes::{self, Severity};
use tower::{Layer, Service};

use crate::admission::{Admission, Place};
use crate::auth::{self, Verifier};
use crate::body;
use crate::config::GatewayConfig;
use crate::context::{self, Context, Identity, Peer, Trace, X_REQUEST_ID};
use crate::limits::{self, Key, RateLimits, RouteClass, Verdict};
use crate::outgoing::Outgoing;
use crate::problem::{self, Problem};

/// What all requests of a gateway share.
pub struct Edge {
    pub(crate) config: GatewayConfig,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) limits: RateLimits,
    admission: Arc<Admission>,
    outgoing: Arc<Outgoing>,
    leaving: AtomicBool,
}

impl Edge {
    /// The shared part of a gateway.
    pub fn new(config: GatewayConfig, verifier: Arc<Verifier>) -> Arc<Self> {
        let limits = RateLimits::new(&config.quotas, config.rate_limit_keys_max);
        let admission = Admission::new(config.requests_max);
        Arc::new(Self { config, verifier, limits, admission, outgoing: Arc::default(), leaving: AtomicBool::new(false) })
    }

    /// Requests whose response has not begun.
    pub fn in_flight(&self) -> usize {
        self.admission.in_flight()
    }

    /// Asks every client to come back over another connection: answers are the last of theirs from now on. What remains
    /// open is idle when the server stops, and no request meets a connection that is being closed.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Forgets what no longer counts: full quotas, responses that nobody reads, revocations of expired tokens; tells of requests that were shed. To be
    /// called every second or so.
    pub fn sweep(&self) {
        let shed = self.admission.take_shed();
        if shed > 0 {
            let limit = self.config.requests_max;
            episodes::warn(
                "requests are refused with 503, as many are in flight as are taken",
                "",
                format_args!("{shed} requests, with {limit} in flight"),
            );
        }
        self.limits.sweep();
        self.outgoing.sweep(Instant::now());
        self.verifier.revoked().forget_expired(auth::now_s());
    }
}

/// When a request that was shed may come back, in seconds.
const RETRY_SHED_AFTER_S: u32 = 1;

/// The headers that Helmet sets, for an API that serves no pages; a route may set its own instead.
static SECURITY_HEADERS: [(HeaderName, HeaderValue); 11] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    ),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("origin-agent-cluster"), HeaderValue::from_static("?1")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000; includeSubDomains")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_DNS_PREFETCH_CONTROL, HeaderValue::from_static("off")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (HeaderName::from_static("x-permitted-cross-domain-policies"), HeaderValue::from_static("none")),
    (header::X_XSS_PROTECTION, HeaderValue::from_static("0")),
];

/// Puts the chain around a route.
#[derive(Clone)]
pub(crate) struct ChainLayer {
    pub(crate) edge: Arc<Edge>,
}

impl<S> Layer<S> for ChainLayer {
    type Service = Chain<S>;

    fn layer(&self, inner: S) -> Chain<S> {
        Chain { inner, edge: self.edge.clone(), route: Arc::default() }
    }
}

/// One route with the chain around it.
#[derive(Clone)]
pub(crate) struct Chain<S> {
    inner: S,
    edge: Arc<Edge>,
    route: Arc<Route>,
}

impl<S, B> Service<Request<Body>> for Chain<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Served<S::Future>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let started = Instant::now();
        let edge = &self.edge;
        let stats = self.route.stats(&request);
        let class = stats.class;
        let admitted = match class {
            // Health and metrics: an overloaded node must not look dead.
            RouteClass::Exempt => Ok(edge.admission.admit_always()),
            _ => edge.admission.admit(),
        };
        let headers = request.headers();
        let context = Context {
            request_id: context::request_id(headers, rand::random()),
            trace: Trace::of(headers, rand::random(), rand::random()),
            deadline: started + Duration::from_millis(edge.config.request_timeout_ms),
            client: client(&request, edge),
            // Nothing is verified for a request that is refused anyway.
            identity: admitted.as_ref().map_or(Identity::Anonymous, |_| identity(headers, edge)),
            edge: edge.clone(),
        };
        let (place, shed) = match admitted {
            Ok(place) => (place, None),
            Err((place, pause)) => (place, Some(pause)),
        };
        let limited = edge.config.rate_limits && shed.is_none();
        let verdict = limited.then(|| edge.limits.check(class, key(class, &context))).flatten();
        let mut served = Served {
            work: Work::Refused { problem: None },
            timeout: None,
            record: Record {
                started,
                // HTTP/2 has a way of its own to say so.
                may_close: request.version() < Version::HTTP_2,
                method: request.method().clone(),
                uri: request.uri().clone(),
                request_id: context.request_id.clone(),
                trace: context.trace,
                deadline: context.deadline,
                verdict,
                stats,
                edge: edge.clone(),
                shed: shed.is_some(),
                _place: place,
            },
        };
        if let Some(pause) = shed {
            let pause = Box::pin(tokio::time::sleep_until((started + pause).into()));
            served.work = Work::Shed { pause };
        } else if let Some(problem) = refusal(class, verdict) {
            served.work = Work::Refused { problem: Some(problem) };
        } else if let Some(name) = context::repeated(request.headers()).filter(|_| class != RouteClass::Exempt) {
            let problem = Problem::new(&problem::BAD_REQUEST, format!("the header {name} may come once"));
            served.work = Work::Refused { problem: Some(problem) };
        } else if body::declared_length(request.headers()) > edge.config.body_limit_bytes as u64 {
            served.work = Work::Draining { future: Box::pin(body::drain_too_large(request, edge.config.body_limit_bytes)) };
        } else {
            request.extensions_mut().insert(context);
            served.work = Work::Route { future: self.inner.call(request) };
        }
        served
    }
}

fn client(request: &Request<Body>, edge: &Edge) -> std::net::IpAddr {
    let peer = request.extensions().get::<Peer>().copied().unwrap_or(Peer::UNKNOWN);
    limits::client(peer.0, request.headers(), &edge.config.trusted_proxies)
}

fn identity(headers: &HeaderMap, edge: &Edge) -> Identity {
    let Some(authorization) = headers.get(header::AUTHORIZATION) else {
        return Identity::Anonymous;
    };
    match edge.verifier.authenticate(authorization.as_bytes(), auth::now_s()) {
        Ok(claims) => Identity::Known(claims),
        Err(error) => Identity::Refused(error),
    }
}

fn key(class: RouteClass, context: &Context) -> Key {
    match &context.identity {
        // Whoever guesses passwords could bring the token of one account after the other.
        Identity::Known(claims) if class != RouteClass::Auth => Key::User(claims.sub),
        _ => Key::from(context.client),
    }
}

fn refusal(class: RouteClass, verdict: Option<Verdict>) -> Option<Problem> {
    if class == RouteClass::Exempt {
        return None;
    }
    let retry_after_s = verdict?.retry_after_s?;
    Some(Problem::new(&problem::RATE_LIMITED, "the quota is used up for the moment").retry_after_s(retry_after_s))
}

pin_project! {
    /// A request under way.
    pub(crate) struct Served<F> {
        #[pin]
        work: Work<F>,
        // Made only when the route has to wait: most answers come from memory and never do.
        timeout: Option<Pin<Box<tokio::time::Sleep>>>,
        record: Record,
    }
}

pin_project! {
    #[project = WorkProjection]
    enum Work<F> {
        Route { #[pin] future: F },
        Draining { future: Pin<Box<dyn Future<Output = Problem> + Send>> },
        Refused { problem: Option<Problem> },
        Shed { pause: Pin<Box<tokio::time::Sleep>> },
    }
}

impl<F, B> Future for Served<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let polled = match this.work.as_mut().project() {
            WorkProjection::Route { future } => match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
                Ok(polled) => polled.map(|Ok(response)| Ok(response.map(Body::new))),
                Err(panic) => Poll::Ready(Err(this.record.panicked(&*panic))),
            },
            WorkProjection::Draining { future } => future.as_mut().poll(cx).map(Err),
            WorkProjection::Refused { problem } => {
                Poll::Ready(Err(problem.take().expect("a finished future is not polled again")))
            }
            WorkProjection::Shed { pause } => pause.as_mut().poll(cx).map(|()| {
                Err(Problem::unavailable("the gateway has as many requests in flight as it takes", RETRY_SHED_AFTER_S))
            }),
        };
        let outcome = match polled {
            Poll::Ready(outcome) => outcome,
            Poll::Pending if this.record.shed => return Poll::Pending,
            Poll::Pending => {
                let deadline = this.record.deadline;
                let timeout = this.timeout.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
                ready!(timeout.as_mut().poll(cx));
                Err(Problem::new(&problem::DEADLINE, "the request was not answered in time"))
            }
        };
        // The route's future is dropped before its response leaves, also after a panic or at the deadline.
        this.work.set(Work::Refused { problem: None });
        Poll::Ready(Ok(this.record.finish(outcome)))
    }
}

/// What is needed of a request when it ends.
struct Record {
    started: Instant,
    may_close: bool,
    method: Method,
    uri: Uri,
    request_id: HeaderValue,
    trace: Trace,
    deadline: Instant,
    verdict: Option<Verdict>,
    stats: Arc<Stats>,
    edge: Arc<Edge>,
    /// It is one of many that are reported together.
    shed: bool,
    _place: Place,
}

impl Record {
    fn panicked(&self, panic: &(dyn Any + Send)) -> Problem {
        let message = panic.downcast_ref::<&str>().copied();
        let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        tracing::error!(
            request.id = self.request_id.to_str().unwrap_or_default(),
            http.route = self.stats.route,
            "a handler panicked: {message}"
        );
        Problem::new(&problem::INTERNAL, "the request met an error of ours")
    }

    fn finish(&self, outcome: Result<Response<Body>, Problem>) -> Response<Body> {
        let mut response = match outcome.and_then(|response| self.admit(response)) {
            Ok(response) => response,
            Err(problem) => {
                let mut response = Response::new(Body::empty());
                response.extensions_mut().insert(problem);
                response
            }
        };
        if let Some(problem) = problem_in(&mut response) {
            problem.write(&mut response, Some(self.uri.path()), self.request_id.to_str().ok());
        }
        self.write_headers(response.headers_mut());
        self.count(response.status());
        response
    }

    fn admit(&self, response: Response<Body>) -> Result<Response<Body>, Problem> {
        let (head, body) = response.into_parts();
        match self.edge.outgoing.admit(body) {
            Some(body) => Ok(Response::from_parts(head, body)),
            None => Err(Problem::unavailable("too many large answers wait for their readers", RETRY_SHED_AFTER_S)),
        }
    }

    fn write_headers(&self, headers: &mut HeaderMap) {
        headers.reserve(SECURITY_HEADERS.len() + 4);
        for (name, value) in &SECURITY_HEADERS {
            headers.entry(name).or_insert_with(|| value.clone());
        }
        headers.insert(X_REQUEST_ID, self.request_id.clone());
        if let Some(verdict) = self.verdict {
            self.edge.limits.write_headers(verdict, headers);
        }
        if self.may_close && self.edge.leaving.load(Ordering::Relaxed) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.trace.parent_id.is_some()
            && let Ok(value) = HeaderValue::try_from(self.trace.parent().to_string())
        {
            headers.insert(context::TRACEPARENT, value);
        }
    }

    fn count(&self, status: StatusCode) {
        let elapsed = self.started.elapsed();
        self.stats.duration.record(elapsed.as_secs_f64());
        self.stats.answered(status).increment(1);
        let slow = elapsed.as_millis() as u64 >= self.edge.config.slow_request_ms;
        let (method, route, status) = (self.method.as_str(), self.stats.route, status.as_u16());
        let duration_ms = elapsed.as_millis() as u64;
        macro_rules! access {
            ($level:ident, $($message:tt)+) => {
                tracing::event!(
                    target: "rookery::access",
                    tracing::Level::$level,
                    request.id = self.request_id.to_str().unwrap_or_default(),
                    trace.id = %format_args!("{:032x}", self.trace.trace_id),
                    http.method = method,
                    // Never the query: it may hold what somebody searched for.
                    url.path = self.uri.path(),
                    http.route = route,
                    http.status = status,
                    duration_ms,
                    $($message)+
                )
            };
        }
        // Slowness in such a crowd is no news, and a line for each would make it worse.
        let crowded = self.shed || slow && status < 500 && self.edge.admission.is_shedding();
        // The first of an episode is told whole, the others are counted with it.
        let begins =
            |what, of: &str| episodes::begins(Severity::Warn, what, of, &format_args!("{method} {route} in {duration_ms} ms"));
        match status {
            _ if crowded => access!(DEBUG, "answered {method} {route} with {status}"),
            // A service that is away fails on every route, and says so itself.
            503 if begins("requests are answered with 503", "") => access!(WARN, "answered {method} {route} with 503"),
            500..503 | 504.. if begins("requests meet an error of ours", route) => {
                access!(WARN, "answered {method} {route} with {status}");
            }
            ..500 if slow && begins("requests are slow", route) => {
                access!(WARN, "answered {method} {route} slowly, in {duration_ms} ms, with {status}");
            }
            _ if slow => access!(DEBUG, "answered {method} {route} slowly, in {duration_ms} ms, with {status}"),
            _ => access!(DEBUG, "answered {method} {route} with {status}"),
        }
    }
}

/// The problem in a response: a handler's own, or what a bare error status stands for.
fn problem_in(response: &mut Response<Body>) -> Option<Problem> {
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        return Some(problem);
    }
    let mut problem = Problem::of_status(response.status())?;
    match response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes) {
        // Text with an error status comes from axum's own refusals; a route that answers in JSON meant it.
        None => {}
        Some(media) if media.starts_with(b"text/plain") => {}
        Some(_) => return None,
    }
    if problem.kind == &problem::METHOD_NOT_ALLOWED {
        problem.detail = "see the Allow header for the methods of this route".into();
    }
    Some(problem)
}

/// What depends on the route alone, found out with its first request of each method.
#[derive(Default)]
struct Route {
    by_method: [OnceLock<Arc<Stats>>; 8],
}

struct Stats {
    route: &'static str,
    method: &'static str,
    class: RouteClass,
    duration: Histogram,
    answered: [OnceLock<Counter>; STATUSES.len()],
}

/// The statuses that we send.
const STATUSES: [u16; 18] = [200, 201, 204, 304, 400, 401, 403, 404, 405, 408, 409, 412, 413, 415, 422, 429, 500, 503];

impl Route {
    fn stats(&self, request: &Request<Body>) -> Arc<Stats> {
        let (index, method) = match *request.method() {
            Method::GET => (0, "GET"),
            Method::HEAD => (1, "HEAD"),
            Method::POST => (2, "POST"),
            Method::PUT => (3, "PUT"),
            Method::PATCH => (4, "PATCH"),
            Method::DELETE => (5, "DELETE"),
            Method::OPTIONS => (6, "OPTIONS"),
            // Clients invent methods; a label for each would be theirs to fill our memory with.
            _ => (7, "other"),
        };
        let make = || {
            let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str);
            Arc::new(Stats::new(String::from(route).leak(), method, RouteClass::of(request.method(), route)))
        };
        self.by_method[index].get_or_init(make).clone()
    }
}

impl Stats {
    /// The route's name lives as long as the process: there are as many as there are routes.
    fn new(route: &'static str, method: &'static str, class: RouteClass) -> Self {
        let duration = metrics::histogram!("http_request_duration_seconds", "route" => route, "method" => method);
        Self { route, method, class, duration, answered: Default::default() }
    }

    fn answered(&self, status: StatusCode) -> Counter {
        let make = || {
            metrics::counter!("http_requests_total",
                "route" => self.route, "method" => self.method, "status" => status.as_str().to_owned())
        };
        match STATUSES.iter().position(|known| *known == status.as_u16()) {
            Some(index) => self.answered[index].get_or_init(make).clone(),
            None => make(),
        }
    }
}
