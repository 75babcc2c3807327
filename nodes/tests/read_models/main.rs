//! Read models whose shards lie on several nodes: what one node writes, the others show, and each is asked but once.

mod bridges;
mod letters;
mod lists;
mod names;
mod restored;
mod search;
mod support;
mod threads;
