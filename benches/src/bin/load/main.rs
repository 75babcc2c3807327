//! The load bench: Rookery beside the simplest servers that could do the same.
//!
//! `cargo run --release -p rookery-benches --bin load` runs it whole. Every subject is a process
//! of its own, so that its CPU time can be told from that of the others, and all of them take
//! turns, so that a noisy machine is noisy for all.

mod argon2_rate;
mod bench;
mod cases;
mod cluster;
mod report;
mod rookery;
mod servers;
mod subjects;

use clap::{Parser, Subcommand};

/// Measures Rookery against a bare axum server, one INSERT per request, and bare argon2.
#[derive(Parser)]
#[command(name = "load", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    subject: Option<Subject>,
    #[command(flatten)]
    bench: bench::Options,
}

/// What the bench starts of itself, each as a process.
#[derive(Subcommand)]
enum Subject {
    /// Answers everything with 500 static bytes.
    #[command(hide = true)]
    ServeBare,
    /// Inserts every post that comes in.
    #[command(hide = true)]
    ServeInsert {
        /// The connection string of its database.
        database: String,
    },
    /// Verifies passwords on every core.
    #[command(hide = true)]
    VerifyPasswords {
        /// For how long.
        ms: u64,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.subject {
        None => bench::run(&arguments.bench),
        Some(Subject::ServeBare) => servers::serve_bare(),
        Some(Subject::ServeInsert { database }) => servers::serve_insert(&database),
        Some(Subject::VerifyPasswords { ms }) => argon2_rate::measure(ms),
    }
}
