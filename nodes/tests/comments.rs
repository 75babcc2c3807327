//! The comments service on a real Postgres.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use rookery::{
    migrate::Database,
    testing::{TestPostgres, TestService, eventually},
};
use rookery_actors::{
    comments::{
        Change, Comment, CommentBody, CommentService, Comments, Draft, Imported, Order, Place, Rejection, SLICE_MAX, Scope,
        texts::Texts,
    },
    entity::AskError,
    event::{Record, Source, Topic},
    ids::{CommentId, PostId, ShardId, UserId, uuid_v7},
    records::CommentRecord,
    runtime::{Context, IdempotencyKey, Settings, Slice, SlicePart},
};
use tokio::time::Instant;
use uuid::Uuid;

const ADA: UserId = UserId(Uuid::from_u128(1));
const BOB: UserId = UserId(Uuid::from_u128(2));

fn soon() -> Context {
    Context::within(Duration::from_secs(20))
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn body(text: &str) -> CommentBody {
    CommentBody::parse(text).unwrap()
}

async fn service(config: &tokio_postgres::Config) -> (TestService<CommentService>, Comments) {
    let service = TestService::start(CommentService::default(), config.clone(), "n1", Settings::default()).await;
    let comments = Comments::new(service.runtime.clone());
    (service, comments)
}

async fn fresh() -> tokio_postgres::Config {
    TestPostgres::shared().fresh_database(Database::Comments).await
}

fn draft(post: PostId, parent: Option<CommentId>, text: &str) -> Draft {
    Draft { post, author: ADA, body: body(text), parent, at: Timestamp::now() }
}

async fn add(comments: &Comments, post: PostId, parent: Option<CommentId>, text: &str) -> Comment {
    comments.add(draft(post, parent, text), soon()).await.unwrap().reply.comment.unwrap()
}

async fn edit(comments: &Comments, comment: &Comment, text: &str) -> Comment {
    let change = Change { body: body(text), if_version: Some(comment.version) };
    let edited = comments.edit(comment.post_id, comment.id, ADA, change, Timestamp::now(), soon()).await.unwrap();
    edited.reply.comment.unwrap()
}

async fn delete(comments: &Comments, comment: &Comment) {
    comments.delete(comment.post_id, comment.id, ADA, false, None, Timestamp::now(), soon()).await.unwrap();
}

fn a_post() -> PostId {
    PostId(Uuid::now_v7())
}

fn whole(post: PostId, order: Order) -> Place {
    Place::start(Scope { post, order, parent: None, depth: None })
}

/// All pages of a walk, the cursor travelling as text.
async fn walk(comments: &Comments, from: Place, limit: usize) -> Vec<Comment> {
    let limit = NonZeroUsize::new(limit).unwrap();
    let (mut place, mut seen) = (Some(from), Vec::new());
    while let Some(here) = place {
        let page = comments.page(&here, limit, deadline()).await.unwrap().expect("the thread is open");
        seen.extend(page.items);
        place = page.next.map(|next| serde_json::from_str(&serde_json::to_string(&next).unwrap()).unwrap());
    }
    seen
}

/// Tells the service, as the posts' log does, that a post is gone; or of a user, as the users' log does.
async fn hear(comments: &Comments, topic: Topic, kind: &str, key: Uuid, payload: &str) {
    // One after the other: two keys may lie in one shard, which skips what it has applied.
    static SEQ: AtomicI64 = AtomicI64::new(1);
    let seq = SEQ.fetch_add(1, Ordering::Relaxed);
    let source = Source { topic, shard: ShardId(0) };
    let record =
        Record { seq, epoch: 1, key, kind: kind.into(), payload: Some(payload.into()), traceparent: None, at: Timestamp::now() };
    let slice = Slice { parts: vec![SlicePart { source, position: seq, records: vec![Arc::new(record)] }] };
    comments.runtime().apply(comments.runtime().shard_of(key), &slice).await.unwrap();
}

/// The kinds of the records of a post's thread with what they carry.
async fn log(comments: &Comments, post: PostId) -> Vec<(String, serde_json::Value)> {
    let records = comments.runtime().log_after(comments.runtime().shard_of(post.0), 0, usize::MAX).await.unwrap();
    let ours = records.iter().filter(|record| record.key == post.0);
    ours.map(|record| (record.kind.to_string(), serde_json::from_str(record.payload.as_ref().unwrap()).unwrap())).collect()
}

/// What was broken: the row of a comment without replies goes without a trace, and a repeated import added it anew, for
/// everybody to see.
#[tokio::test]
async fn an_import_brings_no_deleted_comment_back() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let post = a_post();
    let id = |n: u128| CommentId(Uuid::from_u128(n));
    let imported = |n: u128, parent: Option<u128>| Imported {
        id: id(n),
        author: ADA,
        body: body("From afar."),
        parent: parent.map(id),
        at: Timestamp::UNIX_EPOCH,
    };
    let file = || vec![imported(1, None), imported(2, Some(1)), imported(3, None)];
    comments.import(post, file(), soon()).await.unwrap();
    let get = async |comments: &Comments, n| comments.get(post, id(n), deadline()).await.unwrap();
    comments.like(post, id(3), BOB, true, soon()).await.unwrap();
    // The second leaves no tombstone, and takes that of the first with it.
    for n in [1, 2, 3] {
        let comment = get(&comments, n).await.unwrap();
        delete(&comments, &comment).await;
    }
    comments.import(post, file(), soon()).await.unwrap();
    assert_eq!(walk(&comments, whole(post, Order::Old), 10).await, []);
    let taken = comments.which_are_taken(&[1, 2, 3, 4].map(|n| (post, id(n)))).await.unwrap();
    assert_eq!(taken, [1, 2, 3].map(id).into());
    service.stop().await;

    let (service, comments) = self::service(&config).await;
    comments.import(post, file(), soon()).await.unwrap();
    comments.import(post, vec![imported(4, None)], soon()).await.unwrap();
    let left: Vec<CommentId> = walk(&comments, whole(post, Order::Old), 10).await.iter().map(|comment| comment.id).collect();
    assert_eq!(left, [id(4)], "in memory or from its rows");
    service.stop().await;
}

