//! A cluster of real processes in a folder of its own.
//!
//! One node is `rookery up`, several are `rookery up --nodes N`: the parent starts a child again that has died. Nodes on a
//! network of their own are `rookery node` each. Whoever has no parent is started again by us, as a service manager would.

mod balance;
mod clock;
mod command;
mod disk;
mod faults;
mod network;
mod server;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use rookery_actors::fail_point::FailPoints;
use serde_json::Value;

pub use self::{
    clock::Clock,
    disk::Balloon,
    faults::{Sleeping, Ways},
    network::Network,
};
use self::{
    command::{PORT_STRIDE, free_ports},
    disk::SmallDisk,
    server::Server,
};
use super::{client::Gateways, proxy::Proxy};
use crate::{
    fleet,
    migrate::Database,
    process::{self, Process},
    testing::{Patience, TestKafka},
};

/// Longer than a start or a takeover takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longer than a node may take to stop in order.
const END_PATIENCE: Duration = Duration::from_secs(30);
/// A look is a `status`, which asks the databases for every shard.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Nodes that a cluster may grow to.
const NODES_MAX: u16 = 6;

/// What a cluster is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `rookery` to run.
    pub program: PathBuf,
    /// How many nodes.
    pub nodes: u16,
    /// Over a Postgres of ours, behind a proxy, instead of a private one.
    pub proxied: bool,
    /// On a network of their own, whose wires can be cut; takes root.
    pub wired: bool,
    /// With a clock of its own, which can be set ([`Clock`]).
    pub own_clock: bool,
    /// On a disk of this many bytes, which can be filled; takes root.
    pub disk_bytes: Option<u64>,
    /// Events go through a Kafka broker, instead of the services' own logs.
    pub kafka: bool,
    /// With so much room for copies of what other nodes own.
    pub copies_bytes: Option<u64>,
}

impl Options {
    /// So many nodes that run this program.
    pub fn new(program: impl Into<PathBuf>, nodes: u16) -> Self {
        Self {
            program: program.into(),
            nodes,
            proxied: false,
            wired: false,
            own_clock: false,
            disk_bytes: None,
            kafka: false,
            copies_bytes: None,
        }
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
    /// `rookery up`, or each `rookery node`. Dropped, they are killed, and so they are if we are.
    running: Vec<Started>,
    gateways: Arc<Gateways>,
    port: u16,
    fail_points: FailPoints,
    clock: Option<Clock>,
    network: Option<Network>,
    disk: Option<SmallDisk>,
    server: Option<Server>,
    kafka: Option<TestKafka>,
    // The last to go.
    folder: tempfile::TempDir,
}

/// A process of ours.
struct Started {
    /// The node, or the first one of several.
    name: String,
    process: Process,
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
        let network = if options.wired { Some(Network::of(options.nodes).await?) } else { None };
        // Nodes that have no parent share a server of ours.
        let ways = if options.wired { options.nodes } else { 1 };
        let server = if options.proxied || options.wired { Some(Server::start(folder.path(), ways).await?) } else { None };
        let kafka = match options.kafka {
            true => Some(tokio::task::spawn_blocking(TestKafka::start).await??),
            false => None,
        };
        let port = free_ports(options.nodes.max(NODES_MAX))?;
        let fail_points = FailPoints::new(points);
        let (running, gateways) = (Vec::new(), Gateways::new(Vec::new()));
        let mut cluster = Self { options, running, gateways, port, fail_points, clock, network, disk, server, kafka, folder };
        cluster.gateways.replace(cluster.addresses());
        if let Err(error) = cluster.launch().await {
            let log = cluster.keep_log(&format!("rookery-chaos-start-{}.log", std::process::id()))?;
            return Err(error.context(format!("the cluster does not start; its log is kept in {}", log.display())));
        }
        Ok(cluster)
    }

    /// Where clients find it.
    pub fn gateways(&self) -> &Arc<Gateways> {
        &self.gateways
    }

    /// How many nodes it has.
    pub fn size(&self) -> u16 {
        self.options.nodes
    }

    /// The nodes that run.
    ///
    /// # Errors
    /// When no node says.
    pub async fn nodes(&self) -> anyhow::Result<Vec<Node>> {
        if !self.has_parent() {
            let node = |(started, gateway): (&Started, String)| {
                let pid = i32::try_from(started.process.id()?).ok()?;
                Some(Node { name: started.name.clone(), pid, gateway })
            };
            return Ok(self.running.iter().zip(self.addresses()).filter_map(node).collect());
        }
        let status: Value = serde_json::from_str(&self.rookery(&["status", "--json"]).await?)?;
        let node = |node: &Value| {
            let pid = i32::try_from(node["pid"].as_i64()?).ok()?;
            let (name, gateway) = (node["name"].as_str()?.to_owned(), node["gateway"].as_str()?.to_owned());
            (node["state"] == "live").then_some(Node { name, pid, gateway })
        };
        Ok(status["nodes"].as_array().into_iter().flatten().filter_map(node).collect())
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
        self.server.as_ref().context("this cluster has no proxy")?.proxy(1)
    }

    /// The clock that all nodes and their Postgres go by.
    ///
    /// # Errors
    /// When the cluster was started without one.
    pub fn clock(&self) -> anyhow::Result<&Clock> {
        self.clock.as_ref().context("this cluster goes by the clock of the machine")
    }

