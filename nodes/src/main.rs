//! The `rookery` binary: see [`rookery::cli`].

mod allocator;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    allocator::settle();
    rookery::cli::Cli::parse().run()
}
