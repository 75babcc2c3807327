//! The tables that say who owns a shard: members with their leases, shards with their epochs.
//!
//! Every statement here is a compare-and-set; a lost race is an answer, not an error.

use std::time::{Duration, Instant};

use tokio::try_join;
use tokio_postgres::Statement;
use uuid::Uuid;

use super::{BootTime, ConnectError, Connection, database::Database, describe, transfer};
use crate::{
    event::Source,
    ids::{Epoch, Incarnation, Seq, ShardId},
};

/// How long ended sessions are waited for; what holds out longer is met by `lock_timeout`.
const SESSIONS_END_WITHIN: Duration = Duration::from_secs(1);

/// What a member is; dead is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// Renews, owns, may be given shards.
    Live,
    /// Renews, but gives its shards away.
    Draining,
    /// Never comes back under this incarnation.
    Dead,
}

/// One row of `member`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRow {
    /// Its id.
    pub incarnation: Incarnation,
    /// The node's name.
    pub node: String,
    /// Where its link listens; none on a lone node.
    pub address: Option<String>,
    /// How often it has renewed.
    pub renewed: i64,
    /// How long its lease is, as it counts that itself; none: a member of a build up to 0.1.0, which does not say.
    pub lease: Option<Duration>,
    /// What it is.
    pub state: MemberState,
}

/// One row of `shard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardRow {
    /// Its number.
    pub id: ShardId,
    /// Changes of hands so far.
    pub epoch: Epoch,
    /// Who may write.
    pub owner: Option<Incarnation>,
    /// Who it is being handed to.
    pub target: Option<Incarnation>,
}

/// A shard that is ours from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Which.
    pub shard: ShardId,
    /// Its new epoch.
    pub epoch: Epoch,
    /// The position of the epoch record: the last one in the log.
    pub seq: Seq,
    /// No reader has copies that a former owner lent: it called them back and gave the shard away, or there was none.
    pub called_back: bool,
}

/// Why the directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The database did not answer, or said no.
    #[error("the shard directory is unavailable: {}", describe(.0))]
    Database(#[from] tokio_postgres::Error),
    /// The database was made for another number of shards.
    #[error(
        "the {service} database was made for {stored} shards, the configuration says {configured}: the number is fixed, set it back"
    )]
    ShardCount {
        /// Whose database.
        service: &'static str,
        /// What the database says.
        stored: String,
        /// What the configuration says.
        configured: u16,
    },
    /// The database took too long.
    #[error("the shard directory did not answer within {0:?}")]
    Timeout(Duration),
    /// The database gives the committer no session.
    #[error("the database gives no session for commits: {0}")]
    Sessions(String),
    /// Another node has the name, and lives.
    #[error(
        "another node called {node} is alive{}: it has just renewed its membership of {service}; stop it, or give this one another \
         name with --name or ROOKERY__NODE__NAME", .address.as_ref().map(|address| format!(" at {address}")).unwrap_or_default()
    )]
    NameTaken {
        /// In which service it was seen.
        service: &'static str,
        /// The name.
        node: String,
        /// Where its link listens; none on a lone node.
        address: Option<String>,
    },
    /// The incarnation was declared dead; rejoin under a new one.
    #[error("this incarnation was declared dead")]
    Dead,
}

impl From<ConnectError> for DirectoryError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Refused(error) => Self::Database(error),
            ConnectError::Silent(within) => Self::Timeout(within),
        }
    }
}

/// The directory of one service, through a session of its own that no pool can starve.
pub struct Directory {
    pub(crate) client: Connection,
    pub(crate) tag: SessionTag,
    pub(crate) statements: Statements,
    service: &'static str,
}

/// What is asked again and again, or while callers wait for a shard: prepared, it takes one round trip and no planning.
pub(crate) struct Statements {
    renew: Statement,
    members: Statement,
    shards: Statement,
    inbox: Statement,
    pub(crate) untouched: Statement,
    pub(crate) mark: Statement,
    pub(crate) grant: Statement,
}

