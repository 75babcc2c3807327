//! A node administered from elsewhere: through its gateway, with the token of an administrator and with no other.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use reqwest::{Method, StatusCode};
use rookery::{config::Config, node::Node, testing::Patience};
use serde_json::{Value, json};

const PASSWORD: &str = "correct horse battery";

async fn start(data: &Path) -> (Node, String) {
    let mut config = Config { data_dir: data.to_owned(), ..Config::default() };
    let free = "127.0.0.1:0".parse().unwrap();
    config.gateway.listen = free;
    let services = &mut config.services;
    for service in [&mut services.users, &mut services.posts, &mut services.comments, &mut services.search] {
        service.listen = free;
    }
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let node = Node::start(config, metrics).await.unwrap_or_else(|error| panic!("{error:#}"));
    let url = format!("http://{}", node.gateway.expect("a whole node has a gateway"));
    (node, url)
}

/// Registers, or logs in; the access token.
async fn token(url: &str, route: &str, body: Value) -> String {
    let answer = reqwest::Client::new().post(format!("{url}/api/v1/auth/{route}")).json(&body).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

async fn register(url: &str, name: &str) -> String {
    token(url, "register", json!({"username": name, "email": format!("{name}@example.org"), "password": PASSWORD})).await
}

async fn log_in(url: &str, name: &str) -> String {
    token(url, "login", json!({"login": name, "password": PASSWORD})).await
}

/// Ada is an administrator from now on; her access token.
async fn administrator(url: &str, data: &str) -> String {
    register(url, "ada").await;
    assert!(rookery(&["admin", "grant", "ada", "admin", "--data-dir", data]).0);
    log_in(url, "ada").await
}

/// What a command says, and whether it worked; far from the node's data folder.
fn rookery(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_rookery")).args(arguments).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), said)
}

/// The same, with something piped in.
fn piped(arguments: &[&str], input: &str) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rookery"));
    let command = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().unwrap();
    running.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), said)
}

