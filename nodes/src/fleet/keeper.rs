//! Who keeps one node: starts its process, sees it end, says so to the others, and starts it again.

use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rookery_actors::{
    episodes::{self, with_causes},
    runtime::{Database, PoolSize},
    supervisor::{Cause, Lifetime, RestartPolicy, Restarts, Verdict},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinHandle};

use super::{Ground, environment};
use crate::{
    admin::{silence, socket},
    config, ownership,
    process::{self, Process},
    report::{self, Report},
};

/// A node has less than this to stop in order; what it does not get done then, the others do after its death.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
/// Between two looks whether a starting node answers.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// After SIGKILL only a disk that does not answer keeps a process.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// A database that takes longer hears of a death from the other nodes instead.
pub(super) const BURIAL_PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks whether the databases answer.
const DATABASES_EVERY: Duration = Duration::from_millis(250);
/// As it is told.
const WAITS: &str = "a node is not started as long as a database takes no connections";

/// A node as its parent sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// Whether it runs.
    pub state: State,
    /// Its process, if it has one.
    pub pid: Option<u32>,
    /// Where its gateway listens, once it has said so.
    pub gateway: Option<String>,
    /// How often it was started again.
    pub restarts: u64,
}

/// Whether a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It does not answer yet.
    Starting,
    /// It answers.
    Up,
    /// It has ended, and is about to be started again.
    Down,
    /// It has ended too often, and is not started again.
    Lost,
    /// It was stopped.
    Stopped,
}

/// Keeps a node until it is told to stop.
pub(super) struct Keeper {
    stop: watch::Sender<bool>,
    kept: watch::Receiver<Kept>,
    task: JoinHandle<()>,
}

impl Keeper {
    pub(super) fn start(ground: Arc<Ground>, number: u16) -> Self {
        let name = environment::name(number);
        let (tell, kept) = watch::channel(Kept { name, state: State::Starting, pid: None, gateway: None, restarts: 0 });
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(Keeping { ground, number, tell, stopped }.run());
        Self { stop, kept, task }
    }

    pub(super) fn kept(&self) -> Kept {
        self.kept.borrow().clone()
    }

    /// The node as it comes to be: waits while it starts.
    pub(super) fn watch(&self) -> watch::Receiver<Kept> {
        self.kept.clone()
    }

    /// Asks for a graceful stop.
    pub(super) fn begin_stop(&self) {
        self.stop.send_replace(true);
    }

    /// Stops the node in order, or at the end of its time.
    pub(super) async fn stop(self) {
        self.begin_stop();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the keeper of a node ended badly");
        }
    }
}

/// Our own program, as we run it: its file may be another one's by now, and the nodes of a machine are of one version.
const PROGRAM: &str = "/proc/self/exe";

struct Keeping {
    ground: Arc<Ground>,
    number: u16,
    tell: watch::Sender<Kept>,
    stopped: watch::Receiver<bool>,
}

impl Keeping {
    async fn run(mut self) {
        let name = environment::name(self.number);
        // A node that stops cleanly without having been asked is missed as much as one that fails.
        let mut restarts = Restarts::new(RestartPolicy::default(), Lifetime::Permanent);
        let began = Instant::now();
        loop {
            self.tell.send_modify(|kept| kept.state = State::Starting);
            let reason = match Process::spawn(self.command(), &name, Signal::SIGTERM).await {
                Ok(process) => match self.keep(&process).await {
                    Some(status) => status.to_string(),
                    None => return self.end(&process).await,
                },
                Err(error) => format!("it does not start: {error}"),
            };
            self.tell.send_modify(|kept| *kept = Kept { state: State::Down, pid: None, gateway: None, ..kept.clone() });
            self.bury().await;
            match restarts.decide(began.elapsed(), Cause::Failed, rand::random()) {
                Verdict::Restart { after } => {
                    let backoff_ms = after.as_millis();
                    tracing::warn!(node.id = name, backoff_ms, reason, "node {name} ended ({reason}), again in {backoff_ms} ms");
                    self.tell.send_modify(|kept| kept.restarts += 1);
                    let due = async {
                        tokio::time::sleep(after).await;
                        self.databases_answer(&name).await;
                    };
                    let mut stopped = self.stopped.clone();
                    tokio::select! {
                        () = due => {}
                        _ = stopped.wait_for(|stopped| *stopped) => break,
                    }
                }
                Verdict::GiveUp | Verdict::Leave => {
                    tracing::error!(
                        node.id = name,
                        reason,
                        "node {name} ended too often ({reason}); the others go on without it"
                    );
                    self.tell.send_modify(|kept| kept.state = State::Lost);
                    let _ = self.stopped.wait_for(|stopped| *stopped).await;
                    break;
                }
            }
        }
        self.tell.send_modify(|kept| kept.state = State::Stopped);
    }

