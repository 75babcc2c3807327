//! A running Rookery: ownership, event bridges, embedded Postgres, configuration, the command line.

pub mod bridge;
pub mod config;
pub mod event_log;
pub mod kafka;
pub mod migrate;
pub mod ownership;
pub mod placement;
pub mod postgres;
pub mod telemetry;
pub mod testing;
