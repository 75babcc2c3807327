//! One service's database is put back to an older state: what the others made of its log, and it of theirs, follows it.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::FutureExt;
use jiff::Timestamp;
use rookery::{
    node::{Faces, NamedBridge},
    rebuild::Rebuilder,
};
use rookery_actors::{
    comments::{CommentBody, Comments, Draft},
    event::Topic,
    ids::{PostId, ShardId, UserId},
    posts::{self, rules::Title},
    runtime::Runtime,
    search::{
        index::{Document, Kind, Search},
        post_document,
    },
    service::Service,
    users::{
        Changes,
        names::{DisplayName, Username},
    },
};

use uuid::Uuid;

use super::{search::document, support::*};

/// As `World` has their databases.
const USERS: usize = 0;
const POSTS: usize = 1;
const SEARCH: usize = 3;

fn bridge<F: Service, T: Service>(node: &Node, topic: Topic, from: &Runtime<F>, to: &Runtime<T>) -> NamedBridge {
    NamedBridge { topic, consumer: T::NAME, bridge: node.bridge(topic, from, to) }
}

fn faces(node: &Node) -> Faces {
    Faces {
        users: node.users.clone(),
        posts: node.posts.clone(),
        comments: Comments::new(node.comments.clone()),
        search: node.search().clone(),
    }
}

fn rebuilder(node: &Node, bridges: &Arc<Vec<NamedBridge>>) -> Rebuilder {
    Rebuilder::new(faces(node), Arc::clone(bridges), Box::new(|| async { Ok(()) }.boxed()))
}

/// Looks until it is so.
async fn eventually_rebuilt(rebuilder: &mut Rebuilder, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    eventually(what, async || {
        rebuilder.look().await.unwrap();
        condition().await
    })
    .await;
}

/// Everything that was published by now has been carried, and the consumer has noted that.
async fn all_is_carried<F: Service, T: Service>(topic: Topic, from: &Runtime<F>, to: &Runtime<T>) {
    eventually("everything is carried", async || {
        let carried = to.carried(topic).await.unwrap();
        let mut places: Vec<_> = carried.iter().map(|carried| (carried.shard, carried.position)).collect();
        places.sort_unstable();
        places == from.heads().await.unwrap()
    })
    .await;
}

async fn publish_everywhere(node: &Node) -> Vec<PostId> {
    let mut posts = Vec::new();
    for shard in 0..SHARDS {
        posts.push(node.publish_in(ShardId(shard), "one of many").await.id);
    }
    posts
}

async fn posts_of_ada(node: &Node) -> i64 {
    let client = node.users.runtime().database().get().await.unwrap();
    let sql = "SELECT COALESCE(sum(post_count), 0)::int8 FROM user_counter WHERE user_id = $1";
    client.query_one(sql, &[&ADA.0]).await.unwrap().get(0)
}

fn draft_of_comment(post: PostId) -> Draft {
    Draft { post, author: ADA, body: CommentBody::parse("So it is.").unwrap(), parent: None, at: Timestamp::now() }
}

/// What was broken: the consumers were ahead of the log that went on from before, and dropped what came until it was past them;
/// what it had lost they had for ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_made_of_a_log_that_went_back_is_made_anew() {
    let world = World::with_search(1).await;
    let node = &world.nodes[0];
    let (users, posts, comments) = (node.users.runtime(), node.posts.runtime(), &node.comments);
    let bridges = Arc::new(vec![bridge(node, Topic::Posts, posts, users), bridge(node, Topic::Posts, posts, comments)]);
    let mut rebuilder = rebuilder(node, &bridges);
    publish_everywhere(node).await;
    all_is_carried(Topic::Posts, posts, users).await;
    world.back_up(POSTS).await;
    let lost = publish_everywhere(node).await;
    let threads = Comments::new(comments.clone());
    threads.add(draft_of_comment(lost[3]), soon()).await.unwrap();
    all_is_carried(Topic::Posts, posts, users).await;
    all_is_carried(Topic::Posts, posts, comments).await;
    assert_eq!(posts_of_ada(node).await, 16);

    world.put_back(POSTS, |node| node.posts.runtime()).await;
    // At once past where its readers were: no position tells of it.
    let mut kept = Vec::new();
    for _ in 0..3 {
        kept.extend(publish_everywhere(node).await);
    }
    eventually_rebuilt(&mut rebuilder, "the posts that there are are counted", async || posts_of_ada(node).await == 32).await;
    eventually_rebuilt(&mut rebuilder, "the thread of a lost post is closed", async || {
        threads.add(draft_of_comment(lost[3]), soon()).await.is_err()
    })
    .await;
    assert!(threads.add(draft_of_comment(kept[3]), soon()).await.is_ok());
    eventually_rebuilt(&mut rebuilder, "the bridges go on", async || bridges.iter().all(|one| one.bridge.outside().is_empty()))
        .await;
    publish_everywhere(node).await;
    all_is_carried(Topic::Posts, posts, users).await;
    assert_eq!(posts_of_ada(node).await, 40);
    assert_eq!(users.wanted_rebuilds().await.unwrap(), []);
    bridges.iter().for_each(|one| one.bridge.stop());
}

