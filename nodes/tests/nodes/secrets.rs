//! The cluster's secret: the modes in which a node may run read it alike, and it can be replaced while the nodes run.

use std::{path::Path, process::Command};

use reqwest::{Client, RequestBuilder, StatusCode};
use rookery::{migrate::Database, testing::TestPostgres};
use serde_json::{Value, json};

use crate::{
    process::{Running, rookery},
    roles::Shared,
};

const FIRST: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const SECOND: &str = "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// What a client has that was made with the cluster's secret, each for another purpose.
pub(crate) struct Held {
    http: Client,
    name: String,
    access: String,
    refresh: String,
    post: String,
    cursor: String,
    search_token: String,
}

impl Held {
    /// A client that has registered and published two posts.
    pub(crate) async fn by(name: &str, url: &str) -> Self {
        let http = Client::new();
        let account = json!({"username": name, "email": format!("{name}@example.org"), "password": "a long pass phrase"});
        let registered = accepted(http.post(format!("{url}/api/v1/auth/register")).json(&account), StatusCode::CREATED).await;
        let mut held = Self {
            http,
            name: name.to_owned(),
            access: text(&registered["access_token"]),
            refresh: text(&registered["refresh_token"]),
            post: String::new(),
            cursor: String::new(),
            search_token: String::new(),
        };
        held.post = text(&accepted(held.publish(url, "first"), StatusCode::CREATED).await["id"]);
        let second = held.publish(url, "second").send().await.unwrap();
        held.search_token = second.headers()["x-search-token"].to_str().unwrap().to_owned();
        let list = accepted(held.list(url), StatusCode::OK).await;
        held.cursor = format!("&cursor={}", text(&list["next_cursor"]));
        held
    }

    /// Everything that the client has is taken at this gateway.
    pub(crate) async fn is_taken(&mut self, url: &str) {
        let me = self.http.get(format!("{url}/api/v1/users/me")).bearer_auth(&self.access);
        assert_eq!(accepted(me, StatusCode::OK).await["username"], self.name.as_str());
        let again = accepted(self.publish(url, "first"), StatusCode::CREATED).await;
        assert_eq!(again["id"], self.post.as_str(), "a retry under its key gets the first answer");
        assert_eq!(accepted(self.list(url), StatusCode::OK).await["items"].as_array().unwrap().len(), 1);
        let search = self.http.get(format!("{url}/api/v1/search?q=first")).header("x-search-after", &self.search_token);
        accepted(search, StatusCode::OK).await;
        let refresh = self.http.post(format!("{url}/api/v1/auth/refresh")).json(&json!({"refresh_token": self.refresh}));
        let refreshed = accepted(refresh, StatusCode::OK).await;
        (self.access, self.refresh) = (text(&refreshed["access_token"]), text(&refreshed["refresh_token"]));
    }

    fn publish(&self, url: &str, title: &str) -> RequestBuilder {
        let post = json!({"title": title, "body": "", "tags": [self.name.replace('_', "-")]});
        let key = format!("{}-{title}", self.name);
        self.http.post(format!("{url}/api/v1/posts")).bearer_auth(&self.access).header("idempotency-key", key).json(&post)
    }

    fn list(&self, url: &str) -> RequestBuilder {
        let (tag, cursor) = (self.name.replace('_', "-"), &self.cursor);
        self.http.get(format!("{url}/api/v1/posts?tag={tag}&limit=1{cursor}"))
    }
}

