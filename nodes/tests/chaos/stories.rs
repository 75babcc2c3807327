//! Stories that break one thing, in one line.

use rookery_actors::fail_point::Point;

use crate::harness::{Cluster, nodes_or};

/// The owner dies after the commit and before the answer; the client retries, unless its gateway lived on and did so itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_retried_publish_creates_one_post() {
    let mut cluster = Cluster::of(nodes_or(3)).await;
    let ada = cluster.sign_up("ada").await;
    cluster.crash_once(Point::AfterCommit);
    let first = cluster.person(&ada).publish("hello", "k").await;
    cluster.revive().await;
    let post = cluster.person(&ada).publish("hello", "k").await.expect("the retry is answered");
    assert!(first.is_none_or(|first| first == post), "the key stands for one post");
    assert!(cluster.get(&format!("/api/v1/posts/{post}")).await.is_some_and(|read| read["id"] == post), "and it is there");
    cluster.eventually(async |cluster| cluster.search("hello").await == [post.clone()]).await;
    cluster.stop().await;
}

/// An entity panics with its write committed, so nobody knows how it ended: under the key the gateway asks again, and finds out.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_after_the_commit_is_an_open_outcome_and_the_node_goes_on() {
    // On several, the next commit may be somebody else's.
    let cluster = Cluster::of(1).await;
    let ada = cluster.sign_up("ada").await;
    cluster.panic_once(Point::AfterCommit);
    let post = cluster.person(&ada).publish("hello", "k").await.expect("the gateway has asked again");
    assert_eq!(cluster.person(&ada).publish("hello", "k").await.as_ref(), Some(&post), "the key stands for one post");
    let listed = cluster.get("/api/v1/posts").await.expect("the node goes on");
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(listed["items"][0]["id"], post);
    cluster.stop().await;
}

/// The committer panics with a batch committed, and nothing of it in memory: the same, and whoever asks next is answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_committer_is_an_open_outcome_and_the_node_goes_on() {
    let cluster = Cluster::of(1).await;
    let ada = cluster.sign_up("ada").await;
    cluster.panic_once(Point::BeforeFold);
    // The next batch may be a projection's.
    let mut posts = Vec::new();
    for n in 0..20 {
        let key = format!("k{n}");
        let first = cluster.person(&ada).publish(&key, &key).await;
        cluster.eventually(async |cluster| cluster.person(&ada).publish(&key, &key).await.is_some()).await;
        let post = cluster.person(&ada).publish(&key, &key).await.expect("the node goes on");
        assert!(first.is_none_or(|first| first == post), "the key stands for one post");
        posts.push(post);
    }
    assert!(cluster.is_passed(Point::BeforeFold), "it has panicked");
    let listed = cluster.get("/api/v1/posts?limit=100").await.expect("the node goes on");
    let mut ids: Vec<&str> = listed["items"].as_array().unwrap().iter().map(|post| post["id"].as_str().unwrap()).collect();
    ids.reverse();
    assert_eq!(ids, posts, "each once");
    cluster.stop().await;
}
