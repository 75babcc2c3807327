//! What one partition promises, on real folders.

mod copies;
mod crashes;
mod durability;
pub(super) mod outage;
mod relevance;

use jiff::Timestamp;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;

/// A partition in a folder of its own.
struct Fixture {
    dir: TempDir,
    partition: Partition,
    seq: u64,
}

/// An empty partition.
fn partition() -> Fixture {
    outage::new_disk();
    let dir = TempDir::new().unwrap();
    let partition = open(&dir);
    Fixture { dir, partition, seq: 0 }
}

/// A partition in which these documents can be found.
fn given(documents: impl IntoIterator<Item = Document>) -> Fixture {
    let mut fixture = partition();
    fixture.index(documents);
    fixture
}

fn open(dir: &TempDir) -> Partition {
    Partition::open(dir.path(), Settings::default()).unwrap()
}

impl Fixture {
    fn apply(&mut self, documents: impl IntoIterator<Item = Document>) {
        let rows: Vec<_> = documents
            .into_iter()
            .map(|document| {
                self.seq += 1;
                (self.seq, document)
            })
            .collect();
        self.partition.apply(&rows).unwrap();
    }

    fn index(&mut self, documents: impl IntoIterator<Item = Document>) {
        self.apply(documents);
        let position = self.position();
        self.partition.commit(position).unwrap();
    }

    fn position(&self) -> Position {
        Position { applied_seq: self.seq, sources: [("posts/17".to_owned(), 10 * self.seq)].into(), ..Position::default() }
    }

    fn hits(&self, query: &str) -> Hits {
        self.partition.search(&search(query)).unwrap()
    }

    /// What the query was taken to mean, or may have meant.
    fn meant(&self, query: &str) -> Option<String> {
        let plan = Views::of(vec![self.partition.reader().view()]).plan(&search(query));
        plan.meant().map(str::to_owned)
    }

    /// The ids found, best first.
    fn find(&self, query: &str) -> Vec<u128> {
        ids(&self.hits(query))
    }

    /// The ids found, in order of id.
    fn find_sorted(&self, query: &str) -> Vec<u128> {
        let mut found = self.find(query);
        found.sort_unstable();
        found
    }

    /// Brings the last commit to the disk.
    fn checkpoint(&mut self) {
        self.partition.checkpoints().take().unwrap();
    }

    /// The process dies, in the middle of a merge say, and comes back.
    fn crash(self) -> Fixture {
        let Fixture { dir, partition, seq } = self;
        drop(partition);
        Fixture { partition: open(&dir), dir, seq }
    }

    /// The machine goes down and comes back.
    fn outage(self, left: outage::Left) -> Fixture {
        let Fixture { dir, partition, seq } = self;
        drop(partition);
        outage::strike(dir.path(), left);
        Fixture { partition: open(&dir), dir, seq }
    }

    /// Gives the folder free and opens it again.
    fn reopen(mut self) -> Fixture {
        self.partition.close().unwrap();
        self.partition = open(&self.dir);
        self
    }
}

fn search(query: &str) -> Search {
    Search { query: Query::parse(query).unwrap(), ..Search::default() }
}

fn ids(hits: &Hits) -> Vec<u128> {
    hits.items.iter().map(|hit| hit.id.as_u128()).collect()
}

fn post(id: u128, title: &str, body: &str) -> Document {
    Document {
        kind: Kind::Post,
        id: Uuid::from_u128(id),
        version: 1,
        author: None,
        tags: Vec::new(),
        title: Some(title.to_owned()),
        body: body.to_owned(),
        created_at: Timestamp::from_second(1_375_000_000 + id as i64).unwrap(),
        post_id: None,
        deleted: false,
    }
}

fn user(id: u128, username: &str, display_name: &str) -> Document {
    Document { kind: Kind::User, ..post(id, &format!("{username} {display_name}"), "") }
}

fn comment(id: u128, body: &str) -> Document {
    Document { kind: Kind::Comment, title: None, ..post(id, "", body) }
}

/// The document, gone.
fn deleted(document: Document) -> Document {
    Document { deleted: true, version: document.version + 1, ..document }
}
