//! Comments: one thread per post.

pub mod entity;
mod here;
mod reads;
mod rebuild;
pub mod rules;
pub mod service;
mod sweep;
pub mod texts;
pub mod tree;

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_postgres::Row;
use uuid::Uuid;

pub(crate) use self::rebuild::{BY_AUTHOR, BY_POST};
pub use self::{
    entity::{Command, Imported, Rejection, Thread},
    reads::{Asked, Look, Stamp},
    rules::CommentBody,
    service::{Answer, CommentService, Query, Reply},
    sweep::SLICE_MAX,
    tree::Order,
};
use self::{
    texts::{Written, written},
    tree::Info,
};
use crate::{
    authors::Author,
    entity::{AskError, Failure},
    ids::{CommentId, PostId, UserId, mint},
    records::CommentRecord,
    runtime::{Accepted, AskResult, Context, Runtime},
};

/// The public face of the comments service.
#[derive(Clone)]
pub struct Comments {
    runtime: Runtime<CommentService>,
}

/// A comment, or the tombstone of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comment {
    /// Its id.
    pub id: CommentId,
    /// The post under which it stands.
    pub post_id: PostId,
    /// The comment that it answers.
    pub parent_id: Option<CommentId>,
    /// 0 at the top, 50 at most.
    pub depth: u16,
    /// Who wrote it; none: a tombstone. Names come from a projection.
    pub author: Option<UserId>,
    /// 1 to 10,000 characters; none: a tombstone.
    pub body: Option<CommentBody>,
    /// When it was written.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Grows with every edit, from 1.
    pub version: i64,
    /// Whether it is a tombstone.
    pub deleted: bool,
    /// How many users like it.
    pub like_count: i64,
    /// How many direct replies it has, tombstones not counted.
    pub reply_count: i64,
}

/// What a new comment is made of.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The post under which it stands. The caller has seen that it exists.
    pub post: PostId,
    /// Who writes.
    pub author: UserId,
    /// The text.
    pub body: CommentBody,
    /// The comment that it answers.
    pub parent: Option<CommentId>,
    /// When it was written.
    pub at: Timestamp,
}

/// What an edit changes.
#[derive(Clone, Debug)]
pub struct Change {
    /// The new text.
    pub body: CommentBody,
    /// The version that the editor saw.
    pub if_version: Option<i64>,
}

/// Which comments of a post to walk through, and in which order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// The post.
    pub post: PostId,
    /// The order of siblings.
    pub order: Order,
    /// Only what stands below this comment, itself not included; none: the whole thread.
    pub parent: Option<CommentId>,
    /// How many levels below the parent, or from the top; none: all of them.
    pub depth: Option<u16>,
}

/// A place in a walk through a thread: a cursor, which says itself what it is a cursor of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    scope: Scope,
    after: Option<tree::Cursor>,
}

/// A page of comments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Page<P> {
    /// In the order of the walk. May be shorter than asked for when comments went meanwhile.
    pub items: Vec<Comment>,
    /// Where the next page begins; none: this was the last.
    pub next: Option<P>,
}

impl Comment {
    /// Whether it was changed after it was written.
    pub fn edited(&self) -> bool {
        self.version > 1 && !self.deleted
    }

    pub(crate) fn of(post_id: PostId, info: &Info, written: &Written) -> Self {
        let (author, body) = written.words.clone().unzip();
        Self {
            id: CommentId(info.id),
            post_id,
            parent_id: info.parent.map(CommentId),
            depth: u16::from(info.depth),
            deleted: author.is_none(),
            author,
            body,
            created_at: written.created_at,
            updated_at: written.updated_at,
            version: i64::from(info.version),
            like_count: i64::from(info.like_count),
            reply_count: i64::from(info.reply_count),
        }
    }
}

impl Place {
    /// The beginning of a walk.
    pub fn start(scope: Scope) -> Self {
        Self { scope, after: None }
    }

    /// What is walked through. A cursor that comes with a question about something else belongs to another walk.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    fn query(&self, limit: NonZeroUsize) -> tree::Query {
        let Scope { order, parent, depth, .. } = self.scope;
        tree::Query { order, root: parent.map(|parent| parent.0), levels: depth, after: self.after.clone(), limit }
    }
}

impl Comments {
    /// The face of a runtime.
    pub fn new(runtime: Runtime<CommentService>) -> Self {
        Self { runtime }
    }

    /// The runtime behind it.
    pub fn runtime(&self) -> &Runtime<CommentService> {
        &self.runtime
    }

