//! How the node is: what its roles need, looked at within a second.
//!
//! A node is ready when it can serve its own roles: a service needs its database and a valid lease, a gateway a node that it
//! can ask. A service that is missing elsewhere, or its database, makes a gateway degraded: all gateways miss it alike, and a
//! balancer that took them all away would take the other services with them.
//!
//! Events that are late make it degraded and never unready. How late they are the outbox says, for the relay and for whoever
//! applies them: a reader that finds nothing new may have lost the place where the new is.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, FutureExt, join, join_all};
use metrics_exporter_prometheus::PrometheusHandle;
use nix::sys::statvfs::statvfs;
use rdkafka::error::KafkaError;
use rookery_actors::{
    entity::Failure,
    event::Topic,
    runtime::{Database, Ping, Router, Runtime, Waiting},
    service::Service,
    supervisor::SupervisorRef,
};
use rookery_gateway::{
    GatewayConfig, Services,
    health::{self, Health, Probe, Report, Status},
    server::{self, Ending, Limits},
};
use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
};

use super::{
    NamedBridge,
    events::KafkaHealth,
    services::{Running, Started},
};
use crate::{
    config::{Config, Role},
    ownership::{Announce, Contact},
    routing::Routes,
};

/// A probe that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(1);
/// A data folder with less room makes the node degraded: a private Postgres takes up to 1 GiB for its log alone, some 16 MiB at
/// a time.
const DISK_LOW_MIB: u64 = 256;
/// A gateway that has just started has links to all services by then, if there are nodes for them; until it has, requests are
/// better off elsewhere.
const LINKS_WITHIN: Duration = Duration::from_secs(5);
/// A bridge or a relay with an event older than this makes the node degraded.
const LAG_MAX: Duration = Duration::from_secs(10);
/// The logs are asked what waits in them no more often than this, however many ask how we are.
const LAG_EVERY: Duration = Duration::from_secs(1);

pub(super) struct NodeHealth {
    started: Instant,
    data_dir: PathBuf,
    /// When everything had been started.
    serves_since: Instant,
    /// Whether the gateway has reached every service once, or has waited long enough for it.
    settled: AtomicBool,
    services: Vec<Box<dyn Probed>>,
    /// The gateway asks them all.
    is_gateway: bool,
    /// Nobody else could serve what is not served here.
    is_alone: bool,
    leaving: AtomicBool,
    routes: Option<Routes>,
    bridges: Arc<Vec<NamedBridge>>,
    breakers: Option<Arc<Services>>,
    tree: SupervisorRef,
    kafka: Option<KafkaHealth>,
    /// What the logs said, and when.
    lags: Mutex<Option<(Instant, Lags)>>,
}

/// The probes of logs, by their names.
type Lags = Vec<(String, Probe)>;

/// A service, as far as health is concerned.
trait Probed: Send + Sync {
    fn name(&self) -> &'static str;
    /// Whether the node has its role.
    fn is_member(&self) -> bool;
    fn database(&self) -> BoxFuture<'_, Probe>;
    /// `all`: whether every shard must be served here.
    fn serving(&self, all: bool) -> Probe;
    /// The oldest record of its log that Kafka is not known to have.
    fn unrelayed(&self) -> BoxFuture<'_, Result<Option<Waiting>, Failure>>;
    /// Of its shards and entities.
    fn restarts(&self) -> u64;
}

struct OnThisNode<S: Service> {
    runtime: Runtime<S>,
    ping: Ping,
    is_member: bool,
    contact: Option<Contact>,
}

impl<S: Service> OnThisNode<S> {
    fn boxed(running: &Running<S>) -> Box<dyn Probed> {
        let runtime = running.runtime.clone();
        let ping = Ping::of(runtime.database().clone());
        Box::new(Self { runtime, ping, is_member: running.is_member(), contact: running.contact() })
    }
}

impl<S: Service> Probed for OnThisNode<S> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn is_member(&self) -> bool {
        self.is_member
    }

    fn database(&self) -> BoxFuture<'_, Probe> {
        look_at_database(&self.ping, self.runtime.database()).boxed()
    }

    fn serving(&self, all: bool) -> Probe {
        let (owned, shards) = (self.runtime.owned().len(), self.runtime.shards());
        let (status, detail) = if !self.runtime.lease().is_valid() {
            (Status::Failed, Some("the lease has ended".to_owned()))
        } else if self.contact.as_ref().is_some_and(Contact::is_cut_off) {
            (Status::Failed, Some("most of the other nodes are out of reach".to_owned()))
        } else if let Some(reason) = self.runtime.lacks_session() {
            (Status::Failed, Some(format!("no session for commits: {reason}")))
        } else if all && owned < usize::from(shards) {
            (Status::Failed, Some(format!("{owned} of {shards} shards are served")))
        } else {
            (Status::Ok, None)
        };
        Probe { status, latency_ms: None, detail }
    }

    fn unrelayed(&self) -> BoxFuture<'_, Result<Option<Waiting>, Failure>> {
        self.runtime.oldest_unrelayed().boxed()
    }

    fn restarts(&self) -> u64 {
        self.runtime.restarts()
    }
}

