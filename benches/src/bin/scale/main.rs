//! How much more several nodes carry than one, each held to the same small share of the processor.
//!
//! `cargo run --release -p rookery-benches --bin scale` starts clusters of 1, 2 and 4 nodes (`rookery up --nodes N`), puts
//! each node into a cgroup of its own, and drives all gateways at once. Postgres and the load are outside of the quotas:
//! what is measured is what nodes add. It needs root, for the cgroups, and leaves nothing behind.

mod plot;

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use rookery_benches::{
    cluster::{Cluster, Kind},
    process,
};

/// Measures what 1, 2 and 4 nodes carry.
#[derive(Parser)]
#[command(name = "scale", version)]
struct Options {
    /// The `rookery` to measure; the release build beside this program unless told.
    #[arg(long, value_name = "FILE")]
    rookery: Option<PathBuf>,
    /// Sizes of the clusters.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4])]
    nodes: Vec<usize>,
    /// What is asked.
    #[arg(long, value_delimiter = ',', default_values = ["mix", "create", "get"])]
    kinds: Vec<Kind>,
    /// The share of one core that each node gets, in percent.
    #[arg(long, default_value_t = 15)]
    quota_percent: u32,
    /// Connections to each gateway.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// How long each is measured, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Rounds; the sizes take turns in each, and the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Where to draw the result.
    #[arg(long, value_name = "SVG")]
    plot: Option<PathBuf>,
}

/// What one size of cluster carried.
struct Row {
    kind: Kind,
    nodes: usize,
    per_second: Vec<f64>,
    p99_ms: Vec<f64>,
    errors: u64,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let rookery = process::rookery(options.rookery.as_deref())?;
    let mut rows: Vec<Row> = Vec::new();
    for round in 1..=options.rounds {
        for &nodes in &options.nodes {
            let cluster = Cluster::start(&rookery, nodes, options.quota_percent)?;
            for &kind in &options.kinds {
                let window = Duration::from_secs(options.seconds);
                let carried = cluster.carry(kind, options.connections, window)?;
                eprintln!("round {round}: {nodes} nodes, {kind:?}: {:.0}/s", carried.per_second);
                let row = match rows.iter_mut().find(|row| row.kind == kind && row.nodes == nodes) {
                    Some(row) => row,
                    None => {
                        rows.push(Row { kind, nodes, per_second: Vec::new(), p99_ms: Vec::new(), errors: 0 });
                        rows.last_mut().expect("it was just added")
                    }
                };
                row.per_second.push(carried.per_second);
                row.p99_ms.push(carried.p99.as_secs_f64() * 1e3);
                row.errors += carried.errors;
            }
        }
    }
    report(&options, &rows);
    if let Some(path) = &options.plot {
        let series: Vec<_> = options.kinds.iter().map(|kind| (*kind, ratios(&rows, *kind))).collect();
        std::fs::write(path, plot::svg(&series, options.quota_percent))?;
    }
    Ok(())
}

/// What each size carries, in times of what the smallest does.
fn ratios(rows: &[Row], kind: Kind) -> Vec<(usize, f64)> {
    let of: Vec<&Row> = rows.iter().filter(|row| row.kind == kind).collect();
    let Some(first) = of.first() else { return Vec::new() };
    let one = median(&first.per_second) / first.nodes as f64;
    of.iter().map(|row| (row.nodes, median(&row.per_second) / one)).collect()
}

fn report(options: &Options, rows: &[Row]) {
    println!(
        "each node: {} % of one core; {} connections to each gateway; {} s, median of {} rounds",
        options.quota_percent, options.connections, options.seconds, options.rounds
    );
    println!("{:<8}{:>6}{:>12}{:>10}{:>10}{:>8}", "what", "nodes", "requests/s", "times", "p99 ms", "errors");
    for row in rows {
        let times =
            ratios(rows, row.kind).into_iter().find(|(nodes, _)| *nodes == row.nodes).map_or(f64::NAN, |(_, times)| times);
        println!(
            "{:<8}{:>6}{:>12.0}{:>10.2}{:>10.1}{:>8}",
            format!("{:?}", row.kind).to_lowercase(),
            row.nodes,
            median(&row.per_second),
            times,
            median(&row.p99_ms),
            row.errors
        );
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(nodes: usize, per_second: f64) -> Row {
        Row { kind: Kind::Get, nodes, per_second: vec![per_second], p99_ms: vec![1.0], errors: 0 }
    }

    #[test]
    fn sizes_are_compared_with_one_node() {
        let rows = [row(1, 100.0), row(2, 190.0), row(4, 350.0)];
        assert_eq!(ratios(&rows, Kind::Get), [(1, 1.0), (2, 1.9), (4, 3.5)]);
    }

    #[test]
    fn the_median_is_no_outlier() {
        assert!((median(&[9.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
    }
}
