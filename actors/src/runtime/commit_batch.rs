//! What a batch writes: the units that wait, and the one statement that takes them all.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_postgres::{Statement, types::ToSql};
use uuid::Uuid;

use super::{Connection, cell::Cell, shard::ApplyTurn};
use crate::{
    entity::Failure,
    event::{Record, Source, Topic},
    ids::{Epoch, Seq, ShardId},
    records::is_searchable,
    service::{Effect, Service},
    table::{Table, Tables, parts, table},
};

/// One write of one shard: all of it is committed, or none.
pub struct Unit<S: Service> {
    /// Rows of the service's tables.
    pub writes: S::Writes,
    /// Records to append; a unit without any gets an [`crate::event::APPLIED`] record, for the record is the fence.
    pub records: Vec<NewRecord>,
    /// Entities whose rows it changes: none of them loads meanwhile.
    pub touches: Vec<Uuid>,
    /// Those of them that it ends for all commands ([`Service::is_final`]).
    pub(crate) ends: Vec<Uuid>,
    /// The entity on whose state it was decided: a unit that ends the entity must not come before it.
    pub(crate) stands_on: Option<Arc<Cell<S>>>,
    /// It begins the life of what it contains, under a new id: nobody has copies.
    pub(crate) begins: bool,
    /// What it means to entities in memory, folded in after the commit.
    pub effects: Vec<Effect<S>>,
    /// What it means to this node's read models, told after the commit.
    pub notes: Vec<S::Note>,
    /// Positions reached in foreign logs.
    pub inbox: Vec<(Source, Seq)>,
    /// The answer to keep for a retry.
    pub kept: Option<KeptReply>,
    /// Records that could not be applied.
    pub dead: Vec<DeadLetter>,
    /// Dead letters that it applies after all, and so takes away.
    pub replayed: Vec<(Source, Seq)>,
    /// Topics from whose publishers' state it makes the shard anew.
    pub(crate) rebuilt: Vec<Topic>,
    /// Claims a unique name: commits by itself, so that its refusal and its waiting touch nobody (rule 13).
    pub alone: bool,
    /// Kept until it is folded, when it applies foreign records.
    #[expect(dead_code, reason = "held, not read: it ends with the unit")]
    pub(crate) turn: Option<ApplyTurn>,
    pub(crate) shards: u16,
}

impl<S: Service> Default for Unit<S> {
    fn default() -> Self {
        Self {
            writes: S::Writes::default(),
            records: Vec::new(),
            touches: Vec::new(),
            ends: Vec::new(),
            stands_on: None,
            begins: false,
            effects: Vec::new(),
            notes: Vec::new(),
            inbox: Vec::new(),
            kept: None,
            dead: Vec::new(),
            replayed: Vec::new(),
            rebuilt: Vec::new(),
            alone: false,
            turn: None,
            shards: 1,
        }
    }
}

impl<S: Service> Unit<S> {
    /// An empty unit of a service with so many shards.
    pub fn of(shards: u16) -> Self {
        Self { shards, ..Self::default() }
    }

    /// How many shards the service has: for rows that are kept by shard.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// How many of its records come after the last one that a search can wait for, if there is one.
    pub(crate) fn after_searchable(&self) -> Option<Seq> {
        let after = self.records.iter().rev().position(|record| is_searchable(record.kind))?;
        Some(after as Seq)
    }

    /// Its payload in bytes, roughly: what bounds a statement.
    pub(crate) fn weight(&self) -> usize {
        let records: usize = self.records.iter().map(|record| record.payload.len() + 128).sum();
        records * 2 + 256 + self.kept.as_ref().map_or(0, |kept| kept.reply.len())
    }
}

/// A record that has no position yet.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// The entity.
    pub key: Uuid,
    /// `post.created`, …
    pub kind: &'static str,
    /// The resource's state after the event, JSON.
    pub payload: Arc<str>,
    /// The trace that caused it.
    pub traceparent: Option<Arc<str>>,
}

