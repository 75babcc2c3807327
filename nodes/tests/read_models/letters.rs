//! Dead letters of shards that another node serves.

use std::sync::Arc;

use jiff::Timestamp;
use rookery_actors::{
    event::{Record, Source, Topic},
    ids::{Seq, ShardId, UserId, mint},
    posts::PostService,
    runtime::{DeadLetter, LetterFilter, Runtime, Slice, SlicePart},
    service::Service,
    users::{UserService, names::Username},
};
use uuid::Uuid;

use super::support::*;

/// What the users' log says of an edge.
fn edge(seq: Seq, kind: &str, follower: Uuid, followee: Uuid) -> Arc<Record> {
    let payload = serde_json::json!({"follower": follower, "followee": followee, "at": Timestamp::now()}).to_string();
    Arc::new(Record {
        seq,
        epoch: 1,
        key: follower,
        kind: kind.into(),
        payload: Some(payload.into()),
        traceparent: None,
        at: Timestamp::now(),
    })
}

fn of(shard: ShardId) -> Source {
    Source { topic: Topic::Users, shard }
}

async fn hear<S: Service>(runtime: &Runtime<S>, to: ShardId, from: ShardId, record: Arc<Record>) {
    let part = SlicePart { source: of(from), position: record.seq, records: vec![record] };
    runtime.apply(to, &Slice { parts: vec![part] }).await.unwrap();
}

async fn bury<S: Service>(runtime: &Runtime<S>, in_shard: ShardId, from: ShardId, record: Arc<Record>) {
    let letter = DeadLetter { source: of(from), record, reason: "for the test".to_owned() };
    runtime.bury(in_shard, letter).await.unwrap();
}

async fn letters<S: Service>(runtime: &Runtime<S>) -> Vec<(ShardId, Seq)> {
    let letters = runtime.dead_letters(&LetterFilter::default(), 10).await.unwrap();
    letters.iter().map(|letter| (letter.shard, letter.seq)).collect()
}

async fn feeds(posts: &Runtime<PostService>) -> Vec<(Uuid, bool)> {
    let client = posts.database().get().await.unwrap();
    let rows = client.query("SELECT followee, active FROM follow ORDER BY followee", &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// What was broken: a follow that could not be applied came back after its end.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_follow_out_of_the_dead_letters_does_not_undo_what_came_after_it() {
    let world = World::of(2).await;
    let node = &world.nodes[0];
    let (posts, home) = (node.posts.runtime(), ShardId(1));
    let ada = mint(Timestamp::now(), SHARDS, Some(home));
    let [bob, eve, dan] = [1, 2, 3].map(user_id);
    hear(posts, home, home, edge(1, "user.followed", ada, eve.0)).await;
    bury(posts, home, home, edge(2, "user.followed", ada, bob.0)).await;
    bury(posts, home, home, edge(3, "user.unfollowed", ada, eve.0)).await;
    bury(posts, home, home, edge(4, "user.followed", ada, dan.0)).await;
    hear(posts, home, home, edge(5, "user.unfollowed", ada, bob.0)).await;
    hear(posts, home, home, edge(6, "user.followed", ada, eve.0)).await;
    assert_eq!(node.posts.sweep_ended_follows(deadline()).await.unwrap(), 0, "the letters stand against them");
    for seq in [4, 2, 3] {
        assert!(posts.replay(home, of(home), seq).await.unwrap());
    }
    let active = async || feeds(posts).await.into_iter().filter(|(_, active)| *active).map(|(followee, _)| followee);
    assert_eq!(active().await.collect::<Vec<_>>(), [eve.0, dan.0]);
    let swept = async |n: usize| world.nodes[n].posts.sweep_ended_follows(deadline()).await.unwrap();
    assert_eq!(swept(0).await + swept(1).await, 1, "of what ended nothing stays once there are no letters");
    assert_eq!(feeds(posts).await, [(eve.0, true), (dan.0, true)]);
}

async fn followers(users: &Runtime<UserService>, of: UserId) -> (Vec<Uuid>, i64) {
    let client = users.database().get().await.unwrap();
    let rows = client.query("SELECT follower FROM follower WHERE followee = $1", &[&of.0]).await.unwrap();
    let sql = "SELECT COALESCE(sum(follower_count), 0)::int8 FROM user_counter WHERE user_id = $1";
    let count = client.query_one(sql, &[&of.0]).await.unwrap().get(0);
    (rows.iter().map(|row| row.get(0)).collect(), count)
}

/// Two users in shards of different nodes: the follower's of the second, the followee's of the first.
async fn two_users(world: &World) -> (UserId, UserId) {
    let users = &world.nodes[0].users;
    let [follower, followee] =
        [("ada", 1), ("bob", 2)].map(|(name, shard)| (name, mint(Timestamp::now(), SHARDS, Some(ShardId(shard)))));
    for (name, id) in [follower, followee] {
        users.ensure_author(UserId(id), Username::parse(name).unwrap(), Timestamp::now(), soon()).await.unwrap();
    }
    (UserId(follower.1), UserId(followee.1))
}

/// The same where the follower's own row says what is so.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_follower_out_of_the_dead_letters_does_not_come_back() {
    let world = World::of(2).await;
    let users = world.nodes[0].users.runtime();
    let (ada, bob) = two_users(&world).await;
    let (from, to) = (users.shard_of(ada.0), users.shard_of(bob.0));
    bury(users, to, from, edge(1, "user.followed", ada.0, bob.0)).await;
    hear(users, to, from, edge(2, "user.unfollowed", ada.0, bob.0)).await;
    assert!(users.replay(to, of(from), 1).await.unwrap());
    assert_eq!(followers(users, bob).await, (vec![], 0));
}

