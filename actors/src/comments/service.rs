//! How comments are stored, published and told about other services' events.

use std::collections::HashMap;

use futures_util::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    Asked, Comment, Look,
    entity::{Command, Event, Facts, Rejection, Text, Thread},
    here,
    rules::CommentBody,
    texts::{Texts, Written, written},
    tree::{self, Deletion, Info, Tree},
};
use crate::{
    authors::{Author, AuthorResetRows, AuthorRow, AuthorRows, Authors},
    departed::{DepartedRow, DepartedRows, DepartingRow, DepartingRows, Like, Likes, StaleLetterRow, StaleLetterRows},
    entity::Failure,
    event::Topic,
    ids::{CommentId, PostId, ShardId, UserId},
    records::{CommentRecord, LikeRecord, json},
    runtime::{Connection, NewRecord, Pooled, Runtime, Unit},
    service::{Foreign, LoadError, Poison, Service},
    table::{table, tables, text_params},
};

/// The comments service: rules in [`Thread`], read models of this node here.
#[derive(Default)]
pub struct CommentService {
    /// Names of authors.
    pub authors: Authors,
    /// What is written in the comments that are read.
    pub texts: Texts,
    /// A thread was closed here: its comments are to be taken away.
    pub closing: Notify,
}

/// What a committed projection tells the node.
pub enum Note {
    /// A newer version of an author.
    Author(Author),
    /// A post is gone, and its thread is closed.
    Closed,
}

/// What a thread answers a command with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The comment as the command left it; none when it is gone, and when nothing that is written in it was changed.
    pub comment: Option<Comment>,
}

/// What a command must know of a comment besides the skeleton.
#[derive(Clone, Debug)]
pub enum Need {
    /// What is written in it.
    Text(CommentId),
    /// Whether this user likes it.
    Liked(CommentId, UserId),
    /// Which of these were deleted: ids that were not minted for the command may have had a life before.
    Deleted(Vec<CommentId>),
}

text_params!(CommentBody);

table! {
    /// New comments.
    pub(crate) struct CommentRows of CommentRow {
        post: Uuid => "uuid", id: Uuid => "uuid", parent: Option<Uuid> => "uuid", depth: i16 => "int2", author: Uuid => "uuid",
        body: CommentBody => "text", created_at: Timestamp => "timestamptz",
    }
    "INSERT INTO comment (post, id, parent, depth, author, body, created_at, updated_at, version, like_count) \
     SELECT post, id, parent, depth, author, body, created_at, created_at, 1, 0 FROM {rows}"
}

table! {
    /// Edits. The likes are not the editor's to write.
    pub(crate) struct EditRows of EditRow {
        post: Uuid => "uuid", id: Uuid => "uuid", body: CommentBody => "text", updated_at: Timestamp => "timestamptz",
        version: i64 => "int8",
    }
    "UPDATE comment c SET body = r.body, updated_at = r.updated_at, version = r.version FROM {rows} \
     WHERE c.post = r.post AND c.id = r.id"
}

table! {
    /// Comments of which only the place stays.
    pub(crate) struct TombstoneRows of TombstoneRow {
        post: Uuid => "uuid", id: Uuid => "uuid", updated_at: Timestamp => "timestamptz", version: i64 => "int8",
    }
    "UPDATE comment c SET author = NULL, body = NULL, updated_at = r.updated_at, version = r.version FROM {rows} \
     WHERE c.post = r.post AND c.id = r.id"
}

table! {
    /// Comments of which nothing stays, and the tombstones that held nothing else.
    pub(crate) struct GoneRows of GoneRow { post: Uuid => "uuid", id: Uuid => "uuid" }
    "DELETE FROM comment c USING {rows} WHERE c.post = r.post AND c.id = r.id"
}

table! {
    /// What stays of them, in a thread that is open.
    pub(crate) struct DeletedRows of DeletedRow { id: Uuid => "uuid" }
    "INSERT INTO deleted_comment (id) SELECT id FROM {rows} ON CONFLICT DO NOTHING"
}

