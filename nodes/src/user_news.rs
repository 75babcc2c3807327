//! What a node with a gateway must hear of users within a moment, whoever serves them: sessions that were closed, names
//! that changed.
//!
//! It follows the users' log from its heads on. Nothing of that is kept: a node that starts reads from SQL which sessions were
//! closed, and what the log says of authors that their tables do not have yet, which may be hours of it. (The cache from user names to ids needs no news: it is a hint, and who uses
//! it looks whether that user still has the name.)

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rookery_actors::{
    comments::service::CommentService,
    entity::Failure,
    episodes,
    event::{EventLog, Fetched, LogError, Record, Topic},
    ids::{Seq, ShardId},
    posts::PostService,
    runtime::Runtime,
    users::UserService,
};
use rookery_gateway::auth::RevokedSessions;
use tokio::task::JoinHandle;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::readers::{Marks, Reader, Readers, changed};

/// The longest time between two looks at who serves which shard.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Before SQL is asked again when it did not answer.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Between two looks which departed authors the tables know by now.
const SETTLE_EVERY: Duration = Duration::from_secs(60);
/// The services that keep a table of authors, by which they read the users' log.
const TABLES: [&str; 2] = ["posts", "comments"];

/// What hears of users on this node.
#[derive(Clone)]
pub struct Listeners {
    /// The sessions whose tokens are refused.
    pub revoked: Arc<RevokedSessions>,
    /// Shows authors beside posts.
    pub posts: Runtime<PostService>,
    /// Shows authors beside comments.
    pub comments: Runtime<CommentService>,
}

/// Learns what was closed within the life of a token and what no table of authors has yet, then follows the users' log.
///
/// # Errors
/// When the users' database does not answer.
pub async fn follow(
    users: &Runtime<UserService>,
    log: Arc<dyn EventLog>,
    listeners: Listeners,
) -> Result<JoinHandle<()>, Failure> {
    let marks = Marks::default();
    // The heads first: what happens in between comes twice, and not never.
    for (shard, head) in users.heads().await? {
        marks.begin(shard, head);
    }
    catch_up(users, &listeners).await?;
    let mut news = Vec::from_iter(log.regroups(Topic::Users));
    news.extend(users.router().map(|router| router.changes()));
    let shards: Vec<ShardId> = (0..users.shards()).map(ShardId).collect();
    let hearing = Hearing { users: users.clone(), listeners: listeners.clone(), catching_up: Mutex::new(None) };
    let mut readers = Readers::new(Arc::new(hearing), log, Topic::Users, marks);
    Ok(tokio::spawn(async move {
        let mut settled = Instant::now();
        loop {
            readers.read(shards.clone());
            changed(&mut news, LOOK_EVERY).await;
            if settled.elapsed() >= SETTLE_EVERY {
                listeners.settle().await;
                settled = Instant::now();
            }
        }
    }))
}

impl Listeners {
    fn hear_of_author(&self, record: &Record) {
        self.posts.service().authors.hear(record);
        self.comments.service().authors.hear(record);
    }

    /// What the tables say of departed authors, nobody needs to remember.
    async fn settle(&self) {
        let posts = self.posts.service().authors.settle(self.posts.database()).await;
        let comments = self.comments.service().authors.settle(self.comments.database()).await;
        for failure in [posts, comments].into_iter().filter_map(Result::err) {
            episodes::warn("tables of authors cannot be read", "users", &failure);
        }
    }
}

async fn catch_up(users: &Runtime<UserService>, listeners: &Listeners) -> Result<(), Failure> {
    revoke_closed(users, &listeners.revoked).await?;
    hear_what_tables_lack(users, listeners).await
}

/// Reads from SQL what the log says of authors after the positions of their tables: a name from a table may be older than that.
/// None of it is trimmed, for trimming waits for these readers.
async fn hear_what_tables_lack(users: &Runtime<UserService>, listeners: &Listeners) -> Result<(), Failure> {
    let client = users.database().get().await?;
    // Row by row, as the log of a long outage is long. A table that noted no position yet has read nothing.
    let sql = "SELECT o.seq, o.epoch, o.key, o.type, o.payload, o.at
               FROM (SELECT s.id, (SELECT COALESCE(min(COALESCE(c.position, 0)), 0)
                                   FROM UNNEST($1::text[]) AS t(name) LEFT JOIN consumer c ON c.name = t.name AND c.shard = s.id)
                     FROM shard s) AS p(shard, position)
               JOIN outbox o ON o.shard = p.shard AND o.seq > p.position
               WHERE o.type IN ('user.updated', 'user.deleted') ORDER BY o.shard, o.seq";
    let hear = |row: Row| {
        listeners.hear_of_author(&Record {
            seq: row.get(0),
            epoch: row.get(1),
            key: row.get(2),
            kind: row.get::<_, &str>(3).into(),
            payload: row.get::<_, Option<&str>>(4).map(Arc::from),
            traceparent: None,
            at: row.get(5),
        });
        Ok(())
    };
    client.query_each(sql, &[&TABLES.as_slice()], hear).await
}

/// Reads from SQL which sessions were closed within the life of a token.
async fn revoke_closed(users: &Runtime<UserService>, revoked: &RevokedSessions) -> Result<(), Failure> {
    let since = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(revoked.remembered_s());
    let client = users.database().get().await?;
    let rows = client.query("SELECT payload FROM outbox WHERE at > $1 AND type = 'session.closed'", &[&since]).await?;
    for row in rows {
        revoke(revoked, row.get(0));
    }
    Ok(())
}

struct Hearing {
    users: Runtime<UserService>,
    listeners: Listeners,
    /// Reads from SQL what the log no longer tells.
    catching_up: Mutex<Option<JoinHandle<()>>>,
}

impl Reader for Hearing {
    async fn take(&self, fetched: &[Fetched]) {
        for record in fetched.iter().flat_map(|fetched| &fetched.records) {
            self.hear(record);
        }
    }

    /// The log was trimmed before we came to it, or is another: what was known before is forgotten.
    fn outside(&self, error: &LogError) -> Option<(ShardId, Seq)> {
        let LogError::OutOfRange { source_shard, head, .. } = error else {
            return None;
        };
        episodes::warn("news of users were missed, they are learnt anew", "users", error);
        self.listeners.posts.service().authors.clear();
        self.listeners.comments.service().authors.clear();
        let mut catching_up = self.catching_up.lock().expect("no panic under this lock");
        if catching_up.as_ref().is_none_or(JoinHandle::is_finished) {
            let (users, listeners) = (self.users.clone(), self.listeners.clone());
            *catching_up = Some(tokio::spawn(async move {
                while let Err(failure) = catch_up(&users, &listeners).await {
                    episodes::warn("missed news of users cannot be read", "users", &failure);
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }));
        }
        Some((source_shard.shard, *head))
    }
}

impl Hearing {
    fn hear(&self, record: &Record) {
        match &*record.kind {
            "session.closed" => revoke(&self.listeners.revoked, record.payload.as_deref()),
            "user.created" | "user.updated" | "user.deleted" => self.listeners.hear_of_author(record),
            _ => {}
        }
    }
}

#[derive(serde::Deserialize)]
struct Closed {
    id: Uuid,
}

fn revoke(revoked: &RevokedSessions, payload: Option<&str>) {
    match payload.map(serde_json::from_str::<Closed>) {
        Some(Ok(Closed { id })) => revoked.revoke(id, jiff::Timestamp::now().as_second()),
        _ => tracing::error!("a closed session's record does not parse"),
    }
}
