//! How a member tells another that shards are its own now, so that it need not wait for its next poll.

use futures_util::future::{BoxFuture, FutureExt, ready};
use rookery_actors::ids::{Epoch, ShardId};

/// The way to other nodes. A message that is lost costs the time of a poll, and one that comes twice costs nothing.
pub trait Announce: Send + Sync + 'static {
    /// Tells node `to` that it was granted these shards of `service`; true once it says that it serves them.
    ///
    /// On the other side [`Contact::take_up`](super::Contact::take_up) is what answers.
    fn granted<'a>(&'a self, service: &'static str, shards: &'a [(ShardId, Epoch)], to: &'a str) -> BoxFuture<'a, bool>;

    /// Whether there is a link to a node, so that it can ask for what is served here. One that has nobody to reach says yes.
    fn reaches(&self, node: &str) -> bool;
}

/// Tells nobody: a lone node, or one whose peers are to find out by themselves.
pub struct Untold;

impl Announce for Untold {
    fn granted<'a>(&'a self, _: &'static str, _: &'a [(ShardId, Epoch)], _: &'a str) -> BoxFuture<'a, bool> {
        ready(false).boxed()
    }

    fn reaches(&self, _: &str) -> bool {
        true
    }
}
