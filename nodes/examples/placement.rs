//! How placement scales, by simulation: the figures of docs/placement.md.
//!
//! `cargo run --release --example placement`

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rookery::placement::Placement;
use rookery_actors::ids::ShardId;

const SIZES: [(usize, u16); 8] = [(2, 256), (3, 256), (5, 256), (10, 256), (30, 256), (100, 1_024), (300, 4_096), (1_000, 4_096)];
/// Members that come, one after the other.
const JOINS: usize = 10;

fn main() {
    println!("| Members | Shards | Fullest / mean | Moved per join / ideal | per leave / ideal | Decision, ms |");
    println!("|---|---|---|---|---|---|");
    for (members, shards) in SIZES {
        let figures = simulate(members, shards);
        println!(
            "| {members} | {shards} | {:.2} | {:.2} | {:.2} | {:.1} |",
            figures.fullest,
            figures.per_join,
            figures.per_leave,
            figures.decision.as_secs_f64() * 1e3
        );
    }
}

struct Figures {
    fullest: f64,
    per_join: f64,
    per_leave: f64,
    decision: Duration,
}

fn simulate(members: usize, shards: u16) -> Figures {
    let name = |n: usize| format!("node-{n}");
    let place = |range: std::ops::Range<usize>| Placement::new(range.map(name), shards);
    let (mut joined, mut left, mut most) = (0, 0, 0);
    let mut decision = Duration::ZERO;
    for n in 0..JOINS {
        let before = place(n..n + members);
        let began = Instant::now();
        let after = place(n..n + members + 1);
        decision += began.elapsed();
        joined += moved(&before, &after, shards);
        // The first one leaves those that were just placed.
        left += moved(&after, &place(n + 1..n + members + 1), shards);
        most = most.max(fullest(&before, shards));
    }
    let share = f64::from(shards) / (members + 1) as f64 * JOINS as f64;
    Figures {
        fullest: most as f64 / (f64::from(shards) / members as f64),
        per_join: joined as f64 / share,
        per_leave: left as f64 / share,
        decision: decision / JOINS as u32,
    }
}

fn moved(before: &Placement, after: &Placement, shards: u16) -> usize {
    (0..shards).map(ShardId).filter(|shard| before.owner(*shard) != after.owner(*shard)).count()
}

/// The shards of the fullest member.
fn fullest(placement: &Placement, shards: u16) -> usize {
    let mut loads = HashMap::new();
    for shard in (0..shards).map(ShardId) {
        *loads.entry(placement.owner(shard)).or_insert(0) += 1;
    }
    loads.into_values().max().unwrap_or(0)
}
