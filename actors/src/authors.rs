//! Author names where they are shown: a versioned projection of users that keeps tombstones (rule 19).
//!
//! Posts and comments store author ids alone. The names lie in a table of their own beside them, one row per user,
//! in the user's shard of that service; this is the node's cache of it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use moka::{ops::compute::CompResult, policy::EvictionPolicy, sync::Cache};
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::{
    entity::Failure,
    event::{Record, Topic},
    ids::UserId,
    runtime::{Database, rebuild::Rebuild},
    service::{Foreign, Poison, Service},
    table::table,
    users,
};

/// What is shown of an author.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// The user.
    pub id: UserId,
    /// Of the user at the time.
    pub version: i64,
    /// The handle.
    pub username: String,
    /// The name to show.
    pub display_name: String,
    /// The picture.
    pub avatar_url: Option<String>,
    /// The account is gone: its posts and comments have no author.
    pub deleted: bool,
}

impl Author {
    /// What a user's record says about the author, if it is about one.
    ///
    /// # Errors
    /// When the payload is not a user.
    pub(crate) fn of(foreign: &Foreign<'_>) -> Result<Option<Self>, Poison> {
        let about_user = foreign.source.topic == Topic::Users && is_author(foreign.record);
        about_user.then(|| foreign.parse()).transpose()
    }
}

fn is_author(record: &Record) -> bool {
    matches!(&*record.kind, "user.created" | "user.updated" | "user.deleted")
}

table! {
    /// Author names to store; an older version never replaces a newer one.
    pub(crate) struct AuthorRows of AuthorRow {
        id: Uuid => "uuid", version: i64 => "int8", username: String => "text", display_name: String => "text",
        avatar_url: Option<String> => "text", deleted: bool => "bool",
    }
    // A slice may hold two versions of one user: the newest of them is the row.
    "INSERT INTO author (id, version, username, display_name, avatar_url, deleted) \
     SELECT DISTINCT ON (id) id, version, username, display_name, avatar_url, deleted FROM {rows} ORDER BY id, version DESC \
     ON CONFLICT (id) DO UPDATE SET version = excluded.version, username = excluded.username, \
     display_name = excluded.display_name, avatar_url = excluded.avatar_url, deleted = excluded.deleted \
     WHERE author.version < excluded.version"
}

table! {
    /// Authors as they are, whatever was known of them: the users' database went back to an older state.
    pub(crate) struct AuthorResetRows of AuthorResetRow {
        id: Uuid => "uuid", version: i64 => "int8", username: String => "text", display_name: String => "text",
        avatar_url: Option<String> => "text", deleted: bool => "bool",
    }
    "INSERT INTO author (id, version, username, display_name, avatar_url, deleted) \
     SELECT id, version, username, display_name, avatar_url, deleted FROM {rows} ORDER BY id \
     ON CONFLICT (id) DO UPDATE SET version = excluded.version, username = excluded.username, \
     display_name = excluded.display_name, avatar_url = excluded.avatar_url, deleted = excluded.deleted, \
     likes_gone = author.likes_gone AND excluded.deleted, \
     departed_at = CASE WHEN excluded.deleted THEN author.departed_at END"
}

impl From<&Author> for AuthorResetRow {
    fn from(author: &Author) -> Self {
        let AuthorRow { id, version, username, display_name, avatar_url, deleted } = author.into();
        Self { id, version, username, display_name, avatar_url, deleted }
    }
}

/// All authors of the table.
const STORED: &str = "SELECT id, version, username, display_name, avatar_url, deleted FROM author";

/// A row of [`STORED`], or of the accounts.
fn read(row: &Row) -> (Uuid, Author) {
    let author = Author {
        id: UserId(row.get(0)),
        version: row.get(1),
        username: row.get(2),
        display_name: row.get(3),
        avatar_url: row.get(4),
        deleted: row.get(5),
    };
    (author.id.0, author)
}

/// What has to be stored in these shards so that the authors are what the accounts are.
pub(crate) async fn to_reset<S: Service>(rebuild: &Rebuild<S>) -> Result<Vec<Author>, Failure> {
    let accounts = rebuild.published(users::AUTHORS, read).await?;
    Ok(changes(&accounts, &rebuild.stored(STORED, read).await?))
}

