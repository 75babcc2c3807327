//! The rules of PROTOCOL.md on one node against a real Postgres: each test's name is a promise.

mod batch;
mod doubt;
mod entities;
mod events;
mod fence;
mod membership;
mod proxy;
mod random;
mod route;
mod support;
mod tally;