#[tokio::test]
async fn a_thread_reads_the_same_after_a_restart() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let post = a_post();
    let first = add(&comments, post, None, "first").await;
    let reply = add(&comments, post, Some(first.id), "reply").await;
    edit(&comments, &reply, "a better reply").await;
    comments.like(post, first.id, BOB, true, soon()).await.unwrap();
    let before = walk(&comments, whole(post, Order::Old), 1).await;
    service.stop().await;

    let (service, comments) = self::service(&config).await;
    let bodies: Vec<&str> = before.iter().map(|comment| comment.body.as_ref().unwrap().as_str()).collect();
    assert_eq!(bodies, ["first", "a better reply"]);
    assert_eq!(walk(&comments, whole(post, Order::Old), 1).await, before);
    service.stop().await;
}

#[tokio::test]
async fn an_edit_is_seen_by_the_next_read_though_the_old_text_was_at_hand() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let comment = add(&comments, a_post(), None, "frist").await;
    comments.get(comment.post_id, comment.id, deadline()).await.unwrap();
    edit(&comments, &comment, "first").await;
    let seen = comments.get(comment.post_id, comment.id, deadline()).await.unwrap().unwrap();
    assert_eq!((seen.body.unwrap().as_str(), seen.version), ("first", 2));
    service.stop().await;
}

/// Without a cache of texts every read is pieced together from memory and SQL.
#[tokio::test]
async fn a_read_beside_edits_is_never_older_than_what_was_acknowledged_and_never_torn() {
    let config = fresh().await;
    let uncached = CommentService { texts: Texts::new(0), ..CommentService::default() };
    let service = TestService::start(uncached, config, "n1", Settings::default()).await;
    let comments = Comments::new(service.runtime.clone());
    let comment = add(&comments, a_post(), None, "1").await;
    let acknowledged = AtomicI64::new(1);
    let writing = async {
        let mut latest = comment.clone();
        for version in 2..=100 {
            latest = edit(&comments, &latest, &version.to_string()).await;
            acknowledged.store(version, Ordering::SeqCst);
        }
    };
    let reading = async {
        while acknowledged.load(Ordering::SeqCst) < 100 {
            let before = acknowledged.load(Ordering::SeqCst);
            let seen = walk(&comments, whole(comment.post_id, Order::New), 1).await.pop().unwrap();
            assert!(seen.version >= before, "{} after {before}", seen.version);
            assert_eq!(seen.body.unwrap().as_str(), seen.version.to_string());
        }
    };
    tokio::join!(writing, reading);
    service.stop().await;
}

