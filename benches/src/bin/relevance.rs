//! How well what is meant is found: known items over all posts, ours beside plain BM25 with the title three times.
//!
//! `cargo run --release -p rookery-benches --bin relevance` prints nDCG@10, MRR and recall by kind of question, and fails when
//! one of ours is below its floor. The same over a sample is a test.

use std::path::PathBuf;

use clap::Parser;
use rookery_benches::search::{
    posts::{Origin, Posts},
    relevance::{Quality, SAMPLE_POSTS, SAMPLE_QUESTIONS, Scale, WHOLE_QUESTIONS, below_floor, compare},
};

/// Measures how well what is meant is found.
#[derive(Parser)]
#[command(name = "relevance", version)]
struct Options {
    /// Posts as JSON Lines, in place of those that are found beside the repository.
    #[arg(long, value_name = "FILE")]
    posts: Option<PathBuf>,
    /// Questions of each kind.
    #[arg(long, default_value_t = WHOLE_QUESTIONS)]
    questions: usize,
    /// Asks what the test asks, about a sample.
    #[arg(long, conflicts_with_all = ["posts", "questions"])]
    sample: bool,
    /// About posts that are made up, as if those of people were missing; with `--sample` only.
    #[arg(long, requires = "sample")]
    made_up: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let posts = if options.made_up { Posts::made_up() } else { Posts::read(options.posts.as_deref())? };
    let scale = Scale::of(&posts, options.sample);
    let (posts, questions) =
        if options.sample { (posts.sample(SAMPLE_POSTS), SAMPLE_QUESTIONS) } else { (posts, options.questions) };
    let folder = tempfile::tempdir()?;
    let compared = compare(&posts, questions, folder.path())?;
    let written_by = if posts.origin == Origin::People { "people" } else { "nobody" };
    println!("{} posts, written by {written_by}; ours / plain BM25 (title × 3)\n", posts.posts.len());
    println!("| asked by | questions | nDCG@10 | | MRR@10 | | recall@10 | |");
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    let row = |name: &str, ours: &Quality, plain: &Quality| {
        println!(
            "| {name} | {} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} |",
            ours.questions, ours.ndcg, plain.ndcg, ours.mrr, plain.mrr, ours.recall, plain.recall
        );
    };
    for (memory, ours, plain) in &compared {
        row(memory.as_str(), ours, plain);
    }
    let ours: Vec<Quality> = compared.iter().map(|(_, ours, _)| *ours).collect();
    let plain: Vec<Quality> = compared.iter().map(|(.., plain)| *plain).collect();
    row("mean of the kinds", &mean(&ours), &mean(&plain));
    // Floors are those of what is asked without options, or by the test.
    if let Some(scale) = scale.filter(|_| options.posts.is_none() && (options.sample || questions == WHOLE_QUESTIONS)) {
        let below = below_floor(scale, &compared);
        anyhow::ensure!(below.is_empty(), "below the floor:\n{}", below.join("\n"));
    }
    Ok(())
}

fn mean(of: &[Quality]) -> Quality {
    let mean = |figure: fn(&Quality) -> f64| of.iter().map(figure).sum::<f64>() / of.len().max(1) as f64;
    Quality {
        questions: of.iter().map(|it| it.questions).sum(),
        ndcg: mean(|it| it.ndcg),
        mrr: mean(|it| it.mrr),
        recall: mean(|it| it.recall),
    }
}
