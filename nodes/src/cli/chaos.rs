//! `rookery chaos`: what can be broken, and proof that the promises hold while it is.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Exit, print};
use crate::chaos::{
    run::{self, Options},
    scenario::{Scenario, UnknownScenario},
};

const EXAMPLES: &str = "\
Examples:
  rookery chaos list
  rookery chaos run kill
  rookery chaos run commit-cut --duration 600
  rookery chaos run all --nodes 3
  rookery chaos run sleep --seed 17

Exit codes: 0 every promise is kept, 1 one is broken or the run could not be ended, 2 wrong usage.";

/// What to do.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Chaos {
    /// The scenarios, what they need, and whether that is here.
    List,
    /// Run one: clients work on a new cluster in a temporary folder while it goes wrong; then everything is checked.
    Run(Run),
}

/// One run.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The scenario, or `all` that are possible here.
    #[arg(value_name = "SCENARIO", value_parser = which)]
    which: Which,
    /// What the clients want is decided by this number [default: a random one, which is printed].
    #[arg(long)]
    seed: Option<u64>,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4))]
    nodes: u16,
    /// Break it again and again for so many seconds, and once at least.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    duration: u64,
}

#[derive(Clone, Copy, Debug)]
enum Which {
    One(Scenario),
    All,
}

fn which(text: &str) -> Result<Which, UnknownScenario> {
    if text == "all" { Ok(Which::All) } else { text.parse().map(Which::One) }
}

impl Chaos {
    /// Does it.
    ///
    /// # Errors
    /// When a run could not be ended.
    pub(super) async fn run(self) -> anyhow::Result<Exit> {
        match self {
            Self::List => {
                print(&list());
                Ok(Exit::Done)
            }
            Self::Run(run) => run.run().await,
        }
    }
}

fn list() -> String {
    let entry = |scenario: &Scenario| {
        let needs: Vec<String> = scenario.needs().iter().map(|need| format!("{:20}needs {need}\n", "")).collect();
        format!("{:<20}{}\n{}", scenario.name(), scenario.about(), needs.concat())
    };
    Scenario::ALL.iter().map(entry).collect()
}

impl Run {
    async fn run(self) -> anyhow::Result<Exit> {
        let scenarios: Vec<Scenario> = match self.which {
            Which::One(scenario) => vec![scenario],
            Which::All => Scenario::ALL.to_vec(),
        };
        let mut exit = Exit::Done;
        for scenario in scenarios {
            let missing: Vec<String> = scenario.missing(self.nodes).iter().map(ToString::to_string).collect();
            if !missing.is_empty() {
                eprintln!("{}: skipped, it needs {}", scenario.name(), missing.join(" and "));
                if matches!(self.which, Which::One(_)) {
                    exit = Exit::Failed;
                }
                continue;
            }
            if !self.once(scenario).await? {
                exit = Exit::Failed;
            }
        }
        Ok(exit)
    }

    /// Whether every promise was kept.
    async fn once(&self, scenario: Scenario) -> anyhow::Result<bool> {
        let seed = self.seed.unwrap_or_else(rand::random);
        eprintln!("{}: --seed {seed}", scenario.name());
        let options = Options {
            duration: Duration::from_secs(self.duration),
            ..Options::new(scenario, std::env::current_exe()?, self.nodes, seed)
        };
        let report = run::run(&options).await?;
        print(&report.to_string());
        Ok(report.is_good())
    }
}
