//! Asks what is meant to hurt, and says what hurt most.

use std::{collections::BTreeMap, time::Duration};

use rookery_benches::{
    histogram::Histogram,
    hostile::{Family, Hostile},
    process,
    search::engine::Engine,
};

use crate::queries::Vocabulary;

/// Words that the searches are made of.
const WORDS: usize = 500;

/// CPU time of the searches of a family.
#[derive(Default)]
struct Cost {
    all: Histogram,
    sum: Duration,
    most: Duration,
}

impl Cost {
    fn add(&mut self, cpu: Duration) {
        self.all.record(cpu);
        self.sum += cpu;
        self.most = self.most.max(cpu);
    }
}

/// Asks so many hostile searches and prints what they cost, by family.
pub(crate) fn run(engine: &Engine, vocabulary: &Vocabulary, searches: usize) -> anyhow::Result<()> {
    let hostile = Hostile::of(vocabulary.most_frequent(WORDS));
    let mut costs = BTreeMap::<Family, Cost>::new();
    let mut all = Cost::default();
    let mut worst = String::new();
    for (family, ask) in hostile.searches(searches) {
        let question = engine.prepare(&ask)?;
        let before = process::own_cpu();
        engine.search(&question)?;
        let cpu = process::own_cpu() - before;
        if cpu > all.most {
            worst = format!("{family:?}, limit {}, {} first: {}", ask.limit, if ask.new { "new" } else { "best" }, ask.text);
        }
        costs.entry(family).or_default().add(cpu);
        all.add(cpu);
    }
    println!("| CPU of a hostile search | searches | mean ms | p50 ms | p99 ms | max ms |\n|---|--:|--:|--:|--:|--:|");
    for (family, cost) in &costs {
        print(&format!("{family:?}").to_lowercase(), cost);
    }
    print("all", &all);
    println!("\nThe worst: {worst}");
    Ok(())
}

fn print(name: &str, cost: &Cost) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "| {name} | {} | {:.2} | {:.2} | {:.2} | {:.2} |",
        cost.all.len(),
        ms(cost.sum) / cost.all.len().max(1) as f64,
        ms(cost.all.quantile(0.5)),
        ms(cost.all.quantile(0.99)),
        ms(cost.most)
    );
}
