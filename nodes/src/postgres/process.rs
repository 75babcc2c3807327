//! The server's process, and the thread that owns it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::sync::{oneshot, watch};

use super::server_user::ServerUser;

/// A running server. Dropped, it is told to stop, and nobody waits for it.
#[derive(Debug)]
pub(super) struct Process {
    /// `None` once it has ended: from then on its number may be somebody else's.
    pid: Arc<Mutex<Option<Pid>>>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Starts `postgres` on `cluster`, its output appended to `log`.
    ///
    /// The thread that starts it stays and waits for its end. That matters: the signal that ends the server at our death
    /// comes when the *thread* ends which made it, and this one ends with the process or after the server.
    pub(super) async fn spawn(postgres: &Path, cluster: &Path, user: &ServerUser, log: File) -> io::Result<Process> {
        let mut command = Command::new(postgres);
        command
            .arg("-D")
            .arg(cluster)
            .arg(setting("config_file", &cluster.join("rookery.conf")))
            .arg(setting("hba_file", &cluster.join("rookery_hba.conf")))
            .arg(setting("ident_file", &cluster.join("rookery_ident.conf")))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // SIGINT is Postgres's fast shutdown: sessions end, a checkpoint is written, the next start replays nothing.
        user.run(&mut command, Signal::SIGINT);

        let (started, starting) = oneshot::channel();
        let (exited, exit) = watch::channel(None);
        std::thread::Builder::new().name("postgres".to_owned()).spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => return drop(started.send(Err(error))),
            };
            let number = Pid::from_raw(child.id().cast_signed());
            let pid = Arc::new(Mutex::new(Some(number)));
            // If nobody waits for it any more, the `Process` is dropped with the channel, and that stops the server.
            drop(started.send(Ok(Process { pid: pid.clone(), exit })));

            // First learn that it has ended, then forget its number, and only then let the kernel give it away.
            while waitid(Id::Pid(number), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::Error::EINTR) {}
            pid.lock().unwrap_or_else(PoisonError::into_inner).take();
            exited.send_replace(Some(child.wait().expect("the child is ours and was not waited for")));
        })?;
        starting.await.unwrap_or_else(|_| Err(io::Error::other("the thread of the server ended before it began")))
    }

    /// Sends `signal`, if it is still there.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(pid) = *self.pid.lock().unwrap_or_else(PoisonError::into_inner) {
            // It may be about to end, and that is all that can go wrong: it is our child.
            let _ = kill(pid, signal);
        }
    }

    /// The process's number, while it runs.
    pub(super) fn id(&self) -> Option<u32> {
        self.pid.lock().unwrap_or_else(PoisonError::into_inner).map(|pid| pid.as_raw().cast_unsigned())
    }

    /// Waits for its end; at once, if that is past.
    pub(super) async fn exited(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let status = exit.wait_for(Option::is_some).await.expect("the thread of the server tells of its end");
        status.expect("waited for")
    }

    /// As [`Self::exited`], but not for longer than `patience`.
    pub(super) async fn exited_within(&self, patience: Duration) -> Option<ExitStatus> {
        tokio::time::timeout(patience, self.exited()).await.ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGINT);
    }
}

fn setting(name: &str, value: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(format!("--{name}="));
    argument.push(value);
    argument
}
