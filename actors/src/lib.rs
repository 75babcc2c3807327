//! The four services of Rookery as supervised entity actors: rules, stores, events, public faces.
//!
//! Knows nothing of HTTP, of Kafka's client, or of other nodes.

#![warn(clippy::print_stdout, clippy::print_stderr, reason = "they panic when nobody reads: log it")]

pub mod authors;
pub mod caller;
pub mod comments;
mod departed;
pub mod entity;
pub mod episodes;
pub mod event;
pub mod fail_point;
pub mod ids;
pub mod invalid;
pub mod posts;
pub mod records;
pub mod runtime;
pub mod search;
pub mod secret;
pub mod service;
pub mod supervisor;
mod table;
mod text;
pub mod users;