/// The reverse: the log is ahead of its reader, whose place with the publisher did not go back with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_went_back_reads_again_from_where_it_is() {
    let world = World::with_search(1).await;
    let node = &world.nodes[0];
    let (users, posts) = (node.users.runtime(), node.posts.runtime());
    let bridges = [bridge(node, Topic::Posts, posts, users)];
    publish_everywhere(node).await;
    all_is_carried(Topic::Posts, posts, users).await;
    world.back_up(USERS).await;
    publish_everywhere(node).await;
    all_is_carried(Topic::Posts, posts, users).await;
    assert_eq!(posts_of_ada(node).await, 16);

    bridges[0].bridge.stop();
    world.put_back(USERS, |node| node.users.runtime()).await;
    let bridges = [bridge(node, Topic::Posts, posts, users)];
    eventually("what it had read is read again", async || posts_of_ada(node).await == 16).await;
    publish_everywhere(node).await;
    all_is_carried(Topic::Posts, posts, users).await;
    assert_eq!(posts_of_ada(node).await, 24);
    bridges.iter().for_each(|one| one.bridge.stop());
}

/// What was broken: only search was rebuilt; in every other service all that came later from that shard was missed for ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_trimmed_before_it_was_read_is_made_up_for_from_state() {
    let world = World::with_search(1).await;
    let node = &world.nodes[0];
    let (users, posts) = (node.users.runtime(), node.posts.runtime());
    let bridges = Arc::new(vec![bridge(node, Topic::Posts, posts, users)]);
    publish_everywhere(node).await;
    all_is_carried(Topic::Posts, posts, users).await;
    bridges[0].bridge.stop();
    for _ in 0..2 {
        publish_everywhere(node).await;
    }
    let trim = "DELETE FROM outbox o WHERE type <> 'epoch' AND seq < (SELECT max(seq) FROM outbox l WHERE l.shard = o.shard)";
    posts.database().get().await.unwrap().execute(trim, &[]).await.unwrap();
    for shard in 0..SHARDS {
        // Without what its owner still has in memory.
        world.hand_over(|node| node.posts.runtime(), ShardId(shard), 0).await;
    }
    let bridges = Arc::new(vec![bridge(node, Topic::Posts, posts, users)]);
    let mut rebuilder = rebuilder(node, &bridges);
    eventually_rebuilt(&mut rebuilder, "all are counted", async || posts_of_ada(node).await == 24).await;
    eventually_rebuilt(&mut rebuilder, "the bridge goes on", async || bridges[0].bridge.outside().is_empty()).await;
    publish_everywhere(node).await;
    all_is_carried(Topic::Posts, posts, users).await;
    assert_eq!(posts_of_ada(node).await, 32);
    bridges[0].bridge.stop();
}

/// Documents of what there never was go, and those of what there is come back under older versions.
#[tokio::test(flavor = "multi_thread")]
async fn documents_follow_a_log_that_went_back() {
    let world = World::with_search(1).await;
    let node = &world.nodes[0];
    let (search, posts_runtime) = (node.search().clone(), node.posts.runtime());
    let bridges = Arc::new(vec![bridge(node, Topic::Posts, posts_runtime, search.runtime())]);
    let reindex = {
        let (face, search) = (node.posts.clone(), search.clone());
        move || {
            let (face, search) = (face.clone(), search.clone());
            async move {
                let records = face.export(None, 100, deadline()).await?;
                search.put(records.into_iter().map(|record| post_document(record).unwrap()).collect()).await
            }
            .boxed()
        }
    };
    let mut rebuilder = Rebuilder::new(faces(node), Arc::clone(&bridges), Box::new(reindex));
    let kept = node.publish_in(ShardId(2), "kept").await;
    all_is_carried(Topic::Posts, posts_runtime, search.runtime()).await;
    world.back_up(POSTS).await;
    let edit = posts::Changes { title: Some(Title::parse("edited").unwrap()), body: None, tags: None, if_version: None };
    node.posts.edit(kept.id, ADA, edit, Timestamp::now(), soon()).await.unwrap();
    node.publish_in(ShardId(2), "lost").await;
    all_is_carried(Topic::Posts, posts_runtime, search.runtime()).await;
    let titles = async || {
        let documents = search.documents(Kind::Post, None, 10).await.unwrap();
        let mut titles: Vec<String> = documents.into_iter().map(|document| document.title.unwrap_or_default()).collect();
        titles.sort_unstable();
        titles
    };
    assert_eq!(titles().await, ["edited", "lost"]);

    world.put_back(POSTS, |node| node.posts.runtime()).await;
    for n in 0..4 {
        node.publish_in(ShardId(2), &format!("new {n}")).await;
    }
    eventually_rebuilt(&mut rebuilder, "there is what there is", async || {
        titles().await == ["kept", "new 0", "new 1", "new 2", "new 3"]
    })
    .await;
    bridges[0].bridge.stop();
}

