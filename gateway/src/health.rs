//! Health and metrics, for the gateway's port and for the ports of the services.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// How well something works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = HealthStatus)]
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

impl Probe {
    /// The milliseconds of a look, without digits that nobody has measured.
    pub fn milliseconds(took: Duration) -> f64 {
        took.as_micros() as f64 / 1e3
    }
}

/// The health of a node or of one of its services.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(as = HealthReport)]
pub struct Report {
    /// Every probe by its name, as in `posts.database`.
    pub probes: BTreeMap<String, Probe>,
    /// Since the process started, in seconds.
    pub uptime_s: u64,
    /// Gateways, shards and entities that failed since then and were started again.
    pub restarts: u64,
    /// Circuit breakers by service: `closed`, `open` or `half_open`; none without a gateway.
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
    documented(health, metrics).into()
}

/// The same with their documentation.
pub(crate) fn documented(health: Arc<dyn Health>, metrics: PrometheusHandle) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(livez))
        .routes(routes!(readyz))
        .routes(routes!(describe))
        .routes(routes!(render_metrics))
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

/// Whether the process runs
///
/// Asks nothing else.
#[utoipa::path(
    get,
    path = "/livez",
    tag = "Operations",
    operation_id = "livez",
    responses((status = 200, description = "It runs.", body = String, content_type = "text/plain"))
)]
async fn livez() -> &'static str {
    "ok\n"
}

/// Whether a node can serve its roles.
#[derive(Serialize, utoipa::ToSchema)]
struct Readiness<'a> {
    /// The worst of all probes.
    status: Status,
    /// Those that are not `ok`; with `verbose` all.
    #[schema(value_type = BTreeMap<String, Probe>)]
    probes: BTreeMap<&'a str, &'a Probe>,
}

/// Whether the node can serve
///
/// Looks at what its own roles need: databases and leases; of a gateway, that it reaches a service. What is missing
/// elsewhere is degraded, and what is degraded serves.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "Operations",
    operation_id = "readyz",
    params(("verbose" = Option<bool>, Query, description = "Show every probe; needs no value.")),
    responses(
        (status = 200, description = "It can; what is degraded is shown.", body = Readiness),
        (status = 503, description = "It cannot; the probes that failed say why.", body = Readiness),
    )
)]
async fn readyz(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let report = shared.health.report().await;
    let status = if report.status() == Status::Failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let verbose = query.is_some_and(|query| query.split('&').any(|part| part.split('=').next() == Some("verbose")));
    // Who is not ready always says why; who is, only when asked.
    let shown = report.probes.iter().filter(|(_, probe)| verbose || probe.status != Status::Ok);
    let probes = shown.map(|(name, probe)| (name.as_str(), probe)).collect();
    let body = Readiness { status: report.status(), probes };
    (status, [(header::CACHE_CONTROL, "no-store")], axum::Json(body)).into_response()
}

/// A node's health, for people and dashboards.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Health)]
struct Described {
    /// The worst of all probes.
    status: Status,
    #[serde(flatten)]
    report: Report,
    /// Memory that the process holds, where the machine tells it.
    memory_rss_bytes: Option<u64>,
    /// Of this program.
    #[schema(example = "0.1.0")]
    version: &'static str,
}

/// How the node is
///
/// Always 200: the status is in the body.
#[utoipa::path(
    get,
    path = "/health",
    tag = "Operations",
    operation_id = "health",
    responses((status = 200, description = "Every probe, and how the process is.", body = Described))
)]
async fn describe(State(shared): State<Shared>) -> Response {
    let report = shared.health.report().await;
    let described =
        Described { status: report.status(), report, memory_rss_bytes: memory_rss_bytes(), version: env!("CARGO_PKG_VERSION") };
    ([(header::CACHE_CONTROL, "no-store")], axum::Json(described)).into_response()
}

/// Metrics
///
/// For Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "Operations",
    operation_id = "metrics",
    responses((status = 200, description = "In Prometheus' text format.", body = String, content_type = "text/plain"))
)]
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
