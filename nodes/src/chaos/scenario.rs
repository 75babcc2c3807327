//! What can be broken, and what that needs; how it is done: `strike.rs`.

mod strike;

use std::{fmt, str::FromStr};

use nix::unistd::Uid;
use rookery_actors::fail_point;

use super::cluster::{Clock, Network, Options};
use crate::testing::TestKafka;

/// Room for about four posts of others, of the eight that everybody reads.
const FEW_COPIES_BYTES: u64 = 4_000;
/// A disk that holds four databases and their logs for a few minutes.
const DISK_BYTES: u64 = 512 << 20;
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
    /// Entities panic before and after a commit, a few times, and then the committer.
    ActorPanic = "actor-panic" needs [Need::FailPoints];
    /// Forty panics as fast as commands come; entities that panic too often are isolated.
    PanicStorm = "panic-storm" needs [Need::FailPoints];
    /// The process ends between the commit of a batch and its answers.
    CrashAfterCommit = "crash-after-commit" needs [Need::FailPoints];
    /// kill -9 of a node, which is started again.
    Kill = "kill" needs [];
    /// The host of a node is gone without a word: only its lease tells the others.
    HostGone = "host-gone" needs [Need::Nodes(3), Need::Network];
    /// SIGSTOP for longer than a lease, and the node wakes as if nothing had been.
    Sleep = "sleep" needs [];
    /// kill -9 of Postgres in the middle of everything.
    PostgresRestart = "postgres-restart" needs [];
    /// Postgres answers 200 ms later.
    PostgresSlow = "postgres-slow" needs [];
    /// Connections die at a COMMIT: before the server has seen it, or before the answer is out.
    CommitCut = "commit-cut" needs [];
    /// Statements are never answered: one of each kind, batches, questions, loads, looks, renewals, doubts.
    Silence = "silence" needs [];
    /// A process of Postgres stands still between two batches, for longer than a lease.
    BackendFrozen = "backend-frozen" needs [];
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
    /// Kafka loses all that it has, again and again, while one node after the other sleeps.
    TopicHoles = "topic-holes" needs [Need::Nodes(2), Need::Kafka];
    /// The database of search is put back to what it was a while ago.
    SearchRestored = "search-restored" needs [];
    /// Many read at every gateway what nodes have too little room to keep copies of.
    ReaderCrowd = "reader-crowd" needs [Need::Nodes(2)];
    /// A node is cut off from everything but its clients: the other nodes, and Postgres.
    Partition = "partition" needs [Need::Nodes(3), Need::Network];
    /// A node cannot reach the others, nor they it; all of them reach Postgres.
    PartitionNodes = "partition-nodes" needs [Need::Nodes(3), Need::Network];
    /// A node cannot reach Postgres, and reaches the other nodes.
    PartitionPostgres = "partition-postgres" needs [Need::Nodes(3), Need::Network];
    /// What a node sends to another is lost, and what it is sent arrives.
    PartitionAsymmetric = "partition-asymmetric" needs [Need::Nodes(3), Need::Network];
    /// The ways between a node and the others go and come, for longer and shorter.
    FlappingLink = "flapping-link" needs [Need::Nodes(3), Need::Network];
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
    /// To be root, and iproute2: every node gets a network namespace.
    Network,
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
            Self::Network => f.write_str("root and `ip` (apt-get install iproute2)"),
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
            Self::Network => Uid::effective().is_root() && Network::is_possible(),
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
            proxied: matches!(self, Self::PostgresSlow | Self::CommitCut | Self::Silence | Self::SearchRestored),
            wired: self.needs().contains(&Need::Network),
            own_clock: self == Self::ClockJump,
            disk_bytes: (self == Self::DiskFull).then_some(DISK_BYTES),
            kafka: self.needs().contains(&Need::Kafka),
            copies_bytes: (self == Self::ReaderCrowd).then_some(FEW_COPIES_BYTES),
            ..options
        }
    }
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
