//! What one service's database says of the cluster: members, shards, and what the nodes say of themselves.

use std::time::{Duration, Instant};

use rookery_actors::{
    entity::Failure,
    ids::{Epoch, Incarnation, Seq, ShardId},
    runtime::Database,
};
use uuid::Uuid;

use crate::report::{self, Said};

/// A database that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(1);

/// A database's view.
pub(super) struct Directory {
    pub(super) members: Vec<Member>,
    pub(super) shards: Vec<Shard>,
    pub(super) nodes: Vec<Said>,
    /// Records in the dead letters.
    pub(super) dead_letters: u64,
    /// How long it took to answer the first question.
    pub(super) latency: Duration,
}

/// A member that is not dead.
pub(super) struct Member {
    pub(super) incarnation: Incarnation,
    pub(super) node: String,
    pub(super) draining: bool,
}

/// A shard, with names in place of incarnations.
pub(super) struct Shard {
    pub(super) id: ShardId,
    pub(super) epoch: Epoch,
    /// None: nobody who lives.
    pub(super) owner: Option<String>,
    /// Who it is on its way to.
    pub(super) target: Option<String>,
    /// The last record of its log.
    pub(super) head: Seq,
    /// How far its slowest consumer has come; none: nobody reads it.
    pub(super) place: Option<Seq>,
}

// By the index of the log for each shard: an aggregate over all of it would read it.
const SHARDS: &str = "
    SELECT s.id, s.epoch, owner.node, target.node,
           COALESCE((SELECT seq FROM outbox o WHERE o.shard = s.id ORDER BY seq DESC LIMIT 1), 0),
           read.position
    FROM shard s
    LEFT JOIN (SELECT shard, min(position) AS position FROM consumer GROUP BY shard) read ON read.shard = s.id
    LEFT JOIN member owner ON owner.incarnation = s.owner AND owner.state <> 'dead'
    LEFT JOIN member target ON target.incarnation = s.target AND target.state <> 'dead'
    ORDER BY s.id";

/// Asks a database.
///
/// # Errors
/// When it does not answer in time.
pub(super) async fn ask(database: &Database) -> Result<Directory, Failure> {
    match tokio::time::timeout(PATIENCE, read(database)).await {
        Ok(read) => read,
        Err(_) => Err(Failure::Unavailable("the database did not answer in time".to_owned())),
    }
}

async fn read(database: &Database) -> Result<Directory, Failure> {
    let began = Instant::now();
    let client = database.get().await?;
    let members = client.query("SELECT incarnation, node, state FROM member WHERE state <> 'dead' ORDER BY node", &[]).await?;
    let latency = began.elapsed();
    let shards = client.query(SHARDS, &[]).await?;
    let letters: i64 = client.query_one("SELECT count(*) FROM dead_letter", &[]).await?.get(0);
    // A pool of one connection is enough.
    drop(client);
    Ok(Directory {
        members: members
            .iter()
            .map(|row| Member {
                incarnation: Incarnation(row.get::<_, Uuid>(0)),
                node: row.get(1),
                draining: row.get::<_, &str>(2) == "draining",
            })
            .collect(),
        shards: shards
            .iter()
            .map(|row| Shard {
                id: ShardId(row.get::<_, i16>(0).unsigned_abs()),
                epoch: row.get(1),
                owner: row.get(2),
                target: row.get(3),
                head: row.get(4),
                place: row.get(5),
            })
            .collect(),
        nodes: report::all(database).await?,
        dead_letters: letters.unsigned_abs(),
        latency,
    })
}
