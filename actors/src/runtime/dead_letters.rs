//! Dead letters: what could not be applied, to look at and to apply again (rule 18).

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{DeadLetter, Inner, ProjectError, Runtime, Unit, project};
use crate::{
    entity::Failure,
    event::{Record, Source},
    ids::{Seq, ShardId},
    service::{Foreign, Service},
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

/// Which letters to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct LetterFilter {
    /// Those from one log; none: from all.
    pub source: Option<Source>,
    /// Those of this position; none: of all.
    pub seq: Option<Seq>,
    /// Those that follow this one.
    pub after: Option<(Source, Seq, ShardId)>,
}

/// The oldest letters of all shards that pass the filter, in the order in which they are to be replayed: of one source, by its
/// order.
pub(crate) async fn list<S: Service>(
    inner: &Inner<S>,
    filter: &LetterFilter,
    limit: usize,
) -> Result<Vec<StoredLetter>, Failure> {
    let client = inner.database.get().await?;
    let count = i64::try_from(limit).unwrap_or(i64::MAX);
    let source = filter.source.map(|source| source.to_string());
    let (after, after_seq, after_shard) = match filter.after {
        Some((source, seq, shard)) => (Some(source.to_string()), seq, shard.as_i16()),
        None => (None, 0, 0),
    };
    let select = format!(
        "SELECT {COLUMNS} FROM dead_letter WHERE ($2::text IS NULL OR source = $2) AND ($3::int8 IS NULL OR seq = $3)
         AND ($4::text IS NULL OR (source, seq, shard) > ($4, $5::int8, $6::int2)) ORDER BY source, seq, shard LIMIT $1"
    );
    let rows = client.query(&select, &[&count, &source, &filter.seq, &after, &after_seq, &after_shard]).await?;
    rows.iter().map(letter).collect()
}

/// Applies a letter's record now and takes the letter away, in one transaction.
///
/// A letter whose record could not be read at the time lies in the shard of its key, which it need not concern. The shards that
/// it does concern are given it first, and apply it once it is gone from there: so none of them is given it a second time.
pub(crate) async fn replay<S: Service>(
    runtime: &Runtime<S>,
    shard: ShardId,
    source: Source,
    seq: Seq,
) -> Result<bool, ProjectError> {
    let elsewhere = {
        let inner = &runtime.inner;
        // One at a time: two replays of one letter would both find it and apply it twice. A former owner is fenced.
        let _turn = inner.replaying.lock().await;
        let epoch = project::serving(inner, shard)?;
        // A replay whose caller went away may still be on its way to the database: then its letter is about to go.
        inner.shards[shard.index()].settled().await;
        let found = find(inner, source, seq).await?;
        let Some(letter) = found.iter().find(|letter| letter.shard == shard) else { return Ok(false) };
        let StoredLetter { kind, key, payload, at, .. } = letter.clone();
        // The epoch and the trace of the record are not kept; no projection reads them.
        let record = Arc::new(Record { seq, epoch: 0, key, kind, payload, traceparent: None, at });
        let foreign = Foreign { source, record: &record, replayed: true };
        let targets = project::concerned(inner, &foreign)?;
        let strays = |letter: &StoredLetter| !targets.contains(&letter.shard);
        let mut unit = Unit { replayed: vec![(source, seq)], ..Unit::of(inner.settings.shards) };
        if !targets.is_empty() && strays(letter) {
            let letter = DeadLetter { source, record, reason: letter.reason.clone() };
            for target in &targets {
                runtime.readdress(*target, &letter).await?;
            }
            project::commit(inner, shard, epoch, unit).await?;
            targets
        } else if let Some(stray) = found.iter().find(|letter| !targets.is_empty() && strays(letter)) {
            vec![stray.shard]
        } else {
            project::project(inner, shard, &foreign, &mut unit)?;
            project::commit(inner, shard, epoch, unit).await?;
            Vec::new()
        }
    };
    for shard in elsewhere {
        replay_there(runtime, shard, source, seq).await?;
    }
    Ok(true)
}

fn replay_there<S: Service>(
    runtime: &Runtime<S>,
    shard: ShardId,
    source: Source,
    seq: Seq,
) -> BoxFuture<'_, Result<bool, ProjectError>> {
    runtime.replay(shard, source, seq).boxed()
}

/// The letters of a record, in all shards.
async fn find<S: Service>(inner: &Inner<S>, source: Source, seq: Seq) -> Result<Vec<StoredLetter>, Failure> {
    list(inner, &LetterFilter { source: Some(source), seq: Some(seq), after: None }, inner.shards.len()).await
}

fn letter(row: &Row) -> Result<StoredLetter, Failure> {
    let source: &str = row.get(1);
    Ok(StoredLetter {
        shard: ShardId(row.get::<_, i16>(0).unsigned_abs()),
        source: source.parse().map_err(|error| Failure::Refused(format!("a stored dead letter does not parse: {error}")))?,
        seq: row.get(2),
        kind: Arc::from(row.get::<_, &str>(3)),
        key: row.get(4),
        payload: row.get::<_, Option<&str>>(5).map(Arc::from),
        reason: row.get(6),
        at: row.get(7),
    })
}