#[tokio::test]
async fn a_thread_of_many_thousand_comments_loads_and_pages() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let post = a_post();
    import(&comments, post, 6_000).await;
    service.stop().await;
    let (service, comments) = self::service(&config).await;
    assert_eq!(walk(&comments, whole(post, Order::Old), 500).await.len(), 6_000);
    service.stop().await;
}

#[tokio::test]
async fn an_edit_that_changes_nothing_answers_with_the_comment() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let comment = add(&comments, a_post(), None, "first").await;
    assert_eq!(edit(&comments, &comment, "first").await, comment);
    service.stop().await;
}

#[tokio::test]
async fn a_tombstone_has_no_author_and_no_body_and_goes_with_its_last_reply() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let post = a_post();
    let first = add(&comments, post, None, "first").await;
    let reply = add(&comments, post, Some(first.id), "reply").await;
    delete(&comments, &first).await;
    let tombstone = comments.get(post, first.id, deadline()).await.unwrap().unwrap();
    assert_eq!((tombstone.author, tombstone.body, tombstone.deleted, tombstone.reply_count), (None, None, true, 1));
    delete(&comments, &reply).await;
    assert!(walk(&comments, whole(post, Order::New), 10).await.is_empty());
    let count = sql(&config).await.query_one("SELECT count(*) FROM comment", &[]).await.unwrap();
    assert_eq!(count.get::<_, i64>(0), 0);
    service.stop().await;
}

#[tokio::test]
async fn every_deletion_is_told_once_with_its_author_and_without_its_text() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let post = a_post();
    let first = add(&comments, post, None, "first").await;
    let reply = add(&comments, post, Some(first.id), "reply").await;
    delete(&comments, &first).await;
    delete(&comments, &reply).await;
    let gone: Vec<CommentRecord> = log(&comments, post)
        .await
        .into_iter()
        .filter(|(kind, _)| kind == "comment.deleted")
        .map(|(_, payload)| serde_json::from_value(payload).unwrap())
        .collect();
    let told: Vec<_> = gone.iter().map(|record| (record.id, record.author, record.body.as_str(), record.version)).collect();
    assert_eq!(told, [(first.id, ADA, "", 2), (reply.id, ADA, "", 2)]);
    service.stop().await;
}

#[tokio::test]
async fn likes_count_once_per_user_and_survive_a_restart() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let comment = add(&comments, a_post(), None, "first").await;
    for user in [ADA, BOB, BOB] {
        comments.like(comment.post_id, comment.id, user, true, soon()).await.unwrap();
    }
    comments.like(comment.post_id, comment.id, ADA, false, soon()).await.unwrap();
    service.stop().await;
    let (service, comments) = self::service(&config).await;
    let comment = comments.get(comment.post_id, comment.id, deadline()).await.unwrap().unwrap();
    assert_eq!(comment.like_count, 1);
    assert!(comments.liked(BOB, std::slice::from_ref(&comment), soon().deadline).await.unwrap().contains(&comment.id));
    assert!(comments.liked(ADA, &[comment], soon().deadline).await.unwrap().is_empty());
    service.stop().await;
}

