//! A page of a list whose posts lie on several nodes: each is asked once for its part, and the parts are merged.

use std::{collections::HashMap, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_postgres::types::ToSql;

use super::{
    entity::Post,
    lists::{Filter, HEAD, HerePage, Key, Paged, Sort, TOP, page_sql},
    seen_here,
    service::{Answer, PostService, Query},
};
use crate::{
    entity::Failure,
    ids::{PostId, ShardId, UserId},
    runtime::{Runtime, unserved},
};

/// How long other nodes are waited for before SQL is asked instead: it has no heads, but it has everything.
const HEADS_WITHIN: Duration = Duration::from_millis(500);

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
    // A full part may go on below its last key: what is behind that is not on this page.
    let floor = heads.iter().filter(|head| head.listed.len() < limit).filter_map(|head| head.floor).max();
    let mut listed: Vec<Listed> = heads.into_iter().flat_map(|head| head.listed).collect();
    listed.sort_unstable_by_key(|listed| std::cmp::Reverse(listed.key));
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
    if matches!(page, Paged::AskHead) && lists.begin(*sort, filter, &served) {
        let head = Asked { after: None, limit: HEAD, ..asked.clone() };
        let keys = sql_page(runtime, &head).await.inspect_err(|_| lists.failed(*sort, filter, &served))?;
        let is_served = |id: PostId| served.shards.binary_search(&runtime.shard_of(id.0)).is_ok();
        lists.loaded(*sort, filter, &served, &keys, is_served);
        page = lists.page(*sort, filter, *after, *limit, &served);
    }
    match page {
        // The keys first, then whether they may be told (rule 8).
        Paged::Here(page) if still_served(runtime, page.served.number) => Ok(Some(page)),
        _ => Ok(None),
    }
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
    let statement = client.prepare_typed(&page_sql(asked.sort, &asked.filter), &[]).await?;
    let rows = client.query(&statement, &params).await?;
    Ok(rows.iter().map(|row| Key { rank: row.get(0), id: PostId(row.get(1)) }).collect())
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

    #[test]
    fn a_shard_that_nobody_knows_makes_no_page() {
        assert_eq!(page(vec![head(0, &[9, 7, 6], None)], 3), None);
    }
}
