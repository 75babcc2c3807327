//! How documents come from the other services' events and are stored.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    Answer, Query, here,
    index::{Document, Kind, Spelling},
    pool::Pool,
    replicas::Replicas,
};
use crate::{
    departed::{StaleLetterRow, StaleLetterRows},
    entity::{Entity, Failure},
    event::Topic,
    ids::{Seq, ShardId},
    records::{CommentRecord, PostRecord, UserRecord, is_searchable, text},
    runtime::{Connection, Pooled, Runtime, Unit},
    service::{Foreign, LoadError, Poison, Service},
    table::{Table, Tables, table},
};

/// The search service: what it is told becomes documents; nobody commands it.
#[derive(Default)]
pub struct SearchService {
    /// The indexes of this node.
    pub(crate) replicas: Replicas,
    /// What searches them.
    pub(crate) pool: Pool,
    /// Their words.
    pub(crate) spelling: Spelling,
}

/// What there is none of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Never {}

/// There is no entity behind a document: its rules are those of whoever published it.
pub enum NoEntity {}

impl Entity for NoEntity {
    type Command = Never;
    type Event = std::convert::Infallible;
    type Rejection = Never;
    type Facts = ();

    fn decide(_: Option<&Self>, command: &Self::Command, (): &()) -> Result<Vec<Self::Event>, Never> {
        match *command {}
    }

    fn evolve(_: &mut Option<Self>, event: &Self::Event) {
        match *event {}
    }
}

table! {
    /// Documents to store; an older version never replaces a newer one (rule 20). The same one does: a rebuild may make
    /// another document of it than the build before.
    pub(crate) struct DocumentRows of DocumentRow {
        shard: i16 => "int2", seq: i64 => "int8", kind: String => "text", id: Uuid => "uuid", version: i64 => "int8",
        doc: String => "text",
    }
    "INSERT INTO documents (shard, seq, type, id, version, doc) \
     SELECT DISTINCT ON (kind, id) shard, seq, kind, id, version, doc FROM {rows} ORDER BY kind, id, version DESC \
     ON CONFLICT (type, id) DO UPDATE SET shard = excluded.shard, seq = excluded.seq, version = excluded.version, \
     doc = excluded.doc WHERE documents.version <= excluded.version"
}

table! {
    /// Documents to forget, all of one kind in a shard: what they were made from went back to an older state.
    pub(crate) struct ForgottenRows of ForgottenRow { shard: i16 => "int2", kind: String => "text" }
    "DELETE FROM documents d USING {rows} WHERE d.shard = r.shard AND d.type = r.kind"
}

/// What a batch of the search service writes.
#[derive(Debug, Default)]
pub struct Writes {
    pub(crate) documents: DocumentRows,
    pub(crate) forgotten: ForgottenRows,
    pub(crate) stale_letters: StaleLetterRows,
}

impl Tables for Writes {
    fn tables(&self) -> Vec<&dyn Table> {
        vec![&self.documents, &self.stale_letters, &self.forgotten]
    }

    /// Documents carry the seq of the record with which they come: an index follows them by it.
    fn append(&mut self, other: &Self, seq: Seq) {
        self.stale_letters.append(&other.stale_letters);
        self.forgotten.append(&other.forgotten);
        self.documents.append(&other.documents);
        let first = self.documents.seq.len() - other.documents.seq.len();
        self.documents.seq[first..].fill(seq);
    }
}

impl Writes {
    /// Adds a document; its seq follows with the commit.
    ///
    /// # Errors
    /// When the version is out of range.
    pub(crate) fn put(&mut self, shard: ShardId, document: &Document) -> Result<(), Poison> {
        self.documents.push(DocumentRow {
            shard: shard.as_i16(),
            seq: 0,
            kind: document.kind.as_str().to_owned(),
            id: document.id,
            version: i64::try_from(document.version).map_err(|_| Poison("the version is out of range".to_owned()))?,
            doc: text(document),
        });
        Ok(())
    }
}

