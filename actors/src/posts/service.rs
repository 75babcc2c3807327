//! How posts are stored, published and told about other services' events.

use std::collections::HashMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    entity::{Command, Event, Facts, Post, Rejection},
    heads,
    lists::{Lists, hot_rank},
    rules::{Body, Tags, Title},
};
use crate::{
    authors::{Author, AuthorResetRows, AuthorRow, AuthorRows, Authors},
    departed::{DepartedRow, DepartedRows, DepartingRow, DepartingRows, Like, Likes, StaleLetterRow, StaleLetterRows},
    entity::Failure,
    event::Topic,
    ids::{PostId, ShardId, UserId},
    records::{CommentRecord, FollowRecord, LikeRecord, PostRecord, json},
    runtime::{Connection, NewRecord, Pooled, Runtime, Unit},
    service::{Foreign, LoadError, Poison, Service, stored},
    table::{table, tables, text_params},
};

/// The posts service: rules in [`Post`], read models of this node here.
#[derive(Default)]
pub struct PostService {
    /// Names of authors.
    pub authors: Authors,
    /// The heads of the lists that everybody asks for.
    pub lists: Lists,
}

/// What a post answers a command with: its state after it; none when it is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The post now.
    pub post: Option<Post>,
}

/// What a command must know besides the post.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// Whether this user likes it.
    Liked(UserId),
    /// Whether it was deleted: an id that was not minted for the command may have had a life before.
    Deleted,
}

text_params!(Title, Body);

table! {
    /// Posts as they are after the batch.
    pub(crate) struct PostRows of PostRow {
        id: Uuid => "uuid", author: Uuid => "uuid", title: Title => "text", body: Body => "text", tags: String => "text",
        created_at: Timestamp => "timestamptz", updated_at: Timestamp => "timestamptz", version: i64 => "int8",
        like_count: i64 => "int8", hot: i64 => "int8",
    }
    "INSERT INTO post (id, author, title, body, tags, created_at, updated_at, version, like_count, hot) \
     SELECT id, author, title, body, string_to_array(tags, ','), created_at, updated_at, version, like_count, hot FROM {rows}"
}

table! {
    /// Edits. The likes are not the editor's to write.
    pub(crate) struct EditRows of EditRow {
        id: Uuid => "uuid", title: Title => "text", body: Body => "text", tags: String => "text",
        updated_at: Timestamp => "timestamptz", version: i64 => "int8",
    }
    "UPDATE post p SET title = r.title, body = r.body, tags = string_to_array(r.tags, ','), updated_at = r.updated_at, \
     version = r.version FROM {rows} WHERE p.id = r.id"
}

table! {
    /// Likes as counted after the batch.
    pub(crate) struct LikeCountRows of LikeCountRow { id: Uuid => "uuid", like_count: i64 => "int8", hot: i64 => "int8" }
    "UPDATE post p SET like_count = r.like_count, hot = r.hot FROM {rows} WHERE p.id = r.id"
}

table! {
    /// Posts to delete.
    pub(crate) struct GoneRows of GoneRow { id: Uuid => "uuid" }
    "DELETE FROM post p USING {rows} WHERE p.id = r.id"
}

table! {
    /// What stays of them.
    pub(crate) struct DeletedRows of DeletedRow { id: Uuid => "uuid" }
    "INSERT INTO deleted_post (id) SELECT id FROM {rows}"
}

table! {
    /// Tags to add.
    pub(crate) struct TagRows of TagRow { tag: String => "text", post: Uuid => "uuid" }
    "INSERT INTO post_tag (tag, post) SELECT tag, post FROM {rows}"
}

table! {
    /// Tags to take away.
    pub(crate) struct UntagRows of UntagRow { tag: String => "text", post: Uuid => "uuid" }
    "DELETE FROM post_tag t USING {rows} WHERE t.tag = r.tag AND t.post = r.post"
}

table! {
    /// Likes to add.
    pub(crate) struct LikeRows of LikeRow { post: Uuid => "uuid", user_id: Uuid => "uuid" }
    "INSERT INTO post_like (post, user_id) SELECT post, user_id FROM {rows}"
}

