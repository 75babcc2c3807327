//! What a node says of itself, written into every database every second: for people, and for `rookery status` on any node.
//! Nothing is decided by it; who owns what, the members and shards say.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use rookery_actors::{
    entity::Failure,
    runtime::{Database, NOT_ON_THE_DISK_YET, Runtime},
    secret::SecretId,
    service::Service,
};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinHandle, time::MissedTickBehavior};

/// Between two reports.
const EVERY: Duration = Duration::from_secs(1);
/// A node that has said nothing for longer is not what it last said.
pub const STALE_AFTER: Duration = Duration::from_secs(3);
/// A database that takes longer hears the next one.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What it does.
    pub roles: Vec<String>,
    /// Where its gateway is reached, if it has one.
    pub gateway: Option<String>,
    /// Its process.
    pub pid: u32,
    /// Since its start.
    pub uptime_s: u64,
    /// The services whose roles it has.
    pub services: BTreeMap<String, ServiceReport>,
    /// The names of the secrets that it recognises; empty: it is of a build up to 0.1.0, which names none.
    #[serde(default)]
    pub secrets: Vec<SecretId>,
}

/// A service on one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Whether the lease holds.
    pub serving: bool,
    /// Shards that are open.
    pub shards: usize,
    /// Entities in memory.
    pub entities: usize,
    /// What they take, in bytes.
    pub bytes: usize,
}

impl ServiceReport {
    /// A service as it is on this node now.
    pub fn of<S: Service>(runtime: &Runtime<S>) -> Self {
        let (entities, bytes) = runtime.loaded();
        Self { serving: runtime.lease().is_valid(), shards: runtime.owned().len(), entities, bytes }
    }
}

/// What a node wants to be taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Serves.
    Live,
    /// Is about to leave.
    Draining,
    /// Was declared dead by whoever saw its process end.
    Dead,
}

impl State {
    /// Its word in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Live => "live",
            State::Draining => "draining",
            State::Dead => "dead",
        }
    }
}

/// A node as a database has it.
#[derive(Clone, Debug)]
pub struct Said {
    /// The node's name.
    pub name: String,
    /// What it was taken for.
    pub state: State,
    /// How long ago it said so.
    pub age: Duration,
    /// What it said.
    pub report: Report,
}

/// All that was said in one database within a day: who is gone for longer is not missed.
///
/// # Errors
/// When the database does not answer.
pub async fn all(database: &Database) -> Result<Vec<Said>, Failure> {
    let client = database.get().await?;
    let rows = client
        .query(
            "SELECT name, state, extract(epoch FROM now() - seen)::float8, info::text FROM node
             WHERE seen > now() - interval '1 day'",
            &[],
        )
        .await?;
    let said = |row: &tokio_postgres::Row| Said {
        name: row.get(0),
        state: match row.get(1) {
            "live" => State::Live,
            "draining" => State::Draining,
            _ => State::Dead,
        },
        age: Duration::try_from_secs_f64(row.get(2)).unwrap_or_default(),
        // Another release may say other things; its name and state are worth showing all the same.
        report: serde_json::from_str(row.get(3)).unwrap_or_default(),
    };
    Ok(rows.iter().map(said).collect())
}

/// Says of a node that its process has ended.
///
/// # Errors
/// When the database does not answer.
pub async fn declare_dead(database: &Database, name: &str) -> Result<(), Failure> {
    database.get().await?.execute("UPDATE node SET state = 'dead' WHERE name = $1", &[&name]).await?;
    Ok(())
}

/// Forgets a node that will not come back.
///
/// # Errors
/// When the database does not answer.
pub async fn forget(database: &Database, name: &str) -> Result<(), Failure> {
    database.get().await?.execute("DELETE FROM node WHERE name = $1", &[&name]).await?;
    Ok(())
}

/// A node's reports at work.
pub struct Reporter {
    state: watch::Sender<Option<State>>,
    task: JoinHandle<()>,
}

impl Reporter {
    /// Reports what `look` sees, until it leaves.
    pub fn start(databases: Vec<Database>, name: String, look: impl Fn() -> Report + Send + 'static) -> Self {
        let (state, mut wanted) = watch::channel(Some(State::Live));
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let state = *wanted.borrow_and_update();
                let report = serde_json::to_string(&look()).expect("a report is plain data");
                let told = databases.iter().map(|database| async {
                    let told = match state {
                        Some(state) => tell(database, &name, state, &report).await,
                        None => forget(database, &name).await,
                    };
                    told.inspect_err(|error| tracing::debug!(%error, "a database does not hear of this node"))
                });
                join_all(told.map(|told| tokio::time::timeout(PATIENCE, told))).await;
                if state.is_none() {
                    return;
                }
                tokio::select! {
                    _ = ticks.tick() => {}
                    _ = wanted.changed() => {}
                }
            }
        });
        Self { state, task }
    }

    /// Says that the node is about to leave.
    pub fn drain(&self) {
        self.state.send_replace(Some(State::Draining));
    }

    /// Takes everything back: a node that stopped in order is no longer part of anything.
    pub async fn leave(self) {
        self.state.send_replace(None);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the reports ended badly");
        }
    }
}

async fn tell(database: &Database, name: &str, state: State, report: &str) -> Result<(), Failure> {
    let tell = format!(
        "INSERT INTO node (name, state, info) SELECT $1, $2, $3::text::jsonb FROM {NOT_ON_THE_DISK_YET}
         ON CONFLICT (name) DO UPDATE SET state = excluded.state, seen = now(), info = excluded.info"
    );
    database.get().await?.execute(&tell, &[&name, &state.as_str(), &report]).await?;
    Ok(())
}
