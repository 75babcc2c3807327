//! The four services.
