//! Runs the cases in turn, round after round.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use rookery_benches::{
    http::Request,
    load::{Load, Outcome},
    process::{CpuByName, spent},
};
use serde::Serialize;

use crate::{
    argon2_rate::Rate,
    cases::{Case, Kind, plan},
    cluster::Cluster,
    report::{self, Environment},
    rookery::{CatchUp, Rookery},
    servers,
    subjects::{Sample, Subject, postmaster_of},
};

/// How the bench runs.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Two rounds of one second: shows that everything works, no more.
    #[arg(long)]
    quick: bool,
    /// Length of one measured window.
    #[arg(long, value_name = "N", default_value_t = 4.0)]
    seconds: f64,
    /// Rounds; every case has one window in each.
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Numbers of connections.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "64,256")]
    connections: Vec<usize>,
    /// Measures these cases (and their baselines) alone.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    only: Vec<Kind>,
    /// Writes everything measured into a file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The rookery program; otherwise the one beside this, which cargo builds first if it
    /// runs us.
    #[arg(long, value_name = "PATH")]
    rookery: Option<PathBuf>,
    /// A running Postgres for the inserting server; otherwise one is started.
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// Threads of the load generator; by default half as many as there are cores.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// One window of one case.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measurement {
    pub(crate) requests: u64,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) server_us: f64,
    pub(crate) postgres_us: f64,
    pub(crate) generator_us: f64,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    /// Microseconds per request by name of thread.
    pub(crate) threads_us: BTreeMap<String, f64>,
    /// Microseconds per request by database or role of Postgres.
    pub(crate) databases_us: BTreeMap<String, f64>,
    /// What writes left to do.
    pub(crate) backlog: Option<Backlog>,
}

/// What creating posts left to do when the load ended, per post of the load.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Backlog {
    #[serde(flatten)]
    pub(crate) catch_up: CatchUp,
    pub(crate) server_us: f64,
    pub(crate) postgres_us: f64,
    /// Growth of the counters of `/metrics`, load and rest together.
    pub(crate) counters: BTreeMap<String, f64>,
}

/// Runs the bench and prints its report.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    let (rounds, window) = match options.quick {
        true => (2, Duration::from_secs(1)),
        false => (options.rounds.max(1), Duration::try_from_secs_f64(options.seconds)?),
    };
    let pace = Pace {
        threads: options.threads.unwrap_or(cores / 2).max(1),
        warm_up: (window / 4).clamp(Duration::from_millis(300), Duration::from_secs(2)),
        window,
    };
    let cases = plan(&options.only, &options.connections);
    let environment = Environment::read(cores, rounds, &pace);
    let mut stage = Stage::set(options, &cases)?;
    let environment = environment.with_postgres(stage.postmaster());
    println!("{environment}");

    let mut measured: Vec<(Case, Vec<Measurement>)> = cases.iter().map(|case| (*case, Vec::new())).collect();
    for round in 1..=rounds {
        for (case, measurements) in &mut measured {
            let measurement = stage.measure(*case, &pace)?;
            eprintln!(
                "round {round}/{rounds} {case:>12} {:>9.0}/s p99 {:>7.0} µs{}",
                measurement.per_second,
                measurement.p99_us,
                measurement.first_error.as_deref().map(|e| format!(" ! {e}")).unwrap_or_default(),
            );
            measurements.push(measurement);
        }
    }
    let report = report::Report::new(environment, measured);
    println!("{report}");
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report)?).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// How long and with what the load is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) threads: usize,
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
}

/// The running subjects.
struct Stage {
    bare: Option<Subject>,
    insert: Option<Subject>,
    rookery: Option<Rookery>,
    /// Dropped last: the inserting server is its client.
    _cluster: Option<Cluster>,
}

impl Stage {
    fn set(options: &Options, cases: &[Case]) -> anyhow::Result<Self> {
        let needed = |kind| cases.iter().any(|case| case.kind == kind);
        let rookery = match cases.iter().any(|case| case.kind.is_of_rookery()) {
            true => Some(Rookery::start(&rookery_program(options.rookery.as_deref())?)?),
            false => None,
        };
        let bare = match needed(Kind::Bare) {
            true => Some(Subject::start_own(&["serve-bare"], None)?),
            false => None,
        };
        let (insert, cluster) = match needed(Kind::Insert) {
            true => start_insert(options.postgres.as_deref())?,
            false => (None, None),
        };
        Ok(Self { bare, insert, rookery, _cluster: cluster })
    }

    fn postmaster(&self) -> Option<u32> {
        let rookery = self.rookery.as_ref().map(|rookery| &rookery.subject);
        [self.insert.as_ref(), rookery].into_iter().flatten().find_map(|it| it.postmaster)
    }