/// The answer to a request with an idempotency key.
#[derive(Clone, Debug)]
pub struct KeptReply {
    /// The scoped key.
    pub key: Arc<str>,
    /// Of the request.
    pub request_hash: [u8; 32],
    /// The reply as JSON.
    pub reply: String,
}

/// A record that can never be applied, with the reason and where it came from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The log and shard.
    pub source: Source,
    /// The record.
    pub record: Arc<Record>,
    /// Why.
    pub reason: String,
}

/// Where a unit stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its last record.
    pub seq: Seq,
    /// The epoch under which it was committed.
    pub epoch: Epoch,
}

/// Why a unit was not committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The shard belongs to another incarnation by now. Nothing of the unit is in.
    #[error("fenced: the shard has another owner")]
    Fenced,
    /// The entity on whose state it was decided has ended, or is about to. Nothing of the unit is in: decide again.
    #[error("the entity ended while the command was under way")]
    Ended,
    /// The statement's outcome is open, and the shard is no longer ours to find out.
    #[error("fenced while the outcome of the commit was open")]
    Unknown,
    /// The database refused this unit, and would again.
    #[error("refused by the database: {message}")]
    Refused {
        /// The constraint, if one was violated.
        constraint: Option<String>,
        /// The server's message.
        message: String,
    },
    /// The database does not take writes now. Nothing of the unit is in.
    #[error("the database takes no writes: {0}")]
    Unavailable(String),
    /// Too many units wait.
    #[error("the committer's queue is full")]
    Overloaded,
}

impl From<CommitError> for Failure {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Fenced => Self::Moved(error.to_string()),
            CommitError::Unknown => Self::Unknown(error.to_string()),
            CommitError::Refused { message, .. } => Self::Refused(message),
            CommitError::Unavailable(_) | CommitError::Ended => Self::Unavailable(error.to_string()),
            CommitError::Overloaded => Self::Overloaded(error.to_string()),
        }
    }
}

// The outbox insert carries no ON CONFLICT: it is the fence, and must fail as a whole (rule 1).
table! {
    struct Outbox of OutboxRow {
        shard: i16 => "int2", seq: i64 => "int8", epoch: i64 => "int8", key: Uuid => "uuid",
        kind: SharedText => "text", payload: Option<SharedText> => "text", headers: Option<SharedText> => "text",
    }
    ""
}

table! {
    struct Inbox of InboxRow { shard: i16 => "int2", source: String => "text", position: i64 => "int8" }
    "INSERT INTO inbox (shard, source, position) SELECT shard, source, position FROM {rows} \
     ON CONFLICT (shard, source) DO UPDATE SET position = excluded.position"
}

table! {
    struct Idempotency of IdempotencyRow {
        shard: i16 => "int2", key: SharedText => "text", request_hash: Vec<u8> => "bytea", reply: String => "text",
        seq: i64 => "int8",
    }
    "INSERT INTO idempotency (shard, key, request_hash, reply, seq) SELECT shard, key, request_hash, reply, seq FROM {rows}"
}

table! {
    struct DeadLetters of DeadLetterRow {
        shard: i16 => "int2", source: String => "text", seq: i64 => "int8", kind: SharedText => "text", key: Uuid => "uuid",
        payload: Option<SharedText> => "text", reason: String => "text",
    }
    "INSERT INTO dead_letter (shard, source, seq, type, key, payload, reason) \
     SELECT shard, source, seq, kind, key, payload, reason FROM {rows} ON CONFLICT (shard, source, seq) DO NOTHING"
}

table! {
    struct Replayed of ReplayedRow { shard: i16 => "int2", source: String => "text", seq: i64 => "int8" }
    "DELETE FROM dead_letter d USING {rows} WHERE d.shard = r.shard AND d.source = r.source AND d.seq = r.seq"
}

table! {
    struct Rebuilt of RebuiltRow { shard: i16 => "int2", topic: String => "text" }
    "DELETE FROM rebuild b USING {rows} WHERE b.shard = r.shard AND b.topic = r.topic"
}

