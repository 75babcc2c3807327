//! Starting nodes, giving them orders, and what is done to them.

use std::{
    collections::HashMap,
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::{Mutex as AsyncMutex, oneshot, watch},
    time::timeout,
};

use super::node::{Order, Spec, VARIABLE};

/// Far longer than anything takes, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node on this machine, whose links outlive a machine that is busy with other things.
pub(crate) fn spec(name: &str) -> Spec {
    Spec {
        name: name.to_owned(),
        listen: Some("127.0.0.1:0".parse().unwrap()),
        secret: 1,
        dials_all: false,
        heartbeat_ms: 2_000,
        in_flight_max: 4_096,
        tls: None,
    }
}

/// A node in a process of its own; it ends with this value.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) incarnation: String,
    process: Child,
    orders: AsyncMutex<ChildStdin>,
    numbers: AtomicU64,
    waiting: Waiting,
    log: watch::Receiver<String>,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Value>>>>;

/// How often which outcome came.
#[derive(Debug)]
pub(crate) struct Outcomes {
    pub(crate) counts: HashMap<String, u64>,
    pub(crate) slowest: Duration,
}

impl Node {
    pub(crate) async fn start(spec: &Spec) -> Self {
        Self::try_start(spec).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Why a node does not start.
    pub(crate) async fn refused(spec: &Spec) -> String {
        Self::try_start(spec).await.err().expect("it does not start")
    }

    async fn try_start(spec: &Spec) -> Result<Self, String> {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["this_is_a_node", "--exact", "--nocapture"])
            .env(VARIABLE, serde_json::to_string(spec).unwrap())
            .env("RUST_LOG", "info,rookery=debug")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let orders = AsyncMutex::new(process.stdin.take().unwrap());
        let (greeting, greeted) = oneshot::channel();
        let waiting = Waiting::new(Mutex::new([(0, greeting)].into()));
        tokio::spawn(read_answers(process.stdout.take().unwrap(), Arc::clone(&waiting)));
        let (written, log) = watch::channel(String::new());
        tokio::spawn(read_log(process.stderr.take().unwrap(), written));
        let greeting = timeout(PATIENCE, greeted).await.expect("a node starts in time").expect("a node starts");
        if let Some(error) = greeting["error"].as_str() {
            return Err(error.to_owned());
        }
        Ok(Self {
            name: spec.name.clone(),
            address: greeting["address"].as_str().unwrap_or("127.0.0.1:0").parse().unwrap(),
            incarnation: greeting["incarnation"].as_str().expect("a node has an incarnation").to_owned(),
            process,
            orders,
            numbers: AtomicU64::new(1),
            waiting,
            log,
        })
    }

    /// Two nodes that know of each other and are linked; `n1` dials.
    pub(crate) async fn pair(change: impl Fn(&mut Spec)) -> (Self, Self) {
        let start = async |name| {
            let mut spec = spec(name);
            change(&mut spec);
            Self::start(&spec).await
        };
        let (n1, n2) = tokio::join!(start("n1"), start("n2"));
        introduce(&[&n1, &n2]).await;
        n1.until_linked("n2").await;
        n2.until_linked("n1").await;
        (n1, n2)
    }

    pub(crate) async fn order(&self, order: Order) -> Value {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().unwrap().insert(number, answer);
        let line = format!("{}\n", serde_json::to_string(&(number, order)).unwrap());
        self.orders.lock().await.write_all(line.as_bytes()).await.unwrap();
        match timeout(PATIENCE, answered).await {
            Ok(Ok(answer)) => answer,
            _ => panic!("{} does not answer; its log:\n{}", self.name, *self.log.borrow()),
        }
    }

    /// The life of `peer` that this node is linked to, once it is.
    pub(crate) async fn until_linked(&self, peer: &str) -> String {
        self.order(Order::UntilLinked(peer.to_owned())).await.as_str().expect("a linked node has an incarnation").to_owned()
    }

    pub(crate) async fn until_apart(&self, peer: &str) {
        self.order(Order::UntilApart(peer.to_owned())).await;
    }

    pub(crate) async fn ask(&self, peer: &str, service: u8, bytes: usize, times: usize) -> Outcomes {
        self.ask_until(peer, service, bytes, times, Duration::from_secs(30)).await
    }

    pub(crate) async fn ask_until(&self, peer: &str, service: u8, bytes: usize, times: usize, patience: Duration) -> Outcomes {
        let patience_ms = u64::try_from(patience.as_millis()).unwrap();
        let answer = self.order(Order::Ask { peer: peer.to_owned(), service, bytes, times, patience_ms }).await;
        Outcomes {
            counts: serde_json::from_value(answer["outcomes"].clone()).unwrap(),
            slowest: Duration::from_millis(answer["slowest_ms"].as_u64().unwrap()),
        }
    }

    /// The sum of a metric over all its labels that contain `label`.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.order(Order::Metrics).await;
        let lines = text.as_str().unwrap().lines();
        let matching = lines.filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
        matching.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// Waits until the node has logged a line that contains all of this; the line.
    pub(crate) async fn until_logged(&self, words: &[&str]) -> String {
        let find = |log: &str| log.lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned);
        let mut log = self.log.clone();
        let found = timeout(PATIENCE, log.wait_for(|log| find(log).is_some())).await;
        if let Ok(Ok(log)) = found {
            return find(&log).unwrap();
        }
        panic!("{} has not logged {words:?}:\n{}", self.name, *self.log.borrow())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.process.id().expect("the node runs");
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }
}

/// Tells every node where all of them are.
pub(crate) async fn introduce(nodes: &[&Node]) {
    let list: Vec<_> = nodes.iter().map(|node| (node.name.clone(), node.address)).collect();
    for node in nodes {
        node.order(Order::Peers(list.clone())).await;
    }
}

impl Outcomes {
    /// That all came to the same.
    pub(crate) fn assert_all(&self, outcome: &str) {
        assert!(self.counts.len() == 1 && self.counts.contains_key(outcome), "not all {outcome}: {self:?}");
    }
}

async fn read_answers(stream: impl AsyncRead + Unpin, waiting: Waiting) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // The test harness has things to say as well.
        let Ok((number, answer)) = serde_json::from_str::<(u64, Value)>(&line) else { continue };
        if let Some(order) = waiting.lock().unwrap().remove(&number) {
            let _ = order.send(answer);
        }
    }
    // Whoever waits for a dead node hears of it.
    waiting.lock().unwrap().clear();
}

async fn read_log(stream: impl AsyncRead + Unpin, log: watch::Sender<String>) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.send_modify(|log| {
            log.push_str(&line);
            log.push('\n');
        });
    }
}
