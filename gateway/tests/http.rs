//! The edge against real sockets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::routing::{get, post};
use futures_util::future::BoxFuture;
use ractor::Actor;
use reqwest::StatusCode;
use rookery_gateway::auth::{Claims, RevokedSessions, SigningKey, Verifier};
use rookery_gateway::chain::Edge;
use rookery_gateway::extract::{CurrentUser, Json};
use rookery_gateway::health::{Health, Probe, Report, Status, metrics_handle};
use rookery_gateway::limits::Allowance;
use rookery_gateway::{Gateway, GatewayConfig, Parts, actor, server};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

#[derive(serde::Deserialize, serde::Serialize, garde::Validate)]
#[serde(deny_unknown_fields)]
struct Draft {
    #[garde(length(chars, min = 1))]
    title: String,
}

/// A node whose probes all say the same.
struct Always(Status);

impl Health for Always {
    fn report(&self) -> BoxFuture<'_, Report> {
        let probe = Probe { status: self.0, latency_ms: None, detail: Some("as told".into()) };
        let probes = [("posts.database".to_owned(), probe)].into();
        let report = Report { probes, uptime_s: 1, restarts: 0, breakers: Default::default() };
        Box::pin(async { report })
    }
}

/// A running gateway with a few routes.
struct Edged {
    address: SocketAddr,
    actor: ractor::ActorRef<actor::Message>,
    handle: tokio::task::JoinHandle<()>,
    socket: server::Socket,
    edge: Arc<Edge>,
    entered: Arc<Notify>,
    release: Arc<Notify>,
    verifier: Arc<Verifier>,
    client: reqwest::Client,
}

impl Edged {
    async fn start() -> Self {
        Self::with(GatewayConfig::default(), Status::Ok).await
    }

