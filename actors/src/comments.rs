//! Comments: one thread per post.

pub mod rules;
pub mod tree;
