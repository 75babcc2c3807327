//! The report: where it ran, a row per case, and what a created post costs, by part.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    process::Command,
};

use rookery_benches::{machine, process::Pid};
use serde::Serialize;

use crate::{
    bench::{Measurement, Pace},
    cases::{Case, Kind},
};

const LOCK: &str = include_str!("../../../../Cargo.lock");
const CRATES: [&str; 5] = ["axum", "ractor", "tokio", "tokio-postgres", "tantivy"];
/// Parts of a request that cost less than this are not worth a line.
const WORTH_A_LINE_US: f64 = 0.5;

/// What a figure depends on besides the code.
#[derive(Debug, Serialize)]
pub(crate) struct Environment {
    rustc: &'static str,
    profile: &'static str,
    crates: BTreeMap<&'static str, String>,
    postgres: Option<String>,
    kernel: String,
    processor: String,
    cores: usize,
    /// Over one minute, before the bench began: what the machine was busy with already.
    load_average: f64,
    generator_threads: usize,
    rounds: usize,
    window_ms: u128,
    warm_up_ms: u128,
}

impl Environment {
    pub(crate) fn read(cores: usize, rounds: usize, pace: &Pace) -> Self {
        let versions = CRATES.map(|name| (name, locked_version(LOCK, name).to_owned()));
        Self {
            rustc: env!("ROOKERY_BENCHES_RUSTC"),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" },
            crates: BTreeMap::from(versions),
            postgres: None,
            kernel: machine::kernel(),
            processor: machine::processor(),
            cores,
            load_average: machine::load_average(),
            generator_threads: pace.threads,
            rounds,
            window_ms: pace.window.as_millis(),
            warm_up_ms: pace.warm_up.as_millis(),
        }
    }

    /// Adds the version of a running Postgres.
    pub(crate) fn with_postgres(self, postmaster: Option<Pid>) -> Self {
        let version = |pid| {
            let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
            let output = Command::new(program).arg("--version").output().ok()?;
            Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        Self { postgres: postmaster.and_then(version), ..self }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} profile", self.rustc, self.profile)?;
        let crates = self.crates.iter().map(|(name, version)| format!("{name} {version}"));
        writeln!(f, "{}", crates.collect::<Vec<_>>().join(", "))?;
        writeln!(f, "{}", self.postgres.as_deref().unwrap_or("no Postgres in this run"))?;
        writeln!(f, "{} cores, {}, Linux {}", self.cores, self.processor, self.kernel)?;
        writeln!(
            f,
            "{} rounds of {} ms after {} ms of warm-up, load generator on {} thread(s), \
             load average before: {}",
            self.rounds, self.window_ms, self.warm_up_ms, self.generator_threads, self.load_average,
        )?;
        if self.profile == "debug" {
            writeln!(f, "NOT OPTIMISED: these figures say nothing; run with --release")?;
        }
        Ok(())
    }
}

/// The version of a crate in a Cargo.lock; the highest, should there be several.
fn locked_version<'a>(lock: &'a str, name: &str) -> &'a str {
    let quoted = format!("\"{name}\"");
    let mut lines = lock.lines();
    let mut found = "unknown";
    while let Some(line) = lines.next() {
        if line.strip_prefix("name = ") == Some(&quoted) {
            let version = lines.next().and_then(|line| line.strip_prefix("version = "));
            found = version.map_or(found, |version| version.trim_matches('"'));
        }
    }
    found
}

/// The middle and the ends of a few values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// `None` of no values.
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => (values[middle - 1] + values[middle]) / 2.0,
            _ => values[middle],
        };
        Some(Self { median, min, max })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Met,
    Short,
    /// There were errors: the figures count for nothing.
    Invalid,
    /// There is no target.
    #[serde(rename = "none")]
    NoTarget,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Met => "met",
            Verdict::Short => "SHORT",
            Verdict::Invalid => "INVALID",
            Verdict::NoTarget => "",
        })
    }
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    case: Case,
    per_second: Spread,
    ratio: Option<Spread>,
    target: Option<f64>,
    verdict: Verdict,
    rounds: Vec<Measurement>,
}