    async fn with(config: GatewayConfig, health: Status) -> Self {
        let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (on_enter, on_release) = (entered.clone(), release.clone());
        let wait = move || {
            let (entered, release) = (on_enter.clone(), on_release.clone());
            async move {
                entered.notify_one();
                release.notified().await;
                "released"
            }
        };
        let api = OpenApiRouter::new()
            .route("/api/v1/hello", get(async || "hello"))
            .route("/api/v1/panic", get(async || -> &'static str { panic!("on purpose") }))
            .route("/api/v1/wait", get(wait))
            .route("/api/v1/auth/login", post(async || "in"))
            .route("/api/v1/echo", post(async |Json(draft): Json<Draft>| Json(draft)))
            .route("/api/v1/me", get(async |CurrentUser(claims): CurrentUser| claims.name.clone()))
            .route("/api/v1/long", get(async || Body::from("long ".repeat(1000))));
        let verifier = Arc::new(Verifier::new("rookery", "rookery", 100, Arc::new(RevokedSessions::default())));
        verifier.set_keys(vec![key().public()]);
        let edge = Edge::new(config, verifier.clone());
        let parts = Parts { api, admin: axum::Router::new(), health: Arc::new(Always(health)), metrics: metrics_handle() };
        let router = rookery_gateway::build(&edge, parts).unwrap();
        let socket = server::Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let arguments = actor::Arguments { socket: socket.clone(), router, edge: edge.clone(), metrics: metrics_handle() };
        let (actor, handle) = Actor::spawn(None, Gateway, arguments).await.unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { address, actor, handle, socket, edge, entered, release, verifier, client }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(self.url(path)).send().await.unwrap()
    }

    async fn post(&self, body: impl Into<reqwest::Body>) -> reqwest::Response {
        let request = self.client.post(self.url("/api/v1/echo")).header("content-type", "application/json");
        request.body(body).send().await.unwrap()
    }

    async fn me(&self, token: &str) -> StatusCode {
        self.client.get(self.url("/api/v1/me")).bearer_auth(token).send().await.unwrap().status()
    }
}

fn key() -> SigningKey {
    SigningKey::from_seed("k1", &[1; 32]).unwrap()
}

fn claims() -> Claims {
    let now = jiff::Timestamp::now().as_second();
    Claims {
        sub: Uuid::from_u128(1),
        sid: Uuid::from_u128(2),
        name: "ada".into(),
        roles: vec![],
        iss: "rookery".into(),
        aud: "rookery".into(),
        iat: now,
        nbf: now,
        exp: now + 900,
    }
}

async fn problem(response: reqwest::Response, status: u16, slug: &str) -> Value {
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["type"], format!("/problems/{slug}"));
    assert_eq!(problem["request_id"], id);
    problem
}

#[tokio::test]
async fn an_unknown_route_is_a_problem_that_names_itself() {
    let edge = Edged::start().await;
    let problem = problem(edge.get("/nowhere").await, 404, "no-such-route").await;
    assert_eq!(problem["instance"], "/nowhere");
}

#[tokio::test]
async fn a_wrong_method_is_a_problem_that_lists_the_right_ones() {
    let edge = Edged::start().await;
    let response = edge.client.delete(edge.url("/api/v1/hello")).send().await.unwrap();
    assert_eq!(response.headers()["allow"], "GET,HEAD");
    problem(response, 405, "method-not-allowed").await;
}

#[tokio::test]
async fn every_type_of_problem_has_a_page() {
    let edge = Edged::start().await;
    for kind in rookery_gateway::problem::KINDS {
        assert_eq!(edge.get(&format!("/problems/{}", kind.slug)).await.status(), 200);
    }
}

#[tokio::test]
async fn a_panic_is_a_problem_and_the_server_lives_on() {
    let edge = Edged::start().await;
    problem(edge.get("/api/v1/panic").await, 500, "internal").await;
    assert_eq!(edge.get("/api/v1/hello").await.status(), 200);
}

#[tokio::test]
async fn a_valid_request_id_comes_back() {
    let edge = Edged::start().await;
    let request = edge.client.get(edge.url("/api/v1/hello")).header("x-request-id", "abc-1");
    assert_eq!(request.send().await.unwrap().headers()["x-request-id"], "abc-1");
}

#[tokio::test]
async fn an_invalid_request_id_is_replaced() {
    let edge = Edged::start().await;
    let request = edge.client.get(edge.url("/api/v1/hello")).header("x-request-id", "a b<script>");
    let id = request.send().await.unwrap().headers()["x-request-id"].to_str().unwrap().to_owned();
    assert!(Uuid::parse_str(&id).is_ok());
}

#[tokio::test]
async fn a_trace_is_continued() {
    let edge = Edged::start().await;
    let sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let request = edge.client.get(edge.url("/api/v1/hello")).header("traceparent", sent);
    let back = request.send().await.unwrap().headers()["traceparent"].to_str().unwrap().to_owned();
    assert!(back.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && back != sent);
}

#[tokio::test]
async fn a_good_body_is_answered() {
    let edge = Edged::start().await;
    let answer: Value = edge.post(r#"{"title":"hi"}"#).await.json().await.unwrap();
    assert_eq!(answer, json!({ "title": "hi" }));
}

#[tokio::test]
async fn a_body_of_ten_megabytes_is_refused_and_not_reset() {
    let edge = Edged::with(GatewayConfig { body_limit_bytes: 70_000, ..GatewayConfig::default() }, Status::Ok).await;
    let refused = problem(edge.post(vec![b' '; 10_000_000]).await, 413, "too-large").await;
    assert_eq!(refused["detail"], "the body is larger than 70000 bytes");
}

#[tokio::test]
async fn a_chunked_body_of_ten_megabytes_is_refused_and_not_reset() {
    let edge = Edged::start().await;
    let chunks = futures_util::stream::repeat_with(|| io::Result::Ok(vec![b' '; 100_000]));
    let chunks = futures_util::StreamExt::take(chunks, 100);
    let refused = problem(edge.post(reqwest::Body::wrap_stream(chunks)).await, 413, "too-large").await;
    assert_eq!(refused["detail"], format!("the body is larger than {} bytes", GatewayConfig::default().body_limit_bytes));
}

#[tokio::test]
async fn deep_nesting_is_refused_clearly() {
    let edge = Edged::start().await;
    let body = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    problem(edge.post(body).await, 400, "nested-too-deeply").await;
}

#[tokio::test]
async fn a_body_that_is_not_declared_as_json_is_refused() {
    let edge = Edged::start().await;
    let response = edge.client.post(edge.url("/api/v1/echo")).body("{}").send().await.unwrap();
    problem(response, 415, "unsupported-media-type").await;
}

#[tokio::test]
async fn an_unknown_field_is_named() {
    let edge = Edged::start().await;
    let problem = problem(edge.post(r#"{"title":"a","x":1}"#).await, 422, "invalid").await;
    assert_eq!(problem["errors"][0]["field"], "x");
}

#[tokio::test]
async fn our_token_is_accepted_and_others_are_not() {
    let edge = Edged::start().await;
    let issue = |claims: Claims| key().issue(&claims).unwrap();
    assert_eq!(edge.me(&issue(claims())).await, 200);
    assert_eq!(edge.me(&issue(Claims { exp: claims().iat - 60, ..claims() })).await, 401);
    assert_eq!(edge.me(&issue(Claims { aud: "other".into(), ..claims() })).await, 401);
    let forger = SigningKey::from_seed("k1", &[2; 32]).unwrap();
    assert_eq!(edge.me(&forger.issue(&claims()).unwrap()).await, 401);
    problem(edge.get("/api/v1/me").await, 401, "unauthenticated").await;
}

#[tokio::test]
async fn a_revoked_session_is_refused_at_once() {
    let edge = Edged::start().await;
    let token = key().issue(&claims()).unwrap();
    assert_eq!(edge.me(&token).await, 200);
    edge.verifier.revoked().revoke(claims().sid, claims().iat);
    assert_eq!(edge.me(&token).await, 401);
}

#[tokio::test]
async fn the_key_set_is_published() {
    let edge = Edged::start().await;
    let keys: Value = edge.get("/.well-known/jwks.json").await.json().await.unwrap();
    assert_eq!((&keys["keys"][0]["kid"], &keys["keys"][0]["crv"]), (&json!("k1"), &json!("Ed25519")));
}

#[tokio::test]
async fn a_quota_is_announced_and_its_end_is_a_problem() {
    let mut config = GatewayConfig::default();
    config.quotas.read = Allowance { per_minute: 6.try_into().unwrap(), burst: 1.try_into().unwrap() };
    let edge = Edged::with(config, Status::Ok).await;
    let first = edge.get("/api/v1/hello").await;
    assert_eq!(first.headers()["ratelimit-policy"], "\"read\";q=1;w=10");
    assert_eq!(first.headers()["ratelimit"], "\"read\";r=0;t=10");
    let second = edge.get("/api/v1/hello").await;
    assert!(second.headers().contains_key("retry-after"));
    problem(second, 429, "rate-limited").await;
}

#[tokio::test]
async fn whoever_guesses_passwords_gets_no_further_with_many_accounts() {
    let mut config = GatewayConfig::default();
    config.quotas.auth = Allowance { per_minute: 6.try_into().unwrap(), burst: 1.try_into().unwrap() };
    let edge = Edged::with(config, Status::Ok).await;
    let log_in_as = async |sub| {
        let token = key().issue(&Claims { sub, ..claims() }).unwrap();
        edge.client.post(edge.url("/api/v1/auth/login")).bearer_auth(token).send().await.unwrap().status()
    };
    assert_eq!(log_in_as(Uuid::from_u128(1)).await, 200);
    assert_eq!(log_in_as(Uuid::from_u128(2)).await, 429);
}

#[tokio::test]
async fn a_full_gateway_sheds_requests_but_not_its_health() {
    let edge = Edged::with(GatewayConfig { requests_max: 1, ..Default::default() }, Status::Ok).await;
    let waiting = tokio::spawn(edge.client.get(edge.url("/api/v1/wait")).send());
    edge.entered.notified().await;
    problem(edge.get("/api/v1/hello").await, 503, "unavailable").await;
    assert_eq!(edge.get("/livez").await.status(), 200);
    edge.release.notify_one();
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_given_up() {
    let edge = Edged::with(GatewayConfig { request_timeout_ms: 50, ..Default::default() }, Status::Ok).await;
    problem(edge.get("/api/v1/wait").await, 503, "deadline-exceeded").await;
}

#[tokio::test]
async fn a_slow_head_is_cut_off() {
    let edge = Edged::with(GatewayConfig { header_timeout_ms: 100, ..Default::default() }, Status::Ok).await;
    for start in [&b""[..], b"P", b"GET / HTTP/1.1\r\nhost: x\r\n"] {
        let mut socket = TcpStream::connect(edge.address).await.unwrap();
        socket.write_all(start).await.unwrap();
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "{start:?} kept its connection");
    }
}

#[tokio::test]
async fn garbage_after_a_request_does_not_spoil_its_answer() {
    let edge = Edged::start().await;
    let mut socket = TcpStream::connect(edge.address).await.unwrap();
    socket.write_all(b"GET /api/v1/hello HTTP/1.1\r\nhost: x\r\n\r\n\x00\x01garbage\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("HTTP/1.1 400"), "{answer}");
}

/// Sends a request as it is written; what comes back until the connection is closed.
async fn raw(edge: &Edged, request: &str) -> String {
    let mut socket = TcpStream::connect(edge.address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// What was broken: whoever closed its half after the request got no answer, although the request was carried out.
#[tokio::test]
async fn whoever_has_nothing_more_to_ask_gets_the_answer_and_then_the_end() {
    let edge = Edged::start().await;
    let asked = raw(&edge, "GET /api/v1/wait HTTP/1.1\r\nhost: x\r\n\r\n");
    let release = async {
        edge.entered.notified().await;
        // The gateway has seen the end of what it is asked.
        edge.get("/api/v1/hello").await;
        edge.release.notify_one();
    };
    let (answer, ()) = tokio::join!(asked, release);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("released"), "{answer}");
    let body = r#"{"title":"hi"}"#;
    let head = format!("host: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
    let answer = raw(&edge, &format!("POST /api/v1/echo HTTP/1.1\r\n{head}\r\n{body}")).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(body), "{answer}");
    // Nothing was asked: there is nothing to wait for.
    assert_eq!(raw(&edge, "").await, "");
}

/// What was broken: the first of two lines counted, whoever had put the other one beside it.
#[tokio::test]
async fn a_header_that_may_come_once_is_refused_when_it_comes_twice() {
    let edge = Edged::start().await;
    let twice = async |lines: &str| raw(&edge, &format!("GET /api/v1/hello HTTP/1.1\r\n{lines}\r\n")).await;
    for name in ["authorization", "content-type", "idempotency-key", "x-search-after", "origin"] {
        let answer = twice(&format!("host: x\r\n{name}: a\r\naccept: */*\r\n{name}: b\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("/problems/bad-request"), "{name}: {answer}");
        assert!(answer.contains(&format!("the header {name} may come once")), "{name}: {answer}");
    }
    assert!(twice("host: x\r\nhost: y\r\n").await.contains("the header host may come once"));
    // hyper refuses these itself.
    assert!(twice("host: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n").await.starts_with("HTTP/1.1 400"));
    // Lists come in several lines, and what only informs is left out.
    for name in
        ["accept", "accept-encoding", "if-none-match", "x-forwarded-for", "cookie", "traceparent", "x-request-id", "user-agent"]
    {
        let answer = twice(&format!("host: x\r\n{name}: a\r\n{name}: b\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer}");
    }
}

#[tokio::test]
async fn stopping_finishes_the_requests_in_flight() {
    let edge = Edged::start().await;
    let waiting = tokio::spawn(edge.client.get(edge.url("/api/v1/wait")).send());
    edge.entered.notified().await;
    edge.actor.stop(None);
    edge.release.notify_one();
    assert_eq!(waiting.await.unwrap().unwrap().text().await.unwrap(), "released");
    edge.handle.await.unwrap();
}

#[tokio::test]
async fn whoever_connects_while_a_node_stops_is_refused_and_goes_elsewhere() {
    let edge = Edged::start().await;
    let waiting = tokio::spawn(edge.client.get(edge.url("/api/v1/wait")).send());
    edge.entered.notified().await;
    edge.socket.close();
    edge.actor.stop(None);
    let refused = async {
        while TcpStream::connect(edge.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), refused).await.expect("the socket is closed before the last answer");
    edge.release.notify_one();
    assert_eq!(waiting.await.unwrap().unwrap().text().await.unwrap(), "released");
    edge.handle.await.unwrap();
}

#[tokio::test]
async fn whoever_was_connected_at_the_last_moment_is_served() {
    let edge = Edged::start().await;
    // Without a word to the runtime: the gateway learns of them only as it closes.
    let connect = |_| {
        let mut socket = std::net::TcpStream::connect(edge.address).unwrap();
        io::Write::write_all(&mut socket, b"GET /api/v1/hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        socket
    };
    let sockets: Vec<_> = (0..20).map(connect).collect();
    edge.socket.close();
    edge.actor.stop(None);
    for socket in sockets {
        socket.set_nonblocking(true).unwrap();
        let mut answer = String::new();
        TcpStream::from_std(socket).unwrap().read_to_string(&mut answer).await.expect("nobody is reset");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    edge.handle.await.unwrap();
}

#[tokio::test]
async fn who_asks_over_an_old_connection_at_the_last_moment_is_served() {
    let edge = Edged::start().await;
    let mut sockets = Vec::new();
    for _ in 0..20 {
        let mut socket = TcpStream::connect(edge.address).await.unwrap();
        socket.write_all(b"GET /api/v1/hello HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 15];
        socket.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        sockets.push(socket);
    }
    // Without a word to the runtime: the kernel has the requests, and the gateway has not looked.
    for socket in &sockets {
        let sent = socket.try_write(b"GET /api/v1/hello HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert_eq!(sent, 39);
    }
    edge.actor.stop(None);
    for mut socket in sockets {
        let mut answers = String::new();
        socket.read_to_string(&mut answers).await.expect("nobody is reset");
        assert!(answers.contains("HTTP/1.1 200 OK"), "{answers}");
    }
    edge.handle.await.unwrap();
}

#[tokio::test]
async fn a_gateway_that_leaves_serves_and_sends_its_clients_elsewhere() {
    let edge = Edged::start().await;
    assert_eq!(edge.get("/api/v1/hello").await.headers().get("connection"), None);
    edge.edge.leave();
    let mut socket = TcpStream::connect(edge.address).await.unwrap();
    socket.write_all(b"GET /api/v1/hello HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let closed = tokio::time::timeout(Duration::from_secs(5), socket.read_to_string(&mut answer)).await;
    assert!(closed.is_ok(), "the connection ends with the answer");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn a_connection_made_between_two_gateways_is_served_by_the_second() {
    let first = Edged::start().await;
    first.actor.stop(None);
    first.handle.await.unwrap();
    let waiting = tokio::spawn(first.client.get(format!("http://{}/livez", first.address)).send());
    let edge = Edge::new(GatewayConfig::default(), first.verifier.clone());
    let parts = Parts {
        api: OpenApiRouter::new(),
        admin: axum::Router::new(),
        health: Arc::new(Always(Status::Ok)),
        metrics: metrics_handle(),
    };
    let router = rookery_gateway::build(&edge, parts).unwrap();
    let arguments = actor::Arguments { socket: first.socket, router, edge, metrics: metrics_handle() };
    let _second = Actor::spawn(None, Gateway, arguments).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_node_that_is_not_ready_says_what_failed() {
    let edge = Edged::with(GatewayConfig::default(), Status::Failed).await;
    let response = edge.get("/readyz").await;
    assert_eq!(response.status(), 503);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["probes"]["posts.database"]["status"], "failed");
}

#[tokio::test]
async fn a_degraded_node_is_ready() {
    let edge = Edged::with(GatewayConfig::default(), Status::Degraded).await;
    assert_eq!(edge.get("/readyz?verbose").await.status(), 200);
}

#[tokio::test]
async fn what_is_asked_for_operations_is_documented_as_it_is_answered() {
    let edge = Edged::with(GatewayConfig::default(), Status::Degraded).await;
    let document: Value = edge.get("/openapi.json").await.json().await.unwrap();
    for path in ["/livez", "/readyz", "/health", "/metrics", "/.well-known/jwks.json"] {
        let operation = &document["paths"][path]["get"];
        assert!(operation["summary"].is_string() && operation["tags"] == json!(["Operations"]), "{path}: {operation}");
        let media = edge.get(path).await.headers()["content-type"].to_str().unwrap().to_owned();
        let media = media.split(';').next().unwrap();
        assert!(operation["responses"]["200"]["content"][media].is_object(), "{path} answers {media}: {operation}");
    }
    let schemas = &document["components"]["schemas"];
    let mut described: Vec<&str> = Vec::new();
    for part in schemas["Health"]["allOf"].as_array().unwrap() {
        let name = part["$ref"].as_str().and_then(|name| name.strip_prefix("#/components/schemas/"));
        let part = name.map_or(part, |name| &schemas[name]);
        described.extend(part["properties"].as_object().unwrap().keys().map(String::as_str));
    }
    let health: Value = edge.get("/health").await.json().await.unwrap();
    let mut answered: Vec<_> = health.as_object().unwrap().keys().map(String::as_str).collect();
    described.sort_unstable();
    answered.sort_unstable();
    assert_eq!(described, answered);
    for name in document.to_string().split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(schemas[name].is_object(), "{name} is missing");
    }
}

#[tokio::test]
async fn metrics_count_by_route_and_status() {
    let edge = Edged::start().await;
    edge.get("/api/v1/hello").await;
    let metrics = edge.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains(r#"http_requests_total{route="/api/v1/hello",method="GET",status="200"}"#), "{metrics}");
}

#[tokio::test]
async fn a_long_body_is_compressed_for_who_asks() {
    let edge = Edged::start().await;
    let asked = edge.client.get(edge.url("/api/v1/long")).header("accept-encoding", "gzip").send().await.unwrap();
    assert_eq!(asked.headers()["content-encoding"], "gzip");
    let plain = edge.get("/api/v1/long").await;
    assert_eq!(plain.headers().get("content-encoding"), None);
    assert_eq!(plain.headers()["vary"], "accept-encoding");
}

#[tokio::test]
async fn no_origin_is_allowed_unless_configured() {
    let edge = Edged::start().await;
    let request = edge.client.get(edge.url("/api/v1/hello")).header("origin", "https://example.org");
    assert!(!request.send().await.unwrap().headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_configured_origin_may_ask_before_it_posts() {
    let config = GatewayConfig { cors_origins: vec!["https://example.org".into()], ..Default::default() };
    let edge = Edged::with(config, Status::Ok).await;
    let request = edge.client.request(reqwest::Method::OPTIONS, edge.url("/api/v1/echo"));
    let request = request.header("origin", "https://example.org").header("access-control-request-method", "POST");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["access-control-allow-origin"], "https://example.org");
}

#[tokio::test]
async fn the_documentation_loads_nothing_from_elsewhere() {
    let edge = Edged::start().await;
    let page = edge.get("/docs/").await;
    assert_eq!(page.status(), 200);
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("script-src 'self'"));
    let page = page.text().await.unwrap();
    assert!(!page.contains("src=\"http") && page.contains("<title>Rookery") && !page.contains("Swagger UI"), "{page}");
    let scripts = page.split("src=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned);
    for path in scripts.chain(links(&page)) {
        assert_eq!(edge.get(&path).await.status(), 200, "{path}");
    }
    let contract: Value = edge.get("/openapi.json").await.json().await.unwrap();
    assert!(contract["openapi"].as_str().unwrap().starts_with("3."));
}

#[tokio::test]
async fn whoever_opens_the_address_finds_the_way_from_there() {
    let edge = Edged::start().await;
    let answer = edge.get("/").await;
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(answer.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    let page = answer.text().await.unwrap();
    assert!(page.contains(&format!("Version {}", env!("CARGO_PKG_VERSION"))), "{page}");
    // Every link leads somewhere, those of the pages behind it too.
    let mut paths = links(&page);
    for wanted in ["/docs/", "/health", "/problems/", "/openapi.json", "/favicon.ico"] {
        assert!(paths.iter().any(|path| path == wanted), "{wanted}: {page}");
    }
    paths.extend(links(&edge.get("/problems/").await.text().await.unwrap()));
    assert!(paths.len() > 20, "{paths:?}");
    for path in paths {
        assert_eq!(edge.get(&path).await.status(), 200, "{path}");
    }
}

fn links(page: &str) -> Vec<String> {
    page.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_index_of_problems_names_every_kind() {
    let edge = Edged::start().await;
    for path in ["/problems", "/problems/"] {
        let page = edge.get(path).await.text().await.unwrap();
        for kind in rookery_gateway::problem::KINDS {
            assert!(page.contains(&format!("\"/problems/{}\"", kind.slug)), "{}: {page}", kind.slug);
        }
    }
    problem(edge.get("/problems/nonsense").await, 404, "not-found").await;
}

#[tokio::test]
async fn browsers_and_crawlers_get_what_they_ask_every_server_for() {
    let edge = Edged::start().await;
    let icon = edge.get("/favicon.ico").await;
    assert_eq!(icon.headers()["content-type"], "image/x-icon");
    assert_eq!(&icon.bytes().await.unwrap()[..4], [0, 0, 1, 0]);
    let robots = edge.get("/robots.txt").await;
    assert!(robots.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    assert!(robots.text().await.unwrap().starts_with("User-agent: *\n"));
}

#[tokio::test]
async fn security_headers_are_on_every_answer() {
    let edge = Edged::start().await;
    let response = edge.get("/nowhere").await;
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    assert!(response.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
}
