//! A page of a list whose posts lie on several nodes: each is asked once for its part, and the parts are merged.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};
use tokio_postgres::types::ToSql;

use super::{
    entity::Post,
    lists::{Filter, HEAD, HerePage, Key, Paged, Sort, TOP, page_sql, ranked_page_sql},
    seen_here,
    service::{Answer, PostService, Query},
};
use crate::{
    entity::Failure,
    ids::{PostId, ShardId, UserId},
    runtime::{Pooled, Runtime, Served, unserved},
};

/// How long other nodes are waited for before SQL is asked instead: it has no heads, but it has everything.
const HEADS_WITHIN: Duration = Duration::from_millis(500);

/// How long the head of a list may be loaded, whoever still waits for it.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// Which part of which list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Asked {
    pub(crate) sort: Sort,
    pub(crate) filter: Filter,
    pub(crate) after: Option<Key>,
    pub(crate) limit: usize,
    /// Whose likes are told.
    pub(crate) viewer: Option<UserId>,
}

/// What one node has of a page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Head {
    /// In the order of the list, as many as were asked for if there are.
    listed: Vec<Listed>,
    /// Down to where the node knows everything; none: all the way.
    floor: Option<Key>,
    /// The shards whose posts it knows.
    shards: Vec<ShardId>,
}

/// A place in a page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub(crate) key: Key,
    /// The post, if it came along.
    pub(crate) post: Option<Post>,
    /// Whether the viewer likes it, as far as it came along.
    pub(crate) liked: bool,
}

impl Listed {
    fn bare(key: Key) -> Self {
        Self { key, post: None, liked: false }
    }
}

/// A page, from memory wherever it is, or from SQL.
pub(super) async fn list(runtime: &Runtime<PostService>, asked: Asked, deadline: Instant) -> Result<Vec<Listed>, Failure> {
    if runtime.is_unserved() {
        // An empty list out of SQL would look like an answer.
        return Err(unserved::<PostService>());
    }
    if let Some(here) = here_page(runtime, &asked).await? {
        // Alone in the cluster, or as good as.
        if here.served.shards.len() == usize::from(runtime.shards()) {
            if here.keys.len() == asked.limit || here.floor.is_none() {
                return Ok(here.keys.into_iter().map(Listed::bare).collect());
            }
        } else if let Some(listed) = merged(runtime, &asked, here, deadline).await {
            return Ok(listed);
        }
    }
    Ok(sql_page(runtime, &asked).await?.into_iter().map(Listed::bare).collect())
}

/// Our part, and those of all other nodes, if they make a page.
async fn merged(runtime: &Runtime<PostService>, asked: &Asked, here: HerePage, deadline: Instant) -> Option<Vec<Listed>> {
    let HerePage { keys, floor, served } = here;
    let listed = keys.into_iter().map(Listed::bare).collect();
    let mut heads = vec![Head { listed, floor, shards: served.shards.clone() }];
    let deadline = deadline.min(Instant::now() + HEADS_WITHIN);
    for (_, answer) in runtime.query_others(&Query::Head(asked.clone()), deadline).await {
        // Who does not answer may serve nothing, and the others know everything.
        if let Ok(Answer::Head(Some(head))) = answer {
            heads.push(head);
        }
    }
    merge(heads, runtime.shards(), asked.limit)
}

/// Puts the parts of a page together. None: they do not make one; some shards are on their way, or lie too deep.
fn merge(heads: Vec<Head>, shards: u16, limit: usize) -> Option<Vec<Listed>> {
    let mut known = vec![false; usize::from(shards)];
    for shard in heads.iter().flat_map(|head| &head.shards) {
        *known.get_mut(shard.index())? = true;
    }
    if known.contains(&false) {
        return None;
    }
    // Down to where all of them know everything: a full part may go on below its last key.
    let depth = |head: &Head| if head.listed.len() < limit { head.floor } else { head.listed.last().map(|last| last.key) };
    let floor = heads.iter().filter_map(depth).max();
    let mut listed: Vec<Listed> = heads.into_iter().flat_map(|head| head.listed).collect();
    listed.sort_unstable_by_key(|listed| std::cmp::Reverse(listed.key));
    // While a shard moves, its former owner and the next may both have told of it, before and after a like.
    let mut seen = HashSet::new();
    listed.retain(|listed| seen.insert(listed.key.id));
    listed.truncate(limit);
    let complete = match listed.last() {
        Some(last) if listed.len() == limit => floor.is_none_or(|floor| last.key >= floor),
        _ => floor.is_none(),
    };
    complete.then_some(listed)
}

