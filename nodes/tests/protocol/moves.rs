//! Hand-off, rebalance and drain: several owners of one service.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use rookery::{
    ownership::{self, LeaseSettings, Observer},
    placement::Placement,
};
use rookery_actors::{
    ids::{PostId, ShardId},
    posts::Posts,
    runtime::{Database, Directory, MemberState, Unit},
};

use crate::{
    cluster::*,
    proxy::{BATCH, Fate, GRANT, Proxy, RENEWAL, RESOLUTION},
    support::*,
};

/// Writers that go on until they are told to stop, through these nodes; what they were promised.
struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    fn start(who: &'static str, faces: &[&Posts]) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let tasks = (0..8)
            .map(|n| {
                let (posts, stop) = (faces[n % faces.len()].clone(), Arc::clone(&stop));
                let acknowledged = Arc::clone(&acknowledged);
                tokio::spawn(async move {
                    let mut round = 0;
                    while !stop.load(Ordering::SeqCst) {
                        let title = format!("{who} {n}/{round}");
                        let answer = posts.publish(draft(&title), soon()).await;
                        let post = answer.unwrap_or_else(|error| panic!("{title} was refused: {error}")).reply.post.unwrap();
                        let title = format!("{title}, again");
                        let answer = retitle(&posts, post.id, &title).await;
                        answer.unwrap_or_else(|error| panic!("{title} was refused: {error}"));
                        acknowledged.lock().unwrap().push(title);
                        round += 1;
                    }
                })
            })
            .collect();
        Self { stop, acknowledged, tasks }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    async fn more(&self) {
        let before = self.count();
        eventually("more is written", async || self.count() > before + 20).await;
    }

    /// What they wrote, sorted; panics if anything was refused.
    async fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        let mut titles = Arc::try_unwrap(self.acknowledged).unwrap().into_inner().unwrap();
        titles.sort_unstable();
        titles
    }
}

/// What was acknowledged is in the table and nothing else, and the log tells the same.
async fn assert_exactly(written: &[String], client: &tokio_postgres::Client) {
    let mut there = titles(client).await;
    there.sort_unstable();
    assert_eq!(there, written);
    let twice =
        "SELECT count(*) FROM (SELECT payload::json ->> 'title' FROM outbox WHERE type IN ('post.created', 'post.updated')
                 GROUP BY 1 HAVING count(*) > 1) t";
    assert_eq!(client.query_one(twice, &[]).await.unwrap().get::<_, i64>(0), 0, "no effect twice");
    assert_gap_free(client).await;
}

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

async fn published_in(posts: &Posts, shard: ShardId, title: &str) -> PostId {
    let id = PostId(rookery_actors::ids::mint(jiff::Timestamp::now(), MANY_SHARDS, Some(shard)));
    posts.publish_as(id, draft(title), soon()).await.unwrap().reply.post.unwrap().id
}

