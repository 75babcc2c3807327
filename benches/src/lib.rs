//! Benchmarks of Rookery.
//!
//! The library is a lean load generator ([`load`]) with its HTTP client ([`http`]) and
//! histogram ([`histogram`]), and the CPU accounting of other processes ([`process`]). The
//! binary `load` compares Rookery with the simplest servers that could do the same.

pub mod histogram;
pub mod http;
pub mod load;
pub mod process;
pub mod text;
