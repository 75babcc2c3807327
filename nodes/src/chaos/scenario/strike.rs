//! How it is done: a few lines each.

use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use rookery_actors::fail_point::{Action, Point};
use serde_json::Value;

use super::Scenario;
use crate::{
    chaos::{
        cluster::{Cluster, Ways},
        proxy::{BATCH, Fate, LIKED, LOAD, LOOK, RENEWAL, RESOLUTION},
        workload::Workload,
    },
    fleet,
    migrate::Database,
};

/// How long clients may get nothing done, on a machine that has more to do than this.
const PATIENCE: Duration = Duration::from_secs(180);
/// Writes between two faults: enough that they meet something.
const SOME: u64 = 25;
/// Who is cut off; the others are the second and so on.
const LONER: usize = 1;

impl Scenario {
    /// Whose gateway is on the wrong side of a cut, counted from 0.
    pub fn cuts_off(self) -> Option<usize> {
        let cuts = [Self::HostGone, Self::Partition, Self::PartitionNodes, Self::PartitionPostgres];
        cuts.contains(&self).then_some(LONER - 1)
    }

    /// Does it once, and heals it; what is worth telling of it. `turn`: how often it was done before.
    ///
    /// # Errors
    /// When it cannot be done, or clients get nothing done after it.
    pub async fn strike(self, cluster: &mut Cluster, work: &Workload, turn: usize) -> anyhow::Result<Vec<String>> {
        let mut told = Vec::new();
        match self {
            Self::Calm => {}
            Self::ActorPanic => panics(cluster, work).await?,
            Self::PanicStorm => storm(cluster).await?,
            Self::CrashAfterCommit => crash_after_commit(cluster).await?,
            Self::Kill => {
                for name in names(cluster) {
                    cluster.kill(&name).await?;
                    work.progress(SOME, PATIENCE).await?;
                }
            }
            Self::HostGone => {
                cluster.lose(LONER).await?;
                taken_over(cluster).await?;
                work.progress(SOME, PATIENCE).await?;
                cluster.find(LONER).await?;
            }
            Self::Sleep => {
                let names: Vec<_> = names(cluster).collect();
                // Alone it keeps everybody waiting.
                let time = Duration::from_secs(if names.len() > 1 { 10 } else { 4 });
                cluster.sleep(&names[turn % names.len()], time).await?;
            }
            Self::PostgresRestart => {
                for _ in 0..2 {
                    cluster.kill_postgres()?;
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    work.progress(SOME, PATIENCE).await?;
                }
            }
            Self::PostgresSlow => {
                cluster.proxy()?.slow(Duration::from_millis(200));
                tokio::time::sleep(Duration::from_secs(4)).await;
                cluster.proxy()?.heal();
            }
            Self::CommitCut => cuts(cluster).await?,
            Self::Silence => silence(cluster, work).await?,
            Self::BackendFrozen => {
                for database in [Database::Posts, Database::Comments] {
                    let frozen = cluster.freeze_lane(database).await?;
                    work.progress(SOME, PATIENCE).await?;
                    tokio::time::sleep(Duration::from_secs(8)).await;
                    work.progress(SOME, PATIENCE).await?;
                    drop(frozen);
                }
            }
            Self::DiskFull => {
                let balloon = cluster.fill_disk()?;
                tokio::time::sleep(Duration::from_secs(4)).await;
                drop(balloon);
                cluster.revive().await?;
            }
            Self::ClockJump => {
                for offset_s in [3_600, -3_600, 0] {
                    cluster.clock()?.set(offset_s)?;
                    // The Date of an answer does not tell: hyper keeps it until a clock that went back has caught up.
                    cluster.until("the jump", async |_| work.is_off_by(offset_s).await).await?;
                    work.progress(SOME, PATIENCE).await?;
                }
            }
            Self::PoisonRecord => poison(cluster, work).await?,
            Self::SlowConsumer => {
                cluster.fail_points().always(Point::Projection, Action::Sleep(Duration::from_millis(50)), None)?;
                tokio::time::sleep(Duration::from_secs(3)).await;
                cluster.fail_points().disarm(Point::Projection);
            }
            Self::KafkaDown => {
                cluster.kill_kafka()?;
                tokio::time::sleep(Duration::from_secs(4)).await;
                cluster.restart_kafka().await?;
            }
            Self::TopicHoles => told.push(holes(cluster, work).await?),
            Self::SearchRestored => {
                cluster.back_up(Database::Search).await?;
                work.progress(4 * SOME, PATIENCE).await?;
                cluster.stop_nodes().await?;
                cluster.put_back(Database::Search).await?;
                cluster.revive().await?;
                // The bridges would find out by themselves; the indexes do not know that they are ahead.
                cluster.rookery(&["restored", Database::Search.name()]).await?;
            }
            Self::ReaderCrowd => told.push(crowd(cluster, work).await?),
            Self::Partition => {
                cluster.cut(LONER, &cluster.others(LONER), Ways::Both).await?;
                cluster.cut_postgres(LONER)?;
                taken_over(cluster).await?;
                work.progress(SOME, PATIENCE).await?;
                cluster.mend_postgres(LONER)?;
                cluster.mend(LONER, &cluster.others(LONER), Ways::Both).await?;
            }
            Self::PartitionNodes => {
                cluster.cut(LONER, &cluster.others(LONER), Ways::Both).await?;
                taken_over(cluster).await?;
                work.progress(SOME, PATIENCE).await?;
                cluster.mend(LONER, &cluster.others(LONER), Ways::Both).await?;
            }
            Self::PartitionPostgres => {
                cluster.cut_postgres(LONER)?;
                taken_over(cluster).await?;
                work.progress(SOME, PATIENCE).await?;
                cluster.mend_postgres(LONER)?;
            }
            Self::PartitionAsymmetric => cut_for(cluster, &[2], Ways::One, Duration::from_secs(5)).await?,
            Self::FlappingLink => {
                // The longest ends the links, the others come and go unnoticed or nearly so.
                for cut_ms in [250, 1_000, 2_500, 250, 2_500, 1_000] {
                    cut_for(cluster, &cluster.others(LONER), Ways::Both, Duration::from_millis(cut_ms)).await?;
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
            Self::RollingRestart => {
                for name in names(cluster) {
                    cluster.restart(&name).await?;
                    work.progress(SOME, PATIENCE).await?;
                }
            }
            Self::Scale => {
                for nodes in [cluster.size() + 2, cluster.size()] {
                    told.push(scale(cluster, nodes).await?);
                    work.progress(SOME, PATIENCE).await?;
                }
            }
        }
        work.progress(SOME, PATIENCE).await?;
        Ok(told)
    }
}

/// All of them, also who is silent at the moment.
fn names(cluster: &Cluster) -> impl Iterator<Item = String> + use<> {
    (1..=cluster.size()).map(fleet::name)
}

/// Waits until the others have everything that the loner had.
async fn taken_over(cluster: &Cluster) -> anyhow::Result<()> {
    let others = cluster.others(LONER);
    cluster.until("the takeover", async |cluster| cluster.is_owned_by(&others).await).await
}

/// Cuts the loner off from others for so long.
async fn cut_for(cluster: &Cluster, others: &[usize], ways: Ways, time: Duration) -> anyhow::Result<()> {
    cluster.cut(LONER, others, ways).await?;
    tokio::time::sleep(time).await;
    cluster.mend(LONER, others, ways).await
}

async fn scale(cluster: &mut Cluster, nodes: u16) -> anyhow::Result<String> {
    let (before, began) = (cluster.size(), Instant::now());
    cluster.scale(nodes).await?;
    let up = began.elapsed();
    cluster.until("the balance", async |cluster| cluster.is_balanced(nodes).await).await?;
    let (up_s, balanced_s) = (up.as_secs_f64(), (began.elapsed() - up).as_secs_f64());
    Ok(format!("from {before} to {nodes} nodes in {up_s:.1} s, balanced {balanced_s:.1} s later"))
}

/// Arms a point for one time and waits until somebody has passed it.
async fn once(cluster: &Cluster, point: Point, action: Action) -> anyhow::Result<()> {
    cluster.fail_points().once(point, action)?;
    cluster.until(point.name(), async |cluster| cluster.fail_points().is_passed(point)).await
}

async fn panics(cluster: &Cluster, work: &Workload) -> anyhow::Result<()> {
    // The last is in the committer, in the middle of a batch.
    for point in [Point::BeforeCommit, Point::AfterCommit, Point::AfterCommit, Point::BeforeFold] {
        once(cluster, point, Action::Panic).await?;
        work.progress(SOME, PATIENCE).await?;
    }
    Ok(())
}

async fn storm(cluster: &Cluster) -> anyhow::Result<()> {
    for n in 0..40 {
        once(cluster, if n % 2 == 0 { Point::BeforeCommit } else { Point::AfterCommit }, Action::Panic).await?;
    }
    Ok(())
}

async fn crash_after_commit(cluster: &mut Cluster) -> anyhow::Result<()> {
    for point in [Point::BeforeFold, Point::AfterCommit] {
        once(cluster, point, Action::Exit).await?;
        cluster.revive().await?;
    }
    Ok(())
}

async fn cuts(cluster: &Cluster) -> anyhow::Result<()> {
    for n in 0..20 {
        let fate = if n % 2 == 0 { Fate::NeverArrives } else { Fate::AnswerLost };
        cluster.proxy()?.once(BATCH, fate);
        cluster.until("a commit", async |cluster| cluster.proxy().is_ok_and(|proxy| proxy.waiting() == 0)).await?;
    }
    Ok(())
}

async fn silence(cluster: &Cluster, work: &Workload) -> anyhow::Result<()> {
    let proxy = cluster.proxy()?;
    let left = async |what: &str, rules: usize| {
        cluster.until(what, async |cluster| cluster.proxy().is_ok_and(|proxy| proxy.waiting() <= rules)).await
    };
    for text in [BATCH, LIKED, LOOK, RENEWAL] {
        proxy.once(text, Fate::Vanishes);
        left("the statement", 0).await?;
        work.progress(SOME, PATIENCE).await?;
    }
    // Nothing may have to be loaded.
    for (text, fate) in [(LOAD, Fate::Vanishes), (RESOLUTION, Fate::Vanishes), (BATCH, Fate::NeverArrives)] {
        proxy.once(text, fate);
    }
    left("the doubt", 1).await?;
    work.progress(SOME, PATIENCE).await?;
    proxy.heal();
    Ok(())
}

/// A node sleeps meanwhile, so that others read on for it, and it later reads on itself, where Kafka has nothing any more.
async fn holes(cluster: &Cluster, work: &Workload) -> anyhow::Result<String> {
    let before = cluster.counted("rookery_log_outbox_records_total").await?;
    for name in names(cluster) {
        let awake = AtomicBool::new(false);
        let losses = async {
            while !awake.load(Ordering::Relaxed) {
                cluster.empty_topics().await?;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Ok(())
        };
        let sleep = async {
            let slept = cluster.sleep(&name, Duration::from_secs(6)).await;
            awake.store(true, Ordering::Relaxed);
            slept
        };
        tokio::try_join!(sleep, losses)?;
        work.progress(SOME, PATIENCE).await?;
    }
    let read = cluster.counted("rookery_log_outbox_records_total").await? - before;
    anyhow::ensure!(read > 0.0, "nobody met a hole");
    Ok(format!("{read:.0} records that Kafka had lost were read from the outboxes"))
}

/// What the readers see is judged by what the clients see who read with them.
async fn crowd(cluster: &Cluster, work: &Workload) -> anyhow::Result<String> {
    const READERS: usize = 12;
    const BORROWED: &str = "rookery_copies_borrowed_total";
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(3)).build()?;
    let (before, until) = (cluster.counted(BORROWED).await?, Instant::now() + Duration::from_secs(6));
    let reader = async |first: usize| {
        for n in (first..).take_while(|_| Instant::now() < until) {
            let posts = work.posts();
            let url = cluster.gateways().url(n, &format!("/api/v1/posts/{}", posts[n % posts.len()]));
            let _ = http.get(url).send().await;
        }
    };
    join_all((0..READERS).map(reader)).await;
    let borrowed = cluster.counted(BORROWED).await? - before;
    anyhow::ensure!(borrowed > 0.0, "no node borrowed a copy from another");
    Ok(format!("{borrowed:.0} copies were borrowed in 6 s, with room for four"))
}

async fn poison(cluster: &Cluster, work: &Workload) -> anyhow::Result<()> {
    let poisoned = Cell::new(None);
    let refused = async |cluster: &Cluster| {
        // Its author may delete it, or put another one into its place: nothing happens to that one any more.
        let post = work.some_post();
        if poisoned.replace(Some(post)) != Some(post) {
            let armed = cluster.fail_points().always(Point::Projection, Action::Refuse, Some(post));
            armed.expect("the folder of the fail points is ours");
        }
        letters(cluster).await.is_some_and(|letters| letters >= 2)
    };
    cluster.until("a few dead letters", refused).await?;
    cluster.fail_points().disarm(Point::Projection);
    let replayed = async |cluster: &Cluster| {
        // Again and again, for some were on their way to the dead letters when the first were replayed.
        let _ = cluster.rookery(&["dlt", "replay"]).await;
        letters(cluster).await == Some(0)
    };
    work.progress(SOME, PATIENCE).await?;
    cluster.until("a replay of all dead letters", replayed).await
}

/// How many dead letters there are; none: nobody says.
async fn letters(cluster: &Cluster) -> Option<usize> {
    let listed = cluster.rookery(&["dlt", "list", "--json"]).await.ok()?;
    serde_json::from_str::<Vec<Value>>(&listed).ok().map(|letters| letters.len())
}
