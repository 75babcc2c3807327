//! Forgets what nobody needs any more: records that every reader has (rule 5), idempotency keys past their day.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{Inner, Unit, committer, describe};
use crate::{
    entity::Failure,
    event::{APPLIED, EPOCH},
    ids::{Seq, ShardId},
    service::Service,
};

/// Rows deleted by one statement at most: it holds locks, and shares the disk with commits.
const ROWS_MAX: i64 = 10_000;

/// What trimming waits for.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Everybody who reads this log; one who never noted a place holds everything back.
    pub consumers: Vec<&'static str>,
    /// Whether Kafka must have it as well.
    pub relayed: bool,
    /// How long a record stays in any case.
    pub records: Duration,
    /// How long an idempotency key is kept; API.md promises 24 h.
    pub idempotency: Duration,
}

/// Trims the shards that are served here; the rows that went.
pub(crate) async fn trim<S: Service>(inner: &Arc<Inner<S>>, retention: &Retention) -> Result<u64, Failure> {
    let mut gone = 0;
    let read = read_by_all(inner, retention).await?;
    cover_last(inner, &read, retention.records).await?;
    for (shard, read) in read {
        loop {
            let rows = forget(inner, shard, read, retention.records).await?;
            gone += rows;
            if rows < ROWS_MAX.unsigned_abs() {
                break;
            }
        }
    }
    gone += forget_keys(inner, retention.idempotency).await?;
    Ok(gone)
}

/// How far every reader has each of our shards.
async fn read_by_all<S: Service>(inner: &Inner<S>, retention: &Retention) -> Result<Vec<(ShardId, Seq)>, Failure> {
    let client = inner.database.get().await?;
    let names: Vec<&str> = retention.consumers.clone();
    let expected = i64::try_from(names.len()).expect("consumers are few");
    let rows = client
        .query(
            "SELECT s.id, LEAST(
                 CASE WHEN c.readers = $3 THEN c.position WHEN $3 = 0 THEN 9223372036854775807 ELSE 0 END,
                 CASE WHEN $4 THEN COALESCE(r.seq, 0) ELSE 9223372036854775807 END)
             FROM shard s
             LEFT JOIN (SELECT shard, count(*) AS readers, min(position) AS position FROM consumer WHERE name = ANY($2)
                        GROUP BY shard) c ON c.shard = s.id
             LEFT JOIN relayed r ON r.shard = s.id
             WHERE s.owner = $1",
            &[&inner.incarnation().0, &names, &expected, &retention.relayed],
        )
        .await?;
    let served = |row: &tokio_postgres::Row| {
        let shard = ShardId(row.get::<_, i16>(0) as u16);
        inner.shards[shard.index()].tenure().map(|_| (shard, row.get::<_, i64>(1)))
    };
    Ok(rows.iter().filter_map(served).filter(|(_, read)| *read > 0).collect())
}

/// The last row of a shard stays, and may be about somebody: in a shard in which nothing happens any more, for ever. Once it
/// is as old as what goes, an empty record follows it, and it goes with the others.
async fn cover_last<S: Service>(inner: &Arc<Inner<S>>, read: &[(ShardId, Seq)], keep: Duration) -> Result<(), Failure> {
    let rows = {
        let client = inner.database.get().await?;
        let sql = "SELECT s.id, last.seq FROM shard s CROSS JOIN LATERAL (
                       SELECT seq, type, at FROM outbox WHERE shard = s.id ORDER BY seq DESC LIMIT 1) last
                   WHERE s.owner = $1 AND last.at < $2 AND last.type NOT IN ($3, $4)";
        client.query(sql, &[&inner.incarnation().0, &ago(keep), &EPOCH, &APPLIED]).await?
    };
    for row in rows {
        let (shard, last) = (ShardId(row.get::<_, i16>(0).unsigned_abs()), row.get::<_, Seq>(1));
        if !read.iter().any(|(of, position)| *of == shard && *position >= last) {
            continue;
        }
        let Some(epoch) = inner.shards[shard.index()].tenure() else { continue };
        let submitted = committer::submit(inner, shard, epoch, Unit::of(inner.settings.shards)).await.map_err(Failure::from)?;
        committer::landed(submitted).await?;
    }
    Ok(())
}

/// One statement: the floor rises with the rows, and only while we own the shard. Epoch records and the last row of
/// the shard stay: the next owner counts from it.
///
/// It walks from the floor to the first record that is young, row by row: a scan for those that are old would look at all that
/// are kept, too.
async fn forget<S: Service>(inner: &Inner<S>, shard: ShardId, read: Seq, keep: Duration) -> Result<u64, Failure> {
    let before = ago(keep);
    let head = inner.shards[shard.index()].head();
    let client = inner.database.get().await?;
    let row = client
        .query_one(
            "WITH RECURSIVE old (seq, at, walked) AS (
                 SELECT floor, '-infinity'::timestamptz, 0::int8 FROM shard WHERE id = $1
                 UNION ALL
                 SELECT next.seq, next.at, old.walked + 1 FROM old CROSS JOIN LATERAL (
                     SELECT seq, at FROM outbox WHERE shard = $1 AND seq > old.seq ORDER BY seq LIMIT 1) next
                 WHERE next.seq <= LEAST($2::int8, $3::int8 - 1) AND next.at < $4 AND old.walked < $5::int8),
             raised AS (
                 UPDATE shard SET floor = (SELECT max(seq) FROM old)
                 WHERE id = $1 AND owner = $6 AND EXISTS (SELECT FROM old WHERE walked > 0) RETURNING floor),
             gone AS (
                 DELETE FROM outbox o USING raised
                 WHERE o.shard = $1 AND o.seq > (SELECT min(seq) FROM old) AND o.seq <= raised.floor AND o.type <> $7 RETURNING 1)
             SELECT count(*) FROM gone",
            &[&shard.as_i16(), &read, &head, &before, &ROWS_MAX, &inner.incarnation().0, &EPOCH],
        )
        .await?;
    Ok(row.get::<_, i64>(0).unsigned_abs())
}

/// Forgets keys past their day, so many at a time.
async fn forget_keys<S: Service>(inner: &Inner<S>, keep: Duration) -> Result<u64, Failure> {
    let shards: Vec<i16> = inner.shards.iter().filter(|shard| shard.tenure().is_some()).map(|shard| shard.id.as_i16()).collect();
    let before = ago(keep);
    let mut gone = 0;
    loop {
        let client = inner.database.get().await?;
        let rows = client
            .execute(
                "DELETE FROM idempotency i USING (
                     SELECT shard, key FROM idempotency WHERE at < $1 AND shard = ANY($2) ORDER BY at LIMIT $3) old
                 WHERE i.shard = old.shard AND i.key = old.key",
                &[&before, &shards, &ROWS_MAX],
            )
            .await
            .map_err(|error| Failure::Unavailable(describe(&error)))?;
        gone += rows;
        if rows < ROWS_MAX.unsigned_abs() {
            return Ok(gone);
        }
    }
}

fn ago(time: Duration) -> Timestamp {
    Timestamp::now() - SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX)
}
