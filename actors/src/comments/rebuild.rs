//! What comments know of other services, made anew from their state.

use std::collections::HashSet;

use uuid::Uuid;

use super::{
    Comments,
    entity::Event,
    service::{ClosedRow, Note},
};
use crate::{
    authors::{self, AuthorResetRow},
    entity::Failure,
    event::Topic,
    ids::ShardId,
    posts::{self, PostService},
    runtime::Runtime,
    users::UserService,
};

/// How many comments each author has; those of closed threads count until they are told of as gone.
pub(crate) const BY_AUTHOR: &str = "SELECT author, count(*) FROM comment WHERE author IS NOT NULL GROUP BY author";
/// The same of each post.
pub(crate) const BY_POST: &str = "SELECT post, count(*) FROM comment WHERE author IS NOT NULL GROUP BY post";

impl Comments {
    /// Makes the authors of these shards what the accounts are.
    ///
    /// # Errors
    /// When a database does not answer, or a shard could not be written: what was asked for stays asked for.
    pub async fn rebuild_from_users(&self, publisher: &Runtime<UserService>, shards: &[ShardId]) -> Result<(), Failure> {
        let mut rebuild = self.runtime.begin_rebuild(publisher, Topic::Users, shards).await?;
        for author in authors::to_reset(&rebuild).await? {
            if let Some(unit) = rebuild.unit(author.id.0) {
                unit.writes.author_resets.push(AuthorResetRow::from(&author));
                unit.notes.push(Note::Author(author));
            }
        }
        rebuild.commit(true).await?;
        self.runtime.service().authors.clear();
        Ok(())
    }

    /// Closes the threads in these shards whose post there is not (any more). A thread that was closed stays so, whatever
    /// became of its post: its comments are gone.
    ///
    /// # Errors
    /// As [`Comments::rebuild_from_users`].
    pub async fn rebuild_from_posts(&self, publisher: &Runtime<PostService>, shards: &[ShardId]) -> Result<(), Failure> {
        let mut rebuild = self.runtime.begin_rebuild(publisher, Topic::Posts, shards).await?;
        let id = |row: &tokio_postgres::Row| -> (Uuid, ()) { (row.get(0), ()) };
        let there = rebuild.published(posts::IDS, id).await?;
        let threads = "SELECT DISTINCT post FROM comment c WHERE NOT EXISTS (SELECT FROM closed_thread t WHERE t.post = c.post)";
        let open = rebuild.stored(threads, id).await?;
        let orphans: HashSet<Uuid> = open.into_keys().filter(|post| !there.contains_key(post)).collect();
        for post in orphans {
            if let Some(unit) = rebuild.unit(post) {
                unit.writes.closed.push(ClosedRow { post });
                unit.effects.push((post, Event::Closed));
                unit.notes.push(Note::Closed);
            }
        }
        rebuild.commit(true).await
    }
}
