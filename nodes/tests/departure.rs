//! An account goes: what is left of it in every table of every database, and in every topic.
//!
//! The files of the search indexes (`<data folder>/search`) are another test's: a deleted document is found by nobody, and its
//! words leave the files with the next purge, half an hour later at most (`search/index/tests/durability.rs`).

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use rookery::{
    config::{self, Config},
    node::{Faces, Node},
    testing::{TestKafka, eventually},
};
use rookery_actors::{
    comments::{self, Comment, CommentBody},
    ids::{PostId, UserId},
    posts::{
        self, Post,
        rules::{Body, Tags, Title},
    },
    runtime::{Connection, Context, IdempotencyKey, Retention, Runtime},
    service::Service,
    users::{
        Changes, NewUser,
        names::{AvatarUrl, Bio, DisplayName, Email, Username},
        password::Password,
    },
};
use tokio::time::Instant;

const PASSWORD: &str = "correct horse battery";
/// What nothing may say any more.
const PERSONAL: [&str; 6] =
    ["zebulon_q", "Zebulon Quillfeather", "thimbles in Ullapool", "quill-portrait", "quill.private", "ThimbleBrowser"];
/// Where the id alone stays: tombstones, and whose post or comment it was, which is shown as nobody's.
const ID_STAYS: [&str; 9] = [
    "users.app_user.id",
    "users.erased_name.user_id",
    "users.user_counter.user_id",
    "posts.author.id",
    "posts.post.author",
    "comments.author.id",
    "comments.comment.author",
    "search.documents.id",
    "search.documents.doc",
];
/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PARTITIONS: u16 = 2;

fn soon() -> Context {
    Context::within(PATIENCE)
}

