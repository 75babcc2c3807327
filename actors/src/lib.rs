//! The four services.

pub mod invalid;
pub mod posts;
pub mod secret;
mod text;
pub mod users;
