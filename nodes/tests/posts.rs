//! The posts service on a real Postgres: the promises of the runtime, seen through the first service that uses it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use rookery::{
    migrate::Database,
    testing::{TestPostgres, TestService},
};
use rookery_actors::{
    entity::AskError,
    event::{Record, Source, Topic},
    ids::{PostId, ShardId, UserId, mint},
    posts::{
        Changes, Command, Draft, Filter, Key, Post, PostService, Posts, Rejection, Sort,
        rules::{Body, Tags, Title},
    },
    records::UserRecord,
    runtime::{Context, IdempotencyKey, Settings, Slice, SlicePart},
};
use tokio::time::Instant;
use uuid::Uuid;

const ADA: UserId = UserId(Uuid::from_u128(1));
const BOB: UserId = UserId(Uuid::from_u128(2));

fn soon() -> Context {
    Context::within(Duration::from_secs(10))
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn draft(title: &str) -> Draft {
    Draft {
        author: ADA,
        title: Title::parse(title).unwrap(),
        body: Body::parse("A body.").unwrap(),
        tags: Tags::parse(&["rust"]).unwrap(),
        at: Timestamp::now(),
    }
}

async fn service(config: &tokio_postgres::Config) -> (TestService<PostService>, Posts) {
    let service = TestService::start(PostService::default(), config.clone(), "n1", Settings::default()).await;
    let posts = Posts::new(service.runtime.clone());
    (service, posts)
}

async fn fresh() -> tokio_postgres::Config {
    TestPostgres::shared().fresh_database(Database::Posts).await
}

async fn publish(posts: &Posts, title: &str) -> Post {
    posts.publish(draft(title), soon()).await.unwrap().reply.post.unwrap()
}

async fn sql(config: &tokio_postgres::Config) -> tokio_postgres::Client {
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn a_published_post_is_read_from_memory_and_after_a_restart() {
    let config = fresh().await;
    let (service, posts) = service(&config).await;
    let post = publish(&posts, "hello").await;
    assert_eq!(posts.get(post.id, deadline()).await.unwrap().as_ref(), Some(&post));
    service.stop().await;

    let (service, posts) = self::service(&config).await;
    let loaded = posts.get(post.id, deadline()).await.unwrap().unwrap();
    assert_eq!((loaded.title, loaded.body, loaded.tags, loaded.version), (post.title, post.body, post.tags, 1));
    service.stop().await;
}

#[tokio::test]
async fn a_new_post_takes_no_actor_until_it_is_told_something() {
    let config = fresh().await;
    let (service, posts) = service(&config).await;
    let post = publish(&posts, "hello").await;
    let bytes = service.runtime.loaded().1;
    posts.like(post.id, BOB, true, soon()).await.unwrap();
    assert!(service.runtime.loaded().1 > bytes + 8_000, "the cell took {bytes} bytes");
    assert_eq!(posts.get(post.id, deadline()).await.unwrap().unwrap().like_count, 1);
    service.stop().await;
}

#[tokio::test]
async fn what_is_told_a_post_that_is_being_written_comes_after_it() {
    let config = fresh().await;
    let (service, posts) = service(&config).await;
    let id = PostId(mint(Timestamp::now(), service.runtime.shards(), None));
    let publish = || {
        let Draft { author, title, body, tags, at } = draft("hello");
        service.runtime.ask(id.0, Command::Publish { id, author, title, body, tags, at, minted: true }, soon())
    };
    let (first, second, like) = tokio::join!(publish(), publish(), posts.like(id, BOB, true, soon()));
    assert_eq!(first.unwrap().reply.post.unwrap().id, id);
    assert_eq!(second.unwrap_err(), AskError::Rejected(Rejection::Exists));
    assert_eq!(like.unwrap().reply.post.unwrap().like_count, 1);
    service.stop().await;
}

#[tokio::test]
async fn a_post_whose_author_hung_up_is_read_and_listed_all_the_same() {
    let config = fresh().await;
    let (service, posts) = service(&config).await;
    let list = async || posts.list(Sort::New, &Filter::All, None, 10, deadline()).await.unwrap().items;
    assert_eq!(list().await, [], "from here on the list is kept in memory");
    let mut publishing = Box::pin(posts.publish(draft("hello"), soon()));
    let answered = tokio::time::timeout(Duration::ZERO, &mut publishing).await.is_ok();
    assert!(!answered, "it is only on its way to the database");
    drop(publishing);
    publish(&posts, "world").await;
    let mut titles: Vec<String> = list().await.iter().map(|post| post.title.to_string()).collect();
    // Both may be of one millisecond, and then chance decides which is newer.
    titles.sort();
    assert_eq!(titles, ["hello", "world"]);
    service.stop().await;
}

#[tokio::test]
async fn only_the_author_may_edit_and_a_rejection_fails_nobody_else() {
    let config = fresh().await;
    let (service, posts) = service(&config).await;
    let post = publish(&posts, "hello").await;
    let edit = |editor| {
        let changes = Changes { title: Some(Title::parse("changed").unwrap()), ..Changes::default() };
        posts.edit(post.id, editor, changes, Timestamp::now(), soon())
    };
    let others = futures_util::future::join_all((0..50).map(|n| publish(&posts, Box::leak(format!("p{n}").into_boxed_str()))));
    let (mine, theirs, others) = tokio::join!(edit(ADA), edit(BOB), others);
    assert_eq!(mine.unwrap().reply.post.unwrap().version, 2);
    assert_eq!(theirs.unwrap_err(), AskError::Rejected(Rejection::NotAuthor));
    assert_eq!(others.len(), 50);
    service.stop().await;
}

#[tokio::test]
async fn the_log_of_every_shard_is_gap_free() {
    let config = fresh().await;
    let (service, posts) = service(&config).await;
    futures_util::future::join_all((0..300).map(|n| publish(&posts, Box::leak(format!("p{n}").into_boxed_str())))).await;
    let client = sql(&config).await;
    let row = client
        .query_one("SELECT count(*) FILTER (WHERE type = 'post.created'), count(*), sum(head)::int8 FROM outbox LEFT JOIN LATERAL (SELECT max(seq) AS head FROM outbox o WHERE o.shard = outbox.shard AND outbox.seq = 1) h ON true", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 300);
    assert_eq!(row.get::<_, i64>(1), row.get::<_, i64>(2), "as many rows as the heads say");
    service.stop().await;
}

#[tokio::test]
async fn likes_count_once_per_user_and_survive_a_restart() {
    let config = fresh().await;
    let (service, posts) = service(&config).await;
    let post = publish(&posts, "hello").await;
    for user in [ADA, BOB, BOB] {
        posts.like(post.id, user, true, soon()).await.unwrap();
    }
    posts.like(post.id, ADA, false, soon()).await.unwrap();
    assert_eq!(posts.get(post.id, deadline()).await.unwrap().unwrap().like_count, 1);
    assert!(posts.liked(BOB, &[post.id], soon().deadline).await.unwrap().contains(&post.id));
    service.stop().await;
    let (service, posts) = self::service(&config).await;
    assert_eq!(posts.get(post.id, deadline()).await.unwrap().unwrap().like_count, 1);
    service.stop().await;
}

#[tokio::test]
async fn lists_page_through_everything_once_in_every_order() {
    let config = fresh().await;
    let (service, posts) = service(&config).await;
    let mut ids = Vec::new();
    for n in 0..45 {
        ids.push(publish(&posts, &format!("p{n}")).await.id);
    }
    for (n, id) in ids.iter().enumerate().filter(|(n, _)| n % 3 == 0) {
        posts.like(*id, UserId(Uuid::from_u128(n as u128 + 10)), true, soon()).await.unwrap();
    }
    for sort in [Sort::New, Sort::Top, Sort::Hot] {
        for filter in [Filter::All, Filter::Tag("rust".into()), Filter::Author(ADA)] {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = posts.list(sort, &filter, after, 10, deadline()).await.unwrap();
                seen.extend(page.items.iter().map(|post| (sort.key(post), post.id)));
                match page.next {
                    Some(next) => after = Some(next),
                    None => break,
                }
            }
            assert!(seen.is_sorted_by(|a, b| a.0 > b.0), "{sort:?} {filter:?}");
            assert_eq!(seen.len(), 45, "{sort:?} {filter:?}");
        }
    }
    service.stop().await;
}

#[tokio::test]
async fn a_retry_with_its_idempotency_key_gets_the_first_answer() {
    let config = fresh().await;
    let (service, posts) = service(&config).await;
    let keyed = |hash: u8| {
        let key = IdempotencyKey::new("ada:/posts:1", [hash; 32]);
        Context { idempotency: Some(key), ..soon() }
    };
    let (first, second) = tokio::join!(posts.publish(draft("once"), keyed(1)), posts.publish(draft("once"), keyed(1)));
    let (first, second) = (first.unwrap().reply.post.unwrap(), second.unwrap().reply.post.unwrap());
    assert_eq!(first.id, second.id);
    let reused = posts.publish(draft("another"), keyed(2)).await.unwrap_err();
    assert_eq!(reused, AskError::Failed(rookery_actors::entity::Failure::KeyReused));
    assert_eq!(posts.list(Sort::New, &Filter::All, None, 10, deadline()).await.unwrap().items.len(), 1);
    service.stop().await;
}

/// What was broken: it was the head of the log, which may be about a post of another partition of the index. A search that was to
/// wait for it waited in vain.
#[tokio::test]
async fn an_answer_that_wrote_nothing_stands_where_the_last_write_of_its_post_does() {
    let config = fresh().await;
    let (service, posts) = service(&config).await;
    let key = IdempotencyKey::new("ada:/posts:1", [1; 32]);
    let shard = key.shard(posts.runtime().shards());
    let keyed = || Context { idempotency: Some(key.clone()), ..soon() };
    let publish_beside_it = async || {
        let id = PostId(mint(Timestamp::now(), posts.runtime().shards(), Some(shard)));
        posts.publish_as(id, draft("another"), soon()).await.unwrap()
    };
    let first = posts.publish(draft("once"), keyed()).await.unwrap();
    let post = first.reply.post.clone().unwrap();
    assert!(publish_beside_it().await.seq > first.seq);
    assert_eq!(posts.publish(draft("once"), keyed()).await.unwrap().seq, first.seq, "a retry");
    let twice = || Changes { title: Some(Title::parse("twice").unwrap()), ..Changes::default() };
    let second = posts.edit(post.id, ADA, twice(), Timestamp::now(), soon()).await.unwrap();
    // Nobody can search for a like.
    posts.like(post.id, BOB, true, soon()).await.unwrap();
    assert!(publish_beside_it().await.seq > second.seq + 1);
    let unchanged = posts.edit(post.id, ADA, twice(), Timestamp::now(), soon()).await.unwrap();
    assert_eq!(unchanged.seq, second.seq);
    service.stop().await;

    let (service, posts) = self::service(&config).await;
    assert_eq!(posts.publish(draft("once"), keyed()).await.unwrap().seq, first.seq, "a retry after a restart");
    let again = posts.edit(post.id, ADA, twice(), Timestamp::now(), soon()).await.unwrap();
    assert_eq!(again.seq, 0, "what there was before the post was loaded nobody waits for");
    service.stop().await;
}

/// By triggers, in the transaction of the write: what an older node writes is in it, too.
#[tokio::test]
async fn what_the_database_makes_of_tags_is_what_the_posts_say() {
    let config = fresh().await;
    let (service, posts) = service(&config).await;
    let client = sql(&config).await;
    let mut of_them = Vec::new();
    for n in 0..12 {
        let tags = if n % 2 == 0 { Tags::parse(&["rust", "even"]) } else { Tags::parse(&["rust"]) };
        let post =
            posts.publish(Draft { tags: tags.unwrap(), ..draft(&format!("p{n}")) }, soon()).await.unwrap().reply.post.unwrap();
        for user in 0..n % 5 {
            posts.like(post.id, UserId(Uuid::from_u128(100 + user)), true, soon()).await.unwrap();
        }
        of_them.push(post);
    }
    let retagged = Changes { tags: Some(Tags::parse(&["tokio"]).unwrap()), ..Changes::default() };
    posts.edit(of_them[4].id, ADA, retagged, Timestamp::now(), soon()).await.unwrap();
    posts.like(of_them[6].id, UserId(Uuid::from_u128(100)), false, soon()).await.unwrap();
    posts.delete(of_them[1].id, ADA, false, None, soon()).await.unwrap();

    let used = async || {
        let page = posts.tags(None, 2).await.unwrap();
        let rest = posts.tags(page.next, 9).await.unwrap();
        page.items.into_iter().chain(rest.items).map(|used| (used.tag, used.posts)).collect::<Vec<_>>()
    };
    let wanted = [("rust".to_owned(), 10), ("even".to_owned(), 5), ("tokio".to_owned(), 1)];
    assert_eq!(used().await, wanted, "before it is added up");
    assert!(posts.count_tags(deadline()).await.unwrap() > 0);
    assert_eq!(used().await, wanted);
    assert_eq!(posts.count_tags(deadline()).await.unwrap(), 0);

    let strange = "SELECT FROM (SELECT unnest(tags) AS tag, id AS post, like_count, hot FROM post) p
                   FULL JOIN ranked_tag r USING (tag, post, like_count, hot) WHERE r.tag IS NULL OR p.tag IS NULL";
    assert!(client.query(strange, &[]).await.unwrap().is_empty(), "by the triggers");
    // As it is where the posts were there before.
    client.batch_execute("TRUNCATE ranked_tag").await.unwrap();
    while !posts.rank_tags(deadline()).await.unwrap() {}
    assert!(client.query(strange, &[]).await.unwrap().is_empty(), "afterwards");
    // Below what memory has nothing is left, so this is what the database says.
    let mut after = Some(Key { rank: i64::MAX - 1, id: PostId(Uuid::max()) });
    let mut likes = Vec::new();
    while let Some(from) = after {
        let page = posts.list(Sort::Top, &Filter::Tag("rust".into()), Some(from), 3, deadline()).await.unwrap();
        likes.extend(page.items.iter().map(|post| post.like_count));
        after = page.next;
    }
    assert_eq!((likes.len(), likes.is_sorted_by(|a, b| a >= b)), (10, true), "{likes:?}");
    service.stop().await;
}

#[tokio::test]
async fn an_absent_post_is_none() {
    let config = fresh().await;
    let (service, posts) = service(&config).await;
    assert_eq!(posts.get(PostId(Uuid::now_v7()), deadline()).await.unwrap(), None);
    service.stop().await;
}

#[tokio::test]
async fn a_deleted_post_is_not_published_again_under_its_id() {
    let config = fresh().await;
    let (service, posts) = service(&config).await;
    let id = PostId(Uuid::now_v7());
    posts.publish_as(id, draft("hello"), soon()).await.unwrap();
    posts.delete(id, ADA, false, None, soon()).await.unwrap();
    let again = async |posts: &Posts| posts.publish_as(id, draft("hello"), soon()).await.unwrap_err();
    assert_eq!(again(&posts).await, AskError::Rejected(Rejection::Deleted));
    assert_eq!(posts.which_are_taken(&[id, PostId(Uuid::now_v7())]).await.unwrap(), [id].into());
    assert!(posts.which_exist(&[id]).await.unwrap().is_empty());
    service.stop().await;

    let (service, posts) = self::service(&config).await;
    assert_eq!(again(&posts).await, AskError::Rejected(Rejection::Deleted), "also when memory knows nothing of it");
    service.stop().await;
}

/// Rule 19: names are a projection by version, and the tombstone is a version like any other.
#[tokio::test]
async fn neither_an_older_name_nor_a_late_post_brings_a_deleted_name_back() {
    let config = fresh().await;
    let (service, posts) = service(&config).await;
    let now = Timestamp::now();
    let named = UserRecord { username: "ada".into(), deleted: false, ..UserRecord::gone(ADA, 2, now) };
    let gone = UserRecord::gone(ADA, 3, now);
    let source = Source { topic: Topic::Users, shard: service.runtime.shard_of(ADA.0) };
    let tell = async |seq: i64, kind: &str, user: &UserRecord| {
        let payload = serde_json::to_string(user).unwrap();
        let (kind, payload) = (kind.into(), Some(payload.into()));
        let record = Record { seq, epoch: 1, key: ADA.0, kind, payload, traceparent: None, at: now };
        let slice = Slice { parts: vec![SlicePart { source, position: seq, records: vec![Arc::new(record)] }] };
        service.runtime.apply(source.shard, &slice).await.unwrap();
    };
    let is_gone = async |posts: &Posts| {
        let author = posts.authors([ADA]).await.unwrap().remove(&ADA).expect("a tombstone is kept");
        author.deleted && author.username.is_empty()
    };
    tell(1, "user.created", &named).await;
    assert!(!is_gone(&posts).await);
    tell(2, "user.deleted", &gone).await;
    tell(3, "user.updated", &named).await;
    publish(&posts, "late").await;
    assert!(is_gone(&posts).await);
    service.stop().await;

    let (service, posts) = self::service(&config).await;
    assert!(is_gone(&posts).await, "as the table says, too");
    service.stop().await;
}

/// Applies what the users' log says of an edge.
async fn hear(posts: &Posts, seq: i64, kind: &str, follower: UserId, followee: UserId) {
    let payload = serde_json::json!({"follower": follower, "followee": followee, "at": "2026-01-01T00:00:00Z"}).to_string();
    let record = Record {
        seq,
        epoch: 1,
        key: follower.0,
        kind: kind.into(),
        payload: Some(payload.into()),
        traceparent: None,
        at: Timestamp::now(),
    };
    let source = Source { topic: Topic::Users, shard: ShardId(0) };
    let slice = Slice { parts: vec![SlicePart { source, position: seq, records: vec![Arc::new(record)] }] };
    posts.runtime().apply(posts.runtime().shard_of(follower.0), &slice).await.unwrap();
}

#[tokio::test]
async fn a_follow_that_ended_leaves_no_row_not_even_that_of_an_older_node() {
    let config = fresh().await;
    let (service, posts) = service(&config).await;
    let client = sql(&config).await;
    let rows = async || {
        let rows = client.query("SELECT followee, active FROM follow ORDER BY followee", &[]).await.unwrap();
        rows.iter().map(|row| (UserId(row.get(0)), row.get::<_, bool>(1))).collect::<Vec<_>>()
    };
    let (ada, bob, eve) = (ADA, BOB, UserId(Uuid::from_u128(77)));
    hear(&posts, 1, "user.followed", ada, bob).await;
    assert_eq!(rows().await, [(bob, true)]);
    hear(&posts, 2, "user.unfollowed", ada, bob).await;
    assert!(rows().await.is_empty());
    for followee in [bob, eve] {
        client.execute("INSERT INTO follow VALUES ($1, $2, false)", &[&ada.0, &followee.0]).await.unwrap();
    }
    hear(&posts, 3, "user.followed", ada, bob).await;
    assert_eq!(posts.sweep_ended_follows(soon().deadline).await.unwrap(), 1);
    assert_eq!(rows().await, [(bob, true)]);
    service.stop().await;
}