    fn measure(&mut self, case: Case, pace: &Pace) -> anyhow::Result<Measurement> {
        let Some(connections) = case.connections else {
            return measure_argon2(pace);
        };
        let of = |subject: &Subject| Load {
            address: subject.address,
            connections,
            threads: pace.threads,
            warm_up: pace.warm_up,
            window: pace.window,
        };
        let load = |subject: &Subject, requests: &Arc<[Request]>| of(subject).run(requests, || subject.sample());
        match case.kind {
            Kind::Bare => {
                let subject = self.bare.as_ref().expect("what is planned was started");
                let outcome = load(subject, &[Request::get(servers::BARE_PATH)].into())?;
                Ok(Measurement::of(&outcome))
            }
            Kind::Insert => {
                let subject = self.insert.as_ref().expect("what is planned was started");
                let request = |n| Request::post(servers::INSERT_PATH, &[], &rookery_benches::text::post(n));
                let requests = (0..512).map(request).collect();
                Ok(Measurement::of(&load(subject, &requests)?))
            }
            Kind::Remote => {
                let rookery = self.rookery.as_mut().expect("what is planned was started");
                let requests = rookery.requests(case.kind)?;
                // Only now, so that it costs the other cases nothing.
                let gateway = rookery.far_gateway()?;
                let load = Load { address: gateway.address, ..of(&rookery.subject) };
                let outcome = load.run(&requests, || {
                    let owner = rookery.subject.sample();
                    Sample { server: owner.server + gateway.sample().server, ..owner }
                })?;
                Ok(Measurement::of(&outcome))
            }
            kind => {
                let rookery = self.rookery.as_mut().expect("what is planned was started");
                let requests = rookery.requests(kind)?;
                if kind != Kind::Create {
                    return Ok(Measurement::of(&load(&rookery.subject, &requests)?));
                }
                let counters = rookery.counters();
                let outcome = load(&rookery.subject, &requests)?;
                rookery.created(outcome.acknowledged);
                let catch_up = rookery.catch_up()?;
                let counters = growth(&counters, &rookery.counters());
                let backlog = Backlog::of(catch_up, counters, outcome.acknowledged);
                let measurement = Measurement::of(&outcome);
                Ok(Measurement { backlog: Some(backlog), ..measurement })
            }
        }
    }
}

type InsertServer = (Option<Subject>, Option<Cluster>);

fn start_insert(postgres: Option<&str>) -> anyhow::Result<InsertServer> {
    let (url, cluster) = match postgres {
        Some(url) => (url.to_owned(), None),
        None => {
            let cluster = Cluster::start()?;
            (cluster.url(), Some(cluster))
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let postmaster = runtime.block_on(async {
        servers::create_table(&url).await?;
        postmaster_of(&url).await
    })?;
    let subject = Subject::start_own(&["serve-insert", &url], Some(postmaster))?;
    Ok((Some(subject), cluster))
}

/// The program to measure, built first when cargo runs us: an old one would not be noticed.
fn rookery_program(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let program = std::env::current_exe()?.with_file_name("rookery");
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "-p", "rookery", "--bin", "rookery"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let built = build.status()?;
        anyhow::ensure!(built.success(), "building rookery failed: {built}");
    }
    anyhow::ensure!(
        program.exists(),
        "there is no {}: build it with `cargo build --release -p rookery`, name another with \
         --rookery PATH, or measure --only bare,insert,argon2",
        program.display()
    );
    Ok(program)
}

fn measure_argon2(pace: &Pace) -> anyhow::Result<Measurement> {
    let output =
        Command::new(std::env::current_exe()?).args(["verify-passwords", &pace.window.as_millis().to_string()]).output()?;
    let rate: Rate = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("measuring argon2: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(Measurement {
        requests: rate.verified,
        per_second: rate.verified as f64 / rate.elapsed.as_secs_f64(),
        p50_us: micros(rate.p50),
        p99_us: micros(rate.p99),
        server_us: micros(rate.cpu) / rate.verified as f64,
        postgres_us: 0.0,
        generator_us: 0.0,
        errors: 0,
        first_error: None,
        threads_us: BTreeMap::new(),
        databases_us: BTreeMap::new(),
        backlog: None,
    })
}

impl Measurement {
    fn of(outcome: &Outcome<Sample>) -> Self {
        let (before, after) = (&outcome.before, &outcome.after);
        let requests = outcome.completed.max(1) as f64;
        let each = |cpu: Duration| micros(cpu) / requests;
        let each_by_name = |before: &CpuByName, after: &CpuByName| {
            let spent = spent(before, after).into_iter();
            spent.map(|(name, cpu)| (name, each(cpu))).collect()
        };
        Self {
            requests: outcome.completed,
            per_second: outcome.per_second(),
            p50_us: micros(outcome.latency.quantile(0.5)),
            p99_us: micros(outcome.latency.quantile(0.99)),
            server_us: each(after.server.saturating_sub(before.server)),
            postgres_us: each(after.postgres.saturating_sub(before.postgres)),
            generator_us: each(after.generator.saturating_sub(before.generator)),
            errors: outcome.errors.total(),
            first_error: (outcome.errors.total() > 0).then(|| outcome.errors.to_string()),
            threads_us: each_by_name(&before.threads, &after.threads),
            databases_us: each_by_name(&before.databases, &after.databases),
            backlog: None,
        }
    }
}

impl Backlog {
    fn of(catch_up: CatchUp, counters: BTreeMap<String, f64>, posts: u64) -> Self {
        let posts = posts.max(1) as f64;
        Self { server_us: micros(catch_up.server) / posts, postgres_us: micros(catch_up.postgres) / posts, counters, catch_up }
    }
}

fn growth(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let grown = after.iter().map(|(name, after)| (name.clone(), after - before.get(name).copied().unwrap_or_default()));
    grown.filter(|(_, growth)| *growth > 0.0).collect()
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
