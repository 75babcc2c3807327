//! Copies on other nodes than their owner's (ADR 0015): whoever sees one sees what is committed.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use rookery::ownership::LeaseSettings;
use rookery::testing::{self, TestNetwork, TestService};
use rookery_actors::{
    event::{Record, Source, Topic},
    ids::{Incarnation, PostId, ShardId, mint},
    posts::{PostService, Posts},
    runtime::{Database, Directory, Granted, Settings, Slice, SlicePart},
    service::Service,
};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::{
    cluster::QUICK,
    proxy::{BATCH, Fate, GRANT, Proxy},
    support::*,
    tally::{Command, TallyService},
};

const SHARD: ShardId = ShardId(3);

/// Nodes on one database, connected; the first has every shard.
struct World {
    network: TestNetwork,
    config: tokio_postgres::Config,
    nodes: Vec<Node>,
}

struct Node {
    service: TestService<PostService>,
    posts: Posts,
}

impl World {
    async fn of(names: &[&str]) -> Self {
        let config = database().await;
        Self::behind(config.clone(), config, names).await
    }

    /// Of which every shard lends so many copies.
    async fn lending(lent_max: usize, names: &[&str]) -> Self {
        let mut world = Self { network: TestNetwork::default(), config: database().await, nodes: Vec::new() };
        for name in names {
            let settings = Settings { lent_max, ..settings() };
            world.join_with(world.config.clone(), name, settings, LONG_LEASE).await;
        }
        world
    }

    /// `owner`: how the first node reaches the database.
    async fn behind(config: tokio_postgres::Config, owner: tokio_postgres::Config, names: &[&str]) -> Self {
        let mut world = Self { network: TestNetwork::default(), config, nodes: Vec::new() };
        for name in names {
            let config = if world.nodes.is_empty() { owner.clone() } else { world.config.clone() };
            world.join(config, name).await;
        }
        world
    }

    async fn join(&mut self, config: tokio_postgres::Config, name: &str) {
        self.join_with(config, name, settings(), LONG_LEASE).await;
    }

    async fn join_with(&mut self, config: tokio_postgres::Config, name: &str, settings: Settings, lease: LeaseSettings) {
        let service = TestService::start_with(PostService::default(), config, name, settings, lease).await;
        self.network.join(name, &service.runtime);
        self.nodes.push(Node { posts: Posts::new(service.runtime.clone()), service });
    }

    fn posts(&self, node: usize) -> &Posts {
        &self.nodes[node].posts
    }

    fn me(&self, node: usize) -> Incarnation {
        self.nodes[node].service.runtime.incarnation()
    }

    async fn directory(&self, node: usize) -> Directory {
        let database = Database::new(self.config.clone(), "mover", Default::default());
        Directory::open(&database, "posts", self.me(node)).await.unwrap()
    }

    /// A post of the first node, and a copy of it with each of these.
    async fn copied_by(&self, readers: &[usize]) -> PostId {
        let id = published(self.posts(0), SHARD, "v1").await.id;
        for reader in readers {
            self.posts(*reader).get(id, deadline()).await.unwrap().unwrap();
        }
        id
    }

    /// The title of the copy that a node would show without asking anybody.
    fn shown(&self, node: usize, id: PostId) -> Option<String> {
        Some(self.posts(node).at_hand(id)??.title.as_str().to_owned())
    }

    async fn title(&self, node: usize, id: PostId) -> String {
        self.posts(node).get(id, deadline()).await.unwrap().unwrap().title.as_str().to_owned()
    }

    fn retitling(&self, node: usize, id: PostId, title: &'static str) -> JoinHandle<()> {
        let posts = self.posts(node).clone();
        tokio::spawn(async move { drop(retitle(&posts, id, title).await.unwrap()) })
    }

    /// Takes a shard from the first node, as after its death: it is there no more, and has called nothing back.
    async fn take_over(&self, node: usize) {
        self.nodes[0].service.runtime.close(SHARD);
        let granted = testing::rob(&self.config, SHARD, self.me(node)).await;
        self.nodes[node].service.runtime.open(granted, Vec::new()).await.unwrap();
        self.network.changed();
    }

