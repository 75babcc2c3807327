//! What it costs to index and to find.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jiff::Timestamp;
use rookery_actors::search::index::{Document, Kind, Partition, Position, Query, Search, Settings};
use uuid::Uuid;

const WORDS: [&str; 24] = [
    "engine", "analysis", "weaving", "pattern", "loom", "number", "machine", "thread", "flower", "algebra", "theory", "bird",
    "nest", "rook", "colony", "winter", "field", "branch", "signal", "letter", "garden", "river", "stone", "light",
];

/// Texts that repeat, without randomness: the same documents in every run.
fn document(n: u64) -> Document {
    let word = |k: u64| WORDS[(n.wrapping_mul(2_654_435_761).wrapping_add(k * k * 7) % WORDS.len() as u64) as usize];
    let body: Vec<String> =
        (0..80).map(|k| format!("{}{}", word(k), if k % 9 == 0 { (n % 97).to_string() } else { String::new() })).collect();
    Document {
        kind: Kind::Post,
        id: Uuid::from_u128(u128::from(n) + 1),
        version: 1,
        author: Some(Uuid::from_u128(u128::from(n % 64))),
        tags: vec!["engines".to_owned()],
        title: Some(format!("{} {} {}", word(1), word(2), n)),
        body: body.join(" "),
        created_at: Timestamp::from_second(1_700_000_000 + n as i64).expect("a time"),
        post_id: None,
        deleted: false,
    }
}

fn filled(dir: &std::path::Path, documents: u64) -> Partition {
    let mut partition = Partition::open(dir, Settings::default()).expect("the folder is new");
    for from in (0..documents).step_by(500) {
        let batch: Vec<_> = (from..documents.min(from + 500)).map(|n| (n + 1, document(n))).collect();
        partition.apply(&batch).expect("it is applied");
        partition.commit(Position { applied_seq: from + 500, ..Position::default() }).expect("it is committed");
    }
    partition
}

fn search(c: &mut Criterion) {
    let mut group = c.benchmark_group("index");
    group.sample_size(10).throughput(Throughput::Elements(500));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut partition = Partition::open(folder.path(), Settings::default()).expect("the folder is new");
    let mut next = 0;
    group.bench_function("apply and commit 500 documents", |b| {
        b.iter(|| {
            let batch: Vec<_> = (next..next + 500).map(|n| (n + 1, document(n))).collect();
            next += 500;
            partition.apply(&batch).expect("it is applied");
            partition.commit(Position { applied_seq: next, ..Position::default() }).expect("it is committed");
        });
    });
    group.finish();

    let folder = tempfile::tempdir().expect("a temporary folder");
    let partition = filled(folder.path(), 20_000);
    let mut group = c.benchmark_group("query");
    for (name, text) in [
        ("one word", "weaving"),
        ("three words", "weaving algebra river"),
        ("a typo", "weavign"),
        ("a phrase", "\"rook colony\""),
    ] {
        let query = Search { query: Query::parse(text).expect("a query"), ..Search::default() };
        group.bench_function(name, |b| b.iter(|| partition.search(&query).expect("an answer")));
    }
    group.finish();
}

criterion_group!(benches, search);
criterion_main!(benches);
