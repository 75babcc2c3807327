//! Shards that another node serves: asked from here, while they move, and when an answer is lost.

use jiff::Timestamp;
use rookery::testing::{self, TestNetwork, TestService};
use rookery_actors::{
    entity::{AskError, Failure},
    ids::{Incarnation, PostId, ShardId, mint},
    posts::{Command, Draft, Filter, PostService, Posts, Sort},
    runtime::{Context, IdempotencyKey},
};

use super::{
    proxy::{BATCH, Fate, Proxy},
    support::*,
};

const SHARD: ShardId = ShardId(3);

struct Node {
    service: TestService<PostService>,
    posts: Posts,
}

/// Two nodes on one database, connected; the first has every shard.
async fn two_nodes() -> (TestNetwork, Node, Node, tokio_postgres::Config) {
    let config = database().await;
    let network = TestNetwork::default();
    let mut nodes = Vec::new();
    for name in ["n1", "n2"] {
        let (service, posts) = node(&config, name, LONG_LEASE).await;
        network.join(name, &service.runtime);
        nodes.push(Node { service, posts });
    }
    let second = nodes.pop().unwrap();
    (network, nodes.pop().unwrap(), second, config)
}

impl Node {
    fn me(&self) -> Incarnation {
        self.service.runtime.incarnation()
    }

    /// Takes a shard from another node, which has just given it up.
    async fn take(&self, shard: ShardId, from: &Node, config: &tokio_postgres::Config) {
        let granted = testing::rob(config, shard, self.me()).await;
        // On a busy machine its membership may have looked just now, and found it closed.
        from.service.runtime.close(shard);
        self.service.runtime.open(granted, Vec::new()).await.unwrap();
    }

    async fn stop(self) {
        self.service.stop().await;
    }
}

fn keyed(key: &str) -> Context {
    Context { idempotency: Some(IdempotencyKey::new(key, [7; 32])), ..soon() }
}

