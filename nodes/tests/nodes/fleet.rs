//! `rookery up --nodes`: the parent, its children, and what a kill of either leaves.

use std::{fs, path::Path, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rookery::testing::{Patience, Turn};
use serde_json::Value;

use crate::process::{Running, of_program, rookery, run, status, try_status};

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

/// The nodes as their parent lists them.
async fn kept(data: &Path) -> Vec<Value> {
    let parent = reqwest::Client::builder().unix_socket(data.join("admin.sock")).no_proxy().build().unwrap();
    parent.get("http://rookery/nodes").send().await.unwrap().json().await.unwrap()
}

/// The node with this number cannot start any more: what should be its lock is a folder.
struct Obstacle(std::path::PathBuf);

impl Obstacle {
    fn of(data: &Path, name: &str) -> Self {
        let lock = data.join("nodes").join(name).join("lock");
        fs::remove_file(&lock).unwrap();
        fs::create_dir(&lock).unwrap();
        Self(lock)
    }

    fn take_away(self) {
        fs::remove_dir(self.0).unwrap();
    }
}

async fn lost(fleet: &Running, name: &str) {
    fleet.until(name, async |fleet| fleet.log().contains(&format!("node {name} ended too often"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_ended_too_often_counts_for_nothing() {
    let _turn = Turn::wait(4);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let fleet = up("2", &data).await;
    let before = status(&data);
    let obstacle = Obstacle::of(&data, "n1");
    kill(pid(node(&before, "n1").unwrap()), Signal::SIGKILL).unwrap();
    lost(&fleet, "n1").await;

    // As an older command would ask.
    let parent = reqwest::Client::builder().unix_socket(data.join("admin.sock")).no_proxy().build().unwrap();
    let refused = parent.delete("http://rookery/nodes/n2").send().await.unwrap();
    assert!(refused.text().await.unwrap().contains("the only node that lives"));
    let said = |output: std::process::Output| (output.status.code(), String::from_utf8(output.stdout).unwrap());
    let gone = "n1 had ended too often, and is counted no more\n".to_owned();
    assert_eq!(said(run(&["scale", "1"], &data)), (Some(0), gone + "1 nodes\n"));
    assert_eq!(kept(&data).await[0]["name"], "n2");
    eventually("the one that lives has everything", &data, is_served).await;

    obstacle.take_away();
    let (code, more) = said(run(&["scale", "2"], &data));
    assert!(code == Some(0) && more.contains("n1 is up: http://") && more.ends_with("2 nodes\n"), "{more}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_whose_nodes_have_all_ended_too_often_ends() {
    let _turn = Turn::wait(4);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut fleet = up("2", &data).await;
    let before = status(&data);
    for name in ["n1", "n2"] {
        Obstacle::of(&data, name);
        kill(pid(node(&before, name).unwrap()), Signal::SIGKILL).unwrap();
    }
    let ended = fleet.ended(PATIENCE).await;
    assert_eq!(ended.code(), Some(1), "{}", fleet.log());
    assert!(fleet.log().contains("every node has ended too often"), "{}", fleet.log());
    assert!(!data.join("postgres/postmaster.pid").exists(), "its Postgres has stopped");
}

/// Four ends within two seconds, while the Postgres of all of them recovered, were too many.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_whose_postgres_is_away_come_back_with_it() {
    let _turn = Turn::wait(4);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let fleet = up("2", &data).await;
    let before = eventually("everything", &data, is_served).await;
    let obstacle = PostgresObstacle::of(&data);
    kill(postgres(&data), Signal::SIGKILL).unwrap();
    fleet.until("it does not start", async |fleet| fleet.log().contains("does not start, trying again in 2 s")).await;
    for name in ["n1", "n2"] {
        kill(pid(node(&before, name).unwrap()), Signal::SIGKILL).unwrap();
    }
    // Four times as long as four starts take that find no database.
    fleet.until("nor does it", async |fleet| fleet.log().contains("does not start, trying again in 8 s")).await;
    obstacle.take_away();
    eventually("everything again", &data, |status| {
        is_served(status) && ["n1", "n2"].iter().all(|name| node(status, name).is_some_and(|node| node["state"] == "live"))
    })
    .await;
    assert!(!fleet.log().contains("ended too often"), "{}", fleet.log());
    fleet.stop().await;
}

/// The private Postgres cannot start any more: what should be a file of its settings is a folder.
pub(crate) struct PostgresObstacle(std::path::PathBuf);

impl PostgresObstacle {
    pub(crate) fn of(data: &Path) -> Self {
        let settings = data.join("postgres/rookery.conf");
        fs::remove_file(&settings).unwrap();
        fs::create_dir(&settings).unwrap();
        Self(settings)
    }

    pub(crate) fn take_away(self) {
        fs::remove_dir(self.0).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_postgres_that_does_not_start_at_once_is_started_later() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let running = Running::start(rookery(&["up"]), &data).await;
    let posts = format!("{}/api/v1/posts", running.greeted("listens on").unwrap());
    let obstacle = PostgresObstacle::of(&data);
    kill(postgres(&data), Signal::SIGKILL).unwrap();
    running.until("it does not start", async |running| running.log().contains("does not start, trying again in 2 s")).await;
    obstacle.take_away();
    running.until("it serves", async |running| running.get(&posts).await.0 == 200).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_is_free_when_its_process_has_ended_and_not_before() {
    let _turn = Turn::wait(4);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let fleet = up("2", &data).await;
    // It takes its time to stop: all that it is given.
    kill(pid(node(&status(&data), "n2").unwrap()), Signal::SIGSTOP).unwrap();
    let fewer = rookery(&["scale", "1"]).env("ROOKERY__DATA_DIR", &data).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut patience = Patience::of(PATIENCE);
    while kept(&data).await.len() > 1 {
        assert!(!patience.is_over(), "it does not leave");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let more = run(&["scale", "2"], &data);
    let said = String::from_utf8(more.stdout).unwrap();
    assert!(said.contains("n3 is up: http://") && said.ends_with("2 nodes\n"), "{said}: {}", fleet.log());
    let fewer = tokio::task::spawn_blocking(move || fewer.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(String::from_utf8(fewer.stdout).unwrap(), "n2 has left\n1 nodes\n");
    // Now it is.
    let said = String::from_utf8(run(&["scale", "3"], &data).stdout).unwrap();
    assert!(said.contains("n2 is up: http://"), "{said}");
    fleet.stop().await;
}

/// An upgrade puts another program in the place of the one that runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_started_again_is_of_the_same_program_as_the_others() {
    let _turn = Turn::wait(4);
    let folder = tempfile::tempdir().unwrap();
    let (data, program) = (folder.path().join("data"), folder.path().join("rookery"));
    fs::copy(env!("CARGO_BIN_EXE_rookery"), &program).unwrap();
    let fleet = Running::start(of_program(&program, &["up", "--nodes", "2"]), &data).await;
    let before = eventually("both", &data, is_served).await;
    let victim = pid(node(&before, "n2").unwrap());
    let other = folder.path().join("other");
    fs::write(&other, "#!/bin/sh\nexit 7\n").unwrap();
    fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(&other, &program).unwrap();
    kill(victim, Signal::SIGKILL).unwrap();
    let after = eventually("the node again", &data, |status| {
        node(status, "n2").is_some_and(|node| node["state"] == "live" && pid(node) != victim)
    })
    .await;
    let again = pid(node(&after, "n2").unwrap());
    let inode = |pid: Pid| std::os::unix::fs::MetadataExt::ino(&fs::metadata(format!("/proc/{pid}/exe")).unwrap());
    assert_eq!(inode(again), inode(fleet.pid()));
    assert_eq!(fs::read_to_string(format!("/proc/{again}/comm")).unwrap(), "rookery\n");
    fleet.stop().await;
}

#[test]
fn who_scales_nodes_that_do_not_run_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(&["scale", "2"], folder.path());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no node runs with the data folder"));
}