impl Row {
    fn new(case: Case, rounds: &[Measurement], baseline: Option<&[Measurement]>) -> Self {
        // Round by round: what disturbed the machine then disturbed both.
        let ratio = baseline.and_then(|baseline| {
            let pairs = rounds.iter().zip(baseline);
            Spread::of(pairs.map(|(it, base)| it.per_second / base.per_second))
        });
        let all = || rounds.iter().chain(baseline.unwrap_or_default());
        let target = case.target();
        let verdict = match (target, ratio) {
            _ if all().any(|it| it.errors > 0 || it.requests == 0) => Verdict::Invalid,
            (Some(target), Some(ratio)) if ratio.median >= target => Verdict::Met,
            (Some(_), Some(_)) => Verdict::Short,
            _ => Verdict::NoTarget,
        };
        Self {
            case,
            per_second: Spread::of(rounds.iter().map(|it| it.per_second)).expect("a case has a round"),
            ratio,
            target,
            verdict,
            rounds: rounds.to_vec(),
        }
    }

    fn median(&self, value: impl Fn(&Measurement) -> f64) -> f64 {
        Spread::of(self.rounds.iter().map(value)).expect("a case has a round").median
    }

    fn errors(&self) -> impl Iterator<Item = &str> {
        self.rounds.iter().filter_map(|it| it.first_error.as_deref())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { median, min, max } = self.per_second;
        let spread = format!("{min:.0}–{max:.0}");
        write!(f, "{:<13}{median:>9.0} {spread:>16}", self.case)?;
        match self.ratio {
            Some(Spread { median, min, max }) => {
                let spread = format!("{min:.2}–{max:.2}");
                write!(f, "{median:>8.2} {spread:>11}")?;
            }
            None => write!(f, "{:>8} {:>11}", "", "")?,
        }
        let target = self.target.map(|it| format!("{it:.2}")).unwrap_or_default();
        write!(f, "{target:>7} {:<8}", self.verdict)?;
        write!(
            f,
            "{:>9.0}{:>9.0}{:>12.1}{:>13.1}{:>11.1}",
            self.median(|it| it.p50_us),
            self.median(|it| it.p99_us),
            self.median(|it| it.server_us),
            self.median(|it| it.postgres_us),
            self.median(|it| it.generator_us),
        )
    }
}

/// Everything measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    environment: Environment,
    cases: Vec<Row>,
}

impl Report {
    pub(crate) fn new(environment: Environment, measured: Vec<(Case, Vec<Measurement>)>) -> Self {
        let find = |case: Case| {
            let found = measured.iter().find(|(other, _)| *other == case);
            found.map(|(_, rounds)| rounds.as_slice())
        };
        let row = |(case, rounds): &(Case, Vec<Measurement>)| Row::new(*case, rounds, case.baseline().and_then(find));
        let cases = measured.iter().map(row).collect();
        Self { environment, cases }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<13}{:>9} {:>16}{:>8} {:>11}{:>7} {:<8}{:>9}{:>9}{:>12}{:>13}{:>11}",
            "case",
            "req/s",
            "min–max",
            "ratio",
            "min–max",
            "target",
            "verdict",
            "p50 µs",
            "p99 µs",
            "server µs",
            "Postgres µs",
            "client µs",
        )?;
        for row in &self.cases {
            writeln!(f, "{row}")?;
        }
        writeln!(
            f,
            "Medians of the rounds; ratio to the baseline of the same round. The last three: CPU \
             time per request of the server, of its Postgres, and of the load generator."
        )?;
        for row in &self.cases {
            for error in row.errors() {
                writeln!(f, "! {}: {error}", row.case)?;
            }
        }
        for row in self.cases.iter().filter(|row| row.case.kind == Kind::Create) {
            write_parts(f, row)?;
        }
        Ok(())
    }
}