/// What was broken: an index on the disk was ahead of documents that were put back, found what was no more, and passed over what
/// came under numbers that it knew.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_follows_a_database_that_went_back() {
    let world = World::with_search(1).await;
    let search = world.nodes[0].search().clone();
    let found = async || {
        let asked = Search { query: "loom".parse().unwrap(), limit: 50, ..Search::default() };
        let hits = search.search(asked, deadline()).await.unwrap().hits;
        hits.items.into_iter().map(|hit| hit.id).collect::<BTreeSet<Uuid>>()
    };
    let put = async |count: usize| {
        let documents: Vec<Document> = (0..count).map(|_| document("a loom")).collect();
        search.put(documents.clone()).await.unwrap();
        documents.into_iter().map(|document| document.id).collect::<BTreeSet<Uuid>>()
    };
    let kept = put(12).await;
    eventually("it is found", async || found().await == kept).await;
    world.back_up(SEARCH).await;
    let lost = put(12).await;
    eventually("both are found", async || found().await == &kept | &lost).await;
    world.put_back(SEARCH, |node| node.search().runtime()).await;
    eventually("what is lost is not found", async || found().await == kept).await;
    let new = put(12).await;
    eventually("what came since is found", async || found().await == &kept | &new).await;
}

/// Names and edges that the accounts do not know any more go, those that they know come, also under older versions.
#[tokio::test(flavor = "multi_thread")]
async fn names_and_follows_are_made_what_the_accounts_are() {
    let world = World::with_search(1).await;
    let node = &world.nodes[0];
    let (users, posts) = (node.users.runtime(), node.posts.runtime());
    let (names, followers) = (bridge(node, Topic::Users, users, posts), bridge(node, Topic::Users, users, users));
    let (ada, bob) = (node.sign_up("ada").await, node.sign_up("bob").await);
    let follow = async |who: UserId, whom: &str, on: bool| {
        node.users.follow(who, &Username::parse(whom).unwrap(), on, soon()).await.unwrap();
    };
    follow(ada, "bob", true).await;
    world.back_up(USERS).await;
    let eve = node.sign_up("eve").await;
    let rename = async |name: &str| {
        let changes = Changes { display_name: Some(DisplayName::parse(name).unwrap()), ..Changes::default() };
        node.users.edit(ada, changes, soon()).await.unwrap();
    };
    rename("Countess").await;
    follow(ada, "bob", false).await;
    follow(eve, "bob", true).await;
    all_is_carried(Topic::Users, users, posts).await;
    all_is_carried(Topic::Users, users, users).await;

    followers.bridge.stop();
    world.put_back(USERS, |node| node.users.runtime()).await;
    let bridges = Arc::new(vec![names, bridge(node, Topic::Users, users, users)]);
    let mut rebuilder = rebuilder(node, &bridges);
    for name in ["Ada", "Ada Lovelace", "Ada King"] {
        rename(name).await;
        follow(bob, "ada", true).await;
        follow(bob, "ada", false).await;
    }
    let shown = async |user: UserId| {
        let client = posts.database().get().await.unwrap();
        let row = client.query_opt("SELECT display_name, deleted FROM author WHERE id = $1", &[&user.0]).await.unwrap();
        row.map(|row| (row.get::<_, String>(0), row.get::<_, bool>(1)))
    };
    let edges = async || {
        let sql = "SELECT follower, followee FROM follow WHERE active ORDER BY 1, 2";
        let rows = posts.database().get().await.unwrap().query(sql, &[]).await.unwrap();
        rows.iter().map(|row| (UserId(row.get(0)), UserId(row.get(1)))).collect::<Vec<_>>()
    };
    eventually_rebuilt(&mut rebuilder, "the name is that of the account", async || {
        shown(ada).await == Some(("Ada King".to_owned(), false))
    })
    .await;
    eventually_rebuilt(&mut rebuilder, "who is not an account is gone", async || {
        shown(eve).await == Some((String::new(), true)) && edges().await == [(ada, bob)]
    })
    .await;
    let followers = async || node.users.get(bob, deadline()).await.unwrap().unwrap().follower_count;
    eventually_rebuilt(&mut rebuilder, "the followers are counted", async || followers().await == 1).await;
    bridges.iter().for_each(|one| one.bridge.stop());
}
