//! A running Rookery.

pub mod config;
pub mod migrate;
pub mod postgres;
pub mod telemetry;
pub mod testing;
