//! Rules 7, 8, 10 and 17: leases, deaths and rebirths, and what cannot be another number.

use std::time::Duration;

use rookery::{
    ownership::{Former, LastLife, LeaseSettings, Membership, Ownership},
    testing::TestService,
};
use rookery_actors::{
    entity::Failure,
    ids::{Incarnation, ShardId},
    posts::PostService,
    runtime::{DirectoryError, Runtime, Settings},
};
use uuid::Uuid;

use crate::{
    cluster::QUICK,
    proxy::{Fate, LOOK, Proxy, RENEWAL},
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

/// What was broken: whoever watched it took its own lease for the other's, took its shards over and wrote, while the other
/// answered reads with what had been. So it was while `ttl_ms` was raised node by node.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_a_longer_lease_is_taken_over_from_when_that_has_ended() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let longer = LeaseSettings { ttl: Duration::from_secs(4), ..SHORT_LEASE };
    let (silent, silent_posts) = node(&proxy.config(), "n1", longer).await;
    let post = published(&silent_posts, ShardId(2), "v1").await;
    let (heir, posts) = node(&config, "n2", SHORT_LEASE).await;
    proxy.always(RENEWAL, Fate::NeverArrives);
    eventually("the heir serves everything", async || {
        let taken = heir.runtime.owned().len();
        assert!(taken == 0 || !silent.runtime.lease().is_valid(), "{taken} shards have two owners");
        taken == usize::from(SHARDS)
    })
    .await;
    retitle(&posts, post.id, "v2").await.unwrap();
    assert!(matches!(silent_posts.get(post.id, deadline()).await, Err(Failure::Moved(_))), "nobody reads what was before");
    proxy.heal();
    heir.stop().await;
    silent.stop().await;
}

/// What was broken: a look that saw the members before the shards took an owner that joined in between for dead.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_joins_in_the_middle_of_a_look_is_not_robbed() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, _) = node(&proxy.config(), "n1", QUICK).await;
    let (view, me) = (service.ownership().contact().view(), service.runtime.incarnation());
    eventually("it has been there for long enough to be given shards, unlike the other", async || {
        view.borrow().member(me).is_some_and(|member| member.renewed >= 3)
    })
    .await;
    let look = proxy.hold(LOOK).await;
    let rival = Rival::join(&config).await;
    rival.take(ShardId(5)).await;
    look.release(Fate::Passes);
    eventually("it has seen whose the shard is", async || !service.runtime.is_held(ShardId(5))).await;
    for _ in 0..2 {
        proxy.hold(LOOK).await.release(Fate::Passes);
    }
    assert_eq!(rival.row(ShardId(5)).await.owner, Some(rival.incarnation));
    service.stop().await;
}

/// What was broken: the connections of the pool kept the name of the first life. Whoever ended the sessions of the dead ended
/// those of the living, and those of a later life outlived it.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_rejoins_reads_under_its_new_name() {
    let config = database().await;
    let (service, posts) = node(&config, "n1", QUICK).await;
    let (rival, client, former) = (Rival::join(&config).await, sql(&config).await, service.runtime.incarnation());
    assert!(rival.directory().declare_dead(former, None).await.unwrap());
    eventually("it rejoins and serves", async || {
        service.runtime.incarnation() != former && service.runtime.owned().len() == usize::from(SHARDS)
    })
    .await;
    // Asks the pool.
    service.runtime.heads().await.unwrap();
    published(&posts, ShardId(2), "v1").await;
    let names = async || {
        let named = "SELECT DISTINCT application_name FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name LIKE 'posts:%' AND application_name <> $1";
        let rows = client.query(named, &[&format!("posts:{}", rival.incarnation)]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect::<Vec<String>>()
    };
    let mine = format!("posts:{}", service.runtime.incarnation());
    let mut last = Vec::new();
    eventually("the connections of the former life are gone", async || {
        service.runtime.heads().await.unwrap();
        last = names().await;
        last.len() == 1
    })
    .await;
    assert_eq!(last, [mine]);
    service.stop().await;
}