    /// Writes a comment; the reply has it. Its shard is its post's, so a retry with an idempotency key meets the
    /// same owner, whatever id it brings (rule 15).
    ///
    /// Whether the post exists is for the caller to ask: a thread knows only that its post is gone. A post that goes
    /// after the caller has seen it leaves a closed thread, which refuses the comment or takes it along (rule 19).
    ///
    /// # Errors
    /// The thread's rejection.
    pub async fn add(&self, draft: Draft, context: Context) -> AskResult<CommentService> {
        let id = CommentId(mint(draft.at, self.runtime.shards(), None));
        let Draft { post, author, body, parent, at } = draft;
        self.runtime.ask(post.0, Command::Add { id, author, body, parent, at }, context).await
    }

    /// Edits a comment; the reply has it.
    ///
    /// # Errors
    /// The thread's rejection.
    pub async fn edit(
        &self,
        post: PostId,
        comment: CommentId,
        editor: UserId,
        change: Change,
        at: Timestamp,
        context: Context,
    ) -> AskResult<CommentService> {
        let Change { body, if_version } = change;
        let deadline = context.deadline;
        let command = Command::Edit { comment, editor, body, if_version, at };
        let accepted = self.runtime.ask(post.0, command, context).await?;
        self.complete(accepted, post, comment, deadline).await
    }

    /// Deletes a comment; with replies, a tombstone stays.
    ///
    /// # Errors
    /// The thread's rejection.
    #[expect(clippy::too_many_arguments, reason = "who, what, when and on which condition; a struct would have one user")]
    pub async fn delete(
        &self,
        post: PostId,
        comment: CommentId,
        by: UserId,
        moderator: bool,
        if_version: Option<i64>,
        at: Timestamp,
        context: Context,
    ) -> AskResult<CommentService> {
        self.runtime.ask(post.0, Command::Delete { comment, by, moderator, if_version, at }, context).await
    }

    /// Sets or takes back a like; doing so twice changes nothing. The reply has no comment.
    ///
    /// # Errors
    /// The thread's rejection.
    pub async fn like(
        &self,
        post: PostId,
        comment: CommentId,
        user: UserId,
        on: bool,
        context: Context,
    ) -> AskResult<CommentService> {
        self.runtime.ask(post.0, Command::Like { comment, user, on }, context).await
    }

    /// Takes over comments of a post: all of those that are not there yet, or none. A few hundred at a time; parents
    /// stand before their replies, in this import or in one before it.
    ///
    /// # Errors
    /// The thread's rejection.
    pub async fn import(&self, post: PostId, comments: Vec<Imported>, context: Context) -> AskResult<CommentService> {
        self.runtime.ask(post.0, Command::Import { comments }, context).await
    }

