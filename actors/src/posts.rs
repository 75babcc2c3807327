//! Posts: what people write.

pub mod rules;