/// What was broken: it was tried in the shard where it lay, concerned nobody there, and was taken away as applied.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_could_not_be_read_is_applied_where_it_belongs_once_it_can_be() {
    let world = World::of(2).await;
    let users = world.nodes[0].users.runtime();
    let (ada, bob) = two_users(&world).await;
    world.nodes[0].users.follow(ada, &Username::parse("bob").unwrap(), true, soon()).await.unwrap();
    // Nobody could say whom it concerns: it lies in the shard of its key.
    let (home, target) = (users.shard_of(ada.0), users.shard_of(bob.0));
    let record = || edge(1, "user.followed", ada.0, bob.0);
    bury(users, home, home, record()).await;
    assert_eq!(letters(users).await, [(home, 1)]);
    assert!(users.replay(home, of(home), 1).await.unwrap());
    assert_eq!(followers(users, bob).await, (vec![ada.0], 1));
    assert!(letters(users).await.is_empty());

    // A replay ended in the middle: the letter is where it lay, and where it belongs. Whichever is asked for, it is applied once.
    bury(users, home, home, edge(2, "user.followed", ada.0, bob.0)).await;
    bury(users, target, home, edge(2, "user.followed", ada.0, bob.0)).await;
    assert!(users.replay(target, of(home), 2).await.unwrap());
    assert!(!users.replay(home, of(home), 2).await.unwrap());
    assert_eq!(followers(users, bob).await.1, 2, "it counts as one more");
    assert!(letters(users).await.is_empty());
}

/// What was broken: the first thousand were taken, and then filtered.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_behind_thousands_of_others_is_found() {
    let world = World::of(1).await;
    let posts = world.nodes[0].posts.runtime();
    let client = posts.database().get().await.unwrap();
    let fill = "INSERT INTO dead_letter (shard, source, seq, type, key, reason)
                SELECT n % 2, CASE WHEN n > 2400 THEN 'users/9' ELSE 'comments/1' END, n, 'x', gen_random_uuid(), 'for the test'
                FROM generate_series(1, 2500) n";
    client.execute(fill, &[]).await.unwrap();
    let listed = async |filter: LetterFilter| posts.dead_letters(&filter, 1_000).await.unwrap();
    let users = Source { topic: Topic::Users, shard: ShardId(9) };
    assert_eq!(listed(LetterFilter { source: Some(users), ..LetterFilter::default() }).await.len(), 100);
    assert_eq!(listed(LetterFilter { seq: Some(2_450), ..LetterFilter::default() }).await.len(), 1);
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = listed(LetterFilter { after, ..LetterFilter::default() }).await;
        let Some(last) = page.last() else { break };
        after = Some((last.source, last.seq, last.shard));
        seen.extend(page.iter().map(|letter| letter.seq));
    }
    assert_eq!(seen, (1..=2_500).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_listed_and_replayed_from_any_node() {
    let world = World::of(2).await;
    let (near, far) = (world.nodes[0].posts.runtime(), ShardId(1));
    let follower = rookery_actors::ids::mint(Timestamp::now(), SHARDS, Some(far));
    let payload = serde_json::json!({"follower": follower, "followee": ADA.0, "at": Timestamp::now()}).to_string();
    let record = Record {
        seq: 1,
        epoch: 1,
        key: follower,
        kind: "user.followed".into(),
        payload: Some(payload.into()),
        traceparent: None,
        at: Timestamp::now(),
    };
    let source = Source { topic: Topic::Users, shard: far };
    near.bury(far, DeadLetter { source, record: Arc::new(record), reason: "for the test".to_owned() }).await.unwrap();
    let letters = near.dead_letters(&LetterFilter::default(), 10).await.unwrap();
    assert_eq!(letters.iter().map(|letter| (letter.shard, letter.seq)).collect::<Vec<_>>(), [(far, 1)]);
    assert!(near.replay(far, source, 1).await.unwrap());
    assert!(!near.replay(far, source, 1).await.unwrap(), "once");
    assert!(near.dead_letters(&LetterFilter::default(), 10).await.unwrap().is_empty());
    let client = near.database().get().await.unwrap();
    let rows = client.query("SELECT 1 FROM follow WHERE follower = $1 AND active", &[&follower]).await.unwrap();
    assert_eq!(rows.len(), 1);
}
