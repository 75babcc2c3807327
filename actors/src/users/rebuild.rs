//! What users know of other services, made anew from their state.

use std::collections::HashMap;

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    UserService, Users,
    entity::{Counts, Event},
    service::{CountRow, FollowedRow, FollowerRow, UnfollowerRow},
};
use crate::{
    comments::{self, CommentService},
    entity::Failure,
    event::Topic,
    ids::ShardId,
    posts::{self, PostService},
    runtime::{
        Runtime, Unit,
        rebuild::{differences, number},
    },
};

/// What everybody may see of all accounts, those that are gone included: the columns of a table of authors.
pub(crate) const AUTHORS: &str = "SELECT id, version, COALESCE(username, ''), display_name, avatar_url, deleted FROM app_user";
/// Who follows whom since when.
pub(crate) const FOLLOWS: &str = "SELECT follower, followee, at FROM follow";

impl Users {
    /// Makes the followers of users in these shards, and their number, what the followers' own rows say.
    ///
    /// # Errors
    /// When a database does not answer, or a shard could not be written: what was asked for stays asked for.
    pub async fn rebuild_from_users(&self, shards: &[ShardId]) -> Result<(), Failure> {
        let mut rebuild = self.runtime.begin_rebuild(&self.runtime, Topic::Users, shards).await?;
        let edge = |row: &tokio_postgres::Row| -> ((Uuid, Uuid), Timestamp) { ((row.get(0), row.get(1)), row.get(2)) };
        let wanted = rebuild.published("SELECT followee, follower, at FROM follow", edge).await?;
        let have = rebuild.stored("SELECT followee, follower, at FROM follower", edge).await?;
        let counted =
            rebuild.stored("SELECT user_id, follower_count FROM user_counter WHERE follower_count <> 0", number).await?;
        for (&(followee, follower), &at) in wanted.iter().filter(|(edge, _)| !have.contains_key(edge)) {
            let nr = rebuild.head(follower);
            if let Some(unit) = rebuild.unit(followee) {
                unit.writes.followers.push(FollowerRow { nr, followee, follower, at, active: true });
                unit.writes.followed.push(FollowedRow { followee });
            }
        }
        for &(followee, follower) in have.keys().filter(|edge| !wanted.contains_key(edge)) {
            let nr = rebuild.head(follower);
            if let Some(unit) = rebuild.unit(followee) {
                unit.writes.unfollowers.push(UnfollowerRow { nr, followee, follower, active: false });
            }
        }
        let mut followers: HashMap<Uuid, i64> = HashMap::new();
        for (followee, _) in wanted.keys() {
            *followers.entry(*followee).or_default() += 1;
        }
        for (user, change) in differences(&followers, &counted) {
            count(rebuild.unit(user), user, Counts { followers: change, ..Counts::default() });
        }
        rebuild.commit(true).await
    }

    /// Makes the number of posts of users in these shards what the posts are.
    ///
    /// # Errors
    /// As [`Users::rebuild_from_users`].
    pub async fn rebuild_from_posts(&self, publisher: &Runtime<PostService>, shards: &[ShardId]) -> Result<(), Failure> {
        let mut rebuild = self.runtime.begin_rebuild(publisher, Topic::Posts, shards).await?;
        let wanted = rebuild.published(posts::BY_AUTHOR, number).await?;
        let have = rebuild.stored("SELECT user_id, post_count FROM user_counter WHERE post_count <> 0", number).await?;
        for (user, change) in differences(&wanted, &have) {
            count(rebuild.unit(user), user, Counts { posts: change, ..Counts::default() });
        }
        rebuild.commit(true).await
    }

    /// Makes the number of comments of users in these shards what the comments are.
    ///
    /// # Errors
    /// As [`Users::rebuild_from_users`].
    pub async fn rebuild_from_comments(&self, publisher: &Runtime<CommentService>, shards: &[ShardId]) -> Result<(), Failure> {
        let mut rebuild = self.runtime.begin_rebuild(publisher, Topic::Comments, shards).await?;
        let wanted = rebuild.published(comments::BY_AUTHOR, number).await?;
        let have = rebuild.stored("SELECT user_id, comment_count FROM user_counter WHERE comment_count <> 0", number).await?;
        for (user, change) in differences(&wanted, &have) {
            count(rebuild.unit(user), user, Counts { comments: change, ..Counts::default() });
        }
        rebuild.commit(true).await
    }
}

fn count(unit: Option<&mut Unit<UserService>>, user_id: Uuid, counts: Counts) {
    let Some(unit) = unit else { return };
    let Counts { posts, comments, followers } = counts;
    unit.writes.counts.push(CountRow { user_id, posts, comments, followers, following: 0 });
    unit.effects.push((user_id, Event::Counted(counts)));
}
