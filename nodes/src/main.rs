//! The `rookery` binary: see [`rookery::cli`].

#![warn(clippy::print_stdout, clippy::print_stderr, reason = "they panic when nobody reads: use `rookery::cli`")]

mod allocator;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    allocator::settle();
    rookery::cli::Cli::parse().run()
}
