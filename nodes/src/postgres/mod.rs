//! The private Postgres of a node that was given none.
//!
//! Its programs are found on the machine or fetched ([`Search`]), its data lie in the node's [`DataDir`], and it is
//! reached through a Unix socket that only this user and root can open. It ends with this process, however that ends:
//! in order by [`EmbeddedPostgres::stop`], and by a signal from the kernel after `kill -9`.

mod binaries;
mod cluster;
mod data_dir;
mod fetch;
mod leftover;
mod runtime_dir;
mod server_user;
mod settings;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, NoTls};
use tracing::{info, warn};

pub use binaries::{Binaries, BinariesError, Major, Search};
pub use data_dir::{DataDir, DataDirError};
pub use fetch::FetchError;
pub use server_user::ServerUserError;
#[cfg(test)]
pub(crate) use settings::CONNECTIONS_MAX;

use crate::process::Process;
use cluster::Log;
use server_user::ServerUser;

/// A running Postgres that belongs to this process.
///
/// Dropped, it is told to stop; [`Self::stop`] also waits until it has.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    data: PathBuf,
    cluster: PathBuf,
    socket_dir: PathBuf,
    binaries: Binaries,
    user: ServerUser,
    process: Process,
}

/// Why the private Postgres does not run.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// There are no programs to start, or none for these data.
    #[error(transparent)]
    Binaries(#[from] BinariesError),
    /// There is nobody to run it as.
    #[error(transparent)]
    User(#[from] ServerUserError),
    /// The place of the database is taken by something else.
    #[error("{} holds files, but no Postgres database: move them away", .0.display())]
    NotACluster(PathBuf),
    /// A new database could not be made.
    #[error("could not make a new database: {program} failed ({status}):\n{said}")]
    Initialise {
        /// Which program.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// Its last words.
        said: String,
    },
    /// The server ended before it took connections.
    #[error("Postgres ended while it started ({status}); its last lines, from {}:\n{log}", .path.display())]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// Its log.
        path: PathBuf,
        /// The end of the log.
        log: String,
    },
    /// The server runs and takes no connections.
    #[error("Postgres took no connections within {waited_s} s; its last lines, from {}:\n{log}", .path.display())]
    NotReady {
        /// How long we waited, in seconds.
        waited_s: u64,
        /// Its log.
        path: PathBuf,
        /// The end of the log.
        log: String,
        /// What the last try to connect said; none: it was given no answer.
        #[source]
        source: Option<tokio_postgres::Error>,
    },
    /// The server takes connections and does not answer.
    #[error("Postgres runs and did not answer within {waited_s} s; its log is {}", .path.display())]
    Silent {
        /// How long we waited, in seconds.
        waited_s: u64,
        /// Its log.
        path: PathBuf,
    },
    /// A database could not be created.
    #[error("could not create the databases")]
    Databases(#[source] tokio_postgres::Error),
    /// A file or a process.
    #[error("cannot use {}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl PostgresError {
    fn io(path: &Path, source: io::Error) -> PostgresError {
        PostgresError::Io { path: path.to_owned(), source }
    }
}

/// A recovery replays up to 2 GB of log, on a slow disk too.
const START_PATIENCE: Duration = Duration::from_secs(180);

/// For one try to connect: a server that stands still takes connections, and says nothing.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// To make four databases takes a fifth of a second.
const CREATE_PATIENCE: Duration = Duration::from_secs(60);

/// For the last checkpoint: a quarter of a gigabyte of pages at most.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

impl EmbeddedPostgres {
    /// Starts the Postgres of `data` with what this machine has, and makes sure that `databases` exist.
    ///
    /// # Errors
    /// Each says what to do; a server that does not start is quoted.
    pub async fn start(data: &DataDir, databases: &[&str]) -> Result<EmbeddedPostgres, PostgresError> {
        Self::start_with(data, databases, &Search::machine()).await
    }

    /// As [`Self::start`], with the programs that `search` finds.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(data: &DataDir, databases: &[&str], search: &Search) -> Result<EmbeddedPostgres, PostgresError> {
        let begin = Instant::now();
        let data = data.path().to_owned();
        let cluster = data.join("postgres");

        let binaries = binaries::find(search, &cluster, &data).await?;
        let user = ServerUser::choose(&data, &cluster, &binaries.bin)?;
        cluster::initialise(&cluster, databases, &binaries, &user).await?;
        let socket_dir = runtime_dir::runtime_dir(&data, &user).map_err(|source| PostgresError::io(&data, source))?;
        let launched = launch(&data, &cluster, &socket_dir, &binaries, &user).await;
        let (process, client) = launched.inspect_err(|_| runtime_dir::remove(&data, &socket_dir))?;
        // From here on the value stops the server if anything fails.
        let postgres = EmbeddedPostgres { data, cluster, socket_dir, binaries, user, process };
        match timeout(CREATE_PATIENCE, create_missing(&client, databases)).await {
            Ok(created) => created.map_err(PostgresError::Databases)?,
            Err(_) => {
                let path = postgres.data.join("postgres.log");
                return Err(PostgresError::Silent { waited_s: CREATE_PATIENCE.as_secs(), path });
            }
        }

        info!(
            duration_ms = begin.elapsed().as_millis(),
            "started {} from {}",
            postgres.binaries.major,
            postgres.binaries.bin.display()
        );
        Ok(postgres)
    }

    /// How to connect to `database`.
    pub fn config(&self, database: &str) -> tokio_postgres::Config {
        connection(&self.socket_dir, database)
    }

    /// The same as a URL, which `psql` understands as well.
    pub fn url(&self, database: &str) -> String {
        // The folder may lie anywhere that a person has named, and `&`, `%` or a space end a value or begin an escape.
        let host: String = self.socket_dir.as_os_str().as_encoded_bytes().iter().map(escaped).collect();
        format!("postgresql:///{database}?host={host}&user={}", settings::ROLE)
    }

    /// The programs that run.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The process id of the server, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Waits until the server has ended, and says how. While it is wanted, that is a failure: see [`Self::restart`].
    pub async fn exited(&self) -> ExitStatus {
        self.process.exited().await
    }

    /// Begins the server's log anew when it has grown too long; to be called now and then.
    ///
    /// # Errors
    /// When the old log could not be kept.
    pub fn shorten_log(&self) -> io::Result<()> {
        Log::shorten(&self.data)
    }

    /// Starts the server again on the same socket, so that old configurations and URLs stay good. What still runs of the
    /// old one is ended first.
    ///
    /// # Errors
    /// As [`Self::start`]; it may be called again.
    pub async fn restart(&mut self) -> Result<(), PostgresError> {
        let (process, _) = launch(&self.data, &self.cluster, &self.socket_dir, &self.binaries, &self.user).await?;
        self.process = process;
        Ok(())
    }

    /// Stops the server in order: sessions end, all is written, and the next start has nothing to recover. Bounded: a
    /// server that takes too long is ended without its last checkpoint, which costs the next start a recovery.
    pub async fn stop(self) {
        for (signal, patience) in [(FAST_SHUTDOWN, STOP_PATIENCE), (Signal::SIGQUIT, Duration::from_secs(5))] {
            self.process.signal(signal);
            if let Some(status) = self.process.exited_within(patience).await {
                info!("Postgres stopped ({status})");
                runtime_dir::remove(&self.data, &self.socket_dir);
                return;
            }
            warn!("Postgres did not stop within {} s of {signal}", patience.as_secs());
        }
        self.process.signal(Signal::SIGKILL);
        if self.process.exited_within(KILL_PATIENCE).await.is_none() {
            warn!("Postgres does not even end by {}; it is left to the kernel", Signal::SIGKILL);
        }
    }
}

