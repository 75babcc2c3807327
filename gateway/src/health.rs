//! Health and metrics, for the gateway's port and for the ports of the services.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::future::BoxFuture;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::Serialize;

/// How well something works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should.
    Ok,
    /// Well enough to serve.
    Degraded,
    /// Not.
    Failed,
}

/// What a look at one dependency or duty found.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Probe {
    /// How well it works.
    pub status: Status,
    /// How long the look took, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// What is wrong, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The health of a node or of one of its services.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Report {
    /// Every probe by its name, as in `posts.database`.
    pub probes: BTreeMap<String, Probe>,
    /// Since the process started, in seconds.
    pub uptime_s: u64,
    /// Actors restarted since then.
    pub restarts: u64,
    /// Circuit breakers by service: `closed`, `open` or `half_open`.
    pub breakers: BTreeMap<String, String>,
}

impl Report {
    /// The worst of all probes.
    pub fn status(&self) -> Status {
        self.probes.values().map(|probe| probe.status).max().unwrap_or(Status::Ok)
    }
}

/// Looks after a node's health; given to [`router`] by whoever runs the node.
pub trait Health: Send + Sync + 'static {
    /// Looks at everything that the node's roles need. Has to answer within a second or two, also when they do not.
    fn report(&self) -> BoxFuture<'_, Report>;
}

#[derive(Clone)]
struct Shared {
    health: Arc<dyn Health>,
    metrics: PrometheusHandle,
}

/// `/livez`, `/readyz`, `/health` and `/metrics`.
pub fn router(health: Arc<dyn Health>, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/health", get(describe))
        .route("/metrics", get(render_metrics))
        .with_state(Shared { health, metrics })
}

/// Installs the process's metrics recorder, once, and returns what renders it.
///
/// # Panics
/// If another recorder was installed by someone else.
pub fn metrics_handle() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    let install = || {
        PrometheusBuilder::new()
            .set_buckets(&[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0])
            .expect("the list of buckets is not empty")
            .install_recorder()
            .expect("the gateway alone installs the recorder")
    };
    HANDLE.get_or_init(install).clone()
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let report = shared.health.report().await;
    let status = if report.status() == Status::Failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let verbose = query.is_some_and(|query| query.split('&').any(|part| part.split('=').next() == Some("verbose")));
    // Who is not ready always says why; who is, only when asked.
    let probes: BTreeMap<_, _> = report.probes.iter().filter(|(_, probe)| verbose || probe.status != Status::Ok).collect();
    let body = serde_json::json!({ "status": report.status(), "probes": probes });
    (status, [(header::CACHE_CONTROL, "no-store")], axum::Json(body)).into_response()
}

async fn describe(State(shared): State<Shared>) -> Response {
    #[derive(Serialize)]
    struct Described {
        status: Status,
        #[serde(flatten)]
        report: Report,
        memory_rss_bytes: Option<u64>,
        version: &'static str,
    }
    let report = shared.health.report().await;
    let described =
        Described { status: report.status(), report, memory_rss_bytes: memory_rss_bytes(), version: env!("CARGO_PKG_VERSION") };
    ([(header::CACHE_CONTROL, "no-store")], axum::Json(described)).into_response()
}

async fn render_metrics(State(shared): State<Shared>) -> Response {
    if let Some(bytes) = memory_rss_bytes() {
        metrics::gauge!("process_resident_memory_bytes").set(bytes as f64);
    }
    let media = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, media)], shared.metrics.render()).into_response()
}

/// Resident memory of this process, where `/proc` tells it.
fn memory_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