    /// A user's comments, the newest first, without those that are deleted or whose post is gone.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn by_author(&self, user: UserId, after: Option<CommentId>, limit: usize) -> Result<Page<CommentId>, Failure> {
        let after = after.map_or(Uuid::max(), |after| after.0);
        let count = i64::try_from(limit + 1).expect("a page is short");
        let rows = {
            let client = self.runtime.database().get().await?;
            // From the table alone: loading all the threads that somebody ever wrote in would cost far more. Each closed thread is
            // looked up by its key: for a NOT EXISTS, Postgres would read and hash all there are, and all of the author's comments.
            client
                .query(
                    "SELECT c.post, c.id, c.parent, c.depth, c.version, c.like_count,
                            (SELECT count(*) FROM comment r WHERE r.parent = c.id AND r.author IS NOT NULL),
                            c.author, c.body, c.created_at, c.updated_at
                     FROM comment c
                     WHERE c.author = $1 AND c.id < $2 AND (SELECT t.post FROM closed_thread t WHERE t.post = c.post) IS NULL
                     ORDER BY c.id DESC LIMIT $3",
                    &[&user.0, &after, &count],
                )
                .await?
        };
        let mut items: Vec<Comment> = rows.iter().map(comment).collect();
        let next = (items.len() > limit).then(|| items[limit - 1].id);
        items.truncate(limit);
        self.settle(items.iter().map(|comment| comment.post_id)).await;
        Ok(Page { items, next })
    }

    /// Names of authors; those that are gone or not known (yet) are left out.
    ///
    /// # Errors
    /// When the table must be asked and does not answer.
    pub async fn authors(&self, ids: impl IntoIterator<Item = UserId>) -> Result<HashMap<UserId, Arc<Author>>, Failure> {
        self.runtime.service().authors.resolve(self.runtime.database(), ids).await
    }

    /// Every comment that can be read, page by page in the order of posts and ids: for whoever rebuilds a projection.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn export(&self, after: Option<(PostId, CommentId)>, limit: usize) -> Result<Vec<CommentRecord>, Failure> {
        let (post, id) = after.map_or((Uuid::nil(), Uuid::nil()), |(post, id)| (post.0, id.0));
        let count = i64::try_from(limit).expect("a page is short");
        let rows = {
            let client = self.runtime.database().get().await?;
            client
                .query(
                    "SELECT c.post, c.id, c.parent, c.depth, c.version, c.author, c.body, c.created_at, c.updated_at
                     FROM comment c
                     WHERE (c.post, c.id) > ($1, $2) AND c.author IS NOT NULL
                       AND (SELECT t.post FROM closed_thread t WHERE t.post = c.post) IS NULL
                     ORDER BY c.post, c.id LIMIT $3",
                    &[&post, &id, &count],
                )
                .await?
        };
        let records: Vec<CommentRecord> = rows.iter().map(exported).collect();
        self.settle(records.iter().map(|record| record.post_id)).await;
        Ok(records)
    }

    /// Which of these comments can be read, tombstones not among them: in one question, without loading their threads.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn which_exist(&self, comments: &[(PostId, CommentId)]) -> Result<HashSet<CommentId>, Failure> {
        let (posts, ids): (Vec<Uuid>, Vec<Uuid>) = comments.iter().map(|(post, id)| (post.0, id.0)).unzip();
        let client = self.runtime.database().get().await?;
        let rows = client
            .query(
                "SELECT c.id FROM UNNEST($1::uuid[], $2::uuid[]) AS r(post, id) JOIN comment c ON c.post = r.post AND c.id = r.id
                 WHERE c.author IS NOT NULL AND (SELECT t.post FROM closed_thread t WHERE t.post = c.post) IS NULL",
                &[&posts, &ids],
            )
            .await?;
        Ok(rows.iter().map(|row| CommentId(row.get(0))).collect())
    }

    /// Which of these ids belong to a comment of that post, a tombstone or not, or did until it was deleted: the same for an
    /// import.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn which_are_taken(&self, comments: &[(PostId, CommentId)]) -> Result<HashSet<CommentId>, Failure> {
        let (posts, ids): (Vec<Uuid>, Vec<Uuid>) = comments.iter().map(|(post, id)| (post.0, id.0)).unzip();
        let client = self.runtime.database().get().await?;
        let rows = client
            .query(
                "SELECT c.id FROM UNNEST($1::uuid[], $2::uuid[]) AS r(post, id) JOIN comment c ON c.post = r.post AND c.id = r.id
                 UNION ALL SELECT id FROM deleted_comment WHERE id = ANY($2)",
                &[&posts, &ids],
            )
            .await?;
        Ok(rows.iter().map(|row| CommentId(row.get(0))).collect())
    }

    /// A reply with the comment, also where the command changed nothing.
    async fn complete(
        &self,
        mut accepted: Accepted<Reply>,
        post: PostId,
        comment: CommentId,
        deadline: Instant,
    ) -> AskResult<CommentService> {
        if accepted.reply.comment.is_none() {
            accepted.reply.comment = self.get(post, comment, deadline).await.map_err(AskError::Failed)?;
        }
        Ok(accepted)
    }

    /// What SQL saw committed must be in memory before we answer beside it (rule 9), as far as it is our memory.
    async fn settle(&self, posts: impl IntoIterator<Item = PostId>) {
        let shards: HashSet<_> = posts.into_iter().map(|post| self.runtime.shard_of(post.0)).collect();
        for shard in shards {
            self.runtime.settled(shard).await;
        }
    }
}

fn comment(row: &Row) -> Comment {
    let Written { words, created_at, updated_at } = written(row, 7);
    let (author, body) = words.unzip();
    Comment {
        post_id: PostId(row.get(0)),
        id: CommentId(row.get(1)),
        parent_id: row.get::<_, Option<Uuid>>(2).map(CommentId),
        depth: row.get::<_, i16>(3).unsigned_abs(),
        version: row.get(4),
        like_count: row.get(5),
        reply_count: row.get(6),
        deleted: author.is_none(),
        author,
        body,
        created_at,
        updated_at,
    }
}

fn exported(row: &Row) -> CommentRecord {
    CommentRecord {
        post_id: PostId(row.get(0)),
        id: CommentId(row.get(1)),
        parent_id: row.get::<_, Option<Uuid>>(2).map(CommentId),
        depth: row.get::<_, i16>(3).unsigned_abs(),
        version: row.get(4),
        author: UserId(row.get(5)),
        body: row.get(6),
        created_at: row.get(7),
        updated_at: row.get(8),
        deleted: false,
    }
}
