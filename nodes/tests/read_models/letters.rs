//! Dead letters of shards that another node serves.

use std::sync::Arc;

use jiff::Timestamp;
use rookery_actors::{
    event::{Record, Source, Topic},
    ids::ShardId,
    runtime::DeadLetter,
};

use super::support::*;

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
    let letters = near.dead_letters(10).await.unwrap();
    assert_eq!(letters.iter().map(|letter| (letter.shard, letter.seq)).collect::<Vec<_>>(), [(far, 1)]);
    assert!(near.replay(far, source, 1).await.unwrap());
    assert!(!near.replay(far, source, 1).await.unwrap(), "once");
    assert!(near.dead_letters(10).await.unwrap().is_empty());
    let client = near.database().get().await.unwrap();
    let rows = client.query("SELECT 1 FROM follow WHERE follower = $1 AND active", &[&follower]).await.unwrap();
    assert_eq!(rows.len(), 1);
}