/// The id whose shard keeps a document: a comment lies with its post.
pub(crate) fn home(document: &Document) -> Uuid {
    document.post_id.unwrap_or(document.id)
}

impl Service for SearchService {
    const NAME: &'static str = "search";
    type Entity = NoEntity;
    type Writes = Writes;
    type Reply = ();
    type Note = Never;
    type Need = Never;
    type Query = Query;
    type Answer = Answer;

    async fn load(&self, _: &Connection, _: &[Uuid]) -> Result<HashMap<Uuid, NoEntity>, LoadError> {
        Ok(HashMap::new())
    }

    fn need(&self, _: Uuid, _: Option<&NoEntity>, command: &Never) -> Option<Self::Need> {
        match *command {}
    }

    async fn look_up(&self, _: Pooled, _: Uuid, need: Self::Need) -> Result<(), LoadError> {
        match need {}
    }

    fn creates(command: &Never) -> bool {
        match *command {}
    }

    fn write(&self, _: ShardId, _: Uuid, _: Option<&NoEntity>, _: &[std::convert::Infallible], _: &mut Unit<Self>) {}

    fn reply(_: Uuid, _: Option<&NoEntity>, _: &[std::convert::Infallible]) {}

    fn refused(_: &str) -> Option<Never> {
        None
    }

    fn weight(_: Option<&NoEntity>) -> usize {
        0
    }

    fn concerns(&self, foreign: &Foreign<'_>) -> Result<Vec<Uuid>, Poison> {
        // The key of a comment's record is its post, and so is the shard of its document.
        Ok(if is_searchable(&foreign.record.kind) { vec![foreign.record.key] } else { vec![] })
    }

    async fn answer(runtime: &Runtime<Self>, query: &Query, deadline: Instant) -> Result<Answer, Failure> {
        here::answer(runtime, query, deadline).await
    }

    fn project(&self, foreign: &Foreign<'_>, id: Uuid, unit: &mut Unit<Self>) -> Result<(), Poison> {
        let document = match foreign.source.topic {
            Topic::Users => user(foreign.parse()?)?,
            Topic::Posts => post(foreign.parse()?)?,
            Topic::Comments => comment(foreign.parse()?)?,
        };
        if document.kind == Kind::User && document.deleted {
            unit.writes.stale_letters.push(StaleLetterRow { author: id });
        }
        let shard = crate::ids::shard_of(id, unit.shards());
        unit.writes.put(shard, &document)
    }
}

fn version(number: i64) -> Result<u64, Poison> {
    u64::try_from(number).map_err(|_| Poison(format!("{number} is not a version")))
}

/// A user as a document: found by names and bio.
///
/// # Errors
/// When a number is out of range.
pub fn user(record: UserRecord) -> Result<Document, Poison> {
    Ok(Document {
        kind: Kind::User,
        id: record.id.0,
        version: version(record.version)?,
        author: None,
        tags: Vec::new(),
        title: Some(format!("{} {}", record.username, record.display_name)),
        body: record.bio,
        created_at: record.created_at,
        post_id: None,
        deleted: record.deleted,
    })
}

/// A post as a document. Names stay out: they change, and are looked up when a hit is shown.
///
/// # Errors
/// When a number is out of range.
pub fn post(record: PostRecord) -> Result<Document, Poison> {
    Ok(Document {
        kind: Kind::Post,
        id: record.id.0,
        version: version(record.version)?,
        author: Some(record.author.0),
        tags: record.tags,
        title: Some(record.title),
        body: record.body,
        created_at: record.created_at,
        post_id: None,
        deleted: record.deleted,
    })
}

/// A comment as a document.
///
/// # Errors
/// When a number is out of range.
pub fn comment(record: CommentRecord) -> Result<Document, Poison> {
    Ok(Document {
        kind: Kind::Comment,
        id: record.id.0,
        version: version(record.version)?,
        author: Some(record.author.0),
        tags: Vec::new(),
        title: None,
        body: record.body,
        created_at: record.created_at,
        post_id: Some(record.post_id.0),
        deleted: record.deleted,
    })
}
