//! Rebalance, drain and takeover: several owners of one service.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use rookery::{
    ownership::{self, Former, LeaseSettings, Observer},
    placement::Placement,
};
use rookery_actors::{
    ids::{PostId, ShardId},
    runtime::{CommitError, Database, MemberState, Unit},
};

use crate::{
    cluster::*,
    proxy::{Fate, LOOK, Proxy, RENEWAL},
    support::*,
    writers::*,
};

#[tokio::test(flavor = "multi_thread")]
async fn shards_move_under_writers_and_nothing_is_lost_doubled_or_refused() {
    let config = database().await;
    let hub = Hub::default();
    let one = hub.join(&config, "n1", QUICK).await;
    let writers = Writers::start("some", &[&one.posts]);
    writers.more().await;
    let two = hub.join(&config, "n2", QUICK).await;
    at_rest(&[&one, &two]).await;
    let more = Writers::start("others", &[&one.posts, &two.posts]);
    let three = hub.join(&config, "n3", QUICK).await;
    at_rest(&[&one, &two, &three]).await;
    more.more().await;
    three.drain().await;
    at_rest(&[&one, &two]).await;
    more.more().await;
    let mut written = writers.stop().await;
    written.extend(more.stop().await);
    written.sort_unstable();
    assert!(hub.announced() > 0);

    let client = sql(&config).await;
    assert_exactly(&written, &client).await;
    assert_memory_is_sql(&one.posts, &client).await;
    assert_memory_is_sql(&two.posts, &client).await;
    two.stop().await;
    one.stop().await;
}

/// A reader never sees less than what was acknowledged before it asked, through whichever node.
#[tokio::test(flavor = "multi_thread")]
async fn no_read_is_stale_while_shards_move() {
    let config = database().await;
    let hub = Hub::default();
    let one = hub.join(&config, "n1", QUICK).await;
    let mut posts: Vec<PostId> = Vec::new();
    for shard in 0..MANY_SHARDS {
        posts.push(published_in(&one.posts, ShardId(shard), "v1").await);
    }
    let two = hub.join(&config, "n2", QUICK).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for (n, id) in posts.into_iter().step_by(8).enumerate() {
        let acknowledged = Arc::new(AtomicI64::new(1));
        let writer = if n % 2 == 0 { one.posts.clone() } else { two.posts.clone() };
        tasks.push(tokio::spawn({
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            async move {
                while !stop.load(Ordering::SeqCst) {
                    let version = retitle(&writer, id, "again").await.unwrap().reply.post.unwrap().version;
                    acknowledged.store(version, Ordering::SeqCst);
                }
            }
        }));
        for reader in [one.posts.clone(), two.posts.clone()] {
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let least = acknowledged.load(Ordering::SeqCst);
                    let read = reader.get(id, deadline()).await.unwrap().unwrap().version;
                    assert!(read >= least, "version {read} was read after {least} had been acknowledged");
                    tokio::task::yield_now().await;
                }
            }));
        }
    }
    at_rest(&[&one, &two]).await;
    let three = hub.join(&config, "n3", QUICK).await;
    at_rest(&[&one, &two, &three]).await;
    three.drain().await;
    at_rest(&[&one, &two]).await;
    stop.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    assert_gap_free(&sql(&config).await).await;
    two.stop().await;
    one.stop().await;
}

