//! A process of the real binary.

use std::{
    io::{Read, Seek},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::Client;
use rookery::testing::Patience;
use serde_json::Value;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// `rookery` with nothing of this process's configuration, at ports that are free, without rate limits.
pub(crate) fn rookery(arguments: &[&str]) -> Command {
    of_program(Path::new(env!("CARGO_BIN_EXE_rookery")), arguments)
}

/// The same by another copy of the program.
pub(crate) fn of_program(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    apart(command)
}

/// The same through a shell, in which `$ROOKERY_TEST_PROGRAM` is the program.
pub(crate) fn in_shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).env("ROOKERY_TEST_PROGRAM", env!("CARGO_BIN_EXE_rookery"));
    apart(command)
}

fn apart(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ROOKERY__")) {
        command.env_remove(name);
    }
    command.current_dir(std::env::temp_dir()).stdin(Stdio::null());
    command.env("ROOKERY__GATEWAY__LISTEN", "127.0.0.1:0").env("ROOKERY__GATEWAY__RATE_LIMITS", "false");
    command.env("ROOKERY__CLUSTER__LISTEN", "127.0.0.1:0");
    for service in ["USERS", "POSTS", "COMMENTS", "SEARCH"] {
        command.env(format!("ROOKERY__SERVICES__{service}__LISTEN"), "127.0.0.1:0");
    }
    command
}

/// What a command that needs a running node, or none, says.
pub(crate) fn run(arguments: &[&str], data: &Path) -> Output {
    rookery(arguments).env("ROOKERY__DATA_DIR", data).output().unwrap()
}

/// `rookery status --json` for the node, or the nodes, of a data folder.
pub(crate) fn status(data: &Path) -> Value {
    try_status(data).unwrap_or_else(|said| panic!("{said}"))
}

/// The same while nodes come and go: the one that was asked may have died just now.
pub(crate) fn try_status(data: &Path) -> Result<Value, String> {
    let output = run(&["status", "--json"], data);
    match output.status.code() {
        // 3: it answers, and says that some shard is served by nobody.
        Some(0 | 3) => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        _ => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// How a command ends that does not stay, and what it says; no code: it stays, and is ended.
pub(crate) fn ended(mut command: Command, data: &Path) -> (Option<i32>, String) {
    let mut said = tempfile::tempfile().unwrap();
    command.env("ROOKERY__DATA_DIR", data).stdout(said.try_clone().unwrap()).stderr(said.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    let mut patience = Patience::of(PATIENCE);
    let status = loop {
        match child.try_wait().unwrap() {
            None if patience.is_over() => {
                child.kill().unwrap();
                break child.wait().unwrap();
            }
            None => std::thread::sleep(Duration::from_millis(20)),
            Some(status) => break status,
        }
    };
    let mut text = String::new();
    said.rewind().unwrap();
    said.read_to_string(&mut text).unwrap();
    (status.code(), text)
}

/// A process that runs until it is told to stop.
pub(crate) struct Running {
    child: Child,
    /// What it said when it was up.
    pub(crate) greeting: String,
    log: PathBuf,
    http: Client,
}

impl Running {
    /// Starts it in a data folder and does not wait for anything.
    pub(crate) fn begin(mut command: Command, data: &Path) -> Self {
        let (out, log) = (data.with_extension("out"), data.with_extension("log"));
        let said = std::fs::File::create(&out).unwrap();
        command.env("ROOKERY__DATA_DIR", data).stdout(said).stderr(std::fs::File::create(&log).unwrap());
        Self { child: command.spawn().unwrap(), greeting: String::new(), log, http: Client::new() }
    }

    /// Starts it in a data folder and waits until it has greeted.
    pub(crate) async fn start(command: Command, data: &Path) -> Self {
        let mut running = Self::begin(command, data);
        let mut patience = Patience::of(PATIENCE);
        loop {
            running.greeting = std::fs::read_to_string(data.with_extension("out")).unwrap();
            if running.greeting.contains("\nhealth") {
                return running;
            }
            let ended = running.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended with {ended:?}: {}", running.log());
            assert!(!patience.is_over(), "it does not greet: {}", running.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// What stands behind a word in the greeting.
    pub(crate) fn greeted(&self, word: &str) -> Option<&str> {
        let rest = self.greeting.split(word).nth(1)?;
        rest.split(|c: char| c.is_whitespace() || c == ',').find(|found| !found.is_empty())
    }

    pub(crate) async fn get(&self, url: &str) -> (u16, String) {
        let answer = self.http.get(url).send().await.unwrap_or_else(|error| panic!("{url}: {error}: {}", self.log()));
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// Waits for a condition.
    pub(crate) async fn until(&self, what: &str, condition: impl AsyncFn(&Self) -> bool) {
        let mut patience = Patience::of(PATIENCE);
        while !condition(self).await {
            assert!(!patience.is_over(), "{what} did not come: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end, for so long.
    pub(crate) async fn ended(&mut self, within: Duration) -> ExitStatus {
        let mut patience = Patience::of(within);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(!patience.is_over(), "it does not end: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGTERM, and a clean end in time.
    pub(crate) async fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended(Duration::from_secs(15)).await;
        assert!(status.success(), "a clean stop: {status}: {}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A test that failed leaves nothing behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
