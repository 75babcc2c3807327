//! What a process finds around it: signals, limits, variables, a terminal that has gone, nodes that are missing.

use std::{os::unix::process::CommandExt, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use futures_util::future::join_all;
use nix::{sys::signal::Signal, unistd::Uid};
use reqwest::Method;
use rookery::{
    chaos::proxy::{Fate, Proxy},
    migrate::Database,
    testing::{TestPostgres, Turn},
};
use serde_json::{Value, json};

use crate::{
    process::{Running, ended, in_shell, rookery, run},
    roles::{Shared, eventually},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_hangs_up_stops_a_node_in_order_and_not_what_outlives_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut node = Running::start(rookery(&["up"]), &data).await;
    // The kernel and the shell each send one.
    node.signal(Signal::SIGHUP);
    node.signal(Signal::SIGHUP);
    let status = node.ended(Duration::from_secs(15)).await;
    assert!(status.success() && node.log().contains("Postgres stopped"), "{status}: {}", node.log());

    let node = Running::start(in_shell("exec nohup \"$ROOKERY_TEST_PROGRAM\" up"), &data).await;
    node.signal(Signal::SIGHUP);
    let url = node.greeted("listens on").unwrap();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(node.get(&format!("{url}/livez")).await.0, 200);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_log_cannot_be_written_serves_and_stops_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let script = "exec \"$ROOKERY_TEST_PROGRAM\" up 2>/dev/full";
    let node = Running::start(in_shell(script), &folder.path().join("data")).await;
    let url = node.greeted("listens on").unwrap();
    assert_eq!(node.get(&format!("{url}/api/v1/posts")).await.0, 200);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_low_limit_of_open_files_is_said_at_the_start_with_what_it_allows() {
    let folder = tempfile::tempdir().unwrap();
    let script = "ulimit -n 700 && exec \"$ROOKERY_TEST_PROGRAM\" up";
    let node = Running::start(in_shell(script), &folder.path().join("data")).await;
    let log = node.log();
    assert!(log.contains("only 700 files") && log.contains("allows 188 clients") && log.contains("16384"), "{log}");
    let url = node.greeted("listens on").unwrap();
    assert_eq!(node.get(&format!("{url}/readyz")).await.0, 200);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_nobody_knows_is_named_with_what_was_meant() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = [("ROOKERY_GATEWAY_LISTEN", "0.0.0.0:1"), ("ROOKERY_SECRET", "hunter2")];
    let checked = rookery(&["config", "check"]).envs(wrong).output().unwrap();
    let said = String::from_utf8(checked.stderr).unwrap();
    assert!(checked.status.success() && said.contains("did you mean ROOKERY__GATEWAY__LISTEN?"), "{said}");
    assert!(said.contains("did you mean ROOKERY__SECRET?") && !said.contains("hunter2"), "{said}");

    let mut command = rookery(&["up", "--nodes", "2"]);
    command.envs(wrong);
    let fleet = Running::start(command, &folder.path().join("data")).await;
    let log = fleet.log();
    assert_eq!(log.matches("did you mean ROOKERY__GATEWAY__LISTEN?").count(), 1, "by the parent alone: {log}");
    fleet.stop().await;
}

#[test]
fn a_node_elsewhere_is_asked_whatever_is_configured_here() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cluster.toml"), "nonsense = true\nsecret_file = \"/no/such/file\"").unwrap();
    let here = |arguments: &[&str]| {
        let output = rookery(arguments).current_dir(folder.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for command in [&["status"][..], &["reindex"], &["keys", "list"], &["dlt", "list"], &["admin", "grant", "ada", "admin"]] {
        let (code, said) = here(&[command, &["--node", "http://127.0.0.1:1"]].concat());
        assert!(code == Some(1) && said.contains("no node answers at http://127.0.0.1:1"), "{command:?}: {said}");
    }
    let (code, said) = here(&["status", "--data-dir", "."]);
    assert!(code == Some(1) && said.contains("no node runs"), "{said}");
    let (code, said) = here(&["status"]);
    assert!(code == Some(2) && said.contains("there is no key `nonsense`"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_a_cluster_in_which_a_shard_is_served_by_nobody_is_an_exit_code() {
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let data = folder.path().join("n1");
    let staying = Running::start(shared.node("n1", "gateway,users,comments,search"), &data).await;
    let victim = Running::start(shared.node("n2", "posts"), &folder.path().join("n2")).await;
    let status = || {
        let output = run(&["status"], &data);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    eventually("everything is served", async || status().0 == Some(0)).await;
    victim.signal(Signal::SIGKILL);
    eventually("somebody says that nobody serves", async || status().0 == Some(3)).await;
    let (_, shown) = status();
    assert!(shown.contains("posts: 256 shards are served by nobody"), "{shown}");
    staying.stop().await;
}

/// A folder that is closed to us says nothing of whether a node runs there.
#[test]
fn the_folder_of_another_user_is_named_as_that() {
    let folder = tempfile::tempdir().unwrap();
    let mode = |mode| std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(0o000);
    // A copy, since the folders of a build may be closed to that user as well.
    let programs = tempfile::tempdir().unwrap();
    std::fs::set_permissions(programs.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = programs.path().join("rookery");
    std::fs::copy(env!("CARGO_BIN_EXE_rookery"), &program).unwrap();
    let mut command = std::process::Command::new(program);
    command.args(["status", "--data-dir"]).arg(folder.path()).current_dir("/");
    if Uid::effective().is_root() {
        command.uid(65_534).gid(65_534);
    }
    let output = command.output().unwrap();
    mode(0o700);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("belongs to the user"), "{said}");
    assert!(!said.contains("no node runs"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_that_cannot_be_used_are_named_by_their_place_and_their_fault() {
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let start = |change: &dyn Fn(&mut std::process::Command)| {
        let mut command = shared.node("n1", "users,posts,comments,search");
        command.env("ROOKERY__DATA_DIR", folder.path().join("n1"));
        change(&mut command);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = start(&|node| {
        node.env("ROOKERY__SERVICES__USERS__DATABASE_URL", "postgres://u:hunter2@127.0.0.1:1/users");
    });
    assert!(code == Some(1) && said.contains("cannot reach the users database (127.0.0.1:1, database \"users\")"), "{said}");
    assert!(said.contains("Connection refused") && !said.contains("hunter2"), "{said}");

    let (code, said) = start(&|node| {
        let url = |service: &str| {
            let name = format!("ROOKERY__SERVICES__{service}__DATABASE_URL");
            node.get_envs().find(|(key, _)| *key == name.as_str()).unwrap().1.unwrap().to_owned()
        };
        let (users, posts) = (url("USERS"), url("POSTS"));
        node.env("ROOKERY__SERVICES__USERS__DATABASE_URL", posts).env("ROOKERY__SERVICES__POSTS__DATABASE_URL", users);
    });
    assert!(code == Some(1) && said.contains("the URLs of the two are swapped"), "{said}");
}

/// What was broken: it was taken, and a title with a letter that it does not have was a 503 for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_unicode_is_refused_by_name() {
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let server = TestPostgres::shared().server();
    let (client, connection) = server.config("postgres").connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    for encoding in ["LATIN1", "EUC_JP", "SQL_ASCII"] {
        let name = format!("not_unicode_{}", encoding.to_lowercase());
        let create = format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'");
        client.batch_execute(&create).await.unwrap();
        for arguments in [&["migrate"][..], &["node", "--name", "n1", "--roles", "posts"]] {
            let mut command = shared.command(arguments);
            command.env("ROOKERY__SERVICES__POSTS__DATABASE_URL", server.url(&name));
            let (code, said) = ended(command, &folder.path().join("n1"));
            let told = format!("the posts database is encoded as {encoding}");
            assert!(code == Some(1) && said.contains(&told), "{arguments:?}: {said}");
        }
    }
}

/// What was broken: each of them was an outage of the service, which opened its breaker, and good writes of others failed.
#[tokio::test(flavor = "multi_thread")]
async fn texts_that_cannot_be_stored_cut_nobody_else_off() {
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let picky = "ALTER TABLE post ADD CONSTRAINT picky CHECK (title <> 'unstorable')";
    shared.sql(Database::Posts).await.batch_execute(picky).await.unwrap();
    let node = Running::start(shared.node("n1", "gateway,users,posts,comments,search"), &folder.path().join("n1")).await;
    let base = format!("http://{}/api/v1", node.greeted("http://").unwrap());
    let http = reqwest::Client::new();
    let ada = json!({"username": "ada", "email": "ada@example.org", "password": "correct horse battery"});
    let registered: Value = http.post(format!("{base}/auth/register")).json(&ada).send().await.unwrap().json().await.unwrap();
    let token = registered["access_token"].as_str().unwrap();
    let publish = async |title: &str| {
        let post = json!({"title": title, "body": ""});
        http.post(format!("{base}/posts")).bearer_auth(token).json(&post).send().await.unwrap()
    };
    // More than a breaker needs to open, at once, so that they share batches.
    for _ in 0..15 {
        let (bad, good) = (["unstorable"; 4].map(&publish), ["a good one"; 4].map(&publish));
        let (bad, good) = tokio::join!(join_all(bad), join_all(good));
        for answer in bad {
            let retry_after = answer.headers().contains_key("retry-after");
            assert!(answer.status() == 500 && !retry_after, "it would end in the same way: {answer:?}");
        }
        for answer in good {
            assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
        }
    }
    let health: Value = serde_json::from_str(&node.get(&format!("{}/health", base.trim_end_matches("/api/v1"))).await.1).unwrap();
    assert_eq!(health["breakers"]["posts"], "closed", "{health}");
    node.stop().await;
}

/// Databases may be started anew, or be slow, while a node starts on them: it has reached them, so it waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_a_database_that_goes_away_meanwhile() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().unwrap();
    // In the order in which a start comes to them: reports, a service's membership, keys, sessions.
    for statement in ["FROM node\n", "INSERT INTO member (incarnation", "rookery signing keys", "type = 'session.closed'"] {
        let shared = Shared::new().await;
        let proxy = Proxy::start(&TestPostgres::shared().server().config("postgres"));
        let mut command = shared.node("n1", "gateway,users,posts,comments,search");
        command.env("ROOKERY__SERVICES__USERS__DATABASE_URL", proxy.url(&shared.name(Database::Users)));
        let held = proxy.hold(statement);
        let away = async {
            // The server has heard of a member that has not heard of it.
            held.await.release(if statement.starts_with("INSERT") { Fate::AnswerLost } else { Fate::Vanishes });
            tokio::time::sleep(Duration::from_millis(200)).await;
            proxy.take_down();
            tokio::time::sleep(Duration::from_secs(5)).await;
            proxy.heal();
        };
        let data = folder.path().join("n1");
        let (node, ()) = tokio::join!(Running::start(command, &data), away);
        let told = node.log().matches("a database does not answer").count();
        assert!((1..=2).contains(&told), "{statement}: {told} lines: {}", node.log());
        node.stop().await;
        std::fs::remove_dir_all(&data).unwrap();
    }
}

/// What is committed is answered, whatever can no longer be looked up for the answer: a 503 would say that nothing happened.
#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_is_committed_is_answered_although_likes_cannot_be_read() {
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let proxy = Proxy::start(&TestPostgres::shared().server().config("postgres"));
    let mut command = shared.node("n1", "gateway,users,posts,comments,search");
    for database in [Database::Posts, Database::Comments] {
        let variable = format!("ROOKERY__SERVICES__{}__DATABASE_URL", database.name().to_uppercase());
        command.env(variable, proxy.url(&shared.name(database)));
    }
    let node = Running::start(command, &folder.path().join("n1")).await;
    let base = format!("http://{}/api/v1", node.greeted("http://").unwrap());
    let http = reqwest::Client::new();
    let ask = async |method: Method, path: &str, token: &str, body: Value| {
        let request = http.request(method, format!("{base}{path}")).bearer_auth(token).json(&body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap_or_default())
    };
    let mut tokens = Vec::new();
    for name in ["ada", "bob"] {
        let body = json!({"username": name, "email": format!("{name}@example.org"), "password": "correct horse battery"});
        let (status, answer) = ask(Method::POST, "/auth/register", "", body).await;
        assert_eq!(status, 201, "{answer}");
        tokens.push(answer["access_token"].as_str().unwrap().to_owned());
    }
    let (ada, bob) = (&tokens[0], &tokens[1]);
    let (_, post) = ask(Method::POST, "/posts", ada, json!({"title": "first", "body": ""})).await;
    let post = format!("/posts/{}", post["id"].as_str().unwrap());
    let (_, comment) = ask(Method::POST, &format!("{post}/comments"), ada, json!({"body": "first"})).await;
    let comment = format!("{post}/comments/{}", comment["id"].as_str().unwrap());
    for (path, field, read) in [
        (&post, "title", "SELECT post FROM post_like WHERE user_id"),
        (&comment, "body", "SELECT comment FROM comment_like WHERE user_id"),
    ] {
        assert_eq!(ask(Method::PUT, &format!("{path}/like"), bob, Value::Null).await.0, 204);
        proxy.always(read, Fate::NeverArrives);
        let (status, answer) = ask(Method::PATCH, path, ada, json!({field: "second"})).await;
        assert_eq!((status, &answer[field], &answer["version"]), (200, &json!("second"), &json!(2)), "{answer}");
        assert!(answer.get("liked").is_none() && answer["author"]["username"] == "ada", "{answer}");
        proxy.heal();
        let (_, answer) = ask(Method::GET, path, ada, Value::Null).await;
        assert_eq!((&answer[field], &answer["liked"]), (&json!("second"), &json!(false)), "{answer}");
    }
    node.stop().await;
}

/// What was broken: the knob did nothing.
#[tokio::test(flavor = "multi_thread")]
async fn access_tokens_live_as_long_as_is_configured_and_keys_longer() {
    const LIFE_S: i64 = 7_200;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut command = rookery(&["up"]);
    command.env("ROOKERY__TOKENS__ACCESS_TTL_S", LIFE_S.to_string());
    let node = Running::start(command, &data).await;
    let url = format!("{}/api/v1/auth/register", node.greeted("listens on").unwrap());
    let body = json!({"username": "ada", "email": "ada@example.org", "password": "correct horse battery"});
    let answer: Value = reqwest::Client::new().post(url).json(&body).send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["expires_in"], LIFE_S, "{answer}");
    let claims = answer["access_token"].as_str().unwrap().split('.').nth(1).unwrap();
    let claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), LIFE_S);

    // A key is published until the last token that it signed has expired.
    let rotated = run(&["keys", "rotate", "--json"], &data);
    let keys: Value = serde_json::from_slice(&rotated.stdout).unwrap();
    let second = |time: &Value| time.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
    let published_for = second(&keys[0]["retired_at"]) - second(&keys[1]["not_before"]);
    assert!(published_for > LIFE_S, "{published_for}: {keys}");
    node.stop().await;
}

/// A program that is started somewhere else finds nothing of what is elsewhere, and must not look as if it had lost it.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_that_is_begun_is_said_to_be_new() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let begun = |node: &Running| node.greeting.contains("new and empty");
    let node = Running::start(rookery(&["up"]), &data).await;
    assert!(
        begun(&node) && node.greeting.contains("--data-dir") && node.log().contains("the new data folder"),
        "{}",
        node.greeting
    );
    node.stop().await;
    let node = Running::start(rookery(&["up"]), &data).await;
    assert!(!begun(&node) && !node.log().contains("the new data folder"), "{}", node.greeting);
    node.stop().await;
}

/// It runs as another user if root starts it, and what that user sees others may see.
#[tokio::test(flavor = "multi_thread")]
async fn the_private_postgres_gets_neither_the_secret_nor_anything_else_of_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut command = rookery(&["up"]);
    command
        .env("ROOKERY__SECRET", "a secret that is nobody else's business")
        .env("PGOPTIONS", "-c work_mem=1")
        .env("OTHERS", "x");
    let node = Running::start(command, &data).await;
    let pid = std::fs::read_to_string(data.join("postgres/postmaster.pid")).unwrap();
    let environment = std::fs::read(format!("/proc/{}/environ", pid.lines().next().unwrap())).unwrap();
    let environment = String::from_utf8(environment).unwrap();
    let names = environment.split_terminator('\0').filter_map(|variable| variable.split('=').next());
    let mut names: Vec<&str> = names.filter(|name| !["PATH", "LD_LIBRARY_PATH"].contains(name)).collect();
    names.sort_unstable();
    assert!(names.contains(&"LC_ALL") && names.contains(&"TZ"), "{environment}");
    names.retain(|name| !["LC_ALL", "TZ"].contains(name));
    assert_eq!(names, [""; 0], "{environment}");
    node.stop().await;
}
