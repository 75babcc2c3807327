//! What every node must hear within a moment, also of shards that it does not serve.

use std::{sync::Arc, time::Duration};

use rookery::user_news::{self, Listeners};
use rookery_actors::{
    event::Topic,
    ids::UserId,
    users::{
        Changes, NewUser,
        names::{DisplayName, Email, Username},
        password::Password,
    },
};
use rookery_gateway::auth::RevokedSessions;
use tokio::task::JoinHandle;

use super::support::*;

/// Lets a node follow the news; the sessions that it refuses.
async fn follow(node: &Node) -> (Arc<RevokedSessions>, JoinHandle<()>) {
    follow_where(node, RevokedSessions::default()).await
}

async fn follow_where(node: &Node, revoked: RevokedSessions) -> (Arc<RevokedSessions>, JoinHandle<()>) {
    let revoked = Arc::new(revoked);
    let (posts, comments) = (node.posts.runtime().clone(), node.comments.clone());
    let listeners = Listeners { revoked: Arc::clone(&revoked), posts, comments };
    let following = user_news::follow(node.users.runtime(), node.log.clone(), listeners).await.unwrap();
    (revoked, following)
}

async fn shown(node: &Node, author: UserId) -> Option<String> {
    node.posts.authors([author]).await.unwrap().get(&author).map(|author| author.display_name.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_author_is_renamed_on_every_node() {
    let world = World::of(3).await;
    let mut bridges = Vec::new();
    for node in &world.nodes {
        follow(node).await;
        bridges.push(node.bridge(Topic::Users, node.users.runtime(), node.posts.runtime()));
    }
    let ada = world.nodes[0].sign_up("ada").await;
    for node in &world.nodes {
        eventually("everybody knows her", async || shown(node, ada).await.is_some()).await;
    }
    let changes = Changes { display_name: Some(DisplayName::parse("Countess").unwrap()), ..Changes::default() };
    world.nodes[0].users.edit(ada, changes, soon()).await.unwrap();
    for node in &world.nodes {
        eventually("everybody knows her new name", async || shown(node, ada).await.as_deref() == Some("Countess")).await;
    }
    bridges.iter().for_each(|bridge| bridge.stop());
}

/// What was broken: a gateway that was restarted followed the log from its heads, and never heard of what the tables did not
/// have yet, for as long as Kafka was away.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_shows_no_name_that_was_deleted_before_although_the_tables_still_have_it() {
    let world = World::of(2).await;
    let bridges: Vec<_> =
        world.nodes.iter().map(|node| node.bridge(Topic::Users, node.users.runtime(), node.posts.runtime())).collect();
    let password = || Password::parse("correct horse battery").unwrap();
    let new = NewUser {
        username: Username::parse("ada").unwrap(),
        email: Email::parse("ada@example.org").unwrap(),
        password: password(),
        user_agent: None,
    };
    let ada = world.nodes[0].users.register(new, soon()).await.unwrap().reply.account.profile.id;
    // On a node that does not hear of it when its table learns it.
    let far = usize::from(world.nodes[0].posts.runtime().head(world.nodes[0].posts.runtime().shard_of(ada.0)).is_some());
    let node = &world.nodes[far];
    let stored = async || {
        let client = node.posts.runtime().database().get().await.unwrap();
        client.query_opt("SELECT username FROM author WHERE id = $1", &[&ada.0]).await.unwrap().map(|row| row.get(0))
    };
    eventually("the table has her", async || stored().await == Some("ada".to_owned())).await;
    // The log goes on, and its readers do not.
    bridges.iter().for_each(|bridge| bridge.stop());
    world.nodes[0].users.delete(ada, password(), soon()).await.unwrap();
    follow(node).await;
    let shown = node.posts.authors([ada]).await.unwrap();
    assert!(shown.values().all(|author| author.deleted && author.username.is_empty()), "{shown:?}");
    assert_eq!(stored().await, Some("ada".to_owned()), "from its table it could not know that");
}

/// What was broken: a node began to follow shards that it does not serve at the beginning of their logs.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_session_is_refused_on_every_node_also_by_one_that_starts_later() {
    let world = World::of(2).await;
    let (first, _) = follow(&world.nodes[0]).await;
    let (second, _) = follow(&world.nodes[1]).await;
    let new = NewUser {
        username: Username::parse("ada").unwrap(),
        email: Email::parse("ada@example.org").unwrap(),
        password: Password::parse("correct horse battery").unwrap(),
        user_agent: None,
    };
    let session = world.nodes[0].users.register(new, soon()).await.unwrap().reply;
    world.nodes[1].users.logout(session.account.profile.id, session.session, soon()).await.unwrap();
    for revoked in [&first, &second] {
        eventually("its tokens are refused", async || revoked.contains(session.session.0)).await;
    }
    let (late, _) = follow(&world.nodes[1]).await;
    assert!(late.contains(session.session.0));

    // As long as the tokens live, and no longer.
    let client = world.nodes[1].users.runtime().database().get().await.unwrap();
    let aged = "UPDATE outbox SET at = now() - interval '30 minutes' WHERE type = 'session.closed'";
    assert_eq!(client.execute(aged, &[]).await.unwrap(), 1);
    for (minutes, refused) in [(15, false), (29, true)] {
        let life = RevokedSessions::of_tokens(Duration::from_secs(60 * minutes));
        let (later, _) = follow_where(&world.nodes[1], life).await;
        assert_eq!(later.contains(session.session.0), refused, "{minutes} minutes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn news_are_heard_of_a_shard_that_moves() {
    let world = World::of(2).await;
    follow(&world.nodes[0]).await;
    let ada = world.nodes[0].sign_up("ada").await;
    eventually("she is known", async || shown(&world.nodes[0], ada).await.is_some()).await;
    let shard = world.nodes[0].users.runtime().shard_of(ada.0);
    for name in ["Countess", "Enchantress", "Analyst"] {
        let here = world.nodes[0].users.runtime().head(shard).is_some();
        world.hand_over(|node| node.users.runtime(), shard, usize::from(here)).await;
        let changes = Changes { display_name: Some(DisplayName::parse(name).unwrap()), ..Changes::default() };
        world.nodes[0].users.edit(ada, changes, soon()).await.unwrap();
        eventually("the new name is heard", async || shown(&world.nodes[0], ada).await.as_deref() == Some(name)).await;
    }
}
