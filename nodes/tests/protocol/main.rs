//! The rules of PROTOCOL.md against a real Postgres: each test's name is a promise.

mod batch;
mod cluster;
mod copies;
mod doubt;
mod entities;
mod events;
mod fence;
mod grants;
mod lanes;
mod membership;
mod moves;
mod random;
mod route;
mod silence;
mod support;
mod tally;
mod writers;

use rookery::chaos::proxy;
