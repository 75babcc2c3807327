//! The REST contract, spoken over HTTP to a whole node.

mod auth;
mod bad_input;
mod client;
mod comments;
mod contract;
mod posts;
mod search;
mod users;