#[tokio::test]
async fn a_deleted_post_closes_its_thread_for_good() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let (commented, silent) = (a_post(), a_post());
    let comment = add(&comments, commented, None, "first").await;
    for post in [commented, silent] {
        hear(&comments, Topic::Posts, "post.deleted", post.0, "{}").await;
    }
    let refused = |comments: Comments| async move {
        for post in [commented, silent] {
            let late = comments.add(draft(post, None, "late"), soon()).await.unwrap_err();
            assert_eq!(late, AskError::Rejected(Rejection::Closed));
        }
        let page = comments.page(&whole(commented, Order::New), NonZeroUsize::MIN, deadline()).await.unwrap();
        assert!(page.is_none());
        assert_eq!(comments.get(commented, comment.id, deadline()).await.unwrap(), None);
        assert!(comments.by_author(ADA, None, 10).await.unwrap().items.is_empty());
        assert!(comments.export(None, 10).await.unwrap().is_empty());
    };
    refused(comments).await;
    service.stop().await;
    let (service, comments) = self::service(&config).await;
    refused(comments).await;
    service.stop().await;
}

/// The closing is on its way to the database, and memory does not know yet: what is decided now stands on an open thread.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_into_a_thread_after_it_was_closed() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let post = a_post();
    let comment = add(&comments, post, None, "first").await;
    let mut holding = sql(&config).await;
    let lock = holding.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE closed_thread IN EXCLUSIVE MODE").await.unwrap();
    let closing = tokio::spawn({
        let comments = comments.clone();
        async move { hear(&comments, Topic::Posts, "post.deleted", post.0, "{}").await }
    });
    let client = sql(&config).await;
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'closed_thread'::regclass";
    eventually(Duration::from_secs(20), "the closing waits for the lock", async || {
        client.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) > 0
    })
    .await;
    let late = tokio::spawn({
        let (comments, comment) = (comments.clone(), comment.clone());
        async move {
            let change = Change { body: body("late"), if_version: None };
            let edited = comments.edit(post, comment.id, ADA, change, Timestamp::now(), soon()).await.map(drop);
            let liked = comments.like(post, comment.id, BOB, true, soon()).await.map(drop);
            let added = comments.add(draft(post, None, "late"), soon()).await.map(drop);
            [edited, liked, added]
        }
    });
    // Long enough for a command to be decided and queued behind the closing, as it was before this was refused.
    tokio::time::sleep(Duration::from_millis(200)).await;
    lock.commit().await.unwrap();
    closing.await.unwrap();
    assert_eq!(late.await.unwrap(), [const { Err(AskError::Rejected(Rejection::Closed)) }; 3]);
    let kinds: Vec<String> = log(&comments, post).await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["comment.created"]);
    service.stop().await;
}

/// A thread of three slices, written by so many authors, two of whom have gone back on a comment; its post is gone.
async fn closed_thread(comments: &Comments, authors: usize) -> (PostId, BTreeMap<UserId, i64>) {
    let (post, count) = (a_post(), 2 * SLICE_MAX + SLICE_MAX / 2);
    let author = |n: usize| UserId(Uuid::from_u128(1_000 + (n % authors) as u128));
    let at = Timestamp::from_second(1_700_000_000).unwrap();
    let id = |n: usize| {
        let mut rest = [0; 10];
        rest[2..].copy_from_slice(&(n as u64).to_be_bytes());
        CommentId(uuid_v7(at, rest))
    };
    let imported = |n: usize| Imported {
        id: id(n),
        author: author(n),
        body: body(&format!("comment {n}")),
        parent: (!n.is_multiple_of(3)).then(|| id(n - n % 3)),
        at,
    };
    for chunk in (0..count).collect::<Vec<_>>().chunks(500) {
        comments.import(post, chunk.iter().map(|n| imported(*n)).collect(), soon()).await.unwrap();
    }
    // One stays as a tombstone, one goes at once.
    for n in [0, 5] {
        comments.delete(post, id(n), author(n), false, None, Timestamp::now(), soon()).await.unwrap();
    }
    comments.like(post, id(1), BOB, true, soon()).await.unwrap();
    let mut counts = BTreeMap::new();
    (0..count).filter(|n| ![0, 5].contains(n)).for_each(|n| *counts.entry(author(n)).or_default() += 1);
    hear(comments, Topic::Posts, "post.deleted", post.0, "{}").await;
    (post, counts)
}

