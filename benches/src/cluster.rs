//! A cluster of real processes, filled, held to its quotas, and driven through all of its gateways.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::ValueEnum;
use nix::sys::signal::{Signal, kill};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    cgroup::Quota,
    histogram::Histogram,
    http::{Connection, Request},
    load::{Load, first_serial},
    process::Pid,
    text,
};

const POSTS: usize = 256;
const USERS: usize = 16;
/// Ports of node k are the configured ones + 10 · k.
const PORTS_APART: u16 = 10;
const READY_WITHIN: Duration = Duration::from_secs(90);
const STOPS_WITHIN: Duration = Duration::from_secs(40);
const WARM_UP: Duration = Duration::from_secs(3);

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read single posts, any of 256.
    Get,
    /// Create posts.
    Create,
    /// Three reads for each post created.
    Mix,
}

/// `rookery up` with some nodes, stopped when dropped.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    child: Child,
    gateways: Vec<SocketAddr>,
    pids: Vec<Pid>,
    quotas: Vec<Quota>,
    tokens: Vec<String>,
    posts: Vec<String>,
    data: TempDir,
}

/// What a load has shown.
#[derive(Clone, Copy, Debug)]
pub struct Carried {
    /// Successful answers per second, of all gateways together.
    pub per_second: f64,
    /// Of the successful ones.
    pub p99: Duration,
    /// Everything else.
    pub errors: u64,
}

impl Cluster {
    /// Starts so many nodes, fills them with a few people and posts, and holds each to so many percent of one core.
    ///
    /// # Errors
    /// What the nodes have said last, if they do not get ready; without root, for the quotas.
    pub fn start(program: &Path, nodes: usize, quota_percent: u32) -> anyhow::Result<Self> {
        let data = TempDir::new()?;
        let log = std::fs::File::create(data.path().join("log"))?;
        let first = free_ports(nodes)?;
        let address = |offset: u16| format!("127.0.0.1:{}", first + offset);
        let mut command = Command::new(program);
        command
            .args(["up", "--nodes", &nodes.to_string()])
            .env("ROOKERY__DATA_DIR", data.path().join("data"))
            .env("ROOKERY__GATEWAY__RATE_LIMITS", "false")
            .env("ROOKERY__GATEWAY__LISTEN", address(0))
            .env("ROOKERY__LOG__FILTER", "warn");
        for (offset, service) in (1..).zip(["USERS", "COMMENTS", "POSTS", "SEARCH"]) {
            command.env(format!("ROOKERY__SERVICES__{service}__LISTEN"), address(offset));
        }
        if nodes > 1 {
            command.env("ROOKERY__CLUSTER__LISTEN", address(5));
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut cluster = Self {
            program: program.to_owned(),
            child,
            gateways: Vec::new(),
            pids: Vec::new(),
            quotas: Vec::new(),
            tokens: Vec::new(),
            posts: Vec::new(),
            data,
        };
        cluster.wait_until_balanced(nodes)?;
        cluster.fill()?;
        for node in cluster.status()?["nodes"].as_array().into_iter().flatten() {
            let pid = node["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("a node without a pid")?;
            let name = node["name"].as_str().unwrap_or("node");
            cluster.quotas.push(Quota::hold(pid, name, quota_percent)?);
            cluster.pids.push(pid);
        }
        Ok(cluster)
    }

    /// Where the gateways listen.
    pub fn gateways(&self) -> &[SocketAddr] {
        &self.gateways
    }

    /// The process ids of the nodes.
    pub fn pids(&self) -> &[Pid] {
        &self.pids
    }

    /// Drives all gateways at once, with so many connections each.
    ///
    /// # Errors
    /// When the load generator cannot start.
    ///
    /// # Panics
    /// Never, unless a thread of the load does.
    pub fn carry(&self, kind: Kind, connections: usize, window: Duration) -> anyhow::Result<Carried> {
        let requests = self.requests(kind);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let drives: Vec<_> = self
                .gateways
                .iter()
                .map(|&address| {
                    let requests = Arc::clone(&requests);
                    scope.spawn(move || {
                        let load = Load { address, connections, threads: 1, warm_up: WARM_UP, window };
                        load.run(&requests, || ())
                    })
                })
                .collect();
            drives.into_iter().map(|drive| drive.join().expect("a load does not panic")).collect::<Result<_, _>>()
        })?;
        let mut latency = Histogram::default();
        let (mut per_second, mut errors) = (0.0, 0);
        for outcome in outcomes {
            per_second += outcome.per_second();
            latency.merge(&outcome.latency);
            errors += outcome.errors.total();
            if outcome.errors.total() > 0 {
                eprintln!("{}", outcome.errors);
            }
        }
        Ok(Carried { per_second, p99: latency.quantile(0.99), errors })
    }

