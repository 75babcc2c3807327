//! What is put in order among posts now and then: what deleted accounts leave behind, and how many posts have a tag.

use std::collections::BTreeMap;

use tokio::time::Instant;
use uuid::Uuid;

use super::{
    Posts, heads,
    service::{EndedFollowRow, PostService},
};
use crate::{departed, entity::Failure, ids::ShardId, runtime::Unit};

/// Rows looked at together.
const PAGE_MAX: i64 = 1_000;

/// Posts whose tags are ranked by one statement: it locks their rows.
const RANKED_MAX: i64 = 500;

/// Changes of tags added up by one statement at most: it holds locks.
const CHANGES_MAX: i64 = 10_000;

impl Posts {
    /// Takes back what deleted accounts like among what is served here, until nothing is left or the time is over; how many
    /// likes went. To be called now and then on every node.
    ///
    /// # Errors
    /// When one of them could not be taken back now: the next call begins with what is left.
    pub async fn take_back_likes(&self, deadline: Instant) -> Result<usize, Failure> {
        departed::take_back_likes(&self.runtime, deadline).await
    }

    /// Takes away the rows of follows that ended: those that an older node left with the ids of both, and those that stood
    /// against dead letters that are gone by now. How many went.
    ///
    /// # Errors
    /// When the database does not answer: the next call begins with what is left.
    pub async fn sweep_ended_follows(&self, deadline: Instant) -> Result<usize, Failure> {
        let (mut gone, mut after) = (0, (Uuid::nil(), Uuid::nil()));
        while Instant::now() < deadline {
            let rows = {
                let client = self.runtime.database().get().await?;
                let sql = "SELECT follower, followee FROM follow f WHERE NOT active AND (follower, followee) > ($1, $2)
                           AND NOT EXISTS (SELECT FROM dead_letter d
                               WHERE d.key = f.follower AND d.type IN ('user.followed', 'user.unfollowed'))
                           ORDER BY follower, followee LIMIT $3";
                client.query(sql, &[&after.0, &after.1, &PAGE_MAX]).await?
            };
            let Some(last) = rows.last() else { break };
            after = (last.get(0), last.get(1));
            let mut units: BTreeMap<ShardId, Unit<PostService>> = BTreeMap::new();
            for row in &rows {
                let (follower, followee): (Uuid, Uuid) = (row.get(0), row.get(1));
                let shard = self.runtime.shard_of(follower);
                if self.runtime.head(shard).is_some() {
                    let unit = units.entry(shard).or_insert_with(|| Unit::of(self.runtime.shards()));
                    unit.writes.ended_follows.push(EndedFollowRow { follower, followee });
                    gone += 1;
                }
            }
            for (shard, unit) in units {
                // In turn with the log, which may begin one of them anew.
                let sweep = self.runtime.sweep(shard).await?;
                self.runtime.commit_sweep(sweep, unit).await?;
            }
        }
        Ok(gone)
    }

    /// Adds up what batches have noted of tags that posts were given or lost; how many notes there were. To be called now and
    /// then on every node: what two of them do at once they do not do twice.
    ///
    /// # Errors
    /// When the database does not answer: the next call finds what is left.
    pub async fn count_tags(&self, deadline: Instant) -> Result<u64, Failure> {
        let mut counted = 0;
        while Instant::now() < deadline {
            let client = self.runtime.database().get().await?;
            let row = client
                .query_one(
                    "WITH noted AS (
                         DELETE FROM tag_change WHERE ctid = ANY (ARRAY(SELECT ctid FROM tag_change LIMIT $1 FOR UPDATE SKIP LOCKED))
                         RETURNING tag, change),
                     added AS (
                         INSERT INTO used_tag AS u (tag, posts) SELECT tag, sum(change) FROM noted GROUP BY tag ORDER BY tag
                         ON CONFLICT (tag) DO UPDATE SET posts = u.posts + excluded.posts RETURNING tag, posts)
                     SELECT (SELECT count(*) FROM noted), ARRAY(SELECT tag FROM added WHERE posts = 0)",
                    &[&CHANGES_MAX],
                )
                .await?;
            let (notes, unused): (i64, Vec<String>) = (row.get(0), row.get(1));
            if !unused.is_empty() {
                // Unless it is used again by now.
                client.execute("DELETE FROM used_tag WHERE tag = ANY($1) AND posts = 0", &[&unused]).await?;
            }
            counted += notes.unsigned_abs();
            if notes < CHANGES_MAX {
                break;
            }
        }
        Ok(counted)
    }

    /// Ranks the tags of posts that were there before the database did so by itself; whether all of them are ranked. To be
    /// called now and then on every node, until they are.
    ///
    /// # Errors
    /// When the database does not answer: the next call goes on there.
    pub async fn rank_tags(&self, deadline: Instant) -> Result<bool, Failure> {
        while Instant::now() < deadline {
            let client = self.runtime.database().get().await?;
            // The posts are locked until their ranks are in: a like comes before both or after both.
            let place = client
                .query_opt(
                    "WITH place AS (
                         SELECT value::uuid AS after FROM setting WHERE name = 'ranked_tags' AND value <> 'all' FOR UPDATE SKIP LOCKED),
                     page AS MATERIALIZED (
                         SELECT p.id FROM place CROSS JOIN LATERAL (
                             SELECT id FROM post WHERE id > place.after ORDER BY id LIMIT $1) p),
                     posts AS MATERIALIZED (
                         SELECT id, tags, like_count, hot FROM post WHERE id = ANY (ARRAY(SELECT id FROM page)) ORDER BY id FOR SHARE),
                     ranked AS (
                         INSERT INTO ranked_tag (tag, post, like_count, hot)
                         SELECT tag, id, like_count, hot FROM posts CROSS JOIN LATERAL UNNEST(tags) AS t(tag) ON CONFLICT DO NOTHING)
                     UPDATE setting SET value = COALESCE((SELECT id::text FROM page ORDER BY id DESC LIMIT 1), 'all')
                     WHERE name = 'ranked_tags' AND EXISTS (SELECT FROM place) RETURNING value",
                    &[&RANKED_MAX],
                )
                .await?;
            match place {
                Some(place) if place.get::<_, &str>(0) != "all" => {}
                Some(_) => return Ok(true),
                // Another node is at it, or all of them are.
                None => return heads::tags_are_ranked(&self.runtime, &client).await,
            }
        }
        Ok(false)
    }
}