/// A shared text as a parameter: a batch copies no payloads.
#[derive(Clone, Debug)]
pub(crate) struct SharedText(pub(crate) Arc<str>);

impl ToSql for SharedText {
    fn to_sql(
        &self,
        kind: &tokio_postgres::types::Type,
        out: &mut bytes::BytesMut,
    ) -> Result<tokio_postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
        (&*self.0).to_sql(kind, out)
    }

    fn accepts(kind: &tokio_postgres::types::Type) -> bool {
        <&str as ToSql>::accepts(kind)
    }

    tokio_postgres::types::to_sql_checked!();
}

/// The columns of one statement, with the records as they will be in the log.
pub(crate) struct Batch<S: Service> {
    pub(crate) id: Uuid,
    at: Timestamp,
    writes: S::Writes,
    outbox: Outbox,
    inbox: Inbox,
    idempotency: Idempotency,
    dead: DeadLetters,
    replayed: Replayed,
    rebuilt: Rebuilt,
}

/// The records of one unit, with their positions.
pub(crate) type Positioned = Vec<Arc<Record>>;

impl<S: Service> Batch<S> {
    pub(crate) fn new(at: Timestamp) -> Self {
        Self {
            id: Uuid::new_v4(),
            at,
            writes: S::Writes::default(),
            outbox: Outbox::default(),
            inbox: Inbox::default(),
            idempotency: Idempotency::default(),
            dead: DeadLetters::default(),
            replayed: Replayed::default(),
            rebuilt: Rebuilt::default(),
        }
    }

    /// Adds a unit at the next positions after `head`; its records.
    pub(crate) fn add(&mut self, shard: ShardId, epoch: Epoch, head: Seq, unit: &Unit<S>) -> Positioned {
        let records: Positioned = self.records(epoch, head, unit);
        let last = records.last().expect("every unit has a record").seq;
        self.writes.append(&unit.writes, last);
        let number = shard.as_i16();
        for (source, position) in &unit.inbox {
            self.inbox.push(InboxRow { shard: number, source: source.to_string(), position: *position });
        }
        if let Some(kept) = &unit.kept {
            self.idempotency.push(IdempotencyRow {
                shard: number,
                key: SharedText(Arc::clone(&kept.key)),
                request_hash: kept.request_hash.to_vec(),
                reply: kept.reply.clone(),
                seq: last,
            });
        }
        for letter in &unit.dead {
            self.dead.push(DeadLetterRow {
                shard: number,
                source: letter.source.to_string(),
                seq: letter.record.seq,
                kind: SharedText(Arc::clone(&letter.record.kind)),
                key: letter.record.key,
                payload: letter.record.payload.clone().map(SharedText),
                reason: letter.reason.clone(),
            });
        }
        for (source, seq) in &unit.replayed {
            self.replayed.push(ReplayedRow { shard: number, source: source.to_string(), seq: *seq });
        }
        for topic in &unit.rebuilt {
            self.rebuilt.push(RebuiltRow { shard: number, topic: topic.service().to_owned() });
        }
        for record in &records {
            self.outbox.push(OutboxRow {
                shard: number,
                seq: record.seq,
                epoch,
                key: record.key,
                kind: SharedText(Arc::clone(&record.kind)),
                payload: record.payload.clone().map(SharedText),
                headers: record.traceparent.clone().map(SharedText),
            });
        }
        records
    }

    fn records(&self, epoch: Epoch, head: Seq, unit: &Unit<S>) -> Positioned {
        let at = self.at;
        if unit.records.is_empty() {
            let kind = Arc::from(crate::event::APPLIED);
            let record = Record { seq: head + 1, epoch, key: Uuid::nil(), kind, payload: None, traceparent: None, at };
            return vec![Arc::new(record)];
        }
        let position = |(n, new): (usize, &NewRecord)| {
            Arc::new(Record {
                seq: head + 1 + n as Seq,
                epoch,
                key: new.key,
                kind: Arc::from(new.kind),
                payload: Some(Arc::clone(&new.payload)),
                traceparent: new.traceparent.clone(),
                at,
            })
        };
        unit.records.iter().enumerate().map(position).collect()
    }