    /// What the clients send.
    pub fn requests(&self, kind: Kind) -> Arc<[Request]> {
        let get = |n: usize| Request::get(&format!("/api/v1/posts/{}", self.posts[n % self.posts.len()]));
        let create = |n: usize| {
            let bearer = format!("Bearer {}", self.tokens[n % self.tokens.len()]);
            Request::post("/api/v1/posts", &[("authorization", &bearer)], &text::post(n as u64))
        };
        let of = |n: usize| match kind {
            Kind::Get => get(n),
            Kind::Create => create(n),
            Kind::Mix if n % 4 == 3 => create(n),
            Kind::Mix => get(n),
        };
        (0..POSTS).map(of).collect()
    }

    fn fill(&mut self) -> anyhow::Result<()> {
        let gateway = self.gateways[0];
        for n in 0..USERS {
            let name = format!("scale_{n}");
            let account = json!({"username": name, "email": format!("{name}@example.org"), "password": "a long pass phrase"});
            let answer = ask(gateway, &Request::post("/api/v1/auth/register", &[], &account.to_string()))?;
            self.tokens.push(answer["access_token"].as_str().context("no token")?.to_owned());
        }
        for n in 0..POSTS {
            let bearer = format!("Bearer {}", self.tokens[n % USERS]);
            let post = Request::post("/api/v1/posts", &[("authorization", &bearer)], &text::post(n as u64));
            let id = ask(gateway, &post)?["id"].as_str().context("no id")?.to_owned();
            self.posts.push(id);
        }
        Ok(())
    }

    fn wait_until_balanced(&mut self, nodes: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Ok(status) = self.status() {
                let live: Vec<&Value> =
                    status["nodes"].as_array().into_iter().flatten().filter(|node| node["state"] == "live").collect();
                let quiet = status["moves"].as_array().is_some_and(Vec::is_empty)
                    && status["shards"].as_array().is_some_and(|shards| shards.iter().all(|shard| shard["owner"].is_string()));
                let gateways: Vec<SocketAddr> = live.iter().filter_map(|node| node["gateway"].as_str()?.parse().ok()).collect();
                if gateways.len() == nodes && quiet {
                    self.gateways = gateways;
                    return Ok(());
                }
            }
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("the cluster ended with {status}: {}", self.log());
            }
            anyhow::ensure!(Instant::now() < deadline, "the cluster is not balanced after {READY_WITHIN:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn status(&self) -> anyhow::Result<Value> {
        let output = Command::new(&self.program)
            .args(["status", "--json", "--data-dir"])
            .arg(self.data.path().join("data"))
            .stderr(Stdio::null())
            .output()?;
        // 3: it answers, and some shard is served by nobody as yet.
        anyhow::ensure!(matches!(output.status.code(), Some(0 | 3)), "the cluster has no status yet");
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.data.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = kill(nix::unistd::Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let deadline = Instant::now() + STOPS_WITHIN;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                eprintln!("the cluster did not stop on SIGTERM; killed");
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn ask(address: SocketAddr, request: &Request) -> anyhow::Result<Value> {
    let mut bytes = Vec::new();
    request.write(first_serial(), &mut bytes);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut connection = Connection::open(address).await?;
        let response = connection.exchange(&bytes).await?;
        let body = String::from_utf8_lossy(response.body);
        anyhow::ensure!(response.is_success(), "{}: {body}", response.status);
        Ok(serde_json::from_str(&body)?)
    })
}

/// The first of a row of ports that are free now, far enough apart for all nodes.
fn free_ports(nodes: usize) -> anyhow::Result<u16> {
    let span = u16::try_from(nodes)? * PORTS_APART;
    for _ in 0..50 {
        let first = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let Some(last) = first.checked_add(span) else { continue };
        let held: Result<Vec<_>, _> = (first..last).map(|port| TcpListener::bind(("127.0.0.1", port))).collect();
        if held.is_ok() {
            return Ok(first);
        }
    }
    anyhow::bail!("no {span} ports in a row are free")
}
