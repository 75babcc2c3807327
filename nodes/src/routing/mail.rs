//! What nodes tell each other besides the questions of their services.

use std::sync::Arc;

use bytes::Bytes;
use rookery_actors::ids::{Epoch, ShardId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// "These shards are served by me now."
pub(super) const SERVING: u8 = 16;
/// "These shards are yours now"; answered when they are served.
pub(super) const GRANTED: u8 = 17;
/// A question for a third node, to which the asking one has no link.
pub(super) const RELAYED: u8 = 18;

#[derive(Serialize, Deserialize)]
pub(super) struct Serving {
    pub(super) service: u8,
    pub(super) shards: Vec<(ShardId, Epoch)>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Granted {
    pub(super) service: u8,
    pub(super) shards: Vec<(ShardId, Epoch)>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Relayed {
    pub(super) to: Arc<str>,
    pub(super) service: u8,
    pub(super) question: Vec<u8>,
}

pub(super) fn encode(message: &impl Serialize) -> Bytes {
    postcard::to_allocvec(message).expect("a message is plain data").into()
}

/// None: another version speaks there, or nonsense.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}