    /// Waits until every database takes a session: without it a node ends at once, and would soon have ended too often.
    async fn databases_answer(&self, name: &str) {
        for (of, config) in &self.ground.databases {
            let one = PoolSize { connections_max: 1, ..PoolSize::default() };
            let database = Database::new(config.clone(), "rookery-parent", one);
            while let Err(error) = database.session("rookery-parent").await {
                episodes::warn(WAITS, name, format_args!("{of}: {}", with_causes(&error)));
                tokio::time::sleep(DATABASES_EVERY).await;
            }
        }
        episodes::over(WAITS, name);
    }

    fn command(&self) -> Command {
        let ground = &self.ground;
        let mut command = Command::new(PROGRAM);
        command.arg0("rookery").arg("node").arg("--name").arg(environment::name(self.number));
        if let Some(file) = &ground.file {
            command.arg("--config").arg(file);
        }
        command.envs(environment::variables(&ground.config, &ground.shared, self.number));
        // Named once, by us.
        for unknown in config::unknown_variables() {
            command.env_remove(unknown.name);
        }
        // Its greeting is for whoever starts a node by hand; its log is ours.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // Without us nobody would start it again, and its Postgres goes with us too.
        process::tie(&mut command, Signal::SIGKILL, || Ok(()));
        command
    }

    /// Says when the node answers, and waits for its end; none: it is to stop.
    async fn keep(&mut self, process: &Process) -> Option<std::process::ExitStatus> {
        self.tell.send_modify(|kept| kept.pid = process.id());
        let up = async {
            let report = answer(&environment::folder(&self.ground.shared.data, self.number), process).await;
            self.tell.send_modify(|kept| *kept = Kept { state: State::Up, gateway: report.gateway, ..kept.clone() });
            std::future::pending::<()>().await;
        };
        let mut stopped = self.stopped.clone();
        tokio::select! {
            status = process.exited() => Some(status),
            _ = stopped.wait_for(|stopped| *stopped) => None,
            () = up => unreachable!("it waits for ever"),
        }
    }

    /// Stops a process in order, or at the end of its time.
    async fn end(&self, process: &Process) {
        process.signal(Signal::SIGTERM);
        if process.exited_within(STOP_PATIENCE).await.is_none() {
            let name = environment::name(self.number);
            tracing::warn!(node.id = name, "node {name} did not stop within {} s, ending it", STOP_PATIENCE.as_secs());
            process.signal(Signal::SIGKILL);
            if process.exited_within(KILL_PATIENCE).await.is_none() {
                tracing::error!(node.id = name, "node {name} does not end, not even by SIGKILL; it is left to the kernel");
            }
            self.bury().await;
        }
        self.tell.send_modify(|kept| *kept = Kept { state: State::Stopped, pid: None, gateway: None, ..kept.clone() });
    }

    /// Declares it dead in every database, now that its process is seen to be: the others need not wait for its leases.
    async fn bury(&self) {
        let name = environment::name(self.number);
        let buried = self.ground.databases.iter().map(|(of, config)| {
            let (name, former) = (&name, self.ground.former(*of, self.number));
            async move {
                let bury = async {
                    ownership::bury(config, of.name(), name, &former).await?;
                    let database = Database::new(config.clone(), "rookery-parent", PoolSize::default());
                    anyhow::Ok(report::declare_dead(&database, name).await?)
                };
                match tokio::time::timeout(BURIAL_PATIENCE, bury).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(node.id = name, "the {of} database does not hear that {name} is dead: {error:#}")
                    }
                    Err(_) => tracing::warn!(node.id = name, "the {of} database does not hear in time that {name} is dead"),
                }
            }
        });
        futures_util::future::join_all(buried).await;
    }
}

/// What a process says once it answers at the admin socket of its folder.
async fn answer(data: &Path, process: &Process) -> Report {
    loop {
        // A socket that somebody else left answers nobody, or not as this process.
        if let Ok(report) = ask(&socket::find(data)).await
            && Some(report.pid) == process.id()
        {
            return report;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Asks a node what it is, which it answers at once if it lives.
pub(super) async fn ask(socket: &Path) -> reqwest::Result<Report> {
    let client = reqwest::Client::builder().unix_socket(socket).timeout(silence::ANSWERS_WITHIN).no_proxy().build()?;
    client.get("http://rookery/node").send().await?.error_for_status()?.json().await
}
