//! The search service.

pub mod index;
