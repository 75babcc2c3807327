//! A server under load: its process, its address, and what it spends.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid as NixPid,
};
use rookery_benches::process::{self, CpuByName, Pid, Snapshot};
use tokio_postgres::NoTls;

const STOPS_WITHIN: Duration = Duration::from_secs(20);

/// A running server, stopped when dropped.
pub(crate) struct Subject {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) postmaster: Option<Pid>,
}

/// CPU times at one moment.
pub(crate) struct Sample {
    pub(crate) server: Duration,
    pub(crate) postgres: Duration,
    pub(crate) generator: Duration,
    pub(crate) threads: CpuByName,
    pub(crate) databases: CpuByName,
}

impl Subject {
    /// Starts this very program as one of the servers that Rookery is compared with.
    pub(crate) fn start_own(arguments: &[&str], postmaster: Option<Pid>) -> anyhow::Result<Self> {
        let mut child =
            Command::new(std::env::current_exe()?).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().expect("the output is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse().with_context(|| format!("{arguments:?} did not say where it listens"))?;
        Ok(Self { child, address, postmaster })
    }

    /// Takes over a child that listens at an address.
    pub(crate) fn of(child: Child, address: SocketAddr) -> Self {
        Self { child, address, postmaster: None }
    }

    /// The server's process id.
    pub(crate) fn pid(&self) -> Pid {
        self.child.id()
    }

    /// Whether the process has ended, and how.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Finds the Postgres that the server has started below itself.
    pub(crate) fn find_postmaster(&mut self) {
        let snapshot = Snapshot::take();
        let tree = snapshot.tree(self.pid(), None);
        let postgres = |pid| tree.iter().any(|it| it.pid == pid && it.name == "postgres");
        self.postmaster = tree.iter().find(|it| it.name == "postgres" && !postgres(it.parent)).map(|it| it.pid);
    }

    /// Reads all CPU times.
    pub(crate) fn sample(&self) -> Sample {
        let snapshot = Snapshot::take();
        let postgres = self.postmaster.map(|pid| snapshot.cpu(pid, None));
        let databases = self.postmaster.map(|pid| process::cpu_by_database(&snapshot, pid));
        Sample {
            server: snapshot.cpu(self.pid(), self.postmaster),
            postgres: postgres.unwrap_or_default(),
            generator: process::cpu(std::process::id()),
            threads: process::cpu_by_thread(self.pid()),
            databases: databases.unwrap_or_default(),
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = kill(NixPid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let deadline = Instant::now() + STOPS_WITHIN;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                eprintln!("process {} did not stop on SIGTERM; killed", self.child.id());
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The postmaster behind a connection string, for a server on this machine.
pub(crate) async fn postmaster_of(database: &str) -> anyhow::Result<Pid> {
    let (client, connection) = tokio_postgres::connect(database, NoTls).await?;
    let connection = tokio::spawn(connection);
    let backend: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    let postmaster = process::Process::read(backend.cast_unsigned())
        .context("the Postgres server runs on another machine: its CPU time cannot be read")?
        .parent;
    drop(client);
    connection.await??;
    Ok(postmaster)
}
