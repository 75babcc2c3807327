//! A Postgres of its own for the inserting server.

use std::{
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User},
};
use tempfile::TempDir;

/// What Rookery's private Postgres is given too, as far as an INSERT feels it: both servers
/// write with the same durability, the same checkpoints and the same memory.
const SETTINGS: [&str; 9] = [
    "listen_addresses=",
    "fsync=on",
    "synchronous_commit=on",
    "shared_buffers=256MB",
    "max_wal_size=2GB",
    "checkpoint_timeout=15min",
    "wal_compression=on",
    "wal_buffers=16MB",
    "jit=off",
];

/// A running cluster on a unix socket; gone with its data when dropped.
pub(crate) struct Cluster {
    postmaster: Child,
    folder: TempDir,
}

impl Cluster {
    /// Makes and starts one from the machine's binaries.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let bin = binaries().context("no Postgres under /usr/lib/postgresql; give --postgres")?;
        let folder = TempDir::new()?;
        let user = nix::unistd::geteuid().is_root().then(|| User::from_name("postgres"));
        let user = user.transpose()?.flatten();
        if let Some(user) = &user {
            chown(folder.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        let command = |program: &str| {
            let mut command = Command::new(bin.join(program));
            command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
            if let Some(user) = &user {
                command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
            }
            command.arg("-D").arg(folder.path().join("data"));
            command
        };
        let made = command("initdb")
            .args(["--no-locale", "-E", "UTF8", "-U", "rookery", "-A", "trust"])
            .stderr(Stdio::null())
            .status()?;
        anyhow::ensure!(made.success(), "initdb failed: {made}");
        let postmaster = command("postgres")
            .args(SETTINGS.iter().flat_map(|setting| ["-c", setting]))
            .arg("-c")
            .arg(format!("unix_socket_directories={}", folder.path().display()))
            .stderr(Stdio::null())
            .spawn()?;
        let cluster = Self { postmaster, folder };
        cluster.wait_for_socket()?;
        Ok(cluster)
    }

    /// How to connect.
    pub(crate) fn url(&self) -> String {
        format!("host={} user=rookery dbname=postgres", self.folder.path().display())
    }

    fn wait_for_socket(&self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let deadline = Instant::now() + Duration::from_secs(20);
        let url = self.url();
        loop {
            match runtime.block_on(tokio_postgres::connect(&url, tokio_postgres::NoTls)) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("Postgres does not answer");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SIGINT is Postgres' fast shutdown.
        let _ = kill(Pid::from_raw(self.postmaster.id() as i32), Signal::SIGINT);
        let _ = self.postmaster.wait();
    }
}

fn binaries() -> Option<PathBuf> {
    let versions = Path::new("/usr/lib/postgresql").read_dir().ok()?.flatten();
    versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("postgres").exists()).max()
}
