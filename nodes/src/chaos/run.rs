//! One run: a cluster, clients, something that goes wrong, and what is true afterwards.

use std::{
    fmt,
    path::PathBuf,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{
    audit::{Check, audit},
    cluster::{self, Cluster},
    plan::Shape,
    probes::{Pause, Probes},
    scenario::Scenario,
    workload::{self, Workload},
};

/// Writes before anything goes wrong.
const WARM: u64 = 60;
const WARM_PATIENCE: Duration = Duration::from_secs(120);

/// What is asked of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// What goes wrong.
    pub scenario: Scenario,
    /// The `rookery` to run.
    pub program: PathBuf,
    /// How many nodes.
    pub nodes: u16,
    /// Decides what clients want.
    pub seed: u64,
    /// It goes wrong again and again for so long, and once at least.
    pub duration: Duration,
    /// What the nodes log is kept also if nothing is wrong.
    pub keep_log: bool,
    /// How many clients, users, posts.
    pub shape: Shape,
    /// How long a client waits for an answer.
    pub answer_max: Duration,
}

impl Options {
    /// A run of a scenario that strikes once.
    pub fn new(scenario: Scenario, program: impl Into<PathBuf>, nodes: u16, seed: u64) -> Self {
        // Who counts every request that fails waits as a patient client does.
        let answer_max = Duration::from_secs(if scenario.fails_nothing() { 10 } else { 3 });
        let shape = Shape::default();
        Self { scenario, program: program.into(), nodes, seed, duration: Duration::ZERO, keep_log: false, shape, answer_max }
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Report {
    scenario: Scenario,
    nodes: u16,
    seed: u64,
    strikes: usize,
    took: Duration,
    operations: usize,
    open: usize,
    refused: u64,
    failed: u64,
    failovers: u64,
    worst_pause: Duration,
    worst_of_a_shard: Pause,
    told: Vec<String>,
    log: Option<PathBuf>,
    /// The promises, and what breaks them.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether every promise is kept.
    pub fn is_good(&self) -> bool {
        self.checks.iter().all(Check::is_kept)
    }
}

/// Runs a scenario on a throw-away cluster. What its nodes have logged is kept if anything is wrong.
///
/// # Errors
/// When it could not be run to its end. That promises are broken is no error but the report.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let began = Instant::now();
    let Options { scenario, seed, .. } = *options;
    let of = scenario.cluster(cluster::Options::new(&options.program, options.nodes));
    let mut cluster = Cluster::start(of).await?;
    let outcome = run_on(&mut cluster, options, began).await;
    let log = match &outcome {
        Ok(report) if report.is_good() && !options.keep_log => None,
        _ => Some(cluster.keep_log(&format!("rookery-chaos-{}-{seed}.log", scenario.name()))?),
    };
    match outcome {
        Ok(report) => {
            cluster.stop().await?;
            Ok(Report { log, ..report })
        }
        Err(error) => {
            let log = log.unwrap_or_default();
            Err(error.context(format!("{} --seed {seed}; the nodes' log is kept in {}", scenario.name(), log.display())))
        }
    }
}

async fn run_on(cluster: &mut Cluster, options: &Options, began: Instant) -> anyhow::Result<Report> {
    let Options { scenario, nodes, seed, duration, shape, answer_max, .. } = *options;
    let work = Workload::start(workload::Options { seed, shape, answer_max }, cluster.gateways().clone()).await?;
    work.progress(WARM, WARM_PATIENCE).await?;
    // Before, whoever is struck may own nothing.
    cluster.until("the balance", async |cluster| cluster.is_balanced(nodes).await).await?;
    let probes = Probes::start(cluster.gateways()).await?;
    let (struck, mut strikes, mut told) = (Instant::now(), 0, Vec::new());
    while strikes == 0 || struck.elapsed() < duration {
        told.extend(scenario.strike(cluster, &work, strikes).await?);
        strikes += 1;
    }
    let worst_of_a_shard = probes.worst_since(struck, scenario.cuts_off());
    probes.stop().await?;
    let finished = work.finish().await?;
    let mut checks = audit(&finished.history, cluster.gateways(), &cluster.databases()?).await?;
    let counters = &finished.counters;
    let failed = counters.failed();
    if scenario.fails_nothing() {
        let wrong = (failed > 0).then(|| format!("{failed} requests failed:\n{}", counters.failures().join("\n")));
        checks.push(Check::new("no request fails", wrong));
    }
    let (operations, open) = finished.history.count();
    Ok(Report {
        scenario,
        nodes,
        seed,
        strikes,
        took: began.elapsed(),
        operations,
        open,
        refused: counters.refused.load(Ordering::Relaxed),
        failed,
        failovers: counters.failovers.load(Ordering::Relaxed),
        worst_pause: Duration::from_nanos(finished.history.worst_pause_ns()),
        worst_of_a_shard,
        told,
        log: None,
        checks,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, nodes, seed, strikes, .. } = self;
        let several = |count: usize| if count == 1 { "" } else { "s" };
        writeln!(
            f,
            "{}: {nodes} node{}, {strikes} strike{}, {:.0} s, --seed {seed}",
            scenario.name(),
            several(usize::from(*nodes)),
            several(*strikes),
            self.took.as_secs_f64()
        )?;
        writeln!(
            f,
            "{} operations, {} of them open; {} requests refused, {} failed, {} sent to another gateway",
            self.operations, self.open, self.refused, self.failed, self.failovers
        )?;
        let worst = self.worst_pause.as_millis();
        writeln!(f, "worst pause between two acknowledged writes: {worst} ms, of one shard: {}", self.worst_of_a_shard)?;
        for told in &self.told {
            writeln!(f, "{told}")?;
        }
        for check in &self.checks {
            writeln!(f, "  {}  {}", if check.is_kept() { "ok    " } else { "BROKEN" }, check.promise)?;
            for wrong in &check.wrong {
                writeln!(f, "          {}", wrong.trim_end().replace('\n', "\n          "))?;
            }
        }
        match &self.log {
            Some(log) => writeln!(f, "the nodes' log is kept in {}", log.display()),
            None => Ok(()),
        }
    }
}