table! {
    /// Likes to take back.
    pub(crate) struct UnlikeRows of UnlikeRow { post: Uuid => "uuid", user_id: Uuid => "uuid" }
    "DELETE FROM post_like l USING {rows} WHERE l.post = r.post AND l.user_id = r.user_id"
}

table! {
    /// Changes of comment counts; summed, for a slice may hold several of one post.
    pub(crate) struct CountRows of CountRow { post: Uuid => "uuid", change: i64 => "int8" }
    "INSERT INTO post_counter AS c (post, comment_count) SELECT post, sum(change) FROM {rows} GROUP BY post ORDER BY post \
     ON CONFLICT (post) DO UPDATE SET comment_count = c.comment_count + excluded.comment_count"
}

// A statement may not both add and delete a row, and a slice may hold both of one pair: each of the next three is given
// every record, and takes the pairs whose last one is its own. A dead letter that is replayed gives way to what is known from
// after it; so the row of a follow that ended stays as long as there are letters from before that.
table! {
    /// Follows that begin. An older node has left rows of those that ended.
    pub(crate) struct FollowRows of FollowRow {
        shard: i16 => "int2", nr: i64 => "int8", follower: Uuid => "uuid", followee: Uuid => "uuid", active: bool => "bool",
        replayed: bool => "bool",
    }
    "INSERT INTO follow (follower, followee, active, seq) SELECT follower, followee, true, nr FROM (\
     SELECT DISTINCT ON (follower, followee) follower, followee, active, nr, replayed FROM {rows} \
     ORDER BY follower, followee, nr DESC) last \
     WHERE active AND NOT (replayed AND EXISTS (SELECT FROM follow f \
     WHERE f.follower = last.follower AND f.followee = last.followee AND f.seq > last.nr)) \
     ON CONFLICT (follower, followee) DO UPDATE SET active = true, seq = excluded.seq"
}

table! {
    /// Follows that end, and leave nothing.
    pub(crate) struct UnfollowRows of UnfollowRow {
        shard: i16 => "int2", nr: i64 => "int8", follower: Uuid => "uuid", followee: Uuid => "uuid", active: bool => "bool",
        replayed: bool => "bool",
    }
    "DELETE FROM follow f USING (SELECT DISTINCT ON (follower, followee) shard, follower, followee, active, nr, replayed \
     FROM {rows} ORDER BY follower, followee, nr DESC) last \
     WHERE NOT last.active AND f.follower = last.follower AND f.followee = last.followee \
     AND NOT (last.replayed AND COALESCE(f.seq, 0) > last.nr) AND NOT EXISTS (SELECT FROM dead_letter d \
     WHERE d.shard = last.shard AND d.key = last.follower AND d.type IN ('user.followed', 'user.unfollowed') AND d.seq < last.nr)"
}

table! {
    /// Follows that end, and of which a dead letter says something from before.
    pub(crate) struct LetteredUnfollowRows of LetteredUnfollowRow {
        shard: i16 => "int2", nr: i64 => "int8", follower: Uuid => "uuid", followee: Uuid => "uuid", active: bool => "bool",
        replayed: bool => "bool",
    }
    "INSERT INTO follow (follower, followee, active, seq) SELECT follower, followee, false, nr FROM (\
     SELECT DISTINCT ON (follower, followee) shard, follower, followee, active, nr, replayed FROM {rows} \
     ORDER BY follower, followee, nr DESC) last \
     WHERE NOT active AND NOT (replayed AND EXISTS (SELECT FROM follow f \
     WHERE f.follower = last.follower AND f.followee = last.followee AND f.seq > last.nr)) AND EXISTS (SELECT FROM dead_letter d \
     WHERE d.shard = last.shard AND d.key = last.follower AND d.type IN ('user.followed', 'user.unfollowed') AND d.seq < last.nr) \
     ON CONFLICT (follower, followee) DO UPDATE SET active = false, seq = excluded.seq"
}

table! {
    /// Follows that have ended and whose rows nobody needs any more: an older node left them, or there were letters.
    pub(crate) struct EndedFollowRows of EndedFollowRow { follower: Uuid => "uuid", followee: Uuid => "uuid" }
    "DELETE FROM follow f USING {rows} WHERE f.follower = r.follower AND f.followee = r.followee AND NOT f.active"
}

