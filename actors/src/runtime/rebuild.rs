//! Shards made anew from what a publisher has, because records of its log were missed for good (rule 5).
//!
//! What a projection knows of another service is compared with that service's rows, and made equal in one write of each shard,
//! which also says up to where in the log that is: the rows and the ends of the logs are of one snapshot. Meanwhile no foreign
//! record is applied to the shard, so none is counted twice and none is missed.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    pin::pin,
};

use futures_util::TryStreamExt;
use tokio_postgres::{Client, Row, types::ToSql};
use uuid::Uuid;

use super::{Runtime, Sweep, Unit, project};
use crate::{
    entity::Failure,
    event::{Source, Topic},
    ids::{Seq, ShardId, shard_of},
    service::Service,
};

/// The name of a session that reads as of one moment. No incarnation's: it holds no locks, and nobody need end it.
const SESSION: &str = "rookery-rebuild";

/// A shard that is to be made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedRebuild {
    /// Of the consumer.
    pub shard: ShardId,
    /// From whose state.
    pub topic: Topic,
    /// The publisher went back to an older state.
    pub restored: bool,
}

/// Shards that are being made anew. Dropped, nothing has happened.
pub(crate) struct Rebuild<S: Service> {
    runtime: Runtime<S>,
    topic: Topic,
    turns: Vec<(ShardId, Sweep)>,
    units: HashMap<ShardId, Unit<S>>,
    own: Client,
    publisher: Client,
    heads: HashMap<ShardId, Seq>,
}

