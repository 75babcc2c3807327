//! Posts: what people write, in lists that everybody reads.

pub mod entity;
mod heads;
pub mod lists;
mod rebuild;
pub mod rules;
pub mod service;
mod sweep;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures_util::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

pub(crate) use self::rebuild::{BY_AUTHOR, IDS};
use self::rules::{Body, Tags, Title};
pub use self::{
    entity::{Command, Post, Rejection},
    heads::Stamp,
    lists::{Filter, Key, Sort},
    service::{Answer, PostService, Query, Reply},
};
use crate::{
    authors::Author,
    entity::Failure,
    ids::{PostId, UserId, mint},
    records::PostRecord,
    runtime::{AskResult, Context, Runtime, strange_answer},
};

/// The public face of the posts service.
#[derive(Clone)]
pub struct Posts {
    runtime: Runtime<PostService>,
}

/// What a new post is made of.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Who writes.
    pub author: UserId,
    /// The title.
    pub title: Title,
    /// The body.
    pub body: Body,
    /// The tags.
    pub tags: Tags,
    /// When it was written.
    pub at: Timestamp,
}

/// What an edit changes.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// A new title.
    pub title: Option<Title>,
    /// A new body.
    pub body: Option<Body>,
    /// New tags.
    pub tags: Option<Tags>,
    /// The version that the editor saw.
    pub if_version: Option<i64>,
}

/// A page of a list.
#[derive(Clone, Debug)]
pub struct Page<T, K> {
    /// In the list's order.
    pub items: Vec<T>,
    /// Where the next page begins; none: this was the last.
    pub next: Option<K>,
}

/// A tag in use, and its place among them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedTag {
    /// The tag.
    pub tag: String,
    /// How many posts have it.
    pub posts: i64,
}

/// Posts as somebody sees them.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// In the order in which they were asked for.
    pub posts: Vec<Post>,
    /// Those of them that they like.
    pub liked: HashSet<PostId>,
}

impl Posts {
    /// The face of a runtime.
    pub fn new(runtime: Runtime<PostService>) -> Self {
        Self { runtime }
    }

    /// The runtime behind it.
    pub fn runtime(&self) -> &Runtime<PostService> {
        &self.runtime
    }

    /// Publishes a post. With an idempotency key the id falls into the shard of the key, so that a retry meets
    /// the same owner and finds the key (rule 15).
    ///
    /// # Errors
    /// When it could not be committed.
    pub async fn publish(&self, draft: Draft, context: Context) -> AskResult<PostService> {
        let shard = context.idempotency.as_ref().map(|key| key.shard(self.runtime.shards()));
        let id = PostId(mint(draft.at, self.runtime.shards(), shard));
        self.begin(id, draft, true, context).await
    }

    /// Publishes a post under an id made by the caller: an import.
    ///
    /// # Errors
    /// [`Rejection::Exists`] if it is there already, [`Rejection::Deleted`] if it was.
    pub async fn publish_as(&self, id: PostId, draft: Draft, context: Context) -> AskResult<PostService> {
        self.begin(id, draft, false, context).await
    }

    async fn begin(&self, id: PostId, draft: Draft, minted: bool, context: Context) -> AskResult<PostService> {
        let Draft { author, title, body, tags, at } = draft;
        self.runtime.ask(id.0, Command::Publish { id, author, title, body, tags, at, minted }, context).await
    }

    /// Edits a post.
    ///
    /// # Errors
    /// The post's rejection.
    pub async fn edit(
        &self,
        id: PostId,
        editor: UserId,
        changes: Changes,
        at: Timestamp,
        context: Context,
    ) -> AskResult<PostService> {
        let Changes { title, body, tags, if_version } = changes;
        self.runtime.ask(id.0, Command::Edit { editor, title, body, tags, if_version, at }, context).await
    }

    /// Deletes a post.
    ///
    /// # Errors
    /// The post's rejection.
    pub async fn delete(
        &self,
        id: PostId,
        by: UserId,
        moderator: bool,
        if_version: Option<i64>,
        context: Context,
    ) -> AskResult<PostService> {
        self.runtime.ask(id.0, Command::Delete { by, moderator, if_version }, context).await
    }

