//! A process of ours, and the thread that owns it.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Command, ExitStatus},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};
use tokio::sync::{oneshot, watch};

/// A running child. Dropped, it is told to stop, and nobody waits for it.
#[derive(Debug)]
pub(crate) struct Process {
    /// `None` once it has ended: from then on its number may be somebody else's.
    pid: Arc<Mutex<Option<Pid>>>,
    exit: watch::Receiver<Option<ExitStatus>>,
    /// How it is told to stop.
    farewell: Signal,
}

impl Process {
    /// Starts a command, best one that is [`tie`]d, as a child called `name`.
    ///
    /// The thread that starts it stays and waits for its end. That matters: the signal that ends the child at our death
    /// comes when the *thread* ends which made it, and this one ends with the process or after the child.
    pub(crate) async fn spawn(mut command: Command, name: &str, farewell: Signal) -> io::Result<Process> {
        let (started, starting) = oneshot::channel();
        let (exited, exit) = watch::channel(None);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => return drop(started.send(Err(error))),
            };
            let number = Pid::from_raw(child.id().cast_signed());
            let pid = Arc::new(Mutex::new(Some(number)));
            // If nobody waits for it any more, the `Process` is dropped with the channel, and that stops the child.
            drop(started.send(Ok(Process { pid: pid.clone(), exit, farewell })));

            // First learn that it has ended, then forget its number, and only then let the kernel give it away.
            while waitid(Id::Pid(number), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::Error::EINTR) {}
            pid.lock().unwrap_or_else(PoisonError::into_inner).take();
            exited.send_replace(Some(child.wait().expect("the child is ours and was not waited for")));
        })?;
        starting.await.unwrap_or_else(|_| Err(io::Error::other("the thread of the child ended before it began")))
    }

    /// Sends `signal`, if it is still there.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = *self.pid.lock().unwrap_or_else(PoisonError::into_inner) {
            // It may be about to end, and that is all that can go wrong: it is our child.
            let _ = kill(pid, signal);
        }
    }

    /// The process's number, while it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.pid.lock().unwrap_or_else(PoisonError::into_inner).map(|pid| pid.as_raw().cast_unsigned())
    }

    /// Waits for its end; at once, if that is past.
    pub(crate) async fn exited(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let status = exit.wait_for(Option::is_some).await.expect("the thread of the child tells of its end");
        status.expect("waited for")
    }

    /// As [`Self::exited`], but not for longer than `patience`.
    pub(crate) async fn exited_within(&self, patience: Duration) -> Option<ExitStatus> {
        tokio::time::timeout(patience, self.exited()).await.ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(self.farewell);
    }
}

/// Ties the life of `command` to ours: it runs in a session of its own, so that a Ctrl-C in the terminal is for us alone,
/// and ends by `at_our_death` when the thread that spawns it ends, with the process or before.
///
/// `become_it` runs in the child first. Between fork and exec it may make system calls only: no allocation, no lock.
#[expect(unsafe_code, reason = "no safe way to run code between fork and exec")]
pub(crate) fn tie(command: &mut Command, at_our_death: Signal, become_it: impl Fn() -> io::Result<()> + Send + Sync + 'static) {
    let parent = Pid::this();
    // SAFETY: between fork and exec only system calls are made, no memory is allocated and no lock is taken.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            become_it()?;
            // After a change of user, which would clear it.
            nix::sys::prctl::set_pdeathsig(at_our_death)?;
            // The parent may have died before that call, and then no signal comes.
            if nix::unistd::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}
