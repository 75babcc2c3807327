//! Connections to a service's Postgres: a pool for reads, single sessions for those who commit.

use std::{
    error::Error as _,
    io,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use bb8::{ErrorSink, ManageConnection, Pool, PooledConnection, RunError};
use tokio::runtime::Handle;
use tokio_postgres::{Client, Config, config::TargetSessionAttrs, error::SqlState};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    connection::{ConnectError, Connection, READ_WITHIN, STATEMENT_WITHIN, connect_without_deadlines},
    transfer::outcome_is_open,
};
use crate::entity::Failure;

/// How the pool makes its connections.
struct Manager {
    config: Config,
    tls: MakeRustlsConnect,
}

impl ManageConnection for Manager {
    type Connection = Connection;
    type Error = ConnectError;

    async fn connect(&self) -> Result<Connection, ConnectError> {
        Connection::open(&self.config, &self.tls, READ_WITHIN).await
    }

    async fn is_valid(&self, connection: &mut Connection) -> Result<(), ConnectError> {
        Ok(connection.batch_execute("").await?)
    }

    fn has_broken(&self, connection: &mut Connection) -> bool {
        connection.is_closed()
    }
}

/// A checked-out connection. It goes back to the pool when dropped, unless its caller went away in the middle of a statement:
/// then that is cancelled, and it goes back once the server has let go of it, so that nobody else waits for it.
pub struct Pooled(Option<PooledConnection<'static, Manager>>);

impl Deref for Pooled {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Connection {
        self.0.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let owing = self.0.take().filter(|connection| connection.is_owed_an_answer());
        if let Some((connection, runtime)) = owing.zip(Handle::try_current().ok()) {
            runtime.spawn(async move { connection.settle().await });
        }
    }
}

/// In the FROM of a statement: its commit does not wait for the disk, nor keep others waiting who do. For what the next
/// report repeats and what is only a hint; with the server such news may be lost, never what a later commit stands on.
pub const NOT_ON_THE_DISK_YET: &str = "set_config('synchronous_commit', 'off', true)";

/// One service's database.
#[derive(Clone)]
pub struct Database {
    config: Config,
    tls: MakeRustlsConnect,
    pool: Arc<RwLock<Pool<Manager>>>,
    size: PoolSize,
    troubles: Troubles,
}

/// The last trouble of each kind, for callers who would otherwise only see that there is no answer.
#[derive(Clone, Debug, Default)]
struct Troubles(Arc<Mutex<[Option<Noted>; 2]>>);

/// When there was trouble, and which.
type Noted = (Instant, String);

/// The kinds of it.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// There is no connection.
    Connecting,
    /// There is one, and no room for what is written.
    DiskFull,
}

/// Older trouble explains nothing: the pool tries again all the time, and a lease is renewed every second.
const TROUBLE_AGE_MAX: Duration = Duration::from_secs(5);

impl Troubles {
    fn note(&self, trouble: Trouble, reason: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[trouble as usize] = Some((Instant::now(), reason));
    }

    fn recent(&self, trouble: Trouble) -> Option<String> {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = noted[trouble as usize].as_ref().filter(|(at, _)| at.elapsed() < TROUBLE_AGE_MAX);
        recent.map(|(_, reason)| reason.clone())
    }
}

/// The pool tells of every attempt that failed, while those who wait for a connection hear of none.
impl ErrorSink<ConnectError> for Troubles {
    fn sink(&self, error: ConnectError) {
        self.note(Trouble::Connecting, error.describe());
    }

    fn boxed_clone(&self) -> Box<dyn ErrorSink<ConnectError>> {
        Box::new(self.clone())
    }
}

/// How many reading connections, and how long to wait for one.
#[derive(Clone, Copy, Debug)]
pub struct PoolSize {
    /// Connections kept at most.
    pub connections_max: u32,
    /// Longest wait for a free one; the caller hears `Unavailable` after it.
    pub wait_max: Duration,
}

impl Default for PoolSize {
    fn default() -> Self {
        Self { connections_max: 8, wait_max: Duration::from_secs(2) }
    }
}

/// A connection whose other end acknowledges nothing for so long is dead (rule 10): longer than a lease, so that a short cut
/// is nothing but a wait, and far shorter than the quarter of an hour after which the kernel gives up by itself.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A server, or the network before it, that is gone without a word is noticed: while something is on its way to it, and while
/// an answer is waited for. What the URL says goes first; sockets of this machine know nothing of it.
fn notice_silence(config: &mut Config) {
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(SILENCE_MAX);
    }
    if config.get_keepalives_idle() == Config::new().get_keepalives_idle() {
        config.keepalives_idle(SILENCE_MAX / 2).keepalives_interval(SILENCE_MAX / 5).keepalives_retries(3);
    }
}

impl Database {
    /// A pool that connects when it is first used, and only to a server that takes writes: a standby answers with what
    /// was true a while ago (rule 6).
    pub fn new(mut config: Config, name: &str, size: PoolSize) -> Self {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        notice_silence(&mut config);
        let (tls, troubles) = (tls(), Troubles::default());
        let pool = pool(&config, tls.clone(), name, size, &troubles);
        Self { config, tls, pool: Arc::new(RwLock::new(pool)), size, troubles }
    }

    /// Goes on under another name, here and in all clones: whoever ends the sessions of the former one ends none of ours, and
    /// finds ours by the new one (rule 4). What is checked out goes when it is given back.
    pub fn rename(&self, name: &str) {
        let renamed = pool(&self.config, self.tls.clone(), name, self.size, &self.troubles);
        *self.pool.write().expect("no panic under this lock") = renamed;
    }

