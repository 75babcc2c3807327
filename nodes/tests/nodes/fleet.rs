//! `rookery up --nodes`: the parent, its children, and what a kill of either leaves.

use std::{fs, path::Path, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rookery::testing::{Patience, Turn};
use serde_json::Value;

use crate::process::{Running, rookery, run, status, try_status};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

async fn up(nodes: &str, data: &Path) -> Running {
    Running::start(rookery(&["up", "--nodes", nodes]), data).await
}

/// The gateways, as the greeting names them.
fn gateways(fleet: &Running) -> Vec<String> {
    let line = fleet.greeting.lines().find(|line| line.starts_with("nodes:")).expect("it names its nodes");
    line.split_whitespace().filter(|word| word.starts_with("http")).map(|url| url.trim_end_matches(',').to_owned()).collect()
}

fn node<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name)
}

fn pid(node: &Value) -> Pid {
    Pid::from_raw(i32::try_from(node["pid"].as_i64().unwrap()).unwrap())
}

/// Waits until the status is as it should be.
async fn eventually(what: &str, data: &Path, is_so: impl Fn(&Value) -> bool) -> Value {
    let mut patience = Patience::of(PATIENCE);
    loop {
        let status = try_status(data);
        match status {
            Ok(status) if is_so(&status) => return status,
            status => assert!(!patience.is_over(), "{what} did not come: {status:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether every shard has an owner who lives.
fn is_served(status: &Value) -> bool {
    status["services"].as_array().unwrap().iter().all(|service| service["shards_unowned"] == 0)
}

/// Waits until a process is gone; a zombie of somebody else's counts as gone.
async fn gone(pid: Pid) {
    let mut patience = Patience::of(PATIENCE);
    let lives = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    while lives() {
        assert!(!patience.is_over(), "process {pid} is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn postgres(data: &Path) -> Pid {
    let file = fs::read_to_string(data.join("postgres/postmaster.pid")).unwrap();
    Pid::from_raw(file.lines().next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_answer_and_share_the_shards_and_stop_together() {
    let _turn = Turn::wait(4);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let fleet = up("3", &data).await;
    let gateways = gateways(&fleet);
    assert_eq!(gateways.len(), 3, "{}", fleet.greeting);
    for gateway in &gateways {
        assert_eq!(fleet.get(&format!("{gateway}/livez")).await.0, 200, "{gateway}");
    }
    let status = eventually("a share of everything for everybody", &data, |status| {
        let owners = |service: &str| -> std::collections::BTreeSet<String> {
            let shards = status["shards"].as_array().unwrap().iter().filter(|shard| shard["service"] == service);
            shards.filter_map(|shard| shard["owner"].as_str().map(str::to_owned)).collect()
        };
        is_served(status) && ["users", "posts", "comments"].iter().all(|service| owners(service).len() == 3)
    })
    .await;
    for name in ["n1", "n2", "n3"] {
        let node = node(&status, name).unwrap();
        assert_eq!(node["state"], "live", "{node}");
        assert!(gateways.iter().any(|gateway| gateway.ends_with(node["gateway"].as_str().unwrap())), "{node}");
        assert_eq!(node["incarnations"].as_object().unwrap().len(), 4, "{node}");
        assert!(data.join("nodes").join(name).is_dir(), "a folder each");
    }
    let shown = String::from_utf8(run(&["status"], &data).stdout).unwrap();
    assert!(shown.lines().count() < 30 && shown.lines().all(|line| line.chars().count() <= 80), "{shown}");

    let (children, postgres) = (["n1", "n2", "n3"].map(|name| pid(node(&status, name).unwrap())), postgres(&data));
    fleet.stop().await;
    for process in children.into_iter().chain([postgres]) {
        gone(process).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_is_declared_dead_at_once_and_comes_back() {
    let _turn = Turn::wait(4);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    // A lease that would outlast the test, if anybody had to wait for its end.
    let mut command = rookery(&["up", "--nodes", "2"]);
    command.env("ROOKERY__LEASE__TTL_MS", "60000");
    let fleet = Running::start(command, &data).await;
    let before = eventually("both", &data, is_served).await;
    let victim = node(&before, "n1").unwrap();
    kill(pid(victim), Signal::SIGKILL).unwrap();
    // The first node's socket was the one that answered: now it is another's.
    let after = eventually("the node again", &data, |status| {
        node(status, "n1").is_some_and(|node| node["state"] == "live" && node["pid"] != victim["pid"]) && is_served(status)
    })
    .await;
    assert_ne!(node(&after, "n1").unwrap()["incarnations"], victim["incarnations"], "as somebody else");
    assert!(fleet.log().contains("node n1 ended (signal: 9"), "{}", fleet.log());
    assert!(!fleet.log().contains("a member fell silent"), "{}", fleet.log());
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_the_parent_leaves_nothing_behind_and_a_restart_finds_everything() {
    let _turn = Turn::wait(4);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut fleet = up("2", &data).await;
    let status = status(&data);
    let processes = [pid(node(&status, "n1").unwrap()), pid(node(&status, "n2").unwrap()), postgres(&data)];
    fleet.signal(Signal::SIGKILL);
    fleet.ended(PATIENCE).await;
    for process in processes {
        gone(process).await;
    }
    let fleet = up("2", &data).await;
    eventually("everything", &data, is_served).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_come_and_go_while_it_runs() {
    let _turn = Turn::wait(4);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let fleet = up("2", &data).await;
    let more = run(&["scale", "3"], &data);
    let said = String::from_utf8(more.stdout).unwrap();
    assert!(said.contains("n3 is up: http://") && said.ends_with("3 nodes\n"), "{said}");
    eventually("the third node's share", &data, |status| {
        status["shards"].as_array().unwrap().iter().any(|shard| shard["owner"] == "n3")
    })
    .await;
    let fewer = run(&["scale", "2"], &data);
    assert_eq!(String::from_utf8(fewer.stdout).unwrap(), "n3 has left\n2 nodes\n");
    let status = eventually("its shards with the others", &data, is_served).await;
    assert!(node(&status, "n3").is_none(), "{status}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_start_is_said_so_and_nothing_stays() {
    let _turn = Turn::wait(4);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    // The second node's port is taken, and the first one's is free.
    let (_taken, port) = loop {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        if std::net::TcpListener::bind(("127.0.0.1", port - 10)).is_ok() {
            break (taken, port);
        }
    };
    let mut command = rookery(&["up", "--nodes", "2"]);
    command.env("ROOKERY__GATEWAY__LISTEN", format!("127.0.0.1:{}", port - 10)).env("ROOKERY__DATA_DIR", &data);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{said}");
    assert!(said.contains("node n2 does not start"), "{said}");
    assert!(!data.join("postgres/postmaster.pid").exists(), "its Postgres has stopped");
}

#[test]
fn who_scales_nodes_that_do_not_run_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(&["scale", "2"], folder.path());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no node runs with the data folder"));
}
