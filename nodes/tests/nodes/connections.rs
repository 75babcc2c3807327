//! What a node needs of the Postgres of its databases: so many connections, and those for commits from the start.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::future::join_all;
use rookery::{
    chaos::proxy::{Fate, LANE, Proxy},
    migrate::Database,
    postgres::{DataDir, EmbeddedPostgres},
    testing::{self, TestPostgres, Turn},
};
use serde_json::{Value, json};

use crate::{
    process::{Running, ended, rookery},
    roles::{Shared, eventually},
};

const ROLES: &str = "gateway,users,posts,comments,search";

async fn connect(config: &tokio_postgres::Config) -> tokio_postgres::Client {
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A node with all its databases on one server.
fn on(server: &EmbeddedPostgres) -> Command {
    let mut command = rookery(&["node", "--name", "n1", "--roles", ROLES]);
    command.env("ROOKERY__SECRET", "a secret that all nodes of the test share");
    for database in Database::ALL {
        let variable = format!("ROOKERY__SERVICES__{}__DATABASE_URL", database.name().to_uppercase());
        command.env(variable, server.url(database.name()));
    }
    command
}

/// What was broken: with few connections the node was ready, and every registration was a 503; with fewer it hung.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_allows_too_few_connections_is_named_with_the_number_that_is_needed() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::lock(folder.path().join("server")).unwrap();
    let names = Database::ALL.map(Database::name);
    let mut server = EmbeddedPostgres::start_with(&data, &names, &testing::search()).await.unwrap();
    let allow = async |server: &mut EmbeddedPostgres, connections: u16| {
        let allow = format!("ALTER SYSTEM SET max_connections = {connections}");
        connect(&server.config("postgres")).await.batch_execute(&allow).await.unwrap();
        server.restart().await.unwrap();
    };
    for few in [8, 13, 20, 37] {
        allow(&mut server, few).await;
        let (code, said) = ended(on(&server), &folder.path().join("n1"));
        let told = "needs at least 38 connections to the Postgres of users, posts, comments, search";
        assert!(code == Some(1) && said.contains(told), "{few}: {said}");
        assert!(said.contains(&format!("allows {few}")) && said.contains("max_connections"), "{few}: {said}");
    }

    allow(&mut server, 50).await;
    let node = Running::start(on(&server), &folder.path().join("n1")).await;
    assert!(node.log().contains("allows 50 connections, 94 are configured: no pool is larger than 5"), "{}", node.log());
    let url = node.greeted("listens on").unwrap();
    let ada = json!({"username": "ada", "email": "ada@example.org", "password": "correct horse battery"});
    let answer = reqwest::Client::new().post(format!("{url}/api/v1/auth/register")).json(&ada).send().await.unwrap();
    assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
    // However much is asked of the pools, the others have their connections.
    let reads = join_all((0..60).map(|n| node.get(format!("{url}/api/v1/users/nobody_{n}").leak()))).await;
    assert!(reads.iter().all(|(status, _)| *status == 404), "{reads:?}");
    let (status, told) = node.get(&format!("{url}/readyz?verbose")).await;
    assert_eq!(status, 200, "{told}");
    node.stop().await;

    // A pool that could never be as large as it says.
    let mut command = on(&server);
    command.env("ROOKERY__SERVICES__POSTS__POOL_MAX", "60");
    let (code, said) = ended(command, &folder.path().join("n1"));
    assert!(code == Some(1) && said.contains("services.posts.pool_max is 60") && said.contains("allows 50"), "{said}");
    server.stop().await;
}

/// What was broken: they were opened with the first write, and what kept the server from giving them nobody knew before.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_its_sessions_for_commits_before_anybody_writes_and_is_not_ready_without_them() {
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let proxy = Proxy::start(&TestPostgres::shared().server().config("postgres"));
    let mut command = shared.node("n1", ROLES);
    command.env("ROOKERY__SERVICES__POSTS__DATABASE_URL", proxy.url(&shared.name(Database::Posts)));
    let node = Running::start(command, &folder.path().join("n1")).await;
    let url = node.greeted("listens on").unwrap();
    // Nothing was sent through them yet but what each begins with.
    let lanes = "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'posts:%'
                 AND query = 'SELECT pg_backend_pid()'";
    let client = shared.sql(Database::Posts).await;
    let count = format!("SELECT count(*) {lanes}");
    assert_eq!(client.query_one(&count, &[]).await.unwrap().get::<_, i64>(0), 2);
    let ready = async || node.get(&format!("{url}/readyz?verbose")).await;
    eventually("it is ready", async || ready().await.0 == 200).await;

    proxy.always(LANE, Fate::NeverArrives);
    client.execute(&format!("SELECT pg_terminate_backend(pid) {lanes}"), &[]).await.unwrap();
    eventually("it is not ready without them", async || {
        let (status, told) = ready().await;
        let told: Value = serde_json::from_str(&told).unwrap();
        let shards = &told["probes"]["posts.shards"];
        status == 503 && shards["detail"].as_str().is_some_and(|detail| detail.starts_with("no session for commits"))
    })
    .await;
    proxy.heal();
    eventually("it has them again, although nobody writes", async || ready().await.0 == 200).await;
    node.stop().await;
}

/// What was broken: each batch woke the lane that has nothing to do in the middle of opening its session, which it began anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_has_its_session_again_although_writes_never_pause() {
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let mut command = shared.node("n1", ROLES);
    command.env("ROOKERY__GATEWAY__RATE_LIMITS", "false");
    let node = Running::start(command, &folder.path().join("n1")).await;
    let url = node.greeted("listens on").unwrap();
    let http = reqwest::Client::new();
    let ada = json!({"username": "ada", "email": "ada@example.org", "password": "correct horse battery"});
    let ada: Value = http.post(format!("{url}/api/v1/auth/register")).json(&ada).send().await.unwrap().json().await.unwrap();
    let ends = AtomicBool::new(false);
    let writer = async || {
        while !ends.load(Ordering::Relaxed) {
            let post = json!({"title": "once more", "body": "", "tags": []});
            let post = http.post(format!("{url}/api/v1/posts")).bearer_auth(ada["access_token"].as_str().unwrap()).json(&post);
            let _ = post.send().await;
        }
    };
    let story = async {
        let client = shared.sql(Database::Posts).await;
        let ours = "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'posts:%'";
        client.execute(&format!("SELECT pg_terminate_backend(pid) {ours}"), &[]).await.unwrap();
        // Nothing was sent through it yet but what each begins with.
        let idle = format!(
            "SELECT count(*) {ours} AND query = 'SELECT pg_backend_pid()' AND backend_start < now() - interval '1 second'"
        );
        eventually("the lane of claims, which nobody uses, has its session", async || {
            client.query_one(&idle, &[]).await.unwrap().get::<_, i64>(0) == 1
        })
        .await;
        ends.store(true, Ordering::Relaxed);
    };
    tokio::join!(story, join_all((0..12).map(|_| writer())));
    node.stop().await;
}