    /// How to reach the databases past everything that stands in the way of the nodes.
    ///
    /// # Errors
    /// When the private Postgres has left no word.
    pub fn databases(&self) -> anyhow::Result<Vec<(Database, tokio_postgres::Config)>> {
        if let Some(server) = &self.server {
            return Ok(Database::ALL.map(|database| (database, server.config(database))).to_vec());
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
        let mut command = tokio::process::Command::from(self.command()?);
        let output = command.args(arguments).output().await?;
        // 3: the status of a cluster in which a shard is served by nobody, as is wanted here now and then.
        if !matches!(output.status.code(), Some(0 | 3)) {
            bail!("rookery {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What the nodes have logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Keeps what the nodes have logged, for the cluster takes everything else along.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep_log(&self, name: &str) -> io::Result<PathBuf> {
        let kept = std::env::temp_dir().join(name);
        fs::copy(self.log_file(), &kept)?;
        Ok(kept)
    }

    /// Waits for a condition.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn until(&self, what: &str, condition: impl AsyncFn(&Self) -> bool) -> anyhow::Result<()> {
        self.until_some(what, async |cluster| Ok(condition(cluster).await.then_some(()))).await
    }

    /// Waits until there is something to be seen.
    ///
    /// # Errors
    /// When it does not come, or nobody can look.
    async fn until_some<T>(&self, what: &str, look: impl AsyncFn(&Self) -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
        let mut patience = Patience::of(PATIENCE);
        loop {
            if let Some(seen) = look(self).await? {
                return Ok(seen);
            }
            if patience.is_over() {
                bail!("{what} did not come within {} s", patience.spent().as_secs());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Stops everything in order.
    ///
    /// # Errors
    /// When it does not stop in time, or not cleanly.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.stop_nodes().await?;
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
        Ok(())
    }

    /// Stops all nodes in order, and a private Postgres with them; [`Cluster::revive`] starts them again.
    ///
    /// # Errors
    /// When one does not stop in time, or not cleanly.
    pub async fn stop_nodes(&self) -> anyhow::Result<()> {
        for started in &self.running {
            started.process.signal(Signal::SIGTERM);
        }
        for started in &self.running {
            let status = ended(&started.process).await?;
            if !status.success() {
                bail!("{} did not stop cleanly: {status}", started.name);
            }
        }
        Ok(())
    }

    /// What the nodes have counted under a name, all of them and under all labels.
    ///
    /// # Errors
    /// When a node does not say.
    pub async fn counted(&self, name: &str) -> anyhow::Result<f64> {
        let mut sum = 0.0;
        for address in self.addresses() {
            let metrics = reqwest::get(format!("http://{address}/metrics")).await?.text().await?;
            let of_name = metrics.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
            sum += of_name.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>();
        }
        Ok(sum)
    }

    /// Starts what does not run, and waits until all of it is ready.
    async fn launch(&mut self) -> anyhow::Result<()> {
        let count = if self.has_parent() { 1 } else { usize::from(self.options.nodes) };
        for number in 1..=count {
            let name = fleet::name(number);
            match self.running.iter().position(|started| started.name == name) {
                Some(at) if !self.running[at].has_ended() => continue,
                Some(at) => drop(self.running.remove(at)),
                None => {}
            }
            let mut command = match &self.network {
                Some(network) => {
                    let mut command = self.configured(network.command(number, &self.options.program)?, number)?;
                    command.args(["node", "--name", &name]).env("ROOKERY__DATA_DIR", self.folder.path().join(&name));
                    command
                }
                None => {
                    let mut command = self.command()?;
                    command.args(["up", "--nodes", &self.options.nodes.to_string()]);
                    command
                }
            };
            let log = File::options().create(true).append(true).open(self.log_file())?;
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            process::tie(&mut command, Signal::SIGKILL, || Ok(()));
            let process = Process::spawn(command, &name, Signal::SIGKILL).await?;
            self.running.insert((number - 1).min(self.running.len()), Started { name, process });
        }
        self.ready().await
    }

    /// Waits until every gateway says that it is ready.
    async fn ready(&self) -> anyhow::Result<()> {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        for address in self.addresses() {
            let ready = async |cluster: &Self| {
                let answer = http.get(format!("http://{address}/readyz")).send().await;
                cluster.running.iter().any(Started::has_ended) || answer.is_ok_and(|answer| answer.status() == 200)
            };
            self.until("readiness", ready).await.with_context(|| self.last_words())?;
        }
        match self.running.iter().find(|started| started.has_ended()) {
            Some(started) => bail!("{} ended: {}", started.name, self.last_words()),
            None => Ok(()),
        }
    }

    fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Whether somebody else starts a node again that has died.
    fn has_parent(&self) -> bool {
        self.options.nodes > 1 && self.network.is_none()
    }

    /// Where the gateways are.
    fn addresses(&self) -> Vec<String> {
        match &self.network {
            Some(network) => (1..=usize::from(self.options.nodes)).map(|node| network.gateway(node)).collect(),
            None => (0..self.options.nodes).map(|node| format!("127.0.0.1:{}", self.port + PORT_STRIDE * node)).collect(),
        }
    }

    async fn node(&self, name: &str) -> anyhow::Result<Option<Node>> {
        Ok(self.nodes().await?.into_iter().find(|node| node.name == name))
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The path by which we see what the nodes see at `path`.
    fn inside(&self, path: &Path) -> PathBuf {
        self.disk.as_ref().map_or_else(|| path.to_owned(), |disk| disk.inside(path))
    }
}

impl Started {
    fn has_ended(&self) -> bool {
        self.process.id().is_none()
    }
}

/// Waits for an end that somebody has brought about.
async fn ended(process: &Process) -> anyhow::Result<ExitStatus> {
    let ended = process.exited_within(END_PATIENCE).await;
    ended.with_context(|| format!("the process did not end within {} s", END_PATIENCE.as_secs()))
}
