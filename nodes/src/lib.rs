//! A running Rookery: ownership, event bridges, embedded Postgres, configuration, the command line.

pub mod admin;
pub mod bridge;
pub mod chaos;
pub mod cli;
pub mod config;
pub mod databases;
pub mod event_log;
pub mod fleet;
pub mod kafka;
pub mod links;
pub mod migrate;
pub mod node;
pub mod ownership;
pub mod placement;
pub mod postgres;
mod process;
mod readers;
pub mod report;
pub mod routing;
mod secret;
pub mod telemetry;
pub mod testing;
pub mod user_news;
