//! What a node with a gateway must hear of users within a moment, whoever serves them: sessions that were closed, names
//! that changed.
//!
//! It follows the users' log from its heads on. Nothing of that is kept: whoever starts later knows no names yet, and
//! reads from SQL which sessions were closed. (The cache from user names to ids needs no news: it is a hint, and who uses
//! it looks whether that user still has the name.)

use std::{
    sync::{Arc, Mutex},
    time::Duration,
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
use uuid::Uuid;

use crate::readers::{Marks, Reader, Readers, changed};

/// An access token outlives its session by this at most, in seconds: its life, and the leeway of clocks.
const TOKEN_LIFE_S: i64 = 900 + 120;
/// The longest time between two looks at who serves which shard.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Before SQL is asked again when it did not answer.
const RETRY_AFTER: Duration = Duration::from_millis(500);

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

/// Learns what was closed within the life of a token, then follows the users' log.
///
/// # Errors
/// When the users' database does not answer.
pub async fn follow(
    users: &Runtime<UserService>,
    log: Arc<dyn EventLog>,
    listeners: Listeners,
) -> Result<JoinHandle<()>, Failure> {
    let marks = Marks::default();
    // The heads first: what is closed in between comes twice, and not never.
    for (shard, head) in users.heads().await? {
        marks.begin(shard, head);
    }
    revoke_closed(users, &listeners.revoked).await?;
    let mut news = Vec::from_iter(log.regroups(Topic::Users));
    news.extend(users.router().map(|router| router.changes()));
    let shards: Vec<ShardId> = (0..users.shards()).map(ShardId).collect();
    let hearing = Hearing { users: users.clone(), listeners, catching_up: Mutex::new(None) };
    let mut readers = Readers::new(Arc::new(hearing), log, Topic::Users, marks);
    Ok(tokio::spawn(async move {
        loop {
            readers.read(shards.clone());
            changed(&mut news, LOOK_EVERY).await;
        }
    }))
}

/// Reads from SQL which sessions were closed within the life of a token.
async fn revoke_closed(users: &Runtime<UserService>, revoked: &RevokedSessions) -> Result<(), Failure> {
    let since = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(TOKEN_LIFE_S);
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
            let (users, revoked) = (self.users.clone(), Arc::clone(&self.listeners.revoked));
            *catching_up = Some(tokio::spawn(async move {
                while let Err(failure) = revoke_closed(&users, &revoked).await {
                    episodes::warn("closed sessions cannot be read", "users", &failure);
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
            "user.created" | "user.updated" | "user.deleted" => {
                self.listeners.posts.service().authors.hear(record);
                self.listeners.comments.service().authors.hear(record);
            }
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
        Some(Ok(Closed { id })) => revoked.revoke(id, jiff::Timestamp::now().as_second() + TOKEN_LIFE_S),
        _ => tracing::error!("a closed session's record does not parse"),
    }
}
