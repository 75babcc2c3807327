//! Which history of a log a position belongs to: a database that was put back to an older state goes on differently from
//! there, under the same positions (rule 5).
//!
//! Every tenure begins with an epoch record, which names its batch and is never trimmed. So the last epoch record up to a
//! position names the history of what was read there: it is another in a log that went back to before it.

use std::collections::HashMap;

use uuid::Uuid;

use super::{NOT_ON_THE_DISK_YET, Runtime};
use crate::{
    entity::Failure,
    event::{Source, Topic},
    ids::{Seq, ShardId},
    service::Service,
};

/// How far a source shard was carried, as the consumer's own database knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Of the publisher.
    pub shard: ShardId,
    /// All targets have what is up to here.
    pub position: Seq,
    /// The history of the log that it was read from; none: not known.
    pub history: Option<Uuid>,
}

impl Carried {
    /// Whether the log has another history at this position by now; where either is not known, it has not.
    pub fn is_of_another(&self, found: Option<Uuid>) -> bool {
        self.history.zip(found).is_some_and(|(read, found)| read != found)
    }
}

impl<S: Service> Runtime<S> {
    /// The histories of our own log at these positions; those that it does not reach, or that have none, are left out.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn histories(&self, positions: &[(ShardId, Seq)]) -> Result<HashMap<(ShardId, Seq), Uuid>, Failure> {
        let (shards, seqs): (Vec<i16>, Vec<Seq>) = positions.iter().map(|(shard, seq)| (shard.as_i16(), *seq)).unzip();
        let client = self.inner.database.get().await?;
        let rows = client
            .query(
                "SELECT p.shard, p.position, e.batch FROM UNNEST($1::int2[], $2::int8[]) AS p(shard, position)
                 CROSS JOIN LATERAL (SELECT batch FROM outbox o WHERE o.shard = p.shard AND o.seq <= p.position AND o.type = 'epoch'
                                     ORDER BY o.seq DESC LIMIT 1) e
                 WHERE p.position <= (SELECT max(seq) FROM outbox o WHERE o.shard = p.shard) AND e.batch IS NOT NULL",
                &[&shards, &seqs],
            )
            .await?;
        let known = |row: &tokio_postgres::Row| ((ShardId(row.get::<_, i16>(0).unsigned_abs()), row.get(1)), row.get(2));
        Ok(rows.iter().map(known).collect())
    }

    /// How far the bridges from a log into this service came, as this service's database knows it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn carried(&self, topic: Topic) -> Result<Vec<Carried>, Failure> {
        let client = self.inner.database.get().await?;
        let rows = client.query("SELECT source, position, history FROM carried", &[]).await?;
        let carried = rows.iter().filter_map(|row| {
            let source: Source = row.get::<_, &str>(0).parse().ok()?;
            (source.topic == topic).then(|| Carried { shard: source.shard, position: row.get(1), history: row.get(2) })
        });
        Ok(carried.collect())
    }

    /// Notes how far they came. One that is lost with the server is an earlier one, as those of consumers are.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn note_carried(&self, topic: Topic, carried: &[Carried]) -> Result<(), Failure> {
        let mut carried = carried.to_vec();
        carried.sort_unstable_by_key(|carried| carried.shard);
        let sources: Vec<String> = carried.iter().map(|carried| Source { topic, shard: carried.shard }.to_string()).collect();
        let positions: Vec<Seq> = carried.iter().map(|carried| carried.position).collect();
        let histories: Vec<Option<Uuid>> = carried.iter().map(|carried| carried.history).collect();
        let client = self.inner.database.get().await?;
        let upsert = format!(
            "INSERT INTO carried (source, position, history)
             SELECT source, position, history
             FROM UNNEST($1::text[], $2::int8[], $3::uuid[]) WITH ORDINALITY AS r(source, position, history, nr),
                  {NOT_ON_THE_DISK_YET} ORDER BY nr
             ON CONFLICT (source) DO UPDATE SET position = excluded.position, history = excluded.history"
        );
        client.execute(&upsert, &[&sources, &positions, &histories]).await?;
        Ok(())
    }
}
