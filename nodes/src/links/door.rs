//! The way in and the way out: connections are made or accepted, encrypted, and greeted, all of it in time.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rookery_actors::episodes::{self, with_causes};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc::UnboundedSender},
    time::{sleep, timeout},
};

use super::{
    greeting::{self, GreetingError, Instance, LinkKeys, Met, OLDEST, VERSION},
    socket::{self, ConnectError, Socket},
    switchboard::Event,
    tls::Tls,
};

/// How connections are made.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) me: Instance,
    pub(super) keys: LinkKeys,
    pub(super) tls: Option<Tls>,
    /// For everything from the connection to the end of the greeting.
    pub(super) patience: Duration,
    /// How long a peer's kernel may not acknowledge what it was sent.
    pub(super) silence_max: Duration,
}

/// A connection that was greeted.
pub(super) struct Connection {
    pub(super) met: Met,
    pub(super) socket: Socket,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DoorError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Greeting(#[from] GreetingError),
    #[error("it took longer than {} ms", .0.as_millis())]
    Slow(Duration),
}

impl Door {
    /// Dials a node, proves itself and waits to be welcomed.
    ///
    /// A node that speaks an older version of the links is dialled once more in that one.
    pub(super) async fn dial(&self, peer: &str, address: &str) -> Result<Connection, DoorError> {
        self.in_time(async {
            match self.greet(peer, address, VERSION).await {
                Err(DoorError::Greeting(GreetingError::Version { theirs })) if (OLDEST..VERSION).contains(&theirs) => {
                    self.greet(peer, address, theirs).await
                }
                greeted => greeted,
            }
        })
        .await
    }

    async fn greet(&self, peer: &str, address: &str, version: u8) -> Result<Connection, DoorError> {
        let mut socket = socket::dial(address, self.tls.as_ref(), self.silence_max).await?;
        let met = greeting::dial(&mut socket.stream(), &self.keys, &self.me, peer, version).await?;
        Ok(Connection { met, socket, permit: None })
    }

    /// Accepts for ever. Whoever proves to be a node is announced with [`Event::Knock`]; the others are gone in time.
    pub(super) async fn accept(self, listener: TcpListener, connections_max: usize, events: UnboundedSender<Event>) {
        let places = Arc::new(Semaphore::new(connections_max));
        loop {
            // At the limit nobody is accepted: the kernel's queue is bounded as well.
            let permit = Arc::clone(&places).acquire_owned().await.expect("nobody closes the semaphore");
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                // Out of descriptors, mostly: trying again at once would only burn time.
                Err(error) => {
                    episodes::warn("connections of other nodes cannot be accepted", "", &error);
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (door, events) = (self.clone(), events.clone());
            tokio::spawn(async move {
                let greeted = door.in_time(async {
                    let mut socket = socket::accepted(stream, door.tls.as_ref(), door.silence_max).await?;
                    let met = greeting::receive(&mut socket.stream(), &door.keys, &door.me).await?;
                    Ok((met, socket))
                });
                match greeted.await {
                    Ok((met, socket)) => {
                        let _ = events.send(Event::Knock(Connection { met, socket, permit: Some(permit) }));
                    }
                    Err(error) => turned_away(address, &error),
                }
            });
        }
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, DoorError>>) -> Result<T, DoorError> {
        timeout(self.patience, work).await.unwrap_or(Err(DoorError::Slow(self.patience)))
    }
}

/// A stranger at the door is worth a line; one who hung up without a word, like a port check, is not.
fn turned_away(address: SocketAddr, error: &DoorError) {
    metrics::counter!("rookery_link_refusals_total").increment(1);
    let chain = with_causes(error);
    match error {
        DoorError::Greeting(GreetingError::Io(cause)) if cause.kind() == io::ErrorKind::UnexpectedEof => {
            tracing::debug!(client.address = %address, error = chain, "a connection for the links ended before its greeting");
        }
        _ => {
            episodes::warn("connections for the links are refused", &address.ip().to_string(), chain);
        }
    }
}
