//! The `rookery` binary: see [`rookery::cli`].

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    rookery::cli::Cli::parse().run()
}