/// A grant whose outcome is open is resolved, and the shards are served somewhere in the end, once.
async fn a_grant_meets(fate: Fate) {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let hub = Hub::default();
    let one = hub.join(&proxy.config(), "n1", QUICK).await;
    let writers = Writers::start("some", &[&one.posts]);
    writers.more().await;
    proxy.once(GRANT, fate);
    let two = hub.join(&config, "n2", QUICK).await;
    at_rest(&[&one, &two]).await;
    writers.more().await;
    let written = writers.stop().await;
    let client = sql(&config).await;
    assert_exactly(&written, &client).await;
    assert_memory_is_sql(&one.posts, &client).await;
    assert_memory_is_sql(&two.posts, &client).await;
    two.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_never_arrived_is_taken_back_and_made_again() {
    a_grant_meets(Fate::NeverArrives).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_whose_answer_was_lost_is_found_to_have_been() {
    a_grant_meets(Fate::AnswerLost).await;
}

/// What was broken, and found by the model: the owner in doubt took the shard for its own all along, and served what it
/// remembered.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_granted_written_and_granted_back_during_a_doubt_is_read_anew() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let hub = Hub::default();
    let one = hub.join(&proxy.config(), "n1", QUICK).await;
    settled(&one).await;
    let post = published_in(&one.posts, ShardId(3), "v1").await;
    let rival = RivalIn64::join(&config).await;
    let resolving = proxy.hold(RESOLUTION);
    proxy.once(GRANT, Fate::AnswerLost);
    let handing = tokio::spawn({
        let (runtime, to) = (one.service.runtime.clone(), rival.incarnation);
        let directory = directory_of(&one).await;
        async move { runtime.hand_off(&directory, &[ShardId(3)], to, Duration::from_secs(5)).await }
    });
    let resolving = resolving.await;

    let row = rival.directory.shards().await.unwrap()[3];
    assert_eq!(row.owner, Some(rival.incarnation));
    let client = sql(&config).await;
    let write = "WITH edited AS (UPDATE post SET title = 'v2', version = 2 WHERE id = $1)
                 INSERT INTO outbox (shard, seq, epoch, key, type) SELECT 3, max(seq) + 1, $2, $1, 'post.updated' FROM outbox WHERE shard = 3";
    client.execute(write, &[&post.0, &row.epoch]).await.unwrap();
    let back = rival.directory.take_over(&[row], Some(rival.incarnation), one.service.runtime.incarnation()).await.unwrap();
    assert_eq!(back.len(), 1);

    resolving.release(Fate::Passes);
    handing.await.unwrap();
    assert_eq!(one.posts.get(post, deadline()).await.unwrap().unwrap().version, 2);
    assert_eq!(retitle(&one.posts, post, "v3").await.unwrap().reply.post.unwrap().version, 3);
    assert_gap_free(&client).await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_granted_to_a_member_that_died_meanwhile_and_the_door_opens_again() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let hub = Hub::default();
    let one = hub.join(&proxy.config(), "n1", QUICK).await;
    settled(&one).await;
    let post = published_in(&one.posts, ShardId(3), "v1").await;
    let held = proxy.hold(GRANT);
    let rival = RivalIn64::join(&config).await;
    let shards: Vec<ShardId> = (0..MANY_SHARDS).map(ShardId).collect();
    let handing = tokio::spawn({
        let (runtime, to) = (one.service.runtime.clone(), rival.incarnation);
        let directory = directory_of(&one).await;
        async move { runtime.hand_off(&directory, &shards, to, Duration::from_secs(5)).await }
    });
    let held = held.await;
    assert!(one.owned().is_empty(), "the door is closed before the grant is sent");
    assert!(rival.directory.declare_dead(rival.incarnation, None).await.unwrap());
    held.release(Fate::Passes);
    assert!(handing.await.unwrap().granted.is_empty());
    assert_eq!(one.owned().len(), usize::from(MANY_SHARDS));
    assert_eq!(retitle(&one.posts, post, "v2").await.unwrap().reply.post.unwrap().version, 2);
    let marked = "SELECT count(*) FROM shard WHERE target IS NOT NULL";
    assert_eq!(sql(&config).await.query_one(marked, &[]).await.unwrap().get::<_, i64>(0), 0, "nobody is to have them");
    one.stop().await;
}

/// It has been there long enough to be given shards, so whoever is not is given none.
async fn settled(peer: &Peer) {
    let me = peer.service.runtime.incarnation();
    eventually("it has renewed", async || peer.view().member(me).is_some_and(|member| member.renewed >= 3)).await;
}

/// A member that is played by hand, in the cluster of more shards.
struct RivalIn64 {
    incarnation: rookery_actors::ids::Incarnation,
    directory: Directory,
}

impl RivalIn64 {
    async fn join(config: &tokio_postgres::Config) -> Self {
        let incarnation = rookery_actors::ids::Incarnation(uuid::Uuid::new_v4());
        let database = Database::new(config.clone(), "rival", Default::default());
        let directory = Directory::open(&database, "posts", incarnation).await.unwrap();
        directory.join(incarnation, "rival", None).await.unwrap();
        Self { incarnation, directory }
    }
}

async fn directory_of(peer: &Peer) -> Directory {
    let runtime = &peer.service.runtime;
    Directory::open(runtime.database(), "posts", runtime.incarnation()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_granted_to_a_member_that_dies_comes_back() {
    let config = database().await;
    let hub = Hub::default();
    let lease = LeaseSettings { ttl: Duration::from_secs(1), renew_every: Duration::from_millis(50) };
    let one = hub.join(&config, "n1", lease).await;
    settled(&one).await;
    let post = published_in(&one.posts, ShardId(3), "v1").await;
    // It never renews, so it will be found dead.
    let rival = RivalIn64::join(&config).await;
    let directory = directory_of(&one).await;
    let handed = one.service.runtime.hand_off(&directory, &[ShardId(3)], rival.incarnation, Duration::from_secs(5)).await;
    assert_eq!(handed.granted.len(), 1);
    eventually("it is back", async || one.owned().len() == usize::from(MANY_SHARDS)).await;
    assert_eq!(one.posts.get(post, deadline()).await.unwrap().unwrap().version, 1);
    assert!(retitle(&one.posts, post, "v2").await.is_ok());
    assert_gap_free(&sql(&config).await).await;
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
async fn a_doubt_in_the_middle_of_a_hand_off_is_resolved_first() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let hub = Hub::default();
    let one = hub.join(&proxy.config(), "n1", QUICK).await;
    settled(&one).await;
    let post = published_in(&one.posts, ShardId(3), "v1").await;
    let rival = RivalIn64::join(&config).await;
    let held = proxy.hold(BATCH);
    let write = tokio::spawn({
        let posts = one.posts.clone();
        async move { retitle(&posts, post, "v2").await }
    });
    let held = held.await;
    let handing = tokio::spawn({
        let (runtime, to) = (one.service.runtime.clone(), rival.incarnation);
        let directory = directory_of(&one).await;
        async move { runtime.hand_off(&directory, &[ShardId(3)], to, Duration::from_secs(10)).await }
    });
    eventually("the door is closed", async || one.service.runtime.head(ShardId(3)).is_none()).await;
    assert!(one.service.runtime.is_held(ShardId(3)));
    held.release(Fate::NeverArrives);
    assert_eq!(write.await.unwrap().unwrap().reply.post.unwrap().version, 2, "it was admitted, so it is committed");
    let granted = handing.await.unwrap().granted;
    assert_eq!(granted.len(), 1);
    let row = rival.directory.shards().await.unwrap()[3];
    assert_eq!((row.owner, row.epoch), (Some(rival.incarnation), granted[0].1));
    assert_gap_free(&sql(&config).await).await;
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
    let heir = hub.join(&config, "n2", lease).await;
    eventually("the heir serves everything", async || heir.owned().len() == usize::from(MANY_SHARDS)).await;
    assert_eq!(retitle(&heir.posts, post, "v2").await.unwrap().reply.post.unwrap().version, 2);

    assert_eq!(zombie.owned().len(), usize::from(MANY_SHARDS), "it still thinks that all is well");
    assert!(matches!(zombie.service.runtime.read_loaded(post.0, |_| ()), Some(Err(_))), "it reads nothing");
    let commit = zombie.service.runtime.commit(ShardId(3), Unit::of(MANY_SHARDS)).await;
    assert_eq!(commit, Err(rookery_actors::runtime::CommitError::Fenced));
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
    assert_eq!(ownership::bury(&config, "posts", "n1").await.unwrap(), 1);
    heir.contact().poke();
    eventually("the heir serves everything", async || heir.owned().len() == usize::from(MANY_SHARDS)).await;
    assert_eq!(ownership::bury(&config, "posts", "n1").await.unwrap(), 0, "once is enough");
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

/// What was broken: a command that changes nothing was answered from the memory of a former owner.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_commit_is_checked_like_a_read() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let hub = Hub::default();
    let one = hub.join(&proxy.config(), "n1", QUICK).await;
    settled(&one).await;
    let post = published_in(&one.posts, ShardId(3), "v1").await;
    one.posts.like(post, BOB, true, soon()).await.unwrap();
    let held = proxy.hold(crate::proxy::LIKED);
    let again = tokio::spawn({
        let posts = one.posts.clone();
        async move { posts.like(post, BOB, true, rookery_actors::runtime::Context::within(Duration::from_secs(1))).await }
    });
    let held = held.await;
    let rival = RivalIn64::join(&config).await;
    let directory = directory_of(&one).await;
    let handed = one.service.runtime.hand_off(&directory, &[ShardId(3)], rival.incarnation, Duration::from_secs(5)).await;
    assert_eq!(handed.granted.len(), 1);
    held.release(Fate::Passes);
    assert!(again.await.unwrap().is_err(), "nobody knows what the new owner has made of it");
    one.stop().await;
}
