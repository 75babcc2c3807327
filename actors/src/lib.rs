//! The four services.

pub mod comments;
