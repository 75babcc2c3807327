//! A cluster of real processes in a folder of its own, and what can be done to it: a fault is one call.
//!
//! One node is `rookery up`, several are `rookery up --nodes N`: the parent starts a child again that has died; a node that
//! is alone is started again by us, as an operator's service manager would.

mod clock;
mod disk;
mod process;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rookery_actors::fail_point::{self, FailPoints};
use serde_json::Value;

pub use self::clock::Clock;
use self::{disk::SmallDisk, process::Running};
use super::{client::Gateways, proxy::Proxy};
use crate::{
    migrate::Database,
    postgres::{DataDir, EmbeddedPostgres},
    testing::TestKafka,
};

/// Longer than a start or a takeover takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Between the gateways of two nodes, as `rookery up` has it.
const PORT_STRIDE: u16 = 10;
/// Nodes that a cluster may grow to.
const NODES_MAX: u16 = 6;
/// Few, so that the broker makes its topics quickly.
const KAFKA_PARTITIONS: u16 = 4;
/// Nodes that do not share a private Postgres share this.
const SECRET: &str = "a secret that is good for one throw-away cluster";

/// What a cluster is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `rookery` to run.
    pub program: PathBuf,
    /// How many nodes.
    pub nodes: u16,
    /// Short, so that a death is noticed while a test waits.
    pub lease_ttl: Duration,
    /// Ours, behind a proxy, instead of a private one.
    pub proxied: bool,
    /// With a clock of its own, which can be set ([`Clock`]).
    pub own_clock: bool,
    /// On a disk of this many bytes, which can be filled.
    pub disk_bytes: Option<u64>,
    /// Events go through a Kafka broker, instead of the services' own logs.
    pub kafka: bool,
}

impl Options {
    /// So many nodes that run this program.
    pub fn new(program: impl Into<PathBuf>, nodes: u16) -> Self {
        let lease_ttl = Duration::from_millis(1_500);
        Self { program: program.into(), nodes, lease_ttl, proxied: false, own_clock: false, disk_bytes: None, kafka: false }
    }
}

/// One node as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: i32,
    /// Where its gateway listens.
    pub gateway: String,
}

/// A running cluster. Dropped, all of it ends at once.
pub struct Cluster {
    options: Options,
    running: Option<Running>,
    gateways: Arc<Gateways>,
    port: u16,
    fail_points: FailPoints,
    clock: Option<Clock>,
    disk: Option<SmallDisk>,
    server: Option<Server>,
    kafka: Option<TestKafka>,
    // The last to go.
    folder: tempfile::TempDir,
}

/// A Postgres of ours and the proxy in front of it.
struct Server {
    postgres: EmbeddedPostgres,
    proxy: Proxy,
    _data: DataDir,
}

