//! The process that a cluster hangs on.

use std::{
    fs::File,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{process::Child, sync::watch, task::JoinHandle};

/// Longer than a node may take to stop in order.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// A running `rookery up`. Dropped, it is killed.
pub(super) struct Running {
    pid: Option<u32>,
    exit: watch::Receiver<Option<ExitStatus>>,
    waiting: JoinHandle<()>,
}

impl Running {
    /// Starts it with its output at the end of a log.
    pub(super) async fn start(command: Command, log: &Path) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let child = command.spawn().context("cannot start the program")?;
        let (tell, exit) = watch::channel(None);
        let pid = child.id();
        let waiting = tokio::spawn(wait(child, tell));
        Ok(Self { pid, exit, waiting })
    }

    pub(super) fn pid(&self) -> anyhow::Result<i32> {
        let pid = self.pid.filter(|_| !self.has_ended()).context("the process has ended")?;
        Ok(i32::try_from(pid)?)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Waits for its end, which somebody has brought about.
    pub(super) async fn ended(mut self) -> anyhow::Result<ExitStatus> {
        match tokio::time::timeout(END_PATIENCE, self.exit.wait_for(Option::is_some)).await {
            Ok(status) => (*status?).context("waited for"),
            Err(_) => bail!("the process did not end within {} s", END_PATIENCE.as_secs()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The task holds the child, which is killed with it.
        self.waiting.abort();
    }
}

async fn wait(mut child: Child, tell: watch::Sender<Option<ExitStatus>>) {
    if let Ok(status) = child.wait().await {
        tell.send_replace(Some(status));
    }
}
