//! Fault injection and what proves that the promises hold meanwhile: a workload whose history is checked, and an audit.

pub mod client;
pub mod history;
pub mod linearizable;
pub mod models;
pub mod plan;
pub mod proxy;
pub mod workload;
