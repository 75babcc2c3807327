//! A node as a process of its own.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use reqwest::Client;
use rookery::testing::Patience;
use serde_json::{Value, json};

/// A running `rookery up`.
pub(crate) struct NodeProcess {
    child: Child,
    address: String,
    log: PathBuf,
    pub(crate) client: Client,
}

/// `rookery up` on a folder, at ports that are free.
pub(crate) fn command(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rookery"));
    command.arg("up").env("ROOKERY__DATA_DIR", data).env("ROOKERY__GATEWAY__RATE_LIMITS", "false");
    command.env("ROOKERY__GATEWAY__LISTEN", "127.0.0.1:0").current_dir(std::env::temp_dir());
    for service in ["USERS", "POSTS", "COMMENTS", "SEARCH"] {
        command.env(format!("ROOKERY__SERVICES__{service}__LISTEN"), "127.0.0.1:0");
    }
    command
}

impl NodeProcess {
    /// Starts a node and waits until it says where it listens.
    pub(crate) async fn start(data: &Path) -> Self {
        Self::start_with(data, &[]).await
    }

    /// The same with more in its environment.
    pub(crate) async fn start_with(data: &Path, environment: &[(&str, &str)]) -> Self {
        let log = data.with_extension("log");
        let (out, err) = (data.with_extension("out"), std::fs::File::create(&log).unwrap());
        let mut child = command(data)
            .envs(environment.iter().copied())
            .stdout(std::fs::File::create(&out).unwrap())
            .stderr(err)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut patience = Patience::of(Duration::from_secs(60));
        let address = loop {
            let said = std::fs::read_to_string(&out).unwrap();
            if let Some(address) = said.split("listens on http://").nth(1).and_then(|rest| rest.split_whitespace().next()) {
                break address.to_owned();
            }
            let ended = child.try_wait().unwrap();
            let told = || format!("{said}\n{}", std::fs::read_to_string(&log).unwrap_or_default());
            assert!(ended.is_none(), "the node ended with {ended:?}: {}", told());
            assert!(!patience.is_over(), "the node does not listen: {}", told());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        Self { child, address, log, client: Client::new() }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = self.client.get(self.url(path)).send().await.unwrap();
        answer.json().await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) async fn status(&self, path: &str) -> u16 {
        self.client.get(self.url(path)).send().await.unwrap().status().as_u16()
    }

    /// A new user's access token.
    pub(crate) async fn register(&self, name: &str) -> String {
        let user = json!({"username": name, "email": format!("{name}@example.org"), "password": "a long pass phrase"});
        let answer = self.client.post(self.url("/api/v1/auth/register")).json(&user).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{name} registers");
        answer.json::<Value>().await.unwrap()["access_token"].as_str().unwrap().to_owned()
    }

    /// A new post's id.
    pub(crate) async fn publish(&self, token: &str, title: &str) -> String {
        let post = json!({"title": title, "body": "", "tags": []});
        let answer = self.client.post(self.url("/api/v1/posts")).bearer_auth(token).json(&post).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{title} is published");
        answer.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
    }

    /// Waits for a condition.
    pub(crate) async fn until(&self, what: &str, condition: impl AsyncFn(&Self) -> bool) {
        let mut patience = Patience::of(Duration::from_secs(60));
        while !condition(self).await {
            let log = || std::fs::read_to_string(&self.log).unwrap_or_default();
            assert!(!patience.is_over(), "{what} did not come; the node said:\n{}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and what follows from it.
    pub(crate) async fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let mut patience = Patience::of(Duration::from_secs(20));
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(!patience.is_over(), "the node does not stop");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(status.success(), "a clean stop: {status}\n{}", std::fs::read_to_string(&self.log).unwrap_or_default());
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // A test that failed leaves no node behind; its Postgres goes with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