/// The same of all. Those that have no account are gone.
fn changes(accounts: &HashMap<Uuid, Author>, stored: &HashMap<Uuid, Author>) -> Vec<Author> {
    let gone = |author: &Author| Author {
        version: author.version + 1,
        username: String::new(),
        display_name: String::new(),
        avatar_url: None,
        deleted: true,
        ..author.clone()
    };
    let others = accounts.iter().filter(|(id, author)| stored.get(id) != Some(author)).map(|(_, author)| author.clone());
    let orphans = stored.iter().filter(|(id, author)| !accounts.contains_key(id) && !author.deleted);
    others.chain(orphans.map(|(_, author)| gone(author))).collect()
}

impl From<&Author> for AuthorRow {
    fn from(author: &Author) -> Self {
        Self {
            id: author.id.0,
            version: author.version,
            username: author.username.clone(),
            display_name: author.display_name.clone(),
            avatar_url: author.avatar_url.clone(),
            deleted: author.deleted,
        }
    }
}

/// The node's cache of author names, bounded by bytes.
pub struct Authors {
    generation: AtomicU64,
    cache: Cache<UserId, Arc<Author>>,
    /// Who was heard to be gone, until the table knows it: the cache may forget them, and the table still have their names.
    departed: Mutex<HashMap<UserId, Arc<Author>>>,
}

impl Default for Authors {
    fn default() -> Self {
        Self::new(32 << 20)
    }
}

impl Authors {
    /// A cache of at most about `bytes_max`.
    pub fn new(bytes_max: u64) -> Self {
        let weigh = |_: &UserId, author: &Arc<Author>| {
            let texts = author.username.len() + author.display_name.len() + author.avatar_url.as_ref().map_or(0, String::len);
            u32::try_from(texts + 200).unwrap_or(u32::MAX)
        };
        // Least recently used: what was heard just now is always taken in. A cache that refused a new name would take an
        // old one from the table, which follows the log a little later.
        let policy = EvictionPolicy::lru();
        let cache = Cache::builder().max_capacity(bytes_max).weigher(weigh).eviction_policy(policy).build();
        Self { generation: AtomicU64::new(0), cache, departed: Mutex::default() }
    }