impl NodeHealth {
    pub(super) fn new(
        started: Instant,
        config: &Config,
        services: &Started,
        bridges: &Arc<Vec<NamedBridge>>,
        breakers: Option<Arc<Services>>,
        tree: SupervisorRef,
        kafka: Option<KafkaHealth>,
    ) -> Self {
        let services = vec![
            OnThisNode::boxed(&services.users),
            OnThisNode::boxed(&services.posts),
            OnThisNode::boxed(&services.comments),
            OnThisNode::boxed(&services.search),
        ];
        let (is_gateway, is_alone) = (config.node.roles.has(Role::Gateway), config.is_alone());
        Self {
            started,
            data_dir: config.data_dir.clone(),
            serves_since: Instant::now(),
            settled: AtomicBool::new(false),
            services,
            is_gateway,
            is_alone,
            leaving: AtomicBool::new(false),
            routes: None,
            bridges: Arc::clone(bridges),
            breakers,
            tree,
            kafka,
            lags: Mutex::new(None),
        }
    }

    /// What waits in the logs for this node.
    async fn lags(&self) -> Lags {
        // Whoever comes meanwhile waits for the same answer.
        let mut lags = self.lags.lock().await;
        match &*lags {
            Some((looked, lags)) if looked.elapsed() < LAG_EVERY => lags.clone(),
            _ => lags.insert((Instant::now(), self.look_at_lags().await)).1.clone(),
        }
    }

    async fn look_at_lags(&self) -> Lags {
        let bridges = self.bridges.iter().map(async |NamedBridge { topic, consumer, bridge }| {
            let probe = match bridge.outside().into_iter().next() {
                Some(outside) => degraded(outside.reason),
                None => lag(topic.service(), "applied", bridge.oldest_unapplied()).await,
            };
            (format!("{consumer}.events.{}", topic.service()), probe)
        });
        let publishes = |service: &dyn Probed| {
            self.kafka.is_some() && service.is_member() && Topic::ALL.iter().any(|topic| topic.service() == service.name())
        };
        let relays = self.services.iter().filter(|service| publishes(service.as_ref())).map(async |service| {
            (format!("{}.relay", service.name()), lag(service.name(), "relayed to Kafka", service.unrelayed()).await)
        });
        let (mut lags, relays) = join(join_all(bridges), join_all(relays)).await;
        lags.extend(relays);
        lags
    }

    /// Among other nodes.
    pub(super) fn over(self, routes: Option<Routes>) -> Self {
        Self { routes, ..self }
    }

    /// Not ready any more, whatever still works: balancers are to look elsewhere.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }
}

impl Health for NodeHealth {
    fn report(&self) -> BoxFuture<'_, Report> {
        async move {
            let mut probes = BTreeMap::new();
            if self.leaving.load(Ordering::Relaxed) {
                let detail = Some("it is stopping".to_owned());
                probes.insert("node".to_owned(), Probe { status: Status::Failed, latency_ms: None, detail });
            }
            let asked: Vec<_> = self.services.iter().filter(|service| self.is_gateway || service.is_member()).collect();
            let databases = join_all(asked.iter().map(|service| service.database())).await;
            let (own, others): (Vec<_>, Vec<_>) = asked.into_iter().zip(databases).partition(|(service, _)| service.is_member());
            if let Some(routes) = &self.routes {
                let missing: Vec<_> = others.iter().map(|(service, _)| missing(routes, service.name())).collect();
                if missing.iter().all(Option::is_none) || self.serves_since.elapsed() > LINKS_WITHIN {
                    self.settled.store(true, Ordering::Relaxed);
                }
                let status = status_of_missing(&missing, !own.is_empty(), self.settled.load(Ordering::Relaxed));
                for ((service, _), detail) in others.iter().zip(missing) {
                    let status = if detail.is_some() { status } else { Status::Ok };
                    probes.insert(format!("{}.nodes", service.name()), Probe { status, latency_ms: None, detail });
                }
            }
            for (service, database) in own {
                probes.insert(format!("{}.database", service.name()), database);
                probes.insert(format!("{}.shards", service.name()), service.serving(self.is_alone));
            }
            for (service, database) in others {
                // The nodes that serve it need it; here a few deep pages do.
                let status = database.status.min(Status::Degraded);
                probes.insert(format!("{}.database", service.name()), Probe { status, ..database });
            }
            probes.insert("disk".to_owned(), look_at_disk(&self.data_dir));
            probes.extend(self.lags().await);
            if let Some(kafka) = &self.kafka {
                probes.insert("kafka".to_owned(), look_at_kafka(kafka).await);
            }
            let at_the_top: u64 = match self.tree.children().await {
                Ok(children) => children.iter().map(|child| child.restarts).sum(),
                Err(_) => 0,
            };
            let restarts = at_the_top + self.services.iter().map(|service| service.restarts()).sum::<u64>();
            let positions = self.breakers.iter().flat_map(|breakers| breakers.positions());
            let breakers = positions.map(|(service, position)| (service.name().to_owned(), position.name().to_owned())).collect();
            Report { probes, uptime_s: self.started.elapsed().as_secs(), restarts, breakers }
        }
        .boxed()
    }
}

