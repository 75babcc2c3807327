//! The four services.

pub mod search;