/// What a created post costs, by thread and database, and what is left to do at the end.
fn write_parts(f: &mut fmt::Formatter<'_>, row: &Row) -> fmt::Result {
    writeln!(f, "\n{}: CPU µs per post during the load", row.case)?;
    write_names(f, row, "thread", |it| &it.threads_us)?;
    write_names(f, row, "Postgres", |it| &it.databases_us)?;
    let backlogs = || row.rounds.iter().filter_map(|it| it.backlog.as_ref());
    let median = |values: Vec<f64>| Spread::of(values).map_or(f64::NAN, |it| it.median);
    writeln!(
        f,
        "  after the load (indexing and projections that were left): server {:.1}, Postgres {:.1}; \
         idle after {:.0} ms",
        median(backlogs().map(|it| it.server_us).collect()),
        median(backlogs().map(|it| it.postgres_us).collect()),
        median(backlogs().map(|it| it.catch_up.idle_after_ms as f64).collect()),
    )?;
    let searchable: Option<Vec<f64>> = backlogs().map(|it| it.catch_up.searchable_after_ms.map(|ms| ms as f64)).collect();
    match searchable {
        Some(ms) => writeln!(f, "  every post found after {:.0} ms", median(ms)),
        None => writeln!(f, "  ! search did not find every post in time"),
    }
}

fn write_names(
    f: &mut fmt::Formatter<'_>,
    row: &Row,
    what: &str,
    names_of: impl Fn(&Measurement) -> &BTreeMap<String, f64>,
) -> fmt::Result {
    let names: BTreeSet<&String> = row.rounds.iter().flat_map(|it| names_of(it).keys()).collect();
    let of = |name: &str| row.median(|it| names_of(it).get(name).copied().unwrap_or_default());
    let mut parts: Vec<(&str, f64)> = names.into_iter().map(|name| (name.as_str(), of(name))).collect();
    parts.retain(|(_, us)| *us >= WORTH_A_LINE_US);
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (name, us) in parts {
        writeln!(f, "  {what:<9}{name:<36}{us:>8.1}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(per_second: f64, errors: u64) -> Measurement {
        Measurement {
            requests: 100,
            per_second,
            p50_us: 1.0,
            p99_us: 2.0,
            server_us: 3.0,
            postgres_us: 4.0,
            generator_us: 5.0,
            errors,
            first_error: None,
            threads_us: BTreeMap::new(),
            databases_us: BTreeMap::new(),
            backlog: None,
        }
    }

    const GET: Case = Case { kind: Kind::Get, connections: Some(64) };

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let spread = Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!(spread, Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_ratio_compares_within_a_round() {
        let rookery = [measured(60.0, 0), measured(30.0, 0)];
        let bare = [measured(100.0, 0), measured(50.0, 0)];
        let row = Row::new(GET, &rookery, Some(&bare));
        assert_eq!(row.ratio, Some(Spread { median: 0.6, min: 0.6, max: 0.6 }));
        assert_eq!(row.verdict, Verdict::Met);
    }

    #[test]
    fn less_than_the_target_is_short() {
        let row = Row::new(GET, &[measured(59.0, 0)], Some(&[measured(100.0, 0)]));
        assert_eq!(row.verdict, Verdict::Short);
    }

    #[test]
    fn one_error_makes_a_case_and_what_leans_on_it_invalid() {
        let (fast, failing) = ([measured(100.0, 0)], [measured(100.0, 1)]);
        assert_eq!(Row::new(GET, &failing, Some(&fast)).verdict, Verdict::Invalid);
        assert_eq!(Row::new(GET, &fast, Some(&failing)).verdict, Verdict::Invalid);
    }

    #[test]
    fn versions_come_from_the_lock_file() {
        let lock = "[[package]]\nname = \"tokio\"\nversion = \"1.2.3\"\n";
        assert_eq!(locked_version(lock, "tokio"), "1.2.3");
        assert_eq!(locked_version(lock, "tok"), "unknown");
        assert!(CRATES.iter().all(|name| locked_version(LOCK, name) != "unknown"));
    }
}
