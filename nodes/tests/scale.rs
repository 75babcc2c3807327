//! What is bounded stays bounded, and what is popular behaves like anything else: rows by the million, made by SQL.
//!
//! CI does a tenth of it. All of it, with what was measured:
//! `ROOKERY_SCALE=full cargo test --release -p rookery --test scale -- --nocapture`

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use rookery::{
    bridge::Bridge,
    event_log::EmbeddedLog,
    migrate::Database,
    testing::{TestPostgres, TestService, Turn},
};
use rookery_actors::{
    comments::{CommentBody, Comments, Draft, Order, Place, Scope, service::CommentService, texts::Texts},
    event::{Record, Source, Topic},
    ids::{PostId, ShardId, UserId},
    posts::{PostService, Posts},
    runtime::{Context, Settings, Slice, SlicePart},
    secret::ClusterSecret,
    users::{
        NewUser, UserService, Users,
        erased::NameHasher,
        names::{Email, Username},
        password::{Hasher, HasherConfig, Password},
        session::Lifetime,
        token::RefreshTokens,
    },
};
use tokio::sync::{Mutex, MutexGuard};
use tokio_postgres::{Client, Config};
use uuid::Uuid;

// As in production: how much stays resident depends on it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ADA: UserId = UserId(Uuid::from_u128(1));
const BOB: UserId = UserId(Uuid::from_u128(2));

/// The memory of the process is one: a story at a time, and nothing heavy beside it, for it measures.
async fn alone() -> (MutexGuard<'static, ()>, Turn) {
    static ONE: Mutex<()> = Mutex::const_new(());
    (ONE.lock().await, Turn::alone())
}

/// So many, or in CI so many.
fn scale(full: i64, ci: i64) -> i64 {
    if std::env::var("ROOKERY_SCALE").is_ok_and(|scale| scale == "full") { full } else { ci }
}

fn soon() -> Context {
    Context::within(Duration::from_secs(60))
}

fn deadline() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(60)
}

async fn database(database: Database) -> (Config, Client) {
    let config = TestPostgres::shared().fresh_database(database).await;
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    (config, client)
}

/// What the process has in memory, in MiB.
fn resident_mib() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    (pages * 4096) >> 20
}

