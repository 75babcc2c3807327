//! The end of a shard's log in memory: who follows it closely costs the database nothing.

use std::{collections::VecDeque, sync::Arc};

use uuid::Uuid;

use super::{Inner, activation, commit_batch::Positioned};
use crate::{
    entity::Failure,
    event::{EPOCH, Record},
    ids::{Epoch, Seq, ShardId},
    service::Service,
};

/// Consecutive records up to the head.
#[derive(Default)]
pub(crate) struct Tail {
    records: VecDeque<Arc<Record>>,
    bytes: usize,
}

impl Tail {
    /// Forgets everything, for the log went on elsewhere, and begins with the record of this epoch: whoever has followed
    /// the log up to the move goes on without a question to SQL, for hundreds of shards at once.
    pub(crate) fn begin(&mut self, epoch: Epoch, seq: Seq) {
        let kind = EPOCH.into();
        let record = Record { seq, epoch, key: Uuid::nil(), kind, payload: None, traceparent: None, at: super::now() };
        self.bytes = record.weight();
        self.records.clear();
        self.records.push_back(Arc::new(record));
    }

    pub(crate) fn append(&mut self, records: Positioned, bytes_max: usize) {
        for record in records {
            debug_assert!(self.records.back().is_none_or(|last| last.seq + 1 == record.seq), "the log is gap-free");
            self.bytes += record.weight();
            self.records.push_back(record);
        }
        while self.bytes > bytes_max {
            let Some(first) = self.records.pop_front() else {
                break;
            };
            self.bytes -= first.weight();
        }
    }

    /// The records after `position`, if they are all here.
    fn after(&self, position: Seq, bytes_max: usize) -> Option<Vec<Arc<Record>>> {
        let first = self.records.front()?.seq;
        if position + 1 < first {
            return None;
        }
        let skip = usize::try_from(position + 1 - first).expect("position is not before the first");
        let mut bytes = 0;
        let take = |record: &&Arc<Record>| {
            bytes += record.weight();
            bytes <= bytes_max || bytes == record.weight()
        };
        Some(self.records.iter().skip(skip).take_while(take).cloned().collect())
    }
}

/// The records of a shard after `position`; up to about `bytes_max` of them.
pub(crate) async fn read<S: Service>(
    inner: &Inner<S>,
    shard: ShardId,
    position: Seq,
    bytes_max: usize,
) -> Result<Vec<Arc<Record>>, Failure> {
    let state = &inner.shards[shard.index()];
    let tenure = state.tenure().ok_or_else(|| activation::moved::<S>(shard))?;
    if position >= state.head() {
        return Ok(Vec::new());
    }
    if let Some(records) = state.tail.lock().expect("no panic under this lock").after(position, bytes_max) {
        return Ok(records);
    }
    let records = read_rows(inner, shard, position, bytes_max).await?;
    // Rows beyond the head are committed, but their batch is not in memory yet: leave them for the next time.
    let head = state.head();
    match state.tenure() {
        Some(now) if now == tenure => Ok(records.into_iter().filter(|record| record.seq <= head).collect()),
        _ => Err(activation::moved::<S>(shard)),
    }
}

async fn read_rows<S: Service>(
    inner: &Inner<S>,
    shard: ShardId,
    position: Seq,
    bytes_max: usize,
) -> Result<Vec<Arc<Record>>, Failure> {
    // Payloads are at most 200 kB or so; a page of 500 rows is bounded, and cut to `bytes_max` below.
    let client = inner.database.get().await?;
    let rows = client
        .query(
            "SELECT seq, epoch, key, type, payload, headers, at FROM outbox WHERE shard = $1 AND seq > $2 ORDER BY seq LIMIT 500",
            &[&shard.as_i16(), &position],
        )
        .await?;
    let text = |text: Option<&str>| text.map(Arc::from);
    let mut bytes = 0;
    Ok(rows
        .into_iter()
        .map(|row| {
            Arc::new(Record {
                seq: row.get(0),
                epoch: row.get(1),
                key: row.get(2),
                kind: Arc::from(row.get::<_, &str>(3)),
                payload: text(row.get(4)),
                traceparent: text(row.get(5)),
                at: row.get(6),
            })
        })
        .take_while(|record| {
            bytes += record.weight();
            bytes <= bytes_max || bytes == record.weight()
        })
        .collect())
}
