//! The HTTP edge of Rookery: everything between a socket and a service's face.
//!
//! A request passes the server (time and size limits of connections), the chain (id, trace, identity, limits, deadline,
//! headers, metrics, log), perhaps CORS and compression, then its route. [`build()`] puts these together, [`Gateway`] runs
//! them as a supervised actor.

#![warn(clippy::print_stdout, clippy::print_stderr, reason = "they panic when nobody reads: log it")]

pub mod actor;
mod admission;
pub mod auth;
mod body;
pub mod breaker;
pub mod build;
mod call;
pub mod chain;
mod compress;
pub mod config;
pub mod context;
pub mod cursor;
pub mod docs;
pub mod extract;
pub mod health;
pub mod issuer;
pub mod limits;
pub mod markdown;
mod outgoing;
mod pages;
pub mod problem;
pub mod routes;
pub mod server;
mod stream;
mod wording;

pub use actor::Gateway;
pub use build::{Parts, build};
pub use call::{CallError, Service, Services};
pub use config::GatewayConfig;
pub use context::Context;
pub use problem::Problem;
