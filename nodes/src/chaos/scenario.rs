//! What can be broken, what that needs, and how it is done: a few lines each.

use std::{fmt, str::FromStr, time::Duration};

use nix::unistd::Uid;
use rookery_actors::fail_point::{self, Action, Point};

use super::{
    cluster::{Clock, Cluster, Options, Ways},
    proxy::{BATCH, Fate},
    workload::Workload,
};
use crate::testing::TestKafka;

/// How long clients may get nothing done, on a machine that has more to do than this.
const PATIENCE: Duration = Duration::from_secs(180);
/// A disk that holds four databases and their logs for a few minutes.
const DISK_BYTES: u64 = 512 << 20;
/// Writes between two faults: enough that they meet something.
const SOME: u64 = 25;

macro_rules! scenarios {
    ($($(#[doc = $about:literal])+ $name:ident = $text:literal needs $needs:expr;)+) => {
        /// Something that goes wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Scenario {
            $($(#[doc = $about])+ $name,)+
        }

        impl Scenario {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// As on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// What happens.
            pub fn about(self) -> &'static str {
                match self { $(Self::$name => concat!($($about),+).trim_ascii(),)+ }
            }

            /// What it takes.
            pub fn needs(self) -> &'static [Need] {
                match self { $(Self::$name => &$needs,)+ }
            }
        }
    };
}

scenarios! {
    /// Nothing goes wrong: what the others are measured by.
    Calm = "calm" needs [];
    /// Entities panic before and after a commit, a few times.
    ActorPanic = "actor-panic" needs [Need::FailPoints];
    /// Forty panics as fast as commands come; entities that panic too often are isolated.
    PanicStorm = "panic-storm" needs [Need::FailPoints];
    /// The process ends between the commit of a batch and its answers.
    CrashAfterCommit = "crash-after-commit" needs [Need::FailPoints];
    /// kill -9 of a node, which is started again.
    Kill = "kill" needs [];
    /// SIGSTOP for longer than a lease, and the node wakes as if nothing had been.
    Sleep = "sleep" needs [];
    /// kill -9 of Postgres in the middle of everything.
    PostgresRestart = "postgres-restart" needs [];
    /// Postgres answers 200 ms later.
    PostgresSlow = "postgres-slow" needs [];
    /// Connections die at a COMMIT: before the server has seen it, or before the answer is out.
    CommitCut = "commit-cut" needs [];
    /// The disk of Postgres and the indexes is full, and then is not.
    DiskFull = "disk-full" needs [Need::Root];
    /// The time of day jumps an hour ahead, and an hour behind.
    ClockJump = "clock-jump" needs [Need::Libfaketime];
    /// Events of one post cannot be applied by anybody; they go to the dead letters and are replayed.
    PoisonRecord = "poison-record" needs [Need::FailPoints];
    /// Every event takes 50 ms longer to be applied.
    SlowConsumer = "slow-consumer" needs [Need::FailPoints];
    /// The Kafka broker dies, and comes back.
    KafkaDown = "kafka-down" needs [Need::Kafka];
    /// A node cannot reach the others, nor they it; all of them reach Postgres.
    Partition = "partition" needs [Need::Nodes(3), Need::Root];
    /// What a node sends to another is lost, and what it is sent arrives.
    PartitionOneWay = "partition-one-way" needs [Need::Nodes(3), Need::Root];
    /// The way between two nodes goes and comes, four times a second.
    FlappingLink = "flapping-link" needs [Need::Nodes(3), Need::Root];
    /// Every node is stopped in order and started again, one after the other.
    RollingRestart = "rolling-restart" needs [Need::Nodes(2)];
    /// Two nodes come, and go again.
    Scale = "scale" needs [Need::Nodes(2)];
}

/// What a scenario takes that not every machine and every cluster has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// So many nodes at least.
    Nodes(u16),
    /// To be root.
    Root,
    /// Debian's libfaketime.
    Libfaketime,
    /// A build with fail points.
    FailPoints,
    /// A Kafka broker that runs here.
    Kafka,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nodes(nodes) => write!(f, "{nodes} nodes (--nodes {nodes})"),
            Self::Root => f.write_str("root"),
            Self::Libfaketime => f.write_str("libfaketime (apt-get install libfaketime)"),
            Self::FailPoints => f.write_str("fail points (a debug build, or --features fail-points)"),
            Self::Kafka => f.write_str("Java 17 and Maven (apt-get install openjdk-17-jre-headless maven)"),
        }
    }
}

impl Need {
    fn is_met(self, nodes: u16) -> bool {
        match self {
            Self::Nodes(wanted) => nodes >= wanted,
            Self::Root => Uid::effective().is_root(),
            Self::Libfaketime => Clock::library().is_some(),
            Self::FailPoints => fail_point::COMPILED_IN,
            Self::Kafka => TestKafka::is_possible(),
        }
    }
}

/// A name that no scenario has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no scenario {0:?}; see `rookery chaos list`")]
pub struct UnknownScenario(String);

impl FromStr for Scenario {
    type Err = UnknownScenario;

    fn from_str(name: &str) -> Result<Self, UnknownScenario> {
        Self::ALL.iter().copied().find(|scenario| scenario.name() == name).ok_or_else(|| UnknownScenario(name.to_owned()))
    }
}

impl Scenario {
    /// What is missing for it here.
    pub fn missing(self, nodes: u16) -> Vec<Need> {
        self.needs().iter().copied().filter(|need| !need.is_met(nodes)).collect()
    }

