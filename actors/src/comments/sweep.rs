//! What a deleted post leaves behind: its comments go a slice at a time, each slice with the records by which others stop
//! counting them ([0016](../../../docs/adr/0016-cascades-leave-in-slices.md)).
//!
//! A slice deletes rows and appends one `comment.deleted` for each of them that had an author, in one transaction behind the
//! fence. So the rows that are left are exactly what is still to be told, whoever owns the shard by then: no position is
//! kept that could be ahead of the rows, or behind them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    CommentService, Comments,
    service::{GoneRow, SweptRow, UnlikeRow},
};
use crate::{
    departed,
    entity::Failure,
    ids::{CommentId, PostId, ShardId, UserId},
    records::{CommentRecord, json},
    runtime::{NewRecord, Pooled, Unit, now},
};

/// Comments in one slice at most, and so authors who are told of it.
pub const SLICE_MAX: usize = 1_000;
/// Likes that go in one slice at most: one comment may have had millions.
const LIKES_MAX: usize = 5_000;
/// Threads looked at together.
const THREADS_MAX: i64 = 10_000;

/// The next slice of the closed threads of a shard.
struct Slice {
    unit: Unit<CommentService>,
    /// What was written in the comments that go, as the node's cache names it.
    texts: Vec<(Uuid, u32)>,
    /// Threads of which something is left.
    left: Vec<Uuid>,
}

impl Comments {
    /// Waits until a thread is closed on this node.
    pub async fn closing(&self) {
        self.runtime.service().closing.notified().await;
    }

    /// Takes away the comments of deleted posts, in slices: each shard that is served here gets one in turn, until nothing is
    /// left or the time is over. To be called now and then on every node; how many comments went.
    ///
    /// # Errors
    /// The last slice that could not be committed; the others went on, and the next call begins with what is left.
    pub async fn sweep_closed(&self, deadline: Instant) -> Result<usize, Failure> {
        let (mut gone, mut failed, mut after) = (0, None, Uuid::nil());
        while let Some((last, mut left)) = self.unswept(after).await? {
            while !left.is_empty() {
                for (shard, posts) in std::mem::take(&mut left) {
                    if Instant::now() >= deadline {
                        return failed.map_or(Ok(gone), Err);
                    }
                    match self.sweep_slice(shard, posts).await {
                        Ok((comments, posts)) => {
                            gone += comments;
                            if !posts.is_empty() {
                                left.insert(shard, posts);
                            }
                        }
                        // Its next owner finds the same rows.
                        Err(Failure::Moved(_)) => {}
                        Err(failure) => failed = Some(failure),
                    }
                }
            }
            after = last;
        }
        failed.map_or(Ok(gone), Err)
    }

    /// Takes back what deleted accounts like among what is served here, until nothing is left or the time is over; how many
    /// likes went. To be called now and then on every node.
    ///
    /// # Errors
    /// When one of them could not be taken back now: the next call begins with what is left.
    pub async fn take_back_likes(&self, deadline: Instant) -> Result<usize, Failure> {
        departed::take_back_likes(&self.runtime, deadline).await
    }

    /// The next closed threads with something left of them: the last one, and those that are ours by their shards.
    async fn unswept(&self, after: Uuid) -> Result<Option<(Uuid, BTreeMap<ShardId, Vec<Uuid>>)>, Failure> {
        let client = self.runtime.database().get().await?;
        let sql = "SELECT post FROM closed_thread WHERE NOT swept AND post > $1 ORDER BY post LIMIT $2";
        let rows = client.query(sql, &[&after, &THREADS_MAX]).await?;
        let mut ours: BTreeMap<ShardId, Vec<Uuid>> = BTreeMap::new();
        let mut last = None;
        for row in &rows {
            let post: Uuid = row.get(0);
            let shard = self.runtime.shard_of(post);
            last = Some(post);
            if self.runtime.head(shard).is_some() {
                ours.entry(shard).or_default().push(post);
            }
        }
        Ok(last.map(|last| (last, ours)))
    }

    /// One slice of these threads of a shard; how many comments went, and the threads of which something is left.
    async fn sweep_slice(&self, shard: ShardId, posts: Vec<Uuid>) -> Result<(usize, Vec<Uuid>), Failure> {
        let sweep = self.runtime.sweep(shard).await?;
        let Slice { unit, texts, left } = {
            let client = self.runtime.database().get().await?;
            slice(client, self.runtime.shards(), posts).await?
        };
        self.runtime.commit_sweep(sweep, unit).await?;
        self.runtime.service().texts.forget(&texts);
        Ok((texts.len(), left))
    }
}

/// Chooses the slice, in the order of posts and comments.
async fn slice(client: Pooled, shards: u16, posts: Vec<Uuid>) -> Result<Slice, Failure> {
    // One more tells whether it is the last.
    let limit = i64::try_from(SLICE_MAX + 1).expect("a slice is short");
    let mut rows = client
        .query(
            "SELECT post, id, parent, depth, author, created_at, version FROM comment WHERE post = ANY($1)
             ORDER BY post, id LIMIT $2",
            &[&posts, &limit],
        )
        .await?;
    let cut: Option<Uuid> = rows.get(SLICE_MAX).map(|row| row.get(0));
    rows.truncate(SLICE_MAX);
    let ids: Vec<Uuid> = rows.iter().map(|row| row.get(1)).collect();
    let mut unit: Unit<CommentService> = Unit::of(shards);
    let limit = i64::try_from(LIKES_MAX + 1).expect("a slice is short");
    let likes =
        client.query("SELECT comment, user_id FROM comment_like WHERE comment = ANY($1) LIMIT $2", &[&ids, &limit]).await?;
    for like in likes.iter().take(LIKES_MAX) {
        unit.writes.unlikes.push(UnlikeRow { comment: like.get(0), user_id: like.get(1) });
    }
    if likes.len() > LIKES_MAX {
        // Comments go after the last of their likes, which nobody would find without them.
        return Ok(Slice { unit, texts: Vec::new(), left: posts });
    }
    let at = now();
    let mut texts = Vec::with_capacity(rows.len());
    for row in &rows {
        let (post, id, version): (Uuid, Uuid, i64) = (row.get(0), row.get(1), row.get(6));
        unit.writes.gone.push(GoneRow { post, id });
        texts.extend(u32::try_from(version).ok().map(|version| (id, version)));
        // A tombstone was told of when it became one.
        if let Some(record) = deleted(row, at) {
            unit.records.push(NewRecord { key: post, kind: "comment.deleted", payload: json(&record), traceparent: None });
        }
    }
    let (left, done) = posts.into_iter().partition(|post| cut.is_some_and(|cut| *post >= cut));
    let done: Vec<Uuid> = done;
    done.into_iter().for_each(|post| unit.writes.swept.push(SweptRow { post }));
    Ok(Slice { unit, texts, left })
}

/// What is told of a comment that goes with its post; none: it is a tombstone.
fn deleted(row: &Row, at: Timestamp) -> Option<CommentRecord> {
    let author: Option<Uuid> = row.get(4);
    Some(CommentRecord {
        id: CommentId(row.get(1)),
        post_id: PostId(row.get(0)),
        parent_id: row.get::<_, Option<Uuid>>(2).map(CommentId),
        depth: row.get::<_, i16>(3).unsigned_abs(),
        author: UserId(author?),
        body: String::new(),
        created_at: row.get(5),
        updated_at: at,
        version: row.get::<_, i64>(6) + 1,
        deleted: true,
    })
}
