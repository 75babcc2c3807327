//! The four databases: configured ones, and the private Postgres for the rest.

use std::time::{Duration, Instant};

use anyhow::Context;
use rookery_actors::{
    episodes,
    runtime::{self, PoolSize},
};
use tokio::sync::Mutex;
use tokio_postgres::config::Host;

use crate::{
    config::{Config, DatabaseUrl, Role},
    migrate::{self, Applied, Database},
    postgres::{DataDir, EmbeddedPostgres},
};

/// Between two looks at the length of the private Postgres' log.
const SHORTEN_EVERY: Duration = Duration::from_secs(10);

/// Where the databases are.
pub struct Databases {
    embedded: Mutex<Option<EmbeddedPostgres>>,
    configs: Vec<(Database, tokio_postgres::Config)>,
}

impl Databases {
    /// Starts the private Postgres for the databases that were given no URL, if there are any.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn open(config: &Config, data: &DataDir) -> anyhow::Result<Self> {
        let without: Vec<&str> =
            Database::ALL.iter().filter(|of| url(config, **of).is_none()).map(|database| database.name()).collect();
        let embedded = if without.is_empty() { None } else { Some(EmbeddedPostgres::start(data, &without).await?) };
        Ok(Self::with(config, embedded))
    }

    /// Those of a configuration that names all of them, see [`Config::has_private_database`].
    pub fn configured(config: &Config) -> Self {
        Self::with(config, None)
    }

    fn with(config: &Config, embedded: Option<EmbeddedPostgres>) -> Self {
        let place = |database: &Database| match (url(config, *database), &embedded) {
            (Some(url), _) => url.postgres(),
            (None, Some(embedded)) => embedded.config(database.name()),
            (None, None) => unreachable!("a database without a URL has the private Postgres"),
        };
        let configs = Database::ALL.iter().map(|database| (*database, place(database))).collect();
        Self { embedded: Mutex::new(embedded), configs }
    }

    /// How to connect to one of them.
    pub fn config(&self, wanted: Database) -> tokio_postgres::Config {
        let found = self.configs.iter().find(|(database, _)| *database == wanted);
        found.expect("every service has a database").1.clone()
    }

    /// How to connect to each of them.
    pub fn configs(&self) -> Vec<tokio_postgres::Config> {
        self.configs.iter().map(|(_, config)| config.clone()).collect()
    }

    /// The URLs of the databases that the private Postgres holds, for other processes of this user.
    pub async fn private_urls(&self, config: &Config) -> Vec<(Database, String)> {
        let embedded = self.embedded.lock().await;
        let of = |database: &Database| Some((*database, embedded.as_ref()?.url(database.name())));
        Database::ALL.iter().filter(|database| url(config, **database).is_none()).filter_map(of).collect()
    }

    /// Brings all of them to this build's schema, and says what that took.
    pub async fn migrate(&self) -> Vec<(Database, anyhow::Result<Vec<Applied>>)> {
        let all = self.configs.iter().map(|(database, config)| async move {
            let size = PoolSize { connections_max: 1, ..PoolSize::default() };
            let session =
                runtime::Database::new(config.clone(), "migrate", size).session_without_deadlines("rookery migrate").await;
            let at = place(config);
            let outcome = match session {
                Ok(mut client) => migrate::run(&mut client, *database)
                    .await
                    .with_context(|| format!("cannot migrate the {database} database ({at})")),
                Err(error) => Err(error).with_context(|| format!("cannot reach the {database} database ({at})")),
            };
            (*database, outcome)
        });
        futures_util::future::join_all(all).await
    }

    /// As [`Self::migrate`], for whoever starts on them.
    ///
    /// # Errors
    /// The first database that cannot be reached, or brought there.
    pub async fn ready(&self) -> anyhow::Result<()> {
        self.migrate().await.into_iter().try_for_each(|(_, outcome)| outcome.map(drop))
    }

    /// Brings the private Postgres back when it dies; ends when it cannot for some minutes.
    pub async fn watch(&self) {
        let mut embedded = self.embedded.lock().await;
        let Some(postgres) = embedded.as_mut() else {
            return std::future::pending().await;
        };
        loop {
            let status = tokio::select! {
                status = postgres.exited() => status,
                () = tokio::time::sleep(SHORTEN_EVERY) => {
                    if let Err(error) = postgres.shorten_log() {
                        episodes::warn("the log of the private Postgres cannot be kept", "", &error);
                    }
                    continue;
                }
            };
            tracing::error!(%status, "the private Postgres died, starting it again");
            if !restarted(postgres).await {
                return;
            }
        }
    }

    /// Stops the private Postgres.
    pub async fn stop(self) {
        if let Some(postgres) = self.embedded.into_inner() {
            postgres.stop().await;
        }
    }
}

/// How long the private Postgres is started again and again: what is in its way may go, a disk that is full or a machine that
/// has no memory left.
const RESTART_WITHIN: Duration = Duration::from_secs(300);
/// Between two tries: the first pause, which doubles, and the longest.
const RESTART_PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(15)];

/// Whether the private Postgres runs again.
async fn restarted(postgres: &mut EmbeddedPostgres) -> bool {
    let (began, [mut pause, pause_max]) = (Instant::now(), RESTART_PAUSES);
    loop {
        let error = match postgres.restart().await {
            Ok(()) => return true,
            Err(error) => format!("{:#}", anyhow::Error::from(error)),
        };
        if began.elapsed() >= RESTART_WITHIN {
            tracing::error!(error, "the private Postgres does not start again");
            return false;
        }
        tracing::error!(error, "the private Postgres does not start, trying again in {} s", pause.as_secs());
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(pause_max);
    }
}

/// Where a database is, for people: its servers and its name, never a password.
pub(crate) fn place(config: &tokio_postgres::Config) -> String {
    let ports = config.get_ports();
    let server = |(n, host): (usize, &Host)| match host {
        Host::Tcp(name) => {
            // One port stands for all hosts.
            let port = ports.get(n).or(ports.first()).copied().unwrap_or(POSTGRES_PORT);
            if name.contains(':') { format!("[{name}]:{port}") } else { format!("{name}:{port}") }
        }
        Host::Unix(folder) => folder.display().to_string(),
    };
    let addresses = config.get_hostaddrs();
    let servers: Vec<String> = match config.get_hosts() {
        [] => addresses.iter().enumerate().map(|(n, address)| server((n, &Host::Tcp(address.to_string())))).collect(),
        hosts => hosts.iter().enumerate().map(server).collect(),
    };
    let name = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("{}, database {name:?}", servers.join(" or "))
}

/// Unless another is given.
const POSTGRES_PORT: u16 = 5432;

fn url(config: &Config, database: Database) -> Option<&DatabaseUrl> {
    let role = match database {
        Database::Users => Role::Users,
        Database::Posts => Role::Posts,
        Database::Comments => Role::Comments,
        Database::Search => Role::Search,
    };
    config.services.of(role)?.database_url.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_named_by_its_place_and_not_by_its_password() {
        for (url, named) in [
            ("postgres://u:hunter2@db.example/users", "db.example:5432, database \"users\""),
            ("postgres://u:hunter2@db.example:6000/users?sslmode=require", "db.example:6000, database \"users\""),
            ("postgres://u:hunter2@a:1,b:2/users", "a:1 or b:2, database \"users\""),
            ("host=::1 port=7 user=u password=hunter2", "[::1]:7, database \"u\""),
            ("postgresql:///posts?host=/run/pg&user=rookery", "/run/pg, database \"posts\""),
        ] {
            assert_eq!(place(&url.parse().unwrap()), named);
        }
    }
}
