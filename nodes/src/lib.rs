//! A running Rookery.

pub mod config;
pub mod telemetry;