impl Statements {
    async fn prepare(client: &Connection) -> Result<Self, tokio_postgres::Error> {
        let untouched = transfer::untouched_text();
        let (mark, grant) = (transfer::mark_text(), transfer::grant_text());
        let (renew, members, shards, inbox, untouched, mark, grant) = try_join!(
            client.prepare("UPDATE member SET renewed = renewed + 1 WHERE incarnation = $1 AND state <> 'dead'"),
            client.prepare(
                "SELECT incarnation, node, address, renewed, state, lease_ms FROM member WHERE state <> 'dead' ORDER BY node"
            ),
            client.prepare("SELECT id, epoch, owner, target FROM shard ORDER BY id"),
            client.prepare("SELECT shard, source, position FROM inbox WHERE shard = ANY($1)"),
            client.prepare(&untouched),
            client.prepare(&mark),
            client.prepare(&grant),
        )?;
        Ok(Self { renew, members, shards, inbox, untouched, mark, grant })
    }
}

/// Which session it is on the server, and whose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionTag {
    pub(crate) incarnation: Incarnation,
    pub(crate) pid: i32,
}

impl Directory {
    /// Opens the directory.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn open(database: &Database, service: &'static str, incarnation: Incarnation) -> Result<Self, DirectoryError> {
        let client = database.session(&format!("{service}:{incarnation}")).await?;
        // A lock held by a stopped client must not hold us: fail, end its session, try again (rule 4).
        client.batch_execute("SET lock_timeout = '1s'; SET statement_timeout = '5s'").await?;
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        let statements = Statements::prepare(&client).await?;
        Ok(Self { client, tag: SessionTag { incarnation, pid }, statements, service })
    }

    /// Whose session it is.
    pub fn incarnation(&self) -> Incarnation {
        self.tag.incarnation
    }

    /// Whether the session is gone; open another.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Makes the shards' rows once; checks their number ever after.
    ///
    /// # Errors
    /// [`DirectoryError::ShardCount`] if the configuration changed.
    pub async fn prepare(&self, shards: u16) -> Result<(), DirectoryError> {
        let stored: String = self
            .client
            .query_one(
                "INSERT INTO setting (name, value) VALUES ('shards', $1)
                 ON CONFLICT (name) DO UPDATE SET value = setting.value RETURNING value",
                &[&shards.to_string()],
            )
            .await?
            .get(0);
        if stored != shards.to_string() {
            return Err(DirectoryError::ShardCount { service: self.service, stored, configured: shards });
        }
        let last = i32::from(shards) - 1;
        self.client
            .execute("INSERT INTO shard (id) SELECT generate_series(0, $1::int4)::int2 ON CONFLICT (id) DO NOTHING", &[&last])
            .await?;
        Ok(())
    }

    /// Enters a new incarnation, with the address of its node's link if there are other nodes, and how long its lease is, so that
    /// the others wait for its end; none: they take it for as long as their own.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn join(
        &self,
        incarnation: Incarnation,
        node: &str,
        address: Option<&str>,
        lease: Option<Duration>,
    ) -> Result<(), DirectoryError> {
        let lease_ms = lease.map(|lease| i64::try_from(lease.as_millis()).unwrap_or(i64::MAX));
        self.client
            .execute(
                "INSERT INTO member (incarnation, node, address, renewed, state, lease_ms) VALUES ($1, $2, $3, 0, 'live', $4)",
                &[&incarnation.0, &node, &address, &lease_ms],
            )
            .await?;
        Ok(())
    }

    /// Notes that a member gives its shards away and wants no more, or that it wants some again.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn set_draining(&self, incarnation: Incarnation, draining: bool) -> Result<(), DirectoryError> {
        let state = if draining { "draining" } else { "live" };
        let set = "UPDATE member SET state = $2 WHERE incarnation = $1 AND state <> 'dead'";
        self.client.execute(set, &[&incarnation.0, &state]).await?;
        Ok(())
    }

    /// Renews the lease; when it was sent, for the lease counts from there.
    ///
    /// # Errors
    /// [`DirectoryError::Dead`] if the incarnation was declared dead.
    pub async fn renew(&self, incarnation: Incarnation, within: Duration) -> Result<BootTime, DirectoryError> {
        let sent = BootTime::now();
        match tokio::time::timeout(within, self.client.execute(&self.statements.renew, &[&incarnation.0])).await {
            Ok(Ok(1)) => Ok(sent),
            Ok(Ok(_)) => Err(DirectoryError::Dead),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(DirectoryError::Timeout(within)),
        }
    }

    /// Everybody who is not dead.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn members(&self) -> Result<Vec<MemberRow>, DirectoryError> {
        let rows = self.client.query(&self.statements.members, &[]).await?;
        Ok(rows
            .into_iter()
            .map(|row| MemberRow {
                incarnation: Incarnation(row.get(0)),
                node: row.get(1),
                address: row.get(2),
                renewed: row.get(3),
                state: if row.get::<_, &str>(4) == "live" { MemberState::Live } else { MemberState::Draining },
                lease: row.get::<_, Option<i64>>(5).map(|ms| Duration::from_millis(ms.unsigned_abs())),
            })
            .collect())
    }

    /// All shards.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn shards(&self) -> Result<Vec<ShardRow>, DirectoryError> {
        let rows = self.client.query(&self.statements.shards, &[]).await?;
        Ok(rows
            .into_iter()
            .map(|row| ShardRow {
                id: ShardId(row.get::<_, i16>(0) as u16),
                epoch: row.get(1),
                owner: row.get::<_, Option<Uuid>>(2).map(Incarnation),
                target: row.get::<_, Option<Uuid>>(3).map(Incarnation),
            })
            .collect())
    }

    /// Declares a member dead if it has not renewed since it was seen; whether it is dead now.
    ///
    /// Its sessions are ended first: a stopped client can hold its locks in a statement already sent (rule 4).
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn declare_dead(&self, incarnation: Incarnation, seen: Option<i64>) -> Result<bool, DirectoryError> {
        let alive = "SELECT FROM member WHERE incarnation = $1 AND state <> 'dead' AND ($2::int8 IS NULL OR renewed = $2)";
        // Who has renewed since keeps its sessions: on a busy machine their end would make it late once more.
        if self.client.query_opt(alive, &[&incarnation.0, &seen]).await?.is_none() {
            return Ok(false);
        }
        self.end_sessions(incarnation).await?;
        let count = self
            .client
            .execute(
                "UPDATE member SET state = 'dead' WHERE incarnation = $1 AND state <> 'dead' AND ($2::int8 IS NULL OR renewed = $2)",
                &[&incarnation.0, &seen],
            )
            .await?;
        Ok(count == 1)
    }

    /// Ends every session of an incarnation in this database but our own.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn end_sessions(&self, incarnation: Incarnation) -> Result<(), DirectoryError> {
        let name = format!("{}:{incarnation}", self.service);
        let theirs = "FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = $1 AND pid <> pg_backend_pid()";
        self.client.execute(&format!("SELECT pg_terminate_backend(pid) {theirs}"), &[&name]).await?;
        // Told all at once and then waited for together: the function's own wait looks every 0.1 s, at one after the other.
        let began = Instant::now();
        while began.elapsed() < SESSIONS_END_WITHIN {
            let left: i64 = self.client.query_one(&format!("SELECT count(*) {theirs}"), &[&name]).await?.get(0);
            if left == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// How far a shard has read foreign logs.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn inbox(&self, shards: &[ShardId]) -> Result<Vec<(ShardId, Source, Seq)>, DirectoryError> {
        let ids: Vec<i16> = shards.iter().map(|shard| shard.as_i16()).collect();
        let rows = self.client.query(&self.statements.inbox, &[&ids]).await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| {
                let source = row.get::<_, &str>(1).parse().ok()?;
                Some((ShardId(row.get::<_, i16>(0) as u16), source, row.get(2)))
            })
            .collect())
    }
}
