//! What posts know of other services, made anew from their state.

use uuid::Uuid;

use super::{
    Posts,
    entity::Event,
    service::{CountRow, FollowRow, LetteredUnfollowRow, UnfollowRow},
};
use crate::{
    authors::{self, AuthorResetRow},
    comments::{self, CommentService},
    entity::Failure,
    event::Topic,
    ids::ShardId,
    runtime::{
        Runtime,
        rebuild::{differences, number},
    },
    users::{self, UserService},
};

/// How many posts each author has.
pub(crate) const BY_AUTHOR: &str = "SELECT author, count(*) FROM post GROUP BY author";
/// All that there are.
pub(crate) const IDS: &str = "SELECT id FROM post";

impl Posts {
    /// Makes the authors of these shards, and whom they follow, what the accounts are.
    ///
    /// # Errors
    /// When a database does not answer, or a shard could not be written: what was asked for stays asked for.
    pub async fn rebuild_from_users(&self, publisher: &Runtime<UserService>, shards: &[ShardId]) -> Result<(), Failure> {
        let mut rebuild = self.runtime.begin_rebuild(publisher, Topic::Users, shards).await?;
        for author in authors::to_reset(&rebuild).await? {
            if let Some(unit) = rebuild.unit(author.id.0) {
                unit.writes.author_resets.push(AuthorResetRow::from(&author));
                unit.notes.push(author);
            }
        }
        let edge = |row: &tokio_postgres::Row| -> ((Uuid, Uuid), ()) { ((row.get(0), row.get(1)), ()) };
        let wanted = rebuild.published(users::FOLLOWS, edge).await?;
        let have = rebuild.stored("SELECT follower, followee FROM follow WHERE active", edge).await?;
        let begun = wanted.keys().filter(|edge| !have.contains_key(edge)).map(|edge| (*edge, true));
        let ended = have.keys().filter(|edge| !wanted.contains_key(edge)).map(|edge| (*edge, false));
        for ((follower, followee), active) in begun.chain(ended) {
            let nr = rebuild.head(follower);
            let shard = self.runtime.shard_of(follower).as_i16();
            let Some(unit) = rebuild.unit(follower) else { continue };
            let replayed = false;
            unit.writes.follows.push(FollowRow { shard, nr, follower, followee, active, replayed });
            unit.writes.unfollows.push(UnfollowRow { shard, nr, follower, followee, active, replayed });
            unit.writes.lettered_unfollows.push(LetteredUnfollowRow { shard, nr, follower, followee, active, replayed });
        }
        rebuild.commit(true).await?;
        self.runtime.service().authors.clear();
        Ok(())
    }

    /// Makes the number of comments of posts in these shards what the comments are.
    ///
    /// # Errors
    /// As [`Posts::rebuild_from_users`].
    pub async fn rebuild_from_comments(&self, publisher: &Runtime<CommentService>, shards: &[ShardId]) -> Result<(), Failure> {
        let mut rebuild = self.runtime.begin_rebuild(publisher, Topic::Comments, shards).await?;
        let wanted = rebuild.published(comments::BY_POST, number).await?;
        let have = rebuild.stored("SELECT post, comment_count FROM post_counter WHERE comment_count <> 0", number).await?;
        for (post, change) in differences(&wanted, &have) {
            if let Some(unit) = rebuild.unit(post) {
                unit.writes.counts.push(CountRow { post, change });
                unit.effects.push((post, Event::CommentsCounted(change)));
            }
        }
        rebuild.commit(true).await
    }
}