    /// Sets or takes back a like; doing so twice changes nothing.
    ///
    /// # Errors
    /// The post's rejection.
    pub async fn like(&self, id: PostId, user: UserId, on: bool, context: Context) -> AskResult<PostService> {
        self.runtime.ask(id.0, Command::Like { user, on }, context).await
    }

    /// A post, from memory.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn get(&self, id: PostId, deadline: Instant) -> Result<Option<Post>, Failure> {
        match here(&self.runtime, id, deadline).await {
            Err(Failure::Moved(_)) => {
                self.runtime.query_copied(id.0, &Query::Get(vec![id], None), deadline, only).await?.ok_or_else(strange_answer)
            }
            post => post,
        }
    }

    /// A post that is in memory here, or whose copy is: no node need be asked, nothing waited for. None: it must be asked for.
    pub fn at_hand(&self, id: PostId) -> Option<Option<Post>> {
        match self.runtime.read_loaded(id.0, |post| post.cloned())? {
            Ok(post) => Some(post),
            Err(_) => self.runtime.copied(id.0, only)?,
        }
    }

    /// A post as a user sees it: with whether they like it.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn see(&self, id: PostId, viewer: UserId, deadline: Instant) -> Result<Option<(Post, bool)>, Failure> {
        let Seen { mut posts, liked } = self.see_many([id], Some(viewer), deadline).await?;
        Ok(posts.pop().map(|post| (post, liked.contains(&id))))
    }

    /// Posts by their ids, in that order; those that are gone are left out.
    ///
    /// # Errors
    /// When one of them cannot be read now.
    pub async fn get_many(&self, ids: impl IntoIterator<Item = PostId>, deadline: Instant) -> Result<Vec<Post>, Failure> {
        Ok(self.see_many(ids, None, deadline).await?.posts)
    }

    /// The same as a user sees them; each node is asked once.
    ///
    /// # Errors
    /// When one of them cannot be read now.
    pub async fn see_many(
        &self,
        ids: impl IntoIterator<Item = PostId>,
        viewer: Option<UserId>,
        deadline: Instant,
    ) -> Result<Seen, Failure> {
        let ids: Vec<PostId> = ids.into_iter().collect();
        if let Some(seen) = self.seen_loaded(&ids, viewer) {
            return Ok(seen);
        }
        let query = |ids| Query::Get(ids, viewer);
        let (mut found, mut seen) = (HashMap::new(), Seen::default());
        for answer in self.runtime.query_each(ids.clone(), |id| id.0, query, deadline).await? {
            let Answer::Posts(posts, liked) = answer else { return Err(strange_answer()) };
            found.extend(posts.into_iter().map(|post| (post.id, post)));
            seen.liked.extend(liked);
        }
        seen.posts = ids.iter().filter_map(|id| found.remove(id)).collect();
        Ok(seen)
    }

    /// The same if all of it is in memory here, as most of a list that everybody asks for is: no node need be found, nothing
    /// waited for, nothing sorted.
    fn seen_loaded(&self, ids: &[PostId], viewer: Option<UserId>) -> Option<Seen> {
        let loaded = ids.iter().map(|id| self.runtime.read_loaded(id.0, |post| post.cloned())?.ok());
        let posts: Vec<Post> = loaded.collect::<Option<Vec<_>>>()?.into_iter().flatten().collect();
        // Nobody likes a post without likes; of others, SQL knows who does.
        (viewer.is_none() || posts.iter().all(|post| post.like_count <= 0)).then(|| Seen { posts, liked: HashSet::new() })
    }

    /// Which of these posts exist: in one question, without loading them.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn which_exist(&self, ids: &[PostId]) -> Result<HashSet<PostId>, Failure> {
        let wanted: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let client = self.runtime.database().get().await?;
        let rows = client.query("SELECT id FROM post WHERE id = ANY($1)", &[&wanted]).await?;
        Ok(rows.iter().map(|row| PostId(row.get(0))).collect())
    }

    /// Which of these ids belong to a post, or did until it was deleted: the same for an import.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn which_are_taken(&self, ids: &[PostId]) -> Result<HashSet<PostId>, Failure> {
        let wanted: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let client = self.runtime.database().get().await?;
        let sql = "SELECT id FROM post WHERE id = ANY($1) UNION ALL SELECT id FROM deleted_post WHERE id = ANY($1)";
        Ok(client.query(sql, &[&wanted]).await?.iter().map(|row| PostId(row.get(0))).collect())
    }

    /// A page of a list.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn list(
        &self,
        sort: Sort,
        filter: &Filter,
        after: Option<Key>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Page<Post, Key>, Failure> {
        let (seen, next) = self.list_for(None, sort, filter, after, limit, deadline).await?;
        Ok(Page { items: seen.posts, next })
    }

    /// A page of a list as a user sees it, and where the next one begins; each node is asked once.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn list_for(
        &self,
        viewer: Option<UserId>,
        sort: Sort,
        filter: &Filter,
        after: Option<Key>,
        limit: usize,
        deadline: Instant,
    ) -> Result<(Seen, Option<Key>), Failure> {
        // One more than asked for tells whether there is a next page.
        let asked = heads::Asked { sort, filter: filter.clone(), after, limit: limit + 1, viewer };
        let mut listed = heads::list(&self.runtime, asked, deadline).await?;
        let next = (listed.len() > limit).then(|| listed[limit - 1].key);
        listed.truncate(limit);
        // Whoever serves a post has sent it along, unless that is us or SQL had to be asked.
        let missing = listed.iter().filter(|listed| listed.post.is_none()).map(|listed| listed.key.id);
        let mut seen = self.see_many(missing, viewer, deadline).await?;
        if listed.iter().all(|listed| listed.post.is_none()) {
            return Ok((seen, next));
        }
        let mut posts: HashMap<PostId, Post> = seen.posts.drain(..).map(|post| (post.id, post)).collect();
        for heads::Listed { key, post, liked } in listed {
            seen.posts.extend(post.or_else(|| posts.remove(&key.id)));
            seen.liked.extend(liked.then_some(key.id));
        }
        Ok((seen, next))
    }

    /// What a page of any list would be made of now; none: posts are served elsewhere too.
    pub fn stamp(&self) -> Option<Stamp> {
        heads::stamp(&self.runtime)
    }

    /// The newest posts of whom a user follows, as they see them, and where the next page begins.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn feed(
        &self,
        user: UserId,
        after: Option<PostId>,
        limit: usize,
        deadline: Instant,
    ) -> Result<(Seen, Option<PostId>), Failure> {
        let after = after.map_or(Uuid::max(), |after| after.0);
        let count = i64::try_from(limit + 1).expect("a page is short");
        let rows = {
            let client = self.runtime.database().get().await?;
            // Per followee no more than a page: the index on (author, id) gives just those.
            client
                .query(
                    "SELECT p.id FROM follow f CROSS JOIN LATERAL (
                         SELECT id FROM post WHERE author = f.followee AND id < $2 ORDER BY id DESC LIMIT $3) p
                     WHERE f.follower = $1 AND f.active ORDER BY p.id DESC LIMIT $3",
                    &[&user.0, &after, &count],
                )
                .await?
        };
        let mut ids: Vec<PostId> = rows.iter().map(|row| PostId(row.get(0))).collect();
        let next = (ids.len() > limit).then(|| ids[limit - 1]);
        ids.truncate(limit);
        Ok((self.see_many(ids, Some(user), deadline).await?, next))
    }

    /// Which of these posts a user likes.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn liked(&self, user: UserId, posts: &[PostId], deadline: Instant) -> Result<HashSet<PostId>, Failure> {
        let query = |posts| Query::Liked(user, posts);
        let mut liked = HashSet::new();
        for answer in self.runtime.query_each(posts.to_vec(), |id| id.0, query, deadline).await? {
            match answer {
                Answer::Liked(found) => liked.extend(found),
                _ => return Err(strange_answer()),
            }
        }
        Ok(liked)
    }

    /// Names of authors; those that are gone or not known (yet) are left out.
    ///
    /// # Errors
    /// When the table must be asked and does not answer.
    pub async fn authors(&self, ids: impl IntoIterator<Item = UserId>) -> Result<HashMap<UserId, Arc<Author>>, Failure> {
        self.runtime.service().authors.resolve(self.runtime.database(), ids).await
    }

    /// A page of the tags in use with the number of their posts, most used first, from the key of the page before on.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn tags(&self, after: Option<UsedTag>, limit: usize) -> Result<Page<UsedTag, UsedTag>, Failure> {
        // One more tells whether there is a next page.
        let count = i64::try_from(limit + 1).expect("a page is short");
        // Below every number of posts, and before every tag.
        let (less, tag) = after.map_or((i64::MIN, String::new()), |last| (-last.posts, last.tag));
        let client = self.runtime.database().get().await?;
        // What is not added up yet counts, too. Of the rest, as many as a page has room for, in the order of the index.
        let rows = client
            .query(
                "WITH fresh AS MATERIALIZED (SELECT tag, sum(change)::int8 AS change FROM tag_change GROUP BY tag)
                 SELECT tag, posts FROM (
                     SELECT tag, COALESCE((SELECT u.posts FROM used_tag u WHERE u.tag = f.tag), 0) + change AS posts FROM fresh f
                     UNION ALL
                     (SELECT tag, posts FROM used_tag WHERE posts > 0 AND (-posts, tag) > ($1, $2)
                        AND tag <> ALL (ARRAY(SELECT tag FROM fresh)) ORDER BY (-posts), tag LIMIT $3)) AS used
                 WHERE posts > 0 AND (-posts, tag) > ($1, $2) ORDER BY -posts, tag LIMIT $3",
                &[&less, &tag, &count],
            )
            .await?;
        let mut items: Vec<UsedTag> = rows.iter().map(|row| UsedTag { tag: row.get(0), posts: row.get(1) }).collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let next = if more { items.last().cloned() } else { None };
        Ok(Page { items, next })
    }

    /// Everything there is, page by page in the order of ids: for whoever rebuilds a projection.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn export(&self, after: Option<PostId>, limit: usize, deadline: Instant) -> Result<Vec<PostRecord>, Failure> {
        let after = after.map_or(Uuid::nil(), |after| after.0);
        let count = i64::try_from(limit).expect("a page is short");
        let rows = {
            let client = self.runtime.database().get().await?;
            client.query("SELECT id FROM post WHERE id > $1 ORDER BY id LIMIT $2", &[&after, &count]).await?
        };
        let ids = rows.iter().map(|row| PostId(row.get(0)));
        Ok(self.get_many(ids, deadline).await?.iter().map(PostRecord::of).collect())
    }
}