tables! {
    /// What a batch of the posts service writes.
    pub struct Writes {
        posts: PostRows, edits: EditRows, like_counts: LikeCountRows, gone: GoneRows, deleted: DeletedRows, tags: TagRows,
        untags: UntagRows, likes: LikeRows, unlikes: UnlikeRows, counts: CountRows, follows: FollowRows,
        unfollows: UnfollowRows, lettered_unfollows: LetteredUnfollowRows, ended_follows: EndedFollowRows, authors: AuthorRows,
        departing: DepartingRows, departed: DepartedRows, stale_letters: StaleLetterRows, author_resets: AuthorResetRows,
    }
}

/// What the owners of posts are asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Query {
    /// These posts, and which of them this user likes.
    Get(Vec<PostId>, Option<UserId>),
    /// Which of these posts a user likes.
    Liked(UserId, Vec<PostId>),
    /// Their part of a page of a list.
    Head(heads::Asked),
}

/// What they answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Those of the posts that there are, and those of them that are liked.
    Posts(Vec<Post>, Vec<PostId>),
    /// Those of the posts that are liked.
    Liked(Vec<PostId>),
    /// What they have of the page; none: SQL must be asked.
    Head(Option<heads::Head>),
}

impl Service for PostService {
    const NAME: &'static str = "posts";
    type Entity = Post;
    type Writes = Writes;
    type Reply = Reply;
    type Need = Need;
    type Note = Author;
    type Query = Query;
    type Answer = Answer;

    async fn load(&self, client: &Connection, ids: &[Uuid]) -> Result<HashMap<Uuid, Post>, LoadError> {
        let rows = client
            .query(
                "SELECT p.id, p.author, p.title, p.body, p.tags, p.created_at, p.updated_at, p.version, p.like_count,
                        COALESCE(c.comment_count, 0)
                 FROM post p LEFT JOIN post_counter c ON c.post = p.id WHERE p.id = ANY($1)",
                &[&ids],
            )
            .await?;
        rows.iter().map(|row| post(row).map(|post| (post.id.0, post))).collect()
    }

    fn need(&self, _: Uuid, state: Option<&Post>, command: &Command) -> Option<Need> {
        match command {
            // Nobody likes a post without likes.
            Command::Like { user, .. } if state.is_some_and(|post| post.like_count > 0) => Some(Need::Liked(*user)),
            Command::Publish { minted: false, .. } if state.is_none() => Some(Need::Deleted),
            _ => None,
        }
    }

    async fn look_up(&self, client: Pooled, id: Uuid, need: Need) -> Result<Facts, LoadError> {
        match need {
            Need::Liked(user) => {
                let row = client.query_opt("SELECT 1 FROM post_like WHERE post = $1 AND user_id = $2", &[&id, &user.0]).await?;
                Ok(Facts { liked: row.is_some(), deleted: false })
            }
            Need::Deleted => {
                let row = client.query_opt("SELECT 1 FROM deleted_post WHERE id = $1", &[&id]).await?;
                Ok(Facts { liked: false, deleted: row.is_some() })
            }
        }
    }

    fn creates(command: &Command) -> bool {
        matches!(command, Command::Publish { minted: true, .. })
    }