    /// Whether every request has to be answered: what an operator does on purpose is no fault.
    pub fn fails_nothing(self) -> bool {
        matches!(self, Self::Calm | Self::RollingRestart | Self::Scale)
    }

    /// The cluster that it is done to.
    #[must_use]
    pub fn cluster(self, options: Options) -> Options {
        Options {
            proxied: matches!(self, Self::PostgresSlow | Self::CommitCut),
            wired: matches!(self, Self::Partition | Self::PartitionOneWay | Self::FlappingLink),
            // As deployed: a session has to be made within it, at 200 ms a round trip.
            lease_ttl: if self == Self::PostgresSlow { Duration::from_millis(2_500) } else { options.lease_ttl },
            own_clock: self == Self::ClockJump,
            disk_bytes: (self == Self::DiskFull).then_some(DISK_BYTES),
            kafka: self == Self::KafkaDown,
            ..options
        }
    }

    /// Does it once, and heals it.
    ///
    /// # Errors
    /// When it cannot be done, or clients get nothing done after it.
    pub async fn strike(self, cluster: &mut Cluster, work: &Workload) -> anyhow::Result<()> {
        match self {
            Self::Calm => work.progress(SOME, PATIENCE).await?,
            Self::ActorPanic => panics(cluster, work).await?,
            Self::PanicStorm => storm(cluster).await?,
            Self::CrashAfterCommit => crash_after_commit(cluster).await?,
            Self::Kill => {
                for name in names(cluster).await? {
                    cluster.kill(&name).await?;
                    work.progress(SOME, PATIENCE).await?;
                }
            }
            Self::Sleep => {
                for name in names(cluster).await? {
                    cluster.sleep(&name, Duration::from_secs(4)).await?;
                    work.progress(SOME, PATIENCE).await?;
                }
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
            Self::DiskFull => {
                let balloon = cluster.fill_disk()?;
                tokio::time::sleep(Duration::from_secs(4)).await;
                drop(balloon);
                cluster.revive().await?;
            }
            Self::ClockJump => {
                for offset_s in [3_600, -3_600, 0] {
                    cluster.clock()?.set(offset_s)?;
                    let jumped = async |cluster: &Cluster| cluster.is_off_by(offset_s).await;
                    cluster.until("the jump", jumped).await?;
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
            Self::Partition => cut_for(cluster, &[2, 3], Ways::Both, Duration::from_secs(5)).await?,
            Self::PartitionOneWay => cut_for(cluster, &[2], Ways::One, Duration::from_secs(5)).await?,
            Self::FlappingLink => {
                for _ in 0..16 {
                    cut_for(cluster, &[2], Ways::Both, Duration::from_millis(125)).await?;
                    tokio::time::sleep(Duration::from_millis(125)).await;
                }
            }
            Self::RollingRestart => {
                for name in names(cluster).await? {
                    cluster.restart(&name).await?;
                    work.progress(SOME, PATIENCE).await?;
                }
            }
            Self::Scale => {
                let nodes = u16::try_from(names(cluster).await?.len())?;
                for nodes in [nodes + 2, nodes] {
                    cluster.scale(nodes).await?;
                    work.progress(SOME, PATIENCE).await?;
                }
            }
        }
        work.progress(SOME, PATIENCE).await
    }
}

async fn names(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    Ok(cluster.nodes().await?.into_iter().map(|node| node.name).collect())
}

/// Cuts the first node off from others for so long.
async fn cut_for(cluster: &Cluster, others: &[usize], ways: Ways, time: Duration) -> anyhow::Result<()> {
    cluster.cut(1, others, ways).await?;
    tokio::time::sleep(time).await;
    cluster.mend(1, others, ways).await
}

/// Arms a point for one time and waits until somebody has passed it.
async fn once(cluster: &Cluster, point: Point, action: Action) -> anyhow::Result<()> {
    cluster.fail_points().once(point, action)?;
    cluster.until(point.name(), async |cluster| cluster.fail_points().is_passed(point)).await
}

async fn panics(cluster: &Cluster, work: &Workload) -> anyhow::Result<()> {
    for point in [Point::BeforeCommit, Point::AfterCommit, Point::AfterCommit] {
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

async fn poison(cluster: &Cluster, work: &Workload) -> anyhow::Result<()> {
    cluster.fail_points().always(Point::Projection, Action::Refuse, Some(work.some_post()))?;
    let letters = async |cluster: &Cluster| {
        let listed = cluster.rookery(&["dlt", "list", "--json"]).await.unwrap_or_default();
        serde_json::from_str::<Vec<serde_json::Value>>(&listed).is_ok_and(|letters| letters.len() >= 2)
    };
    cluster.until("a few dead letters", letters).await?;
    cluster.fail_points().disarm(Point::Projection);
    // What is on its way to the dead letters must be there before they are replayed.
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.rookery(&["dlt", "replay"]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_found_by_its_name_and_says_what_it_does() {
        for scenario in Scenario::ALL {
            assert_eq!(scenario.name().parse(), Ok(*scenario));
            assert!(scenario.about().len() > 20 && scenario.about().len() < 110, "{}", scenario.about());
        }
        assert!("earthquake".parse::<Scenario>().unwrap_err().to_string().contains("chaos list"));
    }

    #[test]
    fn what_needs_more_nodes_says_so() {
        assert_eq!(Scenario::RollingRestart.missing(1), [Need::Nodes(2)]);
        assert_eq!(Scenario::Kill.missing(1), []);
    }
}
