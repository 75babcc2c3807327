//! How soon what was written can be found, and whether that depends on how much there is.
//!
//! `cargo run --release -p rookery-benches --bin fresh` starts a Rookery (`rookery up`), writes to it at a steady rate, posts
//! and comments in turn, and searches for some of them from their acknowledgement on until they are found. It does so twice on
//! the same server: with next to nothing in it, which is the baseline, and with tens of thousands of documents.

mod server;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use rookery_benches::{
    histogram::Histogram,
    http::{Request, SERIAL},
    process, text,
};
use serde_json::json;
use tokio::task::JoinSet;

use self::server::Server;

/// Between two searches for the same thing: what is measured is that much too long at most.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What is not found by then counts as lost.
const FOUND_WITHIN: Duration = Duration::from_secs(60);
/// Of the indexes, after documents were loaded.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(300);
/// Requests at once while documents are loaded.
const LOADERS: usize = 16;
/// Posts that get comments.
const THREADS: usize = 256;

/// Measures the time from an acknowledged write to the search that finds it.
#[derive(Parser)]
#[command(name = "fresh", version)]
struct Options {
    /// The `rookery` to measure; the release build beside this program unless told.
    #[arg(long, value_name = "FILE")]
    rookery: Option<PathBuf>,
    /// Documents that are there the second time.
    #[arg(long, default_value_t = 50_000)]
    documents: u64,
    /// Writes a second.
    #[arg(long, default_value_t = 40)]
    rate: u32,
    /// Of so many writes, one is looked for.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    one_in: u64,
    /// How long each is measured, in seconds.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let rookery = process::rookery(options.rookery.as_deref())?;
    let server = Server::start(&rookery).await?;
    let mut bench = Bench { server, written: AtomicU64::new(0), acknowledged: AtomicU64::new(0), threads: Vec::new() };
    while bench.threads.len() < THREADS {
        let post = bench.write(Kind::Post).await?.id;
        bench.threads.push(post);
    }
    let bench = Arc::new(bench);
    println!("{} writes/s for {} s, posts and comments in turn; looked for every {LOOK_EVERY:?}", options.rate, options.seconds);
    println!("{:<24}{:>10}{:>12}{:>12}{:>12}{:>8}", "documents", "looked for", "median ms", "p99 ms", "longest ms", "lost");
    measure(&bench, &options, "baseline").await?;
    let began = Instant::now();
    load(&bench, options.documents).await?;
    let loaded = began.elapsed();
    caught_up(&bench).await?;
    eprintln!("loaded in {:.1} s, all of it found after {:.1} s", loaded.as_secs_f64(), began.elapsed().as_secs_f64());
    measure(&bench, &options, "loaded").await
}

struct Bench {
    server: Server,
    /// The serial of the next write.
    written: AtomicU64,
    /// Documents that have to be found.
    acknowledged: AtomicU64,
    threads: Vec<String>,
}

/// Something that was acknowledged.
struct Written {
    id: String,
    serial: u64,
    at: Instant,
}

/// What is written.
#[derive(Clone, Copy)]
enum Kind {
    Post,
    Comment,
}

impl Kind {
    /// In turn.
    fn of(n: u64) -> Self {
        if n.is_multiple_of(2) { Self::Post } else { Self::Comment }
    }
}

impl Bench {
    async fn write(&self, kind: Kind) -> anyhow::Result<Written> {
        let serial = self.written.fetch_add(1, Ordering::Relaxed);
        let (path, body) = match kind {
            Kind::Post => ("/api/v1/posts".to_owned(), text::post(serial)),
            Kind::Comment => {
                let thread = &self.threads[serial as usize % self.threads.len()];
                let body = json!({"body": format!("{} {SERIAL} {}", text::MARKER, text::comment(serial))});
                (format!("/api/v1/posts/{thread}/comments"), body.to_string())
            }
        };
        let request = Request::post(&path, &[("authorization", &self.server.bearer(serial))], &body);
        let answer = self.server.ask(&request, serial).await?;
        let at = Instant::now();
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        Ok(Written { id: answer["id"].as_str().context("an answer without an id")?.to_owned(), serial, at })
    }

    /// How long after its acknowledgement a search has found it, if one has.
    async fn found_after(&self, written: &Written) -> Option<Duration> {
        let path = format!("/api/v1/search?q=%22{}%20{:016}%22&limit=1", text::MARKER, written.serial);
        while written.at.elapsed() < FOUND_WITHIN {
            if let Ok(found) = self.server.ask(&Request::get(&path), 0).await
                && found["items"][0]["id"] == written.id.as_str()
            {
                return Some(written.at.elapsed());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        None
    }
}

/// Writes at the rate, whatever that takes, and looks for one in so many.
async fn measure(bench: &Arc<Bench>, options: &Options, name: &str) -> anyhow::Result<()> {
    let documents = bench.acknowledged.load(Ordering::Relaxed);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / options.rate);
    let mut looks = JoinSet::new();
    for n in 0..u64::from(options.rate) * options.seconds {
        ticks.tick().await;
        let (bench, looked_for) = (Arc::clone(bench), n.is_multiple_of(options.one_in));
        // As many of each kind are looked for.
        let kind = Kind::of(n + n / options.one_in);
        looks.spawn(async move {
            // What is refused is for the load bench to judge.
            match bench.write(kind).await {
                Ok(written) if looked_for => Some(bench.found_after(&written).await),
                _ => None,
            }
        });
    }
    let (mut histogram, mut lost) = (Histogram::default(), 0);
    while let Some(look) = looks.join_next().await {
        match look? {
            Some(Some(after)) => histogram.record(after),
            Some(None) => lost += 1,
            None => {}
        }
    }
    let ms = |q| format!("{:.0}", histogram.quantile(q).as_secs_f64() * 1e3);
    println!(
        "{:<24}{:>10}{:>12}{:>12}{:>12}{lost:>8}",
        format!("{documents} ({name})"),
        histogram.len() + lost,
        ms(0.5),
        ms(0.99),
        ms(1.0)
    );
    Ok(())
}

/// Writes until there are so many documents.
async fn load(bench: &Arc<Bench>, documents: u64) -> anyhow::Result<()> {
    let mut loaders = JoinSet::new();
    for _ in 0..LOADERS {
        let bench = Arc::clone(bench);
        loaders.spawn(async move {
            while bench.acknowledged.load(Ordering::Relaxed) < documents {
                // One that is refused is not counted.
                let _ = bench.write(Kind::of(bench.written.load(Ordering::Relaxed))).await;
            }
        });
    }
    while let Some(loader) = loaders.join_next().await {
        loader?;
    }
    Ok(())
}

/// Waits until everything is found.
async fn caught_up(bench: &Bench) -> anyhow::Result<()> {
    let (expected, began) = (bench.acknowledged.load(Ordering::Relaxed), Instant::now());
    let all = Request::get(&format!("/api/v1/search?q={}&limit=1", text::MARKER));
    while bench.server.ask(&all, 0).await?["total"].as_u64() < Some(expected) {
        anyhow::ensure!(began.elapsed() < CAUGHT_UP_WITHIN, "not everything is found after {CAUGHT_UP_WITHIN:?}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}
