//! Accounts that are gone, in the services that know them as authors: what they liked is taken back, in bounded steps
//! ([0016](../../docs/adr/0016-cascades-leave-in-slices.md)).
//!
//! A like belongs to what is liked, and is taken back as its user would have done it, by a command: so the count follows,
//! and an owner that dies in the middle leaves rows that the next look finds.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::{
    entity::{AskError, Entity, Failure},
    ids::ShardId,
    runtime::{Context, Runtime, Unit},
    service::Service,
    table::table,
};

/// Likes looked at together.
const PAGE_MAX: i64 = 1_000;
/// Likes that are taken back at a time.
const AT_ONCE: usize = 32;
/// How long an account that is gone is looked after: longer than the last of its access tokens, which a gateway that has not
/// heard of the end of its session may take for good.
const LATE_LIKES_FOR: Duration = Duration::from_secs(20 * 60);

/// A like of an account that is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Like {
    /// Whose.
    pub(crate) user: Uuid,
    /// The post or comment.
    pub(crate) liked: Uuid,
    /// The entity that counts it; none: it is gone, and the like belongs to nothing any more.
    entity: Option<Uuid>,
}

impl Like {
    /// The id whose shard the row belongs to. Of what has no row itself, the shard cannot be known: the user's takes it.
    fn home(&self) -> Uuid {
        self.entity.unwrap_or(self.user)
    }
}

/// A service in which likes are kept beside authors.
pub(crate) trait Likes: Service {
    /// Likes of these users, after one of them and what they like: user, what is liked, entity.
    const LIKES: &'static str;
    /// Authors who are gone and not done with, after one of them: id, whether they are being looked after, whether that is
    /// over and no like is left.
    const AUTHORS: &'static str;

    /// Takes a like back.
    fn unlike(like: &Like) -> <Self::Entity as Entity>::Command;
    /// Takes away a like of what is gone.
    fn forget(unit: &mut Unit<Self>, like: &Like);
    /// Begins to look after an author who is gone.
    fn depart(unit: &mut Unit<Self>, author: Uuid);
    /// Is done with one.
    fn depart_for_good(unit: &mut Unit<Self>, author: Uuid);
}

table! {
    /// Authors who are gone, and looked after from now on.
    pub(crate) struct DepartingRows of DepartingRow { id: Uuid => "uuid" }
    "UPDATE author a SET departed_at = now() FROM {rows} WHERE a.id = r.id AND a.deleted AND a.departed_at IS NULL"
}

table! {
    /// Authors who are gone, and of whom no like is left.
    pub(crate) struct DepartedRows of DepartedRow { id: Uuid => "uuid" }
    "UPDATE author a SET likes_gone = true FROM {rows} WHERE a.id = r.id AND a.deleted"
}

table! {
    /// Authors who are gone: what could not be applied of them says what nobody should read any more, and would be older
    /// than what is known by now.
    pub(crate) struct StaleLetterRows of StaleLetterRow { author: Uuid => "uuid" }
    "DELETE FROM dead_letter d USING {rows} WHERE d.key = r.author AND d.type IN ('user.created', 'user.updated')"
}

/// Takes back what departed accounts like among what is served here, until nothing is left or the time is over; how many
/// likes went.
///
/// # Errors
/// When one of them could not be taken back now: the next call begins with what is left.
pub(crate) async fn take_back_likes<S: Likes>(runtime: &Runtime<S>, deadline: Instant) -> Result<usize, Failure> {
    let (mut gone, mut after) = (0, Uuid::nil());
    let late_s = LATE_LIKES_FOR.as_secs_f64();
    while Instant::now() < deadline {
        let authors = {
            let client = runtime.database().get().await?;
            client.query(S::AUTHORS, &[&after, &late_s, &PAGE_MAX]).await?
        };
        let Some(last) = authors.last() else { break };
        after = last.get(0);
        let ids: Vec<Uuid> = authors.iter().map(|row| row.get(0)).collect();
        gone += take_back_all(runtime, &ids, deadline).await?;
        look_after(runtime, &authors).await?;
    }
    Ok(gone)
}

/// What these authors like, page by page.
async fn take_back_all<S: Likes>(runtime: &Runtime<S>, authors: &[Uuid], deadline: Instant) -> Result<usize, Failure> {
    let (mut gone, mut after) = (0, (Uuid::nil(), Uuid::nil()));
    while Instant::now() < deadline {
        let page: Vec<Like> = {
            let client = runtime.database().get().await?;
            // Authors and likes in two questions: of one, the planner could make a walk through all likes there are.
            let rows = client.query(S::LIKES, &[&authors, &after.0, &after.1, &PAGE_MAX]).await?;
            rows.iter().map(|row| Like { user: row.get(0), liked: row.get(1), entity: row.get(2) }).collect()
        };
        let Some(last) = page.last() else { break };
        after = (last.user, last.liked);
        let ours = page.into_iter().filter(|like| runtime.head(runtime.shard_of(like.home())).is_some());
        gone += take_back(runtime, ours.collect(), deadline).await?;
    }
    Ok(gone)
}

async fn take_back<S: Likes>(runtime: &Runtime<S>, likes: Vec<Like>, deadline: Instant) -> Result<usize, Failure> {
    let count = likes.len();
    let asks = stream::iter(likes).map(async |like| {
        let Some(entity) = like.entity else { return Ok(Some(like)) };
        let context = Context { deadline, traceparent: None, idempotency: None };
        match runtime.ask(entity, S::unlike(&like), context).await {
            Ok(_) => Ok(None),
            // There is nothing any more that could be liked: nobody counts this one.
            Err(AskError::Rejected(_)) => Ok(Some(like)),
            Err(AskError::Failed(failure)) => Err(failure),
        }
    });
    let answers: Vec<Result<Option<Like>, Failure>> = asks.buffer_unordered(AT_ONCE).collect().await;
    let mut orphans: BTreeMap<ShardId, Vec<Like>> = BTreeMap::new();
    for like in answers.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten() {
        orphans.entry(runtime.shard_of(like.home())).or_default().push(like);
    }
    for (shard, likes) in orphans {
        let sweep = runtime.sweep(shard).await?;
        let mut unit = Unit::of(runtime.shards());
        likes.iter().for_each(|like| S::forget(&mut unit, like));
        runtime.commit_sweep(sweep, unit).await?;
    }
    Ok(count)
}

/// Writes down which of our authors are gone since when, and which of them are done with.
async fn look_after<S: Likes>(runtime: &Runtime<S>, authors: &[Row]) -> Result<(), Failure> {
    let mut units: BTreeMap<ShardId, Unit<S>> = BTreeMap::new();
    for row in authors {
        let (author, looked_after, is_over): (Uuid, bool, bool) = (row.get(0), row.get(1), row.get(2));
        let shard = runtime.shard_of(author);
        if runtime.head(shard).is_none() || (looked_after && !is_over) {
            continue;
        }
        let unit = units.entry(shard).or_insert_with(|| Unit::of(runtime.shards()));
        if is_over { S::depart_for_good(unit, author) } else { S::depart(unit, author) }
    }
    for (shard, unit) in units {
        let sweep = runtime.sweep(shard).await?;
        runtime.commit_sweep(sweep, unit).await?;
    }
    Ok(())
}
