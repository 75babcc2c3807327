//! How the node is: what its roles need, looked at within a second.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, FutureExt, join_all};
use metrics_exporter_prometheus::PrometheusHandle;
use rookery_actors::{runtime::Runtime, service::Service, supervisor::SupervisorRef};
use rookery_gateway::{
    GatewayConfig, Services,
    health::{self, Health, Probe, Report, Status},
    server::Limits,
};
use tokio::{sync::watch, task::JoinHandle};

use super::{NamedBridge, services::Started};
use crate::{config::Config, kafka};

/// A probe that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(1);
/// A bridge further behind than this makes the node degraded.
const LAG_MAX: Duration = Duration::from_secs(10);

pub(super) struct NodeHealth {
    started: Instant,
    services: Vec<Box<dyn Probed>>,
    bridges: Arc<Vec<NamedBridge>>,
    breakers: Arc<Services>,
    tree: SupervisorRef,
    kafka: Option<Arc<kafka::client::Probe>>,
}

/// A service, as far as health is concerned.
trait Probed: Send + Sync {
    fn name(&self) -> &'static str;
    fn database(&self) -> BoxFuture<'_, Probe>;
    fn serving(&self) -> Probe;
}

impl<S: Service> Probed for Runtime<S> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn database(&self) -> BoxFuture<'_, Probe> {
        async move {
            let began = Instant::now();
            let ask = async {
                let client = Runtime::database(self).get().await.map_err(|failure| failure.to_string())?;
                client.simple_query("SELECT 1").await.map_err(|error| error.to_string())
            };
            let (status, detail) = match tokio::time::timeout(PATIENCE, ask).await {
                Ok(Ok(_)) => (Status::Ok, None),
                Ok(Err(reason)) => (Status::Failed, Some(reason)),
                Err(_) => (Status::Failed, Some("no answer within a second".to_owned())),
            };
            Probe { status, latency_ms: Some(began.elapsed().as_secs_f64() * 1e3), detail }
        }
        .boxed()
    }

    fn serving(&self) -> Probe {
        let owned = self.owned().len();
        let (status, detail) = if !self.lease().is_valid() {
            (Status::Failed, Some("the lease has ended".to_owned()))
        } else if owned < usize::from(self.shards()) {
            (Status::Failed, Some(format!("{owned} of {} shards are served", self.shards())))
        } else {
            (Status::Ok, None)
        };
        Probe { status, latency_ms: None, detail }
    }
}

impl NodeHealth {
    pub(super) fn new(
        started: Instant,
        services: &Started,
        bridges: &Arc<Vec<NamedBridge>>,
        breakers: Arc<Services>,
        tree: SupervisorRef,
        kafka: Option<Arc<kafka::client::Probe>>,
    ) -> Self {
        let services: Vec<Box<dyn Probed>> = vec![
            Box::new(services.users.runtime.clone()),
            Box::new(services.posts.runtime.clone()),
            Box::new(services.comments.runtime.clone()),
            Box::new(services.search.runtime.clone()),
        ];
        Self { started, services, bridges: Arc::clone(bridges), breakers, tree, kafka }
    }
}

impl Health for NodeHealth {
    fn report(&self) -> BoxFuture<'_, Report> {
        async move {
            let mut probes = BTreeMap::new();
            let databases = join_all(self.services.iter().map(|service| service.database())).await;
            for (service, database) in self.services.iter().zip(databases) {
                probes.insert(format!("{}.database", service.name()), database);
                probes.insert(format!("{}.shards", service.name()), service.serving());
            }
            for NamedBridge { topic, consumer, bridge } in self.bridges.iter() {
                let lag = bridge.caught_up_at().elapsed();
                let late = lag > LAG_MAX;
                let probe = Probe {
                    status: if late { Status::Degraded } else { Status::Ok },
                    latency_ms: None,
                    detail: late.then(|| format!("behind for {} s", lag.as_secs())),
                };
                probes.insert(format!("{consumer}.events.{}", topic.service()), probe);
            }
            if let Some(probe) = &self.kafka {
                probes.insert("kafka".to_owned(), look_at_kafka(probe).await);
            }
            let restarts = match self.tree.children().await {
                Ok(children) => children.iter().map(|child| child.restarts).sum(),
                Err(_) => 0,
            };
            let breakers = self
                .breakers
                .positions()
                .into_iter()
                .map(|(service, position)| (service.name().to_owned(), format!("{position:?}").to_lowercase()))
                .collect();
            Report { probes, uptime_s: self.started.elapsed().as_secs(), restarts, breakers }
        }
        .boxed()
    }
}

/// Without Kafka everything works but freshness: degraded, not unready.
async fn look_at_kafka(probe: &Arc<kafka::client::Probe>) -> Probe {
    let probe = Arc::clone(probe);
    let looked = tokio::task::spawn_blocking(move || probe.latency(PATIENCE)).await;
    match looked {
        Ok(Ok(latency)) => Probe { status: Status::Ok, latency_ms: Some(latency.as_secs_f64() * 1e3), detail: None },
        Ok(Err(error)) => Probe { status: Status::Degraded, latency_ms: None, detail: Some(error.to_string()) },
        Err(_) => Probe { status: Status::Degraded, latency_ms: None, detail: Some("the look at Kafka ended badly".to_owned()) },
    }
}

/// The health ports of the services: the same routes on each.
pub(super) fn ports(
    config: &Config,
    health: &Arc<NodeHealth>,
    metrics: &PrometheusHandle,
    stopped: &watch::Receiver<bool>,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let services = &config.services;
    let mut ports = Vec::new();
    for of in [&services.users, &services.posts, &services.comments, &services.search] {
        let address: SocketAddr = of.listen;
        let listener = rookery_gateway::server::bind(address)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let router = health::router(health.clone(), metrics.clone());
        let mut stopped = stopped.clone();
        let limits = Limits::from(&GatewayConfig::default());
        let stop = async move { drop(stopped.wait_for(|stopped| *stopped).await) };
        ports.push(tokio::spawn(async move {
            if let Err(error) = rookery_gateway::server::serve(listener, router, limits, stop).await {
                tracing::error!(%error, "a health port ended");
            }
        }));
    }
    Ok(ports)
}
