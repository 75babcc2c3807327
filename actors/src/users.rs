//! Users: who they are, how they prove it, and the sessions they keep.

pub mod names;
pub mod password;
pub mod session;
pub mod token;