/// Whoever waited for it gets through before it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_has_just_come_stays_for_a_moment() {
    let config = database().await;
    let hub = Hub::default();
    let one = hub.join(&config, "n1", QUICK).await;
    let two = hub.join(&config, "n2", QUICK).await;
    let runtime = two.service.runtime.clone();
    let (end, ended) = tokio::sync::oneshot::channel();
    let watch = tokio::spawn(async move {
        let mut stayed: Vec<Duration> = Vec::new();
        // Not there yet when it was looked at last, and there since.
        let (mut absent, mut there) = (vec![Instant::now(); usize::from(MANY_SHARDS)], HashMap::new());
        let mut ended = ended;
        while ended.try_recv().is_err() {
            let now = Instant::now();
            let owned: HashSet<ShardId> = runtime.owned().into_iter().map(|(shard, ..)| shard).collect();
            for shard in (0..MANY_SHARDS).map(ShardId) {
                if owned.contains(&shard) {
                    there.entry(shard).or_insert(absent[shard.index()]);
                } else {
                    stayed.extend(there.remove(&shard).map(|since| now - since));
                    absent[shard.index()] = now;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stayed
    });
    eventually("the second is given something", async || !two.owned().is_empty()).await;
    two.drain().await;
    end.send(()).unwrap();
    let stayed = watch.await.unwrap();
    assert!(!stayed.is_empty());
    assert!(stayed.iter().all(|time| *time >= Duration::from_millis(250)), "{stayed:?}");
    at_rest(&[&one]).await;
    one.stop().await;
}

/// It renews, and nobody can ask it: its shards would be of no use to anybody but its own clients.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_cut_off_from_the_others_hands_over_to_them_and_is_given_back_when_it_returns() {
    let config = database().await;
    let hub = Hub::default();
    let one = hub.join(&config, "n1", QUICK).await;
    let two = hub.join(&config, "n2", QUICK).await;
    let three = hub.join(&config, "n3", QUICK).await;
    at_rest(&[&one, &two, &three]).await;
    hub.cut_off("n1");
    eventually("the others serve everything", async || {
        one.owned().is_empty() && two.owned().len() + three.owned().len() == usize::from(MANY_SHARDS)
    })
    .await;
    assert!(one.contact().is_cut_off() && !two.contact().is_cut_off());
    hub.mend();
    at_rest(&[&one, &two, &three]).await;
    assert!(!one.contact().is_cut_off());
    for peer in [three, two, one] {
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_do_not_reach_each_other_neither_gives_way() {
    let config = database().await;
    let hub = Hub::default();
    let one = hub.join(&config, "n1", QUICK).await;
    let two = hub.join(&config, "n2", QUICK).await;
    at_rest(&[&one, &two]).await;
    let before = (one.owned(), two.owned());
    hub.cut_off("n1");
    let renewed = |peer: &Peer| peer.view().members.iter().map(|member| member.renewed).min().unwrap();
    let (seen_one, seen_two) = (renewed(&one), renewed(&two));
    eventually("both have seen the other renew", async || renewed(&one) > seen_one + 5 && renewed(&two) > seen_two + 5).await;
    assert_eq!((one.owned(), two.owned()), before);
    two.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announcement_that_is_lost_is_made_good_by_the_next_poll() {
    let config = database().await;
    let hub = Hub::default();
    hub.deafen(true);
    let one = hub.join(&config, "n1", QUICK).await;
    let two = hub.join(&config, "n2", QUICK).await;
    at_rest(&[&one, &two]).await;
    assert_eq!(hub.announced(), 0);
    two.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_commits_nothing_and_reads_nothing() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let hub = Hub::default();
    let lease = LeaseSettings { ttl: Duration::from_secs(1), renew_every: Duration::from_millis(50) };
    let zombie = hub.join(&proxy.config(), "n1", lease).await;
    let post = published_in(&zombie.posts, ShardId(3), "v1").await;
    // Its renewals go nowhere and it hears of nothing, as if it had been stopped.
    proxy.always(RENEWAL, Fate::Vanishes);
    proxy.always(LOOK, Fate::Vanishes);
    let heir = hub.join(&config, "n2", lease).await;
    eventually("the heir serves everything", async || heir.owned().len() == usize::from(MANY_SHARDS)).await;
    assert_eq!(retitle(&heir.posts, post, "v2").await.unwrap().reply.post.unwrap().version, 2);

    assert_eq!(zombie.owned().len(), usize::from(MANY_SHARDS), "it still thinks that all is well");
    assert!(matches!(zombie.service.runtime.read_loaded(post.0, |_| ()), Some(Err(_))), "it reads nothing");
    let commit = zombie.service.runtime.commit(ShardId(3), Unit::of(MANY_SHARDS)).await;
    assert_eq!(commit, Err(CommitError::Fenced));
    assert_gap_free(&sql(&config).await).await;
    proxy.heal();
    heir.stop().await;
    zombie.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fourth_and_a_fifth_member_are_balanced_to_the_cap() {
    let config = database().await;
    let hub = Hub::default();
    let mut peers = Vec::new();
    for n in 1..=5 {
        peers.push(hub.join(&config, &format!("n{n}"), QUICK).await);
        at_rest(&peers.iter().collect::<Vec<_>>()).await;
        let load_max = Placement::load_max(usize::from(MANY_SHARDS), n);
        assert!(peers.iter().all(|peer| peer.owned().len() <= load_max), "{n} members");
    }
    // Nobody who has what it should have loses it while others move: the last two drain at once.
    let (five, four) = (peers.pop().unwrap(), peers.pop().unwrap());
    tokio::join!(five.drain(), four.drain());
    at_rest(&peers.iter().collect::<Vec<_>>()).await;
    assert_gap_free(&sql(&config).await).await;
    for peer in peers {
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_drains_says_so_and_ends_with_nothing() {
    let config = database().await;
    let hub = Hub::default();
    let one = hub.join(&config, "n1", QUICK).await;
    let two = hub.join(&config, "n2", QUICK).await;
    at_rest(&[&one, &two]).await;
    assert!(two.service.ownership().drain(Duration::from_secs(20)).await);
    assert!(two.owned().is_empty());
    eventually("everybody sees it drain", async || {
        let view = one.view();
        let two = view.members.iter().find(|member| member.node == "n2");
        two.is_some_and(|two| two.state == MemberState::Draining && two.address.as_deref() == Some("n2.example:4000"))
    })
    .await;
    assert_eq!(one.owned().len(), usize::from(MANY_SHARDS));
    assert!(one.service.ownership().drain(Duration::from_secs(20)).await, "alone, there is nobody to hand to");
    assert_eq!(one.owned().len(), usize::from(MANY_SHARDS), "so it serves until it leaves");
    two.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_take_the_same_orphans_never_both_serve() {
    let config = database().await;
    for round in 0..5 {
        let hub = Hub::default();
        // Neither knows of the other when it looks first, so both want everything that the former ones left.
        let (left, right) = tokio::join!(hub.join(&config, "n1", QUICK), hub.join(&config, "n2", QUICK));
        let mut seen = HashSet::new();
        for _ in 0..50 {
            let (left, right) = (left.owned(), right.owned());
            seen.extend(left.iter().map(|tenure| (*tenure, "n1")));
            seen.extend(right.iter().map(|tenure| (*tenure, "n2")));
            tokio::task::yield_now().await;
        }
        let tenures: HashSet<_> = seen.iter().map(|(tenure, _)| tenure).collect();
        assert_eq!(tenures.len(), seen.len(), "two served under one epoch in round {round}");
        at_rest(&[&left, &right]).await;
        // The former owners' shards are orphans again.
        tokio::join!(left.stop(), right.stop());
    }
    assert_gap_free(&sql(&config).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_buried_by_its_parent_is_followed_at_once() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let hub = Hub::default();
    // A lease that never ends while this story is told.
    let lease = LeaseSettings { ttl: Duration::from_secs(3600), ..QUICK };
    let dead = hub.join(&proxy.config(), "n1", lease).await;
    let heir = hub.join(&config, "n2", lease).await;
    proxy.take_down();
    assert_eq!(ownership::bury(&config, "posts", "n1", &Former::Dead).await.unwrap(), 1);
    heir.contact().poke();
    eventually("the heir serves everything", async || heir.owned().len() == usize::from(MANY_SHARDS)).await;
    assert_eq!(ownership::bury(&config, "posts", "n1", &Former::Dead).await.unwrap(), 0, "once is enough");
    drop(dead);
    heir.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_sees_everything_and_has_no_part_in_it() {
    let config = database().await;
    let hub = Hub::default();
    let one = hub.join(&config, "n1", QUICK).await;
    let observer = Observer::start(Database::new(config.clone(), "observer", Default::default()), "posts", QUICK);
    let contact = observer.contact();
    eventually("it sees who owns what", async || {
        let view = contact.view().borrow().clone();
        view.owner(ShardId(3)).is_some_and(|owner| owner.node == "n1" && owner.address.as_deref() == Some("n1.example:4000"))
    })
    .await;
    let two = hub.join(&config, "n2", QUICK).await;
    at_rest(&[&one, &two]).await;
    eventually("it sees what moved", async || {
        let view = contact.view().borrow().clone();
        view.members.len() == 2
            && two
                .owned()
                .iter()
                .all(|(shard, epoch)| view.epoch(*shard) == *epoch && view.owner(*shard).is_some_and(|owner| owner.node == "n2"))
    })
    .await;
    two.stop().await;
    one.stop().await;
}
