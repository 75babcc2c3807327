//! Stories: the real binary, a real Postgres, the REST API, and what a person or a power cut does to them.

mod process;

use std::{collections::HashSet, process::Command, time::Duration};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};
use rookery::testing::{TestKafka, Turn};
use serde_json::{Value, json};

use self::process::NodeProcess;

/// What is read in the README can be typed.
#[tokio::test(flavor = "multi_thread")]
async fn the_tour_of_the_readme_works() {
    let _turn = Turn::wait(2);
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let script = tour(&readme);
    assert!(script.lines().count() > 15, "the README has a tour");
    let folder = tempfile::tempdir().unwrap();
    let node = NodeProcess::start(folder.path()).await;
    let url = node.url("");
    let output = tokio::task::spawn_blocking(move || {
        Command::new("timeout")
            .args(["60", "bash", "-c", &format!("set -euo pipefail\n{script}")])
            .env("ROOKERY", url)
            .output()
            .unwrap()
    })
    .await
    .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    node.stop().await;
}

/// The fenced blocks behind the marks, in order.
fn tour(readme: &str) -> String {
    let mut script = String::new();
    for block in readme.split("<!-- tour:").skip(1) {
        let code = block.split("```bash\n").nth(1).and_then(|rest| rest.split("```").next());
        script.push_str(code.expect("a mark stands before a block"));
    }
    script
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().unwrap();
    let node = NodeProcess::start(folder.path()).await;
    let token = node.register("ada").await;
    let writers = (0..8).map(|writer| {
        let (client, url, token) = (node.client.clone(), node.url("/api/v1/posts"), token.clone());
        tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for n in 0.. {
                let post = json!({"title": format!("{writer}-{n}"), "body": "", "tags": ["kill"]});
                let Ok(answer) = client.post(&url).bearer_auth(&token).json(&post).send().await else { break };
                let Ok(post) = answer.json::<Value>().await else { break };
                acknowledged.push(post["id"].as_str().unwrap().to_owned());
            }
            acknowledged
        })
    });
    let writers: Vec<_> = writers.collect();
    node.until("some posts", async |node| node.get("/api/v1/posts?limit=50").await["items"].as_array().unwrap().len() == 50)
        .await;
    node.kill();
    let mut acknowledged = HashSet::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    assert!(acknowledged.len() >= 50);

    let node = NodeProcess::start(folder.path()).await;
    let mut there = HashSet::new();
    let mut cursor = String::new();
    loop {
        let page = node.get(&format!("/api/v1/posts?tag=kill&limit=100{cursor}")).await;
        let ids = page["items"].as_array().unwrap().iter().map(|post| post["id"].as_str().unwrap().to_owned());
        for id in ids {
            assert!(there.insert(id), "a post is listed twice");
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert!(lost.is_empty(), "{} acknowledged posts are lost", lost.len());
    let count = there.len();
    node.until("the author's count", async |node| node.get("/api/v1/users/ada").await["post_count"] == json!(count)).await;
    node.until("the index", async |node| node.get("/api/v1/search?tag=kill&type=posts").await["total"] == json!(count)).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_on_the_same_folder_is_refused_and_the_first_goes_on() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().unwrap();
    let node = NodeProcess::start(folder.path()).await;
    let second = process::command(folder.path()).output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains(&node.id().to_string()), "names who has it: {said}");
    assert_eq!(node.status("/readyz").await, 200);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_clearly_and_nothing_is_lost() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().unwrap();
    let node = NodeProcess::start(folder.path()).await;
    let token = node.register("ada").await;
    let deep = format!("{{\"title\":{}1{}}}", "[".repeat(20), "]".repeat(20));
    let nul = r#"{"title":"a\u0000b","body":"","tags":[]}"#;
    let broken: &[u8] = b"{\"title\":\"\xff\xfe\"}";
    let huge = vec![b'x'; 10 << 20];
    let bodies: [(&str, Vec<u8>, u16); 6] = [
        ("malformed JSON", b"{".to_vec(), 400),
        ("an unknown field", br#"{"title":"a","body":"","tags":[],"colour":"red"}"#.to_vec(), 422),
        ("20-deep nesting", deep.into_bytes(), 422),
        ("a NUL", nul.as_bytes().to_vec(), 422),
        ("broken UTF-8", broken.to_vec(), 400),
        ("10 MB", huge, 413),
    ];
    for (what, body, status) in bodies {
        let request =
            node.client.post(node.url("/api/v1/posts")).bearer_auth(&token).header("content-type", "application/json").body(body);
        let answer = request.send().await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let got = answer.status().as_u16();
        // How deep is too deep is told before whether the fields fit: both are the sender's fault.
        assert!(got == status || (what == "20-deep nesting" && got == 400), "{what}: {got}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{what}");
        let problem: Value = answer.json().await.unwrap();
        assert!(problem["request_id"].is_string() && problem["detail"].is_string(), "{what}: {problem}");
    }
    for (path, status) in [
        ("/api/v1/posts?cursor=bm8tY3Vyc29y", 400),
        ("/api/v1/posts?limit=0", 400),
        ("/api/v1/posts/0192f000-0000-7000-8000-000000000000", 404),
        ("/api/v1/posts/not-an-id", 404),
        ("/api/v1/users/nobody_here", 404),
        ("/api/v1/nowhere", 404),
    ] {
        assert_eq!(node.status(path).await, status, "{path}");
    }
    assert_eq!(node.get("/api/v1/posts").await["items"], json!([]));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_session_ends_its_access_token() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().unwrap();
    let node = NodeProcess::start(folder.path()).await;
    let token = node.register("ada").await;
    let me = || node.client.get(node.url("/api/v1/users/me")).bearer_auth(&token).send();
    assert_eq!(me().await.unwrap().status(), 200);
    let logout = node.client.post(node.url("/api/v1/auth/logout")).bearer_auth(&token).send().await.unwrap();
    assert_eq!(logout.status(), 204);
    assert_eq!(me().await.unwrap().status(), 401);
    node.kill();
    let node = NodeProcess::start(folder.path()).await;
    let me = node.client.get(node.url("/api/v1/users/me")).bearer_auth(&token).send().await.unwrap();
    assert_eq!(me.status(), 401, "also after a crash");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_private_postgres_may_die_and_comes_back() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().unwrap();
    let node = NodeProcess::start(folder.path()).await;
    let token = node.register("ada").await;
    let first = node.publish(&token, "before").await;
    let pid = std::fs::read_to_string(folder.path().join("postgres/postmaster.pid")).unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.lines().next().unwrap().parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    node.until("writes again", async |node| {
        let post = json!({"title": "after", "body": "", "tags": []});
        let sent = node
            .client
            .post(node.url("/api/v1/posts"))
            .bearer_auth(&token)
            .json(&post)
            .timeout(Duration::from_secs(5))
            .send()
            .await;
        sent.is_ok_and(|answer| answer.status() == 201)
    })
    .await;
    let read = node.get(&format!("/api/v1/posts/{first}")).await;
    assert_eq!(read["title"], "before", "{read}");
    node.stop().await;
}

/// Kafka carries the events; its broker dies in the middle, and what was written meanwhile arrives when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_carries_the_events_and_may_die_meanwhile() {
    let started = tokio::task::spawn_blocking(|| TestKafka::start_or_skip("kafka_carries_the_events_and_may_die_meanwhile"));
    let Some(mut broker) = started.await.unwrap() else { return };
    let address = broker.config(4).brokers.iter().map(|broker| broker.as_str().to_owned()).collect::<Vec<_>>().join(",");
    let folder = tempfile::tempdir().unwrap();
    let kafka = [("ROOKERY__KAFKA__BROKERS", address.as_str()), ("ROOKERY__KAFKA__PARTITIONS", "4")];
    let node = NodeProcess::start_with(folder.path(), &kafka).await;
    let token = node.register("ada").await;
    node.publish(&token, "before the break").await;
    let found = async |node: &NodeProcess, text: &str| {
        node.get(&format!("/api/v1/search?q={text}&type=posts")).await["total"] == json!(1)
    };
    node.until("the first post in the index", async |node| found(node, "before").await).await;

    broker.kill();
    let after = node.publish(&token, "after the break").await;
    assert_eq!(node.get(&format!("/api/v1/posts/{after}")).await["title"], "after the break", "everything works but freshness");
    let probe = async |node: &NodeProcess, name: &str| node.get("/readyz?verbose").await["probes"][name].clone();
    node.until("the relay and who waits for it are late", async |node| {
        let (relay, search) = (probe(node, "posts.relay").await, probe(node, "search.events.posts").await);
        let late = |probe: &Value| probe["status"] == "degraded" && probe["detail"].as_str().unwrap().contains("posts/");
        late(&relay) && late(&search)
    })
    .await;
    assert_eq!(node.status("/readyz").await, 200, "a missing Kafka is degraded, not unready");
    let broker = tokio::task::spawn_blocking(move || {
        broker.restart().unwrap();
        broker
    });
    let broker = broker.await.unwrap();
    node.until("the second post in the index", async |node| found(node, "after").await).await;

    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", broker.config(4).brokers[0].as_str()).create().unwrap();
    let topics = ["user.events.v1", "post.events.v1", "comment.events.v1"];
    admin.delete_topics(&topics, &AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)))).await.unwrap();
    node.publish(&token, "without a topic").await;
    node.until("the post in the index although its topic was deleted", async |node| found(node, "without").await).await;
    node.until("nothing waits", async |node| {
        probe(node, "posts.relay").await["status"] == "ok" && probe(node, "kafka").await["status"] == "ok"
    })
    .await;
    node.until("the author's count", async |node| node.get("/api/v1/users/ada").await["post_count"] == json!(3)).await;
    node.stop().await;
    drop(broker);
}
