//! Nodes of a cluster, over a Postgres that belongs to none of them.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rookery::{
    migrate::Database,
    testing::{self, TestPostgres, Turn},
};
use serde_json::{Value, json};

use crate::process::{Running, rookery, run, status};

const SECRET: &str = "a secret that all nodes of the test share";

/// The databases that the nodes of a test share.
pub(crate) struct Shared(Vec<(Database, String)>);

impl Shared {
    pub(crate) async fn new() -> Self {
        let postgres = TestPostgres::shared();
        let mut urls = Vec::new();
        for database in Database::ALL {
            let made = postgres.fresh_database(database).await;
            urls.push((database, postgres.server().url(made.get_dbname().unwrap())));
        }
        Self(urls)
    }

    pub(crate) fn node(&self, name: &str, roles: &str) -> Command {
        self.command(&["node", "--name", name, "--roles", roles])
    }

    /// A command with what the nodes are configured by.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = rookery(arguments);
        command.env("ROOKERY__SECRET", SECRET);
        for (database, url) in &self.0 {
            command.env(format!("ROOKERY__SERVICES__{}__DATABASE_URL", database.name().to_uppercase()), url);
        }
        command
    }

    /// What a database is called on the server.
    pub(crate) fn name(&self, of: Database) -> String {
        let (_, url) = self.0.iter().find(|(database, _)| *database == of).unwrap();
        url.parse::<tokio_postgres::Config>().unwrap().get_dbname().unwrap().to_owned()
    }

    /// A session of a database.
    pub(crate) async fn sql(&self, of: Database) -> tokio_postgres::Client {
        let (_, url) = self.0.iter().find(|(database, _)| *database == of).unwrap();
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// The names of the members of a service.
    async fn members(&self, of: Database) -> Vec<String> {
        let rows = self.sql(of).await.query("SELECT node FROM member WHERE state = 'live' ORDER BY node", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_serves_what_its_roles_say_and_opens_the_ports_for_it_alone() {
    let _turn = Turn::wait(3);
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let owner = Running::start(shared.node("n1", "users,posts,comments,search"), &folder.path().join("n1")).await;
    let gateway = Running::start(shared.node("n2", "gateway"), &folder.path().join("n2")).await;

    for database in Database::ALL {
        assert_eq!(shared.members(database).await, ["n1"], "{database}");
    }
    assert!(owner.greeting.starts_with("Rookery node n1 runs"), "{}", owner.greeting);
    let health = format!("http://{}", owner.greeted("posts").unwrap());
    let probes = probes(&owner, &health).await;
    assert!(probes.contains(&"posts.shards".to_owned()) && probes.contains(&"posts.events.users".to_owned()), "{probes:?}");
    assert_eq!(owner.get(&format!("{health}/api/v1/posts")).await.0, 404, "it is no gateway");

    let url = gateway.greeted("listens on").unwrap();
    assert_eq!(gateway.get(&format!("{url}/livez")).await, (200, "ok\n".to_owned()));
    eventually("its links are there", async || is_ready(&gateway, url).await).await;
    let mut needed =
        ["comments", "posts", "search", "users"].map(|of| [format!("{of}.database"), format!("{of}.nodes")]).concat();
    needed.push("disk".to_owned());
    needed.sort();
    assert_eq!(self::probes(&gateway, url).await, needed, "no shards, no bridges");
    assert!(!gateway.greeting.contains("posts 127"), "no health port of a service that it does not have");

    let folders = ["n1", "n2"].map(|name| folder.path().join(name));
    for data in &folders {
        let status = status(data);
        let [first, second] = &status["nodes"].as_array().unwrap()[..] else { panic!("{status}") };
        assert_eq!((&first["name"], &first["state"], &first["gateway"]), (&json!("n1"), &json!("live"), &Value::Null));
        assert_eq!(first["roles"], json!(["users", "posts", "comments", "search"]));
        assert_eq!(first["pid"], owner.pid().as_raw());
        assert_eq!(first["incarnations"].as_object().unwrap().len(), 4);
        assert_eq!((&second["name"], &second["state"], &second["roles"]), (&json!("n2"), &json!("live"), &json!(["gateway"])));
        assert!(url.ends_with(second["gateway"].as_str().unwrap()), "{second}");
        let shards = status["shards"].as_array().unwrap();
        assert_eq!(shards.len(), 3 * 256 + 4);
        assert!(shards.iter().all(|shard| shard["owner"] == "n1" && shard["epoch"].as_i64() > Some(0)), "{status}");
        assert_eq!(status["moves"], json!([]));
    }

    gateway.stop().await;
    let left = status(&folders[0]);
    assert_eq!(left["nodes"].as_array().unwrap().len(), 1, "who left in order is not missed: {left}");
    owner.stop().await;
    assert_eq!(shared.members(Database::Posts).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_reaches_nobody_is_not_ready() {
    let _turn = Turn::wait(3);
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let owner = Running::start(shared.node("n1", "users,posts,comments,search"), &folder.path().join("n1")).await;
    let gateway = Running::start(shared.node("n2", "gateway"), &folder.path().join("n2")).await;
    let url = gateway.greeted("listens on").unwrap();
    eventually("its links are there", async || is_ready(&gateway, url).await).await;
    owner.stop().await;
    eventually("it says so", async || !is_ready(&gateway, url).await).await;
    let (_, told) = gateway.get(&format!("{url}/readyz?verbose")).await;
    assert!(told.contains("posts.nodes"), "{told}");
    gateway.stop().await;
}

/// A cluster without posts nodes, then with one, which dies with nobody left to declare it dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_nobody_serves_is_a_503_at_once_that_names_it_and_a_restart_is_a_pause() {
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let others = Running::start(shared.node("n1", "users,comments,search"), &folder.path().join("n1")).await;
    let gateway = Running::start(shared.node("n2", "gateway"), &folder.path().join("n2")).await;
    let url = gateway.greeted("listens on").unwrap().to_owned();
    let [list, post, tags] =
        ["", "/018f4e6a-0000-7000-8000-000000000000", "/../tags"].map(|path| format!("{url}/api/v1/posts{path}"));
    let unserved = async |what: &str| {
        eventually(what, async || gateway.get(&list).await.1.contains("no node serves posts")).await;
        for url in [&list, &post, &tags] {
            let began = Instant::now();
            let (status, told) = gateway.get(url).await;
            assert!(status == 503 && told.contains("no node serves posts"), "{url}: {status} {told}");
            assert!(began.elapsed() < Duration::from_secs(1), "{url}: at once, not after {:?}", began.elapsed());
        }
        let (status, told) = gateway.get(&format!("{url}/api/v1/users/nobody_of_that_name")).await;
        assert_eq!(status, 404, "the others are served: {told}");
    };
    unserved("a cluster without posts nodes says so").await;

    let data = folder.path().join("n3");
    let mut posts = Running::start(shared.node("n3", "posts"), &data).await;
    eventually("posts are served", async || gateway.get(&list).await.0 == 200 && gateway.get(&post).await.0 == 404).await;

    posts.signal(Signal::SIGKILL);
    posts.ended(Duration::from_secs(10)).await;
    let (paused, again) = tokio::join!(gateway.get(&post), Running::start(shared.node("n3", "posts"), &data));
    assert_eq!(paused.0, 404, "a restart is a pause: {}", paused.1);

    again.signal(Signal::SIGKILL);
    unserved("a service whose last member died says so").await;
    gateway.stop().await;
    others.stop().await;
}

/// A balancer that goes by readiness would otherwise take every gateway away, and three services with them.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_stays_ready_while_a_service_is_missing_and_says_which() {
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let posts = Running::start(shared.node("n1", "posts"), &folder.path().join("n1")).await;
    let others = Running::start(shared.node("n2", "users,comments,search"), &folder.path().join("n2")).await;
    let gateway = Running::start(shared.node("n3", "gateway"), &folder.path().join("n3")).await;
    let url = gateway.greeted("listens on").unwrap().to_owned();
    eventually("its links are there", async || is_ready(&gateway, &url).await).await;
    posts.stop().await;
    eventually("it says what is missing", async || {
        let (status, told) = gateway.get(&format!("{url}/readyz")).await;
        assert_eq!(status, 200, "{told}");
        let told: Value = serde_json::from_str(&told).unwrap();
        told["status"] == "degraded" && told["probes"]["posts.nodes"]["status"] == "degraded"
    })
    .await;
    assert_eq!(gateway.get(&format!("{url}/api/v1/search?q=x")).await.0, 200, "and the others serve");
    gateway.stop().await;
    others.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_a_gateway_behind_every_interface_where_it_is_reached() {
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let mut command = shared.node("n1", "gateway,users,posts,comments,search");
    command.env("ROOKERY__GATEWAY__LISTEN", "0.0.0.0:0");
    let node = Running::start(command, &folder.path().join("n1")).await;
    let gateway = status(&folder.path().join("n1"))["nodes"][0]["gateway"].as_str().unwrap().to_owned();
    assert!(!gateway.starts_with("0.0.0.0"), "{gateway}");
    assert_eq!(node.get(&format!("http://{gateway}/livez")).await.0, 200);
    node.stop().await;
}

/// Its databases are on this machine, so their network says nothing about the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_listens_everywhere_and_cannot_tell_where_it_is_reached_says_what_to_set() {
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let mut command = shared.node("n1", "users");
    command.env("ROOKERY__CLUSTER__LISTEN", "0.0.0.0:0").env("ROOKERY__DATA_DIR", folder.path());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("ROOKERY__CLUSTER__ADVERTISE"), "{said}");
}

async fn is_ready(node: &Running, url: &str) -> bool {
    node.get(&format!("{url}/readyz")).await.0 == 200
}

pub(crate) async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    testing::eventually(Duration::from_secs(20), what, condition).await;
}

/// What the readiness of a node consists of; the node is ready.
async fn probes(node: &Running, url: &str) -> Vec<String> {
    let (status, text) = node.get(&format!("{url}/readyz?verbose")).await;
    assert_eq!(status, 200, "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    report["probes"].as_object().unwrap().keys().cloned().collect()
}

#[test]
fn a_node_that_was_not_given_what_the_cluster_shares_is_told_what_and_how() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(&["node", "--name", "n2"], folder.path());
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    for missing in ["services.users.database_url", "ROOKERY__SERVICES__SEARCH__DATABASE_URL_FILE", "`secret`", "rookery up"] {
        assert!(said.contains(missing), "{missing}: {said}");
    }
    assert!(is_empty(folder.path()), "nothing was begun");
}

#[test]
fn a_whole_that_leaves_out_a_part_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = rookery(&["up"])
        .env("ROOKERY__DATA_DIR", folder.path())
        .env("ROOKERY__NODE__ROLES", "gateway,posts,comments")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("leaves out users, search") && said.contains("rookery node"), "{said}");
    assert!(is_empty(folder.path()), "nothing was begun");
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}
