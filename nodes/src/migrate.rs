//! Brings a service's database to the schema that this build was written for.
//!
//! The SQL lies in `migrations/<service>/V<n>__<name>.sql` and is part of the binary. A file that was released is never
//! changed: refinery compares checksums, and a database that was made by another text is refused.

use std::{fmt, time::Duration};

use tokio_postgres::Client;
use tracing::info;

/// The database of one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Database {
    /// Accounts, sessions, follows.
    Users,
    /// Posts and likes of them.
    Posts,
    /// Comment threads.
    Comments,
    /// Search documents.
    Search,
}

impl Database {
    /// All four.
    pub const ALL: [Database; 4] = [Database::Users, Database::Posts, Database::Comments, Database::Search];

    /// The name of its service, of the database in an embedded Postgres, and of its folder of migrations.
    pub const fn name(self) -> &'static str {
        match self {
            Database::Users => "users",
            Database::Posts => "posts",
            Database::Comments => "comments",
            Database::Search => "search",
        }
    }

    fn history(self) -> refinery::Runner {
        match self {
            Database::Users => users::migrations::runner(),
            Database::Posts => posts::migrations::runner(),
            Database::Comments => comments::migrations::runner(),
            Database::Search => search::migrations::runner(),
        }
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A migration that this run applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its number, unique in its database.
    pub version: i32,
    /// What it does, as its file is named.
    pub name: String,
}

/// Why a database could not be migrated.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A newer build was here already.
    #[error(
        "the {database} database has migration V{version}, this build knows only up to V{known}: start the build that \
         made it, or a newer one"
    )]
    Newer {
        /// Which database.
        database: Database,
        /// What it has.
        version: i32,
        /// The latest of this build.
        known: i32,
    },
    /// It is the database of another service.
    #[error(
        "it holds the tables of {holds}, not those of {database}: the URLs of the two are swapped, or name the same database; see \
         `database_url` in [services.{database}] and [services.{holds}]"
    )]
    OfAnother {
        /// Whose it should be.
        database: Database,
        /// Whose it is.
        holds: Database,
    },
    /// Its text is not Unicode.
    #[error(
        "the {database} database is encoded as {encoding}, and can hold no other letters: make it anew with \
         CREATE DATABASE ... TEMPLATE template0 ENCODING 'UTF8', and copy what it holds"
    )]
    Encoding {
        /// Which database.
        database: Database,
        /// As the server calls it.
        encoding: String,
    },
    /// The history does not fit, or a migration failed. The one that failed left nothing behind, those before it stay.
    #[error("could not migrate the {database} database")]
    Migration {
        /// Which database.
        database: Database,
        /// What refinery says.
        #[source]
        source: refinery::Error,
    },
    /// Another session holds the lock of migrations, and does nothing with it.
    #[error(
        "another process migrates the {database} database and has done nothing for {idle_s} s (session {pid} of the server, \
         {name:?}): if it is gone or hangs, end its session with SELECT pg_terminate_backend({pid})"
    )]
    Held {
        /// Which database.
        database: Database,
        /// The session's process on the server.
        pid: i32,
        /// What the session calls itself.
        name: String,
        /// How long it has been idle, in seconds.
        idle_s: u64,
    },
    /// The database did not answer.
    #[error("could not lock the {database} database for its migration")]
    Lock {
        /// Which database.
        database: Database,
        /// What Postgres says.
        #[source]
        source: tokio_postgres::Error,
    },
}

/// Applies what `database` does not have yet, and says what that was.
///
/// Nodes that start together may all call this: one migrates, the others wait for it and find nothing to do. Give it a
/// connection of its own, not one of a pool: when the future is dropped midway, the lock lives as long as the session.
///
/// # Errors
/// [`MigrateError::Newer`] for a database that a newer build has migrated, [`MigrateError::Encoding`] for one that cannot hold
/// every text; otherwise what refinery or Postgres refused.
pub async fn run(client: &mut Client, database: Database) -> Result<Vec<Applied>, MigrateError> {
    run_behind(client, database, HOLDER_IDLE_MAX).await
}

/// As [`run`], for whoever waits otherwise for a process that holds the lock and does nothing: for `idle_max`. For one that
/// works it waits as long as that takes.
///
/// # Errors
/// As [`run`], and [`MigrateError::Held`].
pub async fn run_behind(client: &mut Client, database: Database, idle_max: Duration) -> Result<Vec<Applied>, MigrateError> {
    // refinery takes no lock: two runs at once would both see an empty history.
    let failed = |source| MigrateError::Lock { database, source };
    let encoding: String = client.query_one("SHOW server_encoding", &[]).await.map_err(failed)?.get(0);
    if encoding != "UTF8" {
        return Err(MigrateError::Encoding { database, encoding });
    }
    lock(client, database, idle_max).await?;
    let outcome = match owner(client).await.map_err(failed)? {
        Some(holds) if holds != database => Err(MigrateError::OfAnother { database, holds }),
        _ => database.history().run_async(client).await.map_err(|source| refused(database, source)),
    };
    let unlocked = client.execute("SELECT pg_advisory_unlock($1)", &[&LOCK]).await;
    let unlimited = client.batch_execute(UNLIMITED_IDLENESS).await;

    let report = outcome?;
    unlocked.map_err(failed)?;
    unlimited.map_err(failed)?;
    Ok(report
        .applied_migrations()
        .iter()
        .map(|migration| Applied { version: migration.version(), name: migration.name().to_owned() })
        .collect())
}

