//! A running Rookery.

pub mod config;
pub mod telemetry;
pub mod migrate;
pub mod postgres;
pub mod testing;
