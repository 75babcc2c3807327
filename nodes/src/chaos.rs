//! Fault injection and what proves that the promises hold meanwhile: a workload whose history is checked, and an audit.

pub mod audit;
pub mod client;
pub mod cluster;
pub mod history;
pub mod inspector;
pub mod linearizable;
pub mod models;
pub mod plan;
pub mod probes;
pub mod proxy;
pub mod run;
pub mod scenario;
pub mod soak;
pub mod workload;
