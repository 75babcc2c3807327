//! What becomes of a node of which ten times too much is asked.
//!
//! `cargo run --release -p rookery-benches --bin overload` finds out how much one node carries at best for half a minute, with
//! clients that wait for their answers, and then lets ten times as many requests fall due for a minute, whatever becomes of them. The
//! node is held to a share of one core by a cgroup of its own, so that the generator has enough left to outdo it; the rate
//! limits are off, for all clients come from one address. It needs root, for the cgroup.
//!
//! It fails if the node answers less than 80 % of its best, grows beyond its bound, or refuses without saying when to
//! come back.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use rookery_benches::{
    cluster::{Cluster, Kind},
    flood::{Aftermath, Flood},
    process,
};

const GOODPUT_MIN: f64 = 0.8;
/// How long each number of connections is tried.
const FIND_WITHIN: Duration = Duration::from_secs(5);

/// Asks one node for ten times what it can carry.
#[derive(Parser)]
#[command(name = "overload", version)]
struct Options {
    /// The `rookery` to measure; the release build beside this program unless told.
    #[arg(long, value_name = "FILE")]
    rookery: Option<PathBuf>,
    /// What is asked.
    #[arg(long, value_delimiter = ',', default_values = ["create", "mix"])]
    kinds: Vec<Kind>,
    /// The share of one core that the node gets, in percent.
    #[arg(long, default_value_t = 25)]
    quota_percent: u32,
    /// Times what it carries at best.
    #[arg(long, default_value_t = 10.0)]
    times: f64,
    /// Connections of the flood.
    #[arg(long, default_value_t = 4_096)]
    connections: usize,
    /// How long the flood lasts, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How much the node may grow meanwhile, in MiB.
    #[arg(long, default_value_t = 512)]
    growth_max_mib: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let rookery = process::rookery(options.rookery.as_deref())?;
    println!(
        "one node, {} % of one core; {} times its best for {} s over {} connections",
        options.quota_percent, options.times, options.seconds, options.connections
    );
    let mut kept = true;
    for &kind in &options.kinds {
        kept &= overload(&options, &rookery, kind)?;
    }
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn overload(options: &Options, rookery: &std::path::Path, kind: Kind) -> anyhow::Result<bool> {
    let window = Duration::from_secs(options.seconds);
    let cluster = Cluster::start(rookery, 1, options.quota_percent)?;
    let mut best: (f64, usize) = (0.0, 0);
    for connections in [64, 256, 1_024] {
        let carried = cluster.carry(kind, connections, FIND_WITHIN)?;
        eprintln!("{kind:?}: {:.0}/s at {connections} connections, p99 {:.0?}", carried.per_second, carried.p99);
        best = if carried.per_second > best.0 { (carried.per_second, connections) } else { best };
    }
    // A node that has just begun owes its index merges, and looks better than it is for long.
    let connections = best.1;
    let best = cluster.carry(kind, connections, window / 2)?.per_second;
    let node = cluster.pids()[0];
    let before = process::resident_bytes(node);
    let mut peak = before;
    let flood =
        Flood { address: cluster.gateways()[0], per_second: best * options.times, connections: options.connections, window };
    let after = flood.run(&cluster.requests(kind), || peak = peak.max(process::resident_bytes(node)))?;
    let kept = report(options, kind, best, window, &after, (before, peak));
    // Its index has grown meanwhile, and merges take more of what it has.
    let again = cluster.carry(kind, connections, window / 2)?.per_second;
    println!("  afterwards  {again:>9.0}/s at best");
    Ok(kept)
}

/// Prints what happened; whether everything was kept that should be.
fn report(options: &Options, kind: Kind, best: f64, window: Duration, after: &Aftermath, memory: (u64, u64)) -> bool {
    let each_second = |count: u64| count as f64 / window.as_secs_f64();
    let goodput = each_second(after.succeeded) / best;
    let grown_mib = memory.1.saturating_sub(memory.0) >> 20;
    println!("{kind:?}: best {best:.0}/s");
    println!("  fell due    {:>9.0}/s, of them {:.0}/s sent", best * options.times, each_second(after.sent));
    println!(
        "  answered    {:>9.0}/s, {:.0} % of the best (at least {:.0} %); p50 {:.0?}, p99 {:.0?}",
        each_second(after.succeeded),
        goodput * 100.0,
        GOODPUT_MIN * 100.0,
        after.latency.quantile(0.5),
        after.latency.quantile(0.99)
    );
    for (status, count) in &after.refused {
        println!("  refused {status} {:>9.0}/s", each_second(*count));
    }
    println!("  rude        {:>9} refusals that are no 429 or 503 with retry-after; {} broken", after.rude, after.broken);
    if let Some(first) = &after.first_rude {
        println!("  the first: {first}");
    }
    println!(
        "  memory      {:>9} MiB before, {} MiB more at most (at most {})",
        memory.0 >> 20,
        grown_mib,
        options.growth_max_mib
    );
    goodput >= GOODPUT_MIN && after.rude == 0 && after.broken == 0 && grown_mib <= options.growth_max_mib
}
