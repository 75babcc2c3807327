//! What the edge costs: the same 500 bytes through a bare axum (8090) and through the whole chain (8091).
//!
//! Run with `cargo run --release --example edge`, then point a load generator at both.

use std::sync::Arc;

use axum::routing::get;
use futures_util::future::BoxFuture;
use rookery_gateway::auth::{RevokedSessions, Verifier};
use rookery_gateway::chain::Edge;
use rookery_gateway::health::{Health, Report, metrics_handle};
use rookery_gateway::server::{Limits, bind, serve};
use rookery_gateway::{GatewayConfig, Parts, build};
use utoipa_axum::router::OpenApiRouter;

struct Idle;

impl Health for Idle {
    fn report(&self) -> BoxFuture<'_, Report> {
        let report = Report { probes: Default::default(), uptime_s: 0, restarts: 0, breakers: Default::default() };
        Box::pin(async { report })
    }
}

static BODY: &str = match str::from_utf8(&[b'x'; 500]) {
    Ok(body) => body,
    Err(_) => "",
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bare = axum::Router::new().route("/api/v1/posts/{id}", get(async || BODY));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8090").await?;
    tokio::spawn(async { axum::serve(listener, bare).await });

    let config = GatewayConfig { rate_limits: false, cors_origins: vec!["*".into()], ..Default::default() };
    let limits = Limits::from(&config);
    let revoked = Arc::new(RevokedSessions::default());
    let verifier = Verifier::new("rookery", "rookery", 100, revoked);
    let edge = Edge::new(config, Arc::new(verifier));
    let api = OpenApiRouter::new().route("/api/v1/posts/{id}", get(async || BODY));
    let metrics = metrics_handle();
    let parts = Parts { api, admin: axum::Router::new(), health: Arc::new(Idle), metrics };
    let router = build(&edge, parts)?;
    let socket = bind(([127, 0, 0, 1], 8091).into())?;
    let listener = tokio::net::TcpListener::from_std(socket)?;
    serve(listener, router, limits, std::future::pending()).await?;
    Ok(())
}