table! {
    /// Likes as counted after the batch.
    pub(crate) struct LikeCountRows of LikeCountRow { post: Uuid => "uuid", id: Uuid => "uuid", like_count: i64 => "int8" }
    "UPDATE comment c SET like_count = r.like_count FROM {rows} WHERE c.post = r.post AND c.id = r.id"
}

table! {
    /// Likes to add.
    pub(crate) struct LikeRows of LikeRow { comment: Uuid => "uuid", user_id: Uuid => "uuid" }
    "INSERT INTO comment_like (comment, user_id) SELECT comment, user_id FROM {rows}"
}

table! {
    /// Likes to take back.
    pub(crate) struct UnlikeRows of UnlikeRow { comment: Uuid => "uuid", user_id: Uuid => "uuid" }
    "DELETE FROM comment_like l USING {rows} WHERE l.comment = r.comment AND l.user_id = r.user_id"
}

table! {
    /// Posts that are gone; told twice is told once.
    pub(crate) struct ClosedRows of ClosedRow { post: Uuid => "uuid" }
    "INSERT INTO closed_thread (post) SELECT DISTINCT post FROM {rows} ORDER BY post ON CONFLICT DO NOTHING"
}

table! {
    /// Closed threads of which nothing is left.
    pub(crate) struct SweptRows of SweptRow { post: Uuid => "uuid" }
    "UPDATE closed_thread t SET swept = true FROM {rows} WHERE t.post = r.post"
}

tables! {
    /// What a batch of the comments service writes.
    pub struct Writes {
        comments: CommentRows, edits: EditRows, tombstones: TombstoneRows, gone: GoneRows, deleted: DeletedRows,
        like_counts: LikeCountRows, likes: LikeRows, unlikes: UnlikeRows, closed: ClosedRows, swept: SweptRows, authors: AuthorRows,
        departing: DepartingRows, departed: DepartedRows, stale_letters: StaleLetterRows, author_resets: AuthorResetRows,
    }
}

/// What the owner of a thread is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Query {
    /// These comments of posts.
    Comments(Vec<(PostId, CommentId)>),
    /// A page of a thread.
    Page(Asked),
    /// Which of these comments of posts a user likes.
    Liked(UserId, Vec<(PostId, CommentId)>),
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Those of the comments that there are.
    Comments(Vec<Comment>),
    /// The page, or why there is none.
    Page(Look),
    /// Those of the comments that are liked.
    Liked(Vec<CommentId>),
}

impl Service for CommentService {
    const NAME: &'static str = "comments";
    type Entity = Thread;
    type Writes = Writes;
    type Reply = Reply;
    type Need = Need;
    type Note = Note;
    type Query = Query;
    type Answer = Answer;

    /// The skeletons of these threads, without a byte of what is written in them.
    ///
    /// All of the ids are there afterwards, also those that nobody has commented on: most posts are read before the
    /// first comment comes, and none of these reads should ask SQL again.
    async fn load(&self, client: &Connection, ids: &[Uuid]) -> Result<HashMap<Uuid, Thread>, LoadError> {
        let select = "SELECT post, NULL::uuid, NULL::uuid, 0::int8, 0::int8, true FROM closed_thread WHERE post = ANY($1)
                      UNION ALL
                      SELECT post, id, parent, like_count, version, author IS NULL FROM comment c
                      WHERE post = ANY($1) AND (SELECT t.post FROM closed_thread t WHERE t.post = c.post) IS NULL";
        let mut threads: HashMap<Uuid, Option<Vec<tree::Row>>> = ids.iter().map(|id| (*id, Some(Vec::new()))).collect();
        // Row by row: a thread of 100,000 comments is never in memory a second time as rows.
        let take = |row: Row| {
            let thread = threads.entry(row.get(0)).or_default();
            match (skeleton(&row)?, thread) {
                (Some(comment), Some(comments)) => comments.push(comment),
                (_, thread) => *thread = None,
            }
            Ok::<(), LoadError>(())
        };
        client.query_each(select, &[&ids], take).await?;
        let mut found = HashMap::with_capacity(threads.len());
        for (post, comments) in threads {
            let thread = match comments {
                None => Thread::Closed,
                Some(comments) => Thread::Open(planted(post, comments).await),
            };
            found.insert(post, thread);
        }
        Ok(found)
    }