fn keyed(key: &str) -> Context {
    Context { idempotency: Some(IdempotencyKey::new(key, [1; 32])), ..soon() }
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

fn config(data: &std::path::Path, kafka: config::Kafka) -> Config {
    let mut config = Config { data_dir: data.to_owned(), kafka, ..Config::default() };
    let free = "127.0.0.1:0".parse().unwrap();
    config.gateway.listen = free;
    let services = &mut config.services;
    for service in [&mut services.users, &mut services.posts, &mut services.comments, &mut services.search] {
        service.listen = free;
    }
    config
}

async fn start(data: &std::path::Path, kafka: config::Kafka) -> Node {
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    Node::start(config(data, kafka), metrics).await.unwrap_or_else(|error| panic!("{error:#}"))
}

async fn sign_up(faces: &Faces, name: &str, email: &str, user_agent: &str) -> UserId {
    let new = NewUser {
        username: Username::parse(name).unwrap(),
        email: Email::parse(email).unwrap(),
        password: Password::parse(PASSWORD.to_owned()).unwrap(),
        user_agent: Some(user_agent.to_owned()),
    };
    faces.users.register(new, soon()).await.unwrap().reply.account.profile.id
}

async fn publish(faces: &Faces, author: UserId, context: Context) -> PostId {
    let draft = posts::Draft {
        author,
        title: Title::parse("Of no concern").unwrap(),
        body: Body::parse("").unwrap(),
        tags: Tags::default(),
        at: Timestamp::now(),
    };
    faces.posts.publish(draft, context).await.unwrap().reply.post.unwrap().id
}

async fn comment(faces: &Faces, post: PostId, author: UserId, context: Context) -> Comment {
    let draft =
        comments::Draft { post, author, body: CommentBody::parse("Indeed.").unwrap(), parent: None, at: Timestamp::now() };
    faces.comments.add(draft, context).await.unwrap().reply.comment.unwrap()
}

/// What the one who stays sees: likes of the post and of the comment, followers and followed.
async fn counts(faces: &Faces, stays: UserId, post: PostId, comment: &Comment) -> (i64, i64, i64, i64) {
    let user = faces.users.get(stays, deadline()).await.unwrap().unwrap();
    let post: Post = faces.posts.get(post, deadline()).await.unwrap().unwrap();
    let comment = faces.comments.get(comment.post_id, comment.id, deadline()).await.unwrap().unwrap();
    (post.like_count, comment.like_count, user.follower_count, user.following_count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_account_is_in_no_table_and_no_topic_any_more() {
    let kafka = tokio::task::block_in_place(|| TestKafka::start_or_skip("a_deleted_account_is_in_no_topic_any_more"));
    let settings = kafka.as_ref().map_or_else(config::Kafka::default, |kafka| config::Kafka {
        // As short as lets everybody read; a week becomes a quarter of a minute.
        retention: Duration::from_secs(15),
        ..kafka.config(PARTITIONS)
    });
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path(), settings.clone()).await;
    let faces = node.faces.clone();
    let leaves = sign_up(&faces, "zebulon_q", "quill.private@example.org", "ThimbleBrowser/7").await;
    let stays = sign_up(&faces, "stays", "stays@example.org", "another").await;
    let profile = Changes {
        display_name: Some(DisplayName::parse("Zebulon Quillfeather").unwrap()),
        bio: Some(Bio::parse("Collects thimbles in Ullapool.").unwrap()),
        avatar_url: Some(Some(AvatarUrl::parse("https://example.org/quill-portrait.png").unwrap())),
        if_version: None,
    };
    faces.users.edit(leaves, profile, soon()).await.unwrap();

    // Follows, likes, posts and comments in both directions, some of them under a key, some of what is gone by then.
    let named = |name: &str| Username::parse(name).unwrap();
    faces.users.follow(leaves, &named("stays"), true, soon()).await.unwrap();
    faces.users.follow(stays, &named("zebulon_q"), true, soon()).await.unwrap();
    let mine = publish(&faces, leaves, keyed("post")).await;
    comment(&faces, mine, stays, soon()).await;
    let liked = publish(&faces, stays, soon()).await;
    let liked_comment = comment(&faces, liked, stays, soon()).await;
    let gone_comment = comment(&faces, liked, stays, soon()).await;
    let gone = publish(&faces, stays, soon()).await;
    let closed_comment = comment(&faces, gone, leaves, keyed("comment")).await;
    for post in [liked, gone] {
        faces.posts.like(post, leaves, true, soon()).await.unwrap();
    }
    for comment in [&liked_comment, &gone_comment, &closed_comment] {
        faces.comments.like(comment.post_id, comment.id, leaves, true, soon()).await.unwrap();
    }
    let at = Timestamp::now();
    faces.comments.delete(liked, gone_comment.id, stays, false, None, at, soon()).await.unwrap();
    faces.posts.delete(gone, stays, false, None, soon()).await.unwrap();
    eventually(PATIENCE, "both follow each other", async || counts(&faces, stays, liked, &liked_comment).await == (1, 1, 1, 1))
        .await;
    let databases = databases(&node).await;
    letters(&databases, leaves).await;
    // Otherwise the test would prove nothing: it is there, in tables, in dead letters, in the index's documents.
    eventually(PATIENCE, "search has heard of them", async || {
        found(&databases, leaves).await.contains("search.documents.doc: Zebulon Quillfeather")
    })
    .await;
    let before = found(&databases, leaves).await;
    for place in ["users.app_user.bio", "posts.author.avatar_url", "comments.author.username", "posts.dead_letter.payload"] {
        assert!(before.iter().any(|found| found.starts_with(place)), "{place} is not in {before:#?}");
    }
    if kafka.is_some() {
        eventually(PATIENCE, "Kafka has it", async || !in_topics(&settings, leaves).is_empty()).await;
    }

    faces.users.delete(leaves, Password::parse(PASSWORD.to_owned()).unwrap(), soon()).await.unwrap();
    eventually(PATIENCE, "their follows and likes are counted for nobody", async || {
        counts(&faces, stays, liked, &liked_comment).await == (0, 0, 0, 0)
    })
    .await;
    // A like that was under way when the account went is taken back as well.
    faces.posts.like(liked, leaves, true, soon()).await.unwrap();
    faces.comments.like(liked, liked_comment.id, leaves, true, soon()).await.unwrap();
    eventually(PATIENCE, "late likes are counted for nobody", async || {
        counts(&faces, stays, liked, &liked_comment).await == (0, 0, 0, 0)
    })
    .await;
    for (name, client) in &databases {
        if ["posts", "comments"].contains(name) {
            eventually(PATIENCE, "the account is looked after", async || {
                let unknown = "SELECT count(*) FROM author WHERE deleted AND departed_at IS NULL";
                client.query_one(unknown, &[]).await.unwrap().get::<_, i64>(0) == 0
            })
            .await;
        }
    }
    // Time passes: an hour for the log, a day for what is kept under a key.
    for (name, client) in &databases {
        client.execute("UPDATE outbox SET at = at - interval '2 hours'", &[]).await.unwrap();
        client.execute("UPDATE idempotency SET at = at - interval '25 hours'", &[]).await.unwrap();
        if ["posts", "comments"].contains(name) {
            client.execute("UPDATE author SET departed_at = departed_at - interval '1 hour'", &[]).await.unwrap();
        }
    }
    let allowed = |found: &String| {
        let (place, what) = found.split_once(": ").unwrap();
        what == "id" && ID_STAYS.contains(&place)
    };
    let mut left = BTreeSet::new();
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        trim(&node, kafka.is_some()).await;
        left = found(&databases, leaves).await.into_iter().filter(|found| !allowed(found)).collect();
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(left.is_empty(), "still there: {left:#?}");
    for (name, client) in &databases {
        if ["posts", "comments"].contains(name) {
            eventually(PATIENCE, "the account is done with", async || {
                let unfinished = "SELECT count(*) FROM author WHERE deleted AND NOT likes_gone";
                client.query_one(unfinished, &[]).await.unwrap().get::<_, i64>(0) == 0
            })
            .await;
        }
    }
    if kafka.is_some() {
        // Others go on writing: a segment that takes records for ever would keep the first of them.
        eventually(PATIENCE, "the topics have let go of it", async || {
            publish(&faces, stays, soon()).await;
            let bio = Changes { bio: Some(Bio::parse(&format!("{}", Timestamp::now())).unwrap()), ..Changes::default() };
            faces.users.edit(stays, bio, soon()).await.unwrap();
            in_topics(&settings, leaves).is_empty()
        })
        .await;
    }
    node.stop().await;
}

/// What could not be applied of the one who leaves, in each service that reads profiles.
async fn letters(databases: &[(&'static str, Connection)], user: UserId) {
    let payload = serde_json::json!({"id": user, "username": "zebulon_q", "display_name": "Zebulon Quillfeather"}).to_string();
    for (name, client) in databases.iter().filter(|(name, _)| *name != "users") {
        let sql = "INSERT INTO dead_letter (shard, source, seq, type, key, payload, reason)
                   VALUES (0, 'users/0', 1, 'user.updated', $1, $2, 'it does not parse')";
        client.execute(sql, &[&user.0, &payload]).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// A session of our own with each database.
async fn databases(node: &Node) -> Vec<(&'static str, Connection)> {
    let Faces { users, posts, comments, search } = &node.faces;
    vec![
        ("users", session(users.runtime()).await),
        ("posts", session(posts.runtime()).await),
        ("comments", session(comments.runtime()).await),
        ("search", session(search.runtime()).await),
    ]
}

async fn session<S: Service>(runtime: &Runtime<S>) -> Connection {
    runtime.database().session("departure").await.unwrap()
}

/// Every column of every table that holds something personal (`table.column: what`), whatever its type.
async fn found(databases: &[(&'static str, Connection)], user: UserId) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (name, client) in databases {
        let columns = "SELECT c.table_name::text, c.column_name::text, c.data_type::text FROM information_schema.columns c
                       JOIN information_schema.tables t USING (table_schema, table_name)
                       WHERE c.table_schema = 'public' AND t.table_type = 'BASE TABLE'";
        let id = user.0.to_string();
        for row in client.query(columns, &[]).await.unwrap() {
            let (table, column, kind): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
            let numeric = ["smallint", "integer", "bigint", "boolean", "double precision", "timestamp with time zone"];
            if numeric.contains(&kind) {
                continue;
            }
            let holds = async |text: &str, bytes: &[u8]| {
                let rows = format!("SELECT count(*) FROM \"{table}\" WHERE position");
                let counted = if kind == "bytea" {
                    client.query_one(&format!("{rows}($1 in \"{column}\") > 0"), &[&bytes]).await
                } else {
                    client.query_one(&format!("{rows}(lower($1) in lower(\"{column}\"::text)) > 0"), &[&text]).await
                };
                counted.unwrap_or_else(|error| panic!("{name}.{table}.{column} ({kind}): {error}")).get::<_, i64>(0) > 0
            };
            for what in PERSONAL {
                if holds(what, what.as_bytes()).await {
                    found.insert(format!("{name}.{table}.{column}: {what}"));
                }
            }
            if holds(&id, user.0.as_bytes()).await {
                found.insert(format!("{name}.{table}.{column}: id"));
            }
        }
    }
    found
}

/// Forgets what is old, as the janitors of a node do every minute.
async fn trim(node: &Node, relayed: bool) {
    let Faces { users, posts, comments, search } = &node.faces;
    let retention = |consumers: &[&'static str], relayed| Retention {
        consumers: consumers.to_vec(),
        relayed,
        records: Duration::from_secs(3600),
        idempotency: Duration::from_secs(24 * 3600),
    };
    users.runtime().trim(&retention(&["users", "posts", "comments", "search"], relayed)).await.unwrap();
    posts.runtime().trim(&retention(&["users", "comments", "search"], relayed)).await.unwrap();
    comments.runtime().trim(&retention(&["users", "posts", "search"], relayed)).await.unwrap();
    search.runtime().trim(&retention(&[], false)).await.unwrap();
}

/// Messages of any topic that hold something personal, or the id.
fn in_topics(kafka: &config::Kafka, user: UserId) -> BTreeSet<String> {
    let id = user.0.to_string();
    let needles: Vec<&str> = PERSONAL.iter().copied().chain([id.as_str()]).collect();
    let mut found = BTreeSet::new();
    for (topic, message) in messages(kafka) {
        found.extend(needles.iter().filter(|needle| message.contains(**needle)).map(|needle| format!("{topic}: {needle}")));
    }
    found
}

/// Everything in all topics, as text.
fn messages(kafka: &config::Kafka) -> Vec<(String, String)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.brokers[0].as_str())
        .set("group.id", "departure")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let metadata = tokio::task::block_in_place(|| consumer.fetch_metadata(None, PATIENCE)).unwrap();
    let mut all = TopicPartitionList::new();
    for topic in metadata.topics().iter().filter(|topic| topic.name().contains(".events.")) {
        for partition in topic.partitions() {
            all.add_partition_offset(topic.name(), partition.id(), Offset::Beginning).unwrap();
        }
    }
    consumer.assign(&all).unwrap();
    let (mut messages, mut ends) = (Vec::new(), 0);
    while ends < all.count() {
        match tokio::task::block_in_place(|| consumer.poll(PATIENCE)).expect("the broker answers") {
            Ok(message) => {
                let text = |bytes: Option<&[u8]>| bytes.map(String::from_utf8_lossy).unwrap_or_default().into_owned();
                let message_text = format!("{} {}", text(message.key()), text(message.payload()));
                messages.push((message.topic().to_owned(), message_text));
            }
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ends += 1,
            // A segment that goes while it is read.
            Err(error) => eprintln!("reading on: {error}"),
        }
    }
    messages
}