    fn write(&self, _: ShardId, id: Uuid, state: Option<&Post>, events: &[Event], unit: &mut Unit<Self>) {
        for event in events {
            let (kind, payload) = match event {
                Event::Published(post) => {
                    unit.writes.posts.push(row(post));
                    tag(unit, post);
                    ("post.created", json(&PostRecord::of(post)))
                }
                Event::Edited { after, before } => {
                    unit.writes.edits.push(EditRow {
                        id,
                        title: after.title.clone(),
                        body: after.body.clone(),
                        tags: joined(&after.tags),
                        updated_at: after.updated_at,
                        version: after.version,
                    });
                    retag(unit, before, after);
                    ("post.updated", json(&PostRecord::of(after)))
                }
                Event::Deleted(post) => {
                    unit.writes.gone.push(GoneRow { id });
                    unit.writes.deleted.push(DeletedRow { id });
                    for tag in post.tags.as_slice() {
                        unit.writes.untags.push(UntagRow { tag: tag.as_str().to_owned(), post: id });
                    }
                    ("post.deleted", json(&PostRecord::gone(post)))
                }
                Event::Liked(user) | Event::Unliked(user) => {
                    let on = matches!(event, Event::Liked(_));
                    let post = state.expect("only a post that exists is liked");
                    let like_count = post.like_count + if on { 1 } else { -1 };
                    let hot = hot_rank(like_count, post.created_at);
                    unit.writes.like_counts.push(LikeCountRow { id, like_count, hot });
                    if on {
                        unit.writes.likes.push(LikeRow { post: id, user_id: user.0 });
                    } else {
                        unit.writes.unlikes.push(UnlikeRow { post: id, user_id: user.0 });
                    }
                    let kind = if on { "post.liked" } else { "post.unliked" };
                    (kind, json(&LikeRecord { id, post_id: PostId(id), user: *user, like_count }))
                }
                // Comes from the comments' log, never from a command.
                Event::CommentsCounted(_) => continue,
            };
            unit.records.push(NewRecord { key: id, kind, payload, traceparent: None });
        }
    }

    fn reply(_: Uuid, state: Option<&Post>, events: &[Event]) -> Reply {
        let mut post = state.cloned();
        for event in events {
            <Post as crate::entity::Entity>::evolve(&mut post, event);
        }
        Reply { post }
    }

    fn refused(constraint: &str) -> Option<Rejection> {
        // An import repeated after an answer that was lost: a new id is not looked up before it is written.
        (constraint == "post_pkey").then_some(Rejection::Exists)
    }

    fn weight(state: Option<&Post>) -> usize {
        state.map_or(0, |post| size_of::<Post>() + post.title.as_str().len() + post.body.as_str().len() + 64)
    }

    fn committed(&self, _: ShardId, _: Uuid, state: Option<&Post>, events: &[Event]) {
        for event in events {
            self.lists.apply(state, event);
        }
    }

    fn shards_changed(&self) {
        self.lists.clear();
    }

    fn noted(&self, note: Author) {
        self.authors.note(note);
    }

    fn concerns(&self, foreign: &Foreign<'_>) -> Result<Vec<Uuid>, Poison> {
        Ok(match (foreign.source.topic, &*foreign.record.kind) {
            (Topic::Users, "user.created" | "user.updated" | "user.deleted" | "user.followed" | "user.unfollowed") => {
                vec![foreign.record.key]
            }
            (Topic::Comments, "comment.created" | "comment.deleted") => {
                vec![foreign.parse::<CommentRecord>()?.post_id.0]
            }
            _ => vec![],
        })
    }

    async fn answer(runtime: &Runtime<Self>, query: &Query, deadline: Instant) -> Result<Answer, Failure> {
        match query {
            Query::Get(ids, viewer) => {
                let (posts, liked) = super::seen_here(runtime, ids, *viewer, deadline).await?;
                Ok(Answer::Posts(posts, liked))
            }
            Query::Liked(user, ids) => super::liked_here(runtime, *user, ids).await.map(Answer::Liked),
            Query::Head(asked) => heads::here_with_posts(runtime, asked, deadline).await.map(Answer::Head),
        }
    }

    fn is_lendable(answer: &Answer) -> bool {
        // Who likes it nobody calls back.
        matches!(answer, Answer::Posts(posts, liked) if posts.len() == 1 && liked.is_empty())
    }

