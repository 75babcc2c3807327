//! SIGTERM: what a client and a balancer see of a node that leaves the others; and a start that is given up.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, path::Path, process::Command, time::Duration};

use nix::sys::signal::Signal;
use rookery::{
    migrate::Database,
    testing::{TestPostgres, Turn},
};

use crate::{
    process::{Running, rookery},
    roles::Shared,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_is_not_ready_at_once_and_serves_until_balancers_have_noticed() {
    let _turn = Turn::wait(3);
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let mut first = shared.node("n1", "gateway,users,posts,comments,search");
    // Long enough for a busy machine to look around in.
    first.env("ROOKERY__GATEWAY__DRAIN_MS", "5000");
    let mut leaving = Running::start(first, &folder.path().join("n1")).await;
    let others = shared.node("n2", "gateway,users,posts,comments,search");
    let staying = Running::start(others, &folder.path().join("n2")).await;
    let url = leaving.greeted("listens on").unwrap().to_owned();
    let health = format!("http://{}", leaving.greeted("posts").unwrap());
    assert_eq!(leaving.get(&format!("{url}/readyz")).await.0, 200);

    leaving.signal(Signal::SIGTERM);
    leaving.until("it says that it is stopping", async |node| node.get(&format!("{url}/readyz")).await.0 == 503).await;
    assert_eq!(leaving.get(&format!("{health}/readyz")).await.0, 503, "on every port");
    let answer = reqwest::get(format!("{url}/api/v1/posts")).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["connection"]), (200, &"close".parse().unwrap()));

    let status = leaving.ended(Duration::from_secs(15)).await;
    assert!(status.success(), "{status}: {}", leaving.log());
    assert!(reqwest::get(format!("{url}/livez")).await.is_err(), "nobody listens any more");
    let url = staying.greeted("listens on").unwrap();
    staying.until("it has all shards", async |node| node.get(&format!("{url}/api/v1/posts")).await.0 == 200).await;
    // What was handed over in order was never without a lease.
    assert!(!staying.log().contains("fell silent"), "{}", staying.log());
    staying.stop().await;
}

/// A start that has come to what `has_begun` says, and would not end by itself, is told to stop.
async fn is_given_up(command: Command, data: &Path, what: &str, has_begun: impl AsyncFn(&Running) -> bool) {
    let mut starting = Running::begin(command, data);
    starting.until("it begins to wait", has_begun).await;
    starting.signal(Signal::SIGTERM);
    let status = starting.ended(Duration::from_secs(15)).await;
    assert_eq!(status.code(), Some(1), "{}", starting.log());
    assert!(starting.log().contains(&format!("stopped before {what} up")), "{}", starting.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_for_another_process_to_migrate_is_given_up_on_a_signal() {
    let _turn = Turn::wait(2);
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let holder = TestPostgres::shared().server().config(&shared.name(Database::Posts));
    let (holder, connection) = holder.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    holder.execute("SELECT pg_advisory_lock($1)", &[&i64::from_be_bytes(*b"rookery\0")]).await.unwrap();
    let node = shared.node("n1", "gateway,users,posts,comments,search");
    let waits = async |node: &Running| node.log().contains("another process is migrating the posts database");
    is_given_up(node, &folder.path().join("n1"), "the node was", waits).await;
}

/// A network that swallows everything, in front of Maven Central.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fetches_its_postgres_is_given_up_on_a_signal() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().unwrap();
    for (name, arguments, what) in [("one", &["up"][..], "the node was"), ("several", &["up", "--nodes", "2"], "the nodes were")]
    {
        let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
        proxy.set_nonblocking(true).unwrap();
        let data = folder.path().join(name);
        fs::create_dir_all(data.join("postgres")).unwrap();
        fs::set_permissions(&data, PermissionsExt::from_mode(0o700)).unwrap();
        // This machine has no such version.
        fs::write(data.join("postgres/PG_VERSION"), "99\n").unwrap();
        let mut command = rookery(arguments);
        let address = format!("http://{}", proxy.local_addr().unwrap());
        command.envs([("HTTPS_PROXY", &address), ("https_proxy", &address)]).env_remove("ROOKERY_PG_BIN");
        let connected = std::sync::Mutex::new(Vec::new());
        let fetches = async |_: &Running| {
            let mut connected = connected.lock().unwrap();
            connected.extend(proxy.accept());
            !connected.is_empty()
        };
        is_given_up(command, &data, what, fetches).await;
    }
}

/// As on a network drive that does not answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_for_a_program_is_given_up_on_a_signal() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let asked = folder.path().join("asked");
    for program in ["postgres", "initdb"] {
        fs::write(bin.join(program), format!("#!/bin/sh\n: >{}\nexec sleep 600\n", asked.display())).unwrap();
        fs::set_permissions(bin.join(program), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mut command = rookery(&["up"]);
    command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())).env_remove("ROOKERY_PG_BIN");
    is_given_up(command, &folder.path().join("data"), "the node was", async |_| asked.exists()).await;
}