/// Why nobody can be asked about a service that this node does not have; none: somebody can.
fn missing(routes: &Routes, service: &'static str) -> Option<String> {
    let nodes = routes.peers(service);
    match nodes.iter().any(|node| routes.reaches(node)) {
        true => None,
        false if nodes.is_empty() || routes.is_unserved(service) => Some("no node serves it".to_owned()),
        false => Some(format!("no node that serves it is within reach: {}", nodes.join(", "))),
    }
}

/// How bad it is for a gateway that some services are missing; of each that it does not serve itself, why it is missing.
///
/// One that reaches nobody, and serves nothing itself, has nothing to offer. Nor has one whose links are still on their way.
fn status_of_missing(missing: &[Option<String>], serves_some: bool, settled: bool) -> Status {
    let reaches_some = missing.iter().any(Option::is_none);
    if settled && (reaches_some || serves_some) { Status::Degraded } else { Status::Failed }
}

/// Whether a database answers, and why not.
async fn look_at_database(ping: &Ping, database: &Database) -> Probe {
    let began = Instant::now();
    let (status, detail) = match tokio::time::timeout(PATIENCE, ping.ask()).await {
        // The lease, which is written too, decides whether the node can still serve.
        Ok(Ok(_)) => match database.disk_full() {
            Some(reason) => (Status::Degraded, Some(format!("it takes no writes, its disk is full ({reason})"))),
            None => (Status::Ok, None),
        },
        Ok(Err(reason)) => (Status::Failed, Some(reason)),
        Err(_) => {
            let reason = database.unreachable().unwrap_or_else(|| "no answer within a second".to_owned());
            (Status::Failed, Some(reason))
        }
    };
    Probe { status, latency_ms: Some(Probe::milliseconds(began.elapsed())), detail }
}

/// How much room the data folder has. A private Postgres stops when there is none, and so do the indexes.
fn look_at_disk(data: &Path) -> Probe {
    const MIB: u64 = 1 << 20;
    let detail = match statvfs(data) {
        Ok(disk) => match disk.blocks_available() * disk.fragment_size() / MIB {
            0 => Some("the disk of the data folder is full".to_owned()),
            left @ 1..DISK_LOW_MIB => Some(format!("the disk of the data folder is almost full: {left} MiB are left")),
            _ => None,
        },
        Err(error) => Some(format!("the disk of the data folder does not say how full it is: {error}")),
    };
    let status = if detail.is_some() { Status::Degraded } else { Status::Ok };
    Probe { status, latency_ms: None, detail }
}

/// How late a log is: by the oldest record that waits in it.
async fn lag(publisher: &str, done: &str, oldest: impl Future<Output = Result<Option<Waiting>, Failure>>) -> Probe {
    match tokio::time::timeout(PATIENCE, oldest).await {
        Ok(Ok(Some(waiting))) if waiting.age() > LAG_MAX => {
            let Waiting { shard, seq, .. } = waiting;
            degraded(format!("behind for {} s: {publisher}/{shard}/{seq} is not {done}", waiting.age().as_secs()))
        }
        Ok(Ok(_)) => Probe { status: Status::Ok, latency_ms: None, detail: None },
        Ok(Err(failure)) => degraded(format!("the log of {publisher} cannot be compared with: {failure}")),
        Err(_) => degraded(format!("the log of {publisher} cannot be compared with: no answer within a second")),
    }
}