    /// A connection for reading.
    ///
    /// # Errors
    /// `Failure::Unavailable` when the database does not answer, or all connections stay busy.
    pub async fn get(&self) -> Result<Pooled, Failure> {
        loop {
            let pool = self.pool.read().expect("no panic under this lock").clone();
            let pooled = pool.get_owned().await.map_err(|error| {
                let reason = match error {
                    RunError::User(error) => error.describe(),
                    RunError::TimedOut => self.unreachable().unwrap_or_else(|| "all of them stayed busy".to_owned()),
                };
                Failure::Unavailable(format!("no database connection: {reason}"))
            })?;
            // Sessions that a server ended go back as broken when dropped; without the round trip this much is known.
            if !pooled.is_closed() {
                return Ok(Pooled(Some(pooled)));
            }
        }
    }

    /// Why the last attempts to connect failed, if they did.
    pub fn unreachable(&self) -> Option<String> {
        self.troubles.recent(Trouble::Connecting)
    }

    /// What the server said when it had no room for a write just now, if it did.
    pub fn disk_full(&self) -> Option<String> {
        self.troubles.recent(Trouble::DiskFull)
    }

    /// Takes note of what a write came back with.
    pub fn note(&self, error: &tokio_postgres::Error) {
        if error.code() == Some(&SqlState::DISK_FULL) {
            self.troubles.note(Trouble::DiskFull, describe(error));
        }
    }

    /// A session of one's own, named `name` on the server so that whoever takes over can end it. What it commits is on
    /// the disk, whatever the server's own setting is (rule 6).
    ///
    /// # Errors
    /// What Postgres or the network says.
    pub async fn session(&self, name: &str) -> Result<Connection, ConnectError> {
        let session = Connection::open(&named(&self.config, name), &self.tls, STATEMENT_WITHIN).await?;
        session.batch_execute("SET synchronous_commit = on").await?;
        Ok(session)
    }

    /// The same without deadlines, for migrations: they take as long as they take.
    ///
    /// # Errors
    /// What Postgres or the network says.
    pub async fn session_without_deadlines(&self, name: &str) -> Result<Client, ConnectError> {
        let session = connect_without_deadlines(&named(&self.config, name), &self.tls).await?;
        session.batch_execute("SET synchronous_commit = on").await?;
        Ok(session)
    }
}

/// The same under a name, by which sessions are found on the server.
fn named(config: &Config, name: &str) -> Config {
    let mut config = config.clone();
    config.application_name(name).connect_timeout(Duration::from_secs(2));
    config
}

fn pool(config: &Config, tls: MakeRustlsConnect, name: &str, size: PoolSize, troubles: &Troubles) -> Pool<Manager> {
    Pool::builder()
        .error_sink(Box::new(troubles.clone()))
        .max_size(size.connections_max)
        .connection_timeout(size.wait_max)
        // A round trip per checkout would double the cost of a read; a dead connection shows on use.
        .test_on_check_out(false)
        .build_unchecked(Manager { config: named(config, name), tls })
}

/// Server certificates are checked against the system's roots; unix sockets never get here.
fn tls() -> MakeRustlsConnect {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default TLS versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    MakeRustlsConnect::new(config)
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        if is_own_fault(&error) { Failure::Refused(describe(&error)) } else { Failure::Unavailable(describe(&error)) }
    }
}

/// Whether a statement failed for the values that it carried or came upon: it would fail again, and others do not.
pub(crate) fn is_own_fault(error: &tokio_postgres::Error) -> bool {
    // 21: more rows than may be; 22: a value; 23: a constraint; 54: a limit of the server; P0: raised by a trigger of ours.
    const CLASSES: [&str; 5] = ["21", "22", "23", "54", "P0"];
    match error.as_db_error() {
        // Of the same class as an index entry that is too large.
        Some(db) if db.message().contains("wraparound") => false,
        Some(db) => CLASSES.iter().any(|class| db.code().code().starts_with(class)),
        // It was never sent: a value that does not fit into a message.
        None => !outcome_is_open(error),
    }
}

/// The message of the server or of the network, without the values that a statement carried.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{}: {}", db.code().code(), db.message()),
        // The network's own words: without them a refused connection is "error connecting to server".
        None => match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_is_refused_is_named_as_such() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut config = Config::new();
        config.host("127.0.0.1").port(port).user("x").dbname("x");
        let database = Database::new(config, "test", PoolSize { connections_max: 1, wait_max: Duration::from_millis(300) });
        assert_eq!(database.unreachable(), None, "nobody has tried yet");
        let Err(Failure::Unavailable(reason)) = database.get().await else { panic!("nobody listens there") };
        assert!(reason.contains("Connection refused"), "{reason}");
        assert!(database.unreachable().is_some_and(|reason| reason.contains("Connection refused")));
    }

    #[tokio::test]
    async fn silence_is_noticed_unless_the_url_says_otherwise() {
        let of = |url: &str| Database::new(url.parse().unwrap(), "a test", PoolSize::default()).config;
        let config = of("postgresql://db.example.org/posts");
        assert_eq!(config.get_tcp_user_timeout(), Some(&SILENCE_MAX));
        assert!(config.get_keepalives_idle() < SILENCE_MAX);
        let config = of("postgresql://db.example.org/posts?tcp_user_timeout=3&keepalives_idle=60");
        assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_secs(3)));
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(60));
    }
}
