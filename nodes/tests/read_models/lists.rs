//! Lists whose posts lie on several nodes.

use std::time::Duration;

use rookery_actors::{
    ids::{PostId, ShardId},
    posts::{Filter, Key, Sort},
};

use super::support::*;

/// A list as a node shows it, page by page.
async fn walk(node: &Node, sort: Sort, filter: &Filter, limit: usize) -> Vec<PostId> {
    let mut found = Vec::new();
    let mut after: Option<Key> = None;
    loop {
        let page = node.posts.list(sort, filter, after, limit, deadline()).await.unwrap();
        found.extend(page.items.into_iter().map(|post| post.id));
        after = page.next;
        if after.is_none() {
            return found;
        }
    }
}

async fn newest(node: &Node) -> Vec<PostId> {
    let page = node.posts.list(Sort::New, &Filter::All, None, 3, deadline()).await.unwrap();
    page.items.into_iter().map(|post| post.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_creates_another_lists_at_once() {
    let world = World::of(3).await;
    for n in 0..24 {
        let post = world.nodes[n % 3].publish("hello").await;
        for node in &world.nodes {
            assert_eq!(newest(node).await[0], post.id);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_and_filter_is_walked_as_on_one_node() {
    let world = World::of(3).await;
    let mut posts = Vec::new();
    for n in 0..20_usize {
        let post = world.nodes[n % 3].publish("hello").await;
        // The older, the more.
        for user in 0..(20 - n) / 4 {
            world.nodes[(n + 1) % 3].posts.like(post.id, user_id(user), true, soon()).await.unwrap();
        }
        posts.push((post.id, (20 - n) / 4));
    }
    let newest: Vec<PostId> = posts.iter().rev().map(|(id, _)| *id).collect();
    let mut top = posts.clone();
    top.sort_by_key(|(id, likes)| std::cmp::Reverse((*likes, *id)));
    let top: Vec<PostId> = top.into_iter().map(|(id, _)| id).collect();
    for node in &world.nodes {
        for filter in [Filter::All, Filter::Tag("rust".into()), Filter::Author(ADA)] {
            for limit in [3, 7, 50] {
                assert_eq!(walk(node, Sort::New, &filter, limit).await, newest);
                assert_eq!(walk(node, Sort::Top, &filter, limit).await, top);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_asks_each_node_at_most_once() {
    let world = World::of(3).await;
    for n in 0..SHARDS * 3 {
        world.nodes[0].publish_in(ShardId(n % SHARDS), "hello").await;
    }
    newest(&world.nodes[0]).await;
    let asked = |name| world.network.sent_to(name);
    for _ in 0..3 {
        let before = (asked("n1"), asked("n2"), asked("n3"));
        let page = world.nodes[0].posts.list(Sort::New, &Filter::All, None, 20, deadline()).await.unwrap();
        assert_eq!(page.items.len(), 20);
        assert_eq!((asked("n1"), asked("n2"), asked("n3")), (before.0, before.1 + 1, before.2 + 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_right_while_its_shards_move() {
    let world = World::of(2).await;
    let mut published: Vec<PostId> = Vec::new();
    for round in 0..SHARDS * 2 {
        let shard = ShardId(round % SHARDS);
        published.insert(0, world.nodes[0].publish_in(shard, "before it moves").await.id);
        let here = world.nodes[0].posts.runtime().head(shard).is_some();
        world.hand_over(|node| node.posts.runtime(), shard, usize::from(here)).await;
        for node in &world.nodes {
            assert_eq!(newest(node).await, published[..published.len().min(3)]);
        }
        published.insert(0, world.nodes[1].publish_in(shard, "after it has moved").await.id);
        for node in &world.nodes {
            assert_eq!(newest(node).await, published[..published.len().min(3)]);
        }
    }
    assert_eq!(walk(&world.nodes[1], Sort::New, &Filter::All, 5).await, published);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_waits_for_a_node_that_is_away_and_is_then_whole() {
    let world = World::of(2).await;
    for n in 0..SHARDS {
        world.nodes[0].publish_in(ShardId(n), "hello").await;
    }
    world.network.cut_off("n2", true);
    let (network, list) = (world.network.clone(), walk(&world.nodes[0], Sort::New, &Filter::All, 20));
    let back = async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        network.cut_off("n2", false);
    };
    let (found, ()) = tokio::join!(list, back);
    assert_eq!(found.len(), usize::from(SHARDS));
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_are_asked_of_each_node_once() {
    let world = World::of(3).await;
    let users = |node: usize| &world.nodes[node].users;
    let ada = world.nodes[0].sign_up("ada").await;
    let mut followed = Vec::new();
    for n in 0..9 {
        let name = format!("user_{n}");
        followed.insert(0, world.nodes[n % 3].sign_up(&name).await);
        let name = rookery_actors::users::names::Username::parse(&name).unwrap();
        users(1).follow(ada, &name, true, soon()).await.unwrap();
    }
    let before = (world.network.sent_to("n1"), world.network.sent_to("n2"));
    let page = users(2).following(ada, None, 20, deadline()).await.unwrap();
    assert_eq!(page.items.iter().map(|profile| profile.id).collect::<Vec<_>>(), followed);
    assert!(world.network.sent_to("n1") <= before.0 + 1 && world.network.sent_to("n2") <= before.1 + 1);
}