/// What the log has told of each author: comments written, and comments gone.
async fn told(config: &tokio_postgres::Config, post: PostId) -> BTreeMap<UserId, i64> {
    let rows = sql(config).await.query("SELECT type, payload FROM outbox WHERE key = $1", &[&post.0]).await.unwrap();
    let mut counts = BTreeMap::new();
    for row in rows {
        let change = match row.get(0) {
            "comment.created" => 1,
            "comment.deleted" => -1,
            _ => continue,
        };
        let record: CommentRecord = serde_json::from_str(row.get(1)).unwrap();
        *counts.entry(record.author).or_default() += change;
    }
    counts
}

async fn count(config: &tokio_postgres::Config, of: &str) -> i64 {
    sql(config).await.query_one(&format!("SELECT count(*) FROM {of}"), &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_comments_of_a_deleted_post_go_in_slices_and_each_is_told_to_its_author_once() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let other = add(&comments, a_post(), None, "stays").await;
    let (post, written) = closed_thread(&comments, 1_500).await;
    assert_eq!(told(&config, post).await, written);
    let gone = comments.sweep_closed(deadline()).await.unwrap();
    assert_eq!(gone, 2 * SLICE_MAX + SLICE_MAX / 2 - 1, "the tombstone too");
    assert!(told(&config, post).await.values().all(|count| *count == 0));
    assert_eq!(comments.sweep_closed(deadline()).await.unwrap(), 0);
    for (of, left) in [("comment", 1), ("comment_like", 0), ("closed_thread WHERE NOT swept", 0), ("closed_thread", 1)] {
        assert_eq!(count(&config, of).await, left, "{of}");
    }
    // A slice is a batch: no more of them than a thousand, and nothing of what was written.
    let slices =
        "SELECT count(*), max(length(payload)) FROM outbox WHERE type = 'comment.deleted' AND payload LIKE '%\"body\":\"\"%'
                  GROUP BY batch HAVING count(*) > 1 ORDER BY 1";
    let slices = sql(&config).await.query(slices, &[]).await.unwrap();
    let slices: Vec<i64> = slices.iter().map(|row| row.get(0)).collect();
    assert_eq!(slices.iter().sum::<i64>(), gone as i64 - 1);
    assert!(slices.len() == 3 && slices.iter().all(|slice| *slice <= SLICE_MAX as i64), "{slices:?}");
    assert_eq!(comments.get(other.post_id, other.id, deadline()).await.unwrap(), Some(other));
    service.stop().await;
}

/// The owner is stopped after each slice, or while one is under way; whoever comes next knows nothing but the rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_in_the_middle_of_a_closed_thread_loses_and_repeats_no_decrement() {
    let config = fresh().await;
    let (mut service, mut comments) = self::service(&config).await;
    let (post, _) = closed_thread(&comments, 300).await;
    let mut owners = 1;
    let mut left = count(&config, "comment").await;
    while count(&config, "closed_thread WHERE NOT swept").await > 0 {
        let sweeping = tokio::spawn({
            let comments = comments.clone();
            async move { comments.sweep_closed(deadline()).await }
        });
        // With the slice on its way: its caller goes, and the commit goes on.
        eventually(Duration::from_secs(20), "a slice is in", async || count(&config, "comment").await < left).await;
        sweeping.abort();
        service.stop().await;
        left = count(&config, "comment").await;
        owners += 1;
        (service, comments) = self::service(&config).await;
    }
    assert!(owners > 1);
    assert_eq!(count(&config, "comment").await, 0);
    let told = told(&config, post).await;
    assert!(told.values().all(|count| *count == 0), "{told:?}");
    service.stop().await;
}

/// Yesterday's node closes a thread and knows nothing of slices: its row says that nothing was swept.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_node_has_closed_is_swept_by_the_next_owner() {
    let config = fresh().await;
    let (service, comments) = self::service(&config).await;
    let post = a_post();
    let comment = add(&comments, post, None, "first").await;
    comments.like(post, comment.id, BOB, true, soon()).await.unwrap();
    service.stop().await;
    sql(&config).await.execute("INSERT INTO closed_thread (post) VALUES ($1)", &[&post.0]).await.unwrap();
    let (service, comments) = self::service(&config).await;
    assert_eq!(comments.sweep_closed(deadline()).await.unwrap(), 1);
    assert_eq!(told(&config, post).await, BTreeMap::from([(ADA, 0)]));
    assert_eq!(count(&config, "comment_like").await, 0);
    service.stop().await;
}