fn degraded(detail: String) -> Probe {
    Probe { status: Status::Degraded, latency_ms: None, detail: Some(detail) }
}

/// Without Kafka everything works but freshness: degraded, not unready.
async fn look_at_kafka(kafka: &KafkaHealth) -> Probe {
    let probe = Arc::clone(&kafka.probe);
    let looked = tokio::task::spawn_blocking(move || Ok::<_, KafkaError>((probe.latency(PATIENCE)?, probe.missing(PATIENCE)?)));
    match looked.await {
        // Whoever looks after the topics knows more than that some are missing.
        Ok(Ok((latency, missing))) => {
            let missing = (!missing.is_empty()).then(|| format!("topics are missing: {}", missing.join(", ")));
            let detail = kafka.fault().or(missing);
            let status = if detail.is_some() { Status::Degraded } else { Status::Ok };
            Probe { status, latency_ms: Some(Probe::milliseconds(latency)), detail }
        }
        Ok(Err(error)) => degraded(error.to_string()),
        Err(_) => degraded("the look at Kafka ended badly".to_owned()),
    }
}

/// The health ports of the services whose roles the node has, bound.
pub(super) struct Ports(Vec<(Role, std::net::TcpListener)>);

/// The health ports at work: the same routes on each.
pub(super) struct Serving {
    tasks: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl Ports {
    pub(super) fn bind(config: &Config) -> anyhow::Result<Self> {
        let services = config.node.roles.iter().filter_map(|role| Some((role, config.services.of(role)?)));
        services
            .map(|(role, service)| {
                Ok((role, super::named(service.listen, &format!("services.{role}"), server::bind(service.listen))?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Where they are.
    pub(super) fn addresses(&self) -> io::Result<Vec<(Role, SocketAddr)>> {
        self.0.iter().map(|(role, listener)| Ok((*role, listener.local_addr()?))).collect()
    }

    pub(super) fn serve(self, health: &Arc<NodeHealth>, metrics: &PrometheusHandle) -> io::Result<Serving> {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = Vec::new();
        for (_, listener) in self.0 {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let router = health::router(health.clone(), metrics.clone());
            let mut stopped = stopped.clone();
            let limits = Limits::from(&GatewayConfig::default());
            let stop = async move {
                drop(stopped.wait_for(|stopped| *stopped).await);
                Ending::Closed
            };
            tasks.push(tokio::spawn(async move {
                if let Err(error) = server::serve(listener, router, limits, stop).await {
                    tracing::error!(%error, "a health port ended");
                }
            }));
        }
        Ok(Serving { tasks, stop })
    }
}

impl Serving {
    pub(super) fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use rookery_actors::runtime::PoolSize;

    use super::*;

    #[tokio::test]
    async fn a_database_that_refuses_connections_is_not_said_to_be_slow() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(port).user("x").password("hunter2").dbname("x");
        let database = Database::new(config, "test", PoolSize::default());
        let probe = look_at_database(&Ping::of(database.clone()), &database).await;
        let detail = probe.detail.unwrap();
        assert!(probe.status == Status::Failed && detail.contains("Connection refused"), "{detail}");
        assert!(!detail.contains("hunter2"), "{detail}");
    }

    #[test]
    fn a_time_has_no_digits_that_nobody_measured() {
        assert_eq!(serde_json::to_string(&Probe::milliseconds(Duration::from_nanos(4_941_850))).unwrap(), "4.941");
        assert_eq!(Probe::milliseconds(Duration::from_secs(2)), 2_000.0);
    }

    #[test]
    fn a_disk_says_when_it_is_full() {
        let here = std::env::temp_dir();
        assert!(look_at_disk(&here).status <= Status::Degraded);
        assert!(look_at_disk(Path::new("/proc")).detail.unwrap().contains("is full"), "it has no room at all");
    }

    fn gone() -> Option<String> {
        Some("no node serves it".to_owned())
    }

    #[test]
    fn a_gateway_without_one_service_serves_the_others() {
        assert_eq!(status_of_missing(&[None, gone(), None, None], false, true), Status::Degraded);
    }

    #[test]
    fn a_gateway_without_any_service_has_nothing_to_offer() {
        assert_eq!(status_of_missing(&[gone(), gone(), gone(), gone()], false, true), Status::Failed);
        assert_eq!(status_of_missing(&[gone(), gone(), gone()], true, true), Status::Degraded, "what it serves itself");
    }

    #[test]
    fn a_gateway_that_has_just_started_waits_for_its_links() {
        assert_eq!(status_of_missing(&[None, gone(), None, None], false, false), Status::Failed);
    }
}