    async fn stop(self) {
        for node in self.nodes {
            node.service.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_elsewhere_is_read_again_without_asking() {
    let world = World::of(&["n1", "n2"]).await;
    let id = world.copied_by(&[]).await;
    assert_eq!(world.shown(1, id), None, "nobody has asked for it");
    // On a busy machine a session may be over before the second read.
    eventually("it is read again", async || {
        world.title(1, id).await;
        let asked = world.network.sent_to("n1");
        world.title(1, id).await;
        world.network.sent_to("n1") == asked
    })
    .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_used_goes_on() {
    let world = World::of(&["n1", "n2"]).await;
    let id = world.copied_by(&[]).await;
    eventually("a copy is shown for longer than a session lasts", async || {
        world.title(1, id).await;
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if world.shown(1, id).is_none() {
                return false;
            }
        }
        true
    })
    .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_sent_to_the_database_when_the_copies_are_called_back() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let world = World::behind(config, proxy.config(), &["n1", "n2"]).await;
    let id = world.copied_by(&[1]).await;
    world.network.delay_answers("n2", true);
    let sent = proxy.hold(BATCH);
    tokio::pin!(sent);
    let editing = world.retitling(0, id, "v2");
    eventually("a reader gives back what it has, or its session is over", async || {
        world.network.delayed("n2") == 1 || world.shown(1, id).is_none()
    })
    .await;
    // The owner does not know yet that it was given back; or it has waited for the end of the session.
    let early = futures_util::poll!(sent.as_mut());
    assert!(early.is_pending() || world.shown(1, id).is_none());
    world.network.delay_answers("n2", false);
    sent.await.release(Fate::Passes);
    editing.await.unwrap();
    assert_eq!(world.title(1, id).await, "v2");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_cannot_be_reached_holds_up_a_change_until_its_session_is_over() {
    let world = World::of(&["n1", "n2"]).await;
    let id = world.copied_by(&[1]).await;
    world.network.cut_off("n2", true);
    retitle(world.posts(0), id, "v2").await.unwrap();
    assert_eq!(world.shown(1, id), None, "once it is done nobody shows what was before");
    world.network.cut_off("n2", false);
    assert_eq!(world.title(1, id).await, "v2");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_gives_everything_back_and_holds_nobody_up() {
    let world = World::of(&["n1", "n2"]).await;
    let id = world.copied_by(&[1]).await;
    world.nodes[1].service.runtime.return_copies().await;
    world.network.cut_off("n2", true);
    let asked = world.network.sent_to("n2");
    world.retitling(0, id, "v2").await.unwrap();
    assert_eq!(world.network.sent_to("n2"), asked, "there is nothing to call back");
    world.network.cut_off("n2", false);
    assert_eq!(world.title(1, id).await, "v2");
    assert_eq!(world.shown(1, id), None, "and nothing is kept any more");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_started_under_the_name_of_a_reader_does_not_answer_for_it() {
    let mut world = World::of(&["n1", "n2"]).await;
    let id = world.copied_by(&[1]).await;
    // The first one still runs; nobody reaches it any more.
    let config = world.config.clone();
    world.join(config, "n2").await;
    retitle(world.posts(0), id, "v2").await.unwrap();
    assert_eq!(world.shown(1, id), None);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_a_recall_has_passed_is_not_kept() {
    let world = World::of(&["n1", "n2"]).await;
    let id = world.copied_by(&[]).await;
    world.network.delay_answers("n1", true);
    let asking = {
        let posts = world.posts(1).clone();
        tokio::spawn(async move { posts.get(id, deadline()).await.unwrap().unwrap().version })
    };
    eventually("the answer is on its way", async || world.network.delayed("n1") == 1).await;
    retitle(world.posts(0), id, "v2").await.unwrap();
    world.network.delay_answers("n1", false);
    assert_eq!(asking.await.unwrap(), 1, "it was asked before");
    assert_eq!(world.shown(1, id), None);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_copies_are_called_back_and_the_change_is_under_way_nobody_gets_one() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let world = World::behind(config, proxy.config(), &["n1", "n2", "n3"]).await;
    let id = world.copied_by(&[1]).await;
    world.network.delay_answers("n2", true);
    let sent = proxy.hold(BATCH);
    let editing = world.retitling(0, id, "v2");
    // On a busy machine its session may be over before.
    eventually("the reader was asked", async || world.network.delayed("n2") == 1 || proxy.waiting() == 0).await;
    assert_eq!(world.title(2, id).await, "v1", "reads go on meanwhile");
    assert_eq!(world.shown(2, id), None, "of what is called back");
    world.network.delay_answers("n2", false);
    let sent = sent.await;
    assert_eq!(world.title(2, id).await, "v1");
    assert_eq!(world.shown(2, id), None, "of what is under way");
    sent.release(Fate::Passes);
    editing.await.unwrap();
    assert_eq!(world.title(2, id).await, "v2");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lent_of_a_change_whose_outcome_is_open() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let world = World::behind(config, proxy.config(), &["n1", "n2"]).await;
    let id = world.copied_by(&[1]).await;
    let resolving = proxy.hold(crate::proxy::RESOLUTION);
    proxy.once(BATCH, Fate::AnswerLost);
    let editing = world.retitling(0, id, "v2");
    let resolving = resolving.await;
    assert_eq!(world.shown(1, id), None);
    let asking = {
        let posts = world.posts(1).clone();
        tokio::spawn(async move { posts.get(id, deadline()).await.unwrap().unwrap().version })
    };
    resolving.release(Fate::Passes);
    editing.await.unwrap();
    assert_eq!(asking.await.unwrap(), 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_is_granted_when_what_was_lent_of_it_is_called_back() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let world = World::behind(config.clone(), proxy.config(), &["n1", "n2"]).await;
    let id = world.copied_by(&[1]).await;
    let rival = Rival::join(&config).await;
    world.network.delay_answers("n2", true);
    let sent = proxy.hold(GRANT);
    tokio::pin!(sent);
    let handing = {
        let database = Database::new(proxy.config(), "mover", Default::default());
        let directory = Directory::open(&database, "posts", world.me(0)).await.unwrap();
        let (runtime, to) = (world.nodes[0].service.runtime.clone(), rival.incarnation);
        tokio::spawn(async move { runtime.hand_off(&directory, &[SHARD], to, Duration::from_secs(5)).await })
    };
    eventually("a reader gives back what it has, or its session is over", async || {
        world.network.delayed("n2") == 1 || world.shown(1, id).is_none()
    })
    .await;
    let early = futures_util::poll!(sent.as_mut());
    assert!(early.is_pending() || world.shown(1, id).is_none());
    world.network.delay_answers("n2", false);
    sent.await.release(Fate::Passes);
    assert_eq!(handing.await.unwrap().granted.len(), 1);
    assert_eq!(world.shown(1, id), None);
    let taken = rival.directory().untouched(&[SHARD], rival.incarnation).await.unwrap();
    assert!(matches!(taken[..], [Granted { called_back: true, .. }]), "and the new owner can tell: {taken:?}");
    let (..) = rival.take(SHARD).await;
    let taken = rival.directory().untouched(&[SHARD], rival.incarnation).await.unwrap();
    assert!(matches!(taken[..], [Granted { called_back: false, .. }]), "a takeover called nothing back: {taken:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_over_early_reads_at_once_and_changes_nothing_while_there_may_be_copies() {
    let world = World::of(&["n1", "n2", "n3"]).await;
    let id = world.copied_by(&[1]).await;
    world.take_over(2).await;
    assert_eq!(world.title(2, id).await, "v1");
    retitle(world.posts(2), id, "v2").await.unwrap();
    assert_eq!(world.shown(1, id), None, "the former owner has lent it, and nobody could call it back");
    assert_eq!(world.title(1, id).await, "v2");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_over_early_is_handed_on_when_there_are_no_copies_any_more() {
    let world = World::of(&["n1", "n2", "n3"]).await;
    let (rival, directory) = (Rival::join(&world.config).await, world.directory(2).await);
    let id = world.copied_by(&[1]).await;
    world.take_over(2).await;
    let runtime = &world.nodes[2].service.runtime;
    let handed = runtime.hand_off(&directory, &[SHARD], rival.incarnation, Duration::from_secs(5)).await;
    assert_eq!(handed.granted.len(), 1);
    assert_eq!(world.shown(1, id), None);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_lease_nothing_is_lent_and_nothing_extended() {
    let world = World::of(&["n1", "n2"]).await;
    let id = world.copied_by(&[1]).await;
    world.nodes[0].service.runtime.lease().revoke();
    eventually("the session is over although it is used", async || world.shown(1, id).is_none()).await;
    let soon = tokio::time::Instant::now() + Duration::from_millis(300);
    world.posts(1).get(id, soon).await.unwrap_err();
    world.stop().await;
}

/// What was broken: one reader's answer made room in the books, another borrowed again what it had just given back, and its
/// answer erased that as well. Nobody called it back ever after.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_borrowed_again_while_everything_is_called_back_is_never_stale() {
    let world = World::lending(4, &["n1", "n2", "n3"]).await;
    let id = world.copied_by(&[]).await;
    let mut others = Vec::new();
    for title in ["a", "b"] {
        others.push(published(world.posts(0), SHARD, title).await.id);
    }
    world.network.delay_answers("n3", true);
    eventually("the owner calls everything back, and one reader's answer is on its way", async || {
        for (reader, id) in [(1, others[0]), (1, others[1]), (2, others[0]), (2, id)] {
            world.title(reader, id).await;
        }
        world.network.delayed("n3") > 0
    })
    .await;
    // It has given everything back, and reads on; the other one's answer arrives meanwhile.
    for _ in 0..50 {
        world.title(2, id).await;
    }
    world.network.delay_answers("n3", false);
    eventually("the owner has it", async || world.network.delayed("n3") == 0).await;
    retitle(world.posts(0), id, "v2").await.unwrap();
    assert_eq!(world.title(2, id).await, "v2");
    world.stop().await;
}

/// What was broken: whoever evicted a copy told nobody, and the books of its owner filled up with what nobody had.
#[tokio::test(flavor = "multi_thread")]
async fn a_crawler_does_not_fill_the_books_of_an_owner() {
    let mut world = World::lending(64, &["n1"]).await;
    // Room for some 25 of them.
    let settings = Settings { copies_bytes: 16 << 10, ..settings() };
    world.join_with(world.config.clone(), "n2", settings, LONG_LEASE).await;
    world.join(world.config.clone(), "n3").await;
    let mut last = None;
    for round in 0..3 {
        let mut ids = Vec::new();
        for n in 0..30 {
            ids.push(published(world.posts(0), SHARD, &format!("{round}/{n}")).await.id);
        }
        eventually("copies of these are kept, instead of those before", async || {
            for id in &ids {
                world.title(1, *id).await;
            }
            ids.iter().filter(|id| world.shown(1, **id).is_some()).count() > 15
        })
        .await;
        last = ids.pop();
    }
    let last = last.unwrap();
    eventually("there is room in the books", async || {
        world.title(2, last).await;
        world.shown(2, last).is_some()
    })
    .await;
    assert_eq!(world.network.sent_to("n2"), 0, "nothing was called back");
    world.stop().await;
}

/// What was broken: an owner that had lost a shard went on extending the sessions in which it had lent it.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenure_that_ends_without_a_grant_takes_its_sessions_with_it() {
    let world = World::of(&["n1", "n2"]).await;
    let id = world.copied_by(&[1]).await;
    // A copy of another shard keeps the session in use as well.
    let kept = published(world.posts(0), ShardId(5), "kept").await.id;
    world.title(1, kept).await;
    let rival = Rival::join(&world.config).await;
    rival.take(SHARD).await;
    world.nodes[0].service.runtime.close(SHARD);
    eventually("it is shown no more, although it is used", async || {
        world.title(1, kept).await;
        world.shown(1, id).is_none()
    })
    .await;
    eventually("of what is still served here copies are lent", async || {
        world.title(1, kept).await;
        world.shown(1, kept).is_some()
    })
    .await;
    world.stop().await;
}

/// What was broken: the same, when a member comes back that was taken for dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_rejoins_extends_no_session_of_its_former_life() {
    let mut world = World { network: TestNetwork::default(), config: database().await, nodes: Vec::new() };
    world.join_with(world.config.clone(), "n1", settings(), QUICK).await;
    world.join(world.config.clone(), "n2").await;
    let id = world.copied_by(&[1]).await;
    let (rival, former) = (Rival::join(&world.config).await, world.me(0));
    assert!(rival.directory().declare_dead(former, None).await.unwrap());
    rival.take(SHARD).await;
    eventually("it is shown no more, although it is used", async || world.shown(1, id).is_none()).await;
    eventually("the dead rejoins", async || world.me(0) != former).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_take_no_more_memory_than_they_may() {
    let config = database().await;
    let network = TestNetwork::default();
    let (first, posts) = node(&config, "n1", LONG_LEASE).await;
    network.join("n1", &first.runtime);
    for (name, bytes, kept) in [("n2", 4_096, 1..12), ("n3", 0, 0..1)] {
        let settings = Settings { copies_bytes: bytes, ..settings() };
        let reader = TestService::start_with(PostService::default(), config.clone(), name, settings, LONG_LEASE).await;
        network.join(name, &reader.runtime);
        let readers = Posts::new(reader.runtime.clone());
        let mut ids = Vec::new();
        for n in 0..12 {
            ids.push(published(&posts, ShardId(n % SHARDS), "one of many").await.id);
        }
        eventually("some are kept, and not all", async || {
            for id in &ids {
                readers.get(*id, deadline()).await.unwrap().unwrap();
            }
            kept.contains(&ids.iter().filter(|id| readers.at_hand(**id).is_some()).count())
        })
        .await;
        reader.stop().await;
    }
    first.stop().await;
}

/// Tallies: what falls over once it is committed, and what other services' records count.
struct Tallies {
    owner: TestService<TallyService>,
    reader: TestService<TallyService>,
    id: Uuid,
}

impl Tallies {
    async fn start() -> Self {
        let config = database().await;
        let network = TestNetwork::default();
        let service = || TallyService::default();
        let owner = TestService::start_with(service(), config.clone(), "n1", settings(), LONG_LEASE).await;
        let reader = TestService::start_with(service(), config, "n2", settings(), LONG_LEASE).await;
        network.join("n1", &owner.runtime);
        network.join("n2", &reader.runtime);
        let id = mint(Timestamp::now(), SHARDS, Some(SHARD));
        owner.runtime.ask(id, Command::Add, soon()).await.unwrap();
        Self { owner, reader, id }
    }

    async fn read(&self) -> i64 {
        self.reader.runtime.query_copied(self.id, &self.id, deadline(), |tally| tally.unwrap_or_default()).await.unwrap()
    }

    fn shown(&self) -> Option<i64> {
        self.reader.runtime.copied(self.id, |tally| tally.unwrap_or_default())
    }

    /// What the owner's memory says, once it says anything.
    async fn here(&self) -> i64 {
        let mut tally = None;
        eventually("the owner has it", async || {
            let here = TallyService::answer(&self.owner.runtime, &self.id, deadline()).await;
            tally = here.ok().flatten();
            tally.is_some()
        })
        .await;
        tally.unwrap()
    }

    async fn stop(self) {
        self.reader.stop().await;
        self.owner.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_services_record_changes_is_called_back_as_well() {
    let world = Tallies::start().await;
    assert_eq!(world.read().await, 1);
    let record = Record {
        seq: 1,
        epoch: 1,
        key: world.id,
        kind: "add".into(),
        payload: Some("{}".into()),
        traceparent: None,
        at: Timestamp::now(),
    };
    let source = Source { topic: Topic::Comments, shard: SHARD };
    let slice = Slice { parts: vec![SlicePart { source, position: 1, records: vec![Arc::new(record)] }] };
    world.owner.runtime.apply(SHARD, &slice).await.unwrap();
    assert_ne!(world.shown(), Some(1));
    assert_eq!(world.read().await, 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lent_of_what_was_committed_and_is_not_in_memory() {
    let world = Tallies::start().await;
    // Not more often, or it is isolated.
    for _ in 0..2 {
        world.read().await;
        // It falls over between commit and memory, which is old until it is loaded anew: read all the while.
        let reading = async {
            for _ in 0..20 {
                let soon = tokio::time::Instant::now() + Duration::from_millis(20);
                let _ = world.reader.runtime.query_copied(world.id, &world.id, soon, |tally| *tally).await;
            }
        };
        let (_, ()) = tokio::join!(world.owner.runtime.ask(world.id, Command::AddAndTrip, soon()), reading);
        let here = world.here().await;
        let shown = world.shown();
        assert!(shown.is_none_or(|shown| shown >= here), "{shown:?} of {here}");
    }
    world.stop().await;
}
