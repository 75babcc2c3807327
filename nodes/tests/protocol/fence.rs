//! Rules 1, 2, 4 and 6.

use std::time::Duration;

use rookery_actors::{
    entity::{AskError, Failure},
    ids::ShardId,
    runtime::{Database, NOT_ON_THE_DISK_YET, PoolSize},
};
use tokio::join;

use crate::{
    proxy::{BATCH, Fate, LANE, Proxy},
    support::*,
};

fn is_moved<T>(result: &Result<T, AskError<rookery_actors::posts::Rejection>>) -> bool {
    matches!(result, Err(AskError::Failed(Failure::Moved(_))))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombies_write_is_refused_whole_and_nothing_of_it_is_in() {
    let config = database().await;
    let (service, posts) = still_node(&config).await;
    let post = published(&posts, ShardId(3), "before").await;
    Rival::join(&config).await.take(ShardId(3)).await;

    assert!(is_moved(&retitle(&posts, post.id, "zombie").await));
    let client = sql(&config).await;
    assert_eq!(titles(&client).await, ["before"]);
    assert_gap_free(&client).await;
    assert!(matches!(posts.get(post.id, deadline()).await, Err(Failure::Moved(_))), "it knows by now");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_fenced_shard_in_a_batch_does_not_keep_its_neighbours_out() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = still_node(&proxy.config()).await;
    let rival = Rival::join(&config).await;

    // While the first is held, the others gather in one batch behind it.
    let held = proxy.hold(BATCH);
    let first = publishing(&posts, ShardId(0), "a");
    let held = held.await;
    let others: Vec<_> = [(1, "b"), (2, "c"), (3, "d")].map(|(shard, title)| publishing(&posts, ShardId(shard), title)).into();
    let next = proxy.hold(BATCH);
    // They are queued behind it once their entities are loaded.
    eventually("three more entities live", async || service.runtime.loaded().0 == 4).await;
    tokio::task::yield_now().await;
    held.release(Fate::Passes);
    first.await.unwrap().unwrap();
    let next = next.await;
    rival.take(ShardId(2)).await;
    next.release(Fate::Passes);

    let mut answers = Vec::new();
    for other in others {
        answers.push(other.await.unwrap());
    }
    assert!(is_moved(&answers[1]), "{:?}", answers[1]);
    assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
    let client = sql(&config).await;
    assert_eq!(titles(&client).await, ["a", "b", "d"]);
    assert_gap_free(&client).await;
    assert_memory_is_sql(&posts, &client).await;
    service.stop().await;
}

/// What was broken: the unit took the number after the head of the later tenure under the epoch of the former one. No fence
/// stood there, and what the other owner had acknowledged in between was overwritten.
#[tokio::test(flavor = "multi_thread")]
async fn a_unit_whose_shard_goes_and_comes_back_while_it_waits_for_a_session_is_decided_again() {
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = still_node(&proxy.config()).await;
    let post = published(&posts, ShardId(3), "liked twice").await;
    // The lane loses its session, and the next one is slow to come.
    let opening = proxy.hold(LANE);
    proxy.once(BATCH, Fate::NeverArrives);
    let like = tokio::spawn({
        let posts = posts.clone();
        async move { posts.like(post.id, BOB, true, soon()).await }
    });
    let opening = opening.await;

    let contact = service.ownership().contact();
    let rival = Rival::join(&config).await;
    let (seq, epoch) = rival.take(ShardId(3)).await;
    eventually("the shard is lost", async || {
        contact.poke();
        service.runtime.head(ShardId(3)).is_none()
    })
    .await;
    let client = sql(&config).await;
    let theirs = "WITH liked AS (INSERT INTO post_like (post, user_id) VALUES ($1, $2)),
                       counted AS (UPDATE post SET like_count = like_count + 1 WHERE id = $1)
                  INSERT INTO outbox (shard, seq, epoch, key, type, payload) VALUES (3, $3, $4, $1, 'post.liked', '{}')";
    client.execute(theirs, &[&post.id.0, &ADA.0, &(seq + 1), &epoch]).await.unwrap();
    let back = "WITH given AS (UPDATE shard SET epoch = epoch + 1, owner = $1 WHERE id = 3 RETURNING epoch)
                INSERT INTO outbox (shard, seq, epoch, key, type) SELECT 3, $2, epoch, $3, 'epoch' FROM given";
    client.execute(back, &[&service.runtime.incarnation().0, &(seq + 2), &uuid::Uuid::nil()]).await.unwrap();
    eventually("the shard is ours again", async || {
        contact.poke();
        service.runtime.latest_epoch(ShardId(3)) == epoch + 1
    })
    .await;

    opening.release(Fate::Passes);
    let liked = like.await.unwrap().unwrap().reply.post.unwrap();
    assert_eq!(liked.like_count, 2, "theirs and ours");
    assert_gap_free(&client).await;
    assert_memory_is_sql(&posts, &client).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_appends_its_epoch_record_at_the_next_free_seq() {
    let config = database().await;
    let (service, posts) = still_node(&config).await;
    let seq = publish_in(&posts, ShardId(5), "one").await.unwrap().seq;
    let rival = Rival::join(&config).await;
    let before = rival.row(ShardId(5)).await;
    let [granted] = rival.seize(before).await[..] else { panic!("its owner is dead") };
    assert_eq!((granted.seq, granted.epoch), (seq + 1, before.epoch + 1));
    let client = sql(&config).await;
    let row = client.query_one("SELECT type, epoch FROM outbox WHERE shard = 5 ORDER BY seq DESC LIMIT 1", &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), ("epoch", before.epoch + 1));
    service.stop().await;
}

/// What was broken: whoever saw the members before the shards took an owner that had just joined for dead, and robbed it.
#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_asks_itself_whether_the_owner_is_dead() {
    let config = database().await;
    let (service, posts) = still_node(&config).await;
    let post = published(&posts, ShardId(5), "v1").await;
    let (rival, me) = (Rival::join(&config).await, service.runtime.incarnation());
    let seen = rival.row(ShardId(5)).await;
    let robbed = rival.directory().take_over(&[seen], Some(me), rival.incarnation).await.unwrap();
    assert!(robbed.is_empty(), "it lives");
    assert_eq!(rival.row(ShardId(5)).await, seen);
    retitle(&posts, post.id, "v2").await.unwrap();
    let own = rival.directory().take_over(&[seen], Some(me), me).await.unwrap();
    assert_eq!(own.len(), 1, "from oneself, whoever one is");
    let seen = rival.row(ShardId(5)).await;
    assert!(rival.directory().declare_dead(me, None).await.unwrap());
    assert_eq!(rival.directory().take_over(&[seen], Some(me), rival.incarnation).await.unwrap().len(), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_racing_takeovers_one_wins() {
    let config = database().await;
    let (service, _) = still_node(&config).await;
    let (left, right) = join!(Rival::join(&config), Rival::join(&config));
    for shard in 0..SHARDS {
        let seen = left.row(ShardId(shard)).await;
        let (a, b) = join!(left.seize(seen), right.seize(seen));
        assert_eq!(a.len() + b.len(), 1, "shard {shard}");
    }
    assert_gap_free(&sql(&config).await).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_is_retried_while_the_old_owner_commits() {
    let config = database().await;
    let (service, _) = still_node(&config).await;
    let rival = Rival::join(&config).await;
    let seen = rival.row(ShardId(1)).await;
    let mut owner = sql(&config).await;
    let commit = owner.transaction().await.unwrap();
    commit
        .execute("INSERT INTO outbox (shard, seq, epoch, type) VALUES (1, 2, $1, 'post.created')", &[&seen.epoch])
        .await
        .unwrap();
    let watcher = sql(&config).await;
    let takeover = tokio::spawn(async move { rival.seize(seen).await });
    eventually("the takeover waits for the owner's row", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        watcher.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    commit.commit().await.unwrap();
    assert_eq!(takeover.await.unwrap()[0].seq, 3);
    assert_gap_free(&watcher).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_members_open_transaction_does_not_block_whoever_takes_over() {
    let config = database().await;
    let (service, _) = still_node(&config).await;
    let rival = Rival::join(&config).await;
    let dead = service.runtime.incarnation();
    // A stopped client: its statement is executed, its locks are held, and it will never say more.
    let mut stopped = config.clone();
    stopped.application_name(format!("posts:{dead}"));
    let mut stopped = sql(&stopped).await;
    let open = stopped.transaction().await.unwrap();
    open.execute("UPDATE member SET renewed = renewed + 1 WHERE incarnation = $1", &[&dead.0]).await.unwrap();
    open.execute("UPDATE shard SET target = NULL WHERE id = 4", &[]).await.unwrap();
    open.execute("INSERT INTO outbox (shard, seq, epoch, type) VALUES (4, 2, 1, 'post.created')", &[]).await.unwrap();

    assert!(rival.directory().declare_dead(dead, None).await.unwrap());
    assert_eq!(rival.seize(rival.row(ShardId(4)).await).await[0].seq, 2, "what was not committed is not in");
    drop(open);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_on_the_disk_whatever_the_server_thinks_of_it() {
    let config = database().await;
    set_default(&config, "synchronous_commit = off").await;
    let session = Database::new(config, "test", PoolSize::default()).session("test").await.unwrap();
    let setting = async || session.query_one("SHOW synchronous_commit", &[]).await.unwrap().get::<_, String>(0);
    assert_eq!(setting().await, "on");
    // What need not be says so for itself alone.
    let hint = session.query_one(&format!("SELECT set_config FROM {NOT_ON_THE_DISK_YET}"), &[]).await.unwrap();
    assert_eq!(hint.get::<_, &str>(0), "off");
    assert_eq!(setting().await, "on");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_reads_from_a_server_that_takes_no_writes() {
    let config = database().await;
    set_default(&config, "default_transaction_read_only = on").await;
    let standby = Database::new(config, "test", PoolSize { wait_max: Duration::from_millis(500), ..PoolSize::default() });
    assert!(matches!(standby.get().await, Err(Failure::Unavailable(_))));
    assert!(standby.session("test").await.is_err());
}

async fn set_default(config: &tokio_postgres::Config, setting: &str) {
    let name = config.get_dbname().unwrap();
    sql(config).await.batch_execute(&format!("ALTER DATABASE \"{name}\" SET {setting}")).await.unwrap();
}