/// The post of an answer about one; none: it answers something else.
fn only(answer: &Answer) -> Option<Option<Post>> {
    match answer {
        Answer::Posts(posts, _) => Some(posts.first().cloned()),
        _ => None,
    }
}

/// A post that is served here, from memory.
pub(crate) async fn here(runtime: &Runtime<PostService>, id: PostId, deadline: Instant) -> Result<Option<Post>, Failure> {
    match runtime.read_loaded(id.0, |post| post.cloned()) {
        Some(post) => post,
        None => runtime.read(id.0, deadline, |post| post.cloned()).await,
    }
}

/// Posts that are served here, and which of them somebody likes.
async fn seen_here(
    runtime: &Runtime<PostService>,
    ids: &[PostId],
    viewer: Option<UserId>,
    deadline: Instant,
) -> Result<(Vec<Post>, Vec<PostId>), Failure> {
    let posts = join_all(ids.iter().map(|id| here(runtime, *id, deadline))).await;
    let posts: Vec<Post> = posts.into_iter().filter_map(Result::transpose).collect::<Result<_, _>>()?;
    // Nobody likes a post without likes.
    let likely: Vec<PostId> = posts.iter().filter(|post| post.like_count > 0).map(|post| post.id).collect();
    let liked = match viewer {
        Some(viewer) if !likely.is_empty() => liked_here(runtime, viewer, &likely).await?,
        _ => Vec::new(),
    };
    Ok((posts, liked))
}

pub(crate) async fn liked_here(runtime: &Runtime<PostService>, user: UserId, posts: &[PostId]) -> Result<Vec<PostId>, Failure> {
    let ids: Vec<Uuid> = posts.iter().map(|post| post.0).collect();
    let rows = {
        let client = runtime.database().get().await?;
        client.query("SELECT post FROM post_like WHERE user_id = $1 AND post = ANY($2)", &[&user.0, &ids]).await?
    };
    // What SQL saw committed must be in memory before we answer beside it (rule 9).
    for post in posts {
        runtime.settled(runtime.shard_of(post.0)).await;
    }
    Ok(rows.iter().map(|row| PostId(row.get(0))).collect())
}
