//! Bridges run where the consumer's shards are served, and carry everything once, whatever moves.

use rookery::bridge::RunningBridge;
use rookery_actors::{event::Topic, ids::ShardId};

use super::support::*;

fn bridges(world: &World) -> Vec<RunningBridge> {
    world.nodes.iter().map(|node| node.bridge(Topic::Posts, node.posts.runtime(), node.users.runtime())).collect()
}

async fn posts_of_ada(world: &World) -> i64 {
    let client = world.nodes[0].users.runtime().database().get().await.unwrap();
    let sql = "SELECT COALESCE(sum(post_count), 0)::int8 FROM user_counter WHERE user_id = $1";
    client.query_one(sql, &[&ADA.0]).await.unwrap().get(0)
}

/// Everything that was published by now has been carried, and that is noted.
async fn all_is_carried(world: &World) {
    let posts = world.nodes[0].posts.runtime();
    eventually("everything is carried", async || {
        let mut places = posts.consumer_places("users").await.unwrap();
        places.sort_unstable();
        places == posts.heads().await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_carries_what_its_own_shards_are_numbered_like() {
    let world = World::of(2).await;
    let bridges = bridges(&world);
    let even: Vec<ShardId> = (0..SHARDS).map(ShardId).filter(|shard| shard.0 % 2 == 0).collect();
    eventually("the first has the even ones", async || bridges[0].carries() == even).await;
    world.hand_over(|node| node.users.runtime(), ShardId(2), 1).await;
    eventually("one has moved", async || bridges[0].carries().len() == even.len() - 1).await;
    eventually("and arrived", async || bridges[1].carries().contains(&ShardId(2))).await;
    bridges.iter().for_each(RunningBridge::stop);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_moves_with_its_shard_and_applies_everything_once() {
    let world = World::of(2).await;
    let bridges = bridges(&world);
    let users = |node: &Node| node.users.runtime().clone();
    let mut published = 0;
    for round in 0..4_u16 {
        for n in 0..SHARDS {
            world.nodes[usize::from(n % 2)].publish_in(ShardId(n), "one of many").await;
            published += 1;
        }
        // Where it is read, where it is carried from and to: in turn, all of them at least once.
        let to = usize::from(round % 2);
        let counted = users(&world.nodes[0]).shard_of(ADA.0);
        for shard in [ShardId(round), ShardId(round + 4), counted] {
            if world.nodes[to].users.runtime().head(shard).is_none() {
                world.hand_over(|node| node.users.runtime(), shard, to).await;
            }
            if world.nodes[to].posts.runtime().head(shard).is_none() {
                world.hand_over(|node| node.posts.runtime(), shard, to).await;
            }
        }
    }
    all_is_carried(&world).await;
    assert_eq!(posts_of_ada(&world).await, published);
    bridges.iter().for_each(RunningBridge::stop);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_be_reached_holds_up_only_what_it_serves() {
    let world = World::of(2).await;
    let counted = world.nodes[0].users.runtime().shard_of(ADA.0);
    if world.nodes[0].users.runtime().head(counted).is_none() {
        world.hand_over(|node| node.users.runtime(), counted, 0).await;
    }
    let bridges = bridges(&world);
    world.network.cut_off("n2", true);
    for n in 0..SHARDS {
        world.nodes[usize::from(n % 2)].publish_in(ShardId(n), "one of many").await;
    }
    eventually("the half that n1 reads and carries is counted", async || posts_of_ada(&world).await == 4).await;
    world.network.cut_off("n2", false);
    all_is_carried(&world).await;
    assert_eq!(posts_of_ada(&world).await, i64::from(SHARDS));
    bridges.iter().for_each(RunningBridge::stop);
}