    /// Takes note of a newer version; an older one changes nothing.
    pub fn note(&self, author: Author) {
        let id = author.id;
        let author = Arc::new(author);
        let result = self.cache.entry(id).and_compute_with(|known| match known {
            Some(known) if known.value().version >= author.version => moka::ops::compute::Op::Nop,
            _ => moka::ops::compute::Op::Put(author),
        });
        // After the name: who reads the number first and the name then may keep too little, never too much.
        if !matches!(result, CompResult::Unchanged(_)) {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Takes note of what a record of the users' log says of an author, before the table has it.
    pub fn hear(&self, record: &Record) {
        // What does not parse the projection buries, and says so.
        if let Some(Ok(author)) = record.payload.as_deref().map(serde_json::from_str::<Author>).filter(|_| is_author(record)) {
            if author.deleted {
                self.departed().insert(author.id, Arc::new(author.clone()));
            }
            self.note(author);
        }
    }

    /// Forgets departed authors of whom the table says so itself by now.
    ///
    /// # Errors
    /// When the table does not answer.
    pub async fn settle(&self, database: &Database) -> Result<(), Failure> {
        let ids: Vec<Uuid> = self.departed().keys().map(|id| id.0).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let client = database.get().await?;
        let rows = client.query("SELECT id FROM author WHERE id = ANY($1) AND deleted", &[&ids]).await?;
        let mut departed = self.departed();
        rows.iter().for_each(|row| drop(departed.remove(&UserId(row.get(0)))));
        Ok(())
    }

    fn departed(&self) -> MutexGuard<'_, HashMap<UserId, Arc<Author>>> {
        self.departed.lock().expect("no panic under this lock")
    }

    /// Takes note of a row of the table; what is to be shown, which is newer if the author is known to be gone.
    fn newest(&self, stored: Author) -> Arc<Author> {
        let departed = self.departed().get(&stored.id).filter(|departed| departed.version > stored.version).cloned();
        let author = departed.unwrap_or_else(|| Arc::new(stored));
        self.note(Author::clone(&author));
        author
    }

    /// Forgets everybody: something was missed.
    pub fn clear(&self) {
        self.departed().clear();
        self.cache.invalidate_all();
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Grows with whatever is learnt about any author.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The author if the node knows them; asks nobody.
    pub fn known(&self, id: UserId) -> Option<Arc<Author>> {
        self.cache.get(&id)
    }

    /// The authors of these ids, from memory and from the table.
    ///
    /// # Errors
    /// When the table must be asked and does not answer.
    pub async fn resolve(
        &self,
        database: &Database,
        ids: impl IntoIterator<Item = UserId>,
    ) -> Result<HashMap<UserId, Arc<Author>>, Failure> {
        let (mut found, mut missing) = (HashMap::new(), Vec::new());
        for id in ids {
            match self.cache.get(&id) {
                Some(author) => drop(found.insert(id, author)),
                None => missing.push(id.0),
            }
        }
        if !missing.is_empty() {
            missing.sort_unstable();
            missing.dedup();
            let client = database.get().await?;
            let rows = client
                .query(
                    "SELECT id, version, username, display_name, avatar_url, deleted FROM author WHERE id = ANY($1)",
                    &[&missing],
                )
                .await?;
            for row in rows {
                let (_, author) = read(&row);
                found.insert(author.id, self.newest(author));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::records::UserRecord;

    const ADA: UserId = UserId(Uuid::from_u128(1));

    fn record(kind: &str, user: &UserRecord) -> Record {
        let payload = Some(serde_json::to_string(user).unwrap().into());
        Record { seq: 1, epoch: 1, key: user.id.0, kind: kind.into(), payload, traceparent: None, at: Timestamp::UNIX_EPOCH }
    }

    fn named(version: i64, username: &str) -> Record {
        let nobody = UserRecord::gone(ADA, version, Timestamp::UNIX_EPOCH);
        record("user.updated", &UserRecord { username: username.into(), deleted: false, ..nobody })
    }

    fn gone(version: i64) -> Record {
        record("user.deleted", &UserRecord::gone(ADA, version, Timestamp::UNIX_EPOCH))
    }

    fn known(authors: &Authors) -> (i64, String, bool) {
        let author = authors.known(ADA).expect("somebody told of them");
        (author.version, author.username.clone(), author.deleted)
    }

    #[test]
    fn an_older_name_does_not_replace_a_newer_one() {
        let authors = Authors::default();
        for version in [2, 3, 1] {
            authors.hear(&named(version, &format!("ada{version}")));
        }
        assert_eq!(known(&authors), (3, "ada3".into(), false));
    }

    #[test]
    fn a_deleted_name_does_not_come_back_whatever_is_heard_late() {
        let authors = Authors::default();
        for late in [named(1, "ada"), gone(4), named(3, "ada"), named(4, "ada")] {
            authors.hear(&late);
        }
        assert_eq!(known(&authors), (4, String::new(), true));
    }

    /// What was broken: the cache forgot the deletion, and the table, which follows the log hours later while Kafka is away,
    /// still had the name.
    #[test]
    fn a_deleted_name_does_not_come_back_from_a_table_that_does_not_know_yet() {
        let authors = Authors::new(0);
        authors.hear(&gone(4));
        authors.cache.run_pending_tasks();
        assert!(authors.known(ADA).is_none(), "there is no room for it");
        let stored: Author = serde_json::from_str(named(3, "ada").payload.as_deref().unwrap()).unwrap();
        let shown = authors.newest(stored);
        assert_eq!((shown.username.as_str(), shown.deleted), ("", true));
    }

    #[test]
    fn who_was_heard_of_before_is_no_news() {
        let authors = Authors::default();
        authors.hear(&named(2, "ada"));
        let generation = authors.generation();
        authors.hear(&named(1, "old"));
        authors.hear(&named(2, "ada"));
        assert_eq!(authors.generation(), generation);
        authors.hear(&gone(3));
        assert!(authors.generation() > generation);
    }

    #[test]
    fn what_is_about_no_author_tells_of_none() {
        let authors = Authors::default();
        authors.hear(&record("user.followed", &UserRecord::gone(ADA, 1, Timestamp::UNIX_EPOCH)));
        assert!(authors.known(ADA).is_none());
    }
}