/// The advisory lock's key: "rookery\0" in ASCII. Advisory locks are per database, so one key serves all four.
const LOCK: i64 = i64::from_be_bytes(*b"rookery\0");

/// A process that stands still, or whose machine is gone, would keep the lock for ever: the server ends its session.
const LIMITED_IDLENESS: &str = "SET idle_session_timeout = '60s'; SET idle_in_transaction_session_timeout = '60s'";
const UNLIMITED_IDLENESS: &str = "RESET idle_session_timeout; RESET idle_in_transaction_session_timeout";

/// Longer than the server lets one of this build be idle: who is then still there is of a build that does not limit itself.
const HOLDER_IDLE_MAX: Duration = Duration::from_secs(90);

/// Between two looks whether the lock is free.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The session that holds the lock, and how long it has done nothing, in seconds.
const HOLDER: &str = "
    SELECT a.pid, COALESCE(a.application_name, ''),
           CASE WHEN a.state LIKE 'idle%' THEN extract(epoch FROM clock_timestamp() - a.state_change)::float8 ELSE 0 END
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.classid::int8 << 32 | l.objid::int8 = $1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";

async fn lock(client: &Client, database: Database, idle_max: Duration) -> Result<(), MigrateError> {
    let failed = |source| MigrateError::Lock { database, source };
    client.batch_execute(LIMITED_IDLENESS).await.map_err(failed)?;
    let mut told = false;
    loop {
        let free = client.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await.map_err(failed)?;
        if free.get(0) {
            return Ok(());
        }
        if !told {
            info!(database = database.name(), "another process is migrating the {database} database; waiting for it");
            told = true;
        }
        if let Some(holder) = client.query_opt(HOLDER, &[&LOCK]).await.map_err(failed)? {
            let idle = Duration::try_from_secs_f64(holder.get(2)).unwrap_or_default();
            if idle > idle_max {
                return Err(MigrateError::Held { database, pid: holder.get(0), name: holder.get(1), idle_s: idle.as_secs() });
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The service whose tables a database holds, if it is one of ours: the first migration is the same for all, the second is
/// called after the service.
async fn owner(client: &Client) -> Result<Option<Database>, tokio_postgres::Error> {
    let there: bool = client.query_one("SELECT to_regclass('refinery_schema_history') IS NOT NULL", &[]).await?.get(0);
    if !there {
        return Ok(None);
    }
    let second = client.query_opt("SELECT name FROM refinery_schema_history WHERE version = 2", &[]).await?;
    let name: Option<String> = second.and_then(|row| row.get(0));
    Ok(Database::ALL.into_iter().find(|database| name.as_deref() == Some(database.name())))
}

fn refused(database: Database, source: refinery::Error) -> MigrateError {
    let known = database.history().get_migrations().iter().map(|known| known.version()).max().unwrap_or(0);
    match source.kind() {
        refinery::error::Kind::MissingVersion(missing) if missing.version() > known => {
            MigrateError::Newer { database, version: missing.version(), known }
        }
        _ => MigrateError::Migration { database, source },
    }
}

/// What `embed_migrations!` writes has no docs and is public; a private module each keeps it here.
macro_rules! histories {
    ($($service:ident from $folder:literal),+ $(,)?) => {$(
        mod $service {
            refinery::embed_migrations!($folder);
        }
    )+};
}

histories! {
    users from "../migrations/users",
    posts from "../migrations/posts",
    comments from "../migrations/comments",
    search from "../migrations/search",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_migration_is_called_after_its_service() {
        for database in Database::ALL {
            let named = |migration: &&refinery::Migration| migration.version() == 2 && migration.name() == database.name();
            assert_eq!(database.history().get_migrations().iter().filter(named).count(), 1, "migrations/{database}");
        }
    }

    #[test]
    fn every_history_counts_up_from_one_without_a_gap() {
        for database in Database::ALL {
            let mut versions: Vec<_> = database.history().get_migrations().iter().map(|migration| migration.version()).collect();
            versions.sort_unstable();
            assert_eq!(versions, (1..).take(versions.len()).collect::<Vec<_>>(), "migrations/{database}");
            assert!(!versions.is_empty(), "migrations/{database} is empty");
        }
    }
}
