//! What deleted accounts leave behind among posts.

use std::collections::BTreeMap;

use tokio::time::Instant;
use uuid::Uuid;

use super::{
    Posts,
    service::{EndedFollowRow, PostService},
};
use crate::{departed, entity::Failure, ids::ShardId, runtime::Unit};

/// Rows looked at together.
const PAGE_MAX: i64 = 1_000;

impl Posts {
    /// Takes back what deleted accounts like among what is served here, until nothing is left or the time is over; how many
    /// likes went. To be called now and then on every node.
    ///
    /// # Errors
    /// When one of them could not be taken back now: the next call begins with what is left.
    pub async fn take_back_likes(&self, deadline: Instant) -> Result<usize, Failure> {
        departed::take_back_likes(&self.runtime, deadline).await
    }

    /// Takes away the rows of follows that ended on an older node, which leaves them with the ids of both; how many went.
    ///
    /// # Errors
    /// When the database does not answer: the next call begins with what is left.
    pub async fn sweep_ended_follows(&self, deadline: Instant) -> Result<usize, Failure> {
        let (mut gone, mut after) = (0, (Uuid::nil(), Uuid::nil()));
        while Instant::now() < deadline {
            let rows = {
                let client = self.runtime.database().get().await?;
                let sql = "SELECT follower, followee FROM follow WHERE NOT active AND (follower, followee) > ($1, $2)
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
}