impl Cluster {
    /// Starts it and waits until every gateway is ready.
    ///
    /// # Errors
    /// What did not start, with what it said.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("rookery-chaos-").tempdir()?;
        let points = folder.path().join("points");
        for made in [&points, &folder.path().join("data")] {
            fs::create_dir(made)?;
        }
        let clock = options.own_clock.then(|| Clock::new(folder.path())).transpose()?;
        let disk = match options.disk_bytes {
            Some(bytes) => Some(SmallDisk::mount(&folder.path().join("data"), bytes).await?),
            None => None,
        };
        let server = if options.proxied { Some(Server::start(folder.path()).await?) } else { None };
        let kafka = match options.kafka {
            true => Some(tokio::task::spawn_blocking(TestKafka::start).await??),
            false => None,
        };
        let port = free_ports(options.nodes.max(NODES_MAX))?;
        let gateways = Gateways::new(addresses(port, options.nodes));
        let fail_points = FailPoints::new(points);
        let mut cluster = Self { options, running: None, gateways, port, fail_points, clock, disk, server, kafka, folder };
        cluster.launch().await?;
        Ok(cluster)
    }

    /// Where clients find it.
    pub fn gateways(&self) -> &Arc<Gateways> {
        &self.gateways
    }

    /// The nodes that run.
    ///
    /// # Errors
    /// When no node says.
    pub async fn nodes(&self) -> anyhow::Result<Vec<Node>> {
        if self.options.nodes == 1 {
            let pid = self.running()?.pid()?;
            return Ok(vec![Node { name: "n1".to_owned(), pid, gateway: addresses(self.port, 1).remove(0) }]);
        }
        let status: Value = serde_json::from_str(&self.rookery(&["status", "--json"]).await?)?;
        let node = |node: &Value| {
            let pid = i32::try_from(node["pid"].as_i64()?).ok()?;
            let (name, gateway) = (node["name"].as_str()?.to_owned(), node["gateway"].as_str()?.to_owned());
            (node["state"] == "live").then_some(Node { name, pid, gateway })
        };
        Ok(status["nodes"].as_array().into_iter().flatten().filter_map(node).collect())
    }

    /// Sends a signal to a node.
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<Node> {
        let node = self.node(name).await?.with_context(|| format!("there is no node {name}"))?;
        kill(Pid::from_raw(node.pid), signal)?;
        Ok(node)
    }

    /// `kill -9` of a node; it is started again.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        self.end(name, Signal::SIGKILL).await
    }

    /// Stops a node in order; it is started again.
    ///
    /// # Errors
    /// When it does not stop, or does not come back.
    pub async fn restart(&mut self, name: &str) -> anyhow::Result<()> {
        self.end(name, Signal::SIGTERM).await
    }

    async fn end(&mut self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let before = self.signal(name, signal).await?;
        if self.options.nodes == 1 {
            self.running.take().context("the node runs")?.ended().await?;
            return self.launch().await;
        }
        self.until("the node again", async |cluster| {
            let node = cluster.node(name).await.ok().flatten();
            node.is_some_and(|node| node.pid != before.pid)
        })
        .await?;
        self.ready().await
    }

    /// Waits until everything runs that should, starting a node that is alone and has died.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn revive(&mut self) -> anyhow::Result<()> {
        if self.running()?.has_ended() {
            return self.launch().await;
        }
        match self.options.nodes {
            // It may be about to end.
            1 if self.ready().await.is_err() && self.running()?.has_ended() => self.launch().await,
            _ => self.ready().await,
        }
    }

    /// The whole node sleeps for so long, and wakes as if nothing had been.
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn sleep(&self, name: &str, time: Duration) -> anyhow::Result<()> {
        self.signal(name, Signal::SIGSTOP).await.map(|node| node.pid).map(Sleeping)?.sleep(time).await;
        Ok(())
    }

    /// Starts nodes or stops them, until there are so many.
    ///
    /// # Errors
    /// What `rookery scale` says.
    pub async fn scale(&mut self, nodes: u16) -> anyhow::Result<()> {
        self.rookery(&["scale", &nodes.to_string()]).await?;
        self.gateways.replace(addresses(self.port, nodes));
        self.options.nodes = nodes;
        self.ready().await
    }

    /// `kill -9` of the private Postgres; the node, or its parent, starts it again.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_postgres(&self) -> anyhow::Result<()> {
        Ok(kill(self.postgres()?, Signal::SIGKILL)?)
    }

    fn postgres(&self) -> anyhow::Result<Pid> {
        let file = fs::read_to_string(self.inside(&self.data().join("postgres/postmaster.pid")))?;
        let pid = file.lines().next().context("the server writes its number first")?.trim().parse()?;
        Ok(Pid::from_raw(pid))
    }

    /// Where nodes can be made to crash.
    pub fn fail_points(&self) -> &FailPoints {
        &self.fail_points
    }

    /// In front of the databases.
    ///
    /// # Errors
    /// When the cluster was started without one.
    pub fn proxy(&self) -> anyhow::Result<&Proxy> {
        self.server.as_ref().map(|server| &server.proxy).context("this cluster has no proxy")
    }

    /// The clock that all nodes and their Postgres go by.
    ///
    /// # Errors
    /// When the cluster was started without one.
    pub fn clock(&self) -> anyhow::Result<&Clock> {
        self.clock.as_ref().context("this cluster goes by the clock of the machine")
    }

    /// Leaves no byte free on the disk of the cluster until the value is dropped.
    ///
    /// # Errors
    /// When the cluster has no disk of its own.
    pub fn fill_disk(&self) -> anyhow::Result<disk::Balloon> {
        Ok(self.disk.as_ref().context("this cluster has no disk of its own")?.fill()?)
    }

    /// `kill -9` of the Kafka broker.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_kafka(&mut self) -> anyhow::Result<()> {
        self.kafka.as_mut().context("this cluster has no Kafka")?.kill();
        Ok(())
    }

    /// Starts it again, on what it had.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart_kafka(&mut self) -> anyhow::Result<()> {
        let mut kafka = self.kafka.take().context("this cluster has no Kafka")?;
        let restarted = tokio::task::spawn_blocking(move || kafka.restart().map(|()| kafka)).await?;
        self.kafka = Some(restarted?);
        Ok(())
    }

    /// How to reach the databases past everything that stands in the way of the nodes.
    ///
    /// # Errors
    /// When the private Postgres has left no word.
    pub fn databases(&self) -> anyhow::Result<Vec<(Database, tokio_postgres::Config)>> {
        if let Some(server) = &self.server {
            return Ok(Database::ALL.map(|database| (database, server.postgres.config(database.name()))).to_vec());
        }
        let socket = fs::read_to_string(self.inside(&self.data().join("postgres.runtime")))?;
        let config = |database: Database| {
            let mut config = tokio_postgres::Config::new();
            config.host_path(&socket).user("rookery").dbname(database.name());
            (database, config)
        };
        Ok(Database::ALL.map(config).to_vec())
    }

    /// What a command says about this cluster.
    ///
    /// # Errors
    /// What it complains of.
    pub async fn rookery(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command();
        let output = tokio::process::Command::from({
            command.args(arguments);
            command
        })
        .output()
        .await?;
        if !output.status.success() {
            bail!("rookery {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What the nodes have logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits for a condition.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn until(&self, what: &str, condition: impl AsyncFn(&Self) -> bool) -> anyhow::Result<()> {
        let began = Instant::now();
        while !condition(self).await {
            if began.elapsed() > PATIENCE {
                bail!("{what} did not come within {} s", PATIENCE.as_secs());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Stops everything in order.
    ///
    /// # Errors
    /// When it does not stop in time, or not cleanly.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let running = self.running.take().context("the cluster runs")?;
        kill(Pid::from_raw(running.pid()?), Signal::SIGTERM)?;
        let status = running.ended().await?;
        if !status.success() {
            bail!("it did not stop cleanly: {status}");
        }
        if let Some(server) = self.server.take() {
            server.postgres.stop().await;
        }
        Ok(())
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        let mut command = self.command();
        command.arg("up");
        if self.options.nodes > 1 {
            command.args(["--nodes", &self.options.nodes.to_string()]);
        }
        self.running = Some(Running::start(command, &self.folder.path().join("log")).await?);
        self.ready().await
    }

    /// Waits until every gateway says that it is ready.
    async fn ready(&self) -> anyhow::Result<()> {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        for address in addresses(self.port, self.options.nodes) {
            let ready = async |cluster: &Self| {
                let ended = cluster.running.as_ref().is_none_or(|running| running.has_ended());
                let answer = http.get(format!("http://{address}/readyz")).send().await;
                ended || answer.is_ok_and(|answer| answer.status() == 200)
            };
            self.until("readiness", ready).await.with_context(|| self.log())?;
        }
        if self.running()?.has_ended() {
            bail!("it ended while it started:\n{}", self.log());
        }
        Ok(())
    }

    /// `rookery` with what this cluster is configured by.
    fn command(&self) -> std::process::Command {
        let mut command = match &self.disk {
            Some(disk) => disk.command(&self.options.program),
            None => std::process::Command::new(&self.options.program),
        };
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ROOKERY_")) {
            command.env_remove(name);
        }
        let ttl_ms = self.options.lease_ttl.as_millis();
        command
            .current_dir(std::env::temp_dir())
            .env("ROOKERY__DATA_DIR", self.data())
            .env("ROOKERY__GATEWAY__LISTEN", format!("127.0.0.1:{}", self.port))
            .env("ROOKERY__GATEWAY__RATE_LIMITS", "false")
            .env("ROOKERY__LEASE__TTL_MS", ttl_ms.to_string())
            .env("ROOKERY__LEASE__RENEW_MS", (ttl_ms / 5).to_string())
            .env(fail_point::VARIABLE, self.fail_points.folder());
        for database in Database::ALL {
            let service = database.name().to_uppercase();
            command.env(format!("ROOKERY__SERVICES__{service}__LISTEN"), "127.0.0.1:0");
            if let Some(server) = &self.server {
                command.env(format!("ROOKERY__SERVICES__{service}__DATABASE_URL"), server.proxy.url(database.name()));
            }
        }
        if self.server.is_some() {
            command.env("ROOKERY__SECRET", SECRET);
        }
        if self.options.nodes > 1 {
            command.env("ROOKERY__CLUSTER__LISTEN", "127.0.0.1:0");
        }
        if let Some(kafka) = &self.kafka {
            let brokers: Vec<_> =
                kafka.config(KAFKA_PARTITIONS).brokers.iter().map(|broker| broker.as_str().to_owned()).collect();
            command.env("ROOKERY__KAFKA__BROKERS", brokers.join(","));
            command.env("ROOKERY__KAFKA__PARTITIONS", KAFKA_PARTITIONS.to_string());
        }
        if let Some(clock) = &self.clock {
            clock.give_to(&mut command);
        }
        command
    }

    async fn node(&self, name: &str) -> anyhow::Result<Option<Node>> {
        Ok(self.nodes().await?.into_iter().find(|node| node.name == name))
    }

    fn running(&self) -> anyhow::Result<&Running> {
        self.running.as_ref().context("the cluster does not run")
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The path by which we see what the nodes see at `path`.
    fn inside(&self, path: &Path) -> PathBuf {
        self.disk.as_ref().map_or_else(|| path.to_owned(), |disk| disk.inside(path))
    }
}

impl Server {
    async fn start(folder: &Path) -> anyhow::Result<Self> {
        let data = DataDir::lock(folder.join("server"))?;
        let names = Database::ALL.map(Database::name);
        let postgres = EmbeddedPostgres::start(&data, &names).await?;
        let proxy = Proxy::start(&postgres.config("postgres"));
        Ok(Self { postgres, proxy, _data: data })
    }
}

/// A process that wakes when this is dropped, however that comes about.
struct Sleeping(i32);

impl Sleeping {
    async fn sleep(self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

impl Drop for Sleeping {
    fn drop(&mut self) {
        // It may have died in its sleep.
        let _ = kill(Pid::from_raw(self.0), Signal::SIGCONT);
    }
}

/// The gateways of nodes from this port on.
fn addresses(port: u16, nodes: u16) -> Vec<String> {
    (0..nodes).map(|node| format!("127.0.0.1:{}", port + PORT_STRIDE * node)).collect()
}

/// A port from which on the gateways of so many nodes find a place: below those that the system gives to anybody, and apart
/// from other processes that look for some at the same time.
fn free_ports(nodes: u16) -> anyhow::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let width = PORT_STRIDE * nodes;
    let slots = 12_000 / width;
    let start = u16::try_from(std::process::id() % u32::from(slots)).expect("less than the slots");
    for _ in 0..slots {
        let slot = (start + 7 * NEXT.fetch_add(1, Ordering::Relaxed)) % slots;
        let port = 20_000 + slot * width;
        if (0..nodes).all(|node| TcpListener::bind(("127.0.0.1", port + PORT_STRIDE * node)).is_ok()) {
            return Ok(port);
        }
    }
    bail!("no ports are free between 20000 and 32000")
}