#[tokio::test]
async fn what_another_node_serves_is_written_and_read_there() {
    let (network, first, second, config) = two_nodes().await;
    let post = published(&second.posts, SHARD, "from afar").await;
    assert_eq!(first.posts.get(post.id, deadline()).await.unwrap().unwrap().title.as_str(), "from afar");
    assert_eq!(network.sent_to("n2"), 0, "who serves it asks nobody");
    assert_eq!(second.posts.get(post.id, deadline()).await.unwrap().unwrap().id, post.id);
    second.posts.like(post.id, BOB, true, soon()).await.unwrap();
    assert!(second.posts.liked(BOB, &[post.id], deadline()).await.unwrap().contains(&post.id));
    let refused = second.posts.delete(post.id, BOB, false, None, soon()).await.unwrap_err();
    assert!(matches!(refused, AskError::Rejected(rookery_actors::posts::Rejection::NotAuthor)), "{refused:?}");
    assert_gap_free(&sql(&config).await).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn many_posts_are_asked_of_each_node_once() {
    let (network, first, second, config) = two_nodes().await;
    first.service.runtime.close(SHARD);
    second.take(SHARD, &first, &config).await;
    let mut ids = Vec::new();
    for n in 0..12_u16 {
        ids.push(published(&first.posts, ShardId(n % SHARDS), "one of many").await.id);
    }
    let before = network.sent_to("n2");
    let posts = first.posts.get_many(ids.clone(), deadline()).await.unwrap();
    assert_eq!(posts.iter().map(|post| post.id).collect::<Vec<_>>(), ids, "in the order that was asked for");
    assert_eq!(network.sent_to("n2") - before, 1);
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn who_asks_while_a_shard_moves_waits_and_is_answered() {
    let (network, first, second, config) = two_nodes().await;
    let post = published(&first.posts, SHARD, "on the move").await;
    first.service.runtime.close(SHARD);
    let asked = {
        let posts = first.posts.clone();
        tokio::spawn(async move { (posts.get(post.id, deadline()).await, retitle(&posts, post.id, "arrived").await) })
    };
    second.take(SHARD, &first, &config).await;
    network.changed();
    let (read, edited) = asked.await.unwrap();
    assert_eq!(read.unwrap().unwrap().id, post.id);
    assert_eq!(edited.unwrap().reply.post.unwrap().title.as_str(), "arrived");
    assert_eq!(second.posts.get(post.id, deadline()).await.unwrap().unwrap().title.as_str(), "arrived");
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_command_whose_answer_was_lost_is_asked_again_only_under_its_key() {
    let (network, first, second, config) = two_nodes().await;
    let client = sql(&config).await;
    network.lose_answers("n1", true);
    let id = PostId(mint(jiff::Timestamp::now(), SHARDS, Some(SHARD)));
    let open = second.posts.publish_as(id, draft("once"), soon()).await.unwrap_err();
    assert!(matches!(open, AskError::Failed(Failure::Unknown(_))), "{open:?}");
    assert_eq!(titles(&client).await, ["once"], "it was heard");

    let heal = {
        let network = network.clone();
        let lost = network.sent_to("n1") + 1;
        async move {
            eventually("an answer was lost", async || network.sent_to("n1") > lost).await;
            network.lose_answers("n1", false);
        }
    };
    let (published, ()) = tokio::join!(second.posts.publish(draft("keyed"), keyed("a key")), heal);
    published.unwrap();
    assert_eq!(titles(&client).await, ["keyed", "once"], "repeated, and there once");
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_node_that_cannot_be_reached_is_waited_for_until_the_deadline() {
    let (network, first, second, _) = two_nodes().await;
    let post = published(&first.posts, SHARD, "far away").await;
    network.cut_off("n1", true);
    let soon = tokio::time::Instant::now() + std::time::Duration::from_millis(300);
    let failed = second.posts.get(post.id, soon).await.unwrap_err();
    assert!(matches!(failed, Failure::Unavailable(_)), "{failed:?}");
    let waiting = {
        let posts = second.posts.clone();
        tokio::spawn(async move { posts.get(post.id, deadline()).await })
    };
    network.cut_off("n1", false);
    assert_eq!(waiting.await.unwrap().unwrap().unwrap().id, post.id);
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_create_that_is_sent_again_to_the_next_owner_begins_with_what_the_first_one_committed() {
    let (network, first, second, config) = two_nodes().await;
    let shard = keyed("a").idempotency.unwrap().shard(SHARDS);
    let id = PostId(mint(Timestamp::now(), SHARDS, Some(shard)));
    // Within the system a retry keeps its id, which looks as if it had just been minted.
    let create = async |node: &Node| {
        let Draft { author, title, body, tags, .. } = draft("once");
        let command = Command::Publish { id, author, title, body, tags, at: Timestamp::UNIX_EPOCH, minted: true };
        node.service.runtime.ask(id.0, command, keyed("a")).await.unwrap().reply.post.unwrap()
    };
    assert_eq!(create(&first).await.version, 1);
    first.service.runtime.close(shard);
    second.take(shard, &first, &config).await;
    network.changed();
    assert_eq!(create(&second).await.id, id);
    assert_eq!(second.posts.get(id, deadline()).await.unwrap().expect("it is there").version, 1);
    assert_eq!(retitle(&second.posts, id, "twice").await.unwrap().reply.post.unwrap().version, 2);
    assert_gap_free(&sql(&config).await).await;
    first.stop().await;
    second.stop().await;
}

/// A node that has every shard and whose way to the database is in our hands, another that takes one of them over meanwhile,
/// and a third.
struct CutOff {
    network: TestNetwork,
    proxy: Proxy,
    config: tokio_postgres::Config,
    /// Last by its name: of two that think they serve a shard the test's network names the first.
    owner: Node,
    successor: Node,
    other: Node,
}

impl CutOff {
    async fn start() -> Self {
        let config = database().await;
        let proxy = Proxy::start(&config);
        let network = TestNetwork::default();
        let start = async |config: tokio_postgres::Config, name| {
            let (service, posts) = node(&config, name, LONG_LEASE).await;
            network.join(name, &service.runtime);
            Node { service, posts }
        };
        let owner = start(proxy.config(), "n9").await;
        let (successor, other) = (start(config.clone(), "n2").await, start(config.clone(), "n3").await);
        Self { network, proxy, config, owner, successor, other }
    }

    /// The owner's lease ends without anybody there having noticed, and the successor takes the shard over.
    async fn take_over(&self) {
        self.owner.service.runtime.lease().revoke();
        self.successor.take(SHARD, &self.owner, &self.config).await;
        self.network.changed();
    }

    async fn stop(self) {
        let client = sql(&self.config).await;
        assert_gap_free(&client).await;
        for node in [self.owner, self.successor, self.other] {
            node.stop().await;
        }
    }
}

/// What was broken: the answer came when the former owner reached the database again, or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_keyed_command_that_waits_at_a_node_without_its_database_is_asked_again_where_the_shard_is_by_then() {
    let world = CutOff::start().await;
    for (asks, title) in [(&world.other, "from afar"), (&world.owner, "from the same node")] {
        let falls_into_it = |key: &String| keyed(key).idempotency.unwrap().shard(SHARDS) == SHARD;
        let key = (0..).map(|n| format!("{title} {n}")).find(falls_into_it).unwrap();
        let held = world.proxy.hold(BATCH);
        let asking = {
            let (posts, context) = (asks.posts.clone(), keyed(&key));
            tokio::spawn(async move { posts.publish(draft(title), context).await })
        };
        let held = held.await;
        world.take_over().await;
        let first = asking.await.unwrap().expect("the successor answers, while the former owner still waits").reply.post.unwrap();
        held.release(Fate::Passes);
        let again = world.successor.posts.publish(draft(title), keyed(&key)).await.unwrap();
        assert_eq!(again.reply.post.unwrap().id, first.id, "once");
        // Back, for the next one.
        eventually("the former owner has found out", async || !world.owner.service.runtime.is_held(SHARD)).await;
        world.successor.service.runtime.close(SHARD);
        world.owner.service.runtime.lease().renewed(rookery_actors::runtime::BootTime::now(), LONG_LEASE.ttl);
        world.owner.take(SHARD, &world.successor, &world.config).await;
        world.network.changed();
    }
    assert_eq!(titles(&sql(&world.config).await).await, ["from afar", "from the same node"]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_without_a_key_waits_for_the_node_that_has_heard_it() {
    let world = CutOff::start().await;
    let held = world.proxy.hold(BATCH);
    let asking = publishing(&world.other.posts, SHARD, "heard once");
    let held = held.await;
    world.take_over().await;
    published(&world.other.posts, SHARD, "after it").await;
    assert!(!asking.is_finished());
    held.release(Fate::NeverArrives);
    let answer = asking.await.unwrap();
    assert!(matches!(answer, Err(AskError::Failed(Failure::Unknown(_)))), "{answer:?}");
    assert_eq!(titles(&sql(&world.config).await).await, ["after it"], "nobody has repeated it");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_waits_at_a_node_without_its_database_is_asked_again_where_the_shard_is_by_then() {
    let world = CutOff::start().await;
    // Written by somebody before, so that its owner has to load it.
    let id = published(&world.owner.posts, SHARD, "to be loaded").await.id;
    world.owner.service.runtime.close(SHARD);
    world.successor.take(SHARD, &world.owner, &world.config).await;
    world.successor.service.runtime.close(SHARD);
    world.owner.take(SHARD, &world.successor, &world.config).await;
    world.network.changed();
    world.proxy.silence();
    let before = world.network.sent_to("n9");
    let asking = {
        let posts = world.other.posts.clone();
        tokio::spawn(async move { posts.get_many([id], deadline()).await })
    };
    eventually("the owner was asked", async || world.network.sent_to("n9") > before).await;
    world.take_over().await;
    let read = asking.await.unwrap().unwrap();
    assert_eq!(read[0].id, id);
    world.proxy.heal();
    world.stop().await;
}

#[tokio::test]
async fn an_ask_that_waits_for_an_owner_fails_at_once_when_nobody_is_left_who_could_become_one() {
    let (network, first, second, _) = two_nodes().await;
    let post = published(&first.posts, SHARD, "served by nobody").await;
    first.service.runtime.close(SHARD);
    let began = tokio::time::Instant::now();
    let waiting = {
        let posts = second.posts.clone();
        tokio::spawn(async move { (posts.get(post.id, deadline()).await, retitle(&posts, post.id, "never").await) })
    };
    network.set_unserved("posts", true);
    let (read, edited) = waiting.await.unwrap();
    assert!(matches!(&read, Err(Failure::Unavailable(reason)) if reason == "no node serves posts"), "{read:?}");
    assert!(matches!(&edited, Err(AskError::Failed(Failure::Unavailable(_)))), "{edited:?}");
    let listed = second.posts.list(Sort::New, &Filter::All, None, 20, deadline()).await;
    assert!(matches!(&listed, Err(Failure::Unavailable(_))), "an empty list would look like an answer: {listed:?}");
    assert!(began.elapsed() < std::time::Duration::from_secs(4), "half of what a pause may take: {:?}", began.elapsed());
    network.set_unserved("posts", false);
    first.stop().await;
    second.stop().await;
}