/// A refusal with everything that a problem has.
async fn is_problem(answer: reqwest::Response, status: StatusCode) {
    assert_eq!(answer.status(), status);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["status"], status.as_u16(), "{problem}");
    for member in ["type", "title", "instance", "request_id"] {
        assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member} of {problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_s_token_administers_and_no_other_does() {
    let folder = tempfile::tempdir().unwrap();
    let (node, url) = start(folder.path()).await;
    let (ada, bob) = (register(&url, "ada").await, register(&url, "bob").await);
    let data = folder.path().to_str().unwrap();
    assert!(rookery(&["admin", "grant", "ada", "admin", "--data-dir", data]).0);
    let admin = log_in(&url, "ada").await;

    let http = reqwest::Client::new();
    let routes = [
        (Method::GET, "status"),
        (Method::POST, "import"),
        (Method::POST, "reindex"),
        (Method::POST, "restored"),
        (Method::GET, "dlt"),
        (Method::POST, "dlt"),
        (Method::GET, "keys"),
        (Method::POST, "keys/rotate"),
        (Method::POST, "grant"),
        (Method::POST, "password"),
    ];
    for (method, route) in routes {
        let request = || http.request(method.clone(), format!("{url}/admin/v1/{route}"));
        is_problem(request().send().await.unwrap(), StatusCode::UNAUTHORIZED).await;
        is_problem(request().bearer_auth("nonsense").send().await.unwrap(), StatusCode::UNAUTHORIZED).await;
        // A role is in the next token: this one is from before.
        for user in [&ada, &bob] {
            is_problem(request().bearer_auth(user).send().await.unwrap(), StatusCode::FORBIDDEN).await;
        }
    }
    let ask = |route: &str| http.post(format!("{url}/admin/v1/{route}")).bearer_auth(&admin);
    is_problem(ask("nonsense").send().await.unwrap(), StatusCode::NOT_FOUND).await;
    let nobody = json!({"username": "nobody", "role": "admin"});
    is_problem(ask("grant").json(&nobody).send().await.unwrap(), StatusCode::NOT_FOUND).await;
    is_problem(ask("grant").json(&json!({"username": "bob"})).send().await.unwrap(), StatusCode::UNPROCESSABLE_ENTITY).await;

    let remote = |command: &[&str], token: &str| rookery(&[command, &["--node", &url, "--token", token]].concat());
    let (worked, status) = remote(&["status", "--json"], &admin);
    assert!(worked && serde_json::from_str::<Value>(&status).is_ok(), "{status}");
    assert!(!remote(&["status"], &bob).0);
    // As a shell has it that exported it: it is for whom it is sent to, and asks no other command for a node.
    for reach in [["--node", &*url], ["--data-dir", data]] {
        let mut status = Command::new(env!("CARGO_BIN_EXE_rookery"));
        let output = status.arg("status").args(reach).env("ROOKERY_TOKEN", &admin).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let posts = folder.path().join("posts.jsonl");
    std::fs::write(&posts, json!({"type": "post", "author": "bob", "title": "x", "created_at": 1}).to_string()).unwrap();
    let (worked, imported) = remote(&["import", posts.to_str().unwrap()], &admin);
    assert!(worked && imported.contains("imported       1"), "{imported}");
    let (worked, reindexed) = remote(&["reindex"], &admin);
    assert!(worked && reindexed.contains("3 documents can be found"), "{reindexed}");

    assert!(remote(&["restored", "posts"], &admin).0);
    let (worked, refused) = remote(&["restored", "kitchen"], &admin);
    assert!(!worked && refused.contains("there is no service"), "{refused}");

    assert!(remote(&["admin", "grant", "ada", "admin", "--revoke"], &admin).0);
    let (worked, refused) = remote(&["status"], &admin);
    assert!(!worked && refused.contains("--token"), "a role that is taken back ends its tokens: {refused}");
    node.stop().await;
}

/// What was broken: there was no way at all to a password for who was imported, or forgot theirs.
#[tokio::test(flavor = "multi_thread")]
async fn an_imported_author_gets_a_password_and_logs_in() {
    let folder = tempfile::tempdir().unwrap();
    let (node, url) = start(folder.path()).await;
    let data = folder.path().to_str().unwrap();
    let posts = folder.path().join("posts.jsonl");
    std::fs::write(&posts, json!({"type": "user", "username": "carol", "created_at": 1}).to_string()).unwrap();
    assert!(rookery(&["import", posts.to_str().unwrap(), "--data-dir", data]).0);
    let status = async |path: &str, token: &str| {
        let asked = reqwest::Client::new().get(format!("{url}/api/v1{path}")).bearer_auth(token).send().await;
        asked.unwrap().status()
    };

    let give = |user: &str, password: &str| piped(&["admin", "password", user, "--data-dir", data], password);
    let (worked, said) = give("carol", "too short\n");
    assert!(!worked && said.contains("at least 10 bytes") && !said.contains("too short"), "{said}");
    let (worked, said) = give("nobody", "a long pass phrase\n");
    assert!(!worked && said.contains("there is no user nobody"), "{said}");
    let (worked, said) = give("carol", &format!("{PASSWORD}\n"));
    assert!(worked && said.contains("carol has a new password") && !said.contains(PASSWORD), "{said}");
    let before = log_in(&url, "carol").await;
    assert_eq!(status("/users/me", &before).await, StatusCode::OK);

    assert!(give("carol", "another long pass phrase").0);
    let began = std::time::Instant::now();
    while status("/users/me", &before).await != StatusCode::UNAUTHORIZED {
        assert!(began.elapsed().as_secs() < 20, "her sessions have not ended");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    token(&url, "login", json!({"login": "carol", "password": "another long pass phrase"})).await;
    node.stop().await;
}

/// What was broken: a name said whose a post is, and after an account was deleted its name may be anybody's.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_owner_of_a_name_is_given_nothing_that_its_former_one_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let (node, url) = start(folder.path()).await;
    let data = folder.path().to_str().unwrap();
    let import = |lines: &[Value]| {
        let file = folder.path().join("lines.jsonl");
        std::fs::write(&file, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        rookery(&["import", file.to_str().unwrap(), "--data-dir", data]).1
    };
    let posts_of = async |author: &str| {
        let listed = reqwest::get(format!("{url}/api/v1/posts?author={author}")).await.unwrap();
        listed.json::<Value>().await.unwrap()["items"].as_array().unwrap_or_else(|| panic!("no list")).len()
    };
    let user =
        |source: &str, name: &str| json!({"type": "user", "source_id": source, "username": name, "bio": "x", "created_at": 1});
    let post = |source: &str, author: &str| json!({"type": "post", "source_id": source, "author": author, "title": "t", "created_at": 2});
    let erase = async |name: &str, token: String| {
        let gone = reqwest::Client::new().delete(format!("{url}/api/v1/users/me")).bearer_auth(token);
        assert_eq!(gone.json(&json!({"password": PASSWORD})).send().await.unwrap().status(), StatusCode::NO_CONTENT, "{name}");
    };

    let said = import(&[user("u1", "ada"), post("p1", "Ada")]);
    assert!(said.contains("imported       2"), "{said}");
    assert!(piped(&["admin", "password", "ada", "--data-dir", data], &format!("{PASSWORD}\n")).0);
    erase("ada", log_in(&url, "ada").await).await;
    register(&url, "ada").await;

    // With her line, and by her name alone.
    let said = import(&[user("u1", "ada"), post("p1", "ada"), post("p2", "ada")]);
    assert!(said.contains("already there  2") && said.contains("the account of ada was deleted here"), "{said}");
    let said = import(&[post("p3", "ada")]);
    assert!(said.contains("imported       0") && said.contains("an account ada was deleted here"), "{said}");
    assert_eq!(posts_of("ada").await, 0);

    // So it is with those who were never imported.
    erase("bob", register(&url, "bob").await).await;
    register(&url, "bob").await;
    let said = import(&[post("p4", "bob")]);
    assert!(said.contains("an account bob was deleted here"), "{said}");
    assert_eq!(posts_of("bob").await, 0);

    // A line says who is meant.
    let said = import(&[user("u2", "carol"), post("p5", "carol"), post("p6", "CAROL")]);
    assert!(said.contains("imported       3"), "{said}");
    assert_eq!(posts_of("carol").await, 2);
    node.stop().await;
}

/// A proxy that keeps a request until it has all of it, as nginx does; it speaks as much HTTP as the command line needs.
fn keeping_proxy(upstream: std::net::SocketAddr) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut server = TcpStream::connect(upstream).unwrap();
                let (mut answers, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
                let mut client = BufReader::new(client);
                while let Some(request) = whole_request(&mut client) {
                    server.write_all(&request).unwrap();
                }
                let _ = server.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    address
}

/// Head and body, if the connection has not ended.
fn whole_request(client: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut request = Vec::new();
    let mut is_chunked = false;
    loop {
        let begin = request.len();
        if client.read_until(b'\n', &mut request).ok()? == 0 {
            return None;
        }
        let line = request[begin..].to_ascii_lowercase();
        is_chunked |= line.starts_with(b"transfer-encoding: chunked");
        if line == b"\r\n" {
            break;
        }
    }
    // The lines of an import end with a single line feed, so nothing in a chunk looks like this.
    while is_chunked && !request.ends_with(b"\r\n0\r\n\r\n") {
        if client.read_until(b'\n', &mut request).ok()? == 0 {
            return None;
        }
    }
    Some(request)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_through_a_proxy_that_keeps_what_it_is_sent_ends_however_many_bad_lines_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let (node, url) = start(folder.path()).await;
    let data = folder.path().to_str().unwrap();
    let admin = administrator(&url, data).await;
    let proxy = format!("http://{}", keeping_proxy(node.gateway.unwrap()));
    let lines = (0..5_000).map(|n| match n % 100 {
        0 => json!({"type": "post", "author": "ada", "title": format!("Post {n}"), "created_at": n + 1}).to_string(),
        _ => "nonsense".to_owned(),
    });
    let posts = folder.path().join("posts.jsonl");
    std::fs::write(&posts, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let mut importer = Command::new(env!("CARGO_BIN_EXE_rookery"));
    importer.args(["import", "--node", &proxy, "--token", &admin]).arg(&posts).current_dir(folder.path());
    let mut importer = importer.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut patience = Patience::of(Duration::from_secs(60));
    while importer.try_wait().unwrap().is_none() {
        if patience.is_over() {
            let _ = importer.kill();
            panic!("it does not end");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let output = importer.wait_with_output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(said.contains("imported       50") && said.contains("bad lines      4,950"), "{said}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_of_a_log_that_cannot_be_are_refused_and_not_none() {
    let folder = tempfile::tempdir().unwrap();
    let (node, url) = start(folder.path()).await;
    let data = folder.path().to_str().unwrap();
    let admin = administrator(&url, data).await;
    for source in ["nonsense/xx", "posts/256", "posts"] {
        let asked = reqwest::Client::new().get(format!("{url}/admin/v1/dlt?source={source}")).bearer_auth(&admin).send().await;
        is_problem(asked.unwrap(), StatusCode::UNPROCESSABLE_ENTITY).await;
        assert!(!rookery(&["dlt", "list", "--source", source, "--data-dir", data]).0, "{source}");
    }
    let (worked, none) = rookery(&["dlt", "list", "--source", "posts/255", "--data-dir", data]);
    assert!(worked && none.contains("there are no dead letters"), "{none}");
    node.stop().await;
}