/// Our part of a page, with the posts, for another node. None: SQL must be asked.
pub(super) async fn here_with_posts(
    runtime: &Runtime<PostService>,
    asked: &Asked,
    deadline: Instant,
) -> Result<Option<Head>, Failure> {
    let Some(HerePage { keys, floor, served }) = here_page(runtime, asked).await? else {
        return Ok(None);
    };
    let ids: Vec<PostId> = keys.iter().map(|key| key.id).collect();
    let (posts, liked) = match seen_here(runtime, &ids, asked.viewer, deadline).await {
        Ok(seen) => seen,
        Err(Failure::Moved(_)) => return Ok(None),
        Err(failure) => return Err(failure),
    };
    let mut posts: HashMap<PostId, Post> = posts.into_iter().map(|post| (post.id, post)).collect();
    // A post that went meanwhile keeps its place, so that a full part is known for one; there is nothing to show at it.
    let listed = keys.into_iter().map(|key| Listed { key, post: posts.remove(&key.id), liked: liked.contains(&key.id) });
    let listed = listed.collect();
    Ok(still_served(runtime, served.number).then(|| Head { listed, floor, shards: served.shards.clone() }))
}

/// Our part of a page. None: it lies below what we have, or is only being loaded.
async fn here_page(runtime: &Runtime<PostService>, asked: &Asked) -> Result<Option<HerePage>, Failure> {
    let Asked { sort, filter, after, limit, .. } = asked;
    let lists = &runtime.service().lists;
    let served = lists.served(runtime.tenure_number(), || runtime.served());
    if served.shards.is_empty() {
        return Ok(Some(HerePage { keys: Vec::new(), floor: None, served }));
    }
    let mut page = lists.page(*sort, filter, *after, *limit, &served);
    if matches!(page, Paged::AskHead) {
        // In a task of its own: who asked may go away or give up in the middle, and would leave the next one to begin anew.
        let loading = tokio::spawn(load_head(runtime.clone(), *sort, filter.clone(), Arc::clone(&served)));
        loading.await.unwrap_or(Err(Failure::Crashed))?;
        page = lists.page(*sort, filter, *after, *limit, &served);
    }
    match page {
        // The keys first, then whether they may be told (rule 8).
        Paged::Here(page) if still_served(runtime, page.served.number) => Ok(Some(page)),
        _ => Ok(None),
    }
}

/// Loads the head of a list, unless somebody else is at it.
async fn load_head(runtime: Runtime<PostService>, sort: Sort, filter: Filter, served: Arc<Served>) -> Result<(), Failure> {
    let Some(load) = runtime.service().lists.begin(sort, &filter, &served) else { return Ok(()) };
    let keys = async {
        let head = Asked { sort, filter, after: None, limit: HEAD, viewer: None };
        let keys = sql_page(&runtime, &head).await?;
        // What SQL has seen committed is in memory before both are put together, or a post whose likes were on their way would
        // have two places (rule 9).
        join_all(served.shards.iter().map(|shard| runtime.settled(*shard))).await;
        Ok(keys)
    };
    // Changes are collected meanwhile: not for longer than this.
    let keys: Vec<Key> = timeout(HEAD_WITHIN, keys).await.unwrap_or(Err(Failure::Expired))?;
    load.finish(&keys, |id| served.shards.binary_search(&runtime.shard_of(id.0)).is_ok());
    Ok(())
}

/// What a page of any list was made of besides its place and its reader: it is the same as long as this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    tenures: u64,
    /// Of posts in memory, counted before who made them hears of it.
    events: u64,
    /// Of posts that are not in memory they are all there is to count.
    batches: u64,
    authors: u64,
}

/// The stamp now; none: posts are served elsewhere too.
pub(super) fn stamp(runtime: &Runtime<PostService>) -> Option<Stamp> {
    let PostService { lists, authors, .. } = runtime.service();
    let served = lists.served(runtime.tenure_number(), || runtime.served());
    let all = served.shards.len() == usize::from(runtime.shards()) && still_served(runtime, served.number);
    all.then(|| Stamp {
        tenures: served.number,
        events: lists.events(),
        batches: *runtime.inner.batches.borrow(),
        authors: authors.generation(),
    })
}

fn still_served(runtime: &Runtime<PostService>, number: u64) -> bool {
    runtime.tenure_number() == number && runtime.lease().is_valid()
}

async fn sql_page(runtime: &Runtime<PostService>, asked: &Asked) -> Result<Vec<Key>, Failure> {
    let Key { rank, id } = asked.after.unwrap_or(TOP);
    let count = i64::try_from(asked.limit).expect("a page is short");
    let mut params: Vec<&(dyn ToSql + Sync)> = vec![&rank, &id.0, &count];
    match &asked.filter {
        Filter::All => {}
        Filter::Tag(tag) => params.push(tag),
        Filter::Author(author) => params.push(&author.0),
    }
    let client = runtime.database().get().await?;
    let sql = match (asked.sort, &asked.filter) {
        (Sort::Top, Filter::Tag(_)) if tags_are_ranked(runtime, &client).await? => ranked_page_sql("like_count"),
        (Sort::Hot, Filter::Tag(_)) if tags_are_ranked(runtime, &client).await? => ranked_page_sql("hot"),
        (sort, filter) => page_sql(sort, filter),
    };
    let rows = client.query(&sql, &params).await?;
    Ok(rows.iter().map(|row| Key { rank: row.get(0), id: PostId(row.get(1)) }).collect())
}

