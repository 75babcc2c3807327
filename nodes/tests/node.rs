//! A whole node in this process: services, bridges, index and gateway over a private Postgres.

use std::{path::Path, process::Command, time::Duration};

use jiff::Timestamp;
use reqwest::Method;
use rookery::{
    config::Config,
    node::{Faces, Node},
    testing::Patience,
};
use rookery_actors::{
    comments::{self, CommentBody},
    event::Topic,
    ids::UserId,
    posts::{
        Draft, Filter, Sort,
        rules::{Body, Tags, Title},
    },
    runtime::Context,
    search::{SearchToken, comment_document, index},
    users::{
        NewUser,
        names::{Email, Username},
        password::Password,
    },
};
use tokio::time::Instant;
use uuid::Uuid;

fn soon() -> Context {
    Context::within(Duration::from_secs(10))
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn config(data: &Path) -> Config {
    let mut config = Config { data_dir: data.to_owned(), ..Config::default() };
    let free = "127.0.0.1:0".parse().unwrap();
    config.gateway.listen = free;
    for service in
        [&mut config.services.users, &mut config.services.posts, &mut config.services.comments, &mut config.services.search]
    {
        service.listen = free;
    }
    config
}

async fn start(data: &Path) -> Node {
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    Node::start(config(data), metrics).await.unwrap_or_else(|error| panic!("{error:#}"))
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let mut patience = Patience::of(Duration::from_secs(20));
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(!patience.is_over(), "{what} did not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_created_committed_read_commented_on_and_found_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path()).await;
    let faces = node.faces.clone();

    let ada = NewUser {
        username: Username::parse("ada").unwrap(),
        email: Email::parse("ada@example.org").unwrap(),
        password: Password::parse("correct horse battery".to_owned()).unwrap(),
        user_agent: None,
    };
    let ada = faces.users.register(ada, soon()).await.unwrap().reply.account.profile.id;
    let draft = Draft {
        author: ada,
        title: Title::parse("On the Analytical Engine").unwrap(),
        body: Body::parse("It weaves algebraic patterns.").unwrap(),
        tags: Tags::parse(&["engines"]).unwrap(),
        at: Timestamp::now(),
    };
    let accepted = faces.posts.publish(draft, soon()).await.unwrap();
    let post = accepted.reply.post.unwrap();
    let token = SearchToken { topic: Topic::Posts, shard: accepted.shard, seq: accepted.seq, key: post.id.0 };
    assert!(faces.search.visible(token, Duration::from_secs(5)).await, "a post is found within seconds");
    let query = index::Search { query: index::Query::parse("weaving algebra").unwrap(), ..index::Search::default() };
    assert_eq!(faces.search.search(query.clone(), deadline()).await.unwrap().hits.items[0].id, post.id.0);

    let draft = comments::Draft {
        post: post.id,
        author: ada,
        body: CommentBody::parse("As the loom weaves flowers.").unwrap(),
        parent: None,
        at: Timestamp::now(),
    };
    faces.comments.add(draft, soon()).await.unwrap();
    eventually("the comment count", async || {
        let post = faces.posts.get(post.id, deadline()).await.unwrap().unwrap();
        (post.comment_count == 1).then_some(())
    })
    .await;
    eventually("the author's counts", async || {
        let ada = faces.users.get(ada, deadline()).await.unwrap().unwrap();
        (ada.post_count == 1 && ada.comment_count == 1).then_some(())
    })
    .await;
    eventually("the author's name", async || faces.posts.authors([ada]).await.unwrap().remove(&ada)).await;
    node.stop().await;

    let node = start(folder.path()).await;
    let found = eventually("the post after a restart", async || {
        let answer = node.faces.search.search(query.clone(), deadline()).await.unwrap();
        answer.hits.items.first().map(|hit| hit.id)
    })
    .await;
    assert_eq!(found, post.id.0);
    let again = node.faces.posts.get(post.id, deadline()).await.unwrap().unwrap();
    assert_eq!((again.title, again.comment_count), (post.title, 1));
    node.stop().await;
}

/// What `rookery import` says of a file that it brings into a running node.
fn import(data: &Path, lines: &[serde_json::Value]) -> String {
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    std::fs::write(data.join("import.jsonl"), lines.join("\n")).unwrap();
    let mut importer = Command::new(env!("CARGO_BIN_EXE_rookery"));
    let output = importer.arg("import").arg(data.join("import.jsonl")).arg("--data-dir").arg(data).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_import_does_not_bring_a_deleted_post_back() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path()).await;
    let lines = [
        serde_json::json!({"type": "user", "username": "grace", "created_at": 1_375_358_400}),
        serde_json::json!({"type": "post", "source_id": "p", "author": "grace", "title": "Nanoseconds", "created_at": 1_375_358_400}),
        serde_json::json!({"type": "comment", "source_id": "c", "post": "p", "author": "grace", "body": "1", "created_at": 1_375_358_401}),
    ];
    let first = import(folder.path(), &lines);
    assert!(first.contains("imported       3"), "{first}");
    let posts = &node.faces.posts;
    let post = posts.list(Sort::New, &Filter::All, None, 1, deadline()).await.unwrap().items.remove(0);
    posts.delete(post.id, post.author, false, None, soon()).await.unwrap();

    let second = import(folder.path(), &lines);
    assert!(second.contains("already there  3") && second.contains("imported       0"), "{second}");
    assert_eq!(posts.get(post.id, deadline()).await.unwrap(), None);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_comments_of_a_deleted_post_are_not_found_however_late_they_come() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path()).await;
    let Faces { posts, comments, search, .. } = &node.faces;
    let author = UserId(Uuid::from_u128(1));
    let draft = Draft {
        author,
        title: Title::parse("Pterosaurs").unwrap(),
        body: Body::parse("They flew.").unwrap(),
        tags: Tags::default(),
        at: Timestamp::now(),
    };
    let post = posts.publish(draft, soon()).await.unwrap().reply.post.unwrap();
    let draft = comments::Draft {
        post: post.id,
        author,
        body: CommentBody::parse("A pterodactyloid, surely.").unwrap(),
        parent: None,
        at: Timestamp::now(),
    };
    comments.add(draft, soon()).await.unwrap();
    let query = index::Search { query: index::Query::parse("pterodactyloid").unwrap(), ..index::Search::default() };
    let found = async || search.search(query.clone(), deadline()).await.unwrap().hits.total;
    eventually("the comment", async || (found().await == 1).then_some(())).await;
    let late: Vec<_> =
        comments.export(None, 10).await.unwrap().into_iter().map(|comment| comment_document(comment).unwrap()).collect();

    let gone = posts.delete(post.id, author, false, None, soon()).await.unwrap();
    let token = SearchToken { topic: Topic::Posts, shard: gone.shard, seq: gone.seq, key: post.id.0 };
    assert!(search.visible(token, Duration::from_secs(5)).await);
    assert_eq!(found().await, 0);
    search.put(late).await.unwrap();
    search.rebuild(Duration::from_secs(10)).await.unwrap();
    assert_eq!(found().await, 0, "nor by an index that is built anew");
    node.stop().await;
}

