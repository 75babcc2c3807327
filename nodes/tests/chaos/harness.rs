//! A cluster in one line, and people who use it.

use std::time::Duration;

use rookery::{
    chaos::cluster::{self, Cluster as Processes},
    testing::{Patience, Turn},
};
use rookery_actors::fail_point::{Action, Point};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// On how many nodes a scenario runs, if nobody says otherwise.
pub(crate) fn nodes_or(usual: u16) -> u16 {
    std::env::var("ROOKERY_CHAOS_NODES").map_or(usual, |nodes| nodes.parse().expect("a number of nodes"))
}

/// The turn of so many nodes with their Postgres and clients.
pub(crate) fn turn(nodes: u16) -> Turn {
    Turn::wait(usize::from(nodes) + 1)
}

/// Whether a test must not be skipped.
pub(crate) fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false")
}

/// A running cluster; it ends with the value.
pub(crate) struct Cluster {
    processes: Processes,
    http: reqwest::Client,
    // Held: as long as the processes.
    _turn: Turn,
}

/// Somebody with an account, who asks one gateway.
pub(crate) struct Person<'a> {
    cluster: &'a Cluster,
    token: String,
}

impl Cluster {
    /// So many nodes.
    pub(crate) async fn of(nodes: u16) -> Self {
        let turn = turn(nodes);
        let options = cluster::Options::new(env!("CARGO_BIN_EXE_rookery"), nodes);
        let processes = Processes::start(options).await.unwrap_or_else(|error| panic!("{error:#}"));
        Self { processes, http: reqwest::Client::builder().timeout(Duration::from_secs(5)).build().unwrap(), _turn: turn }
    }

    /// Whoever passes this point next dies there, once.
    pub(crate) fn crash_once(&self, point: Point) {
        self.processes.fail_points().once(point, Action::Exit).unwrap();
    }

    /// Whoever passes this point next panics there, once.
    pub(crate) fn panic_once(&self, point: Point) {
        self.processes.fail_points().once(point, Action::Panic).unwrap();
    }

    /// Whether somebody has passed a point that was armed once.
    pub(crate) fn is_passed(&self, point: Point) -> bool {
        self.processes.fail_points().is_passed(point)
    }

    /// Starts what has died.
    pub(crate) async fn revive(&mut self) {
        self.processes.revive().await.unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// A new account.
    pub(crate) async fn sign_up(&self, name: &str) -> String {
        let body = json!({"username": name, "email": format!("{name}@example.org"), "password": "a long pass phrase"});
        let answer = self.http.post(self.url("/api/v1/auth/register")).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{name} signs up");
        answer.json::<Value>().await.unwrap()["access_token"].as_str().unwrap().to_owned()
    }

    /// Somebody with an account, by their token.
    pub(crate) fn person(&self, token: &str) -> Person<'_> {
        Person { cluster: self, token: token.to_owned() }
    }

    /// Ids of the posts that a search finds; none without an answer.
    pub(crate) async fn search(&self, words: &str) -> Vec<String> {
        let Some(found) = self.get(&format!("/api/v1/search?q={words}&type=posts")).await else { return Vec::new() };
        let items = found["items"].as_array().into_iter().flatten();
        items.filter_map(|item| item["id"].as_str().map(str::to_owned)).collect()
    }

    /// What a path answers, if it does.
    pub(crate) async fn get(&self, path: &str) -> Option<Value> {
        self.http.get(self.url(path)).send().await.ok()?.json().await.ok()
    }

    /// Waits for a condition.
    pub(crate) async fn eventually(&self, condition: impl AsyncFn(&Self) -> bool) {
        let mut patience = Patience::of(PATIENCE);
        while !condition(self).await {
            assert!(!patience.is_over(), "it does not come; the nodes said:\n{}", self.processes.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// SIGTERM, and a clean end.
    pub(crate) async fn stop(self) {
        self.processes.stop().await.unwrap_or_else(|error| panic!("{error:#}"));
    }

    fn url(&self, path: &str) -> String {
        self.processes.gateways().url(0, path)
    }
}

impl Person<'_> {
    /// Publishes a post under a key: once, whatever comes back.
    pub(crate) async fn publish(&self, title: &str, key: &str) -> Option<String> {
        let post = json!({"title": title, "body": "", "tags": []});
        let request = self.cluster.http.post(self.cluster.url("/api/v1/posts")).bearer_auth(&self.token).json(&post);
        let answer = request.header("idempotency-key", key).send().await.ok()?;
        if answer.status() != 201 {
            return None;
        }
        answer.json::<Value>().await.ok()?["id"].as_str().map(str::to_owned)
    }
}