/// A member of this name, on a data folder.
fn named(name: &str, folder: &tempfile::TempDir, lease: LeaseSettings) -> Membership {
    Membership { former: Former::OnFolder(LastLife::of(folder.path(), "posts")), ..Membership::new(name, lease) }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

async fn on(config: &tokio_postgres::Config, folder: &tempfile::TempDir, lease: LeaseSettings) -> TestService<PostService> {
    TestService::join(PostService::default(), config.clone(), named("n1", folder, lease), settings()).await
}

/// What was broken: it declared a living member dead, and did not wait for its lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_the_name_of_one_that_lives_does_not_start() {
    let config = database().await;
    let (one, two) = (folder(), folder());
    let first = on(&config, &one, QUICK).await;
    let former = first.runtime.incarnation();
    let runtime = Runtime::new(PostService::default(), config.clone(), Incarnation(Uuid::new_v4()), settings());
    let refused = Ownership::start(runtime, named("n1", &two, QUICK)).await.err().expect("it does not start");
    assert!(matches!(&refused, DirectoryError::NameTaken { service: "posts", node, .. } if node == "n1"), "{refused}");
    assert!(refused.to_string().contains("--name"), "{refused}");
    assert_eq!((first.runtime.incarnation(), first.runtime.owned().len()), (former, usize::from(SHARDS)), "nothing has moved");
    let other = TestService::join(PostService::default(), config, named("n2", &two, QUICK), settings()).await;
    other.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_another_folder_a_node_of_the_same_name_is_waited_for_until_its_lease_has_ended() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (one, two) = (folder(), folder());
    let lease = LeaseSettings { ttl: Duration::from_secs(2), renew_every: Duration::from_millis(100) };
    let first = on(&proxy.config(), &one, lease).await;
    proxy.take_down();
    let began = tokio::time::Instant::now();
    let second = on(&config, &two, lease).await;
    assert!(began.elapsed() >= lease.ttl, "after {:?}", began.elapsed());
    assert_eq!(second.runtime.owned().len(), usize::from(SHARDS));

    // The first one wakes, and does not come back beside the other.
    let former = first.runtime.incarnation();
    proxy.heal();
    eventually("it has heard that it is dead", async || first.runtime.owned().is_empty()).await;
    let looks = tokio::time::Instant::now() + lease.ttl;
    while tokio::time::Instant::now() < looks {
        assert_eq!((first.runtime.incarnation(), second.runtime.owned().len()), (former, usize::from(SHARDS)));
        tokio::time::sleep(lease.renew_every).await;
    }
    second.stop().await;
    eventually("alone it does", async || first.runtime.owned().len() == usize::from(SHARDS)).await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_on_the_same_folder_waits_for_nobody() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let one = folder();
    let first = on(&proxy.config(), &one, LONG_LEASE).await;
    // As after `kill -9`: it says nothing more.
    proxy.take_down();
    let began = tokio::time::Instant::now();
    let second = on(&config, &one, LONG_LEASE).await;
    assert!(began.elapsed() < LONG_LEASE.ttl / 4, "after {:?}", began.elapsed());
    assert_eq!(second.runtime.owned().len(), usize::from(SHARDS));
    drop(first);
    second.stop().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_number_of_shards_does_not_start_and_changes_nothing() {
    let config = database().await;
    let (service, posts) = still_node(&config).await;
    let post = published(&posts, ShardId(2), "v1").await;
    for wrong in [SHARDS / 2, SHARDS * 2] {
        let settings = Settings { shards: wrong, ..settings() };
        let runtime = Runtime::new(PostService::default(), config.clone(), Incarnation(Uuid::new_v4()), settings);
        let refused = Ownership::start(runtime, Membership::new("n2", LONG_LEASE)).await.err().expect("it does not start");
        let DirectoryError::ShardCount { service, stored, configured } = &refused else { panic!("{refused}") };
        assert_eq!((*service, stored.as_str(), *configured), ("posts", "8", wrong));
        assert!(refused.to_string().contains("set it back"), "{refused}");
    }
    let client = sql(&config).await;
    let rows = client.query_one("SELECT (SELECT count(*) FROM shard), (SELECT count(*) FROM member)", &[]).await.unwrap();
    assert_eq!((rows.get::<_, i64>(0), rows.get::<_, i64>(1)), (i64::from(SHARDS), 1));
    assert_eq!(posts.get(post.id, deadline()).await.unwrap().unwrap().version, 1);
    service.stop().await;
}