    fn need(&self, _: Uuid, state: Option<&Thread>, command: &Command) -> Option<Need> {
        let live = |id: &CommentId| state?.tree()?.get(id.0).filter(|info| !info.deleted);
        match command {
            Command::Edit { comment, .. } | Command::Delete { comment, .. } => live(comment).map(|_| Need::Text(*comment)),
            // Nobody likes a comment without likes.
            Command::Like { comment, user, .. } => {
                live(comment).filter(|info| info.like_count > 0).map(|_| Need::Liked(*comment, *user))
            }
            Command::Import { comments } => {
                let here = |id: CommentId| state.and_then(Thread::tree).is_some_and(|tree| tree.get(id.0).is_some());
                let new: Vec<CommentId> = comments.iter().map(|comment| comment.id).filter(|id| !here(*id)).collect();
                (!new.is_empty()).then_some(Need::Deleted(new))
            }
            Command::Add { .. } => None,
        }
    }

    async fn look_up(&self, client: Pooled, post: Uuid, need: Need) -> Result<Facts, LoadError> {
        match need {
            Need::Text(comment) => {
                let row = client
                    .query_opt(
                        "SELECT author, body, created_at, updated_at FROM comment WHERE post = $1 AND id = $2",
                        &[&post, &comment.0],
                    )
                    .await?;
                Ok(Facts { text: row.and_then(|row| text(written(&row, 0))), ..Facts::default() })
            }
            Need::Liked(comment, user) => {
                let row = client
                    .query_opt("SELECT 1 FROM comment_like WHERE comment = $1 AND user_id = $2", &[&comment.0, &user.0])
                    .await?;
                Ok(Facts { liked: row.is_some(), ..Facts::default() })
            }
            Need::Deleted(comments) => {
                let ids: Vec<Uuid> = comments.iter().map(|comment| comment.0).collect();
                let rows = client.query("SELECT id FROM deleted_comment WHERE id = ANY($1)", &[&ids]).await?;
                Ok(Facts { deleted: rows.iter().map(|row| CommentId(row.get(0))).collect(), ..Facts::default() })
            }
        }
    }

    fn creates(_: &Command) -> bool {
        // Whether a post has comments, only its rows can tell.
        false
    }

    fn write(&self, _: ShardId, post: Uuid, state: Option<&Thread>, events: &[Event], unit: &mut Unit<Self>) {
        for event in events {
            let (kind, payload) = match event {
                Event::Added { id, parent, depth, text } => {
                    unit.writes.comments.push(CommentRow {
                        post,
                        id: id.0,
                        parent: parent.map(|parent| parent.0),
                        depth: i16::from(*depth),
                        author: text.author.0,
                        body: text.body.clone(),
                        created_at: text.created_at,
                    });
                    ("comment.created", json(&record(PostId(post), &newborn(*id, *parent, *depth), text)))
                }
                Event::Edited { id, text } => {
                    let info = edited(state, *id);
                    let version = i64::from(info.version);
                    unit.writes.edits.push(EditRow {
                        post,
                        id: id.0,
                        body: text.body.clone(),
                        updated_at: text.updated_at,
                        version,
                    });
                    ("comment.updated", json(&record(PostId(post), &info, text)))
                }
                Event::Deleted { id, text, at, left } => {
                    let info = edited(state, *id);
                    let version = i64::from(info.version);
                    match left {
                        Deletion::Tombstone => {
                            unit.writes.tombstones.push(TombstoneRow { post, id: id.0, updated_at: *at, version });
                        }
                        Deletion::Removed(gone) => {
                            for id in gone {
                                unit.writes.gone.push(GoneRow { post, id: *id });
                                unit.writes.deleted.push(DeletedRow { id: *id });
                            }
                        }
                    }
                    let last = record(PostId(post), &info, text);
                    ("comment.deleted", json(&CommentRecord { body: String::new(), updated_at: *at, deleted: true, ..last }))
                }
                Event::Liked { id, user } | Event::Unliked { id, user } => {
                    let on = matches!(event, Event::Liked { .. });
                    let like_count = i64::from(info(state, *id).like_count) + if on { 1 } else { -1 };
                    unit.writes.like_counts.push(LikeCountRow { post, id: id.0, like_count });
                    if on {
                        unit.writes.likes.push(LikeRow { comment: id.0, user_id: user.0 });
                    } else {
                        unit.writes.unlikes.push(UnlikeRow { comment: id.0, user_id: user.0 });
                    }
                    let kind = if on { "comment.liked" } else { "comment.unliked" };
                    (kind, json(&LikeRecord { id: id.0, post_id: PostId(post), user: *user, like_count }))
                }
                // Comes from the posts' log, never from a command.
                Event::Closed => continue,
            };
            unit.records.push(NewRecord { key: post, kind, payload, traceparent: None });
        }
    }

