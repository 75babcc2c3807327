//! What has to be looked at now and then: logs to trim, comments of deleted posts, edges of deleted accounts, tags to count,
//! signing keys that come of age, documents that missed events for good.

use std::time::Duration;

use rookery_actors::{
    comments::Comments,
    episodes::{self, with_causes},
    posts::Posts,
    runtime::{Retention, Runtime},
    search::SearchService,
    secret::KeyRing,
    service::Service,
    users::{UserService, Users, keys::SigningKeys},
};
use tokio::{task::JoinHandle, time::Instant};

use crate::rebuild::Rebuilder;

const EVERY: Duration = Duration::from_secs(60);

/// Between two looks at what does not wait for a minute.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Between two counts of tags: what came meanwhile every list of tags adds up for itself.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// How long a record of a log is kept in any case: for readers that come a little later, and for a look back.
const RECORDS: Duration = Duration::from_secs(3600);

/// How much longer than an access token lives the users' log is kept: a starting gateway reads from it which sessions were closed.
const RECORDS_OF_SESSIONS: Duration = Duration::from_secs(15 * 60);

/// API.md: kept 24 h.
const IDEMPOTENCY: Duration = Duration::from_secs(24 * 3600);

/// What is kept of a service's logs.
pub(super) fn retention(consumers: Vec<&'static str>, relayed: bool) -> Retention {
    Retention { consumers, relayed, records: RECORDS, idempotency: IDEMPOTENCY }
}

/// What is kept of the users' logs, where access tokens live so long.
pub(super) fn retention_of_users(consumers: Vec<&'static str>, relayed: bool, token_life: Duration) -> Retention {
    Retention { records: RECORDS.max(token_life + RECORDS_OF_SESSIONS), ..retention(consumers, relayed) }
}

/// Trims a service's logs until the runtime stops.
pub(super) fn start<S: Service>(runtime: Runtime<S>, retention: Retention) -> JoinHandle<()> {
    tokio::spawn(async move {
        while !runtime.is_stopped() {
            tokio::time::sleep(EVERY).await;
            match runtime.trim(&retention).await {
                Ok(0) => {}
                Ok(rows) => tracing::debug!(service.name = S::NAME, rows, "trimmed the log"),
                Err(failure) => episodes::warn("the log cannot be trimmed", S::NAME, &failure),
            }
        }
    })
}

/// Takes away the comments of deleted posts: at once when a thread is closed here, and what a former owner has left.
pub(super) fn sweep_threads(comments: Comments) -> JoinHandle<()> {
    tokio::spawn(async move {
        while !comments.runtime().is_stopped() {
            // Timed out is as good: then it is time to look.
            let _ = tokio::time::timeout(LOOK_EVERY, comments.closing()).await;
            if let Err(failure) = comments.sweep_closed(Instant::now() + EVERY).await {
                episodes::warn("the comments of deleted posts must wait", "comments", &failure);
            }
        }
    })
}

/// Takes back what deleted accounts like, among posts and among comments.
pub(super) fn take_back_likes(posts: Option<Posts>, comments: Option<Comments>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let is_over = || {
            let posts = posts.as_ref().is_none_or(|posts| posts.runtime().is_stopped());
            posts && comments.as_ref().is_none_or(|comments| comments.runtime().is_stopped())
        };
        while !is_over() {
            tokio::time::sleep(LOOK_EVERY).await;
            let deadline = Instant::now() + EVERY;
            let mut outcomes = Vec::new();
            if let Some(posts) = &posts {
                outcomes.push(posts.take_back_likes(deadline).await);
                outcomes.push(posts.sweep_ended_follows(deadline).await);
            }
            if let Some(comments) = &comments {
                outcomes.push(comments.take_back_likes(deadline).await);
            }
            for failure in outcomes.into_iter().filter_map(Result::err) {
                episodes::warn("likes of deleted accounts must wait", "", &failure);
            }
        }
    })
}

/// Adds up how many posts have a tag, and ranks those that were there before the database did so by itself.
pub(super) fn count_tags(posts: Posts) -> JoinHandle<()> {
    tokio::spawn(async move {
        // A node that leaves has its sessions ended a moment before it stops: one failure says nothing.
        let (mut ranked, mut failed) = (false, false);
        while !posts.runtime().is_stopped() {
            tokio::time::sleep(COUNT_EVERY).await;
            let deadline = Instant::now() + EVERY;
            let done = async {
                ranked = ranked || posts.rank_tags(Instant::now() + LOOK_EVERY).await?;
                posts.count_tags(deadline).await
            };
            match done.await {
                Ok(_) => failed = false,
                Err(failure) if failed => episodes::warn("the posts of tags cannot be counted", "posts", &failure),
                Err(_) => failed = true,
            }
        }
    })
}

/// Takes the edges of deleted accounts apart, a few hundred at a time.
pub(super) fn sweep(users: Users) -> JoinHandle<()> {
    tokio::spawn(async move {
        while !users.runtime().is_stopped() {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(failure) = users.sweep_departed(Instant::now() + EVERY).await {
                episodes::warn("the edges of deleted accounts must wait", "users", &failure);
            }
        }
    })
}

/// Signs and verifies with the keys that are due: a rotated key is published before it signs, and longer than it did.
pub(super) fn follow_keys(
    users: Runtime<UserService>,
    secrets: KeyRing,
    install: impl Fn(&SigningKeys) + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        while !users.is_stopped() {
            tokio::time::sleep(EVERY).await;
            match SigningKeys::load_or_create(users.database(), &secrets).await {
                Ok(keys) => install(&keys),
                Err(error) => episodes::warn("the signing keys cannot be read", "users", with_causes(&error)),
            }
        }
    })
}

/// Makes anew from the publishers' state what bridges have missed for good, until the node stops.
pub(super) fn rebuild(mut rebuilder: Rebuilder, search: Runtime<SearchService>) -> JoinHandle<()> {
    tokio::spawn(async move {
        while !search.is_stopped() {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(failure) = rebuilder.look().await {
                episodes::warn("what was missed cannot be built anew, trying again", "", &failure);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use rookery_gateway::auth::RevokedSessions;

    use super::*;

    #[test]
    fn the_end_of_a_session_stays_in_the_log_as_long_as_a_starting_gateway_asks_for_it() {
        for life in [30, 900, 86_400].map(Duration::from_secs) {
            let asked_for = RevokedSessions::of_tokens(life).remembered_s().unsigned_abs();
            let kept = retention_of_users(Vec::new(), false, life).records;
            assert!(kept > Duration::from_secs(asked_for), "{life:?}: {kept:?}");
        }
    }
}
