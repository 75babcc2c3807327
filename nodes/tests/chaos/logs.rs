//! What nodes log while something is away, or comes and goes as it should: a line for each change of state, however often it
//! is tried meanwhile.

use std::{
    net::TcpStream,
    process::Command,
    time::{Duration, Instant},
};

use rookery::{
    chaos::cluster::{Cluster, Options},
    testing::TestKafka,
};
use serde_json::{Value, json};

use crate::harness::is_ci;

/// Long enough for hundreds of tries, shorter than the minute after which the log says that it goes on.
const OUTAGE: Duration = Duration::from_secs(15);

/// A cluster whose log is counted, and somebody who goes on asking it.
struct Observed {
    cluster: Cluster,
    http: reqwest::Client,
    token: String,
}

impl Observed {
    async fn start(options: impl FnOnce(Options) -> Options) -> Self {
        let options = options(Options::new(env!("CARGO_BIN_EXE_rookery"), 1));
        let cluster = Cluster::start(options).await.unwrap_or_else(|error| panic!("{error:#}"));
        let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).build().unwrap();
        let user = json!({"username": "ada", "email": "ada@example.org", "password": "a long pass phrase"});
        let answer = http.post(cluster.gateways().url(0, "/api/v1/auth/register")).json(&user).send().await.unwrap();
        assert_eq!(answer.status(), 201);
        let token = answer.json::<Value>().await.unwrap()["access_token"].as_str().unwrap().to_owned();
        // They are told together, some time after.
        let started = async |cluster: &Cluster| {
            let log = cluster.log();
            ["users", "posts", "comments", "search"].iter().all(|name| log.contains(&format!("{name}: shards are served here")))
        };
        cluster.until("the last lines of the start", started).await.unwrap();
        Self { cluster, http, token }
    }

    /// Writes and reads for this long, four at a time; how many writes were not answered with 201.
    async fn ask(&self, time: Duration) -> usize {
        let (began, mut failed) = (Instant::now(), 0);
        while began.elapsed() < time {
            let write = || async {
                let post = json!({"title": "once more", "body": "", "tags": []});
                let request =
                    self.http.post(self.cluster.gateways().url(0, "/api/v1/posts")).bearer_auth(&self.token).json(&post);
                request.send().await.is_ok_and(|answer| answer.status() == 201)
            };
            let read = || async {
                let url = self.cluster.gateways().url(0, "/api/v1/users/ada/posts?limit=1");
                self.http.get(url).send().await.is_ok()
            };
            let (one, two, ..) = tokio::join!(write(), write(), read(), read());
            failed += usize::from(!one) + usize::from(!two);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        failed
    }

    /// Until a write succeeds.
    async fn works_again(&self) {
        let began = Instant::now();
        while self.ask(Duration::from_millis(1)).await > 0 {
            assert!(began.elapsed() < Duration::from_secs(90), "it does not write again:\n{}", self.cluster.log());
        }
    }
}

/// The lines that nodes have logged after the first so many.
fn lines(cluster: &Cluster, after: usize) -> Vec<Value> {
    let log = cluster.log();
    log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).skip(after).collect()
}

/// Fails if there are more lines than that, and shows them.
fn assert_few(what: &str, lines: &[Value], most: usize) {
    eprintln!("{what}: {} lines", lines.len());
    let text = lines.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    assert!(lines.len() <= most, "{what}: {} lines are more than {most}:\n{text}", lines.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_kafka_is_few_lines() {
    if !TestKafka::is_possible() {
        assert!(!is_ci(), "CI must not pass by skipping");
        eprintln!("SKIPPED a_dead_kafka_is_few_lines: no Kafka broker");
        return;
    }
    let mut observed = Observed::start(|options| Options { kafka: true, ..options }).await;
    let before = lines(&observed.cluster, 0).len();
    observed.cluster.kill_kafka().unwrap();
    assert_eq!(observed.ask(OUTAGE).await, 0, "everything works but freshness");
    assert_few("Kafka dead", &lines(&observed.cluster, before), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_away_is_a_line_or_two_for_each_service() {
    let observed = Observed::start(|options| Options { proxied: true, ..options }).await;
    let before = lines(&observed.cluster, 0).len();
    let proxy = observed.cluster.proxy().unwrap();
    proxy.take_down();
    assert!(observed.ask(OUTAGE).await > 10, "nothing is written");
    assert_few("Postgres down", &lines(&observed.cluster, before), 20);
    proxy.heal();
    observed.works_again().await;
    let over = async |cluster: &Cluster| {
        lines(cluster, before).iter().any(|line| line["message"].as_str().unwrap().starts_with("over: "))
    };
    observed.cluster.until("a line says that it is over", over).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_few_lines() {
    if !nix::unistd::geteuid().is_root() {
        assert!(!is_ci(), "CI must not pass by skipping");
        eprintln!("SKIPPED a_full_disk_is_few_lines: only root mounts a small disk");
        return;
    }
    let observed = Observed::start(|options| Options { disk_bytes: Some(512 << 20), ..options }).await;
    let before = lines(&observed.cluster, 0).len();
    let balloon = observed.cluster.fill_disk().unwrap();
    observed.ask(OUTAGE).await;
    assert_few("disk full", &lines(&observed.cluster, before), 30);
    drop(balloon);
    observed.works_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_descriptors_are_few_lines() {
    let observed = Observed::start(|options| options).await;
    let nodes = observed.cluster.nodes().await.unwrap();
    let [node] = nodes.as_slice() else { panic!("one node, not {nodes:?}") };
    let before = lines(&observed.cluster, 0).len();
    let open = std::fs::read_dir(format!("/proc/{}/fd", node.pid)).unwrap().count();
    let limited = Command::new("prlimit").args([format!("--pid={}", node.pid), format!("--nofile={0}:{0}", open + 4)]).status();
    assert!(limited.unwrap().success());
    let clients: Vec<_> = (0..64).map(|_| TcpStream::connect(&node.gateway)).collect();
    tokio::time::sleep(OUTAGE).await;
    assert_few("no descriptors", &lines(&observed.cluster, before), 12);
    drop(clients);
}

/// Three nodes start, become five, and one: nothing goes wrong, so nothing warns.
#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_start_and_scaling_and_leaving_in_order_warn_of_nothing() {
    let mut observed = Observed::start(|options| Options { nodes: 3, ..options }).await;
    for nodes in [5, 1] {
        observed.cluster.scale(nodes).await.unwrap();
        observed.works_again().await;
    }
    let lines = lines(&observed.cluster, 0);
    // How fast a busy machine answers is not what is looked at here.
    let is_slow = |line: &Value| line["message"].as_str().unwrap().contains("slow");
    let warns = |line: &&Value| (line["level"] == "WARN" || line["level"] == "ERROR") && !is_slow(line);
    let alarming: Vec<_> = lines.iter().filter(warns).collect();
    assert!(alarming.is_empty(), "{alarming:#?}");
    // Of five nodes each other one is linked and parted once (40 lines), and shards of four services move for half a minute.
    assert_few("3 nodes become 5 and 1", &lines, 220);
    observed.cluster.stop().await.unwrap();
}