    fn reply(post: Uuid, state: Option<&Thread>, events: &[Event]) -> Reply {
        let comment = match events {
            [Event::Added { id, parent, depth, text }] => {
                Some(Comment::of(PostId(post), &newborn(*id, *parent, *depth), &text.into()))
            }
            [Event::Edited { id, text }] => Some(Comment::of(PostId(post), &edited(state, *id), &text.into())),
            _ => None,
        };
        Reply { comment }
    }

    fn refused(_: &str) -> Option<Rejection> {
        None
    }

    fn weight(state: Option<&Thread>) -> usize {
        size_of::<Thread>() + state.and_then(Thread::tree).map_or(0, Tree::weight_bytes)
    }

    fn committed(&self, _: ShardId, _: Uuid, state: Option<&Thread>, events: &[Event]) {
        let Some(tree) = state.and_then(Thread::tree) else {
            return;
        };
        for event in events {
            let (id, written) = match event {
                Event::Added { id, text, .. } | Event::Edited { id, text } => (id, Written::from(text)),
                Event::Deleted { id, text, at, left: Deletion::Tombstone } => {
                    (id, Written { words: None, created_at: text.created_at, updated_at: *at })
                }
                _ => continue,
            };
            // What was just written is about to be read.
            if let Some(info) = tree.get(id.0) {
                self.texts.put(id.0, info.version, written);
            }
        }
    }

    fn noted(&self, note: Note) {
        match note {
            Note::Author(author) => self.authors.note(author),
            Note::Closed => self.closing.notify_one(),
        }
    }

    fn is_final(event: &Event) -> bool {
        matches!(event, Event::Closed)
    }

    fn concerns(&self, foreign: &Foreign<'_>) -> Result<Vec<Uuid>, Poison> {
        Ok(match (foreign.source.topic, &*foreign.record.kind) {
            (Topic::Users, "user.created" | "user.updated" | "user.deleted") | (Topic::Posts, "post.deleted") => {
                vec![foreign.record.key]
            }
            _ => vec![],
        })
    }

    async fn answer(runtime: &Runtime<Self>, query: &Query, deadline: Instant) -> Result<Answer, Failure> {
        match query {
            Query::Comments(comments) => {
                let found = join_all(comments.iter().map(|(post, comment)| here::comment(runtime, *post, *comment, deadline)));
                let found = found.await.into_iter().filter_map(Result::transpose);
                Ok(Answer::Comments(found.collect::<Result<_, _>>()?))
            }
            Query::Page(asked) => here::look(runtime, asked, deadline).await.map(Answer::Page),
            Query::Liked(user, comments) => here::liked(runtime, *user, comments).await.map(Answer::Liked),
        }
    }

    fn project(&self, foreign: &Foreign<'_>, id: Uuid, unit: &mut Unit<Self>) -> Result<(), Poison> {
        if let Some(author) = Author::of(foreign)? {
            unit.writes.authors.push(AuthorRow::from(&author));
            if author.deleted {
                unit.writes.stale_letters.push(StaleLetterRow { author: id });
            }
            unit.notes.push(Note::Author(author));
        } else if foreign.source.topic == Topic::Posts && &*foreign.record.kind == "post.deleted" {
            unit.writes.closed.push(ClosedRow { post: id });
            unit.effects.push((id, Event::Closed));
            unit.notes.push(Note::Closed);
        }
        Ok(())
    }
}