    fn project(&self, foreign: &Foreign<'_>, id: Uuid, unit: &mut Unit<Self>) -> Result<(), Poison> {
        if let Some(author) = Author::of(foreign)? {
            unit.writes.authors.push(AuthorRow::from(&author));
            if author.deleted {
                unit.writes.stale_letters.push(StaleLetterRow { author: id });
            }
            unit.notes.push(author);
            return Ok(());
        }
        match &*foreign.record.kind {
            "comment.created" | "comment.deleted" => {
                let change = if &*foreign.record.kind == "comment.created" { 1 } else { -1 };
                unit.writes.counts.push(CountRow { post: id, change });
                unit.effects.push((id, Event::CommentsCounted(change)));
            }
            kind @ ("user.followed" | "user.unfollowed") => {
                let FollowRecord { follower, followee, .. } = foreign.parse()?;
                let (nr, replayed) = (foreign.record.seq, foreign.replayed);
                let shard = crate::ids::shard_of(id, unit.shards()).as_i16();
                let active = kind == "user.followed";
                let (follower, followee) = (follower.0, followee.0);
                unit.writes.follows.push(FollowRow { shard, nr, follower, followee, active, replayed });
                unit.writes.unfollows.push(UnfollowRow { shard, nr, follower, followee, active, replayed });
                unit.writes.lettered_unfollows.push(LetteredUnfollowRow { shard, nr, follower, followee, active, replayed });
            }
            _ => {}
        }
        Ok(())
    }
}

impl Likes for PostService {
    const LIKES: &'static str = "SELECT user_id, post, post FROM post_like
        WHERE user_id = ANY($1) AND (user_id, post) > ($2, $3) ORDER BY user_id, post LIMIT $4";
    const AUTHORS: &'static str = "SELECT a.id, a.departed_at IS NOT NULL,
            COALESCE(a.departed_at < now() - make_interval(secs => $2), false)
            AND NOT EXISTS (SELECT FROM post_like l WHERE l.user_id = a.id)
        FROM author a WHERE a.deleted AND NOT a.likes_gone AND a.id > $1 ORDER BY a.id LIMIT $3";

    fn unlike(like: &Like) -> Command {
        Command::Like { user: UserId(like.user), on: false }
    }

    fn forget(unit: &mut Unit<Self>, like: &Like) {
        unit.writes.unlikes.push(UnlikeRow { post: like.liked, user_id: like.user });
    }

    fn depart(unit: &mut Unit<Self>, author: Uuid) {
        unit.writes.departing.push(DepartingRow { id: author });
    }

    fn depart_for_good(unit: &mut Unit<Self>, author: Uuid) {
        unit.writes.departed.push(DepartedRow { id: author });
    }
}

fn post(row: &Row) -> Result<Post, LoadError> {
    Ok(Post {
        id: PostId(row.get(0)),
        author: UserId(row.get(1)),
        title: stored(row.get::<_, &str>(2))?,
        body: stored(row.get::<_, &str>(3))?,
        tags: stored(row.get::<_, Vec<String>>(4))?,
        created_at: row.get(5),
        updated_at: row.get(6),
        version: row.get(7),
        like_count: row.get(8),
        comment_count: row.get(9),
    })
}

fn row(post: &Post) -> PostRow {
    PostRow {
        id: post.id.0,
        author: post.author.0,
        title: post.title.clone(),
        body: post.body.clone(),
        tags: joined(&post.tags),
        created_at: post.created_at,
        updated_at: post.updated_at,
        version: post.version,
        like_count: post.like_count,
        hot: hot_rank(post.like_count, post.created_at),
    }
}

fn joined(tags: &Tags) -> String {
    let tags: Vec<&str> = tags.as_slice().iter().map(|tag| tag.as_str()).collect();
    tags.join(",")
}

fn tag(unit: &mut Unit<PostService>, post: &Post) {
    for tag in post.tags.as_slice() {
        unit.writes.tags.push(TagRow { tag: tag.as_str().to_owned(), post: post.id.0 });
    }
}

/// Only what differs: a tag that is taken away and added in one statement would meet itself.
fn retag(unit: &mut Unit<PostService>, before: &Post, after: &Post) {
    let post = after.id.0;
    for tag in before.tags.as_slice().iter().filter(|tag| !after.tags.contains(tag.as_str())) {
        unit.writes.untags.push(UntagRow { tag: tag.as_str().to_owned(), post });
    }
    for tag in after.tags.as_slice().iter().filter(|tag| !before.tags.contains(tag.as_str())) {
        unit.writes.tags.push(TagRow { tag: tag.as_str().to_owned(), post });
    }
}