/// Whether the posts of all tags are ranked: it takes a while after the migration ([`super::Posts::rank_tags`]).
pub(super) async fn tags_are_ranked(runtime: &Runtime<PostService>, client: &Pooled) -> Result<bool, Failure> {
    let known = &runtime.service().lists.tags_ranked;
    if !known.load(Ordering::Relaxed) {
        let row = client.query_opt("SELECT 1 FROM setting WHERE name = 'ranked_tags' AND value = 'all'", &[]).await?;
        known.store(row.is_some(), Ordering::Relaxed);
    }
    Ok(known.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn key(id: u128) -> Key {
        Key { rank: 0, id: PostId(Uuid::from_u128(id)) }
    }

    fn head(shard: u16, ids: &[u128], floor: Option<u128>) -> Head {
        let listed = ids.iter().map(|id| Listed::bare(key(*id))).collect();
        Head { listed, floor: floor.map(key), shards: vec![ShardId(shard)] }
    }

    fn page(heads: Vec<Head>, limit: usize) -> Option<Vec<u128>> {
        let listed = merge(heads, 2, limit)?;
        Some(listed.into_iter().map(|listed| listed.key.id.0.as_u128()).collect())
    }

    #[test]
    fn the_parts_of_a_page_are_merged_in_the_order_of_the_list() {
        assert_eq!(page(vec![head(0, &[9, 5, 4], None), head(1, &[8, 7, 1], None)], 4), Some(vec![9, 8, 7, 5]));
    }

    #[test]
    fn a_short_page_is_one_only_if_nobody_has_more() {
        assert_eq!(page(vec![head(0, &[9], None), head(1, &[8], None)], 4), Some(vec![9, 8]));
        assert_eq!(page(vec![head(0, &[9], None), head(1, &[8], Some(8))], 4), None);
    }

    #[test]
    fn what_lies_below_the_floor_of_a_part_makes_no_page() {
        // Of what is between 5 and 3, the second may know only some.
        assert_eq!(page(vec![head(0, &[9, 4, 3], None), head(1, &[8], Some(5))], 3), None);
        assert_eq!(page(vec![head(0, &[9, 6, 3], None), head(1, &[8], Some(5))], 3), Some(vec![9, 8, 6]));
    }

    #[test]
    fn a_full_part_may_go_on_below() {
        assert_eq!(page(vec![head(0, &[9, 7, 6], Some(1)), head(1, &[8, 2, 1], Some(1))], 3), Some(vec![9, 8, 7]));
    }

    /// What was broken: it was shown twice.
    #[test]
    fn a_post_of_which_two_parts_tell_is_shown_once() {
        let part = |posts: &[(i64, u128)], floor: Option<(i64, u128)>| {
            let key = |(rank, id): (i64, u128)| Key { rank, ..key(id) };
            let listed = posts.iter().map(|post| Listed::bare(key(*post))).collect();
            Head { listed, floor: floor.map(key), shards: vec![ShardId(0), ShardId(1)] }
        };
        let page = |heads, limit| {
            let listed = merge(heads, 2, limit)?;
            Some(listed.iter().map(|listed| (listed.key.rank, listed.key.id.0.as_u128())).collect::<Vec<_>>())
        };
        let (before, after) = ([(5, 1), (4, 2), (3, 3)], [(5, 1), (4, 3), (4, 2)]);
        assert_eq!(page(vec![part(&before, None), part(&after, None)], 4), Some(vec![(5, 1), (4, 3), (4, 2)]));
        assert_eq!(page(vec![part(&before, None), part(&after, None)], 3), Some(vec![(5, 1), (4, 3), (4, 2)]));
        // Both are full, and nobody knows what comes behind: it is no short page.
        let floor = Some((0, 9));
        assert_eq!(page(vec![part(&before[..2], floor), part(&[(4, 2), (3, 1)], floor)], 2), Some(vec![(5, 1), (4, 2)]));
        assert_eq!(page(vec![part(&[(5, 1), (4, 1)], floor), part(&[(5, 1), (4, 1)], floor)], 2), None);
    }

    #[test]
    fn a_shard_that_nobody_knows_makes_no_page() {
        assert_eq!(page(vec![head(0, &[9, 7, 6], None)], 3), None);
    }
}
