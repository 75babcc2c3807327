//! Dead letters: what could not be applied, to look at and to apply again (rule 18).

use std::sync::Arc;

use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{Inner, ProjectError, Unit, project};
use crate::{
    entity::Failure,
    event::{Record, Source},
    ids::{Seq, ShardId},
    service::Service,
};

/// A record in the dead letters of a service.
#[derive(Clone, Debug)]
pub struct StoredLetter {
    /// The shard of ours that it concerned.
    pub shard: ShardId,
    /// The log that it came from.
    pub source: Source,
    /// Its position there.
    pub seq: Seq,
    /// `post.created`, …
    pub kind: Arc<str>,
    /// The entity.
    pub key: Uuid,
    /// What it carries.
    pub payload: Option<Arc<str>>,
    /// Why it could not be applied.
    pub reason: String,
    /// When it was given up.
    pub at: Timestamp,
}

const COLUMNS: &str = "shard, source, seq, type, key, payload, reason, at";

/// The oldest letters of all shards, in the order in which they are to be replayed: of one source, by its order.
pub(crate) async fn list<S: Service>(inner: &Inner<S>, limit: usize) -> Result<Vec<StoredLetter>, Failure> {
    let client = inner.database.get().await?;
    let count = i64::try_from(limit).unwrap_or(i64::MAX);
    let select = format!("SELECT {COLUMNS} FROM dead_letter ORDER BY source, seq, shard LIMIT $1");
    client.query(&select, &[&count]).await?.iter().map(letter).collect()
}

/// Applies a letter's record now and takes the letter away, in one transaction.
pub(crate) async fn replay<S: Service>(
    inner: &Arc<Inner<S>>,
    shard: ShardId,
    source: Source,
    seq: Seq,
) -> Result<bool, ProjectError> {
    // One at a time: two replays of one letter would both find it and apply it twice. A former owner is fenced.
    let _turn = inner.replaying.lock().await;
    let epoch = project::serving(inner, shard)?;
    // A replay whose caller went away may still be on its way to the database: then its letter is about to go.
    inner.shards[shard.index()].settled().await;
    let found = {
        let client = inner.database.get().await?;
        let select = format!("SELECT {COLUMNS} FROM dead_letter WHERE shard = $1 AND source = $2 AND seq = $3");
        client.query_opt(&select, &[&shard.as_i16(), &source.to_string(), &seq]).await.map_err(Failure::from)?
    };
    let Some(row) = found else { return Ok(false) };
    let StoredLetter { kind, key, payload, at, .. } = letter(&row)?;
    // The epoch and the trace of the record are not kept; no projection reads them.
    let record = Arc::new(Record { seq, epoch: 0, key, kind, payload, traceparent: None, at });
    let mut unit = Unit { replayed: vec![(source, seq)], ..Unit::of(inner.settings.shards) };
    project::project(inner, shard, source, &record, &mut unit)?;
    project::commit(inner, shard, epoch, unit).await.map(|()| true)
}

fn letter(row: &Row) -> Result<StoredLetter, Failure> {
    let source: &str = row.get(1);
    Ok(StoredLetter {
        shard: ShardId(row.get::<_, i16>(0).unsigned_abs()),
        source: source.parse().map_err(|error| Failure::Unavailable(format!("a stored dead letter does not parse: {error}")))?,
        seq: row.get(2),
        kind: Arc::from(row.get::<_, &str>(3)),
        key: row.get(4),
        payload: row.get::<_, Option<&str>>(5).map(Arc::from),
        reason: row.get(6),
        at: row.get(7),
    })
}
