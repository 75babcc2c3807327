//! `rookery chaos`: what can be broken, and proof that the promises hold while it is.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::Exit;
use crate::{
    chaos::{
        run::{self, Options},
        scenario::{Need, Scenario, UnknownScenario},
        soak,
    },
    terminal::{self, answer_line, note_line},
};

const EXAMPLES: &str = "\
Examples:
  rookery chaos list
  rookery chaos run kill
  rookery chaos run commit-cut --duration 600
  rookery chaos run all --nodes 3
  rookery chaos run sleep --seed 17
  rookery chaos soak --minutes 60

Exit codes: 0 every promise is kept, 1 one is broken or the run could not be ended, 2 wrong usage.";

/// What to do.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Chaos {
    /// The scenarios, what they need, and whether that is here.
    List,
    /// Run one: clients work on a new cluster in a temporary folder while it goes wrong; then everything is checked.
    Run(Run),
    /// Run one after the other, drawn at random from those that are possible here, each on a new cluster.
    Soak(Soak),
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
    /// Keep what the nodes log, also if nothing is wrong.
    #[arg(long)]
    keep_log: bool,
}

/// Many runs.
#[derive(Debug, Args)]
pub(super) struct Soak {
    /// No new run begins after so many minutes.
    #[arg(long, default_value_t = 30, value_name = "N")]
    minutes: u64,
    /// Decides what is run and what the clients want [default: a random one, which is printed].
    #[arg(long)]
    seed: Option<u64>,
    /// Nodes of the clusters.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4))]
    nodes: u16,
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
                terminal::answer(list());
                Ok(Exit::Done)
            }
            Self::Run(run) => run.run().await,
            Self::Soak(soak) => soak.run().await,
        }
    }
}

fn list() -> String {
    let entry = |scenario: &Scenario| {
        let missing = scenario.missing(u16::MAX);
        let need = |need: &Need| {
            let here = if missing.contains(need) { ", which is not here" } else { "" };
            format!("{:22}needs {need}{here}\n", "")
        };
        let needs: String = scenario.needs().iter().map(need).collect();
        format!("{:<22}{}\n{needs}", scenario.name(), scenario.about())
    };
    Scenario::ALL.iter().map(entry).collect()
}

/// Whether every promise was kept.
async fn once(options: &Options) -> anyhow::Result<bool> {
    let (scenario, nodes, seed) = (options.scenario.name(), options.nodes, options.seed);
    note_line!("rookery chaos run {scenario} --nodes {nodes} --seed {seed}");
    let report = run::run(options).await?;
    terminal::answer(&report);
    Ok(report.is_good())
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
                note_line!("{}: skipped, it needs {}", scenario.name(), missing.join(" and "));
                if matches!(self.which, Which::One(_)) {
                    exit = Exit::Failed;
                }
                continue;
            }
            let options = Options {
                duration: Duration::from_secs(self.duration),
                keep_log: self.keep_log,
                ..Options::new(scenario, std::env::current_exe()?, self.nodes, self.seed.unwrap_or_else(rand::random))
            };
            if !once(&options).await? {
                exit = Exit::Failed;
            }
        }
        Ok(exit)
    }
}

impl Soak {
    async fn run(self) -> anyhow::Result<Exit> {
        let seed = self.seed.unwrap_or_else(rand::random);
        note_line!("rookery chaos soak --minutes {} --nodes {} --seed {seed}", self.minutes, self.nodes);
        let possible: Vec<Scenario> =
            Scenario::ALL.iter().copied().filter(|scenario| scenario.missing(self.nodes).is_empty()).collect();
        let (began, program, mut broken) = (Instant::now(), std::env::current_exe()?, Vec::new());
        let mut number = 0;
        while began.elapsed() < Duration::from_secs(60 * self.minutes) {
            let (scenario, seed) = soak::draw(seed, number, &possible);
            number += 1;
            let kept = once(&Options::new(scenario, &program, self.nodes, seed)).await;
            let kept = kept.inspect_err(|error| note_line!("{error:#}")).unwrap_or(false);
            if !kept {
                broken.push(format!("rookery chaos run {} --nodes {} --seed {seed}", scenario.name(), self.nodes));
            }
        }
        answer_line!("{number} runs, {} of them broken", broken.len());
        broken.iter().for_each(|run| answer_line!("  {run}"));
        Ok(if broken.is_empty() { Exit::Done } else { Exit::Failed })
    }
}
