//! A running Rookery.

pub mod migrate;
pub mod postgres;
pub mod testing;