impl Likes for CommentService {
    const LIKES: &'static str = "SELECT l.user_id, l.comment, (SELECT c.post FROM comment c WHERE c.id = l.comment LIMIT 1)
        FROM comment_like l WHERE l.user_id = ANY($1) AND (l.user_id, l.comment) > ($2, $3)
        ORDER BY l.user_id, l.comment LIMIT $4";
    const AUTHORS: &'static str = "SELECT a.id, a.departed_at IS NOT NULL,
            COALESCE(a.departed_at < now() - make_interval(secs => $2), false)
            AND NOT EXISTS (SELECT FROM comment_like l WHERE l.user_id = a.id)
        FROM author a WHERE a.deleted AND NOT a.likes_gone AND a.id > $1 ORDER BY a.id LIMIT $3";

    fn unlike(like: &Like) -> Command {
        Command::Like { comment: CommentId(like.liked), user: UserId(like.user), on: false }
    }

    fn forget(unit: &mut Unit<Self>, like: &Like) {
        unit.writes.unlikes.push(UnlikeRow { comment: like.liked, user_id: like.user });
    }

    fn depart(unit: &mut Unit<Self>, author: Uuid) {
        unit.writes.departing.push(DepartingRow { id: author });
    }

    fn depart_for_good(unit: &mut Unit<Self>, author: Uuid) {
        unit.writes.departed.push(DepartedRow { id: author });
    }
}

/// A comment without what is written in it; none: the row says that the thread is closed.
fn skeleton(row: &Row) -> Result<Option<tree::Row>, LoadError> {
    let Some(id): Option<Uuid> = row.get(1) else {
        return Ok(None);
    };
    let count = |column: usize| {
        u32::try_from(row.get::<_, i64>(column))
            .map_err(|error| LoadError::Corrupt(format!("comment {id}, column {column}: {error}")))
    };
    Ok(Some(tree::Row { id, parent: row.get(2), like_count: count(3)?, version: count(4)?, deleted: row.get(5) }))
}

/// More rows than this are sorted on a thread of their own: it takes milliseconds, in which nobody else would be served.
const ROWS_AT_ONCE: usize = 5_000;

async fn planted(post: Uuid, comments: Vec<tree::Row>) -> Tree {
    let loaded = if comments.len() <= ROWS_AT_ONCE {
        Tree::load(comments)
    } else {
        tokio::task::spawn_blocking(|| Tree::load(comments)).await.expect("any rows make a tree")
    };
    if !loaded.left_out.is_empty() {
        tracing::error!(post.id = %post, count = loaded.left_out.len(), "comments of post {post} have no place in its thread");
    }
    loaded.tree
}

fn text(written: Written) -> Option<Text> {
    let Written { words, created_at, updated_at } = written;
    words.map(|(author, body)| Text { author, body, created_at, updated_at })
}

fn info(state: Option<&Thread>, id: CommentId) -> Info {
    state.and_then(Thread::tree).and_then(|tree| tree.get(id.0)).expect("what happens to a comment was decided on its tree")
}

/// A comment after its next change.
fn edited(state: Option<&Thread>, id: CommentId) -> Info {
    let info = info(state, id);
    Info { version: info.version + 1, ..info }
}

fn newborn(id: CommentId, parent: Option<CommentId>, depth: u8) -> Info {
    let parent = parent.map(|parent| parent.0);
    Info { id: id.0, parent, depth, like_count: 0, reply_count: 0, version: 1, deleted: false }
}

fn record(post_id: PostId, info: &Info, text: &Text) -> CommentRecord {
    CommentRecord {
        id: CommentId(info.id),
        post_id,
        parent_id: info.parent.map(CommentId),
        depth: u16::from(info.depth),
        author: text.author,
        body: text.body.as_str().to_owned(),
        created_at: text.created_at,
        updated_at: text.updated_at,
        version: i64::from(info.version),
        deleted: false,
    }
}
