//! Servers that an earlier process left on our cluster.
//!
//! The lock of the data folder is ours, so whatever still runs there has lost its owner. Usually that is a server which
//! got its signal when its parent was killed, and is writing its last checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tokio::time::Instant;
use tracing::warn;

/// How long a server may take for its last checkpoint before it is told to leave without one.
const FAST_PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take to leave without one.
const IMMEDIATE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a process of which nobody can tell may take to go by itself.
const UNCLEAR_PATIENCE: Duration = Duration::from_secs(5);

/// Ends every Postgres process that works in `cluster`, returns when the last is gone, and takes its lock file away.
pub(super) async fn end(cluster: &Path) -> io::Result<()> {
    end_processes(cluster).await?;
    if let Some(pid) = unclear_still(cluster).await? {
        // Postgres looks itself whether anybody works on its memory, as long as it has that file.
        warn!(
            "cannot tell whether process {pid}, a Postgres, works on {}: rookery lacks CAP_SYS_PTRACE; leaving {PID_FILE} there",
            cluster.display()
        );
        return Ok(());
    }
    // Postgres believes this file as long as a process of that number exists: another program after a restart of the
    // container, or a zombie that nobody collects. We know better.
    match fs::remove_file(cluster.join(PID_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A process of which it stays unclear whether it works in `cluster`: a child whose postmaster has died goes by itself.
async fn unclear_still(cluster: &Path) -> io::Result<Option<Pid>> {
    let deadline = Instant::now() + UNCLEAR_PATIENCE;
    loop {
        match look(cluster)?.unclear.first() {
            Some(pid) if Instant::now() >= deadline => return Ok(Some(*pid)),
            Some(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            None => return Ok(None),
        }
    }
}

/// Kills every Postgres process that works in `cluster`, in which there is nothing to keep.
pub(super) fn kill(cluster: &Path) -> io::Result<()> {
    match processes(cluster) {
        Ok(running) => running.into_iter().for_each(|pid| tell(pid, Signal::SIGKILL)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

const PID_FILE: &str = "postmaster.pid";

async fn end_processes(cluster: &Path) -> io::Result<()> {
    if processes(cluster)?.is_empty() {
        return Ok(());
    }
    warn!("a Postgres of an earlier process still runs on {}; ending it", cluster.display());
    for (signal, patience) in [
        (Signal::SIGINT, FAST_PATIENCE),
        (Signal::SIGQUIT, IMMEDIATE_PATIENCE),
        // Nothing is lost by it: what was committed is in the log, and the next start replays that.
        (Signal::SIGKILL, IMMEDIATE_PATIENCE),
    ] {
        if ended_by(signal, patience, cluster).await? {
            return Ok(());
        }
    }
    Err(io::Error::other(format!("a Postgres on {} does not end, not even by SIGKILL", cluster.display())))
}

async fn ended_by(signal: Signal, patience: Duration, cluster: &Path) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    let postmaster = postmaster(cluster);
    let mut told = BTreeSet::new();
    loop {
        let running = processes(cluster)?;
        if running.is_empty() {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        // The postmaster takes its children with it, in order. Children whose postmaster is gone are told themselves:
        // by the signal that makes a backend quit, since SIGINT only cancels its statement.
        match postmaster.filter(|pid| running.contains(pid)) {
            Some(pid) if told.insert(pid) => tell(pid, signal),
            Some(_) if signal != Signal::SIGKILL => {}
            _ => {
                let signal = if signal == Signal::SIGINT { Signal::SIGQUIT } else { signal };
                running.into_iter().filter(|&pid| told.insert(pid)).for_each(|pid| tell(pid, signal));
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn tell(pid: Pid, signal: Signal) {
    // Gone in between is what we want; and if it is not ours to end, the caller sees it still running.
    let _ = signal::kill(pid, signal);
}

/// The processes called `postgres`, as far as they concern a cluster.
#[derive(Default)]
struct Running {
    /// Those that work in it.
    ours: Vec<Pid>,
    /// Those of its user that may do so, or work elsewhere.
    unclear: Vec<Pid>,
}

/// The processes that work in `cluster`.
fn processes(cluster: &Path) -> io::Result<Vec<Pid>> {
    Ok(look(cluster)?.ours)
}

/// Looks for processes called `postgres` whose working folder is `cluster`.
///
/// More to be trusted than `postmaster.pid`: that number may be another program's by now, and says nothing of children
/// that outlived their postmaster. The name is checked so that a shell which happens to stand there stays alive.
///
/// The working folder of another user's process is shown to CAP_SYS_PTRACE alone, which root has not in every container. What
/// is left then are the arguments of a postmaster, and whose child another process is.
fn look(cluster: &Path) -> io::Result<Running> {
    let here = fs::metadata(cluster)?;
    let is_here = |path: &Path| fs::metadata(path).map(|there| (there.dev(), there.ino()) == (here.dev(), here.ino()));
    let (mut running, mut closed) = (Running::default(), Vec::new());
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let (pid, process) = (Pid::from_raw(pid), entry.path());
        if !fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.trim() == "postgres") {
            continue;
        }
        match is_here(&process.join("cwd")) {
            Ok(true) => running.ours.push(pid),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && uid(&process) == Some(here.uid()) => {
                closed.push((pid, process));
            }
            // Elsewhere, of a user who cannot work here, or just gone.
            _ => {}
        }
    }
    let folders: BTreeMap<Pid, bool> =
        closed.iter().filter_map(|(pid, process)| Some((*pid, is_here(&data_folder(process)?).unwrap_or(false)))).collect();
    for (pid, process) in closed {
        let postmaster = parent(&process).filter(|parent| folders.contains_key(parent));
        match folders.get(&pid).or_else(|| folders.get(&postmaster?)) {
            Some(true) => running.ours.push(pid),
            Some(false) => {}
            None => running.unclear.push(pid),
        }
    }
    Ok(running)
}

/// Whom a process runs as.
fn uid(process: &Path) -> Option<u32> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

fn parent(process: &Path) -> Option<Pid> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok().map(Pid::from_raw)
}

/// What the arguments of a postmaster name, as we and most others start one; its children have none.
fn data_folder(process: &Path) -> Option<PathBuf> {
    let arguments = fs::read(process.join("cmdline")).ok()?;
    let mut arguments = arguments.split(|byte| *byte == 0);
    arguments.find(|argument| *argument == b"-D")?;
    Some(PathBuf::from(OsStr::from_bytes(arguments.next()?)))
}

fn postmaster(cluster: &Path) -> Option<Pid> {
    let pid_file = fs::read_to_string(cluster.join(PID_FILE)).ok()?;
    pid_file.lines().next()?.trim().parse().ok().map(Pid::from_raw)
}