#[tokio::test]
async fn a_users_comments_come_newest_first_from_all_threads() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let first = add(&comments, a_post(), None, "first").await;
    let second = add(&comments, a_post(), None, "second").await;
    let reply = add(&comments, first.post_id, Some(first.id), "third").await;
    let page = comments.by_author(ADA, None, 2).await.unwrap();
    let mut items = page.items;
    let last = comments.by_author(ADA, page.next, 2).await.unwrap();
    assert_eq!(last.next, None);
    items.extend(last.items);
    let ids: Vec<CommentId> = items.iter().map(|comment| comment.id).collect();
    assert_eq!(ids, [reply.id, second.id, first.id]);
    // What SQL tells is what memory tells.
    let told = items.last().unwrap();
    assert_eq!((told.reply_count, told.depth, told.body.clone()), (1, 0, first.body));
    service.stop().await;
}

#[tokio::test]
async fn names_of_authors_follow_the_users_log() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let ada = r#"{"id":"00000000-0000-0000-0000-000000000001","version":1,"username":"ada","display_name":"Ada",
        "bio":"","avatar_url":null,"created_at":"2026-01-01T00:00:00Z","deleted":false}"#;
    hear(&comments, Topic::Users, "user.created", ADA.0, ada).await;
    assert_eq!(comments.authors([ADA, BOB]).await.unwrap()[&ADA].username, "ada");
    service.stop().await;
    let (service, comments) = self::service(&config).await;
    assert_eq!(comments.authors([ADA]).await.unwrap()[&ADA].display_name, "Ada");
    service.stop().await;
}

#[tokio::test]
async fn a_retry_with_its_idempotency_key_writes_one_comment() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let post = a_post();
    let keyed = || {
        let key = IdempotencyKey::new("ada:/comments:1", [1; 32]);
        Context { idempotency: Some(key), ..soon() }
    };
    let (first, second) =
        tokio::join!(comments.add(draft(post, None, "once"), keyed()), comments.add(draft(post, None, "once"), keyed()));
    assert_eq!(first.unwrap().reply, second.unwrap().reply);
    assert_eq!(walk(&comments, whole(post, Order::New), 10).await.len(), 1);
    service.stop().await;
}

/// Imports `count` comments; of each hundred the first 40 are a chain of replies.
async fn import(comments: &Comments, post: PostId, count: usize) {
    let at = Timestamp::from_second(1_700_000_000).unwrap();
    let id = |n: usize| {
        let mut rest = [0; 10];
        rest[2..].copy_from_slice(&(n as u64).to_be_bytes());
        CommentId(uuid_v7(at, rest))
    };
    let imported = |n: usize| {
        let parent = (1..40).contains(&(n % 100)).then(|| id(n - 1));
        Imported { id: id(n), author: ADA, body: body(&format!("comment {n}")), parent, at }
    };
    for chunk in (0..count).collect::<Vec<_>>().chunks(500) {
        comments.import(post, chunk.iter().map(|n| imported(*n)).collect(), soon()).await.unwrap();
    }
}

#[tokio::test]
async fn pages_walk_through_everything_once_in_every_order() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let post = a_post();
    import(&comments, post, 1_000).await;
    for order in [Order::New, Order::Old, Order::Top] {
        let mut ids: Vec<CommentId> = walk(&comments, whole(post, order), 37).await.iter().map(|comment| comment.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 1_000, "{order:?}");
    }
    service.stop().await;
}

#[tokio::test]
async fn an_export_has_every_comment_once() {
    let config = fresh().await;
    let (service, comments) = service(&config).await;
    let posts = [a_post(), a_post()];
    for post in posts {
        import(&comments, post, 120).await;
    }
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = comments.export(after, 50).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some((last.post_id, last.id));
        seen.extend(page.iter().map(|record| (record.post_id, record.id)));
    }
    assert_eq!(seen.len(), 240);
    assert!(seen.is_sorted());
    service.stop().await;
}

async fn sql(config: &tokio_postgres::Config) -> tokio_postgres::Client {
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
