//! Apache Kafka as the event log: the relay that publishes the outboxes, and the log that bridges read.
//!
//! Nothing here decides anything: positions are seqs of the source shards, offsets are only hints, and whatever is
//! delivered twice or in another order is put right by whoever reads (rules 16-18).

pub mod client;
pub mod dead_letters;
pub mod keeper;
pub mod log;
mod message;
pub mod relay;
mod sequence;
pub mod topics;

pub use self::{
    dead_letters::DeadLetters,
    keeper::Keeper,
    log::{Hints, KafkaLog},
    relay::Relay,
};
