//! Connections to a service's Postgres: a pool for reads, single sessions for those who commit.

use std::{sync::Arc, time::Duration};

use bb8::{Pool, PooledConnection};
use bb8_postgres::PostgresConnectionManager;
use tokio_postgres::{Client, Config, config::TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::entity::Failure;

type Manager = PostgresConnectionManager<MakeRustlsConnect>;

/// A checked-out connection; goes back to the pool when dropped.
pub type Pooled<'a> = PooledConnection<'a, Manager>;

/// In the FROM of a statement: its commit does not wait for the disk, nor keep others waiting who do. For what the next
/// report repeats and what is only a hint; with the server such news may be lost, never what a later commit stands on.
pub const NOT_ON_THE_DISK_YET: &str = "set_config('synchronous_commit', 'off', true)";

/// One service's database.
#[derive(Clone)]
pub struct Database {
    config: Config,
    tls: MakeRustlsConnect,
    pool: Pool<Manager>,
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

impl Database {
    /// A pool that connects when it is first used, and only to a server that takes writes: a standby answers with what
    /// was true a while ago (rule 6).
    pub fn new(mut config: Config, name: &str, size: PoolSize) -> Self {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        let tls = tls();
        let mut pooled = config.clone();
        pooled.application_name(name).connect_timeout(Duration::from_secs(2));
        let manager = PostgresConnectionManager::new(pooled, tls.clone());
        let pool = Pool::builder()
            .max_size(size.connections_max)
            .connection_timeout(size.wait_max)
            // A round trip per checkout would double the cost of a read; a dead connection shows on use.
            .test_on_check_out(false)
            .build_unchecked(manager);
        Self { config, tls, pool }
    }

    /// A connection for reading.
    ///
    /// # Errors
    /// `Failure::Unavailable` when the database does not answer, or all connections stay busy.
    pub async fn get(&self) -> Result<Pooled<'_>, Failure> {
        loop {
            let pooled =
                self.pool.get().await.map_err(|error| Failure::Unavailable(format!("no database connection: {error}")))?;
            // Sessions that a server ended go back as broken when dropped; without the round trip this much is known.
            if !pooled.is_closed() {
                return Ok(pooled);
            }
        }
    }

    /// A session of one's own, named `name` on the server so that whoever takes over can end it. What it commits is on
    /// the disk, whatever the server's own setting is (rule 6).
    ///
    /// # Errors
    /// What Postgres or the network says.
    pub async fn session(&self, name: &str) -> Result<Client, tokio_postgres::Error> {
        let mut config = self.config.clone();
        config.application_name(name).connect_timeout(Duration::from_secs(2));
        let (client, connection) = config.connect(self.tls.clone()).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a database session ended");
            }
        });
        client.batch_execute("SET synchronous_commit = on").await?;
        Ok(client)
    }
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
        Failure::Unavailable(describe(&error))
    }
}

/// The message of the server or of the network, without the values that a statement carried.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{}: {}", db.code().code(), db.message()),
        None => error.to_string(),
    }
}