    /// What it writes to.
    pub(crate) fn shape(&self) -> Shape {
        Shape::of(&self.tables())
    }

    /// Sends it: one statement, so one transaction, one round trip and a few bytes back. `shape`: of the statement.
    pub(crate) async fn execute(
        &self,
        client: &Connection,
        statement: &Statement,
        shape: Shape,
    ) -> Result<u64, tokio_postgres::Error> {
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![&self.id, &self.at];
        params.extend(self.outbox.params());
        for table in shape.select(&self.tables()) {
            params.extend(table.params());
        }
        client.execute(statement, &params).await
    }

    fn tables(&self) -> Vec<&dyn Table> {
        let mut tables: Vec<&dyn Table> = vec![&self.inbox, &self.idempotency, &self.dead, &self.replayed, &self.rebuilt];
        tables.extend(self.writes.tables());
        tables
    }
}

/// Which tables a statement writes to, besides the outbox: a bit for each, in their order. A table that a batch has no rows for
/// would cost the server some 15 us all the same, to open it with its indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape(u64);

impl Shape {
    /// All tables.
    pub(crate) const WHOLE: Self = Self(u64::MAX);

    fn of(tables: &[&dyn Table]) -> Self {
        assert!(tables.len() <= 64, "a service has more tables than a shape has bits");
        Self(tables.iter().enumerate().fold(0, |bits, (n, table)| bits | (u64::from(!table.is_empty()) << n)))
    }

    fn select<'a>(self, tables: &[&'a dyn Table]) -> Vec<&'a dyn Table> {
        tables.iter().enumerate().filter(|(n, _)| self.0 >> n & 1 == 1).map(|(_, table)| *table).collect()
    }
}

/// The statement of a service for this shape; its text depends on nothing else.
pub(crate) fn statement<S: Service>(shape: Shape) -> String {
    let empty = Batch::<S>::new(Timestamp::default());
    let tables = shape.select(&empty.tables());
    let outbox_first = 3;
    let types: Vec<String> =
        empty.outbox.columns().iter().enumerate().map(|(n, (_, kind))| format!("${}::{kind}[]", outbox_first + n)).collect();
    let parts = parts(&tables, outbox_first + types.len());
    let with = if parts.is_empty() { String::new() } else { format!("WITH {} ", parts.join(", ")) };
    format!(
        "{with}INSERT INTO outbox (shard, seq, epoch, batch, key, type, payload, headers, at) \
         SELECT shard, seq, epoch, $1::uuid, key, kind, payload, headers, $2::timestamptz \
         FROM UNNEST({}) AS r(shard, seq, epoch, key, kind, payload, headers) ORDER BY shard, seq",
        types.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::posts::PostService;

    fn text(batch: &Batch<PostService>) -> String {
        statement::<PostService>(batch.shape())
    }

    #[test]
    fn a_statement_has_the_tables_that_the_batch_has_rows_for() {
        let mut batch = Batch::<PostService>::new(Timestamp::UNIX_EPOCH);
        assert!(text(&batch).starts_with("INSERT INTO outbox"), "{}", text(&batch));
        batch.replayed.push(ReplayedRow { shard: 1, source: "users/1".to_owned(), seq: 7 });
        let text = text(&batch);
        assert!(text.starts_with("WITH t0 AS (DELETE FROM dead_letter"), "{text}");
        // id, time, seven columns of the log; then these three.
        assert!(text.contains("UNNEST($10::int2[], $11::text[], $12::int8[])") && !text.contains("$13"), "{text}");
        assert!(!text.contains("post_like") && !text.contains("inbox"), "{text}");
    }

    #[test]
    fn the_whole_has_every_table() {
        let text = statement::<PostService>(Shape::WHOLE);
        for table in ["inbox", "idempotency", "dead_letter", "post_tag", "post_like", "follow", "author"] {
            assert!(text.contains(&format!("INTO {table} ")), "{table}: {text}");
        }
    }
}
