//! What can go wrong between two nodes, sorted by what the caller may conclude from it.

use std::io;

use bytes::Bytes;

/// A handler's no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody on that node answers for the service.
    #[error("nobody there answers for this service")]
    UnknownService,
    /// It has too much to do; nothing was done.
    #[error("the handler has too much to do")]
    Overloaded,
    /// Something else, in the handler's own words; at most 256 KiB of them arrive.
    #[error("declined")]
    Declined(Bytes),
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// It never left this node, or nobody there touched it: it can be sent again, elsewhere too.
    #[error("not delivered: {0}")]
    Undelivered(Undelivered),
    /// Too much is in flight to that node already, or in work there; nothing was done.
    #[error("too much is in flight to that node")]
    Overloaded,
    /// Its deadline passed before anybody worked on it; nothing was done.
    #[error("the deadline passed before it was worked on")]
    Expired,
    /// It was sent, and no answer came: what it did is unknown.
    #[error("outcome unknown: {0}")]
    Lost(Lost),
    /// The handler said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl LinkError {
    /// Whether it is certain that nothing was done, so that the request may be sent again.
    #[must_use]
    pub fn is_undone(&self) -> bool {
        match self {
            Self::Undelivered(_) | Self::Overloaded | Self::Expired => true,
            Self::Refused(refusal) => !matches!(refusal, Refusal::Declined(_)),
            Self::Lost(_) => false,
        }
    }
}

/// Why a request was not delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Undelivered {
    /// There is no link to a node of this name now.
    #[error("there is no link to that node")]
    NotLinked,
    /// The link ended while it waited to be sent.
    #[error("the link ended before it was sent")]
    LinkEnded,
    /// The body is larger than a link carries.
    #[error("a body of {bytes} bytes is more than a link carries ({})", super::BODY_BYTES_MAX)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// One of the two nodes is about to stop.
    #[error("the node is about to stop")]
    Stopping,
}

/// How the answer to a request was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The link ended.
    #[error("the link ended before the answer came")]
    LinkEnded,
    /// The deadline passed.
    #[error("no answer came by the deadline")]
    TimedOut,
    /// The handler panicked.
    #[error("the handler crashed")]
    Crashed,
    /// It was done, but the answer was larger than a link carries.
    #[error("an answer of {bytes} bytes is more than a link carries ({})", super::BODY_BYTES_MAX)]
    TooLarge {
        /// The answer's size.
        bytes: u64,
    },
}

/// Why the links of a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address to listen on is not to be had.
    #[error("cannot listen on {address} for other nodes: set another `listen` in [cluster], or ROOKERY__CLUSTER__LISTEN")]
    Listen {
        /// Which.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A certificate or a key is of no use.
    #[error(transparent)]
    Tls(#[from] super::tls::TlsError),
    /// Something else than the region can be reached from other nodes; each of them would cost every link dearly.
    #[error(
        "{count} actors can be reached from other nodes, and only the region may: a message type that converts to bytes does that"
    )]
    Remotable {
        /// How many there are.
        count: usize,
    },
    /// The actors of ractor_cluster do not start.
    #[error("the actors of the links do not start")]
    Actors(#[from] ractor::SpawnErr),
}
