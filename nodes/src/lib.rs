//! A running Rookery.
