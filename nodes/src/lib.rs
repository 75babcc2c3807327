//! A running Rookery: ownership, event bridges, embedded Postgres, configuration, the command line.

#![warn(clippy::print_stdout, clippy::print_stderr, reason = "they panic when nobody reads: use `terminal`")]

pub mod admin;
pub mod bridge;
pub mod chaos;
pub mod cli;
pub mod config;
pub mod connections;
pub mod databases;
pub mod event_log;
mod files;
pub mod fleet;
pub mod kafka;
pub mod links;
pub mod migrate;
pub mod node;
mod open_files;
pub mod ownership;
pub mod pins;
pub mod placement;
pub mod postgres;
mod process;
mod readers;
pub mod rebuild;
pub mod report;
pub mod routing;
mod secret;
pub mod telemetry;
mod terminal;
pub mod testing;
pub mod user_news;
