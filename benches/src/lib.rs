//! Benchmarks of Rookery.
//!
//! The library is a lean load generator, with patient clients ([`load`]) and with such as do not wait ([`flood`]), its
//! HTTP client ([`http`]) and histogram ([`histogram`]), the CPU accounting of other processes ([`process`]), and whole
//! clusters under quotas ([`cluster`], [`cgroup`]). The binary `load` compares Rookery with the simplest servers that
//! could do the same, `scale` compares sizes of clusters, and `overload` asks for ten times too much.

pub mod cgroup;
pub mod cluster;
pub mod flood;
pub mod histogram;
pub mod http;
pub mod load;
pub mod process;
#[cfg(test)]
mod testing;
pub mod text;