/// After SIGKILL only a disk that does not answer keeps a process.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Starts the server and waits until it takes connections; the first one is returned.
async fn launch(
    data: &Path,
    cluster: &Path,
    socket_dir: &Path,
    binaries: &Binaries,
    user: &ServerUser,
) -> Result<(Process, Client), PostgresError> {
    leftover::end(cluster).await.map_err(|source| PostgresError::io(cluster, source))?;
    runtime_dir::prepare(socket_dir, user).map_err(|source| PostgresError::io(socket_dir, source))?;
    cluster::configure(cluster, socket_dir, user)?;
    let (log, file) = Log::open(data).map_err(|source| PostgresError::io(data, source))?;
    let postgres = binaries.bin.join("postgres");
    let failed = |source| PostgresError::io(&postgres, source);
    let command = server(&postgres, cluster, user, file).map_err(failed)?;
    let process = Process::spawn(command, "postgres", FAST_SHUTDOWN).await.map_err(failed)?;

    let config = connection(socket_dir, "postgres");
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        let refused = match timeout(CONNECT_PATIENCE, connect(&config)).await {
            Ok(Ok(client)) => return Ok((process, client)),
            Ok(Err(refused)) => Some(refused),
            Err(_) => None,
        };
        if let Some(status) = process.exited_within(POLL).await {
            return Err(PostgresError::Ended { status, path: data.join("postgres.log"), log: log.last_lines() });
        }
        if Instant::now() >= deadline {
            return Err(PostgresError::NotReady {
                waited_s: START_PATIENCE.as_secs(),
                path: data.join("postgres.log"),
                log: log.last_lines(),
                source: refused,
            });
        }
    }
}

/// Sessions end, a checkpoint is written, the next start replays nothing.
const FAST_SHUTDOWN: Signal = Signal::SIGINT;

/// The command that runs `postgres` on `cluster`, its output appended to `log`.
fn server(postgres: &Path, cluster: &Path, user: &ServerUser, log: File) -> io::Result<Command> {
    let setting = |name: &str, file: &str| {
        let mut argument = OsString::from(format!("--{name}="));
        argument.push(cluster.join(file));
        argument
    };
    let mut command = Command::new(postgres);
    command
        .arg("-D")
        .arg(cluster)
        .arg(setting("config_file", "rookery.conf"))
        .arg(setting("hba_file", "rookery_hba.conf"))
        .arg(setting("ident_file", "rookery_ident.conf"))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    user.run(&mut command, FAST_SHUTDOWN);
    Ok(command)
}

/// Between two tries to connect: a start takes about 50 ms.
const POLL: Duration = Duration::from_millis(3);

fn connection(socket_dir: &Path, database: &str) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config.host_path(socket_dir).user(settings::ROLE).dbname(database).connect_timeout(Duration::from_secs(5));
    config
}

/// Connects, with the connection driven by the current runtime.
pub(crate) async fn connect(config: &tokio_postgres::Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    // Its error is also the error of every call of the client.
    tokio::spawn(connection);
    Ok(client)
}

async fn create_missing(client: &Client, databases: &[&str]) -> Result<(), tokio_postgres::Error> {
    let there: HashSet<String> =
        client.query("SELECT datname::text FROM pg_database", &[]).await?.iter().map(|row| row.get(0)).collect();
    for database in databases.iter().filter(|name| !there.contains(**name)) {
        client.batch_execute(&cluster::create_database(database)).await?;
    }
    Ok(())
}

/// A byte of a path in a URL's query.
fn escaped(byte: &u8) -> String {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => char::from(*byte).to_string(),
        other => format!("%{other:02X}"),
    }
}

/// `name` as an SQL identifier.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