/// However long the log takes: here the thread cannot be closed at all, for its table is locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_comment_of_a_deleted_post_is_gone_with_it_although_its_thread_has_not_heard_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path()).await;
    let base = format!("http://{}/api/v1", node.gateway.unwrap());
    let http = reqwest::Client::new();
    let mut token = String::new();
    let mut send = async |method: Method, path: &str, body: Option<serde_json::Value>| {
        let mut request = http.request(method, format!("{base}{path}"));
        if !token.is_empty() {
            request = request.bearer_auth(&token);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.unwrap();
        let (status, body) = (answer.status().as_u16(), answer.text().await.unwrap());
        let body: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        if let Some(given) = body["access_token"].as_str() {
            given.clone_into(&mut token);
        }
        (status, body)
    };
    let ada = serde_json::json!({"username": "ada", "email": "ada@example.org", "password": "correct horse battery"});
    assert_eq!(send(Method::POST, "/auth/register", Some(ada)).await.0, 201);
    let (_, post) = send(Method::POST, "/posts", Some(serde_json::json!({"title": "Short", "body": "", "tags": []}))).await;
    let post = format!("/posts/{}", post["id"].as_str().unwrap());
    let text = |text: &str| Some(serde_json::json!({ "body": text }));
    let (_, comment) = send(Method::POST, &format!("{post}/comments"), text("Written.")).await;
    let comment = format!("{post}/comments/{}", comment["id"].as_str().unwrap());
    assert_eq!(send(Method::GET, &comment, None).await.0, 200);

    let comments = node.faces.comments.runtime().database().clone();
    let lock = comments.get().await.unwrap();
    lock.batch_execute("BEGIN; LOCK TABLE closed_thread IN EXCLUSIVE MODE").await.unwrap();
    assert_eq!(send(Method::DELETE, &post, None).await.0, 204);
    let mut answers = vec![send(Method::GET, &comment, None).await.0];
    answers.push(send(Method::PATCH, &comment, text("Late.")).await.0);
    answers.push(send(Method::PUT, &format!("{comment}/like"), None).await.0);
    answers.push(send(Method::DELETE, &format!("{comment}/like"), None).await.0);
    answers.push(send(Method::DELETE, &comment, None).await.0);
    lock.batch_execute("COMMIT").await.unwrap();
    drop(lock);
    assert_eq!(answers, [404; 5]);
    eventually("the comment's row is gone", async || {
        let client = comments.get().await.unwrap();
        (client.query_one("SELECT count(*) FROM comment", &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    eventually("the author's count follows", async || {
        (send(Method::GET, "/users/ada", None).await.1["comment_count"] == 0).then_some(())
    })
    .await;
    node.stop().await;
}

/// What was broken: readiness asked over the pool that it judges, so sixteen deep pages made every gateway unready at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_ready_while_all_connections_of_its_pools_are_at_work() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path()).await;
    let Faces { users, posts, comments, search } = &node.faces;
    let pools =
        [users.runtime().database(), posts.runtime().database(), comments.runtime().database(), search.runtime().database()];
    let mut at_work = Vec::new();
    for pool in pools {
        for _ in 0..node.config.services.posts.pool_max {
            at_work.push(pool.get().await.unwrap());
        }
    }
    let answer = reqwest::get(format!("http://{}/readyz?verbose", node.gateway.unwrap())).await.unwrap();
    let (status, told) = (answer.status(), answer.text().await.unwrap());
    assert_eq!(status, 200, "{told}");
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    for database in ["users", "posts", "comments", "search"] {
        assert_eq!(told["probes"][format!("{database}.database")]["status"], "ok", "{told}");
    }
    drop(at_work);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_with_the_way_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let metrics = || metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let mut gateway = config(folder.path());
    gateway.gateway.listen = address;
    let mut users = config(folder.path());
    users.services.users.listen = address;
    for (config, variable) in [(gateway, "ROOKERY__GATEWAY__LISTEN"), (users, "ROOKERY__SERVICES__USERS__LISTEN")] {
        let refused = Node::start(config, metrics()).await.err().expect("the port is in use");
        let refused = format!("{refused:#}");
        assert!(refused.contains(&address.to_string()) && refused.contains(variable), "{refused}");
    }
}