impl<S: Service> Runtime<S> {
    /// Asks for all shards of this service to be made anew from what the publisher of a topic has.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn want_rebuild(&self, topic: Topic, restored: bool) -> Result<(), Failure> {
        let shards: Vec<i16> = (0..self.shards()).map(|shard| ShardId(shard).as_i16()).collect();
        let client = self.inner.database.get().await?;
        let insert =
            "INSERT INTO rebuild (shard, topic, restored) SELECT shard, $2, $3 FROM UNNEST($1::int2[]) AS r(shard) ORDER BY shard
                      ON CONFLICT (shard, topic) DO UPDATE SET restored = rebuild.restored OR excluded.restored";
        client.execute(insert, &[&shards, &topic.service(), &restored]).await?;
        Ok(())
    }

    /// The shards that are still to be made anew, wherever they are served.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn wanted_rebuilds(&self) -> Result<Vec<WantedRebuild>, Failure> {
        let client = self.inner.database.get().await?;
        let rows = client.query("SELECT shard, topic, restored FROM rebuild ORDER BY topic, shard", &[]).await?;
        let wanted = rows.iter().filter_map(|row| {
            let topic = Topic::ALL.into_iter().find(|topic| topic.service() == row.get::<_, &str>(1))?;
            Some(WantedRebuild { shard: ShardId(row.get::<_, i16>(0).unsigned_abs()), topic, restored: row.get(2) })
        });
        Ok(wanted.collect())
    }

    /// Takes the turns of these shards, as far as they are served here, then looks at what the publisher has.
    pub(crate) async fn begin_rebuild<P: Service>(
        &self,
        publisher: &Runtime<P>,
        topic: Topic,
        shards: &[ShardId],
    ) -> Result<Rebuild<S>, Failure> {
        let mut turns = Vec::new();
        for shard in shards {
            match self.sweep(*shard).await {
                Ok(turn) => turns.push((*shard, turn)),
                // Its next owner finds the same row.
                Err(Failure::Moved(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        // Our own rows first: what they stand on, the publisher has had by then.
        let own = snapshot(self).await?;
        let publisher = snapshot(publisher).await?;
        let rows =
            publisher.query("SELECT id, COALESCE((SELECT max(seq) FROM outbox o WHERE o.shard = s.id), 0) FROM shard s", &[]);
        let heads: HashMap<ShardId, Seq> =
            rows.await?.iter().map(|row| (ShardId(row.get::<_, i16>(0).unsigned_abs()), row.get(1))).collect();
        let unit = |shard: &ShardId| {
            let inbox = heads.iter().map(|(shard, head)| (Source { topic, shard: *shard }, *head)).collect();
            (*shard, Unit { inbox, ..Unit::of(self.shards()) })
        };
        let units = turns.iter().map(|(shard, _)| unit(shard)).collect();
        Ok(Rebuild { runtime: self.clone(), topic, turns, units, own, publisher, heads })
    }

    /// Takes away what asked for a rebuild that was done by other means.
    pub(crate) async fn done_rebuilding(&self, topic: Topic, shards: &[ShardId]) -> Result<(), Failure> {
        for shard in shards {
            let unit = Unit { rebuilt: vec![topic], ..Unit::of(self.shards()) };
            match self.commit(*shard, unit).await.map_err(Failure::from) {
                Ok(_) | Err(Failure::Moved(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }
}

impl<S: Service> Rebuild<S> {
    /// What to write for the shard of an id, if it is one of those.
    pub(crate) fn unit(&mut self, id: Uuid) -> Option<&mut Unit<S>> {
        self.units.get_mut(&shard_of(id, self.runtime.shards()))
    }

    /// The units of all the shards.
    pub(crate) fn units(&mut self) -> impl Iterator<Item = (&ShardId, &mut Unit<S>)> {
        self.units.iter_mut()
    }

    /// Where the log of the publisher's shard of this id ended.
    pub(crate) fn head(&self, id: Uuid) -> Seq {
        let shards = u16::try_from(self.heads.len()).unwrap_or(u16::MAX).max(1);
        self.heads.get(&shard_of(id, shards)).copied().unwrap_or(0)
    }

    /// What the publisher has for ids of these shards: the first column is the id.
    pub(crate) async fn published<K: Eq + Hash, V>(
        &self,
        sql: &str,
        read: impl Fn(&Row) -> (K, V),
    ) -> Result<HashMap<K, V>, Failure> {
        self.collect(&self.publisher, sql, read).await
    }

    /// The same of what this service has.
    pub(crate) async fn stored<K: Eq + Hash, V>(
        &self,
        sql: &str,
        read: impl Fn(&Row) -> (K, V),
    ) -> Result<HashMap<K, V>, Failure> {
        self.collect(&self.own, sql, read).await
    }

    async fn collect<K: Eq + Hash, V>(
        &self,
        client: &Client,
        sql: &str,
        read: impl Fn(&Row) -> (K, V),
    ) -> Result<HashMap<K, V>, Failure> {
        let none: [&(dyn ToSql + Sync); 0] = [];
        // Row by row: all the others are let go of at once.
        let mut rows = pin!(client.query_raw(sql, none).await?);
        let mut found = HashMap::new();
        while let Some(row) = rows.try_next().await? {
            if self.units.contains_key(&shard_of(row.get(0), self.runtime.shards())) {
                let (key, value) = read(&row);
                found.insert(key, value);
            }
        }
        Ok(found)
    }

    /// Writes it, shard by shard. `done`: nothing more is to be done for them.
    pub(crate) async fn commit(self, done: bool) -> Result<(), Failure> {
        let Self { runtime, topic, turns, mut units, .. } = self;
        for (shard, turn) in turns {
            let mut unit = units.remove(&shard).expect("every turn has its unit");
            if done {
                unit.rebuilt.push(topic);
            }
            project::prepare(&mut unit);
            match runtime.commit_sweep(turn, unit).await {
                Ok(_) | Err(Failure::Moved(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }
}

/// A session that sees what is committed now, and nothing later. The first question begins it.
async fn snapshot<S: Service>(runtime: &Runtime<S>) -> Result<Client, Failure> {
    // Without deadlines: it goes through all that a shard has.
    let session = runtime.database().session_without_deadlines(SESSION).await;
    let client = session.map_err(|error| Failure::Unavailable(error.describe()))?;
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1").await?;
    Ok(client)
}

/// An id and a number.
pub(crate) fn number(row: &Row) -> (Uuid, i64) {
    (row.get(0), row.get(1))
}

/// By how much the numbers that are wanted differ from those that there are.
pub(crate) fn differences<K: Copy + Eq + Hash + Ord>(wanted: &HashMap<K, i64>, have: &HashMap<K, i64>) -> Vec<(K, i64)> {
    let keys: HashSet<K> = wanted.keys().chain(have.keys()).copied().collect();
    let of = |numbers: &HashMap<K, i64>, key: &K| numbers.get(key).copied().unwrap_or(0);
    let mut changes: Vec<(K, i64)> = keys.into_iter().map(|key| (key, of(wanted, &key) - of(have, &key))).collect();
    changes.retain(|(_, change)| *change != 0);
    changes.sort_unstable();
    changes
}