async fn accepted(request: RequestBuilder, status: StatusCode) -> Value {
    let answer = request.send().await.unwrap();
    let (got, url) = (answer.status(), answer.url().clone());
    let body = answer.text().await.unwrap();
    assert_eq!(got, status, "{url}: {body}");
    serde_json::from_str(&body).unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

fn gateway(node: &Running) -> String {
    node.greeted("listens on").expect("it names its gateway").to_owned()
}

/// A `Command` with a secret, and perhaps the one before it.
fn with_secrets(mut command: Command, secret: &str, previous: Option<&str>) -> Command {
    command.env("ROOKERY__SECRET", secret);
    if let Some(previous) = previous {
        command.env("ROOKERY__SECRET_PREVIOUS", previous);
    }
    command
}

async fn several(data: &Path) -> (Running, Vec<String>) {
    let fleet = Running::start(rookery(&["up", "--nodes", "3"]), data).await;
    let line = fleet.greeting.lines().find(|line| line.starts_with("nodes:")).expect("it names its nodes").to_owned();
    let urls = line.split_whitespace().filter(|word| word.starts_with("http")).map(|url| url.trim_end_matches(',').to_owned());
    (fleet, urls.collect())
}

/// A deployment that grew and shrank: every build up to 0.1.0 refused the second step, since one process decoded its secret
/// and several did not.
#[tokio::test(flavor = "multi_thread")]
async fn one_process_becomes_three_nodes_and_one_again_on_the_same_data() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let one = Running::start(rookery(&[]), &data).await;
    let mut early = Held::by("early", &gateway(&one)).await;
    early.is_taken(&gateway(&one)).await;
    one.stop().await;

    let (three, urls) = several(&data).await;
    let mut late = Held::by("late", &urls[0]).await;
    for url in &urls {
        early.is_taken(url).await;
        late.is_taken(url).await;
    }
    three.stop().await;

    let one = Running::start(rookery(&[]), &data).await;
    early.is_taken(&gateway(&one)).await;
    late.is_taken(&gateway(&one)).await;
    one.stop().await;

    // And a process that is given its own file.
    let mut command = rookery(&[]);
    command.env("ROOKERY__SECRET_FILE", data.join("secret"));
    let one = Running::start(command, &data).await;
    early.is_taken(&gateway(&one)).await;
    late.is_taken(&gateway(&one)).await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_replaced_node_by_node_without_an_outage() {
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let start = async |name: &str, secret: &str, previous: Option<&str>| {
        let command = with_secrets(shared.node(name, "gateway,users,posts,comments,search"), secret, previous);
        Running::start(command, &folder.path().join(name)).await
    };
    let n1 = start("n1", FIRST, None).await;
    let n2 = start("n2", FIRST, None).await;
    let mut before = Held::by("before", &gateway(&n1)).await;

    n1.stop().await;
    before.is_taken(&gateway(&n2)).await;
    let n1 = start("n1", SECOND, Some(FIRST)).await;
    let mut between = Held::by("between", &gateway(&n1)).await;
    for client in [&mut before, &mut between] {
        client.is_taken(&gateway(&n1)).await;
        client.is_taken(&gateway(&n2)).await;
    }

    n2.stop().await;
    let n2 = start("n2", SECOND, Some(FIRST)).await;
    n1.until("every node has the new secret", async |n1| n1.log().contains("everything is signed and sealed with it")).await;
    let mut after = Held::by("after", &gateway(&n2)).await;
    for client in [&mut before, &mut between, &mut after] {
        client.is_taken(&gateway(&n1)).await;
        client.is_taken(&gateway(&n2)).await;
    }

    // The old one goes: of what was made with it, nothing is left but what clients have.
    n1.stop().await;
    let n1 = start("n1", SECOND, None).await;
    after.is_taken(&gateway(&n1)).await;
    after.is_taken(&gateway(&n2)).await;
    before.is_taken(&gateway(&n2)).await;
    n1.stop().await;
    n2.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_secret_is_told_what_to_do() {
    let (shared, folder) = (Shared::new().await, tempfile::tempdir().unwrap());
    let roles = "gateway,users,posts,comments,search";
    let n1 = Running::start(with_secrets(shared.node("n1", roles), FIRST, None), &folder.path().join("n1")).await;
    n1.stop().await;
    let mut other = with_secrets(shared.node("n1", roles), SECOND, None);
    let output = other.env("ROOKERY__DATA_DIR", folder.path().join("n1")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("ROOKERY__SECRET_PREVIOUS_FILE"), "{said}");
}

/// What a build of 0.1.0 left: dumps of its four databases, its index and its secret, and what a client of it holds.
/// `one` was made by a single process, which decoded the secret; `two` by nodes, which took it as it stands.
async fn of_0_1_0(kind: &str, data: &Path) -> (Command, Value) {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/0.1.0").join(kind);
    let unpacked = Command::new("tar").arg("-xzf").arg(kept.join("index.tar.gz")).arg("-C").arg(data).status().unwrap();
    assert!(unpacked.success());
    let mut command = rookery(&["node", "--name", "n1"]);
    command.env("ROOKERY__SECRET_FILE", kept.join("secret"));
    for database in Database::ALL {
        let dump = Command::new("gzip").arg("-dc").arg(kept.join(format!("{database}.sql.gz"))).output().unwrap().stdout;
        // Its sessions and kept replies are as old as they were the day after.
        let fresh = match database {
            Database::Users => "UPDATE public.session SET expires_at = now() + interval '29 days';",
            Database::Posts => "UPDATE public.idempotency SET at = now() - interval '1 hour';",
            Database::Comments | Database::Search => "",
        };
        let dump = String::from_utf8(dump).unwrap() + fresh;
        let url = TestPostgres::shared().restored(&format!("of_0_1_0_{kind}_{database}"), &dump).await;
        command.env(format!("ROOKERY__SERVICES__{}__DATABASE_URL", database.name().to_uppercase()), url);
    }
    (command, serde_json::from_slice(&std::fs::read(kept.join("held.json")).unwrap()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_of_0_1_0_is_served_and_what_its_clients_hold_is_taken() {
    for kind in ["one", "two"] {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("n1");
        std::fs::create_dir(&data).unwrap();
        let (command, held) = of_0_1_0(kind, &data).await;
        let node = Running::start(command, &data).await;
        let (url, http) = (gateway(&node), Client::new());
        let get = async |path: String| accepted(http.get(format!("{url}/api/v1{path}")), StatusCode::OK).await;
        let post = text(&held["post"]);

        let refresh = json!({"refresh_token": held["refresh_token"]});
        let refreshed = accepted(http.post(format!("{url}/api/v1/auth/refresh")).json(&refresh), StatusCode::OK).await;
        let again = http
            .post(format!("{url}/api/v1/posts"))
            .bearer_auth(text(&refreshed["access_token"]))
            .header("idempotency-key", "kept")
            .header("content-type", "application/json")
            .body(text(&held["body"]));
        assert_eq!(accepted(again, StatusCode::CREATED).await["id"], post.as_str(), "{kind}: a kept reply");
        let page = get(format!("/posts?sort=new&tag=history&limit=1&cursor={}", text(&held["cursor"]))).await;
        assert_eq!(page["items"].as_array().unwrap().len(), 1, "{kind}: a cursor");
        let search = http.get(format!("{url}/api/v1/search?q=algebraic")).header("x-search-after", text(&held["search_token"]));
        assert_eq!(accepted(search, StatusCode::OK).await["items"][0]["id"], post.as_str(), "{kind}: search");

        let read = get(format!("/posts/{post}")).await;
        assert_eq!((&read["author"]["display_name"], &read["like_count"]), (&json!("Ada Lovelace"), &json!(1)), "{kind}: {read}");
        let comments = get(format!("/posts/{post}/comments")).await;
        assert_eq!(comments["items"][0]["deleted"], true, "{kind}: a tombstone: {comments}");
        assert_eq!(comments["items"][1]["author"], Value::Null, "{kind}: the author is gone: {comments}");
        assert_eq!(get("/posts?tag=history".to_owned()).await["items"].as_array().unwrap().len(), 3, "{kind}");
        let login = json!({"login": "bob@example.org", "password": "a long pass phrase"});
        accepted(http.post(format!("{url}/api/v1/auth/login")).json(&login), StatusCode::OK).await;
        node.stop().await;
    }
}
