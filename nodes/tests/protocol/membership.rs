//! Rules 7, 8 and 10: leases, deaths and rebirths.

use rookery_actors::{entity::Failure, ids::ShardId};

use crate::{
    proxy::{Fate, Proxy, RENEWAL},
    support::*,
};

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_refused_once_the_lease_has_ended() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = node(&proxy.config(), "n1", SHORT_LEASE).await;
    let post = published(&posts, ShardId(2), "v1").await;
    proxy.always(RENEWAL, Fate::Vanishes);
    eventually("the lease has ended", async || !service.runtime.lease().is_valid()).await;
    assert!(matches!(posts.get(post.id, deadline()).await, Err(Failure::Moved(_))));
    proxy.heal();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_member_is_declared_dead_and_rejoins_under_a_new_name() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (silent, _) = node(&proxy.config(), "n1", SHORT_LEASE).await;
    let former = silent.runtime.incarnation();
    let (heir, posts) = node(&config, "n2", SHORT_LEASE).await;
    assert!(heir.runtime.owned().is_empty(), "who renews keeps what it has");
    proxy.always(RENEWAL, Fate::NeverArrives);
    eventually("the heir serves everything", async || heir.runtime.owned().len() == usize::from(SHARDS)).await;
    let post = published(&posts, ShardId(2), "moved").await;
    proxy.heal();
    eventually("the dead rejoins", async || silent.runtime.incarnation() != former && silent.runtime.lease().is_valid()).await;
    heir.stop().await;
    let again = rookery_actors::posts::Posts::new(silent.runtime.clone());
    eventually("it serves again", async || again.get(post.id, deadline()).await.is_ok_and(|found| found.is_some())).await;
    assert!(retitle(&again, post.id, "again").await.is_ok());
    silent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_postgres_moves_nothing() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (one, posts) = node(&proxy.config(), "n1", SHORT_LEASE).await;
    let post = published(&posts, ShardId(2), "v1").await;
    let (two, _) = node(&proxy.config(), "n2", SHORT_LEASE).await;
    let former = one.runtime.incarnation();
    proxy.take_down();
    eventually("both leases ended", async || !one.runtime.lease().is_valid() && !two.runtime.lease().is_valid()).await;
    proxy.heal();
    eventually("both renew", async || one.runtime.lease().is_valid() && two.runtime.lease().is_valid()).await;
    assert_eq!((one.runtime.incarnation(), one.runtime.owned().len()), (former, usize::from(SHARDS)));
    assert!(two.runtime.owned().is_empty());
    assert_eq!(posts.get(post.id, deadline()).await.unwrap().unwrap().version, 1);
    two.stop().await;
    one.stop().await;
}
