//! What waits in the logs of a service: compared with the outbox itself, not with what a reader believes.

use std::time::Duration;

use jiff::Timestamp;

use super::Runtime;
use crate::{
    entity::Failure,
    ids::{Seq, ShardId},
    service::Service,
};

/// The oldest record that somebody does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Of which shard's log.
    pub shard: ShardId,
    /// Its position there.
    pub seq: Seq,
    /// When it was committed.
    pub at: Timestamp,
}

impl Waiting {
    /// For how long it has waited, by this machine's time of day.
    pub fn age(&self) -> Duration {
        Duration::try_from(Timestamp::now().duration_since(self.at)).unwrap_or_default()
    }
}

// The key of the outbox finds the next record of each shard; what was trimmed every reader has.
const NEXT: &str =
    "CROSS JOIN LATERAL (SELECT seq, at FROM outbox WHERE shard = p.shard AND seq > p.position ORDER BY seq LIMIT 1) o
    ORDER BY o.at LIMIT 1";

impl<S: Service> Runtime<S> {
    /// The oldest record after these positions, one for each shard, as the database has it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn oldest_after(&self, positions: &[(ShardId, Seq)]) -> Result<Option<Waiting>, Failure> {
        let (shards, seqs): (Vec<i16>, Vec<Seq>) = positions.iter().map(|(shard, seq)| (shard.as_i16(), *seq)).unzip();
        let client = self.inner.database.get().await?;
        let sql = format!("SELECT p.shard, o.seq, o.at FROM UNNEST($1::int2[], $2::int8[]) AS p(shard, position) {NEXT}");
        Ok(client.query_opt(&sql, &[&shards, &seqs]).await?.as_ref().map(waiting))
    }

    /// The oldest record of the shards that are served here which Kafka is not known to have.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn oldest_unrelayed(&self) -> Result<Option<Waiting>, Failure> {
        let shards: Vec<i16> = self.owned().iter().map(|(shard, ..)| shard.as_i16()).collect();
        let client = self.inner.database.get().await?;
        let sql = format!(
            "SELECT p.shard, o.seq, o.at
             FROM (SELECT u.shard, COALESCE(r.seq, 0) AS position
                   FROM UNNEST($1::int2[]) AS u(shard) LEFT JOIN relayed r ON r.shard = u.shard) p {NEXT}"
        );
        Ok(client.query_opt(&sql, &[&shards]).await?.as_ref().map(waiting))
    }
}

fn waiting(row: &tokio_postgres::Row) -> Waiting {
    Waiting { shard: ShardId(row.get::<_, i16>(0).unsigned_abs()), seq: row.get(1), at: row.get(2) }
}