/// Does something and says how long it took.
async fn timed<T>(what: &str, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = work.await;
    println!("{what}: {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_near_its_cap_however_many_entities_are_touched() {
    let _alone = alone().await;
    let (count, cap) = (scale(1_000_000, 100_000), 32 << 20);
    let (config, client) = database(Database::Posts).await;
    let fill = "INSERT INTO post (id, author, title, body, tags, created_at, updated_at, version, like_count, hot)
                SELECT md5(n::text)::uuid, $2, 'Post ' || n, repeat('x', 500), '{}', now(), now(), 1, 0, 0 FROM generate_series(1, $1::int8) n";
    client.execute(fill, &[&count, &ADA.0]).await.unwrap();
    let settings = Settings { cache_bytes: cap, ..Settings::default() };
    let service = TestService::start(PostService::default(), config, "n1", settings).await;
    let posts = Posts::new(service.runtime.clone());

    let (before, began) = (resident_mib(), Instant::now());
    let (mut after, mut touched, mut accounted_max, mut resident) = (Uuid::nil(), 0, 0, Vec::new());
    while touched < count {
        let page = client.query("SELECT id FROM post WHERE id > $1 ORDER BY id LIMIT 5000", &[&after]).await.unwrap();
        let ids: Vec<PostId> = page.iter().map(|row| PostId(row.get(0))).collect();
        after = ids.last().unwrap().0;
        let mut reads = stream::iter(&ids).map(|id| posts.get(*id, deadline())).buffer_unordered(256);
        while let Some(post) = reads.next().await {
            assert!(post.unwrap().is_some());
            touched += 1;
        }
        accounted_max = accounted_max.max(service.runtime.loaded().1);
        resident.push(resident_mib());
    }
    let rate = touched as f64 / began.elapsed().as_secs_f64();
    let (entities, accounted) = service.runtime.loaded();
    let peak = *resident.iter().max().unwrap();
    println!(
        "{touched} posts touched at {rate:.0}/s under a cap of {} MiB: {entities} entities are loaded, {} MiB by our account \
         ({} at most); resident {before} MiB before, {peak} at most, {} after",
        cap >> 20,
        accounted >> 20,
        accounted_max >> 20,
        resident_mib(),
    );
    // A pass of the sweep lies between too much and enough.
    assert!(accounted_max <= 2 * cap, "{accounted_max} bytes by our account");
    let early = resident[..resident.len() / 5].iter().max().unwrap();
    assert!(peak <= early + 24, "the last four fifths took {} MiB more than the first", peak - early);
    assert!(peak <= before + 3 * (cap >> 20), "{before} MiB before, {peak} MiB at most");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_of_100_000_comments_pages_in_every_order_without_being_held_whole() {
    let _alone = alone().await;
    let (count, texts) = (100_000, 8 << 20);
    let (config, client) = database(Database::Comments).await;
    let post = PostId(Uuid::now_v7());
    // 12 answers 1, 123 answers 12: a tenth of the thread at each level, six levels deep. A kilobyte each: 100 MB of text.
    let fill = "INSERT INTO comment (post, id, parent, depth, author, body, created_at, updated_at, version, like_count)
                SELECT $1, ('01800000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
                       CASE WHEN n >= 10 THEN ('01800000-0000-7000-8000-' || lpad(to_hex(n / 10), 12, '0'))::uuid END,
                       length(n::text) - 1, $2, n || repeat(' word', 200), now(), now(), 1, n % 7 FROM generate_series(1, $3::int8) n";
    client.execute(fill, &[&post.0, &ADA.0, &(count as i64)]).await.unwrap();
    let service = CommentService { texts: Texts::new(texts), ..CommentService::default() };
    let service = TestService::start(service, config, "n1", Settings::default()).await;
    let comments = Comments::new(service.runtime.clone());

    let before = resident_mib();
    let page = |place: Place| {
        let comments = &comments;
        async move { comments.page(&place, NonZeroUsize::new(100).unwrap(), deadline()).await.unwrap().unwrap() }
    };
    let whole = |order| Place::start(Scope { post, order, parent: None, depth: None });
    let first = timed("load a thread of 100,000 comments and show its first page", page(whole(Order::Old))).await;
    let loaded = resident_mib();
    timed("its first page again", page(whole(Order::Old))).await;
    assert_eq!(first.items[0].body.as_ref().unwrap().as_str().split(' ').next(), Some("1"));
    for order in [Order::Old, Order::New, Order::Top] {
        // All of it in full, every tenth page of it in CI, where nobody waits for 3,000 statements.
        let (mut seen, mut next, began) = (0, Some(whole(order)), Instant::now());
        while let Some(place) = next {
            let page = page(place).await;
            seen += page.items.len();
            next = page.next.filter(|_| scale(1, 0) == 1 || seen < count / 10);
        }
        println!(
            "{seen} comments in order {order:?}: {:.2} ms per page of 100",
            began.elapsed().as_secs_f64() * 1e5 / seen as f64
        );
        assert!(seen == count || seen == count / 10, "{seen}");
    }
    let answered = first.items[0].id;
    let draft =
        Draft { post, author: BOB, body: CommentBody::parse("One more.").unwrap(), parent: Some(answered), at: Timestamp::now() };
    let reply = timed("one more reply", comments.add(draft, soon())).await.unwrap().reply.comment.unwrap();
    timed("a like of it", comments.like(post, reply.id, ADA, true, soon())).await.unwrap();
    let replies = Place::start(Scope { post, order: Order::New, parent: Some(answered), depth: Some(1) });
    assert_eq!(page(replies).await.items[0].id, reply.id);
    let (_, accounted) = service.runtime.loaded();
    println!(
        "100 MB of text: resident {before} MiB before, {loaded} with the thread, {} after; {accounted} bytes by our account",
        resident_mib()
    );
    assert!(resident_mib() <= before + 80, "{before} MiB before, {} MiB after", resident_mib());
    assert!(accounted < 16 << 20);
    service.stop().await;
}

/// Each comment has an author of its own, whose count follows.
#[tokio::test(flavor = "multi_thread")]
async fn a_thread_of_100_000_comments_goes_with_its_post_and_is_counted_for_nobody() {
    let _alone = alone().await;
    let count = scale(100_000, 10_000);
    let (comments_config, client) = database(Database::Comments).await;
    let (users_config, users_client) = database(Database::Users).await;
    let post = PostId(Uuid::now_v7());
    let fill = "INSERT INTO comment (post, id, parent, depth, author, body, created_at, updated_at, version, like_count)
                SELECT $1, ('01800000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, NULL, 0, md5(n::text)::uuid,
                       n || repeat(' word', 200), now(), now(), 1, 0 FROM generate_series(1, $2::int8) n";
    client.execute(fill, &[&post.0, &count]).await.unwrap();
    let fill = "INSERT INTO user_counter (user_id, post_count, comment_count, follower_count, following_count)
                SELECT md5(n::text)::uuid, 0, 3, 0, 0 FROM generate_series(1, $1::int8) n";
    users_client.execute(fill, &[&count]).await.unwrap();
    let service = TestService::start(CommentService::default(), comments_config, "n1", Settings::default()).await;
    let users = TestService::start(UserService::default(), users_config, "n1", Settings::default()).await;
    let (ours, theirs) = (Arc::new(service.runtime.clone()), Arc::new(users.runtime.clone()));
    let log = Arc::new(EmbeddedLog::new(theirs.clone(), ours.clone(), ours.clone()));
    let bridge = Bridge::start(users.runtime.clone(), log, ours, Topic::Comments, service.runtime.shards());
    let comments = Comments::new(service.runtime.clone());

    let before = resident_mib();
    let source = Source { topic: Topic::Posts, shard: ShardId(0) };
    let (kind, payload) = ("post.deleted".into(), Some("{}".into()));
    let record = Record { seq: 1, epoch: 1, key: post.0, kind, payload, traceparent: None, at: Timestamp::now() };
    let slice = Slice { parts: vec![SlicePart { source, position: 1, records: vec![Arc::new(record)] }] };
    let shard = service.runtime.shard_of(post.0);
    timed("the thread is closed", service.runtime.apply(shard, &slice)).await.unwrap();
    let began = Instant::now();
    let sweep = tokio::spawn({
        let comments = comments.clone();
        // Nobody else has to wait for it: on a busy machine it may take its minutes.
        async move { comments.sweep_closed(deadline() + Duration::from_secs(600)).await }
    });
    // Others write meanwhile, in the same shard too.
    let neighbour =
        std::iter::repeat_with(|| PostId(Uuid::now_v7())).find(|post| service.runtime.shard_of(post.0) == shard).unwrap();
    let (mut slowest, mut written) = (Duration::ZERO, 0);
    while !sweep.is_finished() {
        let body = CommentBody::parse("Elsewhere.").unwrap();
        let asked = Instant::now();
        let draft = Draft { post: neighbour, author: BOB, body, parent: None, at: Timestamp::now() };
        comments.add(draft, soon()).await.unwrap();
        slowest = slowest.max(asked.elapsed());
        written += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(sweep.await.unwrap().unwrap(), usize::try_from(count).unwrap());
    println!(
        "{count} comments are gone after {:.1} s; {written} comments in another thread of the shard took {:.1} ms at most",
        began.elapsed().as_secs_f64(),
        slowest.as_secs_f64() * 1e3
    );
    let counted = "SELECT count(*) FROM user_counter WHERE comment_count = 2 AND user_id <> $1";
    while users_client.query_one(counted, &[&BOB.0]).await.unwrap().get::<_, i64>(0) < count {
        assert!(began.elapsed() < Duration::from_secs(600), "every author is told");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("and counted for nobody after {:.1} s", began.elapsed().as_secs_f64());
    let largest = "SELECT COALESCE(max(records), 0) FROM (
                       SELECT count(*) AS records FROM outbox WHERE type = 'comment.deleted' GROUP BY batch) slice";
    assert!(client.query_one(largest, &[]).await.unwrap().get::<_, i64>(0) <= 1_000);
    assert_eq!(client.query_one("SELECT count(*) FROM comment WHERE post = $1", &[&post.0]).await.unwrap().get::<_, i64>(0), 0);
    assert!(resident_mib() <= before + 80, "{before} MiB before, {} MiB after", resident_mib());
    bridge.stop();
    service.stop().await;
    users.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_with_a_million_likes_behaves_like_any_other() {
    let _alone = alone().await;
    let count = scale(1_000_000, 100_000);
    let (config, client) = database(Database::Posts).await;
    let post = PostId(Uuid::now_v7());
    let fill = "INSERT INTO post_like (post, user_id) SELECT $1, md5(n::text)::uuid FROM generate_series(1, $2::int8) n";
    client.execute(fill, &[&post.0, &count]).await.unwrap();
    let fill = "INSERT INTO post (id, author, title, body, tags, created_at, updated_at, version, like_count, hot)
                VALUES ($1, $2, 'Loved', '', '{}', now(), now(), 1, $3, 0)";
    client.execute(fill, &[&post.0, &ADA.0, &count]).await.unwrap();
    let service = TestService::start(PostService::default(), config, "n1", Settings::default()).await;
    let posts = Posts::new(service.runtime.clone());

    let before = resident_mib();
    let read = async || posts.get(post, deadline()).await.unwrap().unwrap().like_count;
    assert_eq!(timed(&format!("load a post with {count} likes"), read()).await, count);
    let like = async |on| timed("a like, or its end", posts.like(post, BOB, on, soon())).await.unwrap();
    like(true).await;
    like(true).await;
    assert_eq!(read().await, count + 1);
    assert!(timed("whether I like it", posts.liked(BOB, &[post], deadline())).await.unwrap().contains(&post));
    like(false).await;
    assert_eq!(read().await, count);
    assert!(service.runtime.loaded().1 < 64 << 10, "nobody who likes it is in memory");
    timed("its deletion", posts.delete(post, ADA, false, None, soon())).await.unwrap();
    assert!(resident_mib() <= before + 24, "{before} MiB before, {} MiB after", resident_mib());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_a_million_followers_behaves_like_any_other() {
    let _alone = alone().await;
    let count = scale(1_000_000, 100_000);
    let (config, client) = database(Database::Users).await;
    let service = TestService::start(UserService::default(), config, "n1", Settings::default()).await;
    let runtime = service.runtime.clone();
    let tokens = RefreshTokens::new(&ClusterSecret::from_bytes(&[7; 32]).unwrap().into());
    let users = Users::new(
        runtime.clone(),
        Hasher::start(HasherConfig::default()).unwrap(),
        tokens,
        NameHasher::new("the cluster"),
        Lifetime::default(),
    );
    let register = async |name: &str| {
        let new = NewUser {
            username: Username::parse(name).unwrap(),
            email: Email::parse(&format!("{name}@example.org")).unwrap(),
            password: Password::parse("correct horse battery".to_owned()).unwrap(),
            user_agent: None,
        };
        users.register(new, soon()).await.unwrap().reply.account.profile.id
    };
    let (ada, bob) = (register("ada").await, register("bob").await);
    let fans = "INSERT INTO app_user (id, username, display_name, bio, roles, version, created_at, updated_at)
                SELECT md5(n::text)::uuid, 'fan' || n, '', '', '{}', 1, now(), now() FROM generate_series(1, $1::int8) n";
    client.execute(fans, &[&count]).await.unwrap();
    let edges =
        "INSERT INTO follower (followee, follower, at) SELECT $1, md5(n::text)::uuid, now() FROM generate_series(1, $2::int8) n";
    client.execute(edges, &[&ada.0, &count]).await.unwrap();
    let counter = "INSERT INTO user_counter (user_id, post_count, comment_count, follower_count, following_count)
                   VALUES ($1, 0, 0, $2, 0) ON CONFLICT (user_id) DO UPDATE SET follower_count = excluded.follower_count";
    client.execute(counter, &[&ada.0, &count]).await.unwrap();
    // Loaded anew, with all of them.
    service.runtime.close(service.runtime.shard_of(ada.0));
    let log: Arc<dyn rookery_actors::event::EventLog> =
        Arc::new(EmbeddedLog::new(Arc::new(runtime.clone()), Arc::new(runtime.clone()), Arc::new(runtime.clone())));
    let bridge = Bridge::start(runtime.clone(), log, Arc::new(runtime.clone()), Topic::Users, runtime.shards());

    let before = resident_mib();
    let followers = async || users.get(ada, deadline()).await.map(|user| user.unwrap().follower_count);
    let began = Instant::now();
    while followers().await.ok() != Some(count) {
        assert!(began.elapsed() < Duration::from_secs(20), "the shard comes back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ada_named = Username::parse("ada").unwrap();
    let mut after = None;
    for _ in 0..10 {
        let page = timed("a page of 100 followers", users.followers(ada, after, 100, deadline())).await.unwrap();
        assert_eq!(page.items.len(), 100);
        after = page.next;
    }
    timed("one more follower", users.follow(bob, &ada_named, true, soon())).await.unwrap();
    while followers().await.ok() != Some(count + 1) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let newest = users.followers(ada, None, 1, deadline()).await.unwrap();
    assert!(newest.next.is_some());
    println!("a user with {count} followers: resident {before} MiB before, {} after", resident_mib());
    // A thousand fans were shown, so they are loaded.
    assert!(resident_mib() <= before + 64, "{before} MiB before, {} MiB after", resident_mib());
    bridge.stop();
    service.stop().await;
}
