//! Benchmarks of Rookery.
//!
//! The library is a lean load generator, with patient clients ([`load`]) and with such as do not wait ([`flood`]), its
//! HTTP client ([`http`]) and histogram ([`histogram`]), the CPU accounting of other processes ([`process`]), and whole
//! clusters under quotas ([`cluster`], [`cgroup`]). The binary `load` compares Rookery with the simplest servers that
//! could do the same, `scale` compares sizes of clusters, and `overload` asks for ten times too much.
//!
//! Of search it has a corpus of any size, questions, and engines to ask ([`search`]), and searches that are meant to hurt
//! ([`hostile`]); the binary `search` measures what an answer costs, `relevance` how good it is.

pub mod cgroup;
pub mod cluster;
pub mod draw;
pub mod flood;
pub mod histogram;
pub mod hostile;
pub mod http;
pub mod load;
pub mod machine;
pub mod process;
pub mod search;
#[cfg(test)]
mod testing;
pub mod text;
